"""The format of a store: what goes in comes out, by range, and damage is noticed."""

from __future__ import annotations

import itertools
import json
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from mme_targets import ConfigError, TargetConfig
from mme_targets.store import Record, Store, StoreError, TrackConfig
from mme_targets.store_codec import CONTEXTS, Layout, decode_planes, quantise
from mme_targets.store_config import differences
from mme_targets.store_entry import Entry
from mme_targets.store_shards import Shards
from mme_targets.store_writer import EntryWriter

CONFIG = TrackConfig(flow="dis", camera_motion=False, length=3)
HEIGHT, WIDTH = 40, 56


class Content:
    """Random tracks of a video; displacements are whole steps and reach the bound."""

    def __init__(self, frames: int, config: TrackConfig = CONFIG, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        gy, gx = HEIGHT // 8, WIDTH // 8
        shape = (frames, config.length, gy, gx, 2)
        limit = int(config.bound / config.step)
        whole = np.rint(rng.normal(0, limit / 3, shape)).clip(-limit, limit).astype(np.int16)
        pairs = max(0, frames - config.flow_stride)
        row = np.arange(frames)[:, None] + np.arange(config.length) * config.flow_stride
        whole[row >= pairs] = 0  # past the video's end
        self.frames, self.config, self.whole = frames, config, whole
        self.in_view = rng.integers(0, config.length + 1, (frames, gy, gx)).astype(np.uint8)
        self.homographies = rng.normal(size=(pairs, 3, 3)).astype(np.float32)

    def write(self, path: Path, block: int = 7, **about: Any) -> Path:
        writer = EntryWriter(self.config, self.frames, HEIGHT, WIDTH)
        for at in range(0, self.frames, block):
            some = slice(at, at + block)
            moves = self.whole[some].astype(np.float32) * np.float32(self.config.step)
            writer.add(moves, self.in_view[some], self.homographies[some])
        writer.finish(path, {"name": "v", **about})
        return path


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 9, 300])
def test_what_is_written_is_read(tmp_path: Path, frames: int, stride: int) -> None:
    content = Content(frames, CONFIG.replace(flow_stride=stride))
    with Entry(content.write(tmp_path / "v.zip", fps=25.0)) as entry:
        assert (entry.frames, entry.height, entry.width) == (frames, HEIGHT, WIDTH)
        assert entry.about["fps"] == 25.0
        found = entry.tracks(range(frames))
        assert np.array_equal(found.displacements, content.whole)
        assert np.array_equal(found.in_view, content.in_view)
        pairs = len(content.homographies)
        cameras = entry.homographies(range(pairs + 2))
        assert np.array_equal(cameras[:pairs], content.homographies)
        assert np.array_equal(cameras[pairs:], [np.eye(3)] * 2)


def test_a_range_and_fewer_steps(tmp_path: Path) -> None:
    content = Content(300)
    with Entry(content.write(tmp_path / "v.zip")) as entry:
        for starts in ([5], [253, 254, 255, 256, 257], [299, 0, 150], [7, 7], []):
            for length in (1, 2, None):
                found = entry.tracks(starts, length)
                assert np.array_equal(found.displacements, content.whole[starts, :length])
                assert np.array_equal(found.in_view, content.in_view[starts])
        assert entry.tracks([0], in_view=False).in_view is None


def test_no_more_is_read_than_the_chunks_of_the_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Content(1500).write(tmp_path / "v.zip", block=100)
    read: list[int] = []
    for name in ("_read", "_read_into"):
        whole = getattr(Shards, name)

        def counted(self: Shards, offset: int, size: int, *rest: Any, whole: Any = whole) -> Any:
            read.append(size)
            return whole(self, offset, size, *rest)

        monkeypatch.setattr(Shards, name, counted)
    with Entry(path) as entry:
        entry.tracks([700])
    assert sum(read) < path.stat().st_size / 5


def test_any_zarr_reader_opens_it(tmp_path: Path) -> None:
    """The arrays are what the module says; rows are decoded by the reference in NumPy."""
    content = Content(30)
    path = content.write(tmp_path / "v.zip")
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert group.metadata.zarr_format == 3
    data, (head,) = group["rows"][:].tobytes(), group["blocks"][:]
    ends = head[CONTEXTS:-1].reshape(-1).view("<u4")[:29]
    assert not head[-1].any()
    assert ends[-1] == len(data)
    parts = [data[begin:end] for begin, end in itertools.pairwise([0, *ends])]
    rows, depth = np.arange(29), np.minimum(np.arange(29) + 1, 3)
    tables = np.repeat(head[None, :CONTEXTS], 29, axis=0)
    planes = decode_planes(parts, tables, rows, depth, Layout(1, 8, 0.125, 5, 7))
    for start in range(27):
        for step in range(3):
            if start + step < 29:
                assert np.array_equal(planes[start + step, step], content.whole[start, step])
    assert np.array_equal(group["in_view"][:], content.in_view)
    assert np.array_equal(group["homographies"][:], content.homographies)


def test_the_same_tracks_give_the_same_bytes(tmp_path: Path) -> None:
    content = Content(260)
    first = content.write(tmp_path / "a.zip", block=260).read_bytes()
    assert content.write(tmp_path / "b.zip", block=11).read_bytes() == first


def test_quantisation_is_within_half_a_step(rng: np.random.Generator) -> None:
    values = rng.uniform(-20, 20, 10000).astype(np.float32)
    assert np.abs(quantise(values, 0.125) * 0.125 - values).max() <= 0.0625


def test_threads_write_the_same_bytes(tmp_path: Path) -> None:
    """How zarr lays its descriptions out is a setting of the whole process."""
    expected = Content(9).write(tmp_path / "alone.zip").read_bytes()
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(Content(9).write, (tmp_path / f"{i}.zip" for i in range(24))))
    assert all(path.read_bytes() == expected for path in paths)


