"""Patch normalisation (§3.3, Table 7b): (z − mean) / √(var + eps), the variance unbiased."""

from __future__ import annotations

import torch

from ..arrays import Array, as_tensor, check_choice, check_dtype, check_range, like_input
from ..backends import choose, load


def patch_norm(
    values: Array, *, mode: str = "patch", eps: float = 1e-6, backend: str = "auto"
) -> tuple[Array, Array, Array]:
    """Normalise what is to be predicted of each patch.

    Parameters
    ----------
    values : [..., K, F] float32: F values (coordinates and steps) of each of a patch's K tracks.
    mode : "patch" takes mean and variance over all K·F values; "coordinate" over the K tracks, for
        each of the F alone, and needs K of 2 or more.
    eps : added to the variance. A patch of equal values gives zeros.
    backend : "auto", "reference", "cpu", "triton" or "cuda".

    Returns
    -------
    values, mean, std : `values * std + mean` undoes it; mean and std are [..., 1, 1] ("patch") or
        [..., 1, F] ("coordinate").

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be.
    """
    z = as_tensor(values, "values")
    check_dtype(z, "values", (torch.float32,))
    check_choice(mode, "mode", ("patch", "coordinate"))
    check_range(eps, "eps", 0.0)
    if z.dim() < 2:
        raise ValueError(f"values has shape {list(z.shape)}; must be [..., K, F]")
    tracks, features = z.shape[-2:]
    if mode == "coordinate" and tracks < 2:
        raise ValueError(
            f"mode is 'coordinate', which needs 2 tracks a patch or more; values has K = {tracks}"
        )
    if tracks * features < 2:
        raise ValueError(
            f"values has {tracks}x{features} values a patch; a variance needs 2 or more"
        )
    flat = z.reshape(-1, tracks, features)
    normalised, mean, std = _patch_norm(flat, mode, eps, backend)
    lead = z.shape[:-2]
    return (
        like_input(normalised.reshape(z.shape), values),
        like_input(mean.reshape(*lead, *mean.shape[1:]), values),
        like_input(std.reshape(*lead, *std.shape[1:]), values),
    )


@torch.library.custom_op("mme_targets::patch_norm", mutates_args=())
def _patch_norm(
    values: torch.Tensor, mode: str, eps: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    floor = load(choose("patch_norm", values, backend))
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = floor.patch_norm(
        values, mode=mode, eps=eps
    )
    return result


@_patch_norm.register_fake
def _(
    values: torch.Tensor, mode: str, eps: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count, _, features = values.shape
    shape = (count, 1, features if mode == "coordinate" else 1)
    return values.new_empty(values.shape), values.new_empty(shape), values.new_empty(shape)
