"""What a run leaves to read: metrics.jsonl, TensorBoard, skipped.csv, and a progress bar.

All of it is written by the first process alone. When a run goes on from a checkpoint, what was
logged after that checkpoint is taken back first, so that each step stands there once.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mme_targets.files import atomic_path

__all__ = ["Log", "Progress"]


class Log:
    """metrics.jsonl, TensorBoard and skipped.csv of one run.

    Parameters
    ----------
    folder : of the run.
    step : steps done already; later records of an earlier attempt are removed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self.skipped: dict[str, str] = {}
        self._take_back(step)
        # Line by line, so that a killed run has logged every step that it finished.
        self._file = self.path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one step's record; numbers that are not finite become null."""
        clean = {k: _finite(v) for k, v in record.items()}
        self._file.write(json.dumps(clean) + "\n")
        step = int(record["step"])
        for key, value in record.items():
            if key not in ("step", "epoch") and isinstance(value, (int, float)):
                self._board.add_scalar(key, value, step)

    def picture(self, name: str, image: Any, step: int) -> None:
        """Show `image`, uint8 [3, H, W], in TensorBoard."""
        self._board.add_image(name, image, step)

    def skip(self, found: Iterable[tuple[str, str]]) -> None:
        """Add unreadable videos (name, reason) to skipped.csv, each once."""
        new = {name: reason for name, reason in found if name not in self.skipped}
        if not new:
            return
        fresh = not self.skipped and not (self.folder / "skipped.csv").exists()
        self.skipped.update(new)
        with (self.folder / "skipped.csv").open("a", newline="") as file:
            rows = csv.writer(file)
            if fresh:
                rows.writerow(("video", "reason"))
            rows.writerows(new.items())

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        self._board.close()

    def _take_back(self, step: int) -> None:
        if self.path.exists():
            kept = []
            for line in self.path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line at which the process was killed
                if record["step"] <= step:
                    kept.append(line + "\n")
            with atomic_path(self.path) as beside:
                beside.write_text("".join(kept))
        listed = self.folder / "skipped.csv"
        if listed.exists():
            with listed.open(newline="") as file:
                self.skipped = {row[0]: row[1] for row in list(csv.reader(file))[1:] if row[1:]}


class Progress:
    """A bar on a terminal, and now and then a line elsewhere; silent but on the first process.

    Parameters
    ----------
    total : steps in all; `done` of them lie behind.
    clips : clips of one step, for the rate.
    """

    def __init__(self, total: int, done: int, clips: int, show: bool) -> None:
        self.total, self.clips, self.show = total, clips, show
        self._bar: Any = None
        self._said = time.monotonic()
        if show and sys.stderr.isatty():
            self._bar, self._task = _bar(total, done)
            self._bar.start()

    def step(self, record: Mapping[str, Any]) -> None:
        """Advance by one step."""
        if not self.show:
            return
        speed = record["clips_per_second"]
        text = f"loss {record['loss']:.4f}  {speed:.1f} clips/s  {shares(record)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], what=text)
        elif time.monotonic() - self._said > 20 or record["step"] in (1, self.total):
            self._said = time.monotonic()
            left = (self.total - record["step"]) * self.clips / max(speed, 1e-9)
            print(
                f"step {record['step']}/{self.total}  {text}  {_clock(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self.show:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def hint(self, text: str) -> None:
        """Say what holds until the step is done: in the bar, where there is one."""
        if self._bar is not None:
            self._bar.update(self._task, what=text)
        else:
            self.say(text)

    def close(self) -> None:
        """Leave the bar where it is."""
        if self._bar is not None:
            self._bar.stop()


def shares(record: Mapping[str, Any]) -> str:
    """Where a step's work went: "decode 3% flow 40% targets 4% model 53%"; nothing, no word."""
    parts = {k[8:]: v for k, v in record.items() if k.startswith("seconds/")}
    work = {k: v for k, v in parts.items() if k != "wait"}
    total = sum(work.values()) or 1.0
    return " ".join(f"{k} {v / total:.0%}" for k, v in work.items() if v)


def _bar(total: int, done: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[what]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    return bar, bar.add_task("train", total=total, completed=done, what="")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
