# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
# (kernels are written in Triton's language, which has no types that mypy knows)
"""Median-filtered advection (Eq. 2, 4, 6) with visibility (Eq. 7), fused in one kernel.

A lane is a track and keeps its point in registers through all L steps; only the 3x3 windows that
tracks touch are ever filtered. Positions are px, pixel centres are integers; outside the frame a
position is clamped for reading only. Neighbouring tracks lie a grid apart, so no arrangement of
lanes makes the gathers contiguous: what hides their latency is that the 18 loads of a step do not
depend on each other, and blocks of two warps, so that one clip's tracks reach most of a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TRACKS_BLOCK = 64
MEDIAN_BLOCK = 128
MEDIAN_ROWS = 16
NAN = tl.constexpr(tl.PropagateNan.ALL)
"""A NaN in the window is the window's median, as in the reference; min.NaN costs no more."""


@triton.jit
def _exchange(a, b):
    return tl.minimum(a, b, propagate_nan=NAN), tl.maximum(a, b, propagate_nan=NAN)


@triton.jit
def _median9(p0, p1, p2, p3, p4, p5, p6, p7, p8):
    """Median of nine by 19 exchanges, halves of which nobody reads are left out (Smith 1996)."""
    p1, p2 = _exchange(p1, p2)
    p4, p5 = _exchange(p4, p5)
    p7, p8 = _exchange(p7, p8)
    p0, p1 = _exchange(p0, p1)
    p3, p4 = _exchange(p3, p4)
    p6, p7 = _exchange(p6, p7)
    p1, p2 = _exchange(p1, p2)
    p4, p5 = _exchange(p4, p5)
    p7, p8 = _exchange(p7, p8)
    p3 = tl.maximum(p0, p3, propagate_nan=NAN)
    p5 = tl.minimum(p5, p8, propagate_nan=NAN)
    p4, p7 = _exchange(p4, p7)
    p6 = tl.maximum(p3, p6, propagate_nan=NAN)
    p4 = tl.maximum(p1, p4, propagate_nan=NAN)
    p2 = tl.minimum(p2, p5, propagate_nan=NAN)
    p4 = tl.minimum(p4, p7, propagate_nan=NAN)
    p4, p2 = _exchange(p4, p2)
    p4 = tl.maximum(p6, p4, propagate_nan=NAN)
    return tl.minimum(p4, p2, propagate_nan=NAN)


@triton.jit
def _replicate(i, n):
    return tl.minimum(tl.maximum(i, 0), n - 1)


@triton.jit
def _finite(v):
    return tl.abs(v) < float("inf")


@triton.jit
def _clip(v, bound):
    v = tl.where(v < -bound, -bound, v)
    return tl.where(v > bound, bound, v)


@triton.jit
def _filtered(plane, x, y, H, W, bound, mask, MEDIAN: tl.constexpr):
    """(M * ω) of one component at pixel (x, y), and whether every value read is finite."""
    x = _replicate(x, W)
    y = _replicate(y, H)
    if MEDIAN == 1:
        e = tl.load(plane + (y * W + x), mask=mask, other=0.0).to(tl.float32)
        return _clip(e, bound), _finite(e)
    else:
        x0 = _replicate(x - 1, W)
        x2 = _replicate(x + 1, W)
        above = _replicate(y - 1, H) * W
        here = y * W
        below = _replicate(y + 1, H) * W
        a = tl.load(plane + (above + x0), mask=mask, other=0.0).to(tl.float32)
        b = tl.load(plane + (above + x), mask=mask, other=0.0).to(tl.float32)
        c = tl.load(plane + (above + x2), mask=mask, other=0.0).to(tl.float32)
        d = tl.load(plane + (here + x0), mask=mask, other=0.0).to(tl.float32)
        e = tl.load(plane + (here + x), mask=mask, other=0.0).to(tl.float32)
        f = tl.load(plane + (here + x2), mask=mask, other=0.0).to(tl.float32)
        g = tl.load(plane + (below + x0), mask=mask, other=0.0).to(tl.float32)
        h = tl.load(plane + (below + x), mask=mask, other=0.0).to(tl.float32)
        i = tl.load(plane + (below + x2), mask=mask, other=0.0).to(tl.float32)
        finite = _finite(a) & _finite(b) & _finite(c) & _finite(d) & _finite(e)
        finite = finite & _finite(f) & _finite(g) & _finite(h) & _finite(i)
        # Clipping is monotonic, so it commutes with the median: one clip serves for nine.
        return _clip(_median9(a, b, c, d, e, f, g, h, i), bound), finite


