"""Exports in others' formats are read back as the checkpoint is: views, heads, names of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import CLIP, SMALL, clips, saved
from transformers import VideoMAEForVideoClassification

from mme_model.carried import VIEWS, Carried
from mme_model.convert import convert, load_classifier, load_encoder
from mme_model.evaluate import predict
from mme_model.finetune_recipe import FinetuneRecipe
from mme_model.recipe import Recipe
from mme_model.weights import Assumed, read_weights

DENSE = {"stride": 7, "short_side": 40, "test_clips": 3, "test_crops": 1}
SEGMENTS = {"sampling": "segments", "short_side": 36, "test_clips": 2}
NAMES = ["walk", "run", "jump"]


def classifier(path: Path, **views: Any) -> FinetuneRecipe:
    """A checkpoint of a classifier of three classes."""
    recipe = FinetuneRecipe.from_dict({"model": SMALL, "views": CLIP | views})
    saved("classifier", recipe, path, NAMES)
    return recipe


@pytest.mark.parametrize("to", ["mme", "hf", "videomae", "released"])
@pytest.mark.parametrize("views", [DENSE, SEGMENTS])
def test_predictions_are_those_of_the_checkpoint(
    tmp_path: Path, to: Any, views: dict[str, Any], one_thread: None
) -> None:
    own, out = tmp_path / "own.safetensors", tmp_path / "out"
    recipe = classifier(own, **views)
    convert(own, out, to)
    _, again, names = load_classifier(out)
    assert names == NAMES
    for name in VIEWS:
        assert getattr(again.views, name) == getattr(recipe.views, name), name
    expected = dict(predict("synthetic/3", own, cpu=True))
    assert dict(predict("synthetic/3", out, cpu=True)) == pytest.approx(expected, rel=1e-5)
    changed = dict(predict("synthetic/3", own, views={"stride": 1, "sampling": "dense"}, cpu=True))
    assert expected != pytest.approx(changed, rel=1e-4), "it matters which frames are taken"


@torch.no_grad()
def test_they_last_through_further_conversions(tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    recipe = classifier(own, **DENSE)
    convert(own, tmp_path / "hf", "hf")
    model = VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf")
    model.save_pretrained(tmp_path / "again")  # by transformers, which does not know the key
    convert(tmp_path / "again", tmp_path / "out.pth", "videomae")
    convert(tmp_path / "out.pth", tmp_path / "last", "mme")
    ours, again, names = load_classifier(tmp_path / "last")
    assert names == NAMES
    assert {n: getattr(again.views, n) for n in VIEWS} == {
        n: getattr(recipe.views, n) for n in VIEWS
    }
    raw, _ = clips()
    torch.testing.assert_close(ours(raw), load_classifier(own)[0](raw), atol=1e-5, rtol=0)
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 40}
    assert processor["crop_size"] == {"height": 32, "width": 32}


def test_a_probe_takes_the_views_of_an_export(tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    classifier(own, **SEGMENTS)
    convert(own, tmp_path / "hf", "hf")
    found = read_weights(tmp_path / "hf", only_encoder=True)
    assert found.kind == "encoder"
    assert isinstance(found.recipe, FinetuneRecipe)
    assert (found.clip.sampling, found.clip.short_side) == ("segments", 36)  # type: ignore[union-attr]
    assert load_encoder(tmp_path / "hf")[0].blocks[0].attn.num_heads == 2
    pre = Recipe.from_dict({"model": SMALL, "targets": CLIP | {"stride": 3}})
    saved("pretrain", pre, tmp_path / "pre.safetensors")
    for to, out in (("hf", "encoder"), ("videomae", "encoder.pth")):
        convert(tmp_path / "pre.safetensors", tmp_path / out, to)  # type: ignore[arg-type]
        clip = read_weights(tmp_path / out, only_encoder=True).clip
        assert (clip.frames, clip.size, clip.stride) == (4, 32, 3)


def test_what_is_asked_for_goes_before_what_is_carried(tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    classifier(own, **DENSE)
    convert(own, tmp_path / "hf", "hf")
    clip = read_weights(tmp_path / "hf", Assumed(frames=8, size=64)).clip
    assert (clip.frames, clip.size, clip.stride) == (8, 64, 7)
    assert clip.short_side == 0, "40 px are too few for a view of 64"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "found",
    [None, 3, [], {}, {"views": 1, "clip": [], "heads": "2", "classes": "ab"},
     {"views": {"stride": True, "sampling": 3, "frames": -1, "root": "/"}, "classes": [1]}],
)  # fmt: skip
def test_what_is_not_as_it_should_be_is_left(found: Any) -> None:
    carried = Carried(found)
    assert carried.views_of({"frames": 4, "size": 32}) == carried.clip == {}
    assert (carried.heads, carried.decoder_heads, carried.classes) == (0, 0, [])


def test_an_impossible_view_is_named(tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    classifier(own, **DENSE)
    convert(own, tmp_path / "hf", "hf")
    file = tmp_path / "hf" / "config.json"
    config = json.loads(file.read_text())
    config["mme"]["views"]["sampling"] = "random"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"ViewConfig\.sampling is 'random'"):
        load_classifier(tmp_path / "hf")


def test_a_file_of_others_with_such_a_key_is_read(tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    classifier(own)
    convert(own, tmp_path / "out.pth", "videomae")
    loaded = torch.load(tmp_path / "out.pth", weights_only=True)
    torch.save(loaded | {"mme": "theirs"}, tmp_path / "theirs.pth")
    weights = read_weights(tmp_path / "theirs.pth", Assumed(4, 32, 2))
    assert weights.classes == ["0", "1", "2"]
    assert "mme" not in weights.left
