"""Options of `mme extract` and `mme store`."""

from __future__ import annotations

import typing
from typing import Any

from mme_targets.cli import add_constants

from .lists import FORMATS

__all__ = ["add_extract", "add_store"]

CONSTANTS = ("flow", "weights", "camera_motion", "detector", "bound", "median", "sampling")
"""Those of `TargetConfig` that mean in a store what they mean elsewhere."""
PRESETS = ("paper", "kinetics400", "ssv2")


def _add_text(parser: Any, name: str, metavar: str, help: str) -> None:
    parser.add_argument(name, type=typing.Optional[str], default=None, metavar=metavar, help=help)  # noqa: UP045


def _add_flag(parser: Any, name: str, help: str) -> None:
    parser.add_argument(name, type=bool, nargs="?", const=True, default=False, help=help)


def _add_list(parser: Any) -> None:
    formats = ("auto", *FORMATS)
    parser.add_argument("--format", type=typing.Literal[formats], default="auto",
                        metavar="|".join(formats),
                        help="what kind of list LIST is; auto goes by what is in it")  # fmt: skip
    _add_text(parser, "--root", "DIR",
              "folder that the list's paths are relative to; where it is not given, the "
              "list's own")  # fmt: skip


def _add_device(parser: Any) -> None:
    _add_text(parser, "--device", "NAME",
              "where flow is computed: cpu, cuda or cuda:N; where it is not given, a GPU if there "
              "is one")  # fmt: skip


def _add_constants(parser: Any, title: str = "what tracks are made with") -> None:
    """Constants of tracks; all are None where they are not given."""
    group = parser.add_argument_group(title)
    group.add_argument("--preset", type=typing.Optional[typing.Literal[PRESETS]], default=None,  # noqa: UP045
                       metavar="|".join(PRESETS),
                       help="constants to start from (default: paper); these differ in --stride "
                       "alone")  # fmt: skip
    _add_text(group, "--config", "FILE",
              "YAML or JSON of constants (a recipe's `targets`), in place of the "
              "preset")  # fmt: skip
    numbers: tuple[tuple[str, type, str, str], ...] = (
        ("length", int, "N", "steps of a track; training can read fewer, not more (paper: 6)"),
        ("grid", int, "N", "distance of the tracked points in the whole frame, px (paper: 8)"),
        ("interpolate", bool, "BOOL", "flow from each raw frame to the next; off: to the one that "
         "lies --stride frames later (paper: true)"),
        ("stride", int, "N", "with --interpolate false: raw frames from one that the model sees to "
         "the next, 4 for Kinetics-400, 3 for SSv2 (paper: 4)"),
        ("short_side", int, "N", "resize videos to this short side as they are decoded, px; 0: "
         "not (default: 0)"),
        ("step", float, "PX", "displacements are rounded to multiples of this, px (default: "
         "0.125)"),
    )  # fmt: skip
    for name, kind, metavar, about in numbers:
        group.add_argument(f"--{name}", type=typing.Optional[kind], default=None,  # noqa: UP045
                           metavar=metavar, help=about)  # fmt: skip
    add_constants(parser, CONSTANTS)


