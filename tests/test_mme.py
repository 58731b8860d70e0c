"""Masked Motion Encoding: shapes of every target, the loss by a slow loop, gradients, compile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.bench_pretraining import videomae
from mme_model.mme import MaskedMotionEncoder, motion_loss, target_widths, zero_loss
from mme_model.recipe import LossConfig, ModelConfig
from mme_targets import ClipPlan, MotionTargets, TargetConfig, Targets
from mme_targets.targets import Target

SMALL = ModelConfig(width=24, depth=1, heads=2)
CLIP = TargetConfig(frames=4, stride=2, size=32, length=3, camera_motion=False)  # 2 x 2 x 2
ALL = ("trajectory", "pixel", "hog", "flow", "hof", "mbh")
MASKED = torch.tensor([[1, 2, 4, 5, 6], [0, 2, 3, 6, 7]])


def network(model: ModelConfig = SMALL, config: TargetConfig = CLIP) -> MaskedMotionEncoder:
    torch.manual_seed(0)
    return MaskedMotionEncoder(model, config)


def clips_of(config: TargetConfig = CLIP, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, config.frames, 3, config.size, config.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def targets_of(config: TargetConfig, masked: Tensor = MASKED) -> Targets:
    """Of random frames under random flow that carries some tracks out of the frame."""
    plan, batch = ClipPlan.build(config), len(masked)
    generator = torch.Generator().manual_seed(2)
    frames = torch.randint(
        0, 256, (batch, len(plan.frames), 3, config.size, config.size), generator=generator
    ).byte()
    flow = 4 * torch.randn(batch, len(plan.pairs), 2, config.size, config.size, generator=generator)
    return MotionTargets(config)(frames, flow=flow, mask=masked)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets": ALL},
        {"targets": ALL, "interpolate": False},
        {"targets": ALL, "hog_interpolate": False},
        {"targets": ("position", "hog"), "density": "mean"},
        {"targets": ("shape", "flow"), "density": "max", "bins": 6},
        {"targets": ("trajectory", "hog"), "grid": 4, "cell": 4, "tubelet": 1},
        {"targets": ("trajectory",), "grid": 16, "density": "max"},
        {"length": 0},
        {"length": 0, "targets": ("trajectory", "hog", "pixel"), "interpolate": False},
        {"length": 0, "targets": ("hog",), "patch": 8, "tubelet": 4},
        {"norm": "coordinate", "targets": ALL},
        {"norm": "none", "targets": ALL, "region": "crop"},
    ],
)
def test_widths_are_those_of_the_targets(changes: dict[str, object]) -> None:
    """D of each name as `MotionTargets` returns it; and the model predicts just that."""
    config = CLIP.replace(**changes)
    made = targets_of(config)
    widths = target_widths(config)
    assert list(widths) == list(made)
    assert widths == {name: target.values.shape[-1] for name, target in made.items()}
    predictions = network(config=config)(clips_of(config), MASKED)
    assert {n: p.shape for n, p in predictions.items()} == {
        n: t.values.shape for n, t in made.items()
    }
    total, _ = motion_loss(predictions, made, LossConfig())
    assert bool(total.isfinite())


def test_widths_of_the_released_code() -> None:
    """HOG of the middle frame alone: 108, and 8 L displacements."""
    config = TargetConfig.released(frames=4, size=32)
    assert target_widths(config) == {"position": 32, "shape": 108}
    plan = ClipPlan.build(config)
    frames = clips_of(config.replace(frames=len(plan.frames) * 2))[:, : len(plan.frames)]
    made = MotionTargets(config)(frames, flow=torch.zeros(2, len(plan.pairs), 2, 32, 32))
    assert {name: target.values.shape[-1] for name, target in made.items()} == {
        "position": 32,
        "shape": 108,
    }


@pytest.mark.parametrize("model", [SMALL, SMALL.replace(decoders="separate", decoder_depth=0)])
def test_order_of_masked_patches_is_the_callers(model: ModelConfig) -> None:
    turned, one = torch.tensor([3, 0, 4, 2, 1]), network(model)
    predictions, others = one(clips_of(), MASKED), one(clips_of(), MASKED[:, turned])
    for name, predicted in predictions.items():
        torch.testing.assert_close(others[name], predicted[:, turned], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(predicted[:, 0], predicted[:, 1], atol=1e-3)


def test_visible_patches_are_the_others() -> None:
    assert network().visible(MASKED).tolist() == [[0, 3, 7], [1, 4, 5]]


def test_masked_pixels_do_not_leak() -> None:
    """Whatever stands in a masked patch, the predictions stay; a visible one moves them."""
    one, clips = network(), clips_of(batch=1)
    masked = torch.tensor([[1, 2, 4, 5, 6]])
    before, other = one(clips, masked), clips.clone()
    other[:, :2, :, :16, 16:] = 0  # patch 1
    for name, predicted in one(other, masked).items():
        assert torch.equal(predicted, before[name])
    other[:, :2, :, :16, :16] = 0  # patch 0
    for name, predicted in one(other, masked).items():
        assert not torch.equal(predicted, before[name])


def test_separate_decoders_share_nothing() -> None:
    """Each target has a projection, a mask token, blocks and a head of its own."""
    one = network(SMALL.replace(decoders="separate"))
    one(clips_of(), MASKED)["shape"].sum().backward()
    assert one.mask_token.shape == (2, 1, 12)
    assert [bool(g.any()) for g in one.mask_token.grad] == [False, True]
    for i, used in enumerate((False, True)):
        own = [*one.encoder_to_decoder[i].parameters(), *one.decoder[i].parameters()]
        assert all((p.grad is not None) == used for p in own)
    assert list(one.decoder[0].heads) == ["position"]


def test_keys() -> None:
    """As in the released code, but for the heads, which go by name."""
    keys = set(network().state_dict())
    assert "encoder.patch_embed.proj.weight" in keys
    assert {k for k in keys if not k.startswith(("encoder.", "decoder.0.blocks.0."))} == {
        "encoder_to_decoder.0.weight",
        "mask_token",
        "decoder.0.norm.weight",
        "decoder.0.norm.bias",
        *(f"decoder.0.heads.{n}.{p}" for n in ("position", "shape") for p in ("weight", "bias")),
    }
    token = network().mask_token.detach()
    assert token.shape == (1, 1, 12)
    assert 0 < float(token.abs().max()) <= 0.02
    assert network().no_weight_decay() <= keys


def test_is_videomae_where_pixels_are_predicted() -> None:
    """Another library's model with the same weights predicts the same, and loses the same."""
    config = CLIP.replace(targets=("pixel",), length=0, stride=1)
    one = network(SMALL.replace(depth=2, decoder_depth=2), config)
    peer = videomae(one, config)
    peer.decoder.norm.eps = 1e-6  # theirs has torch's default there
    hidden = torch.zeros(2, 8, dtype=torch.bool).scatter(1, MASKED, True)
    clips, embed = clips_of(config), one.encoder.patch_embed
    mean, deviation = (s[::512].view(3, 1, 1) for s in (embed.mean, embed.deviation))
    with torch.no_grad():
        predictions = one(clips, MASKED)
        theirs = peer((clips - mean) / deviation, bool_masked_pos=hidden)
    torch.testing.assert_close(predictions["pixel"], theirs.logits, atol=1e-5, rtol=1e-4)
    made = MotionTargets(config)(clips, mask=MASKED)
    torch.testing.assert_close(
        motion_loss(predictions, made, LossConfig())[0], theirs.loss, atol=0.0, rtol=1e-4
    )


