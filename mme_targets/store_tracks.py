"""Frames to flow to tracks of one whole video, block after block: what a store's entry is made of.

Each flow is computed once and held while tracks read it. Memory is that of a block, however long
the video.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .ops.camera_motion import flow_and_camera
from .ops.optical_flow import optical_flow
from .ops.trajectories import trajectories
from .store_config import TrackConfig
from .store_entry import NOT_FINITE
from .video import VideoError

__all__ = ["FlowBlock", "Found", "Frames", "Seconds", "flows_of", "tracks_of"]

Progress = Callable[[int], Any]


@dataclass
class Frames:
    """The frames of one video, to be read once from the first to the last.

    Attributes
    ----------
    count : of them.
    fps : how many a second.
    blocks : yields [n, 3, H, W] uint8 RGB, `count` frames in all.
    about : what else its entry says of it; `source` of where it comes from.
    check : called before the entry is put in place; raises VideoError if it must not be.
    """

    count: int
    fps: float
    blocks: Iterable[torch.Tensor]
    about: dict[str, Any] = field(default_factory=lambda: {"source": {}})
    check: Callable[[], None] | None = None


@dataclass
class Seconds:
    """Where the time of the thread went that solves flow.

    Attributes
    ----------
    decode, write : of doing so, or of waiting for the threads that do.
    """

    decode: float = 0.0
    flow: float = 0.0
    track: float = 0.0
    write: float = 0.0
    _last: float = field(default_factory=time.perf_counter)

    def mark(self, phase: str) -> None:
        """What passed since the last mark was `phase`."""
        now = time.perf_counter()
        setattr(self, phase, getattr(self, phase) + now - self._last)
        self._last = now


@dataclass(frozen=True)
class Found:
    """Tracks of some starts [n, L, Gy, Gx, 2] and homographies of some pairs, in their order."""

    displacements: NDArray[np.float32]
    in_view: NDArray[np.uint8]
    homographies: NDArray[np.float64]
    still: int
    size: tuple[int, int]


class FlowBlock(NamedTuple):
    """Flow of the next pairs of a video.

    Attributes
    ----------
    flow : [n, 2, H, W] float32 px; n may be 0.
    homographies : [n, 3, 3]; still : pairs for which none was found.
    """

    flow: torch.Tensor
    homographies: NDArray[np.float64]
    still: int


def flows_of(
    config: TrackConfig,
    frames: Frames,
    device: str,
    progress: Progress | None,
    seconds: Seconds,
) -> Iterator[FlowBlock]:
    """Flow of every pair, block after block of frames."""
    held: torch.Tensor | None = None  # frames of which pairs are to come
    seen = 0
    for block in frames.blocks:
        block = block.to(device)
        if held is not None and held.shape[1:] != block.shape[1:]:
            raise VideoError(f"the size of the picture changes at frame {seen}")
        held = block if held is None else torch.cat([held, block])
        seen += len(block)
        seconds.mark("decode")
        count = max(0, len(held) - config.flow_stride)
        found = _flow(config, held, count, progress)
        held = held[count:]
        seconds.mark("flow")
        yield found
    if seen != frames.count:
        raise VideoError(f"{seen} frames came where {frames.count} were announced")


def tracks_of(
    config: TrackConfig, blocks: Iterable[FlowBlock], count: int, seconds: Seconds
) -> Iterator[Found]:
    """Block after block, the tracks that read no later flow; at the end those that are left."""
    pairs = max(0, count - config.flow_stride)
    reach = (config.length - 1) * config.flow_stride
    flows: torch.Tensor | None = None  # of the pairs from `start` on, which tracks still read
    solved = start = 0
    for block in blocks:
        flows = block.flow if flows is None else torch.cat([flows, block.flow])
        solved += len(block.flow)
        end = max(start, solved - reach)
        found = _track(config, flows, range(start, end), pairs, block.homographies, block.still)
        flows, start = flows[end - start :], end
        seconds.mark("track")
        yield found
    if flows is None:
        return
    if solved != pairs:
        raise VideoError(f"flow came of {solved} pairs; {count} frames have {pairs}")
    found = _track(config, flows, range(start, count), pairs, np.empty((0, 3, 3)), 0)
    seconds.mark("track")
    yield found


def _flow(
    config: TrackConfig, frames: torch.Tensor, count: int, progress: Progress | None
) -> FlowBlock:
    """Flow of the first pairs of some frames."""
    height, width = frames.shape[-2:]
    if count < 1:
        none = frames.new_empty((0, 2, height, width), dtype=torch.float32)
        return FlowBlock(none, np.empty((0, 3, 3)), 0)
    options: dict[str, Any] = {
        "method": config.flow,
        "pairs": [(i, i + config.flow_stride) for i in range(count)],
        "bound": config.bound,
        "config": config.tvl1,
        "weights": config.weights or None,
        "progress": progress,
    }
    if not config.camera_motion:
        flow = optical_flow(frames, **options)
        return FlowBlock(flow, np.tile(np.eye(3), (count, 1, 1)), 0)
    found = flow_and_camera(frames, detector=config.detector, surf=config.surf, **options)
    cameras = found.camera.homographies.cpu().numpy()
    return FlowBlock(found.flow, cameras, count - int(found.camera.ok.sum()))


def _track(
    config: TrackConfig,
    flows: torch.Tensor,
    starts: range,
    pairs: int,
    cameras: NDArray[np.float64],
    still: int,
) -> Found:
    """Tracks from `starts`, whose first pair is the first of `flows`."""
    height, width = flows.shape[-2:]
    if height <= config.grid / 2 or width <= config.grid / 2:
        raise VideoError(f"frames of {width}x{height} px hold no point of a grid of {config.grid}")
    length, stride = config.length, config.flow_stride
    raw = np.array(starts, dtype=np.int64).reshape(-1, 1) + np.arange(length) * stride
    # Steps past the video's end read a field that stands still.
    beyond = raw >= pairs
    steps = np.where(beyond, len(flows), raw - starts.start).astype(np.int32)
    padded = torch.cat([flows, flows.new_zeros((1, 2, height, width))])
    if not len(steps):
        shape = trajectories(padded[:1], steps=np.zeros((1, 0), np.int32), grid=config.grid)
        gy, gx = shape.points.shape[1:3]
        moves = np.empty((0, length, gy, gx, 2), np.float32)
        return Found(moves, np.empty((0, gy, gx), np.uint8), cameras, still, (height, width))
    found = trajectories(
        padded,
        steps=torch.from_numpy(steps),
        grid=config.grid,
        bound=config.bound,
        median=config.median,
        sampling=config.sampling,
    )
    points = found.points.cpu().numpy()  # [n, Gy, Gx, L+1, 2]
    extent = np.array([width, height], np.float32)
    inside = ((points > 0) & (points < extent)).all(-1)
    # Steps until the first point outside: all of them where there is none.
    in_view = np.where(inside.all(-1), length, inside.argmin(-1) - 1).clip(0).astype(np.uint8)
    not_finite = inside.all(-1) & ~found.visible.cpu().numpy()
    real = (~beyond).sum(1).astype(np.uint8)[:, None, None]
    in_view = np.minimum(in_view, real)
    in_view[not_finite] = NOT_FINITE
    moves = found.displacements.cpu().numpy().transpose(0, 3, 1, 2, 4)
    return Found(np.ascontiguousarray(moves), in_view, cameras, still, (height, width))
