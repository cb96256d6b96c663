"""slamkern: Selective Language Alignment with fused kernels.

Find the layers of a language model that handle multilingualism, and fine-tune only their feed-forward weights on
question translation into English (SLAM, arXiv 2501.03681). This module is the public API and nothing else.
"""

from slamkern.data import Pair, load_pairs
from slamkern.errors import SlamkernError
from slamkern.evaluation import evaluate
from slamkern.moments import Moments
from slamkern.patch import explain, patch_model, patched, unpatch_model
from slamkern.probing import collect_stats
from slamkern.recipe import TrainConfig, TrainResult
from slamkern.recorder import Recorder, record_stats
from slamkern.scoring import EvaluationResult
from slamkern.selection import LayerSelection, preset, select_layers
from slamkern.stats import ActivationStats
from slamkern.trainable import Trainable, apply_selection, trainable_tensors
from slamkern.training import train
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
