"""HOG, HOF, MBH: every floor against the reference; what must not change the result."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import assert_close
from floors import (
    ALL,
    FAST,
    HISTOGRAMS,
    PROPERTY,
    grid_flow,
    image,
    pixels,
    run,
    smooth_flow,
    threads,
    tolerance,
)
from hypothesis import given
from hypothesis import strategies as st

import mme_targets as mme
from mme_targets import hof, hog, mbh, trajectories, trajectory_hog
from mme_targets.ops.descriptors import HistogramOptions

# --- every floor against the reference -----------------------------------------------------------


SIZES = [
    (1, 2, 3, 24, 40),
    (2, 1, 1, 9, 8),
    (1, 1, 4, 17, 31),
    (0, 2, 3, 16, 16),
    (3, 0, 3, 16, 16),
]


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("options", HISTOGRAMS)
def test_hog_agrees(floor: str, options: dict, rng) -> None:
    what = tolerance(options)
    for size in SIZES:
        frames = pixels(rng, *size)
        got, expected = (run(hog, frames, floor=f, **options) for f in (floor, "reference"))
        assert_close(got, expected, what)
        whole = run(hog, frames.float(), floor=floor, **options)
        assert_close(whole, expected, what)
        real = torch.from_numpy(rng.uniform(0, 255, size).astype(np.float32))
        assert_close(
            run(hog, real, floor=floor, **options),
            run(hog, real, floor="reference", **options),
            what,
        )


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("options", HISTOGRAMS)
def test_hof_and_mbh_agree(floor: str, options: dict, rng) -> None:
    what = tolerance(options)
    for size in ((1, 3, 2, 24, 40), (2, 1, 2, 9, 8), (1, 1, 2, 17, 31), (0, 2, 2, 16, 16)):
        for flow in (grid_flow(rng, *size), smooth_flow(rng, *size)):
            no_pad = {k: v for k, v in options.items() if k != "padding"}
            for door, kept in ((hof, no_pad), (mbh, options)):
                got, expected = (run(door, flow, floor=f, **kept) for f in (floor, "reference"))
                assert_close(got, expected, what)


@pytest.mark.parametrize("options", [*HISTOGRAMS, {"cell": 16}])
def test_instruction_sets_agree_bit_for_bit(options: dict, rng) -> None:
    frames, flow = pixels(rng, 2, 2, 3, 40, 57), smooth_flow(rng, 2, 2, 2, 40, 57)
    vectors = {k: v for k, v in options.items() if k != "padding"}
    for door, data, kept in (
        (hog, frames, options),
        (hog, frames.float(), options),
        (hof, flow, vectors),
        (mbh, flow, options),
    ):
        first, *others = (run(door, data, floor=floor, **kept) for floor in FAST)
        assert all(torch.equal(other, first) for other in others)
    whole = {floor: run(hog, frames.float(), floor=floor, **options) for floor in FAST}
    assert all(torch.equal(whole[f], run(hog, frames, floor=f, **options)) for f in FAST)


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pixels_that_are_not_finite_add_nothing(floor: str, value: float, rng) -> None:
    """The eight gradients that read the pixel vanish; its own does not read it; nothing else."""
    y, x = np.mgrid[:24, :32]
    clean = image(5.0 * x + 0.0 * y)  # 40 in bin 4 inside
    bad = clean.clone()
    bad[..., 15, 16] = value  # reads: 14..16 x 15..17, cells (1, 1), (1, 2), (2, 1), (2, 2)
    got = (run(hog, clean, floor=floor) - run(hog, bad, floor=floor))[0, 0, 4] / 40
    assert torch.equal(got, torch.tensor([[0.0, 0, 0, 0], [0, 2, 3, 0], [0, 1, 2, 0]]))
    assert run(hog, bad, floor=floor).isfinite().all()
    flow = torch.full((1, 2, 16, 24), 3.0)
    flow[0, 1, 9, 10] = value
    gone = (run(hof, torch.full_like(flow, 3.0), floor=floor) - run(hof, flow, floor=floor)).sum(2)[
        0, 0
    ]
    expected = torch.zeros(2, 3)
    expected[1, 1] = math.sqrt(18)
    torch.testing.assert_close(gone, expected, atol=1e-4, rtol=0)


# --- what must not change the result -------------------------------------------------------------


@pytest.mark.parametrize("floor", FAST)
def test_layout_batch_and_threads_do_not_matter(floor: str, rng) -> None:
    frames = pixels(rng, 3, 2, 3, 24, 30)
    points = torch.from_numpy(rng.uniform(0, 24, (3, 1, 4, 4, 2, 2)).astype(np.float32))
    times = torch.tensor([[0, 1]])

    def everything(x: torch.Tensor, p: torch.Tensor) -> list[torch.Tensor]:
        found = [run(hog, x, floor=floor)]
        return found + [
            run(trajectory_hog, x, p, times, floor=floor, sampling=s) for s in ("cell", "window")
        ]

    with threads(1):
        expected = everything(frames, points)
        single = [everything(x[None], p[None]) for x, p in zip(frames, points, strict=True)]
    channels_last = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    spaced = torch.zeros(3, 2, 3, 24, 60, dtype=torch.uint8)[..., ::2].copy_(frames)
    results = [[torch.cat(r) for r in zip(*single, strict=True)]]
    results += [everything(x, points) for x in (channels_last, spaced, frames)]
    for count in (2, 5):
        with threads(count):
            results += [everything(frames, points) for _ in range(3)]
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@PROPERTY
@given(st.data())
def test_shapes_permutation_and_translation(data: st.DataObject) -> None:
    draw = data.draw
    floor, cell = draw(st.sampled_from(FAST)), draw(st.integers(2, 11))
    bins, channels = draw(st.integers(2, 36)), draw(st.integers(1, 4))
    height, width = draw(st.integers(cell, 40)), draw(st.integers(cell, 40))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    frames = pixels(rng, 3, 1, channels, height, width)
    options = {"bins": bins, "cell": cell}
    got = run(hog, frames, floor=floor, **options)
    assert got.shape == (3, 1, channels, bins, height // cell, width // cell)
    assert_close(got, run(hog, frames, floor="reference", **options), "hog")
    order = torch.from_numpy(rng.permutation(3))
    assert torch.equal(run(hog, frames[order], floor=floor, **options), got[order])
    # Away from the borders, moving the frame by a cell moves the cells.
    if min(height, width) > 3 * cell:
        moved = run(hog, frames[..., cell:, cell:].contiguous(), floor=floor, **options)
        assert torch.equal(moved[..., 1:-1, 1:-1], got[..., 2:-1, 2:-1])


# --- the custom operators ------------------------------------------------------------------------


@pytest.mark.parametrize("cells_last", [False, True])
@pytest.mark.parametrize("vectors", [False, True])
def test_opcheck_histograms(cells_last: bool, vectors: bool, rng) -> None:
    data = grid_flow(rng, 2, 2, 16, 19) if vectors else pixels(rng, 2, 3, 16, 19)
    operation = "hof" if vectors else "hog"
    args = (data, vectors, *HistogramOptions(), cells_last, operation, "cpu")
    torch.library.opcheck(torch.ops.mme_targets.histograms.default, args)


def test_opcheck_windows(rng) -> None:
    points, starts = torch.rand(2, 5, 3, 2) * 16, torch.zeros(1, 5, dtype=torch.int32)
    times = torch.tensor([[0, 2]], dtype=torch.int32)
    args = (pixels(rng, 2, 3, 3, 16, 19), points, starts, times, *HistogramOptions(), "cpu")
    torch.library.opcheck(torch.ops.mme_targets.windows.default, args)


def test_compiles_into_one_graph(rng) -> None:
    frames = pixels(rng, 2, 3, 3, 16, 24)
    flow = smooth_flow(rng, 2, 2, 2, 16, 24)
    times = torch.tensor([[0, 1]])

    def forward(x: torch.Tensor, omega: torch.Tensor) -> tuple[torch.Tensor, ...]:
        points = trajectories(omega, length=2).points
        found = [trajectory_hog(x, points, times, sampling=s) for s in ("cell", "window")]
        return hog(x) * 2, hof(omega), mbh(omega), *found

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(frames, flow), forward(frames, flow), strict=True):
        assert torch.equal(mine, theirs)


def test_float16_flow_is_widened() -> None:
    flow = torch.randn(2, 2, 16, 16).half()
    assert torch.equal(mme.hof(flow), mme.hof(flow.float()))
    assert torch.equal(mme.mbh(flow), mme.mbh(flow.float()))
