"""Arrays in, same kind out: torch, NumPy and CuPy at the doors, torch tensors below them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Array = Any
"""A `torch.Tensor`, `numpy.ndarray` or `cupy.ndarray`."""


def as_tensor(array: Array, name: str) -> torch.Tensor:
    """View `array` as a torch tensor on its own device, without a copy where memory allows.

    Raises
    ------
    TypeError
        If `array` is none of torch, NumPy and CuPy; `name` is the argument the message names.
    """
    if isinstance(array, torch.Tensor):
        return array.detach()
    if isinstance(array, np.ndarray):
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch can represent neither
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError) as error:
            dtype = array.dtype.str if not array.dtype.isnative else array.dtype
            raise TypeError(f"{name} has dtype {dtype}, which torch lacks") from error
    if type(array).__module__.split(".")[0] == "cupy":
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(array)
        return tensor
    raise TypeError(
        f"{name} is a {type(array).__module__}.{type(array).__name__}; "
        "must be a torch tensor, a NumPy array or a CuPy array"
    )


def like_input(tensor: torch.Tensor, array: Array) -> Array:
    """Return `tensor` as the kind of array that `array` is."""
    if isinstance(array, torch.Tensor):
        return tensor
    if isinstance(array, np.ndarray):
        return tensor.numpy()
    import cupy

    return cupy.from_dlpack(tensor)


def check_dtype(tensor: torch.Tensor, name: str, allowed: Sequence[torch.dtype]) -> None:
    """Raise `TypeError` naming the argument unless its dtype is one of `allowed`."""
    if tensor.dtype not in allowed:
        must = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(
            f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}; must be {must}"
        )


def check_rank(tensor: torch.Tensor, name: str, ranks: Sequence[int], layout: str) -> None:
    """Raise `ValueError` naming the argument unless its rank is one of `ranks`."""
    if tensor.dim() not in ranks:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}, {tensor.dim()}-D; must be {layout}"
        )


def check_choice(value: object, name: str, allowed: Sequence[object]) -> None:
    """Raise `ValueError` naming the argument unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; must be one of {', '.join(map(repr, allowed))}")


def check_range(value: float, name: str, low: float, high: float = float("inf")) -> None:
    """Raise, naming the argument, unless low ≤ value ≤ high, and whole where `low` is an int."""
    whole = isinstance(low, int)
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name} is {value!r}; must be a {'whole ' if whole else ''}number")
    if not low <= value <= high:
        upper = "" if high == float("inf") else f" and at most {high}"
        raise ValueError(f"{name} is {value!r}; must be at least {low}{upper}")
