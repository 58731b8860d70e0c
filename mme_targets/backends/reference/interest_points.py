"""SURF interest points in NumPy (Bay, Ess, Tuytelaars, Van Gool 2008).

1. Fast Hessian: second derivatives by box filters on an integral image, at four filter sizes an
   octave; a point is a maximum of the determinant among its 26 neighbours in x, y and size.
2. Where in between it lies, by a parabola through those 27.
3. Unless upright, the direction that most gradients in a radius of 6 scales point to.
4. A descriptor: gradients on a 20 × 20 grid, one scale apart, summed over 4 × 4 regions of it.

Sums of pixels are whole numbers, and what is computed from them is in float32 in a stated order,
so that the floors agree bit for bit. Deviations: boxes are of whole pixels, so a scale below is
rounded to whole pixels and the point to a whole pixel where it is described; the filters of the
paper, not OpenCV's even ones; a window is weighted by a Gaussian of 6 scales in place of 3.3, under
which its outer half hardly counts; descriptors are rounded to 1/512, so that the distance of two is
a whole number that float32 holds exactly, in whatever order it is added up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...flow_config import SurfConfig

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

FILTERS = ((9, 15, 21, 27), (15, 27, 39, 51), (27, 51, 75, 99), (51, 99, 147, 195))
"""Sides of an octave's filters, px. Points are looked for in the middle two."""
MIXED = np.float32(0.81)
"""Weight of the squared mixed derivative: 0.9² makes up for boxes in place of Gaussians."""
MARGIN = 48
"""px; a frame is continued by its border so far. A point whose window reaches out is left out."""
STEPS = 512
"""A descriptor of length 1 is rounded to 1 over this."""
WINDOW = 21
"""Boxes along a descriptor's side; gradients lie between four of them."""
FALLOFF = 6.0
"""σ, in scales, of the Gaussian that weights a window. By the paper's 3.3 fewer matches are right
where a scene is seen from another side: from graf1 to graf3 one in five instead of one in three."""
RADIUS = 6
"""Of the disc, in scales, whose gradients say where a point is turned to."""
DIRECTIONS = 72
"""Windows of 60°, 5° apart, in which gradients are added up for that."""


class Points(NamedTuple):
    """N interest points, strongest first.

    Attributes
    ----------
    points : [N, 2] float32 (x, y) px. sizes : [N] float32, side of the filter, px.
    responses : [N] float32, determinant of the Hessian.
    directions : [N, 2] float32, (cos, sin) of the turn, clockwise from x; (1, 0) when upright.
    descriptors : [N, 64 or 128] float32, whole numbers within ±512.
    """

    points: Floats
    sizes: Floats
    responses: Floats
    directions: Floats
    descriptors: Floats


def surf(image: NDArray[np.uint8], config: SurfConfig) -> Points:
    """SURF points of a grey image [H, W]."""
    sums = integral(image)
    found = [maxima(sums, octave, config.threshold) for octave in range(config.octaves)]
    points, sizes, responses = (np.concatenate(part) for part in zip(*found, strict=True))
    # The strongest; where equal, the first in order of octave, size, y, x. A point on a ridge has
    # no peak, and one whose window leaves the margin no descriptor.
    order = np.argsort(-responses, kind="stable")[: config.features]
    points, sizes, responses = points[order], sizes[order], responses[order]
    peaked = np.isfinite(sizes)
    points, sizes, responses = points[peaked], sizes[peaked], responses[peaked]
    scales = scale_of(sizes)
    fits = np.array([inside(p, s, image.shape) for p, s in zip(points, scales, strict=True)], bool)
    points, sizes, responses, scales = points[fits], sizes[fits], responses[fits], scales[fits]
    padded = integral(np.pad(image, MARGIN, mode="edge"))
    corners = whole(points) + MARGIN
    directions, descriptors = [], []
    for (x, y), s in zip(corners, scales, strict=True):
        direction = np.array([1, 0], np.float32)
        if not config.upright:
            direction = orientation(padded, x, y, s)
        directions.append(direction)
        boxes = turned_boxes(padded, x, y, s, direction, config.upright)
        descriptors.append(descriptor(boxes, config.extended))
    width = 128 if config.extended else 64
    return Points(
        points,
        sizes,
        responses,
        np.array(directions, np.float32).reshape(-1, 2),
        np.array(descriptors, np.float32).reshape(-1, width),
    )


