"""A small scene whose motion is known exactly, to see how far tracks are from the truth.

A textured background under a camera that pans and zooms, and before it textured discs that travel
and turn. Each layer is a fixed texture moved by a similarity x = A_t X + c_t, so flow and tracks
follow in closed form. `(x, y)` are px, pixel centres are integers, times are frame indices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .files import write_video

__all__ = ["Scene", "render_scene", "write_video"]


@dataclass(frozen=True)
class Scene:
    """Frames and the motion that made them; layer 0 is the background.

    Attributes
    ----------
    frames : [T, 3, H, W] uint8, RGB.
    flow : [T-1, 2, H, W] float32, px from each frame to the next, of what each pixel shows.
    matrices : [layers, T, 2, 2] float64, A_t; shifts : [layers, T, 2] float64, c_t.
    radii : (layers,) px in texture coordinates; the background's is infinite.
    """

    frames: torch.Tensor
    flow: torch.Tensor
    matrices: torch.Tensor
    shifts: torch.Tensor
    radii: tuple[float, ...]

    def layer(self, points: torch.Tensor, frame: int) -> torch.Tensor:
        """The layer seen at `points` [..., 2] in `frame`: [...] int64; later ones lie in front."""
        seen = torch.zeros(points.shape[:-1], dtype=torch.int64)
        for number, radius in enumerate(self.radii):
            inside = self._texture(points, number, frame).norm(dim=-1) < radius
            seen = torch.where(inside, number, seen)
        return seen

    def track(self, points: torch.Tensor, start: int, length: int) -> torch.Tensor:
        """Where the things at `points` [..., 2] in frame `start` are: [..., length+1, 2] float64.

        Raises
        ------
        ValueError
            If the scene does not hold frames `start` to `start + length`.
        """
        if start < 0 or length < 0 or start + length >= len(self.frames):
            raise ValueError(
                f"start {start} and length {length} reach frame {start + length}; "
                f"the scene has {len(self.frames)} frames"
            )
        layer = self.layer(points, start)
        paths = torch.zeros(*points.shape[:-1], length + 1, 2, dtype=torch.float64)
        for number in range(len(self.radii)):
            fixed = self._texture(points, number, start)
            moved = torch.stack(
                [self._image(fixed, number, start + step) for step in range(length + 1)], dim=-2
            )
            paths = torch.where((layer == number)[..., None, None], moved, paths)
        return paths

    def clear(
        self, points: torch.Tensor, start: int, length: int, margin: float = 0
    ) -> torch.Tensor:
        """[...] bool: the thing stays in view, and no other layer shows within `margin` px of it.

        Only along such tracks can flow be asked to follow the truth.
        """
        paths = self.track(points, start, length)
        height, width = self.frames.shape[-2:]
        edge = torch.tensor([width - 1, height - 1], dtype=torch.float64) - margin
        good = ((paths >= margin) & (paths <= edge)).all(-1).all(-1)
        layer = self.layer(points, start)
        turn = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        ring = torch.stack([turn.cos(), turn.sin()], -1) * margin
        for step in range(length + 1):
            around = paths[..., step, None, :] + torch.cat([ring, ring[:1] * 0])
            good &= (self.layer(around, start + step) == layer[..., None]).all(-1)
        return good

    def _texture(self, points: torch.Tensor, layer: int, frame: int) -> torch.Tensor:
        """Image coordinates to the layer's own."""
        back: torch.Tensor = torch.linalg.inv(self.matrices[layer, frame])
        return (points.double() - self.shifts[layer, frame]) @ back.T

    def _image(self, fixed: torch.Tensor, layer: int, frame: int) -> torch.Tensor:
        """The layer's own coordinates to those of the image."""
        return fixed @ self.matrices[layer, frame].T + self.shifts[layer, frame]


