"""Patch normalisation: by hand and by torch's statistics; every floor against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from floors import ALL, FAST, PROPERTY, running, threads
from hypothesis import given
from hypothesis import strategies as st

from mme_targets import patch_norm

SHAPES = [(5, 4, 12), (3, 1, 2), (2, 16, 108), (3, 4, 162), (0, 4, 12), (7, 2, 1), (33, 3, 7)]
MODES = ["patch", "coordinate"]


def norm(values, floor: str, **options):
    with running(floor) as backend:
        return patch_norm(values, backend=backend, **options)


def random(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Patches of very different scale and offset, as displacements and histograms have."""
    scale = 10.0 ** rng.uniform(-2, 3, (*shape[:-2], 1, 1))
    centre = rng.normal(size=(*shape[:-2], 1, 1))
    return torch.from_numpy((scale * (centre + rng.normal(size=shape))).astype(np.float32))


def too_few(shape: tuple[int, ...], mode: str) -> bool:
    return mode == "coordinate" and shape[-2] == 1


# --- closed forms, on the reference and on every other floor -------------------------------------


@pytest.mark.parametrize("floor", ALL)
def test_by_hand(floor: str) -> None:
    """0, 1, 2, 3 has mean 3/2 and unbiased variance 5/3."""
    values, mean, std = norm(torch.tensor([[[0.0, 1], [2, 3]]]), floor, eps=0.0)
    assert mean.shape == std.shape == (1, 1, 1)
    assert mean.item() == 1.5
    assert std.item() == pytest.approx((5 / 3) ** 0.5, rel=1e-6)
    expected = torch.tensor([[[-1.5, -0.5], [0.5, 1.5]]]) / (5 / 3) ** 0.5
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-6)
    # Over the two tracks of each coordinate: means 1 and 2, unbiased variance 2.
    values, mean, std = norm(torch.tensor([[[0.0, 1], [2, 3]]]), floor, mode="coordinate", eps=0.0)
    assert mean.tolist() == [[[1, 2]]]
    torch.testing.assert_close(std, torch.full((1, 1, 2), 2**0.5), atol=1e-6, rtol=1e-6)
    assert torch.equal(values.sign(), torch.tensor([[[-1.0, -1], [1, 1]]]))
    torch.testing.assert_close(values.abs(), torch.full((1, 2, 2), 0.5**0.5), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore:var_mean.*degrees of freedom:UserWarning")  # of no patch at all
def test_against_torch(floor: str, mode: str, shape: tuple[int, ...], rng) -> None:
    if too_few(shape, mode):
        shape = (shape[0], 2, shape[2])
    z = random(rng, *shape)
    values, mean, std = norm(z, floor, mode=mode)
    dims = (1, 2) if mode == "patch" else (1,)
    var, centre = torch.var_mean(z.double(), dims, correction=1, keepdim=True)
    deviation = (var + 1e-6).sqrt()
    assert_close(values, (z.double() - centre) / deviation, "patch_norm")
    assert_close(mean, centre, "patch_norm")
    assert_close(std, deviation, "patch_norm")
    torch.testing.assert_close(values * std + mean, z, atol=2e-3, rtol=2e-5)


@pytest.mark.parametrize("floor", ALL)
def test_against_layer_norm(floor: str, rng) -> None:
    """Layer norm divides by n, not n - 1: a factor of √((n-1)/n), and eps takes its square."""
    z = random(rng, 9, 4, 12)
    n = 48
    wide = F.layer_norm(z.double(), (4, 12), eps=1e-2 * (n - 1) / n) * ((n - 1) / n) ** 0.5
    assert_close(norm(z, floor, eps=1e-2)[0], wide, "patch_norm")


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", [0.0, 0.1, -1234.567, 3e7])
def test_a_still_patch_gives_exact_zeros(floor: str, mode: str, level: float) -> None:
    z = torch.full((3, 4, 27), level)
    values, mean, std = norm(z, floor, mode=mode)
    assert not values.any()
    torch.testing.assert_close(mean, torch.full_like(mean, level))
    torch.testing.assert_close(std, torch.full_like(std, 1e-3))


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("mode", MODES)
def test_a_patch_that_hardly_varies_keeps_its_digits(floor: str, mode: str, rng) -> None:
    """1000 + a little: the square of the mean is 10¹⁰ times the variance."""
    z = torch.from_numpy((1000 + rng.integers(-40, 41, (6, 8, 9)) / 2048).astype(np.float32))
    dims = (1, 2) if mode == "patch" else (1,)
    var, mean = torch.var_mean(z.double(), dims, correction=1, keepdim=True)
    assert_close(
        norm(z, floor, mode=mode)[0], (z.double() - mean) / (var + 1e-6).sqrt(), "patch_norm"
    )


@pytest.mark.parametrize("floor", ALL)
def test_coordinates_do_not_mix(floor: str, rng) -> None:
    z = random(rng, 4, 5, 6)
    whole = norm(z, floor, mode="coordinate")
    for f in range(6):
        alone = norm(z[..., f : f + 1].contiguous(), floor, mode="coordinate")
        assert all(torch.equal(a, w[..., f : f + 1]) for a, w in zip(alone, whole, strict=True))


# --- every floor against the reference -----------------------------------------------------------


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 4, 6), (4, 6), (2, 0, 4, 6), (1, 5, 64, 9)])
def test_floors_agree(floor: str, mode: str, shape: tuple[int, ...], rng) -> None:
    z = random(rng, *shape)
    if too_few(shape, mode):
        with pytest.raises(ValueError, match="K = 1"):
            norm(z, floor, mode=mode)
        return
    for eps in (1e-6, 0.5):
        results = [norm(z, name, mode=mode, eps=eps) for name in (floor, "reference")]
        for got, expected in zip(*results, strict=True):
            assert got.shape == expected.shape
            assert_close(got, expected, "patch_norm")
    last = shape[-1] if mode == "coordinate" else 1
    assert results[0][0].shape == shape
    assert results[0][1].shape == results[0][2].shape == (*shape[:-2], 1, last)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(64, 4, 12), (9, 4, 162), (5, 3, 7), (6, 16, 33)])
