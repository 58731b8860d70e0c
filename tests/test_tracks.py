"""Training from a store of tracks: the targets are those computed inline, to a stated error."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mme_model.data import ClipDataset, collate
from mme_model.inline import TargetMaker
from mme_model.pretrain import Pretraining, pretrain
from mme_model.recipe import Recipe
from mme_model.sources import open_source
from mme_model.tracks import ClipTracks, StoredSource, stored_only, track_config
from mme_targets import ConfigError, MotionTargets
from mme_targets.files import write_video
from mme_targets.store import Record, Store, StoreError
from mme_targets.store_extract import Frames, extract_frames
from mme_targets.store_read import look_up
from mme_targets.store_tools import merge, verify
from mme_targets.store_tools import summary as summary_of
from mme_targets.store_writer import EntryWriter
from mme_targets.synthetic import render_scene
from mme_targets.video import VideoError

CHANGES = {
    "targets": {
        "frames": 8, "stride": 2, "length": 4, "size": 64, "camera_motion": False, "flow": "dis",
        "region": "frame",
    },
    "mask": {"ratio": 0.5},
    "clips": {"workers": 0},
    "model": {"size": "tiny", "depth": 1},
    "train": {"batch_size": 2, "epochs": 2, "warmup_epochs": 0, "seed": 3, "picture_every": 0},
}  # fmt: skip
NAMES = ("a.mp4", "b.mp4")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of moving discs, 80x104 px."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(NAMES):
        write_video(folder / name, render_scene(26, (80, 104), seed=seed).frames)
    return folder


@pytest.fixture(scope="module")
def store(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tracks of `a.mp4` alone."""
    out = tmp_path_factory.mktemp("store") / "store"
    recipe = recipe_of(videos)
    config = track_config(recipe)
    made = Store.create(out, config)
    source = open_source(str(videos), recipe.clips)
    extract_frames(made, config, "a.mp4", Frames(26, 25.0, [source.read(0, range(26))]))
    return out


def recipe_of(videos: Path, **changes: object) -> Recipe:
    values: dict[str, object] = {**CHANGES, "data": str(videos)}
    for name, value in changes.items():
        old = values.get(name)
        values[name] = {**old, **value} if isinstance(value, dict) and old else value
    return Recipe.from_dict(values)


def targets(recipe: Recipe, epoch: int, index: int = 0) -> dict[str, torch.Tensor]:
    """Values and validity of a clip, before normalisation."""
    source = open_source(recipe.data, recipe.clips)
    raw = recipe.targets.replace(norm="none")
    dataset = ClipDataset(recipe, source, tracks=ClipTracks.of(recipe))
    batch = collate([dataset[epoch, index]], TargetMaker(raw, shuffle=recipe.clips.shuffle),
                    stored=dataset.tracks is not None)  # fmt: skip
    assert batch.targets is not None
    assert batch.inline == []
    found = {name: target.values[0] for name, target in batch.targets.items()}
    return {**found, "valid": batch.targets["position"].valid[0]}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shuffle", ["none", "both"])
def test_targets_are_those_made_inline(videos: Path, store: Path, flip: bool, shuffle: str) -> None:
    gaps, agree, shapes = [], [], []
    for epoch in range(4):
        recipe = recipe_of(videos, clips={"flip": flip, "shuffle": shuffle})
        inline = targets(recipe, epoch)
        stored = targets(recipe.replace(tracks=str(store)), epoch)
        both = (inline["valid"] & stored["valid"]).flatten()
        agree.append((inline["valid"] == stored["valid"]).float().mean())
        apart = (inline["position"] - stored["position"]).abs().unflatten(1, (4, -1)).flatten(0, 1)
        gaps.append(apart[both])
        shapes.append((inline["shape"] == stored["shape"]).float().mean())
    gap = torch.cat(gaps)
    assert gap.median() < 0.125, "the store's step; the crop is at most 1.2 times the frame's scale"
    assert gap.quantile(0.9) < 0.6
    assert torch.stack(agree).mean() > 0.97
    assert torch.stack(shapes).mean() > 0.85, "most points fall in the same cell"


