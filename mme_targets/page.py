"""The page of `save_html`: its data packed into page.html and page.js."""

from __future__ import annotations

import base64
import html
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .video import Clip
from .visualize import INVISIBLE, RAMP, STILL, Tracks

__all__ = ["render_page"]


def render_page(clip: Clip, tracks: Tracks, hog: torch.Tensor | None, quality: int) -> str:
    """The text of the page; arguments as `save_html` has checked them.

    Frames are embedded as JPEG, once each where padding repeats the last; points as float32;
    HOG as 8 bits and one float32 a track, value = bits * scale.
    """
    count = len(dict.fromkeys(clip.indices))
    height, width = clip.frames.shape[2:]
    starts, rows, columns, points = tracks.points.shape[:4]
    name = Path(clip.path).name
    data: dict[str, Any] = {
        "name": name,
        "width": width,
        "height": height,
        "fps": clip.fps,
        "times": [round(t, 6) for t in clip.times[:count]],
        "indices": list(clip.indices[:count]),
        "frames": [_jpeg(frame, quality) for frame in clip.frames[:count]],
        "shape": [starts, rows, columns, points],
        "at": [list(tracks.frames_of(start)) for start in range(starts)],
        "points": _pack(tracks.points.float()),
        "visible": _pack(tracks.visible.to(torch.uint8)),
        "hog": None,
        "ramp": RAMP,
        "invisible": INVISIBLE,
        "still": STILL,
    }
    if hog is not None:
        values = hog.float().cpu().flatten(3)
        scale = values.amax(-1).clamp_min(1e-12) / 255
        bits = (values / scale[..., None]).round().clamp(0, 255).to(torch.uint8)
        data["hog"] = {"shape": list(hog.shape[3:]), "scale": _pack(scale), "bits": _pack(bits)}
    # "<" never ends the script element it stands in.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "{{title}}": html.escape(name),
        "{{script}}": _read("page.js"),
        "{{data}}": text,
    }
    page = _read("page.html")
    for mark, part in parts.items():
        page = page.replace(mark, part)
    return page


def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _pack(values: torch.Tensor) -> str:
    """Little-endian bytes in base64."""
    array = np.ascontiguousarray(values.detach().cpu().numpy())
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _jpeg(frame: torch.Tensor, quality: int) -> str:
    import cv2

    picture = np.ascontiguousarray(frame.cpu().flip(0).permute(1, 2, 0).numpy())  # RGB to BGR
    written, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not written:
        raise RuntimeError("OpenCV could not encode a frame as JPEG")
    return base64.b64encode(data.tobytes()).decode("ascii")
