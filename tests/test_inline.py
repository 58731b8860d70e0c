"""Targets beside the training step, and those of shuffled frames (Fig. 3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mme_model.batch import Batch
from mme_model.inline import TargetMaker, per_frame_names
from mme_targets import ClipPlan, MotionTargets, TargetConfig
from mme_targets.targets import Targets

CONFIG = TargetConfig(
    frames=8, stride=2, length=3, size=32, camera_motion=False, targets=("trajectory",)
)
"""Four tubelets of 2×2 patches: 16 tokens."""
EVERYTHING = CONFIG.replace(
    targets=("pixel", "trajectory", "hog", "flow", "hof", "mbh"), hog_interpolate=False
)


@pytest.fixture
def frames(rng: np.random.Generator) -> torch.Tensor:
    """[2, F, 3, 32, 32]: smooth pictures that drift, each clip its own way."""
    count = len(ClipPlan.build(CONFIG).frames)
    y, x = np.mgrid[:32, :32].astype(np.float32)
    clips = []
    for _ in range(2):
        waves = rng.uniform(-0.5, 0.5, (6, 2))
        phases = rng.uniform(0, 6, (6, 3))
        speed = rng.uniform(-1.5, 1.5, 2)
        clip = []
        for t in range(count):
            at_x, at_y = x - speed[0] * t, y - speed[1] * t * np.sin(0.7 * t)
            angle = waves[:, 0, None, None] * at_x + waves[:, 1, None, None] * at_y
            clip.append(np.sin(angle[:, None] + phases[..., None, None]).sum(0) * 25 + 127)
        clips.append(np.stack(clip))
    return torch.from_numpy(np.stack(clips).clip(0, 255).astype(np.uint8))


def masks(rng: np.random.Generator, clips: int = 2, count: int = 7) -> torch.Tensor:
    """[B, M], ascending."""
    rows = [np.sort(rng.permutation(16)[:count]) for _ in range(clips)]
    return torch.from_numpy(np.stack(rows))


def chosen(targets: Targets, tokens: torch.Tensor) -> Targets:
    """Rows `tokens` [B, M] of targets of all patches."""
    clips = torch.arange(len(tokens))[:, None]
    return Targets({n: type(t)(*(part[clips, tokens] for part in t)) for n, t in targets.items()})


def assert_equal(got: Targets, expected: Targets) -> None:
    """The same names in the same order, bit for bit."""
    assert list(got) == list(expected)
    for name, target in expected.items():
        for part, right in zip(got[name], target, strict=True):
            assert torch.equal(part, right), name


def batch_of(frames: torch.Tensor | list[torch.Tensor], masked: torch.Tensor, **more) -> Batch:
    fields = {"targets": None, "boxes": None, "padded": None, "permutation": None, "epoch": 0}
    fields |= {"indices": [0] * len(masked), "names": ["a"] * len(masked), **more}
    return Batch(rgb=torch.zeros(0), masked=masked, frames=frames, **fields)


def test_indices_of_patches_may_be_in_any_order_and_repeat(frames) -> None:
    make = MotionTargets(EVERYTHING)
    whole = make(frames)
    tokens = torch.tensor([[15, 2, 2, 7, 0, 15], [1, 1, 1, 9, 8, 4]])
    assert_equal(make(frames, mask=tokens), chosen(whole, tokens))


@pytest.mark.parametrize("shuffle", ["none", "input"])
def test_targets_of_ordered_frames(frames, rng, shuffle: str) -> None:
    masked = masks(rng)
    permutation = torch.stack([torch.from_numpy(rng.permutation(8)) for _ in range(2)])
    got = TargetMaker(EVERYTHING, shuffle=shuffle)(frames, masked, permutation=permutation)
    assert_equal(got, MotionTargets(EVERYTHING)(frames, mask=masked))


@pytest.mark.parametrize("interpolate", [True, False])
def test_targets_follow_shuffled_frames(frames, rng, interpolate: bool) -> None:
    config = EVERYTHING.replace(interpolate=interpolate)
    plan = ClipPlan.build(config)
    frames = frames[:, : len(plan.frames)]
    order = np.stack([rng.permutation(8) for _ in range(2)])
    masked = masks(rng)
    got = TargetMaker(config, shuffle="both")(frames, masked, permutation=torch.from_numpy(order))

    shuffled = frames.clone()
    for clip, places in enumerate(order):
        for t, source in enumerate(places):
            shuffled[clip, plan.rgb[t]] = frames[clip, plan.rgb[source]]
    still, moving = MotionTargets(config)(shuffled), MotionTargets(config)(frames)
    for name in got:
        for clip in range(2):
            for row, token in enumerate(masked[clip].tolist()):
                tubelet, patch = divmod(token, 4)
                source = order[clip, 2 * tubelet] // 2
                whole, at = (
                    (still, token) if name in ("pixel", "hog") else (moving, source * 4 + patch)
                )
                for part, right in zip(got[name], whole[name], strict=True):
                    assert torch.equal(part[clip, row], right[clip, at]), name
    assert list(got) == ["pixel", "position", "shape", "hog", "flow", "hof", "mbh"]


def test_the_order_as_it_was_changes_nothing(frames, rng) -> None:
    masked, same = masks(rng), torch.arange(8).expand(2, 8)
    got = TargetMaker(EVERYTHING, shuffle="both")(frames, masked, permutation=same)
    assert_equal(got, MotionTargets(EVERYTHING)(frames, mask=masked))


def test_what_is_made_of_the_models_frames_alone() -> None:
    assert per_frame_names(EVERYTHING) == ("pixel", "hog")
    assert per_frame_names(EVERYTHING.replace(hog_interpolate=True)) == ("pixel",)
    sparse = EVERYTHING.replace(hog_interpolate=True, interpolate=False)
    assert per_frame_names(sparse) == ("pixel", "hog")
    assert per_frame_names(CONFIG) == ()
    assert per_frame_names(CONFIG.replace(length=0)) == ("shape",)


def test_maskfeats_target_follows_the_frames(frames, rng) -> None:
    config = CONFIG.replace(length=0)
    plan = ClipPlan.build(config)
    frames, masked = frames[:, : len(plan.frames)], masks(rng)
    order = torch.stack([torch.from_numpy(rng.permutation(8)) for _ in range(2)])
    got = TargetMaker(config, shuffle="both")(frames, masked, permutation=order)
    assert plan.rgb == tuple(range(8))
    shuffled = torch.stack([clip[places] for clip, places in zip(frames, order, strict=True)])
    assert_equal(got, MotionTargets(config)(shuffled, mask=masked))


def test_steps_past_the_end_of_the_video(frames, rng) -> None:
    plans = [ClipPlan.build(EVERYTHING, 0, 11), ClipPlan.build(EVERYTHING, 0, 60)]
    padded = torch.tensor([plan.padded for plan in plans])
    assert padded[0].any()
    assert not padded[1].any()
    masked = masks(rng)
    expected = MotionTargets(EVERYTHING)(frames, plan=plans, mask=masked)
    assert_equal(TargetMaker(EVERYTHING)(frames, masked, padded=padded), expected)

    # Shuffled, what is invalid goes where its tubelet goes.
    backwards = torch.arange(7, -1, -1).expand(2, 8)
    every = torch.arange(16).expand(2, 16)
    maker = TargetMaker(CONFIG, shuffle="both")
    got = maker(frames, every, padded=padded, permutation=backwards)["position"].valid
    late = padded.any(dim=2).flip(1).repeat_interleave(4, dim=1)
    assert not got[late].any()
    assert got[1].any()


@pytest.mark.parametrize("shuffle", ["none", "both"])
def test_a_batch_in_parts(frames, rng, shuffle: str) -> None:
    masked = masks(rng)
    order = torch.stack([torch.from_numpy(rng.permutation(8)) for _ in range(2)])
    padded = torch.tensor([ClipPlan.build(EVERYTHING, 0, n).padded for n in (11, 60)])
    maker = TargetMaker(EVERYTHING, shuffle=shuffle)
    expected = maker(frames, masked, padded=padded, permutation=order)
    batch = batch_of(frames, masked, padded=padded, permutation=order)
    phases: list[str] = []
    assert_equal(maker.of_batch(batch, mark=phases.append), expected)
    assert phases == ["flow", "targets"] * 2
    assert_equal(maker.of_batch(batch, at_once=16), expected)
    assert_equal(
        maker.of_batch(batch_of(list(frames), masked, padded=padded, permutation=order)), expected
    )


def test_whole_frames_of_several_sizes(frames, rng) -> None:
    config = EVERYTHING.replace(region="frame")
    masked = masks(rng)
    boxes = torch.tensor([[0.0, 0, 32, 32], [3.0, 1, 20, 24]])
    smaller = frames[1, :, :, :28, :30].contiguous()
    maker = TargetMaker(config)
    got = maker.of_batch(batch_of([frames[0], smaller], masked, boxes=boxes))
    # A box that is the whole frame sees what the crop sees, but for the resampling's rounding.
    inside = MotionTargets(EVERYTHING)(frames[:1], mask=masked[:1])
    assert torch.equal(got["position"].values[:1], inside["position"].values)
    alone = MotionTargets(config)(smaller, mask=masked[1], crop=boxes[1])
    for name, target in alone.items():
        assert torch.equal(got[name].values[1], target.values)


def test_errors(frames, rng) -> None:
    with pytest.raises(ValueError, match="permutation is None"):
        TargetMaker(CONFIG, shuffle="both")(frames, masks(rng))
    batch = batch_of(frames, masks(rng))
    batch.frames = None
    with pytest.raises(ValueError, match="carries no frames"):
        TargetMaker(CONFIG).of_batch(batch)
