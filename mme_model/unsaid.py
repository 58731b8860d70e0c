"""What a foreign checkpoint does not say, or says otherwise than holds here: notes for its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .finetune_recipe import FinetuneRecipe, ViewConfig
from .recipe import Recipe
from .vit import MEAN, STD, encoder_shape

__all__ = ["assumed_notes", "processor_notes"]


def assumed_notes(
    names: Sequence[str], recipe: Recipe | FinetuneRecipe, sampled: bool
) -> list[str]:
    """What was taken for each of `names` (frames, size, heads), as the recipe has it.

    Parameters
    ----------
    sampled : whether the file says which frames of a video a classifier's clip has.
    """
    clip = recipe.views if isinstance(recipe, FinetuneRecipe) else recipe.targets
    notes = []
    for name in names:
        value = encoder_shape(recipe.model).heads if name == "heads" else getattr(clip, name)
        of = "attention heads of the encoder" if name == "heads" else f"{name} of a clip"
        notes.append(f"{of}: not in the file, {value} assumed")
    if isinstance(clip, ViewConfig) and not sampled:
        notes.append(
            f"which frames a clip has: not in the file, {clip.sampling} sampling assumed, "
            f"{clip.stride} frames apart"
        )
    return notes


def processor_notes(processor: Mapping[str, Any]) -> list[str]:
    """Where Hugging Face's processor normalises frames otherwise than it is done here."""
    return [
        f"{name} is {there} there and {list(here)} here, ImageNet's: of the same frames what "
        "comes out differs"
        for name, here in (("image_mean", MEAN), ("image_std", STD))
        if (there := processor.get(name)) is not None and not _alike(there, here)
    ]


def _alike(there: Any, here: Sequence[float]) -> bool:
    """Whether two lists of numbers are the same to three digits."""
    listed = there if isinstance(there, list) else [there] * len(here)
    sound = len(listed) == len(here) and all(isinstance(v, (int, float)) for v in listed)
    return sound and all(abs(a - b) < 1e-3 for a, b in zip(listed, here, strict=True))
