"""Measure an operation beside its peers and its floor, and report nothing that is wrong.

A `Case` is an operation on one input, on one backend. It is checked first; when the check fails,
the case becomes a row that says FAILED and nothing is timed. A peer does the same work with what a
user would otherwise run, and is checked as well.

Pairing. Ours and the peer take turns, A/B/A/B, in one process. A turn lasts `TURN_MS` or one call,
whichever is longer; a call that is short is preceded by one that does not count, which brings back
caches and threads. A turn's time is the median of its calls, a ratio that of two neighbouring
turns, and what is reported is the median over the rounds with its quartiles. So a slow phase of
the machine strikes both sides of a ratio, or one round only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

SCHEMA = 1
TURN_MS = 20.0
LONG_MS = 50.0
"""A call this long warms itself up."""


@dataclass(frozen=True)
class Setting:
    """What a run measures on.

    `side`: px of a frame; `frames`: raw frames of the model's clip (16 gives 56 frames and 48
    flows); `batches`: clips a call; `floors`: the backends measured; `data`: where real inputs lie,
    if anywhere; `left_out`: what could not be measured for want of something, and why.
    """

    device: torch.device
    floors: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    side: int = 224
    frames: int = 16
    quick: bool = False
    data: Path | None = None
    left_out: list[str] = field(default_factory=list)

    def leave_out(self, what: str) -> None:
        """Note it, and say so."""
        self.left_out.append(what)
        print(f"left out: {what}", file=sys.stderr)

    @property
    def pairs(self) -> int:
        """Flows of one clip of the paper's config: 3 a frame of the model (16 frames: 48)."""
        return 3 * self.frames

    def label(self, batch: int, what: str) -> str:
        """The size of a case in words."""
        clips = "" if batch == 1 else f"{batch} clips of "
        return f"{clips}{what} at {self.side}x{self.side}"


@dataclass(frozen=True)
class Work:
    """The least that the operation must do, counted: bytes read and written, fp32 lane operations.

    An operation on one fp32 lane (minimum, product, multiply-add, comparison) counts as one; `how`
    says what was counted.
    """

    read: float
    written: float
    operations: float
    how: str


@dataclass(frozen=True)
class Peer:
    """Somebody else's way to the same result.

    `agree` raises AssertionError unless (ours, theirs) agree. `scale`: the peer does 1/scale of the
    work, and its time is multiplied by it. `required`: the ratio that the project promises.
    """

    name: str
    run: Callable[[], Any]
    agree: Callable[[Any, Any], None]
    required: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Case:
    """One operation, one input, one backend.

    `check` raises AssertionError unless the result is right: it compares with the reference floor.
    `note`: what keeps it from its floor.
    """

    stage: str
    operation: str
    name: str
    floor: str
    run: Callable[[], Any]
    check: Callable[[Any], None]
    peers: Sequence[Peer] = ()
    work: Work | None = None
    note: str = ""


