"""TV-L1 on the Triton floor, in Triton's interpreter where there is no GPU: hence small images."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from test_tvl1 import AGREE, crop, middlebury

if not sys.platform.startswith("linux"):
    pytest.skip("Triton exists for Linux alone", allow_module_level=True)

from mme_targets.backends import native
from mme_targets.backends import triton as floor
from mme_targets.backends.reference import optical_flow as greys
from mme_targets.backends.reference import tvl1 as reference
from mme_targets.backends.triton import optical_flow as module
from mme_targets.config import Tvl1Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMOOTH = 1e-4
"""px: float32 against float64 over some iterations, at any pixel of `waves`."""
FIXED = Tvl1Config(epsilon=0, warps=2, scales=2, inner_iterations=3, outer_iterations=2)


def waves(height: int, width: int, *shifts: float) -> torch.Tensor:
    """Smooth images [M, 1, H, W] float32, shifted to the right, whose flow hangs on no rounding."""
    y, x = np.mgrid[:height, :width]
    shifted = [100 + 60 * np.sin(0.31 * (x - d) + 0.13 * y) * np.cos(0.27 * y) for d in shifts]
    return torch.from_numpy(np.stack(shifted)[:, None]).float()


def flow_of(
    frames: torch.Tensor,
    config: Tvl1Config,
    initial: torch.Tensor | None = None,
    pairs: Any = ((0, 1),),
) -> torch.Tensor:
    """The floor's flow [N, 2, H, W], on the host."""
    index = torch.tensor(pairs, dtype=torch.int32, device=DEVICE).reshape(-1, 2)
    initial = None if initial is None else initial.to(DEVICE)
    flow = floor.tvl1(frames.to(DEVICE), index, config, initial)
    assert flow.dtype == torch.float32
    assert flow.shape == (len(pairs), 2, *frames.shape[2:])
    assert flow.is_contiguous()
    return flow.cpu()


def check(
    frames: torch.Tensor,
    config: Tvl1Config,
    initial: torch.Tensor | None = None,
    most: float = float("inf"),
) -> torch.Tensor:
    """Compare the flow of the first two frames with the reference; give the reference's.

    `most` px is the largest difference, where the flow of the images hangs on no rounding.
    """
    actual = flow_of(frames[:2], config, initial)[0]
    first, second = (greys.grey(frame) for frame in frames[:2].numpy())
    start = None if initial is None else initial[0].numpy()
    expected = torch.from_numpy(reference.solve(first, second, config, start))
    apart = (actual - expected).abs()
    assert apart.mean() < AGREE
    assert apart.median() < 1e-3
    assert apart.max() <= most
    return expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gamma": 0.05},
        {"gamma": 0.2, "median": 5, "outside": "clamp"},
        {"median": 5, "tau": 0.2, "lambda_": 0.1, "theta": 0.4},
        {"median": 1, "alignment": "corner", "cubic": -0.5, "outside": "clamp"},
        {"scale_step": 0.6, "scales": 3, "warps": 1, "inner_iterations": 11, "outer_iterations": 1},
        {"patient": True, "warps": 1, "inner_iterations": 13, "outer_iterations": 1},
    ],
    ids=lambda changes: "-".join(changes) or "default",
)
def test_it_agrees_with_the_reference(shared_data, changes):
    frames = torch.from_numpy(crop(shared_data, 33, 45))  # two blocks of pixels
    expected = check(frames, FIXED.replace(**changes))
    assert expected.abs().max() > 0.5


@pytest.mark.parametrize("changes", [{}, {"gamma": 3.0, "theta": 0.02, "lambda_": 1.0}])
def test_every_pixel_of_smooth_images_agrees(changes):
    frames = waves(20, 23, 0, 0.6)
    frames[1] += 20 * torch.linspace(-1, 1, 23)  # light that changes
    check(frames, FIXED.replace(**changes), most=SMOOTH)


@pytest.mark.parametrize("preset", [Tvl1Config(), Tvl1Config.opencv_cuda()])
def test_presets_with_their_stop(preset):
    expected = check(waves(17, 21, 0, 0.8), preset)
    assert abs(float(expected[0].median()) - 0.8) < 0.1


def stops_at(frames: torch.Tensor, config: Tvl1Config) -> int:
    """Iterations that the reference makes in the only warp of the only level."""
    made = []
    solve_one = reference.iteration

    def counted(*arguments: Any) -> Any:
        made.append(None)
        return solve_one(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "iteration", counted)
        reference.solve(*frames[:, 0].numpy(), config)
    return len(made)


@pytest.mark.parametrize(
    ("patient", "epsilon"), [(False, 0.03), (True, 0.03), (True, 0.3), (True, 0.0)]
)
def test_the_stop_is_the_references(patient, epsilon):
    """One iteration fewer than the reference makes, and the flow is another."""
    frames = waves(16, 20, 0, 0.8)
    config = Tvl1Config(
        scales=1, warps=1, median=1, inner_iterations=60, outer_iterations=1, patient=patient,
        epsilon=epsilon,
    )  # fmt: skip
    made = stops_at(frames, config)
    assert (made == 60) == (epsilon == 0)
    whole = flow_of(frames, config)
    fixed = config.replace(inner_iterations=made, epsilon=0)
    assert torch.equal(flow_of(frames, fixed), whole)
    assert not torch.equal(flow_of(frames, fixed.replace(inner_iterations=made - 1)), whole)


