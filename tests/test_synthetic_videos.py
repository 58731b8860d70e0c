"""Built-in videos: what moves how is what the label says, and nothing else tells it."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from mme_model.synthetic import CLASSES, SyntheticVideos, _Scene
from mme_targets.ops.optical_flow import optical_flow

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_frame_does_not_depend_on_what_else_is_read() -> None:
    videos = SyntheticVideos(8, frames=20, size=64)
    whole = videos.read(3, range(20))
    assert whole.shape == (20, 3, 64, 64)
    assert whole.dtype == torch.uint8
    assert torch.equal(videos.read(3, [0, 7, 7, 19]), whole[[0, 7, 7, 19]])
    assert torch.equal(videos.read(3, [11]), whole[11:12])


def test_keyed_by_seed_index_and_part() -> None:
    first = SyntheticVideos(16, frames=8, size=48).read(2, [4])
    assert torch.equal(SyntheticVideos(3, frames=8, size=48).read(2, [4]), first)
    again = pickle.loads(pickle.dumps(SyntheticVideos(16, frames=8, size=48)))
    assert torch.equal(again.read(2, [4]), first)
    others = [
        SyntheticVideos(16, frames=8, size=48).read(10, [4]),
        SyntheticVideos(16, frames=8, size=48, seed=1).read(2, [4]),
        SyntheticVideos(16, frames=8, size=48, held_out=True).read(2, [4]),
    ]
    for other in others:
        assert (other.float() - first.float()).abs().mean() > 10


def test_threads_change_nothing() -> None:
    videos = SyntheticVideos(2)
    one = videos.read(1, [0, 30])
    torch.set_num_threads(2)
    two = videos.read(1, [0, 30])
    assert torch.equal(one, two)


def test_names_and_labels() -> None:
    videos = SyntheticVideos(24, frames=10, size=48)
    assert len(videos) == 24
    assert videos.classes == CLASSES
    assert Counter(videos.label(i) for i in range(24)) == dict.fromkeys(range(8), 3)
    assert videos.name(8) == "synthetic/000008 (left)"
    assert SyntheticVideos(2, held_out=True).name(1) == "synthetic-held-out/000001 (right)"
    assert videos.frames(5) == 10


@pytest.mark.parametrize("label", CLASSES)
def test_the_thing_moves_as_its_label_says(label: str) -> None:
    """By optical flow of what is rendered, not by what the scene was built from."""
    videos = SyntheticVideos(8, seed=4)
    index = CLASSES.index(label)
    frames = videos.read(index, [30, 31, 32, 33])
    flow = optical_flow(frames[None], pairs=((0, 1), (1, 2), (2, 3)))[0].mean(0)
    scene = _Scene(videos, index)
    x0, y0 = scene.centre
    y, x = torch.meshgrid(torch.arange(128.0) - y0, torch.arange(128.0) - x0, indexing="ij")
    inside = torch.hypot(x, y) < 0.6 * scene.radius
    u, v = flow[:, inside]
    x, y = x[inside], y[inside]
    turn = float((x * v - y * u).sum() / (x * x + y * y).sum())  # clockwise, y pointing down
    grow = float((x * u + y * v).sum() / (x * x + y * y).sum())
    strengths = {
        "left": -float(u.mean()),
        "right": float(u.mean()),
        "up": -float(v.mean()),
        "down": float(v.mean()),
        "clockwise": turn * 20,
        "anticlockwise": -turn * 20,
        "grow": grow * 60,
        "shrink": -grow * 60,
    }
    assert strengths[label] > 0.5
    assert max(strengths, key=lambda name: strengths[name]) == label


def test_flow_follows_what_moves() -> None:
    """The background's motion, as TV-L1 sees it, is the scene's to a tenth of a pixel."""
    videos = SyntheticVideos(4, seed=2)
    for index in range(4):
        frames = videos.read(index, [10, 11])
        flow = optical_flow(frames[None], pairs=((0, 1),))[0, 0]
        scene = _Scene(videos, index)
        pan = torch.tensor(scene.pan)
        assert 0.25 <= float(pan.norm()) <= 0.5
        x0, y0 = scene.centre + scene.velocity * (10 - scene.middle)
        y, x = torch.meshgrid(torch.arange(128.0) - y0, torch.arange(128.0) - x0, indexing="ij")
        behind = torch.hypot(x, y) > 1.4 * scene.radius
        assert behind.sum() > 2000
        assert torch.allclose(flow[:, behind].median(1).values.double(), pan, atol=0.1)


def test_things_stay_in_view_and_everything_moves() -> None:
    videos = SyntheticVideos(60)
    for index in range(60):
        scene = _Scene(videos, index)
        for time in (-scene.middle, scene.middle):
            middle = scene.centre + scene.velocity * time
            assert ((middle > 10) & (middle < 117)).all()
        moved = max(
            float(np.abs(scene.velocity).max()),
            abs(scene.turn) * scene.radius,
            abs(scene.growth) * scene.radius,
        )
        assert 0.3 < moved < 3
        # Off the diagonals, along which normalised displacements say nothing.
        across, down = np.abs(scene.pan)
        assert abs(across - down) > 0.4 * float(np.hypot(across, down))


def test_appearance_says_nothing_of_the_label() -> None:
    """Every class draws the same numbers: only the sign and kind of motion differ."""
    scenes = [_Scene(SyntheticVideos(8, frames=16, size=64), i) for i in range(8)]
    assert len({float(s.radius) for s in scenes}) == 8
    videos = SyntheticVideos(480, frames=16, size=32)
    values = np.zeros((8, 60, 4))
    for index in range(480):
        scene = _Scene(videos, index)
        base, _ = scene.colours[1]
        values[index % 8, index // 8] = [*scene.centre, scene.radius, float(base[0])]
    means = values.mean(1)
    error = values.std(axis=(0, 1)) / np.sqrt(60)
    assert (np.abs(means - means.mean(0)) < 4 * error).all()


def test_opposite_classes_are_each_other_s_time_reversal() -> None:
    class Labelled(SyntheticVideos):
        def label(self, index: int) -> int:
            return self.forced

    videos = Labelled(1, frames=9, size=64)
    for first in range(0, 8, 2):
        videos.forced = first
        forth = _Scene(videos, 0)
        videos.forced = first + 1
        back = _Scene(videos, 0)
        forth.pan, back.pan = np.zeros(2), np.zeros(2)
        for frame in range(9):
            assert torch.equal(forth.draw(frame), back.draw(8 - frame))


@pytest.mark.parametrize("size", [32, 57, 224])
def test_any_size_and_length(size: int) -> None:
    videos = SyntheticVideos(1, frames=300, size=size)
    frames = videos.read(0, [0, 299])
    assert frames.shape == (2, 3, size, size)
    assert frames.float().std(dim=(-1, -2)).min() > 10


def test_bad_arguments() -> None:
    for name, value in (("count", 0), ("frames", 1), ("size", 16)):
        with pytest.raises(ValueError, match=f"{name} is {value}; must be at least"):
            SyntheticVideos(**{"count": 1, name: value})
    videos = SyntheticVideos(2, frames=5, size=32)
    for indices in ([], [5], [-1]):
        with pytest.raises(ValueError, match="frames 0 to 4, at least one"):
            videos.read(0, indices)
    with pytest.raises(IndexError, match="index is 2; must lie in 0 to 1"):
        videos.read(2, [0])
