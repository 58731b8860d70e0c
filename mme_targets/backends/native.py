"""Thin doors to `_cpu` and `_cuda`: pointers, sizes, and a thread count or a stream.

The two modules export the same functions; only the end differs. Neither sees a torch header, so
what they are handed must be contiguous, of the right dtype and on the right device: that is seen to
here.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch

from ..config import SurfConfig, Tvl1Config
from .reference import interest_points


def _module(tensor: torch.Tensor) -> Any:
    name = "_cuda" if tensor.device.type == "cuda" else "_cpu"
    return importlib.import_module(f"mme_targets.{name}")


def _context(tensor: torch.Tensor) -> tuple[int, ...]:
    """What every native call ends with: threads, or device and current stream."""
    if tensor.device.type == "cuda":
        index = tensor.device.index
        return index, torch.cuda.current_stream(index).cuda_stream
    return (torch.get_num_threads(),)


def _ready(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` as native code reads it. Asking costs less than calls that change nothing."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


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
    """Median-filtered advection; `flow` in float16 is read as it is on the device."""
    on_gpu = flow.device.type == "cuda"
    flow = _ready(flow, flow.dtype if on_gpu else torch.float32)
    seeds, starts = _ready(seeds, torch.float32), _ready(starts, torch.int32)
    steps = _ready(steps, torch.int32)
    batch, pairs, _, height, width = flow.shape
    count, (rows, length) = seeds.shape[1], steps.shape
    points = flow.new_empty((batch, count, length + 1, 2), dtype=torch.float32)
    displacements = flow.new_empty((batch, count, length, 2), dtype=torch.float32)
    visible = flow.new_empty((batch, count), dtype=torch.bool)
    half = (flow.dtype == torch.float16,) if on_gpu else ()
    _module(flow).tracks(
        flow.data_ptr(), *half, batch, pairs, height, width,
        seeds.data_ptr(), seeds.shape[0], count, starts.data_ptr(), steps.data_ptr(), rows, length,
        bound, median == 3, sampling == "bilinear",
        points.data_ptr(), displacements.data_ptr(), visible.data_ptr(), *_context(flow),
    )  # fmt: skip
    return points, displacements, visible


def median_filter(planes: torch.Tensor, size: int) -> torch.Tensor:
    """3x3 median of [M, H, W]."""
    planes = planes.float().contiguous()
    out = torch.empty_like(planes)
    _module(planes).median_filter(
        planes.data_ptr(), *planes.shape, out.data_ptr(), *_context(planes)
    )
    return out


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
    """Cell histograms of [M, C, H, W], in either layout without a second pass."""
    images = images.contiguous()
    count, channels, height, width = images.shape
    rows, columns, kept = height // cell, width // cell, 1 if vectors else channels
    if cells_last:
        out = images.new_empty((count, rows, columns, kept, bins), dtype=torch.float32)
        s_image, s_row, s_column, s_channel, s_bin = out.stride()
    else:
        out = images.new_empty((count, kept, bins, rows, columns), dtype=torch.float32)
        s_image, s_channel, s_bin, s_row, s_column = out.stride()
    _module(images).histograms(
        images.data_ptr(), images.dtype == torch.uint8, count, channels, height, width, vectors,
        bins, cell, binning == "linear", pool == "mean", padding == "replicate", l2,
        out.data_ptr(), s_image, s_channel, s_bin, s_row, s_column, *_context(images),
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
    """Histogram of the window around each point: [B, R, Lh, C, bins]."""
    images, points = images.contiguous(), points.float().contiguous()
    starts, times = starts.int().contiguous(), times.int().contiguous()
    batch, frames, channels, height, width = images.shape
    count, (rows, length) = points.shape[1], times.shape
    out = images.new_empty((batch, count, length, channels, bins), dtype=torch.float32)
    _module(images).windows(
        images.data_ptr(), images.dtype == torch.uint8, batch, frames, channels, height, width,
        points.data_ptr(), points.shape[2], starts.shape[0], count,
        starts.data_ptr(), times.data_ptr(), rows, length,
        bins, cell, binning == "linear", pool == "mean", padding == "replicate", l2,
        out.data_ptr(), *_context(images),
    )  # fmt: skip
    return out


def patch_norm(
    values: torch.Tensor, *, mode: str, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise [M, K, F]."""
    values = values.float().contiguous()
    count, tracks, features = values.shape
    out = torch.empty_like(values)
    mean = values.new_empty((count, 1, features if mode == "coordinate" else 1))
    std = torch.empty_like(mean)
    _module(values).patch_norm(
        values.data_ptr(), count, tracks, features, mode == "coordinate", eps,
        out.data_ptr(), mean.data_ptr(), std.data_ptr(), *_context(values),
    )  # fmt: skip
    return out, mean, std


