"""Every view of every video through a network, whatever the number of processes.

A list is cut into groups of consecutive videos; process r of W takes the groups r, r + W, … So a
group holds the same videos however many processes there are, and what a network makes of them is
the same to the last bit where it runs with the same number of threads.

A video that cannot be read is passed on as such, with the reason; nothing stands in for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from mme_targets.demux import VideoError

from .finetune_recipe import ViewConfig
from .loading import Loader, pins, reason, worker_count
from .order import Key
from .sources import Source

__all__ = ["Group", "ViewProgress", "autocast", "gathered", "groups_of", "in_chunks"]
__all__ += ["read_group", "view_count", "view_groups"]

T = TypeVar("T")


class Group(NamedTuple):
    """Videos that are read and run together.

    Attributes
    ----------
    indices : of the videos that were read, in the list's order.
    counts : views of each.
    views : uint8 [sum of counts, T, 3, S, S]; None where no video of the group was read.
    missing : (index, reason) of those that were not.
    """

    indices: list[int]
    counts: list[int]
    views: Tensor | None
    missing: list[tuple[int, str]]


def view_count(views: ViewConfig) -> str:
    """Such as "5 × 3": views in time by views in space, as the tables' FLOPs have it."""
    return f"{views.test_clips} × {views.test_crops}"


def groups_of(videos: Sequence[int], views: int, batch: int) -> list[list[int]]:
    """Cut `videos` into groups of about `batch` views, at least one video each."""
    size = max(1, batch // views)
    return [list(videos[at : at + size]) for at in range(0, len(videos), size)]


def view_groups(
    source: Source,
    config: ViewConfig,
    groups: Sequence[Sequence[int]],
    *,
    device: torch.device,
) -> Iterator[Group]:
    """Read the groups in order, ahead of their use, in `config.workers` processes.

    Raises
    ------
    OSError, ValueError
        Where a video is not to blame: memory, open files, a source that is used wrongly.
    """
    if not groups:
        return
    yield from Loader(
        partial(_read, source, config),
        [[(0, index) for index in group] for group in groups],
        workers=min(worker_count(config.workers), len(groups)),
        prefetch=config.prefetch,
        pin=pins(device),
    )


def _read(source: Source, config: ViewConfig, keys: list[Key]) -> Group:
    return read_group(source, config, [index for _, index in keys])


def read_group(source: Source, config: ViewConfig, videos: Sequence[int]) -> Group:
    """The views of these videos, and why some have none."""
    read: dict[int, Tensor] = {}
    missing: list[tuple[int, str]] = []
    for index in videos:
        made = _views_or_reason(source, config, index)
        if isinstance(made, str):
            missing.append((index, made))
        else:
            read[index] = made
    counts = [len(views) for views in read.values()]
    return Group(list(read), counts, torch.cat(list(read.values())) if read else None, missing)


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


def _views_or_reason(source: Source, config: ViewConfig, index: int) -> Tensor | str:
    from .views import test_views

    try:
        return test_views(source, index, config)
    except (VideoError, OSError) as error:
        return reason(error)


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
    lost = sorted({*wanted} - found.keys())
    foreign = sorted(found.keys() - {*wanted})
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

    def step(self, group: Group) -> None:
        """A group is done."""
        self.views += sum(group.counts)
        self.videos += len(group.indices) + len(group.missing)
        self.missing += len(group.missing)
        if not self.show:
            return
        text = f"{self.rate:.1f} views/s" + (f", {self.missing} unreadable" * bool(self.missing))
        if self._bar is not None:
            self._bar.update(self._task, completed=self.videos, speed=text)
        elif time.perf_counter() - self._said > 20 or self.videos == self.total:
            self._said = time.perf_counter()
            print(f"{self.what} {self.videos}/{self.total}  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar where it is."""
        if self._bar is not None:
            self._bar.stop()
