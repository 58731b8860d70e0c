"""Frames and flow to tokens: the paper's config, whole, beside the same recipe in torch ops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import mme_targets

from . import peers
from .harness import Case, Peer, Setting, Work, close, ends, smooth_flow, textured_frames

LIMIT_HOG = 40
NOTES = {
    "cpu": "HOG is more than half; the rest is tracks, the norm, and torch's gather of 108-byte "
    "rows and index arithmetic between them, each of which waits for both threads",
}


def cases(setting: Setting) -> Iterator[Case]:
    """Every case of this stage."""
    config = mme_targets.TargetConfig.paper(frames=setting.frames)
    plan = mme_targets.ClipPlan.build(config)
    for batch in setting.batches:
        frames = textured_frames(batch, len(plan.frames), setting.side, setting.device)
        flow = smooth_flow(batch, len(plan.pairs), setting.side, setting.device)
        reference = mme_targets.MotionTargets(config, backend="reference")
        truth = reference(ends(frames), flow=ends(flow))
        for floor in setting.floors:
            yield _case(setting, config, frames, flow, floor, truth)


def _case(
    setting: Setting,
    config: mme_targets.TargetConfig,
    frames: torch.Tensor,
    flow: torch.Tensor,
    floor: str,
    truth: mme_targets.Targets,
) -> Case:
    module = mme_targets.MotionTargets(config, backend=floor).to(setting.device)
    steps = torch.tensor(module.plan.steps, device=setting.device)
    times = torch.tensor(module.plan.hog, device=setting.device)

    def check(result: mme_targets.Targets) -> None:
        assert list(result) == list(truth), f"{list(result)}, expected {list(truth)}"
        for name, target in result.items():
            # Float32 sums of HOG, then a quotient by their deviation.
            close(ends(target.values), truth[name].values, "patch_norm", 10.0)
            assert torch.equal(ends(target.valid), truth[name].valid), f"{name}: validity differs"

    def agree(ours: mme_targets.Targets, theirs: dict[str, Any]) -> None:
        for name, (values, valid) in theirs.items():
            close(ours[name].values, values, "patch_norm", 50.0)
            assert torch.equal(ours[name].valid, valid), f"{name}: validity differs"

    peer = Peer(
        "torch ops",
        lambda: peers.torch_tokens(frames, flow, steps, times),
        agree,
        required=None if setting.device.type == "cuda" else 40.0,
    )
    values = sum(t.values[:1].numel() for t in truth.values()) * len(frames)
    return Case(
        stage="targets",
        operation="MotionTargets",
        name=setting.label(
            len(frames), f"{frames.shape[1]} frames, {flow.shape[1]} flows to tokens"
        ),
        floor=floor,
        run=lambda: module(frames, flow=flow),
        check=check,
        peers=(peer,),
        work=Work(
            read=float(frames.numel() + flow.numel() * 4),
            written=float(values * 4),
            operations=float(frames.numel() * LIMIT_HOG + values * 8),
            how=f"frames and flow once, tokens once; {LIMIT_HOG} lane operations for each value "
            "of a frame (HOG), 8 for each of a token (norm)",
        ),
        note=NOTES.get(floor, ""),
    )
