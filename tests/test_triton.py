"""The Triton floor against the reference, in Triton's interpreter where there is no GPU.

Flow lies on a grid of 1/64 px unless said otherwise, so that positions are exact in float32 and no
rounded position can differ from the reference's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FLIPS, ROOT, assert_close
from floors import grid_flow, smooth_flow

if not sys.platform.startswith("linux"):
    pytest.skip("Triton exists for Linux alone", allow_module_level=True)

from mme_targets.backends import reference
from mme_targets.backends import triton as floor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HOG = {"bins": 9, "cell": 8, "binning": "hard", "pool": "sum", "padding": "reflect", "l2": False}


def scattered(rng: np.random.Generator, batch: int, count: int, size: tuple[int, int]):
    """Seeds in and around a frame of `size` (width, height), on the grid of 1/64 px."""
    seeds = rng.uniform(-0.15, 1.15, (batch, count, 2)) * size
    return torch.from_numpy(np.round(seeds * 64) / 64).float()


def run(function: str, *tensors: torch.Tensor, **options: Any) -> tuple[Any, Any]:
    """What the floor and what the reference give."""
    actual = getattr(floor, function)(*(t.to(DEVICE) for t in tensors), **options)
    actual = tuple(t.cpu() for t in actual) if isinstance(actual, tuple) else actual.cpu()
    return actual, getattr(reference, function)(*tensors, **options)


def check_tracks(*tensors: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
    """Compare all three results and give the floor's."""
    options = {"bound": 20.0, "median": 3, "sampling": "nearest", **options}
    actual, expected = run("tracks", *tensors, **options)
    assert_close(actual[0], expected[0], "points")
    assert_close(actual[1], expected[1], "displacements")
    assert actual[2].dtype == torch.bool
    torch.testing.assert_close(actual[2], expected[2])
    return actual


def ints(values: Any) -> torch.Tensor:
    """An int32 tensor."""
    return torch.as_tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("height", "width", "median", "dtype"),
    [
        (21, 37, 3, torch.float32),
        (21, 37, 1, torch.float32),
        (21, 37, 3, torch.float16),
        (1, 9, 3, torch.float32),
        (6, 1, 3, torch.float32),
        (2, 2, 1, torch.float16),
    ],
)
def test_nearest_tracks(height, width, median, dtype, rng):
    flow = grid_flow(rng, 2, 5, 2, height, width, reach=4).to(dtype)
    seeds = scattered(rng, 2, 67, (width, height))  # one block of 64 and a bit
    starts = ints(rng.integers(0, 3, (2, 67)))
    steps = ints([[0, 1, 2], [1, 2, 3], [4, 4, 0]])
    check_tracks(flow, seeds, starts, steps, median=median)


@pytest.mark.parametrize("median", [3, 1])
def test_one_bilinear_step_through_rough_flow(median, rng):
    flow = grid_flow(rng, 1, 1, 2, 12, 15, reach=4)
    seeds = torch.from_numpy(rng.uniform(-2, 17, (1, 100, 2))).float()
    check_tracks(flow, seeds, ints([[0] * 100]), ints([[0]]), median=median, sampling="bilinear")


def test_bilinear_tracks_through_smooth_flow(rng):
    flow = smooth_flow(rng, 1, 4, 2, 30, 41)
    seeds = scattered(rng, 1, 64, (41, 30))
    check_tracks(flow, seeds, ints([[0] * 64]), ints([range(4)]), sampling="bilinear")


@pytest.mark.parametrize("shared", [True, False])
def test_seeds_may_be_shared_by_the_batch(shared, rng):
    flow = grid_flow(rng, 3, 3, 2, 9, 11, reach=4)
    seeds = scattered(rng, 1 if shared else 3, 30, (11, 9))
    starts = ints(rng.integers(0, 2, seeds.shape[:2]))
    check_tracks(flow, seeds, starts, ints([[0, 1], [2, 1]]))


