"""What others have published that slamkern's numbers stand beside: other models and methods, so anchors, not rivals."""

from benchmarks.markdown import markdown

# what, GPU, value, unit, source
PUBLISHED = (
    ("LoRA of rank 16, Llama-3.1-8B, batches of 4 x 1024", "H100", 9621, "tokens/s", "Soup issues 78, 378"),
    ("the same with Liger-Kernel", "H100", 10115, "tokens/s", "Soup issues 78, 378"),
    ("all weights in FP8, Llama-3.1-8B, sequences of 8192, 32 GPUs", "H200", 10938, "tokens/s a GPU",
     "torchtitan benchmarks, 2025-06"),
    ("fused linear cross entropy, backward, 8192 x 4096 x 131072", "H200", 763, "TFLOP/s", "Liger-Kernel PR 1422"),
    ("the same, 2048 rows", "H200", 768, "TFLOP/s", "Liger-Kernel PR 1422"),
    ("cuBLAS, bfloat16, 4096^3 to 10240^3", "H200", 786, "TFLOP/s at most", "NVIDIA/tilus PR 86"),
)  # fmt: skip


def table() -> str:
    """As Markdown."""
    return markdown(("published elsewhere", "GPU", "value", "", "source"), [list(row) for row in PUBLISHED])
