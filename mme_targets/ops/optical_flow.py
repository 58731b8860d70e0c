"""Doors of optical flow (Appendix A): TV-L1, Farneback, DIS, RAFT.

TV-L1 runs on every floor (`mme_targets.backends.reference.tvl1` describes its steps); Farneback and
DIS are OpenCV's, on the host; RAFT is torchvision's, wherever the frames are.
"""

from __future__ import annotations

import numbers
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..arrays import Array, as_tensor, check_choice, check_dtype, check_rank, like_input
from ..backends import check_name, choose, load
from ..backends.reference import optical_flow as reference
from ..backends.reference import tvl1 as solver
from ..config import Tvl1Config

METHODS = ("tvl1", "farneback", "dis", "raft")
DETECTORS = ("surf", "sift", "orb", "corners")
LARGEST = torch.finfo(torch.float32).max

Progress = Callable[[int], object]


def optical_flow(
    frames: Array,
    *,
    method: str = "tvl1",
    camera_motion: bool = False,
    pairs: Any = None,
    bound: float | None = 20.0,
    config: Tvl1Config | None = None,
    weights: str | os.PathLike[str] | None = None,
    detector: str = "surf",
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    backend: str = "auto",
) -> Array:
    """Dense optical flow between pairs of frames, clipped to ±`bound` (Appendix A).

    TV-L1 and RAFT run where the frames are: on the host by as many threads as
    `torch.get_num_threads()` says, on a GPU on the current stream without waiting for it. Farneback
    and DIS run on the host; a CUDA tensor is copied there and its flow back, which synchronises
    with the device.

    Parameters
    ----------
    frames : [B, T, 3, H, W] or [T, 3, H, W], uint8 or float32
        RGB of values 0 to 255. float32 is clamped to these; it must be finite (on a GPU, where
        looking would mean waiting, what is not counts as black).
    method : "tvl1", "farneback", "dis" or "raft"
        The paper uses TV-L1. All but RAFT read the grey image.
    camera_motion : bool
        Remove the camera's motion: estimate a homography for each pair from its unclipped flow,
        warp the second frame by it, compute flow again. See `camera_motion()`; a pair without a
        homography keeps its flow. `flow_and_camera()` returns the homographies as well.
    pairs : [P, 2] integers on the host, optional
        First and second frame of each flow; only these are computed. By default 0→1, 1→2, …
    bound : float or None
        Flow is clipped to ± this, px, after all else; None leaves it.
    config : Tvl1Config, optional
        Parameters of TV-L1; by default `Tvl1Config()`.
    weights : path, optional
        Of RAFT, which it needs: a .pth, .pt or .safetensors file with the state dict of
        torchvision's `raft_small` or `raft_large`.
    detector : "surf", "sift", "orb" or "corners"
        Interest points for `camera_motion`. SURF is patented in the US; the others are not.
    seed : int
        Of RANSAC, for `camera_motion`.
    progress : callable, optional
        Called with 1 for each finished pair, in the calling thread.
    backend : "auto" or a floor
        Where TV-L1 runs; Farneback and DIS are on the reference floor only.

    Returns
    -------
    [B, P, 2, H, W] or [P, 2, H, W] float32, px
        From the pair's first frame to its second; channel 0 is x (right), 1 is y (down). The same
        whatever the batch, the other pairs or the number of threads (by RAFT up to rounding). Two
        equal frames give exactly zero (but by RAFT).

    Raises
    ------
    ValueError, TypeError
        For an argument that is not as above, by its name.
    ImportError
        If OpenCV is missing; TV-L1 on the cpu floor does not need it.
    """
    if camera_motion:
        from .camera_motion import flow_and_camera  # which in turn builds on this module

        return flow_and_camera(
            frames,
            method=method,
            pairs=pairs,
            bound=bound,
            config=config,
            weights=weights,
            detector=detector,
            seed=seed,
            progress=progress,
            backend=backend,
        ).flow
    check_choice(method, "method", METHODS)
    check_choice(detector, "detector", DETECTORS)
    check_bound(bound)
    check_seed(seed)
    config = check_config(config)
    clips, unbatched = check_frames(frames)
    floor = flow_floor(method, backend, clips)
    listed = host_pairs(pairs, clips.shape[1])
    images, places = gathered(clips, listed)
    flow = solve(images, places, method, config, floor, progress, weights=weights)
    flow = flow.view(len(clips), len(listed), 2, *clips.shape[-2:])
    return returned(clipped(flow, bound), frames, unbatched)


