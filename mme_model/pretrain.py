"""Pre-training: raw videos in, an encoder that knows motion out (§3, §4, Table 8)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mme_targets import ClipPlan
from mme_targets.files import atomic_path

from . import keys
from .batch import Batch
from .checkpoints import Checkpoint, checkpoints, latest
from .data import HeldOut, clip_loader, held_out_batches
from .engine import train
from .errors import TrainingError
from .inline import TargetMaker
from .mme import MaskedMotionEncoder, motion_loss, zero_loss
from .prefetch import Clock, prefetched
from .recipe import Recipe
from .sources import Source, open_source

__all__ = ["Pretraining", "pretrain"]

FREE = (
    "data", "val", "clips.root", "clips.workers", "clips.prefetch", "clips.max_unreadable",
    "train.epochs", "train.steps", "train.micro_batch", "train.precision", "train.compile",
    "train.checkpoint_every", "train.keep", "train.val_every", "train.val_clips",
    "train.picture_every",
)  # fmt: skip
"""Fields that a run may change when it goes on; any other would make it another run."""


class Pretraining:
    """The job that `mme_model.engine` trains.

    Parameters
    ----------
    recipe : everything that the run depends on.

    Raises
    ------
    ValueError, OSError
        Where the data cannot be opened, are fewer than a batch, or the mask leaves nothing.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.source = _open(recipe, recipe.data, held_out=False)
        synthetic = recipe.data.split(":")[0] == "synthetic"
        val = recipe.val or ("synthetic" if synthetic else "")
        self.val = _open(recipe, val, held_out=True) if val else None
        count, batch = len(self.source), recipe.train.batch_size
        if batch > count:
            raise ValueError(
                f"train.batch_size is {batch}, more than the {count} videos of {recipe.data!r}"
                + (f" (clips.fraction {recipe.clips.fraction})" * (recipe.clips.fraction < 1))
            )
        self.steps_per_epoch = count // batch
        self.steps = recipe.train.steps or recipe.train.epochs * self.steps_per_epoch
        torch.manual_seed(keys.number(recipe.train.seed, 0, 0, "weights"))
        self.model: nn.Module = MaskedMotionEncoder(recipe.model, recipe.targets)
        self.groups = _groups(self.model, recipe.train.weight_decay)
        self.judged = self.val is not None
        self._maker = TargetMaker(recipe.targets, shuffle=recipe.clips.shuffle)
        self._held: HeldOut | None = None
        self._counts = True
        self._shown: Batch | None = None
        self._seen: set[str] = set()
        self._lost: dict[str, str] = {}

    def batches(self, start: int, rank: int, world: int, device: torch.device) -> Iterator[Batch]:
        """Micro-batches of this process from step `start` on, with targets, on the device."""
        recipe, train = self.recipe, self.recipe.train
        loader = clip_loader(
            recipe,
            self.source,
            device=device.type,
            rank=rank,
            world=world,
            start_step=start,
            steps=self.steps,
            micro_batch=train.micro_batch or train.batch_size // world,
        )
        return prefetched(loader, lambda batch: self._prepare(batch, device), device)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Eq. 7, each head's part, and what predicting zero would cost."""
        assert batch.targets is not None
        config = self.recipe.loss
        total, parts = motion_loss(model(batch.rgb, batch.masked), batch.targets, config)
        return total, {**parts, "zero": zero_loss(batch.targets, config)[0]}

    def held_out(self, model: nn.Module, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Held-out clips of this process; each process runs the model as often as the others."""
        if self.val is None:
            return
        device = next(model.parameters()).device
        count = min(self.recipe.train.val_clips, len(self.val))
        most = -(-count // world)
        size = min(16, most)
        if self._held is None:
            # With fewer clips than processes some run the model on another's, which do not count.
            self._counts = rank < count
            self._held = held_out_batches(
                self.recipe,
                self.val,
                device=device,
                count=count,
                micro_batch=size,
                rank=rank if self._counts else 0,
                world=world,
            )
        runs = 0
        for batch in self._held:
            made = self._prepare(batch, device)
            self._shown = self._shown or made
            yield made, len(made) * self._counts
            runs += 1
        for _ in range(runs, -(-most // size)):
            yield made, 0

    def check(self, seen: list[Batch]) -> None:
        """Stop where more than the set share of the videos met cannot be read."""
        for batch in seen:
            self._seen.update(batch.names)
            self._lost.update(batch.skipped)
        met, allowed = len(self._seen) + len(self._lost), self.recipe.clips.max_unreadable
        if len(self._lost) > allowed * met and met >= min(100, len(self.source)):
            raise TrainingError(
                f"{len(self._lost)} of the {met} videos met cannot be read, more than "
                f"clips.max_unreadable ({allowed}) allows; skipped.csv lists them:\n"
                + "\n".join(f"  {name}: {why}" for name, why in list(self._lost.items())[:10])
            )

    def picture(self, model: nn.Module) -> Any:
        """A sheet of tracks of the first held-out clip, as in Fig. 4."""
        if self._shown is None or "position" not in (self._shown.targets or {}):
            return None
        from .reconstruct import sheet

        return sheet(model, self.recipe, self._shown)

    def _prepare(self, batch: Batch, device: torch.device) -> Batch:
        """On the device, with targets: made there now, or by the loader already."""
        batch = batch.to(device)
        if batch.targets is None:
            clock = Clock(device)
            batch.targets = self._maker.to(device).of_batch(batch, at_once=8, mark=clock.mark)
            batch.frames = None
            batch.later = clock.seconds
        return batch


def pretrain(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    resume: Literal["never", "auto"] = "never",
    cpu: bool = False,
) -> dict[str, Any]:
    """Run a recipe, or go on with it; returns the summary that is also written.

    Parameters
    ----------
    out : folder for recipe.yaml, metrics.jsonl, skipped.csv, checkpoints/, tensorboard/ and, at the
        end, summary.json.
    resume : "auto" goes on from the last complete checkpoint in `out`, if there is one; "never"
        refuses a folder that holds a run.
    cpu : leave GPUs alone.

    Raises
    ------
    ValueError, OSError, TrainingError
        Wrong settings; data or folder that cannot be used; a loss that is not finite.
    """
    folder = Path(out)
    first = int(os.environ.get("RANK", "0")) == 0
    began = latest(folder) if resume == "auto" else None
    if first:
        _settle(recipe, folder, resume, began)
    job = Pretraining(recipe)
    if began and began.step >= job.steps:
        print(f"{folder}: all {job.steps} steps are done", file=sys.stderr)
        return _read_summary(folder)
    if first:
        about = f"{len(job.source)} videos, {job.steps} steps of {recipe.train.batch_size} clips"
        again = f", from step {began.step}" if began else ""
        print(f"pre-training on {recipe.data}: {about}{again} -> {folder}", file=sys.stderr)
    clock = time.perf_counter()
    record = train(job, folder, began, cpu)
    return _summary(job, folder, record, time.perf_counter() - clock) if first else {}


def _open(recipe: Recipe, spec: str, held_out: bool) -> Source:
    clips = recipe.clips
    if held_out:
        clips = clips.replace(clips=min(recipe.train.val_clips, clips.clips))
    return open_source(
        spec,
        clips,
        seed=recipe.train.seed,
        held_out=held_out,
        # Room for the start and the crop to vary.
        frames=ClipPlan.span(recipe.targets) + 16,
        size=recipe.targets.size * 8 // 7,
    )


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices alone: not on biases, norms and the mask token (VideoMAE)."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or name.endswith(("bias", "mask_token"))
        (rest if plain else matrices).append(parameter)
    return [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def _settle(recipe: Recipe, folder: Path, resume: str, began: Checkpoint | None) -> None:
    """Make sure of the folder, and of the recipe that a run goes on with."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out is {folder}, which is a file; must be a folder")
    kept = folder / "recipe.yaml"
    if resume == "never" and checkpoints(folder):
        raise ValueError(
            f"{folder} holds a run already; --resume auto goes on with it, or choose another --out"
        )
    if began and kept.is_file():
        old, new = _flat(Recipe.load(kept).to_dict()), _flat(recipe.to_dict())
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


def _summary(job: Pretraining, folder: Path, record: dict[str, Any], took: float) -> dict[str, Any]:
    """What was run, by what, and what came of it."""
    import platform

    import mme_targets

    best = min(
        (c for c in checkpoints(folder) if c.score is not None),
        key=lambda c: c.score or 0.0,
        default=None,
    )
    values = {
        "job": "pretrain",
        "recipe": job.recipe.to_dict(),
        "videos": len(job.source),
        "skipped": len(job._lost),
        "steps": job.steps,
        "last": record,
        "best": {"checkpoint": best.path.name, "loss": best.score} if best else None,
        "seconds": round(took, 1),
        "versions": {
            "mme_targets": mme_targets.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    with atomic_path(folder / "summary.json") as beside:
        beside.write_text(json.dumps(values, indent=2))
    return values


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return values
