# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
# (kernels are written in Triton's language, which has no types that mypy knows)
"""TV-L1 optical flow (Appendix A) that never leaves the device; the plain one.

The steps are those of `mme_targets.backends.reference.tvl1`. Grey levels, pyramid and gradients are
batched torch operations. A level takes two launches a warp: `linearise_kernel` samples the second
image, and `iterate_kernel` does all iterations of the warp, medians between them and the stop
included, so that nothing is read back to decide how far to go.

There one program holds one pair and goes over the level block by block, first for the flow, then
for the dual variables, with a barrier in between. A pair thus depends on no other, and needs no
traffic between multiprocessors; but a call with fewer pairs than the GPU has multiprocessors (132
on an H100) leaves the rest idle, and a single pair is slow: give it many.

As in ``csrc/common/optical_flow.h``, the dual variables are kept times θ (q = θp) and the data term
is divided by the length of the gradient, so that an iteration has no case distinction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ...config import Tvl1Config
from ..reference.tvl1 import SMALLEST_SIDE, WAVE
from ..reference.tvl1 import TINY as TINY_GRADIENT
from .median import _median_pixel
from .trajectories import _clip, _replicate

LINEARISE_BLOCK = 256
ITERATE_BLOCK = 1024
ITERATE_WARPS = 16
"""512 threads with two pixels each: enough loads in flight for one program to fill its part of a
GPU, and registers to spare."""
TINY = tl.constexpr(TINY_GRADIENT)


@triton.jit
def _cubic_weights(t, a):
    """Of four samples for a position `t` in [0, 1) after the second (Keys 1981); exact at 0."""
    s = 1.0 - t
    before = a * t * (s * s)
    after = a * s * (t * t)
    here = ((a + 2.0) * t - (a + 3.0)) * (t * t) + 1.0
    return before, here, 1.0 - before - here - after, after


@triton.jit
def _of_four(k: tl.constexpr, w0, w1, w2, w3):
    """The k-th of four values."""
    if k < 2:
        return w0 if k == 0 else w1
    else:
        return w2 if k == 2 else w3


@triton.jit(do_not_specialize=["blocks", "H", "W"])
def linearise_kernel(
    texture, pairs, flow, data, pull, gamma, cubic, blocks, H, W,
    ILLUMINATION: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The data term around the present flow; a lane is one pixel of one pair.

    `texture` [M, 3, H, W] holds each image and its gradient, `flow` is [N, 2 or 3, H, W] and `data`
    [N, 4 or 5, H, W]: ρ / |g| without flow, g / |g| along x and y, how far it may move the flow,
    and with γ > 0 the illumination's part of g / |g|.
    """
    program = tl.program_id(0)
    number = program // blocks
    pixel = (program - number * blocks) * BLOCK + tl.arange(0, BLOCK)
    area = H * W
    mask = pixel < area
    y = pixel // W
    x = pixel - y * W
    first = texture + tl.load(pairs + 2 * number).to(tl.int64) * (3 * area)
    second = texture + tl.load(pairs + 2 * number + 1).to(tl.int64) * (3 * area)
    planes: tl.constexpr = 3 if ILLUMINATION else 2
    flow += number.to(tl.int64) * (planes * area) + pixel
    data += number.to(tl.int64) * ((planes + 2) * area) + pixel

    u = tl.load(flow, mask=mask, other=0.0)
    v = tl.load(flow + area, mask=mask, other=0.0)
    at_x = x + u
    at_y = y + v
    # Two pixels outside all taps read the border, and farther out it stays so.
    px = tl.minimum(tl.maximum(at_x, -2.0), W + 1.0)
    py = tl.minimum(tl.maximum(at_y, -2.0), H + 1.0)
    left = tl.floor(px)
    top = tl.floor(py)
    a0, a1, a2, a3 = _cubic_weights(px - left, cubic)
    d0, d1, d2, d3 = _cubic_weights(py - top, cubic)
    level = tl.zeros((BLOCK,), tl.float32)
    gx = tl.zeros((BLOCK,), tl.float32)
    gy = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(4):
        row = second + _replicate(top.to(tl.int32) + (j - 1), H) * W
        down = _of_four(j, d0, d1, d2, d3)
        for i in tl.static_range(4):
            tap = row + _replicate(left.to(tl.int32) + (i - 1), W)
            weight = down * _of_four(i, a0, a1, a2, a3)
            level += weight * tl.load(tap, mask=mask, other=0.0)
            gx += weight * tl.load(tap + area, mask=mask, other=0.0)
            gy += weight * tl.load(tap + 2 * area, mask=mask, other=0.0)

    square = gx * gx + gy * gy + TINY
    if ILLUMINATION:
        square += gamma * gamma
    length = tl.sqrt_rn(square)
    inverse = tl.div_rn(tl.full((BLOCK,), 1.0, tl.float32), length)
    limit = pull * length
    if DROP:  # no data term where the second frame does not reach
        outside = (at_x < 0.0) | (at_x > W - 1.0) | (at_y < 0.0) | (at_y > H - 1.0)
        limit = tl.where(outside, 0.0, limit)
    residual = level - (gx * u + gy * v) - tl.load(first + pixel, mask=mask, other=0.0)
    tl.store(data, residual * inverse, mask=mask)
    tl.store(data + area, gx * inverse, mask=mask)
    tl.store(data + 2 * area, gy * inverse, mask=mask)
    tl.store(data + 3 * area, limit, mask=mask)
    if ILLUMINATION:
        tl.store(data + 4 * area, gamma * inverse, mask=mask)


