"""HOG, HOF, MBH: known images, OpenCV, scikit-image and plain torch; bins decided exactly."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import skimage.feature
import torch
import torch.nn.functional as F
from conftest import assert_close
from floors import ALL, FAST, image, pixels, run, tolerance

from mme_targets import hof, hog, mbh


def from_votes(phase, size, bins: int, cell: int, binning: str) -> torch.Tensor:
    """Sum of magnitudes [..., H, W] over cells, by scatter_add: [..., bins, rows, columns]."""
    rows, columns = (n // cell for n in phase.shape[-2:])
    phase, size = (t[..., : rows * cell, : columns * cell] for t in (phase, size))
    lead = phase.shape[:-2]
    planes = torch.zeros(*lead, bins, *phase.shape[-2:], dtype=torch.float64)
    low = phase.floor()
    share = phase - low if binning == "linear" else torch.zeros_like(phase)
    for index, weight in ((low, 1 - share), (low + 1, share)):
        planes.scatter_add_(-3, (index % bins).long().unsqueeze(-3), (size * weight).unsqueeze(-3))
    return F.avg_pool2d(planes.flatten(0, -3)[:, None], cell).view(*lead, bins, rows, columns) * (
        cell * cell
    )


def torch_hog(frames: torch.Tensor, bins=9, cell=8, binning="hard", pad="reflect") -> torch.Tensor:
    """MaskFeat's recipe in double torch operations: pad, conv2d, atan2, scatter_add, pool."""
    x = frames.double().flatten(0, -3)[:, None]
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    weight = torch.stack([kernel, kernel.T])[:, None]
    gx, gy = F.conv2d(F.pad(x, (1, 1, 1, 1), mode=pad), weight).unbind(1)
    phase = torch.atan2(gx, gy).remainder(math.pi) / math.pi * bins
    votes = from_votes(phase, torch.hypot(gx, gy), bins, cell, binning)
    return votes.view(*frames.shape[:-2], *votes.shape[1:])


# --- known images and independent libraries, on the reference and every other floor --------------


