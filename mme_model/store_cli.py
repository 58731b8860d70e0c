"""`mme extract` and `mme store`: tracks of a list of videos, once, into a store."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable
from typing import Any

from mme_targets.cli import add_constants, build_config, progress_bar
from mme_targets.store import Record, Store
from mme_targets.store_config import TrackConfig
from mme_targets.store_job import ExtractJob, Item, Report

from .recipe import ClipConfig

__all__ = ["add_extract", "add_store", "run_extract", "run_store"]

CONSTANTS = (
    *("flow", "weights", "camera_motion", "detector", "bound", "stride", "interpolate"),
    *("length", "grid", "median", "sampling"),
)


def _add_list(parser: Any) -> None:
    parser.add_argument("--format", type=str, default="auto", metavar="NAME",
                        help="of the list: auto, csv, ucf101, hmdb51, ssv2, paths")  # fmt: skip
    parser.add_argument("--root", type=str, default="", metavar="DIR",
                        help="folder that the list's paths are relative to")  # fmt: skip
    parser.add_argument("--short_side", type=int, default=0, metavar="N",
                        help="resize videos to this short side, px; 0 keeps them")  # fmt: skip
    parser.add_argument("--step", type=float, default=0.125, metavar="PX",
                        help="displacements are rounded to multiples of this")  # fmt: skip
    parser.add_argument("--preset", type=typing.Optional[str], default=None, metavar="NAME",  # noqa: UP045
                        help="constants to start from: paper, kinetics400, ssv2")  # fmt: skip
    parser.add_argument("--config", type=typing.Optional[str], default=None, metavar="FILE",  # noqa: UP045
                        help="a YAML or JSON file of constants to start from")  # fmt: skip
    parser.add_argument("--device", type=str, default="", metavar="NAME",
                        help="cpu, cuda or cuda:N; empty: a GPU if there is one")  # fmt: skip
    add_constants(parser, CONSTANTS)


def add_extract(parser: Any) -> None:
    """Arguments of `mme extract`."""
    parser.add_argument("list", type=str, metavar="LIST", help="a list, a folder, or a video")
    parser.add_argument("--out", type=str, required=True, metavar="STORE", help="folder to fill")
    parser.add_argument("--shard", type=str, default="0/1", metavar="I/N",
                        help="every Nth video from the Ith on, from 0: one part of a job "
                        "array")  # fmt: skip
    parser.add_argument("--dry_run", type=bool, nargs="?", const=True, default=False,
                        help="say what is left and what it will take, and do nothing")  # fmt: skip
    parser.add_argument("--retry", type=bool, nargs="?", const=True, default=False,
                        help="try those again that failed before")  # fmt: skip
    parser.add_argument("--have", type=str, default="", metavar="DIR",
                        help="take in what others computed: NAME.gz, NAME.npz or a folder NAME of "
                        ".flo, flow_x/flow_y pictures or videos, for each video; the constants "
                        "below are to say what it is")  # fmt: skip
    parser.add_argument("--byte_bound", type=float, default=20.0, metavar="PX",
                        help="with --have: what 255 stands for in flow as bytes")  # fmt: skip
    parser.add_argument("--ray", type=str, default="", metavar="ADDRESS",
                        help="spread over a Ray cluster; local: this machine")  # fmt: skip
    _add_list(parser)


def add_store(parser: Any) -> None:
    """Arguments of `mme store`."""
    parser.add_argument("action", type=typing.Literal["info", "verify", "merge"],
                        metavar="info|verify|merge",
                        help="say what it holds; read all of it and say what is wrong; make one "
                        "of several")  # fmt: skip
    parser.add_argument("stores", type=str, nargs="+", metavar="STORE",
                        help="the store; for merge, the new one and those to take in")  # fmt: skip
    parser.add_argument("--list", type=str, default="", metavar="LIST",
                        help="verify: the videos that it is of, compared as well")  # fmt: skip
    parser.add_argument("--sample", type=int, default=0, metavar="N",
                        help="verify: extract so many of them anew and compare; needs "
                        "--list")  # fmt: skip
    _add_list(parser)


def items_of(spec: str, args: Any) -> list[Item]:
    """The videos of a list, a folder or a file."""
    from .sources import VideoSource, open_source

    source = open_source(spec, ClipConfig(format=args.format, root=args.root), held_out=False)
    if not isinstance(source, VideoSource):
        raise ValueError(f"{spec!r} names no video files; tracks are extracted of files")
    return [Item(source.name(i), source.path(i)) for i in range(len(source))]


def shard_of(text: str) -> tuple[int, int]:
    """`i/n`, divided further among the processes that `torchrun` started."""
    i, slash, n = text.partition("/")
    if not slash or not i.isdecimal() or not n.isdecimal() or int(i) >= int(n):
        raise ValueError(f"--shard is {text!r}; must be I/N with I from 0 to N - 1")
    rank, world = (int(os.environ.get(k) or d) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    return int(i) + int(n) * rank, int(n) * world


def device_of(name: str) -> str:
    """The device asked for, or the GPU of this process, or the CPU."""
    import torch

    if name:
        return name
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK') or 0) % torch.cuda.device_count()}"


def config_of(args: Any) -> TrackConfig:
    """The tracks that the command line asks for."""
    return TrackConfig.of(build_config(args), short_side=args.short_side, step=args.step)


def run_extract(args: Any) -> int:
    """`mme extract`."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    job = ExtractJob(
        args.out,
        config_of(args),
        items_of(args.list, args),
        shard=shard_of(args.shard),
        device=device_of(args.device),
        retry=args.retry,
        have=args.have,
        bound=args.byte_bound,
    )
    if args.dry_run:
        return _dry_run(job, console)
    many = None
    if args.ray:
        from mme_targets.store_ray import on_ray

        many = on_ray(args.ray)
    left = len(job.left())
    with _progress(left) as (pairs, video):
        report = job.run(pairs=pairs, video=video, many=many)
    _say(report, args.out, console)
    return 0 if not report.failed else 3


