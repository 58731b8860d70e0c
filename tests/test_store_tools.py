"""Merging and verifying stores that are not whole, or of which not all is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import CONFIG, LINE, tree

from mme_model.cli import main
from mme_targets import store_tools
from mme_targets.foreign_tracks import import_video
from mme_targets.store import Store, StoreError
from mme_targets.store_config import TrackConfig
from mme_targets.store_job import ExtractJob, Item
from mme_targets.store_tools import finished, merge, size_text, summary, unsettled, verify
from mme_targets.video import probe


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (999.6, "1.00 kB"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (58123, "58.1 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1.234e9, "1.23 GB"),
        (5.6e15, "5,600 TB"),
    ],
)
def test_sizes_have_three_digits(count: float, text: str) -> None:
    assert size_text(count) == text


def test_a_small_store_is_not_said_to_be_nothing(
    store_videos: Path, store_whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bytes_ = size_text(summary(Store(store_whole)).bytes)
    assert bytes_.endswith(" kB")
    out = str(tmp_path / "store")
    lines = [
        ["extract", str(store_videos), "--out", out, *LINE],
        ["store", "info", out],
        ["store", "verify", out],
        ["store", "merge", str(tmp_path / "copy"), out],
    ]
    for line in lines:
        assert main(line) == 0
        assert bytes_ in capsys.readouterr().out, line
    assert main(["extract", str(store_videos), "--out", "x", "--dry-run", *LINE]) == 0
    assert "kB on disk" in capsys.readouterr().out


# --- merging --------------------------------------------------------------------------------------


@pytest.fixture
def halves(store_items: list[Item], tmp_path: Path) -> list[str]:
    """Each part of a job array in its own store."""
    for i in range(2):
        ExtractJob(tmp_path / f"part{i}", CONFIG, store_items, shard=(i, 2)).run()
    return [str(tmp_path / f"part{i}") for i in range(2)]


def test_merging_a_part_is_not_complete(
    halves: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all"
    assert main(["store", "merge", str(out), halves[0]]) == 3
    said = capsys.readouterr().out
    assert f"{out}: format 2, not known to be complete" in said
    assert "2 videos, 8 frames" in said
    assert "part 1/2 of the list was extracted to none of the stores" in said
    assert f"mme extract LIST --out {out} goes on" in said
    assert [record.name for record in Store(out).index()] == ["a.mp4", "c.mp4"]
    assert main(["store", "info", str(out)]) == 0
    assert "not known to be complete" in capsys.readouterr().out
    # With the other part there is no sign that anything is left, nor that nothing is.
    assert main(["store", "merge", str(out), halves[1]]) == 0
    said = capsys.readouterr().out
    assert "not known to be complete" in said
    assert "none of the stores" not in said
    assert len(Store(out).index()) == 4


def test_the_list_says_whether_a_merged_store_is_complete(
    halves: list[str],
    store_videos: Path,
    store_whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, listed = tmp_path / "all", ["--list", str(store_videos)]
    assert main(["store", "merge", str(out), halves[0], *listed]) == 3
    said = capsys.readouterr().out
    assert "\n  left: b.mp4\n  left: d.mp4\n2 videos of" in said
    assert f"2 videos of {store_videos} left: mme extract {store_videos} --out {out}" in said
    shutil.copytree(out, tmp_path / "other")
    assert main(["store", "merge", str(out), *halves, *listed]) == 0
    assert "format 2, complete\n" in capsys.readouterr().out
    assert tree(out) == tree(store_whole), "in the order of the list, as if made in one go"
    assert main(["extract", str(store_videos), "--out", str(tmp_path / "other"), *LINE]) == 0
    assert tree(tmp_path / "other") == tree(store_whole)


def test_what_is_known_to_be_left(store_items: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "store"
    for i in range(2):
        ExtractJob(path, CONFIG, store_items, shard=(i, 3)).run()
    store = Store(path)
    expected = ["part 2/3 of the list was extracted to none of the stores"]
    assert unsettled([store]) == expected
    (path / "work" / "writer-0-of-3.lock").touch()
    killed = f"{path}: the run of part 0/3 was killed, or is still going on"
    assert unsettled([store]) == [killed, *expected]
    # A store that was merged of parts does not say of which.
    merge(tmp_path / "merged", [path])
    assert unsettled([Store(tmp_path / "merged"), store]) == [killed]
    assert unsettled([Store(tmp_path / "merged")]) == []
    (path / "work" / "writer-0-of-3.lock").unlink()
    (path / "work" / "settled-0-of-3.jsonl").rename(path / "work" / "settled-0-of-1.jsonl")
    (path / "work" / "settled-1-of-3.jsonl").unlink()
    assert unsettled([store]) == [f"{path}: videos of its list are left"]


def test_parts_that_are_finished_later_complete_what_was_merged_of_them(
    store_items: list[Item], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    ExtractJob(first, CONFIG, store_items[:2]).run()
    ExtractJob(second, CONFIG, store_items[2:], shard=(0, 2)).run()
    out = tmp_path / "all"
    assert not finished(merge(out, [first, second]))
    ExtractJob(second, CONFIG, store_items[2:]).run()
    assert not finished(merge(out, [second])), "the first is not among the parts"
    assert finished(merge(out, [first, second]))
    # A finished store stays so, unless a part that is not brings more.
    ExtractJob(tmp_path / "third", CONFIG, store_items, shard=(0, 2)).run()
    assert finished(merge(out, [tmp_path / "third"]))
    more = [Item(f"more/{item.name}", item.path) for item in store_items]
    ExtractJob(tmp_path / "more", CONFIG, more, shard=(0, 2)).run()
    assert not finished(merge(out, [tmp_path / "more"]))


def test_videos_that_failed_are_said_when_merged(
    store_items: list[Item], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Item("bad.mp4", str(tmp_path / "bad.mp4"))
    (tmp_path / "bad.mp4").touch()
    ExtractJob(tmp_path / "part", CONFIG, [store_items[0], bad]).run()
    assert main(["store", "merge", str(tmp_path / "all"), str(tmp_path / "part")]) == 3
    said = capsys.readouterr().out
    assert "complete but for 1 that failed" in said
    assert "1 video, 7 frames" in said
    assert "failed: bad.mp4: the file is empty" in said
    assert finished(Store(tmp_path / "all"))
    # Tracks of it elsewhere take its place.
    good = Item("bad.mp4", store_items[3].path)
    ExtractJob(tmp_path / "good", CONFIG, [good]).run()
    assert main(["store", "merge", str(tmp_path / "all"), str(tmp_path / "good")]) == 0
    assert "format 2, complete\n" in capsys.readouterr().out


# --- verifying ------------------------------------------------------------------------------------


def test_verify_takes_what_the_store_says(
    store_videos: Path, store_whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["store", "verify", str(store_whole), "--list", str(store_videos), "--sample", "9"]
    assert main([*line, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "--sample computes on cpu; a store does not say on which device it was made" in said
    assert "4 computed again: all as they should be" in said
    assert verify(
        Store(store_whole),
        sources={p.name: str(p) for p in store_videos.iterdir()},
        sample=1,
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--length", "6"], "length: 4 in the store, 6 on the command line"),
        (["--step", "0.25"], "step: 0.125 in the store, 0.25 on the command line"),
        (["--short_side", "32"], "short_side: 0 in the store, 32 on the command line"),
        (["--interpolate", "false"], "flow_stride: 1 in the store, 4 on the command line"),
        (["--preset", "ssv2"], "flow: dis in the store, tvl1 on the command line"),
        (["--sample", "1"], "--sample needs --list"),
        (["--sample", "-1"], "sample is -1"),
        (["--sample", "1", "--list", "elsewhere.txt"], "not one video of the store is where"),
    ],
)
def test_verify_refuses_before_it_reads(
    store_whole: Path,
    store_videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    def read(*_: Any) -> list[str]:
        raise AssertionError("the store is read")

    monkeypatch.setattr(store_tools, "_wrong", read)
    (tmp_path / "elsewhere.txt").write_text("other.mp4\n")
    shutil.copy(store_videos / "a.mp4", tmp_path / "other.mp4")
    monkeypatch.chdir(tmp_path)
    assert main(["store", "verify", str(store_whole), *options]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [LINE, ["--stride", "3"], ["--interpolate", "true"], ["--step", "0.125", "--short_side", "0"]],
)
def test_options_that_say_the_same_are_taken(
    store_whole: Path, tmp_path: Path, options: list[str]
) -> None:
    assert main(["store", "verify", str(store_whole), *options]) == 0


def test_a_store_of_strided_flow_says_so(
    store_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, video = str(tmp_path / "store"), str(store_videos / "d.mp4")
    strided = ["--interpolate", "false", "--stride", "3"]
    assert main(["extract", video, "--out", out, *LINE, *strided]) == 0
    line = ["store", "verify", out, "--list", video, "--sample", "1"]
    for options in ([], strided, ["--stride", "3"], ["--interpolate", "false"]):
        assert main([*line, *options]) == 0
    capsys.readouterr()
    assert main([*line, "--stride", "2"]) == 1
    assert "flow_stride: 3 in the store, 2 on the command line" in capsys.readouterr().err


def test_a_store_that_does_not_say_all_is_read_yet(
    store_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one made before a constant was added."""
    out = Store.create(tmp_path / "store", CONFIG).path
    about = json.loads((out / "zarr.json").read_text())
    del about["attributes"]["mme_tracks"]["config"]["sampling"]
    (out / "zarr.json").write_text(json.dumps(about))
    assert main(["store", "verify", str(out)]) == 0
    assert main(["store", "verify", str(out), "--length", "3"]) == 1
    assert "constants: length: 4 in the store, 3 on the" in capsys.readouterr().err
    line = ["store", "verify", str(out), "--list", str(store_videos), "--sample", "1"]
    assert main(line) == 1
    assert "sampling is not read there" in capsys.readouterr().err


