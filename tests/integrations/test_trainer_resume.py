"""SlamCallback in a Trainer that goes on from a checkpoint: the one it is given, and of the same selection."""

import pytest
import torch
from support.tiny_trainer import SELECTION, packed_model, trainer_of, weights

from slamkern.errors import SlamkernError
from slamkern.integrations.trainer import SlamCallback
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection


def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path):
    whole = packed_model()
    trainer_of(whole, tmp_path / "whole", [SlamCallback(SELECTION)]).train()
    again = packed_model()
    trainer = trainer_of(again, tmp_path / "whole", [SlamCallback(SELECTION)])
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in weights(whole).items())


def test_a_resumed_run_goes_on_from_the_checkpoint_it_is_given(tmp_path):
    whole = packed_model()
    trainer_of(whole, tmp_path / "whole", [SlamCallback(SELECTION)]).train()
    trainer_of(packed_model(), tmp_path / "other", [SlamCallback(SELECTION)], learning_rate=0.1).train()
    for out in ("empty", "other"):  # the latter has a checkpoint-2 of its own
        again = packed_model()
        trainer = trainer_of(again, tmp_path / out, [SlamCallback(SELECTION)])
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in weights(whole).items())


def test_a_checkpoint_of_another_selection_is_not_resumed(tmp_path):
    def refused(folder, words, selection, model=None, **options):
        trainer = trainer_of(model or packed_model(), tmp_path / "new", [SlamCallback(selection, **options)])
        with pytest.raises(SlamkernError, match=words):
            trainer.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-2"))

    trainer_of(packed_model(), tmp_path / "whole", [SlamCallback(SELECTION)]).train()
    layers = r"the resumed checkpoint trained layers \[0, 2\], this selection has \[1, 3\]"
    refused("whole", layers, LayerSelection(layers=(1, 3)))
    refused("whole", "train different tensors, the first .*down_proj", SELECTION, projections=("gate", "up"))
    refused("whole", "the frozen weights are not those", SELECTION, packed_model().bfloat16())
    neurons = LayerSelection(layers=(0, 2), neurons={0: (1, 2), 2: (5,)})
    trainer_of(packed_model(), tmp_path / "neurons", [SlamCallback(neurons)]).train()
    others = LayerSelection(layers=(0, 2), neurons={0: (1, 2), 2: (6,)})
    refused("neurons", r"trained other neurons of layers \[0, 2\]", others)
    model = packed_model()
    apply_selection(model, SELECTION)
    trainer_of(model, tmp_path / "without").train()
    refused("without", "was saved without SlamCallback", SELECTION)
