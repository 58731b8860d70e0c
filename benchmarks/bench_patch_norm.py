"""Patch norm (section 3.3, Table 7b), beside torch ops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import mme_targets

from . import peers
from .harness import Case, Peer, Setting, Work, close, ends

TRACKS, FEATURES = 4, 162
"""K, and L x 3 x 9 values of the HOG along each track."""
NOTES = {
    "cpu": "three passes over a patch in the cache, and a division a value; not profiled further",
}


def cases(setting: Setting) -> Iterator[Case]:
    """Every case of this stage."""
    patches = setting.frames // 2 * (setting.side // 16) ** 2
    for batch in setting.batches:
        generator = torch.Generator().manual_seed(3)
        values = torch.rand(batch, patches, TRACKS, FEATURES, generator=generator) * 900
        values = values.to(setting.device)
        for mode in ("patch", "coordinate"):
            truth = mme_targets.patch_norm(ends(values), mode=mode, backend="reference")
            for floor in setting.floors:
                yield _case(setting, values, floor, mode, truth)


def _case(setting: Setting, values: torch.Tensor, floor: str, mode: str, truth: Any) -> Case:
    def check(result: Any) -> None:
        for own, other in zip(result, truth, strict=True):
            close(ends(own), other, "patch_norm")

    def agree(ours: Any, theirs: Any) -> None:
        for own, other in zip(ours, theirs, strict=True):
            close(own, other, "patch_norm")

    statistics = sum(t.numel() for t in truth[1:]) / len(ends(values)) * len(values)
    return Case(
        stage="patch_norm",
        operation="patch_norm",
        name=setting.label(len(values), f"patch norm ({mode}) of {values.shape[1]} patches"),
        floor=floor,
        run=lambda: mme_targets.patch_norm(values, mode=mode, backend=floor),
        check=check,
        peers=(Peer("torch ops (var_mean)", lambda: peers.torch_patch_norm(values, mode), agree),),
        work=Work(
            read=float(values.numel() * 4),
            written=float((values.numel() + statistics) * 4),
            operations=float(values.numel() * 8),
            how="values once in, once out; 8 lane operations a value "
            "(pivot and sum, pivot and squared deviation, pivot, shift and quotient)",
        ),
        note=NOTES.get(floor, ""),
    )
