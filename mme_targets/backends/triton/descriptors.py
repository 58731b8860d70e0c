# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
# (kernels are written in Triton's language, which has no types that mypy knows)
"""HOG, HOF and MBH histograms of cells, and of windows along tracks (Eq. 5, Appendix C).

A lane is one cell (or window) of one channel and walks it column by column, top to bottom, with
the 3x3 neighbourhood rolling through registers: gradients are never written, each image is passed
over once, and the sums have the order that all floors share, whatever the cell's size. A lane
holds the bins of the column and of the cell; they lie in registers because a [bins, lanes] block
spreads over lanes alone. Neighbouring lanes are neighbouring cells, so the bytes of a line of cells
come from the same few cache lines, column after column.

The hard bin counts the edges that the gradient has passed, by comparing two products (each rounded
once: see the package's note on fusion), and is exact for uint8 frames. Linear binning takes
atan2 from a polynomial, since libdevice does not exist in Triton's interpreter.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache

import torch
import triton
import triton.language as tl

BLOCK = 128

# atan(t)/π = t·(A0 + A1 t² + …) on [0, 1], fitted for the least largest relative error (1.5e-8);
# evaluated in float32 it stays within 1.7e-7 relative and 4.2e-8 of a half turn.
A0 = tl.constexpr(0.31830987334251404)
A1 = tl.constexpr(-0.10610246658325195)
A2 = tl.constexpr(0.06363848596811295)
A3 = tl.constexpr(-0.04521160572767258)
A4 = tl.constexpr(0.03387114405632019)
A5 = tl.constexpr(-0.0238869097083807)
A6 = tl.constexpr(0.013589130714535713)
A7 = tl.constexpr(-0.005114802625030279)
A8 = tl.constexpr(0.0009071478270925581)


@triton.jit
def _border(i, n, REFLECT: tl.constexpr):
    """The index that stands for `i`, at most one outside [0, n): n is 2 or more."""
    if REFLECT:
        i = tl.abs(i)
        return tl.where(i >= n, 2 * n - 2 - i, i)
    else:
        return tl.minimum(tl.maximum(i, 0), n - 1)


@triton.jit
def _read(pointer, mask, INTEGER: tl.constexpr):
    """Bytes become int32, so that Sobel is exact."""
    value = tl.load(pointer, mask=mask, other=0)
    if INTEGER:
        value = value.to(tl.int32)
    return value


@triton.jit
def _edges_passed(gx, gy, BINS: tl.constexpr, COSINE: tl.constexpr, SINE: tl.constexpr):
    """The hard bin of a gradient whose angle lies in [0, π)."""
    passed = tl.zeros(gx.shape, tl.int32)
    for k in tl.static_range(1, BINS):
        cosine = ((COSINE >> (32 * k)) % (1 << 32) - (1 << 31)) / (1 << 30)
        sine = ((SINE >> (32 * k)) % (1 << 32) - (1 << 31)) / (1 << 30)
        passed += (gx * cosine >= gy * sine).to(tl.int32)
    return passed


@triton.jit
def _phase(gx, gy, BINS: tl.constexpr):
    """atan2(gx, gy)/π·bins for gx ≥ 0, as a whole number and the rest, 0 to 1 but for rounding."""
    height = tl.abs(gy)
    large = tl.maximum(gx, height)
    t = tl.div_rn(tl.minimum(gx, height), tl.where(large > 0.0, large, 1.0))
    s = t * t
    p = A7 + s * A8
    p = A6 + s * p
    p = A5 + s * p
    p = A4 + s * p
    p = A3 + s * p
    p = A2 + s * p
    p = A1 + s * p
    p = A0 + s * p
    part = t * p * BINS
    # Octants: the angle is measured from 0, a quarter turn or a half turn.
    base = tl.where(gx > height, 0.5 * BINS, tl.where(gy < 0.0, 1.0 * BINS, 0.0))
    minus = tl.where(gx > height, gy > 0.0, gy < 0.0)
    part = tl.where(minus, -part, part)
    phase = base + part
    low = tl.floor(phase)
    # What the sum's rounding lost goes to the rest, which matters where there are many bins.
    return low.to(tl.int32), (phase - low) + (part - (phase - base))


@triton.jit
def _split(bins, first, share, magnitude, LINEAR: tl.constexpr, BINS: tl.constexpr):
    """What each of `bins` [n, 1] gets from each lane: [n, lanes]."""
    if LINEAR:
        lower = magnitude * (1.0 - share)
        upper = magnitude * share
        second = (first + 1) % BINS
        vote = tl.where(bins == (first % BINS)[None, :], lower[None, :], 0.0)
        return tl.where(bins == second[None, :], upper[None, :], vote)
    else:
        return tl.where(bins == first[None, :], magnitude[None, :], 0.0)


@triton.jit
def _histogram(
    plane, left, top, mask, H, W,
    VECTORS: tl.constexpr, INTEGER: tl.constexpr, REFLECT: tl.constexpr, LINEAR: tl.constexpr,
    BINS: tl.constexpr, CELL: tl.constexpr, COSINE: tl.constexpr, SINE: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    """Sums over the CELL x CELL pixels right of `left` and below `top`, of bins [0, LOW) and on.

    Block shapes are powers of two. Two of them, 8 + 1 for 9 bins, waste less than one of 16.
    """
    k0 = tl.arange(0, LOW)[:, None]
    k1 = LOW + tl.arange(0, HIGH)[:, None]
    cell0 = tl.zeros((LOW, left.shape[0]), tl.float32)
    cell1 = tl.zeros((HIGH, left.shape[0]), tl.float32)
    for across in range(CELL):
        x = left + across
        column0 = tl.zeros((LOW, left.shape[0]), tl.float32)
        column1 = tl.zeros((HIGH, left.shape[0]), tl.float32)
        if not VECTORS:
            west = plane + _border(x - 1, W, REFLECT)
            here = plane + x
            east = plane + _border(x + 1, W, REFLECT)
            above = _border(top - 1, H, REFLECT) * W
            a = _read(west + above, mask, INTEGER)
            b = _read(here + above, mask, INTEGER)
            c = _read(east + above, mask, INTEGER)
            d = _read(west + top * W, mask, INTEGER)
            e = _read(here + top * W, mask, INTEGER)
            f = _read(east + top * W, mask, INTEGER)
        for down in range(CELL):
            y = top + down
            if VECTORS:
                gx = tl.load(plane + (y * W + x), mask=mask, other=0.0)
                gy = tl.load(plane + (y * W + x) + H * W, mask=mask, other=0.0)
            else:
                below = _border(y + 1, H, REFLECT) * W
                g = _read(west + below, mask, INTEGER)
                h = _read(here + below, mask, INTEGER)
                i = _read(east + below, mask, INTEGER)
                gx = (((c - a) + (f - d) * 2) + (i - g)).to(tl.float32)
                gy = (((g - a) + (h - b) * 2) + (i - c)).to(tl.float32)
                a, b, c, d, e, f = d, e, f, g, h, i
            magnitude = tl.sqrt_rn(gx * gx + gy * gy)
            finite = magnitude < float("inf")
            magnitude = tl.where(finite, magnitude, 0.0)
            # The same direction mod π, with its angle in [0, π).
            flip = (gx < 0.0) | ((gx == 0.0) & (gy < 0.0))
            gx = tl.where(flip, -gx, gx)
            gy = tl.where(flip, -gy, gy)
            if LINEAR:
                first, share = _phase(tl.where(finite, gx, 0.0), tl.where(finite, gy, 0.0), BINS)
            else:
                first = _edges_passed(gx, gy, BINS, COSINE, SINE)
                share = magnitude
            column0 += _split(k0, first, share, magnitude, LINEAR, BINS)
            column1 += _split(k1, first, share, magnitude, LINEAR, BINS)
        cell0 += column0
        cell1 += column1
    return cell0, cell1


@triton.jit
def _finish(out, stride, cell0, cell1, mask, scale, L2: tl.constexpr, BINS: tl.constexpr):
    """Pool, normalise (over bins) and write; `stride` lies between bins of `out` [lanes]."""
    LOW: tl.constexpr = cell0.shape[0]
    k0 = tl.arange(0, LOW)[:, None]
    k1 = LOW + tl.arange(0, cell1.shape[0])[:, None]
    cell0 = cell0 * scale
    cell1 = cell1 * scale
    if L2:
        squares = tl.sum(cell0 * cell0, axis=0) + tl.sum(cell1 * cell1, axis=0)
        norm = tl.maximum(tl.sqrt_rn(squares), 1e-12)[None, :]
        cell0 = tl.div_rn(cell0, tl.broadcast_to(norm, cell0.shape))
        cell1 = tl.div_rn(cell1, tl.broadcast_to(norm, cell1.shape))
    tl.store(out[None, :] + k0 * stride, cell0, mask=mask[None, :] & (k0 < BINS))
    tl.store(out[None, :] + k1 * stride, cell1, mask=mask[None, :] & (k1 < BINS))


@triton.jit(do_not_specialize=["cells", "C", "H", "W", "rows", "columns"])
def histograms_kernel(
    images, out, scale, cells, C, H, W, rows, columns,
    CELLS_LAST: tl.constexpr, VECTORS: tl.constexpr, INTEGER: tl.constexpr,
    REFLECT: tl.constexpr, LINEAR: tl.constexpr, L2: tl.constexpr,
    BINS: tl.constexpr, CELL: tl.constexpr, COSINE: tl.constexpr, SINE: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Lanes count the cells of a channel row by row, then channels, then images; C is C'."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = lane < cells
    area = rows * columns
    channel = lane // area  # of all images
    place = lane - channel * area
    row = place // columns
    column = place - row * columns
    planes: tl.constexpr = 2 if VECTORS else 1
    source = images + channel.to(tl.int64) * (planes * H * W)
    cell0, cell1 = _histogram(
        source, column * CELL, row * CELL, mask, H, W,
        VECTORS, INTEGER, REFLECT, LINEAR, BINS, CELL, COSINE, SINE, LOW, HIGH,
    )  # fmt: skip
    if CELLS_LAST:
        image = channel // C
        first = (image.to(tl.int64) * area + place) * C + (channel - image * C)
        _finish(out + first * BINS, 1, cell0, cell1, mask, scale, L2, BINS)
    else:
        first = channel.to(tl.int64) * (BINS * area) + place
        _finish(out + first, area, cell0, cell1, mask, scale, L2, BINS)


@triton.jit(do_not_specialize=["lanes", "T", "C", "H", "W", "R", "S", "L", "P", "start_batch"])
def windows_kernel(
    images, points, starts, times, out, scale, lanes, T, C, H, W, R, S, L, P, start_batch,
    INTEGER: tl.constexpr, REFLECT: tl.constexpr, LINEAR: tl.constexpr, L2: tl.constexpr,
    BINS: tl.constexpr, CELL: tl.constexpr, COSINE: tl.constexpr, SINE: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Lanes count the tracks first, which lie beside each other in one frame, then c, l and b."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = lane < lanes
    frame = lane // R
    r = lane - frame * R
    c = frame % C
    frame = frame // C
    step = frame % L
    batch = (frame // L).to(tl.int64)

    start = tl.load(starts + (batch * start_batch + r), mask=exists, other=0)
    # A row or a frame that does not exist is never read: its histogram is zero.
    mask = exists & (start >= 0) & (start < S)
    time = tl.load(times + (start * L + step), mask=mask, other=0)
    mask = mask & (time >= 0) & (time < T)
    point = points + ((batch * R + r) * P + step) * 2
    x = tl.load(point, mask=exists, other=0.0)
    y = tl.load(point + 1, mask=exists, other=0.0)
    x = tl.where(x > -1e6, tl.where(x < 1e6, x, 1e6), -1e6)  # fits an int; NaN too
    y = tl.where(y > -1e6, tl.where(y < 1e6, y, 1e6), -1e6)
    left = tl.floor(x + 0.5).to(tl.int32) - CELL // 2
    top = tl.floor(y + 0.5).to(tl.int32) - CELL // 2
    left = tl.maximum(tl.minimum(left, W - CELL), 0)
    top = tl.maximum(tl.minimum(top, H - CELL), 0)
    source = images + ((batch * T + time) * C + c) * H * W
    cell0, cell1 = _histogram(
        source, left, top, mask, H, W,
        False, INTEGER, REFLECT, LINEAR, BINS, CELL, COSINE, SINE, LOW, HIGH,
    )  # fmt: skip
    first = (((batch * R + r) * L + step) * C + c) * BINS
    _finish(out + first, 1, cell0, cell1, exists, scale, L2, BINS)


def _packed(values: list[float]) -> int:
    """Round to float32 and pack; `_edges_passed` unpacks."""
    rounded = [struct.unpack("f", struct.pack("f", value))[0] for value in values]
    return sum((int(value * (1 << 30)) + (1 << 31)) << (32 * k) for k, value in enumerate(rounded))


@lru_cache(maxsize=64)
def constants(bins: int) -> dict[str, int]:
    """What `bins` fixes: directions of the bins' edges k·π/bins, and the blocks that hold them.

    A kernel's constant may be a whole number but, before Triton 3.4, no list. So each list travels
    as one number, 32 bits an entry: entries are multiples of 2⁻³⁰ (float32 in ±1, none of them
    between 0 and 2⁻⁶ in size), shifted by 2 to be positive. That is exact.
    """
    angles = [k * math.pi / bins for k in range(bins)]
    cosine = [0.0 if 2 * k == bins else math.cos(angle) for k, angle in enumerate(angles)]
    low = triton.next_power_of_2(bins) // 2
    return {
        "BINS": bins,
        "COSINE": _packed(cosine),
        "SINE": _packed([math.sin(angle) for angle in angles]),
        "LOW": low,
        "HIGH": triton.next_power_of_2(bins - low),
    }


def histograms(
    images: torch.Tensor,
    *,
    vectors: bool,
    bins: int,
    cell: int,
    binning: str,
    pool: str,
    padding: str,
    l2: bool,
    cells_last: bool,
) -> torch.Tensor:
    """Orientation histograms of every full cell.

    Parameters
    ----------
    images : torch.Tensor
        ``[M, C, H, W]`` uint8 or float32.
    vectors : bool
        The two channels are the vectors to bin (HOF), so C' is 1; else each channel's Sobel
        gradients are binned (HOG, MBH), and C' is C.
    bins, cell : int
        Orientations over 180° (2 to 36), and the side of a cell, px (2 to 256).
    binning, pool, padding : str
        "hard" or "linear", "sum" or "mean", "reflect" or "replicate".
    l2 : bool
        Divide by the norm over bins.
    cells_last : bool
        Layout of the result.

    Returns
    -------
    torch.Tensor
        ``[M, C', bins, H//cell, W//cell]`` float32, or with `cells_last`
        ``[M, H//cell, W//cell, C', bins]``. Values that are not finite add nothing.
    """
    images = images.contiguous()
    count, channels, height, width = images.shape
    channels = 1 if vectors else channels
    rows, columns = height // cell, width // cell
    shape = (channels, bins, rows, columns)
    if cells_last:
        shape = (rows, columns, channels, bins)
    out = torch.empty((count, *shape), dtype=torch.float32, device=images.device)
    cells = count * channels * rows * columns
    if cells == 0:
        return out
    with torch.cuda.device_of(images):
        histograms_kernel[(triton.cdiv(cells, BLOCK),)](
            images, out, 1 / cell**2 if pool == "mean" else 1.0,
            cells, channels, height, width, rows, columns,
            CELLS_LAST=cells_last, VECTORS=vectors, INTEGER=images.dtype == torch.uint8,
            REFLECT=padding == "reflect", LINEAR=binning == "linear", L2=l2,
            CELL=cell, **constants(bins),
            BLOCK=BLOCK, num_warps=BLOCK // 32, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def windows(
    images: torch.Tensor,
    points: torch.Tensor,
    starts: torch.Tensor,
    times: torch.Tensor,
    *,
    bins: int,
    cell: int,
    binning: str,
    pool: str,
    padding: str,
    l2: bool,
) -> torch.Tensor:
    """Orientation histograms of the cell x cell window around each point of each track (Fig. 5).

    Parameters
    ----------
    images : torch.Tensor
        ``[B, T, C, H, W]`` uint8 or float32; H and W are `cell` or more.
    points : torch.Tensor
        ``[B, R, L+1, 2]`` float32 (x, y), px, rounded halves up. A window that would cross the
        frame's border is moved inside.
    starts : torch.Tensor
        ``[Bs, R]`` int32, the row of `times` that each track follows; Bs is B or 1.
    times : torch.Tensor
        ``[S, Lh]`` int32, the frame that each step reads, at the track's point of that step.
    bins, cell, binning, pool, padding, l2
        As for `histograms`.

    Returns
    -------
    torch.Tensor
        ``[B, R, Lh, C, bins]`` float32.
    """
    images, points = images.contiguous(), points.float().contiguous()
    starts, times = starts.int().contiguous(), times.int().contiguous()
    batch, frames, channels, height, width = images.shape
    count, (rows, length) = points.shape[1], times.shape
    shape = (batch, count, length, channels, bins)
    out = torch.empty(shape, dtype=torch.float32, device=images.device)
    lanes = batch * count * length * channels
    if lanes == 0:
        return out
    with torch.cuda.device_of(images):
        windows_kernel[(triton.cdiv(lanes, BLOCK),)](
            images, points, starts, times, out, 1 / cell**2 if pool == "mean" else 1.0,
            lanes, frames, channels, height, width, count, rows, length, points.shape[2],
            count if starts.shape[0] > 1 else 0,
            INTEGER=images.dtype == torch.uint8,
            REFLECT=padding == "reflect", LINEAR=binning == "linear", L2=l2,
            CELL=cell, **constants(bins),
            BLOCK=BLOCK, num_warps=BLOCK // 32, enable_fp_fusion=False,
        )  # fmt: skip
    return out