@dataclass
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Of a list of numbers."""
        low, median, high = np.percentile(np.asarray(samples, dtype=float), [25, 50, 75])
        return cls(float(median), float(low), float(high))


@dataclass
class Row:
    """One line of the table: a case beside one peer. Times in ms."""

    stage: str
    operation: str
    case: str
    floor: str
    peer: str | None
    passed: bool
    error: str | None = None
    ours_ms: Spread | None = None
    peer_ms: Spread | None = None
    ratio: Spread | None = None
    """How many times faster ours is."""
    required: float | None = None
    required_extra_ms: float | None = None
    extra_ms: Spread | None = None
    """For imports: how much longer ours takes."""
    met: bool | None = None
    rounds: int = 0
    scale: float = 1.0
    work: dict[str, Any] | None = None
    limit_ms: float | None = None
    limited_by: str | None = None
    distance: float | None = None
    """Our time over the floor's."""
    note: str = ""
    commit: str | None = field(default=None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def paired_ratio(ours: Sequence[float], peer: Sequence[float]) -> Spread:
    """Peer's time over ours, round by round."""
    if len(ours) != len(peer) or not len(ours):
        raise ValueError(f"{len(ours)} turns of ours and {len(peer)} of the peer; must be as many")
    return Spread.of([theirs / own for own, theirs in zip(ours, peer, strict=True)])


class Clock:
    """Times calls on the CPU by the wall clock, on a GPU by events.

    On a GPU the L2 cache is overwritten before each call, which also lets the host run ahead, so
    that events enclose the device's work and little of the wait for the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            self._cache = torch.empty(256 << 20, dtype=torch.int8, device=device)

    def calls(self, run: Callable[[], Any], count: int) -> list[float]:
        """Milliseconds of each of `count` calls."""
        if not self.on_gpu:
            times = []
            for _ in range(count):
                begin = time.perf_counter()
                run()
                times.append((time.perf_counter() - begin) * 1e3)
            return times
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(count)
        ]
        for begin, end in events:
            self._cache.zero_()
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) for begin, end in events]

    def turn(self, run: Callable[[], Any], expected_ms: float, turn_ms: float) -> float:
        """One turn's time: the median of its calls."""
        if expected_ms < LONG_MS:
            run()
        count = int(np.clip(turn_ms / max(expected_ms, 1e-3), 1, 50))
        return float(np.median(self.calls(run, count)))


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds wanted, the fewest that count, and seconds for one pairing."""

    rounds: int = 15
    least: int = 5
    seconds: float = 4.0
    turn_ms: float = TURN_MS

    @classmethod
    def quick(cls) -> Effort:
        """For a first look: too few rounds to be quoted."""
        return cls(rounds=5, least=2, seconds=0.5, turn_ms=5.0)


def pair(
    clock: Clock, ours: Callable[[], Any], peer: Callable[[], Any] | None, effort: Effort
) -> tuple[list[float], list[float]]:
    """Alternating turns of both: two lists of as many times, ms."""
    clock.calls(ours, 1)  # compiles, allocates
    own = clock.calls(ours, 1)[0]
    theirs = 0.0
    if peer is not None:
        theirs = clock.calls(peer, 1)[0]
        if theirs < LONG_MS:
            theirs = clock.calls(peer, 1)[0]
    cost = sum(max(ms, effort.turn_ms) for ms in (own, theirs) if ms) / 1e3
    rounds = int(np.clip(effort.seconds / cost, effort.least, effort.rounds))
    mine, other = [], []
    for _ in range(rounds):
        if peer is not None:
            other.append(clock.turn(peer, theirs, effort.turn_ms))
        mine.append(clock.turn(ours, own, effort.turn_ms))
    return mine, other


class Peaks:
    """What this device can do, measured: bytes moved and fp32 lane operations a second."""

    def __init__(self, clock: Clock, effort: Effort) -> None:
        self._clock, self._effort = clock, effort
        self._bandwidth: dict[int, dict[str, float]] = {}
        self._operations: float | None = None

    def bandwidth(self, footprint: float) -> dict[str, float]:
        """Bytes a second of copy, triad and sum over arrays of about this many bytes in all.

        On a CPU the footprint is the case's, so that data a cache can hold are compared with that
        cache; on a GPU, where the cache is emptied, it is 1 GB.
        """
        exponent = 30 if self._clock.on_gpu else int(np.clip(np.ceil(np.log2(footprint)), 20, 27))
        if exponent not in self._bandwidth:
            self._bandwidth[exponent] = self._stream(1 << exponent)
        return self._bandwidth[exponent]

    def _stream(self, footprint: int) -> dict[str, float]:
        device = self._clock.device
        a, b, c = (torch.ones(footprint // 12, device=device) for _ in range(3))
        whole = torch.ones(footprint // 4, device=device)
        half = footprint // 8
        kernels: dict[str, tuple[Callable[[], Any], int]] = {
            "copy": (lambda: whole[:half].copy_(whole[half : 2 * half]), 8 * half),
            "triad": (lambda: torch.add(a, b, alpha=3.0, out=c), 12 * len(a)),
            "sum": (lambda: whole.sum(), 4 * len(whole)),
        }
        return {name: moved / self._best(run) for name, (run, moved) in kernels.items()}

    def operations(self) -> float:
        """fp32 multiply-adds a second, from a large matrix product."""
        if self._operations is None:
            size = 8192 if self._clock.on_gpu else 1024
            a, b = (torch.ones(size, size, device=self._clock.device) for _ in range(2))
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                self._operations = size**3 / self._best(lambda: a @ b)
            finally:
                torch.set_float32_matmul_precision(before)
        return self._operations

    def _best(self, run: Callable[[], Any]) -> float:
        """Seconds of the fastest call: a peak is what was reached once.

        On a CPU with one thread as well: barriers between threads that others keep waiting can cost
        more than the second thread brings.
        """
        threads = torch.get_num_threads()
        best = float("inf")
        try:
            for count in (threads,) if self._clock.on_gpu else sorted({1, threads}):
                torch.set_num_threads(count)
                run()
                enough = time.perf_counter() + 10 * self._effort.turn_ms / 1e3
                while time.perf_counter() < enough or best == float("inf"):
                    best = min(best, *self._clock.calls(run, 3))
        finally:
            torch.set_num_threads(threads)
        return best / 1e3

    def limit(self, work: Work) -> tuple[float, str]:
        """The floor of this work, ms, and which peak sets it."""
        moved = work.read + work.written
        memory = moved / max(self.bandwidth(moved).values()) * 1e3
        compute = work.operations / self.operations() * 1e3
        return (memory, "memory") if memory >= compute else (compute, "compute")

    def as_dict(self) -> dict[str, Any]:
        """GB/s by footprint, and G lane operations a second."""
        return {
            "bandwidth_gb_s": {
                str(1 << exponent): {name: rate / 1e9 for name, rate in rates.items()}
                for exponent, rates in sorted(self._bandwidth.items())
            },
            "multiply_add_g_s": None if self._operations is None else self._operations / 1e9,
        }


def examine(case: Case, clock: Clock, peaks: Peaks, effort: Effort) -> Iterator[Row]:
    """Check a case, then measure it beside each peer: a row each, or one row that says FAILED."""
    head = (case.stage, case.operation, case.name, case.floor)
    try:
        result = case.run()
        case.check(result)
    except Exception as error:
        yield Row(*head, peer=None, passed=False, error=_said(error))
        return
    limit_ms, limited_by = peaks.limit(case.work) if case.work else (None, None)
    for peer in case.peers or (None,):
        name = peer.name if peer else None
        try:
            if peer:
                peer.agree(result, peer.run())
            ours, theirs = pair(clock, case.run, peer.run if peer else None, effort)
        except Exception as error:
            yield Row(*head, peer=name, passed=False, error=_said(error))
            continue
        row = Row(*head, peer=name, passed=True, ours_ms=Spread.of(ours), rounds=len(ours))
        row.note = case.note
        if peer:
            scaled = [ms * peer.scale for ms in theirs]
            row.peer_ms, row.ratio = Spread.of(scaled), paired_ratio(ours, scaled)
            row.required, row.scale = peer.required, peer.scale
            row.met = None if peer.required is None else row.ratio.median >= peer.required
        if case.work:
            row.work, row.limit_ms, row.limited_by = asdict(case.work), limit_ms, limited_by
            row.distance = row.ours_ms.median / limit_ms
        yield row


def _said(error: Exception) -> str:
    """The first lines of an error, with its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:4])}"[:300]


