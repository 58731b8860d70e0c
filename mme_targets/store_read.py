"""Tracks of the crop that a model sees, looked up in the grid of the whole frame (Appendix B).

A seed of the crop lies at any place of the frame; its steps are interpolated bilinearly between the
four tracks around it (those at the edge, where it lies outside of them), and its points are the
seed plus its steps. In a mirrored frame the seed is mirrored first, and its steps last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .store_entry import NOT_FINITE, Entry

__all__ = ["SeedTracks", "look_up", "read_tracks"]


class SeedTracks(NamedTuple):
    """Tracks of R seeds in the whole frame.

    Attributes
    ----------
    points : [R, L+1, 2] float32 (x, y) px of the frame as the model's crop is cut out of it.
    displacements : [R, L, 2] float32 px.
    visible : [R] bool: strictly inside the frame at every point, of flow that was finite. What lies
        past the video's end is the clip plan's to say.
    """

    points: torch.Tensor
    displacements: torch.Tensor
    visible: torch.Tensor


def read_tracks(
    entry: Entry,
    starts: NDArray[np.intp],
    length: int,
    seeds: NDArray[np.float32],
    rows: NDArray[np.intp],
    *,
    mirrored: bool = False,
) -> SeedTracks:
    """Read the tracks of a clip.

    Parameters
    ----------
    entry : of the video.
    starts : [S] raw indices at which tracks start.
    length : steps.
    seeds : [R, 2] (x, y) px of the frame, after mirroring.
    rows : [R], which of `starts` each seed belongs to.
    mirrored : frames are mirrored left to right.
    """
    finite = entry.about.get("finite", False)
    found = entry.tracks(starts.tolist(), length, in_view=not finite)
    usable = None if found.in_view is None else found.in_view != NOT_FINITE
    return look_up(
        found.displacements,
        usable,
        seeds,
        rows,
        grid=entry.grid,
        step=entry.step,
        size=(entry.height, entry.width),
        mirrored=mirrored,
    )


def look_up(
    displacements: NDArray[np.int16],
    usable: NDArray[np.bool_] | None,
    seeds: NDArray[np.float32],
    rows: NDArray[np.intp],
    *,
    grid: int,
    step: float,
    size: tuple[int, int],
    mirrored: bool = False,
) -> SeedTracks:
    """Interpolate tracks [S, L, Gy, Gx, 2], in steps, at seeds [R, 2] of the starts `rows` [R].

    Parameters
    ----------
    usable : [S, Gy, Gx], or None where all are; of the nearest track.
    grid, step : of the tracks, px.
    size : height and width of the frame, px.
    mirrored : seeds are px of the frame mirrored left to right.
    """
    height, width = size
    length, gy, gx = displacements.shape[1], displacements.shape[2], displacements.shape[3]
    x = width - 1 - seeds[:, 0] if mirrored else seeds[:, 0]
    u = ((x - grid / 2) / grid).clip(0, gx - 1)
    v = ((seeds[:, 1] - grid / 2) / grid).clip(0, gy - 1)
    left = np.minimum(u.astype(np.intp), max(gx - 2, 0))
    top = np.minimum(v.astype(np.intp), max(gy - 2, 0))
    right, bottom = np.minimum(left + 1, gx - 1), np.minimum(top + 1, gy - 1)
    across, down = (u - left).astype(np.float32), (v - top).astype(np.float32)

    # One contiguous run of L·2 values a point: four gathers read all that there is to read.
    runs = np.ascontiguousarray(displacements.transpose(0, 2, 3, 1, 4)).reshape(-1, length * 2)

    def at(
        y: NDArray[np.intp], x: NDArray[np.intp], weight: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        some: NDArray[np.float32] = (
            runs[(rows * gy + y) * gx + x] * (weight * np.float32(step))[:, None]
        )

        return some

    moves = at(top, left, (1 - across) * (1 - down))
    moves += at(top, right, across * (1 - down))
    moves += at(bottom, left, (1 - across) * down)
    moves += at(bottom, right, across * down)
    moves = moves.reshape(-1, length, 2)
    if mirrored:
        moves[..., 0] *= -1
    points = np.concatenate([seeds[:, None], seeds[:, None] + moves.cumsum(1)], axis=1)
    extent = np.array([width, height], np.float32)
    visible = ((points > 0) & (points < extent)).all(axis=(1, 2))
    if usable is not None:
        near_x, near_y = np.where(across < 0.5, left, right), np.where(down < 0.5, top, bottom)
        visible &= usable[rows, near_y, near_x]
    return SeedTracks(
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(moves),
        torch.from_numpy(visible),
    )
