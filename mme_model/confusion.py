"""The confusion picture: which classes are taken for which."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mme_targets.files import atomic_path, check_writable

__all__ = ["confused_pairs", "draw_confusion"]

NAMED, COUNTED = 60, 24
"""Most classes whose names stand at the axes, and whose counts stand in the cells."""
PAIRS = 24
DPI = 150
INK, GREY = "#333333", "#777777"


def confused_pairs(counts: npt.NDArray[np.int64], most: int = PAIRS) -> list[tuple[int, int, int]]:
    """(true, predicted, videos) of the commonest mistakes, at most `most`."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(i) // len(wrong), int(i) % len(wrong)) for i in order]
    return [(a, b, int(wrong[a, b])) for a, b in pairs if wrong[a, b]]


def draw_confusion(
    counts: npt.NDArray[np.int64],
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> None:
    """Write the matrix of [true, predicted] counts as a PNG.

    A cell's colour is the share of its row, on a square-root scale so that rare mistakes show.
    With up to 24 classes the counts stand in the cells, with up to 60 the names at the axes. With
    more than 24 the commonest mistakes are listed beside the matrix, whose cells are 3 px or more
    up to 600 classes.

    Raises
    ------
    ValueError
        If `counts` is not square with one row a class, or there is none.
    OSError
        If `path` cannot be written.
    """
    count = len(classes)
    if counts.shape != (count, count) or not count:
        raise ValueError(f"counts is {list(counts.shape)}; must be [{count}, {count}], 1 or more")
    check_writable(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    named, counted, listed = count <= NAMED, count <= COUNTED, count > COUNTED
    font = 8.0 if counted else 5.5
    labels = [_short(name, 34) for name in classes]
    cell = max(0.34, 2.6 / count) if counted else 0.13 if named else _pixels(count) / DPI
    side = cell * count
    margin = 0.45 + (max(map(len, labels)) * font * 0.0085 if named else 0.25)
    pairs = confused_pairs(counts) if listed else []
    panel = 4.9 if listed else 0.75
    bottom = 0.15
    wide = margin + side + panel + 0.3
    words = textwrap.wrap(title, int(wide * 12))
    top = 0.4 + 0.16 * len(words)
    tall = max(side + margin + top + bottom, len(pairs) * 0.3 + 1.5 if pairs else 0.0)
    figure = Figure(figsize=(wide, tall), dpi=DPI, facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)
    low = tall - top - side
    axes = figure.add_axes((margin / wide, low / tall, side / wide, side / tall))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(
        share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="auto"
    )
    _axes(axes, count, labels if named else None, font)
    if counted:
        for row, column in np.argwhere(counts):
            dark = share[row, column] > 0.4
            axes.text(column, row, str(counts[row, column]), ha="center", va="center",
                      fontsize=7, color="white" if dark else INK)  # fmt: skip
    figure.text(0.15 / wide, 1 - 0.15 / tall, "\n".join(words), fontsize=9, color=INK, va="top")
    bar_left = margin + side + 0.15
    bar = figure.add_axes((bar_left / wide, (tall - top - min(side, 2.0)) / tall,
                           0.1 / wide, min(side, 2.0) / tall))  # fmt: skip
    scale = figure.colorbar(image, cax=bar, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    scale.ax.set_yticklabels(["0", "1 %", "10 %", "25 %", "50 %", "100 %"])
    scale.ax.tick_params(labelsize=6, colors=INK, length=2)
    scale.outline.set_visible(False)
    if pairs:
        _list_pairs(figure, pairs, counts, classes, (margin + side + 0.85, tall - top))
    with atomic_path(path) as beside:
        canvas.print_png(str(beside), metadata={"Software": None})


def _pixels(count: int) -> int:
    """Side of a cell, a whole number of px so that all cells are alike."""
    return int(np.clip(1800 // count, 2, 8))


def _axes(axes: Any, count: int, labels: Sequence[str] | None, font: float) -> None:
    axes.set_xlabel("predicted class", fontsize=8, color=INK)
    axes.set_ylabel("true class", fontsize=8, color=INK)
    if labels is None:
        step = 10 if count <= 250 else 25 if count <= 500 else 50
        places = list(range(0, count, step))
        axes.set_xticks(places, [str(p) for p in places], rotation=90)
        axes.set_yticks(places, [str(p) for p in places])
        axes.tick_params(labelsize=6, colors=INK, length=2, width=0.5)
        axes.grid(color="#dddddd", linewidth=0.3)
        axes.set_axisbelow(False)
    else:
        axes.set_xticks(range(count), labels, rotation=90)
        axes.set_yticks(range(count), labels)
        axes.tick_params(labelsize=font, colors=INK, length=0)
    for line in axes.spines.values():
        line.set_color("#bbbbbb")


def _list_pairs(
    figure: Any,
    pairs: Sequence[tuple[int, int, int]],
    counts: npt.NDArray[np.int64],
    classes: Sequence[str],
    corner: tuple[float, float],
) -> None:
    """The commonest mistakes from `corner` (inches from the lower left) down."""
    wide, tall = figure.get_size_inches()
    left, y = corner
    figure.text(left / wide, (y - 0.08) / tall, "Commonest mistakes", fontsize=8, color=INK,
                weight="bold", va="center")  # fmt: skip
    y -= 0.36
    for true, predicted, number in pairs:
        whole = int(counts[true].sum())
        head = f"{true} {_short(classes[true], 46)}"
        tail = f"{number} of {whole} → {predicted} {_short(classes[predicted], 44)}"
        figure.text(left / wide, y / tall, head, fontsize=6, color=INK, va="center")
        figure.text((left + 0.12) / wide, (y - 0.115) / tall, tail, fontsize=6, color=GREY,
                    va="center")  # fmt: skip
        y -= 0.29


def _short(name: str, most: int) -> str:
    """At most `most` characters, and nothing that Matplotlib would read as mathematics."""
    plain = " ".join(name.split())
    if len(plain) > most:
        words = plain[:most].rsplit(" ", 1)[0]
        plain = (words if len(words) > most // 2 else plain[: most - 1]) + "…"
    return plain.replace("$", r"\$")
