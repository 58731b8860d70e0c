"""What a store of tracks differs in from what is wanted, and which options make both agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from mme_targets.store_config import Difference, TrackConfig, compared

__all__ = ["Apart", "apart", "extract_option", "plain", "recipe_option"]

_READ_WITH = {
    "tvl1": ("flow",),
    "weights": ("flow",),
    "detector": ("camera_motion",),
    "surf": ("camera_motion", "detector"),
}
"""Fields that are read for some values of others alone."""

Option = Callable[[str, Any], str]
"""From a field of `TrackConfig` and a value to how a command is asked for it."""


class Apart(NamedTuple):
    """A value in which a store and what is wanted differ.

    Attributes
    ----------
    name, held, asked : as in `Difference`.
    as_held, as_asked : all that is to be set to have what the store has, and what is wanted: the
        value itself, and those which are read with it alone.
    """

    name: str
    held: Any
    asked: Any
    as_held: dict[str, Any]
    as_asked: dict[str, Any]

    def sides(self, here: str) -> str:
        """Both values: "length: 6 in the store, 8 in the recipe", `here` being the latter place."""
        held = "not known" if self.held is None else plain(self.held)
        asked = "not known" if self.asked is None else plain(self.asked)
        return f"{self.name}: {held} in the store, {asked} {here}"

    def to_held(self, option: Option) -> str:
        """Options that ask for what the store has; empty where there are none."""
        return " ".join(filter(None, (option(*one) for one in self.as_held.items())))

    def to_asked(self, option: Option) -> str:
        """Options that ask for what is wanted."""
        return " ".join(filter(None, (option(*one) for one in self.as_asked.items())))


def apart(
    held: Mapping[str, Any], wanted: TrackConfig, *, free: Collection[str] = ()
) -> list[Apart]:
    """Where a store's config and another differ, each with what is read with it.

    Parameters
    ----------
    held : of the store.
    wanted : of who reads it.
    free : names that may differ.
    """
    asked, usual = wanted.described(), TrackConfig().to_dict()
    found = [d for d in compared(held, asked) if d.name not in free]
    named = {d.name for d in found}
    out: dict[str, Apart] = {}
    brought: list[tuple[str, Difference]] = []
    for d in found:
        cause = next((c for c in _READ_WITH.get(d.name, ()) if c in named), None)
        if cause is not None and (d.held is None or d.asked is None):
            brought.append((cause, d))
        else:
            out[d.name] = Apart(*d, dict(_leaves(d.name, d.held)), dict(_leaves(d.name, d.asked)))
    for cause, d in brought:
        if d.held is None:
            out[cause].as_asked.update(_unlike(d.name, d.asked, usual))
        else:
            out[cause].as_held.update(_unlike(d.name, d.held, wanted.to_dict()))
    return list(out.values())


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Values by their dotted names; nothing where there is none."""
    if isinstance(value, Mapping):
        for inner, one in value.items():
            yield from _leaves(f"{name}.{inner}", one)
    elif value is not None:
        yield name, value


def _unlike(name: str, value: Any, usual: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Those that are others than a command has already."""
    known = dict(_leaves(name, usual[name]))
    return ((key, one) for key, one in _leaves(name, value) if known.get(key) != one)


def extract_option(name: str, value: Any) -> str:
    """How `mme extract` is asked for a value: "--length 6"."""
    if name == "flow_stride":
        return "--interpolate true" if value == 1 else f"--interpolate false --stride {value}"
    return f"--{name} FILE" if name == "weights" else f"--{name} {plain(value)}"


def recipe_option(name: str, value: Any) -> str:
    """How a command that takes a recipe is; a recipe says nothing of the rounding: "" for step."""
    if name == "step":
        return ""
    if name == "short_side":
        return f"--clips.short_side {value}"
    return extract_option(name, value).replace("--", "--targets.")


def plain(value: Any) -> str:
    """A value as it is written on a command line."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:19] if text.startswith("sha256:") else text
