"""The `mme` command; takes in the commands of `mme_targets`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 on an error, 2 on wrong usage, 130 on ^C."""
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # Names of files are bytes: what is no UTF-8 goes out as it came.
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        return _main(words)
    except KeyboardInterrupt as stop:
        if int(os.environ.get("RANK") or 0) == 0:  # of several processes one says it
            said = str(stop) or "interrupted; nothing half-written is left"
            print(f"mme: {said}", file=sys.stderr)
        return 130


def _main(words: list[str]) -> int:
    import mme_targets
    from mme_targets.cli import COMMANDS as TARGETS
    from mme_targets.cli import fail
    from mme_targets.video import VideoError

    from .commands import COMMANDS as MODEL
    from .errors import TrainingError
    from .usage import Help, Parser, nearest

    commands = {**MODEL, **TARGETS}
    if not words or words[0] not in commands:
        lines = [f"  {name:<12}{command.summary}" for name, command in commands.items()]
        parser = Parser(
            prog="mme",
            usage="mme COMMAND [option ...]",
            description="Motion targets from raw video, and the video transformer that they train "
            "(Masked Motion Encoding, CVPR 2023).",
            epilog="commands:\n" + "\n".join(lines) + "\n\nmme COMMAND --help says more of each.",
            formatter_class=type("Plain", (Help,), {"_fill_text": lambda _, text, *__: text}),
            version=mme_targets.__version__,
        )
        parser.parse_args([word for word in words if word in ("-h", "--help", "--version")])
        likely = nearest(words[0], commands) if words else []
        hint = f"did you mean {' or '.join(likely)}?" if likely else "mme --help lists them"
        parser.error(
            f"{words[0]!r} is no command; {hint}" if words else f"a command is missing; {hint}"
        )
    command = commands[words[0]]
    parser = Parser(
        prog=f"mme {words[0]}",
        usage=command.usage,
        description=command.description,
        formatter_class=Help,
    )
    command.add_arguments(parser)
    args = parser.read(words[1:])
    try:
        return command.run(args)
    except (ValueError, TypeError, OSError, ImportError, VideoError, TrainingError) as error:
        return fail(error)
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for what a CPU's memory cannot hold.
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            said = str(error).rpartition("DefaultCPUAllocator: ")[2]
            return fail(MemoryError(f"out of memory: {said or 'less at a time needs less'}"))
        raise


if __name__ == "__main__":
    sys.exit(main())
