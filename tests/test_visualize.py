"""Pictures of tracks: what is where in which colour, and nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import mme_targets.visualize as module
from mme_targets.config import TargetConfig
from mme_targets.files import atomic_path, check_writable
from mme_targets.plan import ClipPlan
from mme_targets.video import Clip, decode, probe
from mme_targets.visualize import (
    INVISIBLE,
    Tracks,
    draw_tracks,
    ramp,
    save_html,
    save_png,
    save_video,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def example(
    length: int = 3, video_frames: int | None = None, **changes: Any
) -> tuple[Clip, Tracks, torch.Tensor]:
    """Grey frames of 64 x 48; every track goes right by 4 px a step, those of column 0 are blue."""
    config = TargetConfig(frames=4, stride=4, length=length, size=64, **changes)
    plan = ClipPlan.build(config, 10, video_frames)
    count = len(plan.frames)
    frames = torch.full((count, 3, 48, 64), 128, dtype=torch.uint8)
    clip = Clip(frames, tuple(i / 25 for i in plan.frames), plan.frames, 25.0, "some/grey.mp4")
    y, x = torch.meshgrid(torch.arange(8.0, 48, 16), torch.arange(8.0, 64, 16), indexing="ij")
    points = torch.stack([x, y], -1)[None, :, :, None].repeat(plan.starts, 1, 1, length + 1, 1)
    points[..., 0] += 4 * torch.arange(length + 1)
    visible = torch.ones(points.shape[:3], dtype=torch.bool)
    visible[:, :, 0] = False
    hog = torch.rand(*points.shape[:3], max(length, 1), 3, 9, generator=torch.Generator())
    return clip, Tracks(points, visible, plan), hog


def at(picture: np.ndarray, x: float, y: float, scale: int) -> np.ndarray:
    """The colour drawn at a point of the frame."""
    return picture[round((y + 0.5) * scale - 0.5), round((x + 0.5) * scale - 0.5)].astype(int)


@pytest.mark.parametrize("scale", [1, 3, 4])
def test_dark_to_light_and_blue(scale: int) -> None:
    frame = torch.full((3, 40, 60), 128, dtype=torch.uint8)
    points = torch.tensor([[[10.0, 10], [20, 10], [30, 10]], [[10, 30], [20, 30], [30, 30]]])
    picture = draw_tracks(frame, points, torch.tensor([True, False]), scale=scale)
    assert picture.shape == (40 * scale, 60 * scale, 3)
    assert picture.dtype == np.uint8
    first, second, end = (at(picture, x, 10, scale) for x in (13, 26, 30))
    near = 6 if scale > 1 else 60  # a line of one pixel is mixed with the frame at its edges
    assert np.abs(first - ramp(0.25)).max() <= near
    assert np.abs(second - ramp(0.75)).max() <= near
    assert np.abs(end - ramp(1.0)).max() <= near
    assert first.sum() < second.sum() < end.sum()
    for x in (12, 25, 30):
        assert np.abs(at(picture, x, 30, scale) - INVISIBLE).max() <= near
    for place in ((45, 10), (5, 10), (20, 20), (20, 36)):
        assert (at(picture, *place, scale) == round(128 * 0.82)).all()
    without = draw_tracks(
        frame, points, torch.tensor([True, False]), scale=scale, show_invisible=False
    )
    assert (at(without, 20, 30, scale) == round(128 * 0.82)).all()


def test_positions_are_below_a_pixel() -> None:
    frame = torch.zeros(3, 20, 20, dtype=torch.uint8)
    for x in (8.0, 8.25, 8.5):
        points = torch.tensor([[[x, 3.0], [x, 16.0]]])
        row = draw_tracks(frame, points, torch.tensor([True]), scale=8)[80].astype(float).sum(-1)
        centre = (row * np.arange(160)).sum() / row.sum()
        assert centre == pytest.approx(x * 8 + 3.5, abs=0.3)


def test_still_points_are_dots_unless_asked() -> None:
    frame = torch.zeros(3, 40, 40, dtype=torch.uint8)
    points = torch.tensor([[[20.0, 20], [20.4, 20], [20.8, 20]]])
    dot = draw_tracks(frame, points, torch.tensor([True]), scale=4)
    full = draw_tracks(frame, points, torch.tensor([True]), scale=4, show_still=True)
    assert 0 < (dot.sum(-1) > 0).sum() < (full.sum(-1) > 0).sum() < 60
    blue = draw_tracks(frame, points, torch.tensor([False]), scale=4)
    assert at(blue, 20.8, 20, 4).argmax() == 2


def test_points_that_are_not_finite_or_far_away_are_left_out() -> None:
    frame = torch.zeros(3, 24, 24, dtype=torch.uint8)
    points = torch.tensor([[[12.0, 12], [float("nan"), 12]], [[12, 12], [1e30, float("inf")]]])
    draw_tracks(frame, points, torch.tensor([False, False]))
    assert not draw_tracks(frame, points, torch.tensor([False, False]), show_invisible=False).any()


def test_empty_tracks_leave_the_frame() -> None:
    frame = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    picture = draw_tracks(frame, torch.zeros(0, 7, 2), torch.zeros(0, dtype=torch.bool), scale=1)
    assert (picture == 82).all()


def test_png_has_a_panel_a_start(tmp_path: Path) -> None:
    clip, tracks, _ = example()
    path = tmp_path / "grey.png"
    save_png(clip, tracks, path)
    picture = cv2.imread(str(path))[:, :, ::-1].astype(int)
    grey = (np.abs(picture - round(128 * 0.82)).max(-1) <= 2).mean()
    assert tracks.points.shape[0] == 2
    assert 0.4 < grey < 0.9
    close = (np.abs(picture - INVISIBLE).max(-1) < 12).any(0)
    # Blue in the left column of both panels, and in the legend at the right.
    runs = np.flatnonzero(np.diff(np.concatenate([[0], close.astype(int)])) == 1)
    assert len(runs) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["grey.png"]


def test_video_grows_tracks_at_the_times_of_the_frames(tmp_path: Path) -> None:
    clip, tracks, _ = example()
    path = tmp_path / "grey.mp4"
    save_video(clip, tracks, path, scale=4)
    assert probe(path).frames == len(clip.frames)
    shown = decode(path, range(len(clip.frames)))
    assert shown.times == pytest.approx([t - clip.times[0] for t in clip.times], abs=1e-3)
    assert shown.frames.shape[1:] == (3, 192, 256)
    ground = shown.frames[:, :, 0, 0].float()
    drawn = []
    for frame, level in zip(shown.frames.float(), ground, strict=True):
        ours = (frame - level[:, None, None]).abs().sum(0)[20:48, 80:180] > 60
        drawn.append(int(ours.any(0).sum()))
    # Frames 10 to 13 and 18 to 21: a track starts as a dot and grows by 4 px a frame.
    begin, again = clip.indices.index(10), clip.indices.index(18)
    for first in (begin, again):
        widths = drawn[first : first + 4]
        assert widths == sorted(widths)
        assert widths[-1] - widths[0] >= 8 * 4
    assert drawn[again - 1] == pytest.approx(drawn[begin + 3], abs=4)  # stays until the next start
    assert [p.name for p in tmp_path.iterdir()] == ["grey.mp4"]


def test_video_of_a_padded_clip_ends_where_the_video_does(tmp_path: Path) -> None:
    clip, tracks, _ = example(video_frames=15)
    save_video(clip, tracks, tmp_path / "a.mp4", scale=1)
    assert probe(tmp_path / "a.mp4").frames == len(set(clip.indices)) < len(clip.indices)
    seen = module._checked(clip, tracks).visible
    assert seen[0, :, 1:].all()
    assert not seen[1].any()  # these reach past the video's end


@pytest.mark.parametrize("length", [0, 1, 6])
def test_every_length_is_drawn(tmp_path: Path, length: int) -> None:
    clip, tracks, hog = example(length)
    save_png(clip, tracks, tmp_path / "a.png")
    save_video(clip, tracks, tmp_path / "a.mp4")
    save_html(clip, tracks, hog, tmp_path / "a.html")
    assert tracks.frames_of(0) == tuple(
        clip.indices.index(10 + i + (4 if not length else 0)) for i in range(length + 1)
    )
    assert len(list(tmp_path.iterdir())) == 3


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, tracks, hog = example()
    old = tmp_path / "a.html"
    old.write_text("as it was")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        save_html(clip, tracks, hog, old)

    def half() -> None:
        with atomic_path(tmp_path / "b.bin") as beside:
            beside.write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half()
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]
    assert old.read_text() == "as it was"


def test_paths_that_cannot_be_written_fail_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, tracks, hog = example()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module, "_draw", None)  # no work is begun
    for bad, error in (("no/a.png", FileNotFoundError), ("file/a.png", NotADirectoryError)):
        for save in (save_png, save_video):
            with pytest.raises(error, match=bad):
                save(clip, tracks, tmp_path / bad)
        with pytest.raises(error, match=bad):
            save_html(clip, tracks, hog, tmp_path / bad)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(OSError, match="/dev/null is a device"):
        check_writable("/dev/null")
    monkeypatch.setattr(
        Path,
        "touch",
        lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")),
    )
    with pytest.raises(PermissionError, match=r"a\.png cannot be written: Permission denied"):
        check_writable(tmp_path / "a.png")


def test_atomic_files_have_the_usual_rights(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as beside:
        assert beside.suffix == ".txt"
        assert beside.parent == tmp_path
        beside.write_text("x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    clip, tracks, hog = example()
    path = tmp_path / "a.html"
    bad: list[tuple[Clip, Tracks, torch.Tensor, str]] = [
        (clip, tracks._replace(points=tracks.points[:1]), hog, r"tracks\.points is"),
        (clip, tracks._replace(points=tracks.points[..., :2, :]), hog, "holds 2 points a track"),
        (clip, tracks._replace(visible=tracks.visible[:, :2]), hog, r"tracks\.visible is"),
        (clip, tracks, hog[:, :2], "hog is"),
        (Clip(clip.frames, clip.times, (0,) * len(clip.indices), 25.0, "a"), tracks, hog, "other"),
    ]
    for one_clip, one_tracks, one_hog, match in bad:
        with pytest.raises(ValueError, match=match):
            save_html(one_clip, one_tracks, one_hog, path)
    with pytest.raises(ValueError, match=r"frame is torch\.float32"):
        draw_tracks(torch.zeros(3, 8, 8), torch.zeros(1, 2, 2), torch.ones(1).bool())
    with pytest.raises(ValueError, match="points is"):
        draw_tracks(clip.frames[0], torch.zeros(1, 2, 2), torch.ones(2).bool())
    with pytest.raises(ValueError, match="scale is 0"):
        draw_tracks(clip.frames[0], torch.zeros(1, 2, 2), torch.ones(1).bool(), scale=0)
    assert not list(tmp_path.iterdir())


def test_a_real_clip(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "videos" / "kinetics_340x256.mp4"
    plan = ClipPlan.build(TargetConfig(), 60, probe(path).frames)
    clip = decode(path, plan.frames, short_side=224, crop=224)
    y, x = torch.meshgrid(torch.arange(4.0, 224, 8), torch.arange(4.0, 224, 8), indexing="ij")
    points = torch.stack([x, y], -1)[None, :, :, None].repeat(8, 1, 1, 7, 1)
    points += torch.arange(7.0)[:, None]
    tracks = Tracks(points, torch.ones(points.shape[:3], dtype=torch.bool), plan)
    hog = torch.rand(8, 28, 28, 6, 3, 9, generator=torch.Generator()) * 1e4
    save_html(clip, tracks, hog, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert len(text) < 8e6
    assert "http" not in text.replace("http-equiv", "")
    assert "{{" not in text
