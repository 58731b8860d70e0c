"""`mme extract` and `mme store`, alone, under torchrun, and on Ray with a worker killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import CONFIG, LINE, tree

from mme_model.cli import main
from mme_targets.store import Record, Store
from mme_targets.store_job import ExtractJob, Item


def test_the_command(
    store_videos: Path, store_whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "store")
    assert main(["extract", str(store_videos), "--out", out, "--dry-run", *LINE]) == 0
    said = capsys.readouterr().out
    assert "4 videos in the list, 4 left" in said
    assert "about 66 frames" in said
    assert not Path(out).exists()
    assert main(["extract", str(store_videos), "--out", out, "--shard", "0/2", *LINE]) == 0
    assert "2 done, 0 failed, 2 left" in capsys.readouterr().out
    assert main(["extract", str(store_videos), "--out", out, "--shard", "1/2", *LINE]) == 0
    assert tree(Path(out)) == tree(store_whole)
    assert main(["store", "info", out]) == 0
    assert "4 videos, 66 frames" in " ".join(capsys.readouterr().out.split())
    assert main(["store", "verify", out, "--list", str(store_videos), "--sample", "2", *LINE]) == 0
    assert "kB read, 2 computed again: all as they should be" in capsys.readouterr().out
    assert main(["store", "merge", str(tmp_path / "copy"), out]) == 0
    os.truncate(Store(out).file("a.mp4"), 50)
    assert main(["store", "verify", out]) == 1
    assert "wrong: a.mp4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["extract", "{videos}", "--out", "{out}", "--shard", "3"], "--shard is '3'"),
        (["extract", "synthetic", "--out", "{out}"], "names no video files"),
        (["extract", "{videos}/none", "--out", "{out}"], "there is no such list"),
        (["store", "info", "{videos}"], "no store of tracks"),
        (["store", "info", "{out}", "x"], "takes one store"),
        (["store", "merge", "{out}"], "at least one to take in"),
    ],
)
def test_wrong_usage_says_so(
    store_videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: list[str],
    message: str,
) -> None:
    out = tmp_path / "store"
    assert main([word.format(videos=store_videos, out=out) for word in line]) == 1
    assert message in capsys.readouterr().err


def test_a_dry_run_names_what_cannot_be_read(
    store_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(store_videos / "d.mp4", tmp_path)
    (tmp_path / "empty.mp4").touch()
    listed = tmp_path / "list.txt"
    listed.write_text("d.mp4\ngone.mp4\nempty.mp4\n")
    line = ["extract", str(listed), "--out", str(tmp_path / "store"), *LINE]
    assert main([*line, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 videos in the list, 3 left\n" in said
    assert "2 of the 3 videos looked at cannot be read:" in said
    assert "  gone.mp4: there is no such file\n  empty.mp4: the file is empty\n" in said
    assert main(line) == 3
    assert "--retry tries them again" in capsys.readouterr().out
    assert main([*line, "--dry-run"]) == 0
    assert "2 videos failed before: --retry tries them again" in capsys.readouterr().out
    assert main(line) == 3
    assert "0/0" not in capsys.readouterr().err, "no bar where nothing is left"


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    store_videos: Path,
    store_whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: list[str],
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    line = ["extract", str(store_videos), *LINE, *how, "--out"]
    assert main([*line, str(tmp_path / "file" / "store")]) == 1
    assert f"{tmp_path}/file/store: no store can be written there" in capsys.readouterr().err
    assert main([*line, str(tmp_path / "full")]) == 1
    assert "is no store of tracks; name a new or an empty folder" in capsys.readouterr().err

    def touch(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", touch)
    for out in (tmp_path / "new" / "store", store_whole):
        assert main([*line, str(out)]) == 1
        said = capsys.readouterr()
        assert f"{out}: no store can be written there" in said.err
        assert "Read-only file system" in said.err
        assert not said.out
    assert not (tmp_path / "new").exists()


def test_going_on_with_other_constants_names_the_options(
    store_videos: Path, store_whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["extract", str(store_videos), "--out", str(store_whole)]
    assert main(line) == 1
    assert capsys.readouterr().err == (
        f"mme: error: {store_whole} was made with other constants: flow: dis in the store, tvl1 "
        "asked for; camera_motion: false in the store, true asked for; length: 4 in the store, 6 "
        "asked for: pass --flow dis --camera_motion false --length 4, or name another --out\n"
    )
    options = ["--flow", "dis", "--camera_motion", "false", "--length", "4"]
    assert main([*line, *options]) == 0


@pytest.mark.parametrize(
    ("action", "has", "has_not"),
    [
        ("info", ["STORE"], ["--list", "--tvl1.warps", "--device"]),
        ("verify", ["--sample", "--weights", "--tvl1.warps"], []),
        ("merge", ["NEW", "--list"], ["--sample", "--tvl1.warps", "--device"]),
    ],
)
def test_each_action_has_a_help_of_its_own(
    capsys: pytest.CaptureFixture[str], action: str, has: list[str], has_not: list[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["store", action, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: mme store {action}" in said
    assert all(word in said for word in has)
    assert not [word for word in has_not if word in said]


def test_processes_of_torchrun_divide_the_list(
    store_videos: Path, store_whole: Path, tmp_path: Path
) -> None:
    """Two at once, into one store."""
    root = str(Path(__file__).parent.parent)
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "mme_model"]
    made = subprocess.run(
        [sys.executable, "-m", *launch, "extract", str(store_videos), "--out", "store", *LINE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("2 videos extracted") == 2, made.stdout
    assert tree(tmp_path / "store") == tree(store_whole)


# --- Ray ------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[None]:
    """Ray on this machine, with two workers."""
    import ray

    package = str(Path(__file__).parent.parent)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


@pytest.mark.slow
def test_on_ray_with_a_worker_killed(
    cluster: None, store_items: list[Item], store_whole: Path, tmp_path: Path
) -> None:
    """The worker dies in its first video; another takes its part over."""
    from mme_targets.store_ray import on_ray

    class Killed(ExtractJob):
        def settle(self, store: Store, item: Item) -> Record:
            mark = self.out.parent / "killed"
            if item.name == "b.mp4" and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().settle(store, item)

    out = tmp_path / "store"
    report = Killed(out, CONFIG, store_items).run(many=on_ray("local"))
    assert (tmp_path / "killed").exists()
    assert (report.made, report.done, report.left) == (4, 4, 0)
    assert tree(out) == tree(store_whole)
