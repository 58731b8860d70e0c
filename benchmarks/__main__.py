"""`python -m benchmarks`: measure, print the table, write one JSON."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import bench_import, inputs
from .harness import SCHEMA, Case, Clock, Effort, Peaks, Row, Setting, examine

ROOT = Path(__file__).resolve().parent.parent
STAGES = (
    "trajectories",
    "descriptors",
    "patch_norm",
    "targets",
    "optical_flow",
    "camera_motion",
    "pretraining",
    "testing",
    "import",
)
ALIASES = {"flow": ("optical_flow", "camera_motion")}
PACKAGES = ("torch", "numpy", "triton", "scikit-image", "timm", "transformers")
FAMILIES = {"opencv": ("opencv-",), "cupy": ("cupy-cuda",)}


def cases(stage: str, setting: Setting) -> Iterator[Case]:
    """The cases of `bench_<stage>.py`."""
    yield from importlib.import_module(f"{__package__}.bench_{stage}").cases(setting)


def facts(stage: str, setting: Setting) -> dict[str, list[dict[str, Any]]]:
    """What `bench_<stage>.py` measures beside its cases: rows of tables, by name."""
    module = importlib.import_module(f"{__package__}.bench_{stage}")
    found: dict[str, list[dict[str, Any]]] = getattr(module, "facts", lambda setting: {})(setting)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 if any check failed."""
    known = (*STAGES, *ALIASES)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("stage", nargs="*", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument("--quick", action="store_true", help="small frames, few rounds")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "benchmarks", metavar="DIR")
    given = parser.parse_args(arguments)
    if unknown := [stage for stage in given.stage if stage not in known]:
        parser.error(f"no stage {', '.join(unknown)}; choose from {', '.join(known)}")
    if given.threads < 1:
        parser.error(f"--threads is {given.threads}; must be 1 or more")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    given.out.mkdir(parents=True, exist_ok=True)  # fail before the work, not after
    set_threads(given.threads)

    effort = Effort.quick() if given.quick else Effort()
    setting = make_setting(given.device, given.quick)
    asked = {name for stage in given.stage or STAGES for name in ALIASES.get(stage, (stage,))}
    stages = [stage for stage in STAGES if stage in asked]
    rows, peaks, found = measure(stages, setting, effort)
    report = {
        "schema": SCHEMA,
        "meta": describe(setting, given.threads, stages),
        "peaks": peaks.as_dict(),
        "rows": [row.as_dict() for row in rows],
        "facts": found,
    }
    show(rows, report["meta"], found)
    path = given.out / file_name(report["meta"])
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")
    failed = [row for row in rows if not row.passed]
    if failed:
        print(f"{len(failed)} FAILED", file=sys.stderr)
    return 1 if failed or not rows else 0


def set_threads(count: int) -> None:
    """The same number for torch, the CPU floor (which follows torch) and OpenCV."""
    torch.set_num_threads(count)
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(count)


def make_setting(device: str, quick: bool) -> Setting:
    """What is measured: the paper's clip on a CPU, also 64 of them on a GPU."""
    if device == "cpu":
        side = 112 if quick else 224
        return Setting(torch.device("cpu"), ("cpu",), side=side, quick=quick, data=inputs.DATA)
    from mme_targets.backends import unavailable

    floors = tuple(floor for floor in ("cuda", "triton") if unavailable(floor, "cuda") is None)
    if not floors:
        raise SystemExit(f"no floor runs on this GPU; cuda: {unavailable('cuda', 'cuda')}")
    device_now = torch.device("cuda", torch.cuda.current_device())
    batches = (1,) if quick else (1, 64)
    return Setting(device_now, floors, batches=batches, quick=quick, data=inputs.DATA)


