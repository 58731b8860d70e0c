"""Classes of labelled videos: how many, what they are called, and what is wrong with them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from .lists import NAMING

if TYPE_CHECKING:
    from .sources import Source

__all__ = ["Relabelled", "class_names", "data_hash", "matched", "numbered", "oddities"]
__all__ += ["real_path", "some"]

SHOWN = 10
"""Names that a message lists."""


class Relabelled:
    """The videos of a source with other labels, the names of its classes, and what was assumed."""

    def __init__(
        self,
        source: Source,
        labels: Sequence[int],
        classes: Sequence[str],
        notes: Sequence[str] = (),
    ) -> None:
        self.source, self.classes, self.notes = source, tuple(classes), list(notes)
        self._labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """As the source's."""
        return self.source.name(index)

    def path(self, index: int) -> str:
        """As the source's."""
        return video_path(self.source, index)

    def label(self, index: int) -> int:
        """The class, a place in `classes`."""
        return int(self._labels[index])

    def frames(self, index: int) -> int:
        """As the source's."""
        return self.source.frames(index)

    def read(self, index: int, indices: Sequence[int]) -> torch.Tensor:
        """As the source's."""
        return self.source.read(index, indices)


def video_path(source: Source, index: int) -> str:
    """The file of a video, or where it is none its name."""
    find = getattr(source, "path", None)
    return str(find(index)) if find else source.name(index)


def real_path(source: Source, index: int) -> str:
    """The file of a video, the same however a list calls it: "./a.mp4" is "a.mp4", a link what it
    points to.
    """
    folder, name = os.path.split(video_path(source, index))
    path = os.path.join(_real_folder(os.path.join(os.getcwd(), folder)), name)
    return os.path.realpath(path) if os.path.islink(path) else path


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def class_names(source: Source, what: str) -> tuple[str, ...]:
    """Names of the classes to train on, by label: those of the data, or else the numbers.

    Parameters
    ----------
    what : how messages call the data.

    Raises
    ------
    ValueError
        If a video has no label or one out of range, there is but one class, or one video is listed
        with two labels; with their names.
    """
    labels = _labels(source, what)
    known = tuple(getattr(source, "classes", ()) or ())
    if known:
        _in_range(source, labels, len(known), what)
    of: dict[str, int] = {}
    torn = []
    for index, label in enumerate(labels):
        if of.setdefault(real_path(source, index), label) != label:
            torn.append(source.name(index))
    if torn:
        raise ValueError(f"{what}: {_count(torn)} listed with two labels:\n{_listed(torn)}")
    if len(set(labels)) < 2:
        raise ValueError(
            f"{what}: all {len(labels)} videos are of one class, {labels[0]}; "
            "must be of two or more"
        )
    # A share of a list may be without its last classes.
    count = max(max(labels) + 1, getattr(source, "labelled", 0))
    return known or tuple(str(label) for label in range(count))


def matched(source: Source, classes: Sequence[str], what: str) -> Relabelled:
    """The source with labels that are places in `classes`, which its own may not be.

    Where its classes have names they are matched by these, else labels are taken as they are, as
    `numbered` says.

    Raises
    ------
    ValueError
        If a video has no label, or is of a class that is not among `classes`; as `numbered`.
    """
    labels = _labels(source, what)
    own = tuple(getattr(source, "classes", ()) or ())
    if not own or own == tuple(classes):
        _in_range(source, labels, len(classes), what)
        return Relabelled(source, labels, classes, numbered(source, labels, classes, what))
    place = {name: number for number, name in enumerate(classes)}
    foreign = [own[label] for label in sorted(set(labels)) if own[label] not in place]
    if foreign:
        raise ValueError(
            f"{what}: {len(foreign)} of its classes are not among the {len(classes)} trained on:\n"
            + _listed(foreign)
        )
    return Relabelled(source, [place[own[label]] for label in labels], classes)


