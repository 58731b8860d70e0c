"""HOG, HOF and MBH maps, and HOG along tracks (Eq. 5, Appendix C).

MaskFeat's recipe: unnormalised Sobel of each channel alone, magnitude, orientation
θ = atan2(gx, gy) mod π in 9 hard bins, magnitudes summed over 8x8 cells, no L2 (the paper leaves it
out). HOF bins the flow vectors themselves, MBH the Sobel gradients of each flow component, by the
same histogram. Hard bins of uint8 frames are decided exactly, so all floors agree.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

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
from .trajectories import host_indices


class HistogramOptions(NamedTuple):
    """How gradients become histograms; the defaults are the paper's."""

    bins: int = 9
    cell: int = 8
    binning: str = "hard"
    pool: str = "sum"
    padding: str = "reflect"
    l2: bool = False


def hog(
    frames: Array,
    *,
    bins: int = 9,
    cell: int = 8,
    binning: str = "hard",
    pool: str = "sum",
    padding: str = "reflect",
    l2: bool = False,
    backend: str = "auto",
) -> Array:
    """Histogram of oriented gradients of every cell and channel (Appendix C).

    Parameters
    ----------
    frames : [B, T, C, H, W] or [T, C, H, W], uint8, or float32 in 0–255.
    bins : orientations over 180°, 2 to 36.
    cell : side of a cell, px; pixels right and below the last full cell are not used.
    binning : "hard", or "linear": shared by the two nearest bins.
    pool : "sum" or "mean" of magnitudes over a cell.
    padding : how frames are continued for Sobel: "reflect" (needs H, W of 2 or more), "replicate".
    l2 : divide a cell's bins by their L2 norm (MaskFeat does, the paper does not).
    backend : "auto", "reference", "cpu", "triton" or "cuda".

    Returns
    -------
    [B, T, C, bins, ⌊H/cell⌋, ⌊W/cell⌋] float32 in grey levels (unbatched as the input). Pixels
    whose gradient is not finite add nothing.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be.
    """
    images = as_tensor(frames, "frames")
    check_dtype(images, "frames", (torch.uint8, torch.float32))
    check_rank(images, "frames", (4, 5), "[B, T, C, H, W] or [T, C, H, W]")
    options = HistogramOptions(bins, cell, binning, pool, padding, l2)
    return like_input(_map(images, "frames", "hog", options, backend), frames)


def hof(
    flow: Array,
    *,
    bins: int = 9,
    cell: int = 8,
    binning: str = "hard",
    pool: str = "sum",
    l2: bool = False,
    backend: str = "auto",
) -> Array:
    """Histogram of optical flow (Appendix C): the histogram of `hog` over the flow vectors.

    Parameters
    ----------
    flow : [B, P, 2, H, W] or [P, 2, H, W] float32 (float16 is widened), px.
    bins, cell, binning, pool, l2, backend : as in `hog`; orientation is unsigned there and here.

    Returns
    -------
    [B, P, 1, bins, ⌊H/cell⌋, ⌊W/cell⌋] float32, px (unbatched as the input).
    """
    vectors = _flow(flow)
    options = HistogramOptions(bins, cell, binning, pool, "replicate", l2)
    return like_input(_map(vectors, "flow", "hof", options, backend), flow)


def mbh(
    flow: Array,
    *,
    bins: int = 9,
    cell: int = 8,
    binning: str = "hard",
    pool: str = "sum",
    padding: str = "reflect",
    l2: bool = False,
    backend: str = "auto",
) -> Array:
    """Motion boundary histogram (Appendix C): `hog` of each flow component.

    Parameters
    ----------
    flow : [B, P, 2, H, W] or [P, 2, H, W] float32 (float16 is widened), px.
    bins, cell, binning, pool, padding, l2, backend : as in `hog`.

    Returns
    -------
    [B, P, 2, bins, ⌊H/cell⌋, ⌊W/cell⌋] float32, px (unbatched as the input).
    """
    options = HistogramOptions(bins, cell, binning, pool, padding, l2)
    return like_input(_map(_flow(flow), "flow", "mbh", options, backend), flow)


