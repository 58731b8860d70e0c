"""Homographies that many matches agree with: RANSAC over all pairs and hypotheses at once.

Four matches give a hypothesis in closed form. Hypotheses that fold or crush the frame are dropped;
the rest are scored on a random part of the matches, the best of them on all, by MSAC (a match adds
1 - (error / threshold)², at least 0), which tells a homography that fits from one that almost does.
They compete at the threshold and at half of it: a homography with strong perspective can lie within
the threshold of a thing and of the background beside it, but fits neither well. The best few are
refined by least squares on the matches that agree, weighted so that the error is that of positions,
and the best of either competition after that is a candidate. The same on the matches that the last
candidate leaves gives more (sequential RANSAC): a thing full of texture may have more matches than
the background, and the frames tell which is which (`camera_motion.judged`).

The random numbers are counted (Philox), drawn from the seed and the hypothesis' number alone, so
that a pair's result has nothing to do with the batch. On a CPU csrc/cpu/homography.cpp finds the
same up to rounding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .. import native, unavailable
from ..reference.camera_motion import (
    ENOUGH_INLIERS,
    ENOUGH_MATCHES,
    LARGEST_ZOOM,
    LEFT,
    ROUNDS,
    SCALES,
)

HYPOTHESES = 1024
"""Of four matches each: if 3 in 10 matches agree, eight are of those alone."""
SAMPLE = 256
"""Matches on which every hypothesis is scored."""
BEST = 32
"""Hypotheses of each competition that are scored on all matches."""
REFINED = 4
"""Hypotheses of each competition that are refined."""
REFINEMENTS = (3.0, 3.0, 2.0, 2.0, 1.0, 1.0)
"""Thresholds, as multiples, within which matches take part in each refinement: twice within each,
since the first leads to matches that the second takes up."""
POLISH = (0.7, 0.5, 0.35, 0.25, 0.2, 0.2, 0.2)
"""The same for the best of them at the end."""
TIGHT, STILL = 0.35, 0.4
"""It counts if its score at so much of the threshold is this much of the score before."""
SQUARES = 16
"""Squares along the frame's longer side that count alike."""
PAIRS = 2
"""Pairs at a time on a CPU, whose caches hold no more."""


class Estimate(NamedTuple):
    """Homographies [P, 3, 3] float64, matches that agree [P] int64, whether one was found [P].

    Of candidates each has a dimension more, [P, M, ...].
    """

    homographies: torch.Tensor
    inliers: torch.Tensor
    ok: torch.Tensor


def candidates(
    source: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    shape: tuple[int, int],
    threshold: float,
    seed: int,
) -> Estimate:
    """Candidates [P, M] from matches [P, N, 2] px of frames of `shape` (H, W)."""
    if has_kernels(source):
        numbers = _numbers(seed, HYPOTHESES, "cpu")
        options = {**_options(), "threshold": threshold}
        return Estimate(*native.homographies(source, target, valid, numbers, shape, options))
    part = PAIRS if source.device.type == "cpu" else max(len(source), 1)
    found = [
        _candidates(*some, shape, threshold, seed)
        for some in zip(source.split(part), target.split(part), valid.split(part), strict=True)
    ]
    return Estimate(*(torch.cat(column) for column in zip(*found, strict=True)))


def has_kernels(tensor: torch.Tensor) -> bool:
    """Whether the cpu floor's kernels take this tensor: what they return is the same."""
    return tensor.device.type == "cpu" and unavailable("cpu", "cpu") is None


def _options() -> dict[str, Any]:
    """What csrc/cpu/homography.h must know."""
    return {
        "scales": SCALES, "refinements": REFINEMENTS, "polish": POLISH, "rounds": ROUNDS,
        "hypotheses": HYPOTHESES, "sample": SAMPLE, "best": BEST, "refined": REFINED,
        "tight": TIGHT, "still": STILL, "squares": SQUARES, "left": LEFT,
        "enough_matches": ENOUGH_MATCHES, "enough_inliers": ENOUGH_INLIERS,
        "largest_zoom": LARGEST_ZOOM,
    }  # fmt: skip


def _candidates(
    source: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    shape: tuple[int, int],
    threshold: float,
    seed: int,
) -> Estimate:
    """Candidates, a few from all matches and more from those that the last of these leaves."""
    from . import fitting

    models, left, least = [], valid, ENOUGH_MATCHES
    p, q = source.double(), target.double()
    for _ in range(ROUNDS):
        h, found = _ransac(source, target, left, least, shape, threshold, seed)
        error = fitting.errors(h, p, q)
        agree = (error <= threshold**2) & found[..., None]
        ok = (agree & left[:, None]).sum(2) > ENOUGH_INLIERS
        models.append(Estimate(h, (agree & valid[:, None]).sum(2), ok))
        left = left & ok[:, -1:] & (error[:, -1] > (LEFT * threshold) ** 2)
        least = ENOUGH_INLIERS
    h, inliers, ok = (torch.cat(column, dim=1) for column in zip(*models, strict=True))
    identity = torch.eye(3, dtype=torch.float64, device=source.device)
    return Estimate(h.where(ok[..., None, None], identity), inliers, ok)


