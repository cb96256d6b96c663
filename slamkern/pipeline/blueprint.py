"""A model without its weights: its class, built from the configuration alone on the meta device."""

from typing import Any

import torch

from slamkern.pipeline.loading import load_config_of, resolve_device, resolve_dtype
from slamkern.pipeline.sections import ModelSection


def blueprint(section: ModelSection) -> Any:
    """The model that the section names, in the dtype it will have. SlamkernError as ``load_config_of``."""
    from transformers import AutoModelForCausalLM

    trust = section.trust_remote_code
    config = load_config_of(section.name, trust_remote_code=trust)
    dtype = resolve_dtype(section.dtype, resolve_device(section.device))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust)
