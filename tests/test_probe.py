"""Probing: features kept and taken up again, linear layers, neighbours, and bad input."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file

from mme_model import features as kept
from mme_model import probe as probing
from mme_model import views as view
from mme_model.finetune_recipe import ViewConfig
from mme_model.linear import LinearProbe, ProbeConfig, neighbours, sweep, train_linear
from mme_model.mme import MaskedMotionEncoder
from mme_model.recipe import Recipe
from mme_model.synthetic import SyntheticVideos
from mme_model.vit import Encoder

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE: dict[str, Any] = {
    "data": "synthetic",
    "clips": {"clips": 16, "workers": 0},
    "targets": {"size": 32, "frames": 4, "stride": 2, "length": 2},
    "model": {"size": "tiny", "width": 24, "depth": 1, "heads": 2, "decoder_width": 16},
}
VIEWS = ViewConfig(size=32, frames=4, stride=2, test_clips=2, test_crops=1, workers=0, flip=False)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe.from_dict(RECIPE)
    torch.manual_seed(5)
    model = MaskedMotionEncoder(recipe.model, recipe.targets)
    with torch.no_grad():  # so that a norm that is left out would show
        model.encoder.norm.bias.add_(torch.randn(24))
    path = tmp_path_factory.mktemp("pretrained") / "model.safetensors"
    about = {"format": "mme-1", "kind": "pretrain", "recipe": recipe.to_json(), "step": "1"}
    save_file(model.state_dict(), path, metadata=about)
    return path


def values(summary: dict[str, Any]) -> dict[str, float]:
    return {one["name"]: one["value"] for one in summary["figures"]}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Views that encoders saw."""
    seen: list[int] = []
    forward = Encoder.forward

    def counted(self: Encoder, clips: torch.Tensor, visible: Any = None) -> torch.Tensor:
        seen.append(len(clips))
        return forward(self, clips, visible)

    monkeypatch.setattr(Encoder, "forward", counted)
    return seen


def test_a_probe_leaves_what_it_should_and_a_second_one_reads_features(
    pretrained: Path, tmp_path: Path, runs: list[int]
) -> None:
    options: dict[str, Any] = {"cpu": True, "knn": False, "cache": tmp_path / "features"}
    lists = ("synthetic:24", "synthetic:16")
    first = probing.probe(pretrained, *lists, out=tmp_path / "a", **options)
    assert sum(runs) == (24 + 16) * 2
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names >= {"summary.json", "row.md", "predictions.parquet", "confusion.png"}
    assert json.loads((tmp_path / "a" / "summary.json").read_text()) == first
    assert first["counts"] == {
        "videos": 16, "read": 16, "unreadable": 0, "labelled": 16, "scored": 16
    }  # fmt: skip
    assert {one["views"] for one in first["figures"]} == {"2 × 1"}
    assert "| MME | ViT-Ti (width 24, depth 1) | synthetic | 800 |" in (
        (tmp_path / "a" / "row.md").read_text()
    )
    head = load_file(tmp_path / "a" / "probe.safetensors")
    assert head["head.weight"].shape == (8, 24)

    runs.clear()
    again = probing.probe(pretrained, *lists, out=tmp_path / "b", **options)
    assert (runs, values(again)) == ([], values(first))
    other = {**options, "config": ProbeConfig(norm="l2"), "knn": True}
    third = probing.probe(pretrained, *lists, out=tmp_path / "c", **other)
    assert runs == []
    assert "knn" in values(third)
    few = probing.probe(pretrained, "synthetic:12", lists[1], out=tmp_path / "few", **other)
    assert [one["k"] for one in few["figures"] if one["name"] == "knn"] == [12]
    runs.clear()
    changed = {**options, "views": {"stride": 1}}
    probing.probe(pretrained, *lists, out=tmp_path / "d", **changed)
    probing.probe(
        pretrained, "synthetic:24", "synthetic:16", out=tmp_path / "e", init="random", **options
    )
    assert sum(runs) == 2 * (24 + 16) * 2


def test_features_are_the_mean_of_the_normed_tokens(pretrained: Path, tmp_path: Path) -> None:
    from mme_model.convert import load_encoder

    encoder, _ = load_encoder(pretrained)
    source = SyntheticVideos(5, frames=12, size=36)
    found = compute(encoder, source, tmp_path)
    assert found.counts.tolist() == [2] * 5
    assert found.owners.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    with torch.no_grad():
        expected = torch.cat(
            [encoder(view.test_views(source, i, VIEWS)).mean(dim=1) for i in range(5)]
        )
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-6)
    state = load_file(pretrained)
    torch.testing.assert_close(encoder.norm.bias, state["encoder.norm.bias"])


def compute(encoder: Any, source: Any, cache: Path, batch: int = 4) -> kept.Features:
    state = PartialState(cpu=True)
    return kept.cached_features(
        encoder, source, VIEWS, cache, what="videos", batch=batch, state=state
    )


