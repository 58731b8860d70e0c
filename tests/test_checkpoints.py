"""Checkpoints: whole or not there, pruned, and refused where they do not fit."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mme_model import checkpoints
from mme_model.mme import MaskedMotionEncoder
from mme_model.recipe import Recipe

SMALL: dict[str, Any] = {
    "targets": {"size": 32, "frames": 4, "stride": 1, "length": 2, "camera_motion": False},
    "model": {"size": "tiny", "width": 24, "depth": 1, "heads": 2, "decoder_width": 16},
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.from_dict({**SMALL, **changes})


def model_of(recipe: Recipe) -> MaskedMotionEncoder:
    torch.manual_seed(1)
    return MaskedMotionEncoder(recipe.model, recipe.targets)


def write(folder: Path, step: int, score: float | None = None) -> checkpoints.Checkpoint:
    one = recipe()
    weights = model_of(one).state_dict()
    moments = {"a.weight": {"exp_avg": torch.full((2, 3), float(step)), "step": torch.tensor(4.0)}}
    optimizer = {"state": moments, "param_groups": [{"lr": 0.1, "params": ["a.weight"]}]}
    return checkpoints.save(
        folder, step, model=weights, optimizer=optimizer, recipe=one, score=score
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, 7, 0.5)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert (found.step, found.score) == (7, 0.5)
    weights, optimizer, state = checkpoints.load_state(found)
    truth = model_of(recipe()).state_dict()
    assert weights.keys() == truth.keys()
    assert all(torch.equal(weights[k], truth[k]) for k in truth)
    moment = optimizer["state"]["a.weight"]["exp_avg"]
    assert torch.equal(moment, torch.full((2, 3), 7.0))
    assert optimizer["param_groups"] == [{"lr": 0.1, "params": ["a.weight"]}]
    assert state["step"] == 7


@pytest.mark.parametrize("where", ["run", "checkpoint", "file"])
def test_a_model_opens_by_run_checkpoint_or_file(tmp_path: Path, where: str) -> None:
    made = write(tmp_path, 7)
    path = {"run": tmp_path, "checkpoint": made.path, "file": made.path / "model.safetensors"}
    model, read = checkpoints.load_model(path[where])
    assert read == recipe()
    truth = model_of(recipe()).state_dict()
    assert all(torch.equal(v, truth[k]) for k, v in model.state_dict().items())
    assert not model.training


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, score in ((1, 0.9), (2, 0.3), (3, 0.8), (4, 0.7), (5, None)):
        write(tmp_path, step, score)
        checkpoints.prune(tmp_path, 2)
    assert [c.step for c in checkpoints.checkpoints(tmp_path)] == [2, 4, 5]


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    write(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".step-000000002.abcd"
    half.mkdir()
    (half / "state.json").write_text(json.dumps({"step": 2}))
    last = checkpoints.latest(tmp_path)
    assert last is not None
    assert last.step == 1
    checkpoints.prune(tmp_path, 1)
    assert not half.exists()


def test_a_full_disk_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "_flush", full)
    with pytest.raises(OSError, match=r"step-000000002 cannot be written.*No space left"):
        write(tmp_path, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000000001"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    made = write(tmp_path, 1)
    file = made.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"step-000000001 cannot be read"):
        checkpoints.load_state(made)
    with pytest.raises(OSError, match=r"model\.safetensors cannot be read"):
        checkpoints.load_model(tmp_path)


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="is no checkpoint of `mme pretrain`"):
        checkpoints.load_model(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
        checkpoints.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such checkpoint"):
        checkpoints.load_model(tmp_path / "nowhere")


def test_another_architecture_is_shown_as_a_table() -> None:
    have = model_of(recipe()).state_dict()
    other = recipe(model={**SMALL["model"], "depth": 2})
    want = model_of(other).state_dict()
    with pytest.raises(ValueError, match=r"of another architecture") as caught:
        checkpoints.fit_state(have, want, "x")
    text = str(caught.value)
    assert "encoder.blocks.1.norm1.weight" in text
    assert "[24]" in text
    assert "in the model" in text
