"""The `mme` command; takes in the commands of `mme_targets`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 on an error, 2 on wrong usage, 130 on ^C."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    import mme_targets
    from mme_targets.cli import add_commands, fail
    from mme_targets.video import VideoError

    class Help(DefaultHelpFormatter):
        """Help as it is written: the types of a hundred options are noise."""

        def _get_help_string(self, action: Any) -> str:
            known = action.default not in (None, False, "==SUPPRESS==")
            return str(action.help or "") + (" (default: %(default)s)" if known else "")

    parser = ArgumentParser(
        prog="mme",
        description="Motion targets from raw video (Masked Motion Encoding, CVPR 2023).",
        version=mme_targets.__version__,
        formatter_class=Help,
    )
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")

    def new_parser(usage: str, description: str) -> ArgumentParser:
        return ArgumentParser(usage=usage, description=description)

    run = add_commands(commands, new_parser)
    args = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    try:
        return int(run[args.command](args[args.command]))
    except (ValueError, TypeError, OSError, ImportError, VideoError) as error:
        return fail(error)
    except KeyboardInterrupt:
        print("mme: interrupted; nothing half-written is left", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
