"""`mme test` and `mme predict`: a classifier on videos, many views of each (Tables 1 to 3).

A video's probabilities are the mean, over its views, of the softmax of the logits. Each video of
the list counts once, whatever the number of processes: see `viewing`. One that cannot be read is
listed with the reason, and is wrong in the accuracy over all videos.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mme_targets.files import atomic_path

from .finetune_recipe import FinetuneRecipe, ViewConfig
from .known import known_labels, list_hash, some, unique_videos
from .runs import versions
from .scores import Predictions, confusion, figures, write_classes, write_parquet
from .sources import Source
from .viewing import (
    ViewProgress,
    autocast,
    gathered,
    groups_of,
    in_chunks,
    view_groups,
)

__all__ = ["evaluate", "headline", "predict", "probabilities"]

BATCH = 16
"""Views that the network takes at once."""
LISTED = 10
"""Unreadable videos that are printed; the files name them all."""


class _Found(NamedTuple):
    """Of one video: probabilities [classes] float32 or None, its views, and why it has none."""

    probabilities: npt.NDArray[np.float32] | None
    views: int
    reason: str


def evaluate(
    checkpoint: str | os.PathLike[str],
    data: str,
    out: str | os.PathLike[str],
    *,
    views: Mapping[str, Any] | None = None,
    batch: int = BATCH,
    precision: str = "auto",
    unreadable: Literal["wrong", "exclude"] = "wrong",
    cpu: bool = False,
) -> dict[str, Any]:
    """Test a classifier on a list of videos; returns the summary that is also written.

    Under `torchrun` or `accelerate launch` the videos are shared among the processes; the first one
    writes, and what it writes does not depend on how many they were.

    Parameters
    ----------
    checkpoint : of `mme fine-tune`, or any other that holds a classifier.
    data : a list, folder, video or "synthetic"; empty: what the checkpoint was validated on.
        Videos without a label are predicted, and left out of the accuracies.
    out : folder for predictions.parquet, summary.json and, with labels, classes.csv, confusion.png
        and result.md; unreadable.csv where videos could not be read.
    views : changes to the recipe's, such as `{"test_clips": 5, "test_crops": 3, "root": …}`.
    batch : views at once.
    precision : "auto" (bf16 on a GPU, else fp32), "fp32", "bf16" or "fp16".
    unreadable : whether such videos are wrong in the headline accuracy, or left out of it. Both
        accuracies are in the summary either way.
    cpu : leave GPUs alone.

    Raises
    ------
    OSError, ValueError
        Where checkpoint, list or folder cannot be used; where not one video can be read; for labels
        that the classifier does not have, and for a video that is listed with two labels.
    """
    from accelerate import PartialState

    from .convert import load_classifier
    from .views import open_videos

    if batch < 1:
        raise ValueError(f"batch is {batch}; must be at least 1")
    if unreadable not in ("wrong", "exclude"):
        raise ValueError(f"unreadable is {unreadable!r}; must be wrong or exclude")
    folder = _folder(out)
    state = PartialState(cpu=cpu or not torch.cuda.is_available())
    rank, world, main = state.process_index, state.num_processes, state.is_main_process
    model, recipe, classes = load_classifier(checkpoint, state.device)
    config = recipe.views.replace(**(views or {}))
    spec = data or _validated_on(recipe)
    source = open_videos(spec, config, seed=recipe.train.seed, held_out=True, testing=True)
    labels = known_labels(source, classes, spec)
    videos, notes = unique_videos(source, labels)
    groups = groups_of(videos, config.test_clips * config.test_crops, batch)[rank::world]
    with autocast(precision, state.device):
        mine = _run(model, source, config, groups, batch, state.device, main)
    found = gathered(mine, videos, world)
    made = _predictions(source, labels[videos], found, classes)
    if not np.isfinite(made.probabilities[made.read]).all():
        raise ValueError(f"the classifier's outputs are not finite at precision {precision!r}")
    if not made.read.any():
        raise ValueError(f"{spec}: not one of its {len(videos)} videos can be read; the first: "
                         f"{made.names[0]}: {made.reasons[0]}")  # fmt: skip
    summary = {
        "job": "test",
        "checkpoint": os.fspath(checkpoint),
        "data": spec,
        "data_hash": list_hash(source),
        "views": {"clips": config.test_clips, "crops": config.test_crops},
        "unreadable": unreadable,
        **_units(figures(made)),
        "notes": [*notes, *_empty(made)],
        "recipe": recipe.replace(views=config).to_dict(),
        "versions": versions(),
    }
    if main:
        _write(folder, made, summary)
    return summary


def predict(
    video: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    views: Mapping[str, Any] | None = None,
    batch: int = BATCH,
    precision: str = "auto",
    cpu: bool = False,
) -> list[tuple[str, float]]:
    """All classes with their probability for one video, the likeliest first.

    Raises
    ------
    OSError, ValueError, VideoError
        Where the checkpoint cannot be used or the video cannot be read.
    """
    from .convert import load_classifier
    from .views import open_videos, test_views

    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    model, recipe, classes = load_classifier(checkpoint, device)
    config = recipe.views.replace(**(views or {}))
    source = open_videos(os.fspath(video), config, held_out=True, testing=True)
    if len(source) != 1:
        raise ValueError(f"{video} holds {len(source)} videos; `mme test` takes more than one")
    with autocast(precision, device):
        clips = test_views(source, 0, config).to(device)
        shares = probabilities(model, clips, batch).mean(dim=0)
    order = shares.argsort(descending=True, stable=True).tolist()
    return [(classes[i], float(shares[i])) for i in order]


@torch.inference_mode()
def probabilities(model: nn.Module, clips: Tensor, batch: int) -> Tensor:
    """Views [V, T, 3, S, S] on the model's device to float64 [V, classes] on the CPU."""
    return in_chunks(model, clips, batch).double().softmax(dim=1)


