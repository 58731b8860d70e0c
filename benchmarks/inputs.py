"""Real frames, from `../shared/data` beside the checkout: Middlebury's pairs and video clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
SCENES = ("RubberWhale", "Grove2", "Urban2", "Venus")
CLIPS = ("kinetics_340x256.mp4", "kinetics_426x240.mkv", "ucf_320x240.avi", "bear_854x480.mp4")


class Missing(Exception):
    """What a case needs is not here; says what."""


def folder(data: Path | None, name: str) -> Path:
    """A folder of the real inputs."""
    if data is None or not (data / name).is_dir():
        raise Missing(f"no {name} under {data or 'shared/data'}")
    return data / name


def middlebury(data: Path | None, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Frames [2, 3, H, W] and their true flow [2, H, W]; values above 1e9 are unknown."""
    try:
        import cv2
    except ImportError:
        raise Missing("reading Middlebury's frames needs OpenCV") from None
    scene = folder(data, "middlebury") / name
    frames = [cv2.imread(str(scene / f"frame{i}.png"))[..., ::-1] for i in (10, 11)]
    raw = np.fromfile(scene / "flow10.flo", np.float32)
    width, height = raw[1:3].view(np.int32)
    truth = raw[3:].reshape(height, width, 2).transpose(2, 0, 1)
    return np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2)), truth


def end_point_error(flow: Any, truth: NDArray[np.float32]) -> float:
    """Mean length of the difference of two flows [2, H, W], where the true one is known, px."""
    known = (np.abs(truth) < 1e9).all(axis=0)
    return float(np.linalg.norm(np.asarray(flow) - truth, axis=0)[known].mean())


def clip(data: Path | None, name: str, count: int, side: int | None) -> torch.Tensor:
    """The first frames of a video [count, 3, side, side] uint8: short side resized, centre cut.

    Whole where `side` is None.
    """
    path = folder(data, "videos") / name
    try:
        from mme_targets.video import decode
    except ImportError as error:
        raise Missing(f"decoding {name} needs PyAV ({error})") from None
    return decode(path, range(count), short_side=side, crop=side).frames