def numbered(source: Source, labels: Sequence[int], classes: Sequence[str], what: str) -> list[str]:
    """What is assumed where only one of a list and the `classes` trained on has names: a message.

    Then a label is taken as the place of its class, though the list may number classes otherwise.

    Parameters
    ----------
    labels : of the videos, places in `classes`; below 0 where unknown.

    Raises
    ------
    ValueError
        Where the names of folders contradict it: all videos of a folder that is called as one class
        is have the number of another.
    """
    own = tuple(getattr(source, "classes", ()) or ())
    if all(label < 0 for label in labels):
        return []
    unnamed = all(name.isdecimal() for name in classes)
    if unnamed and own and own != tuple(classes):
        return [
            f"{what}: its {len(own)} classes have names, the {len(classes)} trained on have "
            f"numbers alone; these were taken for {_pairs(own)}"
        ]
    if unnamed or own:
        return []
    place = {name: number for number, name in enumerate(classes)}
    found: dict[str, set[int]] = {}
    for index, label in enumerate(labels):
        folder = os.path.basename(os.path.dirname(video_path(source, index)))
        if folder in place and label >= 0:
            found.setdefault(folder, set()).add(label)
    for folder, numbers in found.items():
        if len(numbers) == 1 and place[folder] not in numbers:
            number = numbers.pop()
            raise ValueError(
                f"{what}: numbers classes otherwise than the {len(classes)} trained on "
                f"({_pairs(classes)}): its videos in the folder {folder!r} have {number}, which "
                f"is {classes[number]!r}; write these numbers, or name the classes by {NAMING}"
            )
    return [
        f"{what}: its labels are numbers; they were taken for those of the {len(classes)} classes "
        f"trained on: {_pairs(classes)}"
    ]


def oddities(train: Source, val: Source | None, classes: Sequence[str]) -> list[str]:
    """What a user should know of and training can live with, a message each: videos listed twice,
    classes without a video, videos in both lists.
    """
    found = []
    paths = [real_path(train, index) for index in range(len(train))]
    counts, first = Counter(paths), {path: i for i, path in reversed([*enumerate(paths)])}
    twice = [video_path(train, first[path]) for path, count in counts.items() if count > 1]
    if twice:
        found.append(f"{_count(twice)} listed more than once for training:\n{_listed(twice)}")
    there = {train.label(index) for index in range(len(train))}
    empty = [name for label, name in enumerate(classes) if label not in there]
    if empty:
        found.append(
            f"{len(empty)} of {len(classes)} classes have no video to train on:\n{_listed(empty)}"
        )
    if val is not None:
        both = [video_path(val, i) for i in range(len(val)) if real_path(val, i) in counts]
        if both:
            found.append(
                f"{_count(both)} both trained on and measured on; accuracies will be too high:\n"
                + _listed(both)
            )
    return found


def data_hash(source: Source) -> str:
    """A number for which videos with which labels these are, in their order: 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for index in range(len(source)):
        text = f"{source.name(index)}\0{source.label(index)}\n"
        digest.update(text.encode(errors="surrogateescape"))
    return digest.hexdigest()


def some(names: Sequence[str], count: int | None = None) -> str:
    """The first five of `names`, and how many more there are of `count`."""
    count = len(names) if count is None else count
    shown = list(names[:5])
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _pairs(classes: Sequence[str]) -> str:
    return some([f"{number} = {name}" for number, name in enumerate(classes[:5])], len(classes))


def _labels(source: Source, what: str) -> list[int]:
    labels = [source.label(index) for index in range(len(source))]
    bare = [source.name(index) for index, label in enumerate(labels) if label < 0]
    if bare:
        raise ValueError(
            f"{what}: {len(bare)} of {len(labels)} videos have no label; a list needs one for "
            f"each, a folder one sub-folder a class:\n{_listed(bare)}"
        )
    return labels


def _in_range(source: Source, labels: Sequence[int], classes: int, what: str) -> None:
    high = [source.name(i) for i, label in enumerate(labels) if label >= classes]
    if high:
        raise ValueError(
            f"{what}: labels go up to {max(labels)}, but there are {classes} classes, 0 to "
            f"{classes - 1}:\n{_listed(high)}"
        )


def _count(names: Sequence[str]) -> str:
    return "1 video is" if len(names) == 1 else f"{len(names)} videos are"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = [f"  … and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return "\n".join([*(f"  {name}" for name in names[:SHOWN]), *more])
