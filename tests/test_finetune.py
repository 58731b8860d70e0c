"""Fine-tuning: resumed, killed, doubled, started from a checkpoint, and given bad labels."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from jobs import changed, finish
from labelled import Labelled

from mme_model import checkpoints, labels
from mme_model.cli import main
from mme_model.convert import load_classifier
from mme_model.finetune import Finetuning, finetune
from mme_model.finetune_recipe import FinetuneRecipe, load_finetune_recipe
from mme_model.pretrain import pretrain
from mme_model.recipe import Recipe, load_recipe
from mme_model.results import pretraining
from mme_model.view_data import ViewBatch
from mme_targets.files import write_video

SMALL: dict[str, Any] = {
    "views": {"clips": 16, "size": 32, "frames": 4, "stride": 1, "repeats": 2, "workers": 0,
              "flip": False},
    "model": {"size": "tiny", "width": 24, "depth": 2, "heads": 2, "drop_path": 0.2},
    "classifier": {"ema": 0.9, "drop_patches": 0.5},
    "train": {"steps": 6, "batch_size": 8, "micro_batch": 4, "base_lr": 0.1, "warmup_epochs": 0,
              "checkpoint_every": 2, "val_clips": 9},
}  # fmt: skip


def small(**changes: Any) -> FinetuneRecipe:
    return changed(FinetuneRecipe, SMALL, changes)


def records(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    keep = ("loss", "lr", "val/accuracy", "val/loss", "val/ema/accuracy", "val/ema/loss")
    return [{key: line[key] for key in keep if key in line} for line in lines]


def start(recipe: FinetuneRecipe, out: Path, *words: str, processes: int = 1) -> Any:
    return jobs.start("finetune", recipe, out, *words, processes=processes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    finetune(small(), out, cpu=True)
    torch.set_num_threads(before)
    return out


def test_a_run_leaves_what_it_should(whole: Path) -> None:
    found = records(whole)
    assert [step for step, one in enumerate(found, 1) if "val/accuracy" in one] == [2, 4, 6]
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["job"], summary["videos"], summary["classes"]) == ("classifier", 16, 8)
    top1 = summary["figures"][0]
    assert top1["name"] == "accuracy"
    assert top1["value"] == pytest.approx(100 * found[-1]["val/accuracy"], abs=1e-3)
    assert (top1["unit"], top1["views"], top1["videos"]) == ("%", "1 × 1", 9)
    head, line, row = (whole / "row.md").read_text().splitlines()
    assert head.count("|") == line.count("|") == row.count("|") == 10
    assert "from scratch | ViT-Ti (width 24, depth 2) | - | - | 4 |" in row
    best = min(
        (1 - one["val/accuracy"], -step)
        for step, one in enumerate(found, 1)
        if "val/accuracy" in one
    )
    assert summary["best"]["score"] == pytest.approx(best[0])
    assert f"step-{-best[1]:09d}" in {p.name for p in (whole / "checkpoints").iterdir()}


def test_its_checkpoint_is_the_classifier(whole: Path) -> None:
    model, recipe, classes = load_classifier(whole)
    assert recipe == small()
    assert classes == ["left", "right", "up", "down", "clockwise", "anticlockwise", "grow",
                       "shrink"]  # fmt: skip
    job = Finetuning(small())
    assert job.val is not None
    job.classifier.load_state_dict(model.state_dict())
    job.classifier.eval()
    right = sum(
        float(job.measure(job.classifier, batch)["accuracy"]) * count
        for batch, count in job.held_out(job.classifier, 0, 1)
    )
    assert right / 9 == pytest.approx(records(whole)[-1]["val/accuracy"])
    average = checkpoints.latest(whole)
    assert average is not None
    averaged, _, names = load_classifier(average.path / "ema.safetensors")
    assert names == classes
    assert not torch.equal(averaged.head.weight, model.head.weight)


def test_killed_and_resumed_it_logs_the_same(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(small(), out)
    file = out / "metrics.jsonl"
    while process.poll() is None and (not file.exists() or len(file.read_text().splitlines()) < 3):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    text = finish(start(small(), out, "--resume", "auto"))
    assert records(out) == records(whole)
    assert "top-1 " in text


def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    """Mixing, dropped patches and random depth too: their draws are a micro-batch's own."""
    recipe = small(train__steps=3, train__val_every=3, classifier__ema=0.0)
    one, two = tmp_path / "one", tmp_path / "two"
    finetune(recipe, one, cpu=True)
    finish(start(recipe, two, processes=2))
    for alone, together in zip(records(one), records(two), strict=True):
        assert together == {k: pytest.approx(v, rel=1e-4) for k, v in alone.items()}


