"""Extraction on a Ray cluster: videos go to its workers, records come back, one writer keeps books.

Workers write entries themselves, so the store must lie on storage that all of them see under one
path, as must the videos. A worker that dies loses the video it was at; Ray gives its part to
another, which takes over what is in place already.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .store import Record, Store
from .store_job import ExtractJob, Item, Many

__all__ = ["on_ray"]

PARTS = 1000
"""Blocks that a long list is divided into: what Ray gives to a worker at a time."""


def on_ray(address: str, **options: Any) -> Many:
    """What `ExtractJob.run(many=…)` needs to work on a cluster.

    Parameters
    ----------
    address : of the cluster; "auto" finds the one that this machine is part of, "local" starts one
        here. Ignored where Ray is in use already.
    options : for `ray.init`.

    Raises
    ------
    ImportError
        If Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"--ray needs ray: pip install 'mme-targets[ray]' ({error})") from None

    def many(job: ExtractJob, store: Store, todo: list[Item]) -> Iterator[Record]:
        if not todo:
            return
        if not ray.is_initialized():
            # Where the package is a checkout, workers find it as this process did.
            paths = [os.fspath(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
            place = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}}
            ray.init(address=address, runtime_env=place, log_to_driver=False, **options)
        gpu = job.device.startswith("cuda")
        listed = ray.data.from_items(
            [item._asdict() for item in todo], override_num_blocks=min(len(todo), PARTS)
        )

        def settle(row: dict[str, Any]) -> dict[str, Any]:
            return asdict(job.settle(store, Item(row["name"], row["path"])))

        done = listed.map(settle, num_cpus=0 if gpu else 1, num_gpus=1 if gpu else 0)
        for row in done.iter_rows():
            yield Record(**row)

    return many
