"""Containers: what packets a video file holds, and its frames by exact position.

Where the container stores when each frame is shown, the sorted times of all packets tell the
position of every frame, and of the key frames, without decoding. What the decoder gives is held
against that list, frame by frame; where the two differ, `Untimed` asks to decode from the start.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch

_TIMED = {"mov", "mp4", "matroska", "webm"}
"""Containers that store presentation times. AVI does not: those that the demuxer makes up run
backwards around B-frames."""
_NO_VIDEO = {"tty"}
"""What FFmpeg takes plain text for, to be rendered as a video of a terminal."""


class VideoError(RuntimeError):
    """A file that cannot be read as video, or a frame in it; names the file and the frame."""


class Untimed(Exception):
    """What the decoder gives does not agree with the stored times."""


@dataclass(frozen=True)
class Index:
    """Where the frames of a file lie.

    `pts` holds the stored time of each frame, in units of `time_base` seconds, or is None where
    those cannot be relied on; `keys` the positions at which decoding can start. `timed`: the
    container stores times at all. `listed`: the frames that its header claims, 0 where it does not
    say. `size`: (height, width) as displayed. `short`: how much is left of a file that was cut
    short, by what it says of itself; empty where nothing is known to be missing.
    """

    frames: int
    pts: tuple[int, ...] | None
    keys: tuple[int, ...]
    timed: bool
    time_base: Fraction
    fps: float
    duration: float
    listed: int
    size: tuple[int, int] = (0, 0)
    rotation: int = 0
    short: str = ""


def index_of(path: str) -> Index:
    """Read where the frames of `path` lie; remembered while the file does not change."""
    _check_file(path)
    stat = os.stat(path)
    return _read_index(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=32)
def _read_index(path: str, changed: int, size: int) -> Index:
    """Read all packets, and decode one frame; all frames where packets carry no usable times."""
    with open_video(path) as (container, stream):
        timed = bool(_TIMED & set(container.format.name.split(",")))
        packets, empty = [], 0
        for packet in _packets(container, stream):
            if packet.size and not packet.is_discard and not packet.is_corrupt:
                packets.append((packet.pts, packet.is_keyframe))
            else:
                empty += not packet.is_corrupt
        base = Fraction(stream.time_base)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        listed = stream.frames
        span = float(stream.duration * stream.time_base) if stream.duration else 0.0
        span = span or (container.duration or 0) / 1e6
        said = _said(container, stream)
    frames = len(packets)
    rate = rate or (frames / span if span else 25.0)
    index = Index(frames, None, (), timed, base, rate, span or frames / rate, listed)
    if timed and packets and all(stamp is not None for stamp, _ in packets):
        place = {stamp: i for i, stamp in enumerate(sorted(stamp for stamp, _ in packets))}
        keys = tuple(sorted(place[stamp] for stamp, key in packets if key))
        # Pictures shown before the first key frame may not decode: then positions would shift.
        if len(place) == frames and 0 in keys:
            index = replace(index, pts=tuple(place), keys=keys)
    try:
        first = _first(path, index)
    except Untimed:
        index = replace(index, pts=None, keys=())
        first = _first(path, index)
    if index.pts is None:
        index = replace(index, frames=_count(path, index))
    tall, wide = first.height, first.width
    shown = (wide, tall) if display(first)[0] else (tall, wide)
    short = _short(index, frames + empty, said)
    return replace(index, size=shown, rotation=round(first.rotation) % 360, short=short)


def _said(container: Any, stream: Any) -> float:
    """Seconds at which the video of a Matroska file ends, as its writer left them; else 0."""
    hours = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))
    if hours:
        return 3600 * int(hours[1]) + 60 * int(hours[2]) + float(hours[3])
    alone = len(container.streams) == 1 and "matroska" in container.format.name
    return (container.duration or 0) / 1e6 if alone else 0.0


def _short(index: Index, there: int, said: float) -> str:
    """`Index.short`, of so many packets and of when the file says that it ends."""
    if index.listed > there:
        frames = f"{index.frames} frame{'s' * (index.frames != 1)}"
        return f"cut short: {frames} of the {index.listed} that it lists"
    if index.pts:
        end = float(index.pts[-1] * index.time_base) + 1 / index.fps
        if said - end > max(0.25, 2 / index.fps):
            return f"cut short: it ends after {end:.2f} of the {said:.2f} s that it says"
    return ""


def _first(path: str, index: Index) -> Any:
    with open_video(path) as (container, stream):
        return next(Frames(path, container, stream, index).take([0]))[1]


def _count(path: str, index: Index) -> int:
    """Frames that decode from the start; as many as there are packets where one is damaged."""
    count = 0
    try:
        with open_video(path) as (container, stream):
            for _ in Frames(path, container, stream, index).run():
                count += 1
    except VideoError:
        return index.frames
    return count


class Frames:
    """The frames of one open file, by ascending index."""

    def __init__(self, path: str, container: Any, stream: Any, index: Index) -> None:
        self.path, self.container, self.stream, self.index = path, container, stream, index
        self.next = self.first = 0
        self.settled = True
        # As many threads as torch has decode ahead; order and content stay the same. A damaged
        # frame is an error rather than a guess at what it showed.
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = torch.get_num_threads()
        stream.codec_context.options = {"err_detect": "explode"}

    def take(self, wanted: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield (index, frame) for each of `wanted`, ascending."""
        frames = self.run()
        for want in wanted:
            if self.index.pts is not None and want >= self.index.frames:
                raise self._missing(want, self.index.frames)
            key = bisect_right(self.index.keys, want) - 1
            if key >= 0 and self.index.keys[key] > self.next:
                frames = self._seek(self.index.keys[key])
            while True:
                frame = next(frames, None)
                if frame is None:
                    raise self._missing(want, self.next)
                if self.next > want:
                    break
            yield want, frame

    def run(self) -> Iterator[Any]:
        """Yield every frame from here on; `self.next` counts those that went out."""
        for frame in self._decoded():
            if self.index.pts is not None:
                due = self.index.pts[self.next] if self.next < len(self.index.pts) else None
                if not self.settled and frame.pts is not None and frame.pts < (due or 0):
                    continue  # pictures that lead the key frame and need what lies before it
                if frame.pts != due:
                    raise Untimed
                self.settled = True
            if frame.is_corrupt:
                raise self._broken("its data are damaged")
            self.next += 1
            yield frame

    def _seek(self, key: int) -> Iterator[Any]:
        assert self.index.pts is not None
        self.container.seek(self.index.pts[key], stream=self.stream)
        self.next = self.first = key
        self.settled = False
        return self.run()

    def _decoded(self) -> Iterator[Any]:
        import av

        try:
            for packet in self.container.demux(self.stream):
                if packet.is_corrupt:
                    # Cut short: nothing after it is whole. Empty the decoder as at the end; where
                    # there are no times, the last picture may belong after the one that was cut.
                    context = self.stream.codec_context
                    rest = context.decode(None)
                    doubtful = self.index.pts is None and context.has_b_frames
                    yield from rest[:-1] if doubtful else rest
                    return
                yield from packet.decode()
        except av.error.FFmpegError as error:
            raise self._broken(error.strerror) from error

    def _broken(self, reason: str) -> VideoError:
        sound = "no frame before it was" if not self.next else f"frame {self.first} was"
        if self.next > self.first + 1:
            sound = f"frames {self.first} to {self.next - 1} were"
        return VideoError(
            f"{self.path}: frame {self.next} cannot be decoded ({reason}); {sound} decoded"
        )

    def _missing(self, want: int, frames: int) -> VideoError:
        text = f"{self.path}: there is no frame {want}; there are {frames} frames"
        if self.index.listed > frames:
            text += f", though the file lists {self.index.listed}: it is cut short or damaged"
        return VideoError(text)


