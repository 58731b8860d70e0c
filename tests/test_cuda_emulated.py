"""The CUDA kernels themselves, run on the host by `tests/cuda_emulator`, against the reference.

What a GPU would still have to show: device instructions that stand behind `__CUDA_ARCH__`, streams,
graphs and speed (test_cuda.py, benchmarks/cuda_design.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FLIPS, assert_close

from mme_targets.backends import native, reference, unavailable

HOG = {
    "bins": 9, "cell": 8, "binning": "hard", "pool": "sum", "padding": "reflect", "l2": False
}  # fmt: skip
TRACKS = {"bound": 20.0, "median": 3, "sampling": "nearest"}


@pytest.fixture
def floor(kernels: ModuleType, order: None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`backends.native` on CPU tensors, handing them to the emulated kernels."""
    with_half = SimpleNamespace(**vars(kernels))
    with_half.tracks = lambda flow, *rest: kernels.tracks(flow, False, *rest)
    monkeypatch.setattr(native, "_module", lambda tensor: with_half)
    monkeypatch.setattr(native, "_context", lambda tensor: (0, 0))
    return native


def on_cpu(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> Any:
    """Run `work` on the CPU floor."""
    if reason := unavailable("cpu", "cpu"):
        pytest.fail(reason)
    with monkeypatch.context() as patch:
        from mme_targets import _cpu

        patch.setattr(native, "_module", lambda tensor: _cpu)
        patch.setattr(native, "_context", lambda tensor: (1,))
        return work()


def track_inputs(
    rng: np.random.Generator, batch: int, seed_batches: int, count: int, length: int, size: int = 19
) -> tuple[torch.Tensor, ...]:
    """Flow of 7 pairs, seeds in and out of the frame, two rows of steps."""
    flow = torch.from_numpy(rng.normal(0, 4, (batch, 7, 2, size, size + 6)).astype(np.float32))
    seeds = rng.uniform(-4, size + 8, (seed_batches, count, 2)).astype(np.float32)
    starts = rng.integers(0, 2, (seed_batches, count), dtype=np.int32)
    steps = rng.integers(0, 7, (2, length), dtype=np.int32)
    return flow, *map(torch.from_numpy, (seeds, starts, steps))


@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("median", [1, 3])
@pytest.mark.parametrize(
    ("batch", "seed_batches", "count", "length"),
    [(1, 1, 1, 1), (2, 1, 33, 6), (3, 3, 50, 4), (1, 1, 70, 32), (2, 2, 5, 0), (1, 1, 0, 6)],
)
def test_tracks(
    batch: int, seed_batches: int, count: int, length: int, median: int, sampling: str,
    floor: ModuleType, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Bit for bit the CPU floor; and the reference, while no rounding decides differently.

    Noise has slopes of several px a px, which multiply what float32 rounds at every bilinear step:
    the reference gets smooth flow there.
    """
    inputs = track_inputs(rng, batch, seed_batches, count, length)
    options = {"bound": 5.0, "median": median, "sampling": sampling}
    noise = inputs[0].clone()
    noise[0, 2, 1, 8, 9] = torch.nan
    found = floor.tracks(noise, *inputs[1:], **options)
    cpu = on_cpu(monkeypatch, lambda: native.tracks(noise, *inputs[1:], **options))
    for ours, theirs in zip(found, cpu, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    if length > 6:
        return
    if sampling == "bilinear":
        phase = torch.linspace(0, 6, inputs[0].shape[-1])
        inputs[0][:] = inputs[0][..., :1, :1] + torch.sin(phase + inputs[0][..., 1:2, 1:2])
    inputs[0][0, 2, 1, 8, 9] = torch.nan
    found = floor.tracks(*inputs, **options)
    exact = reference.tracks(*inputs, **options)
    assert_close(found[0], exact[0], "points")
    assert_close(found[1], exact[1], "displacements")
    assert torch.equal(found[2], exact[2])


def test_tracks_of_half_precision_flow(
    kernels: ModuleType, floor: ModuleType, rng: np.random.Generator
) -> None:
    """Halves are read as they are: the tracks are those of the same values widened."""
    flow, seeds, starts, steps = track_inputs(rng, 2, 1, 40, 5)
    half = flow.half()
    half[0, 0, 0, 3, 3] = torch.inf
    expected = floor.tracks(half.float(), seeds, starts, steps, **TRACKS)
    found = [torch.full_like(t, 1 if t.dtype == torch.bool else torch.nan) for t in expected]
    kernels.tracks(
        half.data_ptr(), True, 2, 7, *half.shape[-2:], seeds.data_ptr(), 1, 40, starts.data_ptr(),
        steps.data_ptr(), 2, 5, 20.0, True, False, *(t.data_ptr() for t in found), 0, 0,
    )  # fmt: skip
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_pairs_and_starts_that_do_not_exist_kill_the_track(
    floor: ModuleType, rng: np.random.Generator
) -> None:
    """Nothing is read outside the arrays; the track stands still and is invisible."""
    flow, seeds, starts, steps = track_inputs(rng, 1, 1, 3, 3)
    seeds[:] = 9.5
    starts[0], steps[0], steps[1] = torch.tensor([0, 1, 2]), torch.tensor([0, -1, 1]), 7
    points, displacements, visible = floor.tracks(flow, seeds, starts, steps, **TRACKS)
    assert not visible.any()
    assert displacements[0, 0, 0].all()
    assert not displacements[0, 0, 1:].any()
    assert not displacements[0, 1:].any()
    assert (points[0, 1:] == 9.5).all()


def test_flow_without_pairs_kills_every_track(floor: ModuleType, rng: np.random.Generator) -> None:
    """There is no pixel that a step could read."""
    flow, seeds, starts, steps = track_inputs(rng, 2, 1, 3, 2)
    seeds[:] = 9.5
    points, displacements, visible = floor.tracks(flow[:, :0], seeds, starts, steps, **TRACKS)
    assert (points == 9.5).all()
    assert not displacements.any()
    assert not visible.any()


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 9), (3, 16, 7), (2, 33, 31)])
def test_median_filter(size: tuple[int, ...], floor: ModuleType, rng: np.random.Generator) -> None:
    """Strips of 16 rows, whole and not, and borders on every side."""
    planes = torch.from_numpy(rng.normal(0, 4, size).astype(np.float32))
    assert_close(floor.median_filter(planes, 3), reference.median_filter(planes, 3), "median")


def test_median_filter_of_nothing(floor: ModuleType) -> None:
    """No planes launch no kernel."""
    assert floor.median_filter(torch.empty(0, 5, 5), 3).shape == (0, 5, 5)


@pytest.mark.parametrize("cells_last", [False, True])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((2, 3, 24, 40), {}),
        ((3, 1, 8, 8), {"padding": "replicate"}),
        ((1, 2, 29, 48), {"pool": "mean"}),
        ((1, 3, 16, 72), {"l2": True, "padding": "replicate", "pool": "mean"}),
        ((2, 3, 21, 43), {}),
        ((1, 2, 21, 43), {"bins": 36, "cell": 5, "l2": True}),
        ((1, 1, 70, 66), {"bins": 2, "cell": 33, "pool": "mean"}),
        ((1, 1, 3, 4), {"bins": 8, "cell": 2}),
        ((1, 2, 24, 32), {"binning": "linear"}),
        ((0, 3, 16, 16), {}),
    ],
    ids=str,
)
def test_hog_of_uint8(
    size: tuple[int, ...], options: dict[str, Any], cells_last: bool,
    floor: ModuleType, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The kernel for 8x8 cells of nine bins (the first four cases), and the general one."""
    images = torch.from_numpy(rng.integers(0, 256, size, dtype=np.uint8))
    images[..., : size[2] // 2, :9] = 200  # a flat part: zero gradients
    arguments = HOG | options | {"vectors": False, "cells_last": cells_last}
    found = floor.histograms(images, **arguments)
    what = "hog_l2" if options.get("l2") else "hog"
    assert_close(found, reference.histograms(images, **arguments), what)
    cpu = on_cpu(monkeypatch, lambda: native.histograms(images, **arguments))
    if options.get("binning") == "linear":  # the two were compiled with other atan2
        assert_close(found, cpu, "hog")
    else:
        torch.testing.assert_close(found, cpu, rtol=0, atol=0)


def test_hog_of_frames_at_odd_addresses(floor: ModuleType, rng: np.random.Generator) -> None:
    """The kernel that reads eight bytes at once leaves these to the general one."""
    storage = torch.from_numpy(rng.integers(0, 256, 3 + 2 * 16 * 24, dtype=np.uint8))
    images = storage[3:].view(1, 2, 16, 24)
    arguments = HOG | {"vectors": False, "cells_last": False}
    found = floor.histograms(images, **arguments)
    assert torch.equal(found, floor.histograms(images.clone(), **arguments))


@pytest.mark.parametrize("binning", ["hard", "linear"])
@pytest.mark.parametrize("vectors", [False, True], ids=["mbh", "hof"])
@pytest.mark.parametrize("special", [None, np.nan, np.inf])
def test_histograms_of_flow(
    special: float | None, vectors: bool, binning: str,
    floor: ModuleType, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """float32 input; values that are not finite add nothing and spoil no neighbour."""
    images = torch.from_numpy(rng.normal(0, 5, (2, 2, 25, 33)).astype(np.float32))
    images[..., 20:22, 3:20] = 0
    if special is not None:
        images[0, 0, 4, 5] = special
        images[1, :, 8, 8] = special
    arguments = HOG | {"binning": binning, "vectors": vectors, "cells_last": False}
    found = floor.histograms(images, **arguments)
    exact = reference.histograms(images, **arguments)
    assert torch.isfinite(found).all()
    near = torch.isclose(found.double(), exact.double(), atol=2e-3, rtol=2e-6)
    assert (~near).sum() <= max(2, FLIPS * near.numel())  # a pixel on the edge of two bins
    assert_close(found.sum(2), exact.sum(2), "hog")  # but none is lost
    if binning == "hard":
        cpu = on_cpu(monkeypatch, lambda: native.histograms(images, **arguments))
        torch.testing.assert_close(found, cpu, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "options", [{}, {"cell": 5, "bins": 12, "l2": True}, {"cell": 20}], ids=str
)
@pytest.mark.parametrize("seed_batches", [1, 2])
def test_windows(
    seed_batches: int, options: dict[str, Any], dtype: torch.dtype,
    floor: ModuleType, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Points in, out of and far out of the frame; more points stored than looked at."""
    images = torch.from_numpy(rng.integers(0, 256, (2, 4, 2, 20, 27), dtype=np.uint8)).to(dtype)
    points = torch.from_numpy(rng.uniform(-9, 36, (2, 7, 4, 2)).astype(np.float32))
    points[0, 0, 0] = torch.tensor([1e9, -1e9])
    starts = torch.from_numpy(rng.integers(0, 2, (seed_batches, 7), dtype=np.int32))
    times = torch.tensor([[0, 2, 3], [1, 1, 0]], dtype=torch.int32)
    arguments = HOG | options
    found = floor.windows(images, points, starts, times, **arguments)
    exact = reference.windows(images, points, starts, times, **arguments)
    assert_close(found, exact, "hog_l2" if options.get("l2") else "hog")
    cpu = on_cpu(monkeypatch, lambda: native.windows(images, points, starts, times, **arguments))
    torch.testing.assert_close(found, cpu, rtol=0, atol=0)


def test_windows_of_frames_that_do_not_exist_are_empty(
    floor: ModuleType, rng: np.random.Generator
) -> None:
    """Nothing is read outside the array."""
    images = torch.from_numpy(rng.integers(0, 256, (1, 2, 1, 16, 16), dtype=np.uint8))
    points = torch.full((1, 3, 1, 2), 8.0)
    starts = torch.tensor([[0, 1, 5]], dtype=torch.int32)
    times = torch.tensor([[-1], [2]], dtype=torch.int32)
    assert not floor.windows(images, points, starts, times, **HOG).any()


@pytest.mark.parametrize("mode", ["patch", "coordinate"])
@pytest.mark.parametrize(
    "shape",
    [
        (9, 4, 12),
        (5, 4, 27),
        (3, 4, 162),
        (2, 16, 162),
        (3, 2, 1),
        (2, 17, 3),
        (1, 64, 5),
        (0, 4, 12),
    ],
    ids=str,
)
def test_patch_norm(
    shape: tuple[int, ...], mode: str, floor: ModuleType, rng: np.random.Generator
) -> None:
    """Patches that fit in registers and such that do not; a constant one gives zeros."""
    values = torch.from_numpy(rng.normal(3, 50, shape).astype(np.float32))
    values[:1] = 13.7
    found = floor.patch_norm(values, mode=mode, eps=1e-6)
    exact = reference.patch_norm(values, mode=mode, eps=1e-6)
    for ours, theirs in zip(found, exact, strict=True):
        assert_close(ours, theirs, "patch_norm")
    assert not found[0][:1].any()


def test_nine_bins_of_every_gradient(library: Path) -> None:
    """The hot kernel's orientation is the definition's for all 4.2 million gradients of uint8."""
    functions = ctypes.CDLL(str(library))
    assert functions.nine_bins_mismatches() == 0
    assert functions.biased_sobel_mismatches(100_000) == 0


def test_a_device_that_does_not_exist_raises(kernels: ModuleType) -> None:
    """With what CUDA says."""
    with pytest.raises(RuntimeError, match="cannot use the CUDA device: invalid device ordinal"):
        kernels.median_filter(0, 1, 3, 3, 0, 7, 0)
