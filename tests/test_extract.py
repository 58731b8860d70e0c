"""A video in, targets out: files, metadata, clips that overlap or reach past the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mme_targets import MotionTargets, TargetConfig
from mme_targets.extract import VideoJob, read_metadata, write_targets
from mme_targets.synthetic import render_scene, write_video
from mme_targets.video import VideoError, decode


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "scene.mp4"
    write_video(path, render_scene(30, (72, 100), seed=3).frames, fps=25)
    return path


def quick(**changes: Any) -> TargetConfig:
    return TargetConfig.paper(
        frames=4, stride=2, size=64, length=3, flow="dis", camera_motion=False, **changes
    )


def test_file_holds_tensors_and_how_they_were_made(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    config = quick(targets=("trajectory", "pixel"))
    report = write_targets(VideoJob(video, config), out)
    tensors = load_file(out)
    assert tensors["position"].shape == (1, 32, 24)
    assert tensors["shape"].shape == (1, 32, 324)
    assert tensors["visible"].shape == (1, 32, 4)
    assert tensors["pixel.valid"].shape == (1, 32, 1)
    assert report.clips == 1
    metadata = read_metadata(out)
    assert TargetConfig.from_dict(metadata["config"]) == config
    (clip,) = metadata["clips"]
    assert clip["frames"] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert clip["times"][2] == pytest.approx(2 / 25)
    assert metadata["video"]["path"] == "scene.mp4"
    assert "torch" in metadata["versions"]
    (tmp_path / "plain").touch()
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode, "as the umask says"


def test_the_file_is_what_the_module_gives(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    config = quick()
    job = VideoJob(video, config, start=5)
    write_targets(job, out)
    clip = decode(video, job.plans[0].frames, short_side=64, crop=64)
    made = MotionTargets(config)(clip.frames[None])
    assert torch.equal(load_file(out)["position"], made["position"].values)


def test_two_runs_are_equal_bit_for_bit(video: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_targets(VideoJob(video, quick(), every=True), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("overlap", [0, 3])
def test_every_clip_to_the_end_and_each_pair_once(
    video: Path, tmp_path: Path, overlap: int
) -> None:
    job = VideoJob(video, quick(), every=True, overlap=overlap)
    starts = [plan.frames[0] for plan in job.plans]
    assert starts == list(range(0, 30, 8 - overlap))[: len(starts)]
    assert starts[-1] + 8 >= 30, "no tail is dropped"
    assert starts[-2] + 8 < 30, "no clip is wholly within the one before it"
    counted: list[int] = []
    report = write_targets(job, tmp_path / "t", progress=counted.append)
    assert sum(counted) == job.pairs
    assert load_file(tmp_path / "t")["position"].shape[0] == len(starts)
    # A clip made alone is the same as made in a row: the flow kept from the one before is its own.
    alone = tmp_path / "alone"
    write_targets(VideoJob(video, quick(), start=starts[1]), alone)
    assert torch.equal(load_file(alone)["position"][0], load_file(tmp_path / "t")["position"][1])
    assert report.clips == len(starts)


def test_a_video_shorter_than_a_clip_is_padded(tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    write_video(path, render_scene(5, 64).frames, fps=25)
    write_targets(VideoJob(path, quick()), tmp_path / "t")
    visible = load_file(tmp_path / "t")["visible"]
    assert visible[:, :16].any()
    assert not visible[:, 16:].any(), "steps past the end: their tracks do not count"
    assert read_metadata(tmp_path / "t")["clips"][0]["frames"][-1] == 4


def test_whole_resolution_keeps_whole_patches(video: Path, tmp_path: Path) -> None:
    write_targets(VideoJob(video, quick(), crop=False), tmp_path / "t")
    # 72x100: 4 x 6 patches of 16
    assert load_file(tmp_path / "t")["position"].shape == (1, 2 * 4 * 6, 24)


def test_frame_region_tracks_the_whole_frame(video: Path, tmp_path: Path) -> None:
    write_targets(VideoJob(video, quick(region="frame")), tmp_path / "t")
    assert load_file(tmp_path / "t")["position"].shape == (1, 32, 24)
    assert read_metadata(tmp_path / "t")["clips"][0]["crop"] == [14, 0, 72, 72]


def test_camera_motion_is_counted(video: Path, tmp_path: Path) -> None:
    config = quick().replace(camera_motion=True, follow_camera=True)
    report = write_targets(VideoJob(video, config, start=2), tmp_path / "t")
    assert report.pairs == 6
    assert 0 <= report.still <= 6


def test_failure_leaves_nothing(video: Path, tmp_path: Path, shared_data: Path) -> None:
    out = tmp_path / "t.safetensors"
    job = VideoJob(shared_data / "videos" / "corrupted.mp4", quick(), every=True)
    with pytest.raises(VideoError, match=r"corrupted\.mp4.*frame 28"):
        write_targets(job, out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["h265_10bit.mp4", "odd_size_444.mp4", "rotated_metadata.mp4", "ucf_320x240.avi"]
)
def test_awkward_videos(shared_data: Path, tmp_path: Path, name: str) -> None:
    write_targets(VideoJob(shared_data / "videos" / name, quick()), tmp_path / "t")
    assert load_file(tmp_path / "t")["position"].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 30}, "start is 30"),
        ({"start": -1}, "start is -1"),
        ({"every": True, "overlap": 8}, "overlap is 8"),
    ],
)
def test_bad_options(video: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoJob(video, quick(), **options)


def test_other_files_are_not_ours(video: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x")
    with pytest.raises(ValueError, match="no motion targets"):
        read_metadata(tmp_path / "x")
