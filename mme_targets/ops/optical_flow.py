"""Doors of optical flow (Appendix A): TV-L1, Farneback, DIS.

TV-L1 runs on the cpu floor (`csrc/cpu/optical_flow.cpp`), else on the reference floor
(`mme_targets.backends.reference.tvl1`, where the steps are described); Farneback and DIS are
OpenCV's.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..arrays import Array, as_tensor, check_choice, check_dtype, check_rank, like_input
from ..backends import choose, native
from ..backends.reference import optical_flow as reference
from ..backends.reference import tvl1 as solver
from ..config import Tvl1Config

METHODS = ("tvl1", "farneback", "dis")
DETECTORS = ("sift", "orb", "corners")
FLOORS_WITHOUT_FLOW = ("triton", "cuda")


def optical_flow(
    frames: Array,
    *,
    method: str = "tvl1",
    camera_motion: bool = False,
    pairs: Any = None,
    bound: float | None = 20.0,
    config: Tvl1Config | None = None,
    detector: str = "sift",
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    backend: str = "auto",
) -> Array:
    """Dense optical flow between pairs of frames, clipped to ±`bound` (Appendix A).

    The work is done on the host, by as many threads as `torch.get_num_threads()` says. A CUDA
    tensor is therefore copied to the host and its flow back, which synchronises with the device.

    Parameters
    ----------
    frames : [B, T, 3, H, W] or [T, 3, H, W], uint8 or float32
        RGB of values 0 to 255. float32 is clamped to these; it must be finite.
    method : "tvl1", "farneback" or "dis"
        The paper uses TV-L1. All of them read the grey image.
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
    detector : "sift", "orb" or "corners"
        Interest points for `camera_motion`.
    seed : int
        Of RANSAC, for `camera_motion`.
    progress : callable, optional
        Called with 1 for each finished pair, in the calling thread.
    backend : "auto", "cpu" or "reference"
        Where TV-L1 runs; Farneback and DIS are on the reference floor only.

    Returns
    -------
    [B, P, 2, H, W] or [P, 2, H, W] float32, px
        From the pair's first frame to its second; channel 0 is x (right), 1 is y (down). The same
        whatever the batch, the other pairs or the number of threads. Two equal frames give exactly
        zero.

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
            detector=detector,
            seed=seed,
            progress=progress,
            backend=backend,
        ).flow
    check_choice(method, "method", METHODS)
    floor = flow_floor(method, backend)
    check_choice(detector, "detector", DETECTORS)
    check_bound(bound)
    check_seed(seed)
    config = check_config(config)
    clips, unbatched = host_frames(frames)
    listed = host_pairs(pairs, clips.shape[1])
    if floor == "cpu":
        batch, count = clips.shape[:2]
        starts = count * np.arange(batch, dtype=np.int32).reshape(-1, 1, 1)
        places = starts + np.array(listed, np.int32).reshape(1, -1, 2)
        images = torch.from_numpy(clips.reshape(batch * count, *clips.shape[2:]))
        flow = _native(images, places.reshape(-1, 2), config, progress)
        flow = flow.reshape(batch, len(listed), 2, *clips.shape[-2:])
    else:
        flow = reference.optical_flow(
            clips, listed, method=method, config=config, progress=progress
        )
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
    backend : "auto", "cpu" or "reference"

    Returns
    -------
    [B, 2, H, W] or [2, H, W] float32, px

    Raises
    ------
    ValueError, TypeError
        For an argument that is not as above, by its name.
    """
    floor = flow_floor("tvl1", backend)
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
    unbatched = one.dim() == 3
    if unbatched:
        one, two = one[None], two[None]
    images = torch.cat([one, two]).cpu()
    count = len(one)
    start = None if initial is None else _check_initial(initial, one, unbatched)
    if floor == "cpu":
        pairs = np.stack([np.arange(count), np.arange(count) + count], axis=1)
        flow = _native(images, pairs, config, None, start)
    else:
        greys = [reference.grey(image) for image in images.numpy()]
        starts = [None] * count if start is None else list(start.numpy())
        fields = [
            solver.solve(greys[k], greys[count + k], config, starts[k]).astype(np.float32)
            for k in range(count)
        ]
        flow = np.stack(fields) if fields else np.zeros((0, 2, *images.shape[-2:]), np.float32)
    return returned(flow, first, unbatched)


def _check_initial(initial: Array, images: torch.Tensor, unbatched: bool) -> torch.Tensor:
    tensor = as_tensor(initial, "initial")
    check_dtype(tensor, "initial", (torch.float32,))
    must = [*([] if unbatched else [len(images)]), 2, *images.shape[-2:]]
    if list(tensor.shape) != must:
        raise ValueError(f"initial has shape {list(tensor.shape)}; must be {must} for these images")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError("initial holds values that are not finite; must be a flow, px")
    return (tensor[None] if unbatched else tensor).cpu()


def flow_of_images(
    images: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    clips: NDArray[Any],
    method: str,
    config: Tvl1Config,
    floor: str,
    progress: Callable[[int], object] | None,
) -> NDArray[np.float32]:
    """Flow [N, 2, H, W] of pairs of grey images [H, W] of the clips' size, on a floor."""
    if not images:
        return np.zeros((0, 2, *clips.shape[-2:]), np.float32)
    if floor != "cpu":
        return reference.flow_of_images(images, method=method, config=config, progress=progress)
    # One plane for each image, whichever pairs it is in.
    places: dict[int, int] = {}
    planes: list[NDArray[Any]] = []
    for image in (image for pair in images for image in pair):
        if id(image) not in places:
            places[id(image)] = len(planes)
            planes.append(image)
    pairs = np.array([[places[id(a)], places[id(b)]] for a, b in images])
    whole = all(plane.dtype == np.uint8 for plane in planes)
    stack = np.stack(planes).astype(np.uint8 if whole else np.float32, copy=False)
    return _native(torch.from_numpy(stack)[:, None], pairs, config, progress)


