"""TV-L1: Middlebury, OpenCV's own, floors against each other, threads and batches, bad frames."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from floors import FAST, run, running, threads
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.inputs import end_point_error, middlebury
from mme_targets.backends.reference import tvl1 as reference
from mme_targets.config import Tvl1Config
from mme_targets.ops.optical_flow import optical_flow, tvl1

AGREE = 0.01
"""px, mean: a floor in float32 against the reference at a fixed number of iterations."""
FIXED = Tvl1Config(epsilon=0, inner_iterations=15, outer_iterations=2, scales=4)
QUICK = Tvl1Config(warps=2, inner_iterations=10, outer_iterations=2)

BOUNDS = {
    # OpenCV's CPU class at its defaults, and its CUDA class's structure (facts): mean error, px
    "RubberWhale": (0.156, 0.156),
    "Grove2": (0.157, 0.205),
    "Urban2": (3.57, 3.72),
    "Venus": (0.306, 0.338),
}


def crop(shared_data: Path, height: int = 61, width: int = 83) -> np.ndarray:
    """Two small frames of a real scene that moves by some 3 px."""
    frames, _ = middlebury(shared_data, "Grove2")
    return frames[..., 200 : 200 + height, 300 : 300 + width].copy()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("preset", ["default", "opencv_cuda"])
def test_middlebury_errors(shared_data: Path, name: str, preset: str) -> None:
    frames, truth = middlebury(shared_data, name)
    config = Tvl1Config() if preset == "default" else Tvl1Config.opencv_cuda()
    flow = tvl1(frames[0], frames[1], config=config, backend="cpu")
    assert end_point_error(flow, truth) < BOUNDS[name][preset == "opencv_cuda"] + 0.02


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gamma": 0.05},
        {"median": 5, "tau": 0.2, "lambda_": 0.1, "theta": 0.4},
        {"median": 1, "alignment": "corner", "cubic": -0.5, "outside": "clamp"},
        {"scale_step": 0.5, "scales": 3, "warps": 5, "inner_iterations": 7},
        {"patient": True, "warps": 1, "inner_iterations": 23, "outer_iterations": 1},
    ],
    ids=lambda changes: "-".join(changes) or "default",
)
def test_floors_agree(shared_data: Path, floor: str, changes: dict[str, object]) -> None:
    frames = crop(shared_data)
    config = FIXED.replace(**changes)
    expected = tvl1(frames[0], frames[1], config=config, backend="reference")
    with running(floor) as backend:
        flow = tvl1(frames[0], frames[1], config=config, backend=backend)
    assert np.abs(expected).max() > 2
    assert np.abs(flow - expected).mean() < AGREE
    assert np.median(np.abs(flow - expected)) < 1e-3


@pytest.mark.parametrize("floor", FAST)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 70),
    gamma=st.sampled_from([0.0, 0.1]),
    median=st.sampled_from([1, 3, 5]),
)
def test_floors_agree_on_any_size(
    floor: str, height: int, width: int, gamma: float, median: int
) -> None:
    """Smooth images, where the solution does not hang on rounding."""
    y, x = np.mgrid[:height, :width]
    wave = [100 + 60 * np.sin(0.21 * (x - d) + 0.13 * y) * np.cos(0.17 * y) for d in (0, 0.6)]
    frames = np.stack(wave).astype(np.float32)[:, None]
    config = Tvl1Config(
        epsilon=0, warps=2, scales=3, inner_iterations=6, outer_iterations=2, median=median,
        gamma=gamma,
    )  # fmt: skip
    expected = tvl1(frames[0], frames[1], config=config, backend="reference")
    with running(floor) as backend:
        flow = tvl1(frames[0], frames[1], config=config, backend=backend)
    assert np.isfinite(flow).all()
    assert np.abs(flow - expected).mean() < AGREE


def test_with_the_stop_floors_agree_as_well(shared_data: Path) -> None:
    frames = crop(shared_data)
    expected = tvl1(frames[0], frames[1], backend="reference")
    assert np.abs(tvl1(frames[0], frames[1], backend="cpu") - expected).mean() < 2 * AGREE


@pytest.mark.parametrize("name", ["RubberWhale", "Venus"])
def test_near_opencvs_own(shared_data: Path, name: str) -> None:
    """Same structure: their warp is quantised to 1/32 px and reads zeros outside."""
    frames, _ = middlebury(shared_data, name)
    frames = np.ascontiguousarray(frames[..., 60:220, 60:260])
    greys = [cv2.cvtColor(f.transpose(1, 2, 0).copy(), cv2.COLOR_RGB2GRAY) for f in frames]
    expected = cv2.optflow.DualTVL1OpticalFlow_create().calc(*greys, None).transpose(2, 0, 1)
    config = Tvl1Config(scales=5, warps=5, median=5)
    apart = np.linalg.norm(tvl1(frames[0], frames[1], config=config) - expected, axis=0)
    assert np.median(apart) < 0.03
    assert apart[16:-16, 16:-16].mean() < 0.1


@pytest.mark.parametrize("floor", ["reference", *FAST])
def test_initial_flow_is_where_it_starts(floor: str, rng: np.random.Generator) -> None:
    """Motion beyond the pyramid's reach is found from a start nearby."""
    big = cv2.GaussianBlur(rng.normal(size=(64, 140)), (0, 0), 2)
    big = np.clip(128 + 45 * big / big.std(), 0, 255).astype(np.uint8)
    frames = np.stack([big[:, 40:100], big[:, 20:80]])[:, None]  # 20 px to the right
    start = np.zeros((2, 64, 60), np.float32)
    start[0] = 18.5
    config = Tvl1Config(scales=1, inner_iterations=10, outer_iterations=3)
    with running(floor) as backend:
        alone = tvl1(frames[0], frames[1], config=config, backend=backend)
        flow = tvl1(frames[0], frames[1], config=config, initial=start, backend=backend)
    assert np.median(np.abs(flow[0, :, :36] - 20)) < 0.1
    assert np.median(np.abs(alone[0, :, :36] - 20)) > 5


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("outside", ["drop", "clamp"])
def test_neighbours_may_read_anywhere(floor: str, outside: str, rng: np.random.Generator) -> None:
    """One warp by flow that jumps from pixel to pixel, also out of the frame: no two of a vector's
    pixels need lie near each other.
    """
    big = cv2.GaussianBlur(rng.normal(size=(2, 47, 75)).transpose(1, 2, 0), (0, 0), 3)
    frames = np.clip(128 + 45 * big / big.std(), 0, 255).transpose(2, 0, 1).astype(np.float32)
    start = rng.uniform(-60, 60, (2, 47, 75)).astype(np.float32)
    start[:, 10:20] = np.rint(start[:, 10:20] / 30) * 30  # whole pixels
    start[:, 30:40] = rng.choice([-0.4, 0.4], (2, 10, 75))
    config = Tvl1Config(
        scales=1, warps=1, inner_iterations=1, outer_iterations=1, median=1, outside=outside,
        lambda_=100,
    )  # fmt: skip
    expected, flow = (
        run(tvl1, frames[0, None], frames[1, None], floor=f, config=config, initial=start)
        for f in ("reference", floor)
    )
    moved = np.abs(expected - start).max(axis=0) > 1
    assert moved[:30].mean() > 0.1
    apart = np.abs(flow - expected) / np.maximum(1, np.abs(expected - start))
    assert np.quantile(apart, 0.999) < 1e-3


