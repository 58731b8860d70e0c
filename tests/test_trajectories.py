"""Trajectories: closed forms and SciPy for the reference, every floor against the reference."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from conftest import assert_close
from floors import (
    ALL,
    FAST,
    PROPERTY,
    assert_same,
    assert_tracks_agree,
    grid_flow,
    running,
    smooth_flow,
    threads,
)
from hypothesis import given
from hypothesis import strategies as st

from mme_targets import Trajectories, median_filter, trajectories
from mme_targets.ops.trajectories import tracks


def track(flow, floor: str, **options) -> Trajectories:
    with running(floor) as backend:
        return trajectories(flow, backend=backend, **options)


def uniform(value: tuple[float, float], pairs: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32).view(1, 2, 1, 1).expand(pairs, 2, height, width)


# --- closed forms, on the reference and on every other floor -----------------------------------


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("median", [1, 3])
def test_constant_flow(floor: str, sampling: str, median: int) -> None:
    """(2, -1) for six steps on 40 x 56: by hand, 12 px to the right and 6 up."""
    got = track(uniform((2, -1), 6, 40, 56), floor, sampling=sampling, median=median)
    assert got.points.shape == (1, 5, 7, 7, 2)
    assert (got.displacements == torch.tensor([2.0, -1.0])).all()
    for i in range(5):
        for j in range(7):
            for step in range(7):
                place = [4 + 8 * j + 2 * step, 4 + 8 * i - step]
                assert got.points[0, i, j, step].tolist() == place
    # Seeds 4, 12, 20, 28, 36 end at most at 48; 44 ends on 56 = W, and 52 beyond: not inside.
    # Row 4 ends at -2; row 12 at 6.
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[1:, :5] = True
    assert torch.equal(got.visible[0], expected)


@pytest.mark.parametrize("floor", ALL)
def test_the_border_itself_is_outside(floor: str) -> None:
    """0 < x < W and 0 < y < H, at every point of the track and not only at its ends."""
    out_and_back = torch.cat([uniform((-3, 0), 1, 10, 10), uniform((3, 0), 1, 10, 10)])
    seeds = torch.tensor([[[3.0, 5], [3.03125, 5], [0, 5], [9.96875, 5], [10, 5], [5, 0], [5, 10]]])
    got = track(out_and_back, floor, length=2, points=seeds)
    assert got.visible[0, 0].tolist() == [False, True, False, True, False, False, False]
    still = track(out_and_back, floor, length=0, points=seeds)
    assert still.visible[0, 0].tolist() == [True, True, False, True, False, False, False]


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("median", [1, 3])
def test_shear(floor: str, median: int) -> None:
    """u = y/16 moves a point at (x, y) by y/16 a step; a median leaves a plane as it is."""
    y = torch.arange(48.0)[:, None].expand(48, 64)
    flow = torch.stack([y / 16, torch.zeros(48, 64)]).expand(8, 2, 48, 64)
    seeds = torch.tensor([[[3.3, 7.7], [20.25, 30.5], [10, 44.9]]])
    got = track(flow, floor, length=8, points=seeds, sampling="bilinear", median=median)
    step = torch.arange(9.0)[:, None]
    expected = seeds[0][:, None] + torch.stack(
        [step * seeds[0, :, 1] / 16, torch.zeros(9, 3)], -1
    ).transpose(0, 1)
    assert_close(got.points[0, 0], expected, "points")


@pytest.mark.parametrize("floor", ALL)
def test_rotation(floor: str) -> None:
    """p' - c = (I + wJ)(p - c) for the flow w J (p - c): a power of a 2 x 2 matrix."""
    spin, centre, length = 0.1, np.array([30.0, 25.0]), 12
    y, x = np.mgrid[:50, :60]
    flow = np.stack([-spin * (y - centre[1]), spin * (x - centre[0])]).astype(np.float32)
    flow = np.broadcast_to(flow, (length, 2, 50, 60))
    seeds = np.array([[[32.5, 25], [30, 30.25], [24.1, 28.7], [30, 25]]], np.float32)
    got = track(flow, floor, length=length, points=seeds, sampling="bilinear", median=1)
    turn = np.array([[1, -spin], [spin, 1]])
    for step in range(length + 1):
        power = np.linalg.matrix_power(turn, step)
        expected = centre + (seeds[0].astype(float) - centre) @ power.T
        assert_close(
            torch.from_numpy(got.points[0, 0, :, step].copy()), torch.from_numpy(expected), "points"
        )
    assert got.visible.all()


