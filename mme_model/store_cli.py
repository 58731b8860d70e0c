"""`mme extract` and `mme store`: tracks of a list of videos, once, into a store."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mme_targets import TargetConfig
from mme_targets.cli import NESTED, build_config, progress_bar
from mme_targets.store import Record, Store, StoreError
from mme_targets.store_config import TrackConfig
from mme_targets.store_estimate import estimate
from mme_targets.store_job import ExtractJob, Item, Report
from mme_targets.store_journal import records
from mme_targets.store_tools import (
    Summary,
    finished,
    merge,
    size_text,
    summary,
    unsettled,
    verify,
)

from .recipe import ClipConfig
from .store_options import add_extract, add_store
from .track_options import apart, extract_option, plain

__all__ = ["add_extract", "add_store", "run_extract", "run_store"]

SHOWN = 20
"""Videos that are named one by one."""
UNFINISHED = (
    "not known to be complete: extraction is not through, training fills it, or it was merged of "
    "such"
)


def items_of(spec: str, args: Any) -> list[Item]:
    """The videos of a list, a folder or a file."""
    from .sources import VideoSource, open_source

    clips = ClipConfig(format=args.format, root=args.root or "")
    source = open_source(spec, clips, held_out=False)
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


def device_of(name: str | None) -> str:
    """The device asked for, or the GPU of this process, or the CPU."""
    import torch

    if name:
        return name
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK') or 0) % torch.cuda.device_count()}"


def config_of(args: Any, held: TrackConfig | None = None) -> TrackConfig:
    """The tracks that the command line asks for.

    Parameters
    ----------
    held : what is not given is taken from it; by default the paper's.
    """
    given = args.as_dict()
    short_side, step = given["short_side"], given["step"]
    if held is None or given["preset"] or given["config"]:
        usual = held or TrackConfig()
        return TrackConfig.of(
            build_config(args),
            short_side=usual.short_side if short_side is None else short_side,
            step=usual.step if step is None else step,
        )
    changes = {name: given[name] for name in held.to_dict() if given.get(name) is not None}
    for name in NESTED:
        inner = {key: value for key, value in given[name].items() if value is not None}
        changes[name] = getattr(held, name).replace(**inner)
    every, stride = given["interpolate"], given["stride"]
    if every is None:
        every = held.flow_stride == 1
    usual_stride = held.flow_stride if held.flow_stride > 1 else TargetConfig().stride
    changes["flow_stride"] = 1 if every else stride or usual_stride
    return held.replace(**changes)


def run_extract(args: Any) -> int:
    """`mme extract`."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    config = config_of(args)
    _agree(args.out, config)
    job = ExtractJob(
        args.out,
        config,
        items_of(args.list, args),
        shard=shard_of(args.shard),
        device=device_of(args.device),
        retry=args.retry,
        have=args.have or "",
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
        try:
            report = job.run(pairs=pairs, video=video, many=many)
        except OSError as error:
            short = error.errno or getattr(error.__cause__, "errno", None)
            if short not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                f"{args.out}: {os.strerror(short)}. What was extracted is kept: make room, and the "
                "same command goes on with what is left"
            ) from None
    _say(report, args, console)
    return 0 if not report.failed else 3


def _agree(out: str, config: TrackConfig) -> None:
    """Refuse, before the work, what cannot become a store, and one that was made otherwise."""
    config.described()  # fails where the weights are missing
    Store.check_place(out)
    if not (Path(out) / "zarr.json").is_file():
        return
    store = Store(out)
    found = apart(store.config, config)
    if found:
        lines = [one.sides("asked for") for one in found]
        options = " ".join(one.to_held(extract_option) for one in found)
        raise StoreError(
            f"{store.path} was made with other constants: {'; '.join(lines)}: pass {options}, or "
            "name another --out"
        )


