"""Which floor runs and why not; what is imported when; processes forked after use."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from floors import FAST, assert_same, grid_flow, pixels, threads

from mme_targets import (
    Trajectories,
    _cpu,
    backends,
    hog,
    mbh,
    median_filter,
    patch_norm,
    trajectories,
    trajectory_hog,
)
from mme_targets.backends import FLOORS, OPERATIONS, _no_triton, choose, load, unavailable

MODULE = sys.modules["mme_targets.backends"]  # the attribute of that name is the function
STAGES = ["trajectories", "median_filter", "hog", "hof", "mbh", "trajectory_hog", "patch_norm"]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_memory_is_poisoned() -> None:
    """What the tests of outputs rest on: an element that nobody writes is NaN."""
    assert torch.empty(7).isnan().all()
    assert torch.zeros(3).new_empty(5).isnan().all()
    assert torch.empty_like(torch.zeros(2, 2)).isnan().all()


def test_the_matrix_has_every_operation_and_floor() -> None:
    table = backends()
    assert set(table) == {*STAGES, "optical_flow", "tvl1", "camera_motion"}
    for operation, row in table.items():
        assert tuple(row) == FLOORS == ("reference", "cpu", "triton", "cuda")
        assert row["reference"] is None
        assert all(reason is None or len(reason) > 5 for reason in row.values())
        for floor, reason in row.items():
            assert (reason == "not written") == (floor not in OPERATIONS[operation])
    for stage in STAGES:
        assert table[stage]["cpu"] is None
        assert OPERATIONS[stage] == FLOORS
    if not torch.cuda.is_available():
        assert all(table[stage]["cuda"] for stage in STAGES)


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_offers_every_stage(floor: str) -> None:
    if floor == "triton" and _no_triton():
        pytest.skip("triton is not installed")
    for name in ("tracks", "median_filter", "histograms", "windows", "patch_norm"):
        assert callable(getattr(load(floor), name))


def test_auto_takes_cpu_for_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_BACKEND", raising=False)
    x = torch.zeros(1)
    for stage in STAGES:
        assert choose(stage, x, "auto") == "cpu"
    assert choose("tvl1", x, "auto") in OPERATIONS["tvl1"]
    monkeypatch.setattr(MODULE, "_unbuilt", lambda module: f"{module} is not built")
    for stage in STAGES:
        assert choose(stage, x, "auto") == "reference"
    with pytest.raises(ValueError, match=r"backend='cpu' cannot run hog on cpu: _cpu is not built"):
        choose("hog", x, "cpu")


def test_the_environment_names_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    monkeypatch.setenv("MME_BACKEND", "reference")
    assert choose("hog", x, "auto") == "reference"
    assert choose("hog", x, "cpu") == "cpu"  # a named one goes first
    monkeypatch.setenv("MME_BACKEND", "auto")
    assert choose("hog", x, "auto") == "cpu"
    monkeypatch.setenv("MME_BACKEND", "gpu")
    with pytest.raises(
        ValueError, match="MME_BACKEND is 'gpu'; must be auto or one of reference, "
    ):
        hog(torch.zeros(1, 3, 8, 8))
    # Operations without that floor go on as if nothing had been said.
    lacking = [(o, f) for o, offered in OPERATIONS.items() for f in FLOORS if f not in offered]
    for operation, floor in lacking:
        monkeypatch.setenv("MME_BACKEND", floor)
        assert choose(operation, x, "auto") in OPERATIONS[operation]


def test_a_named_floor_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    with pytest.raises(ValueError, match=r"backend is 'gpu'; must be one of 'auto', 'reference'"):
        choose("hog", x, "gpu")
    with pytest.raises(ValueError, match=r"backend='cpu' .* hog on meta: cpu runs on CPU tensors"):
        choose("hog", x.to("meta"), "cpu")
    monkeypatch.setattr(MODULE, "OPERATIONS", {"hog": ("cpu",)})
    with pytest.raises(ValueError, match=r"no floor can run hog on meta \(cpu: cpu runs on CPU"):
        choose("hog", x.to("meta"), "auto")
    monkeypatch.undo()
    monkeypatch.setattr(MODULE, "OPERATIONS", {"hog": ("reference", "cpu")})
    with pytest.raises(
        ValueError, match=r"backend='cuda': hog has no such floor; it has reference"
    ):
        choose("hog", x, "cuda")
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(
            ValueError, match=r"backend='cuda' cannot run hog on cpu: .*(not built|no CUDA)"
        ):
            hog(torch.zeros(1, 3, 8, 8), backend="cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if not _no_triton():
        with pytest.raises(
            ValueError, match=r"cannot run patch_norm on cpu: triton runs on CUDA ten"
        ):
            patch_norm(torch.zeros(1, 2, 2), backend="triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert unavailable("triton", "cpu") is None


def test_meta_tensors_give_shapes() -> None:
    """As every torch operator: what `torch.compile` and shape inference rest on."""
    flow = torch.empty(2, 6, 2, 32, 40, device="meta")
    got = trajectories(flow, length=3)
    assert got.points.shape == (2, 2, 4, 5, 4, 2)
    assert got.visible.dtype == torch.bool
    frames = torch.empty(2, 6, 3, 32, 40, dtype=torch.uint8, device="meta")
    for result in (got.points, hog(frames), mbh(flow), median_filter(flow)):
        assert result.device.type == "meta"
        assert result.dtype == torch.float32
    assert hog(frames).shape == (2, 6, 3, 9, 4, 5)


def test_import_is_light() -> None:
    """NumPy and torch alone: everything else is imported where it is used."""
    code = """
