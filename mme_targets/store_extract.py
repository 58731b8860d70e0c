"""Tracks of one whole video, from every frame: what `mme extract` does for each of a list.

Frames are decoded once, in blocks; each flow is computed once and held while tracks read it. Memory
is that of a block and of one shard, however long the video.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .ops.camera_motion import flow_and_camera
from .ops.optical_flow import optical_flow
from .ops.trajectories import trajectories
from .plan import ClipPlan
from .store import Record, Store, provenance
from .store_config import TrackConfig
from .store_entry import NOT_FINITE
from .store_writer import EntryWriter
from .video import VideoError, iter_clips, probe

__all__ = ["Frames", "extract_frames", "extract_video", "extracted"]

BLOCK = 16
"""Pairs decoded and solved at a time."""
SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that are the machine's, not the video's: the next video would meet them as well."""
Progress = Callable[[int], Any]


@dataclass
class Frames:
    """The frames of one video, to be read once from the first to the last.

    `blocks` yields [n, 3, H, W] uint8 RGB, `count` frames in all.
    """

    count: int
    fps: float
    blocks: Iterable[torch.Tensor]


@dataclass
class Seconds:
    """Where the time of an extraction went."""

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


def read_video(path: str | os.PathLike[str], short_side: int = 0) -> Frames:
    """All frames of a video file.

    Raises
    ------
    VideoError
        If it is no video; while reading, if a frame cannot be decoded.
    """
    info = probe(path)
    plans = [
        ClipPlan(tuple(range(at, min(at + BLOCK, info.frames))), (), (), (), (), ())
        for at in range(0, info.frames, BLOCK)
    ]
    clips = iter_clips(path, plans, short_side=short_side or None)
    return Frames(info.frames, info.fps, (clip.frames for clip in clips))


def extract_video(
    store: Store,
    config: TrackConfig,
    name: str,
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    seconds: Seconds | None = None,
) -> Record:
    """Extract the tracks of a video file into a store; replaces what is there of this name.

    Parameters
    ----------
    config : the store's.
    name : by which the tracks are found.
    path : of the video.
    device : where flow and tracks are computed.
    progress : called with the number of pairs that were solved.
    seconds : adds up where the time went.

    Raises
    ------
    VideoError
        If the file is no video, cannot be decoded to its end, or changed meanwhile.
    OSError
        If it cannot be read, or the entry not be written; nothing half-written is left.
    """
    seconds = Seconds() if seconds is None else seconds
    try:
        before = os.stat(path)
        digest = digest_of(path)
    except OSError as error:
        if error.errno in SYSTEM:
            raise
        raise VideoError(f"{os.fspath(path)}: {error.strerror or error}") from None
    if not before.st_size:
        raise VideoError(f"{os.fspath(path)}: the file is empty")
    frames = read_video(path, config.short_side)

    def unchanged() -> None:
        after = os.stat(path)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise VideoError(f"{os.fspath(path)}: the file changed while it was read")

    source = {"bytes": before.st_size, "sha256": digest}
    return extract_frames(
        store, config, name, frames, source=source, check=unchanged,
        device=device, progress=progress, seconds=seconds,
    )  # fmt: skip


def extract_frames(
    store: Store,
    config: TrackConfig,
    name: str,
    frames: Frames,
    *,
    source: dict[str, Any] | None = None,
    check: Callable[[], None] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    seconds: Seconds | None = None,
) -> Record:
    """`extract_video` of frames from anywhere; `check` is called before the entry is written."""
    seconds = Seconds() if seconds is None else seconds
    seconds.mark("decode")
    flows = _flows(config, frames, device, progress, seconds)
    return write_flows(store, config, name, flows, frames.count, frames.fps,
                       {"source": source or {}}, check=check, seconds=seconds)  # fmt: skip


def write_flows(
    store: Store,
    config: TrackConfig,
    name: str,
    flows: Iterable[FlowBlock],
    count: int,
    fps: float,
    about: dict[str, Any],
    *,
    check: Callable[[], None] | None = None,
    seconds: Seconds | None = None,
) -> Record:
    """Tracks through flow that comes block by block, of a video of `count` frames."""
    seconds = Seconds() if seconds is None else seconds
    writer: EntryWriter | None = None
    size, still, finite = (0, 0), 0, True
    for found in _tracks(config, flows, count, seconds):
        if writer is None:
            size = found.size
            writer = EntryWriter(config, count, *size)
        writer.add(found.displacements, found.in_view, found.homographies)
        still += found.still
        finite &= not (found.in_view == NOT_FINITE).any()
        seconds.mark("write")
    if writer is None:
        raise VideoError(f"{name}: it has no frames")
    if check is not None:
        check()
    path = store.file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.finish(
        path,
        {"name": name, "fps": fps, "still": still, "finite": bool(finite), **about, **provenance()},
    )
    seconds.mark("write")
    return extracted(store, name)


def extracted(store: Store, name: str) -> Record:
    """The record of an entry that exists, read from it.

    Raises
    ------
    KeyError, StoreError
        If there is none, or it is damaged.
    """
    with store.entry(name) as entry:
        source = entry.about["source"]
        return Record(
            name=name,
            frames=entry.frames,
            height=entry.height,
            width=entry.width,
            fps=entry.about["fps"],
            still=entry.about["still"],
            bytes=os.path.getsize(entry.path),
            digest=digest_of(entry.path),
            source_bytes=source.get("bytes", 0),
            source_digest=source.get("sha256", ""),
        )


@dataclass(frozen=True)
class _Found:
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


def _flows(
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


def _tracks(
    config: TrackConfig, blocks: Iterable[FlowBlock], count: int, seconds: Seconds
) -> Iterator[_Found]:
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
) -> _Found:
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
        return _Found(moves, np.empty((0, gy, gx), np.uint8), cameras, still, (height, width))
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
    return _Found(np.ascontiguousarray(moves), in_view, cameras, still, (height, width))


def digest_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
