"""`mme test` and `mme predict`: a classifier on videos, many views of each (Tables 1 to 3).

A video's probabilities are the mean, over its views, of the softmax of the logits. Each video of
the list counts once, whatever the number of processes: see `viewing`. One that cannot be read is
listed with the reason, and is wrong in the accuracy over all videos.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .finetune_recipe import FinetuneRecipe, ViewConfig
from .labels import data_hash, numbered, some
from .listed import known_labels, seen_in_training, unique_videos
from .reports import add_overwrite, out_folder, refuse_others, write_report
from .results import Row
from .runs import versions
from .scores import Predictions
from .sources import Source, VideoSource, one_video
from .view_data import eval_loader
from .viewing import ViewProgress, autocast, gathered, group_size, in_chunks, share_of

__all__ = ["evaluate", "predict", "probabilities"]

BATCH = 16
"""Views that the network takes at once."""


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
    overwrite: bool = False,
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
        and row.md; unreadable.csv where videos could not be read.
    views : changes to the recipe's, such as `{"test_clips": 5, "test_crops": 3, "root": …}`.
    batch : views at once.
    precision : "auto" (bf16 on a GPU, else fp32), "fp32", "bf16" or "fp16".
    unreadable : whether such videos are wrong in the headline accuracy, or left out of it. Both
        accuracies are in the summary either way.
    overwrite : replace results of another checkpoint or list in `out`; those of the same are in any
        case.
    cpu : leave GPUs alone.

    Raises
    ------
    OSError, ValueError
        Where checkpoint, list or folder cannot be used; where the folder holds a run, or unless
        `overwrite` results of another checkpoint or list; where not one video can be read; for
        labels that the classifier does not have or that number its classes otherwise
        (`labels.numbered`), and for a video that is listed with two labels.
    """
    from accelerate import PartialState

    from .convert import noted_classifier
    from .views import open_videos

    if batch < 1:
        raise ValueError(f"batch is {batch}; must be at least 1")
    if unreadable not in ("wrong", "exclude"):
        raise ValueError(f"unreadable is {unreadable!r}; must be wrong or exclude")
    folder = out_folder(out)
    state = PartialState(cpu=cpu or not torch.cuda.is_available())
    rank, world, main = state.process_index, state.num_processes, state.is_main_process
    model, recipe, classes, said = noted_classifier(checkpoint, state.device)
    config = recipe.views.replace(**(views or {}))
    spec = data or _validated_on(recipe)
    whose = {"job": "test", "checkpoint": os.fspath(checkpoint), "data": spec}
    refuse_others(folder, whose, overwrite)
    source = open_videos(spec, config, seed=recipe.train.seed, held_out=True, testing=True)
    labels = known_labels(source, classes, spec)
    assumed = numbered(source, labels.tolist(), classes, spec)
    videos, notes = unique_videos(source, labels)
    size = group_size(config.test_clips * config.test_crops, batch)
    share = share_of(videos, size, rank, world)
    with autocast(precision, state.device):
        mine = _run(model, source, config, share, size, batch, state.device, main)
    found = gathered(mine, videos, world)
    made = _predictions(source, labels[videos], found, classes)
    if not np.isfinite(made.probabilities[made.read]).all():
        raise ValueError(f"the classifier's outputs are not finite at precision {precision!r}")
    if not made.read.any():
        raise ValueError(f"{spec}: not one of its {len(videos)} videos can be read; the first: "
                         f"{made.names[0]}: {made.reasons[0]}")  # fmt: skip
    about = {
        **whose,
        "data_hash": data_hash(source),
        "views": {"clips": config.test_clips, "crops": config.test_crops},
        "unreadable": unreadable,
        "notes": [*said, *assumed, *notes, *seen_in_training(source, recipe), *_empty(made)],
        "recipe": recipe.replace(views=config).to_dict(),
        "versions": versions(),
    }
    return write_report(folder, made, about, _row(checkpoint, model, recipe), write=main)


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

    Parameters
    ----------
    video : a file, or "synthetic/N" for the built-in held-out video number N.
    checkpoint, views, batch, precision, cpu : as `evaluate`.

    Raises
    ------
    OSError, ValueError, VideoError
        Where the checkpoint cannot be used or the video cannot be read.
    """
    from .convert import noted_classifier
    from .views import open_videos, test_views

    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    model, recipe, classes, said = noted_classifier(checkpoint, device)
    for note in said:
        print(f"note: {note}", file=sys.stderr)
    config = recipe.views.replace(**(views or {}))
    built_in = _built_in(video)
    number = built_in or 0
    spec = os.fspath(video) if built_in is None else f"synthetic:{number + 1}"
    source: Source
    if built_in is None and os.path.isfile(spec):
        source = VideoSource(one_video(spec), short_side=config.short_side or config.size)
    else:
        source = open_videos(spec, config, held_out=True, testing=True)
    if len(source) != 1 and built_in is None:
        raise ValueError(f"{video} holds {len(source)} videos; `mme test` takes more than one")
    with autocast(precision, device):
        clips = test_views(source, number, config).to(device)
        shares = probabilities(model, clips, batch).mean(dim=0)
    order = shares.argsort(descending=True, stable=True).tolist()
    return [(classes[i], float(shares[i])) for i in order]


def _built_in(video: str | os.PathLike[str]) -> int | None:
    """N of "synthetic/N"; None of all else."""
    found = re.fullmatch(r"synthetic/(\d{1,9})", os.fspath(video))
    return int(found[1]) if found else None


@torch.inference_mode()
def probabilities(model: nn.Module, clips: Tensor, batch: int) -> Tensor:
    """Views [V, T, 3, S, S] on the model's device to float64 [V, classes] on the CPU."""
    return in_chunks(model, clips, batch).double().softmax(dim=1)


