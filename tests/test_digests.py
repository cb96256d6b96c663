import torch
from support.tiny_models import tiny_model

from slamkern.digests import state_digest


def digest(change=None, **options):
    model = tiny_model(**options)
    if change is not None:
        with torch.no_grad():
            change(model.model.layers[1].mlp.up_proj.weight)
    return state_digest(model.state_dict())


def test_digest_follows_every_value_their_order_names_and_dtype():
    model = tiny_model()
    first = digest()
    assert first == digest() == state_digest({name: t.T.contiguous().T for name, t in model.state_dict().items()
                                              if t.dim() == 2} | {n: t for n, t in model.state_dict().items()
                                                                  if t.dim() != 2})  # fmt: skip
    others = [
        digest(seed=1),
        digest(lambda weight: weight.copy_(weight.flip(0))),  # the same values in other rows
        digest(lambda weight: weight[40, 20].mul_(-1)),
        state_digest(model.bfloat16().state_dict()),
        state_digest({f"x.{name}": tensor for name, tensor in tiny_model().state_dict().items()}),
    ]
    assert len({first, *others}) == 6


def test_tied_weights_have_the_digest_of_separate_ones():
    weight = torch.randn(3, 4)
    assert state_digest({"a": weight, "b": weight}) == state_digest({"a": weight, "b": weight.clone()})
    assert state_digest({"a": weight, "b": weight[:2]}) != state_digest({"a": weight, "b": weight})
