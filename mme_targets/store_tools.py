"""Looking after stores: an estimate of the work, what one holds, if it is whole, merging."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import atomic_path
from .store import Record, Store, StoreError
from .store_config import TrackConfig, differences
from .store_entry import Entry
from .store_extract import (
    Frames,
    digest_of,
    extract_frames,
    extract_video,
    extracted,
    read_video,
)
from .store_job import Item, damage, records
from .store_locks import Writer
from .video import VideoError, probe

__all__ = ["Estimate", "Summary", "estimate", "merge", "summary", "verify"]

_SHOWN = 20
"""Videos of a list that are named one by one."""


@dataclass(frozen=True)
class Estimate:
    """What extracting some videos will take.

    Attributes
    ----------
    videos, frames : how many; frames are counted in a sample.
    seconds : of one process, from pairs that were solved for it.
    bytes : on disk.
    unreadable : share of the sample that is no video.
    """

    videos: int
    frames: int
    seconds: float
    bytes: int
    unreadable: float


def estimate(
    config: TrackConfig, items: Sequence[Item], *, sample: int = 16, solved: int = 3, device: str
) -> Estimate:
    """Look at `sample` videos, evenly spread, and extract 24 frames from `solved` of them."""
    if not items:
        return Estimate(0, 0, 0.0, 0, 0.0)
    some = [items[i * len(items) // sample] for i in range(sample)]
    some = list(dict.fromkeys(some))
    counts, read, seconds, size = [], 0, 0.0, 0
    for item in some:
        try:
            info = probe(item.path)
            counts.append(info.frames)
            if read >= solved:
                continue
            whole = read_video(item.path, config.short_side)
            count = min(whole.count, 24)
            with tempfile.TemporaryDirectory() as folder:
                store = Store.create(Path(folder) / "store", config)
                begun = time.perf_counter()
                part = Frames(count, whole.fps, _first(whole.blocks, count))
                made = extract_frames(store, config, item.name, part, device=device)
                # Of a video of 24 frames a third is the zip's and the shards' own description.
                size_, took = max(made.bytes - 9000, 0), time.perf_counter() - begun
            pairs = max(1, count - config.flow_stride)
            seconds += took / pairs
            size += size_ // pairs
            read += 1
        except (VideoError, OSError):
            continue
    frames = sum(counts) * len(items) // max(1, len(some))
    return Estimate(
        videos=len(items),
        frames=frames,
        seconds=frames * seconds / max(1, read),
        bytes=frames * size // max(1, read) + 9000 * len(items),
        unreadable=1 - len(counts) / len(some),
    )


def _first(blocks: Iterable[torch.Tensor], count: int) -> Iterable[torch.Tensor]:
    left = count
    for block in blocks:
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return


@dataclass(frozen=True)
class Summary:
    """What a store holds: videos with tracks, those that failed, frames, seconds, bytes."""

    done: int
    failed: list[Record]
    frames: int
    seconds: float
    bytes: int
    complete: bool


def _held(store: Store) -> dict[str, Record]:
    """Settled videos by name, and those that training has put into a store as its cache."""
    known = records(store)
    listed = {store.file(name) for name in known}
    for path in store.files():
        if path not in listed:
            with suppress(StoreError, KeyError, TypeError, OSError), Entry(path) as entry:
                name = str(entry.about["name"])
                if store.file(name) == path:
                    known[name] = extracted(store, name)
    return known


def summary(store: Store) -> Summary:
    """Add up what a store holds, finished or not."""
    known = list(_held(store).values())
    done = [record for record in known if record.done]
    return Summary(
        done=len(done),
        failed=[record for record in known if not record.done],
        frames=sum(record.frames for record in done),
        seconds=sum(record.frames / record.fps for record in done if record.fps > 0),
        bytes=sum(record.bytes for record in done),
        complete=(store.path / "index.parquet").is_file() and not (store.path / "work").exists(),
    )


def verify(
    store: Store,
    *,
    sources: Mapping[str, str] | None = None,
    config: TrackConfig | None = None,
    sample: int = 0,
    device: str = "cpu",
    progress: Callable[[int], Any] | None = None,
) -> list[str]:
    """Read a whole store, and recompute some of it; returns what is wrong, a line each.

    Every entry must be there, be as long and have the digest that was recorded, decode, and hold
    one start a frame.

    Parameters
    ----------
    sources : path of each video by name; where given, their sizes and frame counts must be those
        recorded, and none of them may be missing.
    config : what the store was made with; needed by `sample`.
    sample : so many videos, evenly spread, are extracted anew and compared.
    progress : called with 1 for each video.
    """
    wrong: list[str] = []
    every = _held(store)
    known = [record for record in every.values() if record.done]
    for record in known:
        wrong += [f"{record.name}: {line}" for line in _wrong(store, record)]
        if sources is not None:
            wrong += [f"{record.name}: {line}" for line in _moved(record, sources)]
        if progress is not None:
            progress(1)
    named = {store.file(record.name) for record in known}
    wrong += [f"{path} is in no list" for path in store.files() if path not in named]
    absent = [name for name in sources or () if name not in every]
    wrong += [f"{name}: is in the list, but was not extracted" for name in absent[:_SHOWN]]
    if len(absent) > _SHOWN:
        wrong.append(f"{len(absent) - _SHOWN} more are in the list, but were not extracted")
    if sample:
        if sources is None or config is None:
            raise ValueError("sample needs the list of videos, to compute them again")
        store.check(config.described())
        there = [r for r in known if os.path.isfile(sources.get(r.name, ""))]
        if not there:
            raise ValueError("not one video of the store is where the list says: none to compare")
        chosen = {i * len(there) // sample: None for i in range(sample)}
        for place in chosen:
            record = there[place]
            line = _other(store, config, record, sources[record.name], device)
            wrong += [f"{record.name}: {line}"] if line else []
            if progress is not None:
                progress(1)
    return wrong


def _wrong(store: Store, record: Record) -> list[str]:
    path = store.file(record.name)
    try:
        size = path.stat().st_size
    except OSError:
        return ["its tracks are missing"]
    if size != record.bytes:
        return [f"its tracks are {size} bytes; {record.bytes} were written"]
    if digest_of(path) != record.digest:
        return ["its tracks have another digest than was recorded"]
    found = damage(store, record.name)
    if found:
        return [found]
    with store.entry(record.name) as entry:
        held = (entry.frames, entry.height, entry.width)
    said = (record.frames, record.height, record.width)
    return [] if held == said else [f"frames, height and width are {held}; recorded were {said}"]


def _moved(record: Record, sources: Mapping[str, str]) -> list[str]:
    path = sources.get(record.name)
    if path is None:
        return ["is not in the list"]
    try:
        size, frames = os.path.getsize(path), probe(path).frames
    except (OSError, VideoError) as error:
        return [f"its video cannot be read: {error}"]
    wrong = []
    if size != record.source_bytes:
        wrong.append(f"its video has {size} bytes now; it had {record.source_bytes}")
    if frames != record.frames:
        wrong.append(f"its video has {frames} frames; {record.frames} have tracks")
    return wrong


def _other(store: Store, config: TrackConfig, record: Record, path: str, device: str) -> str:
    """How an entry differs from one made now; empty where it does not."""
    with tempfile.TemporaryDirectory() as folder:
        again = Store.create(Path(folder) / "store", config)
        try:
            made = extract_video(again, config, record.name, path, device=device)
        except (VideoError, ValueError) as error:
            return f"cannot be extracted now: {error}"
        if made.digest == record.digest:
            return ""
        with store.entry(record.name) as a, again.entry(record.name) as b:
            if (a.frames, a.height, a.width) != (b.frames, b.height, b.width):
                return "has other frames than its video now"
            most = unlike = 0
            for at in range(0, a.frames, 64):
                some = range(at, min(at + 64, a.frames))
                gap = np.abs(
                    a.tracks(some).displacements.astype(int) - b.tracks(some).displacements
                )
                most, unlike = max(most, int(gap.max())), unlike + int((gap > 0).sum())
    if not unlike:
        return ""  # made by other versions, with equal tracks
    return f"computed again, {unlike} values differ, by up to {most * config.step:g} px"


def merge(out: str | os.PathLike[str], parts: Sequence[str | os.PathLike[str]]) -> Store:
    """Make one store of several; entries are copied, and those there are left.

    Raises
    ------
    StoreError
        If configs differ, if two hold different tracks under one name, or a part is damaged.
    """
    stores = [Store(part) for part in parts]
    if not stores:
        raise ValueError("parts is empty; must name at least one store")
    for store in stores[1:]:
        found = differences(stores[0].config, store.config)
        if found:
            raise StoreError(f"{store.path} differs from {stores[0].path}: {'; '.join(found)}")
    target = _target(Path(out), stores[0])
    with Writer(target.path / "work", (0, 1)):
        known = records(target)
        for store in stores:
            for name, record in _held(store).items():
                held = known.get(name)
                if held is None or (record.done and not held.done):
                    if record.done:
                        _copy(store, target, record)
                    known[name] = record
                elif record.done and held.digest != record.digest:
                    raise StoreError(f"{store.path} and another hold different tracks of {name!r}")
        target.write_index(list(known.values()))
        for journal in (target.path / "work").glob("settled-*.jsonl"):
            journal.unlink()
    shutil.rmtree(target.path / "work", ignore_errors=True)
    return target


def _target(out: Path, first: Store) -> Store:
    if (out / "zarr.json").is_file():
        store = Store(out)
        store.check(first.config)
        return store
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is no store of tracks")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "zarr.json") as beside:
        shutil.copyfile(first.path / "zarr.json", beside)
    return Store(out)


def _copy(store: Store, target: Store, record: Record) -> None:
    source, path = store.file(record.name), target.file(record.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as beside:
        try:
            shutil.copyfile(source, beside)
        except FileNotFoundError:
            raise StoreError(f"{store.path}: the tracks of {record.name!r} are missing") from None
        if digest_of(beside) != record.digest:
            raise StoreError(f"{source} is damaged: it has another digest than was recorded")
