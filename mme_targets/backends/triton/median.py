# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
# (kernels are written in Triton's language, which has no types that mypy knows)
"""Median of a 3x3 or 5x5 window of one plane, border replicated: what TV-L1 asks for."""

from __future__ import annotations

import triton
import triton.language as tl

from .trajectories import _exchange, _median9, _replicate


@triton.jit
def _sort5(a, b, c, d, e):
    """Five values in ascending order, by nine exchanges."""
    a, b = _exchange(a, b)
    d, e = _exchange(d, e)
    c, e = _exchange(c, e)
    c, d = _exchange(c, d)
    b, e = _exchange(b, e)
    a, d = _exchange(a, d)
    a, c = _exchange(a, c)
    b, d = _exchange(b, d)
    b, c = _exchange(b, c)
    return a, b, c, d, e


@triton.jit
def _column(plane, y0, y1, y2, y3, y4, mask):
    """Five pixels of one column in ascending order; offsets of their rows."""
    return _sort5(
        tl.load(plane + y0, mask=mask, other=0.0),
        tl.load(plane + y1, mask=mask, other=0.0),
        tl.load(plane + y2, mask=mask, other=0.0),
        tl.load(plane + y3, mask=mask, other=0.0),
        tl.load(plane + y4, mask=mask, other=0.0),
    )


@triton.jit
def _median25(plane, x, y, H, W, mask):
    """Median of the 5x5 window around (x, y), border replicated.

    Sort the columns, then the rows; columns stay sorted. On the diagonal from corner to corner the
    median is left between the largest before it and the smallest behind it: more than half of the
    25 lie above (below) all else.
    """
    y0 = _replicate(y - 2, H) * W
    y1 = _replicate(y - 1, H) * W
    y2 = y * W
    y3 = _replicate(y + 1, H) * W
    y4 = _replicate(y + 2, H) * W
    a0, a1, a2, a3, a4 = _column(plane + _replicate(x - 2, W), y0, y1, y2, y3, y4, mask)
    b0, b1, b2, b3, b4 = _column(plane + _replicate(x - 1, W), y0, y1, y2, y3, y4, mask)
    c0, c1, c2, c3, c4 = _column(plane + x, y0, y1, y2, y3, y4, mask)
    d0, d1, d2, d3, d4 = _column(plane + _replicate(x + 1, W), y0, y1, y2, y3, y4, mask)
    e0, e1, e2, e3, e4 = _column(plane + _replicate(x + 2, W), y0, y1, y2, y3, y4, mask)
    _, _, _, d0, e0 = _sort5(a0, b0, c0, d0, e0)
    _, _, c1, d1, e1 = _sort5(a1, b1, c1, d1, e1)
    _, b2, c2, d2, _ = _sort5(a2, b2, c2, d2, e2)
    a3, b3, c3, _, _ = _sort5(a3, b3, c3, d3, e3)
    a4, b4, _, _, _ = _sort5(a4, b4, c4, d4, e4)
    _, f1, f2, f3, _ = _sort5(a4, b3, c2, d1, e0)
    low = tl.maximum(tl.maximum(a3, b2), tl.maximum(c1, d0))
    high = tl.minimum(tl.minimum(b4, c3), tl.minimum(d2, e1))
    low, high = _exchange(low, high)
    return tl.minimum(f3, tl.minimum(tl.maximum(f2, low), tl.maximum(f1, high)))


@triton.jit
def _median_pixel(plane, x, y, H, W, mask, MEDIAN: tl.constexpr):
    """Median of the window around (x, y), border replicated."""
    if MEDIAN == 5:
        return _median25(plane, x, y, H, W, mask)
    else:
        left = plane + _replicate(x - 1, W)
        right = plane + _replicate(x + 1, W)
        above = _replicate(y - 1, H) * W
        below = _replicate(y + 1, H) * W
        return _median9(
            tl.load(left + above, mask=mask, other=0.0),
            tl.load(plane + x + above, mask=mask, other=0.0),
            tl.load(right + above, mask=mask, other=0.0),
            tl.load(left + y * W, mask=mask, other=0.0),
            tl.load(plane + x + y * W, mask=mask, other=0.0),
            tl.load(right + y * W, mask=mask, other=0.0),
            tl.load(left + below, mask=mask, other=0.0),
            tl.load(plane + x + below, mask=mask, other=0.0),
            tl.load(right + below, mask=mask, other=0.0),
        )