def _dry_run(job: ExtractJob, console: Any) -> int:
    left = job.left()
    part = f" in part {job.shard[0]}/{job.shard[1]}" if job.shard[1] > 1 else ""
    console.print(f"{_videos(len(job.items))} in the list, {len(left)} left{part}")
    if (job.out / "zarr.json").is_file() and not job.retry:
        known = records(Store(job.out))
        failed = [i for i in job.items if i.name in known and not known[i.name].done]
        if failed:
            console.print(f"{_videos(len(failed))} failed before: --retry tries them again")
    if not left:
        return 0
    found = estimate(job.config, left, device=job.device)
    if found.unreadable:
        console.print(
            f"{len(found.unreadable)} of the {found.looked_at} videos looked at cannot be read:"
        )
    for name, reason in found.unreadable:
        console.print(f"  {name}: {reason}")
    console.print(
        f"about {found.frames:,} frames: {_duration(found.seconds)} for one process like this one, "
        f"{size_text(found.bytes)} on disk"
        + (" (were flow computed; with --have it takes less time)" if job.have else "")
    )
    return 0


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _videos(count: int) -> str:
    return f"{count:,} video" + "s" * (count != 1)


def _say(report: Report, args: Any, console: Any) -> None:
    _noted(report.short, console)
    _failures(report.failed, console)
    if report.failed and not args.retry:
        console.print("  --retry tries them again")
    spent = report.seconds
    total = spent.decode + spent.flow + spent.track + spent.write
    if report.pairs and total > 0:
        console.print(
            f"{report.pairs} pairs, {report.pairs / total:.1f} pairs/s: "
            f"{spent.flow / total:.0%} of the time in flow, {spent.track / total:.0%} tracking, "
            f"{spent.decode / total:.0%} until frames were decoded, "
            f"{spent.write / total:.0%} until tracks were written"
        )
    console.print(
        f"{_videos(report.made)} extracted ({size_text(report.bytes)}); of the list {report.done} "
        f"done, {len(report.failed)} failed, {report.left} left"
        + " to other parts" * (report.left > 0)
        + f" -> {args.out}"
    )


def _noted(short: Sequence[tuple[str, str]], console: Any) -> None:
    """Videos whose files are cut short: their tracks are of what is left."""
    for name, how in short[:SHOWN]:
        console.print(f"  note: {name} is {how}", style="yellow")
    if len(short) > SHOWN:
        console.print(f"  and {len(short) - SHOWN} more; the index lists them", style="yellow")


def _failures(failed: Sequence[tuple[str, str]], console: Any) -> None:
    for name, reason in failed[:SHOWN]:
        console.print(f"  failed: {name}: {reason}", style="red")
    if len(failed) > SHOWN:
        console.print(f"  and {len(failed) - SHOWN} more; the index lists them", style="red")


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
        if self.videos:
            self.bar.start()
        self.task = self.bar.add_task("", total=self.videos, rates="")
        self.pairs = self.bytes = 0
        return self._pairs, self._video

    def __exit__(self, *_: object) -> None:
        if self.videos:
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
            f"{size_text(self.bytes)}",
        )


