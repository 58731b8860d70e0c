"""`mme convert`: checkpoints from and for other programs; and reading any of them.

Formats are those of `key_maps` and `exports`; what comes in is recognised by its keys. Heads,
frames and sizes that a file does not say can be given. Nothing in a file is run (`foreign`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import fit_state
from .classifier import Classifier
from .exports import Format, Written, export
from .finetune_recipe import FinetuneRecipe
from .mvit import MViTEncoder, build_encoder
from .vit import Encoder, encoder_shape
from .weights import Assumed, Weights, build, read_weights

__all__ = [
    "add_arguments",
    "convert",
    "load_classifier",
    "load_encoder",
    "load_encoder_state",
    "noted_classifier",
    "run",
]

HEADS = ("head.weight", "classifier.weight")
TITLES = {
    "mme": "this project's",
    "videomae": "VideoMAE's",
    "released": "the MME authors'",
    "hf": "Hugging Face's",
}


def load_encoder_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The encoder's weights in a checkpoint of any format, and facts about them.

    Returns
    -------
    state, facts
        Weights in float32 by an `Encoder`'s keys, with `norm.*` where the file has it (a classifier
        has not); and its `format`, `kind`, `backbone`, `width`, `depth`, `heads`, `tubelet`,
        `patch`, `frames`, `size`, `notes` and `assumed`, which of these the file does not say. The
        kind of foreign files is "encoder".

    Raises
    ------
    OSError, ValueError
        As `weights.read_weights`.
    """
    weights = read_weights(path, only_encoder=True)
    state = {k.removeprefix("encoder."): v.float() for k, v in weights.state.items()}
    return state, _facts(weights)


