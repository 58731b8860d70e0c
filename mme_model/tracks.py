"""Motion from a store of tracks in place of flow: what `--tracks` and `--cache` of pre-training do.

The tracks of a clip's masked patches are looked up where it is decoded, at the seeds of its crop,
mirrored as its frames are; the position target is made of them, and HOG is read along them in the
decoded frames. What they differ by from flow computed beside the training step is the rounding of
the store (half a step) and the interpolation between its points.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from mme_targets import ClipPlan, MotionTargets
from mme_targets.demux import VideoError
from mme_targets.region import to_frame
from mme_targets.store import Store
from mme_targets.store_config import TrackConfig
from mme_targets.store_entry import Entry, StoreError
from mme_targets.store_extract import BLOCK, Frames, extract_frames, extract_video
from mme_targets.store_read import read_tracks

from .inline import source_tokens
from .labels import some
from .recipe import Recipe
from .sources import Source
from .track_options import Apart, apart, extract_option, recipe_option

__all__ = ["ClipTracks", "StoredSource", "said_missing", "stored_only", "track_config"]


def track_config(recipe: Recipe, step: float = 0.125) -> TrackConfig:
    """The tracks that a recipe's targets are made of."""
    return TrackConfig.of(recipe.targets, short_side=recipe.clips.short_side, step=step)


def open_tracks(recipe: Recipe) -> Store:
    """Open the store that a recipe names, if its targets can be made of it.

    Raises
    ------
    FileNotFoundError, StoreError
        If there is none, or its tracks are others than the recipe's; says how they differ, and
        which options make them agree.
    """
    store = Store(recipe.tracks or recipe.cache)
    # The grid is that of the frame, the step its rounding, and fewer steps than it has can be read:
    # these are the targets' business where they are to be written alone.
    free: set[str] = set() if recipe.cache else {"grid", "step"}
    if recipe.tracks and store.length >= recipe.targets.length:
        free.add("length")
    found = apart(store.config, track_config(recipe), free=free)
    if not found:
        return store
    if recipe.cache:
        lines = [_cache_line(one) for one in found]
        what, end = "was made with other constants than the recipe has", "; or name another --cache"
    else:
        lines = [_tracks_line(one) for one in found]
        what, end = "holds other tracks than the recipe asks for", ""
    raise StoreError(f"{store.path} {what}: {'; '.join(lines)}{end}")


def _tracks_line(one: Apart) -> str:
    passed, made = one.to_held(recipe_option), one.to_asked(extract_option)
    ways = [f"pass {passed}"] * bool(passed) + [f"extract with {made}"] * bool(made)
    return f"{one.sides('in the recipe')}: {', or '.join(ways)}"


def _cache_line(one: Apart) -> str:
    passed = one.to_held(recipe_option)
    way = f": pass {passed}" if passed else ", for which it has no option: read it by --tracks"
    return f"{one.sides('in the recipe')}{way}"


