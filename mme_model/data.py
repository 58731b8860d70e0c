"""From videos to batches: clips drawn, decoded once, cropped, masked, and on a CPU their targets.

Every random number is keyed by (seed, epoch, index of the video, purpose), so a clip is the same in
any process, batch and run. A video that cannot be read is replaced by another one, keyed likewise,
and the batch says so.

On a CPU the loader's workers make the targets, in the trainer's slack; for a GPU a batch carries
the frames, and `inline.TargetMaker` makes the targets there.

Workers are forked: that starts them at once and shares the source's memory. It is safe here since a
worker uses none of the threads that a fork loses: torch runs on one thread in it, `mme_targets`'
pool starts anew after a fork, OpenCV's is switched off before its first use, and PyAV holds no file
open between reads. Where CUDA is in use already they are spawned, as a context does not survive a
fork. A worker is killed by the kernel when the thread that started it ends, however that ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from mme_targets import ClipPlan
from mme_targets.demux import VideoError
from mme_targets.region import crop_frames

from .augment import crop_box, flip, flip_box, permutation, resize_crop
from .batch import Batch, Sample
from .inline import TargetMaker
from .keys import rng
from .masking import draw_mask
from .order import Key, MicroBatches, Order
from .recipe import Recipe

if TYPE_CHECKING:
    from .sources import Source
    from .tracks import ClipTracks

__all__ = ["Batch", "ClipDataset", "ClipLoader", "HeldOut", "Sample", "clip_loader"]
__all__ += ["collate", "held_out_batches", "worker_count"]

TRIES = 10
"""Unreadable videos in a row at which a clip is given up."""
PHASES = ("decode", "crop", "flow", "targets")
_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
"""Errors that are the machine's, not the video's."""


class ClipDataset(Dataset[Sample]):
    """Clips by key (epoch, index).

    Parameters
    ----------
    recipe : what a clip is (`targets`), how it is augmented (`clips`) and masked (`mask`).
    source : the videos.
    train : start, crop and flip at random; else the centre in time and space, unmirrored.
    tracks : a store that clips take their motion from.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        *,
        train: bool = True,
        tracks: ClipTracks | None = None,
    ) -> None:
        self.recipe, self.source, self.train, self.tracks = recipe, source, train, tracks
        changes = {} if train else {"crop": "center", "flip": False}
        self.clips = recipe.clips.replace(**changes)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Sample:
        """Decode, crop and mask one clip.

        Raises
        ------
        VideoError
            If neither the video nor any of those tried in its place can be read; names them all.
        """
        epoch, index = key
        tried: list[int] = []
        skipped: list[tuple[str, str]] = []
        video = index
        while True:
            try:
                return self._clip(epoch, index, video, skipped)
            except (VideoError, OSError) as error:
                if isinstance(error, OSError) and error.errno in _SYSTEM:
                    raise
                tried.append(video)
                skipped.append((self.source.name(video), " ".join(str(error).split())))
            if len(tried) >= min(TRIES, len(self.source)):
                reasons = "; ".join(reason for _, reason in skipped)
                raise VideoError(f"{len(tried)} videos in a row cannot be read: {reasons}")
            video = self._other(epoch, index, tried)

    def _other(self, epoch: int, index: int, tried: Sequence[int]) -> int:
        """A video that was not tried, each as likely."""
        draw = rng(self.recipe.train.seed, epoch, index, f"replacement {len(tried)}")
        place = int(draw.integers(len(self.source) - len(tried)))
        for used in sorted(tried):
            place += place >= used
        return place

    def _clip(self, epoch: int, index: int, video: int, skipped: list[tuple[str, str]]) -> Sample:
        config, seed = self.recipe.targets, self.recipe.train.seed
        begun = time.perf_counter()
        length = self.source.frames(video)
        if length < 1:
            raise VideoError(f"{self.source.name(video)}: it has no frames")
        room = max(0, length - config.frames * config.stride)
        start = room // 2
        if self.train:
            start = int(rng(seed, epoch, index, "start").integers(room + 1))
        plan = ClipPlan.build(config, start, length)
        frames = self.source.read(video, plan.frames)
        decoded = time.perf_counter()

        height, width = frames.shape[-2:]
        box = crop_box(height, width, self.clips, rng(seed, epoch, index, "crop"))
        mirrored = self.clips.flip and bool(rng(seed, epoch, index, "flip").integers(2))
        whole = config.region == "frame"
        if not whole:
            frames = resize_crop(frames, box, config.size)
        if mirrored:
            frames, box = flip(frames), flip_box(box, width)
        rgb = frames[list(plan.rgb)]
        corners = torch.tensor(box, dtype=torch.float32) if whole else None
        if corners is not None:
            rgb = crop_frames(rgb[None], corners[None], config.size)[0]
        order = None
        if self.clips.shuffle != "none":
            draw = rng(seed, epoch, index, "shuffle")
            order = torch.tensor(permutation(config.frames, draw))
            rgb = rgb[order]
        mask = draw_mask(self.recipe.mask, self.recipe.grid, rng(seed, epoch, index, "mask"))
        masked = torch.from_numpy(mask).nonzero()[:, 0]
        ready = time.perf_counter()
        known = None
        if self.tracks is not None:
            assert corners is not None
            known = self.tracks.read(
                self.source, video, plan, (height, width), corners, mirrored, masked, order
            )
        return Sample(
            rgb=rgb,
            masked=masked,
            frames=frames.contiguous(),
            box=corners,
            padded=torch.tensor(plan.padded, dtype=torch.bool).reshape(plan.starts, -1),
            permutation=order,
            tracks=known,
            epoch=epoch,
            index=video,
            name=self.source.name(video),
            skipped=skipped,
            seconds={
                "decode": decoded - begun,
                "crop": ready - decoded,
                "tracks": time.perf_counter() - ready,
            },
        )