def add_extract(parser: Any) -> None:
    """Arguments of `mme extract`."""
    parser.epilog = (
        "Training takes a store that was made as its recipe says, and else names the options that "
        "differ: --length here is --targets.length there, --short_side is --clips.short_side, and "
        "so on. Exit status: 0; 3 where videos failed, which the store lists with the reasons; 1 "
        "on an error, 2 on wrong usage."
    )
    parser.add_argument("list", type=str, metavar="LIST",
                        help="a file that lists videos (a path a line, with a label or without; "
                        "--format names others), a folder of them, or one video")  # fmt: skip
    parser.add_argument("--out", type=str, required=True, metavar="STORE",
                        help="folder of the store: new, empty, or one to go on with")  # fmt: skip
    parser.add_argument("--shard", type=str, default="0/1", metavar="I/N",
                        help="one of N parts, from 0/N to N-1/N, as jobs of an array: every Nth "
                        "video from the Ith on; all into one STORE, or each into its own, to be "
                        "merged")  # fmt: skip
    _add_flag(parser, "--dry_run",
              "write nothing; try a few videos, and say what is left and what time and disk it "
              "will take")  # fmt: skip
    _add_flag(parser, "--retry",
              "try those videos again that failed before, and those whose tracks are damaged: all "
              "that the store holds is read")  # fmt: skip
    _add_text(parser, "--have", "DIR",
              "compute no flow, but take in tracks or flow that other tools made: for each video "
              "NAME.mp4 the file DIR/NAME.gz or DIR/NAME.npz, or the folder DIR/NAME of .flo, "
              "flow_x/flow_y pictures or videos. --flow, --length and the others below must say "
              "how they were made: these files do not")  # fmt: skip
    parser.add_argument("--byte_bound", type=float, default=20.0, metavar="PX",
                        help="with --have, flow as pictures or videos: px that the byte 255 stands "
                        "for; 0 is minus that")  # fmt: skip
    _add_text(parser, "--ray", "ADDRESS",
              "spread over a Ray cluster, by its address; auto: the one that this machine is part "
              "of; local: the cores of this machine")  # fmt: skip
    _add_list(parser)
    _add_device(parser)
    _add_constants(parser)


def add_store(parser: Any) -> None:
    """Arguments of `mme store`."""
    actions = parser.add_subcommands(dest="action", required=True, prog="mme store",
                                     metavar="info|verify|merge", title="actions",
                                     description="mme store ACTION --help says more of "
                                     "each")  # fmt: skip

    def add(name: str, usage: str, short: str, description: str) -> Any:
        action = type(parser)(
            usage=f"mme store {usage}",
            description=description,
            formatter_class=parser.formatter_class,
        )
        actions.add_subcommand(name, action, help=short)
        action.prog = f"mme store {name}"
        return action

    info = add(
        "info", "info STORE", "say what a store holds",
        "Say what a store holds: videos, frames, bytes, what it was made with, and what failed. "
        "Reads the index, not the tracks.",
    )  # fmt: skip
    info.add_argument("stores", type=str, nargs="+", metavar="STORE", help="the store")

    check = add(
        "verify", "verify STORE [--list LIST [--sample N]] [option ...]",
        "read all of it, and say what is wrong",
        "Read all of a store and say what is missing or damaged; with --list, whether it is of "
        "these videos, and all of them; with --sample, whether tracks that are computed anew are "
        "the same. What it was made with a store says itself. Exit status: 0; 1 where anything is "
        "wrong.",
    )  # fmt: skip
    check.add_argument("stores", type=str, nargs="+", metavar="STORE", help="the store")
    _add_text(check, "--list", "LIST",
              "the videos that it is of: a list, a folder, or a video; they are read, and must be "
              "those that were extracted")  # fmt: skip
    check.add_argument("--sample", type=int, default=0, metavar="N",
                       help="extract so many of them anew, evenly spread, and compare; needs "
                       "--list, and --weights if flow is RAFT's")  # fmt: skip
    _add_list(check)
    _add_device(check)
    _add_constants(check, "what tracks were made with, of which what is given must agree with the "
                   "store, and the rest is taken from it")  # fmt: skip

    join = add(
        "merge", "merge NEW STORE [STORE ...] [--list LIST] [option ...]",
        "make one store of several",
        "Copy what several stores hold into one, which is made or added to. Where one of them is "
        "not complete, neither is what comes of it, and mme extract LIST --out NEW goes on with "
        "it. Exit status: 0; 3 where videos failed, or are left.",
    )  # fmt: skip
    join.add_argument("stores", type=str, nargs="+", metavar="STORE",
                      help="the new store, then those to take in")  # fmt: skip
    _add_text(join, "--list", "LIST",
              "the videos that there are to be: those left are named; where none is, the store is "
              "complete, whatever its parts were")  # fmt: skip
    _add_list(join)