def _run(
    model: nn.Module,
    source: Source,
    config: ViewConfig,
    groups: Sequence[Sequence[int]],
    batch: int,
    device: torch.device,
    show: bool,
) -> list[tuple[int, _Found]]:
    found: list[tuple[int, _Found]] = []
    progress = ViewProgress("test", sum(map(len, groups)), show)
    try:
        for group in view_groups(source, config, groups, device=device):
            if group.views is not None:
                shares = probabilities(model, group.views.to(device, non_blocking=True), batch)
                parts = shares.split(group.counts)
                for index, part in zip(group.indices, parts, strict=True):
                    mean = part.mean(dim=0).float().numpy()
                    found.append((index, _Found(mean, len(part), "")))
            found += [(index, _Found(None, 0, why)) for index, why in group.missing]
            progress.step(group)
    finally:
        progress.close()
    return found


def _predictions(
    source: Source,
    labels: npt.NDArray[np.int64],
    found: Mapping[int, _Found],
    classes: Sequence[str],
) -> Predictions:
    nothing = np.full(len(classes), np.nan, dtype=np.float32)
    rows = [nothing if f.probabilities is None else f.probabilities for f in found.values()]
    return Predictions(
        names=[source.name(index) for index in found],
        labels=labels,
        probabilities=np.stack(rows),
        views=np.array([f.views for f in found.values()], dtype=np.int64),
        reasons=[f.reason for f in found.values()],
        classes=classes,
    )


def _empty(made: Predictions) -> list[str]:
    """Classes that no video of the list has."""
    if not (made.labels >= 0).any():
        return []
    present = set(made.labels.tolist())
    empty = [name for number, name in enumerate(made.classes) if number not in present]
    unknown = int((made.labels < 0).sum())
    said = [f"{len(empty)} of {len(made.classes)} classes have no video here: {some(empty)}"]
    unlabelled = [f"{unknown} videos have no label and are left out of the accuracies"]
    return said * bool(empty) + unlabelled * bool(unknown)


def _validated_on(recipe: FinetuneRecipe) -> str:
    if recipe.val:
        return recipe.val
    if recipe.data.split(":")[0] == "synthetic":
        return "synthetic"
    raise ValueError("the checkpoint's recipe names no validation videos; name some by --data")


def _units(values: dict[str, Any]) -> dict[str, Any]:
    counts = {k: v for k, v in values.items() if isinstance(v, int)}
    shares = {k: v for k, v in values.items() if k not in counts}
    return {"counts": counts, "accuracy": shares, "unit": "% of videos"}


def _folder(out: str | os.PathLike[str]) -> Path:
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out is {folder}, which is a file; must be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(folder: Path, made: Predictions, summary: Mapping[str, Any]) -> None:
    from .confusion import draw_confusion

    write_parquet(made, folder / "predictions.parquet")
    lost = [(n, r) for n, r, ok in zip(made.names, made.reasons, made.read, strict=True) if not ok]
    _write_unreadable(folder / "unreadable.csv", lost)
    if summary["accuracy"]:
        write_classes(made, folder / "classes.csv")
        title = headline(summary)
        draw_confusion(confusion(made), made.classes, folder / "confusion.png", title=title)
    with atomic_path(folder / "summary.json") as beside:
        beside.write_text(json.dumps(summary, indent=2))
    for line in [*summary["notes"], *(f"unreadable: {n}: {r}" for n, r in lost[:LISTED])]:
        print(line, file=sys.stderr)
    if len(lost) > LISTED:
        print(f"… and {len(lost) - LISTED} more: unreadable.csv", file=sys.stderr)


def _write_unreadable(path: Path, lost: Sequence[tuple[str, str]]) -> None:
    import csv

    path.unlink(missing_ok=True)  # of an earlier test, which this one takes the place of
    if not lost:
        return
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with atomic_path(path) as beside, beside.open("w", **options) as file:
        table = csv.writer(file)
        table.writerow(("video", "reason"))
        table.writerows(lost)


