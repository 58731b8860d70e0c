"""Optical flow (Appendix A): our TV-L1, and the methods that OpenCV does, beside OpenCV alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import mme_targets
from mme_targets.backends import OPERATIONS

from . import inputs, peers
from .flow_facts import facts as facts  # which the command asks each stage for
from .harness import Case, Peer, Setting, textured_frames

PAIRS = {"tvl1": 4, "farneback": 8, "dis": 8}
EVERY = 8
"""Of a real clip's pairs both sides solve every so many'th: OpenCV needs half a second for one."""
FASTER = 30.0
"""What TV-L1 on a CPU promises beside OpenCV's."""
OPENCV = "OpenCV alone, its defaults"
NOTES = {
    "tvl1": "the arithmetic of the dual iterations; the floor is not stated, since their number "
    "depends on the frames",
    "farneback": "OpenCV does the work: there is nothing to win",
    "dis": "OpenCV does the work: there is nothing to win",
}


def cases(setting: Setting) -> Iterator[Case]:
    """Small motion of one texture by every method; real frames by TV-L1."""
    if setting.device.type == "cpu":
        shown = textured_frames(1, 1, setting.side + 32, setting.device)[0, 0]
        count = max(PAIRS.values()) + 1
        frames = torch.stack(
            [shown[:, 2 * t : 2 * t + setting.side, t : t + setting.side] for t in range(count)]
        )[None]
        for method, pairs in PAIRS.items():
            yield _texture(setting, frames[:, : pairs + 1].contiguous(), method)
    for floor in setting.floors:
        if floor in OPERATIONS["tvl1"]:
            yield from _real(setting, floor)


def _real(setting: Setting, floor: str) -> Iterator[Case]:
    try:
        yield _middlebury(setting, floor)
    except inputs.Missing as reason:
        setting.leave_out(f"optical flow of Middlebury ({floor}): {reason}")
    try:
        for name in inputs.CLIPS:
            yield _clip(setting, floor, name)
    except inputs.Missing as reason:
        setting.leave_out(f"optical flow of real clips ({floor}): {reason}")


def _texture(setting: Setting, frames: torch.Tensor, method: str) -> Case:
    def check(result: torch.Tensor) -> None:
        """The texture moves by (-1, -2)."""
        inner = result[..., 16:-16, 16:-16] if setting.side > 64 else result
        error = (inner - torch.tensor([-1.0, -2.0])[:, None, None]).norm(dim=2).median()
        assert float(error) < 0.5, f"the median end-point error is {float(error):.2f} px"

    def agree(ours: torch.Tensor, theirs: Any) -> None:
        apart = float((ours[0] - _clipped(theirs)).abs().mean())
        assert apart < 0.02, f"the mean difference is {apart:.3f} px"

    consecutive = list(itertools.pairwise(range(frames.shape[1])))
    return Case(
        stage="optical_flow",
        operation="optical_flow",
        name=setting.label(1, f"optical flow ({method}) of {len(consecutive)} pairs"),
        floor="cpu" if method == "tvl1" else "reference",
        run=lambda: mme_targets.optical_flow(frames, method=method),
        check=check,
        peers=(_peer(frames[0], consecutive, method, agree),),
        note=NOTES[method],
    )


def _peer(
    frames: torch.Tensor,
    pairs: list[tuple[int, int]],
    method: str,
    agree: Callable[[Any, Any], None],
    required: float | None = FASTER,
) -> Peer:
    array = frames.cpu().numpy()
    return Peer(
        OPENCV,
        lambda: peers.opencv_flow(array, pairs, method),
        agree,
        required if method == "tvl1" else None,
    )


