"""`mme demo`: a scene whose motion is known, through the whole of it, and how far off it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .config import TargetConfig
from .extract import Report, VideoJob, write_targets
from .ops.trajectories import trajectories
from .show import save
from .synthetic import render_scene, write_video

SIZE = 160
MARGIN = 6.0
"""px; flow is not judged nearer than this to where one thing hides another."""


@dataclass(frozen=True)
class Accuracy:
    """Distance of tracks from the truth after L steps, px.

    Attributes
    ----------
    what : the tracks judged.
    count : how many.
    moved : median length of the true motion.
    median, p90 : of the distance.
    within : share of tracks within one pixel.
    """

    what: str
    count: int
    moved: float
    median: float
    p90: float
    within: float


@dataclass(frozen=True)
class Demo:
    """Files written and figures measured."""

    video: Path
    targets: Path
    page: Path
    picture: Path
    report: Report
    accuracy: tuple[Accuracy, ...]


def demo_config() -> TargetConfig:
    """The paper's, on a small frame; the scene's camera stands still, so none is removed."""
    return TargetConfig.paper(size=SIZE, camera_motion=False)


def run(folder: Path, progress: Callable[[int], Any] | None = None) -> Demo:
    """Render the scene to a video, make targets and pictures of it, and judge the tracks.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = demo_config()
    scene = render_scene(64, SIZE, camera=False)
    video = folder / "demo.mp4"
    write_video(video, scene.frames, fps=25.0)
    targets, page, picture = (folder / f"demo.{kind}" for kind in ("safetensors", "html", "png"))
    job = VideoJob(video, config)
    # One pass over the video serves the file, the pictures and the judgement.
    (one,) = job.measure(progress)
    report = write_targets(job, targets, measured=[one])
    save(one, config, page)
    save(one, config, picture)

    tracked = trajectories(one.flow, grid=config.grid, steps=one.plan.steps, bound=config.bound)
    errors, true_motion, on_object = [], [], []
    for start, seeds in enumerate(tracked.points[:, :, :, 0]):
        frame = one.plan.frames[one.plan.hog[start][0]]
        points = seeds.double()
        truth = scene.track(points, frame, config.length)
        good = scene.clear(points, frame, config.length, MARGIN) & tracked.visible[start]
        end = tracked.points[start, :, :, -1].double()
        errors.append((end - truth[..., -1, :]).norm(dim=-1)[good])
        true_motion.append((truth[..., -1, :] - truth[..., 0, :]).norm(dim=-1)[good])
        on_object.append((scene.layer(points, frame) > 0)[good])
    error, moved, mine = (torch.cat(parts) for parts in (errors, true_motion, on_object))
    return Demo(
        video,
        targets,
        page,
        picture,
        report,
        (_accuracy("all", error, moved), _accuracy("on moving things", error[mine], moved[mine])),
    )


def _accuracy(what: str, error: torch.Tensor, moved: torch.Tensor) -> Accuracy:
    return Accuracy(
        what=what,
        count=len(error),
        moved=float(moved.median()),
        median=float(error.median()),
        p90=float(error.quantile(0.9)),
        within=float((error < 1).float().mean()),
    )