def load_encoder(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[Encoder | MViTEncoder, dict[str, Any]]:
    """The encoder of a checkpoint of any format, ready for evaluation, and facts about it.

    Its last norm is the identity where the file has none, as a classifier's has.

    Raises
    ------
    OSError, ValueError
        As `weights.read_weights`; weights that do not fit are listed.
    """
    weights = read_weights(path, only_encoder=True)
    recipe = weights.recipe
    encoder = build_encoder(recipe.model, weights.clip)
    if "encoder.norm.weight" not in weights.state:
        encoder.norm = torch.nn.Identity()
    state = {k.removeprefix("encoder."): v for k, v in weights.state.items()}
    encoder.load_state_dict(fit_state(state, encoder.state_dict(), weights.source))
    return encoder.to(device).eval(), _facts(weights)


def load_classifier(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[Classifier, FinetuneRecipe, list[str]]:
    """The classifier of a checkpoint, ready for evaluation, its recipe and its classes' names.

    Of a foreign file the recipe says what the model and its clips are; the rest are defaults.

    Raises
    ------
    OSError, ValueError
        As `weights.read_weights`; also where the file holds no classifier.
    """
    return noted_classifier(path, device)[:3]


def noted_classifier(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[Classifier, FinetuneRecipe, list[str], list[str]]:
    """As `load_classifier`, and what a user should know of the file: what was assumed, say."""
    weights = read_weights(path)
    if not isinstance(weights.recipe, FinetuneRecipe):
        why = "; ".join({r: 0 for k, r in weights.left.items() if k in HEADS})
        raise ValueError(
            f"{weights.source} holds no classifier{': its head ' + why if why else ''}"
        )
    model = build("classifier", weights.recipe, len(weights.classes))
    model.load_state_dict(weights.state)
    assert isinstance(model, Classifier)
    return model.to(device).eval(), weights.recipe, weights.classes, weights.notes


def _facts(weights: Weights) -> dict[str, Any]:
    clip, shape = weights.clip, encoder_shape(weights.recipe.model)
    return {
        "format": weights.format,
        "backbone": weights.recipe.model.backbone,
        "kind": weights.kind,
        **shape._asdict(),
        **{name: getattr(clip, name) for name in ("tubelet", "patch", "frames", "size")},
        "notes": weights.notes,
        "assumed": weights.assumed,
    }


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: Format,
    *,
    assumed: Assumed | None = None,
    strict: bool = True,
    classes: list[str] | None = None,
) -> tuple[Weights, Written]:
    """Read a checkpoint of any format and write it in another, a model card beside it.

    Parameters
    ----------
    assumed : frames, size and heads where the file does not say, or says wrong.
    strict : raise where the file has tensors without a place here; else leave them out.
    classes : names of a classifier's classes, in place of those of the file.

    Raises
    ------
    OSError, ValueError
        As `weights.read_weights` and `exports.export`; also for names that are not as many as
        the classes.
    """
    weights = read_weights(source, assumed, strict=strict)
    if classes is not None:
        if len(classes) != len(weights.classes):
            raise ValueError(
                f"classes has {len(classes)} names; must be as many as {weights.source} has "
                f"classes, {len(weights.classes)}"
            )
        weights = replace(weights, classes=classes)
    return weights, export(weights, out, to)


def add_arguments(parser: Any) -> None:
    """Arguments of `mme convert`."""
    parser.add_argument("source", type=str, metavar="IN",
                        help="a checkpoint: this project's, VideoMAE's or the MME authors' .pth, "
                        "or a folder of Hugging Face's")  # fmt: skip
    parser.add_argument("out", type=str, metavar="OUT",
                        help="a new folder; or a .safetensors or .pth file, and OUT.md "
                        "beside it")  # fmt: skip
    parser.add_argument("--to", choices=list(TITLES), required=True,
                        help="the format to write")  # fmt: skip
    parser.add_argument("--strict", type=bool, nargs="?", const=True, default=True, metavar="BOOL",
                        help="false: leave tensors that have no place here out, and list "
                        "them")  # fmt: skip
    for name, text in (
        ("frames", "frames of a clip"),
        ("size", "side of a clip, px"),
        ("heads", "attention heads of the encoder"),
    ):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N",
                            help=f"{text}; 0: what the file says, or else the usual")  # fmt: skip
    parser.add_argument("--classes", type=str, default="", metavar="FILE",
                        help="names of the classes, one a line")  # fmt: skip


def run(args: Any) -> int:
    """`mme convert`."""
    for name in ("frames", "size", "heads"):
        if getattr(args, name) < 0:
            raise ValueError(f"{name} is {getattr(args, name)}; must be 0 or more")
    classes = None
    if args.classes:
        classes = [line.strip() for line in Path(args.classes).read_text().splitlines()]
        classes = [line for line in classes if line]
    assumed = Assumed(args.frames, args.size, args.heads)
    weights, written = convert(
        args.source, args.out, args.to, assumed=assumed, strict=args.strict, classes=classes
    )
    shape, clip = encoder_shape(weights.recipe.model), weights.clip
    kind = {"pretrain": "pre-trained model", "encoder": "encoder"}.get(
        weights.kind, f"classifier of {len(weights.classes)} classes"
    )
    print(f"{weights.source}: {TITLES[weights.format]}, {kind}")
    print(f"width {shape.width}, {shape.depth} blocks, {shape.heads} heads; {clip.frames} frames "
          f"of {clip.size} px, patches {clip.tubelet}x{clip.patch}x{clip.patch}")  # fmt: skip
    print(f"{weights.mapped} tensors taken, {written.tensors} written -> {written.path}")
    _print_left("of the file", weights.left)
    _print_left("of the model", written.left)
    for note in weights.notes:
        print(f"note: {note}")
    return 0


def _print_left(what: str, left: Mapping[str, str]) -> None:
    for reason in dict.fromkeys(left.values()):
        keys = [key for key, why in left.items() if why == reason]
        more = f", … ({len(keys)})" if len(keys) > 6 else ""
        print(f"left out {what}: {', '.join(keys[:6])}{more}: {reason}")
