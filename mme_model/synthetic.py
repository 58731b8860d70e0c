"""Built-in videos: a textured thing that moves in one of eight ways before a panning background.

Pre-training needs no data with them, and telling their classes apart needs motion: textures,
colours, speeds, and where the thing is and how large in the middle of a video are drawn alike for
every class, and each class is the time reversal of its opposite. So the frames of a clip, if it
lies anywhere in the video with equal chance, tell nothing of the direction without their order.

Motion along the diagonals is avoided in the background: where x and y displacements are all alike,
normalising them per patch leaves nothing but the flow's noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import grid_sample

from mme_targets.synthetic import affine, reach, shaped, waves

from . import keys

__all__ = ["CLASSES", "SyntheticVideos"]

CLASSES = ("left", "right", "up", "down", "clockwise", "anticlockwise", "grow", "shrink")
"""How the thing moves, as seen on the screen; a label is a place in this list."""

_DENSITY = 2
"""Texels a pixel, so that bilinear reading keeps the finest waves."""
_SIZE = 128
"""Side that speeds and sizes below are stated for, px; other sides scale them."""


class SyntheticVideos:
    """Videos made as they are read; the same (seed, index, held_out) gives the same frames.

    Parameters
    ----------
    count : how many; the classes take turns.
    seed : of textures and motion.
    frames : length of each.
    size : side of the square frames, px. Speeds scale with it: on 128 px the thing moves by 1 to
        3 px a frame, at its rim where it turns or grows, and the background by 0.25 to 0.5 px.
    held_out : other videos than those of training.

    Raises
    ------
    ValueError
        If an argument is outside its range.
    """

    classes = CLASSES

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        frames: int = 64,
        size: int = 128,
        held_out: bool = False,
    ) -> None:
        for name, value, low in (("count", count, 1), ("frames", frames, 2), ("size", size, 32)):
            if value < low:
                raise ValueError(f"{name} is {value}; must be at least {low}")
        self.count, self.seed, self.length, self.size = count, seed, frames, size
        self.held_out = held_out

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Such as "synthetic/000123 (left)"."""
        part = "synthetic-held-out" if self.held_out else "synthetic"
        return f"{part}/{index:06d} ({CLASSES[self.label(index)]})"

    def label(self, index: int) -> int:
        """The class of motion, a place in `classes`."""
        if not 0 <= index < self.count:
            raise IndexError(f"index is {index}; must lie in 0 to {self.count - 1}")
        return index % len(CLASSES)

    def frames(self, index: int) -> int:
        """The length, the same for all."""
        return self.length

    def read(self, index: int, indices: Sequence[int]) -> torch.Tensor:
        """Render frames [F, 3, size, size] uint8 RGB; `indices` lie within the video."""
        if not indices or not all(0 <= i < self.length for i in indices):
            raise ValueError(
                f"indices is {list(indices)}; must be frames 0 to {self.length - 1}, at least one"
            )
        scene = _Scene(self, index)
        # Frame by frame: none depends on which others are asked for.
        drawn = {i: scene.draw(i) for i in sorted(set(indices))}
        return torch.stack([drawn[i] for i in indices])