def test_constant_flow_and_the_bound():
    flow = torch.tensor([2.0, -1.0]).reshape(1, 1, 2, 1, 1).expand(1, 4, 2, 10, 12).contiguous()
    seeds = torch.tensor([[[1.0, 9.0], [5.0, 5.0], [4.0, 4.0], [3.0, 5.0], [0.0, 5.0]]])
    points, moves, visible = check_tracks(flow, seeds, ints([[0] * 5]), ints([range(4)]))
    assert (moves == torch.tensor([2.0, -1.0])).all()
    assert torch.equal(points[0, 0, -1], torch.tensor([9.0, 5.0]))
    # (5, 5) ends on x = 13 > W; (4, 4) on y = 0, which is outside; x = 0 is outside as well.
    assert visible.tolist() == [[True, False, False, True, False]]
    moves = check_tracks(flow, seeds, ints([[0] * 5]), ints([range(4)]), bound=1.5)[1]
    assert (moves == torch.tensor([1.5, -1.0])).all()


@pytest.mark.parametrize(
    ("bad", "sampling"), [(np.nan, "nearest"), (np.inf, "nearest"), (-np.inf, "bilinear")]
)
def test_flow_that_is_not_finite_stops_its_tracks_alone(bad, sampling, rng):
    flow = grid_flow(rng, 2, 3, 2, 16, 18, reach=0.5)
    tensors = scattered(rng, 1, 64, (18, 16)), ints([[0] * 64]), ints([[0, 1, 2]])
    if sampling == "bilinear":  # one step, so that flow need not be smooth
        tensors = *tensors[:2], ints([[1]])
    _, before, _ = check_tracks(flow, *tensors, sampling=sampling)
    flow[0, 1, 1, 7, 8] = bad
    _, moves, visible = check_tracks(flow, *tensors, sampling=sampling)
    assert torch.isfinite(moves).all()
    changed = (moves != before).flatten(2).any(-1)
    assert changed[0].any()
    assert not changed[1].any()
    assert not visible[changed].any()


def test_infinite_half_precision_flow_counts_as_not_finite():
    flow = torch.full((1, 1, 2, 4, 4), 1e6).half()
    _, moves, visible = check_tracks(flow, torch.ones(1, 1, 2), ints([[0]]), ints([[0]]))
    assert not visible.any()
    assert (moves == 0).all()


def test_a_pair_or_row_that_does_not_exist_ends_the_track(rng):
    flow = grid_flow(rng, 1, 2, 2, 8, 8, reach=0.5)
    seeds = torch.full((1, 3, 2), 4.0)
    rows = [[0, 1, 0], [0, 2, 1], [-1, 0, 0]]
    _, moves, visible = check_tracks(flow, seeds, ints([[0, 1, 2]]), ints(rows))
    assert visible.tolist() == [[True, False, False]]
    assert (moves[0, 1, 1:] == 0).all()
    wild = floor.tracks(
        *(t.to(DEVICE) for t in (flow, seeds, ints([[3, -1, 2**30]]), ints(rows))),
        bound=20.0,
        median=3,
        sampling="nearest",
    )
    assert not wild[2].any()
    assert (wild[1] == 0).all()


def test_positions_far_outside_read_the_border(rng):
    flow = grid_flow(rng, 1, 1, 2, 5, 6, reach=1)
    seeds = torch.tensor([[[1e30, 2.0], [-1e30, 2.0], [3.0, -float("inf")]]])
    for sampling in ("nearest", "bilinear"):
        moves = floor.tracks(
            *(t.to(DEVICE) for t in (flow, seeds, ints([[0] * 3]), ints([[0]]))),
            bound=20.0,
            median=1,
            sampling=sampling,
        )[1].cpu()
        for move, (y, x) in zip(moves[0, :, 0], [(2, 5), (2, 0), (0, 3)], strict=True):
            assert torch.equal(move, flow[0, 0, :, y, x])


@pytest.mark.parametrize(
    ("batch", "pairs", "count", "length"), [(0, 2, 3, 1), (2, 2, 0, 1), (2, 2, 3, 0), (1, 0, 3, 0)]
)
def test_empty_tracks(batch, pairs, count, length, rng):
    flow = grid_flow(rng, batch, pairs, 2, 6, 7)
    seeds = scattered(rng, 1, count, (7, 6))
    points, moves, visible = check_tracks(
        flow, seeds, ints(np.zeros((1, count))), ints(np.zeros((1, length)))
    )
    assert points.shape == (batch, count, length + 1, 2)
    assert moves.shape == (batch, count, length, 2)
    assert visible.shape == (batch, count)