def test_seeds_on_the_grid_are_within_half_a_step(videos: Path, store: Path) -> None:
    """A crop of the frame's own scale, whose corner is a multiple of the grid, needs no
    interpolation.
    """
    recipe = recipe_of(videos)
    config = recipe.targets
    held = ClipTracks.of(recipe.replace(tracks=str(store)))
    source = open_source(recipe.data, recipe.clips)
    motion = MotionTargets(config)
    frames = source.read(0, motion.plan.frames)
    box, every = torch.tensor([16.0, 8.0, 64.0, 64.0]), torch.arange(4 * 16)
    assert held is not None
    read = held.read(source, 0, motion.plan, (80, 104), box, False, every, None)
    assert read is not None
    points, moves, visible, _ = read
    raw = MotionTargets(config.replace(norm="none"))
    made = raw(frames, crop=box)["position"]
    expected = made.values.reshape(moves.shape)
    assert (moves - expected).abs().max() <= 0.0625 + 1e-5
    assert (points[:, 1:] - points[:, :-1] - moves).abs().max() < 1e-4
    assert torch.equal(visible.view(made.valid.shape), made.valid)


def test_look_up_is_bilinear_and_mirrors() -> None:
    """Displacements that are linear in place are met everywhere between the points."""
    gy, gx, grid, step = 5, 6, 8, 0.125
    y, x = np.mgrid[:gy, :gx]
    field = np.zeros((1, 2, gy, gx, 2), np.int16)
    field[0, ..., 0], field[0, ..., 1] = 4 * x - 8 * y, 3 * y
    rng = np.random.default_rng(0)
    seeds = np.stack([rng.uniform(4, 44, 50), rng.uniform(4, 36, 50)], 1).astype(np.float32)
    rows = np.zeros(50, np.intp)
    common = {"grid": grid, "step": step, "size": (40, 48)}
    moves = look_up(field, None, seeds, rows, **common).displacements.numpy()
    u, v = (seeds - 4).T / 8
    np.testing.assert_allclose(moves[:, 1, 0], (4 * u - 8 * v) * step, atol=1e-5)
    np.testing.assert_allclose(moves[:, 0, 1], 3 * v * step, atol=1e-5)
    mirrored = seeds.copy()
    mirrored[:, 0] = 47 - seeds[:, 0]
    flipped = look_up(field, None, mirrored, rows, mirrored=True, **common)
    np.testing.assert_allclose(flipped.displacements.numpy() * [-1, 1], moves, atol=1e-5)
    usable = np.ones((1, gy, gx), bool)
    usable[0, 0, 0] = False
    near = look_up(field * 0, usable, np.float32([[5, 6], [9, 6]]), rows[:2], **common)
    assert near.visible.tolist() == [False, True]
    edge = look_up(field * 0, None, np.float32([[0.5, 0.5], [0, 5]]), rows[:2], **common)
    assert edge.visible.tolist() == [True, False]


def test_a_video_that_is_missing_is_computed_and_counted(videos: Path, store: Path) -> None:
    recipe = recipe_of(videos, tracks=str(store))
    source = open_source(recipe.data, recipe.clips)
    dataset = ClipDataset(recipe, source, tracks=ClipTracks.of(recipe))
    maker = TargetMaker(recipe.targets)
    batch = collate([dataset[0, 0], dataset[0, 1]], maker, stored=True)
    assert batch.inline == ["b.mp4"]
    plain = collate([ClipDataset(recipe, source)[0, 1]], maker)
    assert batch.targets is not None
    assert plain.targets is not None
    assert torch.equal(batch.targets["position"].values[1], plain.targets["position"].values[0])
    job = Pretraining(recipe)
    job.check([batch])
    assert job.about == {"videos": 2, "skipped": 0, "without_tracks": 0, "inline": 1}


def test_videos_that_are_missing_are_named(videos: Path, store: Path, tmp_path: Path) -> None:
    """Lest a whole training computes what it was to read, as the list calls videos otherwise."""
    (note,) = Pretraining(recipe_of(videos, tracks=str(store))).notes
    assert note.startswith(f"{store} has tracks of 1 of the 2 videos of ")
    assert note.endswith("computed at every visit: b.mp4")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{videos / name}\n" for name in NAMES))
    (note,) = Pretraining(recipe_of(listed, tracks=str(store))).notes
    assert f"has tracks of none of the 2 videos of '{listed}'" in note


def test_videos_that_are_missing_are_left_out_if_asked(videos: Path, store: Path) -> None:
    recipe = recipe_of(
        videos, tracks=str(store), clips={"missing": "skip"}, train={"batch_size": 1}
    )
    job = Pretraining(recipe)
    assert isinstance(job.source, StoredSource)
    assert (len(job.source), job.source.name(0), job.left_out) == (1, "a.mp4", 1)
    assert job.source.label(0) == -1
    assert job.source.frames(0) == 26
    assert job.source.read(0, [3]).shape == (1, 3, 80, 104)


