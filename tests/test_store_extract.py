"""Extraction of lists: every frame's tracks, resumed after any kill, refused where it must be."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import CONFIG, COUNTS, tree

from mme_targets import optical_flow, store_tracks, store_writer, trajectories
from mme_targets.files import atomic_path, write_video
from mme_targets.ops.camera_motion import flow_and_camera
from mme_targets.store import Store, StoreError
from mme_targets.store_entry import NOT_FINITE
from mme_targets.store_estimate import estimate
from mme_targets.store_extract import BLOCK, Frames, extract_frames, extract_video
from mme_targets.store_job import ExtractJob, Item
from mme_targets.store_journal import records
from mme_targets.store_locks import Writer
from mme_targets.store_tools import merge, summary, verify
from mme_targets.store_writer import EntryWriter
from mme_targets.video import VideoError, decode

# --- one video ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("camera_motion", [False, True])
def test_tracks_are_those_of_the_whole_video(
    store_items: list[Item], tmp_path: Path, stride: int, camera_motion: bool
) -> None:
    """Whatever the blocks: as if all flow had been computed at once."""
    config = CONFIG.replace(flow_stride=stride, camera_motion=camera_motion)
    count, path = COUNTS["b.mp4"], store_items[1].path
    assert count > 2 * BLOCK
    store = Store.create(tmp_path / "store", config)
    solved: list[int] = []
    record = extract_video(store, config, "b.mp4", path, progress=solved.append)
    assert sum(solved) == count - stride
    assert (record.frames, record.height, record.width) == (count, 48, 64)
    frames = decode(path, range(count)).frames
    pairs = [(i, i + stride) for i in range(count - stride)]
    if camera_motion:
        found = flow_and_camera(frames, method="dis", pairs=pairs)
        flow, cameras = found.flow, found.camera.homographies.numpy()
    else:
        flow, cameras = optical_flow(frames, method="dis", pairs=pairs), None
    most = count - 4 * stride
    steps = torch.arange(most)[:, None] + torch.arange(4) * stride
    expected = trajectories(flow, steps=steps)
    with store.entry("b.mp4") as entry:
        tracks = entry.tracks(range(count))
        moves = tracks.displacements[:most].transpose(0, 2, 3, 1, 4) * 0.125
        assert np.abs(moves - expected.displacements.numpy()).max() <= 0.0625 + 1e-6
        assert np.array_equal(tracks.in_view[:most] == 4, expected.visible.numpy())
        assert tracks.in_view[most:].max() <= 3, "their last step lies past the video's end"
        assert not tracks.displacements[-stride:].any()
        if cameras is not None:
            assert np.array_equal(entry.homographies(range(len(pairs))), np.float32(cameras))
        assert entry.about["config"] == store.config
        assert entry.about["source"]["bytes"] == os.path.getsize(path)


@pytest.mark.parametrize("name", COUNTS)
def test_there_is_one_start_a_frame(store_whole: Path, name: str) -> None:
    with Store(store_whole).entry(name) as entry:
        assert entry.frames == COUNTS[name] == len(entry.tracks(range(entry.frames)).in_view)


def test_tracks_of_flow_that_is_not_finite_are_marked(tmp_path: Path) -> None:

    flows = torch.zeros(6, 2, 40, 40)
    flows[2, :, 10:14, 10:14] = torch.nan
    found = store_tracks._track(CONFIG, flows, range(0, 7), 6, np.empty((0, 3, 3)), 0)
    assert (found.in_view[0] == NOT_FINITE).sum() == 1
    assert found.in_view[0, 1, 1] == NOT_FINITE
    assert found.in_view[6].max() == 0
    assert not (found.in_view[3] == NOT_FINITE).any()


def test_announced_frames_must_come(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", CONFIG)
    block = torch.zeros(3, 3, 48, 64, dtype=torch.uint8)
    with pytest.raises(VideoError, match="3 frames came where 5 were announced"):
        extract_frames(store, CONFIG, "x", Frames(5, 25.0, [block]))
    other = torch.zeros(3, 3, 40, 64, dtype=torch.uint8)
    with pytest.raises(VideoError, match="size of the picture changes at frame 3"):
        extract_frames(store, CONFIG, "x", Frames(6, 25.0, [block, other]))
    with pytest.raises(VideoError, match="no point of a grid"):
        extract_frames(store, CONFIG, "x", Frames(3, 25.0, [block[..., :4, :4]]))
    assert not list(store.files())


def test_a_file_that_changes_meanwhile_fails(
    store_items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.mp4"
    shutil.copy(store_items[0].path, path)

    def grow(count: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    store = Store.create(tmp_path / "store", CONFIG)
    with pytest.raises(VideoError, match="changed while it was read"):
        extract_video(store, CONFIG, "v", path, progress=grow)
    assert not list(store.files())


# --- the list -------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, torch
from mme_targets.store import TrackConfig
from mme_targets.store_job import ExtractJob, Item
from mme_targets.store_journal import Journal

threads, out, *paths = sys.argv[1:]
torch.set_num_threads(int(threads))
config = TrackConfig(flow="dis", camera_motion=False, length=4)
items = [Item(os.path.basename(p), p) for p in paths]
write = Journal.write


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def half(journal, record):
    os.write(journal._file, b'{"name": "b.mp')
    die()


def in_a_video(count, seen=[0]):
    seen[0] += count
    if seen[0] > 20:
        die()


def attempt(**how):
    child = os.fork()
    if not child:
        Journal.write = how.pop("write", write)
        ExtractJob(out, config, items).run(**how)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


attempt(pairs=in_a_video)
print(sorted(os.listdir(out + "/work")))
attempt(write=die)
attempt(write=half)
report = ExtractJob(out, config, items).run()
print(report.made, report.pairs, report.done, report.left)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_killed_three_times_it_is_the_same_store(
    store_items: list[Item], store_whole: Path, tmp_path: Path, threads: int
) -> None:
    """In a video, before its line in the journal, and in the middle of that line."""
    out = tmp_path / "store"
    line = [sys.executable, "-c", textwrap.dedent(KILLED), str(threads), str(out)]
    line += [item.path for item in store_items]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    first, last = ran.stdout.splitlines()
    assert "settled-0-of-1.jsonl" in first
    made, pairs, done, left = map(int, last.split())
    assert (done, left) == (4, 0)
    if threads == 1:
        assert made == 3
        assert pairs == 17, "of b.mp4, killed while its line was written, nothing is computed again"
    assert tree(out) == tree(store_whole)


def test_shards_together_are_the_same_store(
    store_items: list[Item], store_whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    first = ExtractJob(out, CONFIG, store_items, shard=(1, 3)).run()
    assert (first.made, first.left) == (1, 3)
    assert Store(out).index() == []
    assert not summary(Store(out)).complete
    ExtractJob(out, CONFIG, store_items, shard=(0, 3)).run()
    last = ExtractJob(out, CONFIG, store_items, shard=(2, 3)).run()
    assert (last.made, last.done, last.left) == (1, 4, 0)
    assert tree(out) == tree(store_whole)


def test_nothing_is_done_twice(store_items: list[Item], store_whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    shutil.copytree(store_whole, out)
    assert ExtractJob(out, CONFIG, store_items).left() == []
    report = ExtractJob(out, CONFIG, store_items).run()
    assert (report.made, report.done, report.pairs) == (0, 4, 0)
    assert tree(out) == tree(store_whole)


def test_a_truncated_or_missing_entry_is_redone(
    store_items: list[Item], store_whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    shutil.copytree(store_whole, out)
    store = Store(out)
    os.truncate(store.file("b.mp4"), 1000)
    store.file("d.mp4").unlink()
    wrong = verify(store)
    assert [re.sub(r"\d+ bytes; \d+", "N bytes; N", line) for line in wrong] == [
        "b.mp4: its tracks are N bytes; N were written",
        "d.mp4: its tracks are missing",
    ]
    job = ExtractJob(out, CONFIG, store_items)
    assert [item.name for item in job.left()] == ["b.mp4", "d.mp4"]
    assert job.run().made == 2
    assert tree(out) == tree(store_whole)
    assert verify(store) == []


def test_a_video_that_is_cut_short_is_said_to_be(tmp_path: Path) -> None:
    """It has tracks of the frames that are left, but not without a word."""
    whole, path = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    write_video(whole, torch.randint(0, 256, (40, 3, 48, 64), dtype=torch.uint8), crf=30)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    items = [Item(file.name, str(file)) for file in (path, whole)]
    report = ExtractJob(tmp_path / "store", CONFIG, items).run()
    assert (report.done, report.failed) == (2, [])
    assert [name for name, _ in report.short] == ["cut.mkv"]
    (found,) = summary(Store(tmp_path / "store")).short
    assert 0 < found.frames < 40
    assert re.fullmatch(
        r"cut short: it ends after 0\.\d\d of the 1\.60 s that it says", found.short
    )


def test_failures_are_reported_and_tried_again_if_asked(
    store_items: list[Item], tmp_path: Path, shared_data: Path
) -> None:
    empty, other = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    other.write_text("no video")
    broken = shared_data / "videos" / "corrupted.mp4"
    bad = [Item(p.name, str(p)) for p in (empty, other, tmp_path / "gone.mp4", broken)]
    out = tmp_path / "store"
    report = ExtractJob(out, CONFIG, [bad[0], store_items[0], *bad[1:]]).run()
    assert (report.made, report.done, report.left) == (1, 1, 0)
    reasons = dict(report.failed)
    assert list(reasons) == ["empty.mp4", "text.mp4", "gone.mp4", "corrupted.mp4"]
    assert reasons["empty.mp4"] == "the file is empty"
    assert "No such file" in reasons["gone.mp4"]
    assert "frame 28 cannot be decoded" in reasons["corrupted.mp4"]
    assert str(tmp_path) not in "".join(reasons.values())
    assert [r.name for r in Store(out).index() if not r.done] == list(reasons)
    assert ExtractJob(out, CONFIG, bad).left() == []
    shutil.copy(store_items[3].path, empty)
    again = ExtractJob(out, CONFIG, bad[:1], retry=True).run()
    assert (again.made, again.failed) == (1, [])
    assert records(Store(out))["empty.mp4"].done
    assert len(Store(out).index()) == 5, "what other lists named stays"


def test_a_video_that_changed_since_is_redone(store_items: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    shutil.copy(store_items[0].path, path)
    job = ExtractJob(tmp_path / "store", CONFIG, [Item("v.mp4", str(path))])
    job.run()
    shutil.copy(store_items[3].path, path)
    store = Store(tmp_path / "store")
    wrong = verify(store, sources={"v.mp4": str(path)})
    assert [line.split(" its video has ")[1].split()[1] for line in wrong] == ["bytes", "frames;"]
    assert job.run().made == 1
    assert store.index()[0].frames == COUNTS["d.mp4"]
    path.unlink()
    assert job.left() == [], "tracks of a video that is gone are kept"


def test_a_full_disk_stops_the_run_and_loses_nothing(
    store_items: list[Item], store_whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "store"
    calls = [0]

    @contextmanager
    def full(path: Path) -> Iterator[Path]:
        with atomic_path(path) as beside:
            yield beside
            calls[0] += 1
            if calls[0] == 2:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_writer, "atomic_path", full)
    with pytest.raises(OSError, match="No space left"):
        ExtractJob(out, CONFIG, store_items).run()
    assert len(list(Store(out).files())) == 1
    assert not list((out / "videos").glob("??/.*"))
    monkeypatch.undo()
    assert ExtractJob(out, CONFIG, store_items).run().made == 3
    assert tree(out) == tree(store_whole)


def test_names_must_differ(store_items: list[Item], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"twice or more: a\.mp4"):
        ExtractJob(tmp_path, CONFIG, [*store_items, store_items[0]])
    with pytest.raises(ValueError, match="names no video"):
        ExtractJob(tmp_path, CONFIG, [])
    with pytest.raises(ValueError, match="shard is 2/2"):
        ExtractJob(tmp_path, CONFIG, store_items, shard=(2, 2))


def test_a_second_writer_is_refused(store_items: list[Item], tmp_path: Path) -> None:
    out = tmp_path / "store"
    Store.create(out, CONFIG)
    with Writer(out / "work", (0, 2)):
        who = rf"process {os.getpid()} on .* writes part 0/2"
        for shard in ((0, 2), (0, 1), (1, 3)):
            with pytest.raises(StoreError, match=who):
                ExtractJob(out, CONFIG, store_items, shard=shard).run()
        report = ExtractJob(out, CONFIG, store_items, shard=(1, 2)).run()
        assert report.made == 2
    (out / "work" / "writer-0-of-7.lock").touch()  # of a run that was killed
    assert ExtractJob(out, CONFIG, store_items).run().left == 0
    assert not (out / "work").exists()


def test_a_store_of_another_config_is_refused(store_items: list[Item], store_whole: Path) -> None:
    with pytest.raises(StoreError, match=r"bound is 20\.0 there, 5\.0 here"):
        ExtractJob(store_whole, CONFIG.replace(bound=5.0), store_items).run()


def test_damaged_journal_is_reported(store_items: list[Item], tmp_path: Path) -> None:
    out = tmp_path / "store"
    ExtractJob(out, CONFIG, store_items, shard=(0, 2)).run()
    journal = out / "work" / "settled-0-of-2.jsonl"
    journal.write_text("{}\n")
    with pytest.raises(StoreError, match="jsonl is damaged"):
        ExtractJob(out, CONFIG, store_items, shard=(0, 2)).run()


# --- looking after it -----------------------------------------------------------------------------


def test_merging_parts_gives_the_whole(
    store_items: list[Item], store_whole: Path, tmp_path: Path
) -> None:
    for i, some in enumerate((store_items[:2], store_items[2:])):
        ExtractJob(tmp_path / f"part{i}", CONFIG, some).run()
    parts = [tmp_path / "part0", tmp_path / "part1"]
    merge(tmp_path / "all", parts)
    assert tree(tmp_path / "all") == tree(store_whole)
    merge(tmp_path / "all", parts[:1])
    assert tree(tmp_path / "all") == tree(store_whole)
    other = CONFIG.replace(bound=5.0)
    ExtractJob(tmp_path / "other", other, store_items[:1]).run()
    with pytest.raises(StoreError, match="bound is"):
        merge(tmp_path / "x", [parts[0], tmp_path / "other"])
    moved = [Item("a.mp4", store_items[3].path)]
    ExtractJob(tmp_path / "moved", CONFIG, moved).run()
    with pytest.raises(StoreError, match=r"different tracks of 'a\.mp4'"):
        merge(tmp_path / "all", [tmp_path / "moved"])


def test_verify_computes_again(store_items: list[Item], store_whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    shutil.copytree(store_whole, out)
    store = Store(out)
    sources = {item.name: item.path for item in store_items}
    seen: list[int] = []
    options: dict[str, Any] = {"sources": sources, "config": CONFIG, "sample": 4}
    assert verify(store, progress=seen.append, **options) == []
    assert sum(seen) == 8
    # Tracks that are whole, and wrong.
    with store.entry("d.mp4") as entry:
        tracks, about = entry.tracks(range(18)), entry.about
        cameras = entry.homographies(range(17))
    writer = EntryWriter(CONFIG, 18, 48, 64)
    moves = tracks.displacements.astype(np.float32) / 8
    moves[3, 0, 2] += 0.25
    writer.add(moves, tracks.in_view, cameras)
    writer.finish(store.file("d.mp4"), {k: about[k] for k in ("name", "fps", "still", "source")})
    found = {r.name: r for r in store.index()}
    from mme_targets.store_extract import extracted

    store.write_index([*(r for r in found.values() if r.name != "d.mp4"),
                       extracted(store, "d.mp4")])  # fmt: skip
    assert verify(store) == []
    assert verify(store, **options) == ["d.mp4: computed again, 16 values differ, by up to 0.25 px"]
    with pytest.raises(ValueError, match="sample needs the list"):
        verify(store, sample=1)


def test_verify_misses_what_the_list_has(store_items: list[Item], store_whole: Path) -> None:
    """A part of a job array that was forgotten."""
    sources = {item.name: item.path for item in store_items}
    store = Store(store_whole)
    assert verify(store, sources=sources) == []
    more = {f"{k:02d}.mp4": "x" for k in range(23)}
    found = verify(store, sources=sources | more)
    assert found[0] == "00.mp4: is in the list, but was not extracted"
    assert (len(found), found[-1]) == (21, "3 more are in the list, but were not extracted")


def test_an_estimate_is_near(store_items: list[Item], store_whole: Path) -> None:
    found = estimate(CONFIG, store_items, device="cpu", solved=4)
    assert (found.videos, found.frames, found.unreadable) == (4, sum(COUNTS.values()), [])
    real = sum(r.bytes for r in Store(store_whole).index())
    assert real / 2 < found.bytes < real * 2
    assert found.seconds > 0
    bad = estimate(CONFIG, [Item("x", "/none")], device="cpu")
    assert (bad.frames, bad.bytes, bad.looked_at) == (0, 0, 1)
    assert bad.unreadable == [("x", "there is no such file")]
