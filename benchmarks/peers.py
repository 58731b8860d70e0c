"""What a user would otherwise run, written as a competent one would.

OpenCV, scikit-image, torch, CuPy; none of this comes from `mme_targets`. Shapes and units are those
of its contracts. Torch recipes run on any device and take whole batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Tensor = torch.Tensor


# Trajectories: clip, median, advect, visibility (Eq. 2, 4, 6, 7).


def opencv_tracks(
    flow: F32, seeds: F32, steps: NDArray[np.int64], bound: float, threads: int = 1
) -> tuple[F32, F32, NDArray[np.bool_]]:
    """`cv2.medianBlur` of every component of every pair, `np.clip`, then a gather a step.

    flow [P, 2, H, W], seeds [R, 2], steps [S, L] -> points [S, R, L+1, 2], displacements, visible.
    With `threads` above 1 the planes are shared out, since medianBlur itself uses one thread for
    float32 and releases the lock.
    """
    import cv2

    pairs, _, height, width = flow.shape
    calm = np.empty_like(flow)
    planes, filtered = flow.reshape(-1, height, width), calm.reshape(-1, height, width)

    def blur(first: int, last: int) -> None:
        for i in range(first, last):
            cv2.medianBlur(planes[i], 3, dst=filtered[i])
            np.clip(filtered[i], -bound, bound, out=filtered[i])

    if threads == 1:
        blur(0, 2 * pairs)
    else:
        edges = np.linspace(0, 2 * pairs, threads + 1).astype(int)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(blur, edges[:-1], edges[1:]))
    count, length = steps.shape
    points = np.empty((count, len(seeds), length + 1, 2), np.float32)
    moves = np.empty((count, len(seeds), length, 2), np.float32)
    points[:, :, 0] = seeds
    at = points[:, :, 0].copy()
    for step in range(length):
        pixel = np.floor(at + np.float32(0.5)).astype(np.intp)
        x = np.clip(pixel[..., 0], 0, width - 1)
        y = np.clip(pixel[..., 1], 0, height - 1)
        moves[:, :, step] = calm[steps[:, step, None], :, y, x]
        at += moves[:, :, step]
        points[:, :, step + 1] = at
    inside = (points > 0) & (points < np.array([width, height], np.float32))
    return points, moves, inside.all(axis=(2, 3))


def unfold_median(flow: Tensor) -> Tensor:
    """3x3 median by `unfold` and `median`, border replicated: [B, P, 2, H, W]."""
    planes = F.pad(flow.flatten(0, 2)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return planes.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3).median(3).values.view_as(flow)


def network_median(flow: Tensor) -> Tensor:
    """3x3 median by a sorting network of whole-map minima and maxima."""
    planes = F.pad(flow.flatten(0, 2)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    height, width = flow.shape[-2:]
    views = [planes[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return _median9(views).view_as(flow)


def _median9(v: list[Tensor]) -> Tensor:
    """Median of nine: sort columns, then the middle of three of the extremes and the middles."""
    low, high = torch.minimum, torch.maximum

    def sort3(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = low(a, b), high(a, b)
        b, c = low(b, c), high(b, c)
        return low(a, b), high(a, b), c

    p, q, r = sort3(*v[0:3]), sort3(*v[3:6]), sort3(*v[6:9])
    lows = high(high(p[0], q[0]), r[0])
    highs = low(low(p[2], q[2]), r[2])
    middle = sort3(p[1], q[1], r[1])[1]
    return sort3(lows, middle, highs)[1]


def torch_tracks(
    flow: Tensor,
    seeds: Tensor,
    steps: Tensor,
    bound: float,
    median: Callable[[Tensor], Tensor] = unfold_median,
) -> tuple[Tensor, Tensor, Tensor]:
    """Filter whole maps, clamp, then gather a step: [B, P, 2, H, W] -> [B, S, R, L+1, 2], …"""
    calm = median(flow).clamp_(-bound, bound)
    batch, _, _, height, width = calm.shape
    clip = torch.arange(batch, device=flow.device)[:, None, None]

    def read(pair: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return calm[clip, pair, :, y, x]

    return _advect(read, batch, seeds, steps, height, width)


def torch_window_tracks(
    flow: Tensor, seeds: Tensor, steps: Tensor, bound: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, but gathering and filtering only the nine pixels around each point."""
    batch, _, _, height, width = flow.shape
    clip = torch.arange(batch, device=flow.device)[:, None, None]

    def read(pair: Tensor, y: Tensor, x: Tensor) -> Tensor:
        rows = [(y + i).clamp(0, height - 1) for i in (-1, 0, 1)]
        columns = [(x + j).clamp(0, width - 1) for j in (-1, 0, 1)]
        return _median9([flow[clip, pair, :, r, c] for r in rows for c in columns]).clamp_(
            -bound, bound
        )

    return _advect(read, batch, seeds, steps, height, width)


