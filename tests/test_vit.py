"""The transformer: tokens, positions, encoder, decoder, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mme_model.recipe import ModelConfig
from mme_model.vit import (
    MEAN,
    STD,
    Blocks,
    Decoder,
    Encoder,
    Shape,
    decoder_shape,
    encoder_shape,
    sinusoids,
    token_grid,
)
from mme_targets import TargetConfig

SMALL = ModelConfig(width=24, depth=2, heads=2)
CLIP = TargetConfig(frames=6, tubelet=2, patch=8, size=24)  # 3 x 3 x 3 tokens


def clips_of(config: TargetConfig, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, config.frames, 3, config.size, config.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def encoder_of(model: ModelConfig = SMALL, config: TargetConfig = CLIP) -> Encoder:
    torch.manual_seed(0)
    return Encoder(model, config)


@pytest.mark.parametrize(
    ("size", "shape", "decoder"),
    [
        ("tiny", Shape(192, 12, 3), Shape(96, 1, 1)),
        ("small", Shape(384, 12, 6), Shape(192, 1, 3)),
        ("base", Shape(768, 12, 12), Shape(384, 1, 6)),
        ("large", Shape(1024, 24, 16), Shape(512, 1, 8)),
    ],
)
def test_sizes(size: str, shape: Shape, decoder: Shape) -> None:
    assert encoder_shape(ModelConfig(size=size)) == shape
    assert decoder_shape(ModelConfig(size=size)) == decoder


def test_sizes_are_overridden_one_by_one() -> None:
    assert encoder_shape(ModelConfig(size="small", depth=3)) == (384, 3, 6)
    assert encoder_shape(ModelConfig(size="small", width=48, heads=4)) == (48, 12, 4)
    model = ModelConfig(width=48, heads=4, decoder_width=40, decoder_depth=0, decoder_heads=5)
    assert decoder_shape(model) == (40, 0, 5)
    assert decoder_shape(ModelConfig(width=24, heads=2)) == (12, 1, 1)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (ModelConfig(width=100), r"model\.heads is 12; must divide .*width \(100\)"),
        (ModelConfig(decoder_heads=5), r"model\.decoder_heads is 5; must divide .*\(384\)"),
        (ModelConfig(decoder_width=200), r"model\.decoder_heads is 0, which makes 3 .*\(200\)"),
    ],
)
def test_heads_that_do_not_divide(model: ModelConfig, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        encoder_shape(model), decoder_shape(model)


def test_patches_must_fill_the_crop() -> None:
    assert token_grid(TargetConfig(size=112)) == (8, 7, 7)
    with pytest.raises(ValueError, match=r"targets\.size is 100; must be divisible by patch"):
        encoder_of(config=TargetConfig(size=100))


@pytest.mark.parametrize("width", [1, 6, 7])
def test_positions(width: int) -> None:
    """Written out value by value."""
    found = sinusoids(5, width)
    for position in range(5):
        for j in range(width):
            angle = position / 10000 ** (2 * (j // 2) / width)
            expected = math.cos(angle) if j % 2 else math.sin(angle)
            assert float(found[position, j]) == pytest.approx(expected, abs=1e-7)


def test_state_dict_has_videomae_names() -> None:
    keys = set(encoder_of().state_dict())
    block = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight"]
    block += ["attn.proj.bias", "norm2.weight", "norm2.bias"]
    block += [f"mlp.{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")]
    ends = ["patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"]
    assert keys == {*ends, *(f"blocks.{i}.{name}" for i in range(2) for name in block)}
    assert encoder_of().patch_embed.proj.weight.shape == (24, 3, 2, 8, 8)


def test_start() -> None:
    """Xavier uniform, biases zero, norms plain."""
    encoder = encoder_of(ModelConfig(width=48, depth=1, heads=2))
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.97 * bound < float(module.weight.detach().abs().max()) <= bound
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_patch_embedding_is_the_convolution() -> None:
    """The weight means what VideoMAE's means: a strided convolution of the normalised clip."""
    encoder, clips = encoder_of(), clips_of(CLIP)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    normalised = (clips.float() / 255 - mean) / std
    expected = encoder.patch_embed.proj(normalised.transpose(1, 2)).flatten(2).transpose(1, 2)
    for given in (clips, clips.float()):
        torch.testing.assert_close(encoder.patch_embed(given, None), expected, atol=1e-5, rtol=1e-5)
    visible = torch.tensor([[3, 26, 0], [5, 4, 13]])
    chosen = encoder.patch_embed(clips, visible)
    for row in range(2):
        torch.testing.assert_close(chosen[row], expected[row, visible[row]], atol=1e-5, rtol=1e-5)