def test_initial_flow_is_where_it_starts():
    frames = waves(20, 24, 0, 6.0)
    start = torch.zeros(1, 2, 20, 24)
    start[:, 0] = 5.5
    config = FIXED.replace(outer_iterations=3)
    near = check(frames, config, start)
    assert abs(float(near[0].median()) - 6) < 0.5
    alone = flow_of(frames, config)
    assert (near - alone).abs().mean() > 1


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (23, 1), (2, 3), (5, 7), (16, 17)])
@pytest.mark.parametrize("median", [3, 5])
def test_tiny_and_odd_sizes(size, median):
    config = FIXED.replace(median=median, warps=1, gamma=0.1 if median == 5 else 0)
    check(waves(*size, 0, 0.6), config, most=SMOOTH)


def test_noise_stays_finite_and_grey_levels_are_opencvs(rng):
    frames = torch.from_numpy(rng.integers(0, 256, (2, 3, 18, 19), dtype=np.uint8))
    grey = torch.from_numpy(np.stack([greys.grey(f) for f in frames.numpy()]))[:, None]
    flow = flow_of(frames, FIXED)
    assert torch.isfinite(flow).all()
    assert torch.equal(flow, flow_of(grey, FIXED))


def test_float_frames_are_clamped_and_weighted(rng):
    frames = torch.from_numpy(rng.uniform(-40, 300, (2, 3, 17, 18))).float()
    assert torch.equal(flow_of(frames, FIXED), flow_of(frames.clamp(0, 255), FIXED))
    grey = torch.from_numpy(np.stack([greys.grey(f) for f in frames.numpy()]))
    assert (module._grey(frames) - grey).abs().max() < 1e-4


@pytest.mark.parametrize("changes", [{}, {"gamma": 0.1, "median": 1}, {"epsilon": 0.01}])
def test_flat_and_equal_frames_do_not_move(changes, rng):
    same = torch.from_numpy(rng.integers(0, 256, (3, 19, 17), dtype=np.uint8))
    flat = [torch.full_like(same, level) for level in (10, 200)]
    frames = torch.stack([same, same, *flat])
    flow = flow_of(frames, FIXED.replace(**changes), pairs=[(0, 1), (2, 2), (2, 3)])
    assert not flow.any()


@pytest.mark.parametrize(
    "config",
    [FIXED.replace(gamma=0.05), Tvl1Config(warps=1, scales=2, epsilon=0.05, inner_iterations=10)],
)
def test_a_pair_does_not_depend_on_the_others(config):
    """Bit for bit: frames shared by pairs, pairs that stop early, frames that no pair names."""
    frames = waves(20, 22, 0, 0.7, -0.5, 0, 2.0)
    pairs = [(0, 1), (1, 2), (3, 0), (4, 0), (1, 1)]
    start = waves(20, 22, *range(10)).reshape(5, 2, 20, 22) / 300
    whole = flow_of(frames, config, start, pairs)
    for k, (first, second) in enumerate(pairs[:3]):
        one = frames[[first, second]]
        assert torch.equal(flow_of(one, config, start[k : k + 1])[0], whole[k])
    picked = flow_of(frames, config, start[2:3], pairs[2:3])  # frames are left out
    assert torch.equal(picked[0], whole[2])


def test_no_pairs_and_arrays_that_are_not_contiguous():
    frames = waves(18, 17, 0, 0.6)
    assert flow_of(frames, FIXED, pairs=[]).shape == (0, 2, 18, 17)
    turned = frames.transpose(2, 3).contiguous().transpose(2, 3)
    index = torch.tensor([[9, 0], [9, 1]], dtype=torch.int64, device=DEVICE)[:, 1].view(1, 2)
    flow = floor.tvl1(turned.to(DEVICE), index, FIXED)
    assert torch.equal(flow.cpu(), flow_of(frames, FIXED))


@pytest.mark.parametrize("size", [3, 5])
def test_medians_are_exact(size, rng):
    """A median selects: one step of it, of values that tie and differ."""
    config = FIXED.replace(scales=1, warps=1, inner_iterations=1, outer_iterations=1, median=size)
    flow = torch.from_numpy(rng.integers(-4, 5, (1, 2, 13, 90)).astype(np.float32))
    frames = torch.full((2, 1, 13, 90), 50.0)  # nothing to see, and no dual variables yet
    filtered = flow_of(frames, config, flow)[0]
    for plane, expected in zip(filtered, flow[0], strict=True):
        assert np.array_equal(plane.numpy(), reference.median(expected.double().numpy(), size))


@pytest.mark.gpu
@pytest.mark.parametrize("preset", [Tvl1Config(), Tvl1Config.opencv_cuda()])
@pytest.mark.parametrize("name", ["RubberWhale", "Grove2"])
def test_on_a_gpu_it_agrees_with_the_cpu_floor(shared_data, name, preset):
    frames = torch.from_numpy(middlebury(shared_data, name)[0])
    index = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
    expected = native.tvl1(frames, index, preset)
    flow = floor.tvl1(frames.cuda(), index.cuda(), preset).cpu()
    assert (flow - expected).abs().mean() < 2 * AGREE


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_for_the_device(shared_data):
    """A host that reads back, or copies from the device, cannot be captured into a graph."""
    frames = torch.from_numpy(crop(shared_data, 64, 80)).cuda()
    index = torch.tensor([[0, 1]], dtype=torch.int32, device="cuda")
    expected = floor.tvl1(frames, index, FIXED)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        flow = floor.tvl1(frames, index, FIXED)
    graph.replay()
    assert torch.equal(flow, expected)
