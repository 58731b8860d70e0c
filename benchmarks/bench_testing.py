"""Views through a classifier beside `transformers`' VideoMAEForVideoClassification, as tested.

Both have the same weights; logits are compared. ViT-B at 224 px with Kinetics' 400 classes, ViT-Ti
below. Ours starts from uint8 views, as they are decoded; VideoMAE from floats that are normalised
already, which costs it nothing here. On a GPU both run in bf16, as `mme test` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .bench_pretraining import _block, _renamed
from .harness import Case, Peer, Setting, Work, textured_frames

STAGE = "testing"
CLASSES = 400
NOTES = {"cpu": "matrix products and attention over all patches; norms, GELU and sums of biases"}


def cases(setting: Setting) -> Iterator[Case]:
    """Every case of this stage; none, and a note why, where a library is missing."""
    try:
        from transformers import VideoMAEForVideoClassification  # noqa: F401

        from mme_model.classifier import Classifier  # noqa: F401
    except ImportError as error:
        setting.leave_out(f"testing views: needs timm and transformers ({error})")
        return
    for batch in setting.batches if setting.device.type == "cuda" else (1,):
        yield _case(setting, min(batch, 16))


def _case(setting: Setting, batch: int) -> Case:
    from mme_model.classifier import Classifier
    from mme_model.finetune_recipe import ViewConfig
    from mme_model.flops import encoder_count
    from mme_model.recipe import ModelConfig
    from mme_model.viewing import autocast

    size = "tiny" if setting.quick or setting.side < 224 else "base"
    model, views = ModelConfig(size=size), ViewConfig(frames=setting.frames, size=setting.side)
    torch.manual_seed(0)
    network = Classifier(model, views, CLASSES).to(setting.device).eval()
    with torch.no_grad():  # biases and norms as they are after training: not zeros and ones
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 or name.startswith("head."):
                parameter.add_(0.1 * torch.randn_like(parameter))
        for block in network.encoder.blocks:  # VideoMAE's keys have none
            block.attn.qkv.bias.chunk(3)[1].zero_()
    peer = videomae(network, views)
    clips = textured_frames(batch, setting.frames, setting.side, setting.device)
    embed = network.encoder.patch_embed
    mean, deviation = (
        statistic[:: views.tubelet * views.patch**2].view(3, 1, 1)
        for statistic in (embed.mean, embed.deviation)
    )
    pixels = (clips - mean) / deviation

    @torch.inference_mode()
    def run() -> Tensor:
        with autocast("auto", setting.device):
            return network(clips)

    @torch.inference_mode()
    def run_peer() -> Tensor:
        with autocast("auto", setting.device):
            logits: Tensor = peer(pixels).logits
        return logits

    def check(result: Tensor) -> None:
        assert list(result.shape) == [batch, CLASSES], f"logits are {list(result.shape)}"
        assert bool(result.isfinite().all()), "logits are not finite"

    def agree(ours: Tensor, theirs: Tensor) -> None:
        exact = setting.device.type == "cpu"
        scale = float(theirs.float().abs().max())
        absolute = (1e-5 if exact else 3e-2) * scale
        torch.testing.assert_close(ours.float(), theirs.float(), atol=absolute, rtol=0.0)

    parameters = sum(p.numel() for p in network.parameters())
    return Case(
        stage=STAGE,
        operation="testing views",
        name=setting.label(batch, f"ViT-{size}, {CLASSES} classes, {setting.frames} frames"),
        floor=setting.device.type,
        run=run,
        check=check,
        peers=(Peer("transformers VideoMAE", run_peer, agree, required=1.0),),
        work=Work(
            read=float(parameters * 4 + clips.numel()),
            written=float(batch * CLASSES * 4),
            operations=float(batch * encoder_count(model, views)),
            how="the multiply-adds of the encoder's forward pass; weights and views read once",
        ),
        note=NOTES.get(setting.device.type, ""),
    )


def videomae(network: Any, views: Any) -> Any:
    """A `VideoMAEForVideoClassification` with the weights of `network`."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    encoder = network.encoder
    config = VideoMAEConfig(
        image_size=views.size,
        patch_size=views.patch,
        num_frames=views.frames,
        tubelet_size=views.tubelet,
        hidden_size=encoder.width,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=encoder.blocks[0].attn.num_heads,
        intermediate_size=4 * encoder.width,
        layer_norm_eps=1e-6,
        use_mean_pooling=True,
        num_labels=CLASSES,
    )
    peer = VideoMAEForVideoClassification(config).to(network.head.weight.device).eval()
    peer.fc_norm.eps = 1e-6
    own = network.state_dict()
    theirs = {
        **_renamed(
            own, "encoder.patch_embed.proj", "videomae.embeddings.patch_embeddings.projection"
        ),
        **_renamed(own, "fc_norm", "fc_norm"),
        **_renamed(own, "head", "classifier"),
    }
    for i in range(len(encoder.blocks)):
        theirs |= _block(own, f"encoder.blocks.{i}", f"videomae.encoder.layer.{i}")
    peer.load_state_dict(theirs, strict=True)
    return peer
