"""MViTv2-S: torchvision's blocks, the mask token, predictions per patch, and all that loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mme_model import checkpoints
from mme_model.classifier import Classifier
from mme_model.convert import convert, load_classifier, load_encoder
from mme_model.finetune import Finetuning, layer_groups
from mme_model.finetune_recipe import ClassifierConfig, FinetuneRecipe, load_finetune_recipe
from mme_model.flops import count, describe
from mme_model.mme import MaskedMotionEncoder, motion_loss, target_widths
from mme_model.mvit import MaskedMViT, MViTEncoder, build_encoder, build_model, resized_positions
from mme_model.pretrain import pretrain
from mme_model.recipe import LossConfig, ModelConfig, Recipe, load_recipe
from mme_model.results import backbone
from mme_model.vit import MEAN, STD
from mme_targets import ConfigError, TargetConfig, Targets
from mme_targets.targets import Target

MODEL = ModelConfig(backbone="mvitv2_s")
POOLED = MODEL.replace(last_pooling=True)
CLIP = TargetConfig(frames=4, size=64, length=2)  # 2 x 4 x 4 patches
SMALL = CLIP.replace(size=32)  # 2 x 2 x 2
CORNER, BESIDE = 15, 14
"""Patches of the first tubelet: the last of all, and its neighbour to the left."""


def network(model: ModelConfig = MODEL, config: TargetConfig = CLIP) -> MaskedMViT:
    torch.manual_seed(0)
    made = build_model(model, config)
    assert isinstance(made, MaskedMViT)
    return made


def clips_of(config: TargetConfig = CLIP, batch: int = 1) -> Tensor:
    shape = (batch, config.frames, 3, config.size, config.size)
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def targets_of(config: TargetConfig, masked: Tensor) -> Targets:
    generator = torch.Generator().manual_seed(2)
    made = {}
    for name, width in target_widths(config).items():
        values = torch.randn(*masked.shape, width, generator=generator)
        valid = torch.ones(*masked.shape, config.tracks, dtype=torch.bool)
        made[name] = Target(values, valid, torch.zeros_like(values), torch.ones_like(values))
    return Targets(made)


@pytest.fixture(scope="module")
def plain() -> MaskedMViT:
    """Of `CLIP`, as MaskFeat pre-trains."""
    return network().eval()


@pytest.mark.parametrize(
    ("model", "size", "frames", "out"),
    [
        (MODEL, 32, 4, (2, 2, 2)),
        (MODEL, 96, 2, (1, 6, 6)),
        (POOLED, 32, 2, (1, 1, 1)),
        (POOLED, 96, 6, (3, 3, 3)),
    ],
)
def test_shapes(model: ModelConfig, size: int, frames: int, out: tuple[int, int, int]) -> None:
    """The grid is the patches'; with the last pooling half as many tokens come out each way."""
    config = CLIP.replace(size=size, frames=frames, targets=("trajectory", "pixel"))
    one, masked = network(model, config), torch.tensor([[0, 2], [3, 1]])
    assert one.encoder.grid == (frames // 2, size // 16, size // 16)
    assert one.encoder.out == out
    with torch.no_grad():
        tokens = one.encoder(clips_of(config, 2))
        predictions = one(clips_of(config, 2), masked)
    assert tokens.shape == (2, out[0] * out[1] * out[2], 768)
    widths = target_widths(config)
    assert {n: p.shape for n, p in predictions.items()} == {n: (2, 2, w) for n, w in widths.items()}


def test_a_paper_clip_comes_out_as_14_by_14_or_7_by_7() -> None:
    with torch.device("meta"):
        for model, side in ((MODEL, 14), (POOLED, 7)):
            encoder = MViTEncoder(model, TargetConfig())
            assert encoder.out == (8, side, side)
            assert encoder(torch.zeros(1, 16, 3, 224, 224)).shape == (1, 8 * side * side, 768)


def test_is_torchvisions_where_the_last_stage_is_pooled() -> None:
    """The same keys, so that its weights load, and the same tokens."""
    from torchvision.models.video import mvit_v2_s

    theirs = mvit_v2_s().eval()
    ours = build_encoder(POOLED, CLIP).eval()
    given = {k: v for k, v in theirs.state_dict().items() if not k.startswith("head.")}
    ours.load_state_dict(resized_positions(given, ours.state_dict()))
    theirs.pos_encoding.temporal_size, theirs.pos_encoding.spatial_size = 2, (16, 16)
    for block, own in zip(theirs.blocks, ours.blocks, strict=True):
        for axis in "thw":  # theirs are as long as 224 px take, and are interpolated in each run
            name = f"rel_pos_{axis}"
            setattr(block.attn, name, torch.nn.Parameter(getattr(own.attn, name)))
    seen: list[Tensor] = []
    theirs.norm.register_forward_hook(lambda module, args, out: seen.append(out[:, 1:]))
    mean, deviation = (torch.tensor(s).view(3, 1, 1) for s in (MEAN, STD))
    with torch.no_grad():
        theirs(((clips_of() / 255 - mean) / deviation).transpose(1, 2))
        torch.testing.assert_close(ours(clips_of()), seen[0], atol=1e-4, rtol=1e-4)


def test_a_pooled_token_predicts_its_four_patches() -> None:
    """Values of a token are those of (h, w), (h, w+1), (h+1, w), (h+1, w+1)."""
    one = network(POOLED)
    values = torch.empty(1, 8, 4)
    for t in range(2):
        for h in range(4):
            for w in range(4):
                values[0, t * 4 + h // 2 * 2 + w // 2, h % 2 * 2 + w % 2] = t * 16 + h * 4 + w
    masked = torch.randperm(32, generator=torch.Generator().manual_seed(3))[None]
    assert torch.equal(one._chosen(values, masked)[0, :, 0].long(), masked[0])


def moved(clips: Tensor, rows: slice, columns: slice, frames: slice = slice(None)) -> Tensor:
    other = clips.clone()
    other[:, frames, :, rows, columns] = 255 - other[:, frames, :, rows, columns]
    return other


@torch.no_grad()
def test_masked_pixels_do_not_count(plain: MaskedMViT) -> None:
    """Whatever stands in a masked patch, the predictions stay; a visible one moves them.

    The corner patch has no neighbours that the stem's kernels reach over to: they look three pixels
    up and left, and a frame back.
    """
    tube = torch.tensor([[CORNER, 16 + CORNER, 3, 17]])
    before, last = plain(clips_of(), tube), slice(48, 64)
    after = plain(moved(clips_of(), last, last), tube)
    assert all(torch.equal(after[name], before[name]) for name in before)
    after = plain(moved(clips_of(), last, slice(32, 48)), tube)
    assert not any(torch.equal(after[name], before[name]) for name in before)


@torch.no_grad()
def test_the_stem_sees_three_pixels_and_a_frame_of_a_masked_patch(plain: MaskedMViT) -> None:
    """Kernels of 3×7×7 at a stride of 2×4×4 overlap, in MaskFeat as well: a visible patch's tokens
    hold three columns or rows of a masked one before it, and the last frame of a tubelet before;
    of all else in a masked patch nothing is known.
    """
    masked = torch.tensor([[BESIDE, 0]])  # the patch to its right is visible
    before = plain(clips_of(), masked)["shape"]
    rows, first, inner = slice(48, 64), slice(0, 1), slice(32, 45)
    assert torch.equal(plain(moved(clips_of(), rows, inner, first), masked)["shape"], before)
    seen = [
        moved(clips_of(), rows, slice(45, 48), first),  # by the patch to the right
        moved(clips_of(), rows, inner, slice(1, 2)),  # by the next tubelet
    ]
    for clips in seen:
        assert not torch.equal(plain(clips, masked)["shape"], before)


@torch.no_grad()
def test_order_of_masked_patches_is_the_callers(plain: MaskedMViT) -> None:
    masked = torch.tensor([[3, 30, 7, 11]])
    one, other = plain(clips_of(), masked), plain(clips_of(), masked[:, [2, 0, 3, 1]])
    for name, predicted in one.items():
        torch.testing.assert_close(other[name], predicted[:, [2, 0, 3, 1]])
        assert not torch.allclose(predicted[:, 0], predicted[:, 1], atol=1e-3)


@pytest.mark.parametrize("model", [MODEL, POOLED])
def test_a_step_lowers_the_loss_and_all_parameters_take_part(model: ModelConfig) -> None:
    one, masked = network(model, SMALL), torch.tensor([[0, 5, 6], [1, 2, 7]])
    made, clips = targets_of(SMALL, masked), clips_of(SMALL, 2)
    optimiser = torch.optim.AdamW(one.parameters(), lr=2e-4)
    before = motion_loss(one(clips, masked), made, LossConfig())[0]
    before.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in one.parameters())
    optimiser.step()
    with torch.no_grad():
        after = motion_loss(one(clips, masked), made, LossConfig())[0]
    assert float(after) < float(before.detach())


def gradients(one: MaskedMViT) -> list[Tensor]:
    masked = torch.tensor([[0, 5, 6]])
    made = targets_of(SMALL, masked)
    motion_loss(one(clips_of(SMALL), masked), made, LossConfig())[0].backward()
    return [p.grad for p in one.parameters() if p.grad is not None]


def test_recomputed_gradients_are_the_same() -> None:
    truth = gradients(network(config=SMALL))
    found = gradients(network(MODEL.replace(checkpointing=True), SMALL))
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_is_one_graph() -> None:
    one, masked = network(config=SMALL).eval(), torch.tensor([[0, 5, 6]])
    torch._dynamo.reset()
    compiled = torch.compile(one, fullgraph=True, backend="eager")
    found = compiled(clips_of(SMALL), masked)
    for name, truth in one(clips_of(SMALL), masked).items():
        torch.testing.assert_close(found[name], truth)


RUN: dict[str, Any] = {
    "data": "synthetic",
    "clips": {"clips": 8, "workers": 0},
    "targets": {"size": 32, "frames": 4, "stride": 1, "length": 2, "camera_motion": False},
    "train": {"steps": 1, "batch_size": 4, "val_clips": 2, "warmup_epochs": 0},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step by Table 12's recipe, on small clips."""
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    pretrain(load_recipe("table12_mme_mvitv2_s", RUN), folder, cpu=True)
    return folder


def test_a_checkpoint_opens_as_model_and_as_encoder(trained: Path, tmp_path: Path) -> None:
    model, recipe = checkpoints.load_model(trained)
    assert isinstance(model, MaskedMViT)
    assert recipe == load_recipe("table12_mme_mvitv2_s", RUN)
    encoder, facts = load_encoder(trained)
    assert (facts["backbone"], facts["width"], facts["depth"]) == ("mvitv2_s", 768, 16)
    clips = clips_of(recipe.targets)
    with torch.no_grad():
        assert torch.equal(encoder(clips), model.encoder(clips))
    convert(trained, tmp_path / "again", "mme")
    again = checkpoints.load_model(tmp_path / "again")[0].state_dict()
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="is of backbone mvitv2_s; hf holds ViTs alone"):
        convert(trained, tmp_path / "hf", "hf")
    assert not (tmp_path / "hf").exists()


def test_fine_tuning_starts_from_it_and_pools(trained: Path, tmp_path: Path) -> None:
    """Weights are the checkpoint's, positions of the pooled stage interpolated; and back again."""
    views = {"clips": 8, "workers": 0, "size": 32, "frames": 4}
    train = {"steps": 1, "batch_size": 4, "val_clips": 2}
    recipe = load_finetune_recipe(
        "ssv2_mvitv2_s",
        {"data": "synthetic", "init": str(trained), "views": views, "train": train},
    )
    job = Finetuning(recipe)
    assert (job.init["method"], backbone(recipe.model)) == ("MME", "MViTv2-S")
    encoder, before = job.classifier.encoder, load_encoder(trained)[0].state_dict()
    assert isinstance(encoder, MViTEncoder)
    assert encoder.out == (2, 1, 1)
    changed = []
    for key, value in encoder.state_dict().items():
        if value.shape != before[key].shape:
            changed.append(key)
        else:
            assert torch.equal(value, before[key])
    assert changed == [f"blocks.15.attn.rel_pos_{axis}" for axis in "hw"]
    assert job.classifier.features(clips_of(SMALL)).shape == (1, 768)
    scales = {group["lr_scale"] for group in layer_groups(job.classifier, 0.75, 0.05)}
    assert len(scales) == 16 + 2  # stem, blocks, head
    made = checkpoints.save(
        tmp_path, 1, model=job.model.state_dict(), optimizer={"state": {}, "param_groups": []},
        recipe=recipe, kind="classifier", metadata=job.metadata,
    )  # fmt: skip
    classifier, again, classes = load_classifier(made.path)
    assert (again, classes) == (recipe, list(job.classes))
    job.classifier.eval()
    with torch.no_grad():
        assert torch.equal(classifier(clips_of(SMALL)), job.classifier(clips_of(SMALL)))


def test_positions_are_interpolated() -> None:
    state = {"blocks.0.attn.rel_pos_h": torch.arange(5.0)[:, None].repeat(1, 2)}
    found = resized_positions(state, {"blocks.0.attn.rel_pos_h": torch.zeros(3, 2)})
    assert found["blocks.0.attn.rel_pos_h"][:, 0].tolist() == pytest.approx([1 / 3, 2, 11 / 3])
    assert resized_positions(state, state)["blocks.0.attn.rel_pos_h"] is state.popitem()[1]


def test_counts() -> None:
    """34.5 M parameters with Kinetics' classes and 64.2 G, as torchvision gives for MViTv2-S."""
    recipe = load_recipe("table12_mme_mvitv2_s")
    counts = count(recipe)
    longer = 2 * 14 * 96  # positions of the last block, whose grid is not halved here
    assert (counts.backbone_parameters, counts.masked) == (34_537_744 + longer, 627)
    assert round(counts.encoder / 1e9, 1) == 64.2
    text = describe(recipe)
    for part in ("MViTv2-S", "8x14x14 tokens", "64.2 G", "34.2 M parameters (34.5 M with"):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": 48}, "size is 48; must be divisible by 32 with backbone mvitv2_s"),
        ({"tubelet": 4}, "tubelet is 4; must be 2 with backbone mvitv2_s"),
        ({"patch": 8}, "patch is 8; must be 16 with backbone mvitv2_s"),
    ],
)
def test_refuses_clips_that_do_not_fit(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said), torch.device("meta"):
        build_model(MODEL, CLIP.replace(**changes))