def test_too_few_starts_are_refused(tmp_path: Path) -> None:
    content = Content(9)
    writer = EntryWriter(CONFIG, 10, HEIGHT, WIDTH)
    moves = content.whole.astype(np.float32) / 8
    writer.add(moves, content.in_view, content.homographies)
    with pytest.raises(StoreError, match="9 of 10 starts and 8 of 9 pairs"):
        writer.finish(tmp_path / "v.zip", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0, 10, 100, 0.3, 0.9, -1])
def test_a_truncated_file_is_noticed(tmp_path: Path, kept: float) -> None:
    path = Content(60).write(tmp_path / "v.zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(StoreError, match=r"v\.zip"):
        Entry(path)


def test_a_flipped_byte_anywhere_is_noticed(tmp_path: Path) -> None:
    """In chunks and indices, which hold the tracks."""
    content = Content(40)
    path = content.write(tmp_path / "v.zip")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as packed:
        shards = [i for i in packed.infolist() if "/c/" in i.filename]
    assert len(shards) == 4
    for info in shards:
        begin = info.header_offset + 30 + len(info.filename)
        for place in (begin + 3, begin + info.file_size - 3):
            data[place] ^= 0x10
            path.write_bytes(data)
            with Entry(path) as entry, pytest.raises(StoreError, match="damaged"):
                _ = entry.tracks(range(40)), entry.homographies(range(39))
            data[place] ^= 0x10


def test_other_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as file:
        file.writestr("zarr.json", json.dumps({"attributes": {}}))
    with pytest.raises(StoreError, match="damaged or no tracks"):
        Entry(tmp_path / "v.zip")
    with pytest.raises(FileNotFoundError):
        Entry(tmp_path / "none.zip")


def test_starts_and_lengths_outside_are_refused(tmp_path: Path) -> None:
    with Entry(Content(20).write(tmp_path / "v.zip")) as entry:
        with pytest.raises(IndexError, match="span 3 to 20"):
            entry.tracks([3, 20])
        with pytest.raises(IndexError, match="span -1"):
            entry.tracks([-1])
        with pytest.raises(StoreError, match="length is 4"):
            entry.tracks([0], 4)


# --- the folder -----------------------------------------------------------------------------------


def test_store_is_found_by_name_and_pickles(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", CONFIG)
    path = store.file("a/b c.mp4")
    path.parent.mkdir(parents=True)
    Content(9).write(path, name="a/b c.mp4", config=store.config)
    again = pickle.loads(pickle.dumps(Store(tmp_path / "store")))
    assert "a/b c.mp4" in again
    assert "other" not in again
    with again.entry("a/b c.mp4") as entry:
        assert entry.frames == 9
    with pytest.raises(KeyError):
        again.entry("other")
    assert list(again.files()) == [path]


def test_an_entry_of_another_video_or_config_is_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", CONFIG)
    path = store.file("v")
    path.parent.mkdir(parents=True)
    Content(9).write(path, name="w")
    with pytest.raises(StoreError, match="it is of 'w'"):
        store.entry("v")
    Content(9, CONFIG.replace(bound=10.0)).write(path)
    with pytest.raises(StoreError, match=r"bound is 20\.0 there, 10\.0 here"):
        store.entry("v")


def test_index_keeps_order_and_bytes(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", CONFIG)
    records = [Record("z", frames=3, fps=29.97, digest="d"), Record("a", reason="no video")]
    store.write_index(records)
    assert store.index() == records
    before = (store.path / "index.parquet").read_bytes()
    store.write_index(records)
    assert (store.path / "index.parquet").read_bytes() == before
    assert [record.done for record in records] == [True, False]


def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", CONFIG)
    Store.create(tmp_path / "store", CONFIG.replace(tvl1={"warps": 9}))  # not read by DIS
    with pytest.raises(StoreError, match=r"another config: length is 3 there, 6 here"):
        Store.create(tmp_path / "store", CONFIG.replace(length=6))
    with pytest.raises(StoreError, match=r"tvl1 is not read there"):
        Store.create(tmp_path / "store", CONFIG.replace(flow="tvl1"))


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no store of tracks"):
        Store(tmp_path)
    (tmp_path / "x").touch()
    with pytest.raises(FileExistsError, match="is no store"):
        Store.create(tmp_path, CONFIG)
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(StoreError, match="describes no store"):
        Store(tmp_path)
    about = {"attributes": {"mme_tracks": {"format": 99, "config": {}}}}
    (tmp_path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(StoreError, match="format 99; this version reads 2"):
        Store(tmp_path)


# --- the config -----------------------------------------------------------------------------------


def test_track_config_is_that_of_the_targets(tmp_path: Path) -> None:
    targets = TargetConfig.paper(interpolate=False, length=4)
    config = TrackConfig.of(targets, short_side=240)
    assert (config.flow_stride, config.length, config.short_side) == (4, 4, 240)
    assert config.tvl1 == targets.tvl1
    assert "weights" not in config.described()
    with pytest.raises(ConfigError, match="length is 0"):
        TrackConfig.of(TargetConfig.paper(length=0, targets=("hog",)))
    with pytest.raises(ConfigError, match="step"):
        TrackConfig(bound=1000, step=0.01)
    (tmp_path / "w").write_bytes(b"x")
    raft = TrackConfig(flow="raft", weights=str(tmp_path / "w")).described()
    assert raft["weights"].startswith("sha256:2d711642")


def test_differences_are_named_within() -> None:
    a = TrackConfig().described()
    b = TrackConfig(tvl1={"warps": 5}).described()
    assert differences(a, b) == ["tvl1.warps is 3 there, 5 here"]
    assert differences(a, a) == []