def test_processes_share_the_work(tmp_path: Path, runs: list[int]) -> None:
    recipe = Recipe.from_dict(RECIPE)
    torch.manual_seed(0)
    encoder = Encoder(recipe.model, VIEWS).eval()
    source = SyntheticVideos(7, frames=12, size=36)
    barrier = threading.Barrier(2, timeout=60)

    def one(rank: int) -> kept.Features:
        state = SimpleNamespace(
            device=torch.device("cpu"), process_index=rank, num_processes=2,
            is_main_process=rank == 0, wait_for_everyone=barrier.wait,
        )  # fmt: skip
        return kept.cached_features(
            encoder, source, VIEWS, tmp_path, what="videos", batch=4, state=state
        )

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one, (0, 1))
    assert sum(runs) == 7 * 2
    assert torch.equal(first.values, second.values)
    alone = compute(encoder, source, tmp_path / "alone")
    assert torch.equal(first.values, alone.values)


class Torn(SyntheticVideos):
    """The third video cannot be read; reading stops for good at the one of that index."""

    stop = -1

    def frames(self, index: int) -> int:
        if index == 2:
            raise view.VideoError("broken")
        if index == self.stop:
            raise KeyboardInterrupt
        return super().frames(index)


def test_an_interrupted_run_goes_on(
    tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "PART", 4)
    recipe = Recipe.from_dict(RECIPE)
    torch.manual_seed(0)
    encoder = Encoder(recipe.model, VIEWS).eval()
    source = Torn(11, frames=12, size=36)
    source.stop = 9
    with pytest.raises(KeyboardInterrupt):
        compute(encoder, source, tmp_path)
    assert sum(runs) == 2 * 7  # videos 0, 1, 3 to 7
    source.stop = -1
    runs.clear()
    found = compute(encoder, source, tmp_path)
    assert sum(runs) == 2 * 3
    assert found.counts.tolist() == [2, 2, 0, *[2] * 8]
    assert found.reasons == ["", "", "broken", *[""] * 8]
    fresh = compute(encoder, source, tmp_path / "fresh", batch=22)
    torch.testing.assert_close(found.values, fresh.values, rtol=1e-5, atol=1e-6)

    (folder,) = (path for path in tmp_path.iterdir() if (path / "about.json").exists())
    damaged = min(folder.glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    runs.clear()
    torch.testing.assert_close(compute(encoder, source, tmp_path).values, found.values)
    assert 0 < sum(runs) < 20


def test_keys_tell_weights_videos_and_views_apart(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(RECIPE)
    encoder = first_encoder = Encoder(recipe.model, VIEWS)
    file = tmp_path / "v.mp4"
    file.write_bytes(b"one")

    def key(source: Any, config: ViewConfig = VIEWS, precision: str = "auto") -> str:
        return str(kept.cache_key(encoder, source, config, precision)["key"])

    class Filed(SyntheticVideos):
        def path(self, index: int) -> str:
            return str(file)

    first = key(SyntheticVideos(4))
    assert key(SyntheticVideos(4), VIEWS.replace(workers=3, flip=True)) == first
    others = [
        key(SyntheticVideos(5)),
        key(SyntheticVideos(4, seed=1)),
        key(SyntheticVideos(4, held_out=True)),
        key(SyntheticVideos(4), VIEWS.replace(stride=3)),
        key(SyntheticVideos(4), VIEWS.replace(test_clips=3)),
        key(SyntheticVideos(4), precision="bf16"),
        key(Filed(4)),
    ]
    file.write_bytes(b"another")
    others.append(key(Filed(4)))
    with torch.no_grad():
        encoder.norm.bias[0] += 1
    others.append(key(SyntheticVideos(4)))
    # Weights do not tell how many heads they are for.
    encoder = Encoder(recipe.model.replace(heads=2 * recipe.model.heads), VIEWS)
    encoder.load_state_dict(first_encoder.state_dict())
    others.append(key(SyntheticVideos(4)))
    assert len({first, *others}) == 11


def blobs(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes that lie apart in two of six channels, of unlike scale and far from zero."""
    labels = rng.integers(0, 4, count)
    centres = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[labels]
    points = rng.standard_normal((count, 6)) * 0.1
    points[:, :2] += centres
    points = points * [0.01, 0.01, 1, 1, 1, 1] + 5
    return torch.tensor(points, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("norm", ["standardise", "batchnorm"])
def test_a_linear_layer_learns_what_is_linear(
    norm: Any, optimizer: Any, rng: np.random.Generator
) -> None:
    train, labels = blobs(rng, 600)
    test, truth = blobs(rng, 200)
    config = ProbeConfig(norm=norm, optimizer=optimizer, lr=0.01)
    linear = train_linear(train, labels, 4, config)
    assert not linear.training
    with torch.no_grad():
        assert (linear(test).argmax(dim=1) == truth).float().mean() > 0.95
    again = train_linear(train, labels, 4, config)
    assert torch.equal(linear.head.weight, again.head.weight)
    other = train_linear(train, labels, 4, config.replace(seed=1))
    assert not torch.equal(linear.head.weight, other.head.weight)


def test_normalisations_are_what_they_say(rng: np.random.Generator) -> None:
    train, _ = blobs(rng, 100)
    train[:, 5] = 3.0  # a channel that tells nothing
    made = {
        norm: LinearProbe(train, 4, norm).norm(train)
        for norm in ("standardise", "batchnorm", "l2", "none")
    }
    for norm in ("standardise", "batchnorm"):
        torch.testing.assert_close(made[norm].mean(dim=0), torch.zeros(6), atol=1e-3, rtol=0)
        assert made[norm][:, 5].abs().max() < 1e-3
    spread = made["standardise"][:, :5].std(dim=0, correction=0)
    torch.testing.assert_close(spread, torch.ones(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(made["l2"].norm(dim=1), torch.ones(100))
    assert torch.equal(made["none"], train)


def test_a_sweep_holds_whole_videos_out_and_takes_the_best(rng: np.random.Generator) -> None:
    train, labels = blobs(rng, 300)
    owners = torch.arange(150).repeat_interleave(2)
    start = ProbeConfig(lr=1e-6, epochs=3)
    chosen, tried = sweep(train, labels, owners, 4, start, multiples=(1, 1e4, 1e5))
    accuracy = dict(tried)
    assert accuracy[chosen.lr] == max(accuracy.values())
    assert chosen.lr > 1e-6
    assert len(tried) == 3


def test_neighbours_vote_by_the_cosine() -> None:
    train = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 2, 2])
    found = neighbours(train, labels, torch.tensor([[3.0, 0.0], [0.0, -1.0]]), 3, k=2)
    near = torch.tensor([1.0, 2 / (4 + 0.01) ** 0.5])
    weights = (near / 0.07).exp()
    torch.testing.assert_close(found[0, :2], weights / weights.sum())
    assert found[0, 2] == 0
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="k is 5; must lie in 1 to the 4 training videos"):
        neighbours(train, labels, train, 3, k=5)


def test_the_command(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    probing.add_arguments(parser)
    words = [str(pretrained), "--data=synthetic:24", "--val=synthetic:16", f"--out={tmp_path}"]
    words += ["--norm=batchnorm", "--sweep", "--knn", "--epochs=2", "--clips=1", "--cpu"]
    assert probing.run(parser.parse_args(words)) == 0
    said = capsys.readouterr().out
    assert "% of 16 videos, 1 × 1 views" in said
    assert "20 nearest neighbours: top-1" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["probe"]["norm"], len(summary["sweep"])) == ("batchnorm", 7)
    assert summary["views"] == {"clips": 1, "crops": 1}


def test_random_encoders_need_no_checkpoint(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(Recipe.from_dict(RECIPE).to_yaml())
    found = [
        probing.probe(None, out=tmp_path / f"{n}", init="random", recipe=str(recipe),
              config=ProbeConfig(seed=seed, epochs=1), cpu=True)
        for n, seed in enumerate((0, 0, 1))
    ]  # fmt: skip
    assert [one["init"] for one in found] == [{"from": "random", "method": "random"}] * 3
    keys = [{path.name for path in (tmp_path / f"{n}" / "features").iterdir()} for n in range(3)]
    assert keys[0] == keys[1]
    assert not keys[0] & keys[2]


def test_bad_input_is_named(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a checkpoint is missing; --init random"):
        probing.probe(None, out=tmp_path, cpu=True)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        probing.probe(tmp_path / "nowhere", out=tmp_path, cpu=True)
    with pytest.raises(ValueError, match=r"init is 'zero'; must be checkpoint or random"):
        probing.probe(pretrained, out=tmp_path, init="zero", cpu=True)  # type: ignore[arg-type]
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(b"no video")
    listed = tmp_path / "list.csv"
    listed.write_text("a.mp4\nb.mp4\n")
    with pytest.raises(ValueError, match="val is missing"):
        probing.probe(pretrained, str(listed), out=tmp_path, cpu=True)
    with pytest.raises(ValueError, match="2 of 2 videos have no label"):
        probing.probe(pretrained, str(listed), "synthetic:2", out=tmp_path, cpu=True)
    listed.write_text("a.mp4 0\nb.mp4 1\n")
    with pytest.raises(ValueError, match=r"list.csv: not one of its 2 videos can be read"):
        probing.probe(pretrained, str(listed), str(listed), out=tmp_path, cpu=True)
    with pytest.raises(ValueError, match="norm is 'unit'"):
        ProbeConfig(norm="unit")  # type: ignore[arg-type]
