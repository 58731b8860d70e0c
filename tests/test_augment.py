"""Crops, flips and permutations of a clip."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from mme_model.augment import Box, crop_box, flip, flip_box, permutation, resize_crop
from mme_model.recipe import ClipConfig
from mme_targets.region import crop_frames

pytestmark = pytest.mark.usefixtures("one_thread")


def smooth(height: int, width: int, frames: int = 2) -> torch.Tensor:
    """[F, 3, H, W] uint8: waves of 40 px and more, which any interpolation keeps."""
    y, x = torch.meshgrid(torch.arange(height * 1.0), torch.arange(width * 1.0), indexing="ij")
    waves = [torch.sin((x * a + y * b) / 8 + a) for a, b in ((0.9, 0.2), (-0.4, 0.7), (0.1, -0.9))]
    picture = 128 + 100 * torch.stack(waves)
    return torch.stack([picture.roll(f, 0) for f in range(frames)]).round().to(torch.uint8)


def boxes(height: int, width: int, count: int = 3000, **changes: object) -> list[Box]:
    rng = np.random.default_rng(5)
    config = ClipConfig(**changes)  # type: ignore[arg-type]
    return [crop_box(height, width, config, rng) for _ in range(count)]


@pytest.mark.parametrize("size", [(256, 340), (341, 256), (97, 131), (5, 3), (1, 1)])
def test_multiscale_boxes_lie_in_the_frame(size: tuple[int, int]) -> None:
    height, width = size
    for box in boxes(height, width, 500):
        assert box.x >= 0
        assert box.y >= 0
        assert box.w >= 1
        assert box.h >= 1
        assert box.x + box.w <= width
        assert box.y + box.h <= height


def test_multiscale_sides_and_places() -> None:
    drawn = boxes(256, 340)
    sides = [256, 224, 192, 168]  # of the shorter side, cut to whole px
    pairs = Counter((sides.index(box.w), sides.index(box.h)) for box in drawn)
    # 4 alike and 3 neighbours, either way; each as likely.
    assert set(pairs) == {(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert min(pairs.values()) > 0.7 * max(pairs.values())
    places = Counter((box.x, box.y) for box in drawn if (box.w, box.h) == (224, 192))
    # Room 116 x 64, in quarters 29 and 16.
    corners = {(0, 0), (116, 0), (0, 64), (116, 64)}
    middles = {(58, 0), (58, 64), (0, 32), (116, 32), (58, 32)}
    between = {(29, 16), (87, 16), (29, 48), (87, 48)}
    assert set(places) == corners | middles | between


def test_scales_are_the_config_s() -> None:
    assert {(box.w, box.h) for box in boxes(100, 160, 200, scales=(0.5,))} == {(50, 50)}
    # A neighbour in the list, not in size: the first and the last are two steps apart.
    pairs = {(box.w, box.h) for box in boxes(100, 100, 500, scales=(1.0, 0.5, 0.9))}
    assert (100, 90) not in pairs
    assert {(100, 50), (50, 90), (90, 90)} <= pairs


def test_center_is_the_largest_square_and_draws_nothing() -> None:
    config = ClipConfig(crop="center")
    rng = np.random.default_rng(0)
    assert crop_box(256, 341, config, rng) == (42, 0, 256, 256)
    assert crop_box(7, 4, config, rng) == (0, 1, 4, 4)
    assert rng.integers(1 << 30) == np.random.default_rng(0).integers(1 << 30)
    with pytest.raises(ValueError, match="0x4 px; must have at least one pixel"):
        crop_box(0, 4, config, rng)


def test_the_generator_alone_decides() -> None:
    one, two = (np.random.default_rng(3) for _ in range(2))
    config = ClipConfig()
    assert [crop_box(90, 120, config, one) for _ in range(20)] == [
        crop_box(90, 120, config, two) for _ in range(20)
    ]
    assert permutation(16, one) == permutation(16, two)


@pytest.mark.parametrize(
    ("height", "width", "box", "size"),
    [
        (120, 160, Box(20, 10, 100, 100), 112),  # enlarged
        (97, 131, Box(3, 30, 57, 43), 96),  # odd, and not square
        (60, 80, Box(10, 5, 48, 48), 48),  # as it is
        (150, 200, Box(40, 20, 120, 104), 80),  # made smaller
    ],
)
def test_pixels_lie_where_targets_take_them_to_lie(
    height: int, width: int, box: Box, size: int
) -> None:
    frames = smooth(height, width)
    ours = resize_crop(frames, box, size)
    theirs = crop_frames(frames[None], torch.tensor([box]).float(), size)[0]
    assert ours.dtype == torch.uint8
    assert ours.shape == (2, 3, size, size)
    assert ours.is_contiguous()
    apart = (ours.int() - theirs.int()).abs()[..., 2:-2, 2:-2]  # the crop's edge has no outside
    assert int(apart.max()) <= 2
    moved = (ours.int() - theirs.roll(1, -1).int()).abs()[..., 2:-2, 2:-2]
    assert int(moved.max()) > 4  # a whole pixel would show


def test_fine_patterns_do_not_alias() -> None:
    stripes = (torch.arange(96) % 2 * 255).to(torch.uint8).expand(1, 3, 96, 96).contiguous()
    small = resize_crop(stripes, Box(0, 0, 96, 96), 36)
    assert int((small.int() - 128).abs()[..., 2:-2].max()) < 40


def test_each_frame_alone_and_together() -> None:
    frames = torch.randint(0, 256, (5, 3, 61, 83), dtype=torch.uint8)
    box = Box(7, 2, 50, 55)
    whole = resize_crop(frames, box, 32)
    for frame, expected in zip(frames, whole, strict=True):
        assert torch.equal(resize_crop(frame[None], box, 32)[0], expected)
    same = frames[..., :61]
    assert torch.equal(resize_crop(frames, Box(0, 0, 61, 61), 61), same)


@pytest.mark.parametrize(
    "box", [Box(-1, 0, 5, 5), Box(0, 0, 0, 5), Box(5, 0, 6, 5), Box(0, 4, 5, 5)]
)
def test_boxes_outside(box: Box) -> None:
    frames = torch.zeros(1, 3, 8, 10, dtype=torch.uint8)
    with pytest.raises(ValueError, match="within the frame of 10x8 px"):
        resize_crop(frames, box, 4)
    with pytest.raises(ValueError, match="size is 0"):
        resize_crop(frames, Box(0, 0, 4, 4), 0)


def test_a_flipped_box_holds_the_flipped_part() -> None:
    frames = torch.randint(0, 256, (2, 3, 9, 14), dtype=torch.uint8)
    box = Box(2, 1, 5, 6)
    there = flip_box(box, 14)
    cut = [
        f[..., b.y : b.y + b.h, b.x : b.x + b.w] for f, b in ((frames, box), (flip(frames), there))
    ]
    assert torch.equal(flip(cut[0]), cut[1])
    assert flip_box(there, 14) == box
    assert torch.equal(flip(flip(frames)), frames)


def test_every_permutation_comes() -> None:
    rng = np.random.default_rng(1)
    drawn = Counter(permutation(3, rng) for _ in range(600))
    assert len(drawn) == 6
    assert min(drawn.values()) > 60
    assert sorted(permutation(16, rng)) == list(range(16))
