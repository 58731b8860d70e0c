"""Optical flow (Appendix A): our TV-L1, and the methods that OpenCV does, beside OpenCV alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import mme_targets

from .harness import Case, Peer, Setting, textured_frames

PAIRS = {"tvl1": 4, "farneback": 8, "dis": 8}
NOTES = {
    "tvl1": "the arithmetic of the dual iterations; the floor is not stated, since their number "
    "depends on the frames",
    "farneback": "OpenCV does the work: there is nothing to win",
    "dis": "OpenCV does the work: there is nothing to win",
}


def cases(setting: Setting) -> Iterator[Case]:
    """Each method on small motion of one texture."""
    if setting.device.type != "cpu":
        return
    shown = textured_frames(1, 1, setting.side + 32, setting.device)[0, 0]
    count = max(PAIRS.values()) + 1
    frames = torch.stack(
        [shown[:, 2 * t : 2 * t + setting.side, t : t + setting.side] for t in range(count)]
    )[None]
    for method, pairs in PAIRS.items():
        yield _case(setting, frames[:, : pairs + 1].contiguous(), method)


def _case(setting: Setting, frames: torch.Tensor, method: str) -> Case:
    import cv2

    alone: dict[str, Callable[[], Any]] = {
        "tvl1": lambda: cv2.optflow.createOptFlow_DualTVL1(),
        "farneback": lambda: cv2.FarnebackOpticalFlow.create(),
        "dis": lambda: cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
    }
    solver = alone[method]()

    def opencv() -> Any:
        grey = [
            cv2.cvtColor(np.ascontiguousarray(f.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
            for f in frames[0].numpy()
        ]
        return [solver.calc(a, b, None) for a, b in itertools.pairwise(grey)]

    def check(result: torch.Tensor) -> None:
        """The texture moves by (-1, -2)."""
        inner = result[..., 16:-16, 16:-16] if setting.side > 64 else result
        error = (inner - torch.tensor([-1.0, -2.0])[:, None, None]).norm(dim=2).median()
        assert float(error) < 0.5, f"the median end-point error is {float(error):.2f} px"

    def agree(ours: torch.Tensor, theirs: Any) -> None:
        other = torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2).clamp(-20, 20)
        apart = float((ours[0] - other).abs().mean())
        assert apart < 0.02, f"the mean difference is {apart:.3f} px"

    pairs = frames.shape[1] - 1
    required = 30.0 if method == "tvl1" else None
    return Case(
        stage="optical_flow",
        operation="optical_flow",
        name=setting.label(1, f"optical flow ({method}) of {pairs} pairs"),
        floor="cpu" if method == "tvl1" else "reference",
        run=lambda: mme_targets.optical_flow(frames, method=method),
        check=check,
        peers=(Peer("OpenCV alone, its defaults", opencv, agree, required),),
        note=NOTES[method],
    )