def collate(samples: Sequence[Sample], maker: TargetMaker | None, stored: bool = False) -> Batch:
    """One batch of clips; its targets are made here if there is a maker, clip by clip.

    (The flow of many clips in one call is as fast on a CPU, and needs their memory at once.)
    `stored` says that tracks were to come from a store.
    """
    padded = torch.stack([s.padded for s in samples])
    boxes = [s.box for s in samples if s.box is not None]
    orders = [s.permutation for s in samples if s.permutation is not None]
    frames: torch.Tensor | list[torch.Tensor] = [s.frames for s in samples]
    if maker is None and not boxes:
        frames = torch.stack([s.frames for s in samples])
    phases = (*PHASES, "tracks") if stored else PHASES
    batch = Batch(
        rgb=torch.stack([s.rgb for s in samples]),
        masked=torch.stack([s.masked for s in samples]),
        targets=None,
        frames=frames,
        boxes=torch.stack(boxes) if boxes else None,
        padded=padded if padded.any() else None,
        permutation=torch.stack(orders) if orders else None,
        epoch=samples[0].epoch,
        indices=[s.index for s in samples],
        names=[s.name for s in samples],
        skipped=[skipped for s in samples for skipped in s.skipped],
        tracks=[s.tracks for s in samples] if stored else None,
        inline=[s.name for s in samples if stored and s.tracks is None],
        seconds={phase: sum(s.seconds.get(phase, 0.0) for s in samples) for phase in phases},
    )
    if maker is None:
        return batch
    before = time.perf_counter()

    def mark(phase: str) -> None:
        nonlocal before
        now = time.perf_counter()
        batch.seconds[phase] += now - before
        before = now

    batch.targets = maker.of_batch(batch, mark=mark)
    batch.frames = batch.tracks = None
    return batch


