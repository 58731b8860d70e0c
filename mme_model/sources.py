"""Where clips come from: lists of videos, folders, single files, or the built-in generator."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from mme_targets.video import decode, probe

from .keys import share
from .labels import some
from .lists import SUFFIXES, Entry, VideoList, read_list
from .recipe import ClipConfig

__all__ = ["Source", "VideoSource", "open_source", "read_folder"]

_LOOKED_FOR = 2000
"""Files of a list that are looked for before it is used, spread over it."""


class Source(Protocol):
    """Videos by number. Holds no open file, and pickles: loader workers get a copy."""

    def __len__(self) -> int:
        """How many videos there are."""

    def name(self, index: int) -> str:
        """What the video is called in messages and in `skipped.csv`."""

    def label(self, index: int) -> int:
        """Its class, from 0; -1 where none is known."""

    def frames(self, index: int) -> int:
        """How many frames it has. VideoError where it cannot be read."""

    def read(self, index: int, indices: Sequence[int]) -> torch.Tensor:
        """Frames [F, 3, H, W] uint8 RGB by ascending index. VideoError where one is unreadable."""


class VideoSource:
    """Video files.

    Parameters
    ----------
    videos : what `read_list` or `read_folder` gives.
    short_side : resize the short side to this as frames are decoded, px; 0 keeps the size.
    labelled : how many classes there are by the labels of the list that these are a share of.
    """

    def __init__(self, videos: VideoList, *, short_side: int = 0, labelled: int = 0) -> None:
        self.classes = videos.classes
        """Names of the classes by label; empty where none are known."""
        self.labelled = labelled
        self.short_side = short_side
        # Not lists of objects: a forked worker that counts references to hundreds of thousands of
        # them ends up with a copy of them all.
        self._names = _Texts(entry.name for entry in videos.entries)
        self._paths = _Texts(entry.path for entry in videos.entries)
        self._labels = np.array([entry.label for entry in videos.entries], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, index: int) -> str:
        """The path as the list has it."""
        return self._names[index]

    def path(self, index: int) -> str:
        """The file."""
        return self._paths[index]

    def label(self, index: int) -> int:
        """The class, from 0; -1 where none is known."""
        return int(self._labels[index])

    def frames(self, index: int) -> int:
        """The number of frames, counted from the packets; `read` then knows where they lie."""
        return probe(self._paths[index]).frames

    def read(self, index: int, indices: Sequence[int]) -> torch.Tensor:
        """Decode frames [F, 3, H, W] uint8 RGB; `indices` ascend and may repeat."""
        return decode(self._paths[index], indices, short_side=self.short_side or None).frames


class _Texts:
    """Strings in two arrays."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [os.fsencode(text) for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self._ends) - 1:
            raise IndexError(f"index is {index}; must lie in 0 to {len(self._ends) - 2}")
        start, end = self._ends[index : index + 2]
        return os.fsdecode(self._bytes[start:end].tobytes())


