"""Optical flow: against bare OpenCV, known motion and Middlebury; shapes, threads, bad input."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from mme_targets.config import Tvl1Config
from mme_targets.ops.camera_motion import flow_and_camera
from mme_targets.ops.optical_flow import METHODS, optical_flow, tvl1

FAST = Tvl1Config(warps=2, inner_iterations=10, outer_iterations=2)
SHIFT = (3.0, -2.0)
UNTRAINED = tuple(method for method in METHODS if method != "raft")  # test_raft.py has that one


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth random RGB image [H, W, 3] with structure at several sizes."""
    noise = [
        s * cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), s) for s in (1.5, 3, 6)
    ]
    total = np.sum(noise, axis=0)
    return np.clip(128 + 45 * total / total.std(), 0, 255).astype(np.uint8)


def moving(rng: np.random.Generator, frames: int, height: int = 48, width: int = 56) -> np.ndarray:
    """A texture that moves by SHIFT px a frame, [T, 3, H, W] uint8."""
    dx, dy = (int(v) for v in SHIFT)
    room = 4 * frames
    big = texture(rng, height + 2 * room, width + 2 * room)
    views = [
        big[room - t * dy : room - t * dy + height, room - t * dx : room - t * dx + width]
        for t in range(frames)
    ]
    return np.ascontiguousarray(np.stack(views).transpose(0, 3, 1, 2))


def grey(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)


# Right


def test_farneback_and_dis_are_opencvs(rng: np.random.Generator) -> None:
    clip = moving(rng, 2, 64, 80)
    one, two = grey(clip[0]), grey(clip[1])
    farneback = cv2.calcOpticalFlowFarneback(one, two, None, 0.5, 5, 13, 10, 5, 1.1, 0)
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(one, two, None)
    for method, expected in (("farneback", farneback), ("dis", dis)):
        flow = optical_flow(clip, method=method)
        assert np.array_equal(flow[0], expected.transpose(2, 0, 1))


@pytest.mark.parametrize("method", UNTRAINED)
def test_translation_is_recovered(rng: np.random.Generator, method: str) -> None:
    flow = optical_flow(moving(rng, 2, 80, 96), method=method)
    inner = flow[0][:, 12:-12, 12:-12]
    error = np.linalg.norm(inner - np.array(SHIFT).reshape(2, 1, 1), axis=0)
    assert np.median(error) < 0.05
    assert np.percentile(error, 95) < 0.3
    back = optical_flow(moving(rng, 2, 80, 96), method=method, pairs=[(1, 0)])
    assert np.allclose(np.median(back[0], axis=(1, 2)), -np.array(SHIFT), atol=0.05)


@pytest.mark.parametrize("method", UNTRAINED)
def test_equal_frames_give_exactly_zero(rng: np.random.Generator, method: str) -> None:
    frame = texture(rng, 50, 60).transpose(2, 0, 1)
    clip = np.stack([frame, frame, np.zeros_like(frame), np.zeros_like(frame)])
    flow = optical_flow(clip, method=method, pairs=[(0, 1), (0, 0), (2, 3)], config=FAST)
    assert not flow.any()


def test_bound_clips_and_none_does_not(rng: np.random.Generator) -> None:
    clip = moving(rng, 2)
    raw = optical_flow(clip, bound=None, config=FAST)
    assert np.abs(raw).max() > 2.5
    assert np.array_equal(optical_flow(clip, bound=2.5, config=FAST), np.clip(raw, -2.5, 2.5))
    assert np.array_equal(tvl1(clip[0], clip[1], config=FAST), raw[0])
    far = np.roll(clip, 30, axis=-1)[1:]
    far = np.concatenate([clip[:1], far])
    assert np.abs(optical_flow(far, config=FAST)).max() <= 20


# Same kind out, same result whatever the batch


