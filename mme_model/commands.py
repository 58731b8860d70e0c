"""The commands that this package adds to `mme`."""

from __future__ import annotations

import itertools
import re
import typing
from importlib import import_module
from typing import Any

from mme_targets.cli import Command
from mme_targets.targets import names

from .finetune_recipe import FinetuneRecipe, load_any
from .options import add_fields, add_recipe, changes_of
from .recipe import JOBS, Recipe, load_recipe, recipe_names

__all__ = ["COMMANDS"]


def recipe_of(args: Any) -> Recipe:
    """The recipe named, with what the command line says on top."""
    return load_recipe(args.recipe, _changes(args))


def _changes(args: Any) -> dict[str, Any]:
    changes = changes_of(args)
    if changes.get("tracks") or changes.get("cache"):
        changes.setdefault("targets", {}).setdefault("region", "frame")  # what a store holds
    return changes


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
    add_recipe(parser)


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
        print(load_any(args.name).to_yaml(), end="")
        return 0
    from importlib.resources import files

    for folder, job in JOBS.items():
        print(f"{job} --recipe")
        for name in recipe_names(folder):
            text = files("mme_model").joinpath(f"{folder}/{name}.yaml").read_text().splitlines()
            about = " ".join(line.lstrip("# ") for line in itertools.takewhile(_is_comment, text))
            print(f"  {name:<30} {first_sentence(about)}")
    return 0


def first_sentence(text: str) -> str:
    """Up to the first full stop before a capital: after those of abbreviations there is none."""
    return re.split(r"\.\s+(?=[A-Z])", text)[0].rstrip(".")


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def _add_info(parser: Any) -> None:
    add_recipe(parser)
    add_fields(parser, FinetuneRecipe, beside=Recipe)


def run_info(args: Any) -> int:
    """`mme info`."""
    from rich.console import Console
    from rich.table import Table

    from .flops import describe, describe_classifier, table7f

    # Fields that only the other job has are refused by name.
    recipe = load_any(args.recipe, {**changes_of(args, FinetuneRecipe), **_changes(args)})
    if isinstance(recipe, FinetuneRecipe):
        print(describe_classifier(recipe))
        return 0
    print(describe(recipe))
    usual = recipe.model.backbone == "vit" and recipe.model.size == "base"
    if usual and set(names(recipe.targets)) == {"position", "shape"}:
        table = Table(title="Table 7f: multiply-adds of a clip", title_justify="left")
        for name in ("decoders", "depth", "here", "as the paper counts", "the paper"):
            table.add_column(name, justify="left" if name == "decoders" else "right")
        for row in table7f(recipe):
            here, there = row.counts.run / 1e9, row.counts.paper / 1e9
            table.add_row(row.decoders, str(row.depth), f"{here:.1f} G", f"{there:.1f} G",
                          f"{row.paper_giga} G")  # fmt: skip
        Console(soft_wrap=True).print(table)
    return 0


def _of(module: str, add: str = "add_arguments", run: str = "run") -> tuple[Any, Any]:
    """Functions of a job's file, which is read when one of them is called."""

    def adding(parser: Any) -> None:
        getattr(import_module(f".{module}", __package__), add)(parser)

    def running(args: Any) -> int:
        return int(getattr(import_module(f".{module}", __package__), run)(args))

    return adding, running


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
    "finetune": Command(
        "train a classifier on a pre-trained encoder",
        "mme finetune [--recipe NAME] [--data TRAIN] [--val VAL] [--init CHECKPOINT] --out DIR "
        "[option ...]",
        "Fine-tuning (Table 9). The classes are those of the training data. Every field of a "
        "recipe can be changed here; in brackets stands the paper's or else a usual value, which "
        "holds unless the recipe says otherwise.",
        *_of("finetune"),
    ),
    "test": Command(
        "measure a classifier: several views of each video",
        "mme test CHECKPOINT [--data LIST|DIR|synthetic] --out DIR [option ...]",
        "Accuracy over several views of each video (Tables 1 to 3), with tables, a confusion "
        "picture and every prediction. On several GPUs: torchrun --nproc_per_node N -m mme_model "
        "test …",
        *_of("evaluate"),
    ),
    "predict": Command(
        "print the top classes of a video",
        "mme predict VIDEO CHECKPOINT [option ...]",
        "The classes that a classifier finds most probable in a video.",
        *_of("evaluate", "add_predict_arguments", "run_predict"),
    ),
    "probe": Command(
        "train a linear layer on a frozen encoder",
        "mme probe [CHECKPOINT] [--data TRAIN] [--val VAL] --out DIR [option ...]",
        "Linear probing (Table 4): features of the frozen encoder are kept, and a linear layer is "
        "trained on them.",
        *_of("probe"),
    ),
    "convert": Command(
        "convert checkpoints: VideoMAE's, the authors', Hugging Face's",
        "mme convert IN OUT --to mme|videomae|hf|released [option ...]",
        "Read a checkpoint in whatever format it is and write it in another; nothing in it is "
        "executed, and nothing is overwritten.",
        *_of("convert"),
    ),
    "extract": Command(
        "tracks of a list of videos, once, into a store",
        "mme extract LIST --out STORE [option ...]",
        "Tracks from every frame of every video, for training that reads them instead of "
        "computing flow: killed and started again it goes on where it was. Exit status 3: some "
        "videos failed. "
        "On the GPUs of one machine: torchrun --nproc_per_node N -m mme_model extract …",
        *_of("store_cli", "add_extract", "run_extract"),
    ),
    "store": Command(
        "what a store of tracks holds, whether it is whole, merging",
        "mme store info|verify|merge STORE [STORE ...] [option ...]",
        "Say what a store holds; read all of it, and recompute some, to see that it is whole; make "
        "one of several.",
        *_of("store_cli", "add_store", "run_store"),
    ),
    "reconstruct": Command(
        "draw true and predicted tracks of a video (Fig. 4)",
        "mme reconstruct CHECKPOINT VIDEO --out FILE.png [option ...]",
        "Masked frame, true tracks, predicted tracks and frame, side by side (Figs. 4, 10, 11).",
        *_of("reconstruct"),
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
        "Parameters and multiply-adds of a recipe's model, of either job (a name that both "
        "have is pre-training's); beside the paper's (Table 7f).",
        _add_info,
        run_info,
    ),
}
"""Every command that this package gives to `mme`."""