@pytest.mark.parametrize("floor", FAST)
def test_threads_and_batches_do_not_matter(floor: str, shared_data: Path) -> None:
    """Bit for bit: pairs shared among threads, or the rows of one pair, and any neighbours."""
    frames, _ = middlebury(shared_data, "Venus")
    frames = np.concatenate([frames, frames[::-1, ::-1], noise(1, *frames.shape[1:])])
    frames = np.ascontiguousarray(frames[..., 40:200, 50:250])
    config = Tvl1Config(gamma=0.02) if floor.endswith("avx2") else Tvl1Config()
    with running(floor):
        with threads(1):
            whole = optical_flow(frames, config=config, bound=None)
        for count in (2, 3, 5):
            with threads(count):
                assert np.array_equal(optical_flow(frames, config=config, bound=None), whole)
                for k in range(4):
                    alone = tvl1(frames[k], frames[k + 1], config=config)
                    assert np.array_equal(alone, whole[k])
        told: list[int] = []
        parts = optical_flow(frames, config=config, bound=None, progress=told.append)
    assert np.array_equal(parts, whole)
    assert told == [1] * 4


def test_grey_levels_are_opencvs() -> None:
    """A flow of RGB frames is that of OpenCV's grey images, at any width of a vector."""
    frames = noise(2, 3, 33, 67)
    greys = [cv2.cvtColor(f.transpose(1, 2, 0).copy(), cv2.COLOR_RGB2GRAY)[None] for f in frames]
    for floor in FAST:
        with running(floor) as backend:
            flow = tvl1(frames[0], frames[1], config=QUICK, backend=backend)
            assert np.array_equal(flow, tvl1(*greys, config=QUICK, backend=backend))


