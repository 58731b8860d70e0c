"""Benchmarks of optical flow and camera motion on real frames, and without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import inputs
from benchmarks.harness import Setting
from mme_targets import _cpu

TEXTURES = 3
"""Cases of synthetic frames, which come first."""


def small(data: Path | None, side: int = 48, frames: int = 4, **changes: Any) -> Setting:
    return Setting(torch.device("cpu"), ("cpu",), side=side, frames=frames, data=data, **changes)


@pytest.mark.parametrize("index", range(5), ids=["middlebury", *inputs.CLIPS])
def test_real_case(index: int, shared_data: Path) -> None:
    """Small crops: ours is right, and OpenCV agrees."""
    setting = small(shared_data, side=64, frames=3)
    case = list(command.cases("optical_flow", setting))[TEXTURES + index]
    assert ("Middlebury" in case.name) or inputs.CLIPS[index - 1] in case.name
    result = case.run()
    case.check(result)
    for peer in case.peers:
        peer.agree(result, peer.run())
    assert not setting.left_out


def test_camera_motion_on_a_real_clip(shared_data: Path) -> None:
    setting = small(shared_data, side=128)
    (case,) = command.cases("camera_motion", setting)
    assert inputs.CLIPS[0] in case.name
    result = case.run()
    case.check(result)
    (peer,) = case.peers
    peer.agree(result, peer.run())


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    """Without the data the other cases stand, and it is said what is not there."""
    for data in (None, tmp_path):
        setting = small(data)
        assert len(list(command.cases("optical_flow", setting))) == TEXTURES
        assert len(list(command.cases("camera_motion", setting))) == 1
        assert [what.split(":")[0] for what in setting.left_out] == [
            "optical flow of Middlebury (cpu)",
            "optical flow of real clips (cpu)",
            "camera motion of kinetics_340x256.mp4",
        ]


def test_wrong_flow_of_a_clip_fails(shared_data: Path) -> None:
    setting = small(shared_data, side=64, frames=3)
    case = list(command.cases("optical_flow", setting))[TEXTURES + 1]
    with pytest.raises(AssertionError, match="levels after the flow"):
        case.check(-2 * case.run())


def test_facts_of_flow(shared_data: Path) -> None:
    """Both tables: ours beside OpenCV's, and phases whose shares add up to less than the whole."""
    before = (_cpu.isa(), torch.get_num_threads())
    setting = small(shared_data, side=64, quick=True)
    found = command.facts("optical_flow", setting)
    assert [row["of"].split(",")[0] for row in found["accuracy"]] == [
        *["ours"] * 2, "OpenCV on a CPU",
    ]  # fmt: skip
    assert all(row["error_px"]["Venus"] < 0.4 for row in found["accuracy"])
    for row in found["solver"]:
        assert row["ns"] > 0
        assert row["iterations"] + row["warps"] + row["medians"] < 1
        assert (row["medians"] > 0) == (row["preset"] == "default")
    assert (_cpu.isa(), torch.get_num_threads()) == before
