"""One writer a part of a store: locks that the kernel lets go when their holder dies."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .store_entry import StoreError

__all__ = ["Writer"]


class Writer:
    """The right to write part `shard` = (i, n) of a store; a context manager.

    Raises
    ------
    StoreError
        On entering, if a run that lives writes the same part, or divides the store otherwise; it
        says where and as which process.
    """

    def __init__(self, folder: Path, shard: tuple[int, int]) -> None:
        self.folder, self.shard = folder, shard
        self.path = folder / f"writer-{shard[0]}-of-{shard[1]}.lock"
        self._file = -1

    def __enter__(self) -> Writer:
        guard = _held(self.folder / "guard", wait=True)
        try:
            for other in sorted(self.folder.glob("writer-*.lock")):
                same = other.name.endswith(f"-of-{self.shard[1]}.lock") and other != self.path
                if not same:
                    self._refuse_if_alive(other)
            self._file = _held(self.path, wait=False)
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        finally:
            os.close(guard)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._file)

    def _refuse_if_alive(self, other: Path) -> None:
        try:
            os.close(_held(other, wait=False))
        except BlockingIOError:
            with suppress(OSError):
                part = other.stem.removeprefix("writer-").replace("-of-", "/")
                who = other.read_text().strip() or "a process that starts"
                raise StoreError(
                    f"{self.folder.parent}: {who} writes part {part} of this store; a second "
                    "writer is refused"
                ) from None
            raise
        if other != self.path:
            other.unlink(missing_ok=True)  # of one that died


def _held(path: Path, wait: bool) -> int:
    """Descriptor of the file, locked; BlockingIOError where another holds it and `wait` is off."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                # Its last holder may have removed it meanwhile: then it is another file by now.
                if os.stat(path).st_ino == os.fstat(file).st_ino:
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
