"""In what order videos are seen: a permutation an epoch, cut into steps, processes, micro-batches.

All of it follows from the step's number alone, so a resumed run goes on at step s without touching
what was seen, and any number of processes sees the same clips in the same step. A micro-batch is a
list of keys (epoch, index): random numbers are keyed by both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from .keys import rng

__all__ = ["Key", "MicroBatches", "Order"]

Key = tuple[int, int]
"""(epoch, index of the video)."""


@dataclass(frozen=True)
class Order:
    """Which videos each step takes.

    Parameters
    ----------
    videos : n, how many there are.
    batch : B, clips of one step over all processes.
    seed : of the permutations.

    Raises
    ------
    ValueError
        If there are no videos, or the batch is empty or larger than the data set.
    """

    videos: int
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.videos < 1:
            raise ValueError("there are no videos to train on")
        if self.batch < 1:
            raise ValueError(f"batch_size is {self.batch}; must be at least 1")
        if self.batch > self.videos:
            raise ValueError(
                f"batch_size is {self.batch}, but there are only {self.videos} videos; "
                "must be at most as many"
            )

    @property
    def steps_per_epoch(self) -> int:
        """How many whole batches n videos give; those left over are others in each epoch."""
        return self.videos // self.batch

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """The order [n] of one epoch."""
        return rng(self.seed, epoch, 0, "order").permutation(self.videos)

    def step(self, step: int) -> list[Key]:
        """The B clips of step `step`, counted from 0 over all epochs."""
        return next(self.from_step(step))

    def from_step(self, step: int) -> Iterator[list[Key]]:
        """The clips of step `step` and of all that follow, without end."""
        if step < 0:
            raise ValueError(f"step is {step}; must be 0 or more")
        epoch, place = divmod(step, self.steps_per_epoch)
        while True:
            order = self.permutation(epoch)
            for at in range(place, self.steps_per_epoch):
                yield [(epoch, int(i)) for i in order[at * self.batch : (at + 1) * self.batch]]
            epoch, place = epoch + 1, 0


class MicroBatches(Sampler[list[Key]]):
    """The micro-batches of one process, for a loader's `batch_sampler`.

    Of each step's B clips, process `rank` of `world` takes the contiguous part of B / world that is
    its own, in B / world / micro_batch pieces.

    Parameters
    ----------
    order : which videos each step takes.
    steps : the run's last step is `steps` - 1.
    start_step : the step to begin with.
    rank, world : this process, and how many there are.
    micro_batch : clips of one piece; 0 takes the process' whole share at once.

    Raises
    ------
    ValueError
        If the processes and micro-batches do not divide the batch, or a number is out of range.
    """

    def __init__(
        self,
        order: Order,
        steps: int,
        *,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        micro_batch: int = 0,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}; must lie within 0 to {world - 1}")
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}; must be 0 or more")
        if micro_batch < 0:
            raise ValueError(f"micro_batch is {micro_batch}; must be 0 or more")
        share, rest = divmod(order.batch, world)
        if rest or not share:
            raise ValueError(
                f"batch_size is {order.batch}; must be divisible by the {world} processes"
            )
        if micro_batch and share % micro_batch:
            raise ValueError(
                f"batch_size is {order.batch}, {share} clips for each of {world} processes; "
                f"must be divisible by micro_batch ({micro_batch})"
            )
        self.order = order
        self.steps = range(start_step, steps)
        self.first, self.share = rank * share, share
        self.micro_batch = micro_batch or share

    @property
    def pieces(self) -> int:
        """Micro-batches of one step."""
        return self.share // self.micro_batch

    def __len__(self) -> int:
        return len(self.steps) * self.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        for _, clips in zip(self.steps, self.order.from_step(self.steps.start), strict=False):
            mine = clips[self.first : self.first + self.share]
            for at in range(0, self.share, self.micro_batch):
                yield mine[at : at + self.micro_batch]
