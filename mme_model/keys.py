"""Random numbers keyed by what they are for, never by the order of calls.

The same (seed, epoch, sample, purpose) gives the same numbers in any process, at any batch size,
and after a run is resumed.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["number", "rng", "share"]


def rng(seed: int, epoch: int, sample: int, purpose: str) -> np.random.Generator:
    """A generator of its own for one use of one sample in one epoch."""
    return np.random.Generator(np.random.Philox(key=_digest(seed, epoch, sample, purpose)))


def number(seed: int, epoch: int, sample: int, purpose: str) -> int:
    """63 bits, for `torch.manual_seed`."""
    return _digest(seed, epoch, sample, purpose) & (2**63 - 1)


def share(seed: int, name: str) -> float:
    """A number in [0, 1) that is `name`'s alone: which part of a data set it belongs to."""
    return (_digest(seed, name) & (2**53 - 1)) / 2**53


def _digest(*parts: int | str) -> int:
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
