"""Conversions, by running: what comes out computes what went in, there and here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VideoMAEModel,
)

from mme_model.checkpoints import load_classifier, load_encoder, load_model, save
from mme_model.convert import add_arguments, convert, load_encoder_state, run
from mme_model.finetune_recipe import FinetuneRecipe
from mme_model.recipe import Recipe
from mme_model.weights import Assumed, build, read_weights

SHAPES = {"small": (384, 6), "base": (768, 12), "large": (1024, 16)}
CLIP = {"frames": 4, "size": 32}
SMALL = {"width": 64, "depth": 2, "heads": 2}
CLOSE = {"atol": 1e-5, "rtol": 0.0}
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def randomised(model: nn.Module) -> Any:
    """Every weight is drawn, norms and biases too, so that none can be lost unseen."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.05
        gain = "norm" in name and name.endswith("weight")
        with torch.no_grad():
            parameter.copy_(drawn + 1 if gain else drawn)
    return model.eval()


def with_large_tokens(model: Any) -> Any:
    """Masked tokens whose variance is well above 1.

    transformers fixes the eps of decoder.norm at 1e-5, where it is 1e-6 here and in VideoMAE: a
    relative difference of 4.5e-6 over the variance, which then is below what is compared.
    """
    with torch.no_grad():
        model.mask_token.mul_(60)
    return model


def clips(count: int = 2) -> tuple[Tensor, Tensor]:
    """As this project takes them, and normalised."""
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 256, (count, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return raw, (raw / 255 - MEAN) / STD


def masks() -> tuple[Tensor, Tensor]:
    """Of two clips of eight patches: which are masked, as indices and as booleans."""
    masked = torch.tensor([[1, 2, 5, 7], [0, 3, 4, 6]])
    return masked, torch.zeros(2, 8, dtype=torch.bool).scatter(1, masked, True)


def config(width: int = 64, heads: int = 2, **changes: Any) -> VideoMAEConfig:
    """A small one of Hugging Face's, with VideoMAE's eps."""
    fields = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 2,
        "num_frames": 4,
        "image_size": 32,
        "layer_norm_eps": 1e-6,
        "decoder_hidden_size": 32,
        "decoder_intermediate_size": 128,
        "decoder_num_attention_heads": 2,
        "decoder_num_hidden_layers": 2,
    }
    return VideoMAEConfig(**(fields | changes))


def saved(kind: str, recipe: Any, path: Path, classes: list[str] | None = None) -> nn.Module:
    """A random model of this project, and its checkpoint."""
    model = randomised(build(kind, recipe, len(classes or [])))  # type: ignore[arg-type]
    if kind == "pretrain":
        with_large_tokens(model)
    about = {"format": "mme-1", "kind": kind, "recipe": recipe.to_json(), "step": "1"}
    if classes is not None:
        about["classes"] = json.dumps(classes)
    save_file(model.state_dict(), path, metadata=about)
    return model


def pixels(**model: Any) -> Recipe:
    """A recipe that predicts pixels."""
    return Recipe.from_dict(
        {"model": SMALL | model, "targets": CLIP | {"targets": ["pixel"], "length": 0}}
    )


def finetune(**model: Any) -> FinetuneRecipe:
    """A small classifier's recipe."""
    return FinetuneRecipe.from_dict({"model": SMALL | model, "views": CLIP})


# Hugging Face's, coming in and going out


@torch.no_grad()
@pytest.mark.parametrize("size", SHAPES)
def test_huggingface_classifiers_compute_the_same_here_and_back_there(
    tmp_path: Path, size: str
) -> None:
    width, heads = SHAPES[size]
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    theirs = randomised(VideoMAEForVideoClassification(config(width, heads, **labels)))
    theirs.save_pretrained(tmp_path / "in")
    raw, normalised = clips()
    expected = theirs(normalised).logits

    ours, recipe, classes = load_classifier(tmp_path / "in")
    torch.testing.assert_close(ours(raw), expected, **CLOSE)
    assert classes == ["a", "b", "c"]
    assert (recipe.views.frames, recipe.views.size) == (4, 32)

    convert(tmp_path / "in", tmp_path / "own.safetensors", "mme")
    convert(tmp_path / "own.safetensors", tmp_path / "out", "hf")
    back = VideoMAEForVideoClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(back(normalised).logits, expected, atol=0.0, rtol=0.0)
    assert back.config.id2label == {0: "a", 1: "b", 2: "c"}