def _middlebury(setting: Setting, floor: str) -> Case:
    """All four pairs, one after the other, on both sides; crops of them in a small setting."""
    side = None if setting.side >= 224 else setting.side
    scenes = []
    for name in inputs.SCENES:
        frames, truth = inputs.middlebury(setting.data, name)
        if side:
            top, left = ((n - side) // 2 for n in frames.shape[-2:])
            frames, truth = (
                np.ascontiguousarray(a[..., top : top + side, left : left + side])
                for a in (frames, truth)
            )
        scenes.append((name, torch.from_numpy(frames).to(setting.device), truth))

    def errors(flows: Any) -> list[float]:
        return [
            inputs.end_point_error(flow, truth)
            for flow, (_, _, truth) in zip(flows, scenes, strict=True)
        ]

    def check(result: list[torch.Tensor]) -> None:
        """Most of the motion is found."""
        found = errors([flow.cpu() for flow in result])
        still = errors([np.zeros_like(truth) for _, _, truth in scenes])
        for (name, _, _), error, most in zip(scenes, found, still, strict=True):
            assert error < 0.5 * most, f"{name}: the end-point error is {error:.2f} of {most:.2f}"

    def agree(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
        """Equal accuracy or better, over all."""
        mine, other = (float(np.mean(errors([f.cpu() for f in x]))) for x in (ours, theirs))
        assert side or mine < other + 0.02, f"ours is off by {mine:.3f} px, theirs by {other:.3f}"

    def opencv() -> list[torch.Tensor]:
        solved = (peers.opencv_flow(f.cpu().numpy(), [(0, 1)], "tvl1")[0] for _, f, _ in scenes)
        return [torch.from_numpy(flow.transpose(2, 0, 1)) for flow in solved]

    cut = f"centres of {side}x{side} of " if side else ""
    return Case(
        stage="optical_flow",
        operation="tvl1",
        name=f"optical flow (tvl1) of {cut}the four Middlebury pairs",
        floor=floor,
        run=lambda: [mme_targets.tvl1(f[0], f[1], backend=floor) for _, f, _ in scenes],
        check=check,
        peers=(Peer(OPENCV, opencv, agree, FASTER if setting.device.type == "cpu" else None),),
        note=NOTES["tvl1"],
    )


def _clip(setting: Setting, floor: str, name: str) -> Case:
    count = setting.pairs
    frames = inputs.clip(setting.data, name, count + 1, setting.side).to(setting.device)
    pairs = [(t, t + 1) for t in range(0, count, EVERY)]

    def check(result: torch.Tensor) -> None:
        """Brought back by the flow, the second frame is nearer to the first, or within rounding."""
        first, second = (frames[[p[k] for p in pairs]].float().mean(1) for k in (0, 1))
        still = float((second - first).abs().mean())
        moved = float((_brought_back(second, result) - first).abs().mean())
        assert moved < max(still, 0.5), (
            f"frames differ by {moved:.2f} levels after the flow, {still:.2f} before"
        )

    def agree(ours: torch.Tensor, theirs: Any) -> None:
        apart = float((ours.cpu() - _clipped(theirs)).norm(dim=1).median())
        assert apart < 0.1, f"the median difference is {apart:.3f} px"

    every = f"every {EVERY}th of {count} pairs of {name}"
    required = FASTER if setting.device.type == "cpu" else None
    return Case(
        stage="optical_flow",
        operation="optical_flow",
        name=setting.label(1, f"optical flow (tvl1) of {every}"),
        floor=floor,
        run=lambda: mme_targets.optical_flow(frames, pairs=pairs, backend=floor),
        check=check,
        peers=(_peer(frames, pairs, "tvl1", agree, required),),
        note=NOTES["tvl1"],
    )


def _brought_back(images: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Images [P, H, W] read, bilinearly, where flow [P, 2, H, W] leads."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device),
        torch.arange(width, device=flow.device),
        indexing="ij",
    )
    place = torch.stack([x + flow[:, 0], y + flow[:, 1]], dim=-1)
    scaled = 2 * place / torch.tensor([width - 1, height - 1], device=flow.device) - 1
    return torch.nn.functional.grid_sample(
        images[:, None], scaled, padding_mode="border", align_corners=True
    )[:, 0]


def _clipped(flows: Any) -> torch.Tensor:
    """OpenCV's flows [H, W, 2] as ours come: [P, 2, H, W], within 20 px."""
    return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).clamp(-20, 20)
