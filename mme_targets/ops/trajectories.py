"""Median-filtered advection of points through flow (Eq. 2, 4, 6) and their visibility (Eq. 7).

Median and advection are one step: only the 3x3 windows that tracks touch are filtered. Positions
are px with pixel centres at integers; flow is px from a pair's first frame to its second, channel 0
to the right and channel 1 downwards.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..arrays import (
    Array,
    as_tensor,
    check_choice,
    check_dtype,
    check_range,
    check_rank,
    like_input,
)
from ..backends import choose, load


class Trajectories(NamedTuple):
    """Tracks from a grid of points, S start times.

    Attributes
    ----------
    points : [B, S, Gy, Gx, L+1, 2] float32, (x, y) px (Eq. 2).
    displacements : [B, S, Gy, Gx, L, 2] float32, px a step (Eq. 4).
    visible : [B, S, Gy, Gx] bool: every point lies strictly inside the frame (Eq. 7) and every flow
        value read was finite.
    """

    points: Array
    displacements: Array
    visible: Array


def trajectories(
    flow: Array,
    *,
    length: int = 6,
    grid: int = 8,
    points: Array | None = None,
    steps: Array | None = None,
    bound: float = 20.0,
    median: int = 3,
    sampling: str = "nearest",
    backend: str = "auto",
) -> Trajectories:
    """Track a grid of points through flow (§3.3, Appendix B).

    Parameters
    ----------
    flow : [B, P, 2, H, W] or [P, 2, H, W], float32 or float16, px; torch, NumPy or CuPy.
    length : steps L of a track, 0 to 32; read when `steps` is not given.
    grid : distance of the seeds, px; they lie at grid/2 + i·grid while inside the frame.
    points : [Gy, Gx, 2] seeds (x, y) px in place of the grid.
    steps : [S, L] integers: the pair that step l of track s reads. By default flow is taken as
        consecutive pairs and a track starts at 0, L, 2L, … while L pairs are left.
    bound : flow is clipped to ± this, px.
    median : 3 filters flow by a 3x3 median, each component alone, border replicated; 1 does not.
    sampling : "nearest" reads at the rounded position (halves up), "bilinear" between pixels. A
        position outside is clamped for reading only.
    backend : "auto", "reference", "cpu", "triton" or "cuda".

    Returns
    -------
    Trajectories
        Unbatched input gives unbatched output. A track that reads flow that is not finite is not
        visible and stands still from there on.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be.
    """
    omega, batched = _flow(flow)
    check_choice(median, "median", (1, 3))
    check_choice(sampling, "sampling", ("nearest", "bilinear"))
    if isinstance(bound, bool) or not isinstance(bound, (int, float, np.number)):
        raise TypeError(f"bound is {bound!r}; must be a number of px")
    if not bound > 0:
        raise ValueError(f"bound is {bound!r}; must be positive")
    pairs, height, width = omega.shape[1], omega.shape[3], omega.shape[4]
    rows = _steps(steps, length, pairs, omega.device)
    starts = rows.shape[0]
    if points is None:
        gy, gx, flat, start = _grid_tracks(height, width, grid, starts, omega)
    else:
        gy, gx, flat, start = _every_start(_seeds(points, omega), starts)
    result = tracks(omega, flat, start, rows, bound, median, sampling, backend)
    batch = omega.shape[0]
    shaped = [tensor.reshape(batch, starts, gy, gx, *tensor.shape[2:]) for tensor in result]
    return Trajectories(*(like_input(t if batched else t[0], flow) for t in shaped))


def median_filter(flow: Array, *, size: int = 3, backend: str = "auto") -> Array:
    """The median filter M of Eq. 6 over whole maps: size x size, border replicated.

    Parameters
    ----------
    flow : [..., H, W] float32 (float16 is widened); each plane is filtered alone. Values must be
        finite: which of them a NaN displaces is not defined.
    size : 3, or 1 for a copy.
    backend : see `trajectories`.

    Returns
    -------
    Array like `flow`, float32.
    """
    planes = as_tensor(flow, "flow")
    check_dtype(planes, "flow", (torch.float32, torch.float16))
    check_choice(size, "size", (1, 3))
    if planes.dim() < 2 or 0 in planes.shape[-2:]:
        raise ValueError(
            f"flow has shape {list(planes.shape)}; must be [..., H, W] with H, W of 1 or more"
        )
    if size == 1:
        return like_input(planes.float().clone(), flow)
    flat = planes.float().reshape(-1, *planes.shape[-2:])
    return like_input(_median_filter(flat, size, backend).reshape(planes.shape), flow)


def grid_points(height: int, width: int, grid: int, device: torch.device) -> torch.Tensor:
    """Seeds at grid/2 + i·grid while inside the frame: [Gy, Gx, 2] float32 (x, y)."""
    check_range(grid, "grid", 1)
    if grid / 2 >= min(height, width):
        raise ValueError(
            f"grid is {grid}, which leaves no point inside a frame of {height}x{width}: "
            f"the first lies at {grid / 2:g}"
        )
    y = torch.arange(grid / 2, height, grid, device=device, dtype=torch.float32)
    x = torch.arange(grid / 2, width, grid, device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def _every_start(seeds: torch.Tensor, starts: int) -> tuple[int, int, torch.Tensor, torch.Tensor]:
    """Seeds [Gy, Gx, 2] -> Gy, Gx, seeds [1, S·Gy·Gx, 2] and starts [1, S·Gy·Gx] of all tracks."""
    gy, gx = seeds.shape[:2]
    flat = seeds.reshape(1, 1, gy * gx, 2).expand(1, starts, -1, -1).reshape(1, -1, 2)
    start = torch.arange(starts, device=seeds.device, dtype=torch.int32)
    return gy, gx, flat, start.repeat_interleave(gy * gx)[None]


def _grid_tracks(
    height: int, width: int, grid: int, starts: int, omega: torch.Tensor
) -> tuple[int, int, torch.Tensor, torch.Tensor]:
    """`_every_start` of the grid; on the host, where it took a fifth of a call, remembered."""
    if omega.device.type == "cpu" and isinstance(grid, int) and not _watched(omega):
        return _remembered(height, width, grid, starts)
    return _every_start(grid_points(height, width, grid, omega.device), starts)


@lru_cache(maxsize=16, typed=True)
def _remembered(
    height: int, width: int, grid: int, starts: int
) -> tuple[int, int, torch.Tensor, torch.Tensor]:
    with torch.inference_mode(False):  # inference tensors could not be used outside that mode
        return _every_start(grid_points(height, width, grid, torch.device("cpu")), starts)


def _flow(flow: Array) -> tuple[torch.Tensor, bool]:
    omega = as_tensor(flow, "flow")
    check_dtype(omega, "flow", (torch.float32, torch.float16))
    check_rank(omega, "flow", (4, 5), "[B, P, 2, H, W] or [P, 2, H, W]")
    if omega.shape[-3] != 2 or 0 in omega.shape[-2:]:
        raise ValueError(
            f"flow has shape {list(omega.shape)}; must be [B, P, 2, H, W] or [P, 2, H, W] "
            "with 2 components and H, W of 1 or more"
        )
    batched = omega.dim() == 5
    return (omega if batched else omega[None]), batched


def _steps(steps: Array | None, length: int, pairs: int, device: torch.device) -> torch.Tensor:
    if steps is None:
        check_range(length, "length", 0, 32)
        if length > pairs:
            raise ValueError(f"length is {length}, longer than the {pairs} pairs of flow")
        count = pairs // length if length else 1
        flat = torch.arange(count * length, device=device, dtype=torch.int32)
        return flat.reshape(count, length)
    rows = host_indices(steps, "steps", pairs, "the pairs of flow")
    if rows.dim() != 2 or rows.shape[0] < 1 or rows.shape[1] > 32:
        raise ValueError(
            f"steps has shape {list(rows.shape)}; must be [S, L] with S of 1 or more and L up to 32"
        )
    return rows.to(device)


def host_indices(values: Array, name: str, count: int, of: str) -> torch.Tensor:
    """Indices as int32, checked to lie in [0, count) unless they already are on a device."""
    tensor = values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))
    if tensor.dtype not in (torch.int32, torch.int64, torch.uint8, torch.int16) and tensor.numel():
        raise TypeError(
            f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}; must be int32 or int64"
        )
    if tensor.device.type == "cpu" and tensor.numel() and not torch.compiler.is_compiling():
        low, high = int(tensor.min()), int(tensor.max())
        if low < 0 or high >= count:
            raise ValueError(
                f"{name} spans {low} to {high}; must lie within {of}, 0 to {count - 1}"
            )
    return tensor.to(torch.int32)


def _seeds(points: Array, omega: torch.Tensor) -> torch.Tensor:
    seeds = as_tensor(points, "points")
    check_dtype(seeds, "points", (torch.float32, torch.float64, torch.int32, torch.int64))
    if seeds.dim() != 3 or seeds.shape[-1] != 2:
        raise ValueError(f"points has shape {list(seeds.shape)}; must be [Gy, Gx, 2]")
    if seeds.device != omega.device:
        raise ValueError(
            f"points is on {seeds.device}, flow on {omega.device}; they must be together"
        )
    return seeds.float()


def tracks(
    flow: torch.Tensor,
    seeds: torch.Tensor,
    starts: torch.Tensor,
    steps: torch.Tensor,
    bound: float,
    median: int,
    sampling: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Any tracks at all: seeds [B or 1, R, 2], the row of `steps` each follows [B or 1, R]."""
    # Through the dispatcher a call takes 0.1 ms, a fifth of all, so it is used where it is of use.
    run = _tracks if _watched(flow) else _run_tracks
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = run(
        flow, seeds, starts, steps, float(bound), median, sampling, backend
    )
    return result


