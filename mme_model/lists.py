"""The list formats that users already have, read into one.

VideoMAE's (`csv`): a line a video, path and label, from 0. UCF101: `trainlist01.txt`, labels from
1, and `testlist01.txt` without. HMDB51: a file a class, each line a video and a flag. SSv2: JSON
with `id` and `template`. `paths`: a line a video, no label.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SUFFIXES", "Entry", "VideoList", "read_list"]

SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"}
)
"""How the names of videos end, in small letters."""

NAMING = (
    "a folder with one sub-folder a class; or classInd.txt beside the list, a line a class such as "
    "'1 cat', and labels from 1 (UCF101's way); or the lists of HMDB51 or SSv2"
)
"""How classes get names."""

FORMATS = ("csv", "ucf101", "hmdb51", "ssv2", "paths")

_LABELLED = re.compile(
    r"""(?:(?P<quote>["'])(?P<quoted>.+)(?P=quote)|(?P<bare>.+?))[\s,]+(?P<label>[^\s,]+)$"""
)
_QUOTED = re.compile(r"""(["'])(.+)\1$""")
_UCF101 = re.compile(r"(train|test|val)list\d+\.txt")
_HMDB51 = re.compile(r"(?P<name>.+)_test_split(?P<number>\d+)\.txt")
_HMDB51_FLAGS = {"train": 1, "val": 2, "test": 2}


class Entry(NamedTuple):
    """One video: the path to open, its class from 0 (-1 unknown), that class's name ("" unknown),
    and the path, or the SSv2 id, as the list has it.
    """

    path: str
    label: int
    group: str
    name: str


class VideoList(NamedTuple):
    """Videos of one list: entries in its order, names of the classes by label (empty where
    unknown), the format, and the folder that paths were joined to.
    """

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    format: str
    root: str


def read_list(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    root: str | os.PathLike[str] = "",
    split: str = "train",
    labels: str | os.PathLike[str] = "",
) -> VideoList:
    """Read a list of videos. Whether they exist is not looked at.

    Parameters
    ----------
    path : the list. HMDB51: a folder of `<class>_test_split<N>.txt`, the lowest N taken; a pattern
        such as `folder/*_test_split2.txt`; or the file of one class.
    format : "csv", "ucf101", "hmdb51", "ssv2", "paths"; "auto" goes by the name and what is in it.
    root : folder that the list's paths are relative to; empty: the list's own.
    split : "train", "val" or "test": which of HMDB51's flags is meant (1, 2, 2).
    labels : SSv2's `labels.json`; empty: the file of that name beside the list.

    Returns
    -------
    VideoList
        csv: paths with spaces as they are or quoted, set off from the label by spaces, tabs or a
        comma; -1 is an unknown label. ucf101: classes from `classInd.txt` beside the list, else
        the sorted names of the list's folders. hmdb51: classes sorted by name, videos in
        folders of their name. ssv2: `<id>.webm`, or `.mp4` where the first videos are such.

    Raises
    ------
    OSError
        If there is no such list, or it is a folder where a file is meant.
    ValueError
        Naming file and line: for a line that does not parse, a label that is no number (and how
        classes get names), a template without a label; for a list that is empty or not of its
        format.
    """
    path = Path(path)
    if format not in ("auto", *FORMATS):
        raise ValueError(f"format is {format!r}; must be auto, {', '.join(FORMATS)}")
    if split not in _HMDB51_FLAGS:
        raise ValueError(f"split is {split!r}; must be train, val or test")
    pattern = "*" in path.name and not path.exists()
    if not pattern and not path.exists():
        raise FileNotFoundError(f"{path}: there is no such list")
    if format == "auto":
        format = _recognised(path)
    folder = os.fspath(root) or str(path if path.is_dir() else path.parent)
    if format == "hmdb51":
        found = _hmdb51(path, folder, split)
    elif path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a list of format {format} is a file")
    elif format == "ssv2":
        found = _ssv2(path, folder, labels)
    else:
        found = (_ucf101 if format == "ucf101" else _plain)(path, folder, format)
    if not found.entries:
        raise ValueError(f"{path}: the list names no video")
    return found


def _recognised(path: Path) -> str:
    if path.is_dir() or _HMDB51.fullmatch(path.name):
        return "hmdb51"
    if path.suffix.lower() == ".json":
        return "ssv2"
    if _UCF101.fullmatch(path.name) or (path.parent / "classInd.txt").is_file():
        return "ucf101"
    lines = list(_lines(path))
    if lines and lines[0][1][0] in "[{":
        return "ssv2"
    bare = all(_is_video(_unquoted(line)) for _, line in lines)
    return "paths" if bare else "csv"


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a list is a file")
    # Names of files are bytes: what is no UTF-8 goes through as it is.
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text.split("\n"), 1):
        if "\0" in line:
            raise ValueError(f"{path}, line {number}: holds a zero byte; a list is text")
        if line.strip():
            yield number, line.strip()


def _unquoted(text: str) -> str:
    match = _QUOTED.match(text)
    return match[2] if match else text


def _labelled(path: Path, number: int, line: str, low: int) -> tuple[str, int]:
    """Path and label of a line."""
    match = _LABELLED.match(line)
    if match is None:
        raise ValueError(
            f"{path}, line {number}: {line!r} has no label; must be a path and a label"
        )
    label = _whole(match["label"])
    if label is None:
        named = f"; for classes with names take {NAMING}" if low < 0 else ""
        raise ValueError(
            f"{path}, line {number}: the label {match['label']!r} is no whole number "
            f"(a line is a path and a label; there is no header){named}"
        )
    if not low <= label < 2**31:
        raise ValueError(f"{path}, line {number}: the label is {label}; must be {low} or more")
    return match["quoted"] or match["bare"], label


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else None


def _plain(path: Path, root: str, format: str) -> VideoList:
    entries = []
    for number, line in _lines(path):
        name, label = (
            (_unquoted(line), -1) if format == "paths" else _labelled(path, number, line, -1)
        )
        entries.append(Entry(os.path.join(root, name), label, "", name))
    return VideoList(tuple(entries), (), format, root)


def _ucf101(path: Path, root: str, format: str) -> VideoList:
    """Labels from 1 in a training list; in a test list the folder is the class."""
    named: list[tuple[int, str, int]] = []  # line, name, label from 0 or -1
    for number, line in _lines(path):
        if _is_video(_unquoted(line)):
            named.append((number, _unquoted(line), -1))
        else:
            name, label = _labelled(path, number, line, 1)
            named.append((number, name, label - 1))
    known = path.parent / "classInd.txt"
    numbers = _class_numbers(known) if known.is_file() else {}
    if not numbers:
        numbers = _folders_numbered(named)
    classes = _by_label(numbers)
    entries = []
    for number, name, label in named:
        group = _folder(name)
        if label < 0:
            if group not in numbers:
                where = f"not in {known}" if known.is_file() else "no class"
                raise ValueError(
                    f"{path}, line {number}: {name!r} is in the folder {group!r}, which is {where}"
                )
            label = numbers[group]
        if classes:
            if label >= len(classes):
                raise ValueError(
                    f"{path}, line {number}: the label is {label + 1}; "
                    f"there are {len(classes)} classes"
                )
            group = classes[label]
        entries.append(Entry(os.path.join(root, name), label, group, name))
    return VideoList(tuple(entries), classes, format, root)


def _folder(name: str) -> str:
    return os.path.basename(os.path.dirname(name))


def _class_numbers(path: Path) -> dict[str, int]:
    """`classInd.txt`: a number from 1 and a name a line."""
    numbers: dict[str, int] = {}
    for number, line in _lines(path):
        first, _, name = line.partition(" ")
        label = _whole(first)
        if label is None or label < 1 or not name.strip():
            raise ValueError(f"{path}, line {number}: {line!r} must be a number from 1 and a class")
        numbers[name.strip()] = label - 1
    return numbers


def _folders_numbered(named: list[tuple[int, str, int]]) -> dict[str, int]:
    """The class of each folder: as labelled where all are, else by the sorted names."""
    folders = sorted({_folder(name) for _, name, _ in named} - {""})
    if any(label < 0 for *_, label in named):
        return {folder: number for number, folder in enumerate(folders)}
    return {_folder(name): label for _, name, label in named if _folder(name)}


def _by_label(numbers: dict[str, int]) -> tuple[str, ...]:
    """Names by label, where each label has one."""
    names = {label: name for name, label in numbers.items()}
    whole = len(names) == len(numbers) and sorted(names) == list(range(len(names)))
    return tuple(names[label] for label in range(len(names))) if whole else ()


def _hmdb51(path: Path, root: str, split: str) -> VideoList:
    """Flag 1 is training, 2 testing, 0 neither."""
    one = _HMDB51.fullmatch(path.name)
    folder = path if path.is_dir() else path.parent
    found = [match for file in _listed(folder) if (match := _HMDB51.fullmatch(file))]
    number = one["number"] if one else min((match["number"] for match in found), default="1")
    files = {match["name"]: folder / match.string for match in found if match["number"] == number}
    if not files or (one is None and not path.is_dir()):
        raise ValueError(f"{path}: no <class>_test_split{number}.txt, HMDB51's lists, is here")
    classes = tuple(sorted(files))
    entries = []
    for label, group in enumerate(classes):
        if one and one["name"] not in ("*", group):
            continue
        for line_number, line in _lines(files[group]):
            name, flag = _labelled(files[group], line_number, line, 0)
            if flag > 2:
                raise ValueError(
                    f"{files[group]}, line {line_number}: the flag is {flag}; "
                    "must be 1 (training), 2 (testing) or 0"
                )
            if flag == _HMDB51_FLAGS[split]:
                name = f"{group}/{name}"
                entries.append(Entry(os.path.join(root, name), label, group, name))
    return VideoList(tuple(entries), classes, "hmdb51", root)


def _listed(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    return sorted(os.listdir(folder))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: no JSON ({error.msg})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: no JSON (it is not UTF-8)") from None


def _ssv2(path: Path, root: str, labels: str | os.PathLike[str]) -> VideoList:
    """Templates without their brackets are the keys of `labels.json`; the test list has none."""
    items = _json(path)
    if not isinstance(items, list):
        raise ValueError(f"{path}, line 1: must be a JSON list of objects with id and template")
    for place, item in enumerate(items, 1):
        sound = isinstance(item, dict) and isinstance(item.get("id"), (str, int))
        if not sound or not isinstance(item.get("template", ""), str):
            raise ValueError(
                f"{path}, entry {place}: {item!r} must be an object with id and template"
            )
    templated = any("template" in item for item in items)
    key = Path(labels) if os.fspath(labels) else path.parent / "labels.json"
    if templated and not key.is_file():
        raise FileNotFoundError(f"{path}: its labels are to be in {key}, and there is no such file")
    numbers = _ssv2_labels(key) if templated else {}
    suffix = _suffix(root, [str(item["id"]) for item in items[:20]])
    entries = []
    for item in items:
        name, group = str(item["id"]), ""
        if templated:
            group = re.sub(r"[\[\]]", "", item.get("template", ""))
            if group not in numbers:
                raise ValueError(
                    f"{path}, line {_line_of(path, name)}: the template {group!r} of video {name} "
                    f"is not in {key}"
                )
        entries.append(
            Entry(os.path.join(root, name + suffix), numbers.get(group, -1), group, name)
        )
    return VideoList(tuple(entries), _by_label(numbers), "ssv2", root)


def _ssv2_labels(path: Path) -> dict[str, int]:
    table = _json(path)
    if not isinstance(table, dict) or not all(
        isinstance(v, (str, int)) and _whole(str(v)) is not None and int(v) >= 0
        for v in table.values()
    ):
        raise ValueError(f"{path}: must be a JSON object from template to label, from 0")
    return {re.sub(r"[\[\]]", "", name): int(label) for name, label in table.items()}


def _suffix(root: str, ids: list[str]) -> str:
    """SSv2 comes as WebM; many convert it to MP4."""
    for suffix in (".webm", ".mp4"):
        if any(os.path.exists(os.path.join(root, name + suffix)) for name in ids):
            return suffix
    return ".webm"


def _line_of(path: Path, name: str) -> int:
    text = path.read_text(encoding="utf-8-sig")
    match = re.search(rf'"id"\s*:\s*"?{re.escape(name)}\b', text)
    return text.count("\n", 0, match.start()) + 1 if match else 1
