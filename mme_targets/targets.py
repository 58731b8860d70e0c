"""Each target by name: what a patch's values are, and which of them count (§3.3, Tables 5 to 7).

Every function here takes the clip's measurements and returns `values [B, M, K, F]` with
`valid [B, M, K]`; `finish` merges tracks (Table 7c), normalises (Table 7b) and lays out tokens. M
runs over the N patches in (t, h, w) order, or over the masked ones alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .config import TargetConfig
from .ops.descriptors import HistogramOptions, hof, hog, hog_along, mbh
from .ops.patch_norm import patch_norm
from .plan import ClipPlan


class Target(NamedTuple):
    """What is to be predicted of each patch.

    Attributes
    ----------
    values : [B, N, D] float32, D laid out (k, l, …): track of the patch, step, value.
    valid : [B, N, K] bool: which tracks count in the loss (Eq. 7).
    mean, std : [B, N, 1] or [B, N, D] float32; ``values * std + mean`` undoes the normalisation.
    """

    values: torch.Tensor
    valid: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor


class Targets(dict[str, Target]):
    """Target by name, in the order asked for; N = (T/tubelet)·(H/patch)·(W/patch) or fewer."""


@dataclass
class Clip:
    """The measurements of a batch of clips that targets are made of.

    `frames` and `flow` are those the model's crop shows; `tracked_frames` those that tracks live in
    (the same, but for `region="frame"`). Tracks are flat: R = M·K, patch by patch.
    """

    config: TargetConfig
    plan: ClipPlan
    backend: str
    frames: torch.Tensor
    flow: torch.Tensor | None
    steps: torch.Tensor
    hog_times: torch.Tensor
    tokens: torch.Tensor | None
    padded: torch.Tensor | None
    tracked_frames: torch.Tensor
    starts: torch.Tensor | None = None
    points: torch.Tensor | None = None
    lookup: torch.Tensor | None = None
    displacements: torch.Tensor | None = None
    visible: torch.Tensor | None = None


def position(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """z^p, the displacements along each track (Eq. 4): F = L·2, px of the crop."""
    assert clip.displacements is not None
    assert clip.visible is not None
    moves = clip.displacements
    tracks = clip.config.tracks
    values = moves.reshape(len(moves), -1, tracks, moves.shape[2] * 2)
    return values, clip.visible.reshape(len(moves), -1, tracks)


def shape(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """z^s, HOG along each track (Eq. 5): F = L·C·bins; at L = 0 the middle frame's alone."""
    assert clip.lookup is not None
    assert clip.starts is not None
    assert clip.visible is not None
    config = clip.config
    found = hog_along(
        clip.tracked_frames,
        clip.lookup,
        clip.starts,
        clip.hog_times,
        config.shape,
        histogram_options(config),
        clip.backend,
    )
    features = found.shape[2] * found.shape[3] * found.shape[4]
    values = found.reshape(len(found), -1, config.tracks, features)
    return values, clip.visible.reshape(len(found), -1, config.tracks)


