"""The Triton floor: one file a stage, for a GPU without nvcc. Not yet run on a GPU.

Every kernel has run through Triton's interpreter (``TRITON_INTERPRET=1``, CPU tensors), where it
agrees with the reference, and compiles ahead of time for sm_80, sm_90 and sm_100 without spilling;
neither says anything about its speed. The variable is read when this package is first imported.

All launches pass ``enable_fp_fusion=False``. Else a product and the sum after it may be contracted
into one fused multiply-add, rounded once, and what lies on an edge (an orientation between two
bins, a position at x.5) would be decided differently from the other floors, which round each
operation. LLVM and ptxas (``--fmad=false``) both obey the flag, so no operation needs an intrinsic
of its own. Divisions and square roots are the correctly rounded ``div_rn`` and ``sqrt_rn``, since
Triton's ``/`` and ``sqrt`` are approximate.

Nothing here synchronises or copies to the host: kernels are launched on the tensor's device and its
current stream. Outputs are written once, but for the flow of TV-L1, which is worked on in place.
Lanes are counted in int32, so a call takes fewer than 2³¹ tracks, cells, windows or coordinates.
Sizes are arguments, not constants, so that a new frame size compiles nothing; what a config fixes
(bins, cell, values of a patch, median) is constant.
"""

from .descriptors import histograms, windows
from .optical_flow import tvl1
from .patch_norm import patch_norm
from .trajectories import median_filter, tracks

__all__ = ["histograms", "median_filter", "patch_norm", "tracks", "tvl1", "windows"]
