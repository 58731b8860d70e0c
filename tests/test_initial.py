"""Starting from a checkpoint that is not there, or that the model is not made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import saved
from jobs import changed

from mme_model.convert import convert
from mme_model.finetune import Finetuning
from mme_model.finetune_recipe import FinetuneRecipe
from mme_model.initial import _next_step

SMALL: dict[str, Any] = {
    "views": {"clips": 16, "size": 32, "frames": 4, "workers": 0},
    "model": {"size": "tiny", "width": 24, "depth": 2, "heads": 2},
    "train": {"steps": 1, "batch_size": 8},
}


def small(**changes: Any) -> FinetuneRecipe:
    return changed(FinetuneRecipe, SMALL, changes)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "model.safetensors"
    saved("classifier", small(), path, ["x", "y"])
    return path


def test_a_checkpoint_that_is_not_there_is_named_before_all_else(tmp_path: Path) -> None:
    recipe = small(init=str(tmp_path / "nowhere"), data=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such checkpoint"):
        Finetuning(recipe)
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such checkpoint"):
        Finetuning(small(init=recipe.init, train__batch_size=400))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__width": 48},
         "26 of 26 weights do not fit: width is 24 in the file and 48 in the model; start from it "
         "with --model.width 24\n"),
        ({"model__depth": 3, "views__patch": 8},
         "13 of 38 weights do not fit: depth is 2 in the file and 3 in the model, patch is 16 in "
         "the file and 8 in the model; start from it with --model.depth 2 --views.patch 16\n"),
        ({"model": {"backbone": "mvitv2_s", "drop_path": 0.1}},
         "the backbone is vit in the file and mvitv2_s in the model; start from it with "
         "--model.backbone vit\n"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_says_with_what_it_does(
    classifier: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match="of another architecture") as error:
        Finetuning(small(init=str(classifier), **changes))
    assert said in str(error.value)
    assert "in the checkpoint" in str(error.value), "the table stands below"


def test_other_heads_than_the_files_are_refused_though_every_shape_fits(
    classifier: Path, tmp_path: Path
) -> None:
    said = r"its encoder has 2 attention heads, the model 4; start from it with --model.heads 2$"
    with pytest.raises(ValueError, match=said):
        Finetuning(small(init=str(classifier), model__heads=4))
    for to, name in (("videomae", "a.pth"), ("hf", "folder")):
        convert(classifier, tmp_path / name, to)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=said):
            Finetuning(small(init=str(tmp_path / name), model__heads=4))
    assert not [note for note in Finetuning(small(init=str(classifier))).notes if "heads" in note]


def test_a_file_that_does_not_say_its_heads_takes_the_models(
    classifier: Path, tmp_path: Path
) -> None:
    convert(classifier, tmp_path / "a.pth", "videomae")
    weights = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    torch.save({"model": weights}, tmp_path / "bare.pth")
    job = Finetuning(small(init=str(tmp_path / "bare.pth")))
    assert any(
        "does not say how many attention heads its encoder has; the model has 2, where 64 values "
        "each would make 1" in note
        for note in job.notes
    )


def test_a_size_that_has_a_name_is_named(tmp_path: Path) -> None:
    facts = {"backbone": "vit", "width": 384, "depth": 12, "heads": 6, "tubelet": 2, "patch": 8}
    recipe = FinetuneRecipe.from_dict({})
    said = "patch is 8 in the file and 16 in the model; start from it with --model.size small"
    assert _next_step(facts, recipe).endswith(f"{said} --views.patch 8")
    given = recipe.replace(model=recipe.model.replace(width=64, heads=1))
    assert "--model.width 384 --model.heads 6 " in _next_step(facts, given)