class _Scene:
    """What one video shows."""

    def __init__(self, videos: SyntheticVideos, index: int) -> None:
        purpose = "held-out video" if videos.held_out else "video"
        rng = keys.rng(videos.seed, 0, index, purpose)
        self.size = size = videos.size
        self.middle = (videos.length - 1) / 2
        scale = size / _SIZE
        label = CLASSES[videos.label(index)]

        # All are drawn for every class, so that none tells of it.
        travel = min(rng.uniform(0.45, 0.6) * size / (2 * self.middle), 2.0 * scale)
        turn = rng.uniform(0.045, 0.058)
        growth = min(rng.uniform(0.55, 0.7) / self.middle, 0.04)
        self.centre = (size - 1) / 2 + rng.uniform(-0.08, 0.08, 2) * size
        self.velocity = np.array(_DIRECTION.get(label, (0.0, 0.0))) * travel
        self.turn = turn * {"clockwise": 1, "anticlockwise": -1}.get(label, 0)
        self.growth = growth * {"grow": 1, "shrink": -1}.get(label, 0)
        axis = rng.integers(4) * math.pi / 2 + math.radians(rng.uniform(-25, 25))
        self.pan = rng.uniform(0.25, 0.5) * scale * np.array([math.cos(axis), math.sin(axis)])

        self.radius = rng.uniform(0.34, 0.4) * size
        side = 2 * (math.ceil(self.radius * _DENSITY * _BULGE) + 3)
        self.thing = torch.stack(
            [_texture(rng, side, scale), _outline(rng, side, self.radius * _DENSITY)]
        )
        ground = 64 * math.ceil(1.3 * _DENSITY * size / 64)  # repeats after 1.3 frames or more
        self.ground = _texture(rng, ground, scale)
        self.colours = [_colours(rng), _colours(rng)]

    def draw(self, frame: int) -> torch.Tensor:
        """[3, size, size] uint8."""
        time = frame - self.middle
        picture = self._coloured(self._behind(time), 0)
        angle, scale = self.turn * time, math.exp(self.growth * time)
        matrix = scale * torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
            dtype=torch.float64,
        )
        shift = torch.from_numpy(self.centre + self.velocity * time)
        rows, columns = reach(matrix, shift, self.radius * _BULGE, self.size, self.size)
        back = torch.linalg.inv(matrix)
        texels = self.thing.shape[-1] / 2 / _DENSITY  # px from the middle to the edge
        at = affine(back / texels, -back @ shift / texels, rows, columns)
        grid = at.permute(1, 2, 0)[None].float()
        pattern, cover = grid_sample(self.thing[None], grid, align_corners=False)[0]
        part = picture[:, rows, columns]
        part += cover * (self._coloured(pattern, 1) - part)
        return picture.round_().clamp_(0, 255).to(torch.uint8)

    def _behind(self, time: float) -> torch.Tensor:
        """[size, size]: the background's pattern, which repeats, moved and read bilinearly."""
        side = len(self.ground)
        seen = self.ground
        for axis, moved in ((0, self.pan[1]), (1, self.pan[0])):
            first = -moved * time * _DENSITY
            whole = math.floor(first)
            near = (torch.arange(self.size) * _DENSITY + whole) % side
            rest = first - whole
            seen = (
                seen.index_select(axis, near) * (1 - rest)
                + seen.index_select(axis, (near + 1) % side) * rest
            )
        return seen

    def _coloured(self, pattern: torch.Tensor, layer: int) -> torch.Tensor:
        base, gain = self.colours[layer]
        return base + gain * pattern


_DIRECTION = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_BULGE = 1.2
"""Farthest edge of the thing, in radii."""


def _texture(rng: np.random.Generator, side: int, scale: float) -> torch.Tensor:
    """[side, side]: stripes that bend and break, about 8 to 11 px from one to the next; it repeats.

    Mostly waves of one direction, so that a hidden part is to be guessed from its neighbours; the
    rest, of all directions, lets flow see motion along the stripes.
    """
    noise = torch.from_numpy(rng.standard_normal((side, side), dtype=np.float32))
    length = rng.uniform(8, 11) * scale * _DENSITY
    angle = rng.uniform(0, math.pi)
    x, y = waves(side)
    radius = (x**2 + y**2).sqrt() + 1e-9
    band = torch.exp(-((torch.log(radius * length) / 0.2) ** 2))
    # Squared sine of the angle to the waves' direction: opposite directions are one.
    off = ((x * math.sin(angle) - y * math.cos(angle)) / radius) ** 2
    directed = torch.exp(-off / 0.03)
    return shaped(noise, band * (directed + 0.06)).clamp(-2.5, 2.5)


def _outline(rng: np.random.Generator, side: int, radius: float) -> torch.Tensor:
    """[side, side] cover of a rounded shape around the middle, its edge a pixel soft."""
    two, three = rng.uniform(0, 0.12), rng.uniform(0, 0.08)
    first, second = rng.uniform(0, 2 * math.pi, 2)
    line = torch.arange(side) - (side - 1) / 2
    turn = torch.atan2(line[:, None], line[None])
    edge = 1 + two * torch.cos(2 * turn + first) + three * torch.cos(3 * turn + second)
    away = torch.hypot(line[:, None], line[None])
    return ((radius * edge - away) / _DENSITY + 0.5).clamp(0, 1)


def _colours(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and contrast [3, 1, 1], grey levels: between two colours of unlike brightness."""
    base, gain = rng.uniform(110, 145, 3), rng.uniform(30, 48, 3)
    pair = [torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (base, gain)]
    return pair[0], pair[1]