def test_arbitrary_flow_flips_few_rounded_positions(rng):
    count, length = 600, 3
    flow = torch.from_numpy(rng.normal(0, 2, (1, length, 2, 40, 50))).float()
    seeds = torch.from_numpy(rng.uniform((5, 5), (45, 35), (1, count, 2))).float()
    (points, moves, visible), expected = run(
        "tracks",
        flow,
        seeds,
        ints([[0] * count]),
        ints([range(length)]),
        bound=20.0,
        median=3,
        sampling="nearest",
    )
    apart = ((moves - expected[1]).abs() > 1e-5).any(-1)
    first = apart & (apart.cumsum(-1) == 1)
    assert first.sum() <= FLIPS * count * length
    # A flip is a position within an ulp or so of x.5.
    at = points[:, :, :-1][first]
    assert (((at + 0.5) - (at + 0.5).round()).abs().amin(-1) < 1e-4).all()
    same = ~apart.any(-1)
    assert_close(points[same], expected[0][same], "points")
    assert torch.equal(visible[same], expected[2][same])


def test_a_track_does_not_depend_on_its_neighbours(rng):
    flow = torch.from_numpy(rng.normal(0, 2, (2, 2, 2, 14, 17))).float().to(DEVICE)
    seeds = scattered(rng, 1, 100, (17, 14)).to(DEVICE)
    starts, steps = ints([[0] * 100]).to(DEVICE), ints([[0, 1]]).to(DEVICE)
    options = {"bound": 20.0, "median": 3, "sampling": "bilinear"}
    whole = floor.tracks(flow, seeds, starts, steps, **options)
    part = floor.tracks(flow[1:], seeds[:, 37:], starts[:, 37:], steps, **options)
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[1:, 37:], b)


@pytest.mark.parametrize("shape", [(3, 35, 50), (1, 1, 1), (2, 1, 5), (2, 17, 1)])
def test_median_filter(shape, rng):
    planes = torch.from_numpy(rng.normal(0, 5, shape)).float()
    assert_close(*run("median_filter", planes, size=3), "median")
    assert_close(*run("median_filter", planes, size=1), "median")


def test_median_of_no_planes():
    assert floor.median_filter(torch.empty(0, 4, 5, device=DEVICE), 3).shape == (0, 4, 5)


def test_median_of_windows_with_nan_and_infinity(rng):
    planes = torch.from_numpy(rng.normal(0, 5, (1, 20, 20))).float()
    planes[0, 5, 5], planes[0, 14, 14], planes[0, 14, 16] = float("nan"), np.inf, -np.inf
    actual, expected = run("median_filter", planes, size=3)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert actual.isnan().sum() == 9


