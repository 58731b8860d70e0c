"""Stores that were damaged, lost a part, or whose videos changed: noticed, kept, and mended."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from stores import CONFIG, LINE, tree

from mme_model.cli import main
from mme_targets import store_extract
from mme_targets.store import Record, Store, StoreError
from mme_targets.store_entry import Entry
from mme_targets.store_job import ExtractJob, Item, damage
from mme_targets.store_journal import Journal, records
from mme_targets.store_tools import merge, verify


@pytest.fixture
def copied(store_whole: Path, tmp_path: Path) -> Store:
    """A store to be damaged."""
    return Store(shutil.copytree(store_whole, tmp_path / "copied"))


def flip(path: Path, place: int) -> None:
    """One bit of a byte, of as many bytes as it was."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def test_a_byte_flipped_anywhere_is_noticed_without_a_record(copied: Store) -> None:
    """Up to the zip's directory, of which some is read by no one: also what describes arrays."""
    path = copied.file("c.mp4")
    whole = path.read_bytes()
    for place in range(0, whole.find(b"PK\1\2"), 3):
        flip(path, place)
        assert damage(copied, "c.mp4"), f"byte {place}"
        path.write_bytes(whole)
    assert not damage(copied, "c.mp4")


def test_what_an_entry_says_of_itself_is_checked_as_it_is_opened(copied: Store) -> None:
    path = copied.file("a.mp4")
    flip(path, path.read_bytes().rfind(b'"height": ') + len('"height": '))
    with pytest.raises(StoreError, match=r"zarr\.json fails its checksum"):
        Entry(path)


def test_a_size_that_is_damaged_asks_for_no_memory(copied: Store) -> None:
    path = copied.file("a.mp4")
    flip(path, path.stat().st_size - 22 + 15)
    with pytest.raises(StoreError, match="its directory ends too early"):
        Entry(path)