def integral(image: NDArray[np.uint8]) -> Integers:
    """Sums [H + 1, W + 1] of all pixels above and to the left."""
    sums = np.zeros((image.shape[0] + 1, image.shape[1] + 1), np.int64)
    sums[1:, 1:] = image.astype(np.int64).cumsum(axis=0).cumsum(axis=1)
    return sums


def whole(values: Floats) -> Integers:
    """The nearest whole number, halves up."""
    result: Integers = np.floor(values + np.float32(0.5)).astype(np.int64)
    return result


def scale_of(sizes: Floats) -> Integers:
    """Scale s of a filter's side: 1.2 px for 9 px; rounded to whole pixels, at least one."""
    result: Integers = np.maximum(whole(sizes * np.float32(1.2 / 9)), 1)
    return result


def inside(point: Floats, scale: int, shape: tuple[int, ...]) -> bool:
    """Whether everything that describes a point lies in the frame and its margin.

    A turned window's corners are √2 · 10 scales away, and its boxes half a scale more.
    """
    reach = 15 * scale + 1 - MARGIN
    x, y = whole(point)
    within = reach <= x <= shape[1] - 1 - reach, reach <= y <= shape[0] - 1 - reach
    return bool(all(within))


def hessian(sums: Integers, size: int, step: int) -> Floats:
    """Determinants of the Hessian at every `step`-th pixel; 0 where the filter does not fit."""
    height, width = sums.shape[0] - 1, sums.shape[1] - 1
    rows, columns = np.arange(0, height, step), np.arange(0, width, step)
    lobe, reach = size // 3, size // 2

    def box(top: int, left: int, tall: int, wide: int) -> NDArray[np.float32]:
        """Sum of the box at these offsets from every point that the filter fits around."""
        y, x = rows[fit_y][:, None] + top, columns[fit_x] + left
        total = sums[y + tall, x + wide] - sums[y, x + wide] - sums[y + tall, x] + sums[y, x]
        result: NDArray[np.float32] = total.astype(np.float32)
        return result

    fit_y = (rows >= reach) & (rows < height - reach)
    fit_x = (columns >= reach) & (columns < width - reach)
    long, half = 2 * lobe - 1, lobe // 2
    area, square = np.float32(1 / (lobe * long)), np.float32(1 / (lobe * lobe))
    # Three lobes beside each other, of weights 1, -2, 1: all of them less three times the middle.
    dxx = (box(1 - lobe, -reach, long, size) - 3 * box(1 - lobe, -half, long, lobe)) * area
    dyy = (box(-reach, 1 - lobe, size, long) - 3 * box(-half, 1 - lobe, lobe, long)) * area
    same = box(-lobe, -lobe, lobe, lobe) + box(1, 1, lobe, lobe)
    other = box(-lobe, 1, lobe, lobe) + box(1, -lobe, lobe, lobe)
    dxy = (same - other) * square
    result = np.zeros((len(rows), len(columns)), np.float32)
    result[np.ix_(fit_y, fit_x)] = dxx * dyy - (MIXED * dxy) * dxy
    return result


