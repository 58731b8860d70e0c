"""The tracks of one video: a Zarr v3 group in a zip file that is written once and read by range.

The zip is stored uncompressed (`zarr.storage.ZipStore` opens it) and holds nothing that changes
from run to run. Its arrays, R = frames − flow_stride rows (none where that is negative):

    rows           uint8 [bytes]            displacements of row after row, see `store_codec`
    blocks         uint16 [⌈R/256⌉, 46, 256]  of 256 rows each: 43 × 256 frequencies of symbols; as
                                            uint32 where in `rows` each row ends, after the place
                                            where the first begins; as uint64 that place
    in_view        uint8 [frames, Gy, Gx]   steps for which the track from this frame stays inside
                                            frame and video; 255: it is not to be used, as
                                            flow was not finite or whoever made it said so
    homographies   float32 [R, 3, 3]        of each pair, first frame to second; the identity where
                                            none was found or camera motion is left in

Points lie at grid/2 + i·grid px while inside the frame. Chunks are zstd frames, but for those of
`rows`, which is entropy-coded: they are its bytes, as many to a chunk (`rows_chunk` of the
attributes) as make all of them full. As bytes, rather than as displacements by a codec of its own,
any Zarr reader opens them.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .store_codec import CONTEXTS, Layout, decode_rows
from .store_shards import Array, Shards, StoreError

__all__ = [
    "BLOCK", "FORMAT", "Entry", "StoreError", "Tracks", "arrays", "grid_size", "rows_chunk",
]  # fmt: skip

FORMAT = 2
"""Version of the layout; raised when it changes."""
BLOCK = 256
"""Rows that share tables."""
NOT_FINITE = 255


class Tracks(NamedTuple):
    """Tracks of some starts of one video.

    Attributes
    ----------
    displacements : [S, L, Gy, Gx, 2] int16, in the store's steps.
    in_view : [S, Gy, Gx] uint8, steps in view; 255 where flow was not finite. None where it was
        not asked for.
    """

    displacements: NDArray[np.int16]
    in_view: NDArray[np.uint8] | None


def grid_size(height: int, width: int, grid: int) -> tuple[int, int]:
    """Gy, Gx: how many points lie inside the frame."""
    return len(range(grid // 2, height, grid)), len(range(grid // 2, width, grid))


def rows_chunk(size: int) -> int:
    """Bytes a chunk of `rows`, at most 32 KiB: the last one too is full, or nearly so."""
    return -(-size // -(-size // 2**15)) if size else 1


def arrays(gy: int, gx: int, chunk: int) -> dict[str, Array]:
    """The arrays of an entry with this grid and `rows_chunk`."""
    return {
        "rows": Array("uint8", chunk, 16, (), raw=True),
        "blocks": Array("uint16", 1, 8, (CONTEXTS + 3, BLOCK)),
        "in_view": Array("uint8", 16, 16, (gy, gx)),
        "homographies": Array("float32", 64, 4, (3, 3)),
    }


class Entry:
    """One video's tracks, opened for reading; a context manager.

    Attributes
    ----------
    frames, height, width : of the video.
    about : all that the file says of itself.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StoreError
        If the file is none, is damaged, or of another version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = os.fspath(path)
        try:
            self._shards = Shards(path)
            try:
                self._parse()
            except BaseException:
                self.close()
                raise
        except (
            KeyError,
            TypeError,
            struct.error,
            json.JSONDecodeError,
            UnicodeDecodeError,
        ) as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.path} is damaged or no tracks: {reason}") from None

    def _parse(self) -> None:
        attributes = json.loads(self._shards.part("zarr.json"))["attributes"]
        self.about: dict[str, Any] = attributes["mme_tracks"]
        if self.about["format"] != FORMAT:
            raise StoreError(
                f"{self.path} has the format {self.about['format']}; this version reads {FORMAT}"
            )
        self.frames: int = self.about["frames"]
        self.height: int = self.about["height"]
        self.width: int = self.about["width"]
        config = self.about["config"]
        self.length: int = config["length"]
        self.stride: int = config["flow_stride"]
        self.step: float = config["step"]
        self.grid: int = config["grid"]
        self.rows = max(0, self.frames - self.stride)
        gy, gx = grid_size(self.height, self.width, self.grid)
        self._chunk: int = self.about["rows_chunk"]
        if self._chunk < 1:
            raise StoreError(f"{self.path} is damaged: chunks of {self._chunk} bytes")
        self._shards.arrays = arrays(gy, gx, self._chunk)
        self._layout = Layout(self.stride, self.grid, self.step, gy, gx)

    def close(self) -> None:
        """Let the file go."""
        self._shards.close()

    def check(self) -> None:
        """Read what holds the arrays, of which `tracks` and `homographies` read the chunks alone.

        Raises
        ------
        StoreError
            If it is damaged.
        """
        self._shards.check()

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tracks(
        self, starts: Sequence[int], length: int | None = None, *, in_view: bool = True
    ) -> Tracks:
        """Tracks from some frames, reading no more than the chunks that hold them.

        Parameters
        ----------
        starts : raw indices of frames.
        length : steps, up to the store's; None: all.
        in_view : read that as well.

        Raises
        ------
        IndexError
            If a start lies outside the video.
        StoreError
            If what is read is damaged.
        """
        steps = self.length if length is None else length
        if not 1 <= steps <= self.length:
            raise StoreError(f"length is {steps}; {self.path} holds tracks of {self.length} steps")
        first = tuple(map(int, starts))
        if first and not (min(first) >= 0 and max(first) < self.frames):
            raise IndexError(
                f"starts span {min(first)} to {max(first)}; the video has the frames 0 to "
                f"{self.frames - 1}"
            )
        out = self._displacements(first, steps)
        if not in_view:
            return Tracks(out, None)
        return Tracks(out, self._picked("in_view", np.array(first, np.int64)))

    def _displacements(self, starts: tuple[int, ...], steps: int) -> NDArray[np.int16]:
        """[S, steps, Gy, Gx, 2]: the rows that these starts' tracks read, and what they need."""
        layout = self._layout
        least = min(starts, default=0)
        reach = max(starts, default=0) - least + (steps - 1) * self.stride + 1
        reads = _reads(
            tuple(start - least for start in starts), steps, self.stride,
            max(0, min(self.rows - least, reach)),
        )  # fmt: skip
        out = np.empty((reads.starts, steps, layout.gy, layout.gx, 2), np.int16)
        if reads.missing is not None:
            out[reads.missing] = 0
        if len(reads.rows):
            rows = reads.rows + least
            block = rows // BLOCK
            if block[0] == block[-1]:  # of one shard, as most clips are
                blocks, block = block[:1], block - block[0]
            else:
                blocks, block = _distinct(block)
            heads = self._shards.gather("blocks", blocks.tolist())[:-1]
            spans = _spans(heads[:, CONTEXTS:], block, rows % BLOCK)
            if (spans[0] > spans[1]).any() or spans[0].min() < 0:
                raise StoreError(f"{self.path} is damaged: a row ends before it begins")
            data, spans = self._bytes(spans)
            try:
                decode_rows(data, spans, heads[:, :CONTEXTS], block, rows, reads.depth,
                            reads.slots, layout, out.reshape(-1, *out.shape[2:]))  # fmt: skip
            except ValueError as error:
                raise StoreError(f"{self.path} is damaged: {error}") from None
        return out if reads.again is None else out[reads.again]

    def _bytes(self, spans: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Data that holds these spans of `rows`, and where in it they lie."""
        step = self._chunk
        first, last = spans[0] // step, (spans[1] - 1) // step
        if (first[1:] <= last[:-1] + 1).all():  # none is left out between them
            chunks = list(range(int(first[0]), int(last[-1]) + 1))
            return self._shards.gather("rows", chunks), spans - first[0] * step
        held = np.zeros(int(last.max()) + 2 - int(first[0]), np.int64)
        np.add.at(held, first - first[0], 1)
        np.add.at(held, last + 1 - first[0], -1)
        wanted = np.cumsum(held) > 0
        moved = (np.cumsum(wanted) - 1)[first - first[0]] * step - first * step
        chunks = (np.flatnonzero(wanted) + first[0]).tolist()
        return self._shards.gather("rows", chunks), spans + moved

    def homographies(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """[n, 3, 3] of the pairs whose first frames are named; the identity past the end."""
        wanted = np.asarray(rows, dtype=np.int64)
        out = np.tile(np.eye(3), (len(wanted), 1, 1))
        inside = (wanted >= 0) & (wanted < self.rows)
        out[inside] = self._picked("homographies", wanted[inside])
        return out

    def _picked(self, name: str, places: NDArray[np.int64]) -> NDArray[Any]:
        """Some places of an array."""
        step = self._shards.arrays[name].chunk
        chunks, at = _distinct(places // step)
        some: NDArray[Any] = self._shards.gather(name, chunks.tolist())[at * step + places % step]
        return some


class _Reads(NamedTuple):
    """Rows that tracks from some starts read, from the first start on.

    Attributes
    ----------
    starts : how many distinct ones.
    rows, depth, slots : as `decode_rows` takes them.
    missing : [starts, steps], those past the video's end; None: none.
    again : where among the distinct starts each one is; None: they are these.
    """

    starts: int
    rows: NDArray[np.int64]
    depth: NDArray[np.int64]
    slots: NDArray[np.int64]
    missing: NDArray[np.bool_] | None
    again: NDArray[np.int64] | None


@lru_cache(maxsize=64)
def _reads(first: tuple[int, ...], steps: int, stride: int, left: int) -> _Reads:
    """Of `left` rows; remembered, as the clips of a training all have their starts alike."""
    starts, again = _distinct(np.array(first, np.int64))
    reads = starts[:, None] + np.arange(steps) * stride
    real = reads < left
    rows, at = _distinct(reads[real])
    slots = np.full((len(rows), steps), -1, np.int64)
    slots[at, np.broadcast_to(np.arange(steps), reads.shape)[real]] = np.flatnonzero(real)
    # Plane l is told from those before: all up to the last one that is wanted.
    depth = np.where(slots >= 0, np.arange(1, steps + 1), 0).max(axis=1)
    alike = len(starts) == len(first) and bool((again[1:] > again[:-1]).all())
    return _Reads(len(starts), rows, depth, slots, None if real.all() else ~real,
                  None if alike else again)  # fmt: skip


def _spans(
    heads: NDArray[np.uint16], block: NDArray[np.int64], at: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[2, n]: where rows `at` of blocks begin and end, by what follows the blocks' tables."""
    ends = heads[:, :2].reshape(len(heads), -1).view("<u4")
    spans = np.empty((2, len(at)), np.int64)
    spans[1] = ends[block, at]
    spans[0] = ends[block, at - 1]
    spans[0, at == 0] = 0
    spans += np.ascontiguousarray(heads[:, 2, :4]).view("<i8")[block, 0]
    return spans


def _distinct(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`numpy.unique` with the inverse in the shape of `values`, for numbers close to each other."""
    if not values.size:
        return values.ravel(), values
    least = values.min()
    held = np.zeros(int(values.max() - least) + 1, np.int64)
    held[values - least] = 1
    return np.flatnonzero(held) + least, (np.cumsum(held) - 1)[values - least]
