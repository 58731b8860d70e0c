"""The loader's workers: how many, how they fail, and that none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_data import RECIPE, Videos, assert_same, changed

from mme_model.data import ClipLoader, clip_loader, worker_count
from mme_model.loading import leave_cores
from mme_targets.video import VideoError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [worker_count(n) for n in (-1, 0, 1, 40)] == [15, 0, 1, 40]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count(-1) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert worker_count(-1) == 1


def test_a_trainer_on_a_cpu_leaves_cores_to_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert worker_count(-1, computing=True) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert worker_count(-1, computing=True) == 2
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with leave_cores(2, torch.device("cpu")):
        assert torch.get_num_threads() == 1
    with leave_cores(2, torch.device("cuda")):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_batch_larger_than_the_data_set() -> None:
    with pytest.raises(ValueError, match="batch_size is 4, but there are only 3 videos"):
        clip_loader(RECIPE, Videos(3), device="cpu", steps=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_come_out_of_a_worker_as_they_are(workers: int) -> None:
    source = Videos(4)
    source.broken = {i: VideoError(f"video {i} is broken") for i in range(4)}
    loader = clip_loader(changed(clips={"workers": workers}), source, device="cpu", steps=1)
    with pytest.raises(VideoError, match=r"^4 videos in a row cannot be read: [^\n]*$"):
        next(iter(loader))


class Watched(Videos):
    """Tells which process reads, with how many threads, and what an interrupt does there."""

    def read(self, index: int, indices: Sequence[int]) -> torch.Tensor:
        import cv2

        frames = super().read(index, indices)
        facts = [os.getpid() != self.parent, torch.get_num_threads(), cv2.getNumThreads()]
        facts.append(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
        frames[:, :, :4, :4] = (
            torch.tensor(facts).view(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
        )
        return frames


def test_a_worker_keeps_to_one_thread() -> None:
    source = Watched(4, size=(32, 32))
    source.parent = os.getpid()
    recipe = changed(clips={"workers": 1, "crop": "center", "flip": False})
    [batch] = clip_loader(recipe, source, device="cpu", steps=1)
    assert torch.equal(batch.rgb[0, 0, 0, :4:2, :4:2], torch.ones(2, 2, dtype=torch.uint8))


ORPHANS = """
import os, signal, sys, threading
sys.path.insert(0, "tests")
from test_data import RECIPE, Videos, changed
from mme_model.data import clip_loader

class Stuck(Videos):
    def read(self, index, indices):
        if len(self.reads) == 4:  # a worker's first batch is done; now one that never ends
            threading.Event().wait()
        return super().read(index, indices)

recipe = changed(clips={"workers": 2})
batches = iter(clip_loader(recipe, Stuck(24), device="cuda", steps=6))
next(batches)
print("ready", flush=True)
signal.pause()
"""


def test_no_worker_outlives_a_killed_parent() -> None:
    """All processes hold one end of a pipe; the other end reads its end once they are gone."""
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        pass_fds=[write],
    ) as run:
        os.close(write)
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == b"ready\n"
            run.kill()
            assert select.select([read], [], [], 20)[0], "a worker still lives"
            assert os.read(read, 1) == b""
        finally:
            run.kill()
            os.close(read)


def test_a_loader_that_is_left_early_ends_its_workers() -> None:
    """Started again it begins anew."""
    loader = clip_loader(changed(clips={"workers": 2}), Videos(), device="cpu", steps=20)
    assert isinstance(loader, ClipLoader)
    firsts = []
    for _ in range(2):
        for batch in loader:
            firsts.append(batch)
            break
    assert_same(*firsts)
    assert multiprocessing.active_children() == []
