"""MViTv2-S as the backbone, pre-trained as MaskFeat's (Table 12); and which backbone is built.

Blocks are torchvision's. All tokens enter: behind the stem, a convolution of 3×7×7 and stride
2×4×4, those of masked patches are replaced by a learnt mask token. A 3-D patch of 2×16×16 is 1×4×4
of the stem's tokens. The stem's kernels overlap, so tokens of visible patches see up to three
pixels into masked ones, and a frame of the tubelet before; MaskFeat's do too.

MaskFeat leaves out the pooling that begins the last stage while it pre-trains, so that a token that
comes out is a patch (8×14×14 at 16×224²); its fine-tuning pools, as MViTv2-S does (8×7×7).
`last_pooling` says which; where a token is 2×2 patches, it predicts the values of each.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mme_targets import TargetConfig
from mme_targets.arrays import check_dtype

from .mme import MaskedMotionEncoder, target_widths
from .recipe import ModelConfig
from .vit import MEAN, MVITV2_S, STD, ClipShape, Encoder, check_patches, token_grid

__all__ = [
    "MViTEncoder",
    "MaskedMViT",
    "build_encoder",
    "build_model",
    "resized_positions",
]

TUBELET, PATCH, STRIDE = 2, 16, 32
"""Frames and side of a patch, and what halves evenly down to the last stage, px."""
WIDTH, STAGES = 96, (1, 3, 14)
"""Of the stem; and the blocks that double the width, and the heads, and halve the grid."""
POOLED = 8
"""Tokens of the stem to a key, each way."""


class MViTEncoder(nn.Module):
    """Clip to tokens: MViTv2-S, under torchvision's keys, without its classifier.

    Parameters
    ----------
    model : drop path, checkpointing, pooling of the last stage.
    clip : frames and size; tubelet 2, patch 16.

    Attributes
    ----------
    width : 768, of a token that comes out.
    grid, tokens : patches of a clip in (t, h, w), and how many.
    out : tokens that come out in (t, h, w): the patches, or half as many each way in space.

    Raises
    ------
    ValueError
        For another tubelet or patch, or a size that is not divisible by 32.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: ModelConfig, clip: ClipShape) -> None:
        super().__init__()
        from torchvision.models.video.mvit import MViT

        for name, wanted in (("tubelet", TUBELET), ("patch", PATCH)):
            if getattr(clip, name) != wanted:
                raise ValueError(
                    f"{name} is {getattr(clip, name)}; must be {wanted} with backbone mvitv2_s"
                )
        if clip.size % STRIDE:
            raise ValueError(
                f"size is {clip.size}; must be divisible by {STRIDE} with backbone mvitv2_s"
            )
        self.width = MVITV2_S.width
        self.grid = token_grid(clip)
        self.tokens = self.grid[0] * self.grid[1] * self.grid[2]
        half = 2 if model.last_pooling else 1
        self.out = (self.grid[0], self.grid[1] // half, self.grid[2] // half)
        self.clip = [clip.frames, 3, clip.size, clip.size]
        self.checkpointing = model.checkpointing
        made = MViT(
            spatial_size=(clip.size, clip.size),
            temporal_size=clip.frames,
            block_setting=_blocks(model.last_pooling),
            residual_pool=True,
            residual_with_cls_embed=False,
            rel_pos_embed=True,
            proj_after_attn=True,
            stochastic_depth_prob=model.drop_path,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.conv_proj, self.pos_encoding = made.conv_proj, made.pos_encoding
        self.blocks, self.norm = made.blocks, made.norm
        for key, values in (("mean", MEAN), ("deviation", STD)):
            self.register_buffer(key, torch.tensor(values).mul(255).view(3, 1, 1), persistent=False)

    def forward(
        self, clips: Tensor, hidden: Tensor | None = None, token: Tensor | None = None
    ) -> Tensor:
        """Encode.

        Parameters
        ----------
        clips : [B, T, 3, H, W] RGB, uint8, or float32 in 0 to 255; normalised here.
        hidden : [B, N] bool, the patches whose tokens `token`, [..., 96], stands in for.

        Returns
        -------
        Tensor
            [B, t·h·w of `out`, 768]; the class token, which takes part, is left out.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what it was and what it must be.
        """
        check_dtype(clips, "clips", (torch.uint8, torch.float32))
        if clips.dim() != 5 or list(clips.shape[1:]) != self.clip:
            sides = ", ".join(map(str, self.clip))
            raise ValueError(f"clips has shape {list(clips.shape)}; must be [B, {sides}]")
        pixels = (clips.to(self.mean.dtype) - self.mean) / self.deviation
        stem = self.conv_proj(pixels.transpose(1, 2))
        grid = tuple(stem.shape[2:])
        tokens = stem.flatten(2).transpose(1, 2)
        if hidden is not None:
            assert token is not None
            tokens = torch.where(self._of_stem(hidden), token.to(tokens.dtype), tokens)
        tokens = self.pos_encoding(tokens)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens, grid = checkpoint(block, tokens, grid, use_reentrant=False)
            else:
                tokens, grid = block(tokens, grid)
        encoded: Tensor = self.norm(tokens[:, 1:])
        return encoded

    def _of_stem(self, hidden: Tensor) -> Tensor:
        """Patches [B, N] to the stem's tokens [B, 16 N, 1]."""
        side = PATCH // 4
        wide = hidden.view(-1, *self.grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
        return wide.flatten(1)[..., None]


class MaskedMViT(nn.Module):
    """Predict the motion in masked patches, which the encoder knows by a mask token (MaskFeat).

    Keys: `encoder.*` (torchvision's names), `mask_token` [1, 1, 96], `heads.NAME.*`. A head is one
    linear layer on the encoder's tokens; there is no decoder.

    Parameters
    ----------
    model : with `backbone` "mvitv2_s".
    targets : what a clip is, and what is predicted.

    Raises
    ------
    ValueError
        As `MViTEncoder`.
    """

    def __init__(self, model: ModelConfig, targets: TargetConfig) -> None:
        super().__init__()
        self.encoder = MViTEncoder(model, targets)
        self.side = self.encoder.grid[1] // self.encoder.out[1]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(self.encoder.width, self.side**2 * width)
                for name, width in target_widths(targets).items()
            }
        )
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for name, part in self.heads.named_parameters():
            if name.endswith("weight"):
                nn.init.trunc_normal_(part, std=0.02)
            else:
                nn.init.zeros_(part)

    def forward(self, clips: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """Predict.

        Parameters
        ----------
        clips : [B, T, 3, H, W] RGB, uint8, or float32 in 0 to 255; normalised here.
        masked : [B, M] int64, the masked patches of each clip, each once, in any order.

        Returns
        -------
        dict
            By target's name [B, M, D], in the order of `masked`: its normalised values.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what it was and what it must be.
        """
        total = self.encoder.tokens
        check_patches(masked, "masked", len(clips), total)
        if masked.shape[1] == total:
            raise ValueError(f"masked has all {total} patches; one at least must stay visible")
        hidden = torch.zeros((len(clips), total), dtype=torch.bool, device=masked.device)
        tokens = self.encoder(clips, hidden.scatter(1, masked, True), self.mask_token)
        return {name: self._chosen(head(tokens), masked) for name, head in self.heads.items()}

    def _chosen(self, values: Tensor, masked: Tensor) -> Tensor:
        """[B, tokens, side²·D] to [B, M, D]: a token's values are those of side×side patches."""
        by_patch = values.unflatten(2, (self.side, self.side, -1))
        by_patch = by_patch.unflatten(1, self.encoder.out).permute(0, 1, 2, 4, 3, 5, 6)
        by_patch = by_patch.flatten(1, 5)
        chosen: Tensor = by_patch.gather(1, masked[..., None].expand(-1, -1, by_patch.shape[-1]))
        return chosen


def build_encoder(model: ModelConfig, clip: ClipShape) -> Encoder | MViTEncoder:
    """The encoder that `model.backbone` names; ValueError as its class."""
    return Encoder(model, clip) if model.backbone == "vit" else MViTEncoder(model, clip)


def build_model(model: ModelConfig, targets: TargetConfig) -> MaskedMotionEncoder | MaskedMViT:
    """The model to pre-train that `model.backbone` names; ValueError as its class."""
    made = MaskedMotionEncoder if model.backbone == "vit" else MaskedMViT
    return made(model, targets)


def resized_positions(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with MViT's relative positions, [2 n − 1, values] each, as long as those `wanted`.

    They are interpolated linearly, as torchvision does where a clip is of another size: the last
    stage's from pre-training without its pooling to fine-tuning with it.
    """
    found = dict(state)
    for key, value in state.items():
        if ".attn.rel_pos_" in key and key in wanted and value.dim() == 2:
            length = len(wanted[key])
            if len(value) != length:
                longer = nn.functional.interpolate(value.T[None], size=length, mode="linear")
                found[key] = longer[0].T.contiguous()
    return found


def _blocks(last_pooling: bool) -> list[object]:
    """MViTv2-S's blocks: keys are pooled to the same grid in all, but where queries are coarser."""
    from torchvision.models.video.mvit import MSBlockConfig

    blocks: list[object] = []
    width, heads, pooled = WIDTH, 1, POOLED
    for i in range(MVITV2_S.depth):
        before, stride = width, 1
        if i in STAGES:
            width, heads = 2 * width, 2 * heads
            stride = 2 if last_pooling or i != STAGES[-1] else 1
            pooled //= stride
        blocks.append(
            MSBlockConfig(
                num_heads=heads,
                input_channels=before,
                output_channels=width,
                kernel_q=[3, 3, 3],
                kernel_kv=[3, 3, 3],
                stride_q=[1, stride, stride],
                stride_kv=[1, pooled, pooled],
            )
        )
    return blocks