def frames(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Random bytes, whose smooth half has small gradients and many ties."""
    values = rng.integers(0, 256, shape)
    values[..., : shape[-1] // 2] = 100 + values[..., : shape[-1] // 2] % 3
    return torch.from_numpy(values.astype(np.uint8))


@pytest.mark.parametrize(
    ("bins", "cell", "padding", "cells_last"),
    [
        (9, 8, "reflect", True),
        (9, 8, "replicate", False),
        (2, 2, "reflect", False),
        (3, 7, "replicate", True),
        (4, 5, "reflect", True),
        (8, 3, "replicate", False),
        (12, 4, "reflect", False),
        (36, 3, "replicate", True),
        (35, 2, "reflect", True),
    ],
)
def test_hard_bins_of_bytes_are_exact(bins, cell, padding, cells_last, rng):
    # One vote in the wrong bin moves a sum by 1 or more, far outside the tolerance.
    options = {**HOG, "bins": bins, "cell": cell, "padding": padding, "cells_last": cells_last}
    assert_close(*run("histograms", frames(rng, 2, 3, 19, 23), vectors=False, **options), "hog")


@pytest.mark.parametrize("bytes_", [True, False])
@pytest.mark.parametrize(
    ("bins", "change"), [(9, {}), (36, {}), (4, {"pool": "mean"}), (9, {"l2": True})]
)
def test_linear_binning(bins, change, bytes_, rng):
    images = frames(rng, 2, 3, 14, 13)
    if not bytes_:
        images = images.float() + torch.from_numpy(rng.random(images.shape)).float()
    options = {**HOG, "bins": bins, "cell": 4, "binning": "linear", **change}
    actual, expected = run("histograms", images, vectors=False, cells_last=True, **options)
    assert_close(actual, expected, "hog_l2" if "l2" in change else "hog")


@pytest.mark.parametrize("change", [{"pool": "mean"}, {"l2": True}, {"l2": True, "bins": 12}])
def test_pooling_and_l2_of_hard_bins(change, rng):
    images = frames(rng, 2, 1, 16, 24)
    images[0, 0, :9, :] = 7  # nothing there to normalise
    options = {**HOG, "cell": 4, **change}
    actual, expected = run("histograms", images, vectors=False, cells_last=False, **options)
    assert_close(actual, expected, "hog_l2" if "l2" in change else "hog")
    assert (actual[0, 0, :, 0] == 0).all()


@pytest.mark.parametrize("binning", ["hard", "linear"])
@pytest.mark.parametrize("vectors", [True, False])
def test_histograms_of_flow(vectors, binning, rng):
    flow = torch.from_numpy(rng.normal(0, 5, (3, 2, 17, 20))).float()
    options = {**HOG, "binning": binning, "cell": 4}
    actual, expected = run("histograms", flow, vectors=vectors, cells_last=True, **options)
    assert actual.shape == (3, 4, 5, 1 if vectors else 2, 9)
    assert_close(actual, expected, "hog")


@pytest.mark.parametrize("bins", [2, 4, 6, 12, 36])
def test_vectors_along_axes_and_diagonals_fall_into_the_bin_they_open(bins):
    unit = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]
    flow = torch.zeros(8, 2, 2, 2)
    flow[:, :, 0, 0] = torch.tensor(unit, dtype=torch.float32)
    options = {**HOG, "bins": bins, "cell": 2}
    actual, expected = run("histograms", flow, vectors=True, cells_last=False, **options)
    assert_close(actual, expected, "hog")
    assert actual.squeeze().argmax(1).tolist() == [eighth % 4 * bins // 4 for eighth in range(8)]


@pytest.mark.parametrize("binning", ["hard", "linear"])
def test_values_that_are_not_finite_add_nothing(binning, rng):
    images = torch.from_numpy(rng.normal(100, 30, (2, 2, 12, 12))).float()
    images[0, 0, 2, 3], images[0, 1, 5, 5], images[1, 0, 0, 0] = np.nan, np.inf, -np.inf
    for vectors in (False, True):
        options = {**HOG, "cell": 4, "binning": binning, "vectors": vectors, "cells_last": False}
        actual, expected = run("histograms", images, **options)
        assert_close(actual, expected, "hog")


@pytest.mark.parametrize("shape", [(0, 3, 9, 9), (2, 0, 9, 9), (2, 3, 7, 20)])
def test_maps_without_a_cell(shape):
    images = torch.zeros(shape, dtype=torch.uint8)
    actual, expected = run("histograms", images, vectors=False, cells_last=False, **HOG)
    assert actual.shape == expected.shape


@pytest.mark.parametrize(
    "change",
    [
        {"cell": 6},
        {"cell": 5, "l2": True},
        {"cell": 4, "padding": "replicate", "binning": "linear"},
    ],
)
@pytest.mark.parametrize("start_batch", [1, 2])
def test_windows(start_batch, change, rng):
    images = frames(rng, 2, 4, 2, 14, 19)
    points = scattered(rng, 2, 17, (19, 14))[:, :, None] + grid_flow(rng, 2, 17, 3, 2, reach=4)
    points[0, 0, 0] = torch.tensor([8.5, 6.5])
    starts = ints(rng.integers(0, 2, (start_batch, 17)))
    options = {**HOG, **change}
    actual, expected = run("windows", images, points, starts, ints([[0, 3], [2, 1]]), **options)
    assert_close(actual, expected, "hog_l2" if "l2" in change else "hog")


def test_windows_of_float_frames_and_of_none(rng):
    images = frames(rng, 1, 2, 3, 9, 8).float()
    points = scattered(rng, 1, 5, (8, 9))[:, :, None]
    actual, expected = run("windows", images, points, ints([[0] * 5]), ints([[1]]), **HOG)
    assert_close(actual, expected, "hog")
    none = run("windows", images, points[:, :0], ints([[]]), ints([[1]]), **HOG)
    assert none[0].shape == none[1].shape == (1, 0, 1, 3, 9)


def test_the_window_around_a_cell_is_the_cell(rng):
    images = frames(rng, 1, 1, 3, 8, 12).to(DEVICE)
    options = {**HOG, "cell": 4}
    cells = floor.histograms(images[0], vectors=False, cells_last=True, **options)
    y, x = torch.meshgrid(torch.arange(2, 8, 4.0), torch.arange(2, 12, 4.0), indexing="ij")
    points = torch.stack([x, y], -1).reshape(1, 6, 1, 2).to(DEVICE)
    zero = ints([[0] * 6]).to(DEVICE)
    around = floor.windows(images, points, zero, ints([[0]]).to(DEVICE), **options)
    assert torch.equal(around.reshape(1, 2, 3, 3, 9), cells)


def test_a_frame_that_does_not_exist_gives_zeros(rng):
    options = {**HOG, "cell": 3}
    images = frames(rng, 1, 2, 1, 8, 8).to(DEVICE)
    points = torch.full((1, 4, 1, 2), 4.0, device=DEVICE)
    starts, times = ints([[0, 1, 2, 7]]).to(DEVICE), ints([[0], [2], [-1]]).to(DEVICE)
    found = floor.windows(images, points, starts, times, **options).abs().sum((2, 3, 4))[0] > 0
    assert found.tolist() == [True, False, False, False]


@pytest.mark.parametrize("mode", ["patch", "coordinate"])
@pytest.mark.parametrize(
    "shape",
    [(70, 4, 12), (3, 16, 27), (5, 2, 1), (1, 4, 162), (2, 64, 32), (2, 16, 300), (0, 4, 12)],
)
def test_patch_norm(shape, mode, rng):
    values = torch.from_numpy(rng.normal(3, 5, shape)).float()
    actual, expected = run("patch_norm", values, mode=mode, eps=1e-6)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, "patch_norm")


@pytest.mark.parametrize("mode", ["patch", "coordinate"])
@pytest.mark.parametrize("width", [12, 700])  # in one tile, and in two
def test_patches_that_do_not_move_give_zeros(width, mode):
    for value in (0.0, 251.37, -1e4):
        values = torch.full((2, 4, width), value)
        actual, expected = run("patch_norm", values, mode=mode, eps=1e-6)
        assert (actual[0] == 0).all()
        assert_close(actual[2], expected[2], "patch_norm")


@pytest.mark.parametrize("mode", ["patch", "coordinate"])
@pytest.mark.parametrize("width", [12, 700])
def test_a_large_offset_costs_no_accuracy(width, mode, rng):
    values = torch.from_numpy(rng.normal(1000, 0.1, (3, 4, width))).float()
    actual, expected = run("patch_norm", values, mode=mode, eps=1e-6)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, "patch_norm")


def test_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """In a process of its own, since the interpreter cannot be left once kernels are defined."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("triton_ahead_of_time.py")
    done = subprocess.run(
        [sys.executable, script],
        env=environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    print(done.stdout)
    names = ("tracks", "median", "histograms", "windows", "patch", "coordinate")
    names += ("linearise", "iterate")
    assert {(k["kernel"], k["arch"]) for k in kernels} == {
        (f"{name}_kernel", arch) for name in names for arch in (80, 90, 100)
    }
    for kernel in kernels:
        assert kernel["fused"] == kernel["approximate"] == 0, kernel
        assert kernel["spills"] in (0, None), kernel
