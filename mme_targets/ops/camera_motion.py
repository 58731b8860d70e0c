"""Doors of camera motion (Appendix A): interest points → homography → warp → flow again.

`mme_targets.backends.reference.camera_motion` describes the steps. The reference floor takes them
one pair at a time in NumPy and OpenCV; the others (`mme_targets.backends.batched`) take many at
once on the device that the frames are on: by kernels on a CPU, by torch operations elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from ..arrays import Array, as_tensor, check_choice, check_dtype
from ..backends import choose
from ..backends.batched import camera_motion as batched
from ..backends.batched.homography import Estimate
from ..backends.reference import camera_motion as reference
from ..config import SurfConfig, Tvl1Config
from .optical_flow import (
    DETECTORS,
    LARGEST,
    METHODS,
    Progress,
    check_bound,
    check_config,
    check_frames,
    check_seed,
    clipped,
    flow_floor,
    gathered,
    host_pairs,
    returned,
    solve,
)

WINDOW = 25.0
"""px; interest points are matched within ± this."""
THRESHOLD = 1.0
"""px; a match this near to where a homography says agrees with it."""


Solve = Callable[[torch.Tensor, torch.Tensor, Progress | None], torch.Tensor]
"""Images [M, C, H, W] and pairs [N, 2] of them → flow [N, 2, H, W]; progress is told."""


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
    detector: str = "surf",
    surf: SurfConfig | None = None,
    window: float | None = WINDOW,
    threshold: float = THRESHOLD,
    seed: int = 0,
    backend: str = "auto",
) -> CameraMotion:
    """Estimate the homography by which the camera's motion moves the background (Appendix A).

    Interest points of both frames that are each other's nearest, together with up to 1000 corners
    of the first frame carried by the flow, go to RANSAC if they are more than 50; a homography is
    kept if more than 25 agree with it and it neither folds nor crushes the frame. Of several that
    RANSAC finds, that one is taken by which more of the frame's area looks alike in both frames.

    The work is done where the frames are; on a GPU nothing waits for it, but that SIFT and ORB are
    OpenCV's, which takes the frames to the host. At most 1000 corners and `surf.features` interest
    points of a frame take part.

    Parameters
    ----------
    frames : [B, T, 3, H, W] or [T, 3, H, W], uint8 or float32
        RGB of values 0 to 255.
    flow : [B, P, 2, H, W] or [P, 2, H, W], float32 or float16
        Unclipped flow of each pair, px. Corners whose flow is not finite are left out.
    pairs : [P, 2] integers on the host, optional
        First and second frame of each flow. By default 0→1, 1→2, …
    detector : "surf", "sift", "orb" or "corners"
        Interest points: SURF as in the paper, SIFT, ORB, or none but the corners. SURF is patented
        in the United States (US 8,165,401); the others do without it.
    surf : SurfConfig, optional
        Parameters of SURF; by default `SurfConfig()`: upright, 128 values.
    window : float or None
        Interest points match within ± this in x and y, px; None: anywhere. It limits how much
        motion they can see.
    threshold : float
        RANSAC's, px.
    seed : int
        Of RANSAC's random numbers, which start anew for every pair: same input, same output.
    backend : "auto" or a floor

    Raises
    ------
    ValueError, TypeError
        For an argument that is not as above, by its name.
    ImportError
        If OpenCV is missing and is needed: for SIFT and ORB, and by the reference floor.
    """
    settings = _settings(detector, window, threshold, seed, surf)
    clips, unbatched = check_frames(frames)
    floor = choose("camera_motion", clips, backend)
    listed = host_pairs(pairs, clips.shape[1])
    field = as_tensor(flow, "flow")
    check_dtype(field, "flow", (torch.float32, torch.float16))
    must = [*([] if unbatched else [len(clips)]), len(listed), 2, *clips.shape[-2:]]
    if list(field.shape) != must:
        raise ValueError(
            f"flow has shape {list(field.shape)}; must be {must} for these frames and pairs"
        )
    if field.device != clips.device:
        raise ValueError(f"flow is on {field.device}, frames on {clips.device}")
    field = field[None] if unbatched else field
    if floor == "reference":
        found = reference.camera_motion(
            clips.cpu().numpy(), field.cpu().float().numpy(), listed, settings
        )
        motion = CameraMotion(*(torch.from_numpy(part).to(clips.device) for part in found))
    else:
        images, places = gathered(clips, listed)
        estimates = batched.estimate(
            batched.grey(images), places.long(), field.flatten(0, 1), settings
        )
        motion = _folded(estimates, len(clips))
    return CameraMotion(*(returned(part, frames, unbatched) for part in motion))


def flow_and_camera(
    frames: Array,
    *,
    method: str = "tvl1",
    pairs: Any = None,
    bound: float | None = 20.0,
    config: Tvl1Config | None = None,
    weights: str | os.PathLike[str] | None = None,
    detector: str = "surf",
    surf: SurfConfig | None = None,
    window: float | None = WINDOW,
    threshold: float = THRESHOLD,
    seed: int = 0,
    progress: Progress | None = None,
    backend: str = "auto",
) -> FlowAndCamera:
    """`optical_flow(camera_motion=True)` that also returns the camera's motion it removed.

    Parameters and errors are those of `optical_flow()` and `camera_motion()`. At pixel p the second
    frame shows at H·(p + flow(p)) what the first shows at p.
    """
    check_choice(method, "method", METHODS)
    settings = _settings(detector, window, threshold, seed, surf)
    check_bound(bound)
    tvl1 = check_config(config)
    clips, unbatched = check_frames(frames)
    floor = flow_floor(method, backend, clips)
    listed = host_pairs(pairs, clips.shape[1])
    images, places = gathered(clips, listed)

    def flows(images: torch.Tensor, pairs: torch.Tensor, told: Progress | None) -> torch.Tensor:
        return solve(images, pairs, method, tvl1, floor, told, weights=weights)

    if choose("camera_motion", clips, backend) == "reference":
        flow, motion = _by_reference(clips, listed, settings, flows, progress)
    else:
        flow, estimates = _remove(images, places, settings, flows, progress)
        flow = flow.view(len(clips), len(listed), 2, *clips.shape[-2:])
        motion = _folded(estimates, len(clips))
    return FlowAndCamera(
        returned(clipped(flow, bound), frames, unbatched),
        CameraMotion(*(returned(part, frames, unbatched) for part in motion)),
    )


def _remove(
    images: torch.Tensor,
    pairs: torch.Tensor,
    settings: reference.Settings,
    flows: Solve,
    progress: Progress | None,
) -> tuple[torch.Tensor, Estimate]:
    """Flow [N, 2, H, W] of pairs [N, 2] of images, without the camera's motion, and that motion."""
    flow = flows(images, pairs, None)
    greys = batched.grey(images)
    camera = batched.estimate(greys, pairs.long(), flow, settings)
    again, ok = pairs, camera.ok
    if not images.is_cuda:  # looking costs nothing here: only what has a homography is solved again
        again = pairs[ok]
        for _ in range(len(pairs) - len(again)):
            if progress is not None:
                progress(1)
    first, second = (greys[end] for end in again.long().unbind(1))
    if images.is_cuda:
        still = batched.warp_second(first, second, camera.homographies)
        # Where there is nothing to remove two equal images are solved, which stops at once.
        still = still.where(ok[:, None, None], first.float())
    else:
        still = batched.warp_second(first, second, camera.homographies[ok])
    stack = torch.cat([first.float(), still])[:, None]
    index = torch.arange(len(again), device=images.device, dtype=torch.int32)
    ends = torch.stack([index, index + len(again)], dim=1)
    moved = flows(stack, ends, progress)
    if images.is_cuda:
        return moved.where(ok[:, None, None, None], flow), camera
    flow[ok] = moved
    return flow, camera


