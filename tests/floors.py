"""What several test files share: which floors run here, comparisons in two bands, properties."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from conftest import FLIPS, TOLERANCE
from hypothesis import settings

from mme_targets import Trajectories, _cpu

FAST = [f"cpu-{isa}" for isa in _cpu.isas()]
"""Every fast floor that runs here on CPU tensors at full speed: one for each instruction set."""

ALL = ["reference", *FAST]

PROPERTY = settings(deadline=None, max_examples=20, derandomize=True)
"""Hypothesis: the same examples in every run, no time limit on a busy machine."""

ULPS = 6
"""Positions closer than this to where a decision changes may be decided either way: one addition
a step, each within half an ulp, on the float32 side and the final rounding of the reference."""


HISTOGRAMS = [
    {},
    {"bins": 8},
    {"bins": 2, "cell": 2},
    {"bins": 36, "cell": 5, "pool": "mean"},
    {"cell": 4, "padding": "replicate"},
    {"pool": "mean", "padding": "replicate"},
    {"l2": True},
    {"bins": 12, "l2": True, "pool": "mean"},
    {"binning": "linear"},
    {"binning": "linear", "bins": 6, "cell": 3, "padding": "replicate"},
    {"binning": "linear", "l2": True},
]
"""Options of the histograms that the floors are compared in."""


def tolerance(options: dict) -> str:
    """The entry of the tolerance table for these options."""
    return "hog_l2" if options.get("l2") else "hog"


@contextmanager
def running(floor: str) -> Iterator[str]:
    """The name for `backend=`, with the floor's instruction set switched on meanwhile."""
    backend, _, isa = floor.partition("-")
    before = _cpu.isa()
    if isa:
        _cpu.use_isa(isa)
    try:
        yield backend
    finally:
        _cpu.use_isa(before)


def run(door: Callable[..., Any], *data: Any, floor: str, **options: Any) -> Any:
    """Call a public function on a floor."""
    with running(floor) as backend:
        return door(*data, backend=backend, **options)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` threads, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pixels(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Random uint8 frames."""
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


def image(values: np.ndarray) -> torch.Tensor:
    """A grey image [H, W] as one clip of one frame of one channel, float32."""
    return torch.from_numpy(np.asarray(values, np.float32))[None, None]


def grid_flow(
    rng: np.random.Generator, *shape: int, reach: float = 25.0, step: int = 64
) -> torch.Tensor:
    """Random float32 flow of whole multiples of 1/step px: sums and positions are then exact."""
    most = int(reach * step)
    return torch.from_numpy(rng.integers(-most, most + 1, shape).astype(np.float32) / step)


def smooth_flow(rng: np.random.Generator, *shape: int, reach: float = 3.0) -> torch.Tensor:
    """Random waves [..., H, W] of about a pixel's change over ten: what bilinear reading suits."""
    height, width = shape[-2:]
    y, x = np.mgrid[:height, :width]
    kx, ky, phase = (rng.uniform(low, 1, (*shape[:-2], 1, 1)) for low in (-1, -1, 0))
    wave = np.sin(0.3 * (kx * x + ky * y) + 2 * np.pi * phase)
    return torch.from_numpy((reach * wave).astype(np.float32))


def assert_same(actual: Trajectories, expected: Trajectories) -> None:
    """Bit for bit."""
    for name, a, b in zip(Trajectories._fields, actual, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert torch.equal(a, b), name


def assert_tracks_agree(
    actual: Trajectories, reference: Trajectories, height: int, width: int, flips: float = FLIPS
) -> None:
    """Two bands: tight; a share of tracks may differ, each from where a position is at an edge.

    A nearest read flips where a coordinate is a whole number and a half, visibility where it is 0,
    the width or the height.
    """
    points, moves = (getattr(actual, n).flatten(0, -3) for n in ("points", "displacements"))
    right, steps = (getattr(reference, n).flatten(0, -3) for n in ("points", "displacements"))
    assert (points.shape, moves.shape) == (right.shape, steps.shape)
    assert points.isfinite().all()
    assert moves.isfinite().all()

    def off(a: torch.Tensor, b: torch.Tensor, what: str) -> torch.Tensor:
        absolute, relative = TOLERANCE[what]
        return ((a - b).abs() > absolute + relative * b.abs()).any(-1)

    differs = off(moves, steps, "displacements")
    flipped = differs.any(-1)
    assert not off(points, right, "points")[~flipped].any()
    assert flipped.float().mean() <= flips, f"{int(flipped.sum())} of {len(flipped)} tracks differ"
    for track in flipped.nonzero()[:, 0].tolist():
        read = right[track, differs[track].int().argmax()]
        assert (_to_edge(read - 0.5, 1.0) <= _slack(read)).any(), f"{read} is at no edge"

    size = torch.tensor([width, height], dtype=right.dtype)
    at_border = (_to_edge(right, size) <= _slack(right)).flatten(1).any(1)
    seen, expected = actual.visible.flatten(), reference.visible.flatten()
    assert torch.equal(seen[~flipped & ~at_border], expected[~flipped & ~at_border])


def _to_edge(place: torch.Tensor, period: torch.Tensor | float) -> torch.Tensor:
    return (place - (place / period).round() * period).abs()


def _slack(place: torch.Tensor) -> torch.Tensor:
    return ULPS * torch.finfo(torch.float32).eps * place.abs().clamp_min(1)
