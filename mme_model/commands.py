"""The commands that this package adds to `mme`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import typing
from collections.abc import Iterator
from typing import Any

from mme_targets.cli import Command, field_docs
from mme_targets.settings import Config
from mme_targets.targets import names

from .recipe import Recipe, TrainConfig, load_recipe, recipe_names

__all__ = ["COMMANDS"]


def _fields(cls: type[Config], prefix: str = "") -> Iterator[tuple[str, Any, str, type[Config]]]:
    """(dotted name, default, doc, class) of each plain field, groups within groups."""
    docs, defaults, hints = field_docs(cls), cls(), typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind = hints[f.name]
        if isinstance(kind, type) and issubclass(kind, Config):
            yield from _fields(kind, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, getattr(defaults, f.name), docs[f.name], cls


def _option(name: str) -> str:
    """How a field is called on the command line: those of `train` by their own name."""
    return name.removeprefix("train.")


def _add_recipe(parser: Any) -> None:
    parser.add_argument("--recipe", type=str, default="tiny", metavar="NAME|FILE",
                        help="by name (`mme recipes` lists them), or a YAML file")  # fmt: skip
    groups: dict[str, Any] = {}
    for name, value, doc, cls in _fields(Recipe):
        title = {Recipe: "data", TrainConfig: "training"}.get(cls, name.rsplit(".", 1)[0])
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        hint = typing.get_type_hints(cls)[name.rsplit(".", 1)[-1]]
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


def recipe_of(args: Any) -> Recipe:
    """The recipe named, with what the command line says on top; values are read as YAML."""
    import yaml

    given = args.as_flat() if hasattr(args, "as_flat") else args
    changes: dict[str, Any] = {}
    for name, default, _, _ in _fields(Recipe):
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
    if changes.get("tracks") or changes.get("cache"):
        changes.setdefault("targets", {}).setdefault("region", "frame")  # what a store holds
    return load_recipe(args.recipe, changes)


def _add_pretrain(parser: Any) -> None:
    parser.add_argument("--out", type=str, required=True, metavar="DIR",
                        help="folder of the run: recipe, metrics.jsonl, checkpoints, "
                        "TensorBoard")  # fmt: skip
    parser.add_argument("--resume", type=typing.Literal["never", "auto"], default="never",
                        metavar="auto|never",
                        help="auto goes on from the last checkpoint in --out, if there is "
                        "one")  # fmt: skip
    parser.add_argument("--cpu", type=bool, nargs="?", const=True, default=False,
                        help="leave GPUs alone")  # fmt: skip
    _add_recipe(parser)


def run_pretrain(args: Any) -> int:
    """`mme pretrain`."""
    recipe = recipe_of(args)
    from .pretrain import pretrain

    summary = pretrain(recipe, args.out, resume=args.resume, cpu=args.cpu)
    last = summary.get("last")
    if last:
        zero = last.get("loss/zero", 0.0)
        print(f"loss {last['loss']:.4f} ({last['loss'] / max(zero, 1e-12):.0%} of predicting zero)")
        if "val/loss" in last:
            share = last["val/loss"] / max(last["val/loss/zero"], 1e-12)
            print(f"held-out loss {last['val/loss']:.4f} ({share:.0%} of predicting zero)")
        print(f"checkpoints, metrics.jsonl and summary.json -> {args.out}")
    return 0


def _add_recipes(parser: Any) -> None:
    parser.add_argument("name", type=str, nargs="?", default="", metavar="NAME",
                        help="print this one with all its fields")  # fmt: skip


def run_recipes(args: Any) -> int:
    """`mme recipes`."""
    if args.name:
        print(load_recipe(args.name).to_yaml(), end="")
        return 0
    from importlib.resources import files

    for name in recipe_names():
        text = (files("mme_model") / "recipes" / f"{name}.yaml").read_text().splitlines()
        about = " ".join(line.lstrip("# ") for line in itertools.takewhile(_is_comment, text))
        first = re.split(r"(?<!Fig)\. ", about)[0]
        print(f"{name:<30} {first.rstrip('.')}")
    return 0


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def _add_info(parser: Any) -> None:
    _add_recipe(parser)


def run_info(args: Any) -> int:
    """`mme info`."""
    from rich.console import Console
    from rich.table import Table

    from .flops import describe, table7f

    recipe = recipe_of(args)
    print(describe(recipe))
    if recipe.model.size == "base" and set(names(recipe.targets)) == {"position", "shape"}:
        table = Table(title="Table 7f: multiply-adds of a clip", title_justify="left")
        for name in ("decoders", "depth", "here", "as the paper counts", "the paper"):
            table.add_column(name, justify="left" if name == "decoders" else "right")
        for row in table7f(recipe):
            here, there = row.counts.run / 1e9, row.counts.paper / 1e9
            table.add_row(row.decoders, str(row.depth), f"{here:.1f} G", f"{there:.1f} G",
                          f"{row.paper_giga} G")  # fmt: skip
        Console(soft_wrap=True).print(table)
    return 0


def _add_reconstruct(parser: Any) -> None:
    from .reconstruct import add_arguments

    add_arguments(parser)


def run_reconstruct(args: Any) -> int:
    """`mme reconstruct`."""
    from .reconstruct import run

    return run(args)


def _add_extract(parser: Any) -> None:
    from .store_cli import add_extract

    add_extract(parser)


def run_extract(args: Any) -> int:
    """`mme extract`."""
    from .store_cli import run_extract

    return run_extract(args)


def _add_store(parser: Any) -> None:
    from .store_cli import add_store

    add_store(parser)


def run_store(args: Any) -> int:
    """`mme store`."""
    from .store_cli import run_store

    return run_store(args)


COMMANDS = {
    "pretrain": Command(
        "pre-train a video transformer on raw videos",
        "mme pretrain [--recipe NAME] [--data LIST|DIR|synthetic] --out DIR [option ...]",
        "Masked Motion Encoding: predict the motion in masked patches, with targets made inline. "
        "On several GPUs: torchrun --nproc_per_node N -m mme_model pretrain … "
        "Every field of a recipe can be changed here; in brackets stands the paper's or else a "
        "usual value, which holds unless the recipe says otherwise.",
        _add_pretrain,
        run_pretrain,
    ),
    "extract": Command(
        "tracks of a list of videos, once, into a store",
        "mme extract LIST --out STORE [option ...]",
        "Tracks from every frame of every video, for training that reads them instead of "
        "computing flow: killed and started again it goes on where it was. Exit status 3: some "
        "videos failed. "
        "On the GPUs of one machine: torchrun --nproc_per_node N -m mme_model extract …",
        _add_extract,
        run_extract,
    ),
    "store": Command(
        "what a store of tracks holds, whether it is whole, merging",
        "mme store info|verify|merge STORE [STORE ...] [option ...]",
        "Say what a store holds; read all of it, and recompute some, to see that it is whole; make "
        "one of several.",
        _add_store,
        run_store,
    ),
    "reconstruct": Command(
        "draw true and predicted tracks of a video (Fig. 4)",
        "mme reconstruct CHECKPOINT VIDEO --out FILE.png [option ...]",
        "Masked frame, true tracks, predicted tracks and frame, side by side (Figs. 4, 10, 11).",
        _add_reconstruct,
        run_reconstruct,
    ),
    "recipes": Command(
        "list the recipes, or print one whole",
        "mme recipes [NAME]",
        "The recipes that come with the package, or one of them with all its fields.",
        _add_recipes,
        run_recipes,
    ),
    "info": Command(
        "parameters and multiply-adds of a recipe's model",
        "mme info [--recipe NAME] [option ...]",
        "Parameters and multiply-adds of a recipe's model, beside the paper's (Table 7f).",
        _add_info,
        run_info,
    ),
}
"""Every command that this package gives to `mme`."""
