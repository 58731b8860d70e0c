"""The sheet of Figs. 4, 10 and 11: masked frame, true tracks, predicted tracks, frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from mme_targets.files import atomic_path, check_writable
from mme_targets.visualize import draw_tracks

if TYPE_CHECKING:
    from .reconstruct import Reconstruction

__all__ = ["COLUMNS", "draw_sheet"]

COLUMNS = ("masked frame", "true tracks", "predicted tracks", "frame")
GREY = 128
"""Of masked patches."""
DPI = 200
GAP, LABEL, HEAD = 0.06, 0.24, 0.3
"""Inches between panels, above a row, and for the columns' names."""

Bytes = npt.NDArray[np.uint8]


def draw_sheet(
    reconstructions: Sequence[Reconstruction],
    path: str | os.PathLike[str] | None = None,
    *,
    rows: int = 4,
    panel: int = 672,
    note: str = "",
) -> Bytes:
    """Draw clips below one another, some tubelets of each.

    Tracks go from dark to light in time, on masked patches alone; those that are not valid are
    left out of both columns. Below each clip stands how far predicted ends are from the true ones.

    Parameters
    ----------
    reconstructions : one or more clips.
    path : a .png to write, or None.
    rows : tubelets of a clip, spread evenly over those that show a track.
    panel : px of a panel's side, about: frames are enlarged a whole number of times.
    note : a line at the foot.

    Returns
    -------
    uint8 [H, W, 3], RGB: the sheet.

    Raises
    ------
    OSError
        If `path` cannot be written; before any drawing.
    ValueError
        If there is nothing to draw, or `rows` is below 1.
    """
    if not reconstructions:
        raise ValueError("reconstructions is empty; a sheet needs at least one")
    if rows < 1:
        raise ValueError(f"rows is {rows}; must be at least 1")
    if path is not None:
        check_writable(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    height, width = reconstructions[0].frames.shape[2:]
    scale = max(1, round(panel / width))
    across, down = width * scale / DPI, height * scale / DPI
    text: dict[str, Any] = {"color": "#333333", "family": "DejaVu Sans",
                            "fontsize": min(9.0, across * 3.6)}  # fmt: skip
    line = text["fontsize"] / 72 * 1.45
    notes = [_caption(one) for one in reconstructions]
    chosen = [_rows(one, rows) for one in reconstructions]
    foot = (
        "Tracks run from dark to light, on masked patches alone; those that leave the frame or the "
        "video are left out.\n"
        f"Predictions are scaled by the true mean and deviation of their patch. {note}"
    )
    size = (
        len(COLUMNS) * (across + GAP) + GAP,
        HEAD
        + sum(len(shown) * (down + LABEL) for shown in chosen)
        + sum((caption.count("\n") + 1) * line + 0.22 for caption in notes)
        + (foot.count("\n") + 1) * line
        + 0.1,
    )
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)

    def write(x: float, y: float, words: str, **more: Any) -> None:
        figure.text(x / size[0], 1 - y / size[1], words, **(text | more))

    for column, title in enumerate(COLUMNS):
        write(GAP + column * (across + GAP) + across / 2, HEAD / 2 + 0.04, title,
              ha="center", va="center", weight="bold")  # fmt: skip
    top = HEAD
    for one, shown, caption in zip(reconstructions, chosen, notes, strict=True):
        for start in shown:
            write(GAP, top + LABEL - 0.05, one.times[start], va="bottom")
            top += LABEL
            for column, image in enumerate(_panels(one, start, scale)):
                left = GAP + column * (across + GAP)
                box = (left / size[0], 1 - (top + down) / size[1],
                       across / size[0], down / size[1])  # fmt: skip
                axes = figure.add_axes(box)
                axes.imshow(image, interpolation="none", aspect="auto")
                axes.set_axis_off()
            top += down
        write(GAP, top + 0.08, caption, va="top", linespacing=1.3)
        top += (caption.count("\n") + 1) * line + 0.22
    write(GAP, top, foot, va="top", linespacing=1.3, color="#777777")
    canvas.draw()
    picture: Bytes = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    if path is not None:
        with atomic_path(path) as beside:
            imsave(beside, picture, format="png")
    return picture


def _caption(one: Reconstruction) -> str:
    apart = one.distances
    name = f"{one.name}: " if one.name else ""
    if not apart.tracks:
        return f"{name}no track of a masked patch stays in the frame and in the video."
    return (
        f"{name}predicted ends are {apart.predicted:.2f} px from the true ones, in the mean of the "
        f"clip's {apart.tracks} tracks;\n"
        f"predicting zero, {apart.zero:.2f} px; the true tracks go {apart.still:.2f} px."
    )


def _rows(one: Reconstruction, rows: int) -> list[int]:
    """Tubelets to show, evenly spread over those with a track, or over all if none has."""
    some = one.shown.flatten(1).any(dim=1).nonzero()[:, 0].tolist() or list(range(len(one.frames)))
    places = np.linspace(0, len(some) - 1, min(rows, len(some)))
    return [some[round(place)] for place in places.tolist()]


def _panels(one: Reconstruction, start: int, scale: int) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """The four pictures of a tubelet, [H · scale, W · scale, 3]."""
    frame = one.frames[start]
    true, predicted = (
        draw_tracks(frame, points[start], one.shown[start], scale=scale, show_invisible=False)
        for points in (one.true, one.predicted)
    )
    plain = _enlarged(frame, scale)
    hidden = plain.copy()
    side = frame.shape[2] // one.masked.shape[2] * scale
    hidden[np.kron(one.masked[start].numpy(), np.ones((side, side), bool))] = GREY
    return hidden, true, predicted, plain


def _enlarged(frame: torch.Tensor, scale: int) -> Bytes:
    import cv2

    picture = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
    size = (picture.shape[1] * scale, picture.shape[0] * scale)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC), np.uint8)