def _run(
    model: nn.Module,
    source: Source,
    config: ViewConfig,
    videos: Sequence[int],
    size: int,
    batch: int,
    device: torch.device,
    show: bool,
) -> list[tuple[int, _Found]]:
    """What this process finds of its videos, by index."""
    found: list[tuple[int, _Found]] = []
    if not videos:
        return found
    progress = ViewProgress("test", len(videos), show)
    try:
        for views in eval_loader(config, source, videos, device=device, videos=size):
            if len(views):
                clips = views.rgb.to(device, non_blocking=True)
                shares = probabilities(model, clips, batch)
                for index in views.indices:
                    own = shares[views.videos == index]
                    found.append((index, _Found(own.mean(dim=0).float().numpy(), len(own), "")))
            lost = zip(views.lost, views.skipped, strict=True)
            found += [(index, _Found(None, 0, why)) for index, (_, why) in lost]
            progress.step(views)
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


def _row(checkpoint: str | os.PathLike[str], model: nn.Module, recipe: FinetuneRecipe) -> Row:
    """What the tables say of the classifier, accuracy and views left open."""
    init = _init_of(Path(checkpoint))
    scratch = "from scratch" if not recipe.init else f"from {Path(recipe.init).name}"
    return Row(
        model=recipe.model,
        clip=recipe.views,
        parameters=sum(p.numel() for p in model.parameters()),
        clips=1,
        crops=1,
        accuracy=None,
        method=init.get("method", scratch),
        data=init.get("data", "-"),
        epochs=init.get("epochs", "-"),
    )


def _init_of(checkpoint: Path) -> dict[str, str]:
    """What the run that the checkpoint is of says of its encoder's pre-training."""
    for folder in [checkpoint, *checkpoint.parents][:4]:
        try:
            found = json.loads((folder / "summary.json").read_text()).get("init")
        except (OSError, ValueError, AttributeError):
            continue
        return found if isinstance(found, dict) else {}
    return {}


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
LISTS = ("format", "root", "workers")
"""Those of them that say nothing of a single video."""


def add_views(parser: Any, *, lists: bool = True, **otherwise: str) -> None:
    """Options for the views, which where they are not given are the checkpoint's or `otherwise`;
    those that only `lists` of videos have, unless there are none.
    """
    whose = "the checkpoint's"
    for name, (_, kind, shown, words) in OVERRIDES.items():
        if name in LISTS and not lists:
            continue
        parser.add_argument(f"--{name}", type=kind | None, default=None, metavar=shown,
                            help=f"{words} [{otherwise.get(name, whose)}]")  # fmt: skip
    parser.add_argument("--batch", type=int, default=BATCH, metavar="N",
                        help="views that the network takes at once")  # fmt: skip
    parser.add_argument("--precision", type=str, default="auto", metavar="auto|fp32|bf16|fp16",
                        help="auto is bf16 on a GPU, fp32 elsewhere")  # fmt: skip
    parser.add_argument("--cpu", type=bool, nargs="?", const=True, default=False,
                        help="leave GPUs alone")  # fmt: skip


def views_of(args: Any) -> dict[str, Any]:
    """The changes that `add_views`' options ask for."""
    given = {field: getattr(args, name, None) for name, (field, *_) in OVERRIDES.items()}
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
    add_overwrite(parser)
    add_views(parser)


def run(args: Any) -> int:
    """`mme test`."""
    from accelerate import PartialState

    evaluate(
        args.checkpoint, args.data, args.out, views=views_of(args), batch=args.batch,
        precision=args.precision, unreadable=args.unreadable, overwrite=args.overwrite,
        cpu=args.cpu,
    )  # fmt: skip
    PartialState().destroy_process_group()
    return 0


def add_predict_arguments(parser: Any) -> None:
    """Arguments of `mme predict`."""
    parser.add_argument("video", type=str, metavar="VIDEO",
                        help="a video file; or synthetic/N, the built-in held-out video number "
                        "N")  # fmt: skip
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT",
                        help="a run of `mme finetune`, or another checkpoint with a "
                        "classifier")  # fmt: skip
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to print")
    add_views(parser, lists=False)


def run_predict(args: Any) -> int:
    """`mme predict`."""
    from rich.console import Console
    from rich.table import Table

    if args.top < 1:
        raise ValueError(f"--top is {args.top}; must be 1 or more")
    found = predict(args.video, args.checkpoint, views=views_of(args), batch=args.batch,
                    precision=args.precision, cpu=args.cpu)  # fmt: skip
    number = _built_in(args.video)
    title = args.video
    if number is not None:
        from .synthetic import SyntheticVideos

        title = SyntheticVideos(number + 1, held_out=True).name(number)
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for name, share in found[: args.top]:
        table.add_row(name, f"{share:.1%}")
    Console(soft_wrap=True).print(table)
    return 0
