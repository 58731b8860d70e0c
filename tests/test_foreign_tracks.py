"""Tracks and flow that others computed: read as they are meant, and nothing run on the way."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mme_model.cli import main
from mme_targets.files import write_video
from mme_targets.flow_files import write_flo
from mme_targets.foreign_tracks import find, import_video, load_arrays, open_flow
from mme_targets.ops.trajectories import trajectories
from mme_targets.store import Store, TrackConfig
from mme_targets.store_job import ExtractJob, Item
from mme_targets.synthetic import render_scene
from mme_targets.video import VideoError

FRAMES, HEIGHT, WIDTH = 24, 48, 64
CONFIG = TrackConfig(flow="farneback", camera_motion=False, length=4)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path, render_scene(FRAMES, (HEIGHT, WIDTH), seed=2).frames)
    return path


@pytest.fixture
def flow(rng: np.random.Generator) -> torch.Tensor:
    """[P, 2, H, W]: smooth, up to 5 px."""
    small = torch.from_numpy(rng.uniform(-5, 5, (FRAMES - 1, 2, 4, 5)).astype(np.float32))
    return torch.nn.functional.interpolate(small, (HEIGHT, WIDTH), mode="bilinear")


def save_gz(path: Path, value: Any, protocol: int = 4) -> Path:
    with gzip.open(path, "wb") as file:
        file.write(pickle.dumps(value, protocol=protocol))
    return path


# --- pickles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_of_any_protocol(tmp_path: Path, rng: np.random.Generator, protocol: int) -> None:
    arrays = {
        "traj_feat": rng.integers(-20, 21, (8, 5, 6, 8)).astype(np.int8),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4)).astype(np.float32)),
        "empty": np.empty((0, 2), np.int64),
    }
    found = load_arrays(save_gz(tmp_path / "a.gz", arrays, protocol))
    assert list(found) == list(arrays)
    assert all(np.array_equal(found[k], v) and found[k].dtype == v.dtype for k, v in arrays.items())


class Runs:
    """Runs a command where it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "evil",
    [
        Runs(os.system, "touch {mark}"),
        Runs(subprocess.check_call, ["touch", "{mark}"]),
        Runs(eval, "open('{mark}', 'w')"),
        Runs(np.fromfile, "{mark}"),
        Runs(getattr, np, "load"),
    ],
)
def test_nothing_but_arrays_is_built(tmp_path: Path, evil: Runs, protocol: int) -> None:
    mark = tmp_path / "mark"
    filled = [a.replace("{mark}", str(mark)) if isinstance(a, str) else a for a in evil.arguments]
    if evil.call is getattr:
        filled = [np.ndarray, "tofile"]
    path = save_gz(tmp_path / "a.gz", {"a": Runs(evil.call, *filled)}, protocol)
    with pytest.raises(ValueError, match=r"a\.gz: cannot be read as a pickle of arrays: it asks"):
        load_arrays(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([np.zeros(2)], "holds list"),
        ({"a": np.array([None, "x"], dtype=object)}, "no array of numbers"),
        ({"a": "text"}, "'a' is no array of numbers"),
        ({"a": np.ma.masked_array([1])}, "cannot be read as a pickle of arrays"),
    ],
)
def test_what_is_no_mapping_of_arrays(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_arrays(save_gz(tmp_path / "a.gz", value))


def test_damaged_and_swollen_pickles(tmp_path: Path) -> None:
    path = save_gz(tmp_path / "a.gz", {"a": np.zeros(10**6, np.int8)})
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        load_arrays(path, limit=1000)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot be read"):
        load_arrays(path)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="cannot be read"):
        load_arrays(path)