@pytest.mark.parametrize("floor", ALL)
def test_ramps(floor: str) -> None:
    """3 grey levels a px: Sobel is 8 · 3 inside. atan2(gx, gy): along x 90°, bin 4; along y 0°."""
    y, x = np.mgrid[:24, :32]
    across = run(hog, image(3.0 * x), floor=floor)[0, 0]
    expected = torch.zeros(9, 3, 4)
    # By reflection the first and last columns see no change across.
    expected[4] = torch.tensor([56.0, 64, 64, 56]) * 24
    assert torch.equal(across, expected)
    down = run(hog, image(3.0 * y), floor=floor)[0, 0]
    expected = torch.zeros(9, 3, 4)
    expected[0] = torch.tensor([56.0, 64, 56])[:, None] * 24
    assert torch.equal(down, expected)
    # The edge is repeated instead: half of the slope there.
    copied = run(hog, image(3.0 * x), floor=floor, padding="replicate")[0, 0, 4, 1]
    assert copied.tolist() == [60 * 24, 64 * 24, 64 * 24, 60 * 24]
    # 45° (bin 2 of 20° each) and 135° (bin 6); a falling ramp is the same as a rising one.
    for frame, bin in ((x + y, 2), (-x - y, 2), (x - y, 6), (y - x, 6)):
        middle = run(hog, image(frame), floor=floor)[0, 0, :, 1, 1]
        assert middle.argmax() == bin
        assert middle.sum() == middle[bin] == pytest.approx(64 * 8 * math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("floor", ALL)
def test_step_edge(floor: str) -> None:
    """A step of 100 between columns 11 and 12: |gx| = 4 · 100 in those two, nothing elsewhere."""
    frame = np.zeros((16, 24), np.uint8)
    frame[:, 12:] = 100
    got = run(hog, torch.from_numpy(frame)[None, None], floor=floor)[0, 0]
    expected = torch.zeros(9, 2, 3)
    expected[4, :, 1] = 2 * 8 * 400
    assert torch.equal(got, expected)
    mean = run(hog, torch.from_numpy(frame)[None, None], floor=floor, pool="mean", l2=False)[0, 0]
    assert torch.equal(mean, expected / 64)
    unit = run(hog, torch.from_numpy(frame)[None, None], floor=floor, l2=True)[0, 0]
    assert torch.equal(unit, (expected > 0).float())  # and an empty cell stays zero


@pytest.mark.parametrize("floor", ALL)
def test_hof_of_constant_flow(floor: str) -> None:
    """(3, -4): length 5, atan2(3, -4) = 143.13°, bin 7; a reversed flow gives the same."""
    for sign in (1, -1):
        flow = torch.tensor([3.0, -4.0]).view(1, 2, 1, 1).expand(1, 2, 16, 27) * sign
        expected = torch.zeros(1, 1, 9, 2, 3)
        expected[:, :, 7] = 64 * 5
        assert torch.equal(run(hof, flow, floor=floor), expected)
        assert torch.equal(run(hof, flow, floor=floor, pool="mean"), expected / 64)
        assert torch.equal(run(hof, flow, floor=floor, l2=True), (expected > 0).float())
        phase = math.atan2(3, -4) / math.pi * 9
        soft = run(hof, flow, floor=floor, binning="linear")[0, 0, :, 1, 1]
        assert soft[7] == pytest.approx(320 * (8 - phase), rel=1e-5)
        assert soft[8] == pytest.approx(320 * (phase - 7), rel=1e-5)
    assert not run(hof, torch.zeros(1, 2, 16, 16), floor=floor).any()


@pytest.mark.parametrize("floor", ALL)
def test_directions_next_to_the_axes(floor: str) -> None:
    """At x = ±0 it is bin 0 whichever way y points; the least x against y's sign is 180°, bin 8."""
    tiny = 1e-20
    for x, y, bin in (
        (0.0, 2, 0), (-0.0, 2, 0), (0.0, -2, 0), (-0.0, -2, 0),
        (tiny, 2, 0), (-tiny, -2, 0), (-tiny, 2, 8), (tiny, -2, 8),
        (2, 0.0, 4), (2, -0.0, 4), (-2, 0.0, 4), (-2, tiny, 4),
    ):  # fmt: skip
        flow = torch.tensor([x, y], dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, 8, 8)
        expected = torch.zeros(9)
        expected[bin] = 128
        assert torch.equal(run(hof, flow, floor=floor)[0, 0, :, 0, 0], expected), (x, y)


@pytest.mark.parametrize("floor", ALL)
def test_mbh_sees_boundaries_only(floor: str) -> None:
    flow = torch.tensor([3.0, -4.0]).view(1, 2, 1, 1).expand(1, 2, 16, 24).clone()
    assert not run(mbh, flow, floor=floor).any()
    flow[:, 1, 8:] = 1  # a step of 5 in v between rows 7 and 8: gy = 20 there, bin 0
    expected = torch.zeros(1, 2, 9, 2, 3)
    expected[0, 1, 0] = 8 * 20
    assert torch.equal(run(mbh, flow, floor=floor), expected)


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_against_opencv(floor: str, padding: str, rng) -> None:
    frame = pixels(rng, 27, 43)
    border = {"reflect": cv2.BORDER_REFLECT_101, "replicate": cv2.BORDER_REPLICATE}[padding]
    gx, gy = (cv2.Sobel(frame.numpy(), cv2.CV_64F, *o, borderType=border) for o in ((1, 0), (0, 1)))
    bins = np.floor(np.arctan2(gx, gy) % np.pi / np.pi * 9).astype(int) % 9
    got = run(hog, frame[None, None], floor=floor, padding=padding)[0, 0]
    for row in range(3):
        for column in range(5):
            cell = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            expected = np.bincount(bins[cell].ravel(), np.hypot(gx, gy)[cell].ravel(), 9)
            assert_close(got[:, row, column], torch.from_numpy(expected), "hog")


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("bins", [9, 4, 18])
@pytest.mark.parametrize("binning", ["hard", "linear"])
@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_against_torch(floor: str, bins: int, binning: str, padding: str, rng) -> None:
    frames = pixels(rng, 2, 2, 3, 24, 33)
    got = run(hog, frames, floor=floor, bins=bins, binning=binning, padding=padding)
    assert got.shape == (2, 2, 3, bins, 3, 4)
    assert_close(got, torch_hog(frames, bins, 8, binning, padding), tolerance({"binning": binning}))


@pytest.mark.parametrize("floor", ALL)
def test_against_scikit_image(floor: str, rng) -> None:
    """scikit-image differs in three ways, and each is undone here.

    It takes central differences, which Sobel exceeds by a factor of 4 where an image is a sum of a
    function of x and one of y, and L2 removes that; it measures the angle from the other axis, so
    it gets the transposed image; it leaves the border's gradients out, so inner cells are compared.
    """
    x, y = rng.integers(0, 128, 48), rng.integers(0, 128, 40)
    frame = (x + y[:, None]).astype(np.uint8)
    theirs = skimage.feature.hog(
        frame.T,
        orientations=9,
        pixels_per_cell=(8, 8),
        cells_per_block=(1, 1),
        block_norm="L2",
        feature_vector=False,
    )[:, :, 0, 0]
    ours = run(hog, torch.from_numpy(frame)[None, None], floor=floor, l2=True)[0, 0]
    expected = torch.from_numpy(theirs.transpose(2, 1, 0).copy())
    torch.testing.assert_close(
        ours[:, 1:-1, 1:-1].double(), expected[:, 1:-1, 1:-1], atol=1e-5, rtol=1e-5
    )


# --- exact bins ----------------------------------------------------------------------------------


def exact_bin(gx: np.ndarray, gy: np.ndarray, bins: int = 9) -> np.ndarray:
    """By atan2 in double, with the margin that shows it to be exact."""
    phase = np.arctan2(gx, gy) % np.pi / np.pi * bins
    edge = np.abs(phase - np.rint(phase))
    assert ((edge == 0) | (edge > 1e-8)).all()
    return np.floor(phase).astype(np.int64) % bins


def every_gradient() -> tuple[np.ndarray, np.ndarray]:
    """All pairs in [-1020, 1020]², which holds whatever Sobel makes of uint8."""
    span = np.arange(-1020, 1021, dtype=np.float64)
    return np.broadcast_to(span, (2041, 2041)), np.broadcast_to(span[:, None], (2041, 2041))


@pytest.mark.parametrize("bins", [2, 4, 8, 9, 18, 36])
def test_rule_of_products_is_exact(bins: int) -> None:
    """Comparing float32 products decides every uint8 gradient as atan2 in double does."""
    gx, gy = every_gradient()
    expected = exact_bin(gx, gy, bins)
    flip = (gx < 0) | ((gx == 0) & (gy < 0))
    x, y = (np.where(flip, -g, g).astype(np.float32) for g in (gx, gy))
    found = np.zeros(gx.shape, np.int8)
    for k in range(1, bins):
        cosine = 0.0 if 2 * k == bins else np.cos(k * np.pi / bins)
        found += x * np.float32(cosine) >= y * np.float32(np.sin(k * np.pi / bins))
    nothing = (gx == 0) & (gy == 0)
    assert np.array_equal(found[~nothing], expected[~nothing])


def cells_of(bins: np.ndarray, size: np.ndarray, cell: int) -> np.ndarray:
    """Sums of `size` over cells of [H, W] by bin: [9, rows, columns]."""
    rows, columns = (n // cell for n in bins.shape)
    y, x = (np.arange(n * cell) // cell for n in (rows, columns))
    index = (y[:, None] * columns + x) * 9 + bins[: rows * cell, : columns * cell]
    weights = size[: rows * cell, : columns * cell].ravel()
    sums = np.bincount(index.ravel(), weights, rows * columns * 9)
    return sums.reshape(rows, columns, 9).transpose(2, 0, 1)


@pytest.mark.parametrize("floor", FAST)
def test_every_gradient_through_the_kernels(floor: str) -> None:
    """Each as a flow vector; one that took a wrong bin would move a magnitude of 1 or more."""
    gx, gy = every_gradient()
    bins, size = exact_bin(gx, gy), np.hypot(gx, gy)
    flow = torch.from_numpy(np.stack([gx, gy]).astype(np.float32))[None]
    for cell in (8, 13):  # lanes, and pixel by pixel
        got = run(hof, flow, floor=floor, cell=cell)[0, 0]
        assert_close(got, torch.from_numpy(cells_of(bins, size, cell).copy()), "hog")


def test_every_gradient_of_uint8_frames() -> None:
    """Each gradient that a 3 x 3 neighbourhood of uint8 can have, up to its sign.

    gx = 2p + s + t and gy = 2q + s - t, with p, q the differences across the middle and s, t those
    of the diagonals, all of ± 255.
    """
    gx, gy = np.meshgrid(np.arange(1021), np.arange(-1020, 1021))
    keep = ((gx + gy) % 2 == 0) & (gx + np.abs(gy) <= 6 * 255)
    gx, gy = gx[keep], gy[keep]
    # The middle takes what it can, the diagonals the rest.
    p, q = (np.clip(np.trunc(g / 2), -255, 255).astype(int) for g in (gx, gy))
    s, t = (gx - 2 * p + gy - 2 * q) // 2, (gx - 2 * p - gy + 2 * q) // 2
    assert max(np.abs(s).max(), np.abs(t).max()) <= 255
    up = [np.maximum(d, 0).astype(np.uint8) for d in (p, q, s, t)]
    down = [np.maximum(-d, 0).astype(np.uint8) for d in (p, q, s, t)]
    # Rows of the neighbourhood: (-s, -q, t) (-p, 0, p) (-t, q, s).
    nothing = np.zeros_like(up[0])
    block = [down[2], down[1], up[3], down[0], nothing, up[0], down[3], up[1], up[2]]
    side = math.ceil(math.sqrt(len(gx)))
    count = side * side
    tiles = np.stack([np.resize(v, count) for v in block]).reshape(3, 3, side, side)
    frame = np.ascontiguousarray(tiles.transpose(2, 0, 3, 1).reshape(3 * side, 3 * side))

    sx, sy = (cv2.Sobel(frame, cv2.CV_16S, *o, borderType=4) for o in ((1, 0), (0, 1)))
    sx, sy = sx.astype(np.float64), sy.astype(np.float64)
    assert np.array_equal(sx[1::3, 1::3].ravel()[: len(gx)], gx)  # all of them are there
    assert np.array_equal(sy[1::3, 1::3].ravel()[: len(gy)], gy)
    expected = torch.from_numpy(cells_of(exact_bin(sx, sy), np.hypot(sx, sy), 8).copy())
    for floor in FAST:
        got = run(hog, torch.from_numpy(frame)[None, None], floor=floor)[0, 0]
        assert_close(got, expected, "hog")


# --- bad input -----------------------------------------------------------------------------------

FRAMES = torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8)
FLOW = torch.zeros(1, 2, 2, 16, 16)


@pytest.mark.parametrize(
    ("door", "data", "options", "error", "message"),
    [
        (hog, FRAMES[0, 0], {}, ValueError, r"frames has shape \[3, 16, 16\], 3-D; must be \[B, T"),
        (hog, FRAMES.int(), {}, TypeError, "frames has dtype int32; must be uint8 or float32"),
        (hog, FRAMES, {"bins": 1}, ValueError, "bins is 1; must be at least 2 and at most 36"),
        (hog, FRAMES, {"bins": 37}, ValueError, "bins is 37; must be at least 2 and at most 36"),
        (hog, FRAMES, {"bins": 9.5}, TypeError, "bins is 9.5; must be a whole number"),
        (hog, FRAMES, {"cell": 1}, ValueError, "cell is 1; must be at least 2"),
        (hog, FRAMES, {"cell": 17}, ValueError, "frames is 16x16 px, which holds no cell of 17"),
        (hog, FRAMES, {"binning": "soft"}, ValueError, "binning is 'soft'; must be one of 'hard'"),
        (hog, FRAMES, {"pool": "max"}, ValueError, "pool is 'max'; must be one of 'sum', 'mean'"),
        (
            hog,
            FRAMES,
            {"padding": "zero"},
            ValueError,
            "padding is 'zero'; must be one of 'reflect'",
        ),
        (hog, FRAMES, {"backend": "gpu"}, ValueError, "backend is 'gpu'; must be one of 'auto'"),
        (hof, FRAMES, {}, TypeError, "flow has dtype uint8; must be float32"),
        (hof, FRAMES.float(), {}, ValueError, r"flow has shape .*; must have 2 components"),
        (mbh, FLOW[0, 0], {}, ValueError, r"flow has shape \[2, 16, 16\], 3-D"),
        (mbh, FLOW, {"cell": 20}, ValueError, "flow is 16x16 px, which holds no cell of 20"),
    ],
)
def test_bad_input_is_named(door, data, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        door(data, **options)