def pixel(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """All pixels of the 3-D patch in 0–1 (VideoMAE): K = pixels, F = channels."""
    config = clip.config
    rgb = clip.frames[:, list(clip.plan.rgb)].float() / 255
    patches = rgb.unflatten(1, (-1, config.tubelet))
    patches = _patchify(patches, config.patch)  # [B, S, h, w, p, p, tubelet, C]
    patches = patches.permute(0, 1, 2, 3, 6, 4, 5, 7)
    values = patches.flatten(1, 3).flatten(2, 4)
    return _chosen(values, clip.tokens), _always(values, clip)


def hog_of_patch(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """HOG of the tubelet's middle frame (MaskFeat), or of its L raw frames if interpolating."""
    config = clip.config
    if config.interpolate and config.hog_interpolate and config.length:
        times = [list(row) for row in clip.plan.hog]
    else:
        times = [[t] for t in clip.plan.rgb[config.tubelet // 2 :: config.tubelet]]
    used = sorted({t for row in times for t in row})
    place = [[used.index(t) for t in row] for row in times]
    maps = hog(clip.frames[:, used], **histogram_options(config)._asdict(), backend=clip.backend)
    values = _cells(maps[:, place], config)
    return _chosen(values, clip.tokens), _always(values, clip)


def dense_flow(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """The flow map of the patch (Table 5): K = pixels, F = L·2, or 2 if not interpolating."""
    flow, valid = _flow_steps(clip)
    patches = _patchify(flow, clip.config.patch)  # [B, S, h, w, p, p, L, 2]
    values = patches.flatten(1, 3).flatten(2, 3).flatten(3)
    finite = values.isfinite()
    calm = torch.where(finite, values, 0.0)
    valid = valid & finite.all(dim=-1).all(dim=-1, keepdim=True)
    return _chosen(calm, clip.tokens), _chosen(valid, clip.tokens)


def flow_histogram(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """HOF of the patch's cells (Table 5): F = L·bins."""
    options = histogram_options(clip.config)._asdict()
    options.pop("padding")
    flow, valid = _flow_steps(clip)
    maps = hof(flow.flatten(1, 2), **options, backend=clip.backend)
    values = _cells(maps.unflatten(1, flow.shape[1:3]), clip.config)
    return _chosen(values, clip.tokens), _chosen(valid, clip.tokens)


def motion_boundaries(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """MBH of the patch's cells (Table 5): F = L·2·bins."""
    flow, valid = _flow_steps(clip)
    options = histogram_options(clip.config)._asdict()
    maps = mbh(flow.flatten(1, 2), **options, backend=clip.backend)
    values = _cells(maps.unflatten(1, flow.shape[1:3]), clip.config)
    return _chosen(values, clip.tokens), _chosen(valid, clip.tokens)


MAKERS: dict[str, Callable[[Clip], tuple[torch.Tensor, torch.Tensor]]] = {
    "position": position,
    "shape": shape,
    "pixel": pixel,
    "hog": hog_of_patch,
    "flow": dense_flow,
    "hof": flow_histogram,
    "mbh": motion_boundaries,
}
TRACKED = ("position", "shape")


def names(config: TargetConfig) -> tuple[str, ...]:
    """The targets that a config asks for, each once: "trajectory" is position and shape."""
    parts = TRACKED if config.length else ("shape",)
    listed = [n for name in config.targets for n in (parts if name == "trajectory" else (name,))]
    return tuple(dict.fromkeys(listed))


def finish(name: str, clip: Clip) -> Target:
    """Make one target: measure, merge tracks, normalise, lay out as tokens."""
    config = clip.config
    values, valid = MAKERS[name](clip)
    if name in TRACKED:
        values, valid = _merge(values, valid, clip)
    batch, count = values.shape[:2]
    mode = config.norm
    if mode == "coordinate" and values.shape[2] < 2:
        mode = "patch"  # descriptors of a patch of a single cell
    if name == "pixel" and mode != "none":
        mode = "coordinate"  # per channel, as VideoMAE does
    if mode == "none":
        flat = values.reshape(batch, count, -1)
        mean, std = flat.new_zeros((batch, count, 1)), flat.new_ones((batch, count, 1))
        return Target(flat, valid, mean, std)
    normalised, mean, std = patch_norm(
        values.contiguous(), mode=mode, eps=config.eps, backend=clip.backend
    )
    if mode == "coordinate":
        mean, std = (s.expand_as(values) for s in (mean, std))
    return Target(
        normalised.reshape(batch, count, -1),
        valid,
        mean.reshape(batch, count, -1),
        std.reshape(batch, count, -1),
    )


def histogram_options(config: TargetConfig) -> HistogramOptions:
    """The config's constants of Appendix C."""
    return HistogramOptions(
        config.bins, config.cell, config.binning, config.pool, config.padding, config.l2
    )


def _merge(
    values: torch.Tensor, valid: torch.Tensor, clip: Clip
) -> tuple[torch.Tensor, torch.Tensor]:
    """Table 7c: all K tracks, their mean, or the one of largest total displacement."""
    if clip.config.density == "dense" or clip.config.tracks == 1:
        return values, valid
    if clip.config.density == "mean":
        return values.mean(dim=2, keepdim=True), valid.all(dim=2, keepdim=True)
    assert clip.displacements is not None
    moved = clip.displacements.norm(dim=-1).sum(dim=-1).reshape(valid.shape)
    best = moved.argmax(dim=2, keepdim=True)
    index = best[..., None].expand(-1, -1, -1, values.shape[-1])
    return values.gather(2, index), valid.gather(2, best)


def _flow_steps(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow of each tubelet's pairs [B, S, L', 2, H, W], and their patches' validity [B, N, 1]."""
    assert clip.flow is not None
    config, plan = clip.config, clip.plan
    count = config.length if config.interpolate else 1
    flow = clip.flow[:, [list(row[:count]) for row in plan.steps]]
    batch, height, width = len(flow), flow.shape[-2], flow.shape[-1]
    patches = (height // config.patch) * (width // config.patch)
    if clip.padded is None:
        valid = flow.new_ones((batch, plan.starts * patches, 1), dtype=torch.bool)
    else:
        real = ~clip.padded[:, :, :count].any(dim=2, keepdim=True)
        valid = real.expand(batch, -1, patches).reshape(batch, -1, 1)
    return flow, valid


def _always(values: torch.Tensor, clip: Clip) -> torch.Tensor:
    count = values.shape[1] if clip.tokens is None else clip.tokens.shape[1]
    return values.new_ones((len(values), count, 1), dtype=torch.bool)


def _patchify(maps: torch.Tensor, patch: int) -> torch.Tensor:
    """[B, S, L, C, H, W] -> [B, S, h, w, patch, patch, L, C]."""
    blocks = maps.unflatten(5, (-1, patch)).unflatten(4, (-1, patch))
    ordered: torch.Tensor = blocks.permute(0, 1, 4, 6, 5, 7, 2, 3)
    return ordered


def _cells(maps: torch.Tensor, config: TargetConfig) -> torch.Tensor:
    """Cell maps [B, S, L, C, bins, y, x] -> [B, N, cells of a patch, L·C·bins]."""
    side = config.patch // config.cell
    blocks = maps.unflatten(6, (-1, side)).unflatten(5, (-1, side))
    ordered: torch.Tensor = blocks.permute(
        0, 1, 5, 7, 6, 8, 2, 3, 4
    )  # [B, S, h, w, side, side, L, C, bins]
    return ordered.flatten(1, 3).flatten(2, 3).flatten(3)


def _chosen(values: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    """The masked patches' rows of [B, N, …]."""
    if tokens is None:
        return values
    index = tokens.view(*tokens.shape, *([1] * (values.dim() - 2)))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))
