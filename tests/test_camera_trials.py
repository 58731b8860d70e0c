"""Camera motion on real frames: 200 known homographies beside something else, and a shaken clip."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from mme_targets.config import SurfConfig
from mme_targets.ops.camera_motion import camera_motion, flow_and_camera
from mme_targets.ops.optical_flow import optical_flow
from mme_targets.video import decode

VIDEOS = ("kinetics_340x256.mp4", "kinetics_426x240.mkv", "ucf_320x240.avi", "bear_854x480.mp4")
SIZE, ROOM = 224, 32
FARTHEST = 25.0
"""px that no point moves by more than."""
TRIALS = 200


def apart(one: np.ndarray, other: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Distances, px, between where two homographies take the frame's corners."""
    last = size - 1.0
    at = np.array([[[0, 0], [last, 0], [0, last], [last, last]]])
    ends = [cv2.perspectiveTransform(at, h)[0] for h in (one, other)]
    return np.linalg.norm(ends[0] - ends[1], axis=1)


def random_homography(rng: np.random.Generator) -> np.ndarray:
    """Zoom, rotation, perspective and translation, alone or together, by at most FARTHEST px."""
    parts = rng.random(4) < 0.6
    parts[rng.integers(4)] = True
    zoom = np.exp(rng.uniform(-0.12, 0.12)) if parts[0] else 1
    turn = np.deg2rad(rng.uniform(-7, 7)) if parts[1] else 0
    bend = rng.uniform(-5e-4, 5e-4, 2) if parts[2] else np.zeros(2)
    shift = rng.uniform(-14, 14, 2) if parts[3] else np.zeros(2)
    cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
    middle = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [*bend, 1]])
    half = (SIZE - 1) / 2
    centre = np.array([[1, 0, half], [0, 1, half], [0, 0, 1]])
    found = centre @ middle @ np.linalg.inv(centre)
    found /= found[2, 2]
    farthest = apart(found, np.eye(3)).max()
    return found if 1 < farthest <= FARTHEST else random_homography(rng)


def real_frames(shared_data: Path) -> list[np.ndarray]:
    """Frames [H, W, 3] of the four clips, large enough for a crop and what a camera moves in."""
    frames = []
    for name in VIDEOS:
        clip = decode(shared_data / "videos" / name, [0, 25, 50], short_side=SIZE + 2 * ROOM)
        frames += [frame.permute(1, 2, 0).numpy() for frame in clip.frames]
    return frames


