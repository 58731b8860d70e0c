"""What tests of stores share: small videos, the options that extract them, and a store's files."""

from __future__ import annotations

from pathlib import Path

from mme_targets.store import TrackConfig

CONFIG = TrackConfig(flow="dis", camera_motion=False, length=4)
LINE = ["--flow", "dis", "--camera_motion", "false", "--length", "4"]
COUNTS = {"a.mp4": 7, "b.mp4": 40, "c.mp4": 1, "d.mp4": 18}
"""Frames of each video: less than a track, more than a block, one."""


def tree(folder: Path) -> dict[str, bytes]:
    """Every file, by its place."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}
