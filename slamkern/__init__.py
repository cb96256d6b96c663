"""slamkern: Selective Language Alignment with fused kernels.

Find the layers of a language model that handle multilingualism, and fine-tune only their feed-forward weights on
question translation into English (SLAM, arXiv 2501.03681). This module is the public API and nothing else.
"""

from slamkern.data.pairs import Pair, load_pairs
from slamkern.errors import SlamkernError
from slamkern.evaluation.accuracy import evaluate
from slamkern.evaluation.scoring import EvaluationResult
from slamkern.modules.patch import explain, patch_model, patched, unpatch_model
from slamkern.ops.moments import Moments
from slamkern.probe.collect import collect_stats
from slamkern.probe.recorder import Recorder, record_stats
from slamkern.probe.stats import ActivationStats
from slamkern.selection.layers import LayerSelection, preset, select_layers
from slamkern.selection.trainable import Trainable, apply_selection, trainable_tensors
from slamkern.training.config import TrainConfig, TrainResult
from slamkern.training.loop import train
from slamkern.version import __version__

__all__ = [
    "ActivationStats",
    "EvaluationResult",
    "LayerSelection",
    "Moments",
    "Pair",
    "Recorder",
    "SlamkernError",
    "TrainConfig",
    "TrainResult",
    "Trainable",
    "__version__",
    "apply_selection",
    "collect_stats",
    "evaluate",
    "explain",
    "load_pairs",
    "patch_model",
    "patched",
    "preset",
    "record_stats",
    "select_layers",
    "train",
    "trainable_tensors",
    "unpatch_model",
]