@pytest.mark.parametrize("floor", ["reference", *FAST])
@pytest.mark.parametrize("config", [QUICK, QUICK.replace(gamma=0.1, median=1)])
def test_flat_black_and_equal_frames(floor: str, config: Tvl1Config) -> None:
    with running(floor) as backend:
        for first, second in ((0, 0), (90, 90), (10, 200)):
            pair = [np.full((3, 40, 37), level, np.uint8) for level in (first, second)]
            flow = tvl1(*pair, config=config, backend=backend)
            assert not flow.any()  # no texture, no motion
        same = noise(3, 40, 37)
        assert not tvl1(same, same.copy(), config=config, backend=backend).any()


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("config", [Tvl1Config(), Tvl1Config.opencv_cuda()])
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (16, 16), (17, 16), (2, 33), (64, 48)])
def test_noise_and_hard_cuts_end_and_stay_finite(
    floor: str, config: Tvl1Config, size: tuple[int, int]
) -> None:
    with running(floor) as backend:
        flow = tvl1(noise(3, *size), 255 - noise(3, *size), config=config, backend=backend)
    assert flow.shape == (2, *size)
    assert np.isfinite(flow).all()


def _ends() -> list[dict[str, object]]:
    """Each number of the config at either end of its documented range."""
    found: list[dict[str, object]] = []
    for f in dataclasses.fields(Tvl1Config):
        if f.name in ("inner_iterations", "outer_iterations", "warps"):  # more only takes longer
            found.append({f.name: 1})
        elif "range" in f.metadata:
            low, high, open_low = f.metadata["range"]
            found += [{f.name: sys.float_info.min if open_low else low}, {f.name: high}]
    return found


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("changes", _ends(), ids=str)
def test_ends_of_every_range(floor: str, changes: dict[str, object]) -> None:
    y, x = np.mgrid[:34, :45]
    wave = [100 + 60 * np.sin(0.21 * (x - d) + 0.13 * y) * np.cos(0.17 * y) for d in (0, 0.6)]
    frames = np.stack(wave).astype(np.float32)[:, None]
    config = FIXED.replace(inner_iterations=6, outer_iterations=2, warps=2).replace(**changes)
    initial = np.full((2, 34, 45), 0.3, np.float32)
    for start in (None, initial):
        expected = tvl1(*frames, config=config, initial=start, backend="reference")
        with running(floor) as backend:
            flow = tvl1(*frames, config=config, initial=start, backend=backend)
        assert np.isfinite(flow).all()
        assert np.abs(flow - expected).mean() < AGREE


def test_cubic_weights_are_a_partition_and_interpolate() -> None:
    t = np.linspace(0, 1, 11)[:-1]
    for a in (-1.0, -0.75, -0.5, 0.0):
        weights = np.stack(reference.cubic_weights(t, a))
        assert np.allclose(weights.sum(axis=0), 1)
        assert np.allclose(weights[:, 0], [0, 1, 0, 0])
    assert np.allclose(
        reference.cubic_weights(np.array(0.5), -0.5), [-1 / 16, 9 / 16, 9 / 16, -1 / 16]
    )


def test_divergence_is_minus_the_adjoint_of_the_gradient(rng: np.random.Generator) -> None:
    plane, dual = rng.normal(size=(7, 9)), rng.normal(size=(1, 2, 7, 9))
    dual[0, 0, :, -1] = 0  # as the iteration leaves them
    dual[0, 1, -1] = 0
    inner = (reference.forward(plane) * dual[0]).sum()
    assert np.isclose(inner, -(reference.divergence(dual)[0] * plane).sum())


def test_errors_name_initial_and_backend() -> None:
    one = torch.zeros(3, 20, 24, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"initial has shape \[2, 20, 20\]; must be \[2, 20, 24\]"):
        tvl1(one, one, initial=torch.zeros(2, 20, 20))
    with pytest.raises(ValueError, match="initial holds values that are not finite"):
        tvl1(one, one, initial=torch.full((2, 20, 24), torch.nan))
    with pytest.raises(ValueError, match=r"backend is 'cpu'.*dis is OpenCV's"):
        optical_flow(torch.stack([one, one]), method="dis", backend="cpu")
