"""Writing one video's tracks: a Zarr v3 group in memory, then one zip, in place at once."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import atomic_path
from .store_codec import CONTEXTS, Layout, encode_rows, quantise
from .store_config import TrackConfig
from .store_entry import BLOCK, FORMAT, StoreError, arrays, grid_size, rows_chunk

__all__ = ["EntryWriter"]

LEVEL = 15
"""zstd's, of what is not entropy-coded already."""
_SETTING = threading.Lock()
"""Held while zarr describes something: how it lays that out is a setting of the whole process."""
_STAMP = (1980, 1, 1, 0, 0, 0)


class EntryWriter:
    """Writes one video's tracks, start after start, with memory for one shard.

    Parameters
    ----------
    config : the store's.
    frames, height, width : of the video, as decoded.
    """

    def __init__(self, config: TrackConfig, frames: int, height: int, width: int) -> None:
        import zarr
        from zarr.storage import MemoryStore

        self.config, self.frames = config, frames
        self.size = (height, width)
        self.rows = max(0, frames - config.flow_stride)
        gy, gx = grid_size(height, width, config.grid)
        self._layout = Layout(config.flow_stride, config.grid, config.step, gy, gx)
        self._memory = MemoryStore()
        with _SETTING:
            self._group: Any = zarr.create_group(self._memory, zarr_format=3)
        counts = {
            "blocks": -(-self.rows // BLOCK),
            "in_view": frames,
            "homographies": self.rows,
        }
        self._arrays = {name: self._array(name, count, 1) for name, count in counts.items()}
        self._data: list[bytes] = []
        self._bytes = 0
        # A shard's rows after those that they need, before those that its tracks go on to.
        self._reach = (config.length - 1) * config.flow_stride
        some = min(BLOCK, self.rows) + 2 * self._reach
        self._rows = np.zeros((some, config.length, gy, gx, 2), np.int16)
        self._starts = self._filled = 0
        self._held: dict[str, list[NDArray[Any]]] = {"in_view": [], "homographies": []}
        self._written = {"rows": 0, "in_view": 0, "homographies": 0}

    def _array(self, name: str, count: int, chunk: int) -> Any:
        """An empty array of the group; `chunk`: bytes a chunk of `rows`."""
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        array = arrays(self._layout.gy, self._layout.gx, chunk)[name]
        # What describes an array would else be the larger part of what a short video takes.
        with _SETTING, zarr.config.set({"json_indent": None}):
            return self._group.create_array(
                name,
                shape=(count, *array.shape),
                dtype=array.kind,
                chunks=(array.chunk, *array.shape),
                shards=(array.chunk * array.per_shard, *array.shape),
                compressors=[*([] if array.raw else [ZstdCodec(level=LEVEL)]), Crc32cCodec()],
                filters=None,
                fill_value=0,
            )

    def add(
        self,
        displacements: NDArray[np.float32],
        in_view: NDArray[np.uint8],
        homographies: NDArray[np.float64],
    ) -> None:
        """Take the next starts.

        Parameters
        ----------
        displacements : [n, L, Gy, Gx, 2] px; zero for steps past the video's end.
        in_view : [n, Gy, Gx].
        homographies : [m, 3, 3], of the pairs that follow those given before.
        """
        known = quantise(displacements[: max(0, self.rows - self._starts)], self.config.step)
        self._starts += len(displacements)
        while len(known):
            at = self._reach + self._filled
            some, known = np.split(known, [BLOCK - self._filled])
            for step in range(self.config.length):
                self._rows[at : at + len(some), step] = some[:, step]
                at += self.config.flow_stride
            self._filled += len(some)
            if self._filled == BLOCK:
                self._flush_rows()
        self._held["in_view"] += list(in_view)
        self._held["homographies"] += list(homographies)
        for name in self._held:
            while len(self._held[name]) >= BLOCK:
                self._flush(name)

    def _flush_rows(self) -> None:
        if not self._filled:
            return
        begin = self._written["rows"]
        before, rows = np.split(self._rows[: self._reach + self._filled], [self._reach])
        tables, data = encode_rows(rows, before, begin, self._layout)
        ends = np.cumsum([len(row) for row in data])
        head = np.zeros((CONTEXTS + 3, BLOCK), "<u2")
        head[:CONTEXTS] = tables
        head[CONTEXTS:-1].reshape(-1).view("<u4")[: len(ends)] = ends
        head[-1, :4].view("<u8")[0] = self._bytes
        self._arrays["blocks"][begin // BLOCK] = head
        self._data += data
        self._bytes += int(ends[-1])
        self._written["rows"] += self._filled
        self._filled = 0
        kept = self._rows[len(rows) :][: 2 * self._reach]
        self._rows[: len(kept)] = kept

    def _flush(self, name: str) -> None:
        some, self._held[name] = self._held[name][:BLOCK], self._held[name][BLOCK:]
        if not some:
            return
        begin = self._written[name]
        self._written[name] = end = begin + len(some)
        self._arrays[name][begin:end] = np.stack(some)

    def finish(self, path: Path, about: dict[str, Any]) -> int:
        """Write the file, atomically; returns its bytes.

        Parameters
        ----------
        path : of the file; its folder must exist.
        about : what else is to be said of the video, plain values.

        Raises
        ------
        StoreError
            If not every frame's tracks and every pair's homography were given.
        OSError
            If it cannot be written; nothing is left then.
        """
        self._flush_rows()
        for name in self._held:
            self._flush(name)
        counts = {"rows": self.rows, "in_view": self.frames, "homographies": self.rows}
        if self._starts != self.frames or self._written != counts:
            raise StoreError(
                f"{self._starts} of {self.frames} starts and {self._written['homographies']} of "
                f"{self.rows} pairs were given; an entry holds them all"
            )
        rows = np.frombuffer(b"".join(self._data), np.uint8)
        chunk = rows_chunk(len(rows))
        self._array("rows", len(rows), chunk)[:] = rows
        height, width = self.size
        described = {
            "format": FORMAT,
            "frames": self.frames,
            "height": height,
            "width": width,
            "rows_chunk": chunk,
            "config": self.config.described(),
            **about,
        }
        with _SETTING:
            self._group.attrs["mme_tracks"] = described
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:
            for key, value in sorted(self._memory._store_dict.items()):
                info = zipfile.ZipInfo(key, _STAMP)
                info.create_system, info.external_attr = 3, 0o644 << 16
                file.writestr(info, value.to_bytes())
        with atomic_path(path) as beside, beside.open("wb") as out:
            out.write(packed.getbuffer())
            out.flush()
            os.fsync(out.fileno())
        return packed.tell()
