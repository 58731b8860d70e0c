"""What the tracks of a store depend on: flow, tracking, and how they are rounded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .config import Detector, FlowMethod, TargetConfig
from .flow_config import SurfConfig, Tvl1Config
from .settings import Config, ConfigError, number

__all__ = ["Difference", "TrackConfig", "compared", "differences"]

_SHARED = [
    "flow",
    "weights",
    "tvl1",
    "camera_motion",
    "detector",
    "surf",
    "bound",
    "length",
    "grid",
    "median",
    "sampling",
]


@dataclass(frozen=True, kw_only=True)
class TrackConfig(Config):
    """Tracks of whole videos; fields that `TargetConfig` has as well mean the same."""

    flow: FlowMethod = "tvl1"
    """Optical flow method (Appendix A)."""
    weights: str = ""
    """File of RAFT's weights, read when `flow` is "raft"."""
    tvl1: Tvl1Config = field(default_factory=Tvl1Config)
    """Parameters of TV-L1, read when `flow` is "tvl1"."""
    camera_motion: bool = True
    """Remove camera motion before tracking (Appendix A)."""
    detector: Detector = "surf"
    """Interest points for the camera's homography."""
    surf: SurfConfig = field(default_factory=SurfConfig)
    """Parameters of SURF, read when `detector` is "surf"."""
    bound: float = number(20.0, 0, 1000, open_low=True)
    """Flow is clipped to ± this, px."""
    flow_stride: int = number(1, 1, 256)
    """Raw frames from the first to the second of a flow pair."""
    length: int = number(6, 1, 32)
    """Steps L of a track (Eq. 2); shorter ones can be read."""
    grid: int = number(8, 1, 256)
    """Distance of the tracked points in the whole frame, px."""
    median: int = number(3, 1, 3)
    """Side of the median filter on the flow, px (Eq. 6)."""
    sampling: Literal["nearest", "bilinear"] = "nearest"
    """How flow is read between pixels."""
    short_side: int = number(0, 0, 8192)
    """Videos are resized to this short side as they are decoded, px; 0 keeps them."""
    step: float = number(0.125, 0.001, 16)
    """Displacements are rounded to multiples of this, px: half of it is the largest error."""

    def _check_together(self) -> None:
        if self.median not in (1, 3):
            self._fail("median", "must be 1 (none) or 3")
        if self.bound / self.step > 32000:
            self._fail("step", f"must be at least bound / 32000 ({self.bound / 32000:g})")

    @classmethod
    def of(cls, targets: TargetConfig, *, short_side: int = 0, step: float = 0.125) -> TrackConfig:
        """The tracks that targets of this config are made of, if their region is the frame.

        Raises
        ------
        ConfigError
            If the targets need no tracks (length 0).
        """
        if targets.length < 1:
            raise ConfigError("length is 0; a store holds tracks of one step or more")
        shared = {name: getattr(targets, name) for name in _SHARED}
        return cls(**shared, flow_stride=targets.flow_stride, short_side=short_side, step=step)

    @classmethod
    def of_described(cls, described: Mapping[str, Any], weights: str = "") -> TrackConfig:
        """The inverse of `described`; what is not read keeps its defaults.

        Parameters
        ----------
        weights : file of RAFT's weights, of which `described` has the digest alone.

        Raises
        ------
        ConfigError
            For values that this version does not know.
        """
        return cls.from_dict({**described, "weights": weights})

    def described(self) -> dict[str, Any]:
        """Plain values of what is read alone; RAFT's weights by their content, not their place.

        Raises
        ------
        ConfigError
            If `flow` is "raft" and `weights` names no file.
        """
        values = self.to_dict()
        if self.flow != "tvl1":
            del values["tvl1"]
        if self.flow == "raft":
            if not Path(self.weights).is_file():
                self._fail("weights", "must be the file of RAFT's weights, for flow 'raft'")
            digest = hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()
            values["weights"] = f"sha256:{digest}"
        else:
            del values["weights"]
        if not self.camera_motion:
            del values["detector"]
        if not self.camera_motion or self.detector != "surf":
            del values["surf"]
        return values


class Difference(NamedTuple):
    """A value in which two described configs differ.

    Attributes
    ----------
    name : with dots, as in "tvl1.warps".
    held, asked : its two values; None on the side that does not read it.
    """

    name: str
    held: Any
    asked: Any


def compared(
    held: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = ""
) -> list[Difference]:
    """Where two described configs differ."""
    found = []
    for name in [*held, *(n for n in asked if n not in held)]:
        a, b = held.get(name), asked.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += compared(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(Difference(prefix + name, a, b))
    return found


def differences(held: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The same in words: "bound is 20 there, 10 here"."""
    if held == asked:
        return []
    return [
        f"{name} is {'not read' if a is None else 'read'} there"
        if a is None or b is None
        else f"{name} is {a!r} there, {b!r} here"
        for name, a, b in compared(held, asked)
    ]
