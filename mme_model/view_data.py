"""Views of many videos in batches, for training a classifier and for testing one.

In training a video that cannot be read is replaced by another one, keyed likewise, as in
pre-training; in testing it is reported, and leaves its batch smaller.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mme_targets.demux import VideoError

from .finetune_recipe import ViewConfig
from .loading import Loader, first_readable, pins, reason
from .order import Key, MicroBatches, Order
from .views import test_views, train_views

if TYPE_CHECKING:
    from .sources import Source

__all__ = ["ViewBatch", "ViewDataset", "ViewSample", "eval_loader", "train_loader"]


@dataclass
class ViewSample:
    """All views of one video; `ViewBatch` says what each field holds."""

    rgb: Tensor
    label: int
    index: int
    epoch: int
    name: str
    skipped: list[tuple[str, str]]
    seconds: dict[str, float]


@dataclass
class ViewBatch:
    """Views, those of a video one after the other.

    Attributes
    ----------
    rgb : [B, T, 3, S, S] uint8; B may be 0 in testing, where no video could be read.
    labels : [B] int64, the class of each view's video, from 0; -1 where none is known.
    videos : [B] int64, which of the source each view is of.
    indices, names : of the videos, each once.
    epoch : that all views are of.
    skipped : name and reason of each video that could not be read.
    lost : testing: the indices of these videos.
    seconds : by phase, of all views together, where the batch was made.
    """

    rgb: Tensor
    labels: Tensor
    videos: Tensor
    indices: list[int]
    names: list[str]
    epoch: int
    skipped: list[tuple[str, str]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def timings(self) -> dict[str, float]:
        """Seconds by phase."""
        return self.seconds

    def to(self, device: torch.device | str) -> ViewBatch:
        """The same on `device`; from pinned memory the host does not wait."""
        return self._mapped(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> ViewBatch:
        """The same in pinned memory; called by the loader."""
        return self._mapped(lambda t: t.pin_memory())

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds, for `record_stream`."""
        return iter((self.rgb, self.labels, self.videos))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> ViewBatch:
        return dataclasses.replace(
            self,
            rgb=change(self.rgb),
            labels=change(self.labels),
            videos=change(self.videos),
        )


class ViewDataset(Dataset[ViewSample]):
    """All views of a video by key (epoch, index).

    Parameters
    ----------
    config : what a view is.
    source : the videos.
    seed : that random numbers are keyed by.
    train : `train_views`; else `test_views`.
    """

    def __init__(
        self, config: ViewConfig, source: Source, *, seed: int = 0, train: bool = True
    ) -> None:
        self.config, self.source, self.seed, self.train = config, source, seed, train

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> ViewSample:
        """The views; in testing none where the video cannot be read, and the reason.

        Raises
        ------
        VideoError
            In training, as `first_readable`.
        """
        if self.train:
            return first_readable(self.source, self.seed, key, partial(self._trained, *key))
        begun = time.perf_counter()
        skipped = []
        epoch, index = key
        try:
            views = test_views(self.source, index, self.config)
        except (VideoError, OSError) as error:
            views = torch.empty((0, *self._shape), dtype=torch.uint8)
            skipped = [(self.source.name(index), reason(error))]
        return self._sample(views, epoch, index, skipped, begun)

    def _trained(
        self, epoch: int, index: int, video: int, skipped: list[tuple[str, str]]
    ) -> ViewSample:
        begun = time.perf_counter()
        views = train_views(self.source, index, self.config, self.seed, epoch, video=video)
        return self._sample(views, epoch, video, skipped, begun)

    def _sample(
        self, views: Tensor, epoch: int, index: int, skipped: list[tuple[str, str]], begun: float
    ) -> ViewSample:
        return ViewSample(
            rgb=views,
            label=self.source.label(index),
            index=index,
            epoch=epoch,
            name=self.source.name(index),
            skipped=skipped,
            seconds={"decode": time.perf_counter() - begun},
        )

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.config.frames, 3, self.config.size, self.config.size


def collate_views(samples: Sequence[ViewSample]) -> ViewBatch:
    """One batch of the views of several videos."""
    views = torch.tensor([len(s.rgb) for s in samples])
    read = [s for s in samples if len(s.rgb)]
    return ViewBatch(
        rgb=torch.cat([s.rgb for s in samples]),
        labels=torch.tensor([s.label for s in samples]).repeat_interleave(views),
        videos=torch.tensor([s.index for s in samples]).repeat_interleave(views),
        indices=[s.index for s in read],
        names=[s.name for s in read],
        epoch=samples[0].epoch,
        skipped=[skipped for s in samples for skipped in s.skipped],
        lost=[s.index for s in samples if not len(s.rgb)],
        seconds={"decode": sum(s.seconds["decode"] for s in samples)},
    )


def train_loader(
    config: ViewConfig,
    source: Source,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    steps: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    micro_batch: int = 0,
) -> Loader[ViewBatch]:
    """The micro-batches of one process for the steps `start_step` to `steps` - 1 of a run.

    Parameters
    ----------
    batch_size : videos of one step over all processes; of each there are `repeats` views.
    device : that batches are for; pinned memory where it is a GPU.
    micro_batch : videos of one batch; 0 takes the process' whole share of a step.

    Raises
    ------
    ValueError
        If processes and micro-batches do not divide the batch, or there are fewer videos than one
        step takes.
    """
    order = MicroBatches(
        Order(len(source), batch_size, seed),
        steps,
        start_step=start_step,
        rank=rank,
        world=world,
        micro_batch=micro_batch,
    )
    return _loader(ViewDataset(config, source, seed=seed), order, torch.device(device))


def eval_loader(
    config: ViewConfig,
    source: Source,
    indices: Sequence[int],
    *,
    device: torch.device | str,
    videos: int = 1,
) -> Loader[ViewBatch]:
    """All testing views of the videos `indices`, in their order, `videos` of them a batch.

    For `world` processes each takes ``range(rank, len(source), world)``: every video is there once.
    """
    if videos < 1:
        raise ValueError(f"videos is {videos}; must be at least 1")
    keys = [(0, int(i)) for i in indices]
    pieces = [keys[at : at + videos] for at in range(0, len(keys), videos)]
    return _loader(ViewDataset(config, source, train=False), pieces, torch.device(device))


def _loader(
    dataset: ViewDataset, order: MicroBatches | list[list[Key]], device: torch.device
) -> Loader[ViewBatch]:
    config = dataset.config
    return Loader(
        partial(_batch, dataset),
        order,
        workers=config.workers,
        prefetch=config.prefetch,
        pin=pins(device),
    )


def _batch(dataset: ViewDataset, keys: list[Key]) -> ViewBatch:
    return collate_views([dataset[key] for key in keys])
