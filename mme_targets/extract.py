"""One video in, motion targets out: what `mme targets` and `mme show` do, for use from Python too.

Clips are decoded one after the other; flow is computed once for each pair of raw frames, also where
clips overlap or a clip reaches past the video's end.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .backends import choose
from .config import TargetConfig
from .files import atomic_path, check_writable
from .ops.camera_motion import flow_and_camera
from .ops.optical_flow import optical_flow
from .pipeline import MotionTargets
from .plan import ClipPlan
from .targets import Targets
from .video import Clip, VideoInfo, iter_clips, probe

FORMAT = 1
"""Version of the files written; raised when their layout changes."""


@dataclass(frozen=True)
class Measured:
    """One clip of a video with its flow.

    Attributes
    ----------
    clip : frames of the plan [F, 3, H, W], their times and raw indices.
    plan : of this clip.
    flow : [P, 2, H, W] px of the plan's pairs, clipped; camera motion removed if so configured.
    homographies : [P, 3, 3] float64, or None where camera motion stays.
    still : pairs for which no homography was found, so that their flow keeps the camera's motion.
    box : (x, y, width, height) px of the frame that the model sees, for `region="frame"`.
    """

    clip: Clip
    plan: ClipPlan
    flow: torch.Tensor
    homographies: torch.Tensor | None
    still: int
    box: tuple[float, float, float, float] | None


class VideoJob:
    """The clips of one video and what is measured of them.

    Parameters
    ----------
    path : the video.
    config : the constants.
    start : raw index of the first clip's first frame.
    every : all clips from there to the video's end (the last one padded), or the first alone.
    overlap : raw frames that consecutive clips share, below `frames * stride`.
    crop : True resizes the short side to `config.size` and cuts out the centre; False keeps the
        resolution, less what is left over beyond whole patches (right, left, top and bottom alike).

    Raises
    ------
    VideoError
        If the file cannot be read as a video.
    ValueError
        For `start` past the video's end, or an overlap that leaves no step forward.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: TargetConfig,
        *,
        start: int = 0,
        every: bool = False,
        overlap: int = 0,
        crop: bool = True,
    ) -> None:
        self.path, self.config, self.crop = Path(path), config, crop
        self.info: VideoInfo = probe(path)
        covered = config.frames * config.stride
        if not 0 <= overlap < covered:
            raise ValueError(f"overlap is {overlap}; must be 0 to {covered - 1} raw frames")
        if not 0 <= start < self.info.frames:
            raise ValueError(
                f"start is {start}; {self.path} has the frames 0 to {self.info.frames - 1}"
            )
        starts = [start]
        if every:
            starts = list(range(start, self.info.frames, covered - overlap))
            # Not a clip that the one before covers to the end already.
            while len(starts) > 1 and starts[-2] + covered >= self.info.frames:
                starts.pop()
        self.plans = [ClipPlan.build(config, s, self.info.frames) for s in starts]
        if not crop and config.region == "crop" and self._whole_patches() is None:
            raise ValueError(
                f"{self.path} is {self.info.width}x{self.info.height} px, "
                f"less than one patch of {config.patch}"
            )

    @property
    def pairs(self) -> int:
        """Flows to compute over all clips: what progress counts."""
        return len({pair for plan in self.plans for pair in _raw_pairs(plan)})

    def __iter__(self) -> Iterator[Measured]:
        """Measure clip after clip."""
        return self.measure()

    def measure(self, progress: Callable[[int], Any] | None = None) -> Iterator[Measured]:
        """Measure clip after clip; `progress(n)` is called as n more flows are known."""
        size, whole = self.config.size, self.config.region == "frame" or not self.crop
        clips = iter_clips(
            self.path,
            self.plans,
            short_side=None if whole else size,
            crop=None if whole else size,
        )
        known: dict[tuple[int, int], _Pair] = {}
        for plan, clip in zip(self.plans, clips, strict=True):
            if not self.crop and self.config.region == "crop":
                top, left, height, width = self._whole_patches() or (0, 0, 0, 0)
                frames = clip.frames[:, :, top : top + height, left : left + width].contiguous()
                clip = dataclasses.replace(clip, frames=frames)
            raw = _raw_pairs(plan)
            known = {pair: known[pair] for pair in raw if pair in known}
            known.update(self._solve(clip, plan, [p for p in dict.fromkeys(raw) if p not in known],
                                     progress))  # fmt: skip
            found = [known[pair] for pair in raw]
            cameras = [f.homography for f in found if f.homography is not None]
            yield Measured(
                clip=clip,
                plan=plan,
                flow=torch.stack([f.flow for f in found])
                if found
                else clip.frames.new_zeros((0, 2, *clip.frames.shape[-2:]), dtype=torch.float32),
                homographies=torch.stack(cameras) if cameras else None,
                still=sum(not known[pair].ok for pair in dict.fromkeys(raw)),
                box=self._box(),
            )

    def _solve(
        self,
        clip: Clip,
        plan: ClipPlan,
        wanted: list[tuple[int, int]],
        progress: Callable[[int], Any] | None,
    ) -> dict[tuple[int, int], _Pair]:
        config = self.config
        if not wanted:
            return {}
        place = {raw: i for i, raw in reversed(list(enumerate(plan.frames)))}
        options: dict[str, Any] = {
            "method": config.flow,
            "pairs": [(place[a], place[b]) for a, b in wanted],
            "bound": config.bound,
            "config": config.tvl1,
            "weights": config.weights or None,
            "progress": progress,
        }
        if not config.camera_motion:
            flow = optical_flow(clip.frames, **options)
            return {p: _Pair(f, None, True) for p, f in zip(wanted, flow, strict=True)}
        found = flow_and_camera(clip.frames, detector=config.detector, surf=config.surf, **options)
        camera = found.camera
        return {
            pair: _Pair(
                found.flow[i],
                camera.homographies[i],
                bool(camera.ok[i]) or pair[0] == pair[1],
            )
            for i, pair in enumerate(wanted)
        }

    def _whole_patches(self) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) of the centre that whole patches cover."""
        patch = self.config.patch
        height = self.info.height // patch * patch
        width = self.info.width // patch * patch
        if not height or not width:
            return None
        return (self.info.height - height) // 2, (self.info.width - width) // 2, height, width

    def _box(self) -> tuple[float, float, float, float] | None:
        if self.config.region == "crop":
            return None
        side = min(self.info.height, self.info.width)
        left, top = (self.info.width - side) // 2, (self.info.height - side) // 2
        return float(left), float(top), float(side), float(side)


@dataclass(frozen=True)
class _Pair:
    flow: torch.Tensor
    homography: torch.Tensor | None
    ok: bool


def _raw_pairs(plan: ClipPlan) -> list[tuple[int, int]]:
    return [(plan.frames[a], plan.frames[b]) for a, b in plan.pairs]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes
    ----------
    shapes : of every tensor in the file.
    clips, pairs : how many were made.
    still : pairs whose camera motion could not be found and stayed.
    visible : share of tracks that count, or None without tracks.
    """

    shapes: dict[str, tuple[int, ...]]
    clips: int
    pairs: int
    still: int
    visible: float | None


