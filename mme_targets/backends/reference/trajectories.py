"""Median-filtered advection of points (Eq. 2, 4, 6) and their visibility (Eq. 7), in float64.

Positions are px, pixel centres are integers. A position is rounded to the nearest pixel (halves
up), or flow is read bilinearly; outside the frame it is clamped for reading only. The paper's
``0 < x < W`` is kept literally: x = 0 is outside, and x up to W, half a pixel past the last centre
and more, is inside.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def tracks(
    flow: torch.Tensor,
    seeds: torch.Tensor,
    starts: torch.Tensor,
    steps: torch.Tensor,
    *,
    bound: float,
    median: int,
    sampling: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Track every seed through the pairs of its row of `steps`; shapes as in `ops.trajectories`."""
    maps = flow.cpu().double().numpy()
    pair_of = steps.cpu().numpy()
    batch, length = maps.shape[0], pair_of.shape[1]
    seed, start = seeds.cpu().double().numpy(), starts.cpu().numpy()
    count = seed.shape[1]

    points = np.empty((batch, count, length + 1, 2))
    displacements = np.empty((batch, count, length, 2))
    visible = np.empty((batch, count), dtype=bool)
    for b in range(batch):
        row = b if len(seed) > 1 else 0
        points[b], displacements[b], visible[b] = _advect(
            maps[b], seed[row], pair_of[start[row]], bound, median, sampling
        )
    return (
        torch.from_numpy(points).float().to(flow.device),
        torch.from_numpy(displacements).float().to(flow.device),
        torch.from_numpy(visible).to(flow.device),
    )


def _advect(
    flow: F64, seed: F64, pairs: NDArray[np.int32], bound: float, median: int, sampling: str
) -> tuple[F64, F64, NDArray[np.bool_]]:
    """One clip: flow [P, 2, H, W], seed [R, 2], pairs [R, L]."""
    height, width = flow.shape[-2:]
    length = pairs.shape[1]
    point = seed.copy()
    alive = np.ones(len(seed), dtype=bool)
    path, moves = [point], []
    for step in range(length):
        pair = pairs[:, step]
        known = (pair >= 0) & (pair < len(flow))
        omega, finite = _read(flow, np.where(known, pair, 0), point, bound, median, sampling)
        alive &= finite & known
        move = np.where(alive[:, None], omega, 0.0)
        point = point + move  # Eq. 6
        path.append(point)
        moves.append(move)
    points = np.stack(path, axis=1)
    x, y = points[..., 0], points[..., 1]
    inside = (x > 0) & (x < width) & (y > 0) & (y < height)  # Eq. 7
    displacements = np.stack(moves, axis=1) if moves else np.zeros((len(seed), 0, 2))  # Eq. 4
    return points, displacements, alive & inside.all(axis=1)


def _read(
    flow: F64, pair: NDArray[np.int32], point: F64, bound: float, median: int, sampling: str
) -> tuple[F64, NDArray[np.bool_]]:
    """(M * ω) at each point: values [R, 2], and whether all that was read is finite [R]."""
    if sampling == "nearest":
        pixel = np.floor(point + 0.5)
        return _filtered(flow, pair, pixel[:, 0], pixel[:, 1], bound, median)
    low = np.floor(point)
    part = point - low
    rows = []
    finite = np.ones(len(point), dtype=bool)
    for dy in (0, 1):
        left, left_ok = _filtered(flow, pair, low[:, 0], low[:, 1] + dy, bound, median)
        right, right_ok = _filtered(flow, pair, low[:, 0] + 1, low[:, 1] + dy, bound, median)
        rows.append(left + part[:, :1] * (right - left))
        finite &= left_ok & right_ok
    return rows[0] + part[:, 1:] * (rows[1] - rows[0]), finite


def _filtered(
    flow: F64, pair: NDArray[np.int32], x: F64, y: F64, bound: float, median: int
) -> tuple[F64, NDArray[np.bool_]]:
    """Both components at whole pixels: median of the window, each alone, clipped to ±bound."""
    height, width = flow.shape[-2:]
    column = np.clip(x, 0, width - 1).astype(int)
    row = np.clip(y, 0, height - 1).astype(int)
    reach = median // 2
    values = np.stack(
        [
            flow[pair, :, np.clip(row + dy, 0, height - 1), np.clip(column + dx, 0, width - 1)]
            for dy in range(-reach, reach + 1)
            for dx in range(-reach, reach + 1)
        ]
    )
    finite = np.asarray(np.isfinite(values).all(axis=(0, 2)))
    calm = np.where(np.isfinite(values), values, 0.0)
    return np.clip(np.median(calm, axis=0), -bound, bound), finite


def median_filter(planes: torch.Tensor, size: int) -> torch.Tensor:
    """Median of the size x size window of every pixel, border replicated: [M, H, W]."""
    image = planes.cpu().double().numpy()
    reach = size // 2
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    filtered = np.median(windows, axis=(-2, -1)) if image.size else image
    return torch.from_numpy(filtered).float().to(planes.device)
