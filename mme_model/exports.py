"""Writing checkpoints for this and other programs, with a model card beside.

=========  ========================================================================================
mme        model.safetensors with its metadata: kind, recipe, classes
videomae   checkpoint.pth, `{"model": …}`: what VideoMAE's fine-tuning and testing read
released   checkpoint.pth, likewise, with the decoder and heads as the MME authors' code has them
hf         a folder for `from_pretrained`: config.json, model.safetensors, preprocessor_config.json
=========  ========================================================================================

OUT is a folder, or for all but hf a file with that ending, the card of which is beside it under its
whole name and .md; a folder is written beside and renamed. What a format has no place for is left
out and named: decoders of motion targets go to `released` (two-layer heads) and `mme` alone. How
clips are taken from videos stands in others' formats under a key of our own (`carried`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mme_targets import TargetConfig
from mme_targets.files import atomic_path

from .carried import KEY, SAID, carried
from .checkpoints import FORMAT
from .finetune_recipe import ViewConfig
from .key_maps import Style, names, rows_of_released
from .recipe import Recipe
from .vit import MEAN, STD, decoder_shape, encoder_shape
from .weights import EPS, Weights, head_layout

__all__ = ["Format", "Written", "export"]

Format = Literal["mme", "videomae", "released", "hf"]
_NAMES = {
    "mme": "model.safetensors",
    "videomae": "checkpoint.pth",
    "released": "checkpoint.pth",
    "hf": "model.safetensors",
}
_HF_CLASSES = {
    "encoder": "VideoMAEModel",
    "pretrain": "VideoMAEForPreTraining",
    "classifier": "VideoMAEForVideoClassification",
}


class Written(NamedTuple):
    """What was written.

    Attributes
    ----------
    path : the folder or file.
    tensors : how many.
    left : this project's weights that the format has no place for, with the reason.
    """

    path: Path
    tensors: int
    left: dict[str, str]


def export(weights: Weights, out: str | os.PathLike[str], to: Format) -> Written:
    """Write weights in a format, and a model card beside them.

    Raises
    ------
    OSError
        If `out` cannot be written or is there already (an empty folder may be).
    ValueError
        If `out` ends as another format's files do, or the format has no place for the backbone.
    """
    out = Path(out)
    backbone = weights.recipe.model.backbone
    if to != "mme" and backbone != "vit":
        raise ValueError(f"{weights.source} is of backbone {backbone}; {to} holds ViTs alone")
    whole = out.suffix not in (".safetensors", ".pth", ".pt")
    _check_out(out, to, whole)
    kept, left = _fitting(weights, to)
    state = _renamed(weights, kept, to)
    kind = "encoder" if left else weights.kind
    card = _card(weights, to, kind, left)
    if not whole:
        _write(state, out, _about(weights) if to == "mme" else None, carried(weights), out)
        with atomic_path(_card_path(out)) as path:
            path.write_text(card)
        return Written(out, len(state), left)
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        beside.mkdir(parents=True)
        about = {"mme": _about(weights), "hf": {"format": "pt"}}.get(to)
        _write(state, beside / _NAMES[to], about, carried(weights), out)
        if to == "hf":
            for name, values in _hf_files(weights, kept, kind).items():
                (beside / name).write_text(json.dumps(values, indent=2) + "\n")
        (beside / "README.md").write_text(card)
        if out.exists():
            out.rmdir()
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Written(out, len(state), left)


def _card_path(file: Path) -> Path:
    """The card beside a file: under its whole name, so that x.pt and x.pth have one each."""
    return file.with_name(f"{file.name}.md")


def _check_out(out: Path, to: Format, whole: bool) -> None:
    if whole:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out} is there already; name a folder that is new or empty")
        return
    if to == "hf":
        raise ValueError(f"{out}: Hugging Face's format is a folder; leave out {out.suffix}")
    if (to == "mme") != (out.suffix == ".safetensors"):
        raise ValueError(
            f"{out} ends in {out.suffix}; {to} is written as {Path(_NAMES[to]).suffix}"
        )
    for path in (out, _card_path(out)):
        if path.exists():
            raise FileExistsError(f"{path} is there already; name a new file")


def _fitting(weights: Weights, to: Format) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights that a format has a place for; of the others the reason why not."""
    state = dict(weights.state)
    reason = ""
    if to != "mme" and weights.kind == "pretrain" and isinstance(weights.recipe, Recipe):
        reason = _no_place(weights.recipe, weights.state, to)
    left = {k: reason for k in state if reason and not k.startswith("encoder.")}
    return {k: v for k, v in state.items() if k not in left}, left


