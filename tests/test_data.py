"""Clips, batches, workers: the same whatever makes them, and none left behind."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mme_model.batch import Batch
from mme_model.data import (
    ClipDataset,
    clip_loader,
    collate,
    held_out_batches,
)
from mme_model.inline import TargetMaker
from mme_model.recipe import Recipe
from mme_model.sources import Source, open_source
from mme_targets import ClipPlan
from mme_targets.video import VideoError

RECIPE = Recipe.from_dict(
    {
        "targets": {
            "frames": 4, "stride": 2, "length": 2, "size": 32, "camera_motion": False,
            "tvl1": {"scales": 2, "warps": 1, "outer_iterations": 2},
        },
        "mask": {"ratio": 0.5},
        "clips": {"workers": 0},
        "train": {"batch_size": 4, "seed": 5},
    }
)  # fmt: skip
"""Two tubelets of 2×2 patches, of which half are masked: M = 4."""

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Videos:
    """Textures that pan, with their number and the frame's in a corner; some cannot be read."""

    def __init__(self, count: int = 12, length: int = 20, size: tuple[int, int] = (40, 48)) -> None:
        self.count, self.length, self.size = count, length, size
        self.broken: dict[int, Exception] = {}
        self.reads: list[tuple[int, tuple[int, ...]]] = []

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"video {index}"

    def label(self, index: int) -> int:
        return -1

    def frames(self, index: int) -> int:
        if index in self.broken:
            raise self.broken[index]
        return self.length

    def read(self, index: int, indices: Sequence[int]) -> torch.Tensor:
        self.reads.append((index, tuple(indices)))
        height, width = self.size
        rng = np.random.default_rng(index)
        texture = rng.integers(0, 200, (3, height // 4, width // 4 + 20), dtype=np.uint8)
        texture = texture.repeat(4, 1).repeat(4, 2)
        frames = np.stack([texture[..., t : t + width] for t in indices])
        frames[:, :, 18:22, 22:26] = np.array(indices, np.uint8)[:, None, None, None]
        return torch.from_numpy(frames)


def changed(**fields: dict[str, object]) -> Recipe:
    """`RECIPE` with some fields of its parts changed."""
    return RECIPE.replace(**{k: getattr(RECIPE, k).replace(**v) for k, v in fields.items()})


def batches(recipe: Recipe, source: Source, steps: int = 5, **options) -> list[Batch]:
    return list(clip_loader(recipe, source, device="cpu", steps=steps, **options))


def assert_same(got: Batch, expected: Batch) -> None:
    """Bit for bit, but for the times."""
    assert (got.epoch, got.indices, got.names) == (expected.epoch, expected.indices, expected.names)
    assert got.skipped == expected.skipped
    pairs = list(zip(got.tensors(), expected.tensors(), strict=True))
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    if expected.targets is not None:
        assert got.targets is not None
        assert list(got.targets) == list(expected.targets)


# --- one clip -------------------------------------------------------------------------------------


def test_a_clip_is_keyed_by_epoch_and_video() -> None:
    first, again = ClipDataset(RECIPE, Videos()), ClipDataset(RECIPE, Videos())
    assert torch.equal(first[2, 7].rgb, again[2, 7].rgb)
    assert torch.equal(first[2, 7].masked, again[2, 7].masked)
    crops = {first[epoch, 7].rgb.numpy().tobytes() for epoch in range(6)}
    assert len(crops) > 1
    assert len({tuple(first[epoch, 7].masked.tolist()) for epoch in range(12)}) > 1
    other = ClipDataset(changed(train={"seed": 6}), Videos())
    assert any(not torch.equal(first[0, i].rgb, other[0, i].rgb) for i in range(4))


def test_a_clip_is_what_its_plan_says() -> None:
    source = Videos()
    dataset = ClipDataset(changed(clips={"crop": "center", "flip": False}), source)
    sample = dataset[0, 3]
    [(index, indices)] = source.reads  # decoded once
    assert index == sample.index == 3
    plan = ClipPlan.build(RECIPE.targets, indices[0], 20)
    assert indices == plan.frames
    assert torch.equal(sample.rgb, sample.frames[list(plan.rgb)])
    assert sample.rgb.shape == (4, 3, 32, 32)
    assert sample.rgb.dtype == torch.uint8
    assert sample.masked.dtype == torch.int64
    assert sample.masked.tolist() == sorted(set(sample.masked.tolist()))
    assert len(sample.masked) == 4
    # The centre's grey is the raw frame's number, which no resizing changes.
    assert sample.rgb[:, 0, 15, 15].tolist() == [indices[p] for p in plan.rgb]


def test_starts_are_all_that_leave_room_for_the_clip() -> None:
    source = Videos(length=8 + 3)
    dataset = ClipDataset(RECIPE, source)
    for epoch in range(60):
        assert not dataset[epoch, 0].padded.any()
    assert {indices[0] for _, indices in source.reads} == {0, 1, 2, 3}


def test_a_short_video_repeats_its_last_frame() -> None:
    source = Videos(length=4)
    sample = ClipDataset(RECIPE, source)[0, 0]
    assert source.reads == [(0, (0, 1, 2, 3, 3, 3))]
    assert sample.padded.tolist() == [[False, False], [True, True]]
    [batch] = batches(changed(train={"batch_size": 1}), Videos(1, length=4), steps=1)
    assert batch.targets is not None
    late = batch.masked[0] >= 4
    assert not batch.targets["position"].valid[0, late].any()
    assert batch.targets["position"].valid[0, ~late].any()


def test_clips_are_mirrored_half_of_the_time() -> None:
    recipe = changed(clips={"crop": "center"})
    plain = ClipDataset(recipe.replace(clips=recipe.clips.replace(flip=False)), Videos())
    turned = ClipDataset(recipe, Videos())
    mirrored = 0
    for epoch in range(40):
        seen, straight = turned[epoch, 1].frames, plain[epoch, 1].frames
        assert torch.equal(seen, straight) or torch.equal(seen, straight.flip(-1))
        mirrored += not torch.equal(seen, straight)
    assert 10 <= mirrored <= 30


@pytest.mark.parametrize("shuffle", ["input", "both"])
def test_shuffling_moves_the_models_frames_alone(shuffle: str) -> None:
    plain = ClipDataset(RECIPE, Videos())
    mixed = ClipDataset(changed(clips={"shuffle": shuffle}), Videos())
    orders = set()
    for epoch in range(8):
        straight, sample = plain[epoch, 2], mixed[epoch, 2]
        assert sample.permutation is not None
        assert sorted(sample.permutation.tolist()) == [0, 1, 2, 3]
        assert torch.equal(sample.rgb, straight.rgb[sample.permutation])
        assert torch.equal(sample.frames, straight.frames)
        orders.add(tuple(sample.permutation.tolist()))
    assert len(orders) > 3


def test_whole_frames_show_the_model_what_the_crop_does() -> None:
    """The same box, mirrored alike; where it is the frame itself, the same pixels and targets."""
    recipe = changed(clips={"crop": "center"}, train={"batch_size": 6})
    source = Videos(size=(32, 32))
    [crop] = batches(recipe, source, steps=1)
    [frame] = batches(recipe.replace(targets=recipe.targets.replace(region="frame")), source, 1)
    assert torch.equal(crop.rgb, frame.rgb)
    assert torch.equal(crop.masked, frame.masked)
    assert crop.targets is not None
    assert frame.targets is not None
    for name, target in crop.targets.items():
        torch.testing.assert_close(frame.targets[name].values, target.values, atol=1e-4, rtol=0)

    # A box of the mirrored frame holds what the mirrored crop does, up to the resampling.
    wide = Videos(size=(40, 60))
    scales = changed(clips={"scales": [0.8]})
    whole = ClipDataset(scales.replace(targets=RECIPE.targets.replace(region="frame")), wide)
    part = ClipDataset(scales, wide)
    for epoch in range(6):
        sample = whole[epoch, 0]
        assert sample.frames.shape[-2:] == (40, 60)
        assert sample.box is not None
        assert sample.box.shape == (4,)
        assert torch.equal(sample.rgb, part[epoch, 0].rgb)


# --- videos that cannot be read -------------------------------------------------------------------


def test_an_unreadable_video_is_replaced_and_reported() -> None:
    source = Videos()
    source.broken = {3: VideoError("video 3: no video\nin it"), 5: FileNotFoundError("video 5")}
    dataset = ClipDataset(RECIPE, source)
    for index, reason in ((3, "video 3: no video in it"), (5, "video 5")):
        sample = dataset[1, index]
        assert sample.index not in source.broken
        assert sample.name == source.name(sample.index)
        assert sample.skipped[0] == (f"video {index}", reason)
        again = ClipDataset(RECIPE, source)[1, index]
        assert again.index == sample.index
        assert torch.equal(again.rgb, sample.rgb)
    assert len({dataset[epoch, 3].index for epoch in range(12)}) > 3
    got = batches(RECIPE, source, steps=3)
    assert sorted(s for batch in got for s in batch.skipped if s[0] == "video 3")


def test_all_but_one_unreadable() -> None:
    source = Videos(8)
    source.broken = {i: VideoError(f"video {i}") for i in range(8) if i != 6}
    assert {ClipDataset(RECIPE, source)[0, i].index for i in range(8)} == {6}


@pytest.mark.parametrize("count", [3, 40])
def test_too_many_unreadable_videos_in_a_row(count: int) -> None:
    source = Videos(count)
    source.broken = {i: VideoError(f"video {i} is broken") for i in range(count)}
    tries = min(count, 10)
    with pytest.raises(VideoError, match=f"^{tries} videos in a row cannot be read") as caught:
        ClipDataset(RECIPE, source)[0, 1]
    assert str(caught.value).count("is broken") == tries


def test_a_video_without_frames_cannot_be_read() -> None:
    with pytest.raises(VideoError, match="video 0: it has no frames"):
        ClipDataset(RECIPE, Videos(1, length=0))[0, 0]


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "too many open files")])
def test_the_machines_errors_are_not_the_videos(error: Exception) -> None:
    source = Videos()
    source.broken = {2: error}
    with pytest.raises(type(error)):
        ClipDataset(RECIPE, source)[0, 2]


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("shuffle", ["none", "both"])
def test_batches_do_not_depend_on_the_workers(workers: int, shuffle: str) -> None:
    source = Videos(length=6)
    source.broken = {4: VideoError("video 4")}
    targets = {"targets": ("trajectory", "pixel")}
    recipe = changed(clips={"shuffle": shuffle}, targets=targets)
    expected = batches(recipe, source, steps=6, micro_batch=2)
    assert len(expected) == 12
    assert any(batch.skipped for batch in expected)
    assert any(batch.padded is not None for batch in expected)
    many = recipe.replace(clips=recipe.clips.replace(workers=workers))
    loader = clip_loader(many, source, device="cpu", steps=6, micro_batch=2)
    assert len(loader) == 12
    for got, right in zip(loader, expected, strict=True):
        assert_same(got, right)


