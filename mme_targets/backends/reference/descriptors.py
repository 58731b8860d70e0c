"""Histograms of oriented gradients, of flow and of motion boundaries (Eq. 5, Appendix C), float64.

MaskFeat's recipe: unnormalised Sobel of each channel alone, magnitude, orientation
θ = atan2(gx, gy) mod π, hard bins, magnitudes summed over a cell; no L2 unless asked for. HOF bins
the flow vectors themselves; MBH is this HOG of each flow component.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

F64 = NDArray[np.float64]
PAD = {"reflect": "reflect", "replicate": "edge"}


def histograms(
    images: torch.Tensor,
    *,
    vectors: bool,
    bins: int,
    cell: int,
    binning: str,
    pool: str,
    padding: str,
    l2: bool,
    cells_last: bool,
) -> torch.Tensor:
    """Cell histograms of images [M, C, H, W]: [M, C, bins, ⌊H/cell⌋, ⌊W/cell⌋], or cells first."""
    values = images.cpu().double().numpy()
    count, _, height, width = values.shape
    rows, columns = height // cell, width // cell
    channels = 1 if vectors else values.shape[1]
    result = np.zeros((count, channels, bins, rows, columns))
    for m in range(count):
        if vectors:
            gx, gy = values[m, :1], values[m, 1:]
        else:
            gx, gy = sobel(values[m], padding)
        votes = vote(gx, gy, bins, binning)[..., : rows * cell, : columns * cell]
        cells = votes.reshape(channels, bins, rows, cell, columns, cell)
        result[m] = _pooled(cells.sum(axis=(3, 5)), cell, pool, l2, axis=1)
    if cells_last:
        result = np.ascontiguousarray(result.transpose(0, 3, 4, 1, 2))
    return torch.from_numpy(result).float().to(images.device)


def windows(
    images: torch.Tensor,
    points: torch.Tensor,
    starts: torch.Tensor,
    times: torch.Tensor,
    *,
    bins: int,
    cell: int,
    binning: str,
    pool: str,
    padding: str,
    l2: bool,
) -> torch.Tensor:
    """Histogram of a cell x cell window around each point (Fig. 5): [B, R, Lh, C, bins].

    The window is shifted to lie inside the frame, as Dense Trajectories do.
    """
    values = images.cpu().double().numpy()
    place, frame_of = points.cpu().double().numpy(), times.cpu().numpy()
    start = starts.cpu().numpy()
    batch, _, channels, height, width = values.shape
    count, steps = place.shape[1], frame_of.shape[1]
    result = np.zeros((batch, count, steps, channels, bins))
    for b in range(batch):
        gx, gy = sobel(values[b], padding)
        votes = vote(gx, gy, bins, binning)  # [T, C, bins, H, W]
        for r in range(count):
            for step, t in enumerate(frame_of[start[b if len(start) > 1 else 0, r]]):
                pixel = np.floor(place[b, r, step] + 0.5)
                left = int(np.clip(pixel[0] - cell // 2, 0, width - cell))
                top = int(np.clip(pixel[1] - cell // 2, 0, height - cell))
                window = votes[t, :, :, top : top + cell, left : left + cell]
                result[b, r, step] = _pooled(window.sum(axis=(2, 3)), cell, pool, l2, axis=1)
    return torch.from_numpy(result).float().to(images.device)


def sobel(image: F64, padding: str) -> tuple[F64, F64]:
    """Gradients of [..., H, W] to the right and downwards, unnormalised (weights 1, 2, 1)."""
    border = [(0, 0)] * (image.ndim - 2) + [(1, 1), (1, 1)]
    with np.errstate(invalid="ignore"):
        p = np.pad(image, border, mode=PAD[padding])  # type: ignore[call-overload]
        across = p[..., 2:] - p[..., :-2]
        down = p[..., 2:, :] - p[..., :-2, :]
        gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
        gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return gx, gy


def vote(gx: F64, gy: F64, bins: int, binning: str) -> F64:
    """What each pixel [C, H, W] adds to each bin: [C, bins, H, W]; not finite adds nothing."""
    with np.errstate(invalid="ignore", over="ignore"):
        magnitude = np.sqrt(gx**2 + gy**2)
        # The same orientation with θ in [0, π): a mod would round what lies just below π to 0.
        sign = np.where((gx < 0) | ((gx == 0) & (gy < 0)), -1.0, 1.0)
        phase = np.arctan2(sign * gx, sign * gy) / np.pi * bins
    finite = np.isfinite(magnitude)
    magnitude = np.where(finite, magnitude, 0.0)
    phase = np.where(finite, phase, 0.0)
    first = np.minimum(np.floor(phase), bins - 1)
    bin_axis = np.arange(bins).reshape(bins, 1, 1)
    low = (first % bins)[..., None, :, :] == bin_axis
    if binning == "hard":
        hard: F64 = low * magnitude[..., None, :, :]
        return hard
    share = (phase - first)[..., None, :, :]
    high = ((first + 1) % bins)[..., None, :, :] == bin_axis
    result: F64 = (low * (1 - share) + high * share) * magnitude[..., None, :, :]
    return result


def _pooled(sums: F64, cell: int, pool: str, l2: bool, axis: int) -> F64:
    if pool == "mean":
        sums = sums / cell**2
    if l2:
        sums = sums / np.maximum(np.linalg.norm(sums, axis=axis, keepdims=True), 1e-12)
    return sums
