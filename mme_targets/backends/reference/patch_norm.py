"""Patch normalisation (§3.3, Table 7b) in float64: (z − mean) / √(var + eps), variance unbiased."""

from __future__ import annotations

import torch


def patch_norm(
    values: torch.Tensor, *, mode: str, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise [M, K, F] over (K, F) (`patch`) or over K alone (`coordinate`)."""
    z = values.cpu().double().numpy()
    axis = (1, 2) if mode == "patch" else 1
    mean = z.mean(axis=axis, keepdims=True)
    std = (z.var(axis=axis, ddof=1, keepdims=True) + eps) ** 0.5
    return (
        torch.from_numpy((z - mean) / std).float().to(values.device),
        torch.from_numpy(mean).float().to(values.device),
        torch.from_numpy(std).float().to(values.device),
    )
