"""Checkpoints from and for other programs: what `mme convert` does, and reading any of them."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor

from .checkpoints import FORMAT, fit_state
from .classifier import Classifier
from .finetune_recipe import FinetuneRecipe
from .foreign import Opened, open_weights
from .recipe import Recipe
from .vit import encoder_shape

__all__ = ["load_classifier", "load_encoder_state"]


def load_encoder_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The encoder's weights in a checkpoint of any format, and facts about them.

    Returns
    -------
    state, facts
        Weights by an `Encoder`'s keys, `norm.*` where the file has it (a classifier has not);
        and its `format`, `kind`, `width`, `depth`, `heads`, `tubelet`, `patch`, `frames`, `size`.

    Raises
    ------
    OSError, ValueError
        If there is no such file, it is damaged or refused, or weights are missing or unknown.
    """
    opened = open_weights(path)
    recipe = _recipe(opened)
    clip = recipe.views if isinstance(recipe, FinetuneRecipe) else recipe.targets
    state = {
        key.removeprefix("encoder."): value
        for key, value in opened.tensors.items()
        if key.startswith("encoder.")
    }
    shape = encoder_shape(recipe.model)
    facts = {"format": "mme", "kind": opened.about["kind"], **shape._asdict()}
    return state, facts | {k: getattr(clip, k) for k in ("tubelet", "patch", "frames", "size")}


def load_classifier(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[Classifier, FinetuneRecipe, list[str]]:
    """The classifier of a checkpoint, ready for evaluation, its recipe and its classes' names.

    Raises
    ------
    OSError, ValueError
        As `load_encoder_state`; also where the file holds no classifier.
    """
    opened = open_weights(path)
    recipe = _recipe(opened)
    if not isinstance(recipe, FinetuneRecipe):
        raise ValueError(f"{opened.path} holds no classifier; it is of `mme pretrain`")
    count = len(opened.tensors["head.bias"])
    classes = json.loads(opened.about.get("classes", "[]")) or [str(i) for i in range(count)]
    model = Classifier(recipe.model, recipe.views, count, recipe.classifier)
    model.load_state_dict(fit_state(opened.tensors, model.state_dict(), str(opened.path)))
    return model.to(device).eval(), recipe, classes


def _recipe(opened: Opened) -> Recipe | FinetuneRecipe:
    if opened.about.get("format") != FORMAT:
        raise ValueError(f"{opened.path} is no checkpoint of this project (format {FORMAT})")
    cls = FinetuneRecipe if opened.about.get("kind") == "classifier" else Recipe
    return cls.from_json(opened.about["recipe"])
