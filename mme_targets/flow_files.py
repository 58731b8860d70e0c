"""Flow of a whole video as files: `.flo` a pair (Middlebury), `.npz`, or colours in an `.mp4`."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .config import TargetConfig
from .files import atomic_path, check_apart, check_writable, write_video
from .ops.camera_motion import flow_and_camera
from .ops.optical_flow import optical_flow
from .plan import ClipPlan
from .video import iter_clips, probe

BLOCK = 16
"""Pairs decoded and solved at a time."""
FLO_MAGIC = np.float32(202021.25)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What writing fails with where there was room to begin; it names no file, or a hidden one."""


@dataclass(frozen=True)
class Pair:
    """One pair of neighbouring frames.

    Attributes
    ----------
    index : raw index of the first frame; time : its time, s.
    frame : [3, H, W] uint8, the first frame.
    flow : [2, H, W] px, clipped; camera motion removed if so configured.
    before : the same with the camera's motion in it, where it was removed, else None.
    homography : [3, 3], or None.
    ok : whether a homography was found, where one was looked for.
    """

    index: int
    time: float
    frame: torch.Tensor
    flow: torch.Tensor
    before: torch.Tensor | None
    homography: torch.Tensor | None
    ok: bool


class FlowJob:
    """Flow between neighbouring frames of a video.

    Parameters
    ----------
    path : the video.
    config : method, camera motion and bound are read of it.
    start : raw index of the first frame; count : pairs, None for all to the end.
    short_side : resize to this, px; None keeps the size.

    Raises
    ------
    VideoError
        If the file cannot be read as a video.
    ValueError
        If the video has no pair from `start` on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: TargetConfig,
        *,
        start: int = 0,
        count: int | None = None,
        short_side: int | None = None,
    ) -> None:
        self.path, self.config, self.short_side = Path(path), config, short_side
        self.info = probe(path)
        last = self.info.frames - 1
        if last < 1:
            raise ValueError(f"{self.path} has one frame; flow needs two")
        if not 0 <= start < last:
            raise ValueError(f"start is {start}; {self.path} has pairs from 0 to {last - 1}")
        if count is not None and count < 1:
            raise ValueError(f"count is {count}; must be 1 or more")
        self.first = start
        self.pairs = last - start if count is None else min(count, last - start)

    def solve(
        self, progress: Callable[[int], Any] | None = None, before: bool = False
    ) -> Iterator[Pair]:
        """Pair after pair; `before` also keeps the flow that has the camera's motion in it."""
        config, end = self.config, self.first + self.pairs
        blocks = [range(s, min(s + BLOCK, end) + 1) for s in range(self.first, end, BLOCK)]
        plans = [ClipPlan(tuple(block), (), (), (), (), ()) for block in blocks]
        options: dict[str, Any] = {
            "method": config.flow,
            "bound": config.bound,
            "config": config.tvl1,
            "weights": config.weights or None,
        }
        for clip in iter_clips(self.path, plans, short_side=self.short_side):
            raw = homographies = None
            found = [True] * (len(clip.frames) - 1)
            if config.camera_motion:
                removed = flow_and_camera(
                    clip.frames,
                    detector=config.detector,
                    surf=config.surf,
                    progress=progress,
                    **options,
                )
                flow, homographies = removed.flow, removed.camera.homographies
                found = [bool(ok) for ok in removed.camera.ok]
                raw = optical_flow(clip.frames, **options) if before else None
            else:
                flow = optical_flow(clip.frames, progress=progress, **options)
            for i in range(len(flow)):
                yield Pair(
                    clip.indices[i],
                    clip.times[i],
                    clip.frames[i],
                    flow[i],
                    None if raw is None else raw[i],
                    None if homographies is None else homographies[i],
                    found[i],
                )


def write_flow(
    job: FlowJob, out: str | os.PathLike[str], progress: Callable[[int], Any] | None = None
) -> int:
    """Write flow as `out` ends; returns how many pairs kept the camera's motion.

    ``.mp4`` shows the frames beside their flow in Middlebury's colours, before and after camera
    removal; ``.npz`` holds ``flow [P, 2, H, W]`` float32 px, ``frames``, ``times`` and, with camera
    removal, ``homographies`` and ``ok``; a folder (no ending, or there and empty) gets one ``.flo``
    a pair, named by the index of its first frame.

    Raises
    ------
    ValueError
        For another ending, or where `out` is the video.
    OSError
        If `out` cannot be written (before the work, but for a disk that fills up), or is a folder
        that holds something.
    """
    out, kind, still = Path(out), Path(out).suffix.lower(), 0
    check_apart(out, job.path)

    def counted(before: bool = False) -> Iterator[Pair]:
        nonlocal still
        for pair in job.solve(progress, before):
            still += not pair.ok
            yield pair

    try:
        if kind == ".mp4":
            check_writable(out)
            write_video(out, _pictures(counted(before=True)), fps=job.info.fps or 25.0, crf=16)
        elif kind == ".npz":
            check_writable(out)
            _write_npz(list(counted()), out)
        elif not kind or out.is_dir():
            with _atomic_folder(out) as folder:
                for pair in counted():
                    write_flo(folder / f"{pair.index:06d}.flo", pair.flow)
        else:
            raise ValueError(
                f"{out} must end in .mp4 or .npz, or be a folder: it says what to write"
            )
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(f"{out} cannot be written: {error.strerror}") from error
    return still