def read_folder(folder: str | os.PathLike[str]) -> VideoList:
    """All videos below `folder`, sorted by their path.

    Where each lies in a folder of its own class, one level deep, the sorted names of these folders
    are the classes.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError
        If it holds no video, by the names' endings.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"{root}: there is no such folder")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder")
    names = sorted(_below(root))
    if not names:
        raise ValueError(
            f"{root}: holds no video; looked for names that end in {' '.join(sorted(SUFFIXES))}"
        )
    parts = [name.split("/") for name in names]
    classes: tuple[str, ...] = ()
    if all(len(part) == 2 for part in parts):
        classes = tuple(sorted({part[0] for part in parts}))
    of = {name: number for number, name in enumerate(classes)}
    entries = [
        Entry(str(root / name), of.get(part[0], -1), part[0] if classes else "", name)
        for name, part in zip(names, parts, strict=True)
    ]
    return VideoList(tuple(entries), classes, "folder", str(root))


def _below(root: Path) -> Iterator[str]:
    """Paths of the videos below `root`, relative to it; linked folders count, circles do not."""
    seen: set[str] = set()
    for at, folders, files in os.walk(root, followlinks=True):
        seen.add(os.path.realpath(at))
        folders[:] = [f for f in folders if os.path.realpath(os.path.join(at, f)) not in seen]
        for file in files:
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith("."):
                yield Path(at, file).relative_to(root).as_posix()


def open_source(
    spec: str,
    clips: ClipConfig,
    *,
    seed: int = 0,
    held_out: bool = False,
    frames: int = 64,
    size: int = 128,
    quiet: bool = False,
) -> Source:
    """Open what a recipe's `data` or `val` names.

    The files of a list are looked for, of a long one 2000; where some are not there, a note on
    stderr says which.

    Parameters
    ----------
    spec : "synthetic" (`clips.clips` videos) or "synthetic:N"; a folder of videos; a video, by the
        ending of its name; any other file, and a folder or pattern of HMDB51's splits, is a list.
    clips : `format`, `root`, `fraction`, `short_side` and `clips` are read.
    seed : of synthetic videos, and of which videos are the `fraction`. A smaller fraction is part
        of a larger one, wherever the videos lie.
    held_out : for measurements: all of a list whatever the `fraction`, its test or validation split
        where it holds several, and other synthetic videos than those of training.
    frames, size : length and side of synthetic videos, px.
    quiet : leave that note out.

    Raises
    ------
    OSError
        If there is nothing at `spec`, or not one of those files of a list is where it says.
    ValueError
        If there is no video in it, or it is no list (naming file and line).
    """
    if spec == "synthetic" or spec.startswith("synthetic:"):
        from .synthetic import SyntheticVideos

        count = _count(spec) if ":" in spec else clips.clips
        if not held_out:
            count = max(1, round(count * clips.fraction))
        return SyntheticVideos(count, seed=seed, frames=frames, size=size, held_out=held_out)
    videos = _videos(spec, clips, "val" if held_out else "train")
    labelled = 1 + max(entry.label for entry in videos.entries)
    if clips.fraction < 1 and not held_out:
        kept = [e for e in videos.entries if _share(seed, e.name) < clips.fraction]
        if not kept:
            raise ValueError(
                f"{spec}: fraction {clips.fraction:g} keeps none of {len(videos.entries)} videos"
            )
        videos = videos._replace(entries=tuple(kept))
    if not quiet and int(os.environ.get("RANK", "0")) == 0:
        _say_missing(spec, videos)
    return VideoSource(videos, short_side=clips.short_side, labelled=labelled)


def _share(seed: int, name: str) -> float:
    # A name that is no UTF-8 is hashed as what its bytes are written like.
    return share(seed, name.encode(errors="backslashreplace").decode())


def one_video(path: str | os.PathLike[str]) -> VideoList:
    """A file that is a video, whatever its name ends in."""
    path = Path(path)
    return VideoList((Entry(str(path), -1, "", path.name),), (), "video", str(path.parent))


def _count(spec: str) -> int:
    text = spec.partition(":")[2]
    if not text.isdecimal() or not int(text):
        raise ValueError(f"data is {spec!r}; synthetic: must be followed by a number of videos")
    return int(text)


def _videos(spec: str, clips: ClipConfig, split: str) -> VideoList:
    path = Path(spec)
    if not spec:
        raise ValueError("data is empty; must name a list, a folder, a video or synthetic")
    if not path.exists() and "*" not in path.name:
        raise FileNotFoundError(f"{spec}: there is no such list, folder or video")
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return one_video(path)
    if path.is_dir() and clips.format != "hmdb51" and not _holds_splits(path):
        return read_folder(path)
    videos = read_list(path, clips.format, root=clips.root, split=split)
    if not any(os.path.exists(entry.path) for entry in _spread(videos)):
        raise FileNotFoundError(
            f"{spec}: not one of {_count_of(videos)} is there; looked in {videos.root or '.'} for "
            f"{videos.entries[0].name} and so on; is the root right (clips.root, views.root, "
            "--root)?"
        )
    return videos


def _spread(videos: VideoList) -> Iterator[Entry]:
    """The entries that are looked for."""
    count = len(videos.entries)
    most = min(count, _LOOKED_FOR)
    return (videos.entries[i * count // most] for i in range(most))


def _count_of(videos: VideoList) -> str:
    count = len(videos.entries)
    if count <= _LOOKED_FOR:
        return f"its {count} videos"
    return f"{_LOOKED_FOR} videos spread over its {count}"


def _say_missing(spec: str, videos: VideoList) -> None:
    """Name files of a list that are not there; they are met as videos that cannot be read."""
    if videos.format in ("folder", "video"):  # found by looking
        return
    gone = [entry.path for entry in _spread(videos) if not os.path.exists(entry.path)]
    if gone:
        are = "is" if len(gone) == 1 else "are"
        print(f"note: {spec}: {len(gone)} of {_count_of(videos)} {are} not there and cannot be "
              f"read: {some(gone)}", file=sys.stderr)  # fmt: skip


def _holds_splits(folder: Path) -> bool:
    return any(folder.glob("*_test_split[123].txt"))
