"""Testing: every video once, whatever the processes; accuracies, tables and bad input."""

from __future__ import annotations

import csv
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import save_file

from mme_model import evaluate as testing
from mme_model import views as view
from mme_model.classifier import Classifier
from mme_model.confusion import confused_pairs, draw_confusion
from mme_model.finetune_recipe import FinetuneRecipe
from mme_model.listed import known_labels, unique_videos
from mme_model.loading import Loader
from mme_model.reports import headline
from mme_model.scores import Predictions, class_rows, confusion, figures, write_classes
from mme_model.synthetic import CLASSES, SyntheticVideos
from mme_model.viewing import gathered, group_size, share_of
from mme_targets.demux import VideoError
from mme_targets.files import write_video
from mme_targets.synthetic import render_scene

pytestmark = pytest.mark.usefixtures("one_thread")

TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ROOT = Path(__file__).parents[1]
FILES = ["classes.csv", "confusion.png", "predictions.parquet", "row.md", "summary.json"]
FILES += ["unreadable.csv"]
SMALL: dict[str, Any] = {
    "data": "synthetic",
    "views": {
        "size": 32, "frames": 4, "stride": 2, "clips": 9, "test_clips": 2, "test_crops": 3,
        "workers": 1, "flip": False,
    },
    "model": {"size": "tiny", "width": 24, "depth": 2, "heads": 2},
    "classifier": {"head_scale": 10.0},
}  # fmt: skip


def checkpoint(folder: Path, classes: list[str], **views: Any) -> Path:
    """A classifier with random weights."""
    recipe = FinetuneRecipe.from_dict({**SMALL, "views": {**SMALL["views"], **views}})
    torch.manual_seed(3)
    model = Classifier(recipe.model, recipe.views, len(classes), recipe.classifier)
    about = {"format": "mme-1", "kind": "classifier", "recipe": recipe.to_json(), "step": "1"}
    path = folder / "model.safetensors"
    save_file(model.state_dict(), path, metadata={**about, "classes": json.dumps(classes)})
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("classifier"), list(CLASSES))


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven videos of unlike shape and length, the fourth of which cannot be read."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for number in range(7):
        name = f"a {number}.mp4"
        if number == 3:
            (folder / name).write_bytes(b"no video")
        else:
            shape = (36, 50) if number % 2 else (48, 34)
            frames = render_scene(3 + 4 * number, shape, seed=number).frames
            write_video(folder / name, frames, fps=25)
        lines.append(f"{name} {number % 3}\n")
    (folder / "list.csv").write_text("".join(lines))
    return folder / "list.csv"


