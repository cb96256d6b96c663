"""Host time of a fused FFN's forward beside the stock one: what Python does before a kernel is launched.

One FFN so small that its arithmetic costs nothing; Triton's launches are stubs, so that what is left is the package's
own: patching, autograd, the choice of a backend, checks, allocations. Calls of both take turns; a time is processor
time of a call, the least over the repeats, which other work on the machine moves least. On a CPU use ``--threads 1``:
threads that wait for one another take processor time too.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from benchmarks.launch_counts import stubbed_kernels
from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern import patch_model, record_stats
from slamkern.ops.dispatch import backends

COLUMNS = ("mode", "languages", "stock_us", "fused_us", "extra_us")
LIMIT_US = 25.0  # of what a fused forward with statistics may take longer
_LANGUAGES = 10
_TOKENS = 16


def measure(device: torch.device, *, calls: int, repeats: int) -> list[Row]:
    """One row for inference and one for a forward that autograd watches, each without statistics and with."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    stock, fused = (LlamaForCausalLM(config).to(device).requires_grad_(False) for _ in range(2))
    patch_model(fused, backend="triton")
    ids = torch.arange(_TOKENS)[None] % _LANGUAGES
    rows = []
    for mode, grad in (("inference", False), ("training", True)):
        for languages in (0, _LANGUAGES):
            x = torch.randn(1, _TOKENS, 32, device=device, requires_grad=grad)
            blocks = {"stock_us": stock.model.layers[0].mlp, "fused_us": fused.model.layers[0].mlp}
            with ExitStack() as stack:
                stack.enter_context(torch.set_grad_enabled(grad))
                stack.enter_context(stubbed_kernels(lambda name: None))
                if languages:
                    recorder = stack.enter_context(record_stats(fused, [str(n) for n in range(languages)]))
                    stack.enter_context(recorder.tokens(ids))
                least = least_times(blocks, x, calls=calls, repeats=repeats)
            extra = least["fused_us"] - least["stock_us"]
            rows.append({"mode": mode, "languages": languages, **least, "extra_us": extra})
    return rows


def least_times(blocks: dict[str, nn.Module], x: Tensor, *, calls: int, repeats: int) -> dict[str, float]:
    """Microseconds of processor time a call of each block, which take turns; the least of the repeats."""
    least = dict.fromkeys(blocks, float("inf"))
    for _ in range(repeats):
        for name, block in blocks.items():
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            started = time.process_time()
            for _ in range(calls):
                block(x)
            least[name] = min(least[name], (time.process_time() - started) / calls * 1e6)
    return least


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("host_time", __doc__.splitlines()[0], argv)
    if stage.device.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton is a backend of a CPU then; no kernel of it runs here
    if reason := backends(stage.device.type)["triton"]:
        stage.rows.append({"absent": reason})
    else:
        calls, repeats = (2, 3) if stage.dry else (300, 40)
        stage.rows += measure(stage.device, calls=calls, repeats=repeats)
    stage.save()
    show(f"host time on {stage.device}", stage.rows, COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
