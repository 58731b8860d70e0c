"""Pre-training by its command: resumed, killed, doubled, and given bad input."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
from jobs import changed, finish

from mme_model.engine import learning_rate
from mme_model.errors import TrainingError
from mme_model.pretrain import Pretraining, pretrain
from mme_model.recipe import Recipe, TrainConfig

SMALL: dict[str, Any] = {
    "clips": {"clips": 12, "workers": 1, "prefetch": 1},
    "targets": {
        "size": 32, "frames": 4, "stride": 1, "length": 2, "camera_motion": False,
        "tvl1": {"scales": 2, "warps": 1, "outer_iterations": 1, "inner_iterations": 5},
    },
    "model": {"size": "tiny", "width": 24, "depth": 2, "heads": 2, "decoder_width": 16,
              "drop_path": 0.2},
    "train": {"steps": 10, "batch_size": 4, "base_lr": 0.1, "warmup_epochs": 1,
              "checkpoint_every": 2, "val_clips": 4, "picture_every": 0},
}  # fmt: skip


def small(**changes: Any) -> Recipe:
    return changed(Recipe, SMALL, changes)


def losses(out: Path, key: str = "loss") -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == list(range(1, len(steps) + 1)), "each step once, in order"
    return {line["step"]: line[key] for line in lines if key in line}


def start(recipe: Recipe, out: Path, *words: str, processes: int = 1) -> Any:
    return jobs.start("pretrain", recipe, out, *words, processes=processes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(small(), out))
    return out


def test_a_run_leaves_what_it_should(whole: Path) -> None:
    assert len(losses(whole)) == 10
    assert set(losses(whole, "val/loss")) == {2, 4, 6, 8, 10}
    record = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    for key in ("decode", "flow", "targets", "model", "wait"):
        assert record[f"seconds/{key}"] >= 0
    assert {"loss/position", "loss/shape", "loss/zero", "lr", "epoch"} <= record.keys()
    assert Recipe.load(whole / "recipe.yaml") == small()
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["steps"], summary["videos"]) == (10, 12)
    kept = sorted(p.name for p in (whole / "checkpoints").iterdir())
    best = min(losses(whole, "val/loss").items(), key=lambda item: item[1])[0]
    assert kept == sorted({f"step-{s:09d}" for s in (8, 10, best)})
    assert list((whole / "tensorboard").glob("events*"))


def test_killed_and_resumed_it_logs_the_same_losses(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    process = start(small(), out)
    for after in sorted(chance.sample(range(1, 9), 2)):
        file = out / "metrics.jsonl"
        while process.poll() is None and (
            not file.exists() or len(file.read_text().splitlines()) < after
        ):
            time.sleep(0.01)
        time.sleep(chance.random() * 0.3)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = start(small(), out, "--resume", "auto")
    finish(process)
    assert losses(out) == losses(whole), f"killed by the draws of seed {seed}"
    assert losses(out, "val/loss") == losses(whole, "val/loss")


def test_two_processes_learn_as_one(whole: Path, tmp_path: Path) -> None:
    # Without random depth, whose draws are a process's own.
    one, two = tmp_path / "one", tmp_path / "two"
    recipe = small(model__drop_path=0.0, train__steps=6)
    finish(start(recipe, one))
    finish(start(recipe, two, processes=2))
    for key in ("loss", "val/loss"):
        alone, together = losses(one, key), losses(two, key)
        assert alone.keys() == together.keys()
        for step, value in alone.items():
            assert together[step] == pytest.approx(value, rel=1e-4), (key, step)


def test_accumulated_micro_batches_learn_as_one(tmp_path: Path) -> None:
    recipe = small(model__drop_path=0.0, clips__workers=0, train__steps=4)
    parts = small(model__drop_path=0.0, clips__workers=0, train__steps=4, train__micro_batch=1)
    pretrain(recipe, tmp_path / "a", cpu=True)
    pretrain(parts, tmp_path / "b", cpu=True)
    for step, value in losses(tmp_path / "a").items():
        assert losses(tmp_path / "b")[step] == pytest.approx(value, rel=1e-4)


def test_sigterm_saves_and_the_run_goes_on(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(small(train__checkpoint_every=1000), out)
    file = out / "metrics.jsonl"
    while process.poll() is None and (not file.exists() or not file.read_text().count("\n")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 130, text
    done = len(losses(out))
    said = [line for line in text.splitlines() if "stopped" in line or "interrupted" in line]
    assert said == [f"mme: stopped after step {done}; --resume auto goes on from there"]
    assert (out / "checkpoints" / f"step-{done:09d}").is_dir()
    finish(start(small(), out, "--resume", "auto"))
    assert losses(out) == losses(whole)


@pytest.mark.parametrize("what", ["loss", "gradient's norm"])
def test_what_is_no_number_stops_before_the_weights_and_names_the_clips(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    calls = {"n": 0}
    real = Pretraining.loss

    def breaks(self: Pretraining, model: Any, batch: Any) -> Any:
        total, parts = real(self, model, batch)
        calls["n"] += 1
        if calls["n"] == 5:
            # The second is finite, and its slope is 0 · ∞.
            total = total * math.nan if what == "loss" else total + (total * 0).sqrt() * 0
        return total, parts

    monkeypatch.setattr(Pretraining, "loss", breaks)
    # Held-out clips are measured by the same function: none here, so that calls count steps.
    monkeypatch.setattr(Pretraining, "held_out", lambda *_: iter(()))
    message = rf"the {what} of step 5 is nan.*step-000000004"
    with pytest.raises(TrainingError, match=message) as caught:
        pretrain(small(clips__workers=0), out, cpu=True)
    assert "synthetic" in str(caught.value)
    assert len(losses(out)) == 4
    assert (out / "checkpoints" / "step-000000004").is_dir()


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mme_model import checkpoints

    out = tmp_path / "run"
    real = checkpoints._flush
    monkeypatch.setattr(
        checkpoints,
        "_flush",
        lambda path: (
            (_ for _ in ()).throw(OSError(28, "No space left on device"))
            if "000004" in str(path)
            else real(path)
        ),
    )
    with pytest.raises(OSError, match="No space left"):
        pretrain(small(clips__workers=0), out, cpu=True)
    last = checkpoints.latest(out)
    assert last is not None
    assert last.step == 2


def test_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain(small(clips__workers=0, train__steps=2), out, cpu=True)
    with pytest.raises(ValueError, match="holds a run already; --resume auto"):
        pretrain(small(clips__workers=0), out, cpu=True)
    with pytest.raises(ValueError, match=r"mask.ratio: 0.7 -> 0.5"):
        pretrain(small(clips__workers=0, mask__ratio=0.5), out, resume="auto", cpu=True)
    # A longer run of the same is no other.
    pretrain(small(clips__workers=0, train__steps=3), out, resume="auto", cpu=True)
    assert len(losses(out)) == 3


def test_a_batch_larger_than_the_data_says_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size is 13, more than the 12 videos"):
        pretrain(small(train__batch_size=13), tmp_path / "run", cpu=True)


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    for words, message in (
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--mask.ratio", "1.0"], "mask.ratio"),
        (["--targets.lenght", "3"], "targets.lenght"),
        (["--micro_batch", "3"], "micro_batch"),
    ):
        process = start(small(), tmp_path / "run", *words)
        text, _ = process.communicate(timeout=120)
        assert process.returncode in (1, 2), text
        assert message in text
        assert "Traceback" not in text


def test_the_rate_rises_then_falls() -> None:
    config = TrainConfig(batch_size=256, base_lr=1e-3, warmup_epochs=2, min_lr=1e-5)
    rates = [learning_rate(config, s, 100, 10) for s in range(100)]
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == rates[20] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[-1] < 2e-5
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))
    # The scale with the batch (Appendix D), and a run shorter than its warm-up.
    double = TrainConfig(batch_size=512, base_lr=1e-3, warmup_epochs=2)
    assert learning_rate(double, 20, 100, 10) == pytest.approx(2e-3)
    assert max(learning_rate(config, s, 10, 10) for s in range(10)) == pytest.approx(1e-3)


def test_only_matrices_decay() -> None:
    job = Pretraining(small())
    named = {id(p): n for n, p in job.model.named_parameters()}
    decayed, plain = ([named[id(p)] for p in g["params"]] for g in job.groups)
    assert len(decayed) + len(plain) == len(named)
    assert all(n.endswith("weight") and "norm" not in n for n in decayed)
    assert any("mask_token" in n for n in plain)
