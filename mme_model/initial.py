"""Starting a classifier from a checkpoint's encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoints import fit_state
from .classifier import Classifier
from .convert import load_encoder_state
from .finetune_recipe import FinetuneRecipe
from .foreign import open_weights
from .mvit import resized_positions
from .recipe import Recipe
from .results import pretraining
from .vit import SIZES, Shape, encoder_shape

__all__ = ["initialised"]


def initialised(model: Classifier, recipe: FinetuneRecipe) -> tuple[dict[str, Any], list[str]]:
    """Put the encoder of `recipe.init` into the classifier.

    Returns
    -------
    found, notes
        What there is to say of its pre-training; what a user should know.

    Raises
    ------
    OSError, ValueError
        As `convert.load_encoder_state`; for weights that do not fit, with the options that make
        the model one that they fit, and a table; for other attention heads than the file says.
    """
    path = recipe.init
    state, facts = load_encoder_state(path)
    about = open_weights(path).about
    held = {key: value for key, value in state.items() if not key.startswith("norm.")}
    wanted = model.encoder.state_dict()
    held = resized_positions(held, wanted)
    model.encoder.load_state_dict(fit_state(held, wanted, path, _next_step(facts, recipe)))
    found: dict[str, Any] = {"path": path, **facts}
    notes = _heads(path, facts, recipe)
    if facts.get("kind") == "classifier":
        notes.append(
            f"{path}: its head and the norm before it, which are of its own classes, are not taken"
        )
    if about.get("kind") == "pretrain":
        found |= pretraining(Recipe.from_json(about["recipe"]))
    else:
        found["method"] = f"from {Path(path).name}"
    return found, notes


def _heads(path: str, facts: Mapping[str, Any], recipe: FinetuneRecipe) -> list[str]:
    """Whether the heads are the file's, which no shape tells: a note where it does not say them."""
    heads = encoder_shape(recipe.model).heads
    if facts["heads"] == heads:
        return []
    if "heads" not in facts["assumed"]:
        raise ValueError(
            f"{path} is of another architecture, though its weights would fit: its encoder has "
            f"{facts['heads']} attention heads, the model {heads}; start from it with "
            f"--model.heads {facts['heads']}"
        )
    return [
        f"{path}: does not say how many attention heads its encoder has; the model has {heads}, "
        f"where 64 values each would make {facts['heads']}"
    ]


def _next_step(facts: Mapping[str, Any], recipe: FinetuneRecipe) -> str:
    """In what the file's encoder differs from the recipe's, and the options that mend it."""
    model = recipe.model
    if facts["backbone"] != model.backbone:
        return (
            f"the backbone is {facts['backbone']} in the file and {model.backbone} in the model; "
            f"start from it with --model.backbone {facts['backbone']}"
        )
    here: dict[str, Any] = {"tubelet": recipe.views.tubelet, "patch": recipe.views.patch}
    if model.backbone == "vit":
        here = encoder_shape(model)._asdict() | here
    unlike = [name for name in here if facts[name] != here[name]]
    if not unlike:
        return ""
    said = [f"{name} is {facts[name]} in the file and {here[name]} in the model" for name in unlike]
    options = {f"model.{name}" if name in Shape._fields else f"views.{name}": facts[name]
               for name in unlike}  # fmt: skip
    there = Shape(*(facts[name] for name in Shape._fields))
    size = next((name for name, shape in SIZES.items() if shape == there), None)
    if size and size != model.size and not (model.width or model.depth or model.heads):
        kept = {name: value for name, value in options.items() if name.startswith("views.")}
        options = {"model.size": size} | kept
    words = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"{', '.join(said)}; start from it with {words}"
