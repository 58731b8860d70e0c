"""Trajectories: every floor against the reference; what must not change the result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import assert_close
from floors import (
    ALL,
    FAST,
    PROPERTY,
    assert_same,
    assert_tracks_agree,
    grid_flow,
    run,
    running,
    smooth_flow,
    threads,
)
from hypothesis import given
from hypothesis import strategies as st

from mme_targets import Trajectories, trajectories
from mme_targets.ops.trajectories import tracks


def track(flow, floor: str, **options) -> Trajectories:
    return run(trajectories, flow, floor=floor, **options)


# --- every floor against the reference -----------------------------------------------------------

VARIANTS = [
    # batch, pairs, height, width, length, grid
    (2, 6, 40, 56, 6, 8),
    (1, 5, 7, 5, 5, 1),
    (3, 2, 1, 9, 1, 1),
    (1, 1, 2, 2, 1, 1),
    (2, 33, 11, 30, 32, 4),
    (0, 4, 16, 16, 2, 8),
]


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("median", [1, 3])
def test_nearest_is_exact(floor: str, variant, dtype, median: int, rng) -> None:
    """Flow and seeds of whole 1/64 px: float32 positions are exact, so nothing may differ."""
    batch, pairs, height, width, length, grid = variant
    flow = grid_flow(rng, batch, pairs, 2, height, width).to(dtype)
    options = {"length": length, "grid": grid, "median": median}
    assert_same(track(flow, floor, **options), track(flow, "reference", **options))


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("variant", VARIANTS[:5])
@pytest.mark.parametrize("median", [1, 3])
def test_bilinear_agrees(floor: str, variant, median: int, rng) -> None:
    batch, pairs, height, width, length, grid = variant
    # A gradient of g px/px makes an error grow by 1 + g a step: less of it for longer tracks.
    flow = smooth_flow(rng, batch, pairs, 2, height, width, reach=min(1.5, 6 / length))
    options = {"length": length, "grid": grid, "median": median, "sampling": "bilinear"}
    reference = track(flow, "reference", **options)
    assert_tracks_agree(track(flow, floor, **options), reference, height, width, flips=0)


@pytest.mark.parametrize("floor", FAST)
def test_arbitrary_flow_agrees_in_two_bands(floor: str, rng) -> None:
    flow = torch.from_numpy((8 * rng.normal(size=(2, 12, 2, 96, 128))).astype(np.float32))
    options = {"length": 6, "grid": 2}
    reference = track(flow, "reference", **options)
    assert_tracks_agree(track(flow, floor, **options), reference, 96, 128)


@pytest.mark.parametrize("floor", FAST)
def test_any_order_of_seeds_and_starts(floor: str, rng) -> None:
    """Below the door: seeds of their own for each clip, rows of steps in any order, pairs that do
    not exist (indices on a device cannot be checked): the track stops there and is not visible.
    """
    flow = grid_flow(rng, 3, 4, 2, 21, 34)
    steps = torch.tensor([[0, 1, 2], [3, 3, 0], [1, 4, 2], [-1, 0, 0]], dtype=torch.int32)
    for clips in (1, 3):
        seeds = torch.from_numpy(rng.integers(-64, 64 * 36, (clips, 45, 2)).astype(np.float32) / 64)
        starts = torch.from_numpy(rng.integers(0, 4, (clips, 45), dtype=np.int32))
        results = []
        for name in ("reference", floor):
            with running(name) as backend:
                args = (flow, seeds, starts, steps, 20.0, 3, "nearest", backend)
                results.append(Trajectories(*tracks(*args)))
        assert_same(results[1], results[0])
        for clip in range(3):
            broken = starts[clip % clips] >= 2
            assert not results[1].visible[clip][broken].any()
            assert (results[1].displacements[clip][starts[clip % clips] == 2][:, 1:] == 0).all()


@pytest.mark.parametrize("floor", FAST)
def test_layout_of_the_input_does_not_matter(floor: str, rng) -> None:
    flow = grid_flow(rng, 2, 4, 2, 18, 26)
    expected = track(flow, floor, length=4, grid=4)
    strided = torch.zeros(2, 4, 2, 18, 52)[..., ::2].copy_(flow)
    last = flow.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    for view in (strided, last):
        assert not view.is_contiguous()
        assert_same(track(view, floor, length=4, grid=4), expected)
    flipped = np.ascontiguousarray(flow.numpy()[..., ::-1])[..., ::-1]
    got = track(flipped, floor, length=4, grid=4)
    assert_same(Trajectories(*map(torch.from_numpy, got)), expected)
    one = track(flow[1], floor, length=4, grid=4)
    assert_same(Trajectories(*(t[None] for t in one)), Trajectories(*(t[1:] for t in expected)))


@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("median", [1, 3])
def test_instruction_sets_agree_bit_for_bit(sampling: str, median: int, rng) -> None:
    flow = torch.from_numpy((8 * rng.normal(size=(2, 7, 2, 33, 47))).astype(np.float32))
    options = {"length": 7, "grid": 2, "sampling": sampling, "median": median}
    first, *others = (track(flow, floor, **options) for floor in FAST)
    for other in others:
        assert_same(other, first)


# --- what must not change the result -------------------------------------------------------------


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("median", [1, 3])
@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
def test_flow_that_is_not_finite_stops_only_what_reads_it(
    floor: str, value: float, median: int, sampling: str, rng
) -> None:
    """One bad value, in the second component of pair 2 of clip 1, where a track reads it."""
    flow = grid_flow(rng, 2, 5, 2, 24, 32, reach=4)
    options = {"length": 5, "grid": 2, "median": median, "sampling": sampling}
    clean = track(flow, floor, **options)
    zero, limit = torch.tensor([0, 0]), torch.tensor([31, 23])
    target = (clean.points[1, 0, 6, 8, 2] + 0.5).floor().long().clamp(zero, limit)
    column, row = target.tolist()
    bad = flow.clone()
    bad[1, 2, 1, row, column] = value
    got = track(bad, floor, **options)

    low = (clean.points + 0.5).floor() if sampling == "nearest" else clean.points.floor()
    high = low if sampling == "nearest" else low + 1
    reach = median // 2
    low, high = (p.clamp(zero, limit) for p in (low, high))
    touches = ((low - reach <= target) & (target <= high + reach)).all(-1)
    touched = touches[..., 2] & torch.tensor([False, True]).view(2, 1, 1, 1)
    assert 0 < touched.sum() < touched.numel() / 8

    assert not got.visible[touched].any()
    assert (got.displacements[touched][:, 2:] == 0).all()
    assert torch.equal(got.displacements[touched][:, :2], clean.displacements[touched][:, :2])
    assert (got.points[touched][:, 3:] == got.points[touched][:, 2:3]).all()
    keep = Trajectories(*(t[~touched] for t in got))
    assert_same(keep, Trajectories(*(t[~touched] for t in clean)))


@pytest.mark.parametrize("floor", FAST)
def test_batch_threads_and_repetition_do_not_matter(floor: str, rng) -> None:
    flow = torch.from_numpy((5 * rng.normal(size=(5, 6, 2, 40, 40))).astype(np.float32))
    options = {"length": 3, "grid": 2}
    with threads(1):
        expected = track(flow, floor, **options)
        single = [track(clip[None], floor, **options) for clip in flow]
    assert_same(Trajectories(*map(torch.cat, zip(*single, strict=True))), expected)
    for count in (2, 5):
        with threads(count):
            for _ in range(3):
                assert_same(track(flow, floor, **options), expected)


@PROPERTY
@given(
    st.integers(0, 2**32 - 1),
    st.integers(-7, 7),
    st.integers(-7, 7),
    st.sampled_from(["nearest", "bilinear"]),
    st.sampled_from(ALL),
)
def test_translating_the_clip_translates_the_points(
    seed: int, dx: int, dy: int, sampling: str, floor: str
) -> None:
    """A patch of motion in a still surround, moved by whole pixels together with the seeds."""
    rng = np.random.default_rng(seed)
    inner = grid_flow(rng, 3, 2, 12, 15, reach=4, step=4)
    seeds = torch.from_numpy(rng.integers(22 * 4, 36 * 4, (2, 5, 2)).astype(np.float32) / 4)
    place = []
    for x, y in ((0, 0), (dx, dy)):
        flow = torch.zeros(3, 2, 56, 60)
        flow[..., 20 + y : 32 + y, 20 + x : 35 + x] = inner
        shift = torch.tensor([x, y], dtype=torch.float32)
        place.append(track(flow, floor, length=3, points=seeds + shift, sampling=sampling))
    shift = torch.tensor([dx, dy], dtype=torch.float32)
    if sampling == "nearest":
        assert torch.equal(place[1].points, place[0].points + shift)
        assert torch.equal(place[1].displacements, place[0].displacements)
    else:
        assert_close(place[1].points, place[0].points + shift, "points")


@PROPERTY
@given(st.data())
def test_shapes_and_permuted_batches(data: st.DataObject) -> None:
    draw = data.draw
    batch, pairs = draw(st.integers(1, 4)), draw(st.integers(0, 7))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    length, floor = draw(st.integers(0, pairs)), draw(st.sampled_from(FAST))
    grid = draw(st.integers(1, max(1, 2 * min(height, width) - 1)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    flow = grid_flow(rng, batch, pairs, 2, height, width)
    order = torch.from_numpy(rng.permutation(batch))
    got = track(flow, floor, length=length, grid=grid)
    starts = pairs // length if length else 1
    rows, columns = (len(np.arange(grid / 2, n, grid)) for n in (height, width))
    assert got.points.shape == (batch, starts, rows, columns, length + 1, 2)
    assert got.displacements.shape == (batch, starts, rows, columns, length, 2)
    assert got.visible.shape == (batch, starts, rows, columns)
    assert_same(
        track(flow[order], floor, length=length, grid=grid),
        Trajectories(*(t[order] for t in got)),
    )
    assert_same(got, track(flow, "reference", length=length, grid=grid))