def trial(rng: np.random.Generator, frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Two frames [2, 3, H, W] of one picture, a third of which moves otherwise, and their truth."""
    truth = random_homography(rng)
    k, other = rng.permutation(len(frames))[:2]
    big, thing = frames[k], frames[other]
    left = rng.integers(ROOM, big.shape[1] - SIZE - ROOM + 1)
    view = np.array([[1, 0, left], [0, 1, ROOM], [0, 0, 1.0]])
    both = []
    for h in (np.eye(3), truth):
        shown = np.linalg.inv(view @ np.linalg.inv(h))  # of the picture, as the camera sees it
        both.append(cv2.warpPerspective(big, shown, (SIZE, SIZE), flags=cv2.INTER_CUBIC,
                                        borderMode=cv2.BORDER_REFLECT_101))  # fmt: skip
    third, start = SIZE // 3, rng.integers(0, SIZE - SIZE // 3 + 1)
    middle = np.array([[[start + third / 2, SIZE / 2]]])
    angle = rng.uniform(0, 2 * np.pi)
    own = rng.uniform(4, 8) * np.array([np.cos(angle), np.sin(angle)])
    dx, dy = np.rint(cv2.perspectiveTransform(middle, truth)[0, 0] - middle[0, 0] + own).astype(int)
    x, y = np.arange(third) + ROOM, np.arange(SIZE) + ROOM
    both[0][:, start : start + third] = thing[y][:, x]
    both[1][:, start : start + third] = thing[np.clip(y - dy, 0, None)][:, np.clip(x - dx, 0, None)]
    clip = np.stack(both).transpose(0, 3, 1, 2)
    if rng.random() < 0.5:  # a third lying across
        across = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]])
        clip, truth = clip.transpose(0, 1, 3, 2), across @ truth @ across
    return clip.copy(), truth


@pytest.mark.slow
def test_known_homographies_of_real_frames(shared_data: Path) -> None:
    """Corner errors of 200: under .25 px in the median, and under 1 px for at least 198.

    Some have a background out of focus and a thing full of texture, with which most matches agree.
    """
    rng = np.random.default_rng(12)
    frames = real_frames(shared_data)
    errors = []
    for _ in range(TRIALS):
        clip, truth = trial(rng, frames)
        found = camera_motion(clip, optical_flow(clip, bound=None))
        errors.append(apart(found.homographies[0], truth).max() if found.ok[0] else np.inf)
    found = np.array(errors)
    print(f"median {np.median(found):.3f} px, {(found < 1).sum()} of {TRIALS} under 1 px")
    assert np.median(found) < 0.25
    assert (found < 1).sum() >= 198


def shaken(shared_data: Path, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A real picture under a camera that shakes, and a thing that moves 3 px a frame to the right.

    Frames [T, 3, H, W] and the homography of each pair.
    """
    rng = np.random.default_rng(5)
    clip = decode(shared_data / "videos" / "bear_854x480.mp4", [0], short_side=SIZE + 2 * ROOM)
    big = clip.frames[0].permute(1, 2, 0).numpy()
    thing = real_frames(shared_data)[0][60:120, 100:160]
    poses, frames = [], []
    for t in range(count):
        angle, zoom = np.deg2rad(rng.uniform(-1.5, 1.5)), np.exp(rng.uniform(-0.015, 0.015))
        cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
        half, (dx, dy) = (SIZE - 1) / 2, rng.uniform(-5, 5, 2)
        centre = np.array([[1, 0, half], [0, 1, half], [0, 0, 1]])
        turn = np.array([[cos, -sin, dx], [sin, cos, dy], [0, 0, 1]])
        poses.append(centre @ turn @ np.linalg.inv(centre))
        scene = big.copy()
        scene[120:180, 120 + 3 * t : 180 + 3 * t] = thing
        view = np.array([[1, 0, ROOM + 40], [0, 1, ROOM], [0, 0, 1.0]])
        shown = np.linalg.inv(view @ np.linalg.inv(poses[-1]))
        frames.append(cv2.warpPerspective(scene, shown, (SIZE, SIZE), flags=cv2.INTER_CUBIC))
    cameras = [b @ np.linalg.inv(a) for a, b in itertools.pairwise(poses)]
    return np.stack(frames).transpose(0, 3, 1, 2).copy(), cameras


def test_a_shaken_clip_stands_still_but_for_what_moves(shared_data: Path) -> None:
    frames, cameras = shaken(shared_data, 6)
    before = optical_flow(frames, bound=None)
    flow, motion = flow_and_camera(frames, bound=None)
    assert motion.ok.all()
    for k, truth in enumerate(cameras):
        assert apart(motion.homographies[k], truth).max() < 0.5
    # The thing's place in the scene, with room around it for how the camera stands.
    background = np.full((SIZE, SIZE), True)
    background[:16] = background[-16:] = background[:, :16] = background[:, -16:] = False
    background[70:170, 30:145] = False
    size = np.linalg.norm(flow, axis=1)
    assert np.median(np.linalg.norm(before, axis=1)[:, background]) > 2
    assert np.median(size[:, background]) < 0.15
    inside = flow[:, :, 105:130, 70:95]  # of the thing in every frame
    assert np.abs(np.median(inside[:, 0], axis=(1, 2)) - 3).max() < 0.3
    assert np.abs(np.median(inside[:, 1], axis=(1, 2))).max() < 0.3


@pytest.mark.parametrize(
    ("detector", "surf", "threshold", "seeds"),
    [
        ("sift", None, 1.0, 5),
        ("surf", SurfConfig(upright=False), 1.0, 4),
        ("surf", SurfConfig(upright=False), 2.0, 5),
        ("surf", SurfConfig(upright=False, extended=False), 2.0, 5),
    ],
)
def test_graffiti_with_the_window_open(
    shared_data: Path, detector: str, surf: SurfConfig | None, threshold: float, seeds: int
) -> None:
    """Within 3 px at the corners at so many of 5 seeds: a wall seen from another side, 100 px away.

    One in three of SURF's matches is right to 2 px there, one in five to 1 px.
    """
    folder = shared_data / "homography"
    images = [cv2.imread(str(folder / f"graf{i}.png"))[..., ::-1] for i in (1, 3)]
    clip = np.stack([image.transpose(2, 0, 1) for image in images])
    file = cv2.FileStorage(str(folder / "H1to3p.xml"), cv2.FILE_STORAGE_READ)
    truth = file.getNode("H13").mat()
    height, width = clip.shape[-2:]
    at = np.array([[[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]]], float)
    without = np.full((1, 2, height, width), np.nan, np.float32)
    errors = []
    for seed in range(5):
        found = camera_motion(
            clip, without, window=None, seed=seed, detector=detector, surf=surf, threshold=threshold
        )
        ends = [cv2.perspectiveTransform(at, h)[0] for h in (found.homographies[0], truth)]
        errors.append(np.linalg.norm(ends[0] - ends[1], axis=1).max())
    print(f"{detector}, {threshold} px: {np.round(errors, 2)}")
    assert (np.array(errors) < 3).sum() >= seeds, errors
