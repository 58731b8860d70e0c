"""Options named where a store and a recipe differ are real ones, and make both agree."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import ArgumentParser

from mme_model.options import add_recipe, changes_of
from mme_model.recipe import Recipe
from mme_model.store_cli import config_of
from mme_model.store_options import add_extract
from mme_model.track_options import apart, extract_option, recipe_option
from mme_model.tracks import track_config
from mme_targets import TargetConfig
from mme_targets.store_config import TrackConfig

QUICK = {"flow": "dis", "camera_motion": False}
PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"length": 8, "bound": 10.0, "median": 1, "sampling": "bilinear", "grid": 16}),
    ({}, {"interpolate": False, "stride": 3}),
    ({"interpolate": False, "stride": 3}, {"interpolate": False, "stride": 2}),
    ({"interpolate": False}, {}),
    ({}, {"tvl1": {"warps": 5, "outside": "clamp", "patient": True}}),
    (QUICK, {"tvl1": {"tau": 0.125}, "surf": {"octaves": 2, "upright": False}}),
    ({"tvl1": {"tau": 0.125}, "surf": {"octaves": 2}}, QUICK),
    ({"surf": {"octaves": 2}}, {"detector": "orb"}),
    ({"detector": "corners"}, {"camera_motion": False}),
    ({"camera_motion": False}, {"detector": "sift"}),
]
"""Targets that a store is made for, and those of a recipe."""


def of_extract(options: list[str]) -> TrackConfig:
    """What `mme extract` makes with these."""
    parser = ArgumentParser()
    add_extract(parser)
    return config_of(parser.parse_args(["list.csv", "--out", "store", *options]))


def of_recipe(targets: dict[str, Any], options: list[str], short_side: int = 0) -> TrackConfig:
    """What a command that takes a recipe asks for, with options on top."""
    parser = ArgumentParser()
    add_recipe(parser)
    changes = changes_of(parser.parse_args(options))
    base = TargetConfig().replace(**targets).to_dict()
    for name, value in changes.get("targets", {}).items():
        base[name] = {**base[name], **value} if isinstance(value, dict) else value
    clips = {"short_side": short_side, **changes.get("clips", {})}
    return track_config(Recipe.from_dict({"targets": base, "clips": clips}))


@pytest.mark.parametrize(("held", "asked"), PAIRS)
def test_either_side_can_be_made_to_agree(held: dict[str, Any], asked: dict[str, Any]) -> None:
    store = TrackConfig.of(TargetConfig().replace(**held), short_side=240).described()
    wanted = of_recipe(asked, [])
    found = apart(store, wanted)
    assert "short_side" in [one.name for one in found]
    passed = " ".join(one.to_held(recipe_option) for one in found).split()
    assert apart(store, of_recipe(asked, passed)) == []
    # The store is extracted with what it had, and what is named on top.
    had = [word for one in apart(TrackConfig().described(), TrackConfig.of_described(store))
           for word in one.to_asked(extract_option).split()]  # fmt: skip
    assert of_extract(had).described() == store
    named = " ".join(one.to_asked(extract_option) for one in found).split()
    assert of_extract([*had, *named]).described() == wanted.described()


def test_what_is_read_with_another_is_no_line_of_its_own() -> None:
    store = TrackConfig.of(TargetConfig().replace(**QUICK)).described()
    found = apart(store, TrackConfig(tvl1={"warps": 5}))
    assert [one.name for one in found] == ["flow", "camera_motion"]
    assert found[0].sides("in the recipe") == "flow: dis in the store, tvl1 in the recipe"
    assert found[0].to_asked(extract_option) == "--flow tvl1 --tvl1.warps 5"
    assert found[0].to_held(recipe_option) == "--targets.flow dis"


def test_weights_are_told_by_their_digest(tmp_path: Any) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    held, asked = (TrackConfig(flow="raft", weights=str(tmp_path / name)) for name in "ab")
    (one,) = apart(held.described(), asked)
    assert one.sides("in the recipe") == (
        "weights: sha256:ca978112ca1b in the store, sha256:3e23e8160039 in the recipe"
    )
    assert one.to_held(recipe_option) == "--targets.weights FILE"
    (flow,) = apart(TrackConfig().described(), asked)
    assert flow.to_asked(extract_option) == "--flow raft --weights FILE"
