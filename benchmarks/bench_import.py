"""`import mme_targets` beside `import torch`, each in fresh processes, taking turns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .harness import Row, Spread, paired_ratio

ROOT = Path(__file__).resolve().parent.parent
REQUIRED_EXTRA_MS = 200.0
NOTE = "torch itself is nearly all of it"


def import_ms(module: str) -> float:
    """Milliseconds of the import statement alone, in a process of its own."""
    code = (
        "import time; begin = time.perf_counter(); "
        f"import {module}; print((time.perf_counter() - begin) * 1e3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"import {module}: {last[0]}")
    return float(done.stdout)


def row(ours: Sequence[float], peer: Sequence[float]) -> Row:
    """The line of the table: both times, and the difference round by round."""
    extra = Spread.of([own - theirs for own, theirs in zip(ours, peer, strict=True)])
    return Row(
        stage="import",
        operation="import",
        case="import mme_targets",
        floor="-",
        peer="import torch",
        passed=True,
        ours_ms=Spread.of(ours),
        peer_ms=Spread.of(peer),
        ratio=paired_ratio(ours, peer),
        required_extra_ms=REQUIRED_EXTRA_MS,
        extra_ms=extra,
        met=extra.median <= REQUIRED_EXTRA_MS,
        rounds=len(ours),
        note=NOTE,
    )


def measure(rounds: int) -> Row:
    """Alternate; the first of each, which fills the disk cache, does not count."""
    try:
        import_ms("torch"), import_ms("mme_targets")
        pairs = [(import_ms("torch"), import_ms("mme_targets")) for _ in range(rounds)]
    except Exception as error:
        return Row("import", "import", "import mme_targets", "-", "import torch", False, str(error))
    return row([own for _, own in pairs], [theirs for theirs, _ in pairs])
