"""Sheets of tracks: predictions taken to pixels, drawn where they belong, and judged."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from matplotlib.image import imread
from torch import Tensor, nn

import mme_model.reconstruct as module
import mme_targets as mme
from mme_model.batch import Batch
from mme_model.mme import MaskedMotionEncoder
from mme_model.recipe import Recipe
from mme_model.reconstruct import Reconstruction, reconstruct, reconstruct_video, sheet
from mme_model.sheet import COLUMNS, GREY, draw_sheet
from mme_targets import ClipPlan, MotionTargets, Targets
from mme_targets.files import write_video
from mme_targets.visualize import ramp

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(**targets: Any) -> Recipe:
    """Clips of 2 x 2 x 2 patches, with a flow that is quick."""
    quick = {"frames": 4, "stride": 2, "size": 32, "flow": "farneback", "camera_motion": False}
    return Recipe.from_dict(
        {
            "targets": quick | targets,
            "model": {"size": "tiny", "width": 32, "depth": 1, "heads": 2, "decoder_width": 16,
                      "decoder_heads": 1},
            "mask": {"ratio": 0.5, "kind": "random"},
        }
    )  # fmt: skip


class Echo(nn.Module):
    """Predicts what it is told, plus `noise`."""

    def __init__(self, targets: Targets, noise: float = 0.0) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.values, self.noise = targets["position"].values, noise

    def forward(self, clips: Tensor, masked: Tensor) -> dict[str, Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        return {"position": self.values[: len(clips)] + self.noise}


class Clips:
    """Two clips with given flow, four of whose eight patches are masked in random places."""

    def __init__(self, plans: list[ClipPlan] | None = None, **targets: Any) -> None:
        self.recipe = recipe(**targets)
        self.plan = ClipPlan.build(self.recipe.targets)
        g = torch.Generator().manual_seed(7)
        shape = (2, len(self.plan.frames), 3, 32, 32)
        frames = torch.randint(0, 256, shape, generator=g).to(torch.uint8)
        self.flow = torch.randn(2, len(self.plan.pairs), 2, 32, 32, generator=g) * 3
        self.masked = torch.tensor([[0, 3, 5, 6], [1, 2, 6, 7]])
        make = MotionTargets(self.recipe.targets)
        self.targets = make(frames, plans, self.flow, self.masked)
        self.rgb = frames[:, list(self.plan.rgb)]

    def reconstruct(self, noise: float = 0.0) -> list[Reconstruction]:
        model = Echo(self.targets, noise)
        return reconstruct(model, self.recipe, self.rgb, self.masked, self.targets)

    def batch(self, **changes: Any) -> Batch:
        values: dict[str, Any] = {
            "rgb": self.rgb, "masked": self.masked, "targets": self.targets, "frames": None,
            "boxes": None, "padded": None, "permutation": None, "epoch": 0, "indices": [4, 9],
            "names": ["some/first.mp4", "some/second.mp4"],
        }  # fmt: skip
        return Batch(**(values | changes))


@pytest.mark.parametrize("grid", [4, 8, 16])
@pytest.mark.parametrize("norm", ["patch", "coordinate", "none"])
def test_true_tracks_are_those_of_the_flow(grid: int, norm: str) -> None:
    if (grid, norm) == (16, "coordinate"):
        norm = "patch"  # one track a patch has no deviation of its own
    clips = Clips(grid=grid, norm=norm)
    found = mme.trajectories(clips.flow, grid=grid, steps=clips.plan.steps)
    side = 16 // grid
    for i, one in enumerate(clips.reconstruct()):
        hidden = torch.zeros(8, dtype=torch.bool)
        hidden[clips.masked[i]] = True
        assert torch.equal(one.masked, hidden.view(2, 2, 2))
        of_track = one.masked.repeat_interleave(side, 1).repeat_interleave(side, 2)
        assert torch.equal(one.shown, found.visible[i] & of_track)
        assert one.shown.any()
        torch.testing.assert_close(
            one.true[one.shown], found.points[i][one.shown], atol=1e-4, rtol=1e-5
        )
        assert torch.equal(one.predicted, one.true)
        assert torch.equal(one.frames, clips.rgb[i, ::2])
        assert one.distances.predicted == 0


def test_predictions_start_at_the_grid_and_are_scaled_by_their_own_patch() -> None:
    clips = Clips()
    exact, off = clips.reconstruct()[0], clips.reconstruct(noise=0.5)[0]
    assert torch.equal(off.predicted[..., 0, :], exact.true[..., 0, :])
    grid = torch.tensor([4.0, 12, 20, 28])
    assert torch.equal(off.predicted[0, :, :, 0, 0], grid.expand(4, 4))
    assert torch.equal(off.predicted[1, :, :, 0, 1], grid[:, None].expand(4, 4))
    std = clips.targets["position"].std[0, 0, 0]  # of patch 0: rows and columns 0 and 1
    steps = torch.arange(7.0)[:, None]
    apart = (off.predicted - exact.true)[0, :2, :2]
    torch.testing.assert_close(apart, (0.5 * std * steps).expand(2, 2, 7, 2), atol=1e-4, rtol=1e-4)


def test_distances_are_those_of_the_ends() -> None:
    clips = Clips()
    one = clips.reconstruct(noise=0.5)[1]
    end = one.true[one.shown][:, -1]
    apart = one.distances
    assert apart.tracks == int(one.shown.sum())
    for name, path in (("predicted", one.predicted), ("zero", one.zero)):
        wanted = float((path[one.shown][:, -1] - end).norm(dim=-1).mean())
        assert getattr(apart, name) == pytest.approx(wanted)
    moved = float((one.true[one.shown][:, 0] - end).norm(dim=-1).mean())
    assert apart.still == pytest.approx(moved)
    mean = clips.targets["position"].mean[1, 0]
    row, column = 0, 2  # patch 1, the first that is masked
    assert torch.allclose(
        one.zero[0, row, column, -1] - one.zero[0, row, column, 0], 6 * mean, atol=1e-4
    )


@pytest.mark.parametrize("density", ["mean", "max"])
def test_merged_tracks_start_from_the_patchs_centre(density: str) -> None:
    one = Clips(density=density).reconstruct()[0]
    assert one.true.shape == (2, 2, 2, 7, 2)
    assert torch.equal(one.true[0, :, :, 0, 0], torch.tensor([8.0, 24]).expand(2, 2))
    assert torch.equal(one.true[0, :, :, 0, 1], torch.tensor([[8.0], [24]]).expand(2, 2))


def test_the_model_is_left_as_it_was() -> None:
    clips = Clips()
    for training in (True, False):
        model = Echo(clips.targets).train(training)
        reconstruct(model, clips.recipe, clips.rgb, clips.masked, clips.targets)
        assert model.training is training
    model = Echo(clips.targets).train()
    model.values = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        reconstruct(model, clips.recipe, clips.rgb, clips.masked, clips.targets)
    assert model.training


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": "pixel"}, "predicts pixel; tracks are drawn from position"),
        ({"targets": "shape"}, "predicts shape; tracks are drawn from position"),
        ({"length": 0}, "predicts shape; tracks are drawn from position.*length 1 or more"),
    ],
)
def test_without_displacements_there_is_nothing_to_draw(changes: dict[str, Any], said: str) -> None:
    clips = Clips()
    other = recipe(**changes)
    with pytest.raises(ValueError, match=said):
        reconstruct(Echo(clips.targets), other, clips.rgb, clips.masked, clips.targets)
    with pytest.raises(ValueError, match=said):
        reconstruct_video(Echo(clips.targets), other, "never_opened.mp4")
    with pytest.raises(ValueError, match="targets holds nothing; must hold position"):
        reconstruct(Echo(clips.targets), clips.recipe, clips.rgb, clips.masked, Targets())


def panels(picture: np.ndarray, side: int) -> list[tuple[int, int]]:
    """Top left corners (y, x) of the first row's panels, found as blocks that are never white."""
    dark = (picture != 255).any(-1)
    rows = [y for y in range(len(dark) - side) if dark[y : y + side, side // 2].all()]
    middle = dark[rows[0] + side // 2]
    columns = [x for x in range(dark.shape[1] - side) if middle[x : x + side].all()]
    assert len(columns) == len(COLUMNS)
    return [(rows[0], x) for x in columns]


def plain_reconstruction() -> Reconstruction:
    """Frames of grey 100; the right patches of the first tubelet are masked; tracks go right."""
    points = torch.zeros(2, 4, 4, 4, 2)
    points[..., 0] = (4.0 + 8 * torch.arange(4.0))[None, None, :, None] + torch.arange(4.0)
    points[..., 1] = (4.0 + 8 * torch.arange(4.0))[None, :, None, None]
    masked = torch.zeros(2, 2, 2, dtype=torch.bool)
    masked[:, :, 1] = True
    shown = masked.repeat_interleave(2, 1).repeat_interleave(2, 2)
    shown[0, 3] = False  # these are invalid
    down = points.clone()
    down[..., 1] = points[..., :1, 1] + torch.arange(4.0)
    down[..., 0] = points[..., :1, 0]
    frames = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    return Reconstruction(frames, masked, points, down, points, shown, "grey.mp4", ("a", "b"))


def test_what_is_drawn_where() -> None:
    scale, side = 8, 256
    picture = draw_sheet([plain_reconstruction()], rows=2, panel=side).astype(int)
    hidden, true, predicted, plain = (
        picture[y : y + side, x : x + side] for y, x in panels(picture, side)
    )
    assert (hidden[:, : side // 2] == 100).all(), "visible patches are shown"
    assert (hidden[:, side // 2 :] == GREY).all(), "masked ones are grey"
    assert (plain == 100).all()
    for image, (dx, dy) in ((true, (1.0, 0.0)), (predicted, (0.0, 1.0))):
        assert (image[:, : side // 2] == round(100 * 0.82)).all(), "no track on visible patches"
        assert (image[26 * scale :] == round(100 * 0.82)).all(), "nor where they are invalid"
        # Three steps from dark to light, and a dot at the end.
        for step, colour in ((0.5, 0.5 / 3), (1.5, 1.5 / 3), (3.0, 1.0)):
            x, y = 20 + step * dx, 4 + step * dy
            drawn = image[round((y + 0.5) * scale), round((x + 0.5) * scale)]
            assert np.abs(drawn - ramp(colour)).max() <= 8


def test_a_sheet_is_the_file_that_is_written(tmp_path: Path) -> None:
    one = plain_reconstruction()
    picture = draw_sheet([one, one], tmp_path / "x.png", rows=1, panel=64, note="Mind this.")
    assert picture.dtype == np.uint8
    stored = np.rint(imread(tmp_path / "x.png")[..., :3] * 255).astype(np.uint8)
    assert np.array_equal(stored, picture)
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    taller = draw_sheet([one, one], rows=2, panel=64)
    assert taller.shape[1] == picture.shape[1]
    assert taller.shape[0] > picture.shape[0] + 100
    assert draw_sheet([one], rows=9, panel=64).shape == draw_sheet([one], rows=2, panel=64).shape


def test_a_sheet_of_nothing() -> None:
    one = plain_reconstruction()
    with pytest.raises(ValueError, match="reconstructions is empty"):
        draw_sheet([])
    with pytest.raises(ValueError, match="rows is 0; must be at least 1"):
        draw_sheet([one], rows=0)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        draw_sheet([one], "/nonexistent/x.png")


def test_tubelets_past_the_videos_end_are_not_shown() -> None:
    config = recipe().targets
    short = ClipPlan.build(config, 0, 9)  # ends after the first tubelet's tracks, not the second's
    clips = Clips(plans=[short, short])
    one = clips.reconstruct()[0]
    assert one.shown[0].any()
    assert not one.shown[1].any()
    lone, both = (draw_sheet([r], rows=2, panel=64) for r in (one, plain_reconstruction()))
    assert lone.shape[0] < both.shape[0], "one tubelet has tracks"
    gone = ClipPlan.build(config, 0, 1)
    none = Clips(plans=[gone, gone]).reconstruct()[0]
    assert none.distances.tracks == 0
    assert math.isnan(none.distances.predicted)
    bare = draw_sheet([none], rows=2, panel=64)
    assert bare.shape[0] > lone.shape[0] + 64, "where no tubelet has one, all are shown"


def test_a_sheet_of_a_batch() -> None:
    clips = Clips()
    torch.manual_seed(0)
    model = MaskedMotionEncoder(clips.recipe.model, clips.recipe.targets).train()
    picture = sheet(model, clips.recipe, clips.batch(), rows=1)
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
    assert picture.is_contiguous()
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    two = sheet(model, clips.recipe, clips.batch(), rows=1, clips=2)
    assert two.shape[2] == picture.shape[2]
    assert two.shape[1] > picture.shape[1] + 448
    with pytest.raises(ValueError, match=r"batch\.targets is None"):
        sheet(model, clips.recipe, clips.batch(targets=None))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames of 48 x 72 px under a camera that pans by a pixel a frame."""
    path = tmp_path_factory.mktemp("video") / "pan.mp4"
    coarse = torch.rand(1, 3, 8, 18, generator=torch.Generator().manual_seed(3)) * 255
    scene = torch.nn.functional.interpolate(coarse, (48, 112), mode="bicubic")[0]
    scene = scene.clamp(0, 255).to(torch.uint8)
    write_video(path, torch.stack([scene[:, :, t : t + 72] for t in range(40)]))
    return path


@pytest.mark.parametrize("region", ["crop", "frame"])
def test_a_videos_tracks_start_on_the_crops_grid(video: Path, region: str) -> None:
    wanted = recipe(region=region)
    torch.manual_seed(0)
    model = MaskedMotionEncoder(wanted.model, wanted.targets)
    one = reconstruct_video(model, wanted, video, start=3, seed=1)
    assert one.name == "pan.mp4"
    assert one.times[1].startswith("frame 7 ")
    assert one.frames.shape == (2, 3, 32, 32)
    assert int(one.masked.sum()) == 4
    assert torch.equal(one.true[0, 0, :, 0, 0], torch.tensor([4.0, 12, 20, 28]))
    assert one.distances.tracks > 0
    again = reconstruct_video(model, wanted, video, start=3, seed=1)
    assert torch.equal(again.masked, one.masked)
    others = [reconstruct_video(model, wanted, video, start=3, seed=s).masked for s in (2, 3, 4)]
    assert any(not torch.equal(other, one.masked) for other in others)


def test_the_two_regions_see_the_same_motion(video: Path) -> None:
    """48 px are resized to 32: tracks of six frames go 4 px to the left in the crop either way."""
    ends, seen = [], []
    for region in ("crop", "frame"):
        wanted = recipe(region=region)
        torch.manual_seed(0)
        model = MaskedMotionEncoder(wanted.model, wanted.targets)
        one = reconstruct_video(model, wanted, video, seed=1)
        moved = (one.true[..., -1, :] - one.true[..., 0, :])[one.shown]
        ends.append(moved.median(dim=0).values)
        seen.append(one.frames.float())
    assert float((seen[0] - seen[1]).abs().mean()) < 3
    for end in ends:
        assert float((end - torch.tensor([-4.0, 0.0])).norm()) < 0.5


def arguments(*words: str) -> Any:
    parser = ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(list(words))


def test_the_command(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = recipe()
    model = MaskedMotionEncoder(wanted.model, wanted.targets)
    asked: list[Any] = []

    def load_model(path: str, device: str) -> Any:
        asked.append((path, device))
        return model, wanted

    checkpoints = ModuleType("mme_model.checkpoints")
    checkpoints.load_model = load_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mme_model.checkpoints", checkpoints)
    out = tmp_path / "x.png"
    assert module.run(arguments("some/run", str(video), "--out", str(out), "--rows", "1")) == 0
    assert asked == [("some/run", "cpu")]
    assert imread(out).ndim == 3
    said = capsys.readouterr().out
    assert f"tracks of {video} -> {out}" in said
    assert "px from the true ones" in said

    for words, wrong in (
        (("--out", str(tmp_path / "x.jpg")), "must end in .png"),
        (("--out", str(out), "--rows", "0"), "--rows is 0; must be 1 or more"),
        (("--out", str(out), "--start", "40"), "has the frames 0 to 39"),
        (("--out", str(tmp_path / "no" / "x.png")), "there is no folder"),
    ):
        with pytest.raises((ValueError, OSError), match=wrong):
            module.run(arguments("some/run", str(video), *words))