@pytest.mark.parametrize(
    "changes", [{"size": "small"}, {"depth": 2}, {"decoder_depth": 2}, {"head": "mlp"}]
)
def test_refuses_fields_of_the_vit(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not apply to backbone mvitv2_s"):
        Recipe.from_dict({"model": {"backbone": "mvitv2_s", **changes}})


def test_refuses_arguments(plain: MaskedMViT) -> None:
    masked = torch.tensor([[1, 2]])
    cases = [
        (clips_of()[:, :2], masked, r"clips has shape \[1, 2, 3, 64, 64\]; must be \[B, 4, 3, 64"),
        (clips_of(), masked + 30, "masked spans 31 to 32; must lie within 0 to 31"),
        (clips_of(), torch.arange(32)[None], "masked has all 32 patches; one at least must stay"),
    ]
    for clips, hidden, said in cases:
        with pytest.raises(ValueError, match=said):
            plain(clips, hidden)
    with pytest.raises(TypeError, match="clips has dtype float64"):
        plain(clips_of().double(), masked)


def test_refuses_to_drop_patches() -> None:
    recipe = FinetuneRecipe.from_dict({"model": {"backbone": "mvitv2_s"}})
    config = ClassifierConfig(drop_patches=0.5)
    with pytest.raises(ValueError, match=r"classifier\.drop_patches is 0\.5; must be 0"):
        Classifier(recipe.model, recipe.views, 2, config)


def test_the_vit_is_still_the_usual() -> None:
    with torch.device("meta"):
        assert isinstance(build_model(ModelConfig(), TargetConfig()), MaskedMotionEncoder)


def test_bf16_autocast(plain: MaskedMViT) -> None:
    """Close to float32 over all sixteen blocks."""
    masked = torch.tensor([[CORNER, 3]])
    with torch.no_grad():
        truth = plain(clips_of(), masked)
        with torch.autocast("cpu", torch.bfloat16):
            low = plain(clips_of(), masked)
    for name, predicted in low.items():
        torch.testing.assert_close(
            predicted.float(), truth[name], rtol=0.0, atol=0.05 * float(truth[name].abs().max())
        )