def _no_place(recipe: Recipe, state: Mapping[str, Tensor], to: Format) -> str:
    """Why a format has no place for a model's decoders, or nothing."""
    predicted = sorted(key.split(".")[3] for key in state if ".heads." in key and "bias" in key)
    found = ", ".join(dict.fromkeys(predicted))
    if to != "released":
        fits = set(predicted) == {"pixel"} and recipe.model.head == "linear"
        return "" if fits else f"decodes {found}; a decoder there decodes pixels, by a linear head"
    if recipe.model.head != "mlp" or not set(predicted) <= {"shape", "position"}:
        return f"a {recipe.model.head} head for {found}; heads there are mlp, shape and position"
    if "shape" not in predicted:
        return "decodes no shape, which is the first head there"
    tokens = state["mask_token"]
    if not bool((tokens == tokens[:1]).all()):
        return "has a mask token for each decoder; there is one for all there"
    return ""


def _renamed(weights: Weights, kept: Mapping[str, Tensor], to: Format) -> dict[str, Tensor]:
    """Under the keys of a format."""
    if to == "mme":
        return dict(kept)
    style: Style = to
    decoders = sum(key.startswith("encoder_to_decoder.") for key in kept)
    found: dict[str, Tensor] = {}
    for key, value in kept.items():
        if to == "released" and isinstance(weights.recipe, Recipe):
            if key == "mask_token":
                value = value[:1]
            elif ".heads." in key and ".2." in key:
                layout = head_layout(key, weights.recipe.targets)
                value = value[rows_of_released(*layout, back=True)]
        parts = names(key, style, decoders)
        for part, piece in zip(parts, value.chunk(len(parts)), strict=True):
            found[part[0]] = piece
            # Under each of its names, for each reader knows one: see `key_maps`.
            found |= {alias: piece.clone() for alias in part[1:]}
    # No format keeps a bias of the keys, for good reason (see `key_maps`).
    found = {k: v for k, v in found.items() if not k.endswith((".k_bias", ".key.bias"))}
    if weights.kind == "classifier" and to != "hf":
        return {key.removeprefix("encoder."): value for key, value in found.items()}
    if to == "hf" and any(
        not k.startswith(("embeddings.", "encoder.", "layernorm.")) for k in found
    ):
        inner = ("embeddings.", "encoder.", "layernorm.")
        return {f"videomae.{k}" if k.startswith(inner) else k: v for k, v in found.items()}
    return found


def _about(weights: Weights) -> dict[str, str]:
    about = {"format": FORMAT, "kind": weights.kind, "recipe": weights.recipe.to_json()}
    if weights.kind == "classifier":
        about["classes"] = json.dumps(weights.classes)
    return about | {"source": weights.origin}


def _write(
    state: Mapping[str, Tensor],
    path: Path,
    about: dict[str, str] | None,
    said: dict[str, Any],
    where: Path,
) -> None:
    """A safetensors file with that metadata, or without any what `torch.save` writes; errors name
    `where` it is to be.
    """
    from safetensors.torch import save_file

    with atomic_path(path) as beside:
        try:
            if about is None:
                torch.save({"model": {k: _alone(v) for k, v in state.items()}, KEY: said}, beside)
            else:
                whole = {k: v.contiguous() for k, v in state.items()}
                save_file(whole, str(beside), metadata=about)
        except Exception as error:  # of a full disk each has an error class of its own
            reason = " ".join(str(error).split())
            raise OSError(f"{where} cannot be written (is the disk full?): {reason}") from error


def _alone(tensor: Tensor) -> Tensor:
    """The same memory as a storage of its own.

    `torch.save` writes whole storages, and that of a tensor mapped from a file is the file.
    """
    tensor = tensor.contiguous()
    start = tensor.storage_offset() * tensor.element_size()
    piece = tensor.untyped_storage()[start : start + tensor.nbytes]
    return torch.empty(0, dtype=tensor.dtype).set_(piece, 0, tensor.shape, tensor.stride())


def _hf_files(weights: Weights, kept: Mapping[str, Tensor], kind: str) -> dict[str, Any]:
    """config.json and preprocessor_config.json."""
    clip, model = weights.clip, weights.recipe.model
    shape = encoder_shape(model)
    config: dict[str, Any] = {
        "architectures": [_HF_CLASSES[kind]],
        "model_type": "videomae",
        "image_size": clip.size,
        "patch_size": clip.patch,
        "num_channels": 3,
        "num_frames": clip.frames,
        "tubelet_size": clip.tubelet,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": 4 * shape.width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": EPS,
        "qkv_bias": True,
        "use_mean_pooling": "encoder.norm.weight" not in kept,
        "torch_dtype": str(next(iter(kept.values())).dtype).removeprefix("torch."),
    }
    if kind == "pretrain" and isinstance(weights.recipe, Recipe):
        decoder = decoder_shape(model)
        config |= {
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": 4 * decoder.width,
            "norm_pix_loss": weights.recipe.targets.norm != "none",
        }
    if kind == "classifier":
        config["id2label"] = {str(i): name for i, name in enumerate(weights.classes)}
        config["label2id"] = {name: i for i, name in enumerate(weights.classes)}
    config[KEY] = {name: said for name, said in carried(weights).items() if name not in SAID}
    short_side = clip.short_side or clip.size if isinstance(clip, ViewConfig) else clip.size
    # Frames here are normalised by ImageNet's mean and deviation; the processor's default is .5.
    processor = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": short_side},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": clip.size, "width": clip.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    return {"config.json": config, "preprocessor_config.json": processor}