def close(actual: Any, expected: Any, what: str, factor: float = 1.0) -> None:
    """Compare within the tests' tolerance table, `factor` times as loosely for other libraries."""
    from tests.conftest import TOLERANCE

    absolute, relative = TOLERANCE[what]
    a, b = (torch.as_tensor(x).detach().cpu().double() for x in (actual, expected))
    torch.testing.assert_close(a, b, atol=absolute * factor, rtol=relative * factor)


def ends(batch: torch.Tensor) -> torch.Tensor:
    """The first and the last clip of a batch: those that are compared with the reference."""
    return batch if len(batch) < 3 else torch.stack([batch[0], batch[-1]])


def smooth_flow(batch: int, pairs: int, side: int, device: torch.device) -> torch.Tensor:
    """Flow [B, P, 2, H, W] of a few px: smooth motion and noise, in 1/64 px.

    On that grid every float32 sum along a track is exact, so that all floors and peers round the
    same positions the same way.
    """
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(pairs * 2, 1, 6, 6, generator=generator) * 3
    fine = torch.nn.functional.interpolate(
        coarse, size=(side, side), mode="bicubic", align_corners=False
    )
    noisy = fine + torch.randn(fine.shape, generator=generator) * 0.25
    # No negative zeros: atan2 sends them to the other end of the half circle.
    clip = ((noisy * 64).round() / 64 + 0.0).view(1, pairs, 2, side, side)
    return torch.cat([clip.roll(b, dims=1) for b in range(batch)]).to(device).contiguous()


def textured_frames(batch: int, count: int, side: int, device: torch.device) -> torch.Tensor:
    """Frames [B, T, 3, H, W] uint8: soft shapes and grain, different in each frame."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, 3, 12, 12, generator=generator) * 200
    fine = torch.nn.functional.interpolate(
        coarse, size=(side, side), mode="bicubic", align_corners=False
    )
    grain = torch.randn(fine.shape, generator=generator) * 12
    clip = (fine + grain + 28).clamp(0, 255).to(torch.uint8)[None]
    return torch.cat([clip.roll(b, dims=1) for b in range(batch)]).to(device).contiguous()
