"""Quantised displacements as the small numbers that a store compresses.

A store keeps tracks by the flow pair that they read, not by their start: row p, plane l holds step
l of the tracks from frame ``p - l·flow_stride``, one value a grid point and component. The L planes
of a row read one flow field at points that lie a few px apart, so what differs from plane to plane
is mostly zero, and a field costs little more than once though six tracks pass through it.

Displacements are whole multiples q of the store's step (1/8 px), |q| < 32768. With ``low`` the
signed low byte of q (two's complement) and all arithmetic on bytes, wrapping around:

    r[p, 0, y, x] = low[p, 0, y, x] − low[p, 0, y − 1, x]      y > 0
    r[p, 0, 0, x] = low[p, 0, 0, x] − low[p, 0, 0, x − 1]      x > 0
    r[p, l]       = low[p, l] − low[p, l − 1]                  l > 0

``r`` is the array `displacements`, int8. The array `overflow`, int8, is ``(q − low) / 256``: zero
but where a point moves 16 px or more in one step, and chunks of zeros are not stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_steps", "encode_rows", "quantise"]

Bytes = NDArray[np.int8]


def quantise(displacements: NDArray[np.float32], step: float) -> NDArray[np.int16]:
    """Displacements in whole steps, halves to even."""
    whole: NDArray[np.int16] = np.rint(displacements * (1 / step)).astype(np.int16)
    return whole


def encode_rows(rows: NDArray[np.int16]) -> tuple[Bytes, Bytes]:
    """Rows [P, L, Gy, Gx, 2] of whole steps → residuals and overflow, both int8."""
    low = rows.astype(np.int8)  # wraps around
    overflow = ((rows - low) >> 8).astype(np.int8)
    residuals = low.copy()
    with np.errstate(over="ignore"):
        residuals[:, 1:] -= low[:, :-1]
        residuals[:, 0, 1:] -= low[:, 0, :-1]
        residuals[:, 0, 0, 1:] -= low[:, 0, 0, :-1]
    return residuals, overflow


def decode_steps(residuals: Bytes, places: NDArray[np.intp], length: int) -> Bytes:
    """Low bytes of the steps of tracks.

    Parameters
    ----------
    residuals : [n, L, Gy, Gx, 2], some rows of a store.
    places : [S, length], where among them the row lies that step l of start s reads.
    length : steps wanted, at most L.

    Returns
    -------
    [S, length, Gy, Gx, 2] int8.
    """
    out: Bytes = residuals[places, 0]
    np.cumsum(out[:, :, 0], axis=2, dtype=np.int8, out=out[:, :, 0])
    flat = out.reshape(*out.shape[:3], out.shape[3] * out.shape[4])
    for y in range(1, out.shape[2]):
        np.add(flat[:, :, y], flat[:, :, y - 1], out=flat[:, :, y])
    for step in range(1, length):
        for plane in range(1, step + 1):
            out[:, step] += residuals[places[:, step], plane]
    return out
