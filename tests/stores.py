"""What tests of stores share: small videos, options that extract them, a store's files, rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mme_targets.store import TrackConfig

CONFIG = TrackConfig(flow="dis", camera_motion=False, length=4)
LINE = ["--flow", "dis", "--camera_motion", "false", "--length", "4"]
COUNTS = {"a.mp4": 7, "b.mp4": 40, "c.mp4": 1, "d.mp4": 18}
"""Frames of each video: less than a track, more than a block, one."""


def tree(folder: Path) -> dict[str, bytes]:
    """Every file, by its place."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def smooth(
    rng: np.random.Generator, grid: tuple[int, int], frames: int, config: TrackConfig
) -> np.ndarray:
    """Rows [R, L, Gy, Gx, 2] of tracks through flow that is smooth, with an edge that moves."""
    gy, gx = grid
    rows = np.zeros((frames, config.length, gy, gx, 2), np.int16)
    at = np.zeros((frames, config.length, gy, gx, 2))
    x, y = np.arange(gx) * 8 + 4.0, np.arange(gy)[:, None] * 8 + 4.0
    speed = rng.uniform(-6, 6, 4)
    for row in range(frames):
        for plane in range(config.length):
            before = row - config.flow_stride
            if plane and before >= 0:
                at[row, plane] = at[before, plane - 1] + rows[before, plane - 1] * config.step
            px = np.floor(x + at[row, plane, ..., 0] + 0.5)
            py = np.floor(y + at[row, plane, ..., 1] + 0.5)
            here = px + py > 30 + 2 * row
            flow = np.stack([speed[0] + here * speed[1], speed[2] + py * speed[3] / 40], axis=-1)
            rows[row, plane] = np.rint(flow / config.step)
    return rows
