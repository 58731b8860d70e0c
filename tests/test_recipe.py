"""Recipes: a row of the tables changes what its table is about, and errors name what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mme_model.recipe
from mme_model.cli import main
from mme_model.finetune_recipe import FinetuneRecipe, load_any, load_finetune_recipe
from mme_model.masking import masked_count
from mme_model.mvit import build_model
from mme_model.recipe import Recipe, load_recipe, recipe_names
from mme_targets import ConfigError, MotionTargets

VIDEOMAE: dict[str, Any] = {
    "targets.targets": ("pixel",),
    "targets.length": 0,
    "mask.ratio": 0.9,
    "model.decoder_depth": 4,
}
RELEASED: dict[str, Any] = {
    "targets.flow": "farneback",
    "targets.camera_motion": False,
    "targets.length": 4,
    "targets.median": 1,
    "targets.binning": "linear",
    "targets.pool": "mean",
    "targets.padding": "replicate",
    "targets.norm": "coordinate",
    "targets.quirks": "released",
    "model.decoder_width": 192,
    "model.decoder_heads": 6,
    "model.head": "mlp",
    "loss.eq1_sum": True,
    "loss.weights": {"position": 2.0, "shape": 2.0},
    "train.betas": (0.9, 0.95),
}
HOG: dict[str, Any] = {
    "targets.targets": ("hog",),
    "targets.interpolate": False,
    "targets.length": 0,
}
MASKFEAT: dict[str, Any] = {
    "mask.kind": "cube",
    "mask.ratio": 0.4,
    "model.backbone": "mvitv2_s",
    "train.epochs": 300,
    "train.warmup_epochs": 10,
    "train.base_lr": 8e-4,
    "train.min_lr": 2.4e-5,
    "train.warmup_lr": 2.4e-5,
    "train.clip_grad": 0.02,
}
SSV2: dict[str, Any] = {"targets.stride": 3, "clips.flip": False}

PRETRAINING: dict[str, dict[str, Any]] = {
    "k400_800": {},
    "k400_400": {"train.epochs": 400},
    "k400_1600": {"train.epochs": 1600},
    "ssv2_800": SSV2,
    "ssv2_400": SSV2 | {"train.epochs": 400},
    "ablation_ssv2": SSV2 | {"train.epochs": 400, "clips.fraction": 0.25},
    "videomae_k400_800": VIDEOMAE,
    "videomae_k400_1600": VIDEOMAE | {"train.epochs": 1600},
    "videomae_ssv2_800": SSV2 | VIDEOMAE,
    "videomae_ssv2_400": SSV2 | VIDEOMAE | {"train.epochs": 400},
    "released": RELEASED | {"train.epochs": 1600},
    "table12_mme_mvitv2_s": MASKFEAT,
    "table12_maskfeat_mvitv2_s": MASKFEAT | {"targets.length": 0},
}
"""What differs from the defaults, which are the paper's for Kinetics-400 at 800 epochs."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "table5_pixel": {"targets.targets": ("pixel",), "targets.length": 0},
    "table5_hog": HOG,
    "table5_hog_flow": {"targets.targets": ("hog", "flow")},
    "table5_hog_hof": {"targets.targets": ("hog", "hof")},
    "table5_hog_mbh": {"targets.targets": ("hog", "mbh")},
    "table5_hog_position": {
        "targets.targets": ("hog", "position"),
        "targets.hog_interpolate": False,
    },
    "table5_trajectory": {},
    "table6_hog": HOG,
    "table6_hog_interpolated": {"targets.targets": ("hog",)},
    "table6_hog_mbh": {
        "targets.targets": ("hog", "mbh"),
        "targets.interpolate": False,
        "targets.length": 1,
    },
    "table6_hog_mbh_interpolated": {"targets.targets": ("hog", "mbh")},
    "table6_trajectory": {"targets.interpolate": False},
    "table6_trajectory_interpolated": {},
    "table7a_length4": {"targets.length": 4},
    "table7a_length6": {},
    "table7a_length8": {"targets.length": 8},
    "table7b_norm_none": {"targets.norm": "none"},
    "table7b_norm_patch": {},
    "table7c_dense": {},
    "table7c_max": {"targets.density": "max"},
    "table7c_mean": {"targets.density": "mean"},
    "table7d_stride4": {"targets.stride": 4},
    "table7d_stride3": {},
    "table7d_stride2": {"targets.stride": 2},
    "table7d_stride1": {"targets.stride": 1},
    "table7e_tube90": {"mask.ratio": 0.9},
    "table7e_tube70": {},
    "table7e_tube40": {"mask.ratio": 0.4},
    "table7e_cube40": {"mask.ratio": 0.4, "mask.kind": "cube"},
    "table7f_joint1": {},
    "table7f_joint2": {"model.decoder_depth": 2},
    "table7f_separate1": {"model.decoders": "separate"},
    "table7f_separate2": {"model.decoders": "separate", "model.decoder_depth": 2},
    "table10_full": {"clips.fraction": 1.0},
    "table10_quarter": {},
    "table11_trajectory_mbh_hof": {"targets.targets": ("trajectory", "mbh", "hof")},
    "table11_trajectory": {},
    "fig3_mme": {},
    "fig3_mme_shuffled": {"clips.shuffle": "input"},
    "fig3_videomae": VIDEOMAE,
    "fig3_videomae_shuffled": VIDEOMAE | {"clips.shuffle": "both"},
    "fig7_mme_small": {"model.size": "small"},
    "fig7_mme_base": {},
    "fig7_mme_large": {"model.size": "large"},
    "fig7_videomae_small": VIDEOMAE | {"model.size": "small"},
    "fig7_videomae_base": VIDEOMAE,
    "fig7_videomae_large": VIDEOMAE | {"model.size": "large", "model.decoder_depth": 12},
    "fig8_length0": {"targets.length": 0},
    "fig8_length2": {"targets.length": 2},
    "fig8_length4": {"targets.length": 4},
    "fig8_length6": {},
    "fig8_length8": {"targets.length": 8},
    "fig9_tube90": {"mask.ratio": 0.9},
    "fig9_tube70": {},
    "fig9_tube40": {"mask.ratio": 0.4},
    "appendix_e_camera_kept": {"targets.camera_motion": False},
    "appendix_e_loss_mask_off": {"targets.loss_mask": False},
    "appendix_e_tracks16": {"targets.grid": 4},
}
"""What differs from `ablation_ssv2`."""


