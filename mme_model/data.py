"""From videos to batches: clips drawn, decoded once, cropped, masked, and on a CPU their targets.

Every random number is keyed by (seed, epoch, index of the video, purpose), so a clip is the same in
any process, batch and run. A video that cannot be read is replaced by another one, keyed likewise,
and the batch says so.

On a CPU the loader's workers make the targets, in the trainer's slack; for a GPU a batch carries
the frames, and `inline.TargetMaker` makes the targets there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from mme_targets import ClipPlan
from mme_targets.demux import VideoError
from mme_targets.region import crop_frames

from .augment import crop_box, flip, flip_box, permutation, resize_crop
from .batch import Batch, Sample
from .inline import TargetMaker
from .keys import rng
from .loading import Loader, first_readable, pins, worker_count
from .masking import draw_mask
from .order import Key, MicroBatches, Order
from .recipe import Recipe

if TYPE_CHECKING:
    from .sources import Source
    from .tracks import ClipTracks

__all__ = ["Batch", "ClipDataset", "ClipLoader", "HeldOut", "Sample", "clip_loader"]
__all__ += ["collate", "held_out_batches", "worker_count"]

PHASES = ("decode", "crop", "flow", "targets")


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
        make = partial(self._clip, *key)
        return first_readable(self.source, self.recipe.train.seed, key, make)

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
        # PyAV's frames refer to themselves once turned upright, and the collector, which counts
        # objects and not bytes, would let hundreds of megabytes of them gather.
        gc.collect(1)
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


class ClipLoader(Loader[Batch]):
    """Batches of clips in the order of their steps."""

    def __init__(
        self, dataset: ClipDataset, maker: TargetMaker | None, order: MicroBatches, pin: bool
    ) -> None:
        clips = dataset.recipe.clips
        super().__init__(
            partial(_batch, dataset, maker),
            order,
            workers=worker_count(clips.workers, computing=maker is not None),
            prefetch=clips.prefetch,
            pin=pin,
            warm=_import_dynamo if maker is not None else None,
        )


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
    return ClipLoader(dataset, _maker(recipe, device), pieces, pins(device))


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
                batch = _batch(self.dataset, self.maker, list(keys))
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


def _batch(dataset: ClipDataset, maker: TargetMaker | None, keys: list[Key]) -> Batch:
    return collate([dataset[key] for key in keys], maker, stored=dataset.tracks is not None)


def _import_dynamo() -> None:
    # Custom operators import it when first called: once here, not in every worker.
    from torch import _dynamo  # noqa: F401