def trajectory_hog(
    frames: Array,
    points: Array,
    times: Array,
    *,
    sampling: str = "cell",
    bins: int = 9,
    cell: int = 8,
    binning: str = "hard",
    pool: str = "sum",
    padding: str = "reflect",
    l2: bool = False,
    backend: str = "auto",
) -> Array:
    """HOG around each point of each track (Eq. 5).

    Parameters
    ----------
    frames : [B, T, C, H, W] or [T, C, H, W], uint8, or float32 in 0–255.
    points : [B, S, Gy, Gx, L', 2] (batched as `frames`) float32 px; the first L of the L' are used,
        so `Trajectories.points` fits as it is.
    times : [S, L] integers: the frame that point l of track s lies in.
    sampling : "cell", the map's cell that holds the rounded point (Appendix C), or "window", a
        cell x cell window around it (Fig. 5), shifted to lie inside the frame.
    bins, cell, binning, pool, padding, l2, backend : as in `hog`.

    Returns
    -------
    [B, S, Gy, Gx, L, C, bins] float32 (unbatched as the input).

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be.
    """
    images, place = as_tensor(frames, "frames"), as_tensor(points, "points")
    check_dtype(images, "frames", (torch.uint8, torch.float32))
    check_rank(images, "frames", (4, 5), "[B, T, C, H, W] or [T, C, H, W]")
    check_dtype(place, "points", (torch.float32,))
    check_choice(sampling, "sampling", ("cell", "window"))
    batched = images.dim() == 5
    if not batched:
        images, place = images[None], place[None]
    if place.dim() != 6 or place.shape[-1] != 2 or place.shape[0] != images.shape[0]:
        raise ValueError(
            f"points has shape {list(place.shape[0 if batched else 1 :])}; must be "
            f"{'[B, ' if batched else '['}S, Gy, Gx, L+1, 2], batched as frames"
        )
    if place.device != images.device:
        raise ValueError(
            f"points is on {place.device}, frames on {images.device}; they must be together"
        )
    rows = host_indices(times, "times", images.shape[1], "the frames")
    batch, starts, gy, gx, steps, _ = place.shape
    if rows.dim() != 2 or rows.shape[0] != starts or rows.shape[1] > steps:
        raise ValueError(
            f"times has shape {list(rows.shape)}; "
            f"must be [S, L] with S = {starts} and L up to {steps}"
        )
    options = HistogramOptions(bins, cell, binning, pool, padding, l2)
    _check(images, "frames", options, sobel=True)
    start = torch.arange(starts, device=images.device, dtype=torch.int32)
    start = start.repeat_interleave(gy * gx)[None]
    flat = place.reshape(batch, starts * gy * gx, steps, 2)
    found = hog_along(images, flat, start, rows.to(images.device), sampling, options, backend)
    found = found.reshape(batch, starts, gy, gx, *found.shape[2:])
    return like_input(found if batched else found[0], frames)


def hog_along(
    images: torch.Tensor,
    points: torch.Tensor,
    starts: torch.Tensor,
    times: torch.Tensor,
    sampling: str,
    options: HistogramOptions,
    backend: str,
) -> torch.Tensor:
    """HOG of any tracks: points [B, R, L', 2], rows of `times` [B or 1, R]; [B, R, L, C, bins]."""
    if sampling == "window":
        found: torch.Tensor = _windows(images, points, starts, times, *options, backend)
        return found
    batch, frames, _, height, width = images.shape
    cells: torch.Tensor = _histograms(
        images.flatten(0, 1), False, *options, True, "trajectory_hog", backend
    )
    rows, columns = cells.shape[1:3]
    steps = times.shape[1]
    # Gathering whole rows of C·bins values is what index_select does best: no kernel of ours.
    pixel = (points[:, :, :steps] + 0.5).floor_()
    x = pixel[..., 0].clamp_(0, width - 1).int().div_(options.cell, rounding_mode="floor")
    y = pixel[..., 1].clamp_(0, height - 1).int().div_(options.cell, rounding_mode="floor")
    frame = times[starts.long()]
    first = torch.arange(batch, device=images.device, dtype=torch.int32).view(-1, 1, 1) * frames
    index = ((frame + first) * rows + y.clamp_(max=rows - 1)) * columns + x.clamp_(max=columns - 1)
    flat = cells.view(-1, cells.shape[3] * cells.shape[4]).index_select(0, index.reshape(-1))
    return flat.view(batch, points.shape[1], steps, *cells.shape[3:])