def maxima(sums: Integers, octave: int, threshold: float) -> tuple[Floats, Floats, Floats]:
    """Points [N, 2], sizes [N] and responses [N] of an octave, in order of size, y, x.

    The size is NaN where a parabola has no peak within a step of the maximum.
    """
    sizes, step = FILTERS[octave], 2**octave
    layers = np.stack([hessian(sums, size, step) for size in sizes])
    found = []
    for k in (1, 2):
        for y in range(1, layers.shape[1] - 1):
            for x in range(1, layers.shape[2] - 1):
                value = layers[k, y, x]
                if value <= threshold:
                    continue
                cube = layers[k - 1 : k + 2, y - 1 : y + 2, x - 1 : x + 2]
                if (cube >= value).sum() > 1:
                    continue
                dx, dy, dk = peak(cube)
                if not (abs(dx) <= 1 and abs(dy) <= 1 and abs(dk) <= 1):
                    dk = np.float32(np.nan)
                spacing = np.float32(sizes[k] - sizes[k - 1])
                at = (np.float32(step) * (x + dx), np.float32(step) * (y + dy))
                found.append((*at, np.float32(sizes[k]) + spacing * dk, value))
    table = np.array(found, np.float32).reshape(-1, 4)
    return table[:, :2], table[:, 2], table[:, 3]


def peak(cube: Floats) -> Floats:
    """(x, y, size) of the extremum of a parabola through 27 values [size, y, x], from the middle.

    -H⁻¹g of central differences, by Cramer's rule.
    """
    c, half, quarter = cube, np.float32(0.5), np.float32(0.25)
    centre = c[1, 1, 1] + c[1, 1, 1]
    gx = half * (c[1, 1, 2] - c[1, 1, 0])
    gy = half * (c[1, 2, 1] - c[1, 0, 1])
    gs = half * (c[2, 1, 1] - c[0, 1, 1])
    xx = (c[1, 1, 2] + c[1, 1, 0]) - centre
    yy = (c[1, 2, 1] + c[1, 0, 1]) - centre
    ss = (c[2, 1, 1] + c[0, 1, 1]) - centre
    xy = quarter * ((c[1, 2, 2] - c[1, 2, 0]) - (c[1, 0, 2] - c[1, 0, 0]))
    xs = quarter * ((c[2, 1, 2] - c[2, 1, 0]) - (c[0, 1, 2] - c[0, 1, 0]))
    ys = quarter * ((c[2, 2, 1] - c[2, 0, 1]) - (c[0, 2, 1] - c[0, 0, 1]))
    # Cofactors of the symmetric matrix.
    a, b, d = yy * ss - ys * ys, xs * ys - xy * ss, xy * ys - xs * yy
    e, f, i = xx * ss - xs * xs, xy * xs - xx * ys, xx * yy - xy * xy
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = -1 / ((xx * a + xy * b) + xs * d)
        return np.array(
            [
                ((a * gx + b * gy) + d * gs) * scale,
                ((b * gx + e * gy) + f * gs) * scale,
                ((d * gx + f * gy) + i * gs) * scale,
            ],
            np.float32,
        )


def disc() -> tuple[Integers, Floats]:
    """Offsets [M, 2] (x, y) of the samples in a disc of 6 scales, and weights [M], σ = 2.5."""
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    kept = x**2 + y**2 < RADIUS**2
    offsets = np.stack([x[kept], y[kept]], axis=1)
    weights = np.exp(-(offsets**2).sum(axis=1) / (2 * 2.5**2))
    return offsets, weights.astype(np.float32)


def compass() -> Floats:
    """Unit vectors [DIRECTIONS, 2] all around."""
    angle = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def orientation(sums: Integers, x: int, y: int, scale: int) -> Floats:
    """(cos, sin) of the direction that most gradients around a point have."""
    offsets, weights = disc()
    side = 2 * scale  # of the two halves of a Haar wavelet of 4 scales
    ax = np.zeros(DIRECTIONS, np.float32)
    ay = np.zeros(DIRECTIONS, np.float32)
    for (i, j), weight in zip(offsets, weights, strict=True):
        px, py = x + i * scale, y + j * scale
        dx = box_sum(sums, px, py - side, side, 2 * side) - box_sum(sums, px - side, py - side, side, 2 * side)  # fmt: skip  # noqa: E501
        dy = box_sum(sums, px - side, py, 2 * side, side) - box_sum(sums, px - side, py - side, 2 * side, side)  # fmt: skip  # noqa: E501
        gx, gy = np.float32(dx) * weight, np.float32(dy) * weight
        along = gx * compass()[:, 0] + gy * compass()[:, 1]
        # Within 30° of a direction: cos² of the angle is 3/4 at least.
        near = (along > 0) & (along * along >= np.float32(0.75) * (gx * gx + gy * gy))
        ax = ax + np.where(near, gx, np.float32(0))
        ay = ay + np.where(near, gy, np.float32(0))
    best = (ax * ax + ay * ay).argmax()
    length = np.sqrt(ax[best] * ax[best] + ay[best] * ay[best])
    if length == 0:
        return np.array([1, 0], np.float32)
    return np.array([ax[best] / length, ay[best] / length], np.float32)


