"""A store of tracks: its size beside the released pickles and JPEG flow, and how fast it is read.

    python -m benchmarks.bench_store STORE [--seconds S] [--only NAME] [--jpeg]

The pickles are emulated from the store's own tracks as the released code lays them out: `traj_feat`
[2L, N, H/8, W/8] and `traj_type`, pickled and gzipped at level 9. At 1/8 px int8 saturates at
±16 px; int16 holds what the store holds. JPEG (`--jpeg`; videos must be named by their path) is of
dense TV-L1 flow with camera motion removed, x and y apart, ±20 px as bytes, quality 95.

Reading is that of clips of 8 starts, 8 frames apart, at random places of random videos, each opened
anew, by two processes with one thread each.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import cv2
import numpy as np
import torch

import mme_targets
from mme_targets.store import Record, Store
from mme_targets.store_extract import read_video

STARTS, APART = 8, 8


def pickled(moves: np.ndarray, valid: np.ndarray) -> int:
    """Bytes of [N, L, Gy, Gx, 2] as the released code stores tracks."""
    steps = moves.transpose(4, 1, 0, 2, 3)  # x of all steps, then y
    laid = np.ascontiguousarray(steps).reshape(-1, *steps.shape[2:])
    return len(gzip.compress(pickle.dumps({"traj_feat": laid, "traj_type": valid}), 9))


def sizes(store: Store, record: Record) -> dict[str, float]:
    """KB a second of video, in each form."""
    with store.entry(record.name) as entry:
        found = entry.tracks(range(entry.frames))
        valid = (found.in_view == entry.length).astype(np.int8)
        whole = found.displacements
        pixels = np.trunc((whole * entry.step).clip(-20, 20)).astype(np.int8)
    second = record.frames / record.fps * 1000
    return {
        "store": record.bytes / second,
        "int8 at the store's step": pickled(whole.clip(-128, 127).astype(np.int8), valid) / second,
        "int16 at the store's step": pickled(whole, valid) / second,
        "int8 px": pickled(pixels, valid) / second,
    }


def jpeg(record: Record) -> float:
    """KB a second of video, of dense flow as two pictures a pair."""
    flows = 0
    last = None
    for block in read_video(record.name).blocks:
        frames = block if last is None else torch.cat([last, block])
        last = block[-1:]
        flow = mme_targets.optical_flow(frames, camera_motion=True)
        levels = ((flow + 20) * (255 / 40)).round().clamp(0, 255).to(torch.uint8).numpy()
        for plane in levels.reshape(-1, *levels.shape[-2:]):
            flows += len(cv2.imencode(".jpg", plane, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
    return flows / (record.frames / record.fps * 1000)


def read_clips(path: str, only: str, seed: int, seconds: float) -> tuple[float, float]:
    """Clips that one process reads a second, and a second of its CPU time."""
    store = Store(path)
    videos = [r for r in store.index() if r.done and r.frames > STARTS * APART and only in r.name]
    if not videos:
        raise SystemExit(f"no video of more than {STARTS * APART} frames has {only!r} in its name")
    rng = np.random.default_rng(seed)
    for record in videos:  # warm
        with store.entry(record.name) as entry:
            entry.tracks(range(entry.frames), in_view=False)
    count, begun, used = 0, time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - begun) < seconds:
        record = videos[int(rng.integers(len(videos)))]
        first = int(rng.integers(record.frames - (STARTS - 1) * APART))
        with store.entry(record.name) as entry:
            entry.tracks(range(first, first + STARTS * APART, APART), in_view=False)
        count += 1
    return count / spent, count / (time.process_time() - used)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", default="", help="of these videos alone, by their name")
    parser.add_argument("--jpeg", action="store_true", help="compute dense flow as well")
    args = parser.parse_args()
    store = Store(args.store)
    print("kB per second of video, and how much larger than the store")
    for record in store.index():
        if record.done and args.only in record.name:
            found = sizes(store, record)
            if args.jpeg:
                found["flow as JPEG"] = jpeg(record)
            held = found.pop("store")
            others = ", ".join(f"{k} {v:.1f} ({v / held:.2f}x)" for k, v in found.items())
            print(f"  {record.name} {record.width}x{record.height}: {held:.1f}; pickles: {others}")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        runs = pool.starmap(
            read_clips,
            [(os.fspath(args.store), args.only, seed, args.seconds) for seed in range(2)],
        )
    wall, busy = (sum(rates) for rates in zip(*runs, strict=True))
    print(f"clips read by 2 processes: {wall:.0f}/s; were both cores theirs alone: {busy:.0f}/s")


if __name__ == "__main__":
    main()