def test_none_of_the_videos_in_the_store(videos: Path, tmp_path: Path) -> None:
    recipe = recipe_of(videos, tracks=str(tmp_path / "empty"), clips={"missing": "skip"})
    Store.create(tmp_path / "empty", track_config(recipe))
    with pytest.raises(ValueError, match=r"none of the 2 videos.*first is called 'a\.mp4'"):
        Pretraining(recipe)


def test_pretraining_from_tracks_and_through_a_cache(
    videos: Path, store: Path, tmp_path: Path
) -> None:
    cached = recipe_of(videos, cache=str(tmp_path / "cache"))
    summary = pretrain(cached, tmp_path / "cached", cpu=True)
    assert summary["inline"] == 0
    cache = Store(tmp_path / "cache")
    assert all(name in cache for name in NAMES)
    assert cache.file("a.mp4").stat().st_size > 0
    recipe = recipe_of(videos, tracks=str(tmp_path / "cache"))
    again = pretrain(recipe, tmp_path / "again", cpu=True)
    assert again["last"]["loss"] == summary["last"]["loss"], "the second epoch reads what is there"
    assert again["inline"] == 0
    # A store like any other, though no extraction has listed its videos.
    assert summary_of(cache).done == len(NAMES)
    assert not summary_of(cache).complete
    assert verify(cache, sources={name: str(videos / name) for name in NAMES}) == []
    merged = merge(tmp_path / "merged", [cache.path])
    assert sorted(record.name for record in merged.index()) == sorted(NAMES)
    stray = cache.path / "videos" / "00" / "stray.zip"
    stray.parent.mkdir(exist_ok=True)
    shutil.copy(cache.file("a.mp4"), stray)
    assert verify(cache) == [f"{stray} is in no list"]


def test_the_cache_is_written_once(videos: Path, tmp_path: Path) -> None:
    recipe = recipe_of(videos, cache=str(tmp_path / "cache"))
    dataset = ClipDataset(
        recipe, open_source(recipe.data, recipe.clips), tracks=ClipTracks.of(recipe)
    )
    first = dataset[0, 0]
    file = Store(tmp_path / "cache").file("a.mp4")
    before = file.stat().st_mtime_ns
    again = dataset[0, 0]
    dataset[1, 0]
    assert file.stat().st_mtime_ns == before
    assert first.tracks is not None
    assert again.tracks is not None
    assert all(torch.equal(a, b) for a, b in zip(first.tracks, again.tracks, strict=True))


