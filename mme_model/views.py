"""Views of a video: what a classifier is trained on, and what it is tested on (Table 9).

In training a video is drawn with its frames chosen at random, and augmented as VideoMAE does it:
RandAugment on whole frames, a random resized crop, a mirror, random erasing. Every draw holds for
the whole view, so that motion stays motion, and is keyed by (seed, epoch, index of the video,
repeat, purpose). Repeats share their frames, which are decoded once.

Views for testing are the same each time: `test_clips` in time by `test_crops` in space.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mme_targets.demux import VideoError

from .augment import Box, flip, resize_crop
from .finetune_recipe import ViewConfig
from .keys import number, rng
from .recipe import ClipConfig
from .sources import open_source
from .vit import MEAN, STD

if TYPE_CHECKING:
    from .sources import Source

__all__ = ["draw_frames", "open_videos", "test_boxes", "test_frames", "test_views"]
__all__ += ["seeded", "train_view", "train_views"]

ERASED, ERASED_RATIOS = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Share of the area that random erasing takes, and height to width."""
TRIES = 10
"""Draws of a box until one fits."""


def open_videos(
    spec: str,
    config: ViewConfig,
    *,
    seed: int = 0,
    held_out: bool = False,
    testing: bool = False,
    quiet: bool = False,
) -> Source:
    """Open what a recipe's `data` or `val` names.

    Parameters
    ----------
    held_out, quiet : as `open_source`.
    testing : frames are for `test_views`, and resized as they are decoded.

    Raises
    ------
    OSError, ValueError
        As `open_source`.
    """
    short_side = config.short_side or (config.size if testing else 0)
    clips = ClipConfig(
        format=config.format,
        root=config.root,
        fraction=config.fraction,
        clips=config.clips,
        short_side=short_side,
    )
    return open_source(
        spec,
        clips,
        seed=seed,
        held_out=held_out,
        # Room for the start and the crop to vary.
        frames=span(config) + config.frames,
        size=config.size * 8 // 7,
        quiet=quiet,
    )


def span(config: ViewConfig) -> int:
    """Raw frames from the first of a dense view to its last."""
    return (config.frames - 1) * config.stride + 1


def draw_frames(length: int, config: ViewConfig, draw: np.random.Generator) -> list[int]:
    """Frames (T,) of a training view of a video of `length` raw frames, ascending.

    "segments": one of each of T equal segments; a video of fewer frames repeats some. "dense": from
    a random start; a video that is too short repeats its last frame.
    """
    if config.sampling == "segments":
        edges = np.arange(config.frames + 1) * length / config.frames
        first = np.floor(edges[:-1]).astype(int)
        last = np.maximum(np.ceil(edges[1:]).astype(int), first + 1)
        return [int(i) for i in draw.integers(first, last).clip(max=length - 1)]
    start = int(draw.integers(max(0, length - span(config)) + 1))
    return _dense(start, length, config)


