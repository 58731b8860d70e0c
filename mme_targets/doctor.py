"""`mme doctor`: what runs here, and why the rest does not."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import import_module, metadata
from typing import Any

import torch

from .backends import FLOORS, backends

PACKAGES = (
    "mme-targets",
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
    "opencv-python-headless",
    "opencv-python",
    "av",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "safetensors",
)


def report() -> dict[str, Any]:
    """Versions, processor, devices, and for every public operation each floor's state.

    A floor is None where it can run, else the reason why it cannot.
    """
    return {
        "versions": {"python": platform.python_version(), **installed()},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cuda": _cuda(),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith("MME_")
        },
        "operations": backends(),
    }


def installed() -> dict[str, str]:
    """Versions of the packages that matter here and are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cpu() -> dict[str, Any]:
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "machine": platform.machine()}
    try:
        native = import_module("mme_targets._cpu")
        return {**found, "built": True, "isa": native.isa(), "isas": list(native.isas())}
    except (ImportError, RuntimeError) as error:
        return {**found, "built": False, "reason": str(error)}


def _cuda() -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.version.cuda, "devices": []}
    if torch.cuda.is_available():
        found["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    try:
        return {**found, "built": True, **dict(import_module("mme_targets._cuda").info())}
    except ImportError as error:
        return {**found, "built": False, "reason": str(error)}


def render(found: dict[str, Any]) -> None:
    """Print the report as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, version in found["versions"].items():
        facts.add_row(name, version)
    cpu, cuda = found["cpu"], found["cuda"]
    state = f"{cpu['isa']} (of {', '.join(cpu['isas'])})" if cpu["built"] else cpu["reason"]
    facts.add_row("cpu floor", f"{state}, {cpu['threads']} threads, {cpu['machine']}")
    state = f"built with CUDA {cuda['cuda_version']} for sm {cuda['archs'].replace(';', ', ')}" if cuda["built"] else f"not built ({cuda['reason']})"  # fmt: skip  # noqa: E501
    facts.add_row("cuda floor", state)
    facts.add_row("devices", ", ".join(cuda["devices"]) or "no CUDA device")
    for name, value in found["environment"].items():
        known = name != "MME_BACKEND" or value in ("auto", *FLOORS)
        facts.add_row(name, value if known else f"{value} ([red]no such backend[/])")
    console.print(facts)

    reasons: dict[str, int] = {}
    table = Table(title="Where each operation runs", title_justify="left")
    table.add_column("operation")
    for floor in FLOORS:
        table.add_column(floor, justify="center")
    for operation, row in found["operations"].items():
        cells = []
        for floor in FLOORS:
            if row[floor] is None:
                cells.append("[green]yes[/]")
            elif row[floor] == "not written":
                cells.append("[dim]–[/]")
            else:
                cells.append(f"[yellow]no {reasons.setdefault(row[floor], len(reasons) + 1)}[/]")
        table.add_row(operation, *cells)
    console.print(table)
    for reason, number in reasons.items():
        console.print(f"{number}: {reason}", highlight=False, markup=False)
    if any("–" in str(v) or v == "not written" for row in found["operations"].values() for v in row.values()):  # fmt: skip  # noqa: E501
        console.print("–: this floor does not have the operation", highlight=False)
