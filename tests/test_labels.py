"""Lists that number classes which elsewhere have names: what is assumed, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import changed
from labelled import Labelled
from safetensors.torch import save_file

from mme_model import labels
from mme_model.classifier import Classifier
from mme_model.evaluate import evaluate
from mme_model.finetune import finetune
from mme_model.finetune_recipe import FinetuneRecipe
from mme_model.listed import unique_videos
from mme_model.probe import probe
from mme_targets.files import write_video

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {
    "views": {"size": 32, "frames": 4, "stride": 1, "workers": 0, "repeats": 1, "test_clips": 1,
              "test_crops": 1, "flip": False},
    "model": {"size": "tiny", "width": 24, "depth": 1, "heads": 2},
    "classifier": {"mixup": 0, "cutmix": 0},
    "train": {"steps": 1, "batch_size": 2},
}  # fmt: skip
ASSUMED = "they were taken for those of the 2 classes trained on: 0 = dive, 1 = run"
OTHERWISE = r"folder 'dive' have 1, which is 'run'; write these numbers, .* classInd\.txt"


def told(source: Labelled, classes: tuple[str, ...]) -> list[str]:
    return labels.numbered(source, [label for _, label in source.videos], classes, "val")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two videos; a list that numbers them in their order, and one otherwise."""
    path = tmp_path_factory.mktemp("videos")
    frames = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 48, 64) * 20
    names = [f"{name}/{number}.mp4" for name in ("dive", "run") for number in range(2)]
    for name in names:
        (path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(path / "all" / name, frames.contiguous())
    for list_of, first in (("same", 0), ("other", 1)):
        lines = [f"all/{name} {(place // 2) ^ first}\n" for place, name in enumerate(names)]
        (path / f"{list_of}.csv").write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    recipe = changed(FinetuneRecipe, SMALL, {"data": str(folder / "all")})
    model = Classifier(recipe.model, recipe.views, 2, recipe.classifier)
    about = {"format": "mme-1", "kind": "classifier", "recipe": recipe.to_json(), "step": "1"}
    path = folder / "model.safetensors"
    save_file(model.state_dict(), path, metadata={**about, "classes": '["dive", "run"]'})
    return path


def test_what_numbers_were_taken_for_is_said_with_names() -> None:
    many = tuple(f"c{i}" for i in range(9))
    (said,) = told(Labelled(("a.mp4", 8), ("b.mp4", -1)), many)
    assert "the 9 classes trained on: 0 = c0, 1 = c1, 2 = c2, 3 = c3, 4 = c4 and 4 more" in said
    (said,) = told(Labelled(("a.mp4", 0), classes=("x", "y")), ("0", "1"))
    assert "its 2 classes have names, the 2 trained on have numbers alone" in said
    assert "taken for 0 = x, 1 = y" in said


def test_nothing_is_said_where_nothing_is_assumed() -> None:
    assert told(Labelled(("a.mp4", 0), ("b.mp4", 1)), ("0", "1")) == []
    assert told(Labelled(("a.mp4", -1)), ("dive", "run")) == []
    assert told(Labelled(("a.mp4", 0), classes=("run", "dive")), ("dive", "run")) == []


def test_folders_tell_that_a_list_numbers_otherwise() -> None:
    classes = ("dive", "run", "swim")
    right = Labelled(("dive/a", 0), ("run/b", 1), ("other/c", 0), ("run/d", -1))
    assert len(told(right, classes)) == 1
    # One label may be wrong, or meant: a folder's videos are not all of another class.
    assert len(told(Labelled(("dive/a", 0), ("dive/b", 2), ("swim/c", 2)), classes)) == 1
    with pytest.raises(ValueError, match=r"the folder 'swim' have 1, which is 'run'"):
        told(Labelled(("x/dive/a", 0), ("x/swim/b", 1), ("x/swim/c", 1)), classes)


def test_a_test_says_it_and_refuses(
    folder: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = evaluate(classifier, str(folder / "same.csv"), tmp_path / "a", cpu=True)
    assert [note for note in summary["notes"] if ASSUMED in note]
    assert ASSUMED in capsys.readouterr().err
    with pytest.raises(ValueError, match=OTHERWISE):
        evaluate(classifier, str(folder / "other.csv"), tmp_path / "b", cpu=True)


def test_fine_tuning_says_it_and_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = changed(FinetuneRecipe, SMALL, {"data": str(folder / "all")})
    finetune(recipe.replace(val=str(folder / "same.csv")), tmp_path / "a", cpu=True)
    assert capsys.readouterr().err.count(ASSUMED) == 1
    with pytest.raises(ValueError, match=OTHERWISE):
        finetune(recipe.replace(val=str(folder / "other.csv")), tmp_path / "b", cpu=True)


def test_a_probe_says_it_and_refuses(folder: Path, classifier: Path, tmp_path: Path) -> None:
    data, same, other = (str(folder / name) for name in ("all", "same.csv", "other.csv"))
    summary = probe(classifier, data, same, out=tmp_path / "a", cpu=True)
    assert [note for note in summary["notes"] if ASSUMED in note]
    with pytest.raises(ValueError, match=OTHERWISE):
        probe(classifier, data, other, out=tmp_path / "b", cpu=True)
    summary = probe(classifier, same, data, out=tmp_path / "c", cpu=True)
    assert "taken for 0 = dive, 1 = run" in json.dumps(summary["notes"])


def test_a_video_is_the_same_whatever_a_list_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "there" / name).touch()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "there" / "a.mp4")
    (tmp_path / "folder").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    train = Labelled(("there/a.mp4", 0), ("there/../there/a.mp4", 0), ("there/b.mp4", 1))
    twice, both = labels.oddities(
        train, Labelled((str(tmp_path / "there/b.mp4"), 1), ("link.mp4", 0)), ("0", "1")
    )
    assert "1 video is listed more than once for training:\n  there/a.mp4" in twice
    assert "2 videos are both trained on and measured on" in both
    assert "  link.mp4" in both
    with pytest.raises(ValueError, match=r"listed with two labels:\n  folder/b\.mp4"):
        labels.class_names(Labelled(*train.videos, ("folder/b.mp4", 0)), "data")
    asked = Labelled(("there/a.mp4", 0), ("folder/a.mp4", 0), ("link.mp4", 0))
    assert unique_videos(asked, np.zeros(3, dtype=np.int64))[0] == [0]
