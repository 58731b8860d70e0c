"""Doors of camera motion (Appendix A): interest points → homography → warp → flow again.

Only the reference floor estimates it so far: OpenCV and NumPy on the host
(`mme_targets.backends.reference.camera_motion`, where the steps are described). The two flows of
`flow_and_camera` are computed where `optical_flow` computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..arrays import Array, as_tensor, check_choice, check_dtype
from ..backends.reference import camera_motion as reference
from ..config import Tvl1Config
from .optical_flow import (
    DETECTORS,
    METHODS,
    check_backend,
    check_bound,
    check_config,
    check_seed,
    clipped,
    flow_floor,
    flow_of_images,
    host_array,
    host_frames,
    host_pairs,
    returned,
)

WINDOW = 25.0
"""px; interest points are matched within ± this."""
THRESHOLD = 1.0
"""px; a match this near to where a homography says agrees with it."""


class CameraMotion(NamedTuple):
    """What the camera did between the frames of each pair.

    Attributes
    ----------
    homographies : [B, P, 3, 3] float64
        Maps a point (x, y, 1) of the first frame to the second, px, last entry 1; the identity
        where none was found, and for two equal frames.
    inliers : [B, P] int64
        Matches that agree with it.
    ok : [B, P] bool
        Whether a homography was found.
    """

    homographies: Array
    inliers: Array
    ok: Array


class FlowAndCamera(NamedTuple):
    """Flow [B, P, 2, H, W] float32 with the camera's motion removed, and that motion."""

    flow: Array
    camera: CameraMotion


def camera_motion(
    frames: Array,
    flow: Array,
    *,
    pairs: Any = None,
    detector: str = "sift",
    window: float | None = WINDOW,
    threshold: float = THRESHOLD,
    seed: int = 0,
    backend: str = "auto",
) -> CameraMotion:
    """Estimate the homography by which the camera's motion moves the background (Appendix A).

    Interest points of both frames that are each other's nearest, together with up to 1000 corners
    of the first frame carried by the flow, go to RANSAC if they are more than 50; the homography is
    kept if more than 25 agree with it and it neither folds nor crushes the frame.

    OpenCV does the work on the host; a CUDA tensor is copied there, which synchronises with the
    device.

    Parameters
    ----------
    frames : [B, T, 3, H, W] or [T, 3, H, W], uint8 or float32
        RGB of values 0 to 255.
    flow : [B, P, 2, H, W] or [P, 2, H, W], float32 or float16
        Unclipped flow of each pair, px. Corners whose flow is not finite are left out.
    pairs : [P, 2] integers on the host, optional
        First and second frame of each flow. By default 0→1, 1→2, …
    detector : "sift", "orb" or "corners"
        Interest points: SIFT, ORB, or none but the corners.
    window : float or None
        Interest points match within ± this in x and y, px; None: anywhere. It limits how much
        motion they can see.
    threshold : float
        RANSAC's, px.
    seed : int
        Of RANSAC's random numbers, which start anew for every pair: same input, same output.
    backend : "auto" or "reference"

    Raises
    ------
    ValueError, TypeError
        For an argument that is not as above, by its name.
    ImportError
        If OpenCV is missing.
    """
    check_backend(backend)
    _check(detector, window, threshold, seed)
    clips, unbatched = host_frames(frames)
    listed = host_pairs(pairs, clips.shape[1])
    field = as_tensor(flow, "flow")
    check_dtype(field, "flow", (torch.float32, torch.float16))
    must = [*([] if unbatched else [len(clips)]), len(listed), 2, *clips.shape[-2:]]
    if list(field.shape) != must:
        raise ValueError(
            f"flow has shape {list(field.shape)}; must be {must} for these frames and pairs"
        )
    motion = reference.camera_motion(
        clips,
        host_array((field[None] if unbatched else field).float()),
        listed,
        reference.Settings(detector, window, threshold, seed),
    )
    return CameraMotion(*(returned(part, frames, unbatched) for part in motion))


def flow_and_camera(
    frames: Array,
    *,
    method: str = "tvl1",
    pairs: Any = None,
    bound: float | None = 20.0,
    config: Tvl1Config | None = None,
    detector: str = "sift",
    window: float | None = WINDOW,
    threshold: float = THRESHOLD,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    backend: str = "auto",
) -> FlowAndCamera:
    """`optical_flow(camera_motion=True)` that also returns the camera's motion it removed.

    Parameters and errors are those of `optical_flow()` and `camera_motion()`. At pixel p the second
    frame shows at H·(p + flow(p)) what the first shows at p.
    """
    check_choice(method, "method", METHODS)
    floor = flow_floor(method, backend)
    _check(detector, window, threshold, seed)
    check_bound(bound)
    tvl1 = check_config(config)
    clips, unbatched = host_frames(frames)
    flow, motion = reference.flow_and_camera(
        clips,
        host_pairs(pairs, clips.shape[1]),
        reference.Settings(detector, window, threshold, seed),
        solve=lambda images, done: flow_of_images(images, clips, method, tvl1, floor, done),
        progress=progress,
    )
    return FlowAndCamera(
        returned(clipped(flow, bound), frames, unbatched),
        CameraMotion(*(returned(part, frames, unbatched) for part in motion)),
    )


def _check(detector: str, window: float | None, threshold: float, seed: int) -> None:
    check_choice(detector, "detector", DETECTORS)
    check_bound(window, "window", "anywhere")
    if threshold is None:
        raise ValueError("threshold is None; must be a number of px above 0")
    check_bound(threshold, "threshold")
    check_seed(seed)
