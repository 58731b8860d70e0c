"""Every constant of the paper, as a field with its unit and the section it comes from."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from .flow_config import SurfConfig, Tvl1Config
from .settings import Config, ConfigError, number

__all__ = ["ConfigError", "SurfConfig", "TargetConfig", "Tvl1Config"]

FlowMethod = Literal["tvl1", "farneback", "dis", "raft"]
Detector = Literal["surf", "sift", "orb", "corners"]
TargetName = Literal["trajectory", "position", "shape", "pixel", "hog", "flow", "hof", "mbh"]


@dataclass(frozen=True, kw_only=True)
class TargetConfig(Config):
    """What a clip is and what is to be predicted from it. The defaults are the paper's."""

    frames: int = number(16, 1, 1024)
    """Frames that the model sees (§4)."""
    stride: int = number(4, 1, 256)
    """Raw frames from one of these to the next: 4 for Kinetics-400, 3 for SSv2 (§4, Table 7d)."""
    tubelet: int = number(2, 1, 64)
    """Frames in one 3-D patch, t of t×h×w (§3.2)."""
    patch: int = number(16, 1, 256)
    """Side of one 3-D patch, h = w, px (§3.2)."""
    size: int = number(224, 1, 8192)
    """Side of the square crop that the model sees, px (§4). Frames of another size are allowed
    where they are given whole (`region="crop"` takes what it gets)."""
    region: Literal["crop", "frame"] = "crop"
    """Where flow and tracks live: in the crop, or in the whole frame (the paper's order), with
    seeds mapped into it and displacements scaled back (Appendix B)."""

    flow: FlowMethod = "tvl1"
    """Optical flow method (Appendix A): the paper's TV-L1; DIS is by far the fastest; RAFT needs
    `weights`."""
    weights: str = ""
    """File of RAFT's weights, read when `flow` is "raft"."""
    tvl1: Tvl1Config = field(default_factory=Tvl1Config)
    """Parameters of TV-L1, read when `flow` is "tvl1"."""
    camera_motion: bool = True
    """Remove camera motion before tracking (Appendix A; Appendix E: −4.4 points without)."""
    detector: Detector = "surf"
    """Interest points for the camera's homography, beside corners carried by the flow (Appendix A:
    SURF, which is patented in the US; the others are free of that)."""
    surf: SurfConfig = field(default_factory=SurfConfig)
    """Parameters of SURF, read when `detector` is "surf"."""
    bound: float = number(20.0, 0, 1000, open_low=True)
    """Flow is clipped to ± this, px (Appendix A)."""
    interpolate: bool = True
    """Targets at the raw frame rate though the input is sparse (§3.3, Table 6); off, flow runs
    between sampled frames."""
    hog_interpolate: bool = True
    """Where targets are interpolated, "hog" is that of the L raw frames; off, the middle frame's
    alone, as beside the interpolated motion of Table 5."""

    length: int = number(6, 0, 32)
    """Steps L of a trajectory (Eq. 2, Table 7a); 0 leaves the HOG of the patch alone: MaskFeat."""
    grid: int = number(8, 1, 256)
    """Distance of the tracked points, px: 8 gives K = 4 in a 16×16 patch (§3.3)."""
    median: int = number(3, 1, 3)
    """Side of the median filter M on the flow, px (Eq. 6); 1 leaves it out."""
    sampling: Literal["nearest", "bilinear"] = "nearest"
    """How flow is read between pixels (Eq. 6; nearest rounds halves up)."""

    bins: int = number(9, 2, 36)
    """Orientation bins over 180° (§3.3)."""
    cell: int = number(8, 2, 256)
    """Side of a HOG cell, px (Appendix C, MaskFeat)."""
    binning: Literal["hard", "linear"] = "hard"
    """One bin a pixel, or shared linearly by the two nearest (Appendix C, MaskFeat: hard)."""
    pool: Literal["sum", "mean"] = "sum"
    """How magnitudes are pooled over a cell."""
    padding: Literal["reflect", "replicate"] = "reflect"
    """How frames are continued for Sobel."""
    l2: bool = False
    """L2 over the bins of a cell; left out by the paper (Appendix C)."""
    shape: Literal["cell", "window"] = "cell"
    """HOG along a track (Eq. 5): of the cell that holds the point (Appendix C), or of a window
    around it (Fig. 5)."""
    follow_camera: bool = False
    """Add the camera's motion back for the HOG look-up, as improved Dense Trajectories do."""

    norm: Literal["patch", "coordinate", "none"] = "patch"
    """Normalise over all values of a patch, per coordinate and step over its K tracks, or not
    (§3.3, Table 7b)."""
    eps: float = number(1e-6, 0, 1)
    """Added to the variance (MAE's constant)."""
    density: Literal["dense", "mean", "max"] = "dense"
    """All K tracks of a patch, their mean, or the one that moves most (Table 7c)."""
    loss_mask: bool = True
    """Mark tracks that leave the frame as invalid (Eq. 7; Appendix E: −0.7 points without)."""
    targets: tuple[TargetName, ...] = ("trajectory",)
    """What is made: "trajectory" (position and shape), either alone, or "pixel", "hog", "flow",
    "hof", "mbh" (Tables 5 and 11)."""
    quirks: Literal["none", "released"] = "none"
    """"released" repeats the slips of the authors' code on the reference floor; see
    `mme_targets.backends.reference.released`."""

    @property
    def flow_stride(self) -> int:
        """Raw frames from the first to the second of a flow pair, s_flow (Appendix A)."""
        return 1 if self.interpolate else self.stride

    @property
    def tracks(self) -> int:
        """K, the trajectories of one patch."""
        return (self.patch // self.grid) ** 2

    def _check_together(self) -> None:
        names = typing.get_args(TargetName)
        for name in self.targets:
            if name not in names:
                self._fail("targets", f"{name!r} is none of {', '.join(names)}")
        if not self.targets:
            self._fail("targets", "must name at least one")
        if self.frames % self.tubelet:
            self._fail("frames", f"must be divisible by tubelet ({self.tubelet})")
        if self.region == "frame" and self.size % self.patch:
            self._fail("size", f"must be divisible by patch ({self.patch})")
        if self.patch % self.grid:
            self._fail("grid", f"must divide patch ({self.patch}), so that each has K points")
        if self.median not in (1, 3):
            self._fail("median", "must be 1 (none) or 3")
        if self.norm == "coordinate" and self._tracked and self._merged == 1:
            self._fail("norm", "'coordinate' needs two tracks a patch or more; K is 1 here")
        if self.length == 0 and "position" in self.targets:
            self._fail("length", "0 leaves no position to predict, which `targets` asks for")
        if self.length == 0 and {"flow", "hof", "mbh"} & set(self.targets):
            self._fail("length", "must be 1 or more for the targets flow, hof and mbh")
        dense = {"hog", "hof", "mbh"} & set(self.targets)
        if dense and self.patch % self.cell:
            self._fail("cell", f"must divide patch ({self.patch}) for {', '.join(sorted(dense))}")
        if self.follow_camera and not self.camera_motion:
            self._fail("follow_camera", "needs camera_motion")
        if self.quirks == "released":
            if not set(self.targets) <= {"trajectory", "position", "shape"}:
                self._fail(
                    "targets", "may name trajectory, position and shape with released quirks"
                )
            if self.region != "crop" or self.tracks < 2:
                self._fail(
                    "quirks", "'released' needs region 'crop' and two tracks a patch or more"
                )

    @property
    def _tracked(self) -> bool:
        return bool({"trajectory", "position", "shape"} & set(self.targets))

    @property
    def _merged(self) -> int:
        return self.tracks if self.density == "dense" else 1

    @classmethod
    def paper(cls, **changes: Any) -> TargetConfig:
        """The paper's setting (§4, Appendices A to C)."""
        return cls().replace(**changes)

    @classmethod
    def kinetics400(cls, **changes: Any) -> TargetConfig:
        """Kinetics-400: stride 4 (§4)."""
        return cls(stride=4).replace(**changes)

    @classmethod
    def ssv2(cls, **changes: Any) -> TargetConfig:
        """Something-Something V2: stride 3 (§4, Table 7d)."""
        return cls(stride=3).replace(**changes)

    @classmethod
    def released(cls, **changes: Any) -> TargetConfig:
        """What the authors' released code computes, slips included; reference floor only."""
        base = cls(
            flow="farneback",
            camera_motion=False,
            length=4,
            median=1,
            binning="linear",
            pool="mean",
            padding="replicate",
            norm="coordinate",
            quirks="released",
        )
        return base.replace(**changes)
