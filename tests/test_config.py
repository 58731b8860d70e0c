"""Configs: the paper's numbers, round trips, and errors that name field, value and rule."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

import pytest
from floors import PROPERTY
from hypothesis import given
from hypothesis import strategies as st

from mme_targets import ConfigError, TargetConfig, Tvl1Config
from mme_targets.config import TargetName

PRESETS = {
    "default": TargetConfig(),
    "paper": TargetConfig.paper(),
    "kinetics400": TargetConfig.kinetics400(),
    "ssv2": TargetConfig.ssv2(),
    "released": TargetConfig.released(),
    "cuda flow": TargetConfig(tvl1=Tvl1Config.opencv_cuda()),
    "many": TargetConfig(targets=("trajectory", "pixel", "hog", "flow", "hof", "mbh"), eps=1e-6),
    "tvl1": Tvl1Config(),
    "opencv_cuda": Tvl1Config.opencv_cuda(),
}


def test_the_papers_numbers() -> None:
    """§3 and §4, Tables 7a to 7d, Appendices A to C."""
    paper = TargetConfig.paper()
    assert paper == TargetConfig() == TargetConfig.kinetics400()
    assert (paper.frames, paper.size, paper.tubelet, paper.patch) == (16, 224, 2, 16)
    assert (paper.length, paper.grid, paper.tracks) == (6, 8, 4)
    assert (paper.bound, paper.median, paper.sampling) == (20.0, 3, "nearest")
    assert (paper.bins, paper.cell, paper.binning, paper.pool) == (9, 8, "hard", "sum")
    assert (paper.padding, paper.l2, paper.norm, paper.density) == (
        "reflect",
        False,
        "patch",
        "dense",
    )
    assert (paper.flow, paper.camera_motion, paper.interpolate) == ("tvl1", True, True)
    assert paper.loss_mask
    assert paper.targets == ("trajectory",)
    assert (paper.stride, TargetConfig.ssv2().stride) == (4, 3)
    assert TargetConfig.ssv2() == paper.replace(stride=3)
    assert paper.flow_stride == 1
    assert paper.replace(interpolate=False).flow_stride == 4


def test_tvl1s_numbers() -> None:
    """OpenCV's defaults where not tuned, and its CUDA class: one loop of 300, no median."""
    ours = Tvl1Config()
    assert (ours.tau, ours.lambda_, ours.theta, ours.gamma) == (0.25, 0.15, 0.3, 0.0)
    assert (ours.scales, ours.warps, ours.epsilon, ours.scale_step) == (10, 3, 0.01, 0.8)
    assert (ours.inner_iterations, ours.outer_iterations, ours.median) == (30, 10, 3)
    assert (ours.alignment, ours.cubic, ours.outside, ours.patient) == (
        "half",
        -0.75,
        "drop",
        False,
    )
    cuda = Tvl1Config.opencv_cuda()
    assert (cuda.tau, cuda.lambda_, cuda.theta, cuda.gamma) == (0.25, 0.15, 0.3, 0.0)
    assert (cuda.scales, cuda.warps, cuda.epsilon, cuda.scale_step) == (5, 5, 0.01, 0.8)
    assert (cuda.inner_iterations, cuda.outer_iterations, cuda.median) == (300, 1, 1)
    assert (cuda.alignment, cuda.cubic, cuda.outside, cuda.patient) == (
        "corner",
        -0.5,
        "clamp",
        True,
    )


def test_the_released_codes_numbers() -> None:
    released = TargetConfig.released()
    assert released.quirks == "released"
    assert (released.flow, released.camera_motion, released.length) == ("farneback", False, 4)
    assert (released.median, released.norm, released.tracks) == (1, "coordinate", 4)
    assert (released.binning, released.pool, released.padding) == ("linear", "mean", "replicate")
    assert TargetConfig.released(length=6).length == 6


@pytest.mark.parametrize("grid", [4, 8, 16])
def test_tracks_a_patch(grid: int) -> None:
    assert TargetConfig(grid=grid).tracks == {4: 16, 8: 4, 16: 1}[grid]