def write_targets(
    job: VideoJob,
    out: str | os.PathLike[str],
    *,
    measured: Iterable[Measured] | None = None,
    backend: str = "auto",
    progress: Callable[[int], Any] | None = None,
) -> Report:
    """Compute the targets of every clip of `job` and write them as safetensors.

    `measured` are the job's clips where they are measured already.

    The file holds ``position [C, N, D]``, ``shape``, … for C clips, ``visible [C, N, K]`` (their
    validity; ``<name>.valid`` for targets that are not tracked), and ``<name>.mean``,
    ``<name>.std``. Its metadata is one JSON object under ``mme_targets``: format, config, video,
    versions, and of each clip the start, raw frame indices, times (s) and padded steps.

    Raises
    ------
    OSError
        If `out` cannot be written, before any work.
    VideoError
        If a frame cannot be decoded; nothing is written then.
    """
    from safetensors.torch import save_file

    check_writable(out)
    for operation in ("trajectories", "hog", "patch_norm"):
        choose(operation, torch.empty(0), backend)  # what cannot run says so before the work
    make = MotionTargets(job.config, backend=backend)
    made: list[Targets] = []
    clips: list[dict[str, Any]] = []
    still = 0
    for one in job.measure(progress) if measured is None else measured:
        made.append(
            make(
                one.clip.frames[None],
                plan=one.plan,
                flow=one.flow[None],
                crop=None if one.box is None else torch.tensor([one.box]),
                homographies=None if one.homographies is None else one.homographies[None],
            )
        )
        clips.append(
            {
                "start": one.plan.frames[0],
                "frames": one.clip.indices,
                "times": one.clip.times,
                "padded": one.plan.padded,
                "pairs_with_camera_motion_left": one.still,
                "height": one.clip.frames.shape[-2],
                "width": one.clip.frames.shape[-1],
                "crop": one.box,
            }
        )
        still += one.still
    tensors = _tensors(made)
    # One key: safetensors writes several in random order, and two runs should be equal bit for bit.
    metadata = {
        "format": FORMAT,
        "config": job.config.to_dict(),
        "video": {**dataclasses.asdict(job.info), "path": job.path.name},
        "clips": clips,
        "versions": versions(),
    }
    with atomic_path(out) as beside:
        save_file(tensors, beside, metadata={"mme_targets": json.dumps(metadata)})
    seen = tensors.get("visible")
    return Report(
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        clips=len(clips),
        pairs=job.pairs,
        still=still,
        visible=None if seen is None else float(seen.float().mean()),
    )


def _tensors(made: list[Targets]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name in made[0]:
        parts = [clip[name] for clip in made]
        tracked = name in ("position", "shape")
        tensors[name] = torch.cat([p.values for p in parts])
        tensors["visible" if tracked else f"{name}.valid"] = torch.cat([p.valid for p in parts])
        tensors[f"{name}.mean"] = torch.cat([p.mean for p in parts])
        tensors[f"{name}.std"] = torch.cat([p.std for p in parts])
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of a file that `write_targets` wrote.

    Raises
    ------
    ValueError
        If it is another kind of file.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("mme_targets")
    if text is None:
        raise ValueError(f"{path} holds no motion targets: its metadata has no 'mme_targets'")
    metadata: dict[str, Any] = json.loads(text)
    return metadata


def versions() -> dict[str, str]:
    """Versions of what shapes the result."""
    from .doctor import installed

    shaping = ("mme-targets", "torch", "numpy", "av", "opencv")
    found = {name: v for name, v in installed().items() if name.startswith(shaping)}
    return {"python": platform.python_version(), **found}
