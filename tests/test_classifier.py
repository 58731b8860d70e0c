"""The classifier on the encoder, and its rates by layer."""

from __future__ import annotations

import pytest
import torch

from mme_model.classifier import Classifier
from mme_model.finetune import layer_groups
from mme_model.finetune_recipe import ClassifierConfig, ViewConfig
from mme_model.recipe import ModelConfig

MODEL = ModelConfig(size="tiny", width=24, depth=3, heads=2)
CLIP = ViewConfig(size=32, frames=4)


def made(classes: int = 5, **config: float) -> Classifier:
    torch.manual_seed(0)
    return Classifier(MODEL, CLIP, classes, ClassifierConfig(**config))


def clips(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 4, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_logits_are_of_the_mean_of_tokens_normed() -> None:
    model = made().eval()
    given = clips()
    tokens = model.encoder(given)
    assert tokens.shape == (2, 2 * 2 * 2, 24)
    mean = torch.nn.functional.layer_norm(tokens.mean(1), (24,), eps=1e-6)
    torch.testing.assert_close(model.features(given), mean)
    torch.testing.assert_close(model(given), mean @ model.head.weight.T)
    torch.testing.assert_close(model(given.float()), model(given))


def test_keys_are_those_of_checkpoints() -> None:
    keys = set(made().state_dict())
    outside = {k for k in keys if not k.startswith("encoder.")}
    assert outside == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert not any(k.startswith("encoder.norm") for k in keys)


def test_the_head_starts_small() -> None:
    plain, small = made(head_scale=1.0), made(head_scale=0.001)
    torch.testing.assert_close(small.head.weight, plain.head.weight * 0.001)
    assert not small.head.bias.any()


def test_patches_are_dropped_in_training_alone() -> None:
    model = made(drop_patches=0.5)
    seen: list[torch.Tensor] = []
    model.encoder.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    given = clips(64)
    model.train()(given)
    model.eval()(given)
    assert [tokens.shape[1] for tokens in seen] == [4, 8]
    # Which are kept is drawn for each clip: no token of all 8 is in every clip, or in none.
    dropped, whole = seen
    kept = (dropped[:, :, None] - whole[:, None]).abs().sum(-1).lt(1e-5).any(1).float().mean(0)
    assert kept.shape == (8,)
    assert 0.2 < float(kept.min()) <= float(kept.max()) < 0.8


def test_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="classes is 0; must be at least 1"):
        made(classes=0)


def test_rates_fall_from_the_head_to_the_patches() -> None:
    model = made()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = layer_groups(model, 0.5, 0.05)
    scales = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    assert len(scales) == len(names), "each parameter once"
    assert scales["head.weight"] == scales["fc_norm.bias"] == 1
    assert scales["encoder.blocks.2.mlp.fc1.weight"] == 0.5
    assert scales["encoder.blocks.0.norm1.weight"] == 0.125
    assert scales["encoder.patch_embed.proj.bias"] == min(scales.values()) == 0.0625
    decays = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert all((value == 0.05) == (p.ndim > 1) for p, value in
               ((p, decays[n]) for n, p in model.named_parameters()))  # fmt: skip


def test_no_decay_is_one_rate() -> None:
    assert {g["lr_scale"] for g in layer_groups(made(), 1.0, 0.05)} == {1.0}