@pytest.mark.parametrize("name", PRESETS)
def test_round_trips(name: str, tmp_path: Path) -> None:
    config = PRESETS[name]
    kind = type(config)
    assert kind.from_json(config.to_json()) == config
    assert kind.from_yaml(config.to_yaml()) == config
    assert kind.from_dict(config.to_dict()) == config
    assert kind.from_dict(dataclasses.asdict(config)) == config
    assert hash(kind.from_json(config.to_json())) == hash(config)
    assert list(config.to_dict()) == [f.name for f in dataclasses.fields(kind)]
    for suffix, text in ((".json", config.to_json()), (".yaml", config.to_yaml())):
        path = tmp_path / f"config{suffix}"
        path.write_text(text)
        assert kind.load(path) == kind.load(str(path)) == config


@PROPERTY
@given(
    st.builds(
        dict,
        stride=st.integers(1, 256),
        bound=st.floats(1e-3, 1000),
        eps=st.floats(0, 1),
        l2=st.booleans(),
        shape=st.sampled_from(["cell", "window"]),
        targets=st.lists(st.sampled_from(typing.get_args(TargetName)), min_size=1),
        tvl1=st.builds(dict, tau=st.floats(1e-9, 0.25), warps=st.integers(1, 100)),
    )
)
def test_any_config_round_trips(fields: dict) -> None:
    config = TargetConfig.from_dict(fields)
    assert TargetConfig.from_yaml(config.to_yaml()) == config
    assert TargetConfig.from_json(config.to_json()) == config
    assert config.tvl1.warps == fields["tvl1"]["warps"]


def test_fields_left_out_keep_their_defaults() -> None:
    assert TargetConfig.from_yaml("") == TargetConfig.from_dict({}) == TargetConfig()
    assert TargetConfig.from_yaml("stride: 3\ntargets: hog\n") == TargetConfig(
        stride=3, targets=("hog",)
    )
    assert TargetConfig.from_yaml("tvl1: {warps: 2}").tvl1 == Tvl1Config(warps=2)


