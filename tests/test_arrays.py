"""Arrays at the doors: torch, NumPy, CuPy; no copies; messages that name argument and rule."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from mme_targets import hog, mbh, median_filter, patch_norm, trajectories, trajectory_hog
from mme_targets.arrays import (
    as_tensor,
    check_choice,
    check_dtype,
    check_range,
    check_rank,
    like_input,
)


def test_numpy_is_viewed_without_a_copy() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = as_tensor(array, "x")
    array[1, 2] = 42
    assert tensor[1, 2] == 42
    back = like_input(tensor, array)
    assert isinstance(back, np.ndarray)
    assert np.shares_memory(back, array)


def test_torch_is_passed_through_without_its_graph() -> None:
    leaf = torch.ones(3, requires_grad=True)
    tensor = as_tensor(leaf * 2, "x")
    assert not tensor.requires_grad
    assert like_input(tensor, leaf) is tensor


@pytest.mark.parametrize("make", [lambda a: a[::-1], lambda a: np.broadcast_to(a, (4, *a.shape))])
def test_what_torch_cannot_view_is_copied(make) -> None:
    array = make(np.arange(5, dtype=np.float32))
    if array.ndim == 2:
        assert not array.flags.writeable
    np.testing.assert_array_equal(as_tensor(array, "x").numpy(), array)


def test_read_only_input_is_left_alone() -> None:
    flow = np.ones((1, 2, 9, 9), np.float32)
    flow.flags.writeable = False
    assert trajectories(flow, length=1, grid=3).displacements.shape == (1, 3, 3, 1, 2)
    assert (flow == 1).all()


class FakeCupy(np.ndarray):
    """What matters of a CuPy array here: its module's name and DLPack."""


FakeCupy.__module__ = "cupy"


def test_cupy_goes_through_dlpack(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("cupy")
    module.from_dlpack = lambda t: np.from_dlpack(t).view(FakeCupy)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", module)

    class Array:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **options):
            return self.tensor.__dlpack__()

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    Array.__module__ = "cupy._core.core"
    memory = torch.arange(9.0).reshape(3, 3)
    tensor = as_tensor(Array(memory), "x")
    assert tensor.data_ptr() == memory.data_ptr()
    out = median_filter(Array(memory))
    assert isinstance(out, FakeCupy)
    assert out[1, 1] == 4


@pytest.mark.parametrize("value", [[1.0, 2.0], 3.0, None, "flow"])
def test_other_kinds_are_refused_by_name(value) -> None:
    with pytest.raises(TypeError, match=r"^clip is a .*; must be a torch tensor, a NumPy array"):
        as_tensor(value, "clip")


def test_a_dtype_that_torch_lacks_is_named() -> None:
    with pytest.raises(TypeError, match="flow has dtype object, which torch lacks"):
        trajectories(np.empty((1, 2, 9, 9), object))


def test_checks_name_argument_value_and_rule() -> None:
    x = torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"^x has dtype int32; must be float32 or float16$"):
        check_dtype(x, "x", (torch.float32, torch.float16))
    with pytest.raises(ValueError, match=r"^x has shape \[2, 3\], 2-D; must be \[N\]$"):
        check_rank(x, "x", (1,), "[N]")
    with pytest.raises(ValueError, match=r"^mode is 'a'; must be one of 'b', 3$"):
        check_choice("a", "mode", ("b", 3))
    with pytest.raises(ValueError, match=r"^n is 9; must be at least 1 and at most 8$"):
        check_range(9, "n", 1, 8)
    for bad in (float("nan"), -1):
        with pytest.raises(ValueError, match=r"^eps is .*; must be at least 0.0$"):
            check_range(bad, "eps", 0.0)
    for kind in (True, "1", None):
        with pytest.raises(TypeError, match=r"^eps is .*; must be a number$"):
            check_range(kind, "eps", 0.0)
    for part in (2.5, 2.0, True, "2"):
        with pytest.raises(TypeError, match=r"^bins is .*; must be a whole number$"):
            check_range(part, "bins", 2)
    for fine in (2, np.int64(3), np.uint8(4)):
        check_range(fine, "bins", 2, 36)
    check_range(np.float32(0.5), "eps", 0.0, 1.0)


def test_numpy_in_numpy_out_everywhere(rng: np.random.Generator) -> None:
    flow = rng.normal(size=(3, 2, 17, 20)).astype(np.float32)
    frames = rng.integers(0, 256, (3, 3, 17, 20), dtype=np.uint8)
    tracks = trajectories(flow, length=3, grid=5)
    times = np.arange(3)[None]
    results = [
        *tracks,
        median_filter(flow),
        hog(frames),
        mbh(flow),
        trajectory_hog(frames, tracks.points, times),
        *patch_norm(tracks.displacements.reshape(-1, 4, 6)),
    ]
    assert all(isinstance(r, np.ndarray) for r in results)
    same = trajectories(torch.from_numpy(flow), length=3, grid=5)
    assert all(isinstance(t, torch.Tensor) for t in same)
    np.testing.assert_array_equal(tracks.points, same.points.numpy())


def test_targets_carry_no_gradient() -> None:
    flow = torch.randn(2, 2, 16, 16, requires_grad=True)
    frames = torch.rand(2, 3, 16, 16, requires_grad=True)
    tracks = trajectories(flow, length=2)
    for result in (
        *tracks,
        median_filter(flow),
        hog(frames),
        mbh(flow),
        trajectory_hog(frames, tracks.points, torch.tensor([[0, 1]])),
        *patch_norm(torch.randn(2, 4, 3, requires_grad=True)),
    ):
        assert not result.requires_grad