def differences(recipe: Recipe, base: Recipe) -> dict[str, Any]:
    """Dotted field -> value, of the fields that differ."""
    found = {}
    for group in ("clips", "targets", "mask", "model", "loss", "train"):
        ours, theirs = getattr(recipe, group), getattr(base, group)
        for name in ours.to_dict():
            if getattr(ours, name) != getattr(theirs, name):
                found[f"{group}.{name}"] = getattr(ours, name)
    for name in ("data", "val"):
        if getattr(recipe, name) != getattr(base, name):
            found[name] = getattr(recipe, name)
    return found


def test_every_recipe_is_accounted_for() -> None:
    assert set(recipe_names()) == {*PRETRAINING, *ABLATIONS, "tiny"}
    text = (Path(mme_model.recipe.__file__).parent / "recipes" / "README.md").read_text()
    assert [name for name in recipe_names() if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", sorted(PRETRAINING))
def test_pretraining_differs_from_the_defaults_only_so(name: str) -> None:
    assert differences(load_recipe(name), Recipe()) == PRETRAINING[name]


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_a_row_differs_from_its_base_only_in_what_its_table_is_about(name: str) -> None:
    assert differences(load_recipe(name), load_recipe("ablation_ssv2")) == ABLATIONS[name]


@pytest.mark.parametrize("name", sorted({*PRETRAINING, *ABLATIONS, "tiny"}))
def test_a_recipe_survives_yaml_and_json(name: str) -> None:
    recipe = load_recipe(name)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("name", sorted({*PRETRAINING, *ABLATIONS, "tiny"}))
def test_a_recipes_model_and_mask_can_be(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):  # no memory, no arithmetic
        model = build_model(recipe.model, recipe.targets)
    assert model.encoder.grid == recipe.grid
    assert 0 < masked_count(recipe.mask, recipe.grid) < 1568


def test_table_8() -> None:
    train, clips = Recipe().train, Recipe().clips
    assert (train.base_lr, train.weight_decay, train.betas) == (1.5e-4, 0.05, (0.9, 0.999))
    assert (train.batch_size, train.warmup_epochs, clips.crop) == (768, 40, "multiscale")
    assert Recipe().grid == (8, 14, 14)


def test_the_released_targets_are_the_presets() -> None:
    released = load_recipe("released").targets
    assert released == released.released(stride=4)


def small(name: str, **changes: Any) -> MotionTargets:
    """Targets of a recipe on 32 px, with a flow that is quick."""
    quick = {"size": 32, "flow": "farneback", "camera_motion": False, **changes}
    return MotionTargets(load_recipe(name, {"targets": quick}).targets, backend="reference")


@pytest.mark.parametrize("name", ["table5_pixel", "table6_hog", "table6_hog_mbh", "fig3_videomae"])
def test_a_shorter_length_saves_frames_and_changes_no_target(name: str) -> None:
    """`length` is read by no target of these rows beyond what their recipes keep."""
    short, long = small(name), small(name, length=6)
    assert len(short.plan.frames) < len(long.plan.frames)
    video = torch.randint(
        0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    ours = short(video[list(short.plan.frames)])
    theirs = long(video[list(long.plan.frames)])
    assert list(ours) == list(theirs)
    for target in ours:
        assert torch.equal(ours[target].values, theirs[target].values)


def test_changes_lie_on_top() -> None:
    recipe = load_recipe("table7a_length4", {"targets": {"length": 5}, "train": {"seed": 3}})
    assert (recipe.targets.length, recipe.targets.stride, recipe.train.seed) == (5, 3, 3)


def test_weights_are_replaced_as_a_whole() -> None:
    recipe = load_recipe("released", {"loss": {"weights": {"shape": 1.0}}})
    assert recipe.loss.weights == {"shape": 1.0}


def test_a_base_is_found_beside_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("base: ssv2_400\ntargets: {length: 3}\n")
    above = tmp_path / "above.yaml"
    above.write_text("base: below.yaml\nmask: {ratio: 0.5}\n")
    recipe = load_recipe(above)
    assert (recipe.targets.length, recipe.mask.ratio, recipe.train.epochs) == (3, 0.5, 400)
    above.write_text("")
    assert load_recipe(above) == Recipe()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: k400_80\n", "its base: there is no recipe 'k400_80'.*did you mean.*k400_800"),
        ("base: [k400_800]\n", r"its base: is \['k400_800'\]; must be a name or a path"),
        ("base: bad.yaml\n", "go in a circle"),
        ("base: sub/../bad.yaml\n", "go in a circle"),
        ("targets: {lenght: 4}\n", "no field 'lenght'; did you mean 'length'"),
        ("target: {length: 4}\n", "Recipe has no field 'target'; did you mean 'targets'"),
        ("targets:\n", "TargetConfig needs a mapping of fields, got NoneType"),
        ("targets: {size: 100}\n", r"targets.size is 100; must be divisible by patch \(16\)"),
        ("mask: {ratio: 2}\n", r"MaskConfig.ratio is 2.0; must lie in \[0, 1\]"),
        ("mask: {kind: tub}\n", "MaskConfig.kind is 'tub'; must be one of 'tube', 'cube'"),
        ("loss: {weights: {pixel: 1}}\n", "loss.weights names 'pixel', which is not made"),
        ("loss: {weights: {shape: -1}}\n", "shape must have a weight of 0 or more"),
        ("loss: {weights: [1]}\n", "must be a mapping from target to weight"),
        ("clips: {scales: [a]}\n", r"ClipConfig.scales is \('a',\); must be numbers in \(0, 1\]"),
        ("train: {betas: [0.9]}\n", r"TrainConfig.betas is \(0.9,\); must be two numbers"),
        ("train: {betas: [0.9, x]}\n", "TrainConfig.betas is .*; must be two numbers"),
        ("targets: {length: 4\n", "bad.yaml: not YAML: .*line 2"),
        ("- a\n- b\n", "bad.yaml: is list; must be a mapping of fields"),
        ("0\n", "bad.yaml: is int; must be a mapping of fields"),
    ],
)
def test_a_bad_recipe_says_what_is_wrong_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    assert "bad.yaml" in str(caught.value)