def _by_reference(
    clips: torch.Tensor,
    pairs: list[tuple[int, int]],
    settings: reference.Settings,
    flows: Solve,
    progress: Progress | None,
) -> tuple[torch.Tensor, CameraMotion]:
    def of_greys(images: Any, done: Progress | None) -> Any:
        """Flow of pairs of grey images, on the floor that computes flow."""
        if not images:
            return np.zeros((0, 2, *clips.shape[-2:]), np.float32)
        planes = [torch.from_numpy(image).float() for pair in images for image in pair]
        ends = torch.arange(len(planes), dtype=torch.int32, device="cpu").view(-1, 2)
        return flows(torch.stack(planes)[:, None], ends, done).numpy()

    flow, motion = reference.flow_and_camera(
        clips.cpu().numpy(), pairs, settings, solve=of_greys, progress=progress
    )
    device = clips.device
    parts = (torch.from_numpy(part).to(device) for part in motion)
    return torch.from_numpy(flow).to(device), CameraMotion(*parts)


def _folded(found: Estimate, clips: int) -> CameraMotion:
    """Of all clips' pairs in a row: [B · P, ...] → [B, P, ...]."""
    pairs = len(found.ok) // clips if clips else 0
    return CameraMotion(*(part.view(clips, pairs, *part.shape[1:]) for part in found))


def _settings(
    detector: str, window: float | None, threshold: float, seed: int, surf: SurfConfig | None
) -> reference.Settings:
    check_choice(detector, "detector", DETECTORS)
    check_bound(window, "window", "anywhere")
    if threshold is None:
        raise ValueError("threshold is None; must be a number of px above 0")
    check_bound(threshold, "threshold")
    check_seed(seed)
    if surf is not None and not isinstance(surf, SurfConfig):
        raise TypeError(f"surf is a {type(surf).__name__}; must be a SurfConfig")
    reach = None if window is None else float(min(window, LARGEST))
    error = float(min(threshold, LARGEST))
    return reference.Settings(detector, reach, error, seed, surf or SurfConfig())
