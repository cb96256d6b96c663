"""slamkern: Selective Language Alignment with fused kernels.

Find the layers of a language model that handle multilingualism, and fine-tune only their feed-forward weights on
question translation into English (SLAM, arXiv 2501.03681). This module is the public API and nothing else.
"""

from slamkern.data.pairs import Pair, load_pairs
from slamkern.errors import SlamkernError
from slamkern.evaluation.accuracy import evaluate
from slamkern.evaluation.compare import compare
from slamkern.evaluation.scoring import EvaluationResult
from slamkern.modules.explain import explain
from slamkern.modules.patch import patch_model, patched, unpatch_model
from slamkern.probe.collect import collect_stats
from slamkern.probe.recorder import record_stats
from slamkern.probe.stats import ActivationStats
from slamkern.selection.layers import LayerSelection, select_layers
from slamkern.selection.trainable import apply_selection, print_trainable_parameters
from slamkern.training.checkpoint import load_delta, save_delta
from slamkern.training.config import TrainConfig, TrainResult
from slamkern.training.export import export_model
from slamkern.training.loop import train
from slamkern.version import __version__

__all__ = [
    "ActivationStats",
    "EvaluationResult",
    "LayerSelection",
    "Pair",
    "SlamkernError",
    "TrainConfig",
    "TrainResult",
    "__version__",
    "apply_selection",
    "collect_stats",
    "compare",
    "evaluate",
    "explain",
    "export_model",
    "load_delta",
    "load_pairs",
    "patch_model",
    "patched",
    "print_trainable_parameters",
    "record_stats",
    "save_delta",
    "select_layers",
    "train",
    "unpatch_model",
]
