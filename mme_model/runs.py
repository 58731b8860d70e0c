"""The folder of a run: whose it is, how one goes on in it, and the summary that it ends with."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from mme_targets.files import atomic_path
from mme_targets.settings import Config

from .checkpoints import Checkpoint, checkpoints, latest
from .engine import Job, train

__all__ = ["run", "versions"]

FREE = (
    "data", "val", "clips.root", "clips.workers", "clips.prefetch", "clips.max_unreadable",
    "views.root", "views.workers", "views.prefetch", "views.max_unreadable",
    "views.test_clips", "views.test_crops",
    "train.epochs", "train.steps", "train.micro_batch", "train.precision", "train.compile",
    "train.checkpoint_every", "train.keep", "train.val_every", "train.val_clips",
    "train.picture_every",
)  # fmt: skip
"""Fields that a run may change when it goes on; any other would make it another run."""


def run(
    make: Callable[[], Job],
    recipe: Config,
    out: str | os.PathLike[str],
    *,
    resume: Literal["never", "auto"] = "never",
    cpu: bool = False,
) -> dict[str, Any]:
    """Begin a job in the folder `out`, or go on with it; returns its summary.

    Parameters
    ----------
    make : the job, once the folder has been looked at.
    recipe : what the folder's recipe.yaml will say.
    resume : "auto" goes on from the last complete checkpoint in `out`, if there is one; "never"
        refuses a folder that holds a run.
    cpu : leave GPUs alone.

    Raises
    ------
    ValueError, OSError, TrainingError
        As the job; where the folder cannot be used, or was begun with another recipe.
    """
    folder = Path(out)
    first = int(os.environ.get("RANK", "0")) == 0
    began = latest(folder) if resume == "auto" else None
    if first:
        _settle(recipe, folder, resume, began)
    job = make()
    for text in job.notes if first else ():
        print(f"note: {text}", file=sys.stderr)
    if began and began.step >= job.steps:
        print(f"{folder}: all {job.steps} steps are done", file=sys.stderr)
        return _read_summary(folder)
    if first:
        again = f", from step {began.step}" if began else ""
        about = ", ".join(f"{v} {k}" for k, v in job.about.items() if v and isinstance(v, int))
        size = job.recipe.train.batch_size
        print(f"{job.kind}: {about}, {job.steps} steps of {size} clips{again} -> {folder}",
              file=sys.stderr)  # fmt: skip
    clock = time.perf_counter()
    record = train(job, folder, began, cpu)
    return _summary(job, folder, record, time.perf_counter() - clock) if first else {}


def versions() -> dict[str, str | None]:
    """What ran: this package with its commit where it is a checkout, and what it stands on."""
    import mme_targets

    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True, text=True, check=False,
    ) if _has_git() else None  # fmt: skip
    commit = git.stdout.strip() if git and git.returncode == 0 else None
    return {
        "mme_targets": mme_targets.__version__,
        "commit": commit or None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _settle(recipe: Config, folder: Path, resume: str, began: Checkpoint | None) -> None:
    """Make sure of the folder, and of the recipe that a run goes on with."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out is {folder}, which is a file; must be a folder")
    kept = folder / "recipe.yaml"
    if resume == "never" and checkpoints(folder):
        raise ValueError(
            f"{folder} holds a run already; --resume auto goes on with it, or choose another --out"
        )
    if began and kept.is_file():
        old, new = _flat(type(recipe).load(kept).to_dict()), _flat(recipe.to_dict())
        changed = {k: (old.get(k), new.get(k)) for k in {*old, *new} if old.get(k) != new.get(k)}
        bad = [f"  {k}: {was} -> {now}" for k, (was, now) in sorted(changed.items())
               if k not in FREE]  # fmt: skip
        if bad:
            raise ValueError(
                f"{folder} was begun with another recipe, and would become another run:\n"
                + "\n".join(bad)
            )
        for name, (was, now) in sorted(changed.items()):
            print(f"{name}: {was} -> {now} from here on", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(kept) as beside:
        beside.write_text(recipe.to_yaml())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        out |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return out


def _summary(job: Job, folder: Path, record: dict[str, Any], took: float) -> dict[str, Any]:
    """What was run, by what, and what came of it; also written to summary.json."""
    scored = [c for c in checkpoints(folder) if c.score is not None]
    best = min(scored, key=lambda c: c.score or 0.0, default=None)
    values = {
        "job": job.kind,
        "recipe": job.recipe.to_dict(),
        **job.about,
        "steps": job.steps,
        "last": record,
        "best": {"checkpoint": best.path.name, "score": best.score} if best else None,
        "seconds": round(took, 1),
        "versions": versions(),
    }
    values |= job.conclude(values, folder)
    with atomic_path(folder / "summary.json") as beside:
        beside.write_text(json.dumps(values, indent=2))
    return values


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return values


def _has_git() -> bool:
    import shutil

    return shutil.which("git") is not None
