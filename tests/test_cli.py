"""The `mme` command as a user meets it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

import mme_model.cli
from mme_model.cli import main
from mme_targets import TargetConfig
from mme_targets.cli import NESTED, field_docs
from mme_targets.extract import read_metadata
from mme_targets.synthetic import render_scene, write_video

QUICK = ["--frames", "4", "--stride", "2", "--size", "64", "--length", "3", "--flow", "dis"]
QUICK += ["--camera_motion", "false"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "scene.mp4"
    write_video(path, render_scene(20, 64, seed=1).frames, fps=25)
    return path


def test_targets(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.safetensors"
    assert main(["targets", str(video), "--out", str(out), *QUICK]) == 0
    assert load_file(out)["position"].shape == (1, 32, 24)
    said = capsys.readouterr().out
    assert "position" in said
    assert str(out) in said


def test_all_with_overlap(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    line = ["targets", str(video), "--out", str(out), "--all", "--overlap", "4", *QUICK]
    assert main(line) == 0
    assert load_file(out)["position"].shape[0] == 4


def test_config_file_and_overrides(video: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "t.safetensors", tmp_path / "c.yaml"
    base = TargetConfig.ssv2(frames=4, size=64, flow="dis", camera_motion=False)
    file.write_text(base.to_yaml())
    line = ["targets", str(video), "--out", str(out), "--config", str(file), "--length", "2"]
    assert main([*line, "--targets", "position,pixel", "--tvl1.tau", "0.2"]) == 0
    config = TargetConfig.from_dict(read_metadata(out)["config"])
    assert config == base.replace(
        length=2, targets=("position", "pixel"), tvl1=base.tvl1.replace(tau=0.2)
    )


def test_dashes_are_taken_in_names(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    line = ["targets", str(video), "--out", str(out), "--camera-motion=false", "--loss-mask"]
    assert main([*line, "false", *QUICK[:-2]]) == 0
    config = read_metadata(out)["config"]
    assert (config["camera_motion"], config["loss_mask"]) == (False, False)


def test_general_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "doctor" in capsys.readouterr().out


def test_preset(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    line = ["targets", str(video), "--out", str(out), "--preset", "ssv2", "--size", "64"]
    assert main([*line, "--flow", "dis", "--camera_motion", "false"]) == 0
    assert read_metadata(out)["config"]["stride"] == 3


@pytest.mark.parametrize("kind", ["png", "mp4", "html"])
def test_show(video: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"x.{kind}"
    assert main(["show", str(video), "--out", str(out), *QUICK]) == 0
    assert out.stat().st_size > 1000


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cpu"]["isa"] in found["cpu"]["isas"]
    assert found["operations"]["trajectories"]["cpu"] is None
    assert set(found["operations"]["hog"]) == {"reference", "cpu", "triton", "cuda"}
    monkeypatch.setenv("MME_BACKEND", "gpu")
    assert main(["doctor"]) == 0
    assert "no such backend" in capsys.readouterr().out
    monkeypatch.delenv("MME_BACKEND")
    assert main(["doctor"]) == 0
    assert "trajectories" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("targets missing.mp4 --out {tmp}/t.safetensors", "missing.mp4"),
        ("targets {video} --out {tmp}/no/t.safetensors", "cannot be written"),
        ("targets {video} --out {tmp}/t.safetensors --length 99", "TargetConfig.length is 99"),
        ("targets {video} --out {tmp}/t.safetensors --grid 5", "TargetConfig.grid is 5"),
        ("targets {video} --out {tmp}/t.safetensors --crop left", "--crop is 'left'"),
        ("targets {video} --out {tmp}/t.safetensors --start 99", "start is 99"),
        ("targets {video} --out {tmp}/t.safetensors --config {tmp}/no.yaml", "no.yaml"),
        (
            "targets {video} --out {tmp}/t.safetensors --backend cuda --flow dis --size 64",
            "backend='cuda'",
        ),
        ("targets {video} --out {tmp}/t.safetensors --backend gpu", "backend is 'gpu'"),
        ("targets {video} --out {tmp}/t.npz", "must end in .safetensors"),
        ("targets {video} --out {tmp}/t.safetensors --overlap 4", "needs --all"),
        ("show {video} --out {tmp}/t.gif", "must end in"),
        ("show {video} --out {tmp}/t.png --length 0", "leaves no track"),
    ],
)
def test_errors_are_one_line(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    words = [w.format(video=video, tmp=tmp_path) for w in line.split()]
    assert main(words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("mme: error: ")
    assert message in said
    assert not [p for p in tmp_path.iterdir() if p.name != "no.yaml"], "nothing is left behind"


@pytest.mark.parametrize("line", ["targets {video} --out x --lenght 3", "targets", "nonsense", ""])
def test_wrong_usage(video: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([word.format(video=video) for word in line.split()])
    assert stop.value.code == 2
    assert "usage: mme " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain --out x --lenght 3",
         "--lenght is not an option of mme pretrain; did you mean --targets.length?"),
        ("pretrain --out x --model.dpeth=3",
         "--model.dpeth is not an option of mme pretrain; did you mean --model.depth or"),
        ("pretrain --out x --model 3",
         "--model is not an option of mme pretrain; did you mean one of --model.backbone, "),
        ("finetune --out x --lr 3",
         "--lr is not an option of mme finetune; did you mean --base_lr or --min_lr or "),
        ("finetune --out x --zzzz 3",
         "--zzzz is not an option of mme finetune; mme finetune --help lists them"),
        ("finetune --out x more", "'more' is one word more than mme finetune takes"),
        ("finetune --out", "--out needs a value"),
        ("test --cpu", "CHECKPOINT and --out are missing"),
        ("test a --out x --btach 3", "--btach is not an option of mme test; did you mean --batch?"),
        ("predict a b --clips x", "--clips is 'x'; must be a whole number"),
        ("probe a --out x --init no", "--init is 'no'; must be checkpoint or random"),
        ("probe a --out x --lr no", "--lr is 'no'; must be a number"),
        ("convert a b --to no", "--to is 'no'; must be mme, videomae, released or hf"),
        ("extract a --out x --dry-rnu",
         "--dry-rnu is not an option of mme extract; did you mean --dry_run?"),
        ("store verfy x", "info|verify|merge is 'verfy'; must be info, verify or merge"),
        ("store", "mme store needs one word more: info, verify, merge"),
        ("store verify", "STORE is missing"),
        ("store verify a --sampel 2",
         "--sampel is not an option of mme store verify; did you mean --sample?"),
        ("reconstruct a b -out x",
         "-out is not an option of mme reconstruct; did you mean --out?"),
        ("targets a --out x --tvl1.tua 3",
         "--tvl1.tua is not an option of mme targets; did you mean --tvl1.tau or --tvl1.theta?"),
        ("targets a --out x --tvl1.tau no", "--tvl1.tau is 'no'; must be a number"),
        ("targets a --out x --preset no",
         "--preset is 'no'; must be paper, kinetics400, ssv2 or released"),
        ("show a --out x --grdi 4", "--grdi is not an option of mme show; did you mean --grid?"),
        ("flow a --out x --counts 4",
         "--counts is not an option of mme flow; did you mean --count?"),
        ("info --receipe a", "--receipe is not an option of mme info; did you mean --recipe?"),
        ("recipes --jsn", "--jsn is not an option of mme recipes; mme recipes --help lists them"),
        ("demo --cpu no", "--cpu is not an option of mme demo; mme demo --help lists them"),
        ("doctor --jsn", "--jsn is not an option of mme doctor; did you mean --json?"),
        ("finetne --out x", "'finetne' is no command; did you mean finetune?"),
        ("", "a command is missing; mme --help lists them"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: mme ")
    assert error.startswith(f"mme: error: {said}")


def test_values_are_not_taken_for_options() -> None:
    from mme_model.usage import Parser

    parser = Parser(prog="mme x")
    parser.add_argument("--classes", type=str)
    parser.add_argument("--low_rate", type=float)
    parser.add_argument("name", type=str, nargs="?")
    found = parser.read(["--low-rate", "-0.5", "--classes=a-b", "--", "--name"])
    assert (found.low_rate, found.classes, found.name) == (-0.5, "a-b", "--name")
    assert parser.read(["--low", "1"]).low_rate == 1, "a beginning that is of one option alone"


def test_help_names_every_constant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["targets", "--help"])
    said = capsys.readouterr().out
    for name in field_docs(TargetConfig):
        assert name in NESTED or f"--{name} " in said


def test_one_line_says_that_it_was_interrupted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stop, said in (
        (KeyboardInterrupt(), "mme: interrupted; nothing half-written is left\n"),
        (KeyboardInterrupt("stopped after step 3"), "mme: stopped after step 3\n"),
    ):

        def interrupted(words: list[str], stop: BaseException = stop) -> int:
            raise stop

        monkeypatch.setattr(mme_model.cli, "_main", interrupted)
        assert main(["pretrain"]) == 130
        assert capsys.readouterr().err == said
    monkeypatch.setenv("RANK", "1")
    assert main(["pretrain"]) == 130
    assert not capsys.readouterr().err, "another process says it"


def test_on_a_terminal_the_bar_says_that_a_run_is_stopping(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mme_model.logs import Progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(9, 0, 4, show=True)
    progress.hint("stopping after this step")
    assert progress._bar.tasks[0].fields["what"] == "stopping after this step"
    progress.close()


def interrupted(words: list[str]) -> str:
    """What a command prints that gets ^C when it shows its rate; it must end as interrupted."""
    screen, end = pty.openpty()  # the bar moves on a terminal alone
    process = subprocess.Popen(
        [sys.executable, "-m", "mme_model.cli", *words],
        stderr=end,
        stdout=end,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    os.close(end)
    seen = b""
    with suppress(OSError):  # what reading gives when the other end is closed
        while more := os.read(screen, 1 << 16):
            if b"pairs/s" not in seen and b"pairs/s" in seen + more:  # the work is under way
                process.send_signal(signal.SIGINT)
            seen += more
    os.close(screen)
    assert process.wait(60) == 130, seen
    assert b"Traceback" not in seen
    return seen.decode()


def test_interrupted_leaves_nothing(shared_data: Path, tmp_path: Path) -> None:
    video = str(shared_data / "videos" / "kinetics_340x256.mp4")
    said = interrupted(["targets", video, "--out", str(tmp_path / "t.safetensors"), "--all"])
    assert "interrupted" in said
    assert not list(tmp_path.iterdir())


def test_an_interrupted_extraction_leaves_no_entry(shared_data: Path, tmp_path: Path) -> None:
    """Its threads for decoding and writing end with it."""
    video = str(shared_data / "videos" / "kinetics_340x256.mp4")
    assert "interrupted" in interrupted(["extract", video, "--out", str(tmp_path / "store")])
    assert not list((tmp_path / "store" / "videos").glob("*/*"))