def test_released_tracks_are_imported(
    video: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    starts = FRAMES - 4
    feat = rng.integers(-20, 21, (8, starts, 6, 8)).astype(np.int8)
    kind = rng.integers(0, 2, (starts, 6, 8)).astype(np.int8)
    save_gz(tmp_path / "v.gz", {"traj_feat": feat, "traj_type": kind})
    store = Store.create(tmp_path / "store", CONFIG.replace(step=1.0))
    record = import_video(store, CONFIG.replace(step=1.0), "v.mp4", video, tmp_path)
    assert record.frames == FRAMES
    with store.entry("v.mp4") as entry:
        tracks = entry.tracks(range(FRAMES))
        assert entry.about["imported"] == "v.gz"
    moves = tracks.displacements[:starts]
    assert np.array_equal(moves[..., 0], feat[:4].transpose(1, 0, 2, 3))
    assert np.array_equal(moves[..., 1], feat[4:].transpose(1, 0, 2, 3))
    assert np.array_equal(tracks.in_view[: starts - 1] == 4, kind[: starts - 1] > 0)
    assert (tracks.in_view[starts:] == 255).all(), "frames from which the pickle has no tracks"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((12, 20, 6, 8), r"traj_feat is \[12, 20, 6, 8\]; must be \[8, N"),
        ((8, 9, 6, 8), "tracks of 9 starts; the video has 24 frames"),
        ((8, 20, 9, 8), r"a grid of \(9, 8\) points"),
    ],
)
def test_tracks_of_another_video(
    video: Path, tmp_path: Path, shape: tuple[int, ...], message: str
) -> None:
    arrays = {"traj_feat": np.zeros(shape, np.int8), "traj_type": np.ones(shape[1:], np.int8)}
    save_gz(tmp_path / "v.gz", arrays)
    store = Store.create(tmp_path / "store", CONFIG)
    with pytest.raises((VideoError, ValueError), match=message):
        import_video(store, CONFIG, "v.mp4", video, tmp_path)
    assert not list(store.files())


# --- flow -----------------------------------------------------------------------------------------


def in_bytes(flow: torch.Tensor, bound: float = 20.0) -> np.ndarray:
    """As `dense_flow` writes it."""
    return ((flow + bound) * 255 / (2 * bound)).round().clamp(0, 255).byte().numpy()


def write_flow(kind: str, folder: Path, flow: torch.Tensor) -> None:
    inner = folder / "v"
    if kind == "npz":
        np.savez(folder / "v.npz", flow=flow.numpy())
        return
    inner.mkdir()
    if kind == "flo":
        for i, one in enumerate(flow):
            write_flo(inner / f"{i:06d}.flo", one)
        return
    values = in_bytes(flow)
    for c, component in enumerate("xy"):
        if kind == "video":
            grey = torch.from_numpy(values[:, c])[:, None].expand(-1, 3, -1, -1)
            write_video(inner / f"flow_{component}.mp4", grey, crf=0, pix_fmt="yuv444p")
            continue
        if kind == "folders":
            (inner / f"flow_{component}").mkdir()
        for i, image in enumerate(values[:, c], 1):
            name = f"flow_{component}/{i:05d}.jpg" if kind == "folders" else (
                f"flow_{component}_{i:05d}.jpg"
            )  # fmt: skip
            cv2.imwrite(str(inner / name), image, [cv2.IMWRITE_JPEG_QUALITY, 100])


@pytest.mark.parametrize(
    ("kind", "error"),
    [("flo", 0.0), ("npz", 0.0), ("pictures", 0.5), ("folders", 0.5), ("video", 0.5)],
)
def test_flow_of_any_form(
    video: Path, tmp_path: Path, flow: torch.Tensor, kind: str, error: float
) -> None:
    write_flow(kind, tmp_path, flow)
    read = torch.cat(list(open_flow(find(tmp_path, "v.mp4")).blocks))
    assert read.shape == flow.shape
    assert (read - flow).abs().max() <= error
    assert (read - flow).abs().mean() <= error / 5, "a byte is 0.16 px"
    store = Store.create(tmp_path / "store", CONFIG)
    import_video(store, CONFIG, "v.mp4", video, tmp_path)
    steps = torch.arange(FRAMES - 4)[:, None] + torch.arange(4)
    expected = trajectories(read, steps=steps)
    with store.entry("v.mp4") as entry:
        tracks = entry.tracks(range(FRAMES - 4))
    moves = tracks.displacements.transpose(0, 2, 3, 1, 4) * 0.125
    assert np.abs(moves - expected.displacements.numpy()).max() <= 0.0625 + 1e-6
    assert np.array_equal(tracks.in_view == 4, expected.visible.numpy())


