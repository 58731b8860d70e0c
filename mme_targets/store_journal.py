"""Journals of a store under way: a line a settled video, written once its entry is in place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from .store import Record, Store, StoreError

__all__ = ["Journal", "records"]


def records(store: Store) -> dict[str, Record]:
    """All settled videos by name: of the index, then of the journals.

    Raises
    ------
    StoreError
        If one of these is damaged.
    """
    begun: dict[str, Record] = {}
    for path in sorted((store.path / "work").glob("settled-*.jsonl")):
        with suppress(FileNotFoundError):
            begun.update((record.name, record) for record in Journal.read(path))
    # Read last: a run that ends meanwhile writes it before it removes the journals.
    return {**{record.name: record for record in store.index()}, **begun}


class Journal:
    """Lines of settled videos; a line that was cut off by a kill is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Journal:
        whole = self.whole(self.path) if self.path.exists() else b""
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._file, len(whole))
        os.lseek(self._file, 0, os.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, record: Record) -> None:
        """Append; on the disk when it returns."""
        line = json.dumps(asdict(record)).encode() + b"\n"
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)

    @staticmethod
    def whole(path: Path) -> bytes:
        """All but a last line that has no end."""
        data = path.read_bytes()
        return data[: data.rfind(b"\n") + 1]

    @staticmethod
    def read(path: Path) -> Iterator[Record]:
        """The records of whole lines."""
        try:
            yield from [Record(**json.loads(line)) for line in Journal.whole(path).splitlines()]
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"{path} is damaged ({error}): remove it, and mme extract with the same list "
                "makes it anew of the tracks that are there"
            ) from None
