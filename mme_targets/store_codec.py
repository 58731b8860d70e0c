"""Quantised displacements of a store's rows as symbols, and their contexts.

A store keeps tracks by the flow pair that they read, not by their start: row p, plane l holds step
l of the tracks from frame ``p − l·flow_stride``, one value a grid point and component. The L planes
of a row read one flow field at points that lie a few px apart: a field costs little more than once
though six tracks pass through it.

Displacements are whole multiples q of the store's step (1/8 px), |q| ≤ 32000, as int16; sums of two
wrap around, and ⌊·⌋ floors. With neighbours of the same component to the left, W, and above, N (the
only one stands for both at the edges, 0 for the first point's), plane 0 is the residuals

    a[y, x] = q[0, y, x] − ⌊(W + N) / 2⌋.

Plane l > 0 was read where its track had come to, d = Σ q of the track's steps before (each sum
kept within ±32000). It is told from plane l − 1, read at d′, by two kinds of symbols a point:

    change    bit c: whether component c of q[l] and q[l − 1] differ; of points that may
    value     q[l] − b, where they do, x before y; b: plane 0, bilinear, at d, to 1/64 of the grid

A point may not change if flow was read to the nearest pixel and both tracks certainly stood on one:
if the four numbers ``⌊d ± l·step/2 + 1/2⌋``, ``⌊d′ ± (l − 1)·step/2 + 1/2⌋`` px are equal in both
components. Where that fails for any point of a row, the row is marked, and all its points may.
Planes that no track reaches, l·flow_stride > p, are left out, and read as zeros.

Symbols are bytes. Residuals and values outside ±127, and rare ones, are escaped: their symbol is
−128, and they themselves are int16 at the row's end, the first one last. The rest of a row is rANS
(`store_rans`): residuals line by line, then for each l > 0 its changes, then its values, each of
the lists beginning a step. So the L rows that a start's tracks read are enough to decode them, each
up to their plane. The context of a symbol, len(v) being how many bits v takes, at most 8:

    residual  level of ``2·w(N) + w(NE) + w(NW)``, w = min(|a|, 63) in the line above, else 0
    change    min(23, 2·len(|B|) + len(D) + len(G)): |B| the sum of |b − q[l − 1]| of both
              components, D the larger |d − d′| of the two, G the sum of the |differences| of q[0]
              to its four neighbours (at the edge, itself) of both
    value     len(|b − q[l − 1]|) of its component

Tables of all contexts are made for the 256 rows of a shard together. `_cpu` encodes to the same
bytes and decodes the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .store_context import (
    CHANGES,
    CONTEXTS,
    ESCAPE,
    VALUES,
    Bytes,
    Layout,
    Numbers,
    Plane,
    levels,
    moved,
    slopes_of,
    sum_above,
    wrapped,
)
from .store_rans import NONE, Decoder, encode, frequencies, in_steps

__all__ = ["CONTEXTS", "Layout", "decode_planes", "decode_rows", "encode_rows", "quantise"]

_ROWS = 32
"""Rows that are encoded at once."""


def quantise(displacements: NDArray[np.float32], step: float) -> Numbers:
    """Displacements in whole steps, halves to even."""
    whole: Numbers = np.rint(displacements * (1 / step)).astype(np.int16)
    return whole


def encode_rows(
    rows: Numbers, before: Numbers, first: int, layout: Layout
) -> tuple[NDArray[np.uint16], list[bytes]]:
    """Encode the rows of a shard, by `_cpu` where it is built.

    Parameters
    ----------
    rows : [P, L, Gy, Gx, 2] whole steps.
    before : [(L − 1)·flow_stride, L, Gy, Gx, 2], the rows before them; of any content before row 0.
    first : which row is the first of `rows`.

    Returns
    -------
    tables : [CONTEXTS, 256] uint16.
    data : of each row.

    Raises
    ------
    ValueError
        If `before` holds other than these rows.
    """
    reach = (rows.shape[1] - 1) * layout.stride
    if len(before) != reach:
        raise ValueError(f"before holds {len(before)} rows; must be {reach}")
    native = _native("TrackEncoder")
    if native is None:
        return _encode_rows(rows, before, first, layout)
    arrays = [np.ascontiguousarray(some, np.int16) for some in (rows, before)]
    counts = np.zeros((CONTEXTS, 256), np.int64)
    encoder = native.TrackEncoder(
        arrays[0].ctypes.data, len(rows), arrays[1].ctypes.data, reach, first, rows.shape[1],
        layout.stride, layout.gy, layout.gx, layout.scale, layout.cells, layout.half,
        counts.ctypes.data,
    )  # fmt: skip
    tables = _tables(counts)
    return tables, encoder.encoded(tables.ctypes.data)


def _encode_rows(
    rows: Numbers, before: Numbers, first: int, layout: Layout
) -> tuple[NDArray[np.uint16], list[bytes]]:
    """`encode_rows` in NumPy: the reference, and what serves where `_cpu` is not built."""
    blocks = []
    for at in range(0, len(rows), _ROWS):
        some = np.concatenate([before, rows[at : at + _ROWS]])
        blocks.append(_Symbols(some, len(before), first + at, layout))
        before = some[len(some) - len(before) :]
    tables = _tables(np.sum([block.counts() for block in blocks], axis=0))
    return tables, [row for block in blocks for row in block.encoded(tables)]


def _tables(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """[CONTEXTS, 256], of how often each symbol comes."""
    return np.stack(
        [
            frequencies(count, None if CHANGES <= context < VALUES else ESCAPE)
            for context, count in enumerate(np.asarray(counts))
        ]
    )


class _Symbols:
    """Residuals of some rows; row after row, changes and values of each plane; all contexts."""

    def __init__(self, rows: Numbers, skip: int, first: int, layout: Layout) -> None:
        every = rows.reshape(*rows.shape[:2], layout.gy, 2 * layout.gx)
        length = rows.shape[1]
        flat = every[skip:].astype(np.int32)
        left, above = np.zeros_like(flat[:, 0]), np.zeros_like(flat[:, 0])
        left[..., 2:], above[:, 1:] = flat[:, 0, :, :-2], flat[:, 0, :-1]
        left[..., :2], above[:, 0] = above[..., :2], left[:, 0]
        left[:, 0, :2] = above[:, 0, :2] = 0
        self.residuals = (flat[:, 0] - (wrapped(left + above) >> 1)).astype(np.int16)
        around = np.zeros_like(flat[:, 0])
        around[:, 1:] = sum_above(self.residuals[:, :-1])
        self.residual_contexts = levels(around)

        count = len(flat)
        # Of each row, what its planes need: [(changes, contexts, values, contexts), …].
        self.planes: list[list[tuple[Bytes, Bytes, Numbers, Bytes]]] = [[] for _ in range(count)]
        self.marked = np.zeros(count, bool)
        slopes = slopes_of(flat[:, 0])
        came = np.zeros((len(every), layout.gy, 2 * layout.gx), np.int16)
        found = []
        for plane in range(1, length):
            there = came
            came = np.zeros_like(there)
            came[layout.stride :] = moved(there, every[:, plane - 1])[: -layout.stride]
            reached = max(0, plane * layout.stride - first)
            which = slice(min(reached, count), None)
            old = slice(skip + min(reached, count), None)
            view = Plane(layout, plane, flat[which, 0], flat[which, plane - 1], there[old],
                          came[old], slopes[which])  # fmt: skip
            steps = flat[which, plane] - flat[which, plane - 1]
            self.marked[which] |= ((steps != 0) & ~view.may[..., None].repeat(2, -1).reshape(
                steps.shape)).any(axis=(1, 2))  # fmt: skip
            found.append((range(count)[which], view, flat[which, plane], steps))
        for places, view, now, steps in found:
            for at, row in enumerate(places):
                self.planes[row].append(
                    view.symbols(at, bool(self.marked[row]), now[at], steps[at])
                )

    def counts(self) -> NDArray[np.int64]:
        """[CONTEXTS, 256], how often each symbol comes."""
        symbols, contexts = [_symbols(self.residuals).ravel()], [self.residual_contexts.ravel()]
        for changes, by, values, of in (plane for planes in self.planes for plane in planes):
            symbols += [changes, _symbols(values)]
            contexts += [by, of]
        both = np.concatenate(contexts).astype(np.int64) * 256 + np.concatenate(symbols)
        return np.bincount(both, minlength=CONTEXTS * 256).reshape(CONTEXTS, 256)

    def encoded(self, tables: NDArray[np.uint16]) -> list[bytes]:
        """The bytes of each row."""
        symbols, contexts, escapes = [], [], []
        for row, planes in enumerate(self.planes):
            residuals = _escaped(self.residuals[row], self.residual_contexts[row], tables)
            some, by = [in_steps(residuals, 0)], [in_steps(self.residual_contexts[row], NONE)]
            last = [self.residuals[row][residuals == ESCAPE]]
            for changes, change_contexts, values, value_contexts in planes:
                coded = _escaped(values, value_contexts, tables)
                some += [in_steps(changes, 0), in_steps(coded, 0)]
                by += [in_steps(change_contexts, NONE), in_steps(value_contexts, NONE)]
                last.append(values[coded == ESCAPE])
            symbols.append(np.concatenate(some))
            contexts.append(np.concatenate(by))
            escapes.append(np.concatenate(last)[::-1].astype("<i2").tobytes())
        data = encode(symbols, contexts, tables, self.marked)
        return [row + last for row, last in zip(data, escapes, strict=True)]


def decode_rows(
    data: Bytes,
    spans: NDArray[np.int64],
    tables: NDArray[np.uint16],
    table: NDArray[np.int64],
    rows: NDArray[np.int64],
    depth: NDArray[np.int64],
    slots: NDArray[np.int64],
    layout: Layout,
    out: Numbers,
) -> None:
    """Decode rows, by `_cpu` where it is built.

    Parameters
    ----------
    data : holds what `encode_rows` made of each row.
    spans : [2, n], where in it rows begin and end.
    tables : [t, CONTEXTS, 256], those of some shards.
    table : [n], which of them each row has.
    rows : [n], which row of the video each is, ascending.
    depth : [n], planes wanted of each; where plane l > 0 is, plane l − 1 of the row `flow_stride`
        before must be.
    slots : [n, planes], where in `out` each plane goes, or −1.
    out : [m, Gy, Gx, 2], filled in.

    Raises
    ------
    ValueError
        If the data is damaged in a way that shows.
    """
    native = _native("decode_rows")
    if native is None:
        parts = [data[begin:end].tobytes() for begin, end in spans.T]
        planes = decode_planes(parts, tables[table], rows, depth, layout)
        row, plane = np.nonzero(slots >= 0)
        out[slots[row, plane]] = planes[row, plane]
        return
    arrays = [
        np.ascontiguousarray(some) for some in (data, *spans, tables, table, rows, depth, slots)
    ]
    at = [some.ctypes.data for some in arrays]
    done = native.decode_rows(
        at[0], at[1], at[2], at[3], len(tables), *at[4:], *slots.shape, layout.stride, layout.gy,
        layout.gx, layout.scale, layout.cells, layout.half, out.ctypes.data,
    )  # fmt: skip
    if not done:
        raise ValueError("rows cannot be decoded")


@cache
def _native(name: str) -> Any:
    """`_cpu`, if it has this; one built from older sources may not."""
    try:
        native = importlib.import_module("mme_targets._cpu")
    except ImportError:
        return None
    return native if hasattr(native, name) else None


def decode_planes(
    data: Sequence[bytes],
    tables: NDArray[np.uint16],
    rows: NDArray[np.int64],
    depth: NDArray[np.int64],
    layout: Layout,
) -> Numbers:
    """`decode_rows` in NumPy: the reference, and what serves where `_cpu` is not built.

    Parameters
    ----------
    data : of each row, as `encode_rows` made it.
    tables : [n, CONTEXTS, 256], of each row's shard.
    rows, depth : as there.

    Returns
    -------
    [n, most of `depth`, Gy, Gx, 2] int16; of what was not wanted, anything.
    """
    count, gy, width = len(data), layout.gy, 2 * layout.gx
    decoder = Decoder(data, tables)
    escapes = [np.frombuffer(row[len(row) % 2 :], "<i2")[::-1] for row in data]
    used = np.zeros(count, np.int64)

    def numbers(symbols: Bytes) -> Numbers:
        out = symbols.view(np.int8).astype(np.int16)
        for row in np.flatnonzero((symbols == ESCAPE).any(axis=1)):
            places = np.flatnonzero(symbols[row] == ESCAPE)
            out[row, places] = escapes[row][used[row] : used[row] + len(places)]
            used[row] += len(places)
        return out

    out = np.zeros((count, int(depth.max(initial=0)), gy, width), np.int16)
    around = np.zeros((count, width), np.int32)
    for y in range(gy):
        residual = numbers(decoder.line(levels(around)))
        around = sum_above(residual)
        for at in range(0, width, 2):
            left = out[:, 0, y, at - 2 : at] if at else out[:, 0, y - 1, :2]
            above = out[:, 0, y - 1, at : at + 2] if y else left
            guess = (left + above) >> 1 if at or y else 0
            out[:, 0, y, at : at + 2] = guess + residual[:, at : at + 2]

    slopes = slopes_of(out[:, 0].astype(np.int32))
    came = np.zeros((count, gy, width), np.int16)
    for plane in range(1, out.shape[1]):
        which = np.flatnonzero(depth > plane)
        earlier = np.searchsorted(rows, rows[which] - layout.stride)
        there = came
        came = np.zeros_like(there)
        came[which] = moved(there[earlier], out[earlier, plane - 1])
        first, before = out[which, 0].astype(np.int32), out[which, plane - 1].astype(np.int32)
        view = Plane(layout, plane, first, before, there[which], came[which], slopes[which])
        may = view.may | decoder.marked[which, None, None]
        changes = np.zeros((count, gy, layout.gx), np.uint8)
        changes[which] = _listed(decoder.line, count, which, may, view.contexts)
        differs = (changes[which, ..., None] >> np.arange(2, dtype=np.uint8) & 1).astype(bool)
        values = _listed(lambda by: numbers(decoder.line(by)), count, which, differs,
                         view.value_contexts)  # fmt: skip
        now = np.where(differs, view.predicted + values, before.reshape(differs.shape))
        out[which, plane] = now.reshape(before.shape)
    return out.reshape(*out.shape[:2], gy, layout.gx, 2)


def _listed(
    decode: Any, count: int, which: NDArray[np.int64], chosen: NDArray[np.bool_], contexts: Bytes
) -> Any:
    """What `decode` gives for the chosen of each row `which`, by their contexts; else 0."""
    sizes = chosen.reshape(len(which), -1).sum(1)
    listed = np.full((count, int(sizes.max(initial=0))), NONE, np.uint8)
    for row, size, some, by in zip(which, sizes, chosen, contexts, strict=True):
        listed[row, :size] = by[some]
    found = decode(listed)
    out = np.zeros(chosen.shape, found.dtype)
    for at, (row, size) in enumerate(zip(which, sizes, strict=True)):
        out[at][chosen[at]] = found[row, :size]
    return out


def _symbols(numbers: Numbers) -> Bytes:
    fits = np.abs(numbers.astype(np.int32)) <= 127
    return np.where(fits, numbers, -ESCAPE).astype(np.int8).view(np.uint8)


def _escaped(numbers: Numbers, contexts: Bytes, tables: NDArray[np.uint16]) -> Bytes:
    """Symbols of numbers; the escape where the table has none."""
    symbols = _symbols(numbers)
    return np.where(tables[contexts, symbols] == 0, np.uint8(ESCAPE), symbols)
