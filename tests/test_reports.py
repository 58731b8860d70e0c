"""Folders that hold results, or a run, already: whose are replaced, and whose are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conversions import CLIP, SMALL, saved

from mme_model.cli import main
from mme_model.finetune_recipe import FinetuneRecipe
from mme_model.reports import refuse_others

TEST = {"job": "test", "checkpoint": "run", "data": "list.csv"}
PROBE = {"job": "probe", "checkpoint": "run", "init": {"from": "checkpoint", "method": "MME"},
         "data": "a.csv", "val": "b.csv"}  # fmt: skip


@pytest.mark.parametrize("about", [TEST, PROBE])
def test_the_same_may_be_replaced(tmp_path: Path, about: dict[str, Any]) -> None:
    refuse_others(tmp_path, about, False)
    (tmp_path / "summary.json").write_text(json.dumps(about | {"views": {"clips": 2}}))
    refuse_others(tmp_path, about, False)
    refuse_others(tmp_path, about | {"checkpoint": "./run"}, False)


@pytest.mark.parametrize(
    ("held", "about"),
    [
        (TEST, TEST | {"data": "other.csv"}),
        (TEST, TEST | {"checkpoint": "elsewhere/run"}),
        (TEST, PROBE),
        (PROBE, PROBE | {"init": {"from": "random", "method": "random"}}),
        (PROBE, PROBE | {"val": "c.csv"}),
        (PROBE, PROBE | {"checkpoint": None}),
    ],
)
def test_others_are_refused_and_named(
    tmp_path: Path, held: dict[str, Any], about: dict[str, Any]
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"another test or probe \(job .*checkpoint run, .*\.csv"):
        refuse_others(tmp_path, about, False)
    refuse_others(tmp_path, about, True)


def test_a_damaged_summary_is_anothers_and_a_run_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(ValueError, match="another test or probe"):
        refuse_others(tmp_path, TEST, False)
    (tmp_path / "summary.json").write_text('{"job": ')
    with pytest.raises(ValueError, match=r"another test or probe \(damaged\); .* --overwrite"):
        refuse_others(tmp_path, TEST, False)
    refuse_others(tmp_path, TEST, True)
    (tmp_path / "summary.json").write_text('{"job": "classifier"}')
    with pytest.raises(ValueError, match="holds a run of training"):
        refuse_others(tmp_path, TEST, True)
    (tmp_path / "summary.json").unlink()
    at = tmp_path / "checkpoints" / "step-000000001"
    at.mkdir(parents=True)
    (at / "state.json").write_text('{"step": 1}')
    with pytest.raises(ValueError, match="holds a run of training"):
        refuse_others(tmp_path, TEST, True)


def test_the_commands_refuse_before_they_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    views = CLIP | {"test_clips": 1, "test_crops": 1, "workers": 0}
    recipe = FinetuneRecipe.from_dict({"model": SMALL, "views": views})
    for name in ("a", "b"):
        saved("classifier", recipe, tmp_path / f"{name}.safetensors", [str(i) for i in range(8)])
    a, b, out = (str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "out"))
    words = ["--data", "synthetic:2", "--out", out, "--cpu"]
    assert main(["test", a, *words]) == main(["test", a, *words]) == 0
    before = (tmp_path / "out" / "predictions.parquet").read_bytes()
    capsys.readouterr()
    for line in (
        ["test", b, *words],
        ["test", a, *words, "--data", "synthetic:3"],
        ["probe", a, *words, "--data", "synthetic:16", "--val", "synthetic:2"],
    ):
        assert main(line) == 1
        said = capsys.readouterr()
        assert not said.out
        assert said.err.startswith(f"mme: error: {out} holds the results of another test or probe")
        assert "--overwrite" in said.err
    assert (tmp_path / "out" / "predictions.parquet").read_bytes() == before
    assert main(["test", b, *words, "--overwrite"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["checkpoint"] == b
