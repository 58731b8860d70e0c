"""Recipe: everything that a pre-training run depends on, as frozen fields (§4, Tables 5 to 8).

A recipe file states what differs from its `base`, another recipe by name or path; the chain ends at
this module's defaults, which are the paper's for Kinetics-400.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from mme_targets import ConfigError, TargetConfig
from mme_targets.settings import Config, number
from mme_targets.targets import names

__all__ = [
    "ClipConfig",
    "LossConfig",
    "MaskConfig",
    "ModelConfig",
    "Recipe",
    "TrainConfig",
    "load_recipe",
    "read_recipe",
    "recipe_names",
]

R = TypeVar("R", bound=Config)

PRETRAINING, FINETUNING = "recipes", "recipes/finetune"
"""Folders of this package's recipes, of each job."""
JOBS = {PRETRAINING: "mme pretrain", FINETUNING: "mme finetune"}
"""The command that takes the recipes of a folder."""


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The video transformer (§3.2, §4, Table 7f). 0 takes what `size` says."""

    backbone: Literal["vit", "mvitv2_s"] = "vit"
    """ViT, or MViTv2-S with a mask token and no decoder (Table 12), which has a size of its own:
    fields of sizes, decoders and heads do not apply to it and are refused."""
    size: Literal["tiny", "small", "base", "large"] = "base"
    """ViT-Ti, -S, -B or -L: width, depth and heads below."""
    width: int = number(0, 0, 8192)
    """Values of a token in the encoder."""
    depth: int = number(0, 0, 100)
    """Blocks of the encoder."""
    heads: int = number(0, 0, 128)
    """Attention heads of the encoder."""
    decoders: Literal["joint", "separate"] = "joint"
    """One decoder for all targets, or one for each (Table 7f)."""
    decoder_width: int = number(0, 0, 8192)
    """Values of a token in the decoder; 0 is half the encoder's, 384 at base (Table 7f's FLOPs)."""
    decoder_depth: int = number(1, 0, 100)
    """Blocks of the decoder (Table 7f)."""
    decoder_heads: int = number(0, 0, 128)
    """Attention heads of the decoder; 0 gives each 64 values."""
    head: Literal["linear", "mlp"] = "linear"
    """From a decoder's token to a target: linear, or the released code's two layers of 512 with a
    sigmoid on HOG and tanh on displacements."""
    drop_path: float = number(0.0, 0, 1)
    """Stochastic depth in the encoder, rising to this at the last block."""
    checkpointing: bool = False
    """Recompute a block's activations in the backward pass: less memory, more time."""
    last_pooling: bool = False
    """MViT: halve the grid in the last stage. Off in MaskFeat's pre-training, where a token stays
    a patch; on in fine-tuning. A ViT has no such stage."""

    def _check_together(self) -> None:
        if self.backbone == "vit":
            return
        usual, both = ModelConfig(), ("backbone", "drop_path", "checkpointing", "last_pooling")
        for name in self.to_dict():
            if name not in both and getattr(self, name) != getattr(usual, name):
                self._fail(
                    name,
                    f"does not apply to backbone {self.backbone}; "
                    f"must be {getattr(usual, name)!r}, as where it is not given",
                )


@dataclass(frozen=True, kw_only=True)
class MaskConfig(Config):
    """What is hidden from the encoder (§3.2, Table 7e)."""

    kind: Literal["tube", "cube", "random"] = "tube"
    """The same patches at all times (VideoMAE), blocks in space and time (MaskFeat), or any."""
    ratio: float = number(0.7, 0, 1)
    """Share of the patches that is masked (Table 7e); the same count in every clip."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(Config):
    """Eq. 1 and 7."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each target's loss by name (position, shape, pixel, …); 1 where none is given."""
    eq1_sum: bool = False
    """Sum the squared errors of a track, as Eq. 1 is written, instead of averaging them."""

    def _check_together(self) -> None:
        if not isinstance(self.weights, Mapping):
            self._fail("weights", "must be a mapping from target to weight")
        for name, weight in self.weights.items():
            if not is_number(weight) or not weight >= 0:
                self._fail("weights", f"{name} must have a weight of 0 or more")


