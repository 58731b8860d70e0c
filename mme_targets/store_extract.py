"""Extracting one whole video: what `mme extract` does for each of a list.

Frames are decoded once, in blocks, each block while the one before it is solved; tracks are encoded
and written while the next ones are. That is done by threads where more than one is to be used
(`torch.get_num_threads`), and in turn where not.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from .ahead import Ahead
from .plan import ClipPlan
from .store import Record, Store, provenance
from .store_config import TrackConfig
from .store_entry import NOT_FINITE
from .store_tracks import FlowBlock, Frames, Progress, Seconds, flows_of, tracks_of
from .store_writer import EntryWriter
from .video import VideoError, iter_clips, probe

__all__ = [
    "Frames", "Writing", "begin_frames", "extract_frames", "extract_video", "extracted",
    "open_video", "read_video", "write_flows",
]  # fmt: skip

BLOCK = 16
"""Pairs decoded and solved at a time."""
T = TypeVar("T")
SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that are the machine's, not the video's: the next video would meet them as well."""


def several(device: str) -> bool:
    """Whether threads are to work beside the one that solves flow."""
    return torch.get_num_threads() > 1 or not device.startswith("cpu")


class Writing:
    """Encodes and writes, call after call, by a thread of its own; a context manager.

    Parameters
    ----------
    threaded : else calls are made where they are asked for.
    """

    WAITING = 2
    """Calls that may wait, so that memory stays bounded."""

    def __init__(self, threaded: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "write") if threaded else None
        self._waiting: deque[Future[Any]] = deque()
        self._failed: OSError | None = None

    def call(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Call it after those before; waits while too many do.

        Raises
        ------
        OSError
            If one before it could not write: what follows is not called then.
        """
        if self._thread is None:
            done: Future[T] = Future()
            try:
                done.set_result(function(*args))
            except Exception as error:
                done.set_exception(error)
            return done
        while len(self._waiting) >= self.WAITING:
            wait([self._waiting.popleft()])
        if self._failed is not None:
            raise self._failed
        self._waiting.append(self._thread.submit(self._made, function, *args))
        return self._waiting[-1]

    def _made(self, function: Callable[..., T], *args: Any) -> T:
        if self._failed is not None:
            raise self._failed
        try:
            return function(*args)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # of the video, which is gone
                self._failed = error
            raise

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


def read_video(path: str | os.PathLike[str], short_side: int = 0) -> Frames:
    """All frames of a video file.

    Raises
    ------
    VideoError
        If it is no video; while reading, if a frame cannot be decoded.
    """
    info = probe(path)
    plans = [
        ClipPlan(tuple(range(at, min(at + BLOCK, info.frames))), (), (), (), (), ())
        for at in range(0, info.frames, BLOCK)
    ]
    clips = iter_clips(path, plans, short_side=short_side or None)
    about = {"source": {}, **({"short": info.short} if info.short else {})}
    return Frames(info.frames, info.fps, (clip.frames for clip in clips), about)


def extract_video(
    store: Store,
    config: TrackConfig,
    name: str,
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    seconds: Seconds | None = None,
) -> Record:
    """Extract the tracks of a video file into a store; replaces what is there of this name.

    Parameters
    ----------
    config : the store's.
    name : by which the tracks are found.
    path : of the video.
    device : where flow and tracks are computed.
    progress : called with the number of pairs that were solved.
    seconds : adds up where the time went.

    Raises
    ------
    VideoError
        If the file is no video, cannot be decoded to its end, or changed meanwhile.
    OSError
        If it cannot be read, or the entry not be written; nothing half-written is left.
    """
    frames = open_video(path, config.short_side)
    return extract_frames(store, config, name, frames,
                          device=device, progress=progress, seconds=seconds)  # fmt: skip


def open_video(path: str | os.PathLike[str], short_side: int = 0) -> Frames:
    """`read_video` with what tells that the file is the same later, and stayed so meanwhile.

    Raises
    ------
    VideoError
        If the file is empty or no video, or cannot be read.
    OSError
        If the machine is short of something.
    """
    try:
        before = os.stat(path)
        # A pipe would be waited for.
        digest = digest_of(path) if stat.S_ISREG(before.st_mode) else ""
    except OSError as error:
        if error.errno in SYSTEM:
            raise
        raise VideoError(f"{os.fspath(path)}: {error.strerror or error}") from None
    if not digest:
        raise VideoError(f"{os.fspath(path)}: not a file")
    if not before.st_size:
        raise VideoError(f"{os.fspath(path)}: the file is empty")

    def unchanged() -> None:
        try:
            after = os.stat(path)
        except OSError as error:
            raise VideoError(f"{os.fspath(path)}: {error.strerror or error}") from None
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise VideoError(f"{os.fspath(path)}: the file changed while it was read")

    found = read_video(path, short_side)
    about = {**found.about, "source": {"bytes": before.st_size, "sha256": digest}}
    return replace(found, about=about, check=unchanged)


def extract_frames(
    store: Store,
    config: TrackConfig,
    name: str,
    frames: Frames,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    seconds: Seconds | None = None,
) -> Record:
    """`extract_video` of frames from anywhere."""
    with ExitStack() as threads:
        writing = threads.enter_context(Writing(several(device)))
        if several(device):
            frames = replace(frames, blocks=threads.enter_context(Ahead(frames.blocks)))
        begun = begin_frames(store, config, name, frames, writing,
                             device=device, progress=progress, seconds=seconds)  # fmt: skip
        return begun.result()


def begin_frames(
    store: Store,
    config: TrackConfig,
    name: str,
    frames: Frames,
    writing: Writing,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    seconds: Seconds | None = None,
) -> Future[Record]:
    """`extract_frames` that returns when all flow is solved, and lets `writing` do the rest."""
    seconds = Seconds() if seconds is None else seconds
    seconds.mark("decode")
    flows = flows_of(config, frames, device, progress, seconds)
    return _begin_flows(store, config, name, flows, frames, writing, seconds)


def write_flows(
    store: Store,
    config: TrackConfig,
    name: str,
    flows: Iterable[FlowBlock],
    count: int,
    fps: float,
    about: dict[str, Any],
) -> Record:
    """Tracks through flow that comes block by block, of a video of `count` frames."""
    video = Frames(count, fps, (), about)
    with Writing(False) as writing:
        return _begin_flows(store, config, name, flows, video, writing, Seconds()).result()


def _begin_flows(
    store: Store,
    config: TrackConfig,
    name: str,
    flows: Iterable[FlowBlock],
    video: Frames,
    writing: Writing,
    seconds: Seconds,
) -> Future[Record]:
    """Tracks through flow; `video` says of which frames it is."""
    writer: EntryWriter | None = None
    calls: list[Future[None]] = []
    still, finite = 0, True
    for found in tracks_of(config, flows, video.count, seconds):
        if writer is None:
            writer = EntryWriter(config, video.count, *found.size)
        calls.append(
            writing.call(writer.add, found.displacements, found.in_view, found.homographies)
        )
        still += found.still
        finite &= not (found.in_view == NOT_FINITE).any()
        seconds.mark("write")
    if writer is None:
        raise VideoError(f"{name}: it has no frames")
    about = {"name": name, "fps": video.fps, "still": still, "finite": bool(finite)}
    done = writing.call(_finish, store, writer, calls, video, about)
    seconds.mark("write")
    return done


def _finish(
    store: Store,
    writer: EntryWriter,
    calls: list[Future[None]],
    video: Frames,
    about: dict[str, Any],
) -> Record:
    """The entry in its place, once all of `calls` were made."""
    for call in calls:
        call.result()
    if video.check is not None:
        video.check()
    path = store.file(about["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.finish(path, {**about, **video.about, **provenance()})
    return extracted(store, about["name"])


def extracted(store: Store, name: str) -> Record:
    """The record of an entry that exists, read from it.

    Raises
    ------
    KeyError, StoreError
        If there is none, or it is damaged.
    """
    with store.entry(name) as entry:
        source = entry.about["source"]
        return Record(
            name=name,
            frames=entry.frames,
            height=entry.height,
            width=entry.width,
            fps=entry.about["fps"],
            short=entry.about.get("short", ""),
            still=entry.about["still"],
            bytes=os.path.getsize(entry.path),
            digest=digest_of(entry.path),
            source_bytes=source.get("bytes", 0),
            source_digest=source.get("sha256", ""),
        )


def digest_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
