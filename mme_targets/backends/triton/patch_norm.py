# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
# (kernels are written in Triton's language, which has no types that mypy knows)
"""Patch normalisation (§3.3, Table 7b): (z − mean) / √(var + eps), with the unbiased variance.

Two passes over the data, the second about the mean of the first. Its own mean, which would be zero
but for rounding, corrects both: a patch of equal values then gives zeros whatever the value, and a
large offset costs no accuracy. Rows that fit are read once and stay in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILE = 2048
"""Values of one program: 16 a thread."""
COLUMNS = 128


@triton.jit
def _std(first, second, n, eps):
    """From the sums of n deviations and of their squares; the former is all but zero."""
    n = n.to(tl.float32)
    variance = tl.div_rn(tl.maximum(second - tl.div_rn(first * first, n), 0.0), n - 1.0)
    return tl.sqrt_rn(variance + eps)


@triton.jit(do_not_specialize=["M"])
def patch_kernel(
    values, out, means, stds, eps, M, N: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr
):
    """ROWS patches of N values a program, in one tile or tile by tile.

    N is fixed by a config, and a constant so that loads are as wide as it allows.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, TILE)[None, :]
    exists = row < M
    source = values + row.to(tl.int64) * N + column
    target = out + row.to(tl.int64) * N + column
    count = tl.zeros((ROWS, 1), tl.int32) + N
    n = count.to(tl.float32)
    if N <= TILE:
        mask = exists & (column < N)
        z = tl.load(source, mask=mask, other=0.0)
        mean = tl.div_rn(tl.sum(z, axis=1, keep_dims=True), n)
        z = tl.where(mask, z - mean, 0.0)
        first = tl.sum(z, axis=1, keep_dims=True)
        second = tl.sum(z * z, axis=1, keep_dims=True)
        rest = tl.div_rn(first, n)
        std = _std(first, second, count, eps)
        tl.store(target, tl.div_rn(z - rest, tl.broadcast_to(std, z.shape)), mask=mask)
    else:
        total = tl.zeros((ROWS, TILE), tl.float32)
        for start in range(0, N, TILE):
            total += tl.load(source + start, mask=exists & (column < N - start), other=0.0)
        mean = tl.div_rn(tl.sum(total, axis=1, keep_dims=True), n)
        first = tl.zeros((ROWS, TILE), tl.float32)
        second = tl.zeros((ROWS, TILE), tl.float32)
        for start in range(0, N, TILE):
            mask = exists & (column < N - start)
            z = tl.load(source + start, mask=mask, other=0.0)
            z = tl.where(mask, z - mean, 0.0)
            first += z
            second += z * z
        first = tl.sum(first, axis=1, keep_dims=True)
        rest = tl.div_rn(first, n)
        std = _std(first, tl.sum(second, axis=1, keep_dims=True), count, eps)
        for start in range(0, N, TILE):
            mask = exists & (column < N - start)
            z = tl.load(source + start, mask=mask, other=0.0)
            z = tl.div_rn((z - mean) - rest, tl.broadcast_to(std, z.shape))
            tl.store(target + start, z, mask=mask)
    tl.store(means + row, mean + rest, mask=exists)
    tl.store(stds + row, std, mask=exists)


@triton.jit(do_not_specialize=["lanes", "K", "F"])
def coordinate_kernel(values, out, means, stds, eps, lanes, K, F, BLOCK: tl.constexpr):
    """A lane is one coordinate of one patch and runs over its K tracks."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = lane < lanes
    patch = lane // F
    offset = patch.to(tl.int64) * (K * F) + (lane - patch * F)
    count = tl.zeros((BLOCK,), tl.int32) + K
    n = count.to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(K):
        total += tl.load(values + offset + k * F, mask=exists, other=0.0)
    mean = tl.div_rn(total, n)
    first = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    for k in range(K):
        z = tl.load(values + offset + k * F, mask=exists, other=0.0) - mean
        first += z
        second += z * z
    rest = tl.div_rn(first, n)
    std = _std(first, second, count, eps)
    for k in range(K):
        z = tl.load(values + offset + k * F, mask=exists, other=0.0)
        tl.store(out + offset + k * F, tl.div_rn((z - mean) - rest, std), mask=exists)
    tl.store(means + lane, mean + rest, mask=exists)
    tl.store(stds + lane, std, mask=exists)


def patch_norm(
    values: torch.Tensor, *, mode: str, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise the K tracks of each patch.

    Parameters
    ----------
    values : torch.Tensor
        ``[M, K, F]`` float32: patches, tracks, values of a track.
    mode : str
        "patch": over the K·F values of a patch; "coordinate": each of the F over the K tracks.
    eps : float
        Added to the variance.

    Returns
    -------
    normalised, mean, std : torch.Tensor
        ``[M, K, F]``, and twice ``[M, 1, 1]`` ("patch") or ``[M, 1, F]``; std is √(var + eps).
    """
    values = values.float().contiguous()
    patches, tracks, width = values.shape
    normalised = torch.empty_like(values)
    statistics = (patches, 1, 1 if mode == "patch" else width)
    mean = torch.empty(statistics, dtype=torch.float32, device=values.device)
    std = torch.empty_like(mean)
    if values.numel() == 0:
        return normalised, mean, std
    with torch.cuda.device_of(values):
        if mode == "patch":
            size = tracks * width
            tile = min(triton.next_power_of_2(size), TILE)
            rows = TILE // tile
            patch_kernel[(triton.cdiv(patches, rows),)](
                values, normalised, mean, std, eps, patches, N=size,
                ROWS=rows, TILE=tile, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
        else:
            lanes = patches * width
            coordinate_kernel[(triton.cdiv(lanes, COLUMNS),)](
                values, normalised, mean, std, eps, lanes, tracks, width,
                BLOCK=COLUMNS, num_warps=COLUMNS // 32, enable_fp_fusion=False,
            )  # fmt: skip
    return normalised, mean, std
