"""Flow as files: what is written is what was solved, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import mme_targets as mme
from mme_model.cli import main
from mme_targets import TargetConfig
from mme_targets.flow_files import FlowJob, colours, read_flo, write_flo, write_flow
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


def test_command(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["flow", str(video), "--out", str(tmp_path / "f"), "--flow", "dis", "--count", "2"]
    assert main(line) == 0
    assert len(list((tmp_path / "f").iterdir())) == 2
    assert "camera motion removed from" in capsys.readouterr().out
    assert main([*line[:3], str(tmp_path / "f.gif"), "--count", "2"]) == 1
