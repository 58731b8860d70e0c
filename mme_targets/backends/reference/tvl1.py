"""TV-L1 optical flow of one pair of grey images in NumPy, float64 (Appendix A).

Zach, Pock, Bischof, "A duality based approach for realtime TV-L1 optical flow" (2007), in the
structure of OpenCV's implementations; see `Tvl1Config` for the parameters. From the top level of a
pyramid down:

1. flow from the level above, dual variables zero;
2. a few times: the second image and its gradient are warped by the flow, and the data term is
   linearised around it;
3. a few times: the median of the flow, and iterations of a threshold step on the data term, a
   gradient step on the flow and one on the dual variables.

Images are [H, W] of values 0 to 255, flow [2, H, W] px, channel 0 to the right and channel 1 down.
With γ > 0 a third channel is the illumination: how much brighter the second image is, over γ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...config import Tvl1Config

Plane = NDArray[np.float64]

SMALLEST_SIDE = 16
"""px; smaller levels of the pyramid are left out."""
WAVE = 10
"""Iterations between two tests of the stop, as many as the cpu floor fuses."""
TINY = 1e-10
"""Added to the squared gradient of the image, so that a flat pixel has no data term."""


class DataTerm(NamedTuple):
    """The linearised residual ρ(u) = constant + gradient · u, and |gradient|² (plus `TINY`).

    `pull` limits what it does to the flow: by `pull` times the gradient at most.
    """

    constant: Plane
    gradient: Plane
    square: Plane
    pull: Plane


def solve(
    first: NDArray[np.generic],
    second: NDArray[np.generic],
    config: Tvl1Config,
    initial: NDArray[np.generic] | None = None,
) -> Plane:
    """Flow [2, H, W] from one grey image to another; `initial` [2, H, W] is where it starts."""
    levels = pyramid(np.clip(first.astype(np.float64), 0, 255), config)
    levels_second = pyramid(np.clip(second.astype(np.float64), 0, 255), config)
    channels = 3 if config.gamma > 0 else 2
    shape = levels[-1].shape
    flow = np.zeros((channels, *shape))
    if initial is not None:
        ratio = shape[1] / first.shape[1]
        for k in range(2):
            flow[k] = ratio * resized(initial[k].astype(np.float64), shape, None, config)
    for one, two in zip(levels[::-1], levels_second[::-1], strict=True):
        if flow.shape[1:] != one.shape:
            flow = np.stack([resized(plane, one.shape, None, config) for plane in flow])
            flow[:2] /= config.scale_step
        flow = solve_level(one, two, flow, config)
    return flow[:2]


def pyramid(image: Plane, config: Tvl1Config) -> list[Plane]:
    """The image and ever smaller copies of it, each by bilinear interpolation of the last."""
    levels = [image]
    while len(levels) < config.scales:
        height, width = (round(n * config.scale_step) for n in levels[-1].shape)
        if min(height, width) < SMALLEST_SIDE:
            break
        ratio = 1 / config.scale_step
        levels.append(resized(levels[-1], (height, width), ratio, config))
    return levels


def resized(image: Plane, shape: tuple[int, ...], ratio: float | None, config: Tvl1Config) -> Plane:
    """Bilinear, border replicated. `ratio` of the sizes; None: what they say exactly."""

    def source(size: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Plane]:
        step = size / new if ratio is None else ratio
        index = np.arange(new)
        at = (index + 0.5) * step - 0.5 if config.alignment == "half" else index * step
        at = np.clip(at, 0, size - 1)
        low = np.floor(at).astype(np.int64)
        return low, np.minimum(low + 1, size - 1), at - low

    top, below, fy = source(image.shape[0], shape[0])
    left, right, fx = source(image.shape[1], shape[1])
    rows = image[top] + fy[:, None] * (image[below] - image[top])
    return rows[:, left] + fx * (rows[:, right] - rows[:, left])


def solve_level(first: Plane, second: Plane, flow: Plane, config: Tvl1Config) -> Plane:
    """Flow [2 or 3, H, W] on one level, from that of the level above."""
    # Dual variables of each channel, along x and y; kept from one warp to the next.
    dual = np.zeros((len(flow), 2, *first.shape))
    texture = np.stack([second, *gradient(second)])
    enough = config.epsilon**2 * first.size
    for _ in range(config.warps):
        data = linearised(first, texture, flow, config)
        wait = 0.0
        for count in waves(config):
            if count.median and config.median > 1:
                flow[:2] = [median(plane, config.median) for plane in flow[:2]]
            for _ in range(count.iterations):
                before = flow
                flow, dual = iteration(data, flow, dual, config)
            error = np.square(flow - before).sum()
            wait -= count.iterations
            if wait <= 0:
                if error <= enough:
                    break
                if config.patient and enough > 0:
                    wait = error / enough - 1
    return flow


class Wave(NamedTuple):
    """So many iterations until the stop is tested, after a median or not."""

    iterations: int
    median: bool


def waves(config: Tvl1Config) -> list[Wave]:
    """The iterations of one warp, as parts between two tests of the stop."""
    parts = []
    for outer in range(config.outer_iterations):
        left = config.inner_iterations
        while left > 0:
            first = left == config.inner_iterations
            most = 2 if config.patient and first and outer == 0 else WAVE
            parts.append(Wave(min(left, most), first))
            left -= parts[-1].iterations
    return parts


def gradient(image: Plane) -> tuple[Plane, Plane]:
    """Central differences along x and y, border replicated."""
    wide = np.pad(image, 1, mode="edge")
    return (wide[1:-1, 2:] - wide[1:-1, :-2]) / 2, (wide[2:, 1:-1] - wide[:-2, 1:-1]) / 2


def linearised(first: Plane, texture: Plane, flow: Plane, config: Tvl1Config) -> DataTerm:
    """The data term around the present flow; `texture` holds the second image and its gradient."""
    level, *warped = warp(texture, flow[:2], config.cubic)
    slope = np.stack(warped)
    constant = level - (slope * flow[:2]).sum(axis=0) - first
    if config.gamma > 0:
        slope = np.concatenate([slope, np.full((1, *first.shape), config.gamma)])
    pull = np.full(first.shape, config.lambda_ * config.theta)
    if config.outside == "drop":
        height, width = first.shape
        y, x = np.mgrid[:height, :width] + flow[1::-1]
        pull[(x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)] = 0
    return DataTerm(constant, slope, np.square(slope).sum(axis=0) + TINY, pull)


def warp(planes: Plane, flow: Plane, a: float) -> Plane:
    """Planes [C, H, W] at x + flow(x) by cubic convolution, border replicated."""
    height, width = planes.shape[1:]
    y, x = np.mgrid[:height, :width]
    # Two pixels outside all taps read the border, and farther out it stays so.
    px, py = np.clip(x + flow[0], -2, width + 1), np.clip(y + flow[1], -2, height + 1)
    left, top = np.floor(px).astype(np.int64), np.floor(py).astype(np.int64)
    across, down = cubic_weights(px - left, a), cubic_weights(py - top, a)
    result = np.zeros_like(planes)
    for j in range(4):
        rows = np.clip(top + j - 1, 0, height - 1)
        for i in range(4):
            columns = np.clip(left + i - 1, 0, width - 1)
            result += down[j] * across[i] * planes[:, rows, columns]
    return result


def cubic_weights(t: Plane, a: float) -> list[Plane]:
    """Weights of four samples for a position `t` in [0, 1) after the second (Keys 1981)."""

    def near(s: Plane) -> Plane:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1

    def far(s: Plane) -> Plane:
        return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a

    return [far(1 + t), near(t), near(1 - t), far(2 - t)]


def median(plane: Plane, size: int) -> Plane:
    """Median of size × size pixels, border replicated."""
    wide = np.pad(plane, size // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (size, size))
    result: Plane = np.median(windows, axis=(2, 3))
    return result


def iteration(data: DataTerm, flow: Plane, dual: Plane, config: Tvl1Config) -> tuple[Plane, Plane]:
    """One step of each: data term, flow, dual variables."""
    # Threshold step: along the gradient, until the residual is gone or by λθ at most.
    residual = data.constant + (data.gradient * flow).sum(axis=0)
    aim = flow - np.clip(residual / data.square, -data.pull, data.pull) * data.gradient
    flow = aim + config.theta * divergence(dual)
    rise = np.stack([forward(plane) for plane in flow])
    length = np.sqrt(np.square(rise).sum(axis=1, keepdims=True))
    rate = config.tau / config.theta
    return flow, (dual + rate * rise) / (1 + rate * length)


def forward(plane: Plane) -> Plane:
    """Forward differences along x and y [2, H, W], zero across the border."""
    return np.stack(
        [np.diff(plane, axis=1, append=plane[:, -1:]), np.diff(plane, axis=0, append=plane[-1:])]
    )


def divergence(dual: Plane) -> Plane:
    """Backward differences, the adjoint of `forward`: [C, 2, H, W] → [C, H, W]."""
    return np.diff(dual[:, 0], axis=2, prepend=0) + np.diff(dual[:, 1], axis=1, prepend=0)
