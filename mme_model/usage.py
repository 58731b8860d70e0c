"""The parser of a command's words: what it cannot take it names in one line, and what was meant."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

__all__ = ["Help", "Parser", "nearest"]

ENOUGH = 0.7
"""Likeness from which on a name may be what was meant, 1 for the same."""
NEAR = 0.1
"""What is less like it by this than the likest is not named."""
VALUES = {"N": "a whole number", "X": "a number", "PX": "a number", "BOOL": "true or false"}
"""What an option takes, by how its help calls it."""


class Help(DefaultHelpFormatter):
    """Help as it is written: the types of a hundred options are noise."""

    def _get_help_string(self, action: Any) -> str:
        unsaid = action.default is None or action.default is False
        known = action.option_strings and not unsaid and action.default != "==SUPPRESS=="
        return str(action.help or "") + (" (default: %(default)s)" if known else "")


class Parser(ArgumentParser):
    """A parser whose errors are a usage line and one line more; it exits with 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=True, **options)
        self._given: list[str] = []

    def read(self, words: Sequence[str]) -> Any:
        """The values that words give. Options are named as the config's fields are; dashes are
        taken as well.
        """
        names = {_underscored(word): word for word in words if word.startswith("-")}
        self._given = [_underscored(word) for word in words]
        self._check_options(self._given, names)
        return self.parse_args(self._given)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the usage and the error, and exit."""
        self.print_usage(sys.stderr)
        print(f"mme: error: {self._plain(message)}", file=sys.stderr)
        self.exit(2)

    def _check_options(self, words: Sequence[str], names: dict[str, str]) -> None:
        """Name an option that there is not, with those that are like it."""
        options = [text for action in self._actions for text in action.option_strings]
        actions = [a.choices for a in self._actions if isinstance(a.choices, dict)]
        for place, word in enumerate(words):
            if word == "--":  # what follows is no option
                return
            if actions and word in actions[0]:  # what follows is that action's to take
                action = actions[0][word]
                action._given = list(words[place + 1 :])
                action._check_options(action._given, names)
                return
            if not re.match(r"-[^\d.]", word) or " " in word.partition("=")[0]:
                continue
            name = word.partition("=")[0]
            begun = [text for text in options if text.startswith(name)]
            if name in options or (name.startswith("--") and len(begun) == 1):
                continue
            long = [text for text in options if text.startswith("--")]
            likely = nearest(name, long)
            hint = f"{self.prog} --help lists them"
            if name.startswith("--") and begun:  # the name of a group, or a beginning of several
                more = ", …" if len(begun) > 3 else ""
                hint = f"did you mean one of {', '.join(begun[:3])}{more}?"
            elif likely:
                hint = f"did you mean {' or '.join(likely)}?"
            self.error(f"{names[word].partition('=')[0]} is not an option of {self.prog}; {hint}")

    def _plain(self, message: str) -> str:
        """A message of the parsing libraries in this project's words, where it is known."""
        if found := re.match(r"the following arguments are required: (.+)", message):
            missing = [self._shown(name) for name in found[1].split(", ")]
            return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        if found := re.match(r'expected "\w+" to be one of {(.+)}, but it was not', message):
            return f"{self.prog} needs one word more: {', '.join(found[1].split(','))}"
        if found := re.match(r"unrecognized arguments: (.+)", message, re.DOTALL):
            return f"{found[1].split(' ')[0]!r} is one word more than {self.prog} takes"
        if found := re.match(r"argument (\S+): expected one argument", message):
            return f"{found[1]} needs a value"
        found = re.match(r'(?:argument|Parser key) "?([^\s":]+)"?:', message)
        if found and (action := self._action(found[1])):
            value = self._value(action, message)
            return f"{self._shown(action.dest)}{value}; must be {_taken(action, message)}"
        return " ".join(message.split())

    def _value(self, action: Any, message: str) -> str:
        """What an argument was given: as it stands in the words, or else in the message."""
        after = [*self._given[1:], ""]
        for word, value in reversed(list(zip(self._given, after, strict=True))):
            name, equals, joined = word.partition("=")
            if name in action.option_strings:
                return f" is {(joined if equals else value)!r}"
        values = re.findall(r"(?:value: |invalid choice: ')([^'\n]+)", message)
        return f" is {values[-1]!r}" if values else " cannot be read"

    def _action(self, name: str) -> Any:
        for action in self._actions:
            if name in (action.dest, action.metavar) or name in action.option_strings:
                return action
        return None

    def _shown(self, name: str) -> str:
        """How an argument is called in the usage."""
        action = self._action(name)
        group, _, last = name.partition(".")
        if action is None and last:  # of an action, as `verify.stores`
            parsers = [a.choices for a in self._actions if isinstance(a.choices, dict)]
            return str(parsers[0][group]._shown(last)) if group in (parsers or [{}])[0] else name
        if action is None:
            return name
        return str(action.option_strings[0] if action.option_strings else action.metavar or name)


def nearest(name: str, options: Iterable[str]) -> list[str]:
    """The options that were likely meant by `name`, at most three, the likest first.

    Names are compared whole and by their last part, so that a group may be wrong or left out:
    `--depth` is near `--model.depth`.
    """
    found = sorted(((_likeness(name, text), text) for text in options), key=lambda o: -o[0])
    return [text for like, text in found[:3] if like >= max(ENOUGH, found[0][0] - NEAR)]


def _likeness(name: str, option: str) -> float:
    whole, other = name.lstrip("-"), option.lstrip("-")
    last, end = whole.rsplit(".", 1)[-1], other.rsplit(".", 1)[-1]
    like = SequenceMatcher(None, whole, other).ratio()
    # One word of two, as in `--lr` for `--base_lr`, says more than its length.
    part = 0.8 if last in end.split("_") else 0.0
    return max(like, 0.95 * SequenceMatcher(None, last, end).ratio(), part)


def _taken(action: Any, message: str) -> str:
    """What an argument takes, which the libraries' message tells where the help does not."""
    choices = [str(one) for one in action.choices or str(action.metavar or "").split("|")]
    if len(choices) > 1:
        return f"{', '.join(choices[:-1])} or {choices[-1]}"
    if "<class 'float'>" in message:
        return VALUES["X"]
    return VALUES.get(choices[0], "true or false" if action.nargs == "?" else "as --help says")


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value