def measure(
    stages: Sequence[str], setting: Setting, effort: Effort
) -> tuple[list[Row], Peaks, dict[str, list[dict[str, Any]]]]:
    """Every case of these stages in turn, and their facts."""
    clock = Clock(setting.device)
    peaks = Peaks(clock, effort)
    rows: list[Row] = []
    found: dict[str, list[dict[str, Any]]] = {}
    for stage in stages:
        print(f"{stage} …", file=sys.stderr, flush=True)
        if stage == "import":
            rows.append(bench_import.measure(2 if setting.quick else 5))
            continue
        try:
            for case in cases(stage, setting):
                rows.extend(examine(case, clock, peaks, effort))
                if clock.on_gpu:
                    torch.cuda.empty_cache()  # what torch keeps, CuPy cannot have
            found.update(facts(stage, setting))
        except Exception as error:  # building a case failed: the stage's other results stand
            said = f"{type(error).__name__}: {error}"[:300]
            rows.append(Row(stage, stage, "(making the cases)", "-", None, False, said))
    return rows, peaks, found


def describe(setting: Setting, threads: int, stages: Sequence[str]) -> dict[str, Any]:
    """Where, when and of what these numbers are."""
    on_gpu = setting.device.type == "cuda"
    versions = {"python": platform.python_version(), "torch_cuda": torch.version.cuda}
    for dist in metadata.distributions():
        name = (dist.name or "").lower()
        if name in PACKAGES:
            versions[name] = dist.version
        for family, prefixes in FAMILIES.items():
            if name.startswith(prefixes):
                versions[family] = f"{dist.version} ({name})"
    try:
        from mme_targets import _cpu
    except ImportError:
        isa = None
    else:
        isa = _cpu.isa()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _command("git", "rev-parse", "HEAD"),
        "dirty": bool(_command("git", "status", "--porcelain", "--untracked-files=no")),
        "device": torch.cuda.get_device_name(setting.device) if on_gpu else cpu_name(),
        "kind": setting.device.type,
        "driver": _driver() if on_gpu else None,
        "capability": list(torch.cuda.get_device_capability(setting.device)) if on_gpu else None,
        "cpu": cpu_name(),
        "threads": threads,
        "isa": isa,
        "quick": setting.quick,
        "stages": list(stages),
        "left_out": list(setting.left_out),
        "versions": dict(sorted(versions.items())),
    }


def cpu_name() -> str:
    """As the system gives it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()


def file_name(meta: dict[str, Any]) -> str:
    """Of the device and the time."""
    device = re.sub(r"[^a-z0-9]+", "-", meta["device"].lower()).strip("-")
    stamp = re.sub(r"[^0-9T]", "", meta["date"][:19])
    return f"{meta['kind']}_{device}_{stamp}{'_quick' if meta['quick'] else ''}.json"


def _driver() -> str | None:
    return _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")


def _command(*words: str) -> str | None:
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def show(rows: Sequence[Row], meta: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> None:
    """Print the tables, losses and failures too."""
    from rich.console import Console
    from rich.table import Table

    from .readme import FACTS, cells, notes

    where = f"{meta['device']}, {meta['threads']} threads, commit {(meta['commit'] or '?')[:9]}"
    console = Console(width=None if sys.stdout.isatty() else 190)
    table = Table(title=where + (" with changes" if meta["dirty"] else ""), show_lines=False)
    for heading in ("case", "floor", "peer", "ours, ms", "peer, ms", "ratio", "asked", "x floor"):
        table.add_column(heading, justify="right" if heading in ("ratio", "asked") else "left")
    for row in rows:
        line = cells(row.as_dict())
        style = "red" if not row.passed or row.met is False else None
        table.add_row(*line, style=style)
    console.print(table)
    for note in notes([row.as_dict() for row in rows]):
        console.print(f"- {note}", highlight=False)
    for name, entries in found.items():
        if entries:
            headings, lines = FACTS[name](entries)
            table = Table(*headings, title=name)
            for line in lines:
                table.add_row(*line)
            console.print(table)
    for what in meta["left_out"]:
        console.print(f"left out: {what}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