def test_mixed_clips_stay_within_grey_levels() -> None:
    job = Finetuning(small())
    batch = next(iter(job.batches(0, 0, 1, torch.device("cpu"))))
    given: list[torch.Tensor] = []

    class Model(torch.nn.Module):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            given.append(clips)
            return torch.zeros(len(clips), 8)

    torch.manual_seed(1)
    loss, _ = job.loss(Model(), batch)
    torch.manual_seed(1)
    job.loss(Model(), batch)
    torch.manual_seed(2)
    job.loss(Model(), batch)
    assert loss.item() == pytest.approx(torch.tensor(8.0).log().item())
    clips = given[0]
    assert clips.shape == batch.rgb.shape
    assert clips.dtype == torch.float32
    assert 0 <= clips.min() <= clips.max() <= 255
    assert not torch.equal(clips, batch.rgb.float())
    assert torch.equal(given[0], given[1])
    assert not torch.equal(given[0], given[2])


def test_it_starts_from_a_pretrained_encoder(tmp_path: Path, capsys: Any) -> None:
    before = Recipe.from_dict(
        {
            "clips": {"clips": 4, "workers": 0},
            "targets": {
                "size": 32, "frames": 4, "stride": 1, "length": 2, "camera_motion": False,
                "tvl1": {"scales": 2, "warps": 1, "outer_iterations": 1, "inner_iterations": 5},
            },
            "model": {"size": "tiny", "width": 24, "depth": 2, "heads": 2, "decoder_width": 16},
            "train": {"steps": 1, "batch_size": 4, "val_clips": 1, "picture_every": 0},
        }
    )  # fmt: skip
    pretrain(before, tmp_path / "before", cpu=True)
    model, _ = checkpoints.load_model(tmp_path / "before")
    job = Finetuning(small(init=str(tmp_path / "before")))
    held = model.encoder.state_dict()  # type: ignore[union-attr]
    for key, value in job.classifier.encoder.state_dict().items():
        assert torch.equal(value, held[key]), key
    assert (job.init["method"], job.init["data"], job.init["epochs"]) == (
        "MME", "synthetic", "1 steps")  # fmt: skip
    with pytest.raises(ValueError, match=r"another architecture[\s\S]*patch_embed.proj.weight"):
        Finetuning(small(init=str(tmp_path / "before"), views__patch=8))