def slow_loss(
    predictions: dict[str, Tensor], targets: Targets, config: LossConfig
) -> tuple[float, dict[str, float]]:
    """Eq. 1 and 7 value by value."""
    heads: dict[str, float] = {}
    for name, target in targets.items():
        values, valid = target.values.numpy().astype(float), target.valid.numpy()
        predicted = predictions[name].detach().numpy().astype(float)
        batch, masked, tracks = valid.shape
        features = values.shape[2] // tracks
        of_clips = []
        for b in range(batch):
            total = 0.0
            for m in range(masked):
                for k in range(tracks):
                    square = 0.0
                    for f in range(features):
                        d = k * features + f
                        square += (predicted[b, m, d] - values[b, m, d]) ** 2
                    if valid[b, m, k]:
                        total += square if config.eq1_sum else square / features
            of_clips.append(total / (masked * tracks))
        heads[name] = float(np.mean(of_clips))
    return sum(config.weights.get(n, 1.0) * loss for n, loss in heads.items()), heads


@pytest.mark.parametrize(
    "loss", [LossConfig(), LossConfig(weights={"shape": 0.25, "pixel": 0}, eq1_sum=True)]
)
def test_loss_by_a_slow_loop(loss: LossConfig) -> None:
    """Several tracks a patch, and one for all of it (pixel, flow)."""
    config = CLIP.replace(targets=("trajectory", "pixel", "flow"))
    made = targets_of(config)
    assert made["position"].valid.shape[2] == 4
    assert made["pixel"].valid.shape[2] == made["flow"].valid.shape[2] == 1
    assert 0.1 < float(made["position"].valid.float().mean()) < 0.9
    predictions = network(config=config)(clips_of(config), MASKED)
    total, heads = motion_loss(predictions, made, loss)
    slow_total, slow_heads = slow_loss(predictions, made, loss)
    assert float(total.detach()) == pytest.approx(slow_total, rel=1e-5)
    assert {n: float(v) for n, v in heads.items()} == pytest.approx(slow_heads, rel=1e-5)
    assert not any(v.requires_grad for v in heads.values())

    zeros = {name: torch.zeros_like(p) for name, p in predictions.items()}
    assert float(zero_loss(made, loss)[0]) == pytest.approx(slow_loss(zeros, made, loss)[0])