def run_store(args: Any) -> int:
    """`mme store`."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    action, args = args.action, args[args.action]
    if action == "merge":
        if len(args.stores) < 2:
            raise ValueError("merge needs the new store and at least one to take in")
        return _merge(args, console)
    if len(args.stores) != 1:
        raise ValueError(f"{action} takes one store, {len(args.stores)} are given")
    store = Store(args.stores[0])
    if action == "verify":
        return _verify(store, args, console)
    _info(store, console)
    return 0


def _merge(args: Any, console: Any) -> int:
    out, *parts = args.stores
    names = [item.name for item in items_of(args.list, args)] if args.list else None
    there = [out] * (Path(out) / "zarr.json").is_file()
    left = unsettled([Store(path) for path in (*there, *parts)])
    store = merge(out, parts, names=names)
    failed = _info(store, console).failed
    if finished(store):
        return 3 if failed else 0
    if names is not None:
        known = records(store)
        absent = [name for name in names if name not in known]
        for name in absent[:SHOWN]:
            console.print(f"  left: {name}")
        console.print(f"{_videos(len(absent))} of {args.list} left: mme extract {args.list} "
                      f"--out {out} goes on with them")  # fmt: skip
        return 3
    for line in left:
        console.print(f"  {line}")
    console.print(
        "whether these are all videos of the list, and how those left are called, is not known "
        f"here: --list LIST says it, and mme extract LIST --out {out} goes on with what is left"
    )
    return 3 if failed or left else 0


def _info(store: Store, console: Any) -> Summary:
    found = summary(store)
    if not found.complete:
        state = UNFINISHED
    else:
        state = f"complete but for {len(found.failed)} that failed" if found.failed else "complete"
    console.print(f"{store.path}: format {store.about['format']}, {state}")
    console.print(f"  {_videos(found.done)}, {found.frames:,} frames, {size_text(found.bytes)}"
                  + f"; {len(found.failed)} failed" * bool(found.failed))  # fmt: skip
    if found.seconds:
        console.print(f"  {size_text(found.bytes / found.seconds)} per second of video")
    for name, value in store.config.items():
        if not isinstance(value, dict):
            console.print(f"  {name} {plain(value)}")
    by = [f"{name} {version}" for name, version in store.about["versions"].items()]
    by += [f"commit {store.about['commit'][:12]}"] if store.about["commit"] else []
    console.print(f"  made by {', '.join(by)}")
    _noted([(record.name, record.short) for record in found.short], console)
    _failures([(record.name, record.reason) for record in found.failed], console)
    return found


def _verify(store: Store, args: Any, console: Any) -> int:
    config = _own(store, args)
    if args.sample > 0 and not args.list:
        raise ValueError("--sample needs --list: a store does not say where its videos are")
    sources = {i.name: i.path for i in items_of(args.list, args)} if args.list else None
    device = device_of(args.device)
    if args.sample:
        console.print(f"--sample computes on {device}; a store does not say on which device it was "
                      "made, and another (--device) may round some values otherwise")  # fmt: skip
    held, read = summary(store), 0
    with progress_bar("verify", held.done + min(args.sample, held.done), "videos") as advance:

        def progress(count: int) -> None:
            nonlocal read
            read += count
            advance(count)

        wrong = verify(
            store,
            sources=sources,
            config=config if args.sample else None,
            sample=args.sample,
            device=device,
            progress=progress,
        )
    for line in wrong:
        console.print(f"  wrong: {line}")
    if wrong:
        console.print(f"  mme extract LIST --out {store.path} --retry makes what is damaged or "
                      "missing anew")  # fmt: skip
    if not held.complete:
        console.print(f"  {UNFINISHED}" + "; --list says what is left" * (not args.list))
    compared = f", {read - held.done} computed again" if args.sample else ""
    failed = f", {len(held.failed)} failed" * bool(held.failed)
    console.print(f"{_videos(held.done)}{failed}, {held.frames:,} frames, {size_text(held.bytes)} "
                  f"read{compared}: " + (f"{len(wrong)} wrong" if wrong else "all as they should "
                  "be"))  # fmt: skip
    return 1 if wrong else 0


def _own(store: Store, args: Any) -> TrackConfig:
    """What a store says that it was made with, RAFT's weights from the command line.

    Raises
    ------
    ValueError
        If options say otherwise, or the weights are needed and not given.
    """
    held = TrackConfig.of_described(store.config, args.weights or "")
    asked = config_of(args, held)
    if held.flow == asked.flow == "raft" and not args.weights:
        if args.sample:
            raise ValueError(
                f"{store.path} was made with RAFT and has the digest of its weights alone: "
                "--sample needs the file, --weights FILE"
            )
        return held
    weights = {name: value for name, value in store.config.items() if name == "weights"}
    found = apart({**held.described(), **weights}, asked)
    if found:
        lines = [one.sides("on the command line") for one in found]
        raise StoreError(
            f"{store.path} was made with other constants: {'; '.join(lines)}; leave these options "
            "out, for it says itself what it was made with"
        )
    return asked