def render_scene(
    frames: int = 64,
    size: int | tuple[int, int] = (256, 340),
    *,
    objects: int = 2,
    camera: bool = True,
    seed: int = 0,
) -> Scene:
    """Render the scene; the same arguments give the same scene.

    Parameters
    ----------
    frames : T, at least 1.
    size : (H, W), or the side of a square, px; at least 16.
    objects : discs, 0 to 8; each moves by up to about 3 px a frame and turns.
    camera : the background pans by up to about 2 px a frame and zooms; off, it stands still.
    seed : of textures and motion.

    Raises
    ------
    ValueError
        If an argument is outside its range.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if frames < 1:
        raise ValueError(f"frames is {frames}; must be at least 1")
    if min(height, width) < 16:
        raise ValueError(f"size is {size}; each side must be at least 16 px")
    if not 0 <= objects <= 8:
        raise ValueError(f"objects is {objects}; must be 0 to 8")
    random = torch.Generator().manual_seed(seed)
    matrices, shifts, radii = _motion(frames, height, width, objects, camera, random)
    textures = [_texture(random, tint) for tint in range(objects + 1)]
    pictures = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
    flow = torch.zeros(frames - 1, 2, height, width)
    for t in range(frames):
        picture = torch.zeros(3, height, width)
        for texture, matrix, shift, radius in zip(textures, matrices, shifts, radii, strict=True):
            rows, columns = reach(matrix[t], shift[t], radius, height, width)
            back = torch.linalg.inv(matrix[t])
            fixed = affine(back, -back @ shift[t], rows, columns)
            away = fixed.square().sum(0).sqrt()
            # One pixel of soft edge, so that motion below a pixel shows there as well.
            cover = (radius - away + 0.5).clamp(0, 1).float()
            part = picture[:, rows, columns]
            part += cover * (_sample(texture, fixed) - part)
            if t + 1 < frames:
                onward = matrix[t + 1] @ back
                move = affine(
                    onward - torch.eye(2).double(), shift[t + 1] - onward @ shift[t], rows, columns
                )
                part = flow[t, :, rows, columns]
                part.copy_(torch.where(away < radius, move.float(), part))
        pictures[t] = picture.round().clamp(0, 255).to(torch.uint8)
    return Scene(pictures, flow, matrices, shifts, radii)


def reach(
    matrix: torch.Tensor, shift: torch.Tensor, radius: float, height: int, width: int
) -> tuple[slice, slice]:
    """Rows and columns of the frame that a disc can reach."""
    if math.isinf(radius):
        return slice(0, height), slice(0, width)
    far = (radius + 1) * float(matrix.norm()) + 1
    x, y = shift.tolist()
    rows = slice(max(0, math.floor(y - far)), max(0, min(height, math.ceil(y + far))))
    columns = slice(max(0, math.floor(x - far)), max(0, min(width, math.ceil(x + far))))
    return rows, columns


def affine(matrix: torch.Tensor, shift: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """[2, h, w] float64: matrix @ (x, y) + shift at every pixel of the box."""
    x = torch.arange(columns.start, columns.stop, dtype=torch.float64)
    y = torch.arange(rows.start, rows.stop, dtype=torch.float64)[:, None]
    return torch.stack([m[0] * x + (m[1] * y + s) for m, s in zip(matrix, shift, strict=True)])


def _motion(
    frames: int, height: int, width: int, objects: int, camera: bool, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, tuple[float, ...]]:
    """A_t, c_t and the radius of each layer."""
    t = torch.arange(frames, dtype=torch.float64)
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
    side = min(height, width)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    matrices = torch.eye(2, dtype=torch.float64).repeat(objects + 1, frames, 1, 1)
    shifts = middle.repeat(objects + 1, frames, 1)
    radii = [math.inf]
    if camera:
        matrices[0] *= (1 + 0.03 * torch.sin(0.07 * t))[:, None, None]
        for axis, speed in enumerate((1.2, 0.5)):
            period, phase = between(60, 90), between(0, 2 * math.pi)
            wave = torch.sin(2 * math.pi * t / period + phase) * (period / 2 / math.pi)
            shifts[0, :, axis] += speed * (wave - wave[0])
    for number in range(1, objects + 1):
        radii.append(side * between(0.16, 0.22))
        turn = between(0.01, 0.025) * t * (-1) ** number
        matrices[number] = torch.stack(
            [turn.cos(), -turn.sin(), turn.sin(), turn.cos()], -1
        ).reshape(frames, 2, 2)
        # An ellipse around the middle, the discs spread over its phases.
        angle = 2 * math.pi * (number / max(objects, 1) + t / between(180, 220) * (-1) ** number)
        shifts[number, :, 0] += between(0.22, 0.3) * width * angle.cos()
        shifts[number, :, 1] += between(0.18, 0.26) * height * angle.sin()
    return matrices, shifts, tuple(radii)


_TILE = 512
"""Side of a texture, px; it repeats."""


def _texture(random: torch.Generator, tint: int) -> torch.Tensor:
    """[3, side, side] grey levels: noise that falls off towards the finest scales, and repeats."""
    noise = torch.randn(3, _TILE, _TILE, generator=random)
    # Shared between the channels in part: the colours of one thing belong together.
    noise = 0.25 * noise + noise.mean(0)
    x, y = waves(_TILE)
    radius = (x**2 + y**2).sqrt()
    # Wavelengths from about 8 px, which resampling keeps, to 128 px.
    shape = torch.exp(-((radius * 9) ** 2)) * (radius > 1 / 128) / (radius**1.3 + 1 / 512)
    total = shaped(noise, shape)
    hue = 2 * math.pi * torch.tensor([0.0, 1.0, 2.0]) / 3 + 2.4 * tint
    base = 128 + (0 if tint == 0 else 50) * torch.cos(hue)
    return base[:, None, None] + 34 * total


def waves(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Horizontal [1, side/2+1] and vertical [side, 1] frequencies of `shaped`, waves a texel."""
    return torch.fft.rfftfreq(side)[None], torch.fft.fftfreq(side)[:, None]


def shaped(noise: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
    """Noise [..., side, side] with its spectrum scaled by `spectrum` [side, side/2+1], standard
    deviation 1; it repeats.
    """
    side = noise.shape[-1]
    total: torch.Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) * spectrum, s=(side, side))
    # In double, so that threads, which sum in another order, give the same deviation.
    return total / total.double().std().float()


def _sample(texture: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """[3, h, w]: the texture at `fixed` [2, h, w], bicubic, repeating."""
    margin = 4
    tile = torch.nn.functional.pad(texture[None], (margin,) * 4, mode="circular")
    at = fixed.remainder(_TILE).permute(1, 2, 0)[None].float() + margin
    grid = (2 * at + 1) / (_TILE + 2 * margin) - 1
    return torch.nn.functional.grid_sample(tile, grid, mode="bicubic", align_corners=False)[0]
