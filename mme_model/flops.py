"""Multiply-adds and parameters of a recipe's model (Tables 1, 2 and 7f).

What the papers call FLOPs are multiply-adds of matrix products: those of linear layers, of the
patch embedding and of attention; norms, softmax and activations are left out. Table 7f's figures
come out when all patches are embedded and the heads run on all tokens; here only the visible
patches are embedded, only the masked tokens reach the heads, and the decoder's last block computes
what these need. Of MViTv2-S, torch counts them in a run without arithmetic, convolutions included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .finetune_recipe import FinetuneRecipe
from .masking import masked_count
from .mme import target_widths
from .mvit import build_encoder, build_model
from .recipe import ModelConfig, Recipe
from .vit import HIDDEN, ClipShape, Shape, decoder_shape, encoder_shape, token_grid

__all__ = [
    "Counts",
    "Row7f",
    "count",
    "describe",
    "describe_classifier",
    "encoder_count",
    "table7f",
]

CLASSES = 400
"""Kinetics-400's; with their classifier the paper's backbone has 87 M parameters."""
TABLE_7F = {("joint", 1): 51, ("joint", 2): 55, ("separate", 1): 56, ("separate", 2): 65}
"""GFLOPs that the paper gives for each kind and depth of decoder, cut to whole numbers."""


@dataclass(frozen=True)
class Counts:
    """Of one clip, in multiply-adds; and of the model, in parameters.

    Attributes
    ----------
    run : one forward pass of pre-training, as it runs here.
    paper : the same as the paper counts it (Table 7f); of MViTv2-S, which has no row there, `run`.
    encoder : the encoder over all patches: fine-tuning (Tables 1 and 2), classifier left out.
    parameters : of the model that is pre-trained.
    encoder_parameters : of its encoder.
    backbone_parameters : of the encoder with a classifier of 400 classes (Tables 1 and 2).
    visible, masked : tokens of a clip.
    """

    run: int
    paper: int
    encoder: int
    parameters: int
    encoder_parameters: int
    backbone_parameters: int
    visible: int
    masked: int


class Row7f(NamedTuple):
    """A line of Table 7f: decoders, their depth, our counts, and the paper's GFLOPs."""

    decoders: str
    depth: int
    counts: Counts
    paper_giga: int


def count(recipe: Recipe) -> Counts:
    """Count; ValueError for a model or a mask that cannot be."""
    model, targets = recipe.model, recipe.targets
    grid = token_grid(targets)
    tokens = grid[0] * grid[1] * grid[2]
    masked = masked_count(recipe.mask, grid)
    visible = tokens - masked
    with torch.device("meta"):
        network = build_model(model, targets)
    own = _parameters(network.encoder)
    if model.backbone != "vit":
        shown = torch.arange(masked, device="meta")[None]
        run = _traced(network, targets, shown)
        return Counts(
            run=run,
            paper=run,
            encoder=encoder_count(model, targets),
            parameters=_parameters(network),
            encoder_parameters=own,
            backbone_parameters=own + (network.encoder.width + 1) * CLASSES,
            visible=visible,
            masked=masked,
        )
    encoder, decoder, widths = encoder_shape(model), decoder_shape(model), target_widths(targets)
    decoders = 1 if model.decoders == "joint" else len(widths)

    embed = 3 * targets.tubelet * targets.patch**2 * encoder.width
    heads = _heads(model, decoder.width, widths.values())
    whole = _blocks(visible, encoder) + decoders * (
        visible * encoder.width * decoder.width + _blocks(tokens, decoder)
    )
    # Of each decoder's last block, what is of the visible tokens alone: their query, output and
    # MLP, ten of twelve products of width x width, and their rows of attention.
    spared = 10 * visible * decoder.width**2 + 2 * visible * tokens * decoder.width
    between = whole - decoders * (spared if decoder.depth else 0)
    return Counts(
        run=visible * embed + between + masked * heads,
        paper=tokens * embed + whole + tokens * heads,
        encoder=encoder_count(model, targets),
        parameters=_parameters(network),
        encoder_parameters=own,
        backbone_parameters=own + (encoder.width + 1) * CLASSES,
        visible=visible,
        masked=masked,
    )