@torch.no_grad()
@pytest.mark.parametrize("size", SHAPES)
def test_huggingface_encoders_compute_the_same_here(tmp_path: Path, size: str) -> None:
    width, heads = SHAPES[size]
    theirs = randomised(VideoMAEModel(config(width, heads, use_mean_pooling=False)))
    theirs.save_pretrained(tmp_path)
    raw, normalised = clips()
    ours, facts = load_encoder(tmp_path)
    torch.testing.assert_close(ours(raw), theirs(normalised).last_hidden_state, **CLOSE)
    assert (facts["width"], facts["depth"], facts["heads"]) == (width, 2, heads)
    state, _ = load_encoder_state(tmp_path)
    assert state.keys() == ours.state_dict().keys()


@torch.no_grad()
def test_a_whole_vit_small_computes_the_same_both_ways(tmp_path: Path) -> None:
    theirs = randomised(VideoMAEModel(config(384, 6, num_hidden_layers=12, use_mean_pooling=False)))
    theirs.save_pretrained(tmp_path / "in")
    raw, normalised = clips(1)
    expected = theirs(normalised).last_hidden_state
    ours, facts = load_encoder(tmp_path / "in")
    torch.testing.assert_close(ours(raw), expected, **CLOSE)
    assert facts["depth"] == 12
    weights, _ = convert(tmp_path / "in", tmp_path / "out", "hf")
    assert weights.recipe.model.size == "small"
    back = VideoMAEModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(back(normalised).last_hidden_state, expected, atol=0.0, rtol=0.0)


@torch.no_grad()
def test_huggingface_pretraining_comes_in_with_its_decoder(tmp_path: Path) -> None:
    theirs = randomised(VideoMAEForPreTraining(config(use_mean_pooling=False)))
    with_large_tokens(theirs).save_pretrained(tmp_path / "in")
    (raw, normalised), (masked, mask) = clips(), masks()
    expected = theirs(normalised, mask).logits
    convert(tmp_path / "in", tmp_path / "own", "mme")
    ours, recipe = load_model(tmp_path / "own")
    torch.testing.assert_close(ours(raw, masked)["pixel"], expected, **CLOSE)
    assert recipe.model.decoder_depth == 2


@torch.no_grad()
@pytest.mark.parametrize("decoder_depth", [1, 3])
def test_models_that_predict_pixels_go_out_with_their_decoder(
    tmp_path: Path, decoder_depth: int
) -> None:
    recipe = pixels(decoder_depth=decoder_depth, decoder_width=48, decoder_heads=3)
    ours = saved("pretrain", recipe, tmp_path / "own.safetensors")
    convert(tmp_path / "own.safetensors", tmp_path / "out", "hf")
    theirs = VideoMAEForPreTraining.from_pretrained(tmp_path / "out").eval()
    (raw, normalised), (masked, mask) = clips(), masks()
    torch.testing.assert_close(theirs(normalised, mask).logits, ours(raw, masked)["pixel"], **CLOSE)


