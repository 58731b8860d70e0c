"""The CUDA floor on a GPU, against the reference; and what of it can be checked without one.

Where there is no GPU, the same kernels run through `tests/cuda_emulator` (test_cuda_emulated.py).
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import assert_close

import mme_targets
from mme_targets.backends import unavailable

LAYOUTS = ["plain", "unbatched", "strided"]


def to_gpu(array: np.ndarray, device: str = "cuda") -> torch.Tensor:
    return torch.from_numpy(array).to(device)


def random_frames(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def random_flow(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 4, shape).astype(np.float32)


# ---- Without a GPU ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """`mme_targets._cuda`, which must import without a GPU or driver where it was built."""
    try:
        return importlib.import_module("mme_targets._cuda")
    except ModuleNotFoundError as error:
        pytest.skip(f"mme_targets._cuda was not built: {error}")


def test_info_names_version_and_targets(module: ModuleType) -> None:
    """A build says what it was made with."""
    info = module.info()
    assert set(info) == {"cuda_version", "archs"}
    assert float(info["cuda_version"]) >= 11.8
    assert all(arch.isdigit() for arch in info["archs"].split(";"))


def test_nothing_to_do_launches_nothing(module: ModuleType) -> None:
    """Empty sizes touch no device, so they pass where there is none."""
    module.median_filter(0, 0, 5, 5, 0, 0, 0)
    module.patch_norm(0, 0, 4, 12, False, 1e-6, 0, 0, 0, 0, 0)
    module.tracks(0, False, 0, 3, 5, 5, 0, 1, 4, 0, 0, 1, 2, 20.0, True, False, 0, 0, 0, 0, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what is said where there is no GPU")
def test_launch_without_a_device_says_so(module: ModuleType) -> None:
    """The reason comes from CUDA itself."""
    with pytest.raises(RuntimeError, match="no CUDA device: "):
        module.median_filter(0, 1, 5, 5, 0, 0, 0)


def test_tracks_longer_than_shared_memory_are_refused(module: ModuleType) -> None:
    """A warp stages its tracks, so their length has a limit, well above the doors' 32."""
    with pytest.raises(ValueError, match="tracks have 96 steps; must be 0 to 95"):
        module.tracks(0, False, 1, 3, 5, 5, 0, 1, 4, 0, 0, 1, 96, 20.0, True, False, 0, 0, 0, 0, 0)


def test_cuda_refuses_cpu_tensors_with_a_reason(rng: np.random.Generator) -> None:
    """Naming a floor that cannot run raises, and says why."""
    reason = unavailable("cuda", "cpu")
    assert reason
    with pytest.raises(
        ValueError, match="backend='cuda' cannot run trajectories on cpu: "
    ) as error:
        mme_targets.trajectories(torch.from_numpy(random_flow(rng, 6, 2, 16, 16)), backend="cuda")
    assert reason in str(error.value)


# ---- On a GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("median", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(1, 7, 9, 11, 3), (3, 13, 33, 64, 6), (2, 32, 224, 224, 32)])
def test_trajectories_equal_the_cpu_floor(
    size: tuple[int, ...], dtype: torch.dtype, median: int, sampling: str, rng: np.random.Generator
) -> None:
    """Bit for bit the CPU floor, whose every operation rounds alike; and close to the reference."""
    batch, pairs, height, width, length = size
    flow = torch.from_numpy(random_flow(rng, batch, pairs, 2, height, width)).to(dtype)
    flow[0, 1, 0, height // 2, width // 2] = torch.nan
    flow[-1, 0, 1, 0, 0] = torch.inf
    options = {"length": length, "grid": 4, "median": median, "sampling": sampling}
    found = mme_targets.trajectories(flow.cuda(), **options, backend="cuda")
    cpu = mme_targets.trajectories(flow, **options, backend="cpu")
    for ours, theirs in zip(found, cpu, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=0)
    if sampling == "nearest" and length < 8:  # long ones part from float64 where rounding decides
        exact = mme_targets.trajectories(flow, **options, backend="reference")
        assert_close(found.points.cpu(), exact.points, "points")
        assert torch.equal(found.visible.cpu(), exact.visible)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 17, 5), (2, 64, 224), (5, 224, 224)])
def test_median_filter_on_gpu(size: tuple[int, ...], rng: np.random.Generator) -> None:
    """A median selects, so it is exact."""
    flow = random_flow(rng, *size)
    exact = mme_targets.median_filter(flow, backend="reference")
    found = mme_targets.median_filter(to_gpu(flow), backend="cuda")
    assert_close(found.cpu(), torch.from_numpy(exact), "median")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "replicate", "pool": "mean"},
        {"l2": True},
        {"bins": 12, "cell": 5},
        {"binning": "linear", "cell": 16},
    ],
    ids=str,
)
def test_hog_on_gpu(options: dict, layout: str, rng: np.random.Generator) -> None:
    """The hot kernel and the general one, on whole, unbatched and non-contiguous frames."""
    frames = to_gpu(random_frames(rng, 2, 3, 3, 40, 96))
    if layout == "unbatched":
        frames = frames[0]
    elif layout == "strided":
        frames = frames[..., 1::2]
    found = mme_targets.hog(frames, **options, backend="cuda")
    exact = mme_targets.hog(frames.cpu(), **options, backend="reference")
    assert_close(found.cpu(), exact, "hog_l2" if options.get("l2") else "hog")
    if options.get("binning") != "linear":
        cpu = mme_targets.hog(frames.cpu(), **options, backend="cpu")
        torch.testing.assert_close(found.cpu(), cpu, rtol=0, atol=0)