def test_encoder_sees_the_visible_alone() -> None:
    """Other patches do not matter; without a mask all are seen; order is the caller's."""
    encoder, clips = encoder_of(), clips_of(CLIP, 1)
    visible = torch.tensor([[3, 26, 0, 11]])
    tokens = encoder(clips, visible)
    assert tokens.shape == (1, 4, 24)

    other = clips.clone()
    other[0, :2, :, :8, 8:16] = 0  # patch 1
    assert torch.equal(encoder(other, visible), tokens)
    other[0, 2:4, :, :8, 16:] = 0  # patch 11
    assert not torch.equal(encoder(other, visible), tokens)

    turned = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        encoder(clips, visible[:, turned]), tokens[:, turned], atol=1e-5, rtol=1e-5
    )
    every = torch.arange(27)[None]
    torch.testing.assert_close(encoder(clips), encoder(clips, every), atol=1e-5, rtol=1e-5)


def test_positions_tell_equal_patches_apart() -> None:
    encoder, flat = encoder_of(), torch.full((1, 6, 3, 24, 24), 90, dtype=torch.uint8)
    tokens = encoder(flat)[0]
    assert float(torch.pdist(tokens.detach()).min()) > 1e-3


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_decoder_without_blocks(kind: str) -> None:
    """Depth 0: the heads on the projected mask tokens."""
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig(width=24, heads=2, decoder_depth=0, head=kind), {"shape": 5})
    tokens = torch.randn(2, 7, 12)
    found = decoder(tokens, 3)
    assert list(found) == ["shape"]
    assert found["shape"].shape == (2, 3, 5)
    expected = decoder.heads["shape"](decoder.norm(tokens[:, 4:]))
    torch.testing.assert_close(found["shape"], expected)


@pytest.mark.parametrize("depth", [1, 2])
def test_last_block_is_a_block_of_which_some_is_wanted(depth: int) -> None:
    """The same tokens, and the same gradients, as from timm's whole blocks."""
    torch.manual_seed(0)
    decoder = Decoder(SMALL.replace(decoder_width=24, decoder_depth=depth), {"shape": 5})
    tokens = torch.randn(2, 7, 24)
    whole = Blocks(Shape(24, depth, 1))
    whole.load_state_dict(decoder.blocks.state_dict())
    expected = whole(tokens)[:, 4:]
    found = decoder.blocks(tokens, 3)
    assert found.shape == (2, 3, 24)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for values in (found, expected):
        values.square().sum().backward()
    for one, other in zip(decoder.blocks.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_released_heads_bound_their_values() -> None:
    """Two layers of 512; sigmoid on histograms, tanh on displacements, nothing on pixels."""
    names = ("position", "shape", "pixel", "hog", "flow", "hof", "mbh")
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig(width=24, heads=2, head="mlp"), dict.fromkeys(names, 40))
    tokens = torch.randn(4, 6, 12)
    found, normed = decoder(tokens, 6), decoder.norm(decoder.blocks(tokens, 6))
    assert {k for k in decoder.state_dict() if k.startswith("heads.hog.")} == {
        f"heads.hog.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
    }
    for name in names:
        first, _, second, _ = decoder.heads[name]
        assert first.out_features == 512
        expected = second(nn.functional.gelu(first(normed)))
        if name in ("shape", "hog", "hof", "mbh"):
            expected = expected.sigmoid()
        elif name != "pixel":
            expected = expected.tanh()
        torch.testing.assert_close(found[name], expected)


def test_checkpointing_changes_nothing() -> None:
    """Neither the tokens nor the gradients, with drop path's random numbers too."""
    clips, visible = clips_of(CLIP), torch.arange(9).repeat(2, 1)
    grads = []
    for again in (False, True):
        encoder = encoder_of(SMALL.replace(drop_path=0.5, checkpointing=again))
        torch.manual_seed(1)
        encoder(clips, visible).square().sum().backward()
        grads.append([p.grad for p in encoder.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)
    assert any(bool(g.any()) for g in grads[0])


def test_drop_path_rises() -> None:
    encoder = encoder_of(SMALL.replace(depth=3, drop_path=0.2))
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("clips", "visible", "error", "what"),
    [
        (clips_of(CLIP).double(), None, TypeError, "clips has dtype float64"),
        (clips_of(CLIP)[:, :4], None, ValueError, r"clips has shape \[2, 4, 3, 24, 24\]; must be"),
        (clips_of(CLIP)[0], None, ValueError, r"clips has shape .*\[B, 6, 3, 24, 24\]"),
        (clips_of(CLIP)[..., :16], None, ValueError, "clips has shape"),
        (clips_of(CLIP), torch.zeros(2, 3), TypeError, "visible has dtype float32"),
        (clips_of(CLIP), torch.zeros(1, 3).long(), ValueError, r"visible has shape \[1, 3\]"),
        (clips_of(CLIP), torch.zeros(2, 0).long(), ValueError, r"visible has shape \[2, 0\]"),
        (clips_of(CLIP), torch.tensor([[0], [27]]), ValueError, "visible spans 0 to 27; must lie"),
        (clips_of(CLIP), torch.tensor([[0, 1], [4, 4]]), ValueError, "visible names a patch twice"),
    ],
)
def test_refuses(clips: Tensor, visible: Tensor | None, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        encoder_of()(clips, visible)