@triton.jit
def _lerp(a, b, t):
    return a + t * (b - a)


@triton.jit
def _sampled(plane, x, y, H, W, bound, mask, MEDIAN: tl.constexpr, BILINEAR: tl.constexpr):
    """The filtered component at a real position: nearest pixel (halves up), or bilinear."""
    if BILINEAR:
        left = tl.floor(x)
        up = tl.floor(y)
        ix = left.to(tl.int32)
        iy = up.to(tl.int32)
        m00, ok00 = _filtered(plane, ix, iy, H, W, bound, mask, MEDIAN)
        m01, ok01 = _filtered(plane, ix + 1, iy, H, W, bound, mask, MEDIAN)
        m10, ok10 = _filtered(plane, ix, iy + 1, H, W, bound, mask, MEDIAN)
        m11, ok11 = _filtered(plane, ix + 1, iy + 1, H, W, bound, mask, MEDIAN)
        value = _lerp(_lerp(m00, m01, x - left), _lerp(m10, m11, x - left), y - up)
        return value, ok00 & ok01 & ok10 & ok11
    else:
        ix = tl.floor(x + 0.5).to(tl.int32)
        iy = tl.floor(y + 0.5).to(tl.int32)
        return _filtered(plane, ix, iy, H, W, bound, mask, MEDIAN)


@triton.jit
def _readable(x):
    """Far positions are clamped when read anyway; here so that they fit an int (NaN too)."""
    x = tl.where(x > -1e6, x, -1e6)
    return tl.where(x < 1e6, x, 1e6)


@triton.jit
def _inside(x, y, H, W):
    return (x > 0.0) & (x < W) & (y > 0.0) & (y < H)


