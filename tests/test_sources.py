"""Sources: what a recipe's `data` may name, and what reading from it costs."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mme_model.sources
from mme_model.cli import main
from mme_model.recipe import ClipConfig
from mme_model.sources import Source, VideoSource, open_source
from mme_targets import demux
from mme_targets.files import write_video
from mme_targets.synthetic import render_scene
from mme_targets.video import VideoError, decode

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "scene.mp4"
    write_video(path, render_scene(12, (48, 64), seed=1).frames, fps=25)
    return path


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def labels(source: Source) -> list[int]:
    return [source.label(i) for i in range(len(source))]


def test_a_single_video(video: Path) -> None:
    source = open_source(str(video), ClipConfig())
    assert (len(source), labels(source), source.frames(0)) == (1, [-1], 12)
    assert names(source) == ["scene.mp4"]
    assert torch.equal(source.read(0, [0, 5, 11, 11]), decode(video, [0, 5, 11, 11]).frames)
    small = open_source(str(video), ClipConfig(short_side=24))
    assert torch.equal(small.read(0, [3]), decode(video, [3], short_side=24).frames)
    with pytest.raises(IndexError, match="index is 1; must lie in 0 to 0"):
        source.frames(1)


def test_a_source_pickles(video: Path) -> None:
    source = open_source(str(video.parent), ClipConfig(short_side=32))
    source.frames(0)  # what reading leaves behind does not travel
    again = pickle.loads(pickle.dumps(source))
    assert names(again) == names(source)
    assert torch.equal(again.read(0, [2]), source.read(0, [2]))
    synthetic = pickle.loads(pickle.dumps(open_source("synthetic:3", ClipConfig())))
    assert len(synthetic) == 3


def test_packets_are_read_once_and_not_kept_for_ever(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        shutil.copy(video, tmp_path / f"{number:02d}.mp4")
    reads: list[str] = []
    original = demux._packets

    def counted(container: Any, stream: Any) -> Any:
        reads.append(container.name)
        return original(container, stream)

    monkeypatch.setattr(demux, "_packets", counted)
    source = open_source(str(tmp_path), ClipConfig())
    for index in range(40):
        assert source.read(index, [0, source.frames(index) - 1]).shape == (2, 3, 48, 64)
    assert len(reads) == 40
    info = demux._read_index.cache_info()
    assert info.maxsize is not None
    assert info.currsize <= info.maxsize < 40  # thousands of videos leave no more behind


def test_folders(tmp_path: Path) -> None:
    flat = touch(tmp_path / "flat", "b.mp4", "a.AVI", "notes.txt", ".hidden.mp4", "c.webm")
    source = open_source(str(flat), ClipConfig())
    assert names(source) == ["a.AVI", "b.mp4", "c.webm"]
    assert labels(source) == [-1] * 3
    classed = touch(tmp_path / "classed", "wave/1.mp4", "jump/2.mp4", "wave/0.mkv", "empty/x.txt")
    source = open_source(str(classed), ClipConfig())
    assert isinstance(source, VideoSource)
    assert names(source) == ["jump/2.mp4", "wave/0.mkv", "wave/1.mp4"]
    assert labels(source) == [0, 1, 1]
    assert source.classes == ("jump", "wave")
    # Deeper folders, or videos beside them, are no classes.
    for extra in ("wave/more/3.mp4", "4.mp4"):
        deep = touch(tmp_path / extra.replace("/", "-"), "wave/1.mp4", "jump/2.mp4", extra)
        assert labels(open_source(str(deep), ClipConfig())) == [-1] * 3
    (flat / "round").symlink_to(flat, target_is_directory=True)
    (flat / "wave").symlink_to(classed / "wave", target_is_directory=True)
    assert names(open_source(str(flat), ClipConfig()))[3:] == ["wave/0.mkv", "wave/1.mp4"]


def test_lists(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("scene.mp4 4\nmissing.mp4 5\n")
    source = open_source(str(path), ClipConfig(root=str(video.parent)))
    assert (names(source), labels(source)) == (["scene.mp4", "missing.mp4"], [4, 5])
    assert source.frames(0) == 12
    with pytest.raises(VideoError, match=r"missing\.mp4: there is no such file"):
        source.frames(1)
    with pytest.raises(FileNotFoundError) as error:
        open_source(str(path), ClipConfig())
    assert f"not one of its 2 videos is there; looked in {tmp_path} for" in str(error.value)
    assert "clips.root" in str(error.value)


def test_files_that_are_not_there_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, *(f"{i}.mp4" for i in range(30, 40)))
    path = tmp_path / "train.csv"
    path.write_text("".join(f"{i}.mp4 {i % 2}\n" for i in range(23, 40)))
    assert len(open_source(str(path), ClipConfig())) == 17
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "7 of its 17 videos are not there and cannot be read" in said
    assert (
        f"read: {', '.join(str(tmp_path / f'{i}.mp4') for i in range(23, 28))} and 2 more" in said
    )
    open_source(str(path), ClipConfig(), quiet=True)
    monkeypatch.setenv("RANK", "1")
    open_source(str(path), ClipConfig())
    monkeypatch.delenv("RANK")
    open_source(str(tmp_path), ClipConfig())
    assert not capsys.readouterr().err, "asked not to, another process, or found by looking"
    # Of a long list as many are looked for as is cheap, from its start to its end.
    monkeypatch.setattr(mme_model.sources, "_LOOKED_FOR", 4)
    open_source(str(path), ClipConfig())
    said = capsys.readouterr().err
    assert "2 of 4 videos spread over its 17 are not there" in said
    assert f"read: {tmp_path / '23.mp4'}, {tmp_path / '27.mp4'}\n" in said
    path.write_text("".join(f"gone/{i}.mp4 0\n" for i in range(9)))
    with pytest.raises(FileNotFoundError, match=r"not one of 4 videos spread over its 9 is there"):
        open_source(str(path), ClipConfig())


def test_a_dry_run_names_what_is_missing(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "l.csv"
    path.write_text(f"{video} 0\nnowhere.mp4 1\n")
    words = ["extract", str(path), "--out", str(tmp_path / "s"), "--dry-run", "--flow", "dis"]
    assert main([*words, "--camera_motion", "false"]) == 0
    assert f"1 of its 2 videos is not there and cannot be read: {tmp_path / 'nowhere.mp4'}" in (
        capsys.readouterr().err
    )


def test_hmdb51_is_split_by_its_flags(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "wave/a.avi", "wave/b.avi")
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "wave_test_split1.txt").write_text("a.avi 1\nb.avi 2\n")
    clips = ClipConfig(root=str(tmp_path / "videos"))
    for spec in (str(splits), str(splits / "*_test_split1.txt")):
        assert names(open_source(spec, clips)) == ["wave/a.avi"]
        assert names(open_source(spec, clips, held_out=True)) == ["wave/b.avi"]


def test_fractions_are_nested_and_the_names_alone_decide(tmp_path: Path) -> None:
    files = [f"{i:03d}.mp4" for i in range(200)]
    here, there = touch(tmp_path / "here", *files), touch(tmp_path / "there", *reversed(files))
    (tmp_path / "l.txt").write_bytes(b"\n".join([*map(str.encode, files), b"caf\xe9.mp4"]))

    def share(spec: Path, fraction: float, **options: Any) -> set[str]:
        clips = ClipConfig(fraction=fraction, root=str(here))
        return set(names(open_source(str(spec), clips, **options)))

    quarter, half = share(here, 0.25), share(here, 0.5)
    assert quarter < half < set(files) == share(here, 1.0)
    assert 30 < len(quarter) < 70
    assert share(there, 0.25) == quarter
    assert share(tmp_path / "l.txt", 0.25) - {"caf\udce9.mp4"} == quarter
    assert share(here, 0.25, seed=1) != quarter
    assert share(here, 0.25, held_out=True) == set(files)
    with pytest.raises(ValueError, match=r"fraction 1e-05 keeps none of 200 videos"):
        share(here, 1e-5)


def test_synthetic() -> None:
    clips = ClipConfig(clips=40, fraction=0.5)
    source = open_source("synthetic", clips, seed=3, frames=10, size=48)
    assert (len(source), source.frames(0)) == (20, 10)
    assert len(open_source("synthetic:12", ClipConfig(clips=40))) == 12
    held_out = open_source("synthetic", clips, seed=3, held_out=True, frames=10, size=48)
    assert len(held_out) == 40
    assert not torch.equal(held_out.read(0, [0]), source.read(0, [0]))
    assert source.read(0, [0]).shape == (1, 3, 48, 48)


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.csv").touch()
    for spec, error, message in (
        ("", ValueError, "data is empty; must name a list, a folder, a video or synthetic"),
        (str(tmp_path / "no"), FileNotFoundError, "no: there is no such list, folder or video"),
        (str(tmp_path / "no.mp4"), FileNotFoundError, "no such list, folder or video"),
        (str(tmp_path / "empty"), ValueError, "empty: holds no video; looked for .* .mp4"),
        (str(tmp_path / "none.csv"), ValueError, "names no video"),
        ("synthetic:0", ValueError, "'synthetic:0'; synthetic: must be followed by a number"),
        ("synthetic:many", ValueError, "must be followed by a number"),
    ):
        with pytest.raises(error, match=message):
            open_source(spec, ClipConfig())
