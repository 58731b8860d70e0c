"""The video transformer: tubelets, fixed positions, encoder, decoder and heads (§3.2, Table 7f).

A clip of T×H×W is cut into N = (T/t)·(H/p)·(W/p) patches, in (t, h, w) order; each is one token.
Only visible tokens enter the encoder. Blocks, attention, MLP and stochastic depth are timm's.
Residual streams stay in float32 under autocast, since positions are added in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, Protocol

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mme_targets.arrays import check_dtype

from .recipe import ModelConfig

__all__ = [
    "ClipShape",
    "Decoder",
    "Encoder",
    "Shape",
    "decoder_shape",
    "encoder_shape",
    "token_grid",
]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of RGB in 0 to 1."""
HIDDEN = 512
"""Hidden values of the released code's heads."""
HISTOGRAMS, MOVES = ("shape", "hog", "hof", "mbh"), ("position", "flow")
"""Targets that the "mlp" head bounds to 0…1 and to ±1."""


class ClipShape(Protocol):
    """What a clip is, as `TargetConfig` and the views of fine-tuning say it."""

    @property
    def frames(self) -> int:
        """T."""

    @property
    def tubelet(self) -> int:
        """Frames of a patch."""

    @property
    def patch(self) -> int:
        """Side of a patch, px."""

    @property
    def size(self) -> int:
        """Side of a frame, px."""


class Shape(NamedTuple):
    """Of a stack of blocks: values of a token, blocks, attention heads."""

    width: int
    depth: int
    heads: int


SIZES = {
    "tiny": Shape(192, 12, 3),
    "small": Shape(384, 12, 6),
    "base": Shape(768, 12, 12),
    "large": Shape(1024, 24, 16),
}


MVITV2_S = Shape(768, 16, 8)
"""MViTv2-S: all its blocks, and the width and heads of the last ones."""


def encoder_shape(model: ModelConfig) -> Shape:
    """The encoder's width, depth and heads; ValueError if the heads do not divide the width."""
    if model.backbone == "mvitv2_s":
        return MVITV2_S
    size = SIZES[model.size]
    width, heads = model.width or size.width, model.heads or size.heads
    if width % heads:
        raise ValueError(
            f"model.heads is {heads}; must divide the encoder's width ({width}) evenly"
        )
    return Shape(width, model.depth or size.depth, heads)


def decoder_shape(model: ModelConfig) -> Shape:
    """The decoder's width, depth and heads; ValueError if the heads do not divide the width."""
    width = model.decoder_width or max(1, encoder_shape(model).width // 2)
    heads = model.decoder_heads or max(1, width // 64)
    if width % heads:
        what = f"{heads}" if model.decoder_heads else f"0, which makes {heads} of 64 values"
        raise ValueError(
            f"model.decoder_heads is {what}; must divide the decoder's width ({width}) evenly"
        )
    return Shape(width, model.decoder_depth, heads)


def token_grid(targets: ClipShape) -> tuple[int, int, int]:
    """Tokens of a clip in (t, h, w); ValueError if the patches do not fill the crop."""
    if targets.size % targets.patch:
        raise ValueError(
            f"targets.size is {targets.size}; must be divisible by patch ({targets.patch})"
        )
    side = targets.size // targets.patch
    return targets.frames // targets.tubelet, side, side


def sinusoids(count: int, width: int) -> Tensor:
    """Positions [count, width]: angle pos / 10000^(2⌊j/2⌋/width), sine on even j, cosine on odd."""
    value = torch.arange(width, dtype=torch.float64)
    rate = 10000 ** (-2 * value.div(2, rounding_mode="floor") / width)
    angle = torch.arange(count, dtype=torch.float64)[:, None] * rate
    return torch.where(value % 2 == 0, angle.sin(), angle.cos()).float()


def initialise(module: nn.Module) -> None:
    """VideoMAE's start: Xavier uniform linear layers without bias, plain norms."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class PatchEmbed(nn.Module):
    """Tubelets of a clip to tokens: a convolution whose stride is its kernel, of chosen patches.

    The weight is kept as the convolution's [width, 3, t, p, p], as VideoMAE's checkpoints have it.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, targets: ClipShape) -> None:
        super().__init__()
        self.grid = token_grid(targets)
        self.clip = [targets.frames, 3, targets.size, targets.size]
        sides = (targets.tubelet, targets.patch, targets.patch)
        self.proj = nn.Conv3d(3, width, sides, stride=sides)
        pixels = targets.tubelet * targets.patch**2
        for name, values in (("mean", MEAN), ("deviation", STD)):
            channels = torch.tensor(values).mul(255).repeat_interleave(pixels)
            self.register_buffer(name, channels, persistent=False)

    def forward(self, clips: Tensor, visible: Tensor | None) -> Tensor:
        """[B, T, 3, H, W] and the patches wanted [B, V], or all: [B, V or N, width]."""
        check_dtype(clips, "clips", (torch.uint8, torch.float32))
        if clips.dim() != 5 or list(clips.shape[1:]) != self.clip:
            sides = ", ".join(map(str, self.clip))
            raise ValueError(f"clips has shape {list(clips.shape)}; must be [B, {sides}]")
        patches = self.patches(clips, visible).to(self.mean.dtype)
        patches = (patches - self.mean) / self.deviation
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def patches(self, clips: Tensor, visible: Tensor | None) -> Tensor:
        """The chosen patches' pixels [B, V or N, 3·t·p·p], laid out as the weight."""
        t, h, w = self.grid
        cut = clips.unflatten(4, (w, -1)).unflatten(3, (h, -1)).unflatten(1, (t, -1))
        rows: Tensor = cut.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(1, 3).flatten(2)
        if visible is None:
            return rows
        return rows.gather(1, visible[..., None].expand(-1, -1, rows.shape[2]))


class Blocks(nn.ModuleList):
    """timm's transformer blocks, one after the other."""

    def __init__(
        self, shape: Shape, drop_path: float = 0.0, checkpointing: bool = False, cut: bool = False
    ) -> None:
        """With `cut` the last block returns the last tokens alone, as many as asked for."""
        norm = partial(nn.LayerNorm, eps=1e-6)
        last = shape.depth - 1
        super().__init__(
            (LastBlock if cut and i == last else Block)(
                shape.width,
                shape.heads,
                qkv_bias=True,
                drop_path=drop_path * i / max(1, last),
                norm_layer=norm,
            )
            for i in range(shape.depth)
        )
        self.checkpointing = checkpointing

    def forward(self, tokens: Tensor, wanted: int = 0) -> Tensor:
        """[B, N, width] to the same, or to the last `wanted` where they are cut."""
        for block in self:
            given = (tokens, wanted) if isinstance(block, LastBlock) else (tokens,)
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, *given, use_reentrant=False)
            else:
                tokens = block(*given)
        return tokens


