"""HOG, HOF, MBH and HOG in windows along tracks (Eq. 5, Appendix C), beside other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import mme_targets

from . import peers
from .harness import Case, Peer, Setting, Work, close, ends, smooth_flow, textured_frames

SOBEL = 8
"""Lane operations a pixel of the separable Sobel: 4 in a row, 4 down a column."""
VOTE = 4 + 3 + 8 + 8 + 9
"""Then: magnitude (2 products, sum, root), signs, 8 products and 8 comparisons, 9 masked sums."""
ATAN_PEER = 20.0
"""Of other libraries' float32 sums and rounding, in multiples of the tests' tolerance."""
NOTES = {
    ("hog", "cpu"): "three quarters of the time are votes, a quarter the row sums of Sobel; eight "
    "lanes where AVX-512 has sixteen, and probably the square root, counted as one operation",
    ("trajectory_hog", "cpu"): "every window computes its own Sobel, in rows of eight that hardly "
    "fill the lanes; not profiled further",
}
"""Operation and backend -> what keeps it from its floor."""


def cases(setting: Setting) -> Iterator[Case]:
    """Every case of this stage."""
    count = setting.pairs
    for batch in setting.batches:
        frames = textured_frames(batch, count, setting.side, setting.device)
        truth = mme_targets.hog(ends(frames), backend="reference")
        for floor in setting.floors:
            yield _hog(setting, frames, floor, truth)
        flow = smooth_flow(batch, count, setting.side, setting.device)
        for operation in ("hof", "mbh"):
            yield from _of_flow(setting, flow, operation)
        yield from _windows(setting, frames, flow)


def _hog(setting: Setting, frames: torch.Tensor, floor: str, truth: torch.Tensor) -> Case:
    def check(result: torch.Tensor) -> None:
        close(ends(result), truth, "hog")

    return Case(
        stage="descriptors",
        operation="hog",
        name=setting.label(len(frames), f"HOG of {frames.shape[1]} RGB frames"),
        floor=floor,
        run=lambda: mme_targets.hog(frames, backend=floor),
        check=check,
        peers=tuple(_hog_peers(setting, frames)),
        work=_work(frames, truth.numel() / len(ends(frames)) * len(frames), SOBEL + VOTE),
        note=NOTES.get(("hog", floor), ""),
    )


def _hog_peers(setting: Setting, frames: torch.Tensor) -> Iterator[Peer]:
    on_gpu = setting.device.type == "cuda"
    yield Peer(
        "torch ops (conv2d, atan2, scatter_add, pool)",
        lambda: peers.torch_hog(frames),
        _same,
        required=None if on_gpu else 20.0,
    )
    yield Peer(
        "torch ops (scatter_add straight into cells)",
        lambda: peers.torch_hog_scatter(frames),
        _same,
    )
    if on_gpu:
        return
    array = frames[0].numpy()
    yield Peer("OpenCV + NumPy", lambda: peers.opencv_hog(array), _nearly)
    count = len(array)
    yield Peer(
        f"scikit-image (central differences; one frame, x {count})",
        lambda: peers.skimage_hog(array[0]),
        _same_cells,
        scale=float(count),
    )


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    close(ours, theirs, "hog", ATAN_PEER)


def _nearly(ours: torch.Tensor, theirs: Any) -> None:
    """CartToPolar's angle is good to 0.3 degrees: a few pixels vote for the next bin."""
    mine, other = ours[0].double(), torch.from_numpy(theirs).double()
    close(mine.sum(2), other.sum(2), "hog", 100.0)
    moved = float((mine - other).abs().sum() / mine.sum())
    assert moved < 0.04, f"{moved:.1%} of the magnitude lies in other bins"


def _same_cells(ours: torch.Tensor, theirs: Any) -> None:
    """Another gradient and norm, so only the layout can be compared."""
    expected = [*ours.shape[2:3], *ours.shape[4:], 1, 1, ours.shape[3]]
    assert list(theirs.shape) == expected, f"shape {theirs.shape}, expected {expected}"


def _of_flow(setting: Setting, flow: torch.Tensor, operation: str) -> Iterator[Case]:
    door: Callable[..., Any] = getattr(mme_targets, operation)
    truth = door(ends(flow), backend="reference")

    def peer() -> torch.Tensor:
        if operation == "hof":
            return peers.torch_histograms(flow[:, :, :1], flow[:, :, 1:])
        return peers.torch_histograms(*peers.torch_sobel(flow))

    for floor in setting.floors:
        yield Case(
            stage="descriptors",
            operation=operation,
            name=setting.label(len(flow), f"{operation.upper()} of {flow.shape[1]} flows"),
            floor=floor,
            run=lambda floor=floor: door(flow, backend=floor),
            check=lambda result: _most(ends(result), truth),
            peers=(Peer("torch ops (atan2, scatter_add, pool)", peer, _most),),
            work=_work(
                flow,
                truth.numel() / len(ends(flow)) * len(flow),
                VOTE / 2 if operation == "hof" else SOBEL + VOTE,
            ),
            note=NOTES.get((operation, floor), ""),
        )


def _most(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Float gradients can lie on a bin's edge: a thousandth of the values may differ by a vote."""
    own, other = ours.double(), theirs.double()
    far = (own - other).abs() > 2e-3 + 2e-5 * other.abs()
    share = float(far.double().mean())
    assert share <= 1e-3, f"{share:.2%} of the values differ"
    close(own.sum(3), other.sum(3), "hog", ATAN_PEER)


def _windows(setting: Setting, frames: torch.Tensor, flow: torch.Tensor) -> Iterator[Case]:
    length = 6
    count = frames.shape[1]
    steps = torch.arange(count // length * length).view(-1, length)
    tracks = mme_targets.trajectories(flow, steps=steps, backend=setting.floors[0])
    points = tracks.points
    times = steps.to(frames.device)
    truth = mme_targets.trajectory_hog(
        frames[:1], points[:1], steps, sampling="window", backend="reference"
    )
    flat = points.flatten(2, 3)

    def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
        close(ours.flatten(2, 3), theirs, "hog", ATAN_PEER)

    for floor in setting.floors:
        yield Case(
            stage="descriptors",
            operation="trajectory_hog",
            name=setting.label(len(frames), f"HOG in windows along tracks of {count} frames"),
            floor=floor,
            run=lambda floor=floor: mme_targets.trajectory_hog(
                frames, points, times, sampling="window", backend=floor
            ),
            check=lambda result: close(result[:1], truth, "hog"),
            peers=(
                Peer(
                    "torch ops (bin maps, box sums, gather)",
                    lambda: peers.torch_window_hog(frames, flat, times),
                    agree,
                ),
            ),
            work=Work(
                read=float(frames.numel() + points.numel() * 4),
                written=float(truth.numel() * len(frames) * 4),
                operations=float(truth.numel() // 9 * len(frames) * 64 * (SOBEL + VOTE)),
                how=f"frames and points once, histograms once; {SOBEL + VOTE} lane operations "
                "for each of a window's 64 pixels and channels",
            ),
            note=NOTES.get(("trajectory_hog", floor), ""),
        )


def _work(images: torch.Tensor, outputs: float, operations: float) -> Work:
    return Work(
        read=float(images.numel() * images.element_size()),
        written=float(outputs * 4),
        operations=float(images.numel() * operations),
        how=f"input once, histograms once; {operations:g} lane operations a value "
        "(Sobel, magnitude, edges of 9 bins, votes)",
    )