import json, sys, torch
before = set(sys.modules)
import mme_targets
print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    before, added = json.loads(result.stdout)
    heavy = {"cv2", "av", "triton", "matplotlib", "yaml", "rich", "jsonargparse", "cupy", "pandas"}
    heavy |= {"torchvision", "safetensors", "scipy", "skimage", "PIL", "sympy"}
    assert not {name.split(".")[0] for name in added} & heavy
    for name in ("torch._dynamo", "torch._inductor"):
        assert name not in added
    own = [name for name in added if name.startswith("mme_targets")]
    assert len(own) <= 30
    assert "mme_targets.backends.triton" not in own
    assert len(added) - len(own) <= 40, added
    assert "torch" in before


def test_the_instruction_set_can_be_forced() -> None:
    code = "from mme_targets import _cpu; print(_cpu.isa())"
    assert python(code, MME_CPU_ISA="baseline").stdout.strip() == "baseline"
    wrong = python(code, MME_CPU_ISA="mmx")
    assert wrong.returncode != 0
    assert "MME_CPU_ISA is 'mmx'; this processor and build have baseline" in wrong.stderr
    before = _cpu.isa()
    with pytest.raises(RuntimeError, match="'mmx'"):
        _cpu.use_isa("mmx")
    assert _cpu.isa() == before
    assert FAST[0] == "cpu-baseline"


# --- every operation on every floor that can run here, Triton's interpreter too ------------------


