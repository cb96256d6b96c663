"""Everything that can be wrong before a model is loaded: data, tasks, prompts, lengths, recipe, and what depth decides.

Only the model's configuration and its tokenizer are read. What is wrong costs seconds here, and nothing has been
written yet.
"""

from collections.abc import Sequence
from typing import Any

from slamkern.data.pairs import Pair
from slamkern.data.prompts import get_prompt
from slamkern.data.tasks import Question
from slamkern.data.tokenization import check_some_fit
from slamkern.errors import SlamkernError
from slamkern.modules.cuda_graphs import check_capturable
from slamkern.pipeline.blueprint import blueprint
from slamkern.pipeline.launch import Launch, read_launch
from slamkern.pipeline.lengths import check_answers, check_examples, check_translations
from slamkern.pipeline.loading import load_config_of, load_tokenizer, resolve_device
from slamkern.pipeline.sections import ModelSection, RunConfig, SelectSection
from slamkern.pipeline.stages import english_texts, probe_texts
from slamkern.selection.layers import LayerSelection, choose_before_probe
from slamkern.selection.trainable import trained_sizes
from slamkern.training.checks import check_budget, check_recipe


def check_run(
    config: RunConfig, aligned: Sequence[Pair], held_out: Sequence[Pair], launch: Launch | None = None
) -> None:
    """SlamkernError for what a whole run would fail on hours later, as a job of ``launch`` or of this process."""
    launch = launch or read_launch(None)
    if config.train.fsdp or launch.fsdp:
        raise SlamkernError(
            "a run measures the whole model in every process; shard it (FSDP) with slamkern train alone, on a selection"
            " of slamkern select --model"
        )
    num_layers, select = check_model(config.model), config.select
    check_select(select, num_layers, tuple(probe_texts(config, aligned)))
    check_probe(config, launch)
    english_texts(config, held_out)
    for spec in (config.train.prompt, config.evaluate.prompt):
        check_prompt(spec)
    questions = config.evaluate.load()
    tokenizer = check_training(config, aligned, held_out, launch)
    if select.neuron_fraction is None:  # else the probe says how many neurons there are to train
        check_memory(config, choose_before_probe(num_layers, select.k, select.rule, select.region, select.preset))
    check_translations(config, tokenizer, context_of(config.model), held_out)
    if questions:
        check_answers(config, tokenizer, context_of(config.model), questions)


def check_training(
    config: RunConfig, aligned: Sequence[Pair], held_out: Sequence[Pair], launch: Launch | None = None
) -> Any:
    """SlamkernError for what training would fail on once the model is loaded; returns the tokenizer."""
    launch = launch or read_launch(None)
    device = resolve_device(config.model.device) if launch.here else None
    check_recipe(config.train, device, processes=launch.processes, fsdp_launch=launch.fsdp)
    check_prompt(config.train.prompt)
    tokenizer = _tokenizer(config.model)
    check_examples(config, tokenizer, context_of(config.model), aligned, held_out)
    return tokenizer


def check_memory(config: RunConfig, selection: LayerSelection | Sequence[int]) -> None:
    """SlamkernError for a memory budget that training these layers cannot keep, whatever the batch."""
    if config.train.memory_budget is None:
        return
    model = blueprint(config.model)
    sizes = trained_sizes(model, selection, config.select.projections)
    check_budget(model, sizes, config.train, on_host=resolve_device(config.model.device).type == "cpu")


def check_evaluation(config: RunConfig, questions: Sequence[Question]) -> None:
    """SlamkernError for what answering these questions would fail on once the model is loaded."""
    check_model(config.model)
    check_prompt(config.evaluate.prompt)
    check_answers(config, _tokenizer(config.model), context_of(config.model), questions)


def check_held_out(config: RunConfig, held_out: Sequence[Pair]) -> None:
    """SlamkernError where the held-out translation loss of no pair can be measured."""
    check_prompt(config.train.prompt)
    tokenizer = _tokenizer(config.model)
    prompt = get_prompt(config.train.prompt, tokenizer)
    check_some_fit(held_out, tokenizer, prompt, max_length=config.train.max_length)


def check_probe(config: RunConfig, launch: Launch | None = None) -> None:
    """SlamkernError for a probe that this machine cannot run."""
    if config.probe.cuda_graphs and (launch or read_launch(None)).here:
        check_capturable([resolve_device(config.model.device)])


def check_model(section: ModelSection) -> int:
    """The number of layers of a model whose configuration and device can be had."""
    resolve_device(section.device)
    text = _text_config(section)
    if (num_layers := getattr(text, "num_hidden_layers", None)) is None:
        raise SlamkernError(f"{section.name}: its configuration ({type(text).__name__}) says no number of layers")
    return int(num_layers)


def context_of(section: ModelSection) -> int | None:
    """How many tokens the model reads at most, where its configuration says so."""
    return getattr(_text_config(section), "max_position_embeddings", None)


def check_select(section: SelectSection, num_layers: int, languages: Sequence[str]) -> None:
    """A choice that a model of so many layers, probed in these languages, allows."""
    choose_before_probe(num_layers, section.k, section.rule, section.region, section.preset)
    if section.preset is not None:
        return
    if len(languages) < 2:
        raise SlamkernError(f"the probe reads only {' '.join(languages)}; what tells languages apart needs two")
    if "en" not in languages and (section.center == "en" or section.score == "english_overlap"):
        raise SlamkernError(f"select compares with English, but the probe reads only {' '.join(languages)}")


def check_prompt(spec: str) -> None:
    """A prompt that can be had without a tokenizer; the chat template of one is tried with it."""
    if spec != "chat":
        get_prompt(spec)


def _text_config(section: ModelSection) -> Any:
    return load_config_of(section.name, trust_remote_code=section.trust_remote_code).get_text_config()


def _tokenizer(section: ModelSection) -> Any:
    return load_tokenizer(section.name, trust_remote_code=section.trust_remote_code)
