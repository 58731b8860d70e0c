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

Points lie at grid/2 + i·grid px while inside the frame. Chunks are zstd frames with a checksum, in
shards whose index has another, so a truncated or damaged file is noticed where it is read. Zstd
finds nothing left to do in `rows`, which is entropy-coded, and is told not to try: as bytes by the
codec that all have, rather than as displacements by one of its own, any Zarr reader opens them.

The reader here parses the sharded layout itself: opening an array with `zarr` takes longer than
reading a clip.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .store_codec import CONTEXTS, Layout, decode_rows

__all__ = ["FORMAT", "Entry", "StoreError", "Tracks", "grid_size"]

FORMAT = 2
"""Version of the layout; raised when it changes."""
BLOCK = 256
"""Rows that share tables."""
SHARD = {"rows": 2**19, "blocks": 8, "in_view": 256, "homographies": 256}
CHUNK = {"rows": 2**15, "blocks": 1, "in_view": 16, "homographies": 64}
"""Of the first axis; a chunk is what is decompressed at once."""
TYPES = {"rows": "uint8", "blocks": "uint16", "in_view": "uint8", "homographies": "float32"}
NOT_FINITE = 255
_MISSING = 2**64 - 1
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
"""Records of a zip: the end, and a file in the directory."""


class StoreError(ValueError):
    """A store or an entry that is damaged, of another version, or not what it should be."""


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
        self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self._parse()
        except (
            KeyError,
            TypeError,
            struct.error,
            json.JSONDecodeError,
            UnicodeDecodeError,
        ) as error:
            self.close()
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.path} is damaged or no tracks: {reason}") from None
        except BaseException:
            self.close()
            raise

    def _parse(self) -> None:
        self._parts = self._directory()
        attributes = json.loads(self._part("zarr.json"))["attributes"]
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
        self._shapes: dict[str, tuple[int, ...]] = {
            "rows": (),
            "blocks": (CONTEXTS + 3, BLOCK),
            "in_view": (gy, gx),
            "homographies": (3, 3),
        }
        self._layout = Layout(self.stride, self.grid, self.step, gy, gx)
        self._indices: dict[tuple[str, int], NDArray[np.uint64] | None] = {}

    def close(self) -> None:
        """Let the file go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

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
        chunks, at = _chunks(np.array(first, np.int64), CHUNK["in_view"])
        return Tracks(out, self._gather("in_view", chunks)[at])

    def _displacements(self, starts: tuple[int, ...], steps: int) -> NDArray[np.int16]:
        """[S, steps, Gy, Gx, 2]: the rows that these starts' tracks read, and what they need."""
        layout = self._layout
        least = min(starts, default=0)
        reach = max(starts, default=0) - least + (steps - 1) * self.stride + 1
        reads = _reads(
            tuple(start - least for start in starts), steps, self.stride,
            max(0, min(self.rows - least, reach)),
        )  # fmt: skip
        out = np.empty((reads.count, steps, layout.gy, layout.gx, 2), np.int16)
        if reads.missing is not None:
            out[reads.missing] = 0
        if len(reads.rows):
            rows = reads.rows + least
            blocks, block = _distinct(rows // BLOCK)
            heads = self._gather("blocks", blocks)[:-1]
            begins = np.zeros((len(blocks), BLOCK + 1), np.int64)
            begins[:, 1:] = heads[:, CONTEXTS : CONTEXTS + 2].reshape(-1, 2 * BLOCK).view("<u4")
            begins += np.ascontiguousarray(heads[:, CONTEXTS + 2, :4]).view("<i8")
            place = block * (BLOCK + 1) + rows % BLOCK
            spans = begins.ravel()[np.stack([place, place + 1])]
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
        step = CHUNK["rows"]
        first, last = spans[0] // step, (spans[1] - 1) // step
        chunks = np.arange(first[0], last[-1] + 1)
        if (first[1:] <= last[:-1] + 1).all():  # none is left out between them
            return self._gather("rows", chunks), spans - first[0] * step
        held = np.zeros(int(last.max()) + 2 - int(first[0]), np.int64)
        np.add.at(held, first - first[0], 1)
        np.add.at(held, last + 1 - first[0], -1)
        wanted = np.cumsum(held) > 0
        moved = (np.cumsum(wanted) - 1)[first - first[0]] * step - first * step
        return self._gather("rows", np.flatnonzero(wanted) + first[0]), spans + moved

    def homographies(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """[n, 3, 3] of the pairs whose first frames are named; the identity past the end."""
        wanted = np.asarray(rows, dtype=np.int64)
        out = np.tile(np.eye(3), (len(wanted), 1, 1))
        inside = (wanted >= 0) & (wanted < self.rows)
        chunks, at = _chunks(wanted[inside], CHUNK["homographies"])
        out[inside] = self._gather("homographies", chunks)[at]
        return out

    def _directory(self) -> dict[str, tuple[int, int]]:
        """Offset and size of each file in the zip; `zipfile` takes 80 µs for it, this 10."""
        size = os.fstat(self._fd).st_size
        end = self._read(max(0, size - 22), min(22, size), "its end")
        if end[:4] != b"PK\5\6":
            raise StoreError(f"{self.path} is cut short or no tracks: it does not end as a zip")
        _, _, _, _, count, length, start, _ = _END.unpack(end)
        listed = self._read(start, length, "its directory")
        parts, at = {}, 0
        for _ in range(count):
            fields = _ENTRY.unpack_from(listed, at)
            stored, name_bytes, extra, comment = fields[4], fields[10], fields[11], fields[12]
            at += _ENTRY.size
            name = listed[at : at + name_bytes].decode()
            at += name_bytes + extra + comment
            if stored:
                raise StoreError(f"{self.path} is compressed as a zip; entries are only stored")
            parts[name] = (fields[16] + 30 + name_bytes, fields[8])
        return parts

    def _part(self, key: str) -> bytes:
        offset, size = self._parts[key]
        return self._read(offset, size, key)

    def _read(self, offset: int, size: int, what: str) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise StoreError(f"{self.path} is cut short: {what} ends too early")
        return data

    def _index(self, name: str, shard: int) -> NDArray[np.uint64] | None:
        """[chunks, 2] offset and bytes, or None where the whole shard is zeros."""
        key = (name, shard)
        if key not in self._indices:
            dims = len(self._shapes[name])
            part = self._parts.get(f"{name}/c/{shard}" + "/0" * dims)
            self._indices[key] = None if part is None else self._parse_index(name, part)
        return self._indices[key]

    def _parse_index(self, name: str, part: tuple[int, int]) -> NDArray[np.uint64]:
        from google_crc32c import value as crc32c

        offset, size = part
        count = SHARD[name] // CHUNK[name]
        if size < 16 * count + 4:
            raise StoreError(f"{self.path} is damaged: a shard of {name} is too short")
        data = self._read(offset + size - 16 * count - 4, 16 * count + 4, f"index of {name}")
        if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise StoreError(f"{self.path} is damaged: an index of {name} fails its checksum")
        index: NDArray[np.uint64] = np.frombuffer(data, "<u8", 2 * count).reshape(count, 2).copy()
        index[index[:, 0] != _MISSING, 0] += np.uint64(offset)
        return index

    def _gather(self, name: str, chunks: NDArray[np.int64]) -> NDArray[Any]:
        """The rows of ascending chunks, one after the other, then a row of zeros.

        They lie in memory that the next call for the same array overwrites: fresh pages would take
        a tenth of the time of reading a clip.
        """
        from google_crc32c import value as crc32c
        from numcodecs.zstd import decompress

        step, per_shard = CHUNK[name], SHARD[name] // CHUNK[name]
        shape = self._shapes[name]
        out = _scratch(name, (len(chunks) * step + 1, *shape), TYPES[name])
        out[-1] = 0
        listed = chunks.tolist()
        begin = 0
        while begin < len(listed):
            index = self._index(name, listed[begin] // per_shard)
            # Chunks that lie one after the other in the file are read at once.
            spans: list[tuple[int, int]] = []
            end = begin
            while end < len(listed) and listed[end] // per_shard == listed[begin] // per_shard:
                offset, size = (
                    (_MISSING, 0) if index is None else index[listed[end] % per_shard].tolist()
                )
                joins = not spans or (offset != _MISSING and offset == spans[-1][0] + spans[-1][1])
                if spans and not joins:
                    break
                spans.append((offset, size))
                end += 1
                if offset == _MISSING:
                    break
            if spans[0][0] == _MISSING:
                out[begin * step : end * step] = 0
            else:
                base = spans[0][0]
                total = spans[-1][0] + spans[-1][1] - base
                data = self._read(base, total, name)
                for place, (offset, size) in enumerate(spans, begin):
                    stop = offset - base + size
                    chunk = data[offset - base : stop - 4]
                    if crc32c(chunk) != int.from_bytes(data[stop - 4 : stop], "little"):
                        raise StoreError(
                            f"{self.path} is damaged: chunk {listed[place]} of {name} fails its "
                            "checksum"
                        )
                    decompress(chunk, out[place * step : (place + 1) * step])
            begin = end
        return out


class _Reads(NamedTuple):
    """Rows that tracks from some starts read, from the first start on.

    Attributes
    ----------
    count : of distinct starts.
    rows, depth, slots : as `decode_rows` takes them.
    missing : [count, steps], those past the video's end; None: none.
    again : where among the distinct starts each one is; None: they are these.
    """

    count: int
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


_local = threading.local()


def _scratch(name: str, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    """Memory of this thread for one array, kept up to 16 MiB."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    held: NDArray[np.uint8] | None = getattr(_local, name, None)
    if held is None or held.nbytes < size:
        held = np.empty(size, np.uint8)
        if size <= 2**24:
            setattr(_local, name, held)
    return held[:size].view(kind).reshape(shape)


def _chunks(rows: NDArray[np.int64], step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Chunks of `step` rows that hold `rows`, ascending, and where in them each row lies."""
    chunks, at = _distinct(rows // step)
    return chunks, at * step + rows % step


def _distinct(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`numpy.unique` with the inverse in the shape of `values`, for numbers close to each other."""
    if not values.size:
        return values.ravel(), values
    least = values.min()
    held = np.zeros(int(values.max() - least) + 1, np.int64)
    held[values - least] = 1
    return np.flatnonzero(held) + least, (np.cumsum(held) - 1)[values - least]
