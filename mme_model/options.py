"""Options of the commands that take a recipe: one for each field."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from mme_targets.cli import field_docs
from mme_targets.settings import Config

from .recipe import Recipe, TrainConfig

__all__ = ["add_fields", "add_recipe", "changes_of"]


def _fields(
    cls: type[Config], prefix: str = "", defaults: Config | None = None
) -> Iterator[tuple[str, Any, str, type[Config]]]:
    """(dotted name, default, doc, class) of each plain field, groups within groups."""
    docs, hints = field_docs(cls), typing.get_type_hints(cls)
    defaults = defaults or cls()
    for f in dataclasses.fields(cls):
        kind = hints[f.name]
        if isinstance(kind, type) and issubclass(kind, Config):
            yield from _fields(kind, f"{prefix}{f.name}.", getattr(defaults, f.name))
        else:
            yield prefix + f.name, getattr(defaults, f.name), docs[f.name], cls


def _option(name: str) -> str:
    """How a field is called on the command line: those of `train` by their own name."""
    return name.removeprefix("train.")


def add_recipe(parser: Any, cls: type[Config] = Recipe, names: Sequence[str] = ()) -> None:
    """Add an option for every field of a recipe `cls`, and `--recipe`; `names` are its recipes."""
    named = ", ".join(names) or "`mme recipes` lists them"
    parser.add_argument("--recipe", type=str, default="tiny", metavar="NAME|FILE",
                        help=f"by name ({named}), or a YAML file")  # fmt: skip
    add_fields(parser, cls)


def add_fields(parser: Any, cls: type[Config], beside: type[Config] | None = None) -> None:
    """Add an option for every field of a recipe `cls`, less those that `beside` has as well."""
    groups: dict[str, Any] = {}
    there = {name for name, *_ in _fields(beside)} if beside else set()
    for name, value, doc, owner in _fields(cls):
        if name in there:
            continue
        title = {cls: "data", TrainConfig: "training"}.get(owner, name.rsplit(".", 1)[0])
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        hint = typing.get_type_hints(owner)[name.rsplit(".", 1)[-1]]
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        plain = json.dumps(list(value) if isinstance(value, tuple) else value).strip('"')
        groups[title].add_argument(
            f"--{_option(name)}",
            type=typing.Optional[str],  # noqa: UP045
            default=None,
            metavar="|".join(choices)
            or {bool: "BOOL", int: "N", float: "X"}.get(type(value), "TEXT"),
            help=f"{doc} [{plain or 'empty'}]".replace("%", "%%"),
        )


def changes_of(args: Any, cls: type[Config] = Recipe) -> dict[str, Any]:
    """What the command line says of the fields of a recipe `cls`; values are read as YAML."""
    import yaml

    given = args.as_flat() if hasattr(args, "as_flat") else args
    changes: dict[str, Any] = {}
    for name, default, _, _ in _fields(cls):
        text = getattr(given, _option(name), None)
        if text is None:
            continue
        inner = changes
        *outer, last = name.split(".")
        for key in outer:
            inner = inner.setdefault(key, {})
        if isinstance(default, tuple) and not text.startswith("["):
            inner[last] = [yaml.safe_load(part) for part in text.split(",")]
        else:
            inner[last] = text if isinstance(default, str) else yaml.safe_load(text)
    return changes
