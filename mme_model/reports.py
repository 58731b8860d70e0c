"""What a test or a probe leaves: predictions, tables, confusion picture, summary and row."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mme_targets.files import atomic_path

from .checkpoints import checkpoints
from .confusion import draw_confusion
from .results import Row, figure, write_row
from .scores import Predictions, confusion, figures, write_classes, write_parquet

__all__ = ["add_overwrite", "headline", "out_folder", "refuse_others", "write_report"]

LISTED = 10
"""Unreadable videos that are printed; the files name them all."""
WHOSE = ("job", "checkpoint", "init", "data", "val")
"""What results are of, in their summary."""


def out_folder(out: str | os.PathLike[str]) -> Path:
    """The folder, made where it is missing; NotADirectoryError where it is a file."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out is {folder}, which is a file; must be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def add_overwrite(parser: Any) -> None:
    """The option that lets `refuse_others` pass."""
    parser.add_argument("--overwrite", type=bool, nargs="?", const=True, default=False,
                        help="replace what --out holds of another checkpoint or other videos; "
                        "results of the same are replaced in any case")  # fmt: skip


def refuse_others(folder: Path, about: Mapping[str, Any], overwrite: bool) -> None:
    """Make sure that results in the folder are those of the same command, or may be replaced.

    Parameters
    ----------
    about : as `write_report`; compared is what `WHOSE` names.
    overwrite : replace results of others; a run of training is never written over.

    Raises
    ------
    ValueError
        Where they are another's.
    """
    file = folder / "summary.json"
    found: Any = None
    if file.exists():
        with suppress(ValueError):
            found = json.loads(file.read_text())
    found = found if isinstance(found, dict) else {}
    if checkpoints(folder) or found.get("job", "test") not in ("test", "probe"):
        raise ValueError(f"{folder} holds a run of training; choose another --out")
    if not file.exists() or overwrite or _places(found) == _places(about):
        return
    said = ", ".join(f"{name} {value}" for name, value in _whose(found).items() if value)
    raise ValueError(
        f"{folder} holds the results of another test or probe ({said or 'damaged'}); choose "
        "another --out, or --overwrite to replace them"
    )


def _places(about: Mapping[str, Any]) -> list[str]:
    """`_whose`, paths written in full: "./run" is "run"."""
    return [os.path.abspath(value) for value in _whose(about).values()]


def _whose(about: Mapping[str, Any]) -> dict[str, str]:
    """What tells results from others."""
    init = about.get("init")
    said = {**about, "init": init.get("from") if isinstance(init, Mapping) else init}
    return {name: str(said.get(name) or "") for name in WHOSE}


def write_report(
    folder: Path,
    made: Predictions,
    about: Mapping[str, Any],
    row: Row,
    *,
    more: Sequence[dict[str, Any]] = (),
    write: bool = True,
) -> dict[str, Any]:
    """Score predictions and write all there is to say of them; returns the summary.

    Parameters
    ----------
    about : what the summary says beside `counts` and `figures`. Read here are `job`, `notes`,
        `views` (clips and crops) and `unreadable`: "wrong" or "exclude".
    row : of the tables, without views and accuracies.
    more : further figures.
    write : false on all processes but one.
    """
    values = figures(made)
    clips, crops = about["views"]["clips"], about["views"]["crops"]
    counts = {k: v for k, v in values.items() if isinstance(v, int)}
    quoted = "all" if about["unreadable"] == "wrong" else "read"
    values |= {name: values.get(f"{name}_{quoted}") for name in ("accuracy", "top5")}
    found = [
        figure(
            name,
            values[name],
            clips=clips,
            crops=crops,
            videos=counts["scored" if name.endswith("_read") else "labelled"],
        )
        for name in ("accuracy_all", "accuracy_read", "top5_all", "top5_read", "mean_class")
        if values.get(name) is not None
    ]
    summary = {**about, "counts": counts, "figures": [*found, *more]}
    if not write:
        return summary
    earlier = ["unreadable.csv", "classes.csv", "confusion.png", "row.md"]
    earlier += ["probe.safetensors"] * (about["job"] == "test")
    for name in earlier:
        (folder / name).unlink(missing_ok=True)  # of one which this takes the place of
    write_parquet(made, folder / "predictions.parquet")
    lost = [(n, r) for n, r, ok in zip(made.names, made.reasons, made.read, strict=True) if not ok]
    if lost:
        _write_unreadable(folder / "unreadable.csv", lost)
    if found:
        write_classes(made, folder / "classes.csv")
        picture = folder / "confusion.png"
        draw_confusion(confusion(made), made.classes, picture, title=headline(summary))
        full = replace(row, clips=clips, crops=crops, accuracy=values["accuracy"],
                       top5=values["top5"])  # fmt: skip
        write_row(folder, full.cells())
    with atomic_path(folder / "summary.json") as beside:
        beside.write_text(json.dumps(summary, indent=2))
    for line in [*about["notes"], *(f"unreadable: {n}: {r}" for n, r in lost[:LISTED])]:
        print(f"note: {line}", file=sys.stderr)
    if len(lost) > LISTED:
        print(f"note: … and {len(lost) - LISTED} more: unreadable.csv", file=sys.stderr)
    print(headline(summary))
    print(f"{', '.join(sorted(p.name for p in folder.iterdir() if p.is_file()))} -> {folder}")
    return summary


def _write_unreadable(path: Path, lost: Sequence[tuple[str, str]]) -> None:
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with atomic_path(path) as beside, beside.open("w", **options) as file:
        table = csv.writer(file)
        table.writerow(("video", "reason"))
        table.writerows(lost)


def headline(summary: Mapping[str, Any]) -> str:
    """Accuracies, views and what is missing, in a line."""
    counts = summary["counts"]
    values = {one["name"]: one["value"] for one in summary["figures"]}
    views = f"{summary['views']['clips']} × {summary['views']['crops']} views"
    if not values:
        return f"{counts['read']} videos predicted, {views}; no label is known"
    kind, count = ("all", "labelled") if summary["unreadable"] == "wrong" else ("read", "scored")
    shown = {"top-1": f"accuracy_{kind}", "top-5": f"top5_{kind}"}
    text = ", ".join(f"{k} {values[v]:.2f} %" for k, v in shown.items() if v in values)
    text += f" of {counts[count]} videos, {views}"
    if counts["unreadable"]:
        other = "read" if kind == "all" else "all"
        said = {"all": "counted as wrong", "read": "left out"}
        text += (
            f"; {counts['unreadable']} of {counts['videos']} could not be read and are {said[kind]}"
        )
        if f"accuracy_{other}" in values:
            text += f" (top-1 {values[f'accuracy_{other}']:.2f} % with them {said[other]})"
    return text
