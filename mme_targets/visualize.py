"""What Figs. 4, 6 and 10 show: tracks over the frame, dark to light in time, invisible ones blue.

Pictures (`draw_tracks`, `save_png`), a video in which tracks grow (`save_video`), and a page to
explore them (`save_html`). Points are `(x, y)` px of the frames, pixel centres are integers.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .files import atomic_path, check_writable, write_video
from .plan import ClipPlan
from .video import Clip

__all__ = ["INVISIBLE", "RAMP", "Tracks", "draw_tracks", "save_html", "save_png", "save_video"]

RAMP = ((112, 0, 30), (189, 21, 30), (244, 96, 32), (254, 190, 82), (255, 248, 206))
"""Colours of a track, RGB, from its first step to its last, evenly spaced."""
INVISIBLE = (51, 136, 255)
"""Colour of tracks that leave the frame (Fig. 6)."""
STILL = 1.0
"""px; tracks whose steps add up to less are drawn as dots."""

Bytes = npt.NDArray[np.uint8]


class Tracks(NamedTuple):
    """Tracks of one clip, on any device.

    Attributes
    ----------
    points : [S, Gy, Gx, L+1, 2] float, px of the clip's frames.
    visible : [S, Gy, Gx] bool.
    plan : says on which decoded frame each point lies.
    """

    points: torch.Tensor
    visible: torch.Tensor
    plan: ClipPlan

    def frames_of(self, start: int) -> tuple[int, ...]:
        """(L+1,) positions in the clip's frames of the points of the tracks from `start`."""
        steps = self.plan.steps[start]
        if not steps:
            return self.plan.hog[start]
        return (*self.plan.hog[start], self.plan.pairs[steps[-1]][1])


def draw_tracks(
    frame: torch.Tensor,
    points: torch.Tensor,
    visible: torch.Tensor,
    *,
    scale: int = 3,
    show_still: bool = False,
    show_invisible: bool = True,
    length: int | None = None,
) -> Bytes:
    """Draw tracks over one frame.

    Parameters
    ----------
    frame : [3, H, W] uint8, RGB.
    points : [..., L+1, 2], px.
    visible : [...] bool.
    scale : the frame is enlarged by this, so that lines are crisp.
    show_still : draw tracks shorter than a pixel as well, which are small dots otherwise.
    show_invisible : draw invisible tracks, in blue.
    length : steps over which the colours run, where `points` holds only the first few; None is L.

    Returns
    -------
    [H * scale, W * scale, 3] uint8, RGB.
    """
    if frame.ndim != 3 or frame.shape[0] != 3 or frame.dtype != torch.uint8:
        raise ValueError(f"frame is {frame.dtype} {list(frame.shape)}; must be uint8 [3, H, W]")
    if points.ndim < 2 or points.shape[-1] != 2 or points.shape[:-2] != visible.shape:
        raise ValueError(
            f"points is {list(points.shape)} and visible {list(visible.shape)}; "
            "must be [..., L+1, 2] and [...]"
        )
    if scale < 1:
        raise ValueError(f"scale is {scale}; must be at least 1")
    path = points.detach().reshape(-1, *points.shape[-2:]).double().cpu().numpy()
    seen = visible.detach().reshape(-1).bool().cpu().numpy()
    return _draw(_enlarge(frame, scale), path, seen, scale, show_still, show_invisible, length)