def test_unknown_flow_makes_tracks_invalid(video: Path, tmp_path: Path, flow: torch.Tensor) -> None:
    flow[:, :, 20:24, 20:24] = 1e10
    write_flow("flo", tmp_path, flow * 0 + (flow > 1e9) * 1e10)
    store = Store.create(tmp_path / "store", CONFIG)
    import_video(store, CONFIG, "v.mp4", video, tmp_path)
    with store.entry("v.mp4") as entry:
        seen = entry.tracks([0]).in_view
        assert seen is not None
        assert seen[0, 2, 2] == 255
        assert not entry.about["finite"]


def test_flow_of_another_video(video: Path, tmp_path: Path, flow: torch.Tensor) -> None:
    store = Store.create(tmp_path / "store", CONFIG)
    for bad, message in (
        (flow[:-3], "flow came of 20 pairs; 24 frames have 23"),
        (torch.cat([flow, flow]), "more than the 23 pairs of 24 frames"),
        (flow[..., :40, :], "flow is 64x40 px, the video 64x48"),
    ):
        np.savez(tmp_path / "v.npz", flow=bad.numpy())
        with pytest.raises(VideoError, match=message):
            import_video(store, CONFIG, "v.mp4", video, tmp_path)
    assert not list(store.files())


def test_what_holds_no_flow(video: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.gz, no \.npz and no folder"):
        find(tmp_path, "v.mp4")
    (tmp_path / "v").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.flo"):
        open_flow(tmp_path / "v")
    (tmp_path / "v" / "flow_x_00001.jpg").touch()
    with pytest.raises(ValueError, match="1 pictures of x and 0 of y"):
        open_flow(tmp_path / "v")
    (tmp_path / "v" / "flow_y_00001.jpg").touch()
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        list(open_flow(tmp_path / "v").blocks)
    np.savez(tmp_path / "w.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match="no array `flow`"):
        list(open_flow(tmp_path / "w.npz").blocks)


def test_the_job_takes_in_what_there_is(video: Path, tmp_path: Path, flow: torch.Tensor) -> None:
    write_flow("flo", tmp_path, flow)
    line = ["extract", str(video), "--out", str(tmp_path / "store"), "--have", str(tmp_path)]
    line += ["--flow", "farneback", "--camera_motion", "false", "--length", "4"]
    assert main(line) == 0
    with Store(tmp_path / "store").entry("v.mp4") as entry:
        assert entry.about["imported"] == "v"
    line[line.index("--have") + 1] = str(tmp_path / "none")
    line[line.index("--out") + 1] = str(tmp_path / "other")
    assert main(line) == 3, "it failed, and the index says so"
    assert "there is no .gz" in Store(tmp_path / "other").index()[0].reason


# --- what is damaged or means nothing ------------------------------------------------------------


def tracks_of(count: int = FRAMES - 4) -> dict[str, np.ndarray]:
    grid = (HEIGHT // 8, WIDTH // 8)
    return {
        "traj_feat": np.ones((8, count, *grid), np.float32),
        "traj_type": np.ones((count, *grid), np.uint8),
    }


@pytest.mark.parametrize("suffix", [".gz", ".npz"])
def test_a_damaged_file_is_its_videos_trouble_alone(
    video: Path, tmp_path: Path, flow: torch.Tensor, suffix: str
) -> None:
    """Whatever the library below makes of it, the next video is taken in."""
    if suffix == ".gz":
        save_gz(tmp_path / "v.gz", tracks_of())
    else:
        np.savez_compressed(tmp_path / "v.npz", flow=flow.numpy())
    whole = (tmp_path / f"v{suffix}").read_bytes()
    damaged = [whole[: len(whole) // 2], b"PK\3\4 text"]
    for place in (10, 30, len(whole) // 3, len(whole) // 2, len(whole) - 30):
        data = bytearray(whole)
        data[place] ^= 0x55
        damaged.append(bytes(data))
    items = [Item(f"{i}.mp4", str(video)) for i in range(len(damaged))]
    for i, data in enumerate(damaged):
        (tmp_path / f"{i}{suffix}").write_bytes(data)
    job = ExtractJob(
        tmp_path / "store", CONFIG, [*items, Item("v.mp4", str(video))], have=str(tmp_path)
    )
    report = job.run()
    assert report.done + len(report.failed) == len(items) + 1
    assert len(report.failed) >= 4
    assert "v.mp4" not in dict(report.failed)


def test_an_array_alone_is_no_npz(tmp_path: Path, flow: torch.Tensor) -> None:
    with (tmp_path / "v.npz").open("wb") as file:
        np.save(file, flow.numpy())
    with pytest.raises(ValueError, match="holds no array `flow`"):
        list(open_flow(tmp_path / "v.npz").blocks)
    np.savez(tmp_path / "v.npz", flow=flow.numpy().astype(complex))
    with pytest.raises(ValueError, match="must be real numbers"):
        list(open_flow(tmp_path / "v.npz").blocks)


@pytest.mark.parametrize("kind", ["flo", "pictures"])
def test_files_are_in_the_order_of_their_numbers(tmp_path: Path, kind: str) -> None:
    """Also where these are not padded: 10 after 9."""
    (tmp_path / "v").mkdir()
    for i in range(8, 13):
        if kind == "flo":
            write_flo(tmp_path / "v" / f"{i}.flo", torch.full((2, 8, 8), float(i)))
            continue
        for component in "xy":
            name = str(tmp_path / "v" / f"flow_{component}_{i}.png")
            cv2.imwrite(name, np.full((8, 8), 10 * i, np.uint8))
    read = torch.cat(list(open_flow(tmp_path / "v").blocks))
    assert (read[1:, 0, 0, 0] > read[:-1, 0, 0, 0]).all()


@pytest.mark.parametrize("bound", [0.0, -20.0, float("inf"), float("nan")])
def test_a_bound_that_means_nothing_is_refused(tmp_path: Path, video: Path, bound: float) -> None:
    with pytest.raises(ValueError, match="must be more than 0 px"):
        ExtractJob(tmp_path / "store", CONFIG, [Item("v", str(video))], have="x", bound=bound)


def test_flow_videos_of_different_sizes(tmp_path: Path) -> None:
    for component, width in (("x", 32), ("y", 48)):
        grey = torch.zeros(3, 3, 32, width, dtype=torch.uint8)
        write_video(tmp_path / f"flow_{component}.mp4", grey)
    with pytest.raises(ValueError, match="different sizes"):
        list(open_flow(tmp_path).blocks)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_tracks_without_numbers_are_not_to_be_used(
    video: Path, tmp_path: Path, value: float
) -> None:
    arrays = tracks_of()
    arrays["traj_feat"][5, 2, 3, 4] = value
    save_gz(tmp_path / "v.gz", arrays)
    store = Store.create(tmp_path / "store", CONFIG)
    import_video(store, CONFIG, "v.mp4", video, tmp_path)
    with store.entry("v.mp4") as entry:
        assert not entry.about["finite"]
        found = entry.tracks([2])
    assert found.in_view is not None
    assert (found.in_view[0] == 255).sum() == 1
    assert found.in_view[0, 3, 4] == 255
    assert not found.displacements[0, :, 3, 4].any()
    assert found.displacements[0, 0, 0, 0, 0] == 8


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04}" + b")" + b"\x85" * 200000 + b"K\x01s.",  # a key that nests deeply
        b"\x80\x04}r\xff\xff\xff\x7f.",  # remembered at a place that takes 16 GB
    ],
)
def test_pickles_that_overflow(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "v.gz").write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match="more operations than arrays do"):
        load_arrays(tmp_path / "v.gz")


def test_absolute_names_are_looked_for_below_the_folder(tmp_path: Path) -> None:
    inner = tmp_path / "have" / "data" / "k"
    inner.mkdir(parents=True)
    (inner / "v.npz").touch()
    assert find(tmp_path / "have", "/data/k/v.mp4") == inner / "v.npz"
