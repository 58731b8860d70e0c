"""What predicts a store's symbols, and their contexts: `store_codec` has the equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CHANGES", "CONTEXTS", "ESCAPE", "VALUES", "Bytes", "Ints", "Layout", "Numbers", "Plane",
    "levels", "moved", "slopes_of", "sum_above", "wrapped",
]  # fmt: skip

LEVELS = np.array([1, 2, 4, 7, 12, 18, 26, 40, 70])
CHANGES = len(LEVELS) + 1
VALUES = CHANGES + 24
CONTEXTS = VALUES + 9
"""Contexts of residuals, then of changes, then of values."""
ESCAPE = 128
FARTHEST = 32000
"""Steps that a track is followed from its point, so that products stay within int32."""
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Numbers = NDArray[np.int16]
_LENGTH = np.array([value.bit_length() for value in range(256)], np.uint8)


@dataclass(frozen=True)
class Layout:
    """What decoding has to know of a store: config and size of the grid of points."""

    stride: int
    grid: int
    step: float
    gy: int
    gx: int

    @property
    def scale(self) -> int:
        """Step, in 2⁻¹⁶ px."""
        return min(65536, round(self.step * 65536))

    @property
    def cells(self) -> int:
        """Step, in 2⁻²² of the grid."""
        return min(65536, round(self.step / self.grid * 2**22))

    @property
    def half(self) -> int:
        """Offset from a point to the edge of the pixel below left, in 2⁻¹⁶ px."""
        return 65536 if self.grid % 2 else 32768


class Plane:
    """What is known of a plane [n, Gy, 2·Gx] of some rows before it is decoded.

    Parameters
    ----------
    first, before : planes 0 and `plane` − 1.
    there, came : d′ and d, in steps.
    slopes : of plane 0.
    """

    def __init__(
        self, layout: Layout, plane: int, first: Ints, before: Ints, there: Numbers, came: Numbers,
        slopes: Ints,
    ) -> None:  # fmt: skip
        pairs = (len(first), layout.gy, layout.gx, 2)
        edges = []
        for moves, steps in ((there, plane - 1), (came, plane)):
            at = moves.astype(np.int32) * layout.scale + layout.half
            slack = (steps * layout.scale) >> 1
            edges += [(at - slack) >> 16, (at + slack) >> 16]
        same = (edges[0] == edges[1]) & (edges[0] == edges[2]) & (edges[0] == edges[3])
        self.may = ~same.reshape(pairs).all(-1)
        self.predicted = _bilinear(layout, first.reshape(pairs), came.reshape(pairs))
        self._off = np.abs(self.predicted - before.reshape(pairs))
        apart = np.abs(came.astype(np.int32) - there).reshape(pairs).max(-1)
        score = 2 * _length(self._off.sum(-1)).astype(np.int32) + _length(apart)
        score += _length(slopes)
        self.contexts = (np.minimum(score, VALUES - CHANGES - 1) + CHANGES).astype(np.uint8)
        self.value_contexts = _length(self._off) + np.uint8(VALUES)

    def symbols(
        self, row: int, marked: bool, now: Ints, steps: Ints
    ) -> tuple[Bytes, Bytes, Numbers, Bytes]:
        """Changes, their contexts, values, their contexts of one row."""
        may = self.may[row] | marked
        differs = steps.reshape(*may.shape, 2) != 0
        changes = (differs[..., 0] + 2 * differs[..., 1]).astype(np.uint8)
        values = (now.reshape(*may.shape, 2) - self.predicted[row])[differs].astype(np.int16)
        return changes[may], self.contexts[row][may], values, self.value_contexts[row][differs]


def sum_above(residuals: NDArray[Any]) -> Ints:
    """2·w(N) + w(NE) + w(NW) under lines [..., 2·Gx]."""
    weights = np.minimum(np.abs(residuals.astype(np.int32)), 63)
    out: Ints = 2 * weights
    out[..., :-2] += weights[..., 2:]
    out[..., 2:] += weights[..., :-2]
    return out


def levels(around: Ints) -> Bytes:
    return np.searchsorted(LEVELS, around, side="right").astype(np.uint8)


def _length(values: Ints) -> Bytes:
    """Bits that it takes to write numbers ≥ 0, at most 8."""
    return _LENGTH[np.minimum(values, 255)]


def slopes_of(first: Ints) -> Ints:
    """[n, Gy, Gx]: G of plane 0 [n, Gy, 2·Gx]."""
    points = first.reshape(*first.shape[:2], -1, 2)
    sums = np.zeros(points.shape[:3], np.int32)
    down = np.abs(np.diff(points, axis=1)).sum(-1)
    across = np.abs(np.diff(points, axis=2)).sum(-1)
    sums[:, 1:] += down
    sums[:, :-1] += down
    sums[:, :, 1:] += across
    sums[:, :, :-1] += across
    return sums


def moved(came: Numbers, step: Numbers) -> Numbers:
    """Where tracks have come to after another step."""
    sums = came.astype(np.int32) + step
    return sums.clip(-FARTHEST, FARTHEST).astype(np.int16)


def _bilinear(layout: Layout, first: Ints, moves: Numbers) -> Ints:
    """Plane 0 [n, Gy, Gx, 2] where `moves` lead from its points, to 1/64 of the grid.

    From the grid's point that lies nearest on the way, towards the next one on it.
    """
    count, gy, gx, _ = first.shape
    cells = (moves.astype(np.int32) * layout.cells) >> 16
    i, beside, across = _on_the_way(cells[..., 0], np.arange(gx, dtype=np.int32))
    j, beyond, down = _on_the_way(cells[..., 1], np.arange(gy, dtype=np.int32)[:, None])
    row = np.arange(count)[:, None, None]
    upper = _between(first[row, j, i], first[row, j, beside], across)
    lower = _between(first[row, beyond, i], first[row, beyond, beside], across)
    return _between(upper, lower, down)


def _on_the_way(cells: Ints, points: Ints) -> tuple[Ints, Ints, Ints]:
    """Of moves along one axis: the point come to, the next one, and 64ths of the way to it."""
    most = points.size - 1
    moved = (cells + 64 * points).clip(0, 64 * most) - 64 * points
    at = points + np.sign(moved) * (abs(moved) >> 6)
    return at, (at + np.sign(moved)).clip(0, most), (abs(moved) & 63)[..., None]


def _between(a: Ints, b: Ints, share: Ints) -> Ints:
    """A + (b − a)·share/64, halves up; int16 that wrap around."""
    apart = wrapped(b - a)
    return wrapped(a + ((apart * share + 32) >> 6))


def wrapped(values: Ints) -> Ints:
    """As int16 that wrap around."""
    return values.astype(np.int16).astype(np.int32)