def test_the_cache_mends_what_is_damaged_or_of_an_older_video(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is extracted anew, as in a run that begins now; no clip is lost."""
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    recipe = recipe_of(folder, cache=str(tmp_path / "cache"))
    dataset = ClipDataset(
        recipe, open_source(recipe.data, recipe.clips), tracks=ClipTracks.of(recipe)
    )
    assert dataset.tracks is not None
    first = dataset[0, 0]
    file = dataset.tracks.store.file("a.mp4")
    whole = file.read_bytes()
    at = whole.find(b"rows/c/0") + len("rows/c/0") + 5
    for damaged in (b"", whole[:500], whole[:at] + b"?" + whole[at + 1 :]):
        file.write_bytes(damaged)
        again = dataset[0, 0]
        assert not again.skipped
        assert torch.equal(first.tracks[1], again.tracks[1])
        assert file.read_bytes() == whole
    for frames in (26, 30):
        write_video(folder / "a.mp4", render_scene(frames, (80, 104), seed=9).frames)
        assert not dataset[0, 0].skipped
        assert verify(dataset.tracks.store, sources={"a.mp4": str(folder / "a.mp4")}) == []
    extracted = []
    monkeypatch.setattr(ClipTracks, "_extract", lambda *at: extracted.append(at))
    file.write_bytes(b"")
    assert dataset[0, 0].skipped, "what cannot be mended is said, and tried once"
    assert len(extracted) <= 2


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_cache_that_cannot_be_written_costs_no_video(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    recipe = recipe_of(videos, cache=str(tmp_path / "cache"))
    dataset = ClipDataset(
        recipe, open_source(recipe.data, recipe.clips), tracks=ClipTracks.of(recipe)
    )

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(EntryWriter, "finish", fails)
    with pytest.raises(StoreError, match=rf"cache: the tracks of a\.mp4 .*: {os.strerror(number)}"):
        dataset[0, 0]


def test_a_store_whose_list_has_grown_is_read_to_its_end(videos: Path, store: Path) -> None:
    grown = Store(store)
    try:
        recipe = recipe_of(videos, tracks=str(store))
        source = open_source(recipe.data, recipe.clips)
        grown.write_index([Record("b.mp4")])
        kept = stored_only(source, recipe)
        assert [kept.name(i) for i in range(len(kept))] == ["a.mp4", "b.mp4"]
    finally:
        (store / "index.parquet").unlink()


class Longer:
    """`a.mp4` with other frames than it had."""

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "a.mp4"

    def label(self, index: int) -> int:
        return -1

    def frames(self, index: int) -> int:
        return 30

    def read(self, index: int, indices: Sequence[int]) -> torch.Tensor:
        return torch.zeros(len(indices), 3, 80, 104, dtype=torch.uint8)


def test_tracks_of_another_video_are_refused(videos: Path, store: Path) -> None:
    recipe = recipe_of(videos, tracks=str(store))
    dataset = ClipDataset(recipe, Longer(), tracks=ClipTracks.of(recipe))
    with pytest.raises(VideoError, match=r"a\.mp4: the store has tracks of 26 frames.*has 30"):
        dataset[0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region": "crop"}, "targets.region is 'crop'"),
        ({"targets": ["trajectory", "flow"]}, "names flow, made of flow"),
        ({"length": 0, "targets": ["hog"]}, "targets.length is 0"),
    ],
)
def test_recipes_that_cannot_be_made_of_tracks(
    videos: Path, changes: dict[str, object], message: str
) -> None:
    targets = {**CHANGES["targets"], **changes}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=message):
        recipe_of(videos, tracks="store", targets=targets)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"flow": "tvl1"},
            "flow: dis in the store, tvl1 in the recipe: pass --targets.flow dis, or extract with "
            "--flow tvl1",
        ),
        (
            {"bound": 10.0},
            "bound: 20.0 in the store, 10.0 in the recipe: pass --targets.bound 20.0, or extract "
            "with --bound 10.0",
        ),
        (
            {"length": 5},
            "length: 4 in the store, 5 in the recipe: pass --targets.length 4, or extract with "
            "--length 5",
        ),
        (
            {"interpolate": False},
            "flow_stride: 1 in the store, 2 in the recipe: pass --targets.interpolate true, or "
            "extract with --interpolate false --stride 2",
        ),
    ],
)
def test_a_store_of_other_tracks_is_refused(
    videos: Path, store: Path, changes: dict[str, object], message: str
) -> None:
    recipe = recipe_of(videos, tracks=str(store), targets=changes)
    with pytest.raises(StoreError) as error:
        ClipTracks.of(recipe)
    assert str(error.value) == f"{store} holds other tracks than the recipe asks for: {message}"


def test_a_cache_of_other_tracks_is_refused(videos: Path, tmp_path: Path) -> None:
    """All of a config counts where videos are extracted into it, what no option sets too."""
    cache = tmp_path / "cache"
    Store.create(cache, track_config(recipe_of(videos), step=0.25))
    recipe = recipe_of(videos, cache=str(cache), targets={"length": 3, "grid": 16})
    with pytest.raises(StoreError) as error:
        ClipTracks.of(recipe)
    assert str(error.value) == (
        f"{cache} was made with other constants than the recipe has: length: 4 in the store, 3 in "
        "the recipe: pass --targets.length 4; grid: 8 in the store, 16 in the recipe: pass "
        "--targets.grid 8; step: 0.25 in the store, 0.125 in the recipe, for which it has no "
        "option: read it by --tracks; or name another --cache"
    )
    assert ClipTracks.of(recipe.replace(cache="", tracks=str(cache))) is not None


def test_tracks_and_cache_together_are_refused(videos: Path) -> None:
    with pytest.raises(ConfigError, match="tracks and cache"):
        recipe_of(videos, tracks="a", cache="b")


def test_known_tracks_must_be_of_the_patches(rng: np.random.Generator) -> None:
    recipe = Recipe.from_dict({**CHANGES, "data": "synthetic"})
    motion = MotionTargets(recipe.targets)
    frames = torch.zeros(len(motion.plan.frames), 3, 64, 64, dtype=torch.uint8)
    box = torch.tensor([0.0, 0, 64, 64])
    short = (torch.zeros(8, 5, 2), torch.zeros(8, 4, 2), torch.ones(8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"known has displacements \[1, 8, 4, 2\]"):
        motion(frames, crop=box, known=short)
