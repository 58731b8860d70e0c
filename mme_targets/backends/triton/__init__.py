"""The Triton floor: one file a stage, for a GPU without nvcc. Not yet run on a GPU.

Every kernel has run through Triton's interpreter (``TRITON_INTERPRET=1``, CPU tensors), where it
agrees with the reference, and is compiled ahead of time for sm_80, sm_90 and sm_100; neither says
anything about speed. The interpreter is chosen when this package is first imported and cannot be
changed later in the process.

All launches pass ``enable_fp_fusion=False``. A product followed by a sum would else be contracted
into one fused multiply-add, rounded once, and ties (an orientation on a bin's edge, a position on
x.5) would then be decided differently from the other floors, which round each operation. The flag
is also what LLVM and ptxas (``--fmad=false``) obey, so no per-operation intrinsic is needed.
Divisions and square roots are the correctly rounded ``div_rn`` and ``sqrt_rn``: Triton's ``/`` and
``sqrt`` are approximate. The price is small: these kernels load, compare and select.

Nothing here synchronises, and nothing is copied to the host: kernels are launched on the tensor's
device and its current stream, outputs are written once.
"""

from .descriptors import histograms, windows
from .patch_norm import patch_norm
from .trajectories import median_filter, tracks

__all__ = ["histograms", "median_filter", "patch_norm", "tracks", "windows"]