def rows(out: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    found: list[dict[str, Any]] = parquet.read_table(out / "predictions.parquet").to_pylist()
    return found


def test_a_test_is_the_mean_of_each_views_softmax(
    classifier: Path, listed: Path, tmp_path: Path
) -> None:
    from mme_model.convert import load_classifier

    summary = testing.evaluate(classifier, str(listed), tmp_path, batch=4, cpu=True)
    model, recipe, _ = load_classifier(classifier, "cpu")
    source = view.open_videos(str(listed), recipe.views, held_out=True, testing=True)
    table = rows(tmp_path)
    assert [row["video"] for row in table] == [f"a {i}.mp4" for i in range(7)]
    assert [row["label"] for row in table] == [0, 1, 2, 0, 1, 2, 0]
    right = {1: 0, 5: 0}
    for row in table:
        if row["index"] == 3:
            assert row["prediction"] is row["probabilities"] is row["top5"] is None
            assert (row["views"], "a 3.mp4" in row["error"]) == (0, True)
            continue
        with torch.no_grad():
            logits = [
                model(v[None])[0] for v in view.test_views(source, row["index"], recipe.views)
            ]
        assert row["views"] == len(logits) == 6
        mean = torch.stack(logits).softmax(dim=1).mean(dim=0).numpy()
        np.testing.assert_allclose(row["probabilities"], mean, rtol=1e-4, atol=1e-6)
        best = np.argsort(-mean)[:5].tolist()
        assert row["top5"] == best
        assert row["prediction"] == best[0]
        assert row["top5_names"] == [CLASSES[i] for i in best]
        assert row["prediction_name"] == CLASSES[best[0]]
        assert row["label_name"] == CLASSES[row["label"]]
        np.testing.assert_allclose(row["top5_probabilities"], mean[best], rtol=1e-4)
        for k in right:
            right[k] += row["label"] in best[:k]
    assert 0 < right[5] < 6, "the case tells top-5 from everything and nothing"
    values = {one["name"]: one["value"] for one in summary["figures"]}
    for k, name in ((1, "accuracy"), (5, "top5")):
        assert values[f"{name}_read"] == pytest.approx(100 * right[k] / 6, abs=1e-4)
        assert values[f"{name}_all"] == pytest.approx(100 * right[k] / 7, abs=1e-4)
    assert {one["views"] for one in summary["figures"]} == {"2 × 3"}
    assert summary["counts"] == {
        "videos": 7, "read": 6, "unreadable": 1, "labelled": 7, "scored": 6
    }  # fmt: skip
    with (tmp_path / "unreadable.csv").open() as file:
        assert [row["video"] for row in csv.DictReader(file)] == ["a 3.mp4"]
    assert summary == json.loads((tmp_path / "summary.json").read_text())


def test_two_processes_write_what_one_does(classifier: Path, listed: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from mme_model.evaluate import evaluate\n"
        "evaluate(*sys.argv[1:], batch=12, cpu=True)\n"
    )
    testing.evaluate(classifier, str(listed), tmp_path / "one", batch=12, cpu=True)
    done = subprocess.run(
        [sys.executable, *TWO, script, classifier, listed, tmp_path / "two"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for folder in ("one", "two"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == FILES
    for name in FILES:
        one, two = (tmp_path / folder / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), name


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_groups_are_shared_without_loss(world: int) -> None:
    videos = [0, 1, 2, 4, 5, 7, 8, 9, 10, 11, 13]
    shared = [share_of(videos, 2, rank, world) for rank in range(world)]
    assert sorted(v for part in shared for v in part) == videos
    # Which videos go through the network together does not depend on how many processes there are.
    groups = {tuple(part[at : at + 2]) for part in shared for at in range(0, len(part), 2)}
    assert groups == {(0, 1), (2, 4), (5, 7), (8, 9), (10, 11), (13,)}
    assert (group_size(3, 6), group_size(15, 6)) == (2, 1)


def test_lost_and_doubled_videos_are_noticed() -> None:
    assert gathered([(2, "b"), (0, "a")], [0, 2], 1) == {0: "a", 2: "b"}
    with pytest.raises(RuntimeError, match="of 3 videos 1 were lost and 0 counted twice"):
        gathered([(0, "a"), (1, "b")], [0, 1, 2], 1)
    with pytest.raises(RuntimeError, match="0 were lost and 1 counted twice"):
        gathered([(0, "a"), (1, "b"), (0, "a")], [0, 1], 1)
    with pytest.raises(RuntimeError, match=r"\(1 were not asked for\)"):
        gathered([(0, "a"), (1, "b")], [0], 1)


def _collected(keys: list[tuple[int, int]]) -> int:
    gc.collect()
    return keys[0][1]


def test_workers_leave_this_processs_garbage_alone() -> None:
    parent = os.getpid()

    class Threaded:
        """Like a decoder's frame, which cannot be freed where its threads are not."""

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            if os.getpid() != parent:
                os._exit(3)

    gc.disable()
    try:
        Threaded()
        loader = Loader(_collected, [[(0, 7)], [(0, 8)]], workers=1, prefetch=1, pin=False)
        assert list(loader) == [7, 8]
    finally:
        gc.enable()


def made(labels: list[int], shares: Any, views: list[int] | None = None) -> Predictions:
    values = np.asarray(shares, dtype=np.float32)
    count = len(labels)
    return Predictions(
        names=[f"v{i}" for i in range(count)],
        labels=np.array(labels),
        probabilities=values,
        views=np.array(views or [1] * count),
        reasons=[""] * count,
        classes=[f"c{i}" for i in range(values.shape[1])],
    )


def test_accuracies_equal_a_count_by_hand(rng: np.random.Generator) -> None:
    shares = rng.dirichlet(np.ones(9), 200)
    labels = rng.integers(-1, 9, 200)
    views = (rng.random(200) > 0.2).astype(int)
    found = made(labels.tolist(), shares, views.tolist())
    values = figures(found)
    order = np.argsort(-shares, axis=1)
    right = (order[:, 0] == labels) & (views > 0)
    near = (order[:, :5] == labels[:, None]).any(axis=1) & (views > 0)
    known = labels >= 0
    assert values["accuracy_all"] == pytest.approx(100 * right[known].mean())
    assert values["accuracy_read"] == pytest.approx(100 * right[known & (views > 0)].mean())
    assert values["top5_all"] == pytest.approx(100 * near[known].mean())
    assert values["mean_class"] == pytest.approx(
        100 * np.mean([right[labels == c].mean() for c in range(9)])
    )
    matrix = confusion(found)
    assert matrix.sum() == (known & (views > 0)).sum()
    for row in class_rows(found):
        own = labels == row["class"]
        assert (row["videos"], row["correct"]) == (own.sum(), right[own].sum())
        assert row["unreadable"] == (own & (views == 0)).sum()
        assert row["top5"] == pytest.approx(100 * near[own].mean())


def test_few_classes_have_no_top5_and_unknown_labels_no_accuracy() -> None:
    few = figures(made([0, 1], [[0.9, 0.1], [0.8, 0.2]]))
    assert few["accuracy_all"] == 50
    assert not any(key.startswith("top5") for key in few)
    unknown = figures(made([-1, -1], [[0.9, 0.1], [0.8, 0.2]]))
    assert unknown == {"videos": 2, "read": 2, "unreadable": 0, "labelled": 0}
    with pytest.raises(ValueError, match="one class"):
        figures(made([0], [[1.0]]))


def test_a_class_without_videos_has_no_accuracy(tmp_path: Path) -> None:
    found = made([0, 0, 2], [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.0, 0.9]])
    assert figures(found)["mean_class"] == 75
    write_classes(found, tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["top1"] for row in table] == ["50.00", "", "100.00"]
    assert [row["taken_for"] for row in table] == ["c1", "", ""]


def test_videos_without_labels_are_predicted(
    classifier: Path, listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = testing.evaluate(classifier, str(listed.parent / "a 5.mp4"), tmp_path, cpu=True)
    assert summary["figures"] == []
    assert (rows(tmp_path)[0]["label"], len(rows(tmp_path)[0]["top5"])) == (None, 5)
    assert not (tmp_path / "classes.csv").exists()
    assert headline(summary) == "1 videos predicted, 2 × 3 views; no label is known"


def test_labels_go_by_name(tmp_path: Path) -> None:
    source = SyntheticVideos(10, frames=8, size=32)
    turned = [*reversed(CLASSES), "more"]
    assert known_labels(source, turned, "x").tolist() == [7 - i % 8 for i in range(10)]
    numbers = [str(i) for i in range(8)]
    assert known_labels(source, numbers, "x").tolist() == [i % 8 for i in range(10)]
    with pytest.raises(ValueError, match=r"1 of its 8 classes are not among .* 7: shrink; it know"):
        known_labels(source, CLASSES[:7], "x")
    with pytest.raises(ValueError, match=r"1 label is out of range: .*000007 \(shrink\) has 7"):
        known_labels(source, numbers[:7], "x")
    # A list may know more classes than it has videos of (UCF101's classInd.txt).
    few = SyntheticVideos(3, frames=8, size=32)
    assert known_labels(few, CLASSES[2::-1], "x").tolist() == [2, 1, 0]


class Named(SyntheticVideos):
    def name(self, index: int) -> str:
        return f"{index % 8}"


def test_a_video_counts_once() -> None:
    source = Named(10, frames=8, size=32)
    labels = np.arange(10) % 8
    videos, notes = unique_videos(source, labels)
    assert videos == list(range(8))
    assert notes == ["2 videos are listed more than once and count once: 0, 1"]
    labels[9] = 5
    with pytest.raises(ValueError, match="1 is listed with the labels 1 and 5"):
        unique_videos(source, labels)


@pytest.mark.parametrize("count", [1, 2, 24, 30, 174, 700])
def test_the_picture_is_drawn_at_any_size(
    count: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    from matplotlib.image import imread

    counts = rng.integers(0, 3, (count, count)) * (rng.random((count, count)) < 0.05)
    classes = [f"$a_{i}^ pulling something from left to right and back $" for i in range(count)]
    draw_confusion(counts, classes, tmp_path / "c.png", title="title")
    picture = imread(tmp_path / "c.png")
    assert 300 < picture.shape[0] < 3500
    pairs = confused_pairs(counts)
    assert all(a != b and counts[a, b] == n for a, b, n in pairs)
    assert [n for *_, n in pairs] == sorted((n for *_, n in pairs), reverse=True)


def test_predict_prints_a_table(
    classifier: Path, listed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = str(listed.parent / "a 6.mp4")
    found = testing.predict(video, classifier, views={"test_clips": 1}, cpu=True)
    assert sum(share for _, share in found) == pytest.approx(1)
    assert sorted(name for name, _ in found) == sorted(CLASSES)
    shares = [share for _, share in found]
    assert shares == sorted(shares, reverse=True)


def test_predict_takes_a_video_whatever_its_name_ends_in(
    classifier: Path, listed: Path, tmp_path: Path
) -> None:
    video = listed.parent / "a 6.mp4"
    (tmp_path / "upload-1234").write_bytes(video.read_bytes())
    found = testing.predict(tmp_path / "upload-1234", classifier, cpu=True)
    assert found == testing.predict(video, classifier, cpu=True)
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(VideoError, match=r"notes\.txt: not a video"):
        testing.predict(tmp_path / "notes.txt", classifier, cpu=True)


def test_predict_takes_a_built_in_video_by_its_number(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = {"test_clips": 1}
    testing.evaluate(classifier, "synthetic:4", tmp_path, views=views, cpu=True)
    row = rows(tmp_path)[3]
    found = testing.predict("synthetic/3", classifier, views=views, cpu=True)
    assert [name for name, _ in found[:5]] == row["top5_names"]
    assert [share for _, share in found[:5]] == pytest.approx(row["top5_probabilities"], abs=1e-5)
    assert found != testing.predict("synthetic/2", classifier, views=views, cpu=True)
    parser = ArgumentParser()
    testing.add_predict_arguments(parser)
    testing.run_predict(parser.parse_args(["synthetic/3", str(classifier), "--clips=1", "--cpu"]))
    assert "synthetic-held-out/000003 (down)" in capsys.readouterr().out


def test_the_commands(
    classifier: Path, listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    testing.add_arguments(parser)
    words = [str(classifier), f"--data={listed}", f"--out={tmp_path}", "--clips=1", "--crops=1"]
    args = parser.parse_args([*words, "--unreadable=exclude", "--cpu"])
    assert testing.run(args) == 0
    said = capsys.readouterr()
    assert "of 6 videos, 1 × 1 views; 1 of 7 could not be read and are left out" in said.out
    assert "predictions.parquet" in said.out
    assert "unreadable: a 3.mp4: " in said.err
    assert " views/s, 1 unreadable" in said.err

    parser = ArgumentParser()
    testing.add_predict_arguments(parser)
    args = parser.parse_args([str(listed.parent / "a 6.mp4"), str(classifier), "--top=3", "--cpu"])
    assert testing.run_predict(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("%" in line for line in lines) == 3
    assert not {"root", "format", "workers"} & vars(args).keys(), "of lists alone"


def test_bad_input_is_named(classifier: Path, listed: Path, tmp_path: Path) -> None:
    folder = listed.parent
    bad = folder / "bad.csv"
    bad.write_text("a 3.mp4 0\n")
    with pytest.raises(ValueError, match=r"not one of its 1 videos can be read; the first: a 3"):
        testing.evaluate(classifier, str(bad), tmp_path, cpu=True)
    bad.write_text("a 1.mp4 8\n")
    with pytest.raises(ValueError, match=r"1 label is out of range: a 1.mp4 has 8; .* 0 to 7"):
        testing.evaluate(classifier, str(bad), tmp_path, cpu=True)
    with pytest.raises(NotADirectoryError, match=r"--out is .*list.csv, which is a file"):
        testing.evaluate(classifier, str(listed), listed, cpu=True)
    with pytest.raises(ValueError, match=r"test_crops is 2.*must be 1 or 3"):
        testing.evaluate(classifier, str(listed), tmp_path, views={"test_crops": 2}, cpu=True)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        testing.evaluate(tmp_path / "nowhere", str(listed), tmp_path, cpu=True)
    with pytest.raises(ValueError, match="precision is 'int8'"):
        testing.evaluate(classifier, str(listed), tmp_path, precision="int8", cpu=True)
    with pytest.raises(ValueError, match="holds 10 videos"):
        testing.predict("synthetic:10", classifier, cpu=True)


def test_what_is_missing_is_said(classifier: Path, listed: Path, tmp_path: Path) -> None:
    wrong = testing.evaluate(classifier, str(listed), tmp_path, views={"test_crops": 1}, cpu=True)
    left_out = testing.evaluate(
        classifier, str(listed), tmp_path, views={"test_crops": 1}, unreadable="exclude", cpu=True
    )
    assert wrong["figures"] == left_out["figures"]
    assert "of 7 videos, 2 × 1 views; 1 of 7 could not be read and are counted as wrong" in (
        headline(wrong)
    )
    assert "of 6 videos" in headline(left_out)
    assert "1 of 7 could not be read and are left out" in headline(left_out)
    assert any("5 of 8 classes have no video" in note for note in wrong["notes"])
