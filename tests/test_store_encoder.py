"""Rows of a store are encoded to the same bytes on every instruction set and in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import smooth

from mme_targets import _cpu, store_codec
from mme_targets.store import TrackConfig
from mme_targets.store_codec import CONTEXTS, ESCAPE, Layout, encode_rows
from mme_targets.store_context import VALUES
from mme_targets.store_writer import EntryWriter

Encoded = tuple[np.ndarray, list[bytes]]
CONFIG = TrackConfig(flow="dis", camera_motion=False, length=5)
INT16 = np.iinfo(np.int16)


def in_numpy(rows: np.ndarray, before: np.ndarray, first: int, layout: Layout) -> Encoded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_codec, "_native", lambda _: None)
        return encode_rows(rows, before, first, layout)


def agreed(whole: np.ndarray, layout: Layout, first: int = 0) -> Encoded:
    """Tables and bytes of rows that follow the ones they need, which every encoder gives."""
    reach = (whole.shape[1] - 1) * layout.stride
    before, rows = whole[:reach], whole[reach:]
    tables, data = in_numpy(rows, before, first, layout)
    for isa in _cpu.isas():
        _cpu.use_isa(isa)
        try:
            found = encode_rows(rows, before, first, layout)
        finally:
            _cpu.use_isa("")
        assert found[0].dtype == tables.dtype
        assert np.array_equal(found[0], tables), isa
        assert found[1] == data, isa
    return tables, data


def marked(data: list[bytes]) -> list[bool]:
    return [bool(row[3] & 128) for row in data]


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [0.125, 0.1, 1.0])
def test_smooth_motion(rng: np.random.Generator, stride: int, step: float) -> None:
    """Points that stand and points that do not, of steps that sixteen bits hold and do not."""
    config = CONFIG.replace(flow_stride=stride, step=step)
    whole = smooth(rng, (11, 13), 70, config)
    layout = Layout(stride, 8, step, 11, 13)
    agreed(whole, layout)
    whole[:, :, 5] = 0
    whole[40:, 4, 5, 7] = 1  # a point that stands on its pixel, seen at the last plane
    _, data = agreed(whole, layout)
    assert step != 0.125 or 0 < sum(marked(data)) < len(data)


@pytest.mark.parametrize("first", [0, 1, 3, 1000])
@pytest.mark.parametrize("length", [1, 2, 8])
def test_planes_that_no_track_reaches_are_left_out(
    rng: np.random.Generator, first: int, length: int
) -> None:
    layout = Layout(2, 8, 0.125, 3, 5)
    whole = rng.integers(-40, 40, ((length - 1) * 2 + 9, length, 3, 5, 2)).astype(np.int16)
    _, data = agreed(whole, layout, first)
    reach = (length - 1) * 2
    whole[:reach][np.arange(-reach, 0) + first < 0] = INT16.min  # of any content before row 0
    assert agreed(whole, layout, first)[1] == data
    if reach and first > 0:
        whole[reach - 1 : reach] += 1
        assert agreed(whole, layout, first)[1] != data


@pytest.mark.parametrize("grid", [(1, 1), (1, 37), (37, 1), (9, 8), (3, 520), (520, 3), (2, 512)])
@pytest.mark.parametrize("size", [2, 160, 32767])
def test_grids_of_any_size(rng: np.random.Generator, grid: tuple[int, int], size: int) -> None:
    """Tracks that go from one side to the other, and that stop 32000 steps from their point."""
    whole = rng.integers(-size - 1, size + 1, (9, 4, *grid, 2)).astype(np.int16)
    whole[:, :, ::2] = whole[:, :1, ::2]
    agreed(whole, Layout(1, 8, 0.125, *grid), first=5)


def test_numbers_at_the_ends(rng: np.random.Generator) -> None:
    """Of what symbols and int16 hold: sums and differences wrap around."""
    ends = [INT16.min, INT16.max, -32000, 32000, -16385, 16384, -129, -128, -127, 127, 128, 0, 0, 0]
    whole = rng.choice(ends, (40, 5, 6, 7, 2)).astype(np.int16)
    for step, grid in ((0.125, 8), (16, 1), (1 / 256, 256), (0.001, 3)):
        _, data = agreed(whole, Layout(1, grid, step, 6, 7), first=9)
    assert any(marked(data))


def test_rows_that_show_their_mark_late(rng: np.random.Generator) -> None:
    """What was listed of the planes before is listed anew, numbers of escapes as well."""
    layout = Layout(1, 8, 0.125, 6, 9)
    whole = np.zeros((30, 5, 6, 9, 2), np.int16)
    whole[:, 0] = rng.integers(-900, 900, (30, 1, 1, 2))  # to the next pixel and beyond
    whole[:, 0, 2:4] = 0
    whole[:, 1:] = whole[:, :1] + 300 * rng.integers(0, 2, (30, 4, 6, 9, 2))
    whole[:, 1:, 2:4] = 0
    whole[::2, 4, 3, 8, 1] = 200  # a point that has stood all the time
    _, data = agreed(whole, layout, first=100)
    assert set(marked(data)) == {False, True}


def test_rare_symbols_are_escaped(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a table has no place for, beside those that it cannot have."""
    rare = []
    frequencies = store_codec.frequencies

    def seen(counts: np.ndarray, escape: int | None) -> np.ndarray:
        table = frequencies(counts, escape)
        rare.append(int(counts[table == 0].sum()))
        return table

    monkeypatch.setattr(store_codec, "frequencies", seen)
    whole = np.zeros((44, 2, 24, 24, 2), np.int16)
    whole[:, 1] = 1
    for plane in (0, 1):
        places = rng.integers(0, 24, (2, 30))
        whole[rng.integers(1, 44, 30), plane, places[0], places[1], 0] += rng.integers(2, 400, 30)
    tables, data = agreed(whole, Layout(1, 8, 0.125, 24, 24), first=1)
    assert all(marked(data))
    assert rare[0] > 10  # of residuals
    assert rare[VALUES] > 10
    assert tables[0, ESCAPE]
    assert tables[VALUES, ESCAPE]


