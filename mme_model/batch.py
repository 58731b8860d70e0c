"""Clips as they go from a loader's worker to the trainer, and to a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mme_targets.targets import Target, Targets

__all__ = ["Batch", "Sample"]


@dataclass
class Sample:
    """One clip. `Batch` says what each field holds; here without the first axis."""

    rgb: torch.Tensor
    masked: torch.Tensor
    frames: torch.Tensor
    box: torch.Tensor | None
    padded: torch.Tensor
    permutation: torch.Tensor | None
    tracks: list[torch.Tensor] | None
    epoch: int
    index: int
    name: str
    skipped: list[tuple[str, str]]
    seconds: dict[str, float]


@dataclass
class Batch:
    """Clips with what is masked in them, and their targets or the frames to make those from.

    Attributes
    ----------
    rgb : [B, T, 3, S, S] uint8, what the model sees, shuffled where the recipe says so.
    masked : [B, M] int64, ascending: the masked patches.
    targets : of the masked patches; None where `frames` are carried instead.
    frames : [B, F, 3, S, S] uint8, those of the clips' plans, in their true order; with
        `region="frame"` a list of [F, 3, H, W]. None where the targets are made.
    boxes : [B, 4] float32 (x, y, width, height) px, with `region="frame"`: what of `frames` the
        model sees.
    padded : [B, S, L] bool, steps of tracks past a video's end; None where there are none.
    permutation : [B, T] int64, where frames are shuffled: the model's frame t is permutation[t].
    tracks : of each clip its tracks from a store, [R, L+1, 2], [R, L, 2], [R] and homographies
        [P, 3, 3] (see `mme_model.tracks`), or None for one whose flow is to be computed; None
        where no store is used.
    inline : names of clips that a store was to have and had not.
    epoch : that all clips are of.
    indices, names : the videos that the clips are from.
    skipped : name and reason of each video that could not be read and was replaced.
    seconds : by phase, of all clips together, where the batch was made.
    later : the same of what a GPU is still at; waits for it.
    """

    rgb: torch.Tensor
    masked: torch.Tensor
    targets: Targets | None
    frames: torch.Tensor | list[torch.Tensor] | None
    boxes: torch.Tensor | None
    padded: torch.Tensor | None
    permutation: torch.Tensor | None
    epoch: int
    indices: list[int]
    names: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    tracks: list[list[torch.Tensor] | None] | None = None
    inline: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    later: Callable[[], dict[str, float]] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def timings(self) -> dict[str, float]:
        """Seconds by phase, wherever they were spent."""
        return {**self.seconds, **(self.later() if self.later else {})}

    def to(self, device: torch.device | str) -> Batch:
        """The same on `device`; from pinned memory the host does not wait."""
        return self._mapped(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in pinned memory; called by the loader."""
        return self._mapped(lambda t: t.pin_memory())

    def tensors(self) -> Iterator[torch.Tensor]:
        """All that it holds, for `record_stream`."""
        found: list[torch.Tensor] = []
        self._mapped(lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
        return iter(found)

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        def walk(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return change(value)
            if isinstance(value, Targets):
                return Targets({n: Target(*map(change, target)) for n, target in value.items()})
            if isinstance(value, list):
                return [walk(item) for item in value]
            return value

        names = [f.name for f in dataclasses.fields(self)]
        return Batch(**{name: walk(getattr(self, name)) for name in names})
