"""What is hidden from the encoder: tubes, cubes or any patches, exactly as many in each clip.

Table 7e. Patches run in (t, h, w) order; True is masked.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .recipe import MaskConfig

__all__ = ["draw_mask", "masked_count"]

Mask = NDArray[np.bool_]
SMALLEST = 16 / 196
"""Least area of a cuboid, as a share of the frame's patches (MaskFeat: 16 of 14×14)."""
ASPECT = 0.3
"""A cuboid's width over its height lies between this and its inverse (BEiT's, and MaskFeat's)."""


def masked_count(config: MaskConfig, grid: tuple[int, int, int]) -> int:
    """M, the masked patches of a clip of `grid` (t, h, w) patches.

    Of tubes ⌊ratio·h·w⌋ at each time, as VideoMAE has it; else ⌊ratio·t·h·w⌋.

    Raises
    ------
    ValueError
        When the ratio leaves no patch visible, or masks none.
    """
    t, h, w = grid
    total = t * h * w
    count = int(config.ratio * h * w) * t if config.kind == "tube" else int(config.ratio * total)
    if 0 < count < total:
        return count
    of = f"{h}x{w} at each of {t} times" if config.kind == "tube" else f"{t}x{h}x{w}"
    what = "leaves no patch visible" if count else "masks no patch"
    raise ValueError(
        f"mask.ratio is {config.ratio:g}, which {what} of {of}; one must be masked and one visible"
    )


def draw_mask(config: MaskConfig, grid: tuple[int, int, int], rng: np.random.Generator) -> Mask:
    """Draw one clip's mask [N], with exactly `masked_count` patches masked; ValueError as there."""
    count = masked_count(config, grid)
    t, h, w = grid
    if config.kind == "cube":
        return _cubes(count, grid, rng)
    tube = config.kind == "tube"
    mask = np.zeros(h * w if tube else t * h * w, dtype=bool)
    mask[rng.permutation(mask.size)[: count // t if tube else count]] = True
    return np.tile(mask, t) if tube else mask


def _cubes(count: int, grid: tuple[int, int, int], rng: np.random.Generator) -> Mask:
    """Cuboids of random size at random places until there are enough; the last one is thinned."""
    mask = np.zeros(grid, dtype=bool)
    missing = count
    while missing > 0:
        cuboid = np.zeros(grid, dtype=bool)
        cuboid[_cuboid(grid, rng)] = True
        fresh = np.flatnonzero(cuboid & ~mask)
        mask.flat[fresh if len(fresh) <= missing else rng.permutation(fresh)[:missing]] = True
        missing -= len(fresh)
    return mask.ravel()


def _cuboid(grid: tuple[int, int, int], rng: np.random.Generator) -> tuple[slice, slice, slice]:
    """One cuboid: its area, aspect ratio, duration and place are drawn."""
    t, h, w = grid
    area = h * w * rng.uniform(SMALLEST, 0.5)
    aspect = math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
    wanted = (int(rng.integers(1, t + 1)), math.sqrt(area / aspect), math.sqrt(area * aspect))
    sides = [min(max(1, round(side)), whole) for side, whole in zip(wanted, grid, strict=True)]
    corner = [int(rng.integers(0, n - side + 1)) for side, n in zip(sides, grid, strict=True)]
    first, second, third = (slice(a, a + n) for a, n in zip(corner, sides, strict=True))
    return first, second, third
