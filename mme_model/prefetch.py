"""The next batch's targets on a side stream of the GPU, while the model trains on this one.

A thread takes batches from the loader, copies them to the device and launches their targets on a
stream of its own; the stream that trains waits for them by an event, never the host. On a CPU the
loader's processes have made the targets already, and batches pass as they are.

What is for a GPU here has not run on one yet.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

__all__ = ["Clock", "prefetched"]


def prefetched(
    batches: Iterable[Any], prepare: Callable[[Any], Any], device: torch.device, ahead: int = 1
) -> Iterator[Any]:
    """Yield ``prepare(batch)`` of each batch in order; on a GPU, `ahead` batches early.

    Parameters
    ----------
    batches : of the loader.
    prepare : moves a batch to the device and makes its targets, on the current stream, and returns
        it; its method ``tensors()`` lists what lives on the device.
    """
    if device.type != "cuda":
        yield from map(prepare, batches)
        return
    ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    leave = threading.Event()

    def work() -> None:
        torch.cuda.set_device(device)
        side = torch.cuda.Stream(device)
        try:
            for batch in batches:
                with torch.cuda.stream(side):
                    made = prepare(batch)
                    event = torch.cuda.Event()
                    event.record(side)
                if not _put(ready, (made, event), leave):
                    return
            _put(ready, (None, None), leave)
        except BaseException as error:  # raised again where the batch is awaited
            _put(ready, (error, None), leave)

    thread = threading.Thread(target=work, name="targets", daemon=True)
    thread.start()
    try:
        while True:
            made, event = ready.get()
            if isinstance(made, BaseException):
                raise made
            if made is None:
                return
            current = torch.cuda.current_stream(device)
            current.wait_event(event)
            for tensor in made.tensors():
                tensor.record_stream(current)  # its memory is not reused before this stream is done
            yield made
    finally:
        leave.set()
        thread.join(timeout=10)


class Clock:
    """Seconds that phases of the current stream take, known once the stream has passed them."""

    def __init__(self, device: torch.device) -> None:
        self.on = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, phase: str) -> None:
        """`phase` ends here."""
        self.marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """By phase; waits for what is not done yet."""
        out: dict[str, float] = {}
        for (_, before), (phase, after) in itertools.pairwise(self.marks):
            if self.on:
                after.synchronize()
            took = before.elapsed_time(after) / 1000 if self.on else after - before
            out[phase] = out.get(phase, 0.0) + took
        return out

    def _now(self) -> Any:
        if not self.on:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _put(line: queue.Queue[Any], item: Any, leave: threading.Event) -> bool:
    """Put `item` in line unless the reader has left."""
    while not leave.is_set():
        try:
            line.put(item, timeout=0.2)
        except queue.Full:
            continue
        return True
    return False
