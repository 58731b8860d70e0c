"""Chunks of a Zarr v3 group in an uncompressed zip, read by range.

Opening an array with `zarr` takes longer than reading a clip, so what an entry of a store is made
of is parsed here: arrays in shards along their first axis, each with its index at the end; chunks
that are zstd frames or the numbers themselves, each followed by a CRC-32C as the index is. What was
truncated or damaged is noticed where it is read.
"""

from __future__ import annotations

import math
import os
import struct
import threading
import zlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Shards", "StoreError"]

_MISSING = 2**64 - 1
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
"""Records of a zip: the end, a file in the directory, and the same before what it holds."""


class StoreError(ValueError):
    """A store or an entry that is damaged, of another version, or not what it should be."""


class Array(NamedTuple):
    """An array of the group.

    Attributes
    ----------
    kind : NumPy's name of the type.
    chunk : of the first axis, what is decompressed at once.
    per_shard : chunks.
    shape : of one place on the first axis.
    raw : chunks are the numbers themselves; else zstd frames.
    """

    kind: str
    chunk: int
    per_shard: int
    shape: tuple[int, ...]
    raw: bool = False


class Shards:
    """A group opened for reading.

    Attributes
    ----------
    path : of the file.
    arrays : those that `gather` reads; to be filled in.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StoreError, struct.error, UnicodeDecodeError
        If it is no such zip.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = os.fspath(path)
        self.arrays: dict[str, Array] = {}
        self._indices: dict[tuple[str, int], _Index | None] = {}
        self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self._size = os.fstat(self._fd).st_size
            self._parts = self._directory()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the file go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def part(self, key: str) -> bytes:
        """A file of the zip, by its name; StoreError if it fails its checksum."""
        part = self._parts[key]
        data = self._read(part.offset, part.size, key)
        if zlib.crc32(data) != part.crc:
            raise StoreError(f"{self.path} is damaged: {key} fails its checksum")
        return data

    def check(self) -> None:
        """Read all of it, also what `gather` and `part` pass over.

        Raises
        ------
        StoreError
            If any file of the zip fails its checksum, or is told otherwise beside it than in the
            directory.
        """
        for key, part in self._parts.items():
            self.part(key)
            before = self._read(part.header, part.offset - part.header, f"header of {key}")
            said, name = before[: _LOCAL.size], before[_LOCAL.size :]
            if said != b"PK\3\4" + part.fields or name != key.encode():
                raise StoreError(f"{self.path} is damaged: the header of {key} is another one")

    def _directory(self) -> dict[str, _Part]:
        """Each file in the zip, by its name; `zipfile` takes 80 µs for it, this 10."""
        size = self._size
        end = self._read(max(0, size - 22), min(22, size), "its end")
        if end[:4] != b"PK\5\6":
            raise StoreError(f"{self.path} is cut short or no tracks: it does not end as a zip")
        _, _, _, _, count, length, start, _ = _END.unpack(end)
        listed = self._read(start, length, "its directory")
        parts: dict[str, _Part] = {}
        at = 0
        for _ in range(count):
            fields = _ENTRY.unpack_from(listed, at)
            stored, name_bytes, extra, comment = fields[4], fields[10], fields[11], fields[12]
            described = listed[at + 6 : at + 32]  # as the header before the file has it
            at += _ENTRY.size
            name = listed[at : at + name_bytes].decode()
            at += name_bytes + extra + comment
            if fields[0] != b"PK\1\2":
                raise StoreError(f"{self.path} is damaged: its directory is none")
            if stored:
                raise StoreError(f"{self.path} is compressed as a zip; entries are only stored")
            header = fields[16]
            begin = header + _LOCAL.size + name_bytes
            parts[name] = _Part(begin, fields[8], fields[7], header, described)
        return parts

    def _read(self, offset: int, size: int, what: str) -> bytes:
        # Compared first: a damaged size may ask for gigabytes.
        data = os.pread(self._fd, size, offset) if offset + size <= self._size else b""
        if len(data) != size:
            raise StoreError(f"{self.path} is cut short: {what} ends too early")
        return data

    def _index(self, name: str, shard: int) -> _Index | None:
        """Where the shard lies in the file; place in it and bytes of each chunk in turn.

        None where all are zeros.
        """
        key = (name, shard)
        if key not in self._indices:
            dims = len(self.arrays[name].shape)
            part = self._parts.get(f"{name}/c/{shard}" + "/0" * dims)
            found = None if part is None else self._parse_index(name, part.offset, part.size)
            self._indices[key] = found
        return self._indices[key]

    def _parse_index(self, name: str, offset: int, size: int) -> _Index:
        length = 16 * self.arrays[name].per_shard
        if size < length + 4:
            raise StoreError(f"{self.path} is damaged: a shard of {name} is too short")
        data = self._read(offset + size - length - 4, length + 4, f"index of {name}")
        if _codecs().crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise StoreError(f"{self.path} is damaged: an index of {name} fails its checksum")
        return offset, struct.unpack_from(f"<{length // 8}Q", data)

    def gather(self, name: str, chunks: list[int]) -> NDArray[Any]:
        """The places of ascending chunks, one after the other, then one of zeros.

        They lie in memory that the next call for the same array overwrites: fresh pages would take
        a tenth of the time of reading a clip.

        Raises
        ------
        StoreError
            If what is read is damaged.
        """
        array = self.arrays[name]
        step = array.chunk
        out = _scratch(name, (len(chunks) * step + 1, *array.shape), array.kind)
        out[-1] = 0
        begin = 0
        while begin < len(chunks):
            shard = chunks[begin] // array.per_shard
            index = self._index(name, shard)
            # Chunks that lie one after the other in the file are read at once.
            base = stop = _MISSING
            sizes: list[int] = []
            for chunk in chunks[begin:]:
                if chunk // array.per_shard != shard:
                    break
                offset, size = _MISSING, 0
                if index is not None:
                    at = 2 * (chunk % array.per_shard)
                    offset, size = index[1][at : at + 2]
                    offset = offset if offset == _MISSING else offset + index[0]
                if not sizes:
                    base = stop = offset
                elif offset != stop or base == _MISSING:
                    break
                sizes.append(size)
                stop += size
            end = begin + len(sizes)
            where = out[begin * step : end * step]
            if base == _MISSING:
                where[:] = 0
            elif array.raw:
                self._copy(name, base, sizes, where)
            else:
                self._decompress(name, base, sizes, where)
            begin = end
        return out

    def _copy(self, name: str, base: int, sizes: list[int], out: NDArray[Any]) -> None:
        """Read chunks that are the numbers themselves."""
        crc32c = _codecs().crc32c
        parts = out.reshape(len(sizes), -1)
        sums = np.empty((len(sizes), 4), np.uint8)
        buffers: list[Any] = [some for both in zip(parts, sums, strict=True) for some in both]
        if any(size != parts[0].nbytes + 4 for size in sizes):
            raise StoreError(f"{self.path} is damaged: a chunk of {name} has another size")
        self._read_into(base, sum(sizes), buffers, name)
        parts.flags.writeable = False
        for part, held in zip(parts, sums.view("<u4").ravel().tolist(), strict=True):
            if crc32c(part) != held:
                raise self._failed(name)

    def _read_into(self, offset: int, size: int, buffers: list[Any], what: str) -> None:
        if os.preadv(self._fd, buffers, offset) != size:
            raise StoreError(f"{self.path} is cut short: {what} ends too early")

    def _decompress(self, name: str, base: int, sizes: list[int], out: NDArray[Any]) -> None:
        """Read chunks that are zstd frames."""
        crc32c, decompress = _codecs()
        data = self._read(base, sum(sizes), name)
        at = 0
        for size, part in zip(sizes, out.reshape(len(sizes), -1), strict=True):
            chunk, held = data[at : at + size - 4], data[at + size - 4 : at + size]
            at += size
            if crc32c(chunk) != int.from_bytes(held, "little"):
                raise self._failed(name)
            decompress(chunk, part)

    def _failed(self, name: str) -> StoreError:
        return StoreError(f"{self.path} is damaged: a chunk of {name} fails its checksum")


class _Part(NamedTuple):
    """A file of the zip: where it begins, its bytes and their CRC-32; where its header begins, and
    what that says of it.
    """

    offset: int
    size: int
    crc: int
    header: int
    fields: bytes


_Index = tuple[int, tuple[int, ...]]


class _Codecs(NamedTuple):
    crc32c: Any
    decompress: Any


@cache
def _codecs() -> _Codecs:
    """Of what zarr brings; looked up once, as that is a part of reading a clip's chunks."""
    from google_crc32c import value
    from numcodecs.zstd import decompress

    return _Codecs(value, decompress)


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