def test_instruction_sets_agree_bit_for_bit(mode: str, shape: tuple[int, ...], rng) -> None:
    z = random(rng, *shape)
    first, *others = (norm(z, floor, mode=mode) for floor in FAST)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, first, strict=True))


# --- what must not change the result -------------------------------------------------------------


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("mode", MODES)
def test_batch_threads_and_layout_do_not_matter(floor: str, mode: str, rng) -> None:
    z = random(rng, 75, 4, 12)
    with threads(1):
        expected = norm(z, floor, mode=mode)
        single = [norm(patch, floor, mode=mode) for patch in z.split(1)]
    results = [tuple(map(torch.cat, zip(*single, strict=True)))]
    results.append(norm(z.transpose(1, 2).contiguous().transpose(1, 2), floor, mode=mode))
    results.append(norm(torch.stack([z, z], -1).flatten(-2)[..., ::2], floor, mode=mode))
    for count in (2, 5):
        with threads(count):
            results += [norm(z, floor, mode=mode) for _ in range(3)]
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, in the reference
def test_a_bad_patch_leaves_the_others_alone(floor: str, mode: str, value: float, rng) -> None:
    z = random(rng, 9, 4, 12)
    bad = z.clone()
    bad[4, 2, 3] = value
    others = torch.arange(9) != 4
    for got, clean in zip(norm(bad, floor, mode=mode), norm(z, floor, mode=mode), strict=True):
        assert torch.equal(got[others], clean[others])
        if mode == "coordinate":
            kept = torch.arange(12) != 3
            assert torch.equal(got[4][..., kept], clean[4][..., kept])


@PROPERTY
@given(st.data())
def test_shapes_permutation_and_scale(data: st.DataObject) -> None:
    draw = data.draw
    floor, mode = draw(st.sampled_from(FAST)), draw(st.sampled_from(MODES))
    count, tracks = draw(st.integers(0, 9)), draw(st.integers(2, 17))
    features = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    z = random(rng, count, tracks, features)
    got = norm(z, floor, mode=mode, eps=0.0)
    for mine, theirs in zip(got, norm(z, "reference", mode=mode, eps=0.0), strict=True):
        assert_close(mine, theirs, "patch_norm")
    order = torch.from_numpy(rng.permutation(count))
    for a, b in zip(norm(z[order], floor, mode=mode, eps=0.0), got, strict=True):
        assert torch.equal(a, b[order])
    doubled = norm(2 * z, floor, mode=mode, eps=0.0)  # a power of two rounds nothing
    assert torch.equal(doubled[0], got[0])
    assert torch.equal(doubled[2], 2 * got[2])


# --- the custom operator -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(mode: str) -> None:
    torch.library.opcheck(
        torch.ops.mme_targets.patch_norm.default, (torch.randn(5, 4, 6), mode, 1e-6, "cpu")
    )


def test_compiles_into_one_graph(rng) -> None:
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, mean, std = patch_norm(x)
        return a * 2, mean + std, *patch_norm(x, mode="coordinate")

    z = random(rng, 2, 5, 4, 6)
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(z), forward(z), strict=True):
        assert torch.equal(mine, theirs)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        (torch.zeros(4), {}, ValueError, r"values has shape \[4\]; must be \[\.\.\., K, F\]"),
        (torch.zeros(2, 4, 6).double(), {}, TypeError, "values has dtype float64; must be float32"),
        (torch.zeros(2, 4, 6), {"mode": "token"}, ValueError, "mode is 'token'; must be one of"),
        (torch.zeros(2, 4, 6), {"eps": -1.0}, ValueError, "eps is -1.0; must be at least 0"),
        (torch.zeros(2, 4, 6), {"eps": float("nan")}, ValueError, "eps is nan; must be at least 0"),
        (torch.zeros(2, 1, 6), {"mode": "coordinate"}, ValueError, "'coordinate'.* 2 tracks.*K = "),
        (torch.zeros(2, 1, 1), {}, ValueError, "values has 1x1 values a patch; .* needs 2 or more"),
        (torch.zeros(2, 4, 0), {}, ValueError, "values has 4x0 values a patch; .* needs 2 or more"),
        (torch.zeros(2, 4, 6), {"backend": "gpu"}, ValueError, "backend is 'gpu'; must be one of"),
        ([[0.0, 1.0]], {}, TypeError, "values is a builtins.list; must be a torch tensor"),
    ],
)  # fmt: skip
def test_bad_input_is_named(values, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        patch_norm(values, **options)
