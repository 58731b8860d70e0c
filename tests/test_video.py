"""Decoding: frame i is the i-th of a full sequential decode, whatever the file."""

from __future__ import annotations

import gc
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch

from mme_targets import demux
from mme_targets.config import TargetConfig
from mme_targets.files import write_video
from mme_targets.plan import ClipPlan
from mme_targets.video import VideoError, _picture, decode, iter_clips, probe

pytestmark = pytest.mark.usefixtures("one_thread")

SOUND = {
    # name: frames, fps, displayed width and height, rotation
    "kinetics_340x256.mp4": (280, 28.0, 340, 256, 0),
    "kinetics_426x240.mkv": (310, 30.0, 426, 240, 0),
    "ucf_320x240.avi": (164, 25.0, 320, 240, 0),
    "bear_854x480.mp4": (82, 30.0, 854, 480, 0),
    "h265_10bit.mp4": (30, 30.0, 200, 200, 0),
    "odd_size_444.mp4": (25, 25.0, 321, 241, 0),
    "rotated_metadata.mp4": (17, 30000 / 1001, 270, 480, 90),
}


@pytest.fixture
def videos(shared_data: Path) -> Path:
    return shared_data / "videos"


def sequential(path: Path) -> list[Any]:
    """All frames, as PyAV gives them from the start."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def stripes(frames: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """Frames that differ by their grey level: 4 per frame, so that each names its index."""
    levels = (torch.arange(frames) * 4 + 20).to(torch.uint8)
    return levels[:, None, None, None].expand(-1, 3, height, width).contiguous()


def named(frames: torch.Tensor) -> list[int]:
    """The indices that `stripes` wrote."""
    return [round((float(level) - 20) / 4) for level in frames.float().mean((1, 2, 3))]


@pytest.mark.parametrize("name", SOUND)
def test_probe(videos: Path, name: str) -> None:
    frames, fps, width, height, rotation = SOUND[name]
    info = probe(videos / name)
    assert (info.frames, info.width, info.height, info.rotation) == (
        frames,
        width,
        height,
        rotation,
    )
    assert info.fps == pytest.approx(fps)
    assert info.duration == pytest.approx(frames / fps, abs=1.5 / fps)
    assert info.short == ""


@pytest.mark.parametrize("name", SOUND)
def test_frames_are_those_of_a_sequential_decode(
    videos: Path, name: str, rng: np.random.Generator
) -> None:
    every = sequential(videos / name)
    count = len(every)
    assert count == SOUND[name][0]
    picks = [
        sorted(rng.integers(0, count, 5).tolist()),  # repeats allowed
        [count - 1],
        list(range(count // 2, min(count // 2 + 6, count))),
        [0, 0, count - 1, count - 1],
    ]
    for indices in picks:
        clip = decode(videos / name, indices)
        assert clip.indices == tuple(indices)
        assert clip.frames.dtype == torch.uint8
        assert clip.frames.is_contiguous()
        for got, i in zip(clip.frames, indices, strict=True):
            assert torch.equal(got, _picture(every[i], None, None)), i
    assert clip.frames.shape[1:] == (3, SOUND[name][3], SOUND[name][2])


@pytest.mark.parametrize("name", ["kinetics_340x256.mp4", "kinetics_426x240.mkv"])
def test_seeking_happens_and_lands_on_every_key_frame(
    videos: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = videos / name
    whole = decode(path, range(probe(path).frames), crop=64).frames
    keys = demux.index_of(str(path)).keys
    assert len(keys) > 2
    seeks = []
    original = demux.Frames._seek
    monkeypatch.setattr(
        demux.Frames, "_seek", lambda self, key: seeks.append(key) or original(self, key)
    )
    for key in keys[1:]:
        for indices in ([key, key + 1, key + 3], [1, key + 2], [key - 2, key - 1, key]):
            seeks.clear()
            assert torch.equal(decode(path, indices, crop=64).frames, whole[indices])
            assert (key in seeks) == (key - 1 not in indices)
    assert torch.equal(decode(path, [keys[-1]], crop=64).frames, whole[[keys[-1]]])


def test_colours_of_an_independent_decoder(videos: Path) -> None:
    for name in ("rotated_metadata.mp4", "bear_854x480.mp4"):
        capture = cv2.VideoCapture(str(videos / name))
        _, picture = capture.read()
        capture.release()
        theirs = torch.from_numpy(picture[:, :, ::-1].copy()).permute(2, 0, 1).float()
        ours = decode(videos / name, [0]).frames[0].float()
        assert ours.shape == theirs.shape  # OpenCV turns the picture, too
        # The two scale chroma and round differently; turned the other way the first differs by 11.
        assert (ours - theirs).abs().mean() < 1.5


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ([0, -65536, 0, 65536, 0], lambda x: np.rot90(x, 1)),
        ([0, 65536, 0, -65536, 0], lambda x: np.rot90(x, -1)),
        ([-65536, 0, 0, 0, -65536], lambda x: np.rot90(x, 2)),
        ([-65536, 0, 0, 0, 65536], lambda x: x[:, ::-1]),
        ([65536, 0, 0, 0, -65536], lambda x: x[::-1]),
        ([0, 65536, 0, 65536, 0], lambda x: x.T),
    ],
)
def test_display_matrix(matrix: list[int], turned: Any) -> None:
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    side = np.array([*matrix, 0, 0, 0, 1 << 30], np.int32)

    class Data(bytes):
        type = SimpleNamespace(name="DISPLAYMATRIX")

    frame = SimpleNamespace(
        side_data=[Data(side.tobytes())],
        rotation=0,
        to_ndarray=lambda **_: np.stack([levels] * 3, -1),
    )
    assert np.array_equal(_picture(frame, None, None)[0].numpy(), turned(levels))


def test_frames_are_let_go_without_a_collection(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", torch.zeros(30, 3, 32, 32, dtype=torch.uint8))
    gc.collect()
    gc.disable()
    try:
        assert len(decode(tmp_path / "x.mp4", range(30)).frames) == 30
        left = sum(type(some) is av.VideoFrame for some in gc.get_objects())
    finally:
        gc.enable()
    assert left <= 2, "one of the file's description, one of the decoding"


def test_full_range_and_matrix_are_read(tmp_path: Path) -> None:
    for full, space in itertools.product((1, 2), (1, 6)):
        path = tmp_path / f"{full}{space}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "0"})
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv444p"
            stream.codec_context.color_range, stream.codec_context.colorspace = full, space
            planes = np.empty((3, 32, 32), np.uint8)
            planes[0], planes[1], planes[2] = 120, 100, 160
            frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
            frame.color_range, frame.colorspace = full, space
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        y, v = (120.0, 32.0) if full == 2 else ((120 - 16) * 255 / 219, 32 * 255 / 224)
        kr = 0.2126 if space == 1 else 0.299
        red = decode(path, [0]).frames[0, 0].float().mean()
        assert red == pytest.approx(y + 2 * (1 - kr) * v, abs=1.5), (full, space)


def test_ten_bits_become_eight(videos: Path) -> None:
    clip = decode(videos / "h265_10bit.mp4", [0, 29])
    grey = sequential(videos / "h265_10bit.mp4")[0].to_ndarray(format="gray16le")
    luma = torch.from_numpy(grey.astype(np.float32)) / 65535 * 255
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert ((clip.frames[0].float() * weights).sum(0) - luma).abs().mean() < 3


def test_times_are_those_stored(videos: Path) -> None:
    for name in ("kinetics_340x256.mp4", "kinetics_426x240.mkv", "rotated_metadata.mp4"):
        every = sequential(videos / name)
        indices = [0, 1, 5, 16, 16]
        clip = decode(videos / name, indices, short_side=16)
        assert clip.times == tuple(every[i].time for i in indices)
        assert clip.fps == pytest.approx(SOUND[name][1])


def test_times_where_none_are_stored_ascend_by_the_rate(videos: Path) -> None:
    made_up = [frame.pts for frame in sequential(videos / "ucf_320x240.avi")[:10]]
    assert made_up != sorted(made_up)  # why they are not used
    clip = decode(videos / "ucf_320x240.avi", range(10), short_side=16)
    assert clip.times == pytest.approx([i / 25 for i in range(10)])


def test_variable_rate(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.5, 0.54, 1.0, 1.75, 1.8]
    for ending in (".mp4", ".mkv"):
        path = tmp_path / f"variable{ending}"
        write_video(path, stripes(8), times=times, fps=10)
        clip = decode(path, [0, 2, 3, 6, 7])
        assert clip.times == pytest.approx([times[i] for i in clip.indices], abs=2e-3)
        assert named(clip.frames) == [0, 2, 3, 6, 7]
        assert probe(path).frames == 8


def test_short_video_repeats_its_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    write_video(path, stripes(5))
    plan = ClipPlan.build(TargetConfig(), 0, probe(path).frames)
    clip = decode(path, plan.frames)
    assert named(clip.frames) == [min(i, 4) for i in ClipPlan.build(TargetConfig()).frames]
    assert len(set(clip.times)) == 5


def test_clips_that_overlap_decode_each_frame_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.mp4"
    write_video(path, stripes(40))
    config = TargetConfig(frames=4, stride=3, length=2, size=32)
    plans = [ClipPlan.build(config, start, 40) for start in (0, 4, 4, 20, 36)]
    alone = [decode(path, plan.frames, short_side=32, crop=32) for plan in plans]
    pictures = []
    import mme_targets.video as module

    original = module._picture
    monkeypatch.setattr(
        module, "_picture", lambda *args: pictures.append(args[0].pts) or original(*args)
    )
    clips = list(iter_clips(path, plans, short_side=32, crop=32))
    for clip, one in zip(clips, alone, strict=True):
        assert torch.equal(clip.frames, one.frames)
        assert clip.times == one.times
    assert len(pictures) == len({i for plan in plans for i in plan.frames})
    with pytest.raises(ValueError, match="plans must be in the order"):
        iter_clips(path, plans[::-1])


@pytest.mark.parametrize(
    ("short_side", "crop", "shape"),
    [
        (224, 224, (224, 224)),
        (224, None, (224, 298)),
        (None, 100, (100, 100)),
        (500, 333, (333,) * 2),
    ],
)
def test_resize_and_crop(
    videos: Path, short_side: int | None, crop: int | None, shape: tuple[int, int]
) -> None:
    path = videos / "kinetics_340x256.mp4"
    clip = decode(path, [0, 9], short_side=short_side, crop=crop)
    assert tuple(clip.frames.shape[2:]) == shape
    whole = decode(path, [0, 9]).frames[1].permute(1, 2, 0).numpy()
    if short_side:
        size = (round(340 * short_side / 256), short_side)
        kind = cv2.INTER_AREA if short_side < 256 else cv2.INTER_LINEAR
        whole = cv2.resize(whole, size, interpolation=kind)
    top, left = (whole.shape[0] - shape[0]) // 2, (whole.shape[1] - shape[1]) // 2
    expected = whole[top : top + shape[0], left : left + shape[1]].astype(np.float32)
    error = np.abs(clip.frames[1].permute(1, 2, 0).numpy() - expected).mean()
    assert error < (2.0 if short_side == 224 else 0.6)  # a shift by one pixel gives over 5
    assert tuple(decode(videos / "odd_size_444.mp4", [3], short_side=224).frames.shape[2:]) == (
        224,
        298,
    )


def test_same_result_whatever_the_threads(videos: Path) -> None:
    path = videos / "kinetics_340x256.mp4"
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)  # set back by `one_thread`
        results.append(decode(path, range(0, 40, 7), short_side=224, crop=224).frames)
    assert torch.equal(*results)


def test_corrupt_in_the_middle(videos: Path) -> None:
    path = videos / "corrupted.mp4"
    assert probe(path).frames == 50  # what the file lists
    clip = decode(path, [0, 13, 27], short_side=64)
    every = decode(path, range(28), short_side=64)
    assert torch.equal(clip.frames, every.frames[[0, 13, 27]])
    for late in (28, 40, 49):
        with pytest.raises(VideoError, match=r"corrupted\.mp4: frame 28 cannot.*frames 0 to 27"):
            decode(path, [3, late])
    with pytest.raises(VideoError, match=r"no frame 50; there are 50"):
        decode(path, [50])
    config = TargetConfig(frames=4, stride=3, length=2, size=32)
    clips = iter_clips(path, [ClipPlan.build(config, s, 50) for s in (0, 20)], short_side=32)
    assert len(next(clips).frames) > 0
    with pytest.raises(VideoError, match="frame 28"):
        next(clips)


def test_damaged_bytes_are_an_error_not_a_guess(videos: Path, tmp_path: Path) -> None:
    data = bytearray((videos / "kinetics_340x256.mp4").read_bytes())
    data[len(data) // 3 : len(data) // 3 + 60 : 3] = bytes(20)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"damaged\.mp4: frame \d+ cannot be decoded"):
        decode(path, [0, 186], short_side=16)
    # Beyond the next key frame the file is sound, and reached by seeking.
    whole = decode(videos / "kinetics_340x256.mp4", [240], short_side=64).frames
    assert torch.equal(decode(path, [240], short_side=64).frames, whole)


@pytest.mark.parametrize("name", ["kinetics_426x240.mkv", "ucf_320x240.avi"])
def test_truncated(videos: Path, tmp_path: Path, name: str) -> None:
    data = (videos / name).read_bytes()
    path = tmp_path / f"cut{Path(name).suffix}"
    path.write_bytes(data[: len(data) * 6 // 10])
    count = probe(path).frames
    assert 0 < count < SOUND[name][0]
    said = {
        ".mkv": r"cut short: it ends after \d\.\d\d of the 10\.33 s that it says",
        ".avi": rf"cut short: {count} frames of the 164 that it lists",
    }
    assert re.fullmatch(said[path.suffix], probe(path).short)
    last = count - 1
    whole = decode(videos / name, [0, last], short_side=64).frames
    assert torch.equal(decode(path, [0, last], short_side=64).frames, whole)
    with pytest.raises(
        VideoError, match=rf"cut\.\w+: there is no frame {count}; there are {count}"
    ):
        decode(path, [0, count])


def test_a_variable_rate_is_not_cut_short(tmp_path: Path) -> None:
    """Pauses, and a last frame that stays on for a while."""
    for ending in ("mkv", "mp4"):
        path = tmp_path / f"slow.{ending}"
        write_video(path, stripes(5), times=[0, 0.1, 3, 3.1, 9])
        assert probe(path).short == ""


def test_what_is_no_video(videos: Path, tmp_path: Path) -> None:
    text = "not a video\n" * 100
    files: dict[str, bytes] = {
        "empty.mp4": b"",
        "text.txt": text.encode(),
        "text.mp4": text.encode(),
        "playlist.m3u8": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n",
        "headless.mp4": (videos / "kinetics_340x256.mp4").read_bytes()[:90000],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with av.open(str(tmp_path / "sound.mka"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    for name in [*files, "sound.mka", "missing.mp4", "."]:
        with pytest.raises(VideoError, match=rf"{name}: "):
            probe(tmp_path / name if name != "." else f"{tmp_path}/.")
        with pytest.raises(VideoError):
            decode(tmp_path / name, [0])


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for count in (5, 9):
        write_video(path, stripes(count))
        assert probe(path).frames == count


@pytest.mark.parametrize("indices", [[], [-1], [3, 2]])
def test_bad_indices(videos: Path, indices: list[int]) -> None:
    with pytest.raises(ValueError, match="indices is"):
        decode(videos / "h265_10bit.mp4", indices)


def test_bad_sizes(videos: Path) -> None:
    with pytest.raises(ValueError, match="crop is 300; the short side has only 200"):
        decode(videos / "h265_10bit.mp4", [0], crop=300)
    with pytest.raises(ValueError, match="short_side is 0"):
        decode(videos / "h265_10bit.mp4", [0], short_side=0)