def test_what_is_no_text_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\x00\xff\xfe\x80")
    with pytest.raises(ConfigError, match=r"clip\.mp4: not YAML"):
        load_recipe(path)


def test_a_name_that_is_none_gives_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'ssv2-400'.*did you mean ssv2_400"):
        load_recipe("ssv2-400")
    with pytest.raises(ConfigError, match=r"'ssv2' is one of mme finetune, not of mme pretrain"):
        load_recipe("ssv2")
    with pytest.raises(ConfigError, match=r"'k400_800' is one of mme pretrain, .* mean k400\?"):
        load_finetune_recipe("k400_800")


def test_recipes_of_either_job_are_found(tmp_path: Path) -> None:
    assert load_any("ssv2") == load_finetune_recipe("ssv2")
    assert load_any("ssv2_800") == load_recipe("ssv2_800")
    assert load_any("tiny", {"targets": {"length": 2}}).targets.length == 2  # type: ignore[union-attr]
    for text, cls in (
        ("base: ucf101", FinetuneRecipe),
        ("base: tiny\nviews: {frames: 4}", FinetuneRecipe),
        ("base: tiny\ntrain: {steps: 4}", Recipe),
        ("train: {steps: 4}", Recipe),
    ):
        (tmp_path / "own.yaml").write_text(text)
        assert isinstance(load_any(tmp_path / "own.yaml"), cls)
    with pytest.raises(ConfigError, match=r"no recipe 'ssv'.* did you mean ssv2, ssv2_800"):
        load_any("ssv")
    (tmp_path / "own.yaml").write_text("base: nothing")
    with pytest.raises(ConfigError, match="its base: there is no recipe 'nothing'"):
        load_any(tmp_path / "own.yaml")