@triton.jit(do_not_specialize=["tracks", "R", "P", "S", "L", "H", "W", "seed_batch"])
def tracks_kernel(
    flow, seeds, starts, steps, points, displacements, visible,
    bound, tracks, R, P, S, L, H, W, seed_batch,
    MEDIAN: tl.constexpr, BILINEAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One lane a track; `seed_batch` is the batch's stride of seeds and starts, 0 if shared."""
    track = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = track < tracks
    batch = track // R
    r = track - batch * R
    axis = tl.arange(0, 2)[None, :]
    pairs_in = exists[:, None] & (axis < 2)

    seed = batch.to(tl.int64) * seed_batch + r
    x = tl.load(seeds + seed * 2, mask=exists, other=0.0)
    y = tl.load(seeds + seed * 2 + 1, mask=exists, other=0.0)
    start = tl.load(starts + seed, mask=exists, other=-1)
    alive = exists & (start >= 0) & (start < S)
    seen = _inside(x, y, H, W)

    # x and y of a point leave as one 8-byte store.
    point = points + track.to(tl.int64)[:, None] * (L + 1) * 2 + axis
    move = displacements + track.to(tl.int64)[:, None] * L * 2 + axis
    tl.store(point, tl.join(x, y), mask=pairs_in)
    for step in range(L):
        pair = tl.load(steps + (start * L + step), mask=alive, other=-1)
        alive = alive & (pair >= 0) & (pair < P)
        plane = flow + (batch.to(tl.int64) * P + pair) * 2 * H * W
        px = _readable(x)
        py = _readable(y)
        dx, ok_x = _sampled(plane, px, py, H, W, bound, alive, MEDIAN, BILINEAR)
        dy, ok_y = _sampled(plane + H * W, px, py, H, W, bound, alive, MEDIAN, BILINEAR)
        alive = alive & ok_x & ok_y
        dx = tl.where(alive, dx, 0.0)
        dy = tl.where(alive, dy, 0.0)
        x = x + dx
        y = y + dy
        seen = seen & _inside(x, y, H, W)
        tl.store(move + step * 2, tl.join(dx, dy), mask=pairs_in)
        tl.store(point + (step + 1) * 2, tl.join(x, y), mask=pairs_in)
    tl.store(visible + track, alive & seen, mask=exists)


def tracks(
    flow: torch.Tensor,
    seeds: torch.Tensor,
    starts: torch.Tensor,
    steps: torch.Tensor,
    *,
    bound: float,
    median: int,
    sampling: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Carry points along the median-filtered flow (Eq. 6).

    Parameters
    ----------
    flow : torch.Tensor
        ``[B, P, 2, H, W]`` float32 or float16, px; channel 0 is x.
    seeds : torch.Tensor
        ``[Bs, R, 2]`` float32 (x, y), px; Bs is B or 1.
    starts : torch.Tensor
        ``[Bs, R]`` int32, the row of `steps` that each track follows.
    steps : torch.Tensor
        ``[S, L]`` int32, the pair that each step reads; one outside ``[0, P)`` ends its track.
    bound : float
        Flow is clipped to ± this, px.
    median : int
        3, or 1 for none.
    sampling : str
        "nearest" (halves up) or "bilinear".

    Returns
    -------
    points, displacements, visible : torch.Tensor
        ``[B, R, L+1, 2]`` and ``[B, R, L, 2]`` float32 px, ``[B, R]`` bool. A track that reads a
        value that is not finite is invisible and stands still from there on.
    """
    flow, seeds = flow.contiguous(), seeds.float().contiguous()
    starts, steps = starts.int().contiguous(), steps.int().contiguous()
    batch, pairs, _, height, width = flow.shape
    count, (rows, length) = seeds.shape[1], steps.shape
    points = torch.empty((batch, count, length + 1, 2), dtype=torch.float32, device=flow.device)
    moves = torch.empty((batch, count, length, 2), dtype=torch.float32, device=flow.device)
    visible = torch.empty((batch, count), dtype=torch.bool, device=flow.device)
    if batch * count == 0:
        return points, moves, visible
    with torch.cuda.device_of(flow):
        tracks_kernel[(triton.cdiv(batch * count, TRACKS_BLOCK),)](
            flow, seeds, starts, steps, points, moves, visible, float(bound),
            batch * count, count, pairs, rows, length, height, width,
            count if seeds.shape[0] > 1 else 0,
            MEDIAN=median, BILINEAR=sampling == "bilinear",
            BLOCK=TRACKS_BLOCK, num_warps=TRACKS_BLOCK // 32, enable_fp_fusion=False,
        )  # fmt: skip
    return points, moves, visible


@triton.jit(do_not_specialize=["columns", "H", "W"])
def median_kernel(planes, out, columns, H, W, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A lane runs down a strip of one column of one plane and loads three new values a pixel."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = lane < columns
    plane = lane // W
    x = lane - plane * W
    first = tl.program_id(1) * ROWS
    source = planes + plane.to(tl.int64) * H * W
    target = out + plane.to(tl.int64) * H * W + x
    left = source + _replicate(x - 1, W)
    here = source + x
    right = source + _replicate(x + 1, W)
    above = _replicate(first - 1, H) * W
    row = first * W
    a = tl.load(left + above, mask=exists, other=0.0)
    b = tl.load(here + above, mask=exists, other=0.0)
    c = tl.load(right + above, mask=exists, other=0.0)
    d = tl.load(left + row, mask=exists, other=0.0)
    e = tl.load(here + row, mask=exists, other=0.0)
    f = tl.load(right + row, mask=exists, other=0.0)
    for y in range(first, tl.minimum(first + ROWS, H)):
        below = _replicate(y + 1, H) * W
        g = tl.load(left + below, mask=exists, other=0.0)
        h = tl.load(here + below, mask=exists, other=0.0)
        i = tl.load(right + below, mask=exists, other=0.0)
        tl.store(target + y * W, _median9(a, b, c, d, e, f, g, h, i), mask=exists)
        a, b, c, d, e, f = d, e, f, g, h, i


def median_filter(planes: torch.Tensor, size: int) -> torch.Tensor:
    """Median of the 3x3 window of every pixel of planes ``[M, H, W]`` float32, border replicated.

    `size` is 3, or 1, which copies. A window that holds a NaN gives NaN.
    """
    planes = planes.float().contiguous()
    if size == 1:
        return planes.clone()
    count, height, width = planes.shape
    filtered = torch.empty_like(planes)
    if planes.numel() == 0:
        return filtered
    grid = (triton.cdiv(count * width, MEDIAN_BLOCK), triton.cdiv(height, MEDIAN_ROWS))
    with torch.cuda.device_of(planes):
        median_kernel[grid](
            planes, filtered, count * width, height, width, ROWS=MEDIAN_ROWS,
            BLOCK=MEDIAN_BLOCK, num_warps=MEDIAN_BLOCK // 32, enable_fp_fusion=False,
        )  # fmt: skip
    return filtered
