"""Checks of a list that a classifier is tested on: its labels, duplicates, what it was trained on.

Unlike in training (`labels`), videos without a label are welcome here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .finetune_recipe import FinetuneRecipe
from .labels import real_path, some
from .sources import Source

__all__ = ["known_labels", "seen_in_training", "unique_videos"]


def known_labels(source: Source, classes: Sequence[str], spec: str) -> npt.NDArray[np.int64]:
    """The videos' labels as the classifier numbers them; -1 where unknown.

    Where both the list and the classifier name their classes, labels go by the names, so that a
    list of some of the classes is understood; else by the numbers.

    Raises
    ------
    ValueError
        For a video of a class that the classifier does not have; names videos and labels.
    """
    labels = np.array([source.label(i) for i in range(len(source))], dtype=np.int64)
    own = tuple(getattr(source, "classes", ()))
    if own and not all(name.isdecimal() for name in classes):
        place = {name: number for number, name in enumerate(classes)}
        asked = sorted({label for label in labels.tolist() if label >= 0})
        foreign = [own[label] for label in asked if own[label] not in place]
        if foreign:
            raise ValueError(
                f"{spec}: {len(foreign)} of its {len(own)} classes are not among the classifier's "
                f"{len(classes)}: {some(foreign)}; it knows {some(classes)}"
            )
        to = np.array([place.get(name, -1) for name in own], dtype=np.int64)
        labels = np.where(labels >= 0, to[np.maximum(labels, 0)], -1)
    high = np.flatnonzero(labels >= len(classes))
    if len(high):
        worst = [f"{source.name(int(i))} has {labels[i]}" for i in high[:3]]
        are = "label is" if len(high) == 1 else "labels are"
        raise ValueError(
            f"{spec}: {len(high)} {are} out of range: {some(worst, len(high))}; "
            f"the classifier has {len(classes)} classes, 0 to {len(classes) - 1}"
        )
    return labels


def unique_videos(source: Source, labels: npt.NDArray[np.int64]) -> tuple[list[int], list[str]]:
    """Indices of the videos, each once though it may be listed again; and what to say of that.

    Raises
    ------
    ValueError
        For a video that is listed with two labels.
    """
    first: dict[str, int] = {}
    twice: list[str] = []
    for index in range(len(labels)):
        known = first.setdefault(real_path(source, index), index)
        if known == index:
            continue
        name = source.name(index)
        if labels[known] != labels[index]:
            raise ValueError(
                f"{name} is listed with the labels {labels[known]} and {labels[index]}; "
                "it can have one"
            )
        twice.append(name)
    said = f"{len(twice)} videos are listed more than once and count once: {some(twice)}"
    return list(first.values()), [said] if twice else []


def seen_in_training(source: Source, recipe: FinetuneRecipe) -> list[str]:
    """What to say where videos of `source` are among those that the classifier was trained on.

    Nothing where these are not here to be compared.
    """
    from .views import open_videos

    if recipe.data.split(":")[0] == "synthetic":
        return []
    try:
        trained = open_videos(recipe.data, recipe.views, seed=recipe.train.seed, quiet=True)
    except (OSError, ValueError):
        return []
    paths = {real_path(trained, i) for i in range(len(trained))}
    also = [source.name(i) for i in range(len(source)) if real_path(source, i) in paths]
    said = f"{len(also)} videos were trained on; accuracies will be too high: {some(also)}"
    return [said] if also else []