def tvl1(
    frames: torch.Tensor,
    pairs: torch.Tensor,
    config: Tvl1Config,
    initial: torch.Tensor | None = None,
    team: int = 0,
) -> torch.Tensor:
    """TV-L1 flow [N, 2, H, W] of pairs [N, 2] of frames [M, 3 or 1, H, W], uint8 or float32.

    `initial` [N, 2, H, W] is where the top level starts from, by default zero. On a GPU `team` is
    how many blocks share a pair, 0 for as many as suit; the result does not depend on it.

    Raises
    ------
    MemoryError
        If there is no room for what a pair needs, some 100 bytes a pixel and thread.
    """
    frames = frames.contiguous()
    pairs = pairs.to(frames.device, torch.int32).contiguous()
    _, channels, height, width = frames.shape
    out = frames.new_empty((len(pairs), 2, height, width), dtype=torch.float32)
    work = pairs.new_empty(len(pairs), dtype=torch.int64)
    if initial is not None:
        initial = initial.float().contiguous()
    c, module, context = config, _module(frames), _context(frames)
    scratch: tuple[int, ...] = ()
    if hasattr(module, "optical_flow_workspace"):
        size = module.optical_flow_workspace(
            height, width, len(pairs), c.gamma, c.scale_step, c.scales, team, context[0]
        )
        workspace = frames.new_empty(size, dtype=torch.uint8)
        scratch = workspace.data_ptr(), team
    done = module.optical_flow(
        frames.data_ptr(), frames.dtype == torch.uint8, channels, height, width,
        pairs.data_ptr(), len(pairs), 0 if initial is None else initial.data_ptr(),
        c.tau, c.lambda_, c.theta, c.gamma, c.scale_step, c.epsilon, c.cubic,
        c.scales, c.warps, c.inner_iterations, c.outer_iterations, c.median,
        c.alignment == "half", c.patient, c.outside == "drop",
        out.data_ptr(), work.data_ptr(), *scratch, *context,
    )  # fmt: skip
    if not done:
        raise MemoryError(f"TV-L1 of {width}x{height} px: not enough memory")
    return out


def surf(frames: torch.Tensor, config: SurfConfig) -> tuple[torch.Tensor, ...]:
    """SURF points of grey frames [F, H, W] uint8 on the CPU: see `batched.interest_points.Points`.

    Raises
    ------
    MemoryError
        If there is no room for an image's sums, some 40 bytes a pixel and thread.
    """
    frames = frames.contiguous()
    shape, context = frames.shape, _context(frames)
    count, room = shape[0], config.features
    points, sides, strengths = (
        frames.new_zeros(count, room, n, dtype=torch.float32) for n in (2, 1, 1)
    )
    found = frames.new_zeros(count, dtype=torch.int64)
    module = _module(frames)
    done = module.surf_points(
        frames.data_ptr(), *shape, config.octaves, config.threshold, room,
        points.data_ptr(), sides.data_ptr(), strengths.data_ptr(), found.data_ptr(), *context,
    )  # fmt: skip
    most = int(found.max()) if count else 0
    directions = frames.new_tensor([1, 0], dtype=torch.float32).repeat(count, most, 1)
    described = directions.new_zeros(count, most, 128 if config.extended else 64)
    done = done and module.surf_descriptors(
        frames.data_ptr(), *shape, points.data_ptr(), sides.data_ptr(), found.data_ptr(),
        room, most, *(table.data_ptr() for table in _surf_tables()),
        config.upright, config.extended, directions.data_ptr(), described.data_ptr(), *context,
    )  # fmt: skip
    if not done:
        raise MemoryError(f"SURF of {shape[2]}x{shape[1]} px: not enough memory")
    valid = _counted(found, most)
    return (
        points[:, :most], sides[:, :most, 0], strengths[:, :most, 0], directions, described, valid,
    )  # fmt: skip


def _counted(found: torch.Tensor, most: int) -> torch.Tensor:
    """Which of `most` places [F, most] are taken, of so many found in each of F frames."""
    return torch.arange(most, device=found.device) < found[:, None]


@cache
def _surf_tables() -> tuple[torch.Tensor, ...]:
    """Weights of a window and of a disc, and directions."""
    tables = interest_points.falloff(), interest_points.disc()[1], interest_points.compass()
    return tuple(torch.from_numpy(table).contiguous() for table in tables)