def everything(backend: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    flow = torch.randint(-90, 91, (1, 2, 2, 16, 17), generator=generator) / 32
    frames = torch.randint(0, 256, (1, 3, 1, 16, 17), generator=generator).to(torch.uint8)
    got = trajectories(flow, length=2, grid=8, backend=backend)
    times = torch.tensor([[0, 1]])
    along = [
        trajectory_hog(frames, got.points, times, sampling=s, backend=backend)
        for s in ("cell", "window")
    ]
    values = got.displacements.reshape(1, 4, 4)
    maps = [door(data, backend=backend) for door, data in ((hog, frames), (mbh, flow))]
    normed = patch_norm(values, backend=backend)
    return [*got, median_filter(flow[:, :1], backend=backend), *maps, *along, *normed]


def test_all_floors_agree_on_one_small_clip() -> None:
    expected = everything("reference")
    for floor in ("cpu", "triton"):
        if unavailable(floor, "cpu") is None:
            for mine, right in zip(everything(floor), expected, strict=True):
                assert mine.dtype == right.dtype
                torch.testing.assert_close(mine, right, atol=2e-3, rtol=2e-6)


def test_compiles_with_the_default_compiler(rng) -> None:
    """Flow and frames to normalised moves and HOG along tracks, in one graph of Inductor's."""
    flow = grid_flow(rng, 1, 6, 2, 16, 24)
    frames = pixels(rng, 1, 7, 3, 16, 24)

    def forward(omega: torch.Tensor, clip: torch.Tensor) -> tuple[torch.Tensor, ...]:
        got = trajectories(omega * 0.5, length=3)
        times = torch.arange(6).reshape(2, 3)
        moves = got.displacements.flatten(-3, -2).flatten(1, 2)
        return got.points + 1, trajectory_hog(clip, got.points, times) * 2, *patch_norm(moves)

    compiled = torch.compile(forward, fullgraph=True)
    for mine, theirs in zip(compiled(flow, frames), forward(flow, frames), strict=True):
        assert torch.equal(mine, theirs)


# --- a process forked after the floor's threads have run -----------------------------------------

RNG = np.random.default_rng(1)
FLOW = torch.from_numpy(RNG.normal(size=(2, 6, 2, 64, 64)).astype(np.float32))
FRAMES = torch.from_numpy(RNG.integers(0, 256, (2, 6, 3, 64, 64), dtype=np.uint8))


def kernels() -> list[bytes]:
    """Several pieces of work a kernel, so that two threads really run.

    All tensors stay below 2¹⁵ elements, from which on torch's own operations (here the filling of
    memory with NaN) use OpenMP, and that hangs in a forked process whatever this package does.
    """
    got = trajectories(FLOW, grid=4, backend="cpu")
    moves = got.displacements.flatten(1, 3)[0]
    maps = hog(FRAMES[:, :1], backend="cpu")
    return [t.numpy().tobytes() for t in (*got, maps, *patch_norm(moves, backend="cpu"))]


def _child(queue: multiprocessing.Queue, depth: int) -> None:
    result = kernels()
    if depth:
        child = multiprocessing.get_context("fork").Process(target=_child, args=(queue, depth - 1))
        child.start()
        child.join(30)
        assert child.exitcode == 0
    queue.put(result)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_may_use_the_floor_again() -> None:
    with threads(2):
        expected = kernels()
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        children = [context.Process(target=_child, args=(queue, 1)) for _ in range(2)]
        for child in children:
            child.start()
        try:
            for _ in range(4):  # two children and a child of each
                assert queue.get(timeout=60) == expected
            for child in children:
                child.join(60)
                assert child.exitcode == 0
        finally:
            for child in children:
                child.kill()
        assert kernels() == expected


class Clips(torch.utils.data.Dataset):
    """All that a loader's worker would make of a clip, at a real size."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        flow = FLOW[:1].repeat(1, 4, 1, 3, 3).half()
        frames = FRAMES[:1].repeat(1, 4, 1, 3, 3)
        got = trajectories(flow, backend="cpu")
        times = torch.arange(24).reshape(4, 6)
        found = [
            trajectory_hog(frames, got.points, times, sampling=s, backend="cpu")
            for s in ("cell", "window")
        ]
        results = (*got, *found, median_filter(flow), mbh(flow.float()))
        return torch.cat([t.double().flatten() for t in results]) + index


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_loader_worker() -> None:
    with threads(2):
        expected = Clips()[0]
        loader = torch.utils.data.DataLoader(
            Clips(), batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=60
        )
        for index, item in enumerate(loader):
            assert torch.equal(item[0], expected + index)


def test_calls_from_several_threads_at_once(rng) -> None:
    """One call has the pool, the others work alone; all get their own result."""
    from concurrent.futures import ThreadPoolExecutor

    clips = [grid_flow(rng, 2, 6, 2, 64, 64) for _ in range(6)]
    expected = [trajectories(clip, grid=2) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, right in zip(
                pool.map(lambda c: trajectories(c, grid=2), clips), expected, strict=True
            ):
                assert_same(Trajectories(*got), right)
