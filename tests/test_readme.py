"""README's Python runs as it stands, but for the quickest flow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mme_model.cli import main
from mme_targets.synthetic import render_scene, write_video

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video("video.mp4", render_scene(50, 64).frames)  # shorter than a clip
    quick = ["--flow", "dis", "--camera_motion", "false"]
    assert main(["targets", "video.mp4", "--out", "targets.safetensors", *quick]) == 0
    reading, training, alone = BLOCKS
    names: dict[str, object] = {"model": lambda video, mask: torch.zeros(*mask.shape, 48)}
    exec(reading, names)
    assert list(names["px"].shape) == [1, 1568, 4, 6, 2]  # type: ignore[attr-defined]
    assert names["config"]["flow"] == "dis"  # type: ignore[index]
    quickly = "kinetics400(flow='dis', camera_motion=False)"
    assert "kinetics400()" in training
    exec(training.replace("kinetics400()", quickly), names)
    assert torch.isfinite(names["loss"])  # type: ignore[arg-type]
    names["flow"] = torch.zeros(6, 2, 64, 64)
    names["frames"] = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    exec(alone.replace("camera_motion=True", "camera_motion=True, method='dis'"), names)
    assert list(names["flow"].shape) == [2, 2, 64, 64]  # type: ignore[attr-defined]
