"""SURF interest points of many frames at once; `backends/reference/interest_points.py` explains.

Every array has room for as many points in each frame; `valid` says which are there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...flow_config import SurfConfig
from ..reference import interest_points as reference
from ..reference.interest_points import FILTERS, MARGIN, MIXED, STEPS, WINDOW

FRAMES = 8
"""Frames at a time on a CPU, whose caches hold no more."""


class Points(NamedTuple):
    """K interest points of each of F frames; see `reference.Points`.

    Attributes
    ----------
    points : [F, K, 2] float32 (x, y) px. sizes : [F, K] px. responses : [F, K].
    directions : [F, K, 2] (cos, sin). descriptors : [F, K, D] float32, whole numbers.
    valid : [F, K] bool.
    """

    points: torch.Tensor
    sizes: torch.Tensor
    responses: torch.Tensor
    directions: torch.Tensor
    descriptors: torch.Tensor
    valid: torch.Tensor


def surf(greys: torch.Tensor, config: SurfConfig) -> Points:
    """SURF points of grey frames [F, H, W] uint8."""
    part = FRAMES if greys.device.type == "cpu" else max(len(greys), 1)
    parts = [_surf(some, config) for some in greys.split(part)] if len(greys) else []
    if len(parts) == 1:
        return parts[0]
    room = max((p.valid.shape[1] for p in parts), default=0)
    width = 128 if config.extended else 64
    if not parts:
        none = greys.new_zeros((0, 0), dtype=torch.float32)
        return Points(
            none[..., None].expand(0, 0, 2), none, none, none[..., None].expand(0, 0, 2),
            none[..., None].expand(0, 0, width), none.bool(),
        )  # fmt: skip
    return Points(*(torch.cat([_room(t, room) for t in column]) for column in zip(*parts)))  # noqa: B905


def _room(part: torch.Tensor, count: int) -> torch.Tensor:
    """[F, K, ...] → [F, count, ...], what is new zero."""
    return F.pad(part, [0, 0] * (part.dim() - 2) + [0, count - part.shape[1]])


def _surf(greys: torch.Tensor, config: SurfConfig) -> Points:
    points, sizes, responses, valid = _detect(greys, config)
    size = greys.shape[-2:]
    corner = _whole(points)
    scale = _whole(sizes.nan_to_num() * (1.2 / 9)).clamp_min(1)
    reach = (15 * scale + 1 - MARGIN)[..., None]
    last = torch.tensor([size[1] - 1, size[0] - 1], device=greys.device)
    valid = valid & ((corner >= reach) & (corner <= last - reach)).all(-1)
    if greys.device.type == "cpu":  # looking costs nothing here: no work for points that are not
        valid, order = valid.sort(dim=1, descending=True, stable=True)
        kept = int(valid.sum(1).max()) if len(valid) else 0
        order, valid = order[:, :kept], valid[:, :kept]
        points, corner = (_taken(t, order) for t in (points, corner))
        sizes, responses, scale = (_taken(t, order) for t in (sizes, responses, scale))
    corner, scale = corner.where(valid[..., None], 0), scale.where(valid, 1)
    padded = _integral(F.pad(greys[:, None].float(), [MARGIN] * 4, mode="replicate")[:, 0])
    corner = corner + MARGIN
    directions = points.new_tensor([1, 0]).expand(*points.shape[:2], 2)
    if config.upright:
        boxes = _boxes(padded, corner, scale)
    else:
        directions = _directions(padded, corner, scale)
        boxes = _turned_boxes(padded, corner, scale, directions)
    described = _descriptors(boxes, config.extended)
    return Points(points, sizes, responses, directions, described, valid)


def _taken(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """values[f, order[f]] of [F, K, ...]."""
    index = order.reshape(*order.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(*order.shape, *values.shape[2:]))


def _whole(values: torch.Tensor) -> torch.Tensor:
    return (values + 0.5).floor().long()


def _integral(images: torch.Tensor) -> torch.Tensor:
    """Sums [F, H + 1, W + 1] int32. They may wrap round; the sums of boxes still come out right."""
    rows = images.to(torch.int32).cumsum(1, dtype=torch.int32)
    return F.pad(rows.cumsum(2, dtype=torch.int32), [1, 0, 1, 0])


# Fast Hessian


def _detect(greys: torch.Tensor, config: SurfConfig) -> tuple[torch.Tensor, ...]:
    """Points [F, K, 2], sizes, responses and validity [F, K] of the strongest maxima."""
    sums = _integral(greys)
    frames, device = len(greys), greys.device
    layers, strengths = [], []
    for octave in range(config.octaves):
        step = 2**octave
        stack = torch.stack([_hessian(sums, size, step) for size in FILTERS[octave]], dim=1)
        layers.append(stack)
        strengths.append(_maxima(stack, config.threshold).flatten(1))
    strength = torch.cat(strengths, dim=1)
    count = strength.shape[1]
    # Unique keys, so that equal strengths are taken in order of their place. The bits of positive
    # floats are ordered like the floats.
    place = torch.arange(count - 1, -1, -1, device=device)
    keys = (strength.view(torch.int32).long() << 32) | place
    top = keys.topk(min(config.features, count), dim=1).values
    chosen = count - 1 - (top & 0xFFFFFFFF)
    value = strength.gather(1, chosen)

    # Of the chosen: which octave and layer, and where in it.
    table = _layout(tuple((s.shape[2], s.shape[3]) for s in layers), device)
    group = torch.bucketize(chosen, table["ends"], right=True).clamp_max(len(table["ends"]) - 1)
    inner = chosen - table["starts"][group]
    width = table["width"][group]
    y, x = inner // width, inner % width
    # Not at a border of the layer: there `strength` is zero, and what is read must only exist.
    rows = table["height"][group]
    y, x = y.clamp(max=rows - 2).clamp_min(1), x.clamp(max=width - 2).clamp_min(1)
    at = table["base"][group] + y * width + x
    flat = torch.cat([layer.flatten(1) for layer in layers], dim=1)
    area = rows * width

    def cube(dk: int, dy: int, dx: int) -> torch.Tensor:
        index = at + (dk - 1) * area + (dy - 1) * width + (dx - 1)
        return flat.gather(1, index.clamp(0, flat.shape[1] - 1))

    dx, dy, dk = _peak(cube)
    near = (dx.abs() <= 1) & (dy.abs() <= 1) & (dk.abs() <= 1)
    valid = (value > 0) & near
    step_ = table["step"][group]
    points = torch.stack([step_ * (x + dx), step_ * (y + dy)], dim=-1)
    sizes = table["size"][group] + table["spacing"][group] * dk
    kept = valid.view(frames, -1)
    points = points.where(kept[..., None], 0.0)
    return points, sizes.where(kept, 9.0), value, kept


def _layout(shapes: tuple[tuple[int, int], ...], device: torch.device) -> dict[str, torch.Tensor]:
    """Where the two middle layers of each octave lie, in the maxima and in all layers, flat."""
    columns = _layout_columns(shapes)
    floats = ("step", "size", "spacing")
    return {
        name: torch.tensor(
            values, device=device, dtype=torch.float32 if name in floats else torch.int64
        )
        for name, values in columns.items()
    }


@lru_cache(maxsize=64)
def _layout_columns(shapes: tuple[tuple[int, int], ...]) -> dict[str, list[int]]:
    names = ("starts", "ends", "base", "width", "height", "step", "size", "spacing")
    columns: dict[str, list[int]] = {name: [] for name in names}
    start = base = 0
    for octave, (height, width) in enumerate(shapes):
        for k in (1, 2):
            sizes = FILTERS[octave]
            row = (
                start, start + height * width, base + k * height * width, max(width, 1), height,
                2**octave, sizes[k], sizes[k] - sizes[k - 1],
            )  # fmt: skip
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
            start += height * width
        base += 4 * height * width
    return columns


def _hessian(sums: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """Determinants [F, ⌈H/step⌉, ⌈W/step⌉]; 0 where the filter does not fit."""
    height, width = sums.shape[1] - 1, sums.shape[2] - 1
    lobe, reach = size // 3, size // 2
    rows, columns = -(-height // step), -(-width // step)
    first = -(-reach // step)  # the first point that the filter fits around
    last_y, last_x = (height - 1 - reach) // step, (width - 1 - reach) // step
    tall, wide = last_y - first + 1, last_x - first + 1
    if tall < 1 or wide < 1:
        return sums.new_zeros((len(sums), rows, columns), dtype=torch.float32)
    corners: dict[tuple[int, int], torch.Tensor] = {}

    def at(dy: int, dx: int) -> torch.Tensor:
        if (dy, dx) not in corners:
            y, x = first * step + dy, first * step + dx
            corners[dy, dx] = sums[
                :, y : y + (tall - 1) * step + 1 : step, x : x + (wide - 1) * step + 1 : step
            ]
        return corners[dy, dx]

    def box(top: int, left: int, high: int, broad: int) -> torch.Tensor:
        low, right = top + high, left + broad
        return at(low, right) - at(top, right) - at(low, left) + at(top, left)

    long, half = 2 * lobe - 1, lobe // 2
    dxx = box(1 - lobe, -reach, long, size) - 3 * box(1 - lobe, -half, long, lobe)
    dyy = box(-reach, 1 - lobe, size, long) - 3 * box(-half, 1 - lobe, lobe, long)
    same = box(-lobe, -lobe, lobe, lobe) + box(1, 1, lobe, lobe)
    dxy = (same - (box(-lobe, 1, lobe, lobe) + box(1, -lobe, lobe, lobe))).float()
    area, square = 1 / (lobe * long), 1 / (lobe * lobe)
    mixed = dxy * square
    result = (dxx.float() * area) * (dyy.float() * area) - (mixed * float(MIXED)) * mixed
    return F.pad(result, [first, columns - first - wide, first, rows - first - tall])


def _maxima(layers: torch.Tensor, threshold: float) -> torch.Tensor:
    """Values [F, 2, h, w] of the middle layers where they exceed their 26 neighbours, else 0."""
    if min(layers.shape[2:]) < 3:
        return torch.zeros_like(layers[:, 1:3])
    beside = torch.maximum(layers[..., :-2], layers[..., 2:])
    across = torch.maximum(beside, layers[..., 1:-1])
    around = torch.maximum(across[..., :-2, :], across[..., 2:, :])
    full = torch.maximum(around, across[..., 1:-1, :])
    around = torch.maximum(around, beside[..., 1:-1, :])
    others = torch.maximum(around[:, 1:3], torch.maximum(full[:, 0:2], full[:, 2:4]))
    value = layers[:, 1:3, 1:-1, 1:-1]
    kept = value.where((value > others) & (value > threshold), 0.0)
    return F.pad(kept, [1, 1, 1, 1])


def _peak(
    c: Callable[[int, int, int], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, y, size) of the extremum from the middle of a cube that `c(size, y, x)` reads."""
    read: dict[tuple[int, int, int], torch.Tensor] = {}

    def v(k: int, y: int, x: int) -> torch.Tensor:
        if (k, y, x) not in read:
            read[k, y, x] = c(k, y, x)
        return read[k, y, x]

    centre = v(1, 1, 1) + v(1, 1, 1)
    gx = 0.5 * (v(1, 1, 2) - v(1, 1, 0))
    gy = 0.5 * (v(1, 2, 1) - v(1, 0, 1))
    gs = 0.5 * (v(2, 1, 1) - v(0, 1, 1))
    xx = (v(1, 1, 2) + v(1, 1, 0)) - centre
    yy = (v(1, 2, 1) + v(1, 0, 1)) - centre
    ss = (v(2, 1, 1) + v(0, 1, 1)) - centre
    xy = 0.25 * ((v(1, 2, 2) - v(1, 2, 0)) - (v(1, 0, 2) - v(1, 0, 0)))
    xs = 0.25 * ((v(2, 1, 2) - v(2, 1, 0)) - (v(0, 1, 2) - v(0, 1, 0)))
    ys = 0.25 * ((v(2, 2, 1) - v(2, 0, 1)) - (v(0, 2, 1) - v(0, 0, 1)))
    a, b, d = yy * ss - ys * ys, xs * ys - xy * ss, xy * ys - xs * yy
    e, f, i = xx * ss - xs * xs, xy * xs - xx * ys, xx * yy - xy * xy
    scale = -1 / ((xx * a + xy * b) + xs * d)
    return (
        ((a * gx + b * gy) + d * gs) * scale,
        ((b * gx + e * gy) + f * gs) * scale,
        ((d * gx + f * gy) + i * gs) * scale,
    )


