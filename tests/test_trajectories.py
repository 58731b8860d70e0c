"""Trajectories: closed forms and SciPy, on the reference and on every other floor."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from conftest import assert_close
from floors import (
    ALL,
    grid_flow,
    run,
    smooth_flow,
)

from mme_targets import Trajectories, median_filter, trajectories


def track(flow, floor: str, **options) -> Trajectories:
    return run(trajectories, flow, floor=floor, **options)


def uniform(value: tuple[float, float], pairs: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32).view(1, 2, 1, 1).expand(pairs, 2, height, width)


# --- closed forms, on the reference and on every other floor -------------------------------------


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
    """Flow u = y/16 moves a point at (x, y) by y/16 a step; a median leaves a plane as it is."""
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
    """The flow w J (p - c) gives p' - c = (I + wJ)(p - c): a power of a 2 x 2 matrix."""
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
    got = run(median_filter, planes, floor=floor)
    expected = scipy.ndimage.median_filter(planes, size=(1, 3, 3), mode="nearest")
    np.testing.assert_array_equal(got, expected)
    if min(shape) > 2:
        for plane, filtered in zip(planes, got, strict=True):
            np.testing.assert_array_equal(filtered, cv2.medianBlur(plane, 3))
    assert median_filter(planes[None, None], size=1).tolist() == [[planes.tolist()]]


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


# --- bad input -----------------------------------------------------------------------------------

FLOW = torch.zeros(1, 4, 2, 16, 16)


@pytest.mark.parametrize(
    ("flow", "options", "error", "message"),
    [
        (FLOW[0, 0], {}, ValueError, r"flow has shape \[2, 16, 16\], 3-D; must be \[B, P, 2, H"),
        (FLOW.transpose(1, 2), {}, ValueError, r"flow has shape \[1, 2, 4, 16, 16\].*2 components"),
        (FLOW[..., :0], {}, ValueError, r"flow has shape .*H, W of 1 or more"),
        (FLOW.double(), {}, TypeError, "flow has dtype float64; must be float32 or float16"),
        (FLOW.tolist(), {}, TypeError, "flow is a builtins.list; must be a torch tensor"),
        (FLOW, {"length": 5}, ValueError, "length is 5, longer than the 4 pairs of flow"),
        (FLOW, {"length": -1}, ValueError, "length is -1; must be at least 0"),
        (FLOW, {"length": 33}, ValueError, "length is 33; must be at least 0 and at most 32"),
        (FLOW, {"length": 2.0}, TypeError, "length is 2.0; must be a whole number"),
        (FLOW, {"grid": 0}, ValueError, "grid is 0; must be at least 1"),
        (FLOW, {"grid": 32}, ValueError, "grid is 32, which leaves no point inside a frame of 16"),
        (FLOW, {"bound": 0.0}, ValueError, "bound is 0.0; must be positive"),
        (FLOW, {"bound": float("nan")}, ValueError, "bound is nan; must be positive"),
        (FLOW, {"median": 5}, ValueError, "median is 5; must be one of 1, 3"),
        (FLOW, {"sampling": "cubic"}, ValueError, "sampling is 'cubic'; must be one of 'nearest'"),
        (FLOW, {"steps": [[0, 4]]}, ValueError, "steps spans 0 to 4; .* pairs of flow, 0 to 3"),
        (FLOW, {"steps": [[-1, 0]]}, ValueError, "steps spans -1 to 0"),
        (FLOW, {"steps": [0, 1]}, ValueError, r"steps has shape \[2\]; must be \[S, L\]"),
        (FLOW, {"steps": np.zeros((1, 33), int)}, ValueError, r"steps has shape \[1, 33\].* to 32"),
        (FLOW, {"steps": np.zeros((0, 3), int)}, ValueError, r"steps has shape \[0, 3\].*S of 1"),
        (FLOW, {"steps": [[0.5]]}, TypeError, "steps has dtype float64; must be int32 or int64"),
        (FLOW, {"points": torch.zeros(3, 2)}, ValueError, r"points has shape \[3, 2\]; must be"),
        (FLOW, {"points": torch.zeros(1, 1, 3)}, ValueError, r"points has shape \[1, 1, 3\]"),
        (FLOW, {"points": torch.zeros(1, 1, 2).bool()}, TypeError, "points has dtype bool"),
        (
            FLOW,
            {"points": torch.zeros(1, 1, 2, device="meta")},
            ValueError,
            "points is on meta, flow on cpu; they must be together",
        ),
        (FLOW, {"backend": "gpu"}, ValueError, "backend is 'gpu'; must be one of 'auto'"),
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