def _native(
    images: torch.Tensor,
    pairs: NDArray[Any],
    config: Tvl1Config,
    progress: Callable[[int], object] | None,
    initial: torch.Tensor | None = None,
) -> NDArray[np.float32]:
    """Flow of pairs [N, 2] of images [M, C, H, W]; in parts where progress is to be told."""
    part = max(1, len(pairs) if progress is None else 4 * torch.get_num_threads())
    flow = np.empty((len(pairs), 2, *images.shape[-2:]), np.float32)
    listed = torch.from_numpy(pairs.astype(np.int32))
    for at in range(0, len(pairs), part):
        some = slice(at, at + part)
        start = None if initial is None else initial[some]
        flow[some] = native.tvl1(images, listed[some], config, start).numpy()
        if progress is not None:
            for _ in range(len(listed[some])):
                progress(1)
    return flow


# What follows checks and converts arguments, for camera_motion.py as well.


def host_frames(frames: Array) -> tuple[NDArray[Any], bool]:
    """Check frames; [B, T, 3, H, W] on the host, and whether they came without B."""
    tensor = as_tensor(frames, "frames")
    check_rank(tensor, "frames", (4, 5), "[B, T, 3, H, W] or [T, 3, H, W]")
    check_image(tensor, "frames", (3,))
    unbatched = tensor.dim() == 4
    return host_array(tensor[None] if unbatched else tensor), unbatched


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
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds values that are not finite; must lie in 0 to 255")


def host_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A NumPy array of a tensor's values, copied only if they lie on a device."""
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


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


def flow_floor(method: str, backend: str) -> str:
    """The floor, "cpu" or "reference", that computes flow by `method` on the host."""
    if method != "tvl1":
        check_backend(backend, f"; {method} is OpenCV's" if backend == "cpu" else "")
        return "reference"
    check_backend(backend if backend != "cpu" else "auto")
    return choose("tvl1", torch.empty(0), backend)


def check_backend(backend: str, why: str = "") -> None:
    """Raise unless the reference floor may do the work."""
    if backend in FLOORS_WITHOUT_FLOW:
        raise ValueError(
            f"backend is {backend!r}, a floor that has no optical flow or camera motion yet; "
            "must be 'auto' or 'reference' (OpenCV on the host)"
        )
    if backend == "cpu":
        raise ValueError(
            f"backend is 'cpu'; must be 'auto' or 'reference' (OpenCV on the host){why}"
        )
    check_choice(backend, "backend", ("auto", "cpu", "reference"))


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


def clipped(flow: NDArray[np.float32], bound: float | None) -> NDArray[np.float32]:
    """`flow` clipped to ±`bound` in place, or as it is."""
    return flow if bound is None else np.clip(flow, -bound, bound, out=flow)


def returned(result: NDArray[Any], given: Array, unbatched: bool) -> Array:
    """`result` as the kind of array that was given, on its device, without B if that had none."""
    tensor = torch.from_numpy(result[0] if unbatched else result)
    return like_input(tensor.to(as_tensor(given, "frames").device), given)


def _plain(value: Any) -> str:
    if isinstance(value, Sequence):
        return str(list(value))
    return str(value).removeprefix("torch.")
