"""Predictions of a list of videos: how good they are, by class and as a table on the disk."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mme_targets.files import atomic_path

__all__ = ["Predictions", "class_rows", "confusion", "figures", "write_classes", "write_parquet"]

TOP = 5
"""Of top-5 accuracy, which is said where there are more classes than that."""


@dataclass(frozen=True)
class Predictions:
    """What a classifier made of n videos, in the list's order.

    Attributes
    ----------
    names : of the videos.
    labels : [n] int64, true classes; -1 where unknown.
    probabilities : [n, classes] float32, averaged over the views; NaN where a video was not read.
    views : [n] int64, how many each had; 0 where it was not read.
    reasons : why each was not read; "" where it was.
    classes : their names.
    """

    names: Sequence[str]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    views: npt.NDArray[np.int64]
    reasons: Sequence[str]
    classes: Sequence[str]

    @property
    def read(self) -> npt.NDArray[np.bool_]:
        """[n], which videos were read."""
        return self.views > 0

    def ranked(self) -> npt.NDArray[np.int64]:
        """[n, at most 5] classes, the likeliest first and of equals the lower number first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        return np.asarray(order[:, :TOP], dtype=np.int64)


def figures(made: Predictions) -> dict[str, Any]:
    """Counts of videos, and accuracies in per cent where labels are known.

    Counts: `videos`, `read`, `unreadable`, `labelled`, and with labels `scored`, read and labelled.

    `accuracy_read` and `top5_read` are of the videos that were read, `accuracy_all` and `top5_all`
    of all that have a label, those that were not read being wrong; `mean_class` is the mean over
    the classes with videos of the accuracy within each, over all. With 5 classes or fewer there is
    no top-5.

    Raises
    ------
    ValueError
        If labels are known and there is but one class, which leaves nothing to be right about.
    """
    labelled = made.labels >= 0
    counts = {
        "videos": len(made.labels),
        "read": int(made.read.sum()),
        "unreadable": int((~made.read).sum()),
        "labelled": int(labelled.sum()),
    }
    if not counts["labelled"]:
        return counts
    if len(made.classes) < 2:
        raise ValueError("the checkpoint has one class; accuracy needs two or more")
    from torchmetrics.classification import MulticlassStatScores

    scored = labelled & made.read
    counts["scored"] = count = int(scored.sum())
    values: dict[str, float | None] = {}
    for k, name in ((1, "accuracy"), (TOP, "top5")):
        if k >= len(made.classes) and k > 1:
            continue
        right = 0
        if count:
            # All processes hold all videos already: summed over them these would count twice.
            metric = MulticlassStatScores(
                len(made.classes), top_k=k, average="micro", sync_on_compute=False
            )
            metric.update(*_tensors(made, scored))
            right = int(metric.compute()[0])
        values[f"{name}_read"] = 100 * right / count if count else None
        values[f"{name}_all"] = 100 * right / counts["labelled"]
    shares = [row["top1"] for row in class_rows(made) if row["videos"]]
    return {**counts, **values, "mean_class": float(np.mean(shares))}


def confusion(made: Predictions) -> npt.NDArray[np.int64]:
    """[true, predicted] counts of the videos that were read and have a label."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    scored = (made.labels >= 0) & made.read
    if not scored.any():
        return np.zeros((len(made.classes),) * 2, dtype=np.int64)
    metric = MulticlassConfusionMatrix(len(made.classes), sync_on_compute=False)
    metric.update(*_tensors(made, scored))
    return np.asarray(metric.compute().numpy(), dtype=np.int64)


def _tensors(made: Predictions, which: npt.NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(made.probabilities[which]), torch.from_numpy(made.labels[which])


def class_rows(made: Predictions) -> list[dict[str, Any]]:
    """One row a class: its videos, those not read, those right, and what it is taken for.

    top1 and top5 are per cent of all its videos, those not read being wrong; None where it has
    none, and of top5 with 5 classes or fewer.
    """
    right = confusion(made)
    ranked = made.ranked()
    rows = []
    for number, name in enumerate(made.classes):
        own = made.labels == number
        count, lost = int(own.sum()), int((own & ~made.read).sum())
        hits = int(right[number, number])
        near = int((ranked[own & made.read] == number).any(axis=1).sum())
        others = right[number].copy()
        others[number] = 0
        other = int(others.argmax())
        rows.append({
            "class": number,
            "name": name,
            "videos": count,
            "unreadable": lost,
            "correct": hits,
            "top1": 100 * hits / count if count else None,
            "top5": 100 * near / count if count and len(made.classes) > TOP else None,
            "taken_for": made.classes[other] if others[other] else "",
            "taken_for_videos": int(others[other]),
        })  # fmt: skip
    return rows


def write_classes(made: Predictions, path: str | os.PathLike[str]) -> None:
    """`class_rows` as CSV; accuracies with two decimals."""
    rows = class_rows(made)
    with atomic_path(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        for row in rows:
            table.writerow({k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()})


def write_parquet(made: Predictions, path: str | os.PathLike[str]) -> None:
    """Write one row a video, those that were not read with nulls and the reason.

    Columns: index and video, of the list; label and label_name, null where unknown; prediction and
    prediction_name; top5, top5_names and top5_probabilities, the likeliest first (fewer with fewer
    classes); probabilities, of all classes; views; error. The names of the classes are in the
    schema's metadata under "classes", as a JSON list.
    """
    import pyarrow as pa
    from pyarrow import parquet

    read = made.read
    names = [_clean(name) for name in made.classes]
    ranked = made.ranked()
    best = [row.tolist() if ok else None for row, ok in zip(ranked, read, strict=True)]
    values = made.probabilities
    labels = [int(label) if label >= 0 else None for label in made.labels]
    columns = {
        "index": pa.array(range(len(read)), pa.int64()),
        "video": pa.array([_clean(name) for name in made.names], pa.string()),
        "label": pa.array(labels, pa.int32()),
        "label_name": pa.array([None if v is None else names[v] for v in labels], pa.string()),
        "prediction": pa.array([None if r is None else r[0] for r in best], pa.int32()),
        "prediction_name": pa.array([None if r is None else names[r[0]] for r in best],
                                    pa.string()),
        "top5": pa.array(best, pa.list_(pa.int32())),
        "top5_names": pa.array([None if r is None else [names[c] for c in r] for r in best],
                               pa.list_(pa.string())),
        "top5_probabilities": pa.array(
            [None if r is None else values[i][r] for i, r in enumerate(best)],
            pa.list_(pa.float32()),
        ),
        "probabilities": pa.array([v if ok else None for v, ok in zip(values, read, strict=True)],
                                  pa.list_(pa.float32())),
        "views": pa.array(made.views, pa.int32()),
        "error": pa.array([_clean(reason) or None for reason in made.reasons], pa.string()),
    }  # fmt: skip
    table = pa.table(columns).replace_schema_metadata({"classes": json.dumps(names)})
    with atomic_path(path) as beside:
        parquet.write_table(table, str(beside), compression="zstd")


def _clean(text: str) -> str:
    """Names of files are bytes; what is no UTF-8 is written as an escape."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