def _advect(
    read: Callable[[Tensor, Tensor, Tensor], Tensor],
    batch: int,
    seeds: Tensor,
    steps: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    at = seeds.expand(batch, len(steps), -1, -1)
    path, moves = [at], []
    for step in range(steps.shape[1]):
        pixel = (at + 0.5).floor().long()
        x, y = pixel[..., 0].clamp(0, width - 1), pixel[..., 1].clamp(0, height - 1)
        move = read(steps[None, :, step, None], y, x)
        at = at + move
        path.append(at)
        moves.append(move)
    points = torch.stack(path, dim=3)
    size = torch.tensor([width, height], device=points.device)
    return points, torch.stack(moves, dim=3), ((points > 0) & (points < size)).all(-1).all(-1)


def cupy_tracks(flow: Any, seeds: Any, steps: Any, bound: float) -> tuple[Any, Any, Any]:
    """CuPy: `median_filter` of whole maps, `clip`, then a gather a step; [B, P, 2, H, W]."""
    import cupy
    from cupyx.scipy.ndimage import median_filter

    calm = median_filter(flow, size=(1, 1, 1, 3, 3), mode="nearest")
    cupy.clip(calm, -bound, bound, out=calm)
    batch, _, _, height, width = calm.shape
    count, length = steps.shape
    clip = cupy.arange(batch)[:, None, None]
    points = cupy.empty((batch, count, len(seeds), length + 1, 2), cupy.float32)
    moves = cupy.empty((batch, count, len(seeds), length, 2), cupy.float32)
    points[:, :, :, 0] = seeds
    for step in range(length):
        pixel = cupy.floor(points[:, :, :, step] + cupy.float32(0.5)).astype(cupy.int64)
        x = cupy.clip(pixel[..., 0], 0, width - 1)
        y = cupy.clip(pixel[..., 1], 0, height - 1)
        moves[:, :, :, step] = calm[clip, steps[None, :, step, None], :, y, x]
        points[:, :, :, step + 1] = points[:, :, :, step] + moves[:, :, :, step]
    inside = (points > 0) & (points < cupy.array([width, height], cupy.float32))
    return points, moves, inside.all(axis=(3, 4))


# Descriptors: Sobel, magnitude, orientation, bins, cells (Appendix C).


def torch_sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of [..., H, W] by one `conv2d`, reflect padding; uint8 is converted."""
    height, width = images.shape[-2:]
    maps = F.pad(images.float().reshape(-1, 1, height, width), (1, 1, 1, 1), mode="reflect")
    kernel = maps.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    gradients = F.conv2d(maps, torch.stack([kernel, kernel.T])[:, None])
    shape = images.shape
    return gradients[:, 0].reshape(shape), gradients[:, 1].reshape(shape)


def _votes(gx: Tensor, gy: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Magnitude and hard bin of each pixel."""
    phase = torch.atan2(gx, gy).div_(math.pi / bins)
    return torch.hypot(gx, gy), phase.floor_().long().remainder_(bins)


def torch_bin_maps(gx: Tensor, gy: Tensor, bins: int) -> Tensor:
    """MaskFeat's form: one `scatter_add_` into a map for each bin, [M, bins, H, W]."""
    magnitude, index = _votes(gx, gy, bins)
    maps = gx.new_zeros((gx[..., 0, 0].numel(), bins, *gx.shape[-2:]))
    shape = (-1, 1, *gx.shape[-2:])
    return maps.scatter_add_(1, index.view(shape), magnitude.view(shape))


def torch_histograms(gx: Tensor, gy: Tensor, bins: int = 9, cell: int = 8) -> Tensor:
    """Bin maps, pooled by `avg_pool2d`: [..., H, W] -> [..., bins, H/cell, W/cell]."""
    cells = F.avg_pool2d(torch_bin_maps(gx, gy, bins), cell, divisor_override=1)
    return cells.view(*gx.shape[:-2], *cells.shape[1:])


def torch_hog(frames: Tensor) -> Tensor:
    """HOG of [..., C, H, W] uint8: conv2d, atan2, one scatter_add, pool."""
    return torch_histograms(*torch_sobel(frames))


def torch_hog_scatter(frames: Tensor, bins: int = 9, cell: int = 8) -> Tensor:
    """The same without the bin maps: `scatter_add_` straight into the cells."""
    magnitude, index = _votes(*torch_sobel(frames), bins)
    height, width = frames.shape[-2:]
    rows, columns = height // cell, width // cell
    magnitude = magnitude[..., : rows * cell, : columns * cell]
    index = index[..., : rows * cell, : columns * cell]
    y = torch.arange(rows, device=frames.device).repeat_interleave(cell)
    x = torch.arange(columns, device=frames.device).repeat_interleave(cell)
    place = (index * (rows * columns)).add_(y[:, None] * columns + x)
    lead = frames.shape[:-2]
    cells = torch.zeros((*lead, bins * rows * columns), device=frames.device)
    cells.scatter_add_(-1, place.flatten(-2), magnitude.flatten(-2))
    return cells.view(*lead, bins, rows, columns)


def torch_window_hog(frames: Tensor, points: Tensor, times: Tensor, cell: int = 8) -> Tensor:
    """HOG of the window around each point: box sums of the bin maps, gathered.

    frames [B, T, C, H, W], points [B, S, R, L+1, 2], times [S, L] -> [B, S, R, L, C, bins].
    """
    batch, count, channels, height, width = frames.shape
    maps = torch_bin_maps(*torch_sobel(frames), 9)
    boxes = F.avg_pool2d(maps, cell, stride=1, divisor_override=1)
    boxes = boxes.view(batch, count, channels, 9, height - cell + 1, width - cell + 1)
    corner = (points[..., : times.shape[1], :] + 0.5).floor().long() - cell // 2
    x, y = corner[..., 0].clamp(0, width - cell), corner[..., 1].clamp(0, height - cell)
    clip = torch.arange(batch, device=frames.device)[:, None, None, None]
    return boxes[clip, times[None, :, None], :, :, y, x]


def opencv_hog(frames: NDArray[np.uint8], bins: int = 9, cell: int = 8) -> F32:
    """`cv2.Sobel`, `cv2.cartToPolar` (good to 0.3 degrees), `np.bincount`: [T, C, H, W]."""
    import cv2

    height, width = frames.shape[-2:]
    rows, columns = height // cell, width // cell
    y = np.arange(rows).repeat(cell)[:, None] * columns
    base = (y + np.arange(columns).repeat(cell)).astype(np.int32) * bins
    planes = frames.reshape(-1, height, width)
    out = np.empty((len(planes), rows * columns * bins), np.float32)
    for plane, cells in zip(planes, out, strict=True):
        gx = cv2.Sobel(plane, cv2.CV_32F, 1, 0, borderType=cv2.BORDER_REFLECT_101)
        gy = cv2.Sobel(plane, cv2.CV_32F, 0, 1, borderType=cv2.BORDER_REFLECT_101)
        magnitude, angle = cv2.cartToPolar(gy, gx)
        index = (angle * np.float32(bins / np.pi)).astype(np.int32) % bins
        index = index[: rows * cell, : columns * cell] + base
        weights = magnitude[: rows * cell, : columns * cell].ravel()
        cells[:] = np.bincount(index.ravel(), weights, rows * columns * bins)
    shaped = out.reshape(*frames.shape[:-2], rows, columns, bins)
    return np.ascontiguousarray(np.moveaxis(shaped, -1, -3))


def skimage_hog(frame: NDArray[np.uint8]) -> F32:
    """scikit-image's HOG of each channel [C, H, W]: central differences, not Sobel; L1 per cell."""
    from skimage.feature import hog

    cells = [
        hog(plane, 9, (8, 8), (1, 1), block_norm="L1", feature_vector=False) for plane in frame
    ]
    return np.stack(cells).astype(np.float32)


# Optical flow and camera motion (Appendix A).


def opencv_flow(frames: NDArray[np.uint8], pairs: list[tuple[int, int]], method: str) -> list[F32]:
    """OpenCV's own solver at its defaults on each pair of [T, 3, H, W]: [H, W, 2] each."""
    solver, greys = _flow_solver(method), _greys(frames, pairs)
    return [solver.calc(greys[a], greys[b], None) for a, b in pairs]


def _flow_solver(method: str) -> Any:
    import cv2

    if method == "tvl1":
        return cv2.optflow.createOptFlow_DualTVL1()
    if method == "farneback":
        return cv2.FarnebackOpticalFlow.create()
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def _greys(frames: NDArray[np.uint8], pairs: list[tuple[int, int]]) -> dict[int, Any]:
    import cv2

    return {
        t: cv2.cvtColor(np.ascontiguousarray(frames[t].transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
        for t in sorted({t for pair in pairs for t in pair})
    }


def opencv_camera_flow(frames: NDArray[np.uint8], pairs: list[tuple[int, int]]) -> list[F32]:
    """Flow without the camera's motion: each pair's flow, homography, warp, and flow again.

    SIFT once a frame, `BFMatcher` with cross-check, corners of the first frame carried by the flow,
    RANSAC at 1 px, `warpPerspective` over the first frame, so that what lies outside stays still.
    """
    import cv2

    greys, solver = _greys(frames, pairs), _flow_solver("tvl1")
    sift, matcher = cv2.SIFT_create(), cv2.BFMatcher(cv2.NORM_L2, crossCheck=True)
    found = {t: sift.detectAndCompute(grey, None) for t, grey in greys.items()}
    flows = []
    for a, b in pairs:
        first, second = greys[a], greys[b]
        size = first.shape[::-1]
        flow = solver.calc(first, second, None)
        (keys, described), (others, described_too) = found[a], found[b]
        matches = () if not keys or not others else matcher.match(described, described_too)
        ends = [
            (np.float32([keys[m.queryIdx].pt for m in matches]).reshape(-1, 2)),
            (np.float32([others[m.trainIdx].pt for m in matches]).reshape(-1, 2)),
        ]
        corners = cv2.goodFeaturesToTrack(first, 1000, 0.001, 3)
        if corners is not None:
            start = corners.reshape(-1, 2)
            x, y = np.rint(start).astype(int).T
            ends = [np.concatenate(p) for p in zip(ends, (start, start + flow[y, x]), strict=True)]
        if len(ends[0]) > 50:
            homography, inliers = cv2.findHomography(*ends, cv2.RANSAC, 1.0)
            if homography is not None and inliers.sum() > 25:
                how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
                still = cv2.warpPerspective(
                    second, homography, size, first.copy(), how, cv2.BORDER_TRANSPARENT
                )
                flow = solver.calc(first, still, None)
        flows.append(flow)
    return flows


# Patch norm and tokens (section 3.3).


def torch_patch_norm(
    values: Tensor, mode: str = "patch", eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """(z - mean) / sqrt(var + eps) by `var_mean`: [..., K, F]."""
    dims = (-2, -1) if mode == "patch" else (-2,)
    variance, mean = torch.var_mean(values, dim=dims, correction=1, keepdim=True)
    std = (variance + eps).sqrt_()
    return (values - mean) / std, mean, std


def torch_tokens(
    frames: Tensor, flow: Tensor, steps: Tensor, times: Tensor, bound: float = 20.0
) -> dict[str, tuple[Tensor, Tensor]]:
    """Frames and flow to normalised tokens, the paper's config: name -> values, valid.

    Points every 8 px, patches of 16: K = 4, row-major in the patch; tokens in (t, h, w) order.
    """
    batch, height, width = len(frames), *frames.shape[-2:]
    columns, rows = (torch.arange(4.0, n, 8, device=frames.device) for n in (width, height))
    seeds = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).view(-1, 2)
    points, moves, visible = torch_tracks(flow, seeds, steps, bound)

    cells = torch_hog(frames)
    pixel = (points[..., :-1, :] + 0.5).floor().long()
    x, y = pixel[..., 0].clamp(0, width - 1) // 8, pixel[..., 1].clamp(0, height - 1) // 8
    clip = torch.arange(batch, device=frames.device)[:, None, None, None]
    shapes = cells[clip, times[None, :, None], :, :, y, x].flatten(4)  # [B, S, R, L, C·bins]

    def tokens(values: Tensor) -> Tensor:
        grid = values.view(batch, len(steps), height // 16, 2, width // 16, 2, -1)
        return grid.transpose(3, 4).reshape(batch, -1, 4, grid.shape[-1])

    valid = tokens(visible)[..., 0]
    return {
        name: (torch_patch_norm(tokens(values.flatten(3)))[0].flatten(2), valid)
        for name, values in (("position", moves), ("shape", shapes))
    }