@pytest.mark.parametrize("count", [1, 256])
def test_a_shard_of_few_and_of_many_rows(rng: np.random.Generator, count: int) -> None:
    whole = smooth(rng, (4, 6), count + 4, CONFIG)
    _, data = agreed(whole, Layout(1, 8, 0.125, 4, 6), first=256)
    assert len(data) == count


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 8), st.integers(1, 4), st.integers(1, 7), st.integers(1, 19),
    st.sampled_from([1, 8, 100]), st.sampled_from([0.125, 0.5, 0.3, 1.0, 16.0]), st.data(),
)  # fmt: skip
def test_every_encoder_agrees(
    count: int, length: int, stride: int, gy: int, gx: int, grid: int, step: float,
    data: st.DataObject,
) -> None:  # fmt: skip
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = data.draw(st.sampled_from([1, 30, 300, 32767]))
    shape = ((length - 1) * stride + count, length, gy, gx, 2)
    whole = rng.integers(-size - 1, size + 1, shape)
    share = data.draw(st.sampled_from([0, 0.02, 1]))  # of what differs from plane to plane
    whole = np.where(rng.random(shape) < share, whole, whole[:, :1]).astype(np.int16)
    first = data.draw(st.integers(0, 20))
    agreed(whole, Layout(stride, grid, step, gy, gx), first)


def test_what_cannot_be_encoded_is_refused() -> None:
    layout = Layout(2, 8, 0.125, 3, 4)
    rows = np.ones((5, 3, 3, 4, 2), np.int16)
    for encoder in (encode_rows, in_numpy):
        with pytest.raises(ValueError, match="before holds 3 rows; must be 4"):
            encoder(rows, rows[:3], 0, layout)
    tables, _ = encode_rows(rows, rows[:4], 0, layout)
    counts = np.zeros((CONTEXTS, 256), np.int64)
    encoder = _cpu.TrackEncoder(
        rows.ctypes.data, 5, rows.ctypes.data, 4, 0, 3, 2, 3, 4, layout.scale, layout.cells,
        layout.half, counts.ctypes.data,
    )  # fmt: skip
    assert len(encoder.encoded(tables.ctypes.data)) == 5
    for wrong in (tables * 0, tables + np.uint16(1), tables // 2):
        with pytest.raises(ValueError, match="cannot be encoded"):
            encoder.encoded(wrong.ctypes.data)


def test_what_older_sources_built_lacks_is_done_in_numpy() -> None:
    assert store_codec._native("encode_rows_of_tomorrow") is None
    assert store_codec._native("TrackEncoder") is _cpu


@pytest.mark.parametrize("stride", [1, 3])
def test_files_are_the_same(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    """Of more than two shards, given at once and block by block."""
    config, frames = CONFIG.replace(flow_stride=stride), 530
    rows = smooth(rng, (3, 4), frames, config)
    moves = np.zeros((frames, 5, 3, 4, 2), np.float32)
    for step in range(5):  # each start's, from the rows that it reads
        moves[: frames - step * stride, step] = rows[step * stride :, step] * config.step
    seen = np.full((frames, 3, 4), 5, np.uint8)
    cameras = np.tile(np.eye(3), (frames - stride, 1, 1))

    def written(name: str, block: int) -> bytes:
        writer = EntryWriter(config, frames, 24, 32)
        for at in range(0, frames, block):
            some = slice(at, at + block)
            writer.add(moves[some], seen[some], cameras[some])
        writer.finish(tmp_path / name, {"name": "v"})
        return (tmp_path / name).read_bytes()

    native = written("a.zip", 16)
    assert written("b.zip", frames) == native
    monkeypatch.setattr(store_codec, "_native", lambda _: None)
    assert written("c.zip", 97) == native