def _watched(tensor: torch.Tensor) -> bool:
    """Whether operators must be seen going by: a compiler, a mode, a subclass, no data."""
    return (
        torch.compiler.is_compiling()
        or type(tensor) is not torch.Tensor
        or tensor.is_meta
        or is_in_torch_dispatch_mode()
    )


def _run_tracks(
    flow: torch.Tensor,
    seeds: torch.Tensor,
    starts: torch.Tensor,
    steps: torch.Tensor,
    bound: float,
    median: int,
    sampling: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    floor = load(choose("trajectories", flow, backend))
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = floor.tracks(
        flow, seeds, starts, steps, bound=bound, median=median, sampling=sampling
    )
    return result


_tracks = torch.library.custom_op("mme_targets::tracks", _run_tracks, mutates_args=())


@_tracks.register_fake
def _(
    flow: torch.Tensor,
    seeds: torch.Tensor,
    starts: torch.Tensor,
    steps: torch.Tensor,
    bound: float,
    median: int,
    sampling: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, count, length = flow.shape[0], seeds.shape[1], steps.shape[1]
    return (
        flow.new_empty((batch, count, length + 1, 2), dtype=torch.float32),
        flow.new_empty((batch, count, length, 2), dtype=torch.float32),
        flow.new_empty((batch, count), dtype=torch.bool),
    )


@torch.library.custom_op("mme_targets::median_filter", mutates_args=())
def _median_filter(planes: torch.Tensor, size: int, backend: str) -> torch.Tensor:
    floor = load(choose("median_filter", planes, backend))
    result: torch.Tensor = floor.median_filter(planes, size)
    return result


@_median_filter.register_fake
def _(planes: torch.Tensor, size: int, backend: str) -> torch.Tensor:
    return planes.new_empty(planes.shape)
