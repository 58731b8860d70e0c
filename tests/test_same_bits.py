"""The cpu floor gives the same bits whatever memory held before and whichever thread works."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from floors import FAST, running, threads

from mme_targets import (
    ClipPlan,
    MotionTargets,
    TargetConfig,
    Tvl1Config,
    hof,
    hog,
    mbh,
    median_filter,
    optical_flow,
    patch_norm,
    trajectories,
    tvl1,
)
from mme_targets.ops.camera_motion import flow_and_camera
from mme_targets.store_codec import Layout, encode_rows

HERE = Path(__file__).resolve().parent
EVERYTHING = TargetConfig(
    frames=8, stride=2, length=3, size=32, camera_motion=False,
    targets=("pixel", "trajectory", "hog", "flow", "hof", "mbh"),
)  # fmt: skip
TINIEST = float(np.float32(1e-45))
"""The smallest of the denormal numbers, which some arithmetic takes for zero."""


def drifting(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Clips [B, T, 3, H, W] of smooth pictures that move far across their borders."""
    clips, count, height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    out = np.empty((clips, count, 3, height, width))
    for clip in out:
        waves, phases = rng.uniform(-0.5, 0.5, (6, 2)), rng.uniform(0, 6, (6, 3))
        speed = rng.uniform(-3, 3, 2)
        for t, frame in enumerate(clip):
            angle = [a * (x - speed[0] * t) + b * (y - speed[1] * t) for a, b in waves]
            frame[:] = np.sin(np.array(angle)[:, None] + phases[..., None, None]).sum(0) * 25 + 127
    return torch.from_numpy(out.clip(0, 255).astype(np.uint8))


def warped(rng: np.random.Generator, height: int, width: int) -> torch.Tensor:
    """Flow from where a start leaves a warp: shifts past every border, neighbours 0 or 1 apart."""
    shifts = rng.uniform(-40, 40, (300, 2, 1, 1))
    rough = rng.integers(0, 2, (300, 2, height, width)) * rng.integers(0, 2, (300, 1, 1, 1))
    initial = torch.from_numpy((shifts + rough).astype(np.float32))
    frames = drifting(rng, 1, 2, height, width)[0]
    first, second = (frame.expand(300, -1, -1, -1) for frame in frames)
    once = Tvl1Config(scales=1, warps=1, outer_iterations=1, inner_iterations=1)
    return tvl1(first, second, config=once, initial=initial)


def everything() -> Iterator[tuple[str, torch.Tensor]]:
    """What each stage gives, by a name."""
    rng = np.random.default_rng(7)
    small = drifting(rng, 6, len(ClipPlan.build(EVERYTHING).frames), 32, 32)
    for name, target in MotionTargets(EVERYTHING)(small).items():
        for part, values in zip(target._fields, target, strict=True):
            yield f"{name} {part}", values
    for height, width in [(32, 32), (33, 47), (16, 90), (1, 40), (75, 5)]:
        frames = drifting(rng, 4, 3, height, width)
        yield f"warp {height}x{width}", warped(rng, height, width)
        presets = {
            "default": Tvl1Config(),
            "gamma": Tvl1Config(gamma=0.02),
            "opencv": Tvl1Config.opencv_cuda(),
        }
        for name, config in presets.items():
            flow = optical_flow(frames, config=config, bound=None)
            yield f"flow {name} {height}x{width}", flow
            yield f"median {name} {height}x{width}", median_filter(flow)
        for sampling in ("nearest", "bilinear"):
            for part in trajectories(flow, length=2, grid=1, sampling=sampling):
                yield f"tracks {sampling} {height}x{width}", part
        if height == 1:
            continue
        even = (..., slice(height // 2 * 2), slice(width // 2 * 2))
        for binning in ("hard", "linear"):
            options = {"cell": 2, "binning": binning}
            yield f"hog {binning} {height}x{width}", hog(frames[even], **options)
            yield f"hof {binning} {height}x{width}", hof(flow[even], **options)
            yield f"mbh {binning} {height}x{width}", mbh(flow[even], **options)
    for detector in ("surf", "corners"):
        found = flow_and_camera(drifting(rng, 1, 3, 90, 107), detector=detector)
        yield f"flow less the camera's, {detector}", found.flow
        yield f"camera {detector}", found.camera.homographies
    values = torch.from_numpy(rng.normal(size=(2, 5, 3, 7)).astype(np.float32))
    for mode in ("patch", "coordinate"):
        yield f"norm {mode}", torch.cat([t.flatten() for t in patch_norm(values, mode=mode)])
    rows = np.cumsum(rng.integers(-30, 31, (14, 5, 7, 9, 2)), axis=1).astype(np.int16)
    tables, data = encode_rows(rows[4:], rows[:4], 4, Layout(1, 8, 0.125, 7, 9))
    yield "rows", torch.tensor([*tables.tobytes(), *b"".join(data)], dtype=torch.uint8)


def digests() -> dict[str, str]:
    """Of `everything`, on every instruction set of this processor, with one thread and with two."""
    found = {}
    for floor in FAST:
        for count in (1, 2):
            with running(floor), threads(count):
                for name, values in everything():
                    assert values.float().isfinite().all(), name
                    key = f"{floor}, threads {count}: {name}"
                    digest = hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()
                    found[key] = found.get(key, "") + digest
    return found


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("dirty") / "dirty.so"
    compiler = os.environ.get("CC", "gcc")
    command = [compiler, "-O2", "-shared", "-fPIC", HERE / "dirty_memory.c", "-o", library]
    subprocess.run(command, check=True)
    return library


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and glibc's names")
def test_what_memory_held(dirty: Path) -> None:
    """Zeros, NaN and the largest numbers: scratch memory is written before it is read."""
    results = []
    for byte in (0, 255, 127):
        environment = {**os.environ, "LD_PRELOAD": str(dirty), "DIRTY": str(byte)}
        command = [sys.executable, __file__]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    assert len(results[0]) > 100
    for other in results[1:]:
        assert [name for name, digest in results[0].items() if other[name] != digest] == []
    for name, digest in results[0].items():  # nor do threads matter
        assert digest == results[0][name.replace("threads 2", "threads 1")], name


def test_denormal_numbers_on_every_thread() -> None:
    """Flow is solved with denormal numbers taken for zero, by threads that it shares with others.

    In a process whose first work is one pair, whose rows are shared: it makes the threads.
    """
    code = f"""
import numpy as np, torch
from mme_targets import optical_flow, trajectories
torch.set_num_threads(2)
noise = np.random.default_rng(0).integers(0, 256, (2, 3, 256, 256), dtype=np.uint8)
optical_flow(noise)
flow = torch.full((4, 8, 2, 64, 64), {TINIEST * 1000!r})
for _ in range(200):
    moves = trajectories(flow).displacements
    assert (moves == flow[0, 0, 0, 0, 0]).all(), f"{{(moves == 0).sum()}} of {{moves.numel()}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    print(json.dumps(digests()))
