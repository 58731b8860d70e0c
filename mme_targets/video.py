"""Video files: what they hold, and frames by their index, exactly (PyAV).

Frame i is the i-th frame that decoding the whole file from its start gives, in the order of
presentation. Seeking is used where the container stores when each frame is shown (MP4, MOV,
Matroska, WebM) and what the decoder then gives agrees with it; otherwise decoding starts at the
beginning. Frames come as 8-bit RGB in stored pixels: turned and mirrored as the file asks a player
to, but not stretched where its pixels are not square.

Resizing is antialiased bilinear interpolation on the 8-bit RGB frame (torch), the short side to a
size and the long one rounded to the nearest pixel, then the centre is cut out. Conversion to RGB is
libswscale's, with its accurate, processor-independent rounding (PyAV 18 and later; before, its
default). The matrix is the one that the file names, else BT.601; the range likewise, else limited.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from .demux import Frames, Index, Untimed, VideoError, display, index_of, open_video
from .plan import ClipPlan

__all__ = ["Clip", "VideoError", "VideoInfo", "decode", "iter_clips", "probe"]

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds.

    Attributes
    ----------
    path : the file.
    frames : how many there are: counted from the packets, which are read but not decoded, or, in
        containers without presentation times (AVI), by decoding all. Where a frame is damaged it
        is the number that the file lists; whether they decode shows when they are decoded.
    fps : average frames per second.
    width, height : px, as decoded: after rotation.
    rotation : degrees, anticlockwise, by which stored frames are turned for display: 0, 90, 180
        or 270.
    duration : seconds.
    short : how the file is known to be cut short, by what it says of itself; empty where it is not.
    """

    path: str
    frames: int
    fps: float
    width: int
    height: int
    rotation: int
    duration: float
    short: str = ""


@dataclass(frozen=True)
class Clip:
    """Decoded frames.

    Attributes
    ----------
    frames : [F, 3, H, W] uint8, RGB.
    times : (F,) seconds at which each is shown, as stored in the file; index / fps where the
        container stores none.
    indices : (F,) raw indices, as asked for.
    fps : average frame rate of the file.
    path : the file.
    """

    frames: torch.Tensor
    times: tuple[float, ...]
    indices: tuple[int, ...]
    fps: float
    path: str


def probe(path: Path) -> VideoInfo:
    """Count the frames of a video and read its size, rate and rotation.

    Raises
    ------
    VideoError
        If the file is missing, empty, no video, or not one frame of it decodes.
    """
    index = index_of(os.fspath(path))
    return VideoInfo(
        path=os.fspath(path),
        frames=index.frames,
        fps=index.fps,
        width=index.size[1],
        height=index.size[0],
        rotation=index.rotation,
        duration=index.duration,
        short=index.short,
    )


def decode(
    path: Path,
    indices: Sequence[int],
    *,
    short_side: int | None = None,
    crop: int | None = None,
) -> Clip:
    """Decode frames by index.

    Parameters
    ----------
    path : the video.
    indices : ascending, from 0; one may repeat (padding).
    short_side : resize the short side to this, px (up or down); None keeps the size.
    crop : cut out a centred square of this side, px; None keeps the frame whole.

    Raises
    ------
    VideoError
        As `probe`; where a frame does not exist or cannot be decoded, or where the size changes
        within the clip and `crop` does not make it the same again.
    ValueError
        If `indices` is empty, negative or descends, or `crop` is larger than the frame.
    """
    with closing(_clips(path, [_checked(indices)], short_side, crop)) as clips:
        return next(clips)


def iter_clips(
    path: Path,
    plans: Sequence[ClipPlan],
    *,
    short_side: int | None = None,
    crop: int | None = None,
) -> Iterator[Clip]:
    """Decode the clips of one video, one after the other, each frame once.

    Frames that clips share are kept until the last of them; `plans` are in the order of their
    first frames. Other parameters and errors as `decode`.
    """
    wanted = [_checked(plan.frames) for plan in plans]
    if any(a[0] > b[0] for a, b in pairwise(wanted)):
        raise ValueError("plans must be in the order of their first frames")
    return _clips(path, wanted, short_side, crop)