def _dry_run(job: ExtractJob, console: Any) -> int:
    from mme_targets.store_tools import estimate

    left = job.left()
    console.print(f"{len(job.items)} videos in the list, {len(left)} left in this part")
    if not left:
        return 0
    found = estimate(job.config, left, device=job.device)
    console.print(
        f"about {found.frames:,} frames ({found.unreadable:.0%} of the videos looked at cannot be "
        f"read): {_duration(found.seconds)} for one process like this one, "
        f"{found.bytes / 2**20:,.1f} MiB on disk"
    )
    return 0


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _say(report: Report, out: str, console: Any) -> None:
    for name, reason in report.failed[:20]:
        console.print(f"  failed: {name}: {reason}", style="red")
    if len(report.failed) > 20:
        console.print(f"  and {len(report.failed) - 20} more; the index lists them", style="red")
    spent = report.seconds
    total = spent.decode + spent.flow + spent.track + spent.write
    if report.pairs and total > 0:
        console.print(
            f"{report.pairs} pairs, {report.pairs / total:.1f} pairs/s: "
            f"{spent.flow / total:.0%} of the time in flow, {spent.decode / total:.0%} decoding, "
            f"{spent.track / total:.0%} tracking, {spent.write / total:.0%} writing"
        )
    console.print(
        f"{report.made} videos extracted ({report.bytes / 2**20:.1f} MiB), {report.done} done, "
        f"{len(report.failed)} failed, {report.left} left -> {out}"
    )


class _progress:
    """A bar over videos with rates, bytes and time left; yields what to call as work is done."""

    def __init__(self, videos: int) -> None:
        self.videos = videos

    def __enter__(self) -> tuple[Callable[[int], Any], Callable[[Record], Any]]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.bar = Progress(
            TextColumn("extract"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.bar.start()
        self.task = self.bar.add_task("", total=self.videos, rates="")
        self.pairs = self.bytes = 0
        return self._pairs, self._video

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def _pairs(self, count: int) -> None:
        self.pairs += count
        self._show()

    def _video(self, record: Record) -> None:
        self.bytes += record.bytes
        self.bar.advance(self.task)
        self._show()

    def _show(self) -> None:
        task = self.bar.tasks[0]
        spent = max(task.elapsed or 0.0, 1e-3)
        self.bar.update(
            self.task,
            rates=f"{task.completed / spent:.2f} videos/s, {self.pairs / spent:.1f} pairs/s, "
            f"{self.bytes / 2**20:.1f} MiB",
        )


def run_store(args: Any) -> int:
    """`mme store`."""
    from rich.console import Console

    from mme_targets.store_tools import merge

    console = Console(soft_wrap=True, highlight=False, markup=False)
    if args.action == "merge":
        if len(args.stores) < 2:
            raise ValueError("merge needs the new store and at least one to take in")
        store = merge(args.stores[0], args.stores[1:])
        return _info(store, console)
    if len(args.stores) != 1:
        raise ValueError(f"{args.action} takes one store, {len(args.stores)} are given")
    store = Store(args.stores[0])
    return _info(store, console) if args.action == "info" else _verify(store, args, console)


def _info(store: Store, console: Any) -> int:
    from mme_targets.store_tools import summary

    found = summary(store)
    console.print(f"{store.path}: format {store.about['format']}, "
                  + ("complete" if found.complete else
                     "extraction is not through, or training fills it"))  # fmt: skip
    console.print(f"  {found.done} videos, {found.frames:,} frames, {found.bytes / 2**20:,.1f} MiB")
    if found.seconds:
        console.print(f"  {found.bytes / found.seconds / 1000:,.1f} kB per second of video")
    for name, value in store.config.items():
        if not isinstance(value, dict):
            console.print(f"  {name} {value}")
    by = [f"{name} {version}" for name, version in store.about["versions"].items()]
    by += [f"commit {store.about['commit'][:12]}"] if store.about["commit"] else []
    console.print(f"  made by {', '.join(by)}")
    for record in found.failed[:20]:
        console.print(f"  failed: {record.name}: {record.reason}")
    if len(found.failed) > 20:
        console.print(f"  and {len(found.failed) - 20} more")
    return 0


def _verify(store: Store, args: Any, console: Any) -> int:
    from mme_targets.store_tools import summary, verify

    held = summary(store)
    sources = {i.name: i.path for i in items_of(args.list, args)} if args.list else None
    config = config_of(args) if args.sample else None
    with progress_bar("verify", held.done + args.sample, "videos") as advance:
        wrong = verify(
            store,
            sources=sources,
            config=config,
            sample=args.sample,
            device=device_of(args.device),
            progress=advance,
        )
    for line in wrong:
        console.print(f"  wrong: {line}")
    compared = f", {args.sample} computed again" if args.sample else ""
    console.print(f"{held.done} videos, {held.frames:,} starts read{compared}: "
                  + (f"{len(wrong)} wrong" if wrong else "all as they should be"))  # fmt: skip
    return 1 if wrong else 0
