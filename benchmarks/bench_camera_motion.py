"""Camera motion with its second flow (Appendix A), beside the same steps with OpenCV alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import mme_targets
from mme_targets.backends import OPERATIONS

from . import inputs, peers
from .harness import Case, Peer, Setting, textured_frames

PAIRS = 4
CLIP = inputs.CLIPS[0]
FASTER = 10.0


def cases(setting: Setting) -> Iterator[Case]:
    """A few pairs of a real clip; without one, of a texture that the camera passes."""
    try:
        frames = inputs.clip(setting.data, CLIP, PAIRS + 1, setting.side)
        what = f"{PAIRS} pairs of {CLIP}"
    except inputs.Missing as reason:
        setting.leave_out(f"camera motion of {CLIP}: {reason}; a texture stands for it")
        side = setting.side
        shown = textured_frames(1, 1, side + PAIRS, torch.device("cpu"))[0, 0]
        frames = torch.stack([shown[:, :side, t : t + side] for t in range(PAIRS + 1)])
        what = f"{PAIRS} pairs"
    frames = frames.to(setting.device).contiguous()
    for floor in setting.floors:
        offered = floor in OPERATIONS["camera_motion"]
        if offered or floor == "cpu":  # where it is not, the reference floor estimates
            yield _case(setting, frames, floor if offered else "reference", what)


def _case(setting: Setting, frames: torch.Tensor, floor: str, what: str) -> Case:
    array = frames.cpu().numpy()
    pairs = [(t, t + 1) for t in range(PAIRS)]

    def check(result: torch.Tensor) -> None:
        assert result.shape == (PAIRS, 2, *frames.shape[-2:])
        assert result.isfinite().all()

    def agree(ours: torch.Tensor, theirs: Any) -> None:
        other = torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2).clamp(-20, 20)
        apart = float((ours.cpu() - other).norm(dim=1).median())
        assert apart < 0.15, f"the median difference is {apart:.3f} px"

    return Case(
        stage="camera_motion",
        operation="camera_motion",
        name=setting.label(1, f"flow without camera motion of {what}"),
        floor=floor,
        run=lambda: mme_targets.optical_flow(frames, camera_motion=True),
        check=check,
        peers=(
            Peer(
                "OpenCV alone: SIFT, BFMatcher, findHomography, warpPerspective, two DualTVL1",
                lambda: peers.opencv_camera_flow(array, pairs),
                agree,
                FASTER if setting.device.type == "cpu" else None,
            ),
        ),
        note="the two flows; interest points, matches and RANSAC on the reference floor"
        if floor == "reference"
        else "the two flows; on a CPU they are about four fifths of it",
    )
