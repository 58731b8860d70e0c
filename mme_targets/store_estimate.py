"""What extracting a list of videos will take, from a sample of it: what `--dry-run` says."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .store import Store
from .store_config import TrackConfig
from .store_extract import Frames, extract_frames, read_video
from .store_job import Item
from .video import VideoError, probe

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """What extracting some videos will take.

    Attributes
    ----------
    videos, frames : how many; frames are counted in a sample.
    seconds : of one process, from pairs that were solved for it.
    bytes : on disk.
    looked_at : videos of the sample.
    unreadable : those of them that are no video: name and reason.
    """

    videos: int
    frames: int
    seconds: float
    bytes: int
    looked_at: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def estimate(
    config: TrackConfig, items: Sequence[Item], *, sample: int = 16, solved: int = 3, device: str
) -> Estimate:
    """Look at `sample` videos, evenly spread, and extract 24 frames from `solved` of them."""
    if not items:
        return Estimate(0, 0, 0.0, 0)
    some = [items[i * len(items) // sample] for i in range(sample)]
    some = list(dict.fromkeys(some))
    counts, read, seconds, size = [], 0, 0.0, 0
    unreadable: list[tuple[str, str]] = []
    for item in some:
        try:
            info = probe(item.path)
            counts.append(info.frames)
            if read >= solved:
                continue
            whole = read_video(item.path, config.short_side)
            count = min(whole.count, 24)
            with tempfile.TemporaryDirectory() as folder:
                store = Store.create(Path(folder) / "store", config)
                begun = time.perf_counter()
                part = Frames(count, whole.fps, _first(whole.blocks, count))
                made = extract_frames(store, config, item.name, part, device=device)
                # Of a video of 24 frames a third is the zip's and the shards' own description.
                size_, took = max(made.bytes - 9000, 0), time.perf_counter() - begun
            pairs = max(1, count - config.flow_stride)
            seconds += took / pairs
            size += size_ // pairs
            read += 1
        except (VideoError, OSError) as error:
            unreadable.append((item.name, str(error).removeprefix(f"{item.path}: ")))
    frames = sum(counts) * len(items) // max(1, len(some))
    return Estimate(
        videos=len(items),
        frames=frames,
        seconds=frames * seconds / max(1, read),
        bytes=frames * size // max(1, read) + 9000 * len(items) * len(counts) // len(some),
        looked_at=len(some),
        unreadable=unreadable,
    )


def _first(blocks: Iterable[torch.Tensor], count: int) -> Iterable[torch.Tensor]:
    left = count
    for block in blocks:
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return
