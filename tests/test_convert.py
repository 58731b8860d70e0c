"""Conversions, by running: what comes out computes what went in, there and here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conversions import (
    CLIP,
    CLOSE,
    SHAPES,
    SMALL,
    as_videomae,
    clips,
    config,
    finetune,
    masks,
    pixels,
    randomised,
    saved,
    with_large_tokens,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VideoMAEModel,
)

from mme_model.checkpoints import load_classifier, load_encoder, load_model, save
from mme_model.convert import add_arguments, convert, load_encoder_state, run
from mme_model.recipe import Recipe
from mme_model.weights import Assumed, build, read_weights

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


def test_frames_that_are_prepared_otherwise_are_said(tmp_path: Path) -> None:
    """The processor's own default is .5; here frames are normalised as VideoMAE's are."""
    VideoMAEForVideoClassification(config(num_labels=3)).save_pretrained(tmp_path)
    assert not [note for note in read_weights(tmp_path).notes if "image_" in note]
    VideoMAEImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path)
    notes = [note for note in read_weights(tmp_path).notes if "image_" in note]
    assert len(notes) == 2
    assert notes[0].startswith("image_mean is [0.5, 0.5, 0.5] there and [0.485, 0.456, 0.406] here")
    file = tmp_path / "preprocessor_config.json"
    inner = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.22, 0.224, 0.225]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"video_processor": inner}))
    file.unlink()
    assert ["image_std" in note for note in read_weights(tmp_path).notes if "image_" in note]
    convert(tmp_path, tmp_path / "out", "hf")
    assert not [note for note in read_weights(tmp_path / "out").notes if "image_" in note]


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
    with pytest.raises(ValueError, match=r"2 of \d+ weights do not fit") as caught:
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


def test_files_of_one_stem_have_a_card_each(tmp_path: Path) -> None:
    saved("classifier", finetune(), tmp_path / "own.safetensors", ["x", "y"])
    for name, to in (("out.pt", "videomae"), ("out.pth", "released"), ("out.safetensors", "mme")):
        convert(tmp_path / "own.safetensors", tmp_path / name, to)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.glob("*.md")) == [
        "out.pt.md", "out.pth.md", "out.safetensors.md"
    ]  # fmt: skip
    (tmp_path / "out.pt").unlink()
    with pytest.raises(FileExistsError, match=r"out\.pt\.md is there already"):
        convert(tmp_path / "own.safetensors", tmp_path / "out.pt", "videomae")


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
    assert (tmp_path / "out.safetensors.md").read_text().startswith("---")
    with pytest.raises(ValueError, match="size is -1"):
        run(parser.parse_args([*map(str, words[:4]), "--size", "-1"]))
