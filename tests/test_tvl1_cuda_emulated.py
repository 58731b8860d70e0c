"""TV-L1's CUDA kernel, run on the host by `tests/cuda_emulator`: the CPU floor, the reference."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from floors import running

from mme_targets.backends import native
from mme_targets.backends.reference import tvl1 as reference
from mme_targets.config import Tvl1Config

Solve = Callable[..., torch.Tensor]

NEAR = 3e-5
"""px, mean, from the CPU floor without SIMD: the same operations in the same order, but for its
inverse square root of 12 bits and the float32 sum of squares that the stop compares."""
AGREE = 0.01
"""px, mean, from the reference in float64."""
SHORT = Tvl1Config(
    epsilon=0, scales=2, scale_step=0.7, warps=2, inner_iterations=6, outer_iterations=2
)
SHARED = torch.tensor([[0, 1]])


@pytest.fixture
def solve(kernels: ModuleType, order: None, monkeypatch: pytest.MonkeyPatch) -> Solve:
    """`native.tvl1` on CPU tensors, by the emulated kernel."""

    def run(*arguments: object, **options: object) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(native, "_module", lambda tensor: kernels)
            patch.setattr(native, "_context", lambda tensor: (0, 0))
            return native.tvl1(*arguments, **options)

    return run


def on_cpu(*arguments: object, **options: object) -> torch.Tensor:
    with running("cpu-baseline"):
        return native.tvl1(*arguments, **options)


def clip(height: int, width: int, count: int = 2, channels: int = 1) -> torch.Tensor:
    """Smooth moving frames in float32 [count, channels, height, width]."""
    y, x = np.mgrid[:height, :width]
    waves = [
        100 + 60 * np.sin(0.21 * (x - 0.6 * t) + 0.13 * y) * np.cos(0.17 * y + 0.05 * t)
        for t in range(count)
    ]
    shades = np.linspace(1, 0.8, channels)[:, None, None]
    return torch.from_numpy((np.stack(waves)[:, None] * shades).astype(np.float32))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gamma": 0.1},
        {"gamma": 0.1, "median": 5, "alignment": "corner"},
        {"median": 1, "alignment": "corner", "cubic": -0.5, "outside": "clamp"},
        {"median": 5, "tau": 0.2, "lambda_": 0.1, "theta": 0.4},
        {"inner_iterations": 13, "outer_iterations": 1},
        {"inner_iterations": 1, "outer_iterations": 3, "warps": 3},
        {"patient": True, "inner_iterations": 15, "outer_iterations": 1},
    ],
    ids=lambda changes: "-".join(changes) or "default",
)
def test_options(changes: dict[str, object], solve: Solve) -> None:
    frames, config = clip(26, 37), SHORT.replace(**changes)
    flow = solve(frames, SHARED, config)
    assert flow.abs().max() > 0.4
    assert (flow - on_cpu(frames, SHARED, config)).abs().mean() < NEAR
    exact = reference.solve(frames[0, 0].numpy(), frames[1, 0].numpy(), config)
    assert np.abs(flow[0].numpy() - exact).mean() < AGREE


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 40), (40, 1), (2, 3), (5, 64), (7, 65), (23, 17), (4, 119), (3, 200)],
    ids=str,
)
def test_sizes(size: tuple[int, int], gamma: float, solve: Solve) -> None:
    """One strip of 64 columns or several, frames lower than the iterations in flight."""
    frames, config = clip(*size), SHORT.replace(gamma=gamma)
    flow = solve(frames, SHARED, config)
    assert torch.isfinite(flow).all()
    assert (flow - on_cpu(frames, SHARED, config)).abs().mean() < NEAR


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("size", [(37, 30), (19, 130)], ids=str)
def test_teams_do_not_matter(size: tuple[int, int], gamma: float, solve: Solve) -> None:
    """Bit for bit, with a stop that hangs on the sum of all rows."""
    frames = clip(*size)
    config = SHORT.replace(gamma=gamma, epsilon=0.02)
    flow = solve(frames, SHARED, config)
    assert (flow - on_cpu(frames, SHARED, config)).abs().mean() < NEAR
    for team in (1, 2, 4, 8):
        assert torch.equal(solve(frames, SHARED, config, team=team), flow)


@pytest.mark.parametrize("team", [0, 2])
def test_batches_do_not_matter(team: int, solve: Solve, rng: np.random.Generator) -> None:
    """Bit for bit: pairs that share frames, end at once or late, and wait for a team."""
    frames = (clip(20, 24, 3, 3) + torch.from_numpy(rng.normal(0, 3, (3, 3, 20, 24)))).byte()
    pairs = torch.tensor([[0, 1], [1, 1], [2, 0], [0, 1], [1, 2]] * 2)
    initial = torch.from_numpy(rng.normal(0, 0.5, (10, 2, 20, 24)).astype(np.float32))
    initial[5:] = initial[:5]
    config = SHORT.replace(epsilon=0.02, scales=1)
    flow = solve(frames, pairs, config, initial=initial, team=team)
    assert torch.equal(flow[5:], flow[:5])
    assert (flow - on_cpu(frames, pairs, config, initial=initial)).abs().mean() < NEAR
    for k in range(3):
        alone = solve(frames, pairs[k : k + 1], config, initial=initial[k : k + 1], team=1)
        assert torch.equal(alone[0], flow[k])


def test_no_pairs(solve: Solve) -> None:
    """No pair launches no kernel."""
    assert solve(clip(9, 9), SHARED[:0], SHORT).shape == (0, 2, 9, 9)


@pytest.mark.parametrize(("patient", "first"), [(False, 10), (True, 2)])
def test_the_stop(patient: bool, first: int, solve: Solve) -> None:
    """An update that is small enough ends a warp after its first wave."""
    frames = clip(18, 21)
    config = SHORT.replace(scales=1, inner_iterations=30, median=1, patient=patient)
    stopped = solve(frames, SHARED, config.replace(epsilon=1))
    short = config.replace(inner_iterations=first, outer_iterations=1)
    assert torch.equal(stopped, solve(frames, SHARED, short))
    assert not torch.equal(stopped, solve(frames, SHARED, config))


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_flat_and_equal_frames_do_not_move(gamma: float, solve: Solve) -> None:
    frames = torch.full((3, 3, 17, 20), 90, dtype=torch.uint8)
    frames[2] = 200
    noise = torch.randint(0, 256, (1, 3, 17, 20), generator=torch.manual_seed(0)).byte()
    frames = torch.cat([frames, noise])
    config = SHORT.replace(gamma=gamma, median=1)
    assert not solve(frames, torch.tensor([[0, 1], [0, 2], [3, 3]]), config).any()


def test_initial_flow_on_several_levels(solve: Solve, rng: np.random.Generator) -> None:
    """It is shrunk to the top level, whose pixels are larger."""
    frames = clip(31, 33)
    initial = torch.from_numpy(rng.normal(1, 0.5, (1, 2, 31, 33)).astype(np.float32))
    config = SHORT.replace(inner_iterations=2, outer_iterations=1, warps=1)
    flow = solve(frames, SHARED, config, initial=initial)
    assert (flow - on_cpu(frames, SHARED, config, initial=initial)).abs().mean() < NEAR
    assert (flow - solve(frames, SHARED, config)).abs().mean() > 0.1


def test_teams_that_no_cluster_can_hold_are_refused(solve: Solve) -> None:
    with pytest.raises(ValueError, match="a team has 9 blocks; must be at most 8 here"):
        solve(clip(9, 9), SHARED, SHORT, team=9)
