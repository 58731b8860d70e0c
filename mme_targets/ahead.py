"""Things made by a thread before they are asked for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

__all__ = ["Ahead"]

T = TypeVar("T")
_WAIT = 0.1


class Ahead(Generic[T]):
    """What an iterable yields, in order, made by a thread that starts at once; a context manager.

    What the iterable raises is raised where its item would have come. Closing it lets the thread go
    after the item in hand, and closes the iterable if that is a generator.

    Parameters
    ----------
    items : iterated in the thread alone.
    depth : items that wait to be taken, at most; one more may be in the making.
    """

    def __init__(self, items: Iterable[T], depth: int = 1) -> None:
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._leave = threading.Event()
        self._over = False
        self._thread = threading.Thread(
            target=_work, args=(items, self._ready, self._leave), name="ahead", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._over:
            raise StopIteration
        kind, value = self._ready.get()
        if kind == "item":
            made: T = value
            return made
        self._over = True
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Make no more; what was made and not taken is dropped."""
        self._over = True
        self._leave.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def __del__(self) -> None:
        self._leave.set()

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# No method: a thread that held its `Ahead` would keep it from being let go.
def _work(
    items: Iterable[Any], ready: queue.Queue[tuple[str, Any]], leave: threading.Event
) -> None:
    def put(kind: str, value: Any = None) -> bool:
        while not leave.is_set():
            with suppress(queue.Full):
                ready.put((kind, value), timeout=_WAIT)
                return True
        return False

    made = iter(items)
    try:
        for item in made:
            if not put("item", item):
                break
            del item  # it is the taker's while the next one is made
        else:
            put("end")
    except BaseException as error:
        put("error", error)
    finally:
        close = getattr(made, "close", None)
        if close is not None:
            close()