def test_a_damaged_entry_is_made_anew_if_asked(
    store_videos: Path, store_whole: Path, copied: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it was, though what was flipped is a header that no reader looks at."""
    flip(copied.file("b.mp4"), 11)
    assert main(["store", "verify", str(copied.path)]) == 1
    said = capsys.readouterr().out
    assert "wrong: b.mp4: its tracks have another digest" in said
    assert f"--out {copied.path} --retry" in said
    line = ["extract", str(store_videos), "--out", str(copied.path), *LINE, "--retry"]
    assert main(line) == 0
    assert "1 video extracted" in capsys.readouterr().out
    assert tree(copied.path) == tree(store_whole)
    assert main(["store", "verify", str(copied.path)]) == 0


def test_verify_tells_a_video_of_as_many_bytes(store_items: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    shutil.copy(store_items[0].path, path)
    job = ExtractJob(tmp_path / "store", CONFIG, [Item("v.mp4", str(path))])
    job.run()
    store = Store(job.out)
    assert verify(store, sources={"v.mp4": str(path)}) == []
    flip(path, path.read_bytes().find(b"x264"))  # in what the encoder says of itself
    (line,) = verify(store, sources={"v.mp4": str(path)})
    assert line.startswith("v.mp4: its video is another one now, of as many bytes: once ")
    store.file("v.mp4").unlink()
    assert job.run().made == 1
    assert verify(store, sources={"v.mp4": str(path)}) == []


def test_an_entry_without_a_record_is_said_to_be_damaged(copied: Store) -> None:
    """As a cache's are."""
    (copied.path / "index.parquet").unlink()
    os.truncate(copied.file("a.mp4"), 99)
    (line,) = verify(copied)
    assert line == f"{copied.file('a.mp4')} is cut short or no tracks: it does not end as a zip"


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_damaged_index_says_what_to_do(
    copied: Store, store_items: list[Item], store_whole: Path, kept: int
) -> None:
    file = copied.path / "index.parquet"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(
        StoreError, match=r"index\.parquet is damaged .* remove it, and mme extract"
    ):
        ExtractJob(copied.path, CONFIG, store_items).left()
    file.unlink()
    assert ExtractJob(copied.path, CONFIG, store_items).run().pairs == 0
    assert tree(copied.path) == tree(store_whole)


def test_a_lost_index_costs_no_tracks_of_videos_that_are_gone(
    copied: Store, store_items: list[Item], store_whole: Path
) -> None:
    (copied.path / "index.parquet").unlink()
    items = [store_items[0], *(item._replace(path=f"{item.path}.gone") for item in store_items[1:])]
    report = ExtractJob(copied.path, CONFIG, items).run()
    assert (report.failed, report.done, report.pairs) == ([], 4, 0)
    assert tree(copied.path) == tree(store_whole)


def test_names_that_are_no_text(
    store_items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files are bytes."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("é.mp4", os.fsdecode(b"\xe9.mp4")):
        shutil.copy(store_items[2].path, folder / name)
    bad = os.fsdecode(b"no\xe9.mp4")
    (folder / bad).write_text("no video")
    out = tmp_path / "store"
    screen = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["extract", str(folder), "--out", str(out), *LINE]) == 3
    assert main(["store", "info", str(out)]) == 0
    screen.flush()
    assert b"failed: no\xe9.mp4" in screen.buffer.getvalue()  # type: ignore[attr-defined]
    held = {record.name: record.done for record in Store(out).index()}
    assert held == {"é.mp4": True, os.fsdecode(b"\xe9.mp4"): True, bad: False}
    job = ExtractJob(out, CONFIG, [Item(name, str(folder / name)) for name in held])
    assert job.left() == []
    assert verify(Store(out), sources={name: str(folder / name) for name in held}) == []


def test_what_killed_parts_had_begun_is_removed(
    copied: Store, store_items: list[Item], store_whole: Path
) -> None:
    """A part leaves alone what may be another's; the last one removes it."""
    (copied.path / "index.parquet").unlink()
    strays = [copied.file("a.mp4").with_name(".x.0.zip"), copied.path / ".index.0.parquet"]
    for stray in strays:
        stray.touch()
    ExtractJob(copied.path, CONFIG, store_items, shard=(0, 2)).run()
    assert strays[0].exists()
    ExtractJob(copied.path, CONFIG, store_items, shard=(1, 2)).run()
    assert tree(copied.path) == tree(store_whole)


def test_a_full_disk_is_said_with_what_to_do(
    store_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(self: Journal, record: Record) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "write", full)
    out = str(tmp_path / "store")
    assert main(["extract", str(store_videos), "--out", out, *LINE]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"mme: error: {out}: No space left on device. What was extracted is kept"
    )


def test_journals_that_another_run_makes_the_index_of(
    copied: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are gone once they are to be read; then the index is there."""
    file = copied.path / "index.parquet"
    file.rename(copied.path / "later")
    (copied.path / "work").mkdir()
    (copied.path / "work" / "settled-0-of-2.jsonl").touch()

    def gone(path: Path) -> None:
        (copied.path / "later").rename(file)
        raise FileNotFoundError

    monkeypatch.setattr(Journal, "read", staticmethod(gone))
    assert len(records(copied)) == 4


def test_equal_tracks_that_another_version_made_merge(
    copied: Store, store_items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_extract, "provenance", lambda: {"versions": {}, "commit": "other"})
    job = ExtractJob(tmp_path / "part", CONFIG, store_items[:2])
    job.run()
    assert Store(job.out).index()[0].digest != copied.index()[0].digest
    before = tree(copied.path)
    assert tree(merge(copied.path, [job.out]).path) == before
    other = tmp_path / "other"
    ExtractJob(other, CONFIG, [Item("a.mp4", store_items[1].path)]).run()
    with pytest.raises(StoreError, match=r"different tracks of 'a\.mp4'"):
        merge(copied.path, [other])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.mp4")
    items = [Item("v.mp4", str(tmp_path / "v.mp4")), Item("d.mp4", str(tmp_path))]
    report = ExtractJob(tmp_path / "store", CONFIG, items).run()
    assert report.failed == [("v.mp4", "not a file"), ("d.mp4", "not a file")]
