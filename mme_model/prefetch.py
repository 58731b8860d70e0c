"""The next batch's targets on a side stream of the GPU, while the model trains on this one.

A thread takes batches from the loader, copies them to the device and launches their targets on a
stream of its own; the stream that trains waits for them by an event, never the host. On a CPU the
loader's processes have made the targets already, and batches pass as they are.

What is for a GPU here has not run on one yet.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from mme_targets.ahead import Ahead

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

    def made() -> Iterator[tuple[Any, torch.cuda.Event]]:
        torch.cuda.set_device(device)  # of the thread
        side = torch.cuda.Stream(device)
        for batch in batches:
            with torch.cuda.stream(side):
                some = prepare(batch)
                event = torch.cuda.Event()
                event.record(side)
            yield some, event

    with Ahead(made(), ahead) as ready:
        for some, event in ready:
            current = torch.cuda.current_stream(device)
            current.wait_event(event)
            for tensor in some.tensors():
                tensor.record_stream(current)  # its memory is not reused before this stream is done
            yield some


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
