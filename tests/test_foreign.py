"""Opening checkpoints: what is in them is never run, and what cannot be read is said."""

from __future__ import annotations

import argparse
import fractions
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mme_model.foreign import open_weights
from mme_model.weights import read_weights

STATE = {"patch_embed.proj.weight": torch.ones(2, 3), "norm.bias": torch.zeros(3)}


class Attack:
    """Makes a folder when a plain pickle of it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_names_it(tmp_path: Path, zipped: bool) -> None:
    file, mark = tmp_path / "a.pth", tmp_path / "ran"
    content = {"model": STATE, "args": Attack(mark)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"refused.*posix\.mkdir.*would have to run"):
        open_weights(file)
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists(), "the file was harmless, and the test showed nothing"


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    file, mark = tmp_path / "pytorch_model.bin", tmp_path / "ran"
    file.write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises((ValueError, OSError), match="pytorch_model"):
        open_weights(tmp_path)
    assert not mark.exists()


def test_classes_other_than_the_allowed_one_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"model": STATE, "args": argparse.Namespace(lr=fractions.Fraction(1, 3))}, file)
    with pytest.raises(ValueError, match=r"fractions\.Fraction"):
        open_weights(file)


def test_options_of_the_training_program_are_plain_values(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint-99.pth"
    options = argparse.Namespace(input_size=112, lr=1e-3, opt_betas=[0.9, 0.95], deep=STATE)
    rest = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}}, "epoch": 99, "scaler": {}}
    torch.save({"model": STATE, "args": options, **rest}, file)
    opened = open_weights(file)
    assert opened.options == {"input_size": 112, "lr": 1e-3}
    assert opened.left == dict.fromkeys(rest, "not weights")
    assert opened.tensors.keys() == STATE.keys()


@pytest.mark.parametrize(
    "wrapper", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_weights_are_found_wherever_programs_put_them(tmp_path: Path, wrapper: str) -> None:
    state = {wrapper + key: value for key, value in STATE.items()}
    for content in ({"model": state}, {"module": state}, {"state_dict": state}, state):
        torch.save(content, tmp_path / "a.pt")
        assert open_weights(tmp_path / "a.pt").tensors.keys() == STATE.keys()
    (tmp_path / "a.pt").rename(tmp_path / "mp_rank_00_model_states.pt")
    assert open_weights(tmp_path).tensors.keys() == STATE.keys()


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "model.videomae."])
def test_weights_behind_an_unknown_prefix_are_of_no_known_format(
    tmp_path: Path, prefix: str
) -> None:
    patches = "patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"
    torch.save({prefix + key: torch.zeros(4, 3, 2, 2, 2) for key in patches}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"no format known here; it has {prefix}patch_embed"):
        read_weights(tmp_path / "a.pth")


def test_shards_are_read_together(tmp_path: Path) -> None:
    names = ["a.safetensors", "b.bin"]
    save_file({"x.weight": torch.ones(2)}, tmp_path / names[0])
    torch.save({"y.weight": torch.zeros(2)}, tmp_path / names[1])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x.weight": names[0], "y.weight": names[1]}}))
    assert open_weights(tmp_path).tensors.keys() == {"x.weight", "y.weight"}

    index.write_text(json.dumps({"weight_map": {"z.weight": names[0]}}))
    with pytest.raises(OSError, match=r"z\.weight"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x.weight": "../a.safetensors"}}))
    with pytest.raises(ValueError, match="beside"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x.weight": "c.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"c\.safetensors"):
        open_weights(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="weight_map"):
        open_weights(tmp_path)


def _damaged_zip() -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": STATE}, buffer)
    return buffer.getvalue()[:-200]


def _no_pickle_in_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/version", "3")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        _damaged_zip(),
        _no_pickle_in_zip(),
        b"\x20\0\0\0\0\0\0\0{not json",
        (2**40).to_bytes(8, "little") + b"{}",
    ],
    ids=["empty", "text", "damaged", "foreign zip", "header", "length"],
)
def test_damaged_files_are_errors_that_name_them(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.pth"
    file.write_bytes(content)
    with pytest.raises((OSError, ValueError), match=r"broken\.pth") as caught:
        open_weights(file)
    assert "\n" not in str(caught.value)


def test_what_holds_no_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        open_weights(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        open_weights(tmp_path)
    torch.save({"model": {}, "epoch": 1}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        open_weights(tmp_path / "a.pth")
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds list"):
        open_weights(tmp_path / "a.pth")
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json is list"):
        open_weights(tmp_path)
