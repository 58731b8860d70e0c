"""Camera motion of many pairs of frames: kernels on a CPU, else torch operations.

The reference explains the steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .. import native
from ..reference import camera_motion as reference
from ..reference.camera_motion import (
    BORDER,
    NOISE,
    SAMPLES,
    SMALLEST_SIDE,
    STEP,
    Settings,
)
from ..reference.optical_flow import in_parallel
from . import homography, interest_points, matches
from .homography import Estimate

PAIRS = 4
"""Pairs at a time on a CPU."""


def _part(pairs: torch.Tensor) -> int:
    return PAIRS if pairs.device.type == "cpu" else max(len(pairs), 1)


def grey(frames: torch.Tensor) -> torch.Tensor:
    """Grey levels [F, H, W] of RGB or grey frames [F, 3 or 1, H, W] of values 0 to 255.

    The weights of ITU-R BT.601; uint8 is rounded to uint8 as csrc/common/optical_flow.h does it.
    """
    if frames.dtype == torch.uint8:
        if frames.shape[1] == 1:
            return frames[:, 0]
        r, g, b = frames.int().unbind(1)
        return ((9798 * r + 19235 * g + 3735 * b + 16384) >> 15).to(torch.uint8)
    frames = frames.nan_to_num(0.0, 255.0, 0.0).clamp(0, 255)
    if frames.shape[1] == 1:
        return frames[:, 0]
    r, g, b = frames.unbind(1)
    return (0.299 * r + 0.587 * g) + 0.114 * b


def rounded(greys: torch.Tensor) -> torch.Tensor:
    """Grey levels as uint8, for the detectors that take no other."""
    return greys if greys.dtype == torch.uint8 else greys.round().to(torch.uint8)


def estimate(
    greys: torch.Tensor,
    pairs: torch.Tensor,
    flow: torch.Tensor,
    settings: Settings,
) -> Estimate:
    """Homographies of pairs [P, 2] of grey frames [F, H, W].

    From their unclipped flow [P, 2, H, W]; `pairs` are int64 on the frames' device.
    """
    levels, shape = rounded(greys), (greys.shape[1], greys.shape[2])
    at, corner = _corners(levels)
    points = _points(levels, settings)
    part = _part(pairs)
    sources, targets, kept = [], [], []
    for some, field in zip(pairs.split(part), flow.split(part), strict=True):
        one = some[:, 0]
        aims, inside = matches.carried(at[one], corner[one], field)
        matched = mutual(points, some, settings.window)
        sources.append(torch.cat([matched[0], at[one]], dim=1))
        targets.append(torch.cat([matched[1], aims], dim=1))
        kept.append(torch.cat([matched[2], inside], dim=1))
    if not sources:
        none = greys.new_zeros(0)
        return Estimate(none.double().view(0, 3, 3), none.long(), none.bool())
    found = homography.candidates(
        torch.cat(sources), torch.cat(targets), torch.cat(kept), shape, settings.threshold,
        settings.seed,
    )  # fmt: skip
    motion = judged(greys, pairs, found)
    # Of equal frames it is found to within rounding, and known exactly.
    one, two = pairs.unbind(1)
    same = (greys[one] == greys[two]).flatten(1).all(1)
    exact = (same & motion.ok)[:, None, None]
    identity = torch.eye(3, dtype=torch.float64, device=greys.device)
    return motion._replace(homographies=identity.where(exact, motion.homographies))


def _corners(levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Corners [F, K, 2] and which there are [F, K]."""
    if not homography.has_kernels(levels):
        return matches.corners(levels)
    return native.corners(
        levels, quality=matches.QUALITY, candidates=matches.CANDIDATES, most=matches.CORNERS
    )


