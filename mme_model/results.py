"""What a finished job has to say: figures for summary.json, and a row in the form of Tables 1 to 3.

Accuracies are in per cent. GFLOPs are multiply-adds of the encoder over a clip, in 10^9, times the
views in time and in space, as the paper has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mme_targets.files import atomic_path

from .finetune_recipe import ViewConfig
from .flops import encoder_count
from .recipe import ModelConfig, Recipe
from .vit import SIZES, encoder_shape

__all__ = ["Row", "backbone", "figure", "pretraining", "write_row"]

_LETTERS = {"tiny": "Ti", "small": "S", "base": "B", "large": "L"}


@dataclass(frozen=True)
class Row:
    """A row of Tables 1 to 3.

    Attributes
    ----------
    model, clip : the encoder, and what a view is.
    parameters : of the encoder with its classifier.
    clips, crops : views of a video, in time and in space.
    accuracy, top5 : in per cent; None where it was not measured.
    method, data, epochs : of the pre-training; "-" where there was none or it is not known.
    """

    model: ModelConfig
    clip: ViewConfig
    parameters: int
    clips: int
    crops: int
    accuracy: float | None
    top5: float | None = None
    method: str = "-"
    data: str = "-"
    epochs: str = "-"

    def cells(self) -> dict[str, str]:
        """Column to text."""
        giga = encoder_count(self.model, self.clip) / 1e9
        return {
            "Method": self.method,
            "Backbone": backbone(self.model),
            "Pre-train": self.data,
            "Epochs": self.epochs,
            "Frames": str(self.clip.frames),
            "GFLOPs": f"{_short(giga)} × {self.clips} × {self.crops}",
            "Param.": f"{_short(self.parameters / 1e6)} M",
            "Acc.@1": _percent(self.accuracy),
            "Acc.@5": _percent(self.top5),
        }


def pretraining(recipe: Recipe) -> dict[str, str]:
    """A row's `method`, `data` and `epochs` for an encoder that this recipe pre-trained.

    Pixels alone are VideoMAE's target; tracks without a step leave the patch's HOG, MaskFeat's.
    """
    targets, train = recipe.targets, recipe.train
    method = "MaskFeat" if targets.length == 0 else "MME"
    return {
        "method": "VideoMAE" if targets.targets == ("pixel",) else method,
        "data": Path(recipe.data).stem,
        "epochs": f"{train.steps} steps" if train.steps else str(train.epochs),
    }


def backbone(model: ModelConfig) -> str:
    """Such as "ViT-B", or with width and depth where these are not the size's own."""
    if model.backbone == "mvitv2_s":
        return "MViTv2-S"
    shape = encoder_shape(model)
    name = f"ViT-{_LETTERS[model.size]}"
    if shape == SIZES[model.size]:
        return name
    return f"{name} (width {shape.width}, depth {shape.depth})"


def figure(
    name: str, value: float, *, unit: str = "%", clips: int, crops: int, videos: int, **more: Any
) -> dict[str, Any]:
    """One measured number, for the list "figures" of a summary.

    Parameters
    ----------
    clips, crops : views of a video in time and in space.
    videos : that it is a mean over.
    more : whatever else tells how it was measured.
    """
    return {"name": name, "value": round(value, 4), "unit": unit,
            "views": f"{clips} × {crops}", "videos": videos, **more}  # fmt: skip


def write_row(folder: Path, cells: Mapping[str, str]) -> str:
    """Write `row.md`, a table of one row, and give it back."""
    lines = [
        "| " + " | ".join(cells) + " |",
        "|" + " --- |" * len(cells),
        "| " + " | ".join(text.replace("|", "\\|") for text in cells.values()) + " |",
    ]
    text = "\n".join(lines) + "\n"
    with atomic_path(folder / "row.md") as beside:
        beside.write_text(text)
    return text


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _short(value: float) -> str:
    """Whole from 10 on, else with two digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