@triton.jit
def _component(flow, dual, before, move, pixel, area, W, mask):
    """One component after the data step and a gradient step of smoothness; its squared update.

    The dual variables are zero behind the right and the lower border, so what lies left of a row's
    first pixel in memory is the zero that belongs there.
    """
    qx = tl.load(dual + pixel, mask=mask, other=0.0)
    qx_left = tl.load(dual + pixel - 1, mask=mask & (pixel > 0), other=0.0)
    qy = tl.load(dual + area + pixel, mask=mask, other=0.0)
    qy_up = tl.load(dual + area + pixel - W, mask=mask & (pixel >= W), other=0.0)
    after = (before - move) + ((qx - qx_left) + (qy - qy_up))
    tl.store(flow + pixel, after, mask=mask)
    return (after - before) * (after - before)


@triton.jit
def _flow_step(flow, dual, data, area, W, ILLUMINATION: tl.constexpr, BLOCK: tl.constexpr):
    """Threshold step on the data term and gradient step; each lane's sum of squared updates."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, area, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = pixel < area
        nx = tl.load(data + area + pixel, mask=mask, other=0.0)
        ny = tl.load(data + 2 * area + pixel, mask=mask, other=0.0)
        # Every pixel reads its own flow alone, so that it may be overwritten at once.
        u = tl.load(flow + pixel, mask=mask, other=0.0)
        v = tl.load(flow + area + pixel, mask=mask, other=0.0)
        residual = tl.load(data + pixel, mask=mask, other=0.0) + nx * u + ny * v
        if ILLUMINATION:
            nw = tl.load(data + 4 * area + pixel, mask=mask, other=0.0)
            w = tl.load(flow + 2 * area + pixel, mask=mask, other=0.0)
            residual += nw * w
        move = _clip(residual, tl.load(data + 3 * area + pixel, mask=mask, other=0.0))
        u_dual, v_dual, w_dual = dual, dual + 2 * area, dual + 4 * area
        total += _component(flow, u_dual, u, move * nx, pixel, area, W, mask)
        total += _component(flow + area, v_dual, v, move * ny, pixel, area, W, mask)
        if ILLUMINATION:
            total += _component(flow + 2 * area, w_dual, w, move * nw, pixel, area, W, mask)
    return total


@triton.jit
def _dual_step(flow, dual, tau, rate, area, W, PLANES: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient step on the dual variables of each component, with forward differences."""
    for start in range(0, area, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = pixel < area
        # At the borders a pixel is its own neighbour: the difference is zero.
        right = tl.where(pixel % W == W - 1, pixel, pixel + 1)
        below = tl.where(pixel >= area - W, pixel, pixel + W)
        for k in tl.static_range(PLANES):
            here = tl.load(flow + k * area + pixel, mask=mask, other=0.0)
            ux = tl.load(flow + k * area + right, mask=mask, other=0.0) - here
            uy = tl.load(flow + k * area + below, mask=mask, other=0.0) - here
            qx = dual + 2 * k * area + pixel
            divisor = 1.0 + rate * tl.sqrt_rn(ux * ux + uy * uy)
            inverse = tl.div_rn(tl.full((BLOCK,), 1.0, tl.float32), divisor)
            new_x = (tl.load(qx, mask=mask, other=0.0) + tau * ux) * inverse
            new_y = (tl.load(qx + area, mask=mask, other=0.0) + tau * uy) * inverse
            tl.store(qx, new_x, mask=mask)
            tl.store(qx + area, new_y, mask=mask)


@triton.jit
def _median_step(flow, filtered, H, W, MEDIAN: tl.constexpr, BLOCK: tl.constexpr):
    """Median of u and of v, by way of `filtered`."""
    area = H * W
    for start in range(0, area, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = pixel < area
        y = pixel // W
        x = pixel - y * W
        for k in range(2):
            value = _median_pixel(flow + k * area, x, y, H, W, mask, MEDIAN)
            tl.store(filtered + k * area + pixel, value, mask=mask)
    tl.debug_barrier()
    for start in range(0, 2 * area, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = pixel < 2 * area
        tl.store(flow + pixel, tl.load(filtered + pixel, mask=mask, other=0.0), mask=mask)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["H", "W", "inner", "most"])
def iterate_kernel(
    flow, dual, data, filtered, tau, rate, enough, H, W, inner, most,
    ILLUMINATION: tl.constexpr, MEDIAN: tl.constexpr, PATIENT: tl.constexpr,
    FIRST: tl.constexpr, WAVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All iterations of one warp of one pair a program: `most`, a median before every `inner`.

    `flow` [N, 2 or 3, H, W] and `dual` [N, 2 or 3, 2, H, W] go on in place; `data` comes from
    `linearise_kernel`; `filtered` [N, 2, H, W] is scratch. `rate` is τ/θ. The stop: the sum of
    squared updates of the last of FIRST, then WAVE iterations is at most `enough`; after a test
    that failed, PATIENT waits an iteration for each multiple of `enough`.
    """
    pair = tl.program_id(0).to(tl.int64)
    area = H * W
    planes: tl.constexpr = 3 if ILLUMINATION else 2
    flow += pair * (planes * area)
    dual += pair * (2 * planes * area)
    data += pair * ((planes + 2) * area)
    filtered += pair * (2 * area)
    left = most
    until_median = 0
    wave = FIRST
    wait = 0.0
    while left > 0:
        if until_median == 0:
            until_median = inner
            if MEDIAN > 1:
                _median_step(flow, filtered, H, W, MEDIAN, BLOCK)
        count = tl.minimum(until_median, wave)
        total = tl.zeros((BLOCK,), tl.float32)
        for _ in range(count):
            total = _flow_step(flow, dual, data, area, W, ILLUMINATION, BLOCK)
            tl.debug_barrier()
            _dual_step(flow, dual, tau, rate, area, W, planes, BLOCK)
            tl.debug_barrier()
        wave = WAVE
        left -= count
        until_median -= count
        wait -= count
        if wait <= 0.0:
            error = tl.sum(total, axis=0)
            if error <= enough:
                left = 0
            elif PATIENT:
                wait = tl.div_rn(error, enough) - 1.0


def tvl1(
    frames: torch.Tensor,
    pairs: torch.Tensor,
    config: Tvl1Config,
    initial: torch.Tensor | None = None,
) -> torch.Tensor:
    """TV-L1 flow of pairs of frames, on their device and its current stream.

    Parameters
    ----------
    frames : torch.Tensor
        ``[M, 3 or 1, H, W]`` uint8 or float32, RGB or grey of values 0 to 255; float32 is clamped.
    pairs : torch.Tensor
        ``[N, 2]`` int32, first and second frame of each flow. They are used as they are: one that
        is not in ``[0, M)`` reads what is not there.
    config : Tvl1Config
        All of it is obeyed.
    initial : torch.Tensor, optional
        ``[N, 2, H, W]`` float32 px: where the top level starts from, by default zero.

    Returns
    -------
    torch.Tensor
        ``[N, 2, H, W]`` float32 px, channel 0 to the right and channel 1 down. It depends on no
        other pair. The work takes some 60 bytes a pixel and pair and 40 a pixel and frame.
    """
    count, _, height, width = frames.shape[0], *frames.shape[1:]
    pairs = pairs.to(frames.device, torch.int32).contiguous()
    if count > 2 * len(pairs):  # of frames that no pair names there is nothing to be made
        frames = frames.index_select(0, pairs.flatten())
        pairs = torch.arange(len(frames), dtype=torch.int32, device=frames.device).view(-1, 2)
    if len(pairs) == 0:
        return frames.new_empty((0, 2, height, width), dtype=torch.float32)
    levels = _pyramid(_grey(frames), config)
    planes = 3 if config.gamma > 0 else 2
    flow = levels[-1].new_zeros((len(pairs), planes, *levels[-1].shape[1:]))
    if initial is not None:
        start = _resized(initial.float(), levels[-1].shape[1:], None, config)
        flow[:, :2] = start * (flow.shape[-1] / width)
    with torch.cuda.device_of(frames):
        while levels:
            image = levels.pop()
            if flow.shape[-2:] != image.shape[-2:]:
                flow = _resized(flow, image.shape[-2:], None, config)
                flow[:, :2] /= config.scale_step
            _solve_level(image, pairs, flow, config)
    return flow[:, :2].contiguous()


def _grey(frames: torch.Tensor) -> torch.Tensor:
    """Grey levels [M, H, W] float32: ITU-R BT.601, of uint8 rounded to whole levels."""
    if frames.dtype != torch.uint8:
        frames = frames.clamp(0, 255)
    if frames.shape[1] == 1:
        return frames[:, 0].float().contiguous()
    if frames.dtype != torch.uint8:
        r, g, b = frames.unbind(1)
        return 0.299 * r + 0.587 * g + 0.114 * b
    r, g, b = frames.int().unbind(1)
    return ((9798 * r + 19235 * g + 3735 * b + 16384) >> 15).float()


def _pyramid(image: torch.Tensor, config: Tvl1Config) -> list[torch.Tensor]:
    """The images [M, H, W] and ever smaller copies, each by interpolation of the last."""
    levels = [image]
    while len(levels) < config.scales:
        size = [round(n * config.scale_step) for n in levels[-1].shape[1:]]
        if min(size) < SMALLEST_SIDE:
            break
        levels.append(_resized(levels[-1], size, 1 / config.scale_step, config))
    return levels


def _resized(
    planes: torch.Tensor, shape: Sequence[int], ratio: float | None, config: Tvl1Config
) -> torch.Tensor:
    """Bilinear over the last two dimensions; `ratio` of the sizes, None: what they say exactly."""
    for dim, new in ((-2, shape[0]), (-1, shape[1])):
        size = planes.shape[dim]
        step = size / new if ratio is None else ratio
        at = torch.arange(new, dtype=torch.float64, device=planes.device)
        at = (at + 0.5) * step - 0.5 if config.alignment == "half" else at * step
        at = at.clamp(0, size - 1)
        low = at.long()
        part = (at - low).float()
        before = planes.index_select(dim, low)
        after = planes.index_select(dim, (low + 1).clamp(max=size - 1))
        planes = before + (after - before) * (part[:, None] if dim == -2 else part)
    return planes


def _gradient(image: torch.Tensor, dim: int) -> torch.Tensor:
    """Central differences along a dimension, border replicated."""
    size = image.shape[dim]
    here = torch.arange(size, device=image.device)
    after = image.index_select(dim, (here + 1).clamp(max=size - 1))
    return (after - image.index_select(dim, (here - 1).clamp(min=0))) / 2


def _solve_level(
    image: torch.Tensor, pairs: torch.Tensor, flow: torch.Tensor, config: Tvl1Config
) -> None:
    """Go on with flow [N, 2 or 3, H, W] in place, on one level [M, H, W]."""
    count, planes, height, width = flow.shape
    texture = torch.stack([image, _gradient(image, 2), _gradient(image, 1)], 1)
    dual = flow.new_zeros((count, planes, 2, height, width))
    data = flow.new_empty((count, planes + 2, height, width))
    filtered = flow.new_empty((count, 2, height, width) if config.median > 1 else (0,))
    blocks = triton.cdiv(height * width, LINEARISE_BLOCK)
    for _ in range(config.warps):
        linearise_kernel[(count * blocks,)](
            texture, pairs, flow, data,
            config.lambda_ * config.theta, config.gamma, config.cubic, blocks, height, width,
            ILLUMINATION=planes == 3, DROP=config.outside == "drop",
            BLOCK=LINEARISE_BLOCK, num_warps=LINEARISE_BLOCK // 32, enable_fp_fusion=False,
        )  # fmt: skip
        iterate_kernel[(count,)](
            flow, dual, data, filtered,
            config.tau, config.tau / config.theta, config.epsilon**2 * height * width,
            height, width, config.inner_iterations,
            config.inner_iterations * config.outer_iterations,
            ILLUMINATION=planes == 3, MEDIAN=config.median,
            PATIENT=config.patient and config.epsilon > 0,
            FIRST=2 if config.patient else WAVE, WAVE=WAVE, BLOCK=ITERATE_BLOCK,
            # A pipelined load would run ahead of the store that it must come after.
            num_warps=ITERATE_WARPS, num_stages=1, enable_fp_fusion=False,
        )  # fmt: skip
