"""Matches of two frames: interest points nearest to each other, and corners that flow carries."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

CORNERS = 1000
"""Corners of a frame at most."""
QUALITY = 0.001
"""Least strength of a corner, relative to the strongest."""
CANDIDATES = 4096
"""Of the corners that are maxima among their neighbours, so many are looked at, the strongest."""
ROUNDS = 16
"""Rounds in which corners less than 3 px from a stronger one are dropped; natural frames take
five."""


class Points(NamedTuple):
    """Interest points [P, K, 2] of P frames, their descriptors [P, K, D], which there are."""

    points: torch.Tensor
    descriptors: torch.Tensor
    valid: torch.Tensor


def mutual(
    first: Points, second: Points, window: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points of two frames that are each other's nearest inside ±`window` px.

    Returns source and target [P, K, 2], and which of them there are [P, K].

    Descriptors are whole numbers small enough for float32 to hold every distance exactly, so that
    the order in which a library adds them up does not matter.
    """
    points, described, valid = first
    others, described_, valid_ = second
    if points.shape[1] == 0 or others.shape[1] == 0:
        return points, points, torch.zeros_like(valid)
    norms = (described * described).sum(-1)[..., None] + (described_ * described_).sum(-1)[:, None]
    # Mixed precision of the caller's own training must not reach in here.
    with torch.autocast(points.device.type, enabled=False):
        far = torch.baddbmm(norms, described, described_.transpose(1, 2), alpha=-2)
    refused = ~(valid[..., None] & valid_[:, None])
    if window is not None:
        apart = (points[:, :, None] - others[:, None]).abs()
        refused |= (apart > window).any(-1)
    far = far.masked_fill_(refused, torch.inf)
    distance, nearest = far.min(dim=2)
    back = far.min(dim=1).indices
    places = torch.arange(points.shape[1], device=points.device)
    kept = (distance < torch.inf) & (back.gather(1, nearest) == places)
    target = others.gather(1, nearest[..., None].expand(-1, -1, 2))
    return points, target, kept


def corners(greys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Corners [F, 1000, 2] (x, y) px of grey frames [F, H, W] uint8, and which there are [F, 1000].

    Shi and Tomasi's: the smaller eigenvalue of the gradients' products over 3 × 3 px is the largest
    in its own 3 × 3, above 0.001 of the frame's largest, and no stronger corner is within 3 px; the
    strongest 1000 (OpenCV's `goodFeaturesToTrack(1000, .001, 3)`).
    """
    frames, height, width = greys.shape
    device = greys.device
    if height < 3 or width < 3 or frames == 0:
        none = torch.zeros((frames, 0, 2), dtype=torch.float32, device=device)
        return none, torch.zeros((frames, 0), dtype=torch.bool, device=device)
    strength = _strength(greys)
    best = strength.flatten(1).amax(1)[:, None, None]
    peak = (strength == _largest(strength, 1)) & (strength > best * QUALITY)
    peak[:, 0] = peak[:, -1] = peak[:, :, 0] = peak[:, :, -1] = False
    count = height * width
    place = torch.arange(count - 1, -1, -1, device=device)
    found = strength.where(peak, 0.0).flatten(1)
    # Unique keys: of equal corners the first comes first.
    keys = (found.view(torch.int32).long() << 32) | place
    top = keys.topk(min(CANDIDATES, count), dim=1).values
    chosen = count - 1 - (top & 0xFFFFFFFF)
    there = found.gather(1, chosen) > 0

    # A corner stays if it is the best of those left within 3 px; then its neighbours go. Ranks are
    # compared, which are unique.
    order = torch.arange(chosen.shape[1], 0, -1, device=device, dtype=torch.float32)
    rank = torch.zeros((frames, count), dtype=torch.float32, device=device)
    rank = rank.scatter(1, chosen, order.where(there, 0.0).expand_as(there)).view_as(strength)
    kept = torch.zeros_like(peak)
    on_cpu = device.type == "cpu"
    for _ in range(ROUNDS):
        winner = (rank > 0) & (rank == _largest(rank, 2))
        kept |= winner
        rank = rank.masked_fill(_largest(winner.float(), 2) > 0, 0.0)
        if on_cpu and not bool(rank.any()):
            break
    stays = kept.flatten(1).gather(1, chosen) & there
    room = min(CORNERS, chosen.shape[1])
    first = (stays.int() * order.int()).topk(room, dim=1)  # unique where they count
    valid = first.values > 0
    at = chosen.gather(1, first.indices)
    if on_cpu:
        most = int(valid.sum(1).max())
        at, valid = at[:, :most], valid[:, :most]
    points = torch.stack([at % width, at // width], dim=-1).float()
    return points.where(valid[..., None], 0.0), valid


def _strength(greys: torch.Tensor) -> torch.Tensor:
    """The smaller eigenvalue at every pixel; exact but for its square root."""
    image = F.pad(greys[:, None].float(), [1] * 4, mode="reflect")[:, 0]
    smooth = image[:, :-2] + 2 * image[:, 1:-1] + image[:, 2:]
    dx = smooth[..., 2:] - smooth[..., :-2]
    smooth = image[..., :-2] + 2 * image[..., 1:-1] + image[..., 2:]
    dy = smooth[:, 2:] - smooth[:, :-2]

    def over_3x3(values: torch.Tensor) -> torch.Tensor:
        wide = F.pad(values[:, None], [1] * 4, mode="reflect")[:, 0]
        rows = wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]
        return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]

    a, b, c = 0.5 * over_3x3(dx * dx), over_3x3(dx * dy), 0.5 * over_3x3(dy * dy)
    return ((a + c) - ((a - c) * (a - c) + b * b).sqrt()).clamp_min(0.0)


def _largest(values: torch.Tensor, reach: int) -> torch.Tensor:
    """Maximum over (2 · reach + 1)² px of values that are not negative."""
    wide = F.pad(values, [reach] * 4)
    height, width = values.shape[1:]
    rows = wide[:, :height]
    for k in range(1, 2 * reach + 1):
        rows = torch.maximum(rows, wide[:, k : k + height])
    result = rows[..., :width]
    for k in range(1, 2 * reach + 1):
        result = torch.maximum(result, rows[..., k : k + width])
    return result


def carried(
    points: torch.Tensor, valid: torch.Tensor, flow: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where flow [P, 2, H, W] takes whole points [P, K, 2], and which stay inside the frame."""
    height, width = flow.shape[-2:]
    at = (points[..., 1] * width + points[..., 0]).long()
    moves = flow.float().flatten(2).gather(2, at[:, None].expand(-1, 2, -1)).transpose(1, 2)
    target = points + moves
    x, y = target.unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)  # False for NaN
    return target.nan_to_num(0.0, 0.0, 0.0), valid & inside
