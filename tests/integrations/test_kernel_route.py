"""Why there is no kernel of ours to register with transformers; when this fails, there can be one."""

import inspect

import pytest
from support.tiny_models import FAMILIES, tiny_model

import slamkern


@pytest.mark.parametrize("family", FAMILIES)
def test_no_ffn_is_marked_as_a_place_for_kernels(family):
    model = tiny_model(family)
    for row in slamkern.explain(model):
        assert "use_kernel" not in inspect.getsource(type(model.get_submodule(row.path)))
    if family == "llama":  # the mark would be seen
        assert "@use_kernel_forward_from_hub" in inspect.getsource(type(model.model.norm))


def test_a_kernelized_forward_stays_when_kernels_are_switched_off(llama):
    # What kernelize does to an instance of a marked class.
    norm = llama.model.norm
    norm.forward = replaced = (lambda self, hidden_states: hidden_states).__get__(norm)
    llama._use_kernels = True
    llama.set_use_kernels(False)
    assert norm.forward is replaced and llama._use_kernels is False
    slamkern.patch_model(llama)
    reasons = {row.path: row.reason for row in slamkern.explain(llama).norms}
    assert "its forward on this instance is" in reasons["model.norm"]
