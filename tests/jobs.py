"""What tests of jobs share: recipes with fields changed, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from mme_targets.settings import Config

ROOT = Path(__file__).parents[1]
C = TypeVar("C", bound=Config)


def changed(cls: type[C], base: Mapping[str, Any], changes: Mapping[str, Any]) -> C:
    """A recipe of `base` with `changes`: group__field=value, or group=value."""
    values = json.loads(json.dumps(base))
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            values.setdefault(group, {})[name] = value
        else:
            values[group] = value
    return cls.from_dict(values)


def start(
    job: str, recipe: Config, out: Path, *words: str, processes: int = 1
) -> subprocess.Popen[str]:
    """Start `mme JOB` on a CPU, with torchrun where there are several processes."""
    file = out.parent / f"{out.name}.yaml"
    file.write_text(recipe.to_yaml())
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command = [*launch, "mme_model", job, "--recipe", str(file), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--cpu", "true", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a job that must end well; what it said."""
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    return text