def test_real_videos(shared_data: Path) -> None:
    """Of several sizes, one of them damaged; decoded alike in a worker."""
    recipe = changed(train={"batch_size": 8}, targets={"stride": 16})
    source = open_source(str(shared_data / "videos"), recipe.clips)
    [here] = batches(recipe, source, steps=1)
    there = recipe.replace(clips=recipe.clips.replace(workers=1))
    [got] = clip_loader(there, source, device="cpu", steps=1)
    assert_same(got, here)
    assert {name for name, _ in here.skipped} == {"corrupted.mp4"}
    assert "corrupted.mp4" not in here.names


def test_a_resumed_loader_reads_nothing_that_was_seen() -> None:
    whole = batches(RECIPE, Videos(), steps=7)
    source = Videos()
    rest = batches(RECIPE, source, steps=7, start_step=4)
    assert len(source.reads) == 3 * 4
    for got, right in zip(rest, whole[4:], strict=True):
        assert_same(got, right)


def test_two_processes_see_the_clips_of_one() -> None:
    whole = batches(RECIPE, Videos(), steps=4)
    parts = [batches(RECIPE, Videos(), steps=4, rank=rank, world=2) for rank in range(2)]
    for one, *halves in zip(whole, *parts, strict=True):
        assert one.indices == halves[0].indices + halves[1].indices
        assert torch.equal(one.rgb, torch.cat([half.rgb for half in halves]))
        assert torch.equal(one.masked, torch.cat([half.masked for half in halves]))