def box_sum(sums: Integers, left: int, top: int, wide: int, tall: int) -> np.int64:
    """Sum of the pixels of a box."""
    low, right = top + tall, left + wide
    total: np.int64 = sums[low, right] - sums[top, right] - sums[low, left] + sums[top, left]
    return total


def turned_boxes(
    sums: Integers, x: int, y: int, scale: int, direction: Floats, upright: bool
) -> Floats:
    """Sums [21, 21] of boxes of one scale around a point, on a grid turned by its direction.

    The boxes themselves stay upright.
    """
    boxes = np.zeros((WINDOW, WINDOW), np.float32)
    cos, sin = direction
    for i in range(WINDOW):
        for j in range(WINDOW):
            u, v = np.float32((j - WINDOW // 2) * scale), np.float32((i - WINDOW // 2) * scale)
            dx, dy = (u, v) if upright else (cos * u - sin * v, sin * u + cos * v)
            left, top = (int(whole(d)) - scale // 2 for d in (dx, dy))
            boxes[i, j] = box_sum(sums, x + left, y + top, scale, scale)
    return boxes


def falloff() -> Floats:
    """Weights [20, 20] of the gradients of a window: a Gaussian of σ = FALLOFF."""
    at = np.arange(WINDOW - 1) - (WINDOW - 2) / 2
    row = np.exp(-(at**2) / (2 * FALLOFF**2))
    result: Floats = (row[:, None] * row).astype(np.float32)
    return result


def descriptor(boxes: Floats, extended: bool) -> Floats:
    """The descriptor [64 or 128] of a window of box sums [21, 21].

    Of each of 4 × 4 regions: Σdx, Σdy, Σ|dx|, Σ|dy|; extended, Σdx and Σ|dx| apart by the sign of
    dy, Σdy and Σ|dy| by that of dx.
    """
    b = boxes
    dx = ((b[:-1, 1:] + b[1:, 1:]) - (b[:-1, :-1] + b[1:, :-1])) * falloff()
    dy = ((b[1:, :-1] + b[1:, 1:]) - (b[:-1, :-1] + b[:-1, 1:])) * falloff()
    zero = np.float32(0)
    if extended:
        parts = []
        for value, other in ((dx, dy), (dy, dx)):
            for kept in (np.where(other >= 0, value, zero), np.where(other < 0, value, zero)):
                parts += [kept, np.abs(kept)]
    else:
        parts = [dx, dy, np.abs(dx), np.abs(dy)]
    summed = np.stack([regions(part) for part in parts], axis=-1).reshape(-1)
    length = np.sqrt(halves(summed * summed))
    if length == 0:
        return summed
    rounded: Floats = np.rint(summed / length * np.float32(STEPS))
    return rounded


def regions(values: Floats) -> Floats:
    """Sums of 5 × 5 values: [20, 20] → [4, 4]; rows' sums first, each from left to right."""
    parts = values.reshape(4, 5, 4, 5)
    rows = (((parts[..., 0] + parts[..., 1]) + parts[..., 2]) + parts[..., 3]) + parts[..., 4]
    total: Floats = (((rows[:, 0] + rows[:, 1]) + rows[:, 2]) + rows[:, 3]) + rows[:, 4]
    return total


def halves(values: Floats) -> np.float32:
    """Sum of a power of two of values: the second half is added to the first, and so on."""
    while len(values) > 1:
        values = values[: len(values) // 2] + values[len(values) // 2 :]
    result: np.float32 = values[0]
    return result
