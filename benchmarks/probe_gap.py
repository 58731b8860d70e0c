"""`python -m benchmarks.probe_gap --checkpoint RUN`: what pre-training adds to a linear probe.

A linear layer on the frozen encoder of a checkpoint, and on the same encoder before any training,
over several seeds: of the layer, of the random encoder and, where there are as many checkpoints as
seeds, of the pre-training. Both get the same videos, views and choice of learning rates, made by
training videos that are held out; the built-in videos' classes are motions whose direction no
single frame tells. Features are kept in --out, so that a second measurement takes seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write probe_gap.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe_gap", description=__doc__)
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="RUN",
                        help="runs of `mme pretrain`: one, or one for each seed")  # fmt: skip
    parser.add_argument("--data", default="synthetic:1024", help="training videos")
    parser.add_argument("--val", default="synthetic:512", help="validation videos")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--norm", default="standardise")
    parser.add_argument("--clips", type=int, default=2, help="views in time")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    given = parser.parse_args(arguments)
    if given.seeds < 1 or len(given.checkpoint) not in (1, given.seeds):
        parser.error("--checkpoint takes one run, or as many as --seeds")
    rows = [_row(given, seed) for seed in range(given.seeds)]
    report = {"rows": rows, "unit": "% of validation videos", "data": given.data,
              "val": given.val, "clips": given.clips, "norm": given.norm}  # fmt: skip
    show(rows)
    (given.out / "probe_gap.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _row(given: Any, seed: int) -> dict[str, Any]:
    """Accuracies of one seed."""
    from mme_model.linear import ProbeConfig
    from mme_model.probe import probe

    checkpoint = given.checkpoint[seed % len(given.checkpoint)]
    row: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint}
    for init in ("checkpoint", "random"):
        summary = probe(
            checkpoint,
            given.data,
            given.val,
            out=given.out / f"{init}-{seed}",
            init=init,  # type: ignore[arg-type]
            views={"test_clips": given.clips},
            config=ProbeConfig(norm=given.norm, seed=seed),
            sweep_lr=True,
            knn=True,
            cache=given.out / "features",
        )
        values = {one["name"]: one["value"] for one in summary["figures"]}
        row[init] = {"linear": values["accuracy_all"], "knn": values["knn"],
                     "lr": summary["probe"]["lr"]}  # fmt: skip
    return row


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A line a seed, then means and deviations."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="top-1, % of validation videos", title_justify="left")
    for name in ("seed", "linear, pre-trained", "linear, random", "gap", "20-NN, pre-trained",
                 "20-NN, random"):  # fmt: skip
        table.add_column(name, justify="right")
    columns = [
        [row[init][kind] for row in rows]
        for kind in ("linear", "knn")
        for init in ("checkpoint", "random")
    ]
    gap = [a - b for a, b in zip(columns[0], columns[1], strict=True)]
    columns.insert(2, gap)
    for row, values in zip(rows, zip(*columns, strict=True), strict=True):
        table.add_row(str(row["seed"]), *(f"{value:.1f}" for value in values))
    spread = [statistics.stdev(c) if len(c) > 1 else 0.0 for c in columns]
    means = [statistics.mean(c) for c in columns]
    shown = [f"{mean:.1f} ± {off:.1f}" for mean, off in zip(means, spread, strict=True)]
    table.add_row("mean ± deviation", *shown)
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
