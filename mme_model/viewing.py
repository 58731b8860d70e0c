"""Every view of every video through a network, whatever the number of processes.

A list is cut into groups of consecutive videos; process r of W takes the groups r, r + W, … So a
group holds the same videos however many processes there are, and what a network makes of them is
the same to the last bit where it runs with the same number of threads.

A video that cannot be read is passed on as such, with the reason; nothing stands in for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .view_data import ViewBatch

__all__ = ["ViewProgress", "autocast", "gathered", "group_size", "in_chunks", "share_of"]

T = TypeVar("T")


def group_size(views: int, batch: int) -> int:
    """Videos of one group: about `batch` views, at least one video."""
    return max(1, batch // views)


def share_of(videos: Sequence[int], size: int, rank: int, world: int) -> list[int]:
    """Of `videos`, in groups of `size`, those of this process; the last group may be smaller."""
    groups = [videos[at : at + size] for at in range(0, len(videos), size)]
    return [video for group in groups[rank::world] for video in group]


def autocast(precision: str, device: torch.device) -> Any:
    """A context for a forward pass; "auto" is bf16 on a GPU and fp32 elsewhere.

    Raises
    ------
    ValueError
        If `precision` is none of auto, fp32, bf16 and fp16.
    """
    kinds = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    kinds["auto"] = torch.bfloat16 if device.type == "cuda" else None
    if precision not in kinds:
        raise ValueError(f"precision is {precision!r}; must be one of auto, fp32, bf16, fp16")
    kind = kinds[precision]
    return torch.autocast(device.type, dtype=kind or torch.bfloat16, enabled=kind is not None)


def in_chunks(function: Callable[[Tensor], Tensor], views: Tensor, batch: int) -> Tensor:
    """`function` of at most `batch` views at once, float32 on the CPU."""
    return torch.cat([function(chunk).float() for chunk in views.split(batch)]).cpu()


def gathered(mine: Sequence[tuple[int, T]], wanted: Iterable[int], world: int) -> dict[int, T]:
    """What all processes found, by the video's index; each has it all.

    Raises
    ------
    RuntimeError
        Unless each video that is wanted is there exactly once.
    """
    every = list(mine)
    if world > 1:
        from accelerate.utils import gather_object

        every = gather_object(every)
    found = dict(every)
    wanted = list(wanted)
    twice = len(every) - len(found)
    lost = {*wanted} - found.keys()
    foreign = found.keys() - {*wanted}
    if twice or lost or foreign:
        raise RuntimeError(
            f"of {len(wanted)} videos {len(lost)} were lost and {twice} counted twice among "
            f"{world} processes ({len(foreign)} were not asked for); nothing is written"
        )
    return {index: found[index] for index in wanted}


class ViewProgress:
    """Views done and views a second: a bar on a terminal, else a line now and then.

    Parameters
    ----------
    what : is done.
    total : videos of this process; the first process alone shows them.
    """

    def __init__(self, what: str, total: int, show: bool = True) -> None:
        self.what, self.total, self.show = what, total, show
        self.views = self.videos = self.missing = 0
        self._begun = self._said = time.perf_counter()
        self._bar: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeRemainingColumn as Remaining

            columns = (TextColumn(what), MofNCompleteColumn(), BarColumn(bar_width=24))
            speed = TextColumn("{task.fields[speed]}")
            self._bar = Progress(*columns, speed, Remaining(), console=Console(stderr=True))
            self._task = self._bar.add_task(what, total=total, speed="")
            self._bar.start()

    @property
    def rate(self) -> float:
        """Views a second of this process since it began, reading included."""
        return self.views / max(time.perf_counter() - self._begun, 1e-9)

    def step(self, batch: ViewBatch) -> None:
        """A batch of views is done."""
        self.views += len(batch)
        self.videos += len(batch.indices) + len(batch.lost)
        self.missing += len(batch.lost)
        if not self.show:
            return
        text = f"{self.rate:.1f} views/s" + (f", {self.missing} unreadable" * bool(self.missing))
        if self._bar is not None:
            self._bar.update(self._task, completed=self.videos, speed=text)
        elif time.perf_counter() - self._said > 20 or self.videos == self.total:
            self._said = time.perf_counter()
            print(
                f"{self.what}: {self.videos}/{self.total} videos, {text}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the bar where it is."""
        if self._bar is not None:
            self._bar.stop()
