"""What happens to a clip's frames before the model and the targets see them (Table 8).

The box is one for the whole clip, so that motion stays motion. Boxes are whole px, within the
frame; a point of the resized crop lies at ``(x + ½)·w/size − ½ + x0`` of the frame, as
`mme_targets.region` has it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from .recipe import ClipConfig

__all__ = ["Box", "crop_box", "flip", "flip_box", "permutation", "resize_crop"]

_OFFSETS = tuple((i, j) for i in range(5) for j in range(5) if i % 2 == j % 2)
"""Where a crop may lie, in quarters of the room that is left: the corners, the middles of the
edges, the centre and the four points between corners and centre."""


class Box(NamedTuple):
    """A part of the frame, px: its corner, width and height."""

    x: int
    y: int
    w: int
    h: int


def crop_box(height: int, width: int, config: ClipConfig, rng: np.random.Generator) -> Box:
    """Choose the part of the frame that the model sees.

    Parameters
    ----------
    height, width : of the frame, px.
    config : "multiscale" draws width and height from `scales` × the frame's shorter side, at most
        one step of the list apart, and one of 13 fixed places (MultiScaleCrop); "center" is the
        largest centred square and draws nothing.
    rng : keyed by the sample.

    Raises
    ------
    ValueError
        If the frame has no pixels.
    """
    short = min(height, width)
    if short < 1:
        raise ValueError(f"the frame is {height}x{width} px; must have at least one pixel")
    if config.crop == "center":
        return Box((width - short) // 2, (height - short) // 2, short, short)
    steps = range(len(config.scales))
    pairs = [(i, j) for i in steps for j in steps if abs(i - j) <= 1]
    pair = pairs[int(rng.integers(len(pairs)))]
    column, row = _OFFSETS[int(rng.integers(len(_OFFSETS)))]
    w, h = (max(1, int(short * config.scales[step])) for step in pair)
    return Box((width - w) * column // 4, (height - h) * row // 4, w, h)


def resize_crop(frames: torch.Tensor, box: Box, size: int) -> torch.Tensor:
    """Cut `box` out of frames [F, 3, H, W] uint8 and resize it: [F, 3, size, size] uint8.

    Bilinear, antialiased where the box is larger than `size`, rounded to whole grey levels.

    Raises
    ------
    ValueError
        If the box does not lie within the frames, or `size` is less than 1.
    """
    height, width = frames.shape[-2:]
    x, y, w, h = box
    if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
        raise ValueError(f"box is {tuple(box)}; must lie within the frame of {width}x{height} px")
    if size < 1:
        raise ValueError(f"size is {size}; must be at least 1 px")
    part = frames[..., y : y + h, x : x + w].contiguous()  # resized faster than a view of it
    if (w, h) == (size, size):
        return part
    return interpolate(part, (size, size), mode="bilinear", antialias=True)


def flip(frames: torch.Tensor) -> torch.Tensor:
    """Mirror frames [..., H, W] left to right."""
    return frames.flip(-1)


def flip_box(box: Box, width: int) -> Box:
    """Where the part of a frame of `width` px that `box` holds lies once the frame is mirrored."""
    return box._replace(x=width - box.x - box.w)


def permutation(frames: int, rng: np.random.Generator) -> tuple[int, ...]:
    """An order of `frames` frames, every one as likely (Fig. 3)."""
    return tuple(int(i) for i in rng.permutation(frames))