def display(
    frame: Any, known: dict[int, tuple[bool, bool, bool]] | None = None
) -> tuple[bool, bool, bool]:
    """Whether to transpose, then mirror x, then mirror y: the display matrix, to right angles.

    Parameters
    ----------
    known : what was found for other frames of this video, by their rotation; added to. A frame
        whose side data was looked at is in a cycle, and keeps its memory until that is collected.
    """
    known = {} if known is None else known
    if frame.rotation not in known:
        known[frame.rotation] = _display(frame)
    return known[frame.rotation]


def _display(frame: Any) -> tuple[bool, bool, bool]:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
            # Column vectors: x' = a x + c y, y' = b x + d y.
            turned = abs(b) > abs(a)
            return (True, c < 0, b < 0) if turned else (False, a < 0, d < 0)
    return False, False, False


@contextmanager
def open_video(path: str) -> Iterator[tuple[Any, Any]]:
    """Yield the container and its first video stream that is not a cover picture."""
    import av

    _check_file(path)
    try:
        # An absolute path has no protocol in it, and the white list keeps a play list that poses
        # as a video from reaching out.
        container = av.open(os.path.abspath(path), options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path}: not a video that can be read ({reason})") from error
    with container:
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams or container.format.name in _NO_VIDEO:
            raise VideoError(f"{path}: holds no video")
        yield container, streams[0]


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets up to where the file cannot be read on; empty ones stand for frames left out."""
    import av

    try:
        for packet in container.demux(stream):
            if packet.size or packet.dts is not None:
                yield packet
    except av.error.FFmpegError:
        return  # what lies before can be decoded; asking for more says where it ends


def _check_file(path: str) -> None:
    if not os.path.exists(path):
        raise VideoError(f"{path}: there is no such file")
    if not os.path.isfile(path):
        raise VideoError(f"{path}: not a file")
    if not os.path.getsize(path):
        raise VideoError(f"{path}: the file is empty")
