"""`pip wheel .` gives a wheel that works where the source is not."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

USE = """
import pathlib, sys, torch
import mme_targets, mme_targets._cpu
from mme_model.cli import main
from mme_targets.synthetic import render_scene, write_video

here = pathlib.Path(sys.argv[1])
assert here in pathlib.Path(mme_targets.__file__).parents, mme_targets.__file__
flow = torch.full((6, 2, 32, 32), 1.0)
assert (mme_targets.trajectories(flow, backend="cpu").displacements == 1).all()
write_video("v.mp4", render_scene(12, 48).frames)
quick = "--frames 2 --stride 2 --size 48 --length 2 --flow dis --camera_motion false".split()
assert main(["show", "v.mp4", "--out", "v.html", *quick]) == 0
assert main(["targets", "v.mp4", "--out", "v.safetensors", *quick]) == 0
"""


@pytest.mark.slow
def test_wheel_works_elsewhere(tmp_path: Path) -> None:
    # The CUDA floor is built by the install that these tests run from; once is enough.
    env = {**os.environ, "MME_BUILD_CUDA": "0"}
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "wheel", str(ROOT), "--no-deps", "-q", "-w", str(tmp_path)], check=True, env=env
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("py.typed", "page.html", "page.js"):
        assert f"mme_targets/{wanted}" in names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "csrc/"))]
    site = tmp_path / "site"
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-c", USE, str(site)],
        check=True,
        cwd=elsewhere,
        env={**env, "PYTHONPATH": str(site)},
        timeout=300,
    )