@dataclass(frozen=True, kw_only=True)
class ClipConfig(Config):
    """From videos to clips (Table 8, Fig. 3)."""

    format: Literal["auto", "csv", "ucf101", "hmdb51", "ssv2", "paths"] = "auto"
    """Format of the list; "auto" recognises it."""
    root: str = ""
    """Folder that the list's paths are relative to; empty: the list's own."""
    fraction: float = number(1.0, 0, 1, open_low=True)
    """Share of the videos used, chosen by a hash of the name and the seed (Appendix E: .25)."""
    crop: Literal["multiscale", "center"] = "multiscale"
    """MultiScaleCrop (Table 8), or the centre."""
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """MultiScaleCrop's sides as shares of the frame's shorter one; width and height at most one
    step apart."""
    flip: bool = True
    """Mirror half of the clips (Table 8: not for SSv2, whose classes tell left from right)."""
    shuffle: Literal["none", "input", "both"] = "none"
    """Permute the frames that the model sees; "both": the targets follow (Fig. 3)."""
    missing: Literal["inline", "skip"] = "inline"
    """Videos that the store of `tracks` has not: their targets are computed, or they are left
    out."""
    short_side: int = number(0, 0, 8192)
    """Resize videos to this short side as they are decoded, px; 0 keeps them."""
    clips: int = number(256, 1, 10**9)
    """Videos of the built-in generator, for `data: synthetic`."""
    workers: int = number(-1, -1, 1024)
    """Processes that decode, and on a CPU make the targets; -1: one a core, less the trainer's, but
    on a CPU half of the cores (on two, both)."""
    prefetch: int = number(2, 1, 64)
    """Batches that each worker prepares ahead."""
    max_unreadable: float = number(0.1, 0, 1)
    """Stop when more than this share of the videos met so far cannot be read; one may be, however
    few they are, unless this is 0."""

    def _check_together(self) -> None:
        if not self.scales or not all(is_number(s) and 0 < s <= 1 for s in self.scales):
            self._fail("scales", "must be numbers in (0, 1], at least one")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Optimisation (Table 8) and how a run is kept."""

    epochs: int = number(800, 1, 10**6)
    """Passes over the videos (Tables 1 to 3: 400, 800, 1600)."""
    steps: int = number(0, 0, 10**9)
    """Optimiser steps in all; 0 is what `epochs` come to. The schedule spans them."""
    batch_size: int = number(768, 1, 10**6)
    """Clips of one step, over all processes (Table 8); in fine-tuning videos, of which each gives
    `views.repeats` views (Table 9; VideoMAE and the released code count so)."""
    micro_batch: int = number(0, 0, 10**6)
    """Clips that one process takes at once, counted as in `batch_size`; gradients are accumulated.
    0: its whole share."""
    base_lr: float = number(1.5e-4, 0, 10)
    """Learning rate at a batch of 256; scaled in proportion to `batch_size` (Appendix D)."""
    min_lr: float = number(1e-5, 0, 10)
    """Where the cosine ends (VideoMAE), at a batch of any size."""
    warmup_epochs: float = number(40, 0, 10**6)
    """Epochs in which the rate rises linearly from `warmup_lr` (Table 8)."""
    warmup_lr: float = number(1e-6, 0, 10)
    """Where the warm-up starts (VideoMAE)."""
    weight_decay: float = number(0.05, 0, 10)
    """AdamW's, on matrices alone (Table 8)."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """AdamW's momenta (Table 8; VideoMAE's code takes .9, .95)."""
    clip_grad: float = number(0.0, 0, 10**6)
    """Largest norm of the gradient; 0 leaves it."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """"auto": bf16 on a GPU, fp32 elsewhere."""
    compile: bool = False
    """Compile the model with `torch.compile`."""
    seed: int = number(0, 0, 2**31)
    """Of the model's start, the order, the crops and the masks."""
    checkpoint_every: int = number(0, 0, 10**9)
    """Steps between checkpoints; 0: once an epoch, and at least every 1000 steps."""
    keep: int = number(2, 1, 10**6)
    """Latest checkpoints kept, beside the best by the loss on held-out clips."""
    val_every: int = number(0, 0, 10**9)
    """Steps between measurements on held-out clips; 0: with every checkpoint."""
    val_clips: int = number(64, 1, 10**6)
    """Held-out clips measured."""
    picture_every: int = number(500, 0, 10**9)
    """Steps between sheets of tracks for TensorBoard; 0: none."""

    def _check_together(self) -> None:
        if len(self.betas) != 2 or not all(is_number(b) and 0 <= b < 1 for b in self.betas):
            self._fail("betas", "must be two numbers in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """One pre-training run."""

    data: str = "synthetic"
    """What to train on: a list, a folder of videos, a video, or "synthetic"."""
    val: str = ""
    """Held-out clips, likewise; empty: none, but for synthetic data, which brings its own."""
    tracks: str = ""
    """A store of tracks (`mme extract`) to take the motion from, for `targets.region` "frame";
    empty: it is computed at every visit."""
    cache: str = ""
    """The same, a store that is filled on the way: a video that is met for the first time is
    extracted whole, and read ever after. Processes may share it."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    """From videos to clips."""
    targets: TargetConfig = field(default_factory=TargetConfig)
    """What a clip is and what is to be predicted from it (`mme_targets`)."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """What is hidden."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The transformer."""
    loss: LossConfig = field(default_factory=LossConfig)
    """How predictions are judged."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation, and how a run is kept."""

    def _check_together(self) -> None:
        if self.targets.size % self.targets.patch:
            raise ConfigError(
                f"targets.size is {self.targets.size}; "
                f"must be divisible by patch ({self.targets.patch})"
            )
        self._check_tracks()
        made = names(self.targets)
        for name in self.loss.weights:
            if name not in made:
                raise ConfigError(
                    f"loss.weights names {name!r}, which is not made; made are {', '.join(made)}"
                )

    def _check_tracks(self) -> None:
        if self.tracks and self.cache:
            raise ConfigError("tracks and cache are both given; motion comes from one store")
        if not self.tracks and not self.cache:
            return
        targets = self.targets
        if targets.region != "frame":
            raise ConfigError(
                f"targets.region is {targets.region!r}; a store holds tracks of whole frames, so "
                "it must be 'frame' with tracks or cache"
            )
        dense = sorted({"flow", "hof", "mbh"} & set(targets.targets))
        if dense:
            raise ConfigError(
                f"targets.targets names {', '.join(dense)}, made of flow, which a store of tracks "
                "does not hold"
            )
        if targets.length < 1:
            raise ConfigError("targets.length is 0, which needs no tracks")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a clip in (t, h, w)."""
        side = self.targets.size // self.targets.patch
        return self.targets.frames // self.targets.tubelet, side, side


def recipe_names(folder: str = PRETRAINING) -> list[str]:
    """The recipes that come with the package, of one kind of job."""
    found = files("mme_model").joinpath(folder).iterdir()
    return sorted(f.name[:-5] for f in found if f.name.endswith(".yaml"))


def load_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a pre-training recipe by name or path, its bases below it, and `changes` on top.

    Raises
    ------
    ConfigError
        As `read_recipe`.
    """
    return read_recipe(Recipe, name, changes)


def read_recipe(
    cls: type[R],
    name: str | Path,
    changes: Mapping[str, Any] | None = None,
    folder: str = PRETRAINING,
) -> R:
    """Read a recipe of any job: `cls` says what it holds, `folder` where the known ones lie.

    Parameters
    ----------
    changes : nested values, laid over the recipe's.

    Raises
    ------
    ConfigError
        For a recipe that does not exist, bases that go in a circle, unknown or impossible fields.
    """
    values = _merged(resolve(name, folder=folder), changes or {})
    try:
        return cls.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"recipe {name}: {error}") from None


def resolve(
    name: str | Path, seen: tuple[str, ...] = (), folder: str = PRETRAINING
) -> dict[str, Any]:
    """The plain values of a recipe and its bases, unchecked."""
    import yaml

    path = _path(name, seen, folder)
    key = str(path.resolve())
    if key in seen:
        raise ConfigError(f"recipe {name}: its bases go in a circle: {' -> '.join((*seen, key))}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # YAML's own account takes several lines, and an error is one.
        reason = " ".join(str(error).split())
        raise ConfigError(f"recipe {path}: not YAML: {reason}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {path}: is {type(values).__name__}; must be a mapping of fields")
    base = values.pop("base", None)
    return values if base is None else _merged(resolve(base, (*seen, key), folder), values)


def _path(name: str | Path, seen: tuple[str, ...], folder: str) -> Path:
    whose = f"recipe {seen[-1]}: its base: " if seen else "recipe: "
    if not isinstance(name, (str, Path)):
        raise ConfigError(f"{whose}is {name!r}; must be a name or a path")
    text = str(name)
    known = Path(str(files("mme_model").joinpath(f"{folder}/{text}.yaml")))
    if not text.endswith((".yaml", ".yml")) and known.is_file():
        return known
    beside = Path(seen[-1]).parent / text if seen else Path(text)
    for path in (beside, Path(text)):
        if path.is_file():
            return path
    import difflib

    near = difflib.get_close_matches(text, recipe_names(folder), 3, 0.4)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    for other, job in JOBS.items():
        if text in recipe_names(other):
            raise ConfigError(f"{whose}{text!r} is one of {job}, not of {JOBS[folder]}{hint}")
    raise ConfigError(f"{whose}there is no recipe {text!r}, by name or as a file{hint}")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping; `loss.weights` as a whole."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        deep = isinstance(value, Mapping) and isinstance(old, Mapping) and key != "weights"
        out[key] = _merged(old, value) if deep else value  # type: ignore[arg-type]
    return out
