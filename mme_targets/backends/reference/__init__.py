"""The reference floor: NumPy and OpenCV in float64, one file a stage, to be read beside the paper.

It is the oracle that every other floor is tested against, and is itself tested against closed forms
and independent libraries only. Tensors in, tensors out, on whatever device they came from.
"""

from .descriptors import histograms, windows
from .patch_norm import patch_norm
from .trajectories import median_filter, tracks

__all__ = ["histograms", "median_filter", "patch_norm", "tracks", "windows"]