def save_png(clip: Clip, tracks: Tracks, path: str | os.PathLike[str]) -> None:
    """One panel for each start of tracks: its first frame, the tracks, and where it lies in time.

    Raises
    ------
    OSError
        If `path` cannot be written; before any drawing.
    ValueError
        If `tracks` does not fit `clip`.
    """
    check_writable(path)
    tracks = _checked(clip, tracks)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    starts = len(tracks.points)
    columns = min(4, starts)
    rows = -(-starts // columns)
    height, width = clip.frames.shape[2:]
    # Enlarged so that lines are crisp, yet a picture that opens anywhere.
    scale = max(2 if columns * width <= 4000 else 1, min(12, round(760 / width)))
    inches = width * scale / 200
    head, foot, title = 0.42, 0.42, 0.34
    size = (
        columns * inches + 0.1 * (columns + 1),
        rows * (inches * height / width + head) + foot + title,
    )
    figure = Figure(figsize=size, dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    text: dict[str, Any] = {
        "color": "#333333",
        "family": "DejaVu Sans",
        "fontsize": min(9.0, inches * 3.2),
    }
    for start in range(starts):
        row, column = divmod(start, columns)
        first = tracks.frames_of(start)[0]
        picture = draw_tracks(
            clip.frames[first], tracks.points[start], tracks.visible[start], scale=scale
        )
        left = (0.1 + column * (inches + 0.1)) / size[0]
        top = 1 - (title + row * (inches * height / width + head) + head) / size[1]
        box = (left, top - inches * height / width / size[1], inches / size[0])
        axes = figure.add_axes((*box, inches * height / width / size[1]))
        axes.imshow(picture, interpolation="none", aspect="auto")
        axes.set_axis_off()
        caption = f"frame {clip.indices[first]}  ·  {clip.times[first]:.3f} s"
        figure.text(left, top + 0.08 / size[1], caption, va="bottom", **text)
    name = Path(clip.path).name
    bold = text | {"weight": "bold"}
    figure.text(0.1 / size[0], 1 - 0.16 / size[1], name, va="top", **bold)
    _legend(figure, size, text)
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png")


def save_video(
    clip: Clip, tracks: Tracks, path: str | os.PathLike[str], *, scale: int | None = None
) -> None:
    """The decoded frames at their own times, with tracks that grow over them (MP4).

    Tracks of a start stay, once whole, until the next start. `scale`: as `draw_tracks`; None
    makes the short side about 448 px, or twice what it is.

    Raises
    ------
    OSError
        If `path` cannot be written; before any drawing.
    ValueError
        If `tracks` does not fit `clip`.
    """
    check_writable(path)
    tracks = _checked(clip, tracks)
    if scale is None:
        short = min(clip.frames.shape[2:])
        scale = max(2 if short <= 540 else 1, round(448 / short))
    count = len(dict.fromkeys(clip.indices))  # past the video's end the last frame repeats
    pictures = []
    length = tracks.points.shape[3] - 1
    for position in range(count):
        picture = _enlarge(clip.frames[position], scale)
        for start in _shown(tracks, position):
            steps = sum(frame <= position for frame in tracks.frames_of(start))
            path_ = tracks.points[start, :, :, :steps].reshape(-1, steps, 2)
            picture = _draw(
                picture,
                path_.double().cpu().numpy(),
                tracks.visible[start].reshape(-1).cpu().numpy(),
                scale,
                False,
                True,
                length,
            )
        pictures.append(torch.from_numpy(picture).permute(2, 0, 1))
    times = clip.times[:count]
    steady = all(b > a for a, b in pairwise(times))
    write_video(path, torch.stack(pictures), fps=clip.fps, times=times if steady else None, crf=14)


def save_html(
    clip: Clip,
    tracks: Tracks,
    hog: torch.Tensor | None,
    path: str | os.PathLike[str],
    *,
    quality: int = 88,
) -> None:
    """One page that needs nothing else: the clip to play and scrub, tracks, HOG on hover.

    Parameters
    ----------
    clip, tracks : what to show.
    hog : [S, Gy, Gx, Lh, C, bins] along the tracks (Lh = L, or 1 at L = 0); None leaves it out.
        Kept to 8 bits of each track's largest value.
    path : the file.
    quality : of the frames as JPEG, 1 to 100.

    Raises
    ------
    OSError
        If `path` cannot be written; before any drawing.
    ValueError
        If `tracks` or `hog` does not fit `clip`.
    """
    check_writable(path)
    tracks = _checked(clip, tracks)
    if hog is not None and (hog.ndim != 6 or hog.shape[:3] != tracks.points.shape[:3]):
        raise ValueError(
            f"hog is {list(hog.shape)}; must be [S, Gy, Gx, L, C, bins], the first three "
            f"{list(tracks.points.shape[:3])}"
        )
    from .page import render_page

    text = render_page(clip, tracks, hog, quality)
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _checked(clip: Clip, tracks: Tracks) -> Tracks:
    """`tracks`, with those that reach past the video's end invisible."""
    points, visible, plan = tracks
    if points.ndim != 5 or points.shape[-1] != 2 or len(points) != plan.starts:
        raise ValueError(
            f"tracks.points is {list(points.shape)}; must be [{plan.starts}, Gy, Gx, L+1, 2]"
        )
    if visible.shape != points.shape[:3]:
        raise ValueError(
            f"tracks.visible is {list(visible.shape)}; must be {list(points.shape[:3])}"
        )
    if points.shape[3] != len(plan.steps[0]) + 1:
        raise ValueError(
            f"tracks.points holds {points.shape[3]} points a track; "
            f"the plan's tracks have {len(plan.steps[0]) + 1}"
        )
    if tuple(clip.indices) != plan.frames:
        raise ValueError("clip holds other frames than tracks.plan")
    whole = torch.tensor([not any(row) for row in plan.padded], device=visible.device)
    return tracks._replace(visible=visible & whole[:, None, None])


def _shown(tracks: Tracks, position: int) -> list[int]:
    """Starts whose tracks show at a frame: those still growing, or else the newest."""
    begun = [s for s in range(len(tracks.points)) if tracks.frames_of(s)[0] <= position]
    growing = [s for s in begun if tracks.frames_of(s)[-1] >= position]
    return growing or begun[-1:]


def _enlarge(frame: torch.Tensor, scale: int) -> Bytes:
    """[h, w, 3], `scale` times the size, dimmed."""
    import cv2

    picture = np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy())
    # A little darker, so that the light ends of tracks show on white, too.
    picture = np.rint(picture * 0.82).astype(np.uint8)
    height, width = picture.shape[:2]
    size = (width * scale, height * scale)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def _draw(
    picture: Bytes,
    path: npt.NDArray[np.float64],
    seen: npt.NDArray[np.bool_],
    scale: int,
    show_still: bool,
    show_invisible: bool,
    length: int | None,
) -> Bytes:
    """Draw `path` [R, l+1, 2] into `picture`, which is changed and returned."""
    import cv2

    path = np.nan_to_num(path, nan=-1e4, posinf=-1e4, neginf=-1e4)  # far outside, never drawn
    shift = 4
    one = 1 << shift
    # The centre of pixel 0 of the frame lies at (scale - 1) / 2 of the picture.
    place = np.rint((path * scale + (scale - 1) / 2) * one).clip(-1 << 24, 1 << 24).astype(np.int32)
    steps = path.shape[1] - 1
    moved = np.linalg.norm(np.diff(path, axis=1), axis=-1).sum(1) >= STILL
    length = steps if length is None else length
    width = max(1, round(scale * 0.55))
    dot = max(one, round(scale * one * 0.38))

    def dots(which: npt.NDArray[np.bool_], at: int, radius: int, colour: tuple[int, ...]) -> None:
        for x, y in place[which, at].tolist():
            cv2.circle(picture, (x, y), radius, colour, cv2.FILLED, cv2.LINE_AA, shift)

    still = ~moved & ~np.full_like(moved, show_still)
    if show_invisible:
        dots(still & ~seen, steps, dot, INVISIBLE)
    dots(still & seen, steps, dot, ramp(0.35))
    kinds: list[tuple[npt.NDArray[np.bool_], tuple[int, int, int] | None]] = [(seen & ~still, None)]
    if show_invisible:
        kinds.insert(0, (~seen & ~still, INVISIBLE))
    for which, fixed in kinds:
        for step in range(steps):
            colour = fixed or ramp((step + 0.5) / length)
            lines = list(place[which, step : step + 2])
            if lines:
                cv2.polylines(picture, lines, False, colour, width, cv2.LINE_AA, shift)
        head = fixed or ramp(steps / length if length else 1.0)
        dots(which, steps, round(scale * one * 0.5), head)
    return picture


def ramp(at: float) -> tuple[int, int, int]:
    """The colour of a track at `at` of its length, 0 to 1."""
    place = min(max(at, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    a, b, share = RAMP[low], RAMP[low + 1], place - low
    red, green, blue = (round(u + (v - u) * share) for u, v in zip(a, b, strict=True))
    return red, green, blue


def _legend(figure: Any, size: tuple[float, float], text: dict[str, Any]) -> None:
    """The colours of time, and of tracks that leave, below the panels."""
    y, bar = 0.2 / size[1], 0.12 / size[1]
    right = 1 - 0.1 / size[0]
    unit = text["fontsize"] / 72 / size[0]

    def swatch(left: float, wide: float, colours: Bytes) -> None:
        axes = figure.add_axes((left, y - bar / 2, wide, bar))
        axes.imshow(colours[None], aspect="auto", interpolation="bilinear")
        axes.set_axis_off()

    figure.text(right, y, "leaves the frame", va="center", ha="right", **text)
    swatch(right - 10.6 * unit, 1.2 * unit, np.array([INVISIBLE], np.uint8))
    colours = np.array([ramp(i / 63) for i in range(64)], np.uint8)
    figure.text(right - 12 * unit, y, "last step", va="center", ha="right", **text)
    swatch(right - 22.4 * unit, 5 * unit, colours)
    figure.text(right - 22.9 * unit, y, "first", va="center", ha="right", **text)
