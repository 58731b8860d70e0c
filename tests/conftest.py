"""Fixtures, poisoned memory and the one tolerance table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Read when Triton kernels are defined, so set before anything imports them.
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

TOLERANCE = {
    # what: (absolute, relative) of a floor in float32 against the reference in float64
    "points": (2e-4, 1e-6),  # px: up to 32 float32 additions at positions up to 1e3
    "displacements": (1e-5, 1e-6),  # px: a median copies, bilinear rounds thrice
    "median": (0.0, 0.0),  # a median selects, it does not compute
    "hog": (2e-3, 2e-6),  # grey levels x px: 64 sums of magnitudes up to 1443
    "hog_l2": (2e-6, 2e-6),
    "patch_norm": (2e-5, 2e-5),  # float32 sums of up to 2592 values
}
FLIPS = 1e-3
"""Share of decisions (rounded positions, float orientation bins) that may flip at an edge."""


def pytest_configure(config: pytest.Config) -> None:
    """Make unwritten memory visible: `torch.empty` is filled with NaN (or the largest integer)."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests skip where there is no GPU, unless one is promised."""
    if torch.cuda.is_available() or os.environ.get("MME_REQUIRE_GPU") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real inputs beside the project."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{path} is missing, and CI needs it")
        pytest.skip(f"{path} is missing: the real inputs are not here")
    return path


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers keyed by the test's name, so that order does not matter."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run with one thread, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA kernels, compiled to run on the host."""
    import cuda_emulator  # only pytest has this folder on its path; benchmarks read this file too

    return cuda_emulator.build(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="session")
def kernels(library: Path) -> ModuleType:
    """The same as a module like `mme_targets._cuda`."""
    import cuda_emulator

    return cuda_emulator.load(library)


@pytest.fixture(params=["ascending", "descending"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads run in either order: a missing barrier would show in one of them."""
    monkeypatch.setenv("MME_EMULATOR_REVERSE", str(int(request.param == "descending")))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Compare within the tolerance table."""
    absolute, relative = TOLERANCE[what]
    torch.testing.assert_close(
        actual.double(), expected.double(), atol=absolute, rtol=relative, equal_nan=False
    )


@pytest.fixture(scope="session")
def store_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the small videos that stores are tested with."""
    from stores import COUNTS

    from mme_targets.files import write_video
    from mme_targets.synthetic import render_scene

    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, count) in enumerate(COUNTS.items()):
        write_video(folder / name, render_scene(count, (48, 64), seed=seed).frames)
    return folder


@pytest.fixture(scope="session")
def store_items(store_videos: Path) -> list[Any]:
    """The list of them."""
    from stores import COUNTS

    from mme_targets.store_job import Item

    return [Item(name, str(store_videos / name)) for name in COUNTS]


@pytest.fixture(scope="session")
def store_whole(store_items: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of all of them, made in one go."""
    from stores import CONFIG

    from mme_targets.store_job import ExtractJob

    out = tmp_path_factory.mktemp("whole") / "store"
    ExtractJob(out, CONFIG, store_items).run()
    return out
