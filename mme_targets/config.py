"""Every constant of the paper, as a field with its unit and the section it comes from.

A config is frozen, hashable, checked when it is made, and goes to and from YAML and JSON without
loss. What cannot be (an unknown field, a value out of range, a grid that leaves no point) raises
`ConfigError`, which names the field, the value and the rule.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

FlowMethod = Literal["tvl1", "farneback", "dis"]
Detector = Literal["sift", "orb", "corners"]
TargetName = Literal["trajectory", "position", "shape", "pixel", "hog", "flow", "hof", "mbh"]

C = TypeVar("C", bound="_Config")


class ConfigError(ValueError):
    """A field that does not exist, or a value that cannot be."""


def _number(default: float, low: float, high: float, open_low: bool = False) -> Any:
    """A numeric field within [low, high], or (low, high] when `open_low`."""
    return field(default=default, metadata={"range": (low, high, open_low)})


@dataclass(frozen=True, kw_only=True)
class _Config:
    """Checking and (de)serialisation shared by the configs."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            self._check_field(f)
        self._check_together()

    def _check_together(self) -> None:
        """Rules that involve several fields."""

    def _fail(self, name: str, rule: str) -> typing.NoReturn:
        raise ConfigError(f"{type(self).__name__}.{name} is {getattr(self, name)!r}; {rule}")

    def _check_field(self, f: dataclasses.Field[Any]) -> None:
        kind = _hints(type(self))[f.name]
        value = _parse(kind, getattr(self, f.name))
        object.__setattr__(self, f.name, value)
        if typing.get_origin(kind) is Literal:
            if value not in typing.get_args(kind):
                self._fail(f.name, f"must be one of {', '.join(map(repr, typing.get_args(kind)))}")
        elif typing.get_origin(kind) is tuple:
            if not isinstance(value, tuple):
                self._fail(f.name, "must be a name or a list of names")
        elif kind is bool:
            if not isinstance(value, bool):
                self._fail(f.name, "must be true or false")
        elif kind in (int, float):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                self._fail(f.name, f"must be a number ({kind.__name__})")
            if kind is int and not float(value).is_integer():
                self._fail(f.name, "must be a whole number")
            object.__setattr__(self, f.name, kind(value))
            low, high, open_low = f.metadata["range"]
            if not low <= value <= high or (open_low and value == low):
                bracket = "(" if open_low else "["
                self._fail(f.name, f"must lie in {bracket}{low}, {high}]")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: what JSON and YAML can hold."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """Build from plain values; fields left out keep their defaults.

        Raises
        ------
        ConfigError
            For a field that does not exist (with the nearest name), or an impossible value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{cls.__name__} needs a mapping of fields, got {type(values).__name__}"
            )
        names = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names)}"
                raise ConfigError(f"{cls.__name__} has no field {name!r}{hint}")
        return cls(**values)

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls: type[C], text: str) -> C:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    def to_yaml(self) -> str:
        """One YAML mapping, in the order of the fields."""
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def from_yaml(cls: type[C], text: str) -> C:
        """The inverse of `to_yaml`."""
        import yaml

        return cls.from_dict(yaml.safe_load(text) or {})

    @classmethod
    def load(cls: type[C], path: str | Path) -> C:
        """Read a `.json`, `.yaml` or `.yml` file."""
        path = Path(path)
        read = cls.from_json if path.suffix == ".json" else cls.from_yaml
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        try:
            return read(path.read_text())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def replace(self: C, **changes: Any) -> C:
        """A copy with some fields changed, checked again."""
        return type(self).from_dict({**self._shallow(), **changes})

    def _shallow(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


_HINTS: dict[str, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls.__name__ not in _HINTS:
        _HINTS[cls.__name__] = typing.get_type_hints(cls)
    return _HINTS[cls.__name__]


def _parse(kind: Any, value: Any) -> Any:
    """What JSON and YAML have no type for: nested configs and tuples."""
    if isinstance(kind, type) and issubclass(kind, _Config):
        return value if isinstance(value, kind) else kind.from_dict(value)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value
    if kind is float and isinstance(value, str):
        with suppress(ValueError):
            return float(value)  # YAML 1.1 reads 1e-6, which has no point, as text
    return value


@dataclass(frozen=True, kw_only=True)
class Tvl1Config(_Config):
    """TV-L1 optical flow (Zach, Pock, Bischof 2007), in the terms of OpenCV's implementation.

    It minimises Σ |∇u| + |∇v| + λ |I₁(x + (u, v)) − I₀(x)| by coarse-to-fine warps, each followed
    by iterations that alternate a threshold step on the data term and a dual step τ on the total
    variation, coupled by θ. The iteration ends where the mean squared update of the flow is at most
    ε²; that is tested after every tenth iteration and at the end of an inner loop.

    The defaults are tuned for accuracy per time. Beside OpenCV's, the pyramid reaches down to 16 px
    (10 scales; motion of more than 20 px needs them), warps are 3, and the median is 3×3.
    """

    tau: float = _number(0.25, 0, 0.25, open_low=True)
    """Time step τ of the dual scheme; it converges up to 1/4."""
    lambda_: float = _number(0.15, 0, 100, open_low=True)
    """Weight λ of the data term, for images in 0–255; smaller is smoother."""
    theta: float = _number(0.3, 0, 100, open_low=True)
    """Tightness θ: how closely the two halves of the splitting hold together."""
    gamma: float = _number(0.0, 0, 100)
    """Weight γ of the illumination term, which lets brightness change smoothly; 0 leaves it out."""
    scales: int = _number(10, 1, 32)
    """Levels of the pyramid at most; those under 16 px are left out."""
    scale_step: float = _number(0.8, 0.05, 0.95)
    """Size of each level relative to the one below it."""
    alignment: Literal["half", "corner"] = "half"
    """How levels of the pyramid lie on each other: edges aligned, so that pixel centres are half a
    pixel inside, or the centres of their first pixels aligned (OpenCV's CUDA class)."""
    warps: int = _number(3, 1, 100)
    """Times the second image is warped on each level."""
    cubic: float = _number(-0.75, -1, 0)
    """Parameter a of the cubic convolution that warps (Keys 1981): −0.75 in OpenCV's CPU class,
    −0.5 in its CUDA class, which blurs more and biases fractional motion."""
    outside: Literal["drop", "clamp"] = "drop"
    """Where the flow leaves the second frame: no data term, or that of its border (OpenCV's CUDA
    class)."""
    epsilon: float = _number(0.01, 0, 1)
    """The iteration stops when the mean squared update is at most ε² (px²)."""
    patient: bool = False
    """After a test of the stop that failed, wait an iteration for each multiple of ε² that the
    update had, and test first after two iterations: what OpenCV's CUDA class does."""
    inner_iterations: int = _number(30, 1, 10000)
    """Dual iterations between two median filters."""
    outer_iterations: int = _number(10, 1, 1000)
    """Median filters and inner loops a warp."""
    median: int = _number(3, 1, 5)
    """Side of the median filter on the flow before each outer iteration, px; 1 leaves it out."""

    def _check_together(self) -> None:
        if self.median not in (1, 3, 5):
            self._fail("median", "must be 1 (none), 3 or 5")

    @classmethod
    def opencv_cuda(cls) -> Tvl1Config:
        """The structure that the authors' tools ran: OpenCV's CUDA class at its defaults.

        5 scales × 5 warps × up to 300 iterations, no median, a pyramid without half-pixel shift.
        """
        return cls(
            scales=5,
            alignment="corner",
            warps=5,
            cubic=-0.5,
            outside="clamp",
            patient=True,
            inner_iterations=300,
            outer_iterations=1,
            median=1,
        )


@dataclass(frozen=True, kw_only=True)
class TargetConfig(_Config):
    """What a clip is and what is to be predicted from it. The defaults are the paper's."""

    frames: int = _number(16, 1, 1024)
    """Frames that the model sees (§4)."""
    stride: int = _number(4, 1, 256)
    """Raw frames from one of these to the next: 4 for Kinetics-400, 3 for SSv2 (§4, Table 7d)."""
    tubelet: int = _number(2, 1, 64)
    """Frames in one 3-D patch, t of t×h×w (§3.2)."""
    patch: int = _number(16, 1, 256)
    """Side of one 3-D patch, h = w, px (§3.2)."""
    size: int = _number(224, 1, 8192)
    """Side of the square crop that the model sees, px (§4). Frames of another size are allowed
    where they are given whole (`region="crop"` takes what it gets)."""
    region: Literal["crop", "frame"] = "crop"
    """Where flow and tracks live: in the crop, or in the whole frame (the paper's order), with
    seeds mapped into it and displacements scaled back (Appendix B)."""

    flow: FlowMethod = "tvl1"
    """Optical flow method (Appendix A): TV-L1 is the most accurate, DIS by far the fastest."""
    tvl1: Tvl1Config = field(default_factory=Tvl1Config)
    """Parameters of TV-L1, read when `flow` is "tvl1"."""
    camera_motion: bool = True
    """Remove camera motion before tracking (Appendix A; Appendix E: −4.4 points without)."""
    detector: Detector = "sift"
    """Interest points for the camera's homography, beside corners carried by the flow."""
    bound: float = _number(20.0, 0, 1000, open_low=True)
    """Flow is clipped to ± this, px (Appendix A)."""
    interpolate: bool = True
    """Targets at the raw frame rate though the input is sparse (§3.3, Table 6); off, flow runs
    between sampled frames."""

    length: int = _number(6, 0, 32)
    """Steps L of a trajectory (Eq. 2, Table 7a); 0 leaves the HOG of the patch alone: MaskFeat."""
    grid: int = _number(8, 1, 256)
    """Distance of the tracked points, px: 8 gives K = 4 in a 16×16 patch (§3.3)."""
    median: int = _number(3, 1, 3)
    """Side of the median filter M on the flow, px (Eq. 6); 1 leaves it out."""
    sampling: Literal["nearest", "bilinear"] = "nearest"
    """How flow is read between pixels (Eq. 6; nearest rounds halves up)."""

    bins: int = _number(9, 2, 36)
    """Orientation bins over 180° (§3.3)."""
    cell: int = _number(8, 2, 256)
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
    eps: float = _number(1e-6, 0, 1)
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
