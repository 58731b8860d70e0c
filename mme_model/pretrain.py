"""Pre-training: raw videos in, an encoder that knows motion out (§3, §4, Table 8)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mme_targets import ClipPlan

from . import keys
from .batch import Batch
from .data import HeldOut, clip_loader, held_out_batches
from .inline import TargetMaker
from .loading import Unreadable, beside, worker_count
from .masking import masked_count
from .mme import motion_loss, zero_loss
from .mvit import build_model
from .prefetch import Clock, prefetched
from .recipe import Recipe
from .runs import run
from .sources import Source, open_source
from .tracks import ClipTracks, said_missing, stored_only

__all__ = ["Pretraining", "pretrain"]


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

    kind = "pretrain"
    ema = 0.0

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        masked_count(recipe.mask, recipe.grid)  # before any work, whether it leaves what it must
        self.source = _open(recipe, recipe.data, held_out=False)
        synthetic = recipe.data.split(":")[0] == "synthetic"
        val = recipe.val or ("synthetic" if synthetic else "")
        self.val = _open(recipe, val, held_out=True) if val else None
        self.tracks = ClipTracks.of(recipe)
        self.left_out = 0
        self.notes: list[str] = []
        if recipe.tracks and recipe.clips.missing == "inline":
            self.notes += said_missing(self.source, recipe)
        if recipe.tracks and recipe.clips.missing == "skip":
            listed = len(self.source)
            self.source = stored_only(self.source, recipe)
            self.left_out = listed - len(self.source)
        count, batch = len(self.source), recipe.train.batch_size
        if batch > count:
            raise ValueError(
                f"train.batch_size is {batch}, more than the {count} videos of {recipe.data!r}"
                + (f" (clips.fraction {recipe.clips.fraction})" * (recipe.clips.fraction < 1))
            )
        self.steps_per_epoch = count // batch
        self.steps = recipe.train.steps or recipe.train.epochs * self.steps_per_epoch
        torch.manual_seed(keys.number(recipe.train.seed, 0, 0, "weights"))
        self.model: nn.Module = build_model(recipe.model, recipe.targets)
        self.groups = _groups(self.model, recipe.train.weight_decay)
        self.judged = self.val is not None
        self.metadata: dict[str, str] = {}
        self._maker = TargetMaker(recipe.targets, shuffle=recipe.clips.shuffle)
        self._held: HeldOut | None = None
        self._counts = True
        self._shown: Batch | None = None
        self._unreadable = Unreadable(count, recipe.clips.max_unreadable, "clips.max_unreadable")
        self._inline: set[str] = set()

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
            tracks=self.tracks,
        )
        made = prefetched(loader, lambda batch: self._prepare(batch, device), device)
        return beside(worker_count(recipe.clips.workers, computing=True), device, made)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Eq. 7, each head's part, and what predicting zero would cost."""
        assert batch.targets is not None
        config = self.recipe.loss
        total, parts = motion_loss(model(batch.rgb, batch.masked), batch.targets, config)
        return total, {**parts, "zero": zero_loss(batch.targets, config)[0]}

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The same of held-out clips, by name."""
        total, parts = self.loss(model, batch)
        return {"loss": total, **{f"loss/{name}": part for name, part in parts.items()}}

    def score(self, measured: dict[str, float]) -> float | None:
        """The loss on held-out clips."""
        return measured.get("val/loss")

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
                tracks=self.tracks,
            )
        runs = 0
        for batch in self._held:
            made = self._prepare(batch, device)
            self._shown = self._shown or made
            yield made, len(made) * self._counts
            runs += 1
        for _ in range(runs, -(-most // size)):
            yield made, 0

    @property
    def about(self) -> dict[str, Any]:
        """What the summary says of the data."""
        counts = {"videos": len(self.source), "skipped": len(self._unreadable.lost)}
        if self.tracks is not None:
            counts.update(without_tracks=self.left_out, inline=len(self._inline))
        return counts

    def check(self, seen: list[Batch]) -> None:
        """Stop where more than the set share of the videos met cannot be read."""
        for batch in seen:
            self._inline.update(batch.inline)
        self._unreadable.add(seen)

    def picture(self, model: nn.Module) -> Any:
        """A sheet of tracks of the first held-out clip, as in Fig. 4."""
        if self._shown is None or "position" not in (self._shown.targets or {}):
            return None
        from .reconstruct import sheet

        return sheet(model, self.recipe, self._shown)

    def conclude(self, summary: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Nothing more to say."""
        return {}

    def _prepare(self, batch: Batch, device: torch.device) -> Batch:
        """On the device, with targets: made there now, or by the loader already."""
        batch = batch.to(device)
        if batch.targets is None:
            clock = Clock(device)
            batch.targets = self._maker.to(device).of_batch(batch, at_once=8, mark=clock.mark)
            batch.frames = batch.tracks = None
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
    return run(lambda: Pretraining(recipe), recipe, out, resume=resume, cpu=cpu)


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
