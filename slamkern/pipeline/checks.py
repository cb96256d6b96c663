"""Everything that can be wrong before a model is loaded: data, tasks, prompts, and choices that its depth decides.

Only the model's configuration is read. What is wrong costs seconds here, and nothing has been written yet.
"""

from collections.abc import Sequence
from typing import Any

from slamkern.data.pairs import Pair
from slamkern.data.prompts import get_prompt
from slamkern.errors import SlamkernError
from slamkern.pipeline.loading import load_config_of, resolve_device
from slamkern.pipeline.sections import ModelSection, RunConfig, SelectSection
from slamkern.pipeline.stages import english_texts, probe_texts
from slamkern.selection.layers import choose_before_probe


def check_run(config: RunConfig, aligned: Sequence[Pair], held_out: Sequence[Pair]) -> None:
    """SlamkernError for what a whole run would fail on hours later."""
    if config.train.fsdp:
        raise SlamkernError("a run measures the whole model in every process; use train.fsdp with slamkern train alone")
    num_layers = check_model(config.model)
    languages = tuple(probe_texts(config, aligned))
    check_select(config.select, num_layers, languages)
    for spec in (config.train.prompt, config.evaluate.prompt):
        check_prompt(spec)
    english_texts(config, held_out)
    config.evaluate.load()


def check_model(section: ModelSection) -> int:
    """The number of layers of a model whose configuration and device can be had."""
    resolve_device(section.device)
    config: Any = load_config_of(section.name, trust_remote_code=section.trust_remote_code)
    text = config.get_text_config()
    if (num_layers := getattr(text, "num_hidden_layers", None)) is None:
        raise SlamkernError(f"{section.name}: its configuration ({type(text).__name__}) says no number of layers")
    return int(num_layers)


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
    """A prompt that can be had; the chat template of a tokenizer is tried when that is loaded."""
    if spec != "chat":
        get_prompt(spec)