@pytest.mark.parametrize("region", ["crop", "frame"])
@pytest.mark.parametrize("shuffle", ["none", "both"])
def test_a_batch_for_a_gpu_carries_what_its_targets_are_made_of(region: str, shuffle: str) -> None:
    recipe = changed(
        targets={"region": region, "targets": ("position", "pixel", "shape")},
        clips={"shuffle": shuffle},
    )
    source = Videos(length=6)
    here = batches(recipe, source, steps=3)
    recipe = recipe.replace(clips=recipe.clips.replace(workers=1))
    there = list(clip_loader(recipe, source, device="cuda", steps=3))
    maker = TargetMaker(recipe.targets, shuffle=shuffle)
    assert any(batch.padded is not None for batch in here)
    for made, carried in zip(here, there, strict=True):
        assert made.frames is None
        assert carried.targets is None
        assert isinstance(carried.frames, list) == (region == "frame")
        assert torch.equal(made.rgb, carried.rgb)
        assert made.targets is not None
        got = maker.of_batch(carried, at_once=3)
        assert list(got) == list(made.targets) == ["position", "pixel", "shape"]
        for name, target in got.items():
            assert all(map(torch.equal, target, made.targets[name]))


def test_phases_are_timed() -> None:
    [batch] = batches(RECIPE, Videos(), steps=1)
    assert list(batch.seconds) == ["decode", "crop", "flow", "targets"]
    assert all(seconds > 0 for seconds in batch.seconds.values())
    [carried] = clip_loader(RECIPE, Videos(), device="cuda", steps=1)
    assert carried.seconds["decode"] > 0
    assert carried.seconds["flow"] == carried.seconds["targets"] == 0


