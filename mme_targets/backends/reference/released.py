"""What the authors' released code computes where it differs from the paper, slips included.

`TargetConfig.released()` comes here; nothing else does, and no other floor repeats any of it.

1. Flow is read as the bytes 0–255 in which it was stored (±bound mapped to them) and added to
   positions as such; only the displacement that is kept is clamped to ±bound.
2. No median filter. Positions are integers.
3. A track is checked before each step, not after the last; a patch counts if any of its K tracks
   does.
4. The shape target is the HOG of the tubelet's middle frame at the patch, not along the track.
5. HOG: replicate padding; linear bins written one over the other, so that a phase which is exactly
   an integer loses its magnitude; a negative phase has the number of bins added; mean of a cell.
   (The released convolution also keeps a random bias, drawn anew at every step. That is left out.)
6. Normalisation per coordinate and step over the K points: (x − mean) / (unbiased std + eps).

Also left out: the lossy video coding of the flow, and tracks made on the uncropped frame.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...targets import Clip, Target, Targets
from .descriptors import F64, sobel


def targets(clip: Clip, seeds: torch.Tensor, starts: torch.Tensor) -> Targets:
    """Position and shape of every patch in `seeds` [B or 1, M·K, 2], patch by patch."""
    config = clip.config
    device, batch, tracks = clip.frames.device, len(clip.frames), config.tracks
    seed = seeds.expand(batch, -1, -1).cpu().numpy()
    start = starts.expand(batch, -1).cpu().numpy()
    made = Targets()
    moves, inside = _tracks(clip, seed, start)
    counts = inside.reshape(batch, -1, tracks).any(axis=2, keepdims=True)
    valid = torch.from_numpy(np.repeat(counts, tracks, axis=2)).to(device)
    if clip.padded is not None:
        late = clip.padded.any(dim=2).gather(1, starts.long().expand(batch, -1))
        valid = valid & ~late.reshape(batch, -1, tracks)
    if config.length and {"trajectory", "position"} & set(config.targets):
        made["position"] = _normalised(
            moves.reshape(batch, -1, tracks, moves[0, 0].size), clip, valid
        )
    if {"trajectory", "shape"} & set(config.targets):
        cells = _middle_hog(clip, seed, start)
        made["shape"] = _normalised(cells.reshape(batch, -1, tracks, cells.shape[-1]), clip, valid)
    return made


def _tracks(
    clip: Clip, seed: NDArray[np.float32], start: NDArray[np.int32]
) -> tuple[F64, NDArray[np.bool_]]:
    """Slips 1 to 3: displacements [B, R, L, 2] and which tracks were inside before each step."""
    config = clip.config
    height, width = clip.frames.shape[-2:]
    point = np.floor(seed).astype(np.int64)
    inside = np.ones(point.shape[:2], dtype=bool)
    moves = []
    if clip.flow is not None:
        flow = clip.flow.cpu().double().numpy()
        scaled = np.rint((flow + config.bound) * 255 / (2 * config.bound))
        stored = np.clip(np.nan_to_num(scaled), 0, 255).astype(np.int64)
        pair_of = clip.steps.cpu().numpy()
        row = np.arange(len(point))[:, None]
        for step in range(config.length):
            x, y = point[..., 0], point[..., 1]
            inside &= (x > 0) & (x < width) & (y > 0) & (y < height)
            byte = stored[
                row,
                pair_of[start, step],
                :,
                np.clip(y, 0, height - 1),
                np.clip(x, 0, width - 1),
            ]
            point = point + byte
            moves.append(np.clip(byte, -config.bound, config.bound))
    shape = (*point.shape[:2], config.length, 2)
    return np.stack(moves, axis=2).astype(float) if moves else np.zeros(shape), inside


def _middle_hog(clip: Clip, seed: NDArray[np.float32], start: NDArray[np.int32]) -> F64:
    """Slips 4 and 5: HOG [B, R, C·bins] of the cell that holds each seed."""
    config = clip.config
    middle = np.array(clip.plan.rgb[config.tubelet // 2 :: config.tubelet])
    images = clip.frames[:, middle.tolist()].cpu().double().numpy()
    gx, gy = sobel(images, "replicate")
    magnitude = np.hypot(gx, gy)
    phase = np.arctan2(gx, gy) / np.pi * config.bins
    phase = np.where(phase < 0, phase + config.bins, phase)
    low, high = np.floor(phase), np.ceil(phase)
    votes = np.zeros((*phase.shape, config.bins))
    for edge, share in ((low, high - phase), (high, phase - low)):
        bin_of = (edge.astype(int) % config.bins)[..., None]
        np.put_along_axis(votes, bin_of, (share * magnitude)[..., None], axis=-1)
    rows, columns = images.shape[-2] // config.cell, images.shape[-1] // config.cell
    votes = votes[..., : rows * config.cell, : columns * config.cell, :]
    cells = votes.reshape(
        *votes.shape[:3], rows, config.cell, columns, config.cell, config.bins
    ).mean(axis=(4, 6))
    place = np.floor(seed).astype(int) // config.cell
    row = np.arange(len(images))[:, None]
    found: F64 = cells[
        row, start, :, np.minimum(place[..., 1], rows - 1), np.minimum(place[..., 0], columns - 1)
    ]
    return found.reshape(*found.shape[:2], -1)


def _normalised(values: F64, clip: Clip, valid: torch.Tensor) -> Target:
    """Slip 6, over values [B, M, K, F]."""
    batch, count, tracks, features = values.shape
    mean = values.mean(axis=2, keepdims=True)
    std = values.std(axis=2, ddof=1, keepdims=True) + clip.config.eps
    parts = [(values - mean) / std] + [np.broadcast_to(s, values.shape) for s in (mean, std)]
    flat = [
        torch.from_numpy(np.ascontiguousarray(p)).float().reshape(batch, count, tracks * features)
        for p in parts
    ]
    z, m, s = (p.to(clip.frames.device) for p in flat)
    return Target(z, valid, m, s)
