"""Homographies by RANSAC, and the choice among them by what of the frames looks alike."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from floors import FAST, running, threads

from mme_targets.backends.batched import camera_motion as batched
from mme_targets.backends.batched import homography
from mme_targets.backends.reference import camera_motion as reference
from mme_targets.config import SurfConfig

CAMERA = np.array([[1.02, 0.01, 3], [-0.02, 1, -2], [1e-4, 0, 1]])
THING = np.array([[1, 0, -6], [0, 1, 4], [0, 0, 1.0]])
SETTINGS = reference.Settings("surf", 25.0, 1.0, 0, SurfConfig())


def test_ransac_finds_the_truth_among_outliers(rng: np.random.Generator) -> None:
    truth = np.array([[1.02, 0.01, 3], [-0.02, 1, -2], [1e-4, 0, 1]])
    source = rng.uniform(0, 200, (400, 2))
    target = cv2.perspectiveTransform(source[None], truth)[0]
    target[:240] += rng.uniform(5, 30, (240, 2)) * rng.choice([-1, 1], (240, 2))
    valid = torch.ones(1, 400, dtype=torch.bool)
    pair = torch.from_numpy(source)[None].float(), torch.from_numpy(target)[None].float()
    for seed in range(5):
        found = homography.candidates(*pair, valid, (200, 200), 1.0, seed)
        assert bool(found.ok[0, 0])
        assert int(found.inliers[0, 0]) >= 160
        assert np.abs(found.homographies[0, 0].numpy() - truth).max() < 1e-3
    few = homography.candidates(*(p[:, :50] for p in (*pair, valid)), (200, 200), 1.0, 0)
    assert not few.ok.any()


def two_motions(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Matches [M, 2] twice: many and exact ones of a thing, fewer and noisy ones of the camera."""
    source = rng.uniform(0, 200, (500, 2))
    source[:350, 0] /= 3
    target = np.concatenate(
        [
            cv2.perspectiveTransform(part[None], h)[0]
            for part, h in ((source[:350], THING), (source[350:], CAMERA))
        ]
    )
    target[350:] += rng.normal(0, 0.3, (150, 2))
    return source, target


def test_both_of_two_motions_are_candidates(rng: np.random.Generator) -> None:
    source, target = two_motions(rng)
    pair = (torch.from_numpy(part)[None].float() for part in (source, target))
    fast = homography.candidates(*pair, torch.ones(1, 500).bool(), (200, 200), 1.0, 0)
    slow = reference.candidates(source, target, (200, 200), SETTINGS)
    at = np.array([[[0, 0], [199, 0], [0, 199], [199, 199]]], float)
    for models in (fast.homographies[0].numpy(), [m.homography for m in slow]):
        ends = [cv2.perspectiveTransform(at, h)[0] for h in (*models, THING, CAMERA)]
        for truth in ends[-2:]:
            assert min(np.abs(end - truth).max() for end in ends[:-2]) < 0.5
    assert fast.ok.all()
    assert all(m.ok for m in slow)
    assert int(fast.inliers.max()) >= 350


def matches_of_all_kinds(rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Matches [P, N, 2] twice and which there are [P, N]: a few good sets, and bad ones."""
    source, target = (part[None].repeat(8, axis=0) for part in two_motions(rng))
    valid = rng.random((8, 500)) < 0.7
    target[1] += rng.normal(0, 0.5, target[1].shape)
    target[2] = rng.uniform(0, 200, target[2].shape)  # nothing agrees
    valid[3, np.flatnonzero(valid[3])[50:]] = False
    valid[4] = False
    source[5] = target[5] = 50
    source[6, :, 1] = target[6, :, 1] = 7
    target[7] = source[7] * [-1, 1] + [199, 0]
    pair = (torch.from_numpy(part).float() for part in (source, target))
    return *pair, torch.from_numpy(valid)


@pytest.mark.parametrize("seed", range(4))
def test_kernels_find_what_the_operations_find(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The same up to rounding, and bit for bit on every instruction set, thread and batch."""
    matches = matches_of_all_kinds(rng)
    found = []
    for floor in FAST:
        for count in (1, 3):
            with running(floor), threads(count):
                found.append(homography.candidates(*matches, (200, 200), 1.0, seed))
    alone = homography.candidates(*(part[1:2] for part in matches), (200, 200), 1.0, seed)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert all(torch.equal(a[1:2], b) for a, b in zip(found[0], alone, strict=True))

    monkeypatch.setattr(homography, "has_kernels", lambda tensor: False)
    expected = homography.candidates(*matches, (200, 200), 1.0, seed)
    alone = homography.candidates(*(part[1:2] for part in matches), (200, 200), 1.0, seed)
    assert all(torch.equal(a[1:2], b) for a, b in zip(expected, alone, strict=True))
    for k in (0, 1, 2, 3, 4, 5, 7):  # on a line many homographies agree
        assert torch.equal(found[0].ok[k], expected.ok[k])
        assert torch.equal(found[0].inliers[k], expected.inliers[k])
        apart = (found[0].homographies[k] - expected.homographies[k]).abs()
        assert float(apart.max()) < 1e-6
    assert expected.ok[:2].all()
    assert not expected.ok[2:6].any()
    assert found[0].homographies.isfinite().all()


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("shape", [(64, 96), (75, 131), (16, 16), (1, 40)])
def test_floors_score_alike(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    kernels: bool,
) -> None:
    if not kernels:
        monkeypatch.setattr(homography, "has_kernels", lambda tensor: False)
    first, second = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    models = [np.eye(3), np.array([[1.03, 0.02, 2.3], [-0.01, 0.98, -1.6], [1e-4, -2e-4, 1]])]
    expected = reference.explained(first, second, models)
    stack = torch.from_numpy(np.stack([models[0], np.full((3, 3), np.nan), models[1]]))[None]
    found = batched.explained(
        *(torch.from_numpy(image)[None].float() for image in (first, second)),
        stack,
        torch.tensor([[True, False, True]]),
    )[0].numpy()
    assert found[1] == -1  # and does not keep the others from being compared
    assert np.abs(found[::2] - expected).max() < 1e-6 * max(expected.max(), 1)


@pytest.mark.parametrize("floor", ["reference", "batched"])
@pytest.mark.parametrize("exposure", [0, 25])
def test_the_wider_background_wins_and_exposure_does_not_matter(
    rng: np.random.Generator, floor: str, exposure: int
) -> None:
    """Of a weakly textured background and a thing full of texture, whichever comes first."""
    size = 120
    noise = [cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), s) for s in (4, 1)]
    background, thing = (128 + k * n / n.std() for k, n in zip((5, 40), noise, strict=True))
    first, second = background.copy(), cv2.warpPerspective(background, CAMERA, (size, size))
    first[:, :40], second[:, :40] = (
        thing[:, :40],
        cv2.warpPerspective(thing, THING, (size,) * 2)[:, :40],
    )
    images = np.stack([first, second + exposure]).clip(0, 255).astype(np.uint8)
    for order in ((CAMERA, THING), (THING, CAMERA)):
        if floor == "reference":
            models = [reference.Estimate(h, 100, True) for h in order]
            chosen = reference.judged(*images, models).homography
        else:
            models = homography.Estimate(
                torch.from_numpy(np.stack(order))[None],
                torch.tensor([[100, 100]]),
                torch.ones(1, 2).bool(),
            )
            greys, pairs = torch.from_numpy(images), torch.tensor([[0, 1]])
            chosen = batched.judged(greys, pairs, models).homographies[0].numpy()
        assert np.array_equal(chosen, CAMERA)
