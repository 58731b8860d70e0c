"""VideoMAE's and the authors' files, laid out by hand: they compute what they did."""

from __future__ import annotations

import argparse
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import (
    CLOSE,
    as_videomae,
    clips,
    config,
    finetune,
    masks,
    randomised,
    saved,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
)

from mme_model.checkpoints import load_classifier, load_model
from mme_model.convert import convert
from mme_model.evaluate import predict
from mme_model.weights import Assumed, read_weights

# VideoMAE's files, laid out by hand


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
    weights, _ = convert(tmp_path / "there", tmp_path / "back", "mme")  # a folder, as we wrote it
    assert weights.mapped == len(want)


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


def test_what_a_file_does_not_say_is_assumed_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = randomised(VideoMAEForVideoClassification(config(heads=1, num_labels=5)))
    torch.save({"model": as_videomae(theirs, "")}, tmp_path / "in.pth")
    weights = read_weights(tmp_path / "in.pth", Assumed(size=32))
    assert weights.assumed == ["frames", "heads"]
    assert weights.notes == [
        "frames of a clip: not in the file, 16 assumed",
        "attention heads of the encoder: not in the file, 1 assumed",
        "which frames a clip has: not in the file, dense sampling assumed, 4 frames apart",
    ]
    weights, _ = convert(tmp_path / "in.pth", tmp_path / "out.pth", "videomae",
                         assumed=Assumed(4, 32, 1))  # fmt: skip
    assert not weights.assumed
    assert not read_weights(tmp_path / "out.pth").notes
    predict("synthetic/0", tmp_path / "in.pth", cpu=True)
    assert "note: size of a clip: not in the file, 224 assumed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "to"),
    [("a.safetensors", "mme"), ("a.pth", "videomae"), ("a", "videomae"), ("a", "hf")],
)
def test_a_disk_that_is_full_is_an_error_that_leaves_nothing(
    tmp_path: Path, name: str, to: Any
) -> None:
    saved("classifier", finetune(), tmp_path / "in.safetensors", ["x", "y"])
    out = tmp_path / "out"
    out.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=rf"{out / name} cannot be written") as error:
            convert(tmp_path / "in.safetensors", out / name, to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert not list(out.iterdir())