def encoder_count(model: ModelConfig, clip: ClipShape) -> int:
    """Multiply-adds of the encoder over all patches of a clip (Tables 1 and 2).

    MViTv2-S's last stage is pooled in this, as it is in fine-tuning.
    """
    if model.backbone != "vit":
        with torch.device("meta"):
            encoder = build_encoder(model.replace(last_pooling=True), clip)
        return _traced(encoder, clip)
    t, h, w = token_grid(clip)
    shape = encoder_shape(model)
    embed = 3 * clip.tubelet * clip.patch**2 * shape.width
    return t * h * w * embed + _blocks(t * h * w, shape)


def table7f(recipe: Recipe | None = None) -> list[Row7f]:
    """Table 7f: one decoder or one for each target, of one block or two; the paper's recipe."""
    base = recipe if recipe is not None else Recipe()
    rows = []
    for (decoders, depth), giga in TABLE_7F.items():
        model = base.model.replace(decoders=decoders, decoder_depth=depth)
        rows.append(Row7f(decoders, depth, count(base.replace(model=model)), giga))
    return rows


def describe(recipe: Recipe) -> str:
    """The counts in lines of text."""
    counts = count(recipe)
    training = (
        f"fine-tuning: {counts.encoder / 1e9:.1f} G multiply-adds a clip, "
        f"{counts.encoder_parameters / 1e6:.1f} M parameters "
        f"({counts.backbone_parameters / 1e6:.1f} M with a classifier of {CLASSES})"
    )
    if recipe.model.backbone != "vit":
        side = recipe.grid[1] if not recipe.model.last_pooling else recipe.grid[1] // 2
        return "\n".join(
            (
                "encoder: MViTv2-S, 16 blocks of width 96 to 768; a linear layer on its "
                f"{recipe.grid[0]}x{side}x{side} tokens",
                f"patches of a clip: {counts.visible} visible, {counts.masked} masked; all enter",
                f"pre-training: {counts.run / 1e9:.1f} G multiply-adds a clip, "
                f"{counts.parameters / 1e6:.1f} M parameters",
                training,
            )
        )
    decoder, encoder = decoder_shape(recipe.model), encoder_shape(recipe.model)
    return "\n".join(
        (
            f"encoder: width {encoder.width}, depth {encoder.depth}, heads {encoder.heads}; "
            f"{recipe.model.decoders} decoder: width {decoder.width}, depth {decoder.depth}, "
            f"heads {decoder.heads}",
            f"tokens of a clip: {counts.visible} visible, {counts.masked} masked",
            f"pre-training: {counts.run / 1e9:.1f} G multiply-adds a clip "
            f"({counts.paper / 1e9:.1f} G as the paper counts), "
            f"{counts.parameters / 1e6:.1f} M parameters",
            training,
        )
    )


def describe_classifier(recipe: FinetuneRecipe) -> str:
    """The same of a fine-tuning recipe, whose classes are not known before its data."""
    model, views = recipe.model, recipe.views
    with torch.device("meta"):
        network = build_encoder(model, views)
    t, h, w = token_grid(views)
    own, giga = _parameters(network), encoder_count(model, views) / 1e9
    shape = encoder_shape(model)
    size = f"width {shape.width}, depth {shape.depth}, heads {shape.heads}"
    if model.backbone != "vit":
        size = "MViTv2-S, 16 blocks of width 96 to 768"
    count = views.test_clips * views.test_crops
    return "\n".join(
        (
            f"encoder: {size}; a linear layer on the mean of its tokens",
            f"a view: {views.frames} frames of {views.size} px, {t}x{h}x{w} patches",
            f"fine-tuning: {giga:.1f} G multiply-adds a view, {own / 1e6:.1f} M parameters "
            f"({(own + (network.width + 1) * CLASSES) / 1e6:.1f} M with a classifier of {CLASSES})",
            f"testing: {views.test_clips} x {views.test_crops} views, {count * giga:.1f} G "
            "multiply-adds a video",
        )
    )


def _traced(network: torch.nn.Module, clip: ClipShape, *given: torch.Tensor) -> int:
    """What torch counts of a network that lies on "meta", two for a multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, clip.frames, 3, clip.size, clip.size), *given)
    return int(counter.get_total_flops()) // 2


def _blocks(tokens: int, shape: Shape) -> int:
    """Four d×d products (q, k, v, output), two of d×4d, and attention's two of tokens×tokens."""
    width = shape.width
    return shape.depth * (12 * tokens * width**2 + 2 * tokens**2 * width)


def _heads(model: ModelConfig, width: int, outputs: Iterable[int]) -> int:
    """Of one token, over all targets."""
    if model.head == "linear":
        return sum(width * out for out in outputs)
    return sum(width * HIDDEN + HIDDEN * out for out in outputs)


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
