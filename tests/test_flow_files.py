"""Flow as files: what is written is what was solved, whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import mme_targets as mme
from mme_model.cli import main
from mme_targets import TargetConfig, flow_files
from mme_targets.cli import progress_bar
from mme_targets.files import write_video as write_mp4
from mme_targets.flow_files import (
    FlowJob,
    Pair,
    _pictures,
    colours,
    read_flo,
    write_flo,
    write_flow,
)
from mme_targets.synthetic import render_scene, write_video
from mme_targets.video import decode, probe


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "scene.mp4"
    write_video(path, render_scene(20, (64, 80), seed=2).frames, fps=25)
    return path


PLAIN = TargetConfig.paper(flow="dis", camera_motion=False)


def test_flo_is_what_opencv_reads_and_writes(tmp_path: Path) -> None:
    flow = torch.randn(2, 5, 7)
    write_flo(tmp_path / "a.flo", flow)
    theirs = cv2.readOpticalFlow(str(tmp_path / "a.flo"))
    assert np.array_equal(theirs.transpose(2, 0, 1), flow.numpy())
    assert np.array_equal(read_flo(tmp_path / "a.flo"), flow.numpy())
    (tmp_path / "b.flo").write_bytes((tmp_path / "a.flo").read_bytes()[:-4])
    with pytest.raises(ValueError, match="says 7x5 px"):
        read_flo(tmp_path / "b.flo")
    (tmp_path / "c.flo").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"no \.flo file"):
        read_flo(tmp_path / "c.flo")


def test_folder_and_npz_hold_the_flow_of_every_pair(video: Path, tmp_path: Path) -> None:
    clip = decode(video, range(20))
    wanted = mme.optical_flow(clip.frames, method="dis")
    counted: list[int] = []
    write_flow(FlowJob(video, PLAIN), tmp_path / "all", counted.append)
    assert sum(counted) == 19
    files = sorted((tmp_path / "all").iterdir())
    assert [f.name for f in files] == [f"{i:06d}.flo" for i in range(19)]
    assert np.array_equal(np.stack([read_flo(f) for f in files]), wanted.numpy())
    write_flow(FlowJob(video, PLAIN, start=3, count=4), tmp_path / "a.npz")
    held = np.load(tmp_path / "a.npz")
    assert np.array_equal(held["flow"], wanted[3:7].numpy())
    assert held["frames"].tolist() == [3, 4, 5, 6]
    assert held["times"][0] == pytest.approx(3 / 25)


def test_video_has_a_picture_a_pair(video: Path, tmp_path: Path) -> None:
    config = PLAIN.replace(camera_motion=True)
    write_flow(FlowJob(video, config), tmp_path / "x.mp4")
    info = probe(tmp_path / "x.mp4")
    assert (info.frames, info.width, info.height) == (19, 3 * 80, 64)
    write_flow(FlowJob(video, PLAIN, count=3), tmp_path / "y.mp4")
    assert (probe(tmp_path / "y.mp4").frames, probe(tmp_path / "y.mp4").width) == (3, 160)


def test_colours_are_middleburys() -> None:
    flow = torch.zeros(2, 1, 4)
    flow[0, 0, 1], flow[0, 0, 2], flow[0, 0, 3] = 5, -5, 50
    white, right, left, beyond = colours(flow, 5.0)[:, 0].T.tolist()
    assert white == [255, 255, 255]
    assert right[0] > 240
    assert max(right[1:]) < 60, "rightwards is red"
    assert left[0] < 60, "leftwards is its opposite"
    assert beyond == right


def test_failures_leave_nothing(video: Path, tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(FileExistsError, match="full exists"):
        write_flow(FlowJob(video, PLAIN), tmp_path / "full")
    with pytest.raises(ValueError, match="must end in"):
        write_flow(FlowJob(video, PLAIN), tmp_path / "x.gif")
    with pytest.raises(ValueError, match="start is 19"):
        FlowJob(video, PLAIN, start=19)
    broken = shared_data / "videos" / "corrupted.mp4"
    job = FlowJob(broken, PLAIN, start=20, short_side=64)
    for name in ("dir", "x.npz", "x.mp4"):
        with pytest.raises(RuntimeError, match="frame 28"):
            write_flow(job, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (17, 15), (40, 3)])
def test_pictures_of_tiny_frames(tmp_path: Path, size: tuple[int, int]) -> None:
    pairs = [
        Pair(
            i,
            0.0,
            torch.zeros(3, *size, dtype=torch.uint8),
            torch.ones(2, *size),
            before,
            None,
            True,
        )
        for i, before in enumerate((None, torch.ones(2, *size)))
    ]
    for pair, panels in zip(pairs, (2, 3), strict=True):
        (picture,) = _pictures(iter([pair]))
        height = max(2, size[0] // 2 * 2)
        assert picture.shape == (3, height, panels * size[1] // 2 * 2)
        write_mp4(tmp_path / "x.mp4", [picture])


def test_the_video_itself_is_not_written_over(video: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.mp4"
    own.write_bytes(video.read_bytes())
    (tmp_path / "link.mp4").symlink_to(own)
    for out in ("own.mp4", "link.mp4"):
        with pytest.raises(ValueError, match=f"{out} is the video itself"):
            write_flow(FlowJob(own, PLAIN), tmp_path / out)
    assert main(["show", str(own), "--out", str(own)]) == 1
    assert own.read_bytes() == video.read_bytes()


def test_folders_that_are_there(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current one, one behind a link and one with a dot are used, and stay what they are."""
    (tmp_path / "real.1").mkdir(mode=0o700)
    before = (tmp_path / "real.1").stat()
    (tmp_path / "link").symlink_to(tmp_path / "real.1")
    monkeypatch.chdir(tmp_path / "real.1")
    for out in (tmp_path / "link", Path(), tmp_path / "real.1"):
        write_flow(FlowJob(video, PLAIN, count=2), out)
        names = sorted(p.name for p in (tmp_path / "real.1").iterdir())
        assert names == ["000000.flo", "000001.flo"]
        for name in names:
            (tmp_path / "real.1" / name).unlink()
    after = (tmp_path / "real.1").stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    (tmp_path / "nowhere").symlink_to(tmp_path / "none" / "x")
    with pytest.raises(OSError, match="nowhere cannot be written"):
        write_flow(FlowJob(video, PLAIN, count=2), tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="/ exists and is not"):
        write_flow(FlowJob(video, PLAIN, count=2), "/")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "nowhere", "real.1"]


