"""Rows of a store as symbols: every decoder gives back what was encoded."""

from __future__ import annotations

import contextlib
import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import smooth

from mme_targets import store_codec
from mme_targets.store import TrackConfig
from mme_targets.store_codec import CONTEXTS, Layout, encode_rows

CONFIG = TrackConfig(flow="dis", camera_motion=False, length=3)
HEIGHT, WIDTH = 40, 56


def encoded(
    rows: np.ndarray, layout: Layout, first: int = 0, before: np.ndarray | None = None
) -> tuple[np.ndarray, list[bytes]]:
    """`encode_rows` of the first rows of a video."""
    reach = (rows.shape[1] - 1) * layout.stride
    blank = np.zeros((reach, *rows.shape[1:]), np.int16)
    return encode_rows(rows, blank if before is None else before, first, layout)


ISAS = ["numpy", "baseline", "avx2", "avx512"]


def decoded(
    isa: str, parts: list[bytes], tables: np.ndarray, rows: np.ndarray, depth: np.ndarray,
    layout: Layout,
) -> np.ndarray:  # fmt: skip
    """Planes of rows, by the door; of those not wanted, zeros."""
    slots = np.where(np.arange(depth.max()) < depth[:, None], 1, 0)
    slots = np.where(slots > 0, np.cumsum(slots).reshape(slots.shape) - 1, -1)
    ends = np.cumsum([len(part) for part in parts])
    spans = np.stack([ends - [len(part) for part in parts], ends])
    out = np.full((slots.max() + 1, layout.gy, layout.gx, 2), 77, np.int16)
    data = np.frombuffer(b"".join(parts), np.uint8)
    table = np.zeros(len(rows), np.int64)
    native = importlib.import_module("mme_targets._cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_codec, "_native", lambda _: None if isa == "numpy" else native)
        if isa != "numpy":
            native.use_isa(isa)
        try:
            store_codec.decode_rows(
                data, spans, tables[None], table, rows, depth, slots, layout, out
            )
        finally:
            native.use_isa("")
    planes = np.zeros((*slots.shape, *out.shape[1:]), np.int16)
    planes[slots >= 0] = out
    return planes


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("step", [0.125, 0.1])
def test_every_decoder_inverts(
    rng: np.random.Generator, isa: str, stride: int, step: float
) -> None:
    """Smooth motion, whose points mostly do not change, and noise beyond what symbols hold."""
    if isa not in ["numpy", *importlib.import_module("mme_targets._cpu").isas()]:
        isa = "baseline"
    config = CONFIG.replace(flow_stride=stride, step=step)
    layout = Layout(stride, 8, step, HEIGHT // 8, WIDTH // 8)
    noise = rng.integers(-32000, 32000, (23, 3, HEIGHT // 8, WIDTH // 8, 2)).astype(np.int16)
    for whole in (smooth(rng, (HEIGHT // 8, WIDTH // 8), 23, config), noise):
        tables, parts = encoded(whole, layout)
        rows = np.arange(23)
        depth = np.minimum(rows // stride + 1, 3)
        known = np.arange(3) < depth[:, None]
        planes = decoded(isa, parts, tables, rows, depth, layout)
        assert np.array_equal(planes, np.where(known[..., None, None, None], whole, 0))
        # Of a start alone, the rows that its track reads, each to its plane.
        rows, depth = 7 + stride * np.arange(3), np.arange(1, 4)
        planes = decoded(isa, [parts[row] for row in rows], tables, rows, depth, layout)
        for plane, row in enumerate(rows):
            assert np.array_equal(planes[plane, plane], whole[row, plane])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", [(3, 520), (520, 3), (1, 1), (9, 9)])
def test_grids_of_any_size(rng: np.random.Generator, isa: str, grid: tuple[int, int]) -> None:
    """Beyond what sixteen bits address, and below what lanes hold; points move by many cells."""
    if isa not in ["numpy", *importlib.import_module("mme_targets._cpu").isas()]:
        isa = "baseline"
    layout = Layout(1, 8, 0.125, *grid)
    whole = rng.integers(-9, 9, (9, 3, *grid, 2)).astype(np.int16)
    whole[:, :, :, ::5] *= 200
    tables, parts = encoded(whole, layout)
    rows, depth = np.arange(9), np.minimum(np.arange(9) + 1, 3)
    planes = decoded(isa, parts, tables, rows, depth, layout)
    known = np.arange(3) < depth[:, None]
    assert np.array_equal(planes, np.where(known[..., None, None, None], whole, 0))


def test_rows_that_need_each_other_go_together(rng: np.random.Generator) -> None:
    """Many starts, a few rows apart: the rows of some share nothing with those of others."""
    layout = Layout(1, 8, 0.125, HEIGHT // 8, WIDTH // 8)
    whole = smooth(rng, (HEIGHT // 8, WIDTH // 8), 150, CONFIG)
    tables, parts = encoded(whole, layout)
    starts = np.sort(rng.choice(147, 40, replace=False))
    wanted = np.zeros(150, np.int64)
    for start in starts:
        for step in range(3):
            wanted[start + step] = max(wanted[start + step], step + 1)
    rows = np.flatnonzero(wanted)
    some = [parts[row] for row in rows]
    planes = decoded("", some, tables, rows, wanted[rows], layout)
    known = np.arange(3) < wanted[rows, None]
    assert np.array_equal(planes, np.where(known[..., None, None, None], whole[rows], 0))


def test_points_that_stand_on_a_pixel_cost_nothing(rng: np.random.Generator) -> None:
    """Flow read to the nearest pixel marks no row; where it is not so, all still comes back."""
    layout = Layout(1, 8, 0.125, HEIGHT // 8, WIDTH // 8)
    whole = smooth(rng, (HEIGHT // 8, WIDTH // 8), 40, CONFIG)
    _, parts = encoded(whole, layout)
    assert not any(part[3] & 128 for part in parts)
    apart = np.zeros_like(whole)
    apart[:, 2] = 1
    tables, marked = encoded(apart, layout)
    assert all(part[3] & 128 for part in marked[2:])
    rows, depth = np.arange(40), np.minimum(np.arange(40) + 1, 3)
    planes = decoded("", marked, tables, rows, depth, layout)
    assert np.array_equal(planes[2:], apart[2:])


def test_rows_are_encoded_the_same_in_pieces(rng: np.random.Generator) -> None:
    """What a row depends on is handed on from shard to shard."""
    layout = Layout(2, 8, 0.125, HEIGHT // 8, WIDTH // 8)
    whole = smooth(rng, (HEIGHT // 8, WIDTH // 8), 60, CONFIG.replace(flow_stride=2))
    tables, parts = encoded(whole[50:], layout, 50, whole[46:50])
    rows, depth = np.array([54, 56, 58]), np.array([1, 2, 3])
    planes = decoded("baseline", [parts[row - 50] for row in rows], tables, rows, depth, layout)
    assert [np.array_equal(planes[i, i], whole[row, i]) for i, row in enumerate(rows)] == [True] * 3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 6), st.integers(1, 11), st.data())
def test_codec_inverts(rows: int, length: int, gy: int, gx: int, data: st.DataObject) -> None:
    seed, size = data.draw(st.integers(0, 2**32)), data.draw(st.sampled_from([1, 30, 300, 32000]))
    whole = np.random.default_rng(seed).integers(-size, size, (rows, length, gy, gx, 2))
    whole = whole.astype(np.int16)
    layout = Layout(1, 8, 0.125, gy, gx)
    tables, parts = encoded(whole, layout)
    assert tables.shape == (CONTEXTS, 256)
    assert set(tables.sum(1)) <= {0, 1024}
    which, depth = np.arange(rows), np.minimum(np.arange(rows) + 1, length)
    known = (np.arange(depth.max()) < depth[:, None])[..., None, None, None]
    expected = np.where(known, whole[:, : depth.max()], 0)
    for isa in ("numpy", ""):
        found = decoded(isa, parts, tables, which, depth, layout)
        assert np.array_equal(found, expected)


def test_damaged_rows_do_no_harm(rng: np.random.Generator) -> None:
    """Checksums catch damage before; what comes past them ends in an error or in other numbers."""
    layout = Layout(1, 8, 0.125, HEIGHT // 8, WIDTH // 8)
    tables, parts = encoded(smooth(rng, (HEIGHT // 8, WIDTH // 8), 6, CONFIG), layout)
    rows, depth = np.arange(6), np.minimum(np.arange(6) + 1, 3)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decoded("", [part[:20] for part in parts], tables, rows, depth, layout)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decoded("", [part[:34] for part in parts], tables, rows, depth, layout)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decoded("", parts, tables + np.uint16(1), rows, depth, layout)
    for at in range(200):
        part = bytearray(parts[at % 6])
        part[int(rng.integers(len(part)))] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(ValueError):
            some = [*parts[: at % 6], bytes(part), *parts[at % 6 + 1 :]]
            decoded("", some, tables, rows, depth, layout)