def _card(weights: Weights, to: Format, kind: str, left: Mapping[str, str]) -> str:
    """A model card: what it is, how it is loaded, by which recipe, what is left to its user."""
    shape, clip = encoder_shape(weights.recipe.model), weights.clip
    ours = weights.origin.startswith("mme:")
    what = {
        "encoder": "the encoder",
        "pretrain": "the pre-trained model, decoder and all",
        "classifier": f"a classifier of {len(weights.classes)} classes",
    }[kind]
    loading = {
        "mme": "from mme_model.checkpoints import load_classifier\n"
        'model, recipe, classes = load_classifier("model.safetensors")'
        if kind == "classifier"
        else "from mme_model.checkpoints import load_model\n"
        'model, recipe = load_model("model.safetensors")'
        if kind == "pretrain"
        else "from mme_model.checkpoints import load_encoder\n"
        'encoder, facts = load_encoder("model.safetensors")',
        "hf": f"from transformers import {_HF_CLASSES[kind]}\n"
        f'model = {_HF_CLASSES[kind]}.from_pretrained("path/to/this/folder")',
        "videomae": "import torch\n"
        'state = torch.load("checkpoint.pth", weights_only=True)["model"]',
        "released": "import torch\n"
        'state = torch.load("checkpoint.pth", weights_only=True)["model"]',
    }[to]
    lines = [
        "---",
        "library_name: transformers" if to == "hf" else "library_name: mme",
        f"pipeline_tag: {'video-classification' if kind == 'classifier' else 'feature-extraction'}",
        "---",
        "",
        "# Masked Motion Encoding" if ours else "# Video transformer",
        "",
        f"This is {what}: a video transformer of {shape.depth} blocks of width {shape.width} with "
        f"{shape.heads} heads, on {clip.frames} frames of {clip.size}×{clip.size} px in patches of "
        f"{clip.tubelet}×{clip.patch}×{clip.patch}. "
        + (_sampling(clip) if ours else "")
        + "Frames are RGB, normalised by ImageNet's mean and deviation. "
        + (
            "Positions are fixed sinusoids and not among the weights."
            if weights.recipe.model.backbone == "vit"
            else "It is MViTv2-S: width and heads are those of its last stage."
        ),
        "",
        f"Converted from a checkpoint ({weights.origin}).",
        "",
        "## Loading",
        "",
        "```python",
        loading,
        "```",
        "",
        *_about_versions(to, kind),
        *([f"Left out: {len(left)} weights; {next(iter(left.values()))}.", ""] if left else []),
        "## Recipe",
        "",
        *(
            ["```yaml", weights.recipe.to_yaml().rstrip(), "```"]
            if ours
            else ["Not known: the file that it was converted from does not hold it."]
        ),
        "",
        "## Licence",
        "",
        "That of the weights it was converted from and of the data they were trained on; fill it "
        "in before you publish this.",
        "",
    ]
    return "\n".join(lines)


def _sampling(clip: TargetConfig | ViewConfig) -> str:
    """Which frames of a video a clip has."""
    if not isinstance(clip, ViewConfig):
        return f"They lie {clip.stride} raw frames apart. "
    segments = f"There is one of each of {clip.frames} equal segments of the video"
    lie = segments if clip.sampling == "segments" else f"They lie {clip.stride} raw frames apart"
    resized = f"; the video's short side is {clip.short_side or clip.size} px"
    return f"{lie}{resized}. Tested in {clip.test_clips} × {clip.test_crops} views. "


def _about_versions(to: Format, kind: str) -> list[str]:
    if to != "hf":
        return []
    lines = [
        "Biases of queries and values are there twice: as `q_bias` and `v_bias` for transformers "
        "up to 5.5 and from 5.18 on, and as `query.bias` and `value.bias` for those between, "
        "which would start from zeros. A warning that names the other pair can be ignored.",
    ]
    if kind != "encoder":
        norm = "fc_norm" if kind == "classifier" else "decoder.norm"
        lines += [f"transformers fixes the eps of `{norm}` at 1e-5; it was trained with {EPS:g}."]
    return [*lines, ""]