def test_plain_values_become_what_they_stand_for() -> None:
    """A list or a mapping given directly, too: every config can be hashed."""
    for targets in (["hog", "pixel"], ("hog", "pixel")):
        config = TargetConfig(targets=targets, tvl1={"warps": 3})  # type: ignore[arg-type]
        assert config == TargetConfig(targets=("hog", "pixel"), tvl1=Tvl1Config(warps=3))
        assert len({config, config.replace(stride=4)}) == 1
    assert TargetConfig(targets="hog").targets == ("hog",)  # type: ignore[arg-type]
    assert isinstance(TargetConfig(bound=20).bound, float)
    assert isinstance(TargetConfig(stride=4.0).stride, int)  # type: ignore[arg-type]


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TargetConfig().stride = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strde": 4}, "TargetConfig has no field 'strde'; did you mean 'stride'?"),
        ({"qqq": 4}, "TargetConfig has no field 'qqq'; it has frames, stride, tubelet"),
        ({"tvl1": {"lambda": 0.1}}, "Tvl1Config has no field 'lambda'; did you mean 'lambda_'?"),
        ({"tvl1": 3}, "Tvl1Config needs a mapping of fields, got int"),
        ({1: 2}, "TargetConfig has no field 1"),
        ([1], "TargetConfig needs a mapping of fields, got list"),
    ],
)
def test_unknown_fields_are_named(values, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TargetConfig.from_dict(values)
    assert message in str(caught.value)
    with pytest.raises(ConfigError):
        TargetConfig.from_yaml(str(values))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": 0}, "TargetConfig.stride is 0; must lie in [1, 256]"),
        ({"stride": 2.5}, "TargetConfig.stride is 2.5; must be a whole number"),
        ({"stride": float("nan")}, "TargetConfig.stride is nan; must be a whole number"),
        ({"stride": float("inf")}, "TargetConfig.stride is inf; must be a whole number"),
        ({"stride": "4"}, "TargetConfig.stride is '4'; must be a number (int)"),
        ({"stride": True}, "TargetConfig.stride is True; must be a number (int)"),
        ({"stride": None}, "TargetConfig.stride is None; must be a number (int)"),
        ({"bound": 0.0}, "TargetConfig.bound is 0.0; must lie in (0, 1000]"),
        ({"bound": float("nan")}, "TargetConfig.bound is nan; must lie in (0, 1000]"),
        ({"eps": -1e-9}, "TargetConfig.eps is -1e-09; must lie in [0, 1]"),
        ({"length": 33}, "TargetConfig.length is 33; must lie in [0, 32]"),
        ({"l2": 1}, "TargetConfig.l2 is 1; must be true or false"),
        ({"l2": "yes"}, "TargetConfig.l2 is 'yes'; must be true or false"),
        ({"flow": "pwc"}, "TargetConfig.flow is 'pwc'; must be one of 'tvl1', 'farneback'"),
        ({"norm": []}, "TargetConfig.norm is []; must be one of 'patch', 'coordinate', 'none'"),
        ({"median": 2}, "TargetConfig.median is 2; must be 1 (none) or 3"),
        ({"frames": 15}, "TargetConfig.frames is 15; must be divisible by tubelet (2)"),
        ({"grid": 6}, "TargetConfig.grid is 6; must divide patch (16)"),
        ({"region": "frame", "size": 225}, "TargetConfig.size is 225; must be divisible by patch"),
        ({"grid": 16, "norm": "coordinate"}, "TargetConfig.norm is 'coordinate'; .*K is 1"),
        ({"density": "max", "norm": "coordinate"}, "norm is 'coordinate'; 'coordinate' needs two"),
        ({"targets": ()}, "TargetConfig.targets is (); must name at least one"),
        ({"targets": ("hoq",)}, "'hoq' is none of trajectory, position, shape, pixel, hog"),
        ({"targets": 5}, "TargetConfig.targets is 5; must be a name or a list of names"),
        ({"targets": ("position",), "length": 0}, "length is 0; 0 leaves no position"),
        ({"targets": ("mbh",), "length": 0}, "length is 0; must be 1 or more for the targets flow"),
        ({"targets": ("hog",), "cell": 5}, "TargetConfig.cell is 5; must divide patch (16) for"),
        (
            {"follow_camera": True, "camera_motion": False},
            "TargetConfig.follow_camera is True; needs camera_motion",
        ),
        ({"tvl1": {"tau": 0.3}}, "Tvl1Config.tau is 0.3; must lie in (0, 0.25]"),
        ({"tvl1": {"median": 4}}, "Tvl1Config.median is 4; must be 1 (none), 3 or 5"),
    ],
)  # fmt: skip
def test_impossible_values_are_named(fields: dict, message: str) -> None:
    pieces = message.split(".*")
    for build in (TargetConfig.from_dict, lambda f: TargetConfig(**f), _replaced):
        with pytest.raises(ConfigError) as caught:
            build(fields)
        assert all(piece in str(caught.value) for piece in pieces)
    assert issubclass(ConfigError, ValueError)


def _replaced(fields: dict) -> TargetConfig:
    return TargetConfig.paper(**fields)


def test_values_that_only_some_targets_forbid() -> None:
    TargetConfig(targets=("trajectory",), cell=5)  # cells need not tile a patch along a track
    TargetConfig(targets=("hog",), grid=16, norm="coordinate")
    TargetConfig(targets=("trajectory",), length=0)  # MaskFeat


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("strid: 4")
    with pytest.raises(ConfigError, match=r"mine\.yaml: TargetConfig has no field 'strid'"):
        TargetConfig.load(path)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"stride": 0}))
    with pytest.raises(ConfigError, match=r"mine\.json: TargetConfig\.stride is 0"):
        TargetConfig.load(path)


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert TargetConfig.from_yaml("eps: 1e-6").eps == 1e-6
    with pytest.raises(ConfigError, match=r"eps is 'small'; must be a number"):
        TargetConfig.from_yaml("eps: small")
