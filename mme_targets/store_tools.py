"""Looking after stores: what one holds, if it is whole, merging."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import atomic_path
from .store import Record, Store, StoreError
from .store_config import TrackConfig, differences
from .store_entry import Entry
from .store_extract import digest_of, extract_video, extracted
from .store_job import damage
from .store_journal import records
from .store_locks import Writer
from .video import VideoError, probe

__all__ = ["Summary", "finished", "merge", "size_text", "summary", "unsettled", "verify"]

_SHOWN = 20
"""Videos of a list that are named one by one."""


def size_text(count: float) -> str:
    """Bytes in three digits, in powers of 1000: "812 bytes", "58.1 kB", "1.23 GB"."""
    if count < 999.5:
        return f"{count:.0f} byte{'' if round(count) == 1 else 's'}"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:,.{digits}f} {unit}"


@dataclass(frozen=True)
class Summary:
    """What a store holds: videos with tracks, those that failed, those whose file is cut short
    (with tracks of what is left), frames, seconds, bytes; complete where its list is settled to the
    end, be it that videos failed.
    """

    done: int
    failed: list[Record]
    short: list[Record]
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
        short=[record for record in known if record.short],
        frames=sum(record.frames for record in done),
        seconds=sum(record.frames / record.fps for record in done if record.fps > 0),
        bytes=sum(record.bytes for record in done),
        complete=finished(store),
    )


def finished(store: Store) -> bool:
    """Whether the list that was extracted into a store is settled to its end."""
    return (store.path / "index.parquet").is_file() and not (store.path / "work").exists()


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
    sources : path of each video by name; where given, their sizes, digests and frame counts must be
        those recorded, and none of them may be missing.
    config : what the store is held to be made with, compared before anything is read; by default
        what it says itself. RAFT's weights, of which it has but the digest, `sample` needs in it.
    sample : so many videos, evenly spread, are extracted anew and compared; needs `sources`.
    device : where they are. A store does not say where it was made, and another device may round
        some values otherwise.
    progress : called with 1 for each video that was read, and for each that was compared.

    Raises
    ------
    StoreError
        If the store has another config, or tracks to be compared were not computed but taken in.
    ValueError
        If `sample` videos cannot be extracted: no list, or none of its videos is there; no weights.
    """
    if config is None and sample:
        config = TrackConfig.of_described(store.config)
    if config is not None:
        store.check(config.described())
    if sample < 0:
        raise ValueError(f"sample is {sample}; must be 0 or more")
    if sample and sources is None:
        raise ValueError("sample needs the list of videos, to compute them again")
    every = _held(store)
    known = [record for record in every.values() if record.done]
    chosen = _chosen(store, known, sources, sample) if sample and sources is not None else []
    wrong: list[str] = []
    damaged: set[str] = set()
    for record in known:
        found = _wrong(store, record)
        if found:
            damaged.add(record.name)
        if sources is not None:
            found += _moved(store, record, sources)
        wrong += [f"{record.name}: {line}" for line in found]
        if progress is not None:
            progress(1)
    named = {store.file(record.name) for record in known}
    wrong += [_unnamed(path) for path in store.files() if path not in named]
    absent = [name for name in sources or () if name not in every]
    wrong += [f"{name}: is in the list, but was not extracted" for name in absent[:_SHOWN]]
    if len(absent) > _SHOWN:
        wrong.append(f"{len(absent) - _SHOWN} more are in the list, but were not extracted")
    for record in chosen:
        if record.name in damaged:
            continue
        assert config is not None
        assert sources is not None
        line = _other(store, config, record, sources[record.name], device)
        wrong += [f"{record.name}: {line}"] if line else []
        if progress is not None:
            progress(1)
    return wrong


