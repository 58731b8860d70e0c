"""What every config shares: frozen fields that are checked when made, and go to YAML and JSON.

A config is frozen, hashable, and written and read without loss. What cannot be (an unknown field, a
value out of range, fields that contradict each other) raises `ConfigError`, which names the field,
the value and the rule.
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

C = TypeVar("C", bound="Config")


class ConfigError(ValueError):
    """A field that does not exist, or a value that cannot be."""


def number(default: float, low: float, high: float, open_low: bool = False) -> Any:
    """A numeric field within [low, high], or (low, high] when `open_low`."""
    return field(default=default, metadata={"range": (low, high, open_low)})


@dataclass(frozen=True, kw_only=True)
class Config:
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
        elif kind is str:
            if not isinstance(value, str):
                self._fail(f.name, "must be text")
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
    if isinstance(kind, type) and issubclass(kind, Config):
        return value if isinstance(value, kind) else kind.from_dict(value)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value
    if kind is float and isinstance(value, str):
        with suppress(ValueError):
            return float(value)  # YAML 1.1 reads 1e-6, which has no point, as text
    return value