def test_kind_batch_and_pairs(rng: np.random.Generator) -> None:
    clips = np.stack([moving(rng, 4), moving(rng, 4)])
    flow = optical_flow(clips, config=FAST)
    assert isinstance(flow, np.ndarray)
    assert flow.shape == (2, 3, 2, 48, 56)
    assert flow.dtype == np.float32

    alone = optical_flow(clips[1], config=FAST)
    assert alone.shape == (3, 2, 48, 56)
    assert np.array_equal(alone, flow[1])

    some = optical_flow(clips, pairs=np.array([[2, 3], [0, 1]]), config=FAST)
    assert np.array_equal(some, flow[:, [2, 0]])

    strided = torch.from_numpy(clips).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    torched = optical_flow(strided, pairs=torch.tensor([[0, 1]]), config=FAST)
    assert isinstance(torched, torch.Tensor)
    assert torched.dtype == torch.float32
    assert np.array_equal(torched.numpy(), flow[:, :1])

    pair = tvl1(torch.from_numpy(clips[:, 0]), torch.from_numpy(clips[:, 1]), config=FAST)
    assert np.array_equal(pair.numpy(), optical_flow(clips, bound=None, config=FAST)[:, 0])


def test_grey_images_and_floats(rng: np.random.Generator) -> None:
    clip = moving(rng, 2)
    greys = [grey(frame)[None] for frame in clip]
    flow = tvl1(clip[0], clip[1], config=FAST)
    assert np.array_equal(tvl1(*greys, config=FAST), flow)
    # Of floats OpenCV takes 0 to 1 and multiplies by 255, which rounds; so does not the grey level.
    floats = optical_flow(clip.astype(np.float32), bound=None, config=FAST)
    assert np.median(np.abs(floats[0] - flow)) < 0.02
    beyond = np.where(clip == 255, 300, clip.astype(np.float32)).astype(np.float32)
    beyond[clip == 0] = -40
    assert (beyond != clip).any()
    assert np.array_equal(optical_flow(beyond, bound=None, config=FAST), floats)


@pytest.mark.parametrize(
    ("shape", "expected"), [((0, 3, 3, 20, 20), (0, 2)), ((1, 3, 20, 20), (0,))]
)
def test_nothing_to_do(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    flow = optical_flow(torch.zeros(shape, dtype=torch.uint8))
    assert flow.shape == (*expected, 2, 20, 20)
    assert optical_flow(torch.zeros(2, 3, 20, 20, dtype=torch.uint8), pairs=[]).shape[0] == 0


@pytest.mark.parametrize("method", UNTRAINED)
def test_threads_and_runs_do_not_matter(rng: np.random.Generator, method: str) -> None:
    clip = moving(rng, 4, 64, 72)
    clip[2] = rng.integers(0, 256, clip[2].shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads, opencvs in ((1, 1), (2, 2), (3, 4)):
            torch.set_num_threads(threads)
            cv2.setNumThreads(opencvs)
            results.append(optical_flow(clip, method=method, config=FAST))
    finally:
        torch.set_num_threads(before)
        cv2.setNumThreads(before)
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_small_frames_leave_no_trace(rng: np.random.Generator) -> None:
    """OpenCV's solver forgets its upper levels on a small frame; the next pair must have them."""
    clip, small = moving(rng, 2, 96, 96), moving(rng, 2, 12, 12)
    before = tvl1(clip[0], clip[1], config=FAST)
    tvl1(small[0], small[1], config=FAST)
    assert np.array_equal(tvl1(clip[0], clip[1], config=FAST), before)


def test_progress_and_opencvs_threads_come_back(rng: np.random.Generator) -> None:
    clip = moving(rng, 4)
    threads, done = cv2.getNumThreads(), []
    optical_flow(clip, config=FAST, progress=done.append)
    assert done == [1, 1, 1]
    assert cv2.getNumThreads() == threads

    def stop(_: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        optical_flow(clip, config=FAST, progress=stop)
    assert cv2.getNumThreads() == threads


def _in_child(clip: np.ndarray, queue: multiprocessing.SimpleQueue) -> None:
    queue.put(optical_flow(clip, config=FAST))


def test_a_forked_process_may_use_it(rng: np.random.Generator) -> None:
    clip = moving(rng, 3)
    expected = optical_flow(clip, config=FAST)
    cv2.optflow.DualTVL1OpticalFlow_create().calc(grey(clip[0]), grey(clip[1]), None)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(clip, queue))
    child.start()
    child.join(30)
    finished = child.exitcode
    child.kill()
    assert finished == 0
    assert np.array_equal(queue.get(), expected)


def test_camera_motion_is_flow_and_cameras(rng: np.random.Generator) -> None:
    clip = moving(rng, 2, 64, 72)
    flow = optical_flow(clip, camera_motion=True, config=FAST, detector="orb", seed=3, bound=2.0)
    both = flow_and_camera(clip, config=FAST, detector="orb", seed=3, bound=2.0)
    assert np.array_equal(flow, both.flow)
    assert bool(both.camera.ok[0])


@pytest.mark.gpu
def test_cuda_tensors_come_back_on_their_device(rng: np.random.Generator) -> None:
    clip = torch.from_numpy(moving(rng, 3))
    flow = optical_flow(clip.cuda(), config=FAST)
    assert flow.is_cuda
    assert torch.equal(flow.cpu(), optical_flow(clip, config=FAST))


# Small, odd and bad input


@pytest.mark.parametrize("method", UNTRAINED)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (7, 9), (15, 40), (17, 150)])
def test_tiny_frames(rng: np.random.Generator, method: str, size: tuple[int, int]) -> None:
    clip = rng.integers(0, 256, (2, 3, *size), dtype=np.uint8)
    flow = optical_flow(clip, method=method, bound=None, config=FAST)
    assert flow.shape == (1, 2, *size)
    assert np.isfinite(flow).all()
    if method == "tvl1" and size[0] == 1:
        assert not flow[:, 1].any()  # one row says nothing of motion across it
    assert np.array_equal(flow, optical_flow(clip, method=method, bound=None, config=FAST))