def _chosen(
    store: Store, known: list[Record], sources: Mapping[str, str], sample: int
) -> list[Record]:
    """Records whose videos are to be extracted anew."""
    there = [r for r in known if os.path.isfile(sources.get(r.name, ""))]
    if not there:
        raise ValueError("not one video of the store is where the list says: none to compare")
    places = dict.fromkeys(i * len(there) // sample for i in range(sample))
    chosen = [there[place] for place in places]
    for record in chosen:
        origin = ""
        with suppress(StoreError, KeyError, OSError), store.entry(record.name) as entry:
            origin = entry.about.get("imported", "")
        if origin:
            raise StoreError(
                f"{store.path}: tracks of {record.name!r} were taken in from {origin}, not "
                "computed here: sample cannot compare them"
            )
    return chosen


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


def _unnamed(path: Path) -> str:
    """What is wrong with an entry that belongs to no video."""
    try:
        Entry(path).close()
    except (StoreError, OSError) as error:
        return str(error)
    return f"{path} is in no list"


def _moved(store: Store, record: Record, sources: Mapping[str, str]) -> list[str]:
    path = sources.get(record.name)
    if path is None:
        return ["is not in the list"]
    try:
        size, frames, digest = os.path.getsize(path), probe(path).frames, digest_of(path)
    except (OSError, VideoError) as error:
        return [f"its video cannot be read: {error}"]
    wrong = []
    if size != record.source_bytes:
        wrong.append(f"its video has {size} bytes now; it had {record.source_bytes}")
    elif record.source_digest and digest != record.source_digest:
        wrong.append(
            "its video is another one now, of as many bytes: once "
            f"{store.file(record.name)} is removed, mme extract makes its tracks anew"
        )
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
            if _shape(a) != _shape(b):
                return "has other frames than its video now"
            unlike, most = _apart(a, b)
    if not unlike:
        return ""  # made by other versions, with equal tracks
    return f"computed again, {unlike} values differ, by up to {most * config.step:g} px"


def _shape(entry: Entry) -> tuple[int, int, int]:
    return entry.frames, entry.height, entry.width


def _apart(a: Entry, b: Entry) -> tuple[int, int]:
    """How many displacements of two entries of one shape differ, and by how many steps at most."""
    most = unlike = 0
    for at in range(0, a.frames, 64):
        some = range(at, min(at + 64, a.frames))
        gap = np.abs(a.tracks(some).displacements.astype(int) - b.tracks(some).displacements)
        most, unlike = max(most, int(gap.max())), unlike + int((gap > 0).sum())
    return unlike, most


def _alike(one: Store, other: Store, name: str) -> bool:
    """Whether two stores hold equal tracks of a video, be it that other versions made them."""
    with one.entry(name) as a, other.entry(name) as b:
        return (
            _shape(a) == _shape(b)
            and a.about.get("source") == b.about.get("source")
            and not _apart(a, b)[0]
        )


def unsettled(stores: Sequence[Store]) -> list[str]:
    """What is known of videos that were left when stores were extracted, a line each.

    Of a store that is not finished, and of which there is no line, this cannot be told without the
    list: it holds one part of several, or training filled it, or it was merged of such.
    """
    lines: list[str] = []
    parts: set[tuple[int, int]] = set()
    divided = True
    for store in (store for store in stores if not finished(store)):
        work = store.path / "work"
        begun = {_part(path) for path in work.glob("settled-*-of-*.jsonl")}
        held = sorted(_part(path) for path in work.glob("writer-*-of-*.lock"))
        if held:
            runs = ", ".join(f"{i}/{n}" for i, n in held)
            lines.append(f"{store.path}: the run of part {runs} was killed, or is still going on")
        elif any(begun >= {(i, n) for i in range(n)} for _, n in begun):
            lines.append(f"{store.path}: videos of its list are left")
        parts |= begun
        divided &= bool(begun)  # else it may hold parts that were merged, which leave no trace
    for count in sorted({n for _, n in parts}) if divided else ():
        gone = [f"{i}/{count}" for i in range(count) if (i, count) not in parts]
        if gone:
            lines.append(f"part {', '.join(gone)} of the list was extracted to none of the stores")
    return lines


def _part(path: Path) -> tuple[int, int]:
    """I and n of the name of a journal or a lock."""
    _, i, _, n = path.stem.split("-")
    return int(i), int(n)


def merge(
    out: str | os.PathLike[str],
    parts: Sequence[str | os.PathLike[str]],
    *,
    names: Sequence[str] | None = None,
) -> Store:
    """Make one store of several; entries are copied, and those there are left.

    What comes of it is finished if every part was; else its index has what is settled, and its
    folder `work` stays, as while it is extracted: `ExtractJob` goes on with it.

    Parameters
    ----------
    out : a new store, or one to merge into.
    names : of all videos that there are to be, where they are known: it is finished if these are
        settled, whatever the parts were, and its index has their order.

    Raises
    ------
    StoreError
        If configs differ, if two hold different tracks under one name, or a part is damaged. (Equal
        tracks of equal videos that other versions made are not different: those there are stay.)
    """
    stores = [Store(part) for part in parts]
    if not stores:
        raise ValueError("parts is empty; must name at least one store")
    for store in stores[1:]:
        found = differences(stores[0].config, store.config)
        if found:
            raise StoreError(f"{store.path} differs from {stores[0].path}: {'; '.join(found)}")
    target = _target(Path(out), stores[0])
    whole, had = all(finished(store) for store in stores), finished(target)
    brought: set[str] = set()
    with Writer(target.path / "work", (0, 1)):
        known = _held(target)
        before = set(known)
        for store in stores:
            for name, record in _held(store).items():
                brought.add(name)
                held = known.get(name)
                if held is None or (record.done and not held.done):
                    if record.done:
                        _copy(store, target, record)
                    known[name] = record
                elif (
                    record.done and held.digest != record.digest and not _alike(store, target, name)
                ):
                    raise StoreError(f"{store.path} and another hold different tracks of {name!r}")
        if names is None:
            # A new store, or one of these parts merged before they were finished, has no more.
            complete = whole and (had or before <= brought)
            complete |= had and brought <= before  # it stays as it was
            settled = list(known.values())
        else:
            complete = all(name in known for name in names)
            order = {name: place for place, name in enumerate(names)}
            settled = [known[n] for n in sorted(known, key=lambda n: (order.get(n, len(order)), n))]
        target.write_index(settled)
        for journal in (target.path / "work").glob("settled-*.jsonl"):
            journal.unlink()
    if complete:
        shutil.rmtree(target.path / "work", ignore_errors=True)
    return target


def _target(out: Path, first: Store) -> Store:
    if (out / "zarr.json").is_file():
        store = Store(out)
        store.check(first.config)
        return store
    Store.check_place(out)
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