def write_flo(path: str | os.PathLike[str], flow: torch.Tensor) -> None:
    """Write flow [2, H, W] px as Middlebury's .flo: magic, width, height, (x, y) row by row."""
    height, width = flow.shape[-2:]
    with Path(path).open("wb") as file:
        file.write(FLO_MAGIC.astype("<f4").tobytes())
        file.write(np.array([width, height], dtype="<i4").tobytes())
        file.write(flow.permute(1, 2, 0).cpu().numpy().astype("<f4").tobytes())


def read_flo(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read a .flo file: [2, H, W] px; values over 1e9 mean unknown.

    Raises
    ------
    ValueError
        If the file is none, or shorter than it says.
    """
    data = Path(path).read_bytes()
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != FLO_MAGIC:
        raise ValueError(f"{path} is no .flo file")
    width, height = (int(n) for n in np.frombuffer(data, "<i4", 2, 4))
    if len(data) != 12 + 8 * width * height:
        raise ValueError(f"{path} says {width}x{height} px, which its {len(data)} bytes are not")
    values = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def colours(flow: torch.Tensor, most: float) -> torch.Tensor:
    """Middlebury's colours [3, H, W] uint8 of flow [2, H, W]; `most` px and more are full."""
    from torchvision.utils import flow_to_image

    size = flow.norm(dim=0, keepdim=True)
    held = torch.where(size > most, flow * (most / size), flow)
    # torchvision scales to the largest vector it sees: one of known size is added and cut off.
    known = torch.zeros(2, held.shape[1], 1)
    known[0] = most
    image: torch.Tensor = flow_to_image(torch.cat([held, known], dim=2))
    return image[:, :, :-1]


def _pictures(pairs: Iterator[Pair]) -> Iterator[torch.Tensor]:
    """Frame, flow before and after, with the wheel; the first block sets the scale."""
    waiting: list[Pair] = []
    most = 0.0
    for pair in pairs:
        if not most:
            waiting.append(pair)
            if len(waiting) < BLOCK:
                continue
            most = _scale(waiting)
            yield from (_picture(one, most) for one in waiting)
        else:
            yield _picture(pair, most)
    if not most:
        most = _scale(waiting)
        yield from (_picture(one, most) for one in waiting)


def _scale(pairs: list[Pair]) -> float:
    """Px that 99 of 100 vectors stay below, 1 at least."""
    flow = torch.stack([p.flow if p.before is None else p.before for p in pairs])
    size = flow.norm(dim=1).flatten().numpy()
    return max(1.0, float(np.quantile(size, 0.99)))


def _picture(pair: Pair, most: float) -> torch.Tensor:
    import cv2

    height = pair.frame.shape[1]
    panels = [("frame", pair.frame)]
    if pair.before is not None:
        panels.append(("flow", colours(pair.before, most)))
        name = "camera removed" if pair.ok else "camera not found"
        panels.append((name, colours(pair.flow, most)))
    else:
        panels.append(("flow", colours(pair.flow, most)))
    side = min(max(16, height // 5), *pair.frame.shape[1:])
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    wheel = colours(torch.stack([x, y]) * most, most)
    inside = (x.square() + y.square() <= 1).expand(3, -1, -1)
    drawn = []
    for i, (name, panel) in enumerate(panels):
        picture = panel.clone()
        if i == len(panels) - 1:
            corner = picture[:, -side:, -side:]
            corner[inside] = wheel[inside]
            name = f"{name}, wheel {most:.1f} px"
        array = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
        size = max(0.3, height / 640)
        lines = (((0, 0, 0), 3), ((255, 255, 255), 1)) if min(picture.shape[1:]) > 8 else ()
        for colour, width in lines:
            cv2.putText(array, name, (4, int(24 * size) + 4), cv2.FONT_HERSHEY_SIMPLEX, size,
                        colour, width, cv2.LINE_AA)  # fmt: skip
        drawn.append(torch.from_numpy(array).permute(2, 0, 1))
    whole = torch.cat(drawn, dim=2)
    if height == 1:
        whole = whole.expand(-1, 2, -1)
    return whole[:, : whole.shape[1] // 2 * 2, : whole.shape[2] // 2 * 2]


def _write_npz(pairs: list[Pair], out: Path) -> None:
    arrays: dict[str, Any] = {
        "flow": torch.stack([p.flow for p in pairs]).numpy(),
        "frames": np.array([p.index for p in pairs]),
        "times": np.array([p.time for p in pairs]),
    }
    cameras = [p.homography for p in pairs if p.homography is not None]
    if cameras:
        arrays["homographies"] = torch.stack(cameras).numpy()
        arrays["ok"] = np.array([p.ok for p in pairs])
    with atomic_path(out) as beside:
        np.savez(beside, **arrays)


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """A folder whose files appear when all of them are written, or not at all."""
    where = Path(os.path.realpath(path))
    there = where.exists()
    if there and (not where.is_dir() or any(where.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder")
    # One that is there stays: it may be where a disk is mounted, or a shell's current folder.
    hidden = (where if there else where.parent) / f".{where.name[:100]}.{secrets.token_hex(4)}"
    try:
        hidden.mkdir()
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror}") from error
    try:
        yield hidden
        if there:
            for file in hidden.iterdir():
                file.replace(where / file.name)
        else:
            hidden.replace(where)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