def headline(summary: Mapping[str, Any]) -> str:
    """Accuracies, views and what is missing, in a line."""
    counts, values = summary["counts"], summary["accuracy"]
    views = f"{summary['views']['clips']} × {summary['views']['crops']} views"
    if not values:
        return f"{counts['read']} videos predicted, {views}; no label is known"
    kind = "all" if summary["unreadable"] == "wrong" else "read"
    text = ", ".join(
        f"top-{k} {values[f'top{k}_{kind}']:.2f} %" for k in (1, 5) if f"top{k}_{kind}" in values
    )
    text += f" of {counts['labelled' if kind == 'all' else 'scored']} videos, {views}"
    if counts["unreadable"]:
        other = "read" if kind == "all" else "all"
        said = {"all": "counted as wrong", "read": "left out"}
        text += (
            f"; {counts['unreadable']} of {counts['videos']} could not be read and are {said[kind]}"
            f" ({values[f'top1_{other}']:.2f} % with them {said[other]})"
        )
    return text


OVERRIDES = {
    "clips": ("test_clips", int, "N", "views in time"),
    "crops": ("test_crops", int, "1|3", "views in space: the centre, or three"),
    "format": ("format", str, "NAME", "format of the list; auto recognises it"),
    "root": ("root", str, "DIR", "folder that the list's paths are relative to"),
    "sampling": ("sampling", str, "segments|dense", "where a view's frames lie"),
    "stride": ("stride", int, "N", "raw frames from one frame of a dense view to the next"),
    "short_side": ("short_side", int, "N", "resize videos to this short side, px; 0: the view's"),
    "workers": ("workers", int, "N", "processes that decode; -1: one a core, less this one"),
}
"""Options that change the recipe's views: field, type, and words for them."""


def add_views(parser: Any) -> None:
    """Options for the views, which are the checkpoint's where they are not given."""
    for name, (_, kind, shown, words) in OVERRIDES.items():
        parser.add_argument(f"--{name}", type=kind | None, default=None, metavar=shown,
                            help=f"{words} [the checkpoint's]")  # fmt: skip
    parser.add_argument("--batch", type=int, default=BATCH, metavar="N",
                        help="views that the network takes at once")  # fmt: skip
    parser.add_argument("--precision", type=str, default="auto", metavar="auto|fp32|bf16|fp16",
                        help="auto is bf16 on a GPU, fp32 elsewhere")  # fmt: skip
    parser.add_argument("--cpu", type=bool, nargs="?", const=True, default=False,
                        help="leave GPUs alone")  # fmt: skip


def views_of(args: Any) -> dict[str, Any]:
    """The changes that `add_views`' options ask for."""
    given = {field: getattr(args, name) for name, (field, *_) in OVERRIDES.items()}
    return {field: value for field, value in given.items() if value is not None}


def add_arguments(parser: Any) -> None:
    """Arguments of `mme test`."""
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT",
                        help="a run of `mme finetune`, or another checkpoint with a "
                        "classifier")  # fmt: skip
    parser.add_argument("--data", type=str, default="", metavar="LIST|DIR|synthetic",
                        help="the videos; empty: what the checkpoint was validated "
                        "on")  # fmt: skip
    parser.add_argument("--out", type=str, required=True, metavar="DIR",
                        help="folder for predictions, tables and picture")  # fmt: skip
    parser.add_argument("--unreadable", type=Literal["wrong", "exclude"], default="wrong",
                        metavar="wrong|exclude",
                        help="what a video that cannot be read is in the accuracy that is "
                        "quoted; both are reported")  # fmt: skip
    add_views(parser)


def run(args: Any) -> int:
    """`mme test`."""
    from accelerate import PartialState

    summary = evaluate(
        args.checkpoint, args.data, args.out, views=views_of(args), batch=args.batch,
        precision=args.precision, unreadable=args.unreadable, cpu=args.cpu,
    )  # fmt: skip
    state = PartialState()
    if state.is_main_process:
        print(headline(summary))
        print(f"predictions.parquet, tables and summary.json -> {args.out}")
    state.destroy_process_group()
    return 0


def add_predict_arguments(parser: Any) -> None:
    """Arguments of `mme predict`."""
    parser.add_argument("video", type=str, metavar="VIDEO", help="a video file")
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT",
                        help="a run of `mme finetune`, or another checkpoint with a "
                        "classifier")  # fmt: skip
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to print")
    add_views(parser)


def run_predict(args: Any) -> int:
    """`mme predict`."""
    from rich.console import Console
    from rich.table import Table

    if args.top < 1:
        raise ValueError(f"--top is {args.top}; must be 1 or more")
    found = predict(args.video, args.checkpoint, views=views_of(args), batch=args.batch,
                    precision=args.precision, cpu=args.cpu)  # fmt: skip
    table = Table(title=args.video, title_justify="left")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for name, share in found[: args.top]:
        table.add_row(name, f"{share:.1%}")
    Console(soft_wrap=True).print(table)
    return 0
