"""A store of tracks: one file a video, a description, and an index (Parquet).

    STORE/zarr.json            format and config, as attributes of an empty Zarr group
    STORE/videos/ab/….zip      the tracks of one video (`store_entry`), by a hash of its name
    STORE/index.parquet        every video of the list: done or failed, sizes, hashes; in the list's
                               order, written when all are settled, and of what is where stores are
                               merged
    STORE/work/                what is under way: journals and locks; gone when all are settled

Nothing in it depends on when, where, in what order or in how many goes it was made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .files import atomic_path, check_writable
from .store_config import TrackConfig, differences
from .store_entry import FORMAT, Entry, StoreError

__all__ = ["Entry", "Record", "Store", "StoreError", "TrackConfig"]

_BEGUN = re.compile(r"\.zarr\..*")
"""A description that another process, which makes the same store, is about to put in place."""


@dataclass(frozen=True)
class Record:
    """What the index says of a video.

    Attributes
    ----------
    name : as the list has it.
    reason : why there are no tracks; empty where there are.
    frames, height, width, fps : of the video.
    short : how the video file is known to be cut short; its tracks are of the frames that are left.
    still : pairs whose camera motion could not be found and is left in.
    bytes, digest : of the entry (SHA-256).
    source_bytes, source_digest : of the video file.
    """

    name: str
    reason: str = ""
    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    short: str = ""
    still: int = 0
    bytes: int = 0
    digest: str = ""
    source_bytes: int = 0
    source_digest: str = ""

    @property
    def done(self) -> bool:
        """Whether the store holds its tracks."""
        return not self.reason


class Store:
    """A store that exists, to be read by any number of processes at once; pickles.

    Attributes
    ----------
    path : the folder.
    config : described constants of its tracks (`TrackConfig.described`).
    length, stride, grid, step : of them, those that readers need.

    Raises
    ------
    FileNotFoundError, StoreError
        If there is no store, or one of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        file = self.path / "zarr.json"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path}: there is no store of tracks here")
        try:
            about = json.loads(file.read_bytes())["attributes"]["mme_tracks"]
            version = about["format"]
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{file}: describes no store of tracks") from None
        if version != FORMAT:
            raise StoreError(f"{self.path} has the format {version}; this version reads {FORMAT}")
        self.about: dict[str, Any] = about
        self.config: dict[str, Any] = about["config"]
        self.length: int = self.config["length"]
        self.stride: int = self.config["flow_stride"]
        self.grid: int = self.config["grid"]
        self.step: float = self.config["step"]

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: TrackConfig) -> Store:
        """Make an empty store, or open one that was made with the same config.

        Raises
        ------
        StoreError
            If the store has another config; says how they differ.
        OSError
            If the folder holds something else, or cannot be written.
        """
        path = Path(path)
        described = config.described()
        if (path / "zarr.json").is_file():
            store = cls(path)
            store.check(described)
            return store
        cls.check_place(path)
        path.mkdir(parents=True, exist_ok=True)
        about = {"format": FORMAT, "config": described, **provenance()}
        node = {"attributes": {"mme_tracks": about}, "zarr_format": 3, "node_type": "group"}
        with atomic_path(path / "zarr.json") as beside:
            beside.write_text(json.dumps(node, indent=2) + "\n")
        return cls(path)

    @staticmethod
    def check_place(path: str | os.PathLike[str]) -> None:
        """Make sure, before the work, that a store is at `path` or can be made; makes nothing.

        Raises
        ------
        OSError
            Naming `path`: it is something else, or cannot be written.
        """
        path = near = Path(path)
        free = path.is_dir() and all(_BEGUN.fullmatch(p.name) for p in path.iterdir())
        # Looked for last: another process may have put it in place meanwhile.
        if path.exists() and not free and not (path / "zarr.json").is_file():
            raise FileExistsError(
                f"{path} exists and is no store of tracks; name a new or an empty folder"
            )
        while not near.exists():
            near = near.parent
        try:
            check_writable(near / "zarr.json")
        except OSError as error:
            raise type(error)(f"{path}: no store can be written there: {error}") from None

    def check(self, described: dict[str, Any]) -> None:
        """Refuse another config.

        Raises
        ------
        StoreError
            With every difference.
        """
        found = differences(self.config, described)
        if found:
            raise StoreError(f"{self.path} was made with another config: {'; '.join(found)}")

    def file(self, name: str) -> Path:
        """Where the tracks of the video of this name lie, or are to lie."""
        return Path(self._file(name))

    def _file(self, name: str) -> str:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        return os.path.join(self.path, "videos", digest[:2], f"{digest[2:]}.zip")

    def __contains__(self, name: str) -> bool:
        return self.file(name).is_file()

    def entry(self, name: str) -> Entry:
        """Open the tracks of a video.

        Raises
        ------
        KeyError
            If the store holds none of this name.
        StoreError
            If they are damaged or of another config.
        """
        try:
            entry = Entry(self._file(name))
        except FileNotFoundError:
            raise KeyError(name) from None
        found = differences(self.config, entry.about["config"])
        if found or entry.about.get("name") != name:
            entry.close()
            what = "; ".join(found) or f"it is of {entry.about.get('name')!r}"
            raise StoreError(f"{entry.path} does not belong to {name!r} of this store: {what}")
        return entry

    def index(self) -> list[Record]:
        """All settled videos in the list's order; empty until a first extraction is through.

        Raises
        ------
        StoreError
            If it is damaged.
        """
        file = self.path / "index.parquet"
        if not file.is_file():
            return []
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        data = arrow.BufferReader(file.read_bytes())
        try:
            rows = parquet.read_table(data).to_pylist()
            return [Record(**{**row, "name": os.fsdecode(row["name"])}) for row in rows]
        except (arrow.ArrowException, OSError, KeyError, TypeError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(
                f"{file} is damaged ({reason}): remove it, and mme extract with the same list "
                "makes it anew of the tracks that are there"
            ) from None

    def write_index(self, records: Sequence[Record]) -> None:
        """Write the index, atomically; the same records give the same bytes."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
        fields = {k: kinds[type(v)] for k, v in asdict(Record("")).items()}
        rows = [asdict(record) for record in records]
        if any(not _is_unicode(record.name) for record in records):
            # Names of files are bytes: where one is no UTF-8, all are written as bytes.
            fields["name"] = arrow.binary()
            rows = [{**row, "name": os.fsencode(row["name"])} for row in rows]
        for row in rows:
            row["reason"] = row["reason"].encode(errors="backslashreplace").decode()
        table = arrow.Table.from_pylist(rows, schema=arrow.schema(list(fields.items())))
        with atomic_path(self.path / "index.parquet") as beside:
            parquet.write_table(table, beside, compression="zstd")

    def files(self) -> Iterator[Path]:
        """Every entry there is, sorted."""
        yield from sorted((self.path / "videos").glob("??/*.zip"))


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Versions of what shapes the tracks, and the commit where the code is a checkout."""
    from .extract import versions

    return {"versions": versions(), "commit": commit()}


def commit() -> str:
    """Commit of the checkout that this package lies in; empty where it is installed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        asked = ["git", "-C", os.fspath(root), "rev-parse", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
