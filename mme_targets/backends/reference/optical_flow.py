"""Dense optical flow between two frames (Appendix A) on the host: TV-L1 in NumPy, others by OpenCV.

The paper extracts TV-L1 (`tvl1.py` beside this file); the authors' released code runs Farneback by
default; DIS is there because it is faster still. All three work on grey images of values 0 to 255
and give the flow in px from the first frame to the second, channel 0 to the right and channel 1
down.

Nothing depends on the number of threads or on the batch that a pair is in: pairs are shared among
threads, each is solved by one thread with an OpenCV object of its own, and OpenCV's own threads are
off meanwhile (DIS would split the frame by their number, and a pool of theirs does not survive a
fork).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...config import Tvl1Config
from . import tvl1

Image = NDArray[Any]
Flow = NDArray[np.float32]
Pairs = Sequence[tuple[int, int]]
Progress = Callable[[int], object]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SMALLEST_SIDE = {"tvl1": 1, "farneback": 1, "dis": 48}
"""px; smaller frames are continued by their last row and column: DIS crashes on frames that do not
hold one patch of its coarsest level."""

FARNEBACK = (0.5, 5, 13, 10, 5, 1.1, 0)
"""Scale step, levels, window (px), iterations, neighbourhood (px), its σ (px), flags: the defaults
of OpenCV's CUDA version, which the authors' extractor uses."""


def opencv() -> Any:
    """OpenCV, imported when first needed.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "optical flow and camera motion need OpenCV: pip install opencv-contrib-python-headless"
        ) from error
    return cv2


def grey(frame: Image) -> Image:
    """RGB [3, H, W] or grey [1, H, W] of values 0 to 255 → grey [H, W] of the same dtype.

    Weights .299, .587, .114. uint8 is rounded to uint8; float32 is clamped to 0 to 255 and not
    rounded.
    """
    if frame.dtype != np.uint8:
        frame = np.clip(frame.astype(np.float32), 0, 255)
    if len(frame) == 1:
        return np.ascontiguousarray(frame[0])
    cv2 = opencv()
    image: Image = cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    return image


def rounded(image: Image) -> NDArray[np.uint8]:
    """A grey image as uint8, for the methods that take no other."""
    return image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)


def dense_flow(first: Image, second: Image, method: str, config: Tvl1Config) -> Flow:
    """Flow from one grey image to another, both [H, W] of values 0 to 255 → [2, H, W], px.

    Equal images give exactly zero (which Farneback alone would not).
    """
    height, width = first.shape
    if np.array_equal(first, second):
        return np.zeros((2, height, width), np.float32)
    side = SMALLEST_SIDE[method]
    below, right = max(0, side - height), max(0, side - width)
    if below or right:
        first, second = (
            np.pad(image, ((0, below), (0, right)), mode="edge") for image in (first, second)
        )
    flow = _SOLVERS[method](first, second, config)[:height, :width]
    return np.ascontiguousarray(flow.transpose(2, 0, 1))


def _tvl1(first: Image, second: Image, config: Tvl1Config) -> Flow:
    """TV-L1 in float64."""
    flow: Flow = tvl1.solve(first, second, config).astype(np.float32).transpose(1, 2, 0)
    return flow


def _farneback(first: Image, second: Image, config: Tvl1Config) -> Flow:
    """Farneback's polynomial expansion, as the authors' released code ran it."""
    flow: Flow = opencv().calcOpticalFlowFarneback(
        first.astype(np.float32), second.astype(np.float32), None, *FARNEBACK
    )
    return flow


def _dis(first: Image, second: Image, config: Tvl1Config) -> Flow:
    """Dense inverse search at OpenCV's "medium" preset, on images rounded to uint8."""
    cv2 = opencv()
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow: Flow = solver.calc(rounded(first), rounded(second), None)
    return flow


_SOLVERS = {"tvl1": _tvl1, "farneback": _farneback, "dis": _dis}


def optical_flow(
    frames: Image,
    pairs: Pairs,
    *,
    method: str,
    config: Tvl1Config,
    progress: Progress | None = None,
) -> Flow:
    """Flow of each pair of frames: [B, T, 3 or 1, H, W] → [B, P, 2, H, W], px, not clipped."""
    greys = grey_frames(frames, pairs)
    images = [(greys[b, pairs[p][0]], greys[b, pairs[p][1]]) for b, p in keys_of(frames, pairs)]
    flow = flow_of_images(images, method=method, config=config, progress=progress)
    return flow.reshape(len(frames), len(pairs), 2, *frames.shape[-2:])


def flow_of_images(
    images: Sequence[tuple[Image, Image]],
    *,
    method: str,
    config: Tvl1Config,
    progress: Progress | None = None,
) -> Flow:
    """Flow [N, 2, H, W] of N pairs of grey images [H, W] of one size."""
    keys = list(range(len(images)))
    flow = in_parallel(lambda k: dense_flow(*images[k], method, config), keys, progress)
    return np.stack([flow[k] for k in keys]) if keys else np.zeros((0, 2, 0, 0), np.float32)


def keys_of(frames: Image, pairs: Pairs) -> list[tuple[int, int]]:
    """(clip, pair) of every flow field to be computed."""
    return [(b, p) for b in range(len(frames)) for p in range(len(pairs))]


def grey_frames(frames: Image, pairs: Pairs) -> dict[tuple[int, int], Image]:
    """The grey image of every (clip, frame) that a pair names."""
    used = sorted({t for pair in pairs for t in pair})
    return {(b, t): grey(frames[b, t]) for b in range(len(frames)) for t in used}


def in_parallel(
    work: Callable[[K], V], keys: Sequence[K], progress: Progress | None = None
) -> dict[K, V]:
    """`work` of every key, by as many threads as torch may use.

    `progress` is called by the calling thread, with 1 for each key done. The first error stops what
    has not begun and is raised.
    """
    workers = min(len(keys), torch.get_num_threads())
    results: dict[K, V] = {}
    with _one_thread_each():
        if workers <= 1:
            for key in keys:
                results[key] = work(key)
                if progress is not None:
                    progress(1)
            return results
        with ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(work, key): key for key in keys}
            try:
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    if progress is not None:
                        progress(1)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return results


_lock = threading.Lock()
_entered = 0
_before = 1


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Switch OpenCV's own threads off, and on again when the last caller inside has left.

    Their number belongs to the whole process. It is set to 0, not 1: both mean no threads, but 1
    waits for the threads of OpenCV's pool to end, which in a forked child never happens.
    """
    global _entered, _before
    cv2 = opencv()
    with _lock:
        if _entered == 0:
            _before = cv2.getNumThreads()
            if _before > 1:
                cv2.setNumThreads(0)
        _entered += 1
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if _entered == 0 and _before > 1:
                cv2.setNumThreads(_before)
