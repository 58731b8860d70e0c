"""Masked Motion Encoding: encoder, decoders and the loss (§3.2, Eq. 1 and 7)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mme_targets import TargetConfig, Targets
from mme_targets.targets import names

from .recipe import LossConfig, ModelConfig
from .vit import Decoder, Encoder, check_patches, decoder_shape, initialise, sinusoids

__all__ = ["MaskedMotionEncoder", "motion_loss", "target_widths", "zero_loss"]

Losses = tuple[Tensor, dict[str, Tensor]]


def target_widths(config: TargetConfig) -> dict[str, int]:
    """D, the values of each target of a patch, by name: what `MotionTargets(config)` returns."""
    tracks = config.tracks if config.density == "dense" else 1
    steps = config.length if config.interpolate else 1
    hogs = config.length if config.interpolate and config.hog_interpolate else 1
    along = 1 if config.quirks == "released" else max(config.length, 1)
    cells, pixels = (config.patch // config.cell) ** 2, config.patch**2
    widths = {
        "position": tracks * config.length * 2,
        "shape": tracks * along * 3 * config.bins,
        "pixel": config.tubelet * pixels * 3,
        "hog": cells * max(hogs, 1) * 3 * config.bins,
        "flow": pixels * steps * 2,
        "hof": cells * steps * config.bins,
        "mbh": cells * steps * 2 * config.bins,
    }
    return {name: widths[name] for name in names(config)}


class MaskedMotionEncoder(nn.Module):
    """Predict the motion in masked patches from the visible ones (§3.2).

    Keys follow the released code: `encoder.*` (VideoMAE's names), `encoder_to_decoder.i.weight`,
    `mask_token` [decoders, 1, width], `decoder.i.{blocks,norm}`, and `decoder.i.heads.NAME`.

    Parameters
    ----------
    model : sizes; "separate" decoders have a projection and a mask token each (Table 7f).
    targets : what a clip is, and what is predicted.

    Raises
    ------
    ValueError
        Where heads do not divide a width, or patches do not fill the crop.
    """

    decoder_positions: Tensor

    def __init__(self, model: ModelConfig, targets: TargetConfig) -> None:
        super().__init__()
        widths = target_widths(targets)
        joint = model.decoders == "joint"
        groups = [widths] if joint else [{name: width} for name, width in widths.items()]
        self.encoder = Encoder(model, targets)
        width = decoder_shape(model).width
        self.encoder_to_decoder = nn.ModuleList(
            nn.Linear(self.encoder.width, width, bias=False) for _ in groups
        )
        self.mask_token = nn.Parameter(torch.zeros(len(groups), 1, width))
        self.decoder = nn.ModuleList(Decoder(model, group) for group in groups)
        self.register_buffer(
            "decoder_positions", sinusoids(self.encoder.tokens, width), persistent=False
        )
        self.encoder_to_decoder.apply(initialise)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def no_weight_decay(self) -> set[str]:
        """Beside biases and norms, as VideoMAE has it."""
        return {"mask_token"}

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
        check_patches(masked, "masked", len(clips), self.encoder.tokens)
        visible = self.visible(masked)
        tokens = self.encoder(clips, visible)
        seen, hidden = self.decoder_positions[visible], self.decoder_positions[masked]
        predictions: dict[str, Tensor] = {}
        for i, decoder in enumerate(self.decoder):
            known = self.encoder_to_decoder[i](tokens) + seen
            both = torch.cat([known, self.mask_token[i] + hidden], dim=1)
            predictions.update(decoder(both, masked.shape[1]))
        return predictions

    def visible(self, masked: Tensor) -> Tensor:
        """The other patches [B, N - M], ascending; ValueError when there is none."""
        batch, count = masked.shape
        total = self.encoder.tokens
        if count == total:
            raise ValueError(f"masked has all {total} patches; one at least must stay visible")
        shown = torch.ones((batch, total), dtype=torch.uint8, device=masked.device)
        shown = shown.scatter(1, masked, 0)
        # A stable sort, since the number of nonzeros would be known to the device alone.
        return shown.argsort(dim=1, descending=True, stable=True)[:, : total - count]


def motion_loss(predictions: Mapping[str, Tensor], targets: Targets, config: LossConfig) -> Losses:
    """Eq. 1 and 7: squared error of the tracks that count, over all masked patches and tracks.

    Of each head Σ valid · mean over a track's values of (prediction − value)², over M·K, averaged
    over the clips; `eq1_sum` sums a track's values. In float32, whatever the predictions are in.

    Parameters
    ----------
    predictions : [B, M, D] by name.
    targets : of the same patches; `valid` [B, M, K] with K the tracks that D is made of.
    config : weights of the heads.

    Returns
    -------
    total, losses
        The weighted sum, a scalar to differentiate; and each head's own, unweighted and detached.

    Raises
    ------
    ValueError
        When names or shapes of predictions and targets differ, or a weight has no target.
    """
    if set(predictions) != set(targets):
        raise ValueError(
            f"predictions has {', '.join(predictions)}; must have the targets' names, "
            f"{', '.join(targets)}"
        )
    for name in config.weights:
        if name not in targets:
            raise ValueError(f"weights names {name!r}; targets has {', '.join(targets)}")
    losses: dict[str, Tensor] = {}
    for name, target in targets.items():
        predicted = predictions[name]
        if predicted.shape != target.values.shape:
            raise ValueError(
                f"predictions[{name!r}] has shape {list(predicted.shape)}; must be the target's, "
                f"{list(target.values.shape)}"
            )
        tracks = target.valid.shape[-1]
        error = (predicted.float() - target.values.float()).unflatten(-1, (tracks, -1)).square()
        of_track = error.sum(dim=-1) if config.eq1_sum else error.mean(dim=-1)
        losses[name] = of_track.masked_fill(~target.valid, 0.0).mean()
    total = torch.stack([config.weights.get(name, 1.0) * loss for name, loss in losses.items()])
    return total.sum(), {name: loss.detach() for name, loss in losses.items()}


def zero_loss(targets: Targets, config: LossConfig) -> Losses:
    """The loss of predicting zero: the yardstick of a run, about 1 a head where targets are normed.

    Less where tracks are invalid or a patch does not move.
    """
    zeros = {name: torch.zeros_like(target.values) for name, target in targets.items()}
    return motion_loss(zeros, targets, config)