U8 = torch.zeros(2, 3, 20, 24, dtype=torch.uint8)
NAN = torch.full((2, 3, 20, 24), torch.nan)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"frames": U8[0]}, ValueError, "frames has shape"),
        ({"frames": U8[:, :2]}, ValueError, "frames .* 2 channels"),
        ({"frames": U8[..., :0]}, ValueError, "frames .* a pixel"),
        ({"frames": U8.int()}, TypeError, "frames has dtype int32"),
        ({"frames": U8.tolist()}, TypeError, "frames is a"),
        ({"frames": NAN}, ValueError, "frames .* not finite"),
        ({"method": "pwc"}, ValueError, "method is 'pwc'"),
        ({"method": "raft"}, ValueError, "weights"),
        ({"pairs": [(0, 2)]}, ValueError, "pairs names frame 2"),
        ({"pairs": [(-1, 0)]}, ValueError, "pairs names frame -1"),
        ({"pairs": [0, 1]}, ValueError, r"pairs has shape \[2\]"),
        ({"pairs": [(0, 1), (0,)]}, TypeError, "pairs is"),
        ({"pairs": [(0.0, 1.0)]}, TypeError, "pairs is"),
        ({"bound": 0}, ValueError, "bound is 0"),
        ({"bound": float("nan")}, ValueError, "bound is nan"),
        ({"config": {"tau": 0.1}}, TypeError, "config is a dict"),
        ({"detector": "star"}, ValueError, "detector is 'star'"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 0.5}, TypeError, "seed is 0.5"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' cannot run (tvl1|camera_motion) on cpu"),
        ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
    ],
)
@pytest.mark.parametrize("camera_motion", [False, True])
def test_errors_name_the_argument(
    arguments: dict[str, object], error: type[Exception], message: str, camera_motion: bool
) -> None:
    with pytest.raises(error, match=message):
        optical_flow(**{"frames": U8, "camera_motion": camera_motion, **arguments})


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (U8[0, 0], U8[1, 0], ValueError, "first has shape"),
        (U8[0], U8[1, :, :10], ValueError, "second has shape"),
        (U8[0], U8[1].float(), ValueError, "second has dtype float32"),
        (U8[0, :2], U8[1, :2], ValueError, "first .* 2 channels"),
        (U8[0].float(), NAN[1], ValueError, "second .* not finite"),
    ],
)
def test_tvl1_errors_name_the_argument(
    first: torch.Tensor, second: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tvl1(first, second)


def test_missing_opencv_is_named(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    clip = moving(rng, 2)
    expected = optical_flow(clip, config=FAST)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="opencv-contrib-python-headless"):
        optical_flow(clip, method="dis")
    assert np.array_equal(optical_flow(clip, config=FAST, backend="cpu"), expected)  # needs none


def test_opencv_is_imported_when_needed() -> None:
    code = "import sys, mme_targets.ops.camera_motion; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
