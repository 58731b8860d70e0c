"""Entropy coding of a store's symbols: rANS with static tables, eight states, in NumPy.

Asymmetric numeral systems in their range variant (Duda 2013, arXiv 1311.2540). A table gives each
of 256 symbols a frequency f of M = 1024 and the sum c of those before it. A state x,
2¹⁵ ≤ x < 2³¹, takes a symbol s by

    x ← ⌊x / f⌋·M + c + x mod f,        first giving a 16-bit word away where x ≥ f·2²¹

and gives it back, last in first out, by

    s = symbol at (x mod M),   x ← f·⌊x / M⌋ + x mod M − c,   taking a word where x < 2¹⁵.

Symbols come in steps of up to eight, one a state, each by the table of its context; the states of a
step take their words in ascending order. Encoding runs backwards, so that decoding runs forwards.
Rows of a store are independent of each other, and are what the vectors here run over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["LANES", "NONE", "Decoder", "encode", "frequencies", "in_steps"]

LANES = 8
"""States of a row."""
BITS = 10
TOTAL = 1 << BITS
_LOW = 1 << 15
_MARK = 1 << 31
NONE = 255
"""Context of no symbol."""
RARE = 0.05
"""Share of a 1024th below which a symbol is cheaper to escape than to have a place for."""

Bytes = NDArray[np.uint8]


def frequencies(counts: NDArray[np.int64], escape: int | None) -> NDArray[np.uint16]:
    """Table of one context.

    Parameters
    ----------
    counts : [256], how often each symbol comes.
    escape : the symbol that rare ones are replaced by; None: none is replaced.

    Returns
    -------
    [256] uint16 that sum to 1024; zero for those that do not come, or are replaced. All zero where
    nothing comes.
    """
    table = np.zeros(256, np.uint16)
    total = int(counts.sum())
    if not total:
        return table
    counts = counts.copy()
    if escape is not None:
        rare = counts * TOTAL < RARE * total
        rare[escape] = False
        counts[escape] += counts[rare].sum()
        counts[rare] = 0
    share = np.where(counts > 0, np.maximum(1, counts * TOTAL // total), 0)
    # What rounding left over, or took too much, is the commonest symbols' to bear.
    for place in np.argsort(-share, kind="stable"):
        left = TOTAL - int(share.sum())
        if not left:
            break
        share[place] = max(1, share[place] + left)
    return share.astype(np.uint16)


def encode(
    symbols: Sequence[Bytes],
    contexts: Sequence[Bytes],
    tables: NDArray[np.uint16],
    marked: NDArray[np.bool_],
) -> list[bytes]:
    """Encode rows: of each the states (eight uint32), then the words (uint16), little-endian.

    The highest bit of a row's first state says whether it is `marked`.

    Parameters
    ----------
    symbols, contexts : of each row [steps, 8]; where a step holds fewer, the context is NONE.
    tables : [contexts, 256].
    """
    rows, steps = len(symbols), max(map(len, symbols))
    symbol = np.zeros((rows, steps, LANES), np.uint8)
    context = np.full((rows, steps, LANES), NONE, np.uint8)
    for row in range(rows):
        symbol[row, : len(symbols[row])] = symbols[row]
        context[row, : len(symbols[row])] = contexts[row]
    frequency = tables.astype(np.int64)
    below = np.cumsum(frequency, axis=1) - frequency
    state = np.full((rows, LANES), _LOW, np.int64)
    words = np.zeros((rows, steps, LANES), np.uint16)
    given = np.zeros((rows, steps, LANES), bool)
    for step in range(steps - 1, -1, -1):
        used = context[:, step] != NONE
        which = np.where(used, context[:, step], 0), symbol[:, step]
        f, c = np.where(used, frequency[which], 1), below[which]
        full = used & (state >= f << (31 - BITS))
        words[:, step], given[:, step] = state & 0xFFFF, full
        rest = np.where(full, state >> 16, state)
        whole = rest // f
        state = np.where(used, (whole << BITS) + rest - whole * f + c, state)
    state[:, 0] |= np.where(marked, _MARK, 0)
    return [
        state[row].astype("<u4").tobytes() + words[row][given[row]].astype("<u2").tobytes()
        for row in range(rows)
    ]


def in_steps(values: Bytes, fill: int) -> Bytes:
    """Lines [..., n] as steps [k, 8], each line beginning one."""
    missing = -values.shape[-1] % LANES
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)], constant_values=fill)
    return padded.reshape(-1, LANES)


class Decoder:
    """Decodes some rows together, step by step.

    Parameters
    ----------
    data : of each row, what `encode` made of it.
    tables : [n, contexts, 256], of each.

    Attributes
    ----------
    marked : [n] bool, as they were encoded.
    taken : [n] words that each row has taken; may exceed what it has where the data is damaged.
    """

    def __init__(self, data: Sequence[bytes], tables: NDArray[np.uint16]) -> None:
        head = 4 * LANES
        states = [np.frombuffer(row, "<u4", LANES) for row in data]
        self._state = np.array(states, dtype=np.int64).reshape(-1, LANES)
        self.marked = self._state[:, 0] >= _MARK
        self._state[:, 0] &= _MARK - 1
        sizes = [(len(row) - head) // 2 for row in data]
        self._words = np.zeros((len(data), max(sizes, default=0) + LANES), np.int64)
        for place, row in enumerate(data):
            self._words[place, : sizes[place]] = np.frombuffer(row, "<u2", sizes[place], head)
        self._rows = np.arange(len(data))[:, None]
        kinds, self._kind = np.unique(tables, axis=0, return_inverse=True)
        self._kind = self._kind.reshape(-1, 1)
        self._frequency = kinds.astype(np.int64)
        self._below = np.cumsum(self._frequency, axis=2) - self._frequency
        self._symbols = np.zeros((*kinds.shape[:2], TOTAL), np.uint8)
        for kind, context in np.argwhere(kinds.any(axis=2)).tolist():
            self._symbols[kind, context] = np.repeat(np.arange(256), kinds[kind, context])
        self.taken = np.zeros(len(data), np.int64)

    def line(self, contexts: Bytes) -> Bytes:
        """The next steps' symbols [n, k], by their contexts [n, k], which begin a step."""
        out = np.zeros_like(contexts)
        for at in range(0, contexts.shape[1], LANES):
            out[:, at : at + LANES] = self.step(contexts[:, at : at + LANES])
        return out

    def step(self, contexts: Bytes) -> Bytes:
        """The next symbols [n, k ≤ 8], by their contexts [n, k]; none where that is NONE."""
        used = contexts != NONE
        kind, which = self._kind, np.where(used, contexts, 0)
        state = self._state[:, : contexts.shape[1]]
        slot = state & (TOTAL - 1)
        symbol = self._symbols[kind, which, slot]
        f, c = self._frequency[kind, which, symbol], self._below[kind, which, symbol]
        moved = np.where(used, f * (state >> BITS) + slot - c, state)
        low = used & (moved < _LOW)
        place = self.taken[:, None] + np.cumsum(low, axis=1) - 1
        word = self._words[self._rows, place.clip(0, self._words.shape[1] - 1)]
        state[:] = np.where(low, (moved << 16) | word, moved)
        self.taken += low.sum(axis=1)
        return np.where(used, symbol, 0).astype(np.uint8)
