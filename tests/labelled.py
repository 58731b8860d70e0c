"""Videos of which names and labels are known, and nothing is read."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Labelled"]


class Labelled:
    """A source of videos by path and label."""

    def __init__(self, *videos: tuple[str, int], classes: tuple[str, ...] = ()) -> None:
        self.videos, self.classes = videos, classes

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, index: int) -> str:
        return self.videos[index][0]

    def label(self, index: int) -> int:
        return self.videos[index][1]

    def frames(self, index: int) -> int:
        raise AssertionError("labels are known without decoding")

    def read(self, index: int, indices: Any) -> torch.Tensor:
        raise AssertionError("labels are known without decoding")
