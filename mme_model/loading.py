"""From keys to batches: worker processes, and what becomes of videos that cannot be read.

A batch is made whole by a worker, from the keys (epoch, index) of its clips, so it is the same
whatever the number of workers.

Workers are forked: that starts them at once and shares the source's memory. It is safe here since a
worker uses none of the threads that a fork loses: torch runs on one thread in it, `mme_targets`'
pool starts anew after a fork, OpenCV's is switched off before its first use, and PyAV holds no file
open between reads. Where CUDA is in use already they are spawned, as a context does not survive a
fork. A worker is killed by the kernel when the thread that started it ends, however that ends.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mme_targets.demux import VideoError

from .errors import TrainingError
from .keys import rng
from .order import Key

if TYPE_CHECKING:
    from .sources import Source

__all__ = ["Loader", "Unreadable", "beside", "first_readable", "leave_cores", "worker_count"]

TRIES = 10
"""Unreadable videos in a row at which a clip is given up."""
_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
"""Errors that are the machine's, not the video's."""

B = TypeVar("B")
S = TypeVar("S")


def first_readable(
    source: Source, seed: int, key: Key, make: Callable[[int, list[tuple[str, str]]], S]
) -> S:
    """Make a clip of the video of `key`, or of another where that cannot be read, keyed likewise.

    Parameters
    ----------
    make : called with the video's index, and (name, reason) of those that could not be read.

    Raises
    ------
    VideoError
        If neither the video nor any of those tried in its place can be read; names them all.
    """
    tried: list[int] = []
    skipped: list[tuple[str, str]] = []
    video = key[1]
    while True:
        try:
            return make(video, skipped)
        except (VideoError, OSError) as error:
            tried.append(video)
            skipped.append((source.name(video), reason(error)))
        if len(tried) >= min(TRIES, len(source)):
            reasons = "; ".join(why for _, why in skipped)
            raise VideoError(f"{len(tried)} videos in a row cannot be read: {reasons}")
        video = _other(len(source), seed, key, tried)


def reason(error: VideoError | OSError) -> str:
    """Why a video cannot be read, in one line; an error of the machine is raised on."""
    if isinstance(error, OSError) and error.errno in _SYSTEM:
        raise error
    return " ".join(str(error).split())


def _other(videos: int, seed: int, key: Key, tried: Sequence[int]) -> int:
    """A video that was not tried, each as likely."""
    draw = rng(seed, *key, f"replacement {len(tried)}")
    place = int(draw.integers(videos - len(tried)))
    for used in sorted(tried):
        place += place >= used
    return place


def worker_count(asked: int = -1, *, computing: bool = False) -> int:
    """Worker processes of one training process: `asked`, or for -1 one a core that it may use, less
    its own, shared among the training processes of this machine (`LOCAL_WORLD_SIZE`); at least 1.

    `computing`: workers make targets as well, beside a model that trains on the same CPU. Then it
    is half of the cores, and on two cores one a core: the three take turns, and none waits.
    """
    if asked >= 0:
        return asked
    mine = _cores()
    if computing:
        return mine if mine <= 2 else mine // 2
    return max(1, mine - 1)


def beside(workers: int, device: torch.device, batches: Iterable[B]) -> Iterator[B]:
    """`batches` of `workers` processes, torch keeping to the cores that they leave meanwhile."""
    with leave_cores(workers, device):
        yield from batches


@contextmanager
def leave_cores(workers: int, device: torch.device) -> Iterator[None]:
    """While training on a CPU: keep torch to the cores that its `workers` leave, at least one.

    More threads than that would take turns with the workers, and each step would wait for all.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(min(before, max(1, _cores() - workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    """Cores of this training process; those of the machine are shared among its processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))


class Keys(Protocol):
    """The keys of each batch, in order."""

    def __len__(self) -> int:
        """How many batches there are."""

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the keys of one after the other."""


class Loader(Generic[B]):
    """Batches in the order of their steps; iterating starts the workers and ends them.

    The same whatever the number of workers. Iterate in a thread that lives as long as the workers
    are to.

    Parameters
    ----------
    make : a batch of its keys; it pickles.
    order : the keys of each batch.
    workers : processes, as `worker_count` takes them.
    prefetch : batches that each prepares ahead.
    pin : hand batches over in pinned memory.
    warm : called once before workers start, to import what each of them would.
    """

    def __init__(
        self,
        make: Callable[[list[Key]], B],
        order: Keys | Sequence[list[Key]],
        *,
        workers: int,
        prefetch: int,
        pin: bool,
        warm: Callable[[], Any] | None = None,
    ) -> None:
        self.make, self.order, self.pin, self.warm = make, order, pin, warm
        self.workers, self.prefetch = worker_count(workers), prefetch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[B]:
        """Yield the batches.

        Raises
        ------
        VideoError, OSError, ValueError
            As raised where the batch was made.
        """
        options: dict[str, Any] = {}
        if self.workers:
            if self.warm is not None:
                self.warm()
            options = {
                "prefetch_factor": self.prefetch,
                "multiprocessing_context": "spawn" if torch.cuda.is_initialized() else "fork",
                "worker_init_fn": partial(_start_worker, os.getpid()),
            }
        loader: DataLoader[Any] = DataLoader(
            _Batches(self.make),
            batch_sampler=self.order,
            collate_fn=_itself,
            num_workers=self.workers,
            pin_memory=self.pin,
            **options,
        )
        for item in _begun(loader):
            if isinstance(item, _Failure):
                raise item.error
            yield item


class Unreadable:
    """Which of the videos met so far could not be read.

    Parameters
    ----------
    videos : how many there are.
    allowed : share of those met that may be unreadable; `field` is what sets it. One may be,
        however few there are, unless the share is 0.
    """

    def __init__(self, videos: int, allowed: float, field: str) -> None:
        self.videos, self.allowed, self.field = videos, allowed, field
        self.met: set[str] = set()
        self.lost: dict[str, str] = {}

    def add(self, batches: Sequence[Any]) -> None:
        """Count what batches say with `names` and `skipped`; TrainingError where it is too much."""
        for batch in batches:
            self.met.update(batch.names)
            self.lost.update(batch.skipped)
        met = len(self.met) + len(self.lost)
        most = max(1.0, self.allowed * met) if self.allowed else 0.0
        if len(self.lost) > most and met >= min(100, self.videos):
            raise TrainingError(
                f"{len(self.lost)} of the {met} videos met cannot be read, more than "
                f"{self.field} ({self.allowed}) allows; with a larger --{self.field} (and "
                "--resume auto) training goes on without them; skipped.csv lists them:\n"
                + "\n".join(f"  {name}: {why}" for name, why in list(self.lost.items())[:10])
            )


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the workers, which never collect garbage of this process.

    Decoders' frames may be among it, and freeing one waits for threads that a fork has lost.
    """
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


def pins(device: torch.device) -> bool:
    """Whether batches for `device` go through pinned memory."""
    return device.type == "cuda" and torch.cuda.is_available()


@dataclass
class _Failure:
    """An error on its way out of a worker, which the loader would wrap in a traceback's text."""

    error: Exception


class _Batches(Dataset[Any]):
    """Whole batches by their keys, made where the loader's items are."""

    def __init__(self, make: Callable[[list[Key]], Any]) -> None:
        self.make = make

    def __getitems__(self, keys: list[Key]) -> Any:
        try:
            return self.make(keys)
        except (VideoError, OSError, ValueError, TypeError, MemoryError) as error:
            return _Failure(error)


def _itself(item: Any) -> Any:
    return item


def _start_worker(parent: int, worker: int) -> None:
    """Tie a worker's life to its parent's, and keep it to one thread."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before it could be watched
            os._exit(1)
    # An interrupt reaches the whole group; what becomes of the run is the parent's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import cv2

    cv2.setNumThreads(0)  # not 1, which waits for the threads of a pool that a fork has lost
