"""Masks: exact counts, what each kind looks like, ratios that cannot be (Table 7e)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mme_model.keys import rng as keyed
from mme_model.masking import draw_mask, masked_count
from mme_model.recipe import MaskConfig

PAPER = (8, 14, 14)


def mask_of(kind: str, ratio: float, grid: tuple[int, int, int], sample: int = 0) -> np.ndarray:
    return draw_mask(MaskConfig(kind=kind, ratio=ratio), grid, keyed(0, 0, sample, "mask"))


@pytest.mark.parametrize(
    ("kind", "ratio", "expected"),
    [
        ("tube", 0.7, 137 * 8),
        ("tube", 0.9, 176 * 8),
        ("tube", 0.4, 78 * 8),
        ("cube", 0.4, 627),
        ("random", 0.5, 784),
    ],
)
def test_counts_of_the_paper(kind: str, ratio: float, expected: int) -> None:
    """Tubes are counted in the plane, as VideoMAE does: 137 of 196 at .7."""
    assert masked_count(MaskConfig(kind=kind, ratio=ratio), PAPER) == expected
    assert mask_of(kind, ratio, PAPER).sum() == expected


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["tube", "cube", "random"]),
    ratio=st.floats(0.05, 0.98),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    sample=st.integers(0, 1000),
)
def test_any_mask_is_exact(
    kind: str, ratio: float, grid: tuple[int, int, int], sample: int
) -> None:
    """As many as announced in every clip, or the error that says none can be."""
    config = MaskConfig(kind=kind, ratio=ratio)
    try:
        count = masked_count(config, grid)
    except ValueError:
        whole = grid[1] * grid[2] * (1 if kind == "tube" else grid[0])
        assert int(ratio * whole) in (0, whole)
        return
    mask = mask_of(kind, ratio, grid, sample)
    assert mask.dtype == np.bool_
    assert mask.shape == (np.prod(grid),)
    assert mask.sum() == count
    if kind == "tube":
        assert (mask.reshape(grid[0], -1) == mask.reshape(grid[0], -1)[0]).all()


@pytest.mark.parametrize("kind", ["tube", "cube", "random"])
def test_keyed_by_the_generator_alone(kind: str) -> None:
    assert (mask_of(kind, 0.5, PAPER, 3) == mask_of(kind, 0.5, PAPER, 3)).all()
    assert (mask_of(kind, 0.5, PAPER, 3) != mask_of(kind, 0.5, PAPER, 4)).any()


def test_every_patch_is_masked_as_often_in_tubes() -> None:
    """Each of 4x4 places in half of 2000 masks, within 5 standard deviations."""
    often = sum(mask_of("tube", 0.5, (1, 4, 4), i).astype(int) for i in range(2000))
    assert np.abs(often - 1000).max() < 5 * np.sqrt(500)


def neighbours_alike(kind: str, axis: int) -> float:
    """The share of masked patches whose next one along an axis is masked too."""
    masks = [mask_of(kind, 0.4, PAPER, i).reshape(PAPER) for i in range(20)]
    pairs = [np.moveaxis(m, axis, 0) for m in masks]
    return float(np.mean([m[1:][m[:-1]].mean() for m in pairs]))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cubes_hang_together(axis: int) -> None:
    """In space and in time, where a random mask has the ratio itself; and they end in time."""
    assert neighbours_alike("cube", axis) > 0.65
    assert neighbours_alike("random", axis) == pytest.approx(0.4, abs=0.03)
    assert neighbours_alike("tube", 0) == 1.0
    assert neighbours_alike("cube", 0) < 0.99


@pytest.mark.parametrize(
    ("kind", "ratio", "what"),
    [
        ("tube", 1.0, "is 1, which leaves no patch visible of 2x2 at each of 3"),
        ("tube", 0.2, "is 0.2, which masks no patch"),
        ("cube", 0.0, "masks no patch of 3x2x2"),
        ("random", 1.0, "leaves no patch visible of 3x2x2"),
    ],
)
def test_impossible_ratios(kind: str, ratio: float, what: str) -> None:
    for call in (masked_count, lambda c, g: draw_mask(c, g, keyed(0, 0, 0, "mask"))):
        with pytest.raises(ValueError, match=rf"mask\.ratio .*{what}"):
            call(MaskConfig(kind=kind, ratio=ratio), (3, 2, 2))
