"""TV-L1's CUDA kernel on a GPU, against the CPU floor; test_tvl1_cuda_emulated.py needs none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_tvl1 import AGREE, middlebury

from mme_targets.backends import native
from mme_targets.config import Tvl1Config

pytestmark = pytest.mark.gpu

FIXED = Tvl1Config(epsilon=0, scales=5, inner_iterations=15, outer_iterations=2)
PAIRS = torch.tensor([[0, 1], [1, 2], [2, 3], [1, 0]])


def clip(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Blurred noise that drifts: uint8 [count, 3, height, width]."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 3, height + 16, width + 16 + count, generator=rng)
    smooth = torch.nn.functional.avg_pool2d(noise, 9, 1, 4)
    smooth = ((smooth - smooth.mean()) / smooth.std() * 45 + 128).clamp(0, 255).byte()[0]
    return torch.stack([smooth[:, 8 : 8 + height, 8 + t : 8 + t + width] for t in range(count)])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gamma": 0.05},
        {"median": 5, "alignment": "corner", "outside": "clamp", "cubic": -0.5},
        {"median": 1, "inner_iterations": 33, "outer_iterations": 1, "patient": True},
    ],
    ids=lambda changes: "-".join(changes) or "default",
)
@pytest.mark.parametrize("size", [(224, 224), (61, 83), (240, 427), (1, 70), (35, 2000)], ids=str)
def test_equals_the_cpu_floor(size: tuple[int, int], changes: dict[str, object]) -> None:
    """At a fixed number of iterations, within what float32 may do to them."""
    frames, config = clip(4, *size), FIXED.replace(**changes)
    flow = native.tvl1(frames.cuda(), PAIRS.cuda(), config).cpu()
    expected = native.tvl1(frames, PAIRS, config)
    assert torch.isfinite(flow).all()
    assert (flow - expected).abs().mean() < AGREE


@pytest.mark.parametrize("config", [Tvl1Config(), Tvl1Config.opencv_cuda()], ids=["own", "opencv"])
def test_real_frames_with_the_stop(shared_data: Path, config: Tvl1Config) -> None:
    frames, truth = middlebury(shared_data, "RubberWhale")
    pairs = torch.tensor([[0, 1]])
    flow = native.tvl1(torch.from_numpy(frames).cuda(), pairs.cuda(), config)[0].cpu().numpy()
    expected = native.tvl1(torch.from_numpy(frames), pairs, config)[0].numpy()
    assert np.abs(flow - expected).mean() < 2 * AGREE
    known = (np.abs(truth) < 1e9).all(axis=0)
    assert np.linalg.norm(flow - truth, axis=0)[known].mean() < 0.156 + 0.02


@pytest.mark.parametrize("gamma", [0.0, 0.05])
def test_batches_and_teams_do_not_matter(gamma: float) -> None:
    """Bit for bit, with more pairs than run at once and stops of their own."""
    frames = clip(40, 96, 130).cuda()
    pairs = torch.stack([torch.arange(39), torch.arange(1, 40)], dim=1).repeat(10, 1).cuda()
    config = Tvl1Config(gamma=gamma)
    flow = native.tvl1(frames, pairs, config)
    assert torch.equal(flow[:39].repeat(10, 1, 1, 1), flow)
    assert torch.equal(native.tvl1(frames, pairs[5:6], config)[0], flow[5])
    clusters = torch.cuda.get_device_capability()[0] >= 9
    for team in (1, 2, 4, 8) if clusters else (1,):
        assert torch.equal(native.tvl1(frames, pairs[:39], config, team=team), flow[:39])


def test_work_runs_on_the_current_stream() -> None:
    frames = clip(4, 64, 64).cuda()
    expected = native.tvl1(frames, PAIRS.cuda(), FIXED)
    stream, late, pairs = torch.cuda.Stream(), torch.zeros_like(frames), PAIRS.cuda()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(frames)
        found = native.tvl1(late, pairs, FIXED)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(found, expected)


def test_nothing_synchronises_and_a_graph_captures_it() -> None:
    """A replay solves what the frames then hold; the counter of pairs starts anew."""
    frames, pairs = clip(4, 64, 80).cuda(), PAIRS.cuda()
    native.tvl1(frames, pairs, Tvl1Config())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        native.tvl1(frames, pairs.int(), Tvl1Config())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = native.tvl1(frames, pairs, Tvl1Config())
    frames.copy_(clip(4, 64, 80, seed=1))
    for _ in range(2):
        graph.replay()
        assert torch.equal(captured, native.tvl1(frames, pairs, Tvl1Config()))


def test_the_tensors_device_is_used() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    frames = clip(4, 50, 70)
    with torch.cuda.device(0):
        found = native.tvl1(frames.to("cuda:1"), PAIRS.to("cuda:1"), FIXED)
        assert torch.cuda.current_device() == 0
    assert found.device == torch.device("cuda:1")
    first = native.tvl1(frames.to("cuda:0"), PAIRS.to("cuda:0"), FIXED)
    assert torch.equal(found.cpu(), first.cpu())
