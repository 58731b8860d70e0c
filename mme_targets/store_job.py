"""The job of extracting a list of videos: what is done, failed and left, and nothing done twice.

A journal gets one line a settled video, after its entry is in place; so a job that is killed loses
the videos in flight at most. An entry without a line (killed between the two) is taken over if it
is whole. When every video of the list is settled, the journals become the index and are removed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .ahead import Ahead
from .store import Record, Store, StoreError
from .store_config import TrackConfig
from .store_extract import Writing, begin_frames, digest_of, extracted, open_video, several
from .store_journal import Journal, records
from .store_locks import Writer
from .store_tracks import Frames, Seconds
from .video import VideoError

__all__ = ["ExtractJob", "Item", "Report", "damage"]


UNUSABLE = (VideoError, ValueError, FileNotFoundError)
"""What is one video's own trouble."""


class Item(NamedTuple):
    """A video of the list: its name in the store, and where it is."""

    name: str
    path: str


@dataclass
class Report:
    """What a run did, and what is left over all parts.

    Attributes
    ----------
    made : videos extracted by this run.
    failed : name and reason of every video of the list that failed.
    short : name of every video with tracks whose file is cut short, and how.
    done, left : videos of the list with tracks, and unsettled.
    pairs : flows solved by this run.
    bytes : of the entries that it wrote.
    seconds : where its time went.
    """

    made: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    short: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    left: int = 0
    pairs: int = 0
    bytes: int = 0
    seconds: Seconds = field(default_factory=Seconds)


