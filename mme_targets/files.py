"""Writing files so that nothing half-written is left: write beside, then rename."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import torch

__all__ = ["atomic_path", "check_apart", "check_writable", "write_video"]

_TICKS = 60000
"""Ticks a second: whole for the usual rates, 29.97 too, and within what MPEG-4 allows."""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Make sure, before the work, that `path` can be written after it.

    Parameters
    ----------
    path : the file to come. Its folder must exist.

    Raises
    ------
    OSError
        Naming `path`: its folder is missing or cannot be written, or `path` is itself a folder or
        a device.
    """
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a file is to be written there")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is a device or a pipe, and a file is to be put in its place")
    if not folder.exists():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {folder} is not a folder")
    # Asked by doing: permission bits say nothing of read-only mounts or of the superuser.
    beside = _beside(path)
    try:
        beside.touch(exist_ok=False)
        beside.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{path} cannot be written: {reason}") from error


def check_apart(path: str | os.PathLike[str], video: str | os.PathLike[str]) -> None:
    """Raise `ValueError` if `path`, which is to be written, is the video that is read."""
    if os.path.exists(path) and os.path.samefile(path, video):
        raise ValueError(f"{path} is the video itself, which would be lost; write to another name")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` when the block ends well.

    The name yielded ends like `path`, so that writers which choose a format by the name work. When
    the block raises, what was written is removed and `path` stays as it was.

    Raises
    ------
    OSError
        As `check_writable`; also where the block wrote nothing.
    """
    path = Path(path)
    check_writable(path)
    beside = _beside(path)
    try:
        beside.touch()
        mode = beside.stat().st_mode  # what the umask says; some writers choose their own
        beside.unlink()
        yield beside
        beside.chmod(mode)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A hidden name in the same folder, which no one else has."""
    return path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}{path.suffix}")


def write_video(
    path: str | os.PathLike[str],
    frames: torch.Tensor | Iterable[torch.Tensor],
    *,
    fps: float = 25.0,
    times: Sequence[float] | None = None,
    crf: int = 12,
    pix_fmt: str | None = None,
) -> None:
    """Write RGB frames as H.264 (MPEG-4 where PyAV lacks libx264), beside and then renamed.

    Parameters
    ----------
    path : a name whose ending FFmpeg knows: `.mp4`, `.mkv`, `.avi`.
    frames : [T, 3, H, W] uint8, RGB; or an iterable of [3, H, W], which are written as they come.
    fps : frames per second.
    times : (T,) seconds, ascending, for a variable rate; None is constant at `fps`.
    crf : quality of H.264, 0 (lossless) to 51.
    pix_fmt : None takes yuv420p, which every player shows, or yuv444p where a side is odd.

    Raises
    ------
    ValueError
        If `frames` is not as said, or `times` has another length or does not ascend.
    OSError
        If `path` cannot be written.
    """
    import av

    if isinstance(frames, torch.Tensor):
        bad = frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8
        if bad or not len(frames):
            raise ValueError(
                f"frames is {frames.dtype} {list(frames.shape)}; must be uint8 [T, 3, H, W], T > 0"
            )
    stamps: Iterable[int] = (round(i / fps * _TICKS) for i in itertools.count())
    if times is not None:
        listed = [round((t - times[0]) * _TICKS) for t in times]
        count = len(frames) if isinstance(frames, torch.Tensor) else len(listed)
        if len(listed) != count or any(a >= b for a, b in itertools.pairwise(listed)):
            raise ValueError(f"times must hold {count} ascending values")
        stamps = listed
    pictures = iter(frames)
    first = next(pictures)
    height, width = first.shape[1:]
    h264 = "libx264" in av.codecs_available
    options = {"crf": str(crf)} if h264 else {"qscale": "2"}
    with atomic_path(path) as beside, av.open(os.fspath(beside), "w") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264" if h264 else "mpeg4", rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = pix_fmt or ("yuv444p" if (width | height) & 1 and h264 else "yuv420p")
        stream.codec_context.time_base = Fraction(1, _TICKS)
        for picture, stamp in zip(itertools.chain([first], pictures), stamps, strict=False):
            array = picture.permute(1, 2, 0).contiguous().cpu().numpy()
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