def corners(
    frames: torch.Tensor, *, quality: float, candidates: int, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Corners of grey frames [F, H, W] uint8 on the CPU: see `batched.matches.corners`.

    Raises
    ------
    MemoryError
        If there is no room for an image's strengths, some 16 bytes a pixel and thread.
    """
    frames = frames.contiguous()
    count, height, width = frames.shape
    if height < 3 or width < 3:
        most = 0
    points = frames.new_zeros((count, most, 2), dtype=torch.float32)
    found = frames.new_zeros(count, dtype=torch.int64)
    if most and not _module(frames).corners(
        frames.data_ptr(), *frames.shape, quality, candidates, most,
        points.data_ptr(), found.data_ptr(), *_context(frames),
    ):  # fmt: skip
        raise MemoryError(f"Corners of {width}x{height} px: not enough memory")
    most = int(found.max()) if count else 0
    return points[:, :most], _counted(found, most)


def mutual(
    points: torch.Tensor,
    descriptors: torch.Tensor,
    valid: torch.Tensor,
    pairs: torch.Tensor,
    window: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matches of pairs [P, 2] int64 of frames' points on the CPU: see `batched.matches.mutual`.

    Raises
    ------
    MemoryError
        If there is no room, some 24 bytes a point and thread.
    """
    points, descriptors = (_ready(part, torch.float32) for part in (points, descriptors))
    valid, pairs = _ready(valid, torch.bool), _ready(pairs, torch.int64)
    source = points[pairs[:, 0]]
    target, kept = torch.empty_like(source), valid.new_empty(source.shape[:2])
    if not _module(points).mutual(
        points.data_ptr(), descriptors.data_ptr(), valid.data_ptr(), *descriptors.shape[1:],
        pairs.data_ptr(), len(pairs), window, target.data_ptr(), kept.data_ptr(),
        *_context(points),
    ):  # fmt: skip
        raise MemoryError(f"Matches of {points.shape[1]} points: not enough memory")
    return source, target, kept


def warp(
    first: torch.Tensor, second: torch.Tensor, homographies: torch.Tensor, border: int
) -> torch.Tensor:
    """Second frames [P, H, W] on the CPU: see `batched.camera_motion.warp_second`."""
    first, second = first.contiguous(), second.contiguous()
    homographies = _ready(homographies, torch.float64)
    out = torch.empty_like(first, dtype=torch.float32)
    _module(first).warp(
        first.data_ptr(), second.data_ptr(), first.dtype == torch.uint8, homographies.data_ptr(),
        *first.shape, border, out.data_ptr(), *_context(first),
    )  # fmt: skip
    return out


def homographies(
    source: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    numbers: torch.Tensor,
    shape: tuple[int, int],
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates of pairs on the CPU: see `batched.homography.candidates`.

    `numbers` [T, 4] float64 are random; `options` are the fields of csrc/cpu/homography.h.

    Raises
    ------
    MemoryError
        If there is no room, some 100 bytes a match and hypothesis, and thread.
    """
    source, target = (_ready(part, torch.float32) for part in (source, target))
    valid, module = _ready(valid, torch.bool), _module(source)
    pairs, room = valid.shape
    models = options["rounds"] * len(options["scales"])
    found = source.new_empty((pairs, models, 3, 3), dtype=torch.float64)
    inliers = source.new_empty((pairs, models), dtype=torch.int64)
    ok = source.new_empty((pairs, models), dtype=torch.bool)
    if not module.homographies(
        source.data_ptr(), target.data_ptr(), valid.data_ptr(), pairs, room, *shape,
        numbers.data_ptr(), module.RansacOptions(options),
        found.data_ptr(), inliers.data_ptr(), ok.data_ptr(), *_context(source),
    ):  # fmt: skip
        raise MemoryError(f"RANSAC of {room} matches: not enough memory")
    return found, inliers, ok


def explained(
    first: torch.Tensor,
    second: torch.Tensor,
    homographies: torch.Tensor,
    ok: torch.Tensor,
    *,
    step: int,
    samples: int,
    noise: float,
    border: int,
) -> torch.Tensor:
    """Scores [P, M] float64 of homographies on the CPU: see `batched.camera_motion.explained`.

    At most 16 samples and 8 homographies of a pair.
    """
    first, second = (_ready(part, torch.float32) for part in (first, second))
    homographies, ok = _ready(homographies, torch.float64), _ready(ok, torch.bool)
    scores = torch.empty_like(ok, dtype=torch.float64)
    if not _module(first).explained(
        first.data_ptr(), second.data_ptr(), homographies.data_ptr(), ok.data_ptr(),
        *ok.shape, *first.shape[1:], step, samples, noise, border,
        scores.data_ptr(), *_context(first),
    ):  # fmt: skip
        raise ValueError(f"{samples} samples, {ok.shape[1]} homographies; at most 16 and 8")
    return scores
