"""From measured flow to a picture, a video or a page of tracks, by the name of the file."""

from __future__ import annotations

import os
from pathlib import Path

from .config import TargetConfig
from .extract import Measured
from .ops.descriptors import trajectory_hog
from .ops.trajectories import trajectories
from .targets import histogram_options
from .visualize import Tracks, save_html, save_png, save_video

KINDS = (".png", ".mp4", ".html")


def check_kind(path: str | os.PathLike[str]) -> None:
    """Raise `ValueError` unless the name ends in one of `KINDS`."""
    if Path(path).suffix.lower() not in KINDS:
        raise ValueError(f"{path} must end in {', '.join(KINDS)}: the ending says what to draw")


def save(
    one: Measured, config: TargetConfig, path: str | os.PathLike[str], backend: str = "auto"
) -> float:
    """Draw the tracks of one clip (Figs. 4 and 6) as `path` ends: .png, .mp4 or .html.

    Returns the share of tracks that stay in view.

    Raises
    ------
    ValueError
        For another ending.
    OSError
        If the file cannot be written.
    """
    check_kind(path)
    found = trajectories(
        one.flow,
        grid=config.grid,
        steps=one.plan.steps,
        bound=config.bound,
        median=config.median,
        sampling=config.sampling,
        backend=backend,
    )
    tracks = Tracks(found.points, found.visible, one.plan)
    kind = Path(path).suffix.lower()
    if kind == ".png":
        save_png(one.clip, tracks, path)
    elif kind == ".mp4":
        save_video(one.clip, tracks, path)
    else:
        hog = trajectory_hog(
            one.clip.frames,
            found.points,
            one.plan.hog,
            sampling=config.shape,
            **histogram_options(config)._asdict(),
            backend=backend,
        )
        save_html(one.clip, tracks, hog, path)
    return float(found.visible.float().mean())