def test_a_foreign_head_is_left_out_and_said(whole: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = small(init=str(whole), train__steps=1, train__val_every=1)
    finetune(recipe, tmp_path / "run", cpu=True)
    assert "its head and the norm before it, which are of its own classes, are not taken" in (
        capsys.readouterr().err
    )
    model, _, _ = load_classifier(whole)
    job = Finetuning(recipe)
    key = "blocks.1.mlp.fc1.weight"
    assert torch.equal(job.classifier.encoder.state_dict()[key], model.encoder.state_dict()[key])
    assert not torch.equal(job.classifier.head.weight, model.head.weight)


# --- labels ---------------------------------------------------------------------------------------


def test_names_of_classes_are_the_datas_or_numbers() -> None:
    videos = [("a.mp4", 0), ("b.mp4", 2)]
    assert labels.class_names(Labelled(*videos), "data") == ("0", "1", "2")
    assert labels.class_names(Labelled(*videos, classes=("x", "y", "z")), "data") == ("x", "y", "z")


@pytest.mark.parametrize(
    ("videos", "classes", "message"),
    [
        ([("a.mp4", 0), ("b.mp4", -1)], (), r"1 of 2 videos have no label[\s\S]*b\.mp4"),
        ([("a.mp4", 0), ("b.mp4", 2)], ("x", "y"), r"labels go up to 2[\s\S]*2 classes[\s\S]*b\."),
        ([("a.mp4", 1), ("b.mp4", 1)], (), "all 2 videos are of one class, 1"),
        ([("a.mp4", 0), ("a.mp4", 1)], (), r"listed with two labels:\n  a\.mp4"),
    ],
)
def test_impossible_labels_are_named(
    videos: list[tuple[str, int]], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        labels.class_names(Labelled(*videos, classes=classes), "data list.csv")


def test_labels_are_matched_by_the_names_of_classes() -> None:
    other = Labelled(("c.mp4", 0), ("d.mp4", 1), classes=("dive", "run"))
    found = labels.matched(other, ("climb", "dive", "run"), "val")
    assert [found.label(i) for i in range(2)] == [1, 2]
    assert found.name(1) == "d.mp4"
    with pytest.raises(ValueError, match=r"1 of its classes are not among the 2[\s\S]*dive"):
        labels.matched(other, ("climb", "run"), "val")
    bare = Labelled(("c.mp4", 0), ("d.mp4", 3))
    with pytest.raises(ValueError, match=r"labels go up to 3, but there are 2 classes"):
        labels.matched(bare, ("climb", "run"), "val")
    with pytest.raises(ValueError, match="no label"):
        labels.matched(Labelled(("c.mp4", -1)), ("climb", "run"), "val")


def test_oddities_are_told_with_names() -> None:
    train = Labelled(("a.mp4", 0), ("a.mp4", 0), ("b.mp4", 2), classes=("x", "y", "z"))
    val = Labelled(("b.mp4", 2), ("c.mp4", 0))
    twice, empty, both = labels.oddities(train, val, train.classes)
    assert "1 video is listed more than once" in twice
    assert "  a.mp4" in twice
    assert "1 of 3 classes have no video to train on:\n  y" in empty
    assert "1 video is both trained on and measured on" in both
    assert "  b.mp4" in both
    assert labels.oddities(Labelled(("a", 0), ("b", 1)), None, ("0", "1")) == []


def test_a_share_of_a_list_has_all_its_classes(tmp_path: Path) -> None:
    frames = torch.zeros((4, 3, 36, 36), dtype=torch.uint8)
    write_video(tmp_path / "0.mp4", frames)
    for number in range(1, 12):
        (tmp_path / f"{number}.mp4").write_bytes((tmp_path / "0.mp4").read_bytes())
    lines = [f"{number}.mp4 {number}" for number in range(12)]
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).write_text("\n".join(lines))
    recipe = small(views__fraction=0.4, train__batch_size=2, train__micro_batch=2)
    train, val = str(tmp_path / "train.csv"), str(tmp_path / "val.csv")
    job = Finetuning(recipe.replace(data=train, val=val))
    assert len(job.source) < 10
    assert job.classes == tuple(str(number) for number in range(12))


def test_the_hash_of_data_follows_names_and_labels() -> None:
    videos = [("a.mp4", 0), ("b.mp4", 1)]
    same = labels.data_hash(Labelled(*videos))
    assert same == labels.data_hash(Labelled(*videos))
    assert same != labels.data_hash(Labelled(("a.mp4", 0), ("b.mp4", 0)))
    assert same != labels.data_hash(Labelled(*videos[::-1]))


def test_an_unreadable_held_out_video_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mme_model.synthetic import SyntheticVideos
    from mme_targets.video import VideoError

    real = SyntheticVideos.frames

    def frames(self: SyntheticVideos, index: int) -> int:
        if self.held_out and index in (0, 4, 5, 6, 7):
            raise VideoError("damaged")
        return real(self, index)

    monkeypatch.setattr(SyntheticVideos, "frames", frames)
    job = Finetuning(small())
    found: list[tuple[ViewBatch, int]] = list(job.held_out(job.model, 0, 1))
    assert [count for _, count in found] == [3, 0, 1]  # of four, four and one
    assert all(len(batch) for batch, _ in found), "the model runs each time"
    out = tmp_path / "run"
    finetune(small(train__steps=2), out, cpu=True)
    assert len((out / "skipped.csv").read_text().splitlines()) == 1 + 5


def test_folders_of_classes_train_and_are_matched_by_name(tmp_path: Path) -> None:
    frames = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 48, 64) * 20
    for name in ("train/dive/a", "train/run/b", "train/swim/c", "val/run/d", "val/swim/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / f"{name}.mp4", frames.contiguous())
    recipe = small(
        data=str(tmp_path / "train"),
        val=str(tmp_path / "val"),
        train__steps=1,
        train__batch_size=2,
        train__micro_batch=2,
    )
    job = Finetuning(recipe)
    assert job.classes == ("dive", "run", "swim")
    [(batch, count)] = job.held_out(job.model, 0, 1)
    assert (count, batch.labels.tolist()) == (2, [1, 2])
    assert batch.rgb.shape == (2, 4, 3, 32, 32)
    batch = next(job.batches(0, 0, 1, torch.device("cpu")))
    folders = [name.split("/")[0] for name in batch.names for _ in range(2)]
    assert [job.classes[label] for label in batch.labels.tolist()] == folders
    # The other way round, val has a class that was not trained on.
    with pytest.raises(ValueError, match=r"1 of its classes are not among the 2[\s\S]*dive"):
        Finetuning(recipe.replace(data=recipe.val, val=recipe.data))


@pytest.mark.parametrize(("classes", "said"), [(5, False), (6, True)])
def test_top5_is_said_where_there_are_more_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: int, said: bool
) -> None:
    frames = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 36, 36) * 20
    for number in range(classes):
        (tmp_path / "all" / str(number)).mkdir(parents=True)
        write_video(tmp_path / "all" / str(number) / "a.mp4", frames.contiguous())
    data = str(tmp_path / "all")
    recipe = small(data=data, val=data, train__batch_size=4, train__steps=1)
    (tmp_path / "own.yaml").write_text(recipe.to_yaml())
    out = tmp_path / "run"
    assert (
        main(["finetune", "--recipe", str(tmp_path / "own.yaml"), "--out", str(out), "--cpu"]) == 0
    )
    assert ("top-5" in capsys.readouterr().out) == said
    names = {one["name"] for one in json.loads((out / "summary.json").read_text())["figures"]}
    assert names == {"accuracy", "ema/accuracy"} | ({"top5", "ema/top5"} if said else set())
    assert ("val/top5" in (out / "metrics.jsonl").read_text()) == said
    assert (out / "row.md").read_text().rstrip().endswith(" - |") != said


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 views are mixed .* even number"):
        Finetuning(small(views__repeats=1, train__batch_size=3, train__micro_batch=3))
    # Of a batch of 6 each of two processes mixes 3.
    job = Finetuning(small(views__repeats=1, train__batch_size=6, train__micro_batch=0))
    with pytest.raises(ValueError, match="3 views are mixed"):
        job.batches(0, 0, 2, torch.device("cpu"))
    # Two views of each of three videos are mixed with one another.
    Finetuning(small(views__repeats=2, train__batch_size=3, train__micro_batch=3))
    with pytest.raises(ValueError, match=r"17, more than the 16 videos .*say --batch_size 4$"):
        Finetuning(small(train__batch_size=17, train__micro_batch=0))
    assert Finetuning(small(train__batch_size=5, train__micro_batch=5)).steps_per_epoch == 3