def _flow(flow: Array) -> torch.Tensor:
    vectors = as_tensor(flow, "flow")
    check_dtype(vectors, "flow", (torch.float32, torch.float16))
    check_rank(vectors, "flow", (4, 5), "[B, P, 2, H, W] or [P, 2, H, W]")
    if vectors.shape[-3] != 2:
        raise ValueError(f"flow has shape {list(vectors.shape)}; must have 2 components")
    return vectors.float()


def _check(images: torch.Tensor, name: str, options: HistogramOptions, sobel: bool) -> None:
    check_range(options.bins, "bins", 2, 36)
    check_range(options.cell, "cell", 2, 256)
    check_choice(options.binning, "binning", ("hard", "linear"))
    check_choice(options.pool, "pool", ("sum", "mean"))
    check_choice(options.padding, "padding", ("reflect", "replicate"))
    height, width = images.shape[-2:]
    if min(height, width) < options.cell:
        hint = "; channels come before height and width" if width in (1, 2, 3, 4) else ""
        raise ValueError(
            f"{name} is {height}x{width} px, which holds no cell of {options.cell}{hint}"
        )
    if sobel and options.padding == "reflect" and min(height, width) < 2:
        raise ValueError(f"{name} is {height}x{width} px; padding='reflect' needs 2 px each way")


def _map(
    images: torch.Tensor, name: str, operation: str, options: HistogramOptions, backend: str
) -> torch.Tensor:
    vectors = operation == "hof"
    _check(images, name, options, sobel=not vectors)
    flat = images.reshape(-1, *images.shape[-3:])
    cells: torch.Tensor = _histograms(flat, vectors, *options, False, operation, backend)
    return cells.reshape(*images.shape[:-3], *cells.shape[1:])


@torch.library.custom_op("mme_targets::histograms", mutates_args=())
def _histograms(
    images: torch.Tensor,
    vectors: bool,
    bins: int,
    cell: int,
    binning: str,
    pool: str,
    padding: str,
    l2: bool,
    cells_last: bool,
    operation: str,
    backend: str,
) -> torch.Tensor:
    floor = load(choose(operation, images, backend))
    result: torch.Tensor = floor.histograms(
        images, vectors=vectors, bins=bins, cell=cell, binning=binning, pool=pool,
        padding=padding, l2=l2, cells_last=cells_last,
    )  # fmt: skip
    return result


@_histograms.register_fake
def _(
    images: torch.Tensor,
    vectors: bool,
    bins: int,
    cell: int,
    binning: str,
    pool: str,
    padding: str,
    l2: bool,
    cells_last: bool,
    operation: str,
    backend: str,
) -> torch.Tensor:
    count, channels, height, width = images.shape
    kept, rows, columns = 1 if vectors else channels, height // cell, width // cell
    shape = (count, rows, columns, kept, bins) if cells_last else (count, kept, bins, rows, columns)
    return images.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("mme_targets::windows", mutates_args=())
def _windows(
    images: torch.Tensor,
    points: torch.Tensor,
    starts: torch.Tensor,
    times: torch.Tensor,
    bins: int,
    cell: int,
    binning: str,
    pool: str,
    padding: str,
    l2: bool,
    backend: str,
) -> torch.Tensor:
    floor = load(choose("trajectory_hog", images, backend))
    result: torch.Tensor = floor.windows(
        images, points, starts, times, bins=bins, cell=cell, binning=binning, pool=pool,
        padding=padding, l2=l2,
    )  # fmt: skip
    return result


@_windows.register_fake
def _(
    images: torch.Tensor,
    points: torch.Tensor,
    starts: torch.Tensor,
    times: torch.Tensor,
    bins: int,
    cell: int,
    binning: str,
    pool: str,
    padding: str,
    l2: bool,
    backend: str,
) -> torch.Tensor:
    shape = (images.shape[0], points.shape[1], times.shape[1], images.shape[2], bins)
    return images.new_empty(shape, dtype=torch.float32)
