"""Motion targets from raw frames (Masked Motion Encoding, CVPR 2023), on CPU or GPU."""

from .backends import backends
from .config import ConfigError, SurfConfig, TargetConfig, Tvl1Config
from .ops.camera_motion import CameraMotion, camera_motion
from .ops.descriptors import hof, hog, mbh, trajectory_hog
from .ops.optical_flow import optical_flow, tvl1
from .ops.patch_norm import patch_norm
from .ops.trajectories import Trajectories, median_filter, trajectories
from .pipeline import MotionTargets
from .plan import ClipPlan
from .targets import Target, Targets

__version__ = "0.1.0"
__all__ = [
    "CameraMotion",
    "ClipPlan",
    "ConfigError",
    "MotionTargets",
    "SurfConfig",
    "Target",
    "TargetConfig",
    "Targets",
    "Trajectories",
    "Tvl1Config",
    "backends",
    "camera_motion",
    "hof",
    "hog",
    "mbh",
    "median_filter",
    "optical_flow",
    "patch_norm",
    "trajectories",
    "trajectory_hog",
    "tvl1",
]