@pytest.mark.gpu
def test_hog_magnitudes_are_rounded_to_nearest() -> None:
    """The hot kernel's square root is made from the device's reciprocal root.

    19 million random pixels have gradients of most sizes, and bit for bit the CPU floor's sums.
    """
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (128, 3, 224, 224), generator=generator, dtype=torch.uint8)
    cpu = mme_targets.hog(frames[None], backend="cpu")
    found = mme_targets.hog(frames[None].cuda(), backend="cuda")
    torch.testing.assert_close(found.cpu(), cpu, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("operation", ["hof", "mbh"])
def test_flow_histograms_on_gpu(operation: str, rng: np.random.Generator) -> None:
    """HOF and MBH share the general kernel; NaN adds nothing."""
    flow = random_flow(rng, 2, 3, 2, 37, 50)
    flow[0, 0, 0, 3, 3] = np.nan
    function = getattr(mme_targets, operation)
    exact = function(torch.from_numpy(flow), backend="reference")
    assert_close(function(to_gpu(flow), backend="cuda").cpu(), exact, "hog")


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", ["cell", "window"])
def test_trajectory_hog_on_gpu(sampling: str, rng: np.random.Generator) -> None:
    """Cells and windows along tracks that leave the frame."""
    frames = random_frames(rng, 2, 5, 3, 40, 48)
    points = rng.uniform(-10, 60, (2, 2, 3, 4, 4, 2)).astype(np.float32)
    times = torch.tensor([[0, 1, 2], [1, 3, 4]], dtype=torch.int32)
    found = mme_targets.trajectory_hog(
        to_gpu(frames), to_gpu(points), times.cuda(), sampling=sampling, backend="cuda"
    )
    exact = mme_targets.trajectory_hog(
        torch.from_numpy(frames), torch.from_numpy(points), times,
        sampling=sampling, backend="reference",
    )  # fmt: skip
    assert_close(found.cpu(), exact, "hog")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["patch", "coordinate"])
@pytest.mark.parametrize("shape", [(7, 4, 12), (5, 4, 162), (3, 16, 162), (2, 40, 3)])
def test_patch_norm_on_gpu(shape: tuple[int, ...], mode: str, rng: np.random.Generator) -> None:
    """Patches that fit in registers and such that do not; a constant one gives zeros."""
    values = rng.normal(3, 50, shape).astype(np.float32)
    values[1] = 13.7
    found = mme_targets.patch_norm(to_gpu(values), mode=mode, backend="cuda")
    exact = mme_targets.patch_norm(torch.from_numpy(values), mode=mode, backend="reference")
    for ours, theirs in zip(found, exact, strict=True):
        assert_close(ours.cpu(), theirs, "patch_norm")
    assert not found[0][1].any()


@pytest.mark.gpu
def test_auto_takes_cuda_for_cuda_tensors(module: ModuleType, rng: np.random.Generator) -> None:
    """And results stay on the device."""
    from mme_targets.backends import choose

    flow = to_gpu(random_flow(rng, 6, 2, 16, 16))
    assert choose("trajectories", flow, "auto") == "cuda"
    assert mme_targets.trajectories(flow).points.device == flow.device


@pytest.mark.gpu
def test_work_runs_on_the_current_stream(rng: np.random.Generator) -> None:
    """A kernel on another stream waits for what that stream was given before it."""
    flow = to_gpu(random_flow(rng, 2, 12, 2, 96, 96))
    expected = mme_targets.trajectories(flow)
    stream, late = torch.cuda.Stream(), torch.empty_like(flow)
    late.zero_()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(flow)
        found = mme_targets.trajectories(late)
    torch.cuda.current_stream().wait_stream(stream)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
def test_kernels_capture_into_a_graph(rng: np.random.Generator) -> None:
    """A replay computes on what the inputs then hold."""
    flow, frames = (
        to_gpu(random_flow(rng, 1, 6, 2, 64, 64)),
        to_gpu(random_frames(rng, 1, 2, 3, 64, 64)),
    )

    def work() -> tuple[torch.Tensor, ...]:
        tracks = mme_targets.trajectories(flow, backend="cuda")
        cells = mme_targets.hog(frames, backend="cuda")
        z, mean, std = mme_targets.patch_norm(
            tracks.displacements.reshape(-1, 4, 12), backend="cuda"
        )
        smooth = mme_targets.median_filter(flow, backend="cuda")
        return *tracks, cells, smooth, z, mean, std

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    flow.copy_(to_gpu(random_flow(rng, 1, 6, 2, 64, 64)))
    frames.copy_(to_gpu(random_frames(rng, 1, 2, 3, 64, 64)))
    graph.replay()
    for ours, theirs in zip(captured, work(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
def test_the_tensors_device_is_used(rng: np.random.Generator) -> None:
    """Work runs where the tensor is, whichever device is current, and leaves that one current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    flow = random_flow(rng, 6, 2, 32, 32)
    with torch.cuda.device(0):
        found = mme_targets.trajectories(to_gpu(flow, "cuda:1"), backend="cuda")
        assert torch.cuda.current_device() == 0
    assert found.points.device == torch.device("cuda:1")
    first = mme_targets.trajectories(to_gpu(flow, "cuda:0"), backend="cuda")
    assert torch.equal(found.points.cpu(), first.points.cpu())


@pytest.mark.gpu
def test_cupy_in_cupy_out(rng: np.random.Generator) -> None:
    """Through DLPack, without leaving the device."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    flow = random_flow(rng, 6, 2, 32, 32)
    found = mme_targets.trajectories(cupy.asarray(flow))
    assert isinstance(found.points, cupy.ndarray)
    expected = mme_targets.trajectories(to_gpu(flow))
    assert np.array_equal(cupy.asnumpy(found.points), expected.points.cpu().numpy())
