"""Fine-tuning recipes: everything that a classifier's training and testing depend on (Table 9)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mme_targets.settings import Config, ConfigError, number

from .recipe import (
    FINETUNING,
    PRETRAINING,
    ModelConfig,
    Recipe,
    TrainConfig,
    is_number,
    load_recipe,
    read_recipe,
    recipe_names,
    resolve,
)

__all__ = ["ClassifierConfig", "FinetuneRecipe", "ViewConfig", "load_any", "load_finetune_recipe"]


@dataclass(frozen=True, kw_only=True)
class ViewConfig(Config):
    """From videos to what the classifier sees (Table 9, Appendix D)."""

    format: Literal["auto", "csv", "ucf101", "hmdb51", "ssv2", "paths"] = "auto"
    """Format of the lists; "auto" recognises it."""
    root: str = ""
    """Folder that the lists' paths are relative to; empty: each list's own."""
    fraction: float = number(1.0, 0, 1, open_low=True)
    """Share of the training videos used, chosen by a hash of the name and the seed."""
    clips: int = number(256, 1, 10**9)
    """Videos of the built-in generator, for `data: synthetic`."""
    frames: int = number(16, 1, 1024)
    """Frames of a view (§4)."""
    tubelet: int = number(2, 1, 64)
    """Frames in one 3-D patch (§3.2)."""
    patch: int = number(16, 1, 256)
    """Side of one 3-D patch, px (§3.2)."""
    size: int = number(224, 1, 8192)
    """Side of a view, px (§4)."""
    sampling: Literal["segments", "dense"] = "dense"
    """SSv2's: one frame of each of `frames` equal segments of the video; Kinetics': `frames` frames
    `stride` apart (VideoMAE)."""
    stride: int = number(4, 1, 256)
    """Raw frames from one frame of a dense view to the next."""
    short_side: int = number(0, 0, 8192)
    """Resize videos to this short side as they are decoded, px; 0: to `size` when testing, and
    not at all when training."""
    flip: bool = True
    """Mirror half of the training views (Table 9: not for SSv2)."""
    augment: bool = True
    """RandAugment and random resized crops when training; off: the centre."""
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    """Smallest and largest share of the frame's area in a random resized crop (VideoMAE)."""
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of its width to its height (VideoMAE)."""
    randaug_layers: int = number(4, 0, 100)
    """Operations that RandAugment draws, each applied half of the time (VideoMAE: 4); 0: none."""
    randaug_magnitude: float = number(9.0, 0, 10)
    """RandAugment's magnitude (Table 9: 9)."""
    randaug_std: float = number(0.5, 0, 10)
    """Its deviation (Table 9: .5)."""
    erase: float = number(0.25, 0, 1)
    """Probability of random erasing (VideoMAE)."""
    repeats: int = number(2, 1, 64)
    """Views of a video in one step, each with its own augmentation (Table 9: repeated sampling 2);
    a step's `batch_size` videos make so many times as many."""
    test_clips: int = number(5, 1, 100)
    """Views in time when testing (Table 1: 2, Table 2: 5 or 7)."""
    test_crops: int = number(3, 1, 3)
    """Views in space when testing: 1, the centre, or 3 along the longer side."""
    workers: int = number(-1, -1, 1024)
    """Processes that decode; -1: one a core, less the trainer's."""
    prefetch: int = number(2, 1, 64)
    """Batches that each worker prepares ahead."""
    max_unreadable: float = number(0.1, 0, 1)
    """Stop when more than this share of the videos met so far cannot be read; one may be, however
    few they are, unless this is 0."""

    def _check_together(self) -> None:
        if self.frames % self.tubelet:
            self._fail("frames", f"must be divisible by tubelet ({self.tubelet})")
        if self.size % self.patch:
            self._fail("size", f"must be divisible by patch ({self.patch})")
        if self.test_crops == 2:
            self._fail("test_crops", "must be 1 or 3")
        if 0 < self.short_side < self.size:
            self._fail("short_side", f"must be 0, or size ({self.size}) or more")
        for name, high in (("crop_scale", 1.0), ("crop_ratio", 100.0)):
            pair = getattr(self, name)
            whole = len(pair) == 2 and all(is_number(value) for value in pair)
            if not whole or not 0 < pair[0] <= pair[1] <= high:
                self._fail(name, f"must be two numbers in (0, {high:g}], the smaller first")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Config):
    """The classifier on the encoder, and how it is regularised (Table 9)."""

    drop_patches: float = number(0.0, 0, 1)
    """Share of the input patches dropped at random in training (Appendix E, Table 10: .5)."""
    dropout: float = number(0.0, 0, 1)
    """Before the last layer."""
    head_scale: float = number(0.001, 0, 10)
    """The last layer's start is scaled by this (VideoMAE)."""
    layer_decay: float = number(0.75, 0, 1, open_low=True)
    """Learning rate of a layer relative to the one above it (Table 9: .75)."""
    mixup: float = number(0.8, 0, 100)
    """Mixup's alpha (Table 9: .8); 0 leaves it out."""
    cutmix: float = number(1.0, 0, 100)
    """CutMix's alpha (Table 9: 1.0); 0 leaves it out."""
    label_smoothing: float = number(0.1, 0, 1)
    """Table 9: .1."""
    ema: float = number(0.0, 0, 1)
    """Decay of an average of the weights that is kept and tested beside them; 0: none."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Config):
    """One fine-tuning run."""

    data: str = "synthetic"
    """What to train on: a list, a folder with one sub-folder a class, or "synthetic"."""
    val: str = ""
    """What to measure accuracy on; empty: nothing, but for synthetic data, which brings its own."""
    init: str = ""
    """Checkpoint that the encoder starts from; empty: from scratch."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """From videos to views."""
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(drop_path=0.1, last_pooling=True)
    )
    """The encoder; fields of decoders are not read. Stochastic depth .1 (Table 9)."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """The classifier on it."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=75,
            batch_size=128,
            warmup_epochs=5,
            min_lr=1e-6,
            val_clips=10**6,
            picture_every=0,
        )
    )
    """Optimisation (Table 9), and how a run is kept."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinetuneRecipe:
        """Build from plain values; what `model` and `train` leave out is as above, not as in
        pre-training.
        """
        given = dict(values) if isinstance(values, Mapping) else values
        for name in ("model", "train"):
            part = given.get(name) if isinstance(given, dict) else None
            if isinstance(part, Mapping):
                given[name] = {**getattr(cls(), name).to_dict(), **part}
        return super().from_dict(given)


def load_finetune_recipe(
    name: str | Path, changes: Mapping[str, Any] | None = None
) -> FinetuneRecipe:
    """Read a fine-tuning recipe by name or path; errors as `read_recipe`."""
    return read_recipe(FinetuneRecipe, name, changes, FINETUNING)


def load_any(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe | FinetuneRecipe:
    """Read a recipe of either job by name or path; a name that both have is pre-training's.

    A file is fine-tuning's where it or one of its bases states fields that only that has.

    Raises
    ------
    ConfigError
        As `read_recipe`.
    """
    text = str(name)
    first, second = recipe_names(PRETRAINING), recipe_names(FINETUNING)
    if text not in (*first, *second) and not Path(text).is_file():
        near = difflib.get_close_matches(text, [*second, *first], 3, 0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"recipe: there is no recipe {text!r}, by name or as a file{hint}")
    if text not in first and (text in second or _is_finetuning(name)):
        return load_finetune_recipe(name, changes)
    return load_recipe(name, changes)


def _is_finetuning(file: str | Path) -> bool:
    for folder in (PRETRAINING, FINETUNING):
        with suppress(ConfigError):  # its base is one that the other job has
            return bool(resolve(file, folder=folder).keys() & {"views", "classifier", "init"})
    return False