class ExtractJob:
    """Extract the tracks of a list of videos into a store.

    Parameters
    ----------
    out : the store's folder; made when the job runs.
    config : the constants.
    items : the videos; names must differ.
    shard : (i, n): videos i, i + n, i + 2n, … alone. All parts together make the whole store.
    device : where flow and tracks are computed.
    retry : try those again that failed before, and those whose tracks are not those that were
        written (all that there are are read).
    have : folder of tracks or flow that others computed, to be taken in (`foreign_tracks`); empty:
        they are computed here.
    bound : px that a byte of 255 stands for in flow that is stored as bytes.

    Raises
    ------
    ValueError
        For names that occur twice, an empty list, a part that does not exist, or a bound that is
        not more than 0.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        config: TrackConfig,
        items: Sequence[Item],
        *,
        shard: tuple[int, int] = (0, 1),
        device: str = "cpu",
        retry: bool = False,
        have: str = "",
        bound: float = 20.0,
    ) -> None:
        if not items:
            raise ValueError("the list names no video")
        twice = _duplicates([item.name for item in items])
        if twice:
            more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
            raise ValueError(
                f"the list of videos names twice or more: {', '.join(twice[:5])}{more}; "
                "a store holds one video by a name"
            )
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard is {shard[0]}/{shard[1]}; must be i/n with 0 <= i < n")
        if have:
            from .foreign_tracks import check_bound

            check_bound(bound)
        self.out, self.config, self.items = Path(out), config, list(items)
        self.shard, self.device, self.retry = shard, device, retry
        self.have, self.bound = have, bound

    def left(self) -> list[Item]:
        """Videos of this part that are not settled, as the store is now."""
        if not (self.out / "zarr.json").is_file():
            return self._mine()
        store = Store(self.out)
        store.check(self.config.described())
        return self._open_of(store, records(store))

    def run(
        self,
        *,
        pairs: Callable[[int], Any] | None = None,
        video: Callable[[Record], Any] | None = None,
        many: Many | None = None,
    ) -> Report:
        """Do what is left.

        Parameters
        ----------
        pairs : called with the number of flows that were solved, as they are.
        video : called with each video that is settled.
        many : extracts videos elsewhere and yields their records (`store_ray`); by default one
            after the other here.

        Raises
        ------
        StoreError
            If another run writes this part, or the store has another config.
        OSError
            If the store cannot be written: what was settled stays so.
        """
        report = Report()

        def counted(count: int) -> None:
            report.pairs += count
            if pairs is not None:
                pairs(count)

        store = Store.create(self.out, self.config)
        work = self.out / "work"
        with Writer(work, self.shard):
            if self.shard[1] == 1:  # else others may be writing theirs
                _sweep(self.out)
            known = records(store)
            todo = self._open_of(store, known)
            for item in todo:
                _remove_other(store, known.get(item.name))
            name = f"settled-{self.shard[0]}-of-{self.shard[1]}.jsonl"
            with Journal(work / name) as journal:
                found = self._one_by_one(store, todo, counted, report.seconds)
                for record in found if many is None else many(self, store, todo):
                    journal.write(record)
                    if record.done:
                        report.made += 1
                        report.bytes += record.bytes
                    if video is not None:
                        video(record)
            known = records(store)
            settled = [known[item.name] for item in self.items if item.name in known]
            report.failed = [(r.name, r.reason) for r in settled if not r.done]
            report.short = [(r.name, r.short) for r in settled if r.short]
            report.done = len(settled) - len(report.failed)
            report.left = len(self.items) - len(settled)
            if not report.left:
                here = {record.name for record in settled}
                others = [known[n] for n in sorted(known) if n not in here]
                store.write_index([*settled, *others])
                for journal_file in work.glob("settled-*.jsonl"):
                    journal_file.unlink(missing_ok=True)
        if not report.left and not any(work.glob("writer-*.lock")):
            _sweep(self.out)
            with suppress(OSError):
                (work / "guard").unlink()
                work.rmdir()
        return report

    def settle(self, store: Store, item: Item) -> Record:
        """Extract one video, or take over its entry, or say why it cannot be."""
        return next(self._one_by_one(store, [item], None, Seconds()))

    def _one_by_one(
        self,
        store: Store,
        todo: list[Item],
        pairs: Callable[[int], Any] | None,
        seconds: Seconds,
    ) -> Iterator[Record]:
        """Frames are decoded while those before them are solved, and tracks written meanwhile."""
        threaded = several(self.device)
        read: Iterator[_Read] = self._read(store, todo)
        with Writing(threaded) as writing, ExitStack() as reading:
            if threaded:
                read = reading.enter_context(Ahead(read))
            begun: deque[tuple[Item, Future[Record]]] = deque()
            for item, found in read:
                if isinstance(found, Frames):
                    found = replace(found, blocks=_blocks(read))
                begun.append((item, self._begin(store, item, found, writing, pairs, seconds)))
                while len(begun) > 1 or (begun and begun[0][1].done()):
                    yield self._ended(store, *begun.popleft())
            while begun:
                yield self._ended(store, *begun.popleft())
            seconds.mark("write")

    def _read(self, store: Store, todo: list[Item]) -> Iterator[_Read]:
        """Of each video what it is; of frames then their blocks, and None or an error."""
        for item in todo:
            found = self._open_one(store, item)
            yield item, found
            if isinstance(found, Frames):
                try:
                    for block in found.blocks:
                        yield item, block
                    yield item, None
                except UNUSABLE as error:
                    yield item, error

    def _open_one(self, store: Store, item: Item) -> Record | Frames | Exception:
        """A video's record if it has an entry that is whole; its frames; or what is wrong."""
        with suppress(KeyError, StoreError, OSError):
            record = extracted(store, item.name)
            if _is_source(item.path, record) and not damage(store, item.name):
                return record
        try:
            if self.have:
                from .foreign_tracks import import_video

                return import_video(
                    store, self.config, item.name, item.path, self.have, bound=self.bound
                )
            return open_video(item.path, self.config.short_side)
        except UNUSABLE as error:
            return error

    def _begin(
        self,
        store: Store,
        item: Item,
        found: Record | Frames | Exception,
        writing: Writing,
        pairs: Callable[[int], Any] | None,
        seconds: Seconds,
    ) -> Future[Record]:
        """A video's record to come."""
        ended: Future[Record] = Future()
        if isinstance(found, Frames):
            try:
                return begin_frames(
                    store, self.config, item.name, found, writing,
                    device=self.device, progress=pairs, seconds=seconds,
                )  # fmt: skip
            except UNUSABLE as error:
                with suppress(*UNUSABLE):
                    for _ in found.blocks:  # what comes after them is the next video
                        pass
                found = error
        if isinstance(found, Record):
            ended.set_result(found)
        else:
            ended.set_exception(found)
        return ended

    def _ended(self, store: Store, item: Item, future: Future[Record]) -> Record:
        try:
            return future.result()
        except UNUSABLE as error:
            store.file(item.name).unlink(missing_ok=True)
            # Without the path, which differs where the same list lies elsewhere.
            reason = " ".join(str(error).removeprefix(f"{item.path}: ").split())
            return Record(item.name, reason=reason or type(error).__name__)

    def _mine(self) -> list[Item]:
        return self.items[self.shard[0] :: self.shard[1]]

    def _open_of(self, store: Store, known: Mapping[str, Record]) -> list[Item]:
        return [i for i in self._mine() if self._open(store, i, known.get(i.name))]

    def _open(self, store: Store, item: Item, record: Record | None) -> bool:
        """Whether a video is to be extracted."""
        if record is None:
            return True
        if not record.done:
            return self.retry
        file = store.file(item.name)
        try:
            whole = os.path.getsize(file) == record.bytes
            if self.retry:
                whole = whole and digest_of(file) == record.digest
        except OSError:
            return True
        return not whole or not _is_source(item.path, record)


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed had begun to write into a store."""
    for pattern in ("videos/??/.*.zip", ".index.*.parquet", ".zarr.*.json"):
        for stray in folder.glob(pattern):
            stray.unlink(missing_ok=True)


def _is_source(path: str, record: Record) -> bool:
    """Whether a video is, by its size, that of a record.

    One that is gone since, or cannot be got at now, takes nothing from its tracks.
    """
    try:
        return os.path.getsize(path) == record.source_bytes
    except OSError:
        return True


def _remove_other(store: Store, record: Record | None) -> None:
    """Remove an entry that is another than was recorded, lest it be taken over."""
    if record is not None and record.done:
        file = store.file(record.name)
        with suppress(FileNotFoundError):
            if digest_of(file) != record.digest:
                file.unlink()


def _blocks(read: Iterator[_Read]) -> Iterator[torch.Tensor]:
    """Those of the video that was read last."""
    for _, found in read:
        if isinstance(found, Exception):
            raise found
        if found is None:
            return
        yield found


_Read = tuple[Item, Any]
Many = Callable[[ExtractJob, Store, list[Item]], Iterator[Record]]


def damage(store: Store, name: str) -> str:
    """What is wrong with the entry of a video, reading all of it; empty where nothing is.

    Raises
    ------
    KeyError
        If there is none.
    """
    try:
        with store.entry(name) as entry:
            entry.check()
            step = 64
            starts = 0
            for at in range(0, entry.frames, step):
                some = range(at, min(at + step, entry.frames))
                found = entry.tracks(some)
                assert found.in_view is not None
                entry.homographies(some)
                starts += len(found.displacements)
            if starts != entry.frames or entry.frames < 1:
                return f"{entry.path} holds {starts} starts for {entry.frames} frames"
    except (StoreError, OSError) as error:
        return str(error)
    return ""


def _duplicates(names: Sequence[str]) -> list[str]:
    """Names that occur twice or more, in order."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for name in names:
        if name in seen:
            twice[name] = None
        seen.add(name)
    return list(twice)
