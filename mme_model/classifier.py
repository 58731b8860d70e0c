"""The encoder as a classifier: tokens averaged, normed, one linear layer (Table 9, VideoMAE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .finetune_recipe import ClassifierConfig
from .mvit import MViTEncoder, build_encoder
from .recipe import ModelConfig
from .vit import ClipShape

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """Clip to the logits of its classes.

    Keys: `encoder.patch_embed.*`, `encoder.blocks.*`, `fc_norm.*`, `head.*`. As in VideoMAE the
    norm stands behind the mean of the tokens, so the encoder's own is left out. An MViT's keys are
    torchvision's below `encoder.`; its class token takes part, but is not pooled (MaskFeat).

    Parameters
    ----------
    model : the encoder's size, and its stochastic depth.
    clip : what a clip is.
    classes : how many there are.
    config : dropout, patches dropped, scale of the last layer's start.
    """

    def __init__(
        self,
        model: ModelConfig,
        clip: ClipShape,
        classes: int,
        config: ClassifierConfig | None = None,
    ) -> None:
        super().__init__()
        config = config or ClassifierConfig()
        if classes < 1:
            raise ValueError(f"classes is {classes}; must be at least 1")
        self.encoder = build_encoder(model, clip)
        if isinstance(self.encoder, MViTEncoder) and config.drop_patches:
            raise ValueError(
                f"classifier.drop_patches is {config.drop_patches:g}; must be 0 with backbone "
                "mvitv2_s, whose tokens are pooled by convolutions and must all be there"
            )
        self.encoder.norm = nn.Identity()
        self.fc_norm = nn.LayerNorm(self.encoder.width, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.encoder.width, classes)
        self.drop_patches = config.drop_patches
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        with torch.no_grad():
            self.head.weight.mul_(config.head_scale)
        nn.init.zeros_(self.head.bias)

    def features(self, clips: Tensor) -> Tensor:
        """[B, T, 3, H, W] uint8, or float32 in 0 to 255, to [B, width], pooled and normed."""
        visible = None
        if self.training and self.drop_patches:
            tokens = self.encoder.tokens
            kept = max(1, round(tokens * (1 - self.drop_patches)))
            draw = torch.rand(len(clips), tokens, device=clips.device)
            visible = draw.argsort(dim=1)[:, :kept]
        pooled: Tensor = self.fc_norm(self.encoder(clips, visible).mean(dim=1))
        return pooled

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, 3, H, W] to logits [B, classes]."""
        logits: Tensor = self.head(self.dropout(self.features(clips)))
        return logits
