"""The synthetic scene: its flow and tracks against what its pictures show."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mme_targets.synthetic import Scene, render_scene, write_video
from mme_targets.video import decode, probe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return render_scene(12, (96, 128), seed=3)


def seeds(scene: Scene, step: int = 4) -> torch.Tensor:
    height, width = scene.frames.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(step, height, step), torch.arange(step, width, step), indexing="ij"
    )
    return torch.stack([x, y], -1).double()


def test_the_same_seed_gives_the_same_scene(scene: Scene) -> None:
    again, other = render_scene(12, (96, 128), seed=3), render_scene(12, (96, 128), seed=4)
    assert torch.equal(again.frames, scene.frames)
    assert torch.equal(again.flow, scene.flow)
    assert not torch.equal(other.frames, scene.frames)
    assert scene.frames.shape == (12, 3, 96, 128)
    assert scene.flow.shape == (11, 2, 96, 128)
    assert scene.flow.dtype == torch.float32


def test_flow_is_what_the_frames_show(scene: Scene) -> None:
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    for t in (0, 5, 10):
        ours = scene.flow[t]
        moved = torch.stack([x, y]) + ours
        next_frame = scene.frames[t + 1].permute(1, 2, 0).numpy()
        warped = cv2.remap(next_frame, moved[0].numpy(), moved[1].numpy(), cv2.INTER_CUBIC)
        clear = scene.clear(torch.stack([x, y], -1), t, 1, margin=3).numpy()
        now = scene.frames[t].permute(1, 2, 0).numpy()
        assert clear.mean() > 0.6
        error = np.abs(warped.astype(float) - now)[clear]
        assert error.mean() < 1.0  # rounding to whole grey levels, twice
        still = np.abs(next_frame.astype(float) - now)[clear]
        assert still.mean() > 3 * error.mean()  # the camera all but rests at times


def test_tracks_start_at_their_points_and_follow_the_flow(scene: Scene) -> None:
    points = seeds(scene)
    track = scene.track(points, 2, 6)
    assert track.shape == (*points.shape[:-1], 7, 2)
    assert torch.allclose(track[..., 0, :], points, atol=1e-9)
    x, y = points.long().unbind(-1)
    step = track[..., 1, :] - track[..., 0, :]
    # The flow holds the front layer at each pixel: the one that the track belongs to.
    assert torch.allclose(step.float(), scene.flow[2][:, y, x].permute(1, 2, 0), atol=1e-5)
    # Two steps are one step, and another from where it led.
    middle = scene.track(track[..., 3, :], 5, 3)
    same = scene.layer(track[..., 3, :], 5) == scene.layer(points, 2)
    assert torch.allclose(middle[same], track[..., 3:, :][same], atol=1e-9)


def test_layers_move_by_their_own_motion(scene: Scene) -> None:
    points = seeds(scene)
    layers = scene.layer(points, 0)
    assert set(layers.unique().tolist()) == {0, 1, 2}
    for number in (1, 2):
        centre = scene.shifts[number, 0]
        assert int(scene.layer(centre, 0)) == number
        path = scene.track(centre, 0, 11)
        assert torch.allclose(path, scene.shifts[number])
    assert float(scene.flow.abs().max()) < 20  # within the paper's bound


def test_still_camera_and_no_objects() -> None:
    scene = render_scene(3, 32, objects=0, camera=False)
    assert not scene.flow.any()
    assert torch.equal(scene.frames[0], scene.frames[2])
    assert scene.clear(torch.tensor([16.0, 16.0]), 0, 2).item()
    assert not scene.clear(torch.tensor([31.5, 16.0]), 0, 2).item()


def test_clear_excludes_what_is_hidden() -> None:
    scene = render_scene(12, (96, 128), seed=3)
    points = seeds(scene)
    clear = scene.clear(points, 0, 11)
    track = scene.track(points, 0, 11)
    hidden = torch.stack([scene.layer(track[..., t, :], t) for t in range(12)]).ne(
        scene.layer(points, 0)
    )
    assert hidden.any()
    assert not (clear & hidden.any(0)).any()


@pytest.mark.parametrize("size", [(48, 64), (33, 47)])
def test_written_and_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    scene = render_scene(6, size)
    path = tmp_path / "scene.mp4"
    write_video(path, scene.frames, fps=30000 / 1001)
    info = probe(path)
    assert (info.frames, info.height, info.width) == (6, *size)
    assert info.fps == pytest.approx(30000 / 1001, rel=1e-3)
    clip = decode(path, range(6))
    assert clip.times == pytest.approx([i * 1001 / 30000 for i in range(6)])
    assert (clip.frames.float() - scene.frames.float()).abs().mean() < 5
    assert [p.name for p in tmp_path.iterdir()] == ["scene.mp4"]


def test_bad_arguments(tmp_path: Path, scene: Scene) -> None:
    with pytest.raises(ValueError, match="frames is 0"):
        render_scene(0)
    with pytest.raises(ValueError, match="size is 8"):
        render_scene(2, 8)
    with pytest.raises(ValueError, match="objects is 9"):
        render_scene(2, 32, objects=9)
    with pytest.raises(ValueError, match="reach frame 12; the scene has 12"):
        scene.track(seeds(scene), 6, 6)
    with pytest.raises(ValueError, match=r"frames is torch\.float32"):
        write_video(tmp_path / "a.mp4", torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="times must hold 12 ascending"):
        write_video(tmp_path / "a.mp4", scene.frames, times=[0.0] * 12)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_video(tmp_path / "no" / "a.mp4", scene.frames)
    assert not list(tmp_path.iterdir())
