"""One step of pre-training beside `transformers`' VideoMAEForPreTraining: forward, loss, backward.

Both have the same widths, start, clip and mask, and predict normalised pixels, whose making is part
of both steps: the loss and its gradients are compared. ViT-B at 224 px; ViT-Ti below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mme_targets import MotionTargets, TargetConfig

from .harness import Case, Peer, Setting, Work, textured_frames

STAGE = "pretraining"
RATIOS = (0.7, 0.9)
NOTES = {
    "cpu": "four fifths are matrix products, 15 % attention, the rest norms, GELU, sums of biases",
}


def cases(setting: Setting) -> Iterator[Case]:
    """Every case of this stage; none, and a note why, where a library is missing."""
    try:
        from transformers import VideoMAEForPreTraining  # noqa: F401

        from mme_model.mme import MaskedMotionEncoder  # noqa: F401
    except ImportError as error:
        setting.leave_out(f"pre-training step: needs timm and transformers ({error})")
        return
    for ratio in RATIOS:
        yield _case(setting, min(8, max(setting.batches)), ratio)


def _case(setting: Setting, batch: int, ratio: float) -> Case:
    from mme_model.flops import count
    from mme_model.keys import rng
    from mme_model.masking import draw_mask
    from mme_model.mme import MaskedMotionEncoder, motion_loss
    from mme_model.recipe import MaskConfig, ModelConfig, Recipe

    size = "tiny" if setting.quick or setting.side < 224 else "base"
    targets = TargetConfig(
        frames=setting.frames, size=setting.side, stride=1, length=0, targets=("pixel",)
    )
    model, mask = ModelConfig(size=size), MaskConfig(ratio=ratio)
    recipe = Recipe(model=model, targets=targets, mask=mask)
    masks = [draw_mask(mask, recipe.grid, rng(0, 0, i, "mask")) for i in range(batch)]
    hidden = torch.stack([torch.from_numpy(m) for m in masks]).to(setting.device)
    masked = hidden.nonzero()[:, 1].view(batch, -1)
    clips = textured_frames(batch, setting.frames, setting.side, setting.device)

    torch.manual_seed(0)
    network = MaskedMotionEncoder(model, targets).to(setting.device)
    make = MotionTargets(targets)
    peer = videomae(network, targets)
    mean, deviation = (
        statistic[:: targets.tubelet * targets.patch**2].view(3, 1, 1)
        for statistic in (network.encoder.patch_embed.mean, network.encoder.patch_embed.deviation)
    )
    pixels = (clips - mean) / deviation

    def run() -> dict[str, Tensor]:
        network.zero_grad(set_to_none=True)
        made = make(clips, mask=masked)
        loss, _ = motion_loss(network(clips, masked), made, recipe.loss)
        loss.backward()
        return {"loss": loss.detach(), **_gradients(network, "encoder.patch_embed.proj.weight")}

    def run_peer() -> dict[str, Tensor]:
        peer.zero_grad(set_to_none=True)
        loss = peer(pixels, bool_masked_pos=hidden).loss
        loss.backward()
        name = "videomae.embeddings.patch_embeddings.projection.weight"
        return {"loss": loss.detach(), **_gradients(peer, name)}

    def check(result: dict[str, Tensor]) -> None:
        assert bool(result["loss"].isfinite()), f"loss is {float(result['loss'])}"
        assert bool(result["gradient"].isfinite().all()), "gradients are not finite"
        visible = network.encoder.tokens - masked.shape[1]
        counted = (count(recipe).visible, count(recipe).masked)
        assert (visible, masked.shape[1]) == counted, f"{visible} visible, counted {counted}"

    def agree(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
        # Theirs divides by (deviation + 1e-6), and its decoder's norm has an eps of 1e-5.
        torch.testing.assert_close(ours["loss"], theirs["loss"], atol=0.0, rtol=1e-3)
        scale = float(theirs["gradient"].abs().max())
        torch.testing.assert_close(
            ours["gradient"], theirs["gradient"], atol=1e-2 * scale, rtol=0.0
        )

    parameters = sum(p.numel() for p in network.parameters())
    return Case(
        stage=STAGE,
        operation="pre-training step",
        name=setting.label(batch, f"ViT-{size}, tube {ratio:g}, {masked.shape[1]} masked tokens"),
        floor=setting.device.type,
        run=run,
        check=check,
        peers=(Peer("transformers VideoMAE", run_peer, agree, required=1.0),),
        work=Work(
            read=float(parameters * 4 * 2),
            written=float(parameters * 4),
            operations=float(3 * batch * count(recipe).run),
            how="a multiply-add for each of the forward pass's and two in the backward; "
            "weights read twice, gradients written once",
        ),
        note=NOTES.get(setting.device.type, ""),
    )


def _gradients(module: nn.Module, name: str) -> dict[str, Tensor]:
    gradient = module.get_parameter(name).grad
    assert gradient is not None
    return {"gradient": gradient.detach().flatten(1)}


def videomae(network: Any, targets: TargetConfig) -> Any:
    """A `VideoMAEForPreTraining` with the widths and the weights of a joint "pixel" model."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    encoder, decoder = network.encoder, network.decoder[0]
    config = VideoMAEConfig(
        image_size=targets.size,
        patch_size=targets.patch,
        num_frames=targets.frames,
        tubelet_size=targets.tubelet,
        hidden_size=encoder.width,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=encoder.blocks[0].attn.num_heads,
        intermediate_size=4 * encoder.width,
        decoder_hidden_size=decoder.norm.normalized_shape[0],
        decoder_num_hidden_layers=len(decoder.blocks),
        decoder_num_attention_heads=decoder.blocks[0].attn.num_heads,
        decoder_intermediate_size=4 * decoder.norm.normalized_shape[0],
        layer_norm_eps=1e-6,
        use_mean_pooling=False,  # or the encoder has no norm at its end
    )
    peer = VideoMAEForPreTraining(config).to(network.mask_token.device).train()
    own = network.state_dict()
    theirs = {
        "mask_token": own["mask_token"],
        "encoder_to_decoder.weight": own["encoder_to_decoder.0.weight"],
        **_renamed(
            own, "encoder.patch_embed.proj", "videomae.embeddings.patch_embeddings.projection"
        ),
        **_renamed(own, "encoder.norm", "videomae.layernorm"),
        **_renamed(own, "decoder.0.norm", "decoder.norm"),
        **_renamed(own, "decoder.0.heads.pixel", "decoder.head"),
    }
    stacks = (
        ("encoder.blocks", "videomae.encoder.layer"),
        ("decoder.0.blocks", "decoder.decoder_layers"),
    )
    for (ours, their), blocks in zip(stacks, (encoder.blocks, decoder.blocks), strict=True):
        for i in range(len(blocks)):
            theirs |= _block(own, f"{ours}.{i}", f"{their}.{i}")
    peer.load_state_dict(theirs, strict=True)
    return peer


def _renamed(own: dict[str, Tensor], name: str, new: str) -> dict[str, Tensor]:
    return {f"{new}.{part}": own[f"{name}.{part}"] for part in ("weight", "bias")}


def _block(own: dict[str, Tensor], name: str, new: str) -> dict[str, Tensor]:
    """One block; keys have no bias there, which attention cannot tell from one."""
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    found: dict[str, Tensor] = {}
    for part, theirs in parts.items():
        found |= _renamed(own, f"{name}.{part}", f"{new}.{theirs}")
    for i, one in enumerate(("query", "key", "value")):
        for kind in ("weight", "bias"):
            chunk = own[f"{name}.attn.qkv.{kind}"].chunk(3)[i]
            found[f"{new}.attention.attention.{one}.{kind}"] = chunk
    found.pop(f"{new}.attention.attention.key.bias")
    return found
