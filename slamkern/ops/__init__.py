"""The ops of slamkern by name, each in every backend: the public seam for kernels and benchmarks.

``glu`` and ``norm_fp8`` register them, ``dispatch`` picks the backend, ``reference`` is the plain-torch twin.
"""

from slamkern.kernels import ACTIVATIONS, NORM_STYLES, OBSERVABLES, Observable
from slamkern.ops.glu import swiglu, swiglu_stats

__all__ = ["ACTIVATIONS", "NORM_STYLES", "OBSERVABLES", "Observable", "swiglu", "swiglu_stats"]