def test_a_batch_moves_and_pickles_whole() -> None:
    recipe = changed(targets={"region": "frame"}, clips={"shuffle": "input"})
    [made] = batches(recipe, Videos(length=4), steps=1)
    [carried] = clip_loader(recipe, Videos(length=4), device="cuda", steps=1)
    assert len(made) == 4
    assert len(list(made.tensors())) == 5 + 2 * 4
    assert len(list(carried.tensors())) == 5 + 4
    for batch in (made, carried):
        assert_same(batch.to("cpu"), batch)
        assert_same(pickle.loads(pickle.dumps(batch)), batch)
        assert all(t.is_meta for t in batch.to("meta").tensors())


# --- held-out clips -------------------------------------------------------------------------------


def test_held_out_clips_are_centred_and_fixed() -> None:
    source = Videos(12, length=20)
    held = held_out_batches(RECIPE, source, device="cpu", count=6, micro_batch=4)
    assert len(held) == 2
    first = list(held)
    assert [i for batch in first for i in batch.indices] == [0, 2, 4, 6, 8, 10]
    assert {indices[0] for _, indices in source.reads} == {(20 - 8) // 2}
    assert all(batch.targets is not None and batch.epoch == 0 for batch in first)
    for clip, index in zip(first[0].rgb, first[0].indices, strict=True):
        middle = source.read(index, range(6, 13, 2))[..., 4:44]
        assert torch.equal(clip[:, 0, 15, 15].long(), torch.arange(6, 13, 2))
        assert (clip.float().mean((2, 3)) - middle.float().mean((2, 3))).abs().max() < 2
    source.reads.clear()
    for got, right in zip(held, first, strict=True):
        assert_same(got, right)
    assert source.reads == []  # kept


def test_held_out_clips_that_do_not_fit_are_made_anew() -> None:
    source = Videos()
    held = held_out_batches(RECIPE, source, device="cuda", count=4, micro_batch=2)
    first = [batch for _, batch in zip(range(1), held, strict=False)]
    held._room = 0
    whole = list(held)
    source.reads.clear()
    for got, right in zip(held, whole, strict=True):
        assert_same(got, right)
    assert_same(whole[0], first[0])
    assert [index for index, _ in source.reads] == whole[1].indices


def test_held_out_clips_are_shared_among_processes() -> None:
    parts = [
        held_out_batches(
            RECIPE, Videos(7), device="cuda", count=99, micro_batch=2, rank=rank, world=3
        )
        for rank in range(3)
    ]
    seen = [[i for batch in part for i in batch.indices] for part in parts]
    assert seen == [[0, 3, 6], [1, 4], [2, 5]]


def test_collate_keeps_the_order() -> None:
    dataset = ClipDataset(RECIPE, Videos())
    keys = [(0, 5), (0, 1), (0, 9)]
    batch = collate([dataset[key] for key in keys], None)
    assert batch.indices == [5, 1, 9]
    assert isinstance(batch.frames, torch.Tensor)
    for row, key in enumerate(keys):
        assert torch.equal(batch.rgb[row], dataset[key].rgb)
        assert torch.equal(batch.frames[row], dataset[key].frames)
        assert torch.equal(batch.masked[row], dataset[key].masked)