def test_frames(length: int, config: ViewConfig) -> list[list[int]]:
    """Frames (T,) of each of the `test_clips` views in time, of a video of `length` raw frames.

    "segments" (VideoMAE's for SSv2): clip k of K takes the frame k/K into each of T segments; the
    middle where there is one clip. "dense": starts evenly spaced from the first possible to the
    last; the middle where there is one clip. In a video that is too short all clips are alike, and
    repeat its last frame.
    """
    clips = range(config.test_clips)
    if config.sampling == "segments":
        step = length / config.frames
        shift = [k / len(clips) for k in clips] if len(clips) > 1 else [0.5]
        return [[int(step * (t + s)) for t in range(config.frames)] for s in shift]
    room = max(0, length - span(config))
    starts = [round(k * room / (len(clips) - 1)) for k in clips] if len(clips) > 1 else [room // 2]
    return [_dense(start, length, config) for start in starts]


def train_view(
    source: Source, index: int, config: ViewConfig, seed: int, epoch: int, repeat: int = 0
) -> Tensor:
    """One training view of a video: uint8 [T, 3, S, S] RGB.

    Raises
    ------
    VideoError, OSError
        If the video cannot be read.
    """
    frames = _decoded(source, index, index, config, seed, epoch)
    return _augmented(frames, index, config, seed, epoch, repeat)


def train_views(
    source: Source,
    index: int,
    config: ViewConfig,
    seed: int,
    epoch: int,
    *,
    video: int | None = None,
) -> Tensor:
    """All `repeats` training views of a video, decoded once: uint8 [R, T, 3, S, S].

    Parameters
    ----------
    index : that random numbers are keyed by.
    video : another one to read, where that one cannot be.
    """
    frames = _decoded(source, index if video is None else video, index, config, seed, epoch)
    views = [_augmented(frames, index, config, seed, epoch, r) for r in range(config.repeats)]
    return torch.stack(views)


def test_views(source: Source, index: int, config: ViewConfig) -> Tensor:
    """The views of a video for testing: uint8 [test_clips * test_crops, T, 3, S, S], clip by clip.

    Each frame is decoded once. The short side of the frames comes to `short_side`, or where that is
    0 to `size`; crops of `size` px are then taken as `test_boxes` says.

    Raises
    ------
    VideoError, OSError
        If the video cannot be read.
    """
    clips = test_frames(_length(source, index), config)
    needed = sorted({i for clip in clips for i in clip})
    place = {frame: at for at, frame in enumerate(needed)}
    frames = source.read(index, needed)
    height, width = frames.shape[-2:]
    boxes = test_boxes(height, width, config)
    crops = [resize_crop(frames, box, config.size) for box in boxes]
    return torch.stack([crop[[place[i] for i in clip]] for clip in clips for crop in crops])


def test_boxes(height: int, width: int, config: ViewConfig) -> list[Box]:
    """The squares of a frame of any size that testing looks at, px.

    `test_crops` is 1: the centre; 3: the first, the middle and the last along the longer side.
    """
    short = min(height, width)
    side = max(1, round(short * config.size / (config.short_side or config.size)))
    middle = [0.5] if config.test_crops == 1 else [0.0, 0.5, 1.0]
    x, y = width - side, height - side
    if width >= height:
        return [Box(int(x * at), y // 2, side, side) for at in middle]
    return [Box(x // 2, int(y * at), side, side) for at in middle]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's and NumPy's own generators start from `seed`, and are as before afterwards.

    For libraries that draw from them: timm's RandAugment and mixup.
    """
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _dense(start: int, length: int, config: ViewConfig) -> list[int]:
    return [min(start + t * config.stride, length - 1) for t in range(config.frames)]


def _length(source: Source, index: int) -> int:
    length = source.frames(index)
    if length < 1:
        raise VideoError(f"{source.name(index)}: it has no frames")
    return length


def _decoded(
    source: Source, video: int, index: int, config: ViewConfig, seed: int, epoch: int
) -> Tensor:
    chosen = draw_frames(_length(source, video), config, rng(seed, epoch, index, "frames"))
    return source.read(video, chosen)


def _augmented(
    frames: Tensor, index: int, config: ViewConfig, seed: int, epoch: int, repeat: int
) -> Tensor:
    """[T, 3, H, W] to a view [T, 3, S, S]."""

    def draw(purpose: str) -> np.random.Generator:
        return rng(seed, epoch, index, f"{purpose} {repeat}")

    height, width = frames.shape[-2:]
    short = min(height, width)
    box = Box((width - short) // 2, (height - short) // 2, short, short)
    if config.augment:
        box = _random_box(height, width, config, draw("crop"))
        if config.randaug_layers:
            frames = _randaugment(frames, config, number(seed, epoch, index, f"randaug {repeat}"))
    frames = resize_crop(frames, box, config.size)
    if config.flip and draw("flip").integers(2):
        frames = flip(frames)
    erasing = draw("erase")
    if config.erase and erasing.random() < config.erase:
        frames = _erased(frames, erasing)
    return frames.contiguous()


def _random_box(height: int, width: int, config: ViewConfig, draw: np.random.Generator) -> Box:
    """A random resized crop's: its area and the logarithm of its ratio are uniform."""
    for _ in range(TRIES):
        area = height * width * draw.uniform(config.crop_scale[0], config.crop_scale[1])
        ratio = _ratio(config.crop_ratio, draw)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
            return Box(x, y, w, h)
    w = max(1, min(width, round(height * config.crop_ratio[1])))
    h = max(1, min(height, round(width / config.crop_ratio[0])))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def _ratio(bounds: tuple[float, ...], draw: np.random.Generator) -> float:
    """One whose logarithm is uniform within those of the bounds."""
    return math.exp(draw.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _randaugment(frames: Tensor, config: ViewConfig, seed: int) -> Tensor:
    """RandAugment (VideoMAE's `rand-m9-n4-mstd0.5-inc1`), drawn once for all frames."""
    from PIL import Image

    transform = _transform(config)
    out = np.empty((len(frames), *frames.shape[2:], 3), dtype=np.uint8)
    for at, frame in enumerate(frames.permute(0, 2, 3, 1).numpy()):
        with seeded(seed):  # for each frame anew, so that all get the same
            out[at] = np.asarray(transform(Image.fromarray(frame)))
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def _transform(config: ViewConfig) -> Any:
    from PIL.Image import Resampling
    from timm.data.auto_augment import RandAugment, rand_augment_choices, rand_augment_ops

    settings = {"magnitude_std": config.randaug_std, "interpolation": Resampling.BICUBIC}
    choices = rand_augment_choices("", increasing=True)
    ops = rand_augment_ops(config.randaug_magnitude, hparams=settings, transforms=choices)
    return RandAugment(ops, config.randaug_layers)


def _erased(frames: Tensor, draw: np.random.Generator) -> Tensor:
    """One box of the view is noise, as wide as ImageNet's colours spread, anew in each frame."""
    size = frames.shape[-1]
    for _ in range(TRIES):
        area = size * size * draw.uniform(ERASED[0], ERASED[1])
        ratio = _ratio(ERASED_RATIOS, draw)
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < size and w < size:
            y, x = int(draw.integers(size - h + 1)), int(draw.integers(size - w + 1))
            noise = draw.standard_normal((len(frames), 3, h, w), dtype=np.float32)
            mean, std = (np.array(v, dtype=np.float32)[:, None, None] * 255 for v in (MEAN, STD))
            colours = (noise * std + mean).round().clip(0, 255).astype(np.uint8)
            frames = frames.clone()
            frames[..., y : y + h, x : x + w] = torch.from_numpy(colours)
            return frames
    return frames