class ClipTracks:
    """Tracks of clips from a store; with `fill`, videos that it lacks are extracted first.

    Picklable, and used by any number of workers at once.
    """

    def __init__(self, recipe: Recipe, store: Store, fill: bool) -> None:
        self.config, self.store, self.fill = recipe.targets, store, fill
        self.tracks = track_config(recipe)
        self.follow = recipe.clips.shuffle == "both"
        self._motion = MotionTargets(self.config)

    @classmethod
    def of(cls, recipe: Recipe) -> ClipTracks | None:
        """What the recipe's `tracks` or `cache` names; None where it names none.

        Raises
        ------
        OSError, StoreError
            If it cannot be used.
        """
        if recipe.cache and not (Path(recipe.cache) / "zarr.json").is_file():
            Store.create(recipe.cache, track_config(recipe))
        if not recipe.cache and not recipe.tracks:
            return None
        return cls(recipe, open_tracks(recipe), fill=bool(recipe.cache))

    def read(
        self,
        source: Source,
        index: int,
        plan: ClipPlan,
        size: tuple[int, int],
        box: torch.Tensor,
        mirrored: bool,
        masked: torch.Tensor,
        permutation: torch.Tensor | None,
    ) -> list[torch.Tensor] | None:
        """Tracks of the masked patches of a clip.

        Parameters
        ----------
        source, index : the video.
        plan : of the clip.
        size : height and width of its frames, px.
        box : [4] (x, y, width, height) px of the frame, after mirroring, that the model sees.
        mirrored : whether frames are mirrored.
        masked : [M] patches.
        permutation : [T], where the model's frames are shuffled.

        Returns
        -------
        Points [R, L+1, 2], displacements [R, L, 2] px of the frame, visible [R], and homographies
        [P, 3, 3]; None where the store has not got the video.

        Raises
        ------
        VideoError
            If what it has is damaged, or of another video. With `fill` it is extracted anew.
        """
        name = source.name(index)
        if self.fill and name not in self.store:
            self._extract(source, index)
        for last in (not self.fill, True):
            try:
                with self.store.entry(name) as entry:
                    self._check(entry, source, index, size)
                    return self._look_up(entry, plan, box, mirrored, masked, permutation)
            except KeyError:
                return None
            except StoreError as error:
                if last:
                    raise VideoError(f"{name}: {error}") from None
            self._extract(source, index)  # what the cache has is damaged, or of an older video
        return None

    def _check(self, entry: Entry, source: Source, index: int, size: tuple[int, int]) -> None:
        """StoreError if an entry is of another video."""
        held, real = (entry.frames, entry.height, entry.width), source.frames(index)
        if held != (real, *size):
            raise StoreError(
                f"the store has tracks of {held[0]} frames of {held[2]}x{held[1]} px; the video "
                f"has {real} of {size[1]}x{size[0]}"
            )
        path = getattr(source, "path", None)
        if self.fill and path is not None:
            was, now = entry.about.get("source", {}).get("bytes"), os.path.getsize(path(index))
            if was != now:
                raise StoreError(f"the store has tracks of a video of {was} bytes; it has {now}")

    def _look_up(
        self,
        entry: Entry,
        plan: ClipPlan,
        box: torch.Tensor,
        mirrored: bool,
        masked: torch.Tensor,
        permutation: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        config, tokens = self.config, masked[None]
        if self.follow and permutation is not None:
            tokens = source_tokens(tokens, permutation[None], config)
        seeds, rows = self._motion._seeds(config.size, config.size, tokens, masked.device)
        seeds = to_frame(seeds, box[None], config.size)
        starts = np.array([plan.frames[at] for at in plan.rgb[:: config.tubelet]], dtype=np.intp)
        found = read_tracks(
            entry,
            starts,
            config.length,
            seeds[0].numpy(),
            rows[0].numpy().astype(np.intp),
            mirrored=mirrored,
        )
        cameras = torch.empty((0, 3, 3), dtype=torch.float64)
        if config.follow_camera:
            first = [plan.frames[a] for a, _ in plan.pairs]
            cameras = torch.from_numpy(entry.homographies(first))
            if mirrored:
                flip = torch.tensor([[-1.0, 0, entry.width - 1], [0, 1, 0], [0, 0, 1]]).double()
                cameras = flip @ cameras @ flip
        return [*found, cameras]

    def _extract(self, source: Source, index: int) -> None:
        """Extract a whole video; another worker that does so too writes the same.

        Raises
        ------
        VideoError
            If it cannot be read.
        StoreError
            If the tracks cannot be written: no video is left out for that.
        """
        try:
            self._extract_whole(source, index)
        except OSError as error:
            raise StoreError(
                f"{self.store.path}: the tracks of {source.name(index)} cannot be written: "
                f"{error.strerror or error}; once they can, --resume auto goes on"
            ) from None

    def _extract_whole(self, source: Source, index: int) -> None:
        name, path = source.name(index), getattr(source, "path", None)
        if path is not None:
            extract_video(self.store, self.tracks, name, path(index))
            return
        count = source.frames(index)

        def blocks() -> Iterator[torch.Tensor]:
            for at in range(0, count, BLOCK):
                yield source.read(index, range(at, min(at + BLOCK, count)))

        extract_frames(self.store, self.tracks, name, Frames(count, 25.0, blocks()))


class StoredSource:
    """Some videos of a source."""

    def __init__(self, source: Source, kept: Sequence[int]) -> None:
        self.source, self.kept = source, np.asarray(kept, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.kept)

    def name(self, index: int) -> str:
        """As the source has it."""
        return self.source.name(int(self.kept[index]))

    def label(self, index: int) -> int:
        """As the source has it."""
        return self.source.label(int(self.kept[index]))

    def frames(self, index: int) -> int:
        """As the source has it."""
        return self.source.frames(int(self.kept[index]))

    def read(self, index: int, indices: Sequence[int]) -> torch.Tensor:
        """As the source has it."""
        return self.source.read(int(self.kept[index]), indices)


def stored(source: Source, recipe: Recipe) -> list[int]:
    """Which videos of a source the recipe's store has tracks of."""
    store = Store(recipe.tracks)
    # More than is listed, where a list was added to and is not through again.
    listed = {record.name for record in store.index() if record.done}
    return [i for i in range(len(source)) if (name := source.name(i)) in listed or name in store]


def said_missing(source: Source, recipe: Recipe) -> list[str]:
    """What to say where the store lacks videos, of which flow is computed: names may differ."""
    kept = set(stored(source, recipe))
    gone = [i for i in range(len(source)) if i not in kept]
    if not gone:
        return []
    named = some([source.name(i) for i in gone[:5]], len(gone))
    return [
        f"{recipe.tracks} has tracks of {len(kept) or 'none'} of the {len(source)} videos of "
        f"{recipe.data!r}; motion of the others is computed at every visit: {named}"
    ]


def stored_only(source: Source, recipe: Recipe) -> StoredSource:
    """The videos of a source that the recipe's store has tracks of.

    Raises
    ------
    ValueError
        If it has none of them.
    """
    kept = stored(source, recipe)
    if not kept:
        raise ValueError(
            f"{recipe.tracks} has tracks of none of the {len(source)} videos of {recipe.data!r}; "
            f"the first is called {source.name(0)!r} there"
        )
    return StoredSource(source, kept)
