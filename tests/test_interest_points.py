"""SURF and corners: against mahotas and OpenCV, closed forms, and floors bit for bit."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from floors import FAST, running, threads
from mahotas.features import surf as mahotas_surf

from mme_targets.backends import native
from mme_targets.backends.batched import camera_motion as batched
from mme_targets.backends.batched import homography, interest_points, matches
from mme_targets.backends.reference import camera_motion as slow
from mme_targets.backends.reference import interest_points as reference
from mme_targets.config import SurfConfig

CONFIGS = [
    SurfConfig(),
    SurfConfig(upright=False, extended=False),
    SurfConfig(features=40, octaves=2),
    SurfConfig(threshold=1e5),
]


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth random grey image with structure at several sizes."""
    noise = [
        s * cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), s) for s in (1, 2, 4, 8)
    ]
    total = np.sum(noise, axis=0)
    return np.clip(128 + 45 * total / total.std(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_floors_agree_bit_for_bit(rng: np.random.Generator, config: SurfConfig) -> None:
    images = np.stack([texture(rng, 101, 128) for _ in range(2)])
    expected = [reference.surf(image, config) for image in images]
    for floor in ("torch", *FAST):
        found = points_of(images, config, floor)
        for k, right in enumerate(expected):
            kept = found.valid[k].numpy()
            assert kept.sum() == len(right.points) <= config.features
            for name in reference.Points._fields:
                ours, theirs = getattr(found, name)[k].numpy()[kept], getattr(right, name)
                if (name, floor) == ("directions", "torch"):  # it divides to within an ulp
                    assert np.allclose(ours, theirs, rtol=0, atol=2e-7)
                else:
                    assert np.array_equal(ours, theirs), (name, floor)


def points_of(images: np.ndarray, config: SurfConfig, floor: str) -> interest_points.Points:
    """By torch operations, or by the kernels of an instruction set."""
    if floor == "torch":
        return interest_points.surf(torch.from_numpy(images), config)
    with running(floor):
        return interest_points.Points(*native.surf(torch.from_numpy(images), config))


def test_points_are_those_of_another_library(rng: np.random.Generator) -> None:
    """Of mahotas' strongest, two in three are found within 1.5 px.

    It weighs mixed derivatives otherwise, which moves or drops points beside edges.
    """
    image = texture(rng, 160, 200)
    theirs = mahotas_surf.interest_points(image, 3, 4, 1, 0.1, 60)
    ours = reference.surf(image, SurfConfig(threshold=10, features=4096)).points
    inner = [p for p in theirs[:, :2] if 24 < p[0] < 136 and 24 < p[1] < 176]  # (y, x)
    near = [np.abs(ours - np.array([x, y])).max(axis=1).min() < 1.5 for y, x in inner]
    assert len(near) > 20
    assert np.mean(near) > 2 / 3


def test_a_blob_is_one_point_in_its_middle_of_its_size() -> None:
    y, x = np.mgrid[:90, :110]
    sizes = []
    for sigma in (3.0, 4.0):
        blob = 200 * np.exp(-((x - 50.3) ** 2 + (y - 41.6) ** 2) / (2 * sigma**2))
        found = reference.surf(blob.round().astype(np.uint8), SurfConfig(threshold=100))
        assert np.abs(found.points[0] - [50.3, 41.6]).max() < 0.3
        sizes.append(found.sizes[0])
    assert sizes[1] / sizes[0] == pytest.approx(4 / 3, rel=0.1)


def test_turned_points_have_turned_directions_and_like_descriptors(
    rng: np.random.Generator,
) -> None:
    image = texture(rng, 150, 150)
    turned = np.ascontiguousarray(np.rot90(image, -1))  # clockwise: (x, y) goes to (149 - y, x)
    config = SurfConfig(upright=False)
    one, two = (reference.surf(i, config) for i in (image, turned))
    moved = np.stack([149 - one.points[:, 1], one.points[:, 0]], axis=1)
    far = np.abs(moved[:, None] - two.points).max(axis=2)
    pairs = [(k, far[k].argmin()) for k in range(len(far)) if far[k].min() < 0.01]
    assert len(pairs) > 50
    first, second = np.array(pairs).T
    cos, sin = one.directions[first].T
    same = (np.stack([-sin, cos], axis=1) * two.directions[second]).sum(axis=1)
    assert np.median(same) > 0.99
    likeness = (one.descriptors[first] * two.descriptors[second]).sum(axis=1) / 512**2
    assert np.median(likeness) > 0.9
    upright = [reference.surf(i, SurfConfig()) for i in (image, turned)]
    unlike = (upright[0].descriptors[first] * upright[1].descriptors[second]).sum(axis=1) / 512**2
    assert np.median(likeness) > np.median(unlike) + 0.1


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (8, 9), (9, 9), (31, 33), (60, 200)])
def test_flat_and_tiny_frames(rng: np.random.Generator, size: tuple[int, int]) -> None:
    noise = rng.integers(0, 256, (2, *size), dtype=np.uint8)
    flat = np.full_like(noise, 90)
    for images in (noise, flat):
        expected = [len(reference.surf(image, SurfConfig()).points) for image in images]
        for floor in ("torch", *FAST):
            found = points_of(images, SurfConfig(), floor)
            assert all(part.isfinite().all() for part in found)
            assert found.valid.sum(1).tolist() == expected
    for floor in ("torch", *FAST):
        points, valid = corners_of(flat, floor)
        assert not valid.any()
        assert points.isfinite().all()