def tvl1(
    first: Array,
    second: Array,
    *,
    config: Tvl1Config | None = None,
    initial: Array | None = None,
    backend: str = "auto",
) -> Array:
    """TV-L1 optical flow from each first image to its second, not clipped.

    Parameters
    ----------
    first, second : [B, 3, H, W], [B, 1, H, W] or the same without B; uint8 or float32
        RGB or grey images of values 0 to 255, of the same shape, dtype and device.
    config : Tvl1Config, optional
        By default `Tvl1Config()`; `Tvl1Config.opencv_cuda()` is closer to what the authors ran.
    initial : [B, 2, H, W] or [2, H, W] float32, optional
        Flow to start from, px; by default zero. It is scaled down to the pyramid's top.
    backend : "auto" or a floor

    Returns
    -------
    [B, 2, H, W] or [2, H, W] float32, px

    Raises
    ------
    ValueError, TypeError
        For an argument that is not as above, by its name.
    """
    config = check_config(config)
    checked = []
    for name, array in (("first", first), ("second", second)):
        tensor = as_tensor(array, name)
        check_rank(tensor, name, (3, 4), "[B, 3 or 1, H, W] or [3 or 1, H, W]")
        check_image(tensor, name, (3, 1))
        checked.append(tensor)
    one, two = checked
    for what in ("shape", "dtype", "device"):
        if getattr(one, what) != getattr(two, what):
            raise ValueError(
                f"second has {what} {_plain(getattr(two, what))}; must be that of first, "
                f"{_plain(getattr(one, what))}"
            )
    floor = flow_floor("tvl1", backend, one)
    unbatched = one.dim() == 3
    if unbatched:
        one, two = one[None], two[None]
    start = None if initial is None else _check_initial(initial, one, unbatched)
    index = torch.arange(len(one), device=one.device)
    places = torch.stack([index, index + len(one)], dim=1).int()
    flow = solve(torch.cat([one, two]), places, "tvl1", config, floor, None, start)
    return returned(flow, first, unbatched)


def _check_initial(initial: Array, images: torch.Tensor, unbatched: bool) -> torch.Tensor:
    tensor = as_tensor(initial, "initial")
    check_dtype(tensor, "initial", (torch.float32,))
    must = [*([] if unbatched else [len(images)]), 2, *images.shape[-2:]]
    if list(tensor.shape) != must:
        raise ValueError(f"initial has shape {list(tensor.shape)}; must be {must} for these images")
    if tensor.device != images.device:
        raise ValueError(f"initial is on {tensor.device}; must be on {images.device} as the images")
    if _looked_at(tensor) and not bool(torch.isfinite(tensor).all()):
        raise ValueError("initial holds values that are not finite; must be a flow, px")
    return (tensor[None] if unbatched else tensor).nan_to_num(0.0, 0.0, 0.0)