def test_verify_asks_for_the_weights_that_the_store_has_not(
    tmp_path: Path, store_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    store, out = TrackConfig(flow="raft", weights=str(tmp_path / "a")), str(tmp_path / "store")
    Store.create(out, store)
    line = ["store", "verify", out]
    assert main(line) == 0, "to read it they are not needed"
    sample = ["--list", str(store_videos), "--sample", "1"]
    assert main([*line, *sample]) == 1
    assert "--sample needs the file, --weights FILE" in capsys.readouterr().err
    assert main([*line, "--weights", str(tmp_path / "b")]) == 1
    assert "weights: sha256:ca978112ca1b in the store" in capsys.readouterr().err
    assert main([*line, "--weights", str(tmp_path / "a")]) == 0
    assert main(["extract", str(store_videos), "--out", "x", "--flow", "raft"]) == 1
    assert "weights is ''; must be the file of RAFT's weights" in capsys.readouterr().err


def test_a_damaged_entry_is_reported_beside_the_sample(
    store_items: list[Item], store_whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(store_whole, tmp_path / "store")
    store = Store(tmp_path / "store")
    path = store.file("b.mp4")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    sources = {item.name: item.path for item in store_items}
    (line,) = verify(store, sources=sources, sample=4)
    assert line == "b.mp4: its tracks have another digest than was recorded"


def test_tracks_that_were_taken_in_are_not_computed_again(
    store_items: list[Item], tmp_path: Path
) -> None:
    item = store_items[0]
    info = probe(item.path)
    flow = np.zeros((info.frames - 1, 2, info.height, info.width), np.float32)
    np.savez(tmp_path / "a.npz", flow=flow)
    store = Store.create(tmp_path / "store", CONFIG)
    import_video(store, CONFIG, item.name, item.path, tmp_path)
    sources = {item.name: item.path}
    assert verify(store, sources=sources) == []
    with pytest.raises(StoreError, match=r"'a\.mp4' were taken in from a\.npz, not computed here"):
        verify(store, sources=sources, sample=1)


def test_verify_says_that_a_store_is_not_through(
    halves: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", "verify", halves[0]]) == 0
    assert "not known to be complete" in capsys.readouterr().out