def test_points_of_a_large_frame_and_of_frames_unlike_each_other(rng: np.random.Generator) -> None:
    """More maxima than are kept, and frames with other numbers of points beside them."""
    images = np.stack([rng.integers(0, 256, (250, 347), dtype=np.uint8), texture(rng, 250, 347)])
    images = np.concatenate([images, np.zeros_like(images[:1])])
    config = SurfConfig(threshold=50, features=300, upright=False)
    expected = points_of(images, config, "torch")
    assert expected.valid[0].sum() > 200
    for floor in FAST:
        found = points_of(images, config, floor)
        assert found.valid.shape == expected.valid.shape
        for name in ("points", "sizes", "responses", "descriptors", "valid"):
            ours, theirs = (getattr(points, name)[expected.valid] for points in (found, expected))
            assert torch.equal(ours, theirs), (name, floor)


def corners_of(images: np.ndarray, floor: str) -> tuple[torch.Tensor, torch.Tensor]:
    """By torch operations, or by the kernels of an instruction set."""
    frames = torch.from_numpy(images)
    if floor == "torch":
        return matches.corners(frames)
    with running(floor):
        return batched._corners(frames)


@pytest.mark.parametrize("size", [(1, 1), (2, 30), (3, 3), (3, 40), (19, 18), (90, 131)])
def test_corners_are_the_same_on_every_floor(
    rng: np.random.Generator, size: tuple[int, int]
) -> None:
    """Bit for bit: of noise, of a board whose corners are equal, and of a frame without any."""
    noise = rng.integers(0, 256, size, dtype=np.uint8)
    board = (np.add.outer(np.arange(size[0]) // 8, np.arange(size[1]) // 8) % 2 * 200).astype("u1")
    images = np.stack([noise, board, np.zeros_like(noise)])
    expected, there = corners_of(images, "torch")
    for floor in FAST:
        found, valid = corners_of(images, floor)
        assert valid.sum(1).tolist() == there.sum(1).tolist()
        assert torch.equal(found[valid], expected[there])


@pytest.mark.parametrize("floor", ["torch", *FAST])
def test_corners_are_opencvs(rng: np.random.Generator, floor: str) -> None:
    images = np.stack([texture(rng, 90, 130), texture(rng, 90, 130) // 4])
    points, valid = corners_of(images, floor)
    for k, image in enumerate(images):
        expected = cv2.goodFeaturesToTrack(image, 1000, 0.001, 3).reshape(-1, 2)
        ours = {tuple(p) for p in points[k][valid[k]].tolist()}
        theirs = {tuple(p) for p in expected.tolist()}
        assert len(ours & theirs) >= 0.99 * max(len(ours), len(theirs)) > 100


@pytest.mark.parametrize("window", [None, 20.0])
def test_matches_are_the_references(rng: np.random.Generator, window: float | None) -> None:
    described = [rng.integers(0, 256, (n, 32)).astype(np.float32) for n in (130, 90)]
    placed = [rng.uniform(0, 100, (n, 2)).astype(np.float32) for n in (130, 90)]
    sides = [slow.Features(p.astype(np.float64), d) for p, d in zip(placed, described, strict=True)]
    expected = slow.match(*sides, window)
    tables = [
        matches.Points(*(torch.from_numpy(t)[None] for t in (p, d)), torch.ones(1, len(p)).bool())
        for p, d in zip(placed, described, strict=True)
    ]
    source, target, kept = matches.mutual(*tables, window)
    assert np.array_equal(source[kept].numpy(), expected[0].astype(np.float32))
    assert np.array_equal(target[kept].numpy(), expected[1].astype(np.float32))


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("window", [math.inf, 1e300, 1e30])
def test_a_window_wider_than_any_frame_is_none(
    rng: np.random.Generator, floor: str, window: float
) -> None:
    """Where points do not fill a vector, what fills it is in no window."""
    points = rng.uniform(0, 60, (2, 83, 2)).astype(np.float32)
    described = rng.integers(-512, 513, (2, 83, 64)).astype(np.float32)
    table = matches.Points(
        *(torch.from_numpy(p) for p in (points, described)), torch.ones(2, 83) > 0
    )
    pairs = torch.tensor([[0, 1], [1, 0]])
    with running(floor):
        found = batched.mutual(table, pairs, window)
    for one, other in zip(found, batched.mutual(table, pairs, None), strict=True):
        assert torch.equal(one[found[2]], other[found[2]])


@pytest.mark.parametrize("floor", ["torch", *FAST])
@pytest.mark.parametrize(("most", "values"), [(512, 128), (1, 45)])
def test_matches_of_many_pairs_are_the_references(
    rng: np.random.Generator, floor: str, most: int, values: int
) -> None:
    """Also where many are as far from each other, where points are missing, and of none."""
    points = rng.uniform(0, 60, (4, 83, 2)).astype(np.float32)
    described = rng.integers(-most, most + 1, (4, 83, values)).astype(np.float32)
    there = rng.random((4, 83)) < np.array([[0.9], [0.7], [1.0], [0.0]])
    pairs = np.array([[0, 1], [2, 0], [1, 1], [0, 3], [3, 2]])
    table = matches.Points(*(torch.from_numpy(part) for part in (points, described, there)))
    if floor == "torch":
        sides = [matches.Points(*(part[end] for part in table)) for end in pairs.T]
        source, target, kept = matches.mutual(*sides, 20.0)
    else:
        with running(floor):
            source, target, kept = batched.mutual(table, torch.from_numpy(pairs), 20.0)
    assert kept[2].tolist() == there[1].tolist()  # with itself: all that there are
    for k, ends in enumerate(pairs):
        sides = [slow.Features(points[e][there[e]] * 1.0, described[e][there[e]]) for e in ends]
        expected = slow.match(*sides, 20.0)
        assert np.array_equal(source[k][kept[k]].numpy(), expected[0])
        assert np.array_equal(target[k][kept[k]].numpy(), expected[1])


def test_warp_is_the_references(rng: np.random.Generator) -> None:
    first, second = texture(rng, 60, 80), texture(rng, 60, 80)
    for matrix in (
        np.eye(3),
        np.array([[1.03, 0.02, 4.3], [-0.01, 0.98, -6.6], [1e-4, -2e-4, 1]]),
        np.array([[1, 0, 1e9], [0, np.nan, 0], [0, 0, 1]]),
    ):
        expected = slow.warp_second(first, second, matrix)
        planes = [torch.from_numpy(image)[None] for image in (first, second)]
        by_torch = batched._warp_second(*planes, torch.from_numpy(matrix)[None])
        assert np.abs(by_torch[0].numpy() - expected).max() < 1e-3
        for floor in FAST:
            with running(floor):
                for some in (planes, [plane.float() for plane in planes]):
                    found = batched.warp_second(*some, torch.from_numpy(matrix)[None])
                    assert torch.equal(found, by_torch)


@pytest.mark.parametrize("kernels", [False, True])
def test_batch_and_threads_do_not_matter(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kernels: bool
) -> None:
    """Bit for bit, the refined homographies too."""
    monkeypatch.setattr(homography, "has_kernels", lambda frames: kernels)
    images = torch.from_numpy(np.stack([texture(rng, 96, 112) for _ in range(3)]))
    images = torch.cat([images, images.roll((2, -3), (1, 2))])
    pairs = torch.tensor([[0, 3], [1, 4], [2, 5]])
    flow = torch.tensor([-3.0, 2.0]).view(1, 2, 1, 1).expand(3, 2, 96, 112)
    settings = slow.Settings("surf", 25.0, 1.0, 0, SurfConfig(upright=False))
    with threads(1):
        whole = batched.estimate(images, pairs, flow, settings)
    assert whole.ok.all()
    for count in (2, 3):
        with threads(count):
            again = batched.estimate(images, pairs, flow, settings)
            alone = batched.estimate(images[[1, 4]], pairs[:1] * 0 + torch.tensor([[0, 1]]),
                                     flow[:1], settings)  # fmt: skip
        for a, b, c in zip(whole, again, alone, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a[1:2], c)