@pytest.mark.parametrize("floor", ALL)
def test_halves_round_up(floor: str) -> None:
    """Right of column 20 everything goes down: 19.5 reads column 20, 19.49 still 19."""
    flow = torch.zeros(4, 2, 24, 40)
    flow[:, 0, :, :20] = 1
    flow[:, 1, :, 20:] = 2
    seeds = torch.tensor([[[17.5, 10], [17.484375, 10], [18, 10]]])
    for median in (1, 3):  # a straight edge is its own median
        got = track(flow, floor, length=4, points=seeds, median=median)
        assert got.points[0, 0, :, -1].tolist() == [[19.5, 14], [20.484375, 12], [20, 14]]
    rows = torch.zeros(1, 2, 9, 9)
    rows[0, 0, 4] = 1
    seeds = torch.tensor([[[2, 3.484375], [2, 3.5], [2, 4.484375], [2, 4.5]]])
    moved = track(rows, floor, length=1, points=seeds, median=1).displacements[0, 0, :, 0, 0]
    assert moved.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("floor", ALL)
def test_outside_is_clamped_for_reading_only(floor: str) -> None:
    ramp = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(8.0), indexing="xy"))
    flow = ramp.flip(1).contiguous()[None]  # u = column, v = 7 - row
    seeds = torch.tensor([[[-5.25, 3], [40, 3], [4, -9], [4, 30.5], [-0.5, 3], [11.75, -1e7]]])
    expected = [[0, 4], [11, 4], [4, 7], [4, 0], [0, 4], [11, 7]]
    for sampling in ("nearest", "bilinear"):
        got = track(flow, floor, length=1, points=seeds, median=1, sampling=sampling)
        assert got.displacements[0, 0, :, 0].tolist() == expected
        assert torch.equal(got.points[0, 0, :, 0], seeds[0])
        assert not got.visible.any()


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (2, 3), (3, 2), (9, 8), (17, 41)])
def test_median_is_scipys_and_opencvs(floor: str, shape: tuple[int, int], rng) -> None:
    planes = rng.normal(size=(5, *shape)).astype(np.float32)
    planes[1] = rng.integers(-2, 3, shape)  # many equal values
    with running(floor) as backend:
        got = median_filter(planes, backend=backend)
    expected = scipy.ndimage.median_filter(planes, size=(1, 3, 3), mode="nearest")
    np.testing.assert_array_equal(got, expected)
    if min(shape) > 2:
        for plane, filtered in zip(planes, got, strict=True):
            np.testing.assert_array_equal(filtered, cv2.medianBlur(plane, 3))
    assert median_filter(planes[None, None], size=1, backend=backend).tolist() == [[planes.tolist()]]


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
def test_against_scipy(floor: str, sampling: str, rng) -> None:
    """The whole definition with SciPy's median and interpolation, one pair after another."""
    flow = smooth_flow(rng, 5, 2, 37, 52, reach=9.0)
    flow[:, :, 5:9, 10:14] *= 7  # beyond the bound
    got = track(flow, floor, length=5, grid=3, bound=20.0, sampling=sampling)
    x = np.arange(1.5, 52, 3)
    y = np.arange(1.5, 37, 3)
    place = np.stack(np.meshgrid(x, y), -1)
    inside = np.ones(place.shape[:2], bool)
    for step in range(5):
        inside &= ((place > 0) & (place < [52, 37])).all(-1)
        calm = scipy.ndimage.median_filter(flow[step].numpy(), size=(1, 3, 3), mode="nearest")
        calm = np.clip(calm, -20, 20).astype(np.float64)
        at = place[..., ::-1]
        if sampling == "nearest":
            at = np.floor(at + 0.5)
        at = np.moveaxis(at, -1, 0)
        move = [scipy.ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in calm]
        place = place + np.stack(move, -1)
    inside &= ((place > 0) & (place < [52, 37])).all(-1)
    same = (got.points[0, ..., -1, :].double() - torch.from_numpy(place)).abs().amax(-1) < 2e-4
    assert same.double().mean() > 0.999  # none flips here, save by the accident of rounding
    assert torch.equal(got.visible[0][same], torch.from_numpy(inside)[same])


