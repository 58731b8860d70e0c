"""What tests of conversions share: small random models, theirs and ours, and clips for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    VideoMAEConfig,
)

from mme_model.finetune_recipe import FinetuneRecipe
from mme_model.recipe import Recipe
from mme_model.weights import build

SHAPES = {"small": (384, 6), "base": (768, 12), "large": (1024, 16)}
CLIP = {"frames": 4, "size": 32}
SMALL = {"width": 64, "depth": 2, "heads": 2}
CLOSE = {"atol": 1e-5, "rtol": 0.0}
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def randomised(model: nn.Module) -> Any:
    """Every weight is drawn, norms and biases too, so that none can be lost unseen."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.05
        gain = "norm" in name and name.endswith("weight")
        with torch.no_grad():
            parameter.copy_(drawn + 1 if gain else drawn)
    return model.eval()


def with_large_tokens(model: Any) -> Any:
    """Masked tokens whose variance is well above 1.

    transformers fixes the eps of decoder.norm at 1e-5, where it is 1e-6 here and in VideoMAE: a
    relative difference of 4.5e-6 over the variance, which then is below what is compared.
    """
    with torch.no_grad():
        model.mask_token.mul_(60)
    return model


def clips(count: int = 2) -> tuple[Tensor, Tensor]:
    """As this project takes them, and normalised."""
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 256, (count, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return raw, (raw / 255 - MEAN) / STD


def masks() -> tuple[Tensor, Tensor]:
    """Of two clips of eight patches: which are masked, as indices and as booleans."""
    masked = torch.tensor([[1, 2, 5, 7], [0, 3, 4, 6]])
    return masked, torch.zeros(2, 8, dtype=torch.bool).scatter(1, masked, True)


def config(width: int = 64, heads: int = 2, **changes: Any) -> VideoMAEConfig:
    """A small one of Hugging Face's, with VideoMAE's eps."""
    fields = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 2,
        "num_frames": 4,
        "image_size": 32,
        "layer_norm_eps": 1e-6,
        "decoder_hidden_size": 32,
        "decoder_intermediate_size": 128,
        "decoder_num_attention_heads": 2,
        "decoder_num_hidden_layers": 2,
    }
    return VideoMAEConfig(**(fields | changes))


def saved(kind: str, recipe: Any, path: Path, classes: list[str] | None = None) -> nn.Module:
    """A random model of this project, and its checkpoint."""
    model = randomised(build(kind, recipe, len(classes or [])))  # type: ignore[arg-type]
    if kind == "pretrain":
        with_large_tokens(model)
    about = {"format": "mme-1", "kind": kind, "recipe": recipe.to_json(), "step": "1"}
    if classes is not None:
        about["classes"] = json.dumps(classes)
    save_file(model.state_dict(), path, metadata=about)
    return model


def pixels(**model: Any) -> Recipe:
    """A recipe that predicts pixels."""
    return Recipe.from_dict(
        {"model": SMALL | model, "targets": CLIP | {"targets": ["pixel"], "length": 0}}
    )


def finetune(**model: Any) -> FinetuneRecipe:
    """A small classifier's recipe."""
    return FinetuneRecipe.from_dict({"model": SMALL | model, "views": CLIP})


def as_videomae(theirs: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Hugging Face's weights by VideoMAE's names, written down apart from `key_maps`."""
    renames = [
        ("videomae.", ""),
        ("embeddings.patch_embeddings.projection", prefix + "patch_embed.proj"),
        ("encoder.layer.", prefix + "blocks."),
        ("decoder.decoder_layers.", "decoder.blocks."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("attention.attention.query.bias", "attn.q_bias"),
        ("attention.attention.value.bias", "attn.v_bias"),
        ("classifier", "head"),
    ]
    state: dict[str, Tensor] = {}
    for key, value in theirs.state_dict().items():
        for old, new in renames:
            key = key.replace(old, new)
        if key.startswith("layernorm."):
            key = prefix + key.replace("layernorm", "norm")
        state[key] = value
    for key in [k for k in state if k.endswith("attention.attention.query.weight")]:
        at = key.removesuffix("attention.attention.query.weight")
        parts = [
            state.pop(f"{at}attention.attention.{n}.weight") for n in ("query", "key", "value")
        ]
        state[f"{at}attn.qkv.weight"] = torch.cat(parts)
    return state
