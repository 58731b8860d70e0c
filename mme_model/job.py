"""What a job is to the engine that trains it: batches, a loss, and what to measure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

__all__ = ["Job"]


class Job(Protocol):
    """What is trained."""

    kind: str
    """What checkpoints and summaries call it: "pretrain", …"""
    recipe: Any
    """A config with `train`, a `TrainConfig`."""
    model: nn.Module
    steps: int
    steps_per_epoch: int
    groups: list[dict[str, Any]]
    """Parameter groups with their weight decay and, where it is not 1, `lr_scale`: their learning
    rate relative to the schedule's."""
    judged: bool
    """Whether there are held-out clips, whose `score` then names the best checkpoint."""
    ema: float
    """Decay of an average of the weights that is kept beside them; 0: none."""
    notes: list[str]
    """What a user should know before it begins."""
    metadata: dict[str, str]
    """What the header of its checkpoints says beside the recipe."""

    @property
    def about(self) -> dict[str, Any]:
        """What the summary says of the data."""

    def batches(self, start: int, rank: int, world: int, device: torch.device) -> Iterator[Any]:
        """Micro-batches of this process from step `start` on, each on the device."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a micro-batch, and its parts."""

    def measure(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """What is to be known of held-out clips: means over the batch, by name."""

    def score(self, measured: dict[str, float]) -> float | None:
        """What a checkpoint is judged by, lower is better, of the means "val/…"."""

    def held_out(self, model: nn.Module, rank: int, world: int) -> Iterator[tuple[Any, int]]:
        """Batches of held-out clips and how many of each count; nothing if there are none."""

    def check(self, seen: list[Any]) -> None:
        """Raise `TrainingError` where too much of the data cannot be read."""

    def picture(self, model: nn.Module) -> Any:
        """A sheet, uint8 [3, H, W], or None."""

    def conclude(self, summary: dict[str, Any], folder: Path) -> dict[str, Any]:
        """What a finished run adds to its summary; it may write files of its own to the folder."""