def _wanted_frames(
    path: str, index: Index, wanted: Sequence[int]
) -> Generator[tuple[int, Any], None, None]:
    """Yield (i, frame), falling back on decoding from the start where seeking is not exact."""
    done = 0
    try:
        with open_video(path) as (container, stream):
            for item in Frames(path, container, stream, index).take(wanted):
                done += 1
                yield item
            return
    except Untimed:
        index = replace(index, pts=None, keys=())
    with open_video(path) as (container, stream):
        yield from Frames(path, container, stream, index).take(wanted[done:])


def _clips(
    path: Path, clips: list[tuple[int, ...]], short_side: int | None, crop: int | None
) -> Generator[Clip, None, None]:
    for argument, value in (("short_side", short_side), ("crop", crop)):
        if value is not None and value < 1:
            raise ValueError(f"{argument} is {value}; must be at least 1 px")
    name = os.fspath(path)
    index = index_of(name)
    wanted = sorted({i for clip in clips for i in clip})
    source = _wanted_frames(name, index, wanted)
    held: dict[int, tuple[torch.Tensor, float]] = {}
    shown: dict[int, tuple[bool, bool, bool]] = {}
    with closing(source):
        for clip in clips:
            held = {i: item for i, item in held.items() if i >= clip[0]}
            last = max(held, default=-1)
            while last < clip[-1]:
                last, frame = next(source)
                if last >= clip[0]:
                    stored = index.timed and frame.pts is not None
                    time = float(frame.pts * index.time_base) if stored else last / index.fps
                    held[last] = (_picture(frame, short_side, crop, shown), time)
            pictures = [held[i][0] for i in clip]
            shapes = {tuple(p.shape[1:]) for p in pictures}
            if len(shapes) > 1:
                odd = next(i for i in clip if held[i][0].shape != pictures[0].shape)
                raise VideoError(f"{name}: the size of the picture changes at frame {odd}")
            yield Clip(
                torch.stack(pictures), tuple(held[i][1] for i in clip), clip, index.fps, name
            )


def _picture(
    frame: Any,
    short_side: int | None,
    crop: int | None,
    shown: dict[int, tuple[bool, bool, bool]] | None = None,
) -> torch.Tensor:
    """[3, H, W] uint8 RGB, upright, resized and cut."""
    array = frame.to_ndarray(format="rgb24", interpolation=_accurate())
    picture = torch.from_numpy(array).permute(2, 0, 1)
    turned, mirror_x, mirror_y = display(frame, shown)
    if turned:
        picture = picture.transpose(1, 2)
    flips = [axis for axis, on in ((2, mirror_x), (1, mirror_y)) if on]
    if flips:
        picture = picture.flip(flips)
    height, width = picture.shape[1:]
    if short_side is not None and short_side != min(height, width):
        scale = short_side / min(height, width)
        height, width = (max(short_side, int(side * scale + 0.5)) for side in (height, width))
        picture = torch.nn.functional.interpolate(
            picture[None], (height, width), mode="bilinear", antialias=True
        )[0]
    if crop is not None:
        if crop > min(height, width):
            raise ValueError(f"crop is {crop}; the short side has only {min(height, width)} px")
        top, left = (height - crop) // 2, (width - crop) // 2
        picture = picture[:, top : top + crop, left : left + crop]
    return picture.contiguous()


@lru_cache(maxsize=1)
def _accurate() -> Any:
    """Flags of libswscale for rounding that is accurate and the same on every processor."""
    from av.video.reformatter import Interpolation as Flag

    if not hasattr(Flag, "ACCURATE_RND"):
        return None
    return (
        Flag.BILINEAR
        | Flag.ACCURATE_RND
        | Flag.BITEXACT
        | Flag.FULL_CHR_H_INT
        | Flag.FULL_CHR_H_INP
    )


def _checked(indices: Sequence[int]) -> tuple[int, ...]:
    indices = tuple(int(i) for i in indices)
    if not indices:
        raise ValueError("indices is empty; must name at least one frame")
    if indices[0] < 0 or any(a > b for a, b in pairwise(indices)):
        raise ValueError(f"indices is {list(indices)}; must be ascending, from 0")
    return indices