@pytest.mark.parametrize("there", [True, False])
def test_a_disk_that_fills_up(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def fails(path: Path, _: torch.Tensor) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(flow_files, "write_flo", fails)
    if there:
        (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="x cannot be written: No space left"):
        write_flow(FlowJob(video, PLAIN), tmp_path / "x")
    assert [p.name for p in tmp_path.rglob("*")] == ["x"] * there


def test_one_frame(video: Path, tmp_path: Path) -> None:
    write_mp4(tmp_path / "one.mp4", decode(video, [0]).frames)
    with pytest.raises(ValueError, match=r"one\.mp4 has one frame; flow needs two"):
        FlowJob(tmp_path / "one.mp4", PLAIN)


def test_rate_is_of_the_whole_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs are counted in blocks, at the end of each."""
    with progress_bar("flow", 10, "pairs") as advance:
        time.sleep(0.1)
        for _ in range(10):
            advance(1)
    found = re.search(r"([0-9.]+) pairs/s", capsys.readouterr().err)
    assert found
    assert 1 < float(found[1]) <= 100


def test_command(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["flow", str(video), "--out", str(tmp_path / "f"), "--flow", "dis", "--count", "2"]
    assert main(line) == 0
    assert len(list((tmp_path / "f").iterdir())) == 2
    assert "camera motion removed from" in capsys.readouterr().out
    assert main([*line[:3], str(tmp_path / "f.gif"), "--count", "2"]) == 1


def test_out_of_memory_is_one_line(
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["flow", str(video), "--out", str(tmp_path / "x.npz"), "--count", "1"]
    assert main([*line, "--short_side", "1000000"]) == 1  # terabytes

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(flow_files, "flow_and_camera", fails)
    assert main(line) == 1
    said = [s for s in capsys.readouterr().err.splitlines() if s.startswith("mme: error: ")]
    assert len(said) == 2
    assert "mme: error: out of memory: can't allocate memory: you tried to" in said[0]
    assert said[1].startswith("mme: error: out of memory")
    assert not list(tmp_path.iterdir())