@torch.no_grad()
def test_models_that_predict_motion_go_out_as_encoders_and_say_so(tmp_path: Path) -> None:
    recipe = Recipe.from_dict({"model": SMALL, "targets": CLIP})
    ours = saved("pretrain", recipe, tmp_path / "own.safetensors")
    bias = ours.encoder.blocks[0].attn.qkv.bias[64:128]  # type: ignore[union-attr, index]
    assert bias.abs().min() > 0, "keys have a bias here, and it makes no difference"
    raw, normalised = clips()
    for to, out in (("hf", "out"), ("videomae", "out.pth"), ("released", "released.pth")):
        _, written = convert(tmp_path / "own.safetensors", tmp_path / out, to)  # type: ignore[arg-type]
        assert "decoder.0.heads.position.weight" in written.left
        assert "position" in written.left["mask_token"]
        encoder, _ = (
            load_encoder(tmp_path / out)
            if to == "hf"
            else _loaded(tmp_path / out, Assumed(4, 32, 2))
        )
        torch.testing.assert_close(encoder(raw), ours.encoder(raw), **CLOSE)  # type: ignore[operator]
    theirs = VideoMAEModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(
        theirs(normalised).last_hidden_state,
        ours.encoder(raw),
        **CLOSE,  # type: ignore[operator]
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "VideoMAEModel.from_pretrained" in card
    assert "Left out" in card
    assert "length: 6" in card, "the recipe is there"


def _loaded(path: Path, assumed: Assumed) -> tuple[nn.Module, None]:
    weights = read_weights(path, assumed)
    model = build(weights.kind, weights.recipe, 0)
    model.load_state_dict(weights.state)
    return model.eval().encoder, None  # type: ignore[return-value]


@torch.no_grad()
def test_exports_say_eps_and_normalisation(tmp_path: Path) -> None:
    ours = saved("classifier", finetune(), tmp_path / "own.safetensors", ["x", "y"])
    convert(tmp_path / "own.safetensors", tmp_path / "out", "hf")
    theirs = VideoMAEForVideoClassification.from_pretrained(tmp_path / "out").eval()
    assert theirs.videomae.encoder.layer[0].layernorm_after.eps == 1e-6
    processor = VideoMAEImageProcessor.from_pretrained(tmp_path / "out")
    raw, normalised = clips(1)
    pixel_values = processor(list(raw[0].numpy()), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, normalised, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(theirs(pixel_values).logits, ours(raw), **CLOSE)


def test_biases_have_the_names_of_every_release(tmp_path: Path) -> None:
    ours = saved("classifier", finetune(), tmp_path / "own.safetensors", ["x", "y"])
    convert(tmp_path / "own.safetensors", tmp_path / "out", "hf")
    file = tmp_path / "out" / "model.safetensors"
    state, at = load_file(file), "videomae.encoder.layer.1.attention.attention."
    assert torch.equal(state[at + "q_bias"], state[at + "query.bias"])
    assert torch.equal(state[at + "v_bias"], state[at + "value.bias"])
    expected = ours.encoder.blocks[1].attn.qkv.bias.chunk(3)  # type: ignore[union-attr, index]
    for gone in (("q_bias", "v_bias"), ("query.bias", "value.bias")):
        save_file({k: v for k, v in state.items() if not k.endswith(gone)}, file)
        read = read_weights(tmp_path / "out").state["encoder.blocks.1.attn.qkv.bias"].chunk(3)
        assert torch.equal(read[0], expected[0])
        assert not read[1].any()
        assert torch.equal(read[2], expected[2])


def test_another_eps_and_assumptions_are_said(tmp_path: Path) -> None:
    VideoMAEModel(config(layer_norm_eps=1e-12)).save_pretrained(tmp_path)
    assert any("1e-12" in note for note in read_weights(tmp_path).notes)
    (tmp_path / "config.json").unlink()
    notes = " ".join(read_weights(tmp_path).notes)
    assert "16 assumed" in notes
    assert "224 assumed" in notes
    assert read_weights(tmp_path, Assumed(heads=4)).recipe.model.heads == 4


def test_a_config_that_cannot_be_is_refused(tmp_path: Path) -> None:
    VideoMAEModel(config(hidden_act="relu")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hidden_act is 'relu'"):
        read_weights(tmp_path)


def test_heads_that_read_one_token_are_left_out(tmp_path: Path) -> None:
    theirs = VideoMAEForVideoClassification(config(use_mean_pooling=False))
    theirs.save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    assert weights.kind == "encoder"
    assert "first token" in weights.left["classifier.weight"]
    with pytest.raises(ValueError, match="no classifier: its head reads the first token"):
        load_classifier(tmp_path)


# VideoMAE's files, laid out by hand


def as_videomae(theirs: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Hugging Face's weights by VideoMAE's names, written down apart from `key_maps`."""
    renames = [
        ("videomae.", ""),
        ("embeddings.patch_embeddings.projection", prefix + "patch_embed.proj"),
        ("encoder.layer.", prefix + "blocks."),
        ("decoder.decoder_layers.", "decoder.blocks."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("attention.attention.query.bias", "attn.q_bias"),
        ("attention.attention.value.bias", "attn.v_bias"),
        ("classifier", "head"),
    ]
    state: dict[str, Tensor] = {}
    for key, value in theirs.state_dict().items():
        for old, new in renames:
            key = key.replace(old, new)
        if key.startswith("layernorm."):
            key = prefix + key.replace("layernorm", "norm")
        state[key] = value
    for key in [k for k in state if k.endswith("attention.attention.query.weight")]:
        at = key.removesuffix("attention.attention.query.weight")
        parts = [
            state.pop(f"{at}attention.attention.{n}.weight") for n in ("query", "key", "value")
        ]
        state[f"{at}attn.qkv.weight"] = torch.cat(parts)
    return state


@torch.no_grad()
@pytest.mark.parametrize("holder", ["model", "module"])
def test_videomae_finetuned_files_compute_what_they_did(tmp_path: Path, holder: str) -> None:
    theirs = randomised(VideoMAEForVideoClassification(config(heads=1, num_labels=5)))
    options = argparse.Namespace(input_size=32, num_frames=4, model="vit_base_patch16_224")
    file = tmp_path / "checkpoint-best.pth"
    torch.save({holder: as_videomae(theirs, ""), "args": options, "epoch": 3}, file)
    raw, normalised = clips()
    ours, recipe, classes = load_classifier(file)
    torch.testing.assert_close(ours(raw), theirs(normalised).logits, **CLOSE)
    assert classes == ["0", "1", "2", "3", "4"]
    assert recipe.views.size == 32

    convert(file, tmp_path / "back.pth", "videomae")
    there = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    want = as_videomae(theirs, "")
    assert there.keys() == want.keys()
    assert all(torch.equal(there[key], want[key]) for key in want)


@torch.no_grad()
def test_videomae_pretraining_files_compute_what_they_did(tmp_path: Path) -> None:
    theirs = randomised(
        VideoMAEForPreTraining(config(128, use_mean_pooling=False, decoder_num_attention_heads=1))
    )
    theirs.decoder.norm.eps = 1e-6  # VideoMAE's; transformers fixes 1e-5
    file, want = tmp_path / "checkpoint-799.pth", as_videomae(theirs, "encoder.")
    options = argparse.Namespace(input_size=32, num_frames=4)
    rest = {"optimizer": {"state": {}}, "epoch": 799, "scaler": {}, "args": options}
    torch.save({"model": want, **rest}, file)
    (raw, normalised), (masked, mask) = clips(), masks()
    weights, _ = convert(file, tmp_path / "own", "mme")
    assert weights.mapped == len(want)
    assert weights.left.keys() == {"optimizer", "epoch", "scaler"}
    ours, _ = load_model(tmp_path / "own")
    torch.testing.assert_close(ours(raw, masked)["pixel"], theirs(normalised, mask).logits, **CLOSE)
    convert(tmp_path / "own", tmp_path / "there", "videomae")
    there = torch.load(tmp_path / "there" / "checkpoint.pth", weights_only=True)["model"]
    assert there.keys() == want.keys()
    assert all(torch.equal(there[key], want[key]) for key in want)
    stored = sum(value.untyped_storage().nbytes() for value in there.values())
    assert stored == sum(value.nbytes for value in want.values())
    assert (tmp_path / "there" / "checkpoint.pth").stat().st_size < 1.2 * stored


# The authors' pre-training files


def released(width: int, decoder: int, outputs: list[list[int]]) -> dict[str, Tensor]:
    """Random weights by the released code's names; `outputs` of each decoder's heads."""
    generator = torch.Generator().manual_seed(2)
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        gain = 1.0 if len(shape) == 1 else 0.0
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * 0.1 + gain
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1

    def block(name: str, size: int) -> None:
        for norm in ("norm1", "norm2"):
            layer(f"{name}.{norm}", size)
        layer(f"{name}.attn.qkv", 3 * size, size, bias=False)
        for part in ("q_bias", "v_bias"):
            state[f"{name}.attn.{part}"] = torch.randn(size, generator=generator) * 0.1
        layer(f"{name}.attn.proj", size, size)
        layer(f"{name}.mlp.fc1", 4 * size, size)
        layer(f"{name}.mlp.fc2", size, 4 * size)

    state["mask_token"] = torch.randn(1, 1, decoder, generator=generator) * 0.1
    layer("encoder.patch_embed.proj", width, 3, 2, 16, 16)
    block("encoder.blocks.0", width)
    layer("encoder.norm", width)
    for i, heads in enumerate(outputs):
        layer(f"encoder_to_decoder.{i}", decoder, width, bias=False)
        block(f"decoder.{i}.blocks.0", decoder)
        layer(f"decoder.{i}.norm", decoder)
        for k, out in enumerate(heads):
            layer(f"decoder.{i}.head.{k}.0", 512, decoder)
            layer(f"decoder.{i}.head.{k}.2", out, 512)
    return state


def run_released(state: Mapping[str, Tensor], decoders: int, clip: Tensor) -> list[Tensor]:
    """The released code's arithmetic, of eight patches of which the first four are visible."""

    def norm(name: str, x: Tensor) -> Tensor:
        w, b = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(x, (x.shape[-1],), w, b, 1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def block(name: str, x: Tensor, heads: int) -> Tensor:
        zeros = torch.zeros_like(state[f"{name}.attn.q_bias"])
        bias = torch.cat([state[f"{name}.attn.q_bias"], zeros, state[f"{name}.attn.v_bias"]])
        qkv = F.linear(norm(f"{name}.norm1", x), state[f"{name}.attn.qkv.weight"], bias)
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + linear(f"{name}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        inner = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x)))
        return x + linear(f"{name}.mlp.fc2", inner)

    def positions(width: int) -> Tensor:
        place, j = torch.arange(8.0)[:, None], torch.arange(width)
        angle = place / 10000 ** (2 * (j // 2) / width)
        return torch.where(j % 2 == 0, angle.sin(), angle.cos())

    w = state["encoder.patch_embed.proj.weight"]
    embedded = F.conv3d(
        clip.transpose(1, 2), w, state["encoder.patch_embed.proj.bias"], (2, 16, 16)
    )
    tokens = embedded.flatten(2).transpose(1, 2) + positions(len(w))
    tokens = norm("encoder.norm", block("encoder.blocks.0", tokens[:, :4], len(w) // 64))
    out = []
    for i in range(decoders):
        known = linear(f"encoder_to_decoder.{i}", tokens)
        at = positions(known.shape[-1])
        both = torch.cat([known + at[:4], (state["mask_token"] + at[4:]).expand_as(known)], dim=1)
        # Half as many heads as the encoder has, whatever the width.
        decoded = block(f"decoder.{i}.blocks.0", both, len(w) // 128)[:, -4:]
        decoded = norm(f"decoder.{i}.norm", decoded)
        k = 0
        while f"decoder.{i}.head.{k}.0.weight" in state:
            hidden = F.gelu(linear(f"decoder.{i}.head.{k}.0", decoded))
            last = linear(f"decoder.{i}.head.{k}.2", hidden)
            out.append(last.tanh() if k or i else last.sigmoid())
            k += 1
    return out


@torch.no_grad()
@pytest.mark.parametrize(
    ("outputs", "steps", "along"),
    [([[108, 32]], 4, 1), ([[108], [48]], 6, 1), ([[432, 32]], 4, 4), ([[108]], 0, 1)],
    ids=["joint", "separate", "histograms along the track", "histograms alone"],
)
def test_the_authors_files_compute_what_they_did_in_our_order(
    tmp_path: Path, outputs: list[list[int]], steps: int, along: int
) -> None:
    state = released(256, 32, outputs)
    torch.save({"model": state, "args": argparse.Namespace(input_size=32)}, tmp_path / "in.pth")
    weights, _ = convert(tmp_path / "in.pth", tmp_path / "own", "mme", assumed=Assumed(frames=4))
    assert weights.mapped == len(state)
    raw, normalised = clips()
    theirs = run_released(state, len(outputs), normalised)
    ours, recipe = load_model(tmp_path / "own")
    found = ours(raw, torch.arange(4, 8).expand(2, 4))
    # There: histograms (channel and bin, step, track), displacements (x or y, step, track).
    shape = theirs[0].unflatten(-1, (27, along, 4)).transpose(-1, -3).flatten(-3)
    torch.testing.assert_close(found["shape"], shape, **CLOSE)
    if steps:
        position = theirs[1].unflatten(-1, (2, steps, 4)).transpose(-1, -3).flatten(-3)
        torch.testing.assert_close(found["position"], position, **CLOSE)
        assert recipe.targets.length == steps
    assert recipe.model.head == "mlp"

    convert(tmp_path / "own", tmp_path / "back.pth", "released")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_heads_of_unknown_targets_leave_the_encoder(tmp_path: Path) -> None:
    torch.save({"model": released(128, 32, [[36, 32]])}, tmp_path / "in.pth")
    weights = read_weights(tmp_path / "in.pth")
    assert weights.kind == "encoder"
    assert "not made here" in weights.left["decoder.0.head.0.2.bias"]


# What does not fit


def test_tensors_without_a_place_are_named(tmp_path: Path) -> None:
    theirs = VideoMAEForVideoClassification(config())
    state = as_videomae(theirs, "") | {"blocks.0.gamma_1": torch.ones(64)}
    torch.save({"model": state}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=r"no place.*blocks\.0\.gamma_1.*--strict false"):
        read_weights(tmp_path / "in.pth")
    with pytest.raises(ValueError, match="gamma_1"):
        load_encoder_state(tmp_path / "in.pth")
    weights = read_weights(tmp_path / "in.pth", strict=False)
    assert weights.left == {"blocks.0.gamma_1": "unknown"}


def test_learned_positions_are_refused_and_fixed_ones_are_not(tmp_path: Path) -> None:
    state = as_videomae(VideoMAEModel(config()), "")
    fixed = VideoMAEModel(config()).embeddings.position_embeddings
    torch.save(state | {"pos_embed": fixed}, tmp_path / "in.pth")
    assert "sinusoids" in read_weights(tmp_path / "in.pth").left["pos_embed"]
    torch.save(state | {"pos_embed": fixed + 1}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match="pos_embed"):
        read_weights(tmp_path / "in.pth")


def test_missing_weights_and_other_shapes_are_a_table(tmp_path: Path) -> None:
    state = as_videomae(VideoMAEForVideoClassification(config()), "")
    del state["blocks.1.mlp.fc1.bias"]
    state["blocks.0.mlp.fc2.weight"] = torch.zeros(64, 100)
    torch.save({"model": state}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match="2 weights do not fit") as caught:
        load_classifier(tmp_path / "in.pth")
    rows = [" ".join(line.split()) for line in str(caught.value).splitlines()]
    assert "encoder.blocks.0.mlp.fc2.weight [64, 100] [64, 256]" in rows
    assert "encoder.blocks.1.mlp.fc1.bias - [256]" in rows


def test_weights_that_cannot_be_put_together_are_named(tmp_path: Path) -> None:
    VideoMAEModel(config()).save_pretrained(tmp_path)
    file, at = tmp_path / "model.safetensors", "encoder.layer.0.attention.attention."
    state = load_file(file)
    for name, shape in (("query.weight", (64, 32)), ("q_bias", (65,))):
        save_file(state | {at + name: torch.zeros(shape)}, file)
        with pytest.raises(ValueError, match=rf"layer\.0\.attention\.attention\.{name}.*shapes"):
            read_weights(tmp_path)
    save_file({key: value.to(torch.int8) for key, value in state.items()}, file)
    with pytest.raises(ValueError, match=r"is torch\.int8; must be floating point"):
        read_weights(tmp_path)


def test_an_unknown_format_is_said(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"no format known here.*conv1\.weight"):
        read_weights(tmp_path / "a.safetensors")
    torch.save({"encoder.patch_embed.proj.weight": torch.zeros(8, 3, 16, 16)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"patch embedding has shape \[8, 3, 16, 16\]"):
        read_weights(tmp_path / "a.pth")


def test_pretrained_files_hold_no_classifier(tmp_path: Path) -> None:
    saved("pretrain", pixels(), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="holds no classifier"):
        load_classifier(tmp_path / "own.safetensors")


# This project's own


@torch.no_grad()
def test_own_checkpoints_give_their_encoder(tmp_path: Path) -> None:
    model = saved("classifier", finetune(), tmp_path / "model.safetensors", ["x", "y"])
    encoder, facts = load_encoder(tmp_path)
    raw, _ = clips()
    assert torch.equal(encoder(raw), model.encoder(raw))  # type: ignore[operator]
    assert facts["kind"] == "classifier"
    assert facts["format"] == "mme"
    state, _ = load_encoder_state(tmp_path)
    assert "norm.weight" not in state
    saved("pretrain", pixels(), tmp_path / "model.safetensors")
    assert "norm.weight" in load_encoder_state(tmp_path)[0]


def test_runs_give_their_last_checkpoint(tmp_path: Path) -> None:
    recipe, optimizer = finetune(), {"state": {}, "param_groups": []}
    for step in (1, 2):
        model = build("classifier", recipe, 3)
        with torch.no_grad():
            model.head.bias.fill_(step)  # type: ignore[union-attr, operator]
        state = model.state_dict()
        save(tmp_path, step, model=state, optimizer=optimizer, recipe=recipe, kind="classifier")
    model, again, classes = load_classifier(tmp_path)
    assert model.head.bias.tolist() == [2, 2, 2]
    assert again == recipe
    assert classes == ["0", "1", "2"], "where the checkpoint names none"


def test_conversions_remember_where_weights_came_from(tmp_path: Path) -> None:
    VideoMAEModel(config()).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "own", "mme")
    convert(tmp_path / "own", tmp_path / "out", "hf")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "(hf: model.safetensors)" in card
    assert "Not known" in card
    with safe_open(str(tmp_path / "own" / "model.safetensors"), "pt") as opened:
        assert opened.metadata()["kind"] == "encoder"


def test_half_precision_stays_as_it_is_in_the_file(tmp_path: Path) -> None:
    VideoMAEModel(config()).half().save_pretrained(tmp_path / "in")
    weights, _ = convert(tmp_path / "in", tmp_path / "out", "hf")
    assert any("float16" in note for note in weights.notes)
    assert VideoMAEModel.from_pretrained(tmp_path / "out").dtype == torch.float16
    state, _ = load_encoder_state(tmp_path / "in")
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert load_encoder(tmp_path / "in")[0].blocks[0].norm1.weight.dtype == torch.float32


def test_nothing_is_written_over_or_left_half_written(tmp_path: Path) -> None:
    saved("classifier", finetune(), tmp_path / "own.safetensors", ["x", "y"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileExistsError, match="there already"):
        convert(tmp_path / "own.safetensors", tmp_path / "out", "hf")
    with pytest.raises(ValueError, match="is a folder; leave out"):
        convert(tmp_path / "own.safetensors", tmp_path / "out.safetensors", "hf")
    with pytest.raises(ValueError, match=r"ends in \.pth; mme is written as \.safetensors"):
        convert(tmp_path / "own.safetensors", tmp_path / "out.pth", "mme")
    with pytest.raises(FileExistsError, match="name a new file"):
        convert(tmp_path / "own.safetensors", tmp_path / "own.safetensors", "mme")
    with pytest.raises(ValueError, match="classes has 1 names"):
        convert(tmp_path / "own.safetensors", tmp_path / "new", "hf", classes=["x"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "own.safetensors"]


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jsonargparse import ArgumentParser

    state = as_videomae(VideoMAEForVideoClassification(config(heads=1, num_labels=2)), "")
    torch.save({"model": state | {"extra": torch.ones(1)}, "epoch": 3}, tmp_path / "in.pth")
    (tmp_path / "names.txt").write_text("walk\nrun\n")
    parser = ArgumentParser()
    add_arguments(parser)
    words = [tmp_path / "in.pth", tmp_path / "out.safetensors", "--to", "mme", "--strict", "false"]
    words += ["--frames", 4, "--size", 32, "--classes", tmp_path / "names.txt"]
    assert run(parser.parse_args([str(word) for word in words])) == 0
    said = capsys.readouterr().out
    assert "VideoMAE's, classifier of 2 classes" in said
    assert "width 64, 2 blocks, 1 heads; 4 frames of 32 px, patches 2x16x16" in said
    assert f"{len(state)} tensors taken, 30 written -> {tmp_path / 'out.safetensors'}" in said
    assert "left out of the file: epoch: not weights" in said
    assert "left out of the file: extra: unknown" in said
    assert load_classifier(tmp_path / "out.safetensors")[2] == ["walk", "run"]
    assert (tmp_path / "out.md").read_text().startswith("---")
    with pytest.raises(ValueError, match="size is -1"):
        run(parser.parse_args([*map(str, words[:4]), "--size", "-1"]))
