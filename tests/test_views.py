"""Views of a video: which frames, which crops, what augmentation does, and batches of them."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mme_model import views
from mme_model.augment import resize_crop
from mme_model.errors import TrainingError
from mme_model.finetune_recipe import ViewConfig, load_finetune_recipe
from mme_model.loading import Unreadable
from mme_model.view_data import ViewBatch, ViewDataset, eval_loader, train_loader
from mme_targets.settings import ConfigError
from mme_targets.video import VideoError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Numbered:
    """Videos whose frames are grey by their number, brighter to the right; some are unreadable."""

    classes = ("a", "b", "c")

    def __init__(self, count: int = 12, length: int = 40, size: tuple[int, int] = (40, 60)) -> None:
        self.count, self.length, self.size = count, length, size
        self.broken: set[int] = set()
        self.reads: list[tuple[int, tuple[int, ...]]] = []

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"video {index}"

    def label(self, index: int) -> int:
        return index % 3

    def frames(self, index: int) -> int:
        if index in self.broken:
            raise VideoError(f"video {index}: damaged")
        return self.length

    def read(self, index: int, indices: Sequence[int]) -> torch.Tensor:
        self.reads.append((index, tuple(indices)))
        height, width = self.size
        frames = torch.tensor(indices, dtype=torch.float32)[:, None, None, None] * 3
        ramp = torch.arange(width) * 2.0
        whole = (frames + ramp).expand(len(indices), 3, height, width)
        return whole.clamp(0, 255).to(torch.uint8).contiguous()


PLAIN = ViewConfig(
    size=32, frames=4, stride=3, augment=False, flip=False, erase=0, repeats=2, workers=0,
    test_clips=2, test_crops=3,
)  # fmt: skip


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, 4, 5, 10, 37])
def test_segments_hold_one_frame_each(length: int) -> None:
    config = ViewConfig(frames=4, sampling="segments")
    seen: list[set[int]] = [set() for _ in range(4)]
    for draw in range(200):
        chosen = views.draw_frames(length, config, np.random.default_rng(draw))
        assert chosen == sorted(chosen)
        for part, frame in zip(seen, chosen, strict=True):
            part.add(frame)
    for t, part in enumerate(seen):
        low, high = t * length / 4, (t + 1) * length / 4
        assert part == {f for f in range(length) if f + 1 > low and f < high}
    assert set.union(*seen) == set(range(length))


def test_dense_frames_start_anywhere_that_leaves_room() -> None:
    config = ViewConfig(frames=4, stride=3)
    found = {tuple(views.draw_frames(13, config, np.random.default_rng(n))) for n in range(100)}
    assert found == {(s, s + 3, s + 6, s + 9) for s in range(4)}


def test_a_short_video_repeats_its_last_frame() -> None:
    config = ViewConfig(frames=4, stride=3, test_clips=3)
    assert views.draw_frames(5, config, np.random.default_rng(0)) == [0, 3, 4, 4]
    assert views.test_frames(5, config) == [[0, 3, 4, 4]] * 3


def test_dense_clips_are_spread_from_the_first_to_the_last() -> None:
    config = ViewConfig(frames=4, stride=3, test_clips=5)
    assert [clip[0] for clip in views.test_frames(30, config)] == [0, 5, 10, 15, 20]
    assert views.test_frames(30, config)[-1] == [20, 23, 26, 29]
    assert views.test_frames(30, config.replace(test_clips=1)) == [[10, 13, 16, 19]]


def test_clips_of_segments_are_shifted_within_them() -> None:
    config = ViewConfig(frames=4, sampling="segments", test_clips=2)
    # As VideoMAE for SSv2: int(tick * x) and int(tick / 2 + tick * x).
    tick = 37 / 4
    assert views.test_frames(37, config) == [
        [int(tick * x) for x in range(4)],
        [int(tick / 2 + tick * x) for x in range(4)],
    ]
    assert views.test_frames(40, config.replace(test_clips=1)) == [[5, 15, 25, 35]]
    assert views.test_frames(2, config) == [[0, 0, 1, 1], [0, 0, 1, 1]]


# --- testing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (40, 40)])
def test_crops_are_along_the_longer_side(size: tuple[int, int]) -> None:
    height, width = size
    boxes = views.test_boxes(height, width, PLAIN)
    assert {(b.w, b.h) for b in boxes} == {(40, 40)}
    places = [(b.x, b.y) for b in boxes]
    x, y = width - 40, height - 40
    assert places == [(0, 0), (x // 2, y // 2), (x, y)]
    [middle] = views.test_boxes(height, width, PLAIN.replace(test_crops=1))
    assert middle == boxes[1]


def test_a_larger_short_side_leaves_a_border() -> None:
    config = PLAIN.replace(short_side=40)
    boxes = views.test_boxes(80, 120, config)  # where it was not resized as it was decoded
    assert [tuple(b) for b in boxes] == [(0, 8, 64, 64), (28, 8, 64, 64), (56, 8, 64, 64)]


def test_views_for_testing_are_decoded_once_and_ordered_clip_by_clip() -> None:
    source = Numbered(size=(32, 48))
    found = views.test_views(source, 2, PLAIN)
    assert found.shape == (6, 4, 3, 32, 32)
    assert found.dtype == torch.uint8
    [(index, indices)] = source.reads
    assert index == 2
    clips = views.test_frames(40, PLAIN)
    assert indices == tuple(sorted({i for clip in clips for i in clip}))
    for k, clip in enumerate(clips):
        for c, left in enumerate((0, 8, 16)):
            grey = found[3 * k + c, :, 0, 0, 0].tolist()
            assert grey == [3 * frame + 2 * left for frame in clip]
    assert torch.equal(found, views.test_views(source, 2, PLAIN))


# --- training -------------------------------------------------------------------------------------


def test_a_view_is_keyed_by_epoch_video_and_repeat() -> None:
    config = ViewConfig(size=32, frames=4, stride=3)
    source = Numbered()
    one = views.train_view(source, 3, config, 0, 1, 1)
    random.seed(5)  # what the global generators are at plays no part
    np.random.seed(6)
    again = views.train_view(source, 3, config, 0, 1, 1)
    assert one.shape == (4, 3, 32, 32)
    assert one.dtype == torch.uint8
    assert torch.equal(one, again)
    for other in ((3, config, 0, 1, 0), (3, config, 0, 2, 1), (3, config, 1, 1, 1)):
        assert not torch.equal(one, views.train_view(source, *other))


def test_global_generators_are_left_as_they_were() -> None:
    before = random.getstate(), np.random.get_state()[1].tobytes()
    views.train_view(Numbered(), 0, ViewConfig(size=32, frames=4), 0, 0, 0)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before


def test_repeats_share_frames_but_not_crops() -> None:
    config = ViewConfig(size=32, frames=4, stride=3, repeats=3, randaug_layers=0, erase=0)
    source = Numbered()
    three = views.train_views(source, 1, config, 0, 0)
    assert three.shape == (3, 4, 3, 32, 32)
    assert len(source.reads) == 1
    assert len({view.numpy().tobytes() for view in three}) == 3
    for repeat in range(3):
        assert torch.equal(three[repeat], views.train_view(source, 1, config, 0, 0, repeat))


@pytest.mark.parametrize("index", range(6))
def test_augmentation_is_one_for_all_frames(index: int) -> None:
    """A still video stays still, whatever is done to it; but for the noise of erasing."""
    source = Numbered(length=1)
    noise = torch.from_numpy(np.random.default_rng(index).integers(0, 255, (1, 3, 40, 60)))
    source.read = lambda _, indices: noise.to(torch.uint8).expand(len(indices), -1, -1, -1)  # type: ignore[method-assign]
    view = views.train_view(source, index, ViewConfig(size=32, frames=4, erase=0), 0, 0)
    assert all(torch.equal(frame, view[0]) for frame in view)


def test_without_augmentation_it_is_the_centre() -> None:
    source = Numbered()
    view = views.train_view(source, 5, PLAIN, 0, 0)
    [(_, chosen)] = source.reads
    assert torch.equal(view, resize_crop(source.read(5, chosen), views.Box(10, 0, 40, 40), 32))


def test_flips_are_for_those_who_ask() -> None:
    turned = PLAIN.replace(flip=True)
    kinds = {True: 0, False: 0}
    for index in range(12):
        plain, view = (views.train_view(Numbered(), index, c, 0, 0) for c in (PLAIN, turned))
        mirrored = not torch.equal(plain, view)
        assert torch.equal(view, plain.flip(-1) if mirrored else plain)
        kinds[mirrored] += 1
    assert min(kinds.values()) > 0
    assert not load_finetune_recipe("ssv2").views.flip
    assert not load_finetune_recipe("tiny").views.flip
    assert load_finetune_recipe("k400").views.flip


def test_erasing_is_one_box_of_noise() -> None:
    config = PLAIN.replace(erase=1.0)
    for index in range(4):
        plain = views.train_view(Numbered(), index, PLAIN, 0, 0)
        view = views.train_view(Numbered(), index, config, 0, 0)
        changed = (plain != view).any(dim=(0, 1))
        rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
        box = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.float().mean() > 0.95
        assert 0.01 < box.numel() / changed.numel() < 0.37
        assert box.shape != changed.shape
        assert not torch.equal(view[0], view[1])


def test_crops_are_of_the_shares_asked_for() -> None:
    config = PLAIN.replace(augment=True, crop_scale=(0.25, 0.5))
    draws = (np.random.default_rng(n) for n in range(200))
    boxes = [views._random_box(60, 80, config, draw) for draw in draws]
    shares = [box.w * box.h / 4800 for box in boxes]
    assert 0.23 < min(shares) < 0.3
    assert 0.45 < max(shares) < 0.52
    ratios = [box.w / box.h for box in boxes]
    assert 0.7 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.4
    assert all(b.x + b.w <= 80 and b.y + b.h <= 60 for b in boxes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"crop_scale": [0.5]}, "crop_scale"),
        ({"crop_scale": [0.5, 0.2]}, "crop_scale"),
        ({"crop_scale": [0.5, 1.2]}, "crop_scale"),
        ({"crop_ratio": [2.0, 1.0]}, "crop_ratio"),
        ({"short_side": 100}, "short_side"),
        ({"test_crops": 2}, "test_crops"),
        ({"frames": 15}, "frames"),
    ],
)
def test_impossible_views_are_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"ViewConfig\.{field}"):
        ViewConfig.from_dict(changes)


# --- batches --------------------------------------------------------------------------------------


def batches(config: ViewConfig, source: Numbered, **options: int) -> list[ViewBatch]:
    return list(
        train_loader(config, source, batch_size=8, seed=3, device="cpu", steps=5, **options)
    )


def test_batches_are_the_same_whatever_makes_them() -> None:
    whole = batches(PLAIN, Numbered())
    assert [(len(b.indices), len(b)) for b in whole] == [(8, 16)] * 5
    for config in (PLAIN.replace(workers=2),):
        for got, expected in zip(batches(config, Numbered()), whole, strict=True):
            assert torch.equal(got.rgb, expected.rgb)
            assert torch.equal(got.labels, expected.labels)
            assert got.names == expected.names
    halves = [batches(PLAIN, Numbered(), rank=rank, world=2) for rank in range(2)]
    parts = iter(batches(PLAIN, Numbered(), micro_batch=4))
    for first, second, expected in zip(*halves, whole, strict=True):
        for split in ((first, second), (next(parts), next(parts))):
            assert torch.equal(torch.cat([b.rgb for b in split]), expected.rgb)
    late = batches(PLAIN, Numbered(), start_step=3)
    assert [b.indices for b in late] == [b.indices for b in whole[3:]]


def test_labels_go_with_their_views() -> None:
    for batch in batches(PLAIN, Numbered()):
        assert batch.videos.tolist() == [i for i in batch.indices for _ in range(2)]
        assert batch.labels.tolist() == [i % 3 for i in batch.videos.tolist()]


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_batch_is_of_so_many_videos_however_often_each_is_there(repeats: int) -> None:
    """As VideoMAE and the released code count: 128 videos by 2 are 256 views (Table 9)."""
    given = batches(PLAIN.replace(repeats=repeats), Numbered(), micro_batch=2)
    assert [len(b.indices) for b in given] == [2] * 20
    assert {len(b) for b in given} == {2 * repeats}
    with pytest.raises(ValueError, match=r"8 clips for each of 1 processes; must be divisible by"):
        batches(PLAIN, Numbered(), micro_batch=3)


def test_an_unreadable_video_is_replaced_in_training_with_its_own_label() -> None:
    source = Numbered()
    source.broken = {0, 1, 2, 3}
    found = [b for b in batches(PLAIN, source) if b.skipped]
    assert found
    for batch in found:
        assert not source.broken & set(batch.indices)
        assert batch.labels.tolist() == [i % 3 for i in batch.videos.tolist()]
        assert all(reason.endswith("damaged") for _, reason in batch.skipped)


def test_an_unreadable_video_is_reported_in_testing() -> None:
    source = Numbered()
    source.broken = {4, 6, 7}
    loader = eval_loader(PLAIN, source, range(3, 9), device="cpu", videos=2)
    found = list(loader)
    assert [b.lost for b in found] == [[4], [6], [7]]
    assert [b.indices for b in found] == [[3], [5], [8]]
    assert [len(b) for b in found] == [6, 6, 6]
    assert found[0].skipped == [("video 4", "video 4: damaged")]
    [none] = eval_loader(PLAIN, source, [6], device="cpu", videos=1)
    assert none.rgb.shape == (0, 4, 3, 32, 32)
    assert none.labels.shape == (0,)


def test_datasets_pickle() -> None:
    dataset = pickle.loads(pickle.dumps(ViewDataset(PLAIN, Numbered(), seed=1)))
    assert torch.equal(dataset[0, 3].rgb, ViewDataset(PLAIN, Numbered(), seed=1)[0, 3].rgb)


def test_of_few_videos_one_may_be_unreadable() -> None:
    def batch(*lost: str) -> Any:
        return SimpleNamespace(names=["a", "b", "c"], skipped=[(name, "damaged") for name in lost])

    tally = Unreadable(5, 0.1, "views.max_unreadable")
    tally.add([batch("d")])
    with pytest.raises(TrainingError, match=r"2 of the 5 videos .* larger --views\.max_unreadable"):
        tally.add([batch("e")])
    with pytest.raises(TrainingError, match=r"1 of the 4 .*max_unreadable \(0\) allows"):
        Unreadable(4, 0, "views.max_unreadable").add([batch("d")])


def test_unreadable_counts_only_what_was_met() -> None:
    tally = Unreadable(12, 0.5, "views.max_unreadable")
    source = Numbered()
    source.broken = {0, 1}
    tally.add(batches(PLAIN, source))
    assert set(tally.lost) == {"video 0", "video 1"}
