"""List formats: what each line means, and what is said of those that mean nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mme_model.lists import read_list


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def pairs(path: Path, *args: Any, **options: Any) -> list[tuple[str, int]]:
    """(name, label) of each entry; the path is the name joined to the root."""
    videos = read_list(path, *args, **options)
    for entry in videos.entries:
        assert entry.path.startswith(os.path.join(videos.root, entry.name))
        assert not videos.classes or entry.label < 0 or entry.group == videos.classes[entry.label]
    return [(entry.name, entry.label) for entry in videos.entries]


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", "a/x.mp4 0", "", "/data/y.mp4 399", "z 12")
    videos = read_list(path)
    assert videos.format == "csv"
    assert videos.classes == ()
    assert [entry.path for entry in videos.entries] == [
        str(tmp_path / "a/x.mp4"),
        "/data/y.mp4",
        str(tmp_path / "z"),
    ]
    assert [entry.label for entry in videos.entries] == [0, 399, 12]
    assert read_list(path, root="/videos").entries[0].path == "/videos/a/x.mp4"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("my video.mp4 3", ("my video.mp4", 3)),
        ("my video 2.mp4 3", ("my video 2.mp4", 3)),
        ("take 1 2", ("take 1", 2)),
        ("my video.mp4\t3", ("my video.mp4", 3)),
        ("my video.mp4,3", ("my video.mp4", 3)),
        ("my video.mp4, 3", ("my video.mp4", 3)),
        ("one,two.mp4 3", ("one,two.mp4", 3)),
        ("one,two.mp4,3", ("one,two.mp4", 3)),
        ('"my video.mp4" 3', ("my video.mp4", 3)),
        ("'my video.mp4',3", ("my video.mp4", 3)),
        ("it's.mp4 3", ("it's.mp4", 3)),
        ("a.mp4 -1", ("a.mp4", -1)),
        ("a.mp4  3  \r", ("a.mp4", 3)),
        ("\ufeffa.mp4 3", ("a.mp4", 3)),
    ],
)
def test_lines_of_a_csv(tmp_path: Path, line: str, expected: tuple[str, int]) -> None:
    assert pairs(write(tmp_path / "l.csv", line)) == [expected]


def test_bare_paths(tmp_path: Path) -> None:
    path = write(tmp_path / "l.txt", "b 1.mp4", '"a c.WEBM"', "sub/d.mkv")
    assert read_list(path).format == "paths"
    assert pairs(path) == [("b 1.mp4", -1), ("a c.WEBM", -1), ("sub/d.mkv", -1)]
    assert pairs(write(path, "no suffix 3"), "paths") == [("no suffix 3", -1)]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_bytes(b"caf\xe9.mp4 1\n")
    assert os.fsencode(read_list(path).entries[0].path).endswith(b"/caf\xe9.mp4")


def test_ucf101(tmp_path: Path) -> None:
    train = write(tmp_path / "trainlist01.txt", "Bowling/v_1.avi 2", "Archery/v_2.avi 1")
    test = write(tmp_path / "testlist01.txt", "Bowling/v_3.avi", "Archery/v_4.avi")
    assert pairs(train) == [("Bowling/v_1.avi", 1), ("Archery/v_2.avi", 0)]
    assert pairs(test) == [("Bowling/v_3.avi", 1), ("Archery/v_4.avi", 0)]
    for path in (train, test):
        videos = read_list(path, root="/ucf")
        assert (videos.format, videos.classes) == ("ucf101", ("Archery", "Bowling"))
        assert videos.entries[0].path.startswith("/ucf/Bowling/v_")
    # The file of classes has the word, here against the alphabet.
    write(tmp_path / "classInd.txt", "1 Bowling", "2 Archery", "3 Diving")
    assert pairs(test) == [("Bowling/v_3.avi", 0), ("Archery/v_4.avi", 1)]
    assert read_list(train).classes == ("Bowling", "Archery", "Diving")
    own = write(tmp_path / "mine.txt", "Diving/v_5.avi 3")
    assert pairs(own) == [("Diving/v_5.avi", 2)]
    assert pairs(own, "csv") == [("Diving/v_5.avi", 3)]


def test_hmdb51(tmp_path: Path) -> None:
    folder = tmp_path / "splits"
    write(folder / "wave_test_split1.txt", "a.avi 1", "b.avi 2 ", "c.avi 0")
    write(folder / "brush_hair_test_split1.txt", "d.avi 2", "e.avi 1")
    write(folder / "wave_test_split2.txt", "a.avi 2", "b.avi 1")
    assert pairs(folder) == [("brush_hair/e.avi", 0), ("wave/a.avi", 1)]
    assert pairs(folder, split="test") == [("brush_hair/d.avi", 0), ("wave/b.avi", 1)]
    assert pairs(folder, split="val") == pairs(folder, split="test")
    assert read_list(folder).classes == ("brush_hair", "wave")
    assert read_list(folder, root="/hmdb").entries[1].path == "/hmdb/wave/a.avi"
    # A pattern says which split; one file is one class, numbered among its neighbours.
    assert pairs(folder / "*_test_split2.txt") == [("wave/b.avi", 0)]
    assert pairs(folder / "wave_test_split1.txt") == [("wave/a.avi", 1)]


def ssv2(folder: Path, items: Any, labels: Any) -> Path:
    write(folder / "labels.json", json.dumps(labels))
    return write(folder / "train.json", json.dumps(items, indent=1))


def test_ssv2(tmp_path: Path) -> None:
    items = [
        {"id": "78687", "label": "holding a cup", "template": "Holding [something]"},
        {"id": 42326, "template": "Moving [something] near [something else]"},
    ]
    labels = {"Holding something": "1", "Moving something near something else": "0"}
    path = ssv2(tmp_path, items, labels)
    videos = read_list(path, root=tmp_path / "v")
    assert videos.format == "ssv2"
    assert videos.classes == ("Moving something near something else", "Holding something")
    assert [entry.path for entry in videos.entries] == [
        str(tmp_path / "v" / "78687.webm"),
        str(tmp_path / "v" / "42326.webm"),
    ]
    assert pairs(path) == [("78687", 1), ("42326", 0)]
    assert videos.entries[0].group == "Holding something"
    # Converted to MP4; and labels that lie elsewhere.
    write(tmp_path / "v" / "42326.mp4", "")
    (tmp_path / "labels.json").rename(tmp_path / "other.json")
    moved = read_list(path, root=tmp_path / "v", labels=tmp_path / "other.json")
    assert [Path(entry.path).name for entry in moved.entries] == ["78687.mp4", "42326.mp4"]
    assert [entry.name for entry in moved.entries] == ["78687", "42326"]
    with pytest.raises(FileNotFoundError, match=r"train\.json: its labels are to be in .*labels"):
        read_list(path)
    # The test list has no templates, and may be called anything.
    test = write(tmp_path / "test", json.dumps([{"id": "1"}, {"id": "2"}]))
    assert pairs(test) == [("1", -1), ("2", -1)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "a.mp4 0\n\nb.mp4 cat\n", r"l\.csv, line 3: the label 'cat' is no whole number"),
        ("l.csv", "path,label\na.mp4,0\n", r"l\.csv, line 1: .*there is no header"),
        ("l.csv", "a.mp4 0\nb.mp4\n", r"l\.csv, line 2: 'b\.mp4' has no label"),
        ("l.csv", "a.mp4 1.5\n", r"l\.csv, line 1: the label '1\.5' is no whole number"),
        ("l.csv", "a.mp4 -2\n", r"l\.csv, line 1: the label is -2; must be -1 or more"),
        ("l.csv", "a.mp4 0\nb\0.mp4 1\n", r"l\.csv, line 2: holds a zero byte"),
        ("l.csv", "", r"l\.csv: the list names no video"),
        ("l.csv", "\n  \n", r"l\.csv: the list names no video"),
        ("trainlist01.txt", "A/a.avi 0\n", r"line 1: the label is 0; must be 1 or more"),
        ("a_test_split1.txt", "a.avi 3\n", r"a_test_split1\.txt, line 1: the flag is 3"),
        ("a_test_split1.txt", "a.avi\n", r"a_test_split1\.txt, line 1: 'a\.avi' has no label"),
        ("l.json", '[{"id": "1"},\n {"id" 2}]', r"l\.json, line 2: no JSON"),
        ("l.json", '{"id": "1"}', r"l\.json, line 1: must be a JSON list"),
        ("l.json", '[{"id": "1"}, {"name": "2"}]', r"l\.json, entry 2: .* with id and template"),
        ("l.json", "[]", r"l\.json: the list names no video"),
    ],
)
def test_lists_that_do_not_parse(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_list(tmp_path / name)


def test_classes_that_are_not_known(tmp_path: Path) -> None:
    path = ssv2(
        tmp_path, [{"id": "7", "template": "Up"}, {"id": "8", "template": "[Down]"}], {"Up": 0}
    )
    with pytest.raises(
        ValueError, match=r"line 7: the template 'Down' of video 8 is not in .*labels"
    ):
        read_list(path)
    write(tmp_path / "labels.json", json.dumps({"Up": "first"}))
    with pytest.raises(ValueError, match="must be a JSON object from template to label"):
        read_list(path)
    ucf = tmp_path / "ucf"
    write(ucf / "classInd.txt", "1 A", "2 B")
    with pytest.raises(
        ValueError, match=r"line 2: 'C/c\.avi' is in the folder 'C', which is not in"
    ):
        read_list(write(ucf / "testlist01.txt", "A/a.avi", "C/c.avi"))
    with pytest.raises(ValueError, match="line 1: the label is 3; there are 2 classes"):
        read_list(write(ucf / "trainlist01.txt", "A/a.avi 3"))
    write(ucf / "classInd.txt", "A 1")
    with pytest.raises(ValueError, match=r"classInd\.txt, line 1: 'A 1' must be a number from 1"):
        read_list(ucf / "trainlist01.txt")


def test_lists_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv: there is no such list"):
        read_list(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        read_list(tmp_path / "none" / "*_test_split1.txt")
    with pytest.raises(IsADirectoryError, match="a list of format csv is a file"):
        read_list(tmp_path, "csv")
    with pytest.raises(ValueError, match=r"no <class>_test_split1\.txt"):
        read_list(tmp_path)
    with pytest.raises(ValueError, match="format is 'xml'; must be auto, csv"):
        read_list(tmp_path, "xml")
    with pytest.raises(ValueError, match="split is 'all'; must be train, val or test"):
        read_list(tmp_path, split="all")


def test_a_csv_of_names_is_told_how_classes_get_them(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", "cat/a.mp4 cat", "dog/b.mp4 dog")
    with pytest.raises(ValueError, match=r"folder with one sub-folder a class; .*classInd\.txt"):
        read_list(path)
    # The way that it names: numbers from 1, and a file that says whose they are.
    write(tmp_path / "classInd.txt", "1 cat", "2 dog")
    videos = read_list(write(path, "cat/a.mp4 1", "dog/b.mp4 2"))
    assert [(entry.label, entry.group) for entry in videos.entries] == [(0, "cat"), (1, "dog")]
    assert videos.classes == ("cat", "dog")
    with pytest.raises(ValueError, match=r"'one' is no whole number") as flag:
        read_list(write(tmp_path / "h" / "wave_test_split1.txt", "a.avi one"))
    assert "classInd" not in str(flag.value)
