"""Which floor runs an operation, and why another cannot.

Four floors: `reference` (NumPy and OpenCV, float64), `cpu` (SIMD C++), `triton`, `cuda`. "auto"
takes cuda, else triton, for CUDA tensors, and cpu, else reference, for CPU tensors. `MME_BACKEND`
names the floor for every call that leaves it to "auto" and whose operation has that floor.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType

import torch

FLOORS = ("reference", "cpu", "triton", "cuda")
OPERATIONS: dict[str, tuple[str, ...]] = {
    "trajectories": FLOORS,
    "median_filter": FLOORS,
    "hog": FLOORS,
    "hof": FLOORS,
    "mbh": FLOORS,
    "trajectory_hog": FLOORS,
    "patch_norm": FLOORS,
    "optical_flow": FLOORS,
    "tvl1": FLOORS,
    "camera_motion": FLOORS,
}


def unavailable(floor: str, device: str) -> str | None:
    """Why `floor` cannot run on tensors of this device type; None if it can."""
    if floor == "reference":
        return None
    if floor == "cpu":
        return _unbuilt("_cpu") or (None if device == "cpu" else "cpu runs on CPU tensors only")
    if floor == "cuda":
        if reason := _unbuilt("_cuda"):
            return reason
        if not torch.cuda.is_available():
            return "torch sees no CUDA device here"
        return None if device == "cuda" else "cuda runs on CUDA tensors only"
    if reason := _no_triton():
        return reason
    if device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return "triton runs on CUDA tensors, or on CPU tensors with TRITON_INTERPRET=1 (slow)"


@cache
def _unbuilt(module: str) -> str | None:
    try:
        native = importlib.import_module(f"mme_targets.{module}")
    except ImportError as error:
        return f"mme_targets.{module} is not built or does not load ({error})"
    if module == "_cpu":
        try:
            native.isa()
        except RuntimeError as error:
            return str(error)
    return None


@cache
def _no_triton() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton is not installed ({error})"
    return None


def check_name(backend: str) -> None:
    """Raise `ValueError` unless `backend` is "auto" or a floor."""
    if backend not in ("auto", *FLOORS):
        names = ", ".join(repr(name) for name in ("auto", *FLOORS))
        raise ValueError(f"backend is {backend!r}; must be one of {names}")


def choose(operation: str, tensor: torch.Tensor, backend: str) -> str:
    """The floor that runs `operation` on `tensor`.

    Raises
    ------
    ValueError
        If `backend` is no floor, or the floor it names cannot run; the message says why.
    """
    check_name(backend)
    device, offered = tensor.device.type, OPERATIONS[operation]
    asked = backend
    if backend == "auto":
        asked = os.environ.get("MME_BACKEND", "auto")
        if asked not in ("auto", *FLOORS):
            raise ValueError(
                f"MME_BACKEND is {asked!r}; must be auto or one of {', '.join(FLOORS)}"
            )
        if asked not in offered:
            asked = "auto"
    if asked != "auto":
        if asked not in offered:
            raise ValueError(
                f"backend={asked!r}: {operation} has no such floor; it has {', '.join(offered)}"
            )
        if reason := unavailable(asked, device):
            raise ValueError(
                f"backend={asked!r} cannot run {operation} on {tensor.device}: {reason}"
            )
        return asked
    reasons = []
    for floor in ("cuda", "triton") if device == "cuda" else ("cpu", "reference"):
        if floor in offered:
            if (reason := unavailable(floor, device)) is None:
                return floor
            reasons.append(f"{floor}: {reason}")
    raise ValueError(
        f"no floor can run {operation} on {tensor.device} "
        f"({'; '.join(reasons) or 'none offers it'}); "
        "backend='reference' copies to the host and back"
    )


def load(floor: str) -> ModuleType:
    """The module of a floor; imported when first used, since Triton takes its time."""
    if floor == "reference":
        from . import reference

        return reference
    if floor == "triton":
        from . import triton

        return triton
    from . import native

    return native


def backends() -> dict[str, dict[str, str | None]]:
    """For every public operation and floor: None where it can run here, else the reason."""
    has_gpu = torch.cuda.is_available()
    table: dict[str, dict[str, str | None]] = {}
    for operation, offered in OPERATIONS.items():
        row: dict[str, str | None] = {}
        for floor in FLOORS:
            device = "cuda" if floor in ("triton", "cuda") and has_gpu else "cpu"
            row[floor] = unavailable(floor, device) if floor in offered else "not written"
        table[operation] = row
    return table