def _ransac(
    source: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    least: int,
    shape: tuple[int, int],
    threshold: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of each competition [P, S, 3, 3], and which there are [P, S].

    There are none, but the identity, for pairs with `least` matches or fewer.
    """
    from . import fitting

    pairs, device = len(source), source.device
    identity = torch.eye(3, dtype=torch.float64, device=device)
    count = valid.sum(1)
    if source.shape[1] <= least:
        none = count.new_zeros((pairs, len(SCALES)), dtype=torch.bool)
        return identity.expand(*none.shape, 3, 3), none
    # Those that are there first, in their order; as many places as a power of two.
    order = valid.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[..., None]
    room = 1 << (source.shape[1] - 1).bit_length()
    unit = max(shape) / 2
    middle = source.new_tensor([(shape[1] - 1) / 2, (shape[0] - 1) / 2], dtype=torch.float64)

    def normalised(points: torch.Tensor) -> torch.Tensor:
        sorted_ = points.gather(1, order.expand(-1, -1, 2)).double()
        return F.pad((sorted_ - middle) / unit, [0, 0, 0, room - points.shape[1]])

    p, q = normalised(source), normalised(target)
    there = torch.arange(room, device=device) < count[:, None]
    border = fitting.frame_corners(shape, unit, device)
    limit = (threshold / unit) ** 2
    worth = fitting.worth_of(p, there)

    def votes(h: torch.Tensor) -> torch.Tensor:
        return fitting.vote(h, p, q, worth, limit).where(
            fitting.plausible(h, border)[..., None], -1.0
        )

    def scores(h: torch.Tensor, limit: float) -> torch.Tensor:
        return fitting.score(h, p, q, worth, limit).where(fitting.plausible(h, border), -1.0)

    numbers = _numbers(seed, HYPOTHESES, str(device))  # [T, 4] in 0 to 1
    chosen = (numbers * count.clamp_min(1)[:, None, None]).long()
    h = fitting.through_four(fitting.at(p, chosen), fitting.at(q, chosen))
    sane = fitting.plausible(h, border)
    some = (_numbers(seed, SAMPLE // 4, str(device)).flatten() * count.clamp_min(1)[:, None]).long()
    some_p, some_q, some_worth = (fitting.at(part, some).float() for part in (p, q, worth))
    rough = fitting.vote(h.float(), some_p, some_q, some_worth, limit)
    best = rough.where(sane[..., None], -1.0).topk(BEST, dim=1).indices.mT
    h = fitting.at(h, best.flatten(1))
    # Each competition goes on with its own, lest one hypothesis be refined twice in it.
    own = votes(h).unflatten(1, best.shape[1:]).diagonal(dim1=1, dim2=3)  # [P, BEST, S]
    first = torch.arange(0, h.shape[1], BEST, device=device)
    h = fitting.at(h, (own.topk(REFINED, dim=1).indices + first).mT.flatten(1))
    best, highest = h, scores(h, limit)
    for factor in REFINEMENTS:
        h = fitting.refined(h, p, q, worth, limit * factor**2)
        score = scores(h, limit)
        best = h.where((score > highest)[..., None, None], best)
        highest = torch.maximum(highest, score)
    index = votes(best).max(dim=1).indices
    best, highest = fitting.at(best, index), highest.gather(1, index)
    # What agrees to a part of the threshold knows better, if that is most of it.
    h = best
    for factor in POLISH:
        h = fitting.refined(h, p, q, worth, limit * factor**2)
    tight = scores(h, limit * TIGHT**2)
    best = h.where((tight >= STILL * highest)[..., None, None], best)
    # Back to pixels.
    scale = torch.diag(middle.new_tensor([1 / unit, 1 / unit, 1]))
    shift = torch.eye(3, dtype=torch.float64, device=device)
    shift[:2, 2] = -middle
    back = torch.eye(3, dtype=torch.float64, device=device)
    back[:2, 2] = middle
    into, out = (
        fitting.product(scale, shift),
        fitting.product(back, torch.diag(middle.new_tensor([unit, unit, 1]))),
    )
    result = fitting.product(out, fitting.product(best, into))
    result = result / result[..., 2:, 2:]
    found = (count > least)[:, None] & (highest > 0) & result.flatten(2).isfinite().all(2)
    return result.where(found[..., None, None], identity), found


@lru_cache(maxsize=16)
def _numbers(seed: int, count: int, device: str) -> torch.Tensor:
    """Random numbers [count, 4] float64 from 0 to below 1, of a generator that counts."""
    drawn = np.random.Generator(np.random.Philox(key=seed)).random((count, 4))
    return torch.from_numpy(drawn).to(device)
