"""A linear layer on features (Table 4), how these are normalised, and nearest neighbours.

Normalisation, of which a linear layer learnt by few steps depends much, since the channels of a
pre-trained encoder differ in scale by orders of magnitude:

===========  ======================================================================================
standardise  mean and deviation of the training features, channel by channel; the default: what
             batch norm converges to, whatever the batch
batchnorm    batch norm without an affine part, as MAE probes
l2           each vector to length 1
none         as they are
===========  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mme_targets.settings import Config, number

from . import keys

__all__ = ["LinearProbe", "ProbeConfig", "neighbours", "sweep", "train_linear"]

SWEEP = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Multiples of the learning rate that a sweep tries."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Config):
    """How the linear layer is trained; the rate falls to 0 along a cosine."""

    norm: Literal["standardise", "batchnorm", "l2", "none"] = "standardise"
    """Of the features, as this module's heading says."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum .9."""
    lr: float = number(1e-3, 0, 1000, open_low=True)
    """Learning rate at the start; not scaled by the batch."""
    weight_decay: float = number(0.0, 0, 10)
    """On the layer's weight and bias."""
    epochs: int = number(20, 1, 10**6)
    """Passes over the training features (Table 4)."""
    batch_size: int = number(64, 2, 10**6)
    """Feature vectors of a step."""
    seed: int = number(0, 0, 2**31)
    """Of the start, the order, and the share that a sweep holds out."""


class LinearProbe(nn.Module):
    """Features [B, width] to logits [B, classes]; the normalisation is part of it."""

    def __init__(self, features: Tensor, classes: int, norm: str) -> None:
        super().__init__()
        width = features.shape[1]
        self.norm: nn.Module = nn.Identity()
        if norm == "standardise":
            self.norm = _Standardise(features)
        elif norm == "batchnorm":
            self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        elif norm == "l2":
            self.norm = _Unit()
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, width] float32 to [B, classes]."""
        logits: Tensor = self.head(self.norm(features))
        return logits


class _Standardise(nn.Module):
    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(dim=0))
        # A channel that does not vary tells nothing, and is not to be blown up.
        spread = features.std(dim=0, correction=0)
        self.register_buffer("deviation", spread.clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


class _Unit(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1)


def train_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    config: ProbeConfig,
    device: torch.device | str = "cpu",
) -> LinearProbe:
    """Train a linear layer by cross-entropy; ready for evaluation.

    Parameters
    ----------
    features, labels : [n, width] float32 and [n] int64, from 0 to `classes` - 1.

    Raises
    ------
    ValueError
        If there are fewer than two feature vectors, or the loss is not finite in the end.
    """
    if len(features) < 2:
        raise ValueError(
            f"there are {len(features)} feature vectors to train on; must be 2 or more"
        )
    torch.manual_seed(keys.number(config.seed, 0, 0, "probe"))
    features, labels = features.to(device), labels.to(device)
    probe = LinearProbe(features, classes, config.norm).to(device).train()
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            probe.head.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(
            probe.head.parameters(), config.lr, weight_decay=config.weight_decay
        )
    # Batch norm needs two; what is left over in one epoch is drawn in others.
    size = min(config.batch_size, len(features))
    steps = len(features) // size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * steps)
    loss = torch.zeros(())
    for epoch in range(config.epochs):
        order = torch.from_numpy(
            keys.rng(config.seed, epoch, 0, "probe order").permutation(len(features))
        ).to(device)
        for chosen in order[: steps * size].split(size):
            loss = F.cross_entropy(probe(features[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if not loss.isfinite():
        raise ValueError(f"the probe's loss is {float(loss)} at a learning rate of {config.lr}")
    return probe.eval()


def sweep(
    features: Tensor,
    labels: Tensor,
    owners: Tensor,
    classes: int,
    config: ProbeConfig,
    device: torch.device | str = "cpu",
    multiples: Sequence[float] = SWEEP,
) -> tuple[ProbeConfig, list[tuple[float, float]]]:
    """Choose the learning rate by a fifth of the training videos, held out.

    The videos that the probe is judged by have no part in it.

    Parameters
    ----------
    owners : [n] int64, which video each vector is of: a video is held out whole.

    Returns
    -------
    config, tried
        With the rate of the highest accuracy (of equals the lower loss); and (rate, accuracy in
        per cent) of each.
    """
    videos = owners.unique()
    draw = keys.rng(config.seed, 0, 0, "probe sweep").permutation(len(videos))
    out = torch.isin(owners, videos[torch.from_numpy(draw[: max(1, len(videos) // 5)])])
    tried = []
    for multiple in multiples:
        one = config.replace(lr=config.lr * multiple)
        try:
            probe = train_linear(features[~out], labels[~out], classes, one, device)
        except ValueError:  # too high a rate
            if int((~out).sum()) < 2:
                raise
            continue
        with torch.inference_mode():
            logits = probe(features[out].to(device)).cpu()
        right = (logits.argmax(dim=1) == labels[out]).double().mean().item()
        tried.append((right, -F.cross_entropy(logits, labels[out]).item(), one))
    if not tried:
        raise ValueError(f"the probe's loss is not finite at any learning rate up to {config.lr}")
    best = max(tried, key=lambda row: row[:2])[2]
    return best, [(one.lr, 100 * right) for right, _, one in tried]


def neighbours(
    train: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Probabilities [m, classes] of queries [m, width] by their k nearest of train [n, width].

    Neighbours are found by the cosine, and vote with the weight exp(cosine / temperature).

    Raises
    ------
    ValueError
        If there are fewer than `k` to choose from.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k is {k}; must lie in 1 to the {len(train)} training videos")
    train, found = F.normalize(train, dim=1), []
    for chunk in F.normalize(queries, dim=1).split(1024):
        near, which = (chunk @ train.T).topk(k, dim=1)
        # Less the nearest's, which changes no share and keeps the exponential in range.
        weights = ((near - near[:, :1]) / temperature).exp()
        votes = torch.zeros(len(chunk), classes).scatter_add_(1, labels[which], weights)
        found.append(votes / votes.sum(dim=1, keepdim=True))
    return torch.cat(found)
