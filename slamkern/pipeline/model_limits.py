"""Sizes in a model's configuration that no model has: transformers would build them for hours, or fill all memory.

A stranger's configuration may say anything. Its layers are counted before they are built, its largest tensors are
compared with the files that should hold them, and a number that is none is named.
"""

import math
from pathlib import Path
from typing import Any

from slamkern.errors import SlamkernError

LAYERS = 1000  # the deepest models so far have some 130
VALUES_A_BYTE = 8  # no format of weights has less than a bit a value


def check_numbers(config: Any, source: str) -> None:
    """SlamkernError for a number of the configuration that is not finite, and for a depth that cannot be."""
    text = config.get_text_config()
    for name, value in vars(text).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SlamkernError(f"the configuration of {source} has {name}: {value}; expected a finite number")
    layers = getattr(text, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > LAYERS:
        raise SlamkernError(f"the configuration of {source} has {layers:,} layers; at most {LAYERS:,} are built")


def check_against_files(config: Any, path: Path) -> None:
    """SlamkernError where one tensor of the configuration alone is larger than all files of weights together.

    path: the model's folder, or its GGUF file. Pickles are not looked at: they are for those who trust them.
    """
    files = [path] if path.is_file() else path.glob("*.safetensors")
    size = sum(file.stat().st_size for file in files if file.is_file())
    text = config.get_text_config()
    width = int(getattr(text, "hidden_size", None) or 0)
    for name in ("vocab_size", "intermediate_size", "hidden_size"):
        other = getattr(text, name, None)
        if size and isinstance(other, int) and other * width > VALUES_A_BYTE * size:
            raise SlamkernError(
                f"the configuration of {path} has {name} {other:,} and hidden_size {width:,},"
                f" more than its {size:,} bytes of weights can hold"
            )