class LastBlock(Block):  # type: ignore[misc]
    """A block whose output is wanted of the last tokens alone: these ask, and all answer.

    What it returns of them is what the whole block would; the rest is not computed.
    """

    def forward(self, tokens: Tensor, wanted: int) -> Tensor:
        """[B, N, width] to [B, wanted, width]."""
        attention, width = self.attn, tokens.shape[-1]
        normed, asking = self.norm1(tokens), tokens[:, -wanted:]
        weight, bias = attention.qkv.weight, attention.qkv.bias
        query = F.linear(normed[:, -wanted:], weight[:width], bias[:width])
        key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
        split = (x.unflatten(2, (attention.num_heads, -1)) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in split))
        asking = asking + attention.proj(mixed.transpose(1, 2).flatten(2))
        found: Tensor = asking + self.mlp(self.norm2(asking))
        return found


class Encoder(nn.Module):
    """Clip to tokens: ViT over the visible patches (§3.2).

    Parameters
    ----------
    model : size, drop path, checkpointing; ValueError where heads do not divide the width.
    targets : what a clip is: frames, size, tubelet, patch.
    """

    positions: Tensor

    def __init__(self, model: ModelConfig, targets: ClipShape) -> None:
        super().__init__()
        shape = encoder_shape(model)
        self.width = shape.width
        self.grid = token_grid(targets)
        self.tokens = self.grid[0] * self.grid[1] * self.grid[2]
        self.patch_embed = PatchEmbed(shape.width, targets)
        self.blocks = Blocks(shape, model.drop_path, model.checkpointing)
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.register_buffer("positions", sinusoids(self.tokens, shape.width), persistent=False)
        self.apply(initialise)

    def forward(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode.

        Parameters
        ----------
        clips : [B, T, 3, H, W] RGB, uint8, or float32 in 0 to 255; normalised here.
        visible : [B, V] int64, which patches to look at, in any order. None: all.

        Returns
        -------
        Tensor
            [B, V, width], in the order of `visible`, or [B, N, width].

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what it was and what it must be.
        """
        if visible is not None:
            check_patches(visible, "visible", len(clips), self.tokens)
        tokens = self.patch_embed(clips, visible)
        positions = self.positions if visible is None else self.positions[visible]
        encoded: Tensor = self.norm(self.blocks(tokens + positions))
        return encoded


class Decoder(nn.Module):
    """Encoded and mask tokens to the values of some targets, of the masked patches alone.

    Parameters
    ----------
    model : width, depth, heads, kind of head.
    outputs : D of each target by name.
    """

    def __init__(self, model: ModelConfig, outputs: Mapping[str, int]) -> None:
        super().__init__()
        shape = decoder_shape(model)
        self.blocks = Blocks(shape, checkpointing=model.checkpointing, cut=True)
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.heads = nn.ModuleDict(
            {name: _head(model.head, name, shape.width, out) for name, out in outputs.items()}
        )
        self.apply(initialise)

    def forward(self, tokens: Tensor, masked: int) -> dict[str, Tensor]:
        """[B, V + M, width], the M masked ones last, to [B, M, D] by name."""
        decoded = self.norm(self.blocks(tokens, masked)[:, -masked:])
        return {name: head(decoded) for name, head in self.heads.items()}


def _head(kind: str, name: str, width: int, out: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, out)
    last = nn.Sigmoid() if name in HISTOGRAMS else nn.Tanh() if name in MOVES else nn.Identity()
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, out), last)


def check_patches(patches: Tensor, name: str, batch: int, tokens: int) -> None:
    """Indices [batch, M] of patches, each within 0 to tokens - 1 and once in its clip.

    What they are is looked at on the CPU alone, so that nothing waits for a GPU.
    """
    check_dtype(patches, name, (torch.int64,))
    if patches.dim() != 2 or len(patches) != batch or not 0 < patches.shape[1] <= tokens:
        raise ValueError(
            f"{name} has shape {list(patches.shape)}; must be [{batch}, M] with 1 <= M <= {tokens}"
        )
    if patches.device.type != "cpu" or torch.compiler.is_compiling() or not batch:
        return
    low, high = int(patches.min()), int(patches.max())
    if low < 0 or high >= tokens:
        raise ValueError(f"{name} spans {low} to {high}; must lie within 0 to {tokens - 1}")
    ordered = patches.sort(dim=1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise ValueError(f"{name} names a patch twice; each must be there once at most")