def test_info_knows_both_kinds_of_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--recipe", "ssv2"]) == 0
    said = capsys.readouterr().out
    assert "fine-tuning: 180.3 G multiply-adds a view, 86.2 M parameters" in said
    assert "testing: 2 x 3 views, 1082.1 G multiply-adds a video" in said
    assert main(["info", "--recipe", "ssv2", "--views.frames", "8", "--model.size", "small"]) == 0
    assert "width 384, depth 12, heads 6" in (said := capsys.readouterr().out)
    assert "8 frames of 224 px, 4x14x14 patches" in said
    assert main(["info", "--recipe", "tiny"]) == 0
    assert "pre-training: " in capsys.readouterr().out
    assert main(["info", "--recipe", "ssv2", "--targets.size", "112"]) == 1
    assert "FinetuneRecipe has no field 'targets'" in capsys.readouterr().err


def test_descriptions_end_at_sentences_not_at_abbreviations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipes"]) == 0
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name, text in (
        ("table11_trajectory_mbh_hof", "Table 11, Traj. + MBH + HOF"),
        ("table6_trajectory_interpolated",
         "Table 6, Traj. with interpolation: the ablations' default"),
        ("fig9_tube90", "Fig. 9, 90 % masked"),
    ):  # fmt: skip
        assert said[name].split(maxsplit=1)[1] == text
    starts = {line.index(line.split(maxsplit=1)[1]) for line in said.values() if line[0] == " "}
    assert len(starts) == 1, "a column of names, and one of what they are"
