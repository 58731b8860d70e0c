"""The `mme` command; takes in the commands of `mme_targets`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 on an error, 2 on wrong usage, 130 on ^C."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _main(words)
    except KeyboardInterrupt:
        print("mme: interrupted; nothing half-written is left", file=sys.stderr)
        return 130


def _main(words: list[str]) -> int:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    import mme_targets
    from mme_targets.cli import COMMANDS as TARGETS
    from mme_targets.cli import fail
    from mme_targets.video import VideoError

    from .commands import COMMANDS as MODEL
    from .errors import TrainingError

    commands = {**MODEL, **TARGETS}

    class Help(DefaultHelpFormatter):
        """Help as it is written: the types of a hundred options are noise."""

        def _get_help_string(self, action: Any) -> str:
            unsaid = action.default is None or action.default is False
            known = action.option_strings and not unsaid and action.default != "==SUPPRESS=="
            return str(action.help or "") + (" (default: %(default)s)" if known else "")

    if not words or words[0] not in commands:
        lines = [f"  {name:<12}{command.summary}" for name, command in commands.items()]
        parser = ArgumentParser(
            prog="mme",
            usage="mme COMMAND [option ...]",
            description="Motion targets from raw video, and the video transformer that they train "
            "(Masked Motion Encoding, CVPR 2023).",
            epilog="commands:\n" + "\n".join(lines) + "\n\nmme COMMAND --help says more of each.",
            formatter_class=type("Plain", (Help,), {"_fill_text": lambda _, text, *__: text}),
            version=mme_targets.__version__,
        )
        parser.parse_args([word for word in words if word in ("-h", "--help", "--version")])
        parser.error(f"{words[0]!r} is no command" if words else "a command is missing")
    command = commands[words[0]]
    parser = ArgumentParser(
        prog=f"mme {words[0]}",
        usage=command.usage,
        description=command.description,
        formatter_class=Help,
    )
    command.add_arguments(parser)
    # Options are named as the config's fields are; dashes are taken as well.
    options = [w if not w.startswith("--") else _underscored(w) for w in words[1:]]
    args = parser.parse_args(options)
    try:
        return command.run(args)
    except (ValueError, TypeError, OSError, ImportError, VideoError, TrainingError) as error:
        return fail(error)


def _underscored(word: str) -> str:
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


if __name__ == "__main__":
    sys.exit(main())