# Directions and descriptors


def _read(sums: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """sums[f, y, x] at index tensors that broadcast to [F, ...]."""
    index = (y * sums.shape[2] + x).flatten(1)
    return sums.flatten(1).gather(1, index).view(torch.broadcast_shapes(y.shape, x.shape))


def _boxes(sums: torch.Tensor, corner: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Sums [F, K, 21, 21] of boxes side by side: they share their edges, 22 each way."""
    edge = torch.arange(WINDOW + 1, device=sums.device) - WINDOW // 2
    edges = edge * scale[..., None] - scale[..., None] // 2
    x, y = corner[..., 0, None] + edges, corner[..., 1, None] + edges
    at = _read(sums, y[..., None], x[..., None, :])
    rows = at[..., 1:, :] - at[..., :-1, :]
    return (rows[..., 1:] - rows[..., :-1]).float()


def _turned_boxes(
    sums: torch.Tensor, corner: torch.Tensor, scale: torch.Tensor, directions: torch.Tensor
) -> torch.Tensor:
    """The same on a grid turned by each point's direction."""
    steps = (torch.arange(WINDOW, device=sums.device) - WINDOW // 2) * scale[..., None]
    u, v = steps.float()[..., None, :], steps.float()[..., None]
    cos, sin = (part[..., None] for part in directions[..., None].unbind(-2))
    s = scale[..., None, None]
    left = corner[..., 0, None, None] + _whole(cos * u - sin * v) - s // 2
    top = corner[..., 1, None, None] + _whole(sin * u + cos * v) - s // 2
    low, right = top + s, left + s
    total = _read(sums, low, right) - _read(sums, top, right)
    return (total - _read(sums, low, left) + _read(sums, top, left)).float()


def _directions(sums: torch.Tensor, corner: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(cos, sin) [F, K, 2] of the direction that most gradients around a point have."""
    offsets_, weights = reference.disc()
    offsets = torch.from_numpy(offsets_).to(sums.device)
    compass = torch.from_numpy(reference.compass()).to(sums.device)
    s, side = scale[..., None], 2 * scale[..., None]
    x = corner[..., 0, None] + offsets[:, 0] * s
    y = corner[..., 1, None] + offsets[:, 1] * s

    def at(dy: int, dx: int) -> torch.Tensor:
        return _read(sums, y + dy * side, x + dx * side)

    up_left, up_right, low_left, low_right = at(-1, -1), at(-1, 1), at(1, -1), at(1, 1)
    up, low, left, right = at(-1, 0), at(1, 0), at(0, -1), at(0, 1)
    dx = (low_right - up_right - low + up) - (low - up - low_left + up_left)
    dy = (low_right - right - low_left + left) - (right - up_right - left + up_left)
    ax = torch.zeros((*scale.shape, len(compass)), dtype=torch.float32, device=sums.device)
    ay = torch.zeros_like(ax)
    for i, weight in enumerate(weights.tolist()):
        gx, gy = (part[..., i, None].float() * weight for part in (dx, dy))
        along = gx * compass[:, 0] + gy * compass[:, 1]
        near = (along > 0) & (along * along >= 0.75 * (gx * gx + gy * gy))
        ax = ax + gx.where(near, 0.0)
        ay = ay + gy.where(near, 0.0)
    best = (ax * ax + ay * ay).max(dim=-1, keepdim=True).indices
    bx, by = ax.gather(-1, best), ay.gather(-1, best)
    length = (bx * bx + by * by).sqrt()
    flat = length == 0
    length = length.where(~flat, 1.0)
    return torch.cat([(bx / length).where(~flat, 1.0), (by / length).where(~flat, 0.0)], dim=-1)


def _descriptors(boxes: torch.Tensor, extended: bool) -> torch.Tensor:
    """Descriptors [F, K, 64 or 128] of windows of box sums [F, K, 21, 21]."""
    weight = torch.from_numpy(reference.falloff()).to(boxes.device)
    b = boxes
    dx = ((b[..., :-1, 1:] + b[..., 1:, 1:]) - (b[..., :-1, :-1] + b[..., 1:, :-1])) * weight
    dy = ((b[..., 1:, :-1] + b[..., 1:, 1:]) - (b[..., :-1, :-1] + b[..., :-1, 1:])) * weight
    if extended:
        parts = []
        for value, other in ((dx, dy), (dy, dx)):
            rises = other >= 0
            for kept in (value.where(rises, 0.0), value.where(~rises, 0.0)):
                parts += [_regions(kept), _regions(kept.abs())]
    else:
        parts = [_regions(part) for part in (dx, dy, dx.abs(), dy.abs())]
    summed = torch.stack(parts, dim=-1).flatten(-3)
    squares = summed * summed
    while squares.shape[-1] > 1:
        squares = squares[..., : squares.shape[-1] // 2] + squares[..., squares.shape[-1] // 2 :]
    length = squares.sqrt()
    return (summed / length.where(length > 0, 1.0) * STEPS).round()


def _regions(values: torch.Tensor) -> torch.Tensor:
    """Sums of 5 × 5 values: [..., 20, 20] → [..., 4, 4], in the reference's order."""
    p = values.unflatten(-1, (4, 5)).unflatten(-3, (4, 5))  # [..., 4, 5, 4, 5]
    rows = (((p[..., 0] + p[..., 1]) + p[..., 2]) + p[..., 3]) + p[..., 4]
    r = rows.unbind(-2)
    total: torch.Tensor = (((r[0] + r[1]) + r[2]) + r[3]) + r[4]
    return total