def test_zero_loss_is_the_valid_share_where_targets_are_normed() -> None:
    """Values of variance 1 a patch, all tracks valid: one a head (unbiased, so a little less)."""
    made = targets_of(CLIP.replace(loss_mask=False))
    for name, loss in zero_loss(made, LossConfig())[1].items():
        count = made[name].values.shape[-1]
        assert float(loss) == pytest.approx((count - 1) / count, abs=1e-3)


def test_invalid_tracks_get_no_gradient() -> None:
    made = targets_of(CLIP)
    predictions = {n: torch.randn(t.values.shape, requires_grad=True) for n, t in made.items()}
    motion_loss(predictions, made, LossConfig())[0].backward()
    for name, target in made.items():
        grad = predictions[name].grad
        assert grad is not None
        of_track = grad.unflatten(-1, (4, -1)).abs()
        assert not of_track[~target.valid].any()
        assert (of_track[target.valid] > 0).all()


def test_loss_is_float32_in_low_precision() -> None:
    made = targets_of(CLIP)
    predictions = {n: torch.randn(t.values.shape).bfloat16() for n, t in made.items()}
    with torch.autocast("cpu", torch.bfloat16):
        total, heads = motion_loss(predictions, made, LossConfig())
    expected, _ = motion_loss({n: p.float() for n, p in predictions.items()}, made, LossConfig())
    assert {total.dtype, *(v.dtype for v in heads.values())} == {torch.float32}
    torch.testing.assert_close(total, expected)


def test_loss_refuses() -> None:
    values = torch.zeros(1, 2, 8)
    made = Targets({"position": Target(values, torch.ones(1, 2, 4).bool(), values, values)})
    cases = [
        ({"shape": values}, LossConfig(), r"predictions has shape; must have .* position"),
        ({"position": values[:, :1]}, LossConfig(), r"predictions\['position'\] has shape \[1, 1"),
        ({"position": values}, LossConfig(weights={"hog": 1.0}), "weights names 'hog'"),
    ]
    for predictions, loss, what in cases:
        with pytest.raises(ValueError, match=what):
            motion_loss(predictions, made, loss)


@pytest.mark.parametrize(
    ("masked", "error", "what"),
    [
        (MASKED.int(), TypeError, "masked has dtype int32; must be int64"),
        (MASKED[:1], ValueError, r"masked has shape \[1, 5\]; must be \[2, M\]"),
        (MASKED[:, :0], ValueError, r"masked has shape \[2, 0\]"),
        (MASKED + 1, ValueError, "masked spans 1 to 8; must lie within 0 to 7"),
        (MASKED - 1, ValueError, "masked spans -1 to 6"),
        (MASKED.clamp(max=5), ValueError, "masked names a patch twice"),
        (torch.arange(8).repeat(2, 1), ValueError, "masked has all 8 patches; one at least"),
        (torch.zeros(2, 8, dtype=torch.bool), TypeError, "masked has dtype bool"),
    ],
)
def test_refuses(masked: Tensor, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        network()(clips_of(), masked)


def step(model: torch.nn.Module, made: Targets) -> Tensor:
    total, _ = motion_loss(model(clips_of(), MASKED), made, LossConfig())
    total.backward()
    return total.detach()


@pytest.mark.parametrize(
    "model", [SMALL, SMALL.replace(decoders="separate", checkpointing=True, head="mlp")]
)
def test_compiles_whole(model: ModelConfig) -> None:
    """One graph with its backward, and the same gradients."""
    plain, traced, made = network(model), network(model), targets_of(CLIP)
    torch._dynamo.reset()
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(compiled, made), step(plain, made))
    for one, other in zip(plain.parameters(), traced.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_bf16_autocast() -> None:
    """Close to float32, and the parameters' gradients stay float32."""
    plain, made = network(), targets_of(CLIP)
    with torch.autocast("cpu", torch.bfloat16):
        low = step(plain, made)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in plain.parameters())
    torch.testing.assert_close(low, step(network(), made), atol=0.0, rtol=0.02)
