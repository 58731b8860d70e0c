"""Homographies through four matches and by least squares, and how well homographies fit matches.

For P pairs and T homographies of each at once. Coordinates are normalised: centred on the frame
and divided by half its longer side. Sums over matches are added in halves: the order is the same
however many places are empty.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..reference.camera_motion import LARGEST_ZOOM, SCALES
from .homography import SQUARES


def at(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values[p, index[p]]: [P, N, ...] at [P, ...]."""
    flat = index.flatten(1)
    rest = values.shape[2:]
    wide = flat.reshape(*flat.shape, *[1] * len(rest)).expand(*flat.shape, *rest)
    return values.gather(1, wide).view(*index.shape, *rest)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
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


def through_four(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
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
    h = product(b * wb[..., None, :], rows * others[..., None])
    return h / h[..., 2:, 2:]


def frame_corners(shape: tuple[int, int], unit: float, device: torch.device) -> torch.Tensor:
    """The frame's corners [4, 3], normalised."""
    x, y = (shape[1] - 1) / 2 / unit, (shape[0] - 1) / 2 / unit
    points = [[-x, -y, 1], [x, -y, 1], [-x, y, 1], [x, y, 1]]
    return torch.tensor(points, dtype=torch.float64, device=device)


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


def errors(h: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Squared distances [P, T, N] of where homographies [P, T, 3, 3] take points [P, N, 2]."""
    x, y = (part[:, None] for part in p.unbind(-1))
    u, v = (part[:, None] for part in q.unbind(-1))

    def line(row: int) -> torch.Tensor:
        return h[..., row, 0, None] * x + h[..., row, 1, None] * y + h[..., row, 2, None]

    inverse = 1 / line(2)
    du, dv = line(0) * inverse - u, line(1) * inverse - v
    return du * du + dv * dv


def _gains(error: torch.Tensor, worth: torch.Tensor, limit: float) -> torch.Tensor:
    """What each match [P, T, N] adds to a score; one that is not finite adds nothing."""
    gain = (1 - error / limit).nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0)
    return gain * worth[:, None]


def score(
    h: torch.Tensor, p: torch.Tensor, q: torch.Tensor, worth: torch.Tensor, limit: float
) -> torch.Tensor:
    """MSAC scores [P, T] of matches that are worth so much."""
    return halves(_gains(errors(h, p, q), worth, limit))


def vote(
    h: torch.Tensor, p: torch.Tensor, q: torch.Tensor, worth: torch.Tensor, limit: float
) -> torch.Tensor:
    """Scores [P, T, S] by which hypotheses compete: MSAC times how far what agrees is spread.

    Spread is the fourth root of the determinant of the matches' covariance: the root of an area.
    The background surrounds a thing, so what agrees with the camera reaches farther over the frame.
    """
    error = errors(h, p, q)
    x, y = (part[:, None] for part in p.unbind(-1))
    return torch.stack(
        [spread_out(_gains(error, worth, limit * scale**2), x, y) for scale in SCALES], dim=-1
    )


def spread_out(gain: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sums of gains [..., N] times the fourth root of the determinant of their covariance."""
    total = halves(gain)
    least = total.clamp_min(1e-9)
    mx, my = halves(gain * x) / least, halves(gain * y) / least
    xx, yy = halves(gain * (x * x)) / least - mx * mx, halves(gain * (y * y)) / least - my * my
    xy = halves(gain * (x * y)) / least - mx * my
    # A power would round by the place of a value in its vector.
    return total * (xx * yy - xy * xy).clamp_min(0.0).sqrt().sqrt()


def worth_of(points: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """What each match [P, N] is worth: 1 over how many its square of the frame holds, 0 for none.

    So squares count alike, and a thing full of texture does not outvote the wider background.
    """
    square = ((points + 1) * (SQUARES / 2)).floor().clamp(0, SQUARES - 1).long()
    place = square[..., 1] * SQUARES + square[..., 0]
    held = torch.zeros((len(points), SQUARES**2), dtype=torch.int32, device=points.device)
    held = held.scatter_add(1, place, there.int())
    return there / held.gather(1, place).clamp_min(1).double()


def halves(values: torch.Tensor) -> torch.Tensor:
    """Sums over the last dimension, a power of two long: the second half onto the first, and on."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


def refined(
    h: torch.Tensor, p: torch.Tensor, q: torch.Tensor, worth: torch.Tensor, limit: float
) -> torch.Tensor:
    """Least squares of the matches within √`limit` of homographies [P, T, 3, 3].

    Each counts by what it is worth and by Tukey's biweight, (1 - error² / limit)².
    The linear equations of a match carry the factor w of its third coordinate; divided by what w
    was before, their error is that of the position.
    """
    near = (1 - errors(h, p, q) / limit).nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0)
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