@pytest.mark.parametrize("floor", ALL)
def test_clipped_at_the_bound(floor: str) -> None:
    flow = uniform((50.0, -33.25), 1, 9, 9)
    assert track(flow, floor, length=1, grid=3).displacements.unique().tolist() == [-20, 20]
    assert track(flow, floor, length=1, grid=3, bound=40).displacements[0, 0, 0, 0].tolist() == [
        40,
        -33.25,
    ]


@pytest.mark.parametrize("floor", ALL)
def test_steps_choose_the_pairs(floor: str) -> None:
    """Pair p moves by p + 1: default starts, overlapping rows, repeats, any order."""
    flow = torch.stack([torch.full((2, 20, 20), p + 1.0) for p in range(7)])
    default = track(flow, floor, length=3, grid=9)
    assert default.displacements[:, 0, 0, :, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    rows = [[0, 1, 2], [1, 2, 3], [6, 6, 0]]
    for steps in (rows, np.array(rows), torch.tensor(rows), torch.tensor(rows, dtype=torch.uint8)):
        got = track(flow, floor, steps=steps, grid=9)
        assert got.points.shape == (3, 2, 2, 4, 2)
        assert (got.displacements[:, :, :, :, 0] == (torch.tensor(rows) + 1.0)[:, None, None]).all()


@pytest.mark.parametrize("floor", ALL)
def test_length_0_and_32(floor: str) -> None:
    for flow in (torch.zeros(5, 2, 9, 9), torch.zeros(0, 2, 9, 9)):
        got = track(flow, floor, length=0, grid=3)
        assert got.points.shape == (1, 3, 3, 1, 2)
        assert got.displacements.shape == (1, 3, 3, 0, 2)
        assert got.points[0, :, :, 0, 0].tolist() == [[1.5, 4.5, 7.5]] * 3
        assert got.visible.all()
    long = track(uniform((0.25, 0.5), 32, 40, 40), floor, length=32, grid=16)
    assert long.points[0, 0, 0, -1].tolist() == [16, 24]
    assert long.visible[0].tolist() == [[True, True], [False, False]]  # 24 + 16 = 40 is outside


# --- every floor against the reference ----------------------------------------------------------

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
    not exist (indices on a device cannot be checked): the track stops there and is not visible."""
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


# --- the custom operators ------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
def test_opcheck(sampling: str, rng) -> None:
    flow = grid_flow(rng, 2, 3, 2, 10, 12)
    seeds = torch.rand(1, 5, 2) * 9
    starts, steps = torch.zeros(1, 5, dtype=torch.int32), torch.tensor([[0, 2]], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.mme_targets.tracks.default,
        (flow, seeds, starts, steps, 20.0, 3, sampling, "cpu"),
    )
    torch.library.opcheck(
        torch.ops.mme_targets.median_filter.default, (flow.flatten(0, 2), 3, "cpu")
    )


def test_compiles_into_one_graph(rng) -> None:
    flow = grid_flow(rng, 2, 6, 2, 24, 24)

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        got = trajectories(x * 2, length=3)
        return got.points + 1, got.visible, median_filter(x)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(flow), forward(flow), strict=True):
        assert torch.equal(mine, theirs)


# --- bad input -------------------------------------------------------------------------------------

FLOW = torch.zeros(1, 4, 2, 16, 16)


@pytest.mark.parametrize(
    ("flow", "options", "error", "message"),
    [
        (FLOW[0, 0], {}, ValueError, r"flow has shape \[2, 16, 16\], 3-D; must be \[B, P, 2, H, W\]"),
        (FLOW.transpose(1, 2), {}, ValueError, r"flow has shape \[1, 2, 4, 16, 16\].*2 components"),
        (FLOW[..., :0], {}, ValueError, r"flow has shape .*H, W of 1 or more"),
        (FLOW.double(), {}, TypeError, "flow has dtype float64; must be float32 or float16"),
        (FLOW.tolist(), {}, TypeError, "flow is a builtins.list; must be a torch tensor"),
        (FLOW, {"length": 5}, ValueError, "length is 5, longer than the 4 pairs of flow"),
        (FLOW, {"length": -1}, ValueError, "length is -1; must be at least 0"),
        (FLOW, {"length": 33}, ValueError, "length is 33; must be at least 0 and at most 32"),
        (FLOW, {"grid": 0}, ValueError, "grid is 0; must be at least 1"),
        (FLOW, {"grid": 32}, ValueError, "grid is 32, which leaves no point inside a frame of 16x16"),
        (FLOW, {"bound": 0.0}, ValueError, "bound is 0.0; must be positive"),
        (FLOW, {"bound": float("nan")}, ValueError, "bound is nan; must be positive"),
        (FLOW, {"median": 5}, ValueError, "median is 5; must be one of 1, 3"),
        (FLOW, {"sampling": "cubic"}, ValueError, "sampling is 'cubic'; must be one of 'nearest'"),
        (FLOW, {"steps": [[0, 4]]}, ValueError, "steps spans 0 to 4; .* pairs of flow, 0 to 3"),
        (FLOW, {"steps": [[-1, 0]]}, ValueError, "steps spans -1 to 0"),
        (FLOW, {"steps": [0, 1]}, ValueError, r"steps has shape \[2\]; must be \[S, L\]"),
        (FLOW, {"steps": np.zeros((1, 33), int)}, ValueError, r"steps has shape \[1, 33\].*L up to 32"),
        (FLOW, {"steps": np.zeros((0, 3), int)}, ValueError, r"steps has shape \[0, 3\].*S of 1"),
        (FLOW, {"steps": [[0.5]]}, TypeError, "steps has dtype float64; must be int32 or int64"),
        (FLOW, {"points": torch.zeros(3, 2)}, ValueError, r"points has shape \[3, 2\]; must be \[Gy"),
        (FLOW, {"points": torch.zeros(1, 1, 3)}, ValueError, r"points has shape \[1, 1, 3\]"),
        (FLOW, {"points": torch.zeros(1, 1, 2).bool()}, TypeError, "points has dtype bool"),
        (
            FLOW,
            {"points": torch.zeros(1, 1, 2, device="meta")},
            ValueError,
            "points is on meta, flow on cpu; they must be together",
        ),
        (FLOW, {"backend": "gpu"}, ValueError, "backend is 'gpu'; must be one of 'auto', 'reference'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(flow, options, error, message: str) -> None:
    options = {"length": 2, **options}
    with pytest.raises(error, match=message):
        trajectories(flow, **options)


@pytest.mark.parametrize(
    ("flow", "options", "error", "message"),
    [
        (FLOW, {"size": 5}, ValueError, "size is 5; must be one of 1, 3"),
        (FLOW.int(), {}, TypeError, "flow has dtype int32; must be float32 or float16"),
        (torch.zeros(5), {}, ValueError, r"flow has shape \[5\]; must be \[..., H, W\]"),
        (torch.zeros(2, 0, 5), {}, ValueError, r"flow has shape \[2, 0, 5\]"),
    ],
)
def test_bad_input_of_the_filter_is_named(flow, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        median_filter(flow, **options)


def test_a_large_frame_with_few_tracks_is_not_filtered_whole(rng) -> None:
    """Only the windows that tracks touch are read: NaN everywhere else changes nothing."""
    flow = torch.full((1, 2, 64, 64), float("nan"))
    flow[..., 9:12, 19:22] = 1
    got = trajectories(flow, length=1, points=torch.tensor([[[20.0, 10.0]]]))
    assert got.visible.all()
    assert got.displacements.tolist() == [[[[[1, 1]]]]]
