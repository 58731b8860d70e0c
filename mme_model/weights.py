"""Weights of a checkpoint of any format, under this project's keys, with all that is known of them.

The architecture is read off the weights. What they do not show is taken from the file's config or
options, and else assumed and said: heads have 64 values each, clips 16 frames of 224 px.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mme_targets import TargetConfig

from .carried import Carried
from .checkpoints import FORMAT, fit_state
from .classifier import Classifier
from .finetune_recipe import FinetuneRecipe, ViewConfig
from .foreign import Opened, open_weights
from .key_maps import Style, canonical, count, names, pick, rows_of_released, style_of
from .mme import target_widths
from .mvit import build_encoder, build_model
from .recipe import Recipe
from .unsaid import assumed_notes, processor_notes
from .vit import SIZES, Shape, sinusoids

__all__ = ["Assumed", "Weights", "build", "read_weights"]

Kind = Literal["pretrain", "classifier", "encoder"]
EPS = 1e-6
"""Of every LayerNorm here and in VideoMAE's code."""
HUGE = {1280: 16}
"""Heads of VideoMAE's ViT-H, of 80 values each."""
HF_DEFAULTS = {
    "image_size": 224,
    "num_frames": 16,
    "num_attention_heads": 12,
    "decoder_num_attention_heads": 6,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
"""What a config.json that does not say them means (`VideoMAEConfig`)."""


@dataclass(frozen=True)
class Assumed:
    """What a file may not say; 0 takes what it says, or else the usual."""

    frames: int = 0
    size: int = 0
    heads: int = 0


@dataclass(frozen=True)
class Weights:
    """Weights under this project's keys.

    Attributes
    ----------
    state : by key, as `MaskedMotionEncoder`, `Classifier` or, under `encoder.`, `Encoder` has it.
    kind : which of them; an encoder may be without its last norm.
    recipe : of which the model's and the clip's fields hold; foreign files do not say the rest.
    classes : names of a classifier's classes.
    format : what they came from: mme, videomae, released or hf.
    source : the file.
    origin : format and name of the file that they came from first; the recipe is whole where that
        is "mme".
    mapped : how many of the file's tensors they were made of.
    left : tensors and other content that was left out, with the reason.
    notes : what a user should know.
    assumed : which of frames, size and heads the file does not say.
    """

    state: dict[str, Tensor]
    kind: Kind
    recipe: Recipe | FinetuneRecipe
    classes: list[str]
    format: str
    source: str
    origin: str
    mapped: int
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    @property
    def clip(self) -> TargetConfig | ViewConfig:
        """What a clip is."""
        recipe = self.recipe
        return recipe.views if isinstance(recipe, FinetuneRecipe) else recipe.targets


def build(
    kind: Kind, recipe: Recipe | FinetuneRecipe, classes: int, norm: bool = True
) -> nn.Module:
    """The model of some weights; an encoder stands under `encoder`, with or without its norm."""
    if isinstance(recipe, FinetuneRecipe):
        if kind != "encoder":
            return Classifier(recipe.model, recipe.views, classes, recipe.classifier)
        encoder = build_encoder(recipe.model, recipe.views)
    elif kind == "pretrain":
        return build_model(recipe.model, recipe.targets)
    else:
        encoder = build_encoder(recipe.model, recipe.targets)
    if not norm:
        encoder.norm = nn.Identity()
    return nn.ModuleDict({"encoder": encoder})


def read_weights(
    path: str | os.PathLike[str],
    assumed: Assumed | None = None,
    *,
    only_encoder: bool = False,
    strict: bool = True,
) -> Weights:
    """Read a checkpoint of any format; nothing in it is run.

    Parameters
    ----------
    assumed : what holds where the file does not say.
    only_encoder : leave all the rest.
    strict : raise where a tensor is unknown, instead of listing it in `left`.

    Raises
    ------
    OSError, ValueError
        If there is no such file, it is damaged or refused (`foreign.open_weights`), of no known
        format, has unknown tensors, or lacks some or has them in another shape (with a table).
    """
    opened = open_weights(path)
    if "format" in opened.about and opened.about["format"] == FORMAT:
        return _own(opened, only_encoder)
    style = style_of(opened.tensors)
    if style is None:
        shown = ", ".join(list(opened.tensors)[:3])
        raise ValueError(f"{opened.path} is of no format known here; it has {shown}, …")
    return _Reader(opened, style, assumed or Assumed(), only_encoder, strict).weights()


def _own(opened: Opened, only_encoder: bool) -> Weights:
    about = opened.about
    kind: Any = about.get("kind", "pretrain")
    if "recipe" not in about:
        raise ValueError(f"{opened.path} holds no recipe, which checkpoints of {FORMAT} have")
    cls = FinetuneRecipe if kind == "classifier" else Recipe
    recipe = cls.from_json(about["recipe"])
    state, left = dict(opened.tensors), {}
    if only_encoder:
        left = {k: "not the encoder's" for k in state if not k.startswith("encoder.")}
        state = {k: v for k, v in state.items() if k not in left}
    classes = json.loads(about.get("classes", "[]"))
    if kind == "classifier" and not classes and "head.bias" in opened.tensors:
        classes = [str(i) for i in range(len(opened.tensors["head.bias"]))]
    if not only_encoder:
        norm = "encoder.norm.weight" in state
        with torch.device("meta"):
            wanted = build(kind, recipe, len(classes), norm).state_dict()
        fit_state(state, wanted, str(opened.path))
    origin, name = about.get("source", f"mme: {opened.path.name}"), str(opened.path)
    return Weights(state, kind, recipe, classes, "mme", name, origin, len(state), left)


class _Reader:
    """From a foreign file to `Weights`."""

    def __init__(
        self, opened: Opened, style: Style, assumed: Assumed, only_encoder: bool, strict: bool
    ) -> None:
        self.opened, self.style, self.assumed = opened, style, assumed
        self.only_encoder, self.strict = only_encoder, strict
        self.given = canonical(opened.tensors, style)
        self.left = dict(opened.left)
        self.notes: list[str] = []
        self.unsaid: list[str] = []
        self.carried = Carried(opened.carried)
        self.config: Mapping[str, Any] = {}
        if style == "hf" and opened.config:
            self.config = HF_DEFAULTS | opened.config

    def weights(self) -> Weights:
        self._check_config()
        kind = self._kind()
        decoders = sum(key.startswith("encoder_to_decoder") for key in self.given)
        recipe = self._recipe(kind, decoders)
        if recipe is None:  # targets that are not made here
            kind, recipe = "encoder", self._recipe("encoder", decoders)
        assert recipe is not None
        state, used, classes = {}, set(), 0
        if kind == "classifier":
            classes = len(self.given[names("head.weight", self.style)[0][0]][1])
        norm = names("encoder.norm.weight", self.style)[0][0] in self.given
        with torch.device("meta"):
            wanted = build(kind, recipe, classes, norm).state_dict()
        for key in wanted:
            value, taken = pick(self.given, key, self.style, decoders)
            used |= set(taken)
            if value is not None:
                state[key] = self._ours(key, value, recipe)
        self._sort_out(kind, used)
        fit_state(state, wanted, str(self.opened.path))
        self._note_types(state)
        sampled = kind != "classifier" or bool(self.carried.views)
        self.notes += assumed_notes(self.unsaid, recipe, sampled)
        mapped = len({self.given[name][0] for name in used})
        return Weights(
            state,
            kind,
            recipe,
            self._classes(classes),
            self.style,
            str(self.opened.path),
            f"{self.style}: {self.opened.path.name}",
            mapped,
            self.left,
            self.notes,
            self.unsaid,
        )

    def _has(self, key: str) -> bool:
        return names(key, self.style)[0][0] in self.given

    def _leave(self, prefixes: tuple[str, ...], reason: str) -> None:
        for name in list(self.given):
            if name.startswith(prefixes):
                self.left[self.given.pop(name)[0]] = reason

    def _kind(self) -> Kind:
        """What the file holds; what cannot be used of it is left out here, with the reason."""
        heads, decoder = ("head.", "fc_norm.", "classifier."), ("encoder_to", "mask_t", "decoder.")
        if self.only_encoder:
            self._leave((*heads, *decoder), "not the encoder's")
        if self._has("encoder.norm.weight") and not self._has("fc_norm.weight"):
            self._leave(heads, "reads the first token, not the mean of all as classifiers do here")
        if not self._has("encoder.norm.weight"):
            self._leave(decoder, "follows no norm of the encoder, as decoders do here")
        if self._has("head.weight") and self._has("fc_norm.weight"):
            self._note_eps("fc_norm")
            return "classifier"
        self._leave(("fc_norm.",), "the file has no classes to it")
        if "mask_token" not in self.given:
            return "encoder"
        self._note_eps("decoder.norm")
        return "pretrain"

    def _note_eps(self, layer: str) -> None:
        if self.style == "hf":
            self.notes.append(f"the eps of {layer} is fixed at 1e-5 there and {EPS:g} here")

    def _check_config(self) -> None:
        if self.style != "hf":
            return
        if not self.config:
            self.notes.append("no config.json beside the file: heads and clips are assumed")
            return
        activation, eps = self.config["hidden_act"], self.config["layer_norm_eps"]
        if activation != "gelu":
            raise ValueError(f"{self.opened.path}: hidden_act is {activation!r}; must be 'gelu'")
        if eps != EPS:
            self.notes.append(
                f"layer_norm_eps is {eps:g} there and {EPS:g} here, as VideoMAE was trained"
            )
        self.notes += processor_notes(self.opened.processor)

    def _clip(self) -> dict[str, int]:
        """Frames, size, tubelet and patch."""
        weight = self.given[names("encoder.patch_embed.proj.weight", self.style)[0][0]][1]
        if weight.dim() != 5 or weight.shape[1] != 3 or weight.shape[3] != weight.shape[4]:
            raise ValueError(
                f"{self.opened.path}: the patch embedding has shape {list(weight.shape)}; must be "
                "[width, 3, tubelet, patch, patch]"
            )
        options = self.opened.options
        size = self.config.get("image_size", options.get("input_size", 0))
        if isinstance(size, (list, tuple)):
            if len(set(size)) != 1:
                raise ValueError(f"{self.opened.path}: image_size is {size}; must be a square")
            size = size[0]
        said = {"frames": self.config.get("num_frames", options.get("num_frames", 0)), "size": size}
        said = {name: said[name] or self.carried.clip.get(name, 0) for name in said}
        clip = {"tubelet": weight.shape[2], "patch": weight.shape[3]}
        for name, usual in (("frames", 16), ("size", 224)):
            known = getattr(self.assumed, name) or (
                said[name] if isinstance(said[name], int) else 0
            )
            clip[name] = known or usual
            if not known:
                self._assume(name)
        return clip

    def _model(self, kind: Kind) -> dict[str, Any]:
        """Fields of `ModelConfig`."""
        width = len(self.given[names("encoder.patch_embed.proj.weight", self.style)[0][0]][1])
        depth = count(self.given, self.style, "encoder")
        heads = self.assumed.heads or self.config.get("num_attention_heads", self.carried.heads)
        if not heads:
            self._assume("heads")
        shape = Shape(width, depth, heads or HUGE.get(width, max(1, width // 64)))
        size = next((name for name, known in SIZES.items() if known == shape), None)
        model: dict[str, Any] = {"size": size} if size else shape._asdict()
        if kind == "pretrain":
            inner = self.given["mask_token"][1].shape[-1]
            # VideoMAE's and the authors', of any width.
            usual = self.carried.decoder_heads or max(1, shape.heads // 2)
            model |= {
                "decoder_width": inner,
                "decoder_depth": count(self.given, self.style, "decoder.0"),
                "decoder_heads": self.config.get("decoder_num_attention_heads", usual),
            }
        return model

    def _recipe(self, kind: Kind, decoders: int) -> Recipe | FinetuneRecipe | None:
        clip, model = self._clip(), self._model(kind)
        views = self.carried.views_of(clip)
        if kind == "classifier" or (views and self.only_encoder):
            return FinetuneRecipe.from_dict({"model": model, "views": clip | views})
        clip |= self.carried.stride
        targets: dict[str, Any] | None = {"targets": ["pixel"], "length": 0}
        if kind == "pretrain" and self.style == "released":
            targets = self._released_targets(clip["patch"], decoders)
            model |= {"head": "mlp", "decoders": "joint" if decoders == 1 else "separate"}
        if targets is None:
            self._leave(("encoder_to", "mask_t", "decoder."), "of targets that are not made here")
            return None
        return Recipe.from_dict({"model": model, "targets": clip | targets})

    def _released_targets(self, patch: int, decoders: int) -> dict[str, Any] | None:
        """Fields of `TargetConfig` by the widths of the heads; None if they are of none."""
        last = ["decoder.0.head.0.2.bias", "decoder.0.head.1.2.bias"]
        if decoders > 1:
            last[1] = "decoder.1.head.0.2.bias"
        widths = [len(self.given[name][1]) for name in last if name in self.given]
        released = TargetConfig.released(patch=patch).to_dict()
        del released["frames"], released["size"], released["tubelet"]
        tracks = TargetConfig(patch=patch).tracks
        histograms = tracks * 3 * released["bins"]
        if not widths or decoders > 2 or widths[0] % histograms or tracks < 2:
            return None
        along = widths[0] // histograms
        steps = widths[1] // (2 * tracks) if len(widths) > 1 else max(along, 1)
        if along > 1:  # their variant that reads histograms along the track
            released["quirks"] = "none"
        released |= {"length": steps, "targets": ["trajectory" if len(widths) > 1 else "shape"]}
        made = target_widths(TargetConfig.from_dict(released))
        known = [made["shape"], made.get("position", 0)][: len(widths)]
        return released if known == widths else None

    def _ours(self, key: str, value: Tensor, recipe: Recipe | FinetuneRecipe) -> Tensor:
        if self.style != "released" or not isinstance(recipe, Recipe):
            return value
        if key == "mask_token" and value.dim() == 3 and len(value) == 1:
            decoders = 2 if recipe.model.decoders == "separate" else 1
            return value.expand(decoders, -1, -1)
        if ".heads." in key and ".2." in key:
            rows = rows_of_released(*head_layout(key, recipe.targets))
            return value[rows] if len(value) == len(rows) else value
        return value

    def _sort_out(self, kind: Kind, used: set[str]) -> None:
        """Name what was not used; raise if some of it is unknown."""
        unknown = []
        for name in self.given.keys() - used:
            key, value = self.given[name]
            if name in ("pos_embed", "encoder.pos_embed", "embeddings.position_embeddings"):
                fixed = sinusoids(*value.shape[-2:]) if value.dim() > 1 else value[..., None]
                if fixed.numel() == value.numel() and torch.allclose(
                    value.float().reshape(fixed.shape), fixed, atol=1e-3
                ):
                    self.left[key] = "the fixed sinusoids, which are computed"
                    continue
            if name.endswith(("attn.k_bias", "key.bias")):
                continue
            unknown.append(key)
            self.left[key] = "unknown"
        if unknown and self.strict:
            shown = ", ".join(sorted(unknown)[:8])
            more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
            raise ValueError(
                f"{self.opened.path}: {len(unknown)} tensors have no place in this project's "
                f"model: {shown}{more}; --strict false leaves them out"
            )

    def _note_types(self, state: Mapping[str, Tensor]) -> None:
        whole = [key for key, value in state.items() if not value.is_floating_point()]
        if whole:
            kind = state[whole[0]].dtype
            raise ValueError(f"{self.opened.path}: {whole[0]} is {kind}; must be floating point")
        types = sorted({str(v.dtype).removeprefix("torch.") for v in state.values()})
        if types != ["float32"]:
            self.notes.append(f"weights are {', '.join(types)}, as in the file")

    def _assume(self, name: str) -> None:
        if name not in self.unsaid:
            self.unsaid.append(name)

    def _classes(self, classes: int) -> list[str]:
        labels = self.config.get("id2label", {})
        if not labels and len(self.carried.classes) == classes:
            return self.carried.classes
        return [str(labels.get(str(i), i)) for i in range(classes)]


def head_layout(key: str, targets: TargetConfig) -> tuple[int, int, int]:
    """Tracks, steps and values a step of the head that a key belongs to."""
    name = key.split(".heads.")[1].split(".")[0]
    tracks = targets.tracks
    if name == "position":
        return tracks, targets.length, 2
    along = target_widths(targets)[name] // (tracks * 3 * targets.bins)
    return tracks, along, 3 * targets.bins
