"""Trajectories (Eq. 2, 4, 6, 7) and the median filter, beside OpenCV + NumPy, torch and CuPy."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

import mme_targets
from mme_targets import Trajectories

from . import peers
from .harness import Case, Peer, Setting, Work, close, ends, smooth_flow

LENGTH, GRID, BOUND = 6, 8, 20.0
MEDIAN_OPERATIONS = 30
"""Minima and maxima of the network for one pixel on its own."""
ROW_OPERATIONS = 18
"""For one pixel of a whole map, whose sorted rows serve three pixels."""
NOTES = {
    "cpu": "flow is read at scattered lines: with all steps on one pair, which stays in the cache, "
    "the kernel takes 0.4 of its time; Python (checks, allocation) adds 0.1 ms a call, waking the "
    "second thread 0.05 ms",
}
MEDIAN_NOTES = {
    "cpu": "30 minima and maxima a pixel in eight lanes, at two a cycle about the time measured; "
    "sharing sorted rows through a buffer, and sixteen lanes, were tried and gave nothing",
}


def cases(setting: Setting) -> Iterator[Case]:
    """Every case of this stage."""
    for batch in setting.batches:
        flow = smooth_flow(batch, setting.pairs, setting.side, setting.device)
        tracks = mme_targets.trajectories(ends(flow), length=LENGTH, grid=GRID, backend="reference")
        for floor in setting.floors:
            yield _tracks(setting, flow, floor, tracks)
        filtered = mme_targets.median_filter(ends(flow), backend="reference")
        for floor in setting.floors:
            yield _median(setting, flow, floor, filtered)


def _tracks(setting: Setting, flow: torch.Tensor, floor: str, truth: Trajectories) -> Case:
    pairs, side = flow.shape[1], flow.shape[-1]
    at = np.arange(GRID / 2, side, GRID, dtype=np.float32)
    seeds = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)
    steps = np.arange(pairs // LENGTH * LENGTH).reshape(-1, LENGTH)

    def run() -> Trajectories:
        return mme_targets.trajectories(flow, length=LENGTH, grid=GRID, backend=floor)

    def check(result: Trajectories) -> None:
        close(ends(result.points), truth.points, "points")
        close(ends(result.displacements), truth.displacements, "displacements")
        assert torch.equal(ends(result.visible), truth.visible), "visibility differs"

    def agree(ours: Trajectories, theirs: tuple[Any, Any, Any]) -> None:
        for own, other, what in zip(ours, theirs, ("points", "displacements"), strict=False):
            close(own.flatten(), torch.as_tensor(other).flatten(), what)
        other = torch.as_tensor(theirs[2]).flatten()
        assert torch.equal(ours.visible.flatten(), other), "visibility differs"

    return Case(
        stage="trajectories",
        operation="trajectories",
        name=setting.label(len(flow), f"trajectories through {pairs} flows"),
        floor=floor,
        run=run,
        check=check,
        peers=tuple(_track_peers(setting, flow, seeds, steps, agree)),
        work=_track_work(flow, truth, steps),
        note=NOTES.get(floor, ""),
    )


def _track_peers(
    setting: Setting, flow: torch.Tensor, seeds: Any, steps: Any, agree: Any
) -> Iterator[Peer]:
    points, rows = (torch.from_numpy(a).to(flow.device) for a in (seeds, steps))
    on_gpu = setting.device.type == "cuda"
    if on_gpu and find_spec("cupy"):
        import cupy

        planes, at, pair = (cupy.from_dlpack(t) for t in (flow, points, rows))
        yield Peer("CuPy", lambda: peers.cupy_tracks(planes, at, pair, BOUND), _on_cupy(agree))
    if not on_gpu:
        array = flow[0].numpy()
        threads = torch.get_num_threads()
        yield Peer(
            "OpenCV + NumPy",
            lambda: peers.opencv_tracks(array, seeds, steps, BOUND),
            agree,
            required=12.0,
        )
        if threads > 1:
            yield Peer(
                f"OpenCV + NumPy, medianBlur in {threads} threads",
                lambda: peers.opencv_tracks(array, seeds, steps, BOUND, threads),
                agree,
            )
    yield Peer(
        "torch ops (unfold-median)",
        lambda: peers.torch_tracks(flow, points, rows, BOUND),
        agree,
        required=None if on_gpu else 200.0,
    )
    yield Peer(
        "torch ops (min/max network)",
        lambda: peers.torch_tracks(flow, points, rows, BOUND, peers.network_median),
        agree,
    )
    yield Peer(
        "torch ops (windows of the tracks alone)",
        lambda: peers.torch_window_tracks(flow, points, rows, BOUND),
        agree,
    )
    if not on_gpu:
        yield Peer(
            "reference floor",
            lambda: mme_targets.trajectories(flow, length=LENGTH, grid=GRID, backend="reference"),
            lambda ours, theirs: agree(ours, tuple(theirs)),
        )


def _on_cupy(agree: Any) -> Any:
    def compare(ours: Trajectories, theirs: tuple[Any, Any, Any]) -> None:
        points, moves, visible = theirs
        whole = torch.from_dlpack(visible.astype("uint8")).bool()  # older DLPacks lack booleans
        agree(ours, (torch.from_dlpack(points), torch.from_dlpack(moves), whole))

    return compare


def _track_work(flow: torch.Tensor, truth: Trajectories, steps: Any) -> Work:
    """Count what these very tracks touch: each memory line once, however many tracks share it.

    Counted on the clips at both ends of the batch, and taken for all.
    """
    clips = len(flow) / len(truth.points)
    line = 32 if flow.device.type == "cuda" else 64
    side, lane = flow.shape[-1], line // 4
    points = truth.points.cpu()[..., :-1, :]  # [B, S, Gy, Gx, L, 2]
    pixel = (points + 0.5).floor().long().clamp_(0, side - 1)
    pair = torch.from_numpy(np.asarray(steps))[:, None, None, :].expand(points.shape[:-1])
    clip = torch.arange(len(points))[:, None, None, None, None]
    plane = (clip * flow.shape[1] + pair) * 2 * side * side
    touched = []
    for dy in (-1, 0, 1):
        row = plane + (pixel[..., 1] + dy).clamp(0, side - 1) * side
        # The two ends of three neighbours: at most two lines.
        ends_ = [(pixel[..., 0] + dx).clamp(0, side - 1) for dx in (-1, 1)]
        touched += [(row + x) // lane for x in ends_]
    lines = torch.stack(touched).flatten().unique().numel() * 2  # both components alike
    samples = points[..., 0].numel() * 2
    written = sum(t.numel() * t.element_size() for t in truth)
    return Work(
        read=clips * lines * line,
        written=clips * written,
        operations=clips * samples * MEDIAN_OPERATIONS,
        how=f"{line}-byte lines of flow that the tracks touch, each once; outputs once; "
        f"{MEDIAN_OPERATIONS} minima and maxima for each value read",
    )


def _median(setting: Setting, flow: torch.Tensor, floor: str, truth: torch.Tensor) -> Case:
    def check(result: torch.Tensor) -> None:
        close(ends(result), truth, "median")

    def agree(ours: torch.Tensor, theirs: Any) -> None:
        close(ours.flatten(), torch.as_tensor(theirs).flatten(), "median")

    return Case(
        stage="trajectories",
        operation="median_filter",
        name=setting.label(len(flow), f"median of {flow.shape[1]} flows"),
        floor=floor,
        run=lambda: mme_targets.median_filter(flow, backend=floor),
        check=check,
        peers=tuple(_median_peers(setting, flow, agree)),
        work=Work(
            read=float(flow.numel() * 4),
            written=float(flow.numel() * 4),
            operations=float(flow.numel() * ROW_OPERATIONS),
            how=f"flow once in, once out; {ROW_OPERATIONS} minima and maxima a value, "
            "each sorted row serving three pixels",
        ),
        note=MEDIAN_NOTES.get(floor, ""),
    )


def _median_peers(setting: Setting, flow: torch.Tensor, agree: Any) -> Iterator[Peer]:
    if setting.device.type == "cuda" and find_spec("cupy"):
        import cupy
        from cupyx.scipy.ndimage import median_filter

        array = cupy.from_dlpack(flow)
        yield Peer(
            "CuPy",
            lambda: median_filter(array, size=(1, 1, 1, 3, 3), mode="nearest"),
            lambda ours, theirs: agree(ours, torch.from_dlpack(theirs)),
        )
    if setting.device.type == "cpu":
        import cv2

        planes = flow.flatten(0, 2).numpy()
        out = np.empty_like(planes)

        def blur() -> Any:
            for plane, target in zip(planes, out, strict=True):
                cv2.medianBlur(plane, 3, dst=target)
            return out

        yield Peer("OpenCV (medianBlur)", blur, agree)
    yield Peer("torch ops (min/max network)", lambda: peers.network_median(flow), agree)
