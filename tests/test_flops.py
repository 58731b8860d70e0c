"""Multiply-adds and parameters: the paper's figures, and what torch counts of a small model."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mme_model.flops import count, describe, table7f
from mme_model.mme import MaskedMotionEncoder
from mme_model.recipe import MaskConfig, ModelConfig, Recipe
from mme_targets import TargetConfig


def test_table_7f() -> None:
    """One decoder or one a target, of one block or two, in G multiply-adds."""
    rows = {(row.decoders, row.depth): row for row in table7f()}
    paper = {("joint", 1): 51.3, ("joint", 2): 55.9, ("separate", 1): 56.1, ("separate", 2): 65.4}
    assert {key: round(row.counts.paper / 1e9, 1) for key, row in rows.items()} == paper
    assert {key: row.paper_giga for key, row in rows.items()} == {
        k: int(v) for k, v in paper.items()
    }
    assert all(row.counts.run < row.counts.paper for row in rows.values())


def test_tables_1_and_2() -> None:
    """ViT-B: 180 G a clip in fine-tuning, 87 M parameters; 59 of 196 patches visible at .7."""
    counts = count(Recipe())
    assert round(counts.encoder / 1e9) == 180
    assert round(counts.backbone_parameters / 1e6) == 87
    assert (counts.visible, counts.masked) == (59 * 8, 137 * 8)
    text = describe(Recipe())
    for part in ("472 visible, 1096 masked", "51.3 G as the paper counts", "86.5 M with"):
        assert part in text


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(width=24, depth=2, heads=2),
        ModelConfig(width=24, depth=1, heads=2, decoders="separate", decoder_depth=2),
        ModelConfig(width=24, depth=1, heads=2, decoder_width=20, head="mlp"),
        ModelConfig(width=24, depth=1, heads=2, decoder_depth=0),
    ],
)
@pytest.mark.parametrize("kind", ["tube", "random"])
def test_equals_what_torch_counts(model: ModelConfig, kind: str) -> None:
    """Of a whole forward pass and of the encoder alone; and the model's own parameters."""
    targets = TargetConfig(frames=4, tubelet=2, patch=8, size=32, length=2, grid=4)
    recipe = Recipe(model=model, targets=targets, mask=MaskConfig(kind=kind, ratio=0.6))
    counts, network = count(recipe), MaskedMotionEncoder(model, targets)
    clips, masked = torch.zeros(1, 4, 3, 32, 32), torch.arange(counts.masked)[None]
    # Only attention that is spelled out is counted on a CPU. Torch counts two for a multiply-add.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as whole:
            network(clips, masked)
        with FlopCounterMode(display=False) as encoder:
            network.encoder(clips)
    assert whole.get_total_flops() == 2 * counts.run
    assert encoder.get_total_flops() == 2 * counts.encoder
    assert sum(p.numel() for p in network.parameters()) == counts.parameters
    assert sum(p.numel() for p in network.encoder.parameters()) == counts.encoder_parameters


def test_refuses_what_cannot_run() -> None:
    with pytest.raises(ValueError, match=r"mask\.ratio is 1"):
        count(Recipe(mask=MaskConfig(ratio=1.0)))
    with pytest.raises(ValueError, match=r"model\.heads is 5"):
        count(Recipe(model=ModelConfig(heads=5)))