def solve(
    images: torch.Tensor,
    pairs: torch.Tensor,
    method: str,
    config: Tvl1Config,
    floor: str,
    progress: Progress | None,
    initial: torch.Tensor | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> torch.Tensor:
    """Flow [N, 2, H, W] of pairs [N, 2] of images [M, 3 or 1, H, W], not clipped, on a floor.

    `pairs` are int32 on the images' device. In parts where progress is to be told.
    """
    if method == "raft":
        from ..backends.raft import raft_flow

        return raft_flow(images.expand(-1, 3, -1, -1), pairs, weights, progress)
    if floor == "reference":
        return _on_reference(images, pairs, method, config, progress, initial)
    if images.is_cuda and images.is_floating_point():
        images = images.nan_to_num(0.0, 255.0, 0.0)
    work = load(floor).tvl1
    if progress is None:
        result: torch.Tensor = work(images, pairs, config, initial)
        return result
    part = 4 * torch.get_num_threads() if images.device.type == "cpu" else 64
    flow = images.new_empty((len(pairs), 2, *images.shape[-2:]), dtype=torch.float32)
    for at in range(0, len(pairs), part):
        some = slice(at, at + part)
        start = None if initial is None else initial[some]
        flow[some] = work(images, pairs[some], config, start)
        for _ in range(len(pairs[some])):
            progress(1)
    return flow


def _on_reference(
    images: torch.Tensor,
    pairs: torch.Tensor,
    method: str,
    config: Tvl1Config,
    progress: Progress | None,
    initial: torch.Tensor | None,
) -> torch.Tensor:
    ends = [(int(a), int(b)) for a, b in pairs.tolist()]
    host = images.cpu().numpy()
    greys = {k: reference.grey(host[k]) for k in sorted({end for pair in ends for end in pair})}
    if initial is not None:
        starts = initial.cpu().numpy()
        fields = [
            solver.solve(greys[a], greys[b], config, starts[k]).astype(np.float32)
            for k, (a, b) in enumerate(ends)
        ]
        flow = np.stack(fields) if fields else np.zeros((0, 2, *host.shape[-2:]), np.float32)
    elif ends:
        flow = reference.flow_of_images(
            [(greys[a], greys[b]) for a, b in ends],
            method=method,
            config=config,
            progress=progress,
        )
    else:
        flow = np.zeros((0, 2, *host.shape[-2:]), np.float32)
    return torch.from_numpy(flow).to(images.device)


# What follows checks and converts arguments, for camera_motion.py as well.


def check_frames(frames: Array) -> tuple[torch.Tensor, bool]:
    """Check frames; [B, T, 3, H, W] on their device, and whether they came without B."""
    tensor = as_tensor(frames, "frames")
    check_rank(tensor, "frames", (4, 5), "[B, T, 3, H, W] or [T, 3, H, W]")
    check_image(tensor, "frames", (3,))
    unbatched = tensor.dim() == 4
    return tensor[None] if unbatched else tensor, unbatched


def gathered(
    clips: torch.Tensor, pairs: Sequence[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames of clips [B, T, 3, H, W] that pairs name as images [M, 3, H, W], and all clips'
    pairs [B · P, 2] of them, int32.
    """
    used = sorted({t for pair in pairs for t in pair})
    whole = used == list(range(clips.shape[1]))
    kept = clips if whole else clips[:, torch.tensor(used, dtype=torch.long, device=clips.device)]
    place = {t: k for k, t in enumerate(used)}
    kind: dict[str, Any] = {"dtype": torch.int32, "device": "cpu"}  # whatever torch's default is
    listed = torch.tensor([(place[a], place[b]) for a, b in pairs], **kind)
    starts = len(used) * torch.arange(len(clips), **kind)
    places = (listed.view(1, -1, 2) + starts.view(-1, 1, 1)).view(-1, 2)
    return kept.flatten(0, 1), places.to(clips.device)


def _looked_at(tensor: torch.Tensor) -> bool:
    """Whether values may be looked at: on a GPU that would wait for it."""
    return tensor.device.type == "cpu"


def check_image(tensor: torch.Tensor, name: str, channels: tuple[int, ...]) -> None:
    """Raise unless `tensor` is [..., C, H, W] with pixels, uint8 or finite float32."""
    check_dtype(tensor, name, (torch.uint8, torch.float32))
    count, height, width = tensor.shape[-3:]
    if count not in channels:
        must = " or ".join(map(str, channels))
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}, {count} channels; must have {must}"
        )
    if height < 1 or width < 1:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; must have a pixel at least")
    if tensor.is_floating_point() and _looked_at(tensor) and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds values that are not finite; must lie in 0 to 255")


def host_pairs(pairs: Any, frames: int) -> list[tuple[int, int]]:
    """Check pairs of indices into so many frames; None means consecutive ones."""
    if pairs is None:
        return [(t, t + 1) for t in range(frames - 1)]
    if isinstance(pairs, torch.Tensor) and pairs.device.type != "cpu":
        raise TypeError(f"pairs is a tensor on {pairs.device}; must be integers on the host")
    try:
        array = np.asarray(pairs)
    except ValueError:  # ragged
        array = np.asarray(None)
    if array.size == 0:
        return []
    if array.dtype.kind not in "iu":
        raise TypeError(f"pairs is {pairs!r}; must be integers of shape [P, 2]")
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"pairs has shape {list(array.shape)}; must be [P, 2]")
    if array.min() < 0 or array.max() >= frames:
        wrong = array[(array < 0) | (array >= frames)][0]
        raise ValueError(f"pairs names frame {wrong}; must lie in 0 to {frames - 1}")
    return [(int(a), int(b)) for a, b in array]


def flow_floor(method: str, backend: str, tensor: torch.Tensor) -> str:
    """The floor that computes flow by `method` of a tensor's frames."""
    if method == "tvl1":
        return choose("tvl1", tensor, backend)
    if method == "raft":
        check_name(backend)
        return "torch"
    if backend not in ("auto", "reference"):
        raise ValueError(
            f"backend is {backend!r}; must be 'auto' or 'reference' (OpenCV on the host): {method} "
            "is OpenCV's"
        )
    return "reference"


def check_config(config: Tvl1Config | None) -> Tvl1Config:
    """The default for None."""
    if config is not None and not isinstance(config, Tvl1Config):
        raise TypeError(f"config is a {type(config).__name__}; must be a Tvl1Config")
    return config or Tvl1Config()


def check_bound(bound: float | None, name: str = "bound", none: str = "unclipped") -> None:
    """Raise unless `bound` is a positive number or None."""
    if bound is not None and (
        isinstance(bound, bool) or not isinstance(bound, numbers.Real) or not bound > 0
    ):
        raise ValueError(f"{name} is {bound!r}; must be a number of px above 0, or None: {none}")


def check_seed(seed: int) -> None:
    """Raise unless `seed` is a whole number that fits OpenCV's generator."""
    try:
        index = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed is {seed!r}; must be a whole number") from None
    if not 0 <= index < 2**31:
        raise ValueError(f"seed is {seed!r}; must lie in 0 to 2**31 - 1")


def clipped(flow: torch.Tensor, bound: float | None) -> torch.Tensor:
    """`flow` clipped to ±`bound` in place, or as it is."""
    if bound is None:
        return flow
    most = float(min(bound, LARGEST))
    return flow.clamp_(-most, most)


def returned(result: torch.Tensor, given: Array, unbatched: bool) -> Array:
    """`result` as the kind of array that was given, without B if that had none."""
    return like_input(result[0] if unbatched else result, given)


def _plain(value: Any) -> str:
    if isinstance(value, Sequence):
        return str(list(value))
    return str(value).removeprefix("torch.")