def mutual(
    points: matches.Points, pairs: torch.Tensor, window: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source and target [P, K, 2] of pairs [P, 2] of frames: see `matches.mutual`.

    Without a window all points are compared, which a matrix product does faster.
    """
    if window is not None and homography.has_kernels(pairs):
        return native.mutual(*points, pairs, window)
    first, second = (matches.Points(*(t[end] for t in points)) for end in pairs.unbind(1))
    return matches.mutual(first, second, window)


def _points(levels: torch.Tensor, settings: Settings) -> matches.Points:
    """Interest points of frames [F, H, W]."""
    detector, surf = settings.detector, settings.surf
    if detector == "surf":
        if homography.has_kernels(levels):
            found = interest_points.Points(*native.surf(levels, surf))
        else:
            found = interest_points.surf(levels, surf)
        return matches.Points(found.points, found.descriptors, found.valid)
    device = levels.device
    if detector == "corners" or min(levels.shape[1:]) < SMALLEST_SIDE:
        none = torch.zeros((len(levels), 0, 2), dtype=torch.float32, device=device)
        return matches.Points(none, none, none[..., 0].bool())
    # OpenCV's, on the host.
    images = levels.cpu().numpy()
    each = in_parallel(
        lambda k: reference.features(images[k], detector, surf), list(range(len(images)))
    )
    room = max((len(f.points) for f in each.values()), default=0)
    width = max((f.descriptors.shape[1] for f in each.values()), default=1)
    # Numbers and place are said, since a program may have other defaults.
    points, described = (
        torch.zeros((len(images), room, n), dtype=torch.float32, device="cpu") for n in (2, width)
    )
    valid = torch.zeros((len(images), room), dtype=torch.bool, device="cpu")
    for k, features in each.items():
        count = len(features.points)
        points[k, :count] = torch.from_numpy(features.points).float()
        if count:
            described[k, :count] = torch.from_numpy(features.descriptors)
        valid[k, :count] = True
    return matches.Points(points.to(device), described.to(device), valid.to(device))


def judged(greys: torch.Tensor, pairs: torch.Tensor, candidates: Estimate) -> Estimate:
    """Of each pair's candidates [P, M] the one that explains most; see `reference.explained`."""
    one, two = pairs.unbind(1)
    scores = [
        explained(greys[a].float(), greys[b].float(), h, ok)
        for a, b, h, ok in zip(
            *(column.split(_part(pairs)) for column in (one, two, *candidates[::2])), strict=True
        )
    ]
    best = torch.cat(scores).max(dim=1, keepdim=True).indices
    h, inliers, ok = candidates
    chosen = h.gather(1, best[..., None, None].expand(-1, -1, 3, 3))[:, 0]
    return Estimate(chosen, inliers.gather(1, best)[:, 0], ok.gather(1, best)[:, 0])


def explained(
    first: torch.Tensor, second: torch.Tensor, homographies: torch.Tensor, ok: torch.Tensor
) -> torch.Tensor:
    """Scores [P, M] of homographies [P, M, 3, 3] by frames [P, H, W]; -1 where not `ok` [P, M]."""
    if homography.has_kernels(first):
        return native.explained(
            first, second, homographies, ok, step=STEP, samples=SAMPLES, noise=NOISE, border=BORDER
        )
    from . import fitting

    height, width = first.shape[1:]
    rows, columns = (torch.arange(1, n, STEP, device=first.device) for n in (height, width))
    y, x = torch.meshgrid(rows.double(), columns.double(), indexing="ij")
    models = homographies.shape[1]
    seen, inside = _looked_up(second.repeat_interleave(models, 0), homographies.flatten(0, 1), x, y)
    seen, inside = (part.unflatten(0, (-1, models)) for part in (seen, inside))
    there = (inside | ~ok[..., None, None]).all(1, keepdim=True)
    off = (seen - first[:, None, rows[:, None], columns]).where(there, 0.0).double()

    def squares(values: torch.Tensor) -> torch.Tensor:
        """Sums over squares of SAMPLES x SAMPLES, in one order of addition."""
        bottom, right = (-n % SAMPLES for n in values.shape[-2:])
        parts = F.pad(values, [0, right, 0, bottom])
        high, wide = (n // SAMPLES for n in parts.shape[-2:])
        parts = fitting.halves(parts.unflatten(-1, (wide, SAMPLES)))
        return fitting.halves(parts.mT.unflatten(-1, (high, SAMPLES))).mT

    count = squares(there.double())
    most = count.clamp_min(1.0)
    mean = squares(off) / most
    deviation = (squares(off * off) / most - mean * mean).clamp_min(0.0).sqrt()
    least = deviation.where(ok[..., None, None], torch.inf).amin(1, keepdim=True)
    share = ((least + NOISE) / (deviation + NOISE)) ** 2
    share = share.where(count > SAMPLES * SAMPLES / 4, 0.0)
    high, wide = share.shape[2:]
    place = torch.arange(high * wide, device=first.device)
    across, down = (place % max(wide, 1)).double(), (place // max(wide, 1)).double()
    room = 1 << (len(place) - 1).bit_length() if len(place) else 1
    share, across, down = (
        F.pad(part, [0, room - len(place)]) for part in (share.flatten(2), across, down)
    )
    return fitting.spread_out(share, across, down).where(ok, -1.0)


def _looked_up(
    frames: torch.Tensor, homographies: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames [P, H, W], bilinearly at H·(x, y), and where that is not `BORDER` px near their edge.

    Values elsewhere mean nothing.
    """
    height, width = frames.shape[1:]
    h = homographies[..., None, None]
    lines = [h[:, row, 0] * x + h[:, row, 1] * y + h[:, row, 2] for row in range(3)]
    px, py = lines[0] / lines[2], lines[1] / lines[2]
    right, bottom = width - 1 - BORDER, height - 1 - BORDER
    inside = (px >= BORDER) & (px <= right) & (py >= BORDER) & (py <= bottom)
    px, py = px.where(inside, 0.0), py.where(inside, 0.0)
    left, top = px.floor(), py.floor()
    fx, fy = (px - left).float(), (py - top).float()
    pixels = frames.float().flatten(1)
    at = (top * width + left).long()
    last = height * width - 1

    def read(offset: int) -> torch.Tensor:
        return pixels.gather(1, (at + offset).clamp_max(last).flatten(1)).view_as(fx)

    above = read(0) + fx * (read(1) - read(0))
    below = read(width) + fx * (read(width + 1) - read(width))
    return above + fy * (below - above), inside


def warp_second(
    first: torch.Tensor, second: torch.Tensor, homographies: torch.Tensor
) -> torch.Tensor:
    """Second frames [P, H, W] as if the camera had stood still; see `reference.warp_second`."""
    if homography.has_kernels(first):
        return native.warp(first, second, homographies, BORDER)
    return _warp_second(first, second, homographies)


def _warp_second(
    first: torch.Tensor, second: torch.Tensor, homographies: torch.Tensor
) -> torch.Tensor:
    """The same in torch operations."""
    height, width = first.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=first.device),
        torch.arange(width, dtype=torch.float64, device=first.device),
        indexing="ij",
    )
    seen, inside = _looked_up(second, homographies, x, y)
    return seen.where(inside, first.float())
