"""`mme targets`, `mme show`, `mme demo`, `mme doctor`; what fails says so in one line."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .backends import FLOORS
from .config import SurfConfig, TargetConfig, Tvl1Config

PRESETS = ("paper", "kinetics400", "ssv2", "released")
NESTED = ("tvl1", "surf")
"""Fields of `TargetConfig` that are configs of their own."""


class Command(NamedTuple):
    """One command of `mme`."""

    summary: str
    usage: str
    description: str
    add_arguments: Callable[[Any], None]
    run: Callable[[Any], int]


def _add_targets(parser: Any) -> None:
    _add_video(parser, "the .safetensors file to write")
    parser.add_argument("--all", type=bool, nargs="?", const=True, default=False,
                        help="every clip of the video, not the first alone")  # fmt: skip
    parser.add_argument("--overlap", type=int, default=0, metavar="N",
                        help="raw frames that consecutive clips share, with --all")  # fmt: skip
    add_constants(parser)


def _add_show(parser: Any) -> None:
    _add_video(parser, ".png: the start frames; .mp4: tracks that grow; .html: a page to explore")
    add_constants(parser)


def _add_demo(parser: Any) -> None:
    parser.add_argument("--out", type=str, default="mme_demo", metavar="DIR",
                        help="folder to write to")  # fmt: skip


def _add_doctor(parser: Any) -> None:
    parser.add_argument("--json", type=bool, nargs="?", const=True, default=False,
                        help="print one JSON object")  # fmt: skip


def _add_video(parser: Any, out: str) -> None:
    parser.add_argument("video", type=str, metavar="VIDEO", help="a video file")
    parser.add_argument("--out", type=str, required=True, metavar="FILE", help=out)
    parser.add_argument("--start", type=int, default=0, metavar="N",
                        help="raw index of the clip's first frame")  # fmt: skip
    parser.add_argument("--crop", type=str, default="center", metavar="center|none",
                        help="resize the short side to --size and cut out the centre, or keep the "
                        "resolution (less what exceeds whole patches)")  # fmt: skip
    parser.add_argument("--backend", type=str, default="auto", metavar="|".join(("auto", *FLOORS)),
                        help="which floor computes")  # fmt: skip
    parser.add_argument("--preset", type=typing.Optional[typing.Literal[PRESETS]],  # noqa: UP045
                        default=None, metavar="|".join(PRESETS),
                        help="where the constants below start from (default: paper)")  # fmt: skip
    parser.add_argument("--config", type=typing.Optional[str], default=None, metavar="FILE",  # noqa: UP045
                        help="YAML or JSON of constants, in place of the preset")  # fmt: skip


def _add_flow(parser: Any) -> None:
    parser.add_argument("video", type=str, metavar="VIDEO", help="a video file")
    parser.add_argument("--out", type=str, required=True, metavar="FILE|DIR",
                        help=".mp4: colours beside the frames; .npz: arrays; a folder, new or "
                        "empty: one .flo a pair")  # fmt: skip
    parser.add_argument("--start", type=int, default=0, metavar="N",
                        help="raw index of the first frame")  # fmt: skip
    parser.add_argument("--count", type=typing.Optional[int], default=None, metavar="N",  # noqa: UP045
                        help="pairs of neighbouring frames (default: all to the end)")  # fmt: skip
    parser.add_argument("--short_side", type=typing.Optional[int], default=None, metavar="N",  # noqa: UP045
                        help="resize the short side to this, px (default: as it is)")  # fmt: skip
    add_constants(parser, ("flow", "weights", "camera_motion", "detector", "bound"))


def add_constants(parser: Any, names: tuple[str, ...] = ()) -> None:
    groups: tuple[tuple[type, str, str], ...] = (
        (TargetConfig, "", "constants of the paper"),
        (Tvl1Config, "tvl1.", "TV-L1, for --flow tvl1"),
        (SurfConfig, "surf.", "SURF, for --detector surf (patented in the US)"),
    )
    for cls, prefix, title in groups:
        group = parser.add_argument_group(title)
        docs, defaults, hints = field_docs(cls), cls(), typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if f.name in NESTED or (names and not prefix and f.name not in names):
                continue
            value = getattr(defaults, f.name)
            plain = ",".join(value) if isinstance(value, tuple) else json.dumps(value)
            plain = plain.strip('"')
            kind: Any = type(value) if isinstance(value, (int, float)) else str
            names_of = {bool: "BOOL", str: "A,B,…" if value else "FILE"}
            choices = typing.get_args(hints[f.name]) if isinstance(value, str) else ()
            group.add_argument(
                f"--{prefix}{f.name}",
                type=typing.Optional[kind],  # noqa: UP045
                default=None,
                metavar="|".join(choices) or names_of.get(kind, "N"),
                help=f"{docs[f.name]} (paper: {plain})".replace("%", "%%"),
            )


def field_docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a class, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr)
            assert isinstance(text.value, ast.Constant)
            docs[field.target.id] = " ".join(str(text.value.value).split())
    return docs


def build_config(args: Any) -> TargetConfig:
    """The preset or file, with what the command line says on top."""
    given = args.as_dict()
    if given.get("config") is not None:
        if given["preset"] is not None:
            raise ValueError("--config and --preset are both given; constants start from one")
        base = TargetConfig.load(given["config"])
    else:
        base = getattr(TargetConfig, given.get("preset") or "paper")()
    values = base.to_dict()
    for f in dataclasses.fields(TargetConfig):
        if f.name not in NESTED and given.get(f.name) is not None:
            value = given[f.name]
            values[f.name] = value.split(",") if f.name == "targets" else value
    for nested in NESTED:
        for name, value in given[nested].items():
            if value is not None:
                values[nested][name] = value
    return TargetConfig.from_dict(values)


def build_job(args: Any, every: bool = False, overlap: int = 0) -> Any:
    """The video and its clips."""
    from .extract import VideoJob

    if args.crop not in ("center", "none"):
        raise ValueError(f"--crop is {args.crop!r}; must be center or none")
    return VideoJob(
        args.video,
        build_config(args),
        start=args.start,
        every=every,
        overlap=overlap,
        crop=args.crop == "center",
    )


def run_targets(args: Any) -> int:
    """`mme targets`."""
    from rich.console import Console

    from .extract import write_targets
    from .files import check_writable

    if Path(args.out).suffix != ".safetensors":
        raise ValueError(
            f"--out is {args.out!r}; must end in .safetensors, which is what it will be"
        )
    if args.overlap and not args.all:
        raise ValueError(f"--overlap is {args.overlap}, which needs --all")
    check_writable(args.out)
    job = build_job(args, args.all, args.overlap)
    with progress_bar("flow", job.pairs, "pairs") as advance:
        report = write_targets(job, args.out, backend=args.backend, progress=advance)
    console = Console(soft_wrap=True)
    for name, shape in report.shapes.items():
        if not name.endswith((".mean", ".std")):
            console.print(f"  {name:<12} {list(shape)}", highlight=False, markup=False)
    _say(console, job, report.visible, report.still)
    plural = "" if report.clips == 1 else "s"
    console.print(f"{report.clips} clip{plural} of {args.video} -> {args.out}", highlight=False)
    return 0


def _say(console: Any, job: Any, visible: float | None, still: int) -> None:
    """How much of a video can be used."""
    config, pairs = job.config, job.pairs
    if job.info.short:
        console.print(f"  note: {job.path} is {job.info.short}", highlight=False, markup=False)
    if visible is not None:
        console.print(f"  {visible:.1%} of the tracks stay in view", highlight=False)
    if config.camera_motion and pairs:
        console.print(
            f"  camera motion removed from {pairs - still} of {pairs} pairs"
            + (" (the others gave no homography and keep it)" if still else ""),
            highlight=False,
        )


def run_show(args: Any) -> int:
    """`mme show`."""
    from rich.console import Console

    from .files import check_apart, check_writable
    from .show import check_kind, save

    check_kind(args.out)
    check_writable(args.out)
    job = build_job(args)
    check_apart(args.out, args.video)
    if job.config.length < 1:
        raise ValueError("--length is 0, which leaves no track to show")
    with progress_bar("flow", job.pairs, "pairs") as advance:
        (one,) = job.measure(advance)
    visible = save(one, job.config, args.out, args.backend)
    console = Console(soft_wrap=True)
    _say(console, job, visible, one.still)
    console.print(f"tracks of {args.video} -> {args.out}", highlight=False)
    return 0


def run_flow(args: Any) -> int:
    """`mme flow`."""
    from rich.console import Console

    from .flow_files import FlowJob, write_flow

    job = FlowJob(
        args.video,
        build_config(args),
        start=args.start,
        count=args.count,
        short_side=args.short_side,
    )
    with progress_bar("flow", job.pairs, "pairs") as advance:
        still = write_flow(job, args.out, advance)
    console = Console(soft_wrap=True)
    _say(console, job, None, still)
    plural = "" if job.pairs == 1 else "s"
    console.print(
        f"flow of {job.pairs} pair{plural} of {args.video} -> {args.out}", highlight=False
    )
    return 0


def run_demo(args: Any) -> int:
    """`mme demo`."""
    from rich.console import Console
    from rich.table import Table

    from .demo import SIZE, demo_config, run
    from .plan import ClipPlan

    console = Console(soft_wrap=True)
    config: TargetConfig = demo_config()
    console.print(
        f"A textured scene with two moving discs, {SIZE}x{SIZE}, 64 frames: "
        f"{config.frames} frames of stride {config.stride}, tracks of {config.length} steps.",
        highlight=False,
    )
    with progress_bar("flow", len(ClipPlan.build(config).pairs), "pairs") as advance:
        done = run(Path(args.out), advance)
    table = Table(title="Distance of tracks from the truth after 6 steps", title_justify="left")
    for name in ("tracks", "count", "true motion", "median", "90 % below", "within 1 px"):
        table.add_column(name, justify="left" if name == "tracks" else "right")
    for row in done.accuracy:
        table.add_row(row.what, str(row.count), f"{row.moved:.2f} px", f"{row.median:.2f} px",
                      f"{row.p90:.2f} px", f"{row.within:.0%}")  # fmt: skip
    console.print(table)
    names = ("position", "shape", "visible")
    shapes = ", ".join(f"{name} {list(done.report.shapes[name])}" for name in names)
    console.print(f"video    {done.video}", highlight=False)
    console.print(f"targets  {done.targets}  ({shapes})", highlight=False, markup=False)
    console.print(f"picture  {done.picture}", highlight=False)
    console.print(f"page     {done.page}  (open it in a browser)", highlight=False)
    return 0


def run_doctor(args: Any) -> int:
    """`mme doctor`."""
    from .doctor import render, report

    found = report()
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        render(found)
    return 0


@contextmanager
def progress_bar(title: str, total: int, unit: str) -> Iterator[Any]:
    """A bar with rate and time left on stderr; yields the function that advances it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            # Of all that is done: work comes in blocks, so that the last seconds tell little.
            spent = task.finished_time or task.elapsed
            known = spent and task.completed
            return Text(f"{task.completed / spent:.1f} {unit}/s" if known else f"– {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def fail(error: BaseException) -> int:
    """Say what went wrong in one line; returns the exit status."""
    print(f"mme: error: {error}", file=sys.stderr)
    return 1


COMMANDS = {
    "targets": Command(
        "make motion targets of a video",
        "mme targets VIDEO --out FILE.safetensors [option ...]",
        "Make motion targets of a video and write them (safetensors).",
        _add_targets,
        run_targets,
    ),
    "show": Command(
        "draw tracks: a picture, a video or a page",
        "mme show VIDEO --out FILE.png|.mp4|.html [option ...]",
        "Draw the tracks of a clip over its frames (Figs. 4 and 6).",
        _add_show,
        run_show,
    ),
    "flow": Command(
        "optical flow: a video in colours, arrays, or .flo files",
        "mme flow VIDEO --out FILE.mp4|FILE.npz|DIR [option ...]",
        "Optical flow between neighbouring frames, before and after camera motion is removed.",
        _add_flow,
        run_flow,
    ),
    "demo": Command(
        "the whole of it on a small rendered scene",
        "mme demo [--out DIR]",
        "Render a scene with known motion, make targets and pictures of it, and print how far the "
        "tracks are from the truth.",
        _add_demo,
        run_demo,
    ),
    "doctor": Command(
        "what runs here, and why the rest does not",
        "mme doctor [--json]",
        "What runs here, and why the rest does not.",
        _add_doctor,
        run_doctor,
    ),
}
"""Every command that this package gives to `mme`."""
