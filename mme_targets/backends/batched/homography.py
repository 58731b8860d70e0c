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
that a pair's result has nothing to do with the batch. Coordinates are centred on the frame and
divided by half its longer side (normalised DLT). Sums over matches are added in halves: the order
is the same however many places are empty.
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
BEST = 16
"""Hypotheses of each competition that are scored on all matches."""
REFINED = 2
"""Hypotheses of each competition that are refined."""
REFINEMENTS = (3.0, 2.0, 1.0, 1.0)
"""Thresholds, as multiples, within which matches take part in each refinement."""
POLISH = (0.7, 0.5, 0.35, 0.25, 0.25)
"""The same for the best of them at the end."""
TIGHT, STILL = 0.35, 0.4
"""It counts if its score at so much of the threshold is this much of the score before."""
SQUARES = 12
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
    """Whether the cpu floor's kernels, which find the same up to rounding, take this tensor."""
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
    models, left, least = [], valid, ENOUGH_MATCHES
    p, q = source.double(), target.double()
    for _ in range(ROUNDS):
        h, found = _ransac(source, target, left, least, shape, threshold, seed)
        error = _errors(h, p, q)
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
    border = _border(shape, unit, device)
    limit = (threshold / unit) ** 2
    worth = _worth(p, there)

    def votes(h: torch.Tensor) -> torch.Tensor:
        return _vote(h, p, q, worth, limit).where(plausible(h, border)[..., None], -1.0)

    def scores(h: torch.Tensor, limit: float) -> torch.Tensor:
        return _score(h, p, q, worth, limit).where(plausible(h, border), -1.0)

    numbers = _numbers(seed, HYPOTHESES, str(device))  # [T, 4] in 0 to 1
    chosen = (numbers * count.clamp_min(1)[:, None, None]).long()
    h = _through_four(_at(p, chosen), _at(q, chosen))
    sane = plausible(h, border)
    some = (_numbers(seed, SAMPLE // 4, str(device)).flatten() * count.clamp_min(1)[:, None]).long()
    some_p, some_q, some_worth = (_at(part, some).float() for part in (p, q, worth))
    rough = _vote(h.float(), some_p, some_q, some_worth, limit)
    h = _at(h, rough.where(sane[..., None], -1.0).topk(BEST, dim=1).indices.flatten(1))
    h = _at(h, votes(h).topk(REFINED, dim=1).indices.flatten(1))
    best, highest = h, scores(h, limit)
    for factor in REFINEMENTS:
        h = _refined(h, p, q, worth, limit * factor**2)
        score = scores(h, limit)
        best = h.where((score > highest)[..., None, None], best)
        highest = torch.maximum(highest, score)
    index = votes(best).max(dim=1).indices
    best, highest = _at(best, index), highest.gather(1, index)
    # What agrees to a part of the threshold knows better, if that is most of it.
    h = best
    for factor in POLISH:
        h = _refined(h, p, q, worth, limit * factor**2)
    tight = scores(h, limit * TIGHT**2)
    best = h.where((tight >= STILL * highest)[..., None, None], best)
    # Back to pixels.
    scale = torch.diag(middle.new_tensor([1 / unit, 1 / unit, 1]))
    shift = torch.eye(3, dtype=torch.float64, device=device)
    shift[:2, 2] = -middle
    back = torch.eye(3, dtype=torch.float64, device=device)
    back[:2, 2] = middle
    into, out = (
        _product(scale, shift),
        _product(back, torch.diag(middle.new_tensor([unit, unit, 1]))),
    )
    result = _product(out, _product(best, into))
    result = result / result[..., 2:, 2:]
    found = (count > least)[:, None] & (highest > 0) & result.flatten(2).isfinite().all(2)
    return result.where(found[..., None, None], identity), found


@lru_cache(maxsize=16)
def _numbers(seed: int, count: int, device: str) -> torch.Tensor:
    """Random numbers [count, 4] float64 from 0 to below 1, of a generator that counts."""
    drawn = np.random.Generator(np.random.Philox(key=seed)).random((count, 4))
    return torch.from_numpy(drawn).to(device)


def _at(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values[p, index[p]]: [P, N, ...] at [P, ...]."""
    flat = index.flatten(1)
    rest = values.shape[2:]
    wide = flat.reshape(*flat.shape, *[1] * len(rest)).expand(*flat.shape, *rest)
    return values.gather(1, wide).view(*index.shape, *rest)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A · b of 3 × 3 matrices, in one order of addition whatever the batch."""
    return (a[..., :, 0, None] * b[..., None, 0, :] + a[..., :, 1, None] * b[..., None, 1, :]) + a[
        ..., :, 2, None
    ] * b[..., None, 2, :]


def _cross(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, y, z = a.unbind(-1)
    u, v, w = b.unbind(-1)
    return torch.stack([y * w - z * v, z * u - x * w, x * v - y * u], dim=-1)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    product = a * b
    return product[..., 0] + product[..., 1] + product[..., 2]


def _through_four(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Homographies [P, T, 3, 3] that take four points [P, T, 4, 2] to four others.

    Both are images of the projective basis: H = B · adj(A). Where three of them lie on a line the
    result is singular or not finite, which `plausible` refuses.
    """

    def basis(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Three points as columns, scaled so that they sum up to the fourth."""
        one, two, three, four = F.pad(points, [0, 1], value=1.0).unbind(-2)
        weights = torch.stack(
            [
                _dot(four, _cross(two, three)),
                _dot(four, _cross(three, one)),
                _dot(four, _cross(one, two)),
            ],
            dim=-1,
        )
        columns = torch.stack([one, two, three], dim=-1)
        return columns, weights

    a, wa = basis(p)
    b, wb = basis(q)
    one, two, three = a.unbind(-1)
    rows = torch.stack([_cross(two, three), _cross(three, one), _cross(one, two)], dim=-2)
    # The inverse of diag(wa) up to a factor.
    others = torch.stack(
        [wa[..., 1] * wa[..., 2], wa[..., 0] * wa[..., 2], wa[..., 0] * wa[..., 1]], dim=-1
    )
    h = _product(b * wb[..., None, :], rows * others[..., None])
    return h / h[..., 2:, 2:]


def _border(shape: tuple[int, int], unit: float, device: torch.device) -> torch.Tensor:
    """The frame's corners [4, 3], normalised."""
    x, y = (shape[1] - 1) / 2 / unit, (shape[0] - 1) / 2 / unit
    at = [[-x, -y, 1], [x, -y, 1], [-x, y, 1], [x, y, 1]]
    return torch.tensor(at, dtype=torch.float64, device=device)


def plausible(h: torch.Tensor, border: torch.Tensor) -> torch.Tensor:
    """Whether homographies [..., 3, 3] with last entry 1 neither fold nor crush the frame.

    See `reference.plausible`: it is the scale of areas at the corners, det(H) / w³, that tells.
    """
    w = _dot(h[..., None, 2, :], border.to(h.dtype))
    area = _dot(h[..., 0, :], _cross(h[..., 1, :], h[..., 2, :]))[..., None] / w**3
    most = LARGEST_ZOOM**2
    result: torch.Tensor = ((w > 1e-6) & (area >= 1 / most) & (area <= most)).all(
        -1
    )  # False for NaN
    return result


def _errors(h: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Squared distances [P, T, N] of where homographies [P, T, 3, 3] take points [P, N, 2]."""
    x, y = (part[:, None] for part in p.unbind(-1))
    u, v = (part[:, None] for part in q.unbind(-1))

    def line(row: int) -> torch.Tensor:
        return h[..., row, 0, None] * x + h[..., row, 1, None] * y + h[..., row, 2, None]

    inverse = 1 / line(2)
    du, dv = line(0) * inverse - u, line(1) * inverse - v
    return du * du + dv * dv


def _gains(errors: torch.Tensor, worth: torch.Tensor, limit: float) -> torch.Tensor:
    """What each match [P, T, N] adds to a score; one that is not finite adds nothing."""
    gain = (1 - errors / limit).nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0)
    return gain * worth[:, None]


def _score(
    h: torch.Tensor, p: torch.Tensor, q: torch.Tensor, worth: torch.Tensor, limit: float
) -> torch.Tensor:
    """MSAC scores [P, T] of matches that are worth so much."""
    return halves(_gains(_errors(h, p, q), worth, limit))


def _vote(
    h: torch.Tensor, p: torch.Tensor, q: torch.Tensor, worth: torch.Tensor, limit: float
) -> torch.Tensor:
    """Scores [P, T, S] by which hypotheses compete: MSAC times how far what agrees is spread.

    Spread is the fourth root of the determinant of the matches' covariance: the root of an area.
    The background surrounds a thing, so what agrees with the camera reaches farther over the frame.
    """
    errors = _errors(h, p, q)
    x, y = (part[:, None] for part in p.unbind(-1))
    votes = []
    for scale in SCALES:
        gain = _gains(errors, worth, limit * scale**2)
        total = halves(gain)
        least = total.clamp_min(1e-9)
        mx, my = halves(gain * x) / least, halves(gain * y) / least
        xx, yy = halves(gain * (x * x)) / least - mx * mx, halves(gain * (y * y)) / least - my * my
        xy = halves(gain * (x * y)) / least - mx * my
        # The fourth root: a power would round by the place of a value in its vector.
        votes.append(total * (xx * yy - xy * xy).clamp_min(0.0).sqrt().sqrt())
    return torch.stack(votes, dim=-1)


def _worth(points: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """What each match [P, N] is worth: 1 over how many its square of the frame holds, 0 for none.

    So squares count alike, and a thing full of texture does not outvote the wider background.
    """
    square = ((points + 1) * (SQUARES / 2)).floor().clamp(0, SQUARES - 1).long()
    at = square[..., 1] * SQUARES + square[..., 0]
    held = torch.zeros((len(points), SQUARES**2), dtype=torch.int32, device=points.device)
    held = held.scatter_add(1, at, there.int())
    return there / held.gather(1, at).clamp_min(1).double()


def halves(values: torch.Tensor) -> torch.Tensor:
    """Sums over the last dimension, a power of two long: the second half onto the first, and on."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


def _refined(
    h: torch.Tensor, p: torch.Tensor, q: torch.Tensor, worth: torch.Tensor, limit: float
) -> torch.Tensor:
    """Least squares of the matches within √`limit` of homographies [P, T, 3, 3].

    Each counts by what it is worth and by Tukey's biweight, (1 - error² / limit)².
    The linear equations of a match carry the factor w of its third coordinate; divided by what w
    was before, their error is that of the position.
    """
    near = (1 - _errors(h, p, q) / limit).nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0)
    x, y = (part[:, None] for part in p.unbind(-1))
    u, v = (part[:, None] for part in q.unbind(-1))
    w = h[..., 2, 0, None] * x + h[..., 2, 1, None] * y + h[..., 2, 2, None]
    share = near * near * worth[:, None]
    weight = (share / (w * w)).nan_to_num(0.0, 0.0, 0.0)
    monomials = [x * x, x * y, x, y * y, y, torch.ones_like(x)]
    factors = [torch.ones_like(u), u, v, u * u + v * v]
    s = [[halves(weight * (m * f)) for m in monomials] for f in factors]
    one, by_u, by_v, by_both = s
    zero = torch.zeros_like(one[0])
    # Unknowns: h00 h01 h02, h10 h11 h12, h20 h21.
    a = [[zero] * 9 for _ in range(8)]
    place = {(0, 0): 0, (0, 1): 1, (0, 2): 2, (1, 1): 3, (1, 2): 4, (2, 2): 5}
    for i in range(3):
        for j in range(3):
            k = place[min(i, j), max(i, j)]
            a[i][j] = a[3 + i][3 + j] = one[k]
            if j < 2:
                a[i][6 + j], a[3 + i][6 + j] = -by_u[k], -by_v[k]
                a[6 + j][i], a[6 + j][3 + i] = -by_u[k], -by_v[k]
                if i < 2:
                    a[6 + i][6 + j] = by_both[k]
        a[i][8], a[3 + i][8] = by_u[place[i, 2]], by_v[place[i, 2]]
        if i < 2:
            a[6 + i][8] = -by_both[place[i, 2]]
    system = torch.stack([torch.stack(row, dim=-1) for row in a], dim=-2)  # [P, T, 8, 9]
    solved: torch.Tensor = F.pad(_solve(system), [0, 1], value=1.0).unflatten(-1, (3, 3))
    # With too few matches there is no solution: what was there stays.
    good = solved.flatten(-2).isfinite().all(-1)
    return solved.where(good[..., None, None], h)


def _solve(system: torch.Tensor) -> torch.Tensor:
    """Solutions [..., 8] of positive definite systems [..., 8, 9], by elimination without pivots.

    Written out, since library solvers may choose their method by the size of the batch.
    """
    size = system.shape[-2]
    rows = list(system.unbind(-2))
    for k in range(size):
        pivot = rows[k] / rows[k][..., k, None]
        rows = [pivot if i == k else row - row[..., k, None] * pivot for i, row in enumerate(rows)]
    return torch.stack([row[..., size] for row in rows], dim=-1)
