"""The whole model as a plain Hugging Face folder: config, weights, tokenizer, loadable without slamkern.

Patched models keep their class and state_dict keys, so the export of one is that of its unpatched twin. Nothing is
merged, quantized or cast.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from slamkern.errors import SlamkernError
from slamkern.files import atomic_folder
from slamkern.modules.finite import check_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_model(model: "PreTrainedModel", tokenizer: Any, folder: str | Path) -> Path:
    """Write ``folder`` as a whole or not at all; returns it.

    SlamkernError for a folder that is not empty, for a model that cannot be saved, and for weights that are not finite.
    OSError when the disk is full.
    """
    folder = Path(folder)
    if not hasattr(model, "save_pretrained"):
        raise SlamkernError(f"{type(model).__name__} cannot be exported; a transformers model can")
    check_folder(folder)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SlamkernError("the model has weights on the meta device, which hold no values; load it before exporting")
    check_finite(model.state_dict(), "nothing was exported; load the model it should be, or train it again")
    with atomic_folder(folder) as temporary:
        try:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        except SafetensorError as error:  # a full disk arrives as this, not as OSError
            raise OSError(f"cannot write {folder}: {error}") from error
    return folder


def check_folder(folder: Path) -> None:
    """SlamkernError for a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SlamkernError(f"{folder} exists and is not an empty folder; export into a new one")