def worker_count(asked: int = -1) -> int:
    """Worker processes of one training process: `asked`, or for -1 one a core that it may use, less
    its own, shared among the training processes of this machine (`LOCAL_WORLD_SIZE`); at least 1.
    """
    if asked >= 0:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    local = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    return max(1, ((cores or 1) - 1) // local)


class ClipLoader:
    """Batches in the order of their steps; iterating starts the workers and ends them.

    The same whatever the number of workers. Iterate in a thread that lives as long as the workers
    are to.
    """

    def __init__(
        self, dataset: ClipDataset, maker: TargetMaker | None, order: MicroBatches, pin: bool
    ) -> None:
        clips = dataset.recipe.clips
        self.dataset, self.maker, self.order, self.pin = dataset, maker, order, pin
        self.workers = worker_count(clips.workers)
        self.prefetch = clips.prefetch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises
        ------
        VideoError, OSError, ValueError
            As raised where the batch was made.
        """
        options: dict[str, Any] = {}
        if self.workers:
            if self.maker is not None:
                # Custom operators import it when first called: once here, not in every worker.
                from torch import _dynamo  # noqa: F401
            options = {
                "prefetch_factor": self.prefetch,
                "multiprocessing_context": "spawn" if torch.cuda.is_initialized() else "fork",
                "worker_init_fn": partial(_start_worker, os.getpid()),
            }
        loader: DataLoader[Any] = DataLoader(
            _Batches(self.dataset, self.maker),
            batch_sampler=self.order,
            collate_fn=_itself,
            num_workers=self.workers,
            pin_memory=self.pin,
            **options,
        )
        for item in loader:
            if isinstance(item, _Failure):
                raise item.error
            yield item


def clip_loader(
    recipe: Recipe,
    source: Source,
    *,
    device: torch.device | str,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    steps: int,
    micro_batch: int = 0,
    tracks: ClipTracks | None = None,
) -> ClipLoader:
    """The micro-batches of one process for the steps `start_step` to `steps` - 1 of a run.

    Parameters
    ----------
    recipe : of the run; `clips.workers` processes make `clips.prefetch` batches each ahead.
    source : the videos.
    device : on "cpu" the workers make the targets; else batches carry frames, in pinned memory.
    rank, world : this process, and how many there are.
    start_step, steps : the first step, and how many the whole run has.
    micro_batch : clips of one batch; 0 takes the process' whole share of a step.
    tracks : a store that clips take their motion from.

    Raises
    ------
    ValueError
        If the global batch is larger than the data set, or processes and micro-batches do not
        divide it.
    """
    device = torch.device(device)
    order = Order(len(source), recipe.train.batch_size, recipe.train.seed)
    pieces = MicroBatches(
        order, steps, start_step=start_step, rank=rank, world=world, micro_batch=micro_batch
    )
    dataset = ClipDataset(recipe, source, tracks=tracks)
    return ClipLoader(dataset, _maker(recipe, device), pieces, _pins(device))


class HeldOut:
    """The held-out clips, always the same; batches are kept in memory while they fit `limit` bytes,
    and made anew each time beyond.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        maker: TargetMaker | None,
        pieces: Sequence[Sequence[Key]],
        limit: int = 2**30,
    ) -> None:
        self.dataset, self.maker, self.pieces = dataset, maker, pieces
        self._room = limit
        self._kept: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self.pieces)

    def __iter__(self) -> Iterator[Batch]:
        for place, keys in enumerate(self.pieces):
            batch = self._kept.get(place)
            if batch is None:
                batch = _collated(self.dataset, keys, self.maker)
                size = sum(t.nbytes for t in batch.tensors())
                if size <= self._room:
                    self._room -= size
                    self._kept[place] = batch
            yield batch


def held_out_batches(
    recipe: Recipe,
    source: Source,
    *,
    device: torch.device | str,
    count: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    tracks: ClipTracks | None = None,
) -> HeldOut:
    """`count` clips, evenly spread over `source`, for the loss on held-out clips.

    The centre of each in time and space, with fixed masks. They are made in this process when first
    iterated, with their targets on a CPU. Process `rank` of `world` gets its share, which may be
    one clip less than another's.
    """
    count = min(count, len(source))
    keys = [(0, i * len(source) // count) for i in range(count)][rank::world]
    step = micro_batch or max(1, len(keys))
    pieces = [keys[at : at + step] for at in range(0, len(keys), step)]
    dataset = ClipDataset(recipe, source, train=False, tracks=tracks)
    return HeldOut(dataset, _maker(recipe, torch.device(device)), pieces)


def _maker(recipe: Recipe, device: torch.device) -> TargetMaker | None:
    if device.type != "cpu":
        return None
    return TargetMaker(recipe.targets, shuffle=recipe.clips.shuffle)


def _pins(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()


@dataclass
class _Failure:
    """An error on its way out of a worker, which the loader would wrap in a traceback's text."""

    error: Exception


class _Batches(Dataset[Any]):
    """Whole batches by their keys, made where the loader's items are."""

    def __init__(self, dataset: ClipDataset, maker: TargetMaker | None) -> None:
        self.dataset, self.maker = dataset, maker

    def __getitems__(self, keys: list[Key]) -> Batch | _Failure:
        try:
            return _collated(self.dataset, keys, self.maker)
        except (VideoError, OSError, ValueError, TypeError, MemoryError) as error:
            return _Failure(error)


def _collated(dataset: ClipDataset, keys: Sequence[Key], maker: TargetMaker | None) -> Batch:
    return collate([dataset[key] for key in keys], maker, stored=dataset.tracks is not None)


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