def test_recipes_are_table_9() -> None:
    for name, epochs, flip in (("ssv2", 30, False), ("k400", 75, True), ("ucf101", 100, True),
                               ("hmdb51", 100, True)):  # fmt: skip
        recipe = load_finetune_recipe(name)
        train, model, head, views = recipe.train, recipe.model, recipe.classifier, recipe.views
        assert (train.epochs, views.flip) == (epochs, flip)
        assert (train.base_lr, train.weight_decay, train.betas) == (1.5e-4, 0.05, (0.9, 0.999))
        assert (train.batch_size, train.warmup_epochs, views.repeats) == (128, 5, 2)
        assert (views.randaug_magnitude, views.randaug_std, model.drop_path) == (9, 0.5, 0.1)
        assert (head.layer_decay, head.label_smoothing) == (0.75, 0.1)
        assert (head.mixup, head.cutmix) == (0.8, 1.0)
    assert load_finetune_recipe("ssv2").views.sampling == "segments"
    tested = {n: load_finetune_recipe(n).views.test_clips for n in ("ssv2", "k400", "ucf101")}
    assert tested == {"ssv2": 2, "k400": 7, "ucf101": 5}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("table12_maskfeat_mvitv2_s", "MaskFeat"),
        ("table12_mme_mvitv2_s", "MME"),
        ("table5_pixel", "VideoMAE"),
    ],
)
def test_rows_name_the_method_that_pre_trained(name: str, method: str) -> None:
    assert pretraining(load_recipe(name))["method"] == method
