"""What the weights are called elsewhere, and what a foreign file says of its architecture.

One table gives for each of this project's keys those of another format; it is read from right to
left when a file comes in and from left to right when one is written.

============  =====================================================================================
videomae      VideoMAE's code: `encoder.blocks.…`, without `encoder.` in a fine-tuned file
released      the MME authors' code: VideoMAE's encoder, `decoder.i.…`, heads `decoder.i.head.k.…`
hf            Hugging Face's VideoMAE: query, key and value apart
============  =====================================================================================

The others keep no bias of the keys. That loses nothing: it adds the same to all the logits of a
query, which the softmax takes out again. So it is zero when it comes in and is left out of exports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Style", "canonical", "count", "names", "pick", "rows_of_released", "style_of"]

Style = Literal["videomae", "released", "hf"]

_HF_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_HF = {
    "encoder.patch_embed.proj": "embeddings.patch_embeddings.projection",
    "encoder.norm": "layernorm",
    "head": "classifier",
    "encoder_to_decoder.0": "encoder_to_decoder",
    "decoder.0.norm": "decoder.norm",
    "decoder.0.heads.pixel": "decoder.head",
}
_VIDEOMAE = {
    "encoder_to_decoder.0": "encoder_to_decoder",
    "decoder.0.norm": "decoder.norm",
    "decoder.0.heads.pixel": "decoder.head",
}
_BLOCK = re.compile(r"(encoder|decoder\.\d+)\.blocks\.(\d+)\.(.+)")


def names(key: str, style: Style, decoders: int = 1) -> list[tuple[str, ...]]:
    """What another format calls one of this project's weights.

    Parameters
    ----------
    key : this project's.
    decoders : how many there are; in the released code one has both heads, two have one each.

    Returns
    -------
    list
        The parts that it is made of, one after the other along the rows: one, or three where
        queries, keys and values are apart. Each by all its names; an export has all of them.
    """
    layer, _, end = key.rpartition(".")
    block = _BLOCK.fullmatch(key)
    if block:
        stack, index, inner = block.groups()
        inner, _, end = inner.rpartition(".")
        if style == "released":
            stack = _released(f"{stack}.", decoders)[:-1]
        return _names_in_block(style, stack, index, inner, end)
    if style == "hf":
        return [(f"{_HF.get(layer, layer)}.{end}" if layer else key,)]
    if style == "videomae":
        return [(f"{_VIDEOMAE.get(layer, layer)}.{end}" if layer else key,)]
    return [(_released(key, decoders),)]


def _names_in_block(
    style: Style, stack: str, index: str, inner: str, end: str
) -> list[tuple[str, ...]]:
    if style == "hf":
        place = "encoder.layer" if stack == "encoder" else "decoder.decoder_layers"
        at = f"{place}.{index}"
        if inner != "attn.qkv":
            return [(f"{at}.{_HF_BLOCK.get(inner, inner)}.{end}",)]
        parts: list[tuple[str, ...]] = [
            (f"{at}.attention.attention.{n}.{end}",) for n in ("query", "key", "value")
        ]
        if end == "weight":
            return parts
        # The files on the hub, and transformers up to 5.5, call them as here; 5.6 to 5.17 read the
        # names above alone and start from zeros where they are not; 5.18 and later read both.
        return [(f"{at}.attention.attention.{p[0]}_bias", *own)
                for p, own in zip("qkv", parts, strict=True)]  # fmt: skip
    place = f"{stack}.blocks" if stack == "encoder" or style == "released" else "decoder.blocks"
    at = f"{place}.{index}"
    if inner == "attn.qkv" and end == "bias":
        return [(f"{at}.attn.{part}_bias",) for part in "qkv"]
    return [(f"{at}.{inner}.{end}",)]


def _released(key: str, decoders: int) -> str:
    """Histograms are the first head or decoder there, displacements the second."""
    found = re.fullmatch(r"(encoder_to_decoder|decoder)\.(\d+)\.(.*)", key)
    if not found:
        return key
    what, index, inner = found.groups()
    if decoders > 1:
        index = str(decoders - 1 - int(index))
    head = re.fullmatch(r"heads\.(shape|position)\.(.+)", inner)
    if head:
        place = 1 if head[1] == "position" and decoders == 1 else 0
        inner = f"head.{place}.{head[2]}"
    return f"{what}.{index}.{inner}"


def style_of(keys: Iterable[str]) -> Style | None:
    """Which format keys are of, or None."""
    listed = set(keys)
    if listed & {f"{at}embeddings.patch_embeddings.projection.weight" for at in ("", "videomae.")}:
        return "hf"
    if not listed & {f"{at}patch_embed.proj.weight" for at in ("", "encoder.")}:
        return None
    released = any(re.match(r"(encoder_to_decoder|decoder)\.\d+\.", key) for key in listed)
    return "released" if released else "videomae"


def canonical(tensors: Mapping[str, Tensor], style: Style) -> dict[str, tuple[str, Tensor]]:
    """The file's tensors by the names of `names`, each with the name that it has in the file."""
    found: dict[str, tuple[str, Tensor]] = {}
    bare = "patch_embed.proj.weight" in tensors
    for key, value in tensors.items():
        name = key.removeprefix("videomae.") if style == "hf" else key
        if style != "hf" and bare and key.startswith(("patch_embed.", "blocks.", "norm.")):
            name = f"encoder.{key}"
        if name.endswith("attn.qkv.bias") and value.dim() == 1 and len(value) % 3 == 0:
            # Some write it whole.
            at = name.removesuffix("qkv.bias")
            for part, third in zip("qkv", value.chunk(3), strict=True):
                found[f"{at}{part}_bias"] = key, third
        else:
            found[name] = key, value
    return found


def count(given: Iterable[str], style: Style, stack: str) -> int:
    """Blocks of a stack (`encoder`, `decoder.0`) in a file."""
    listed, depth = set(given), 0
    while names(f"{stack}.blocks.{depth}.norm1.weight", style)[0][0] in listed:
        depth += 1
    return depth


def pick(
    given: Mapping[str, tuple[str, Tensor]], key: str, style: Style, decoders: int = 1
) -> tuple[Tensor | None, list[str]]:
    """One of this project's weights from a file's, and the names that it was taken from.

    None if it is not there. Biases of queries, keys and values that are not there are zero.
    """
    parts = names(key, style, decoders)
    found = [next((n for n in part if n in given), None) for part in parts]
    used = [name for part in parts for name in part if name in given]
    if len(parts) == 1:
        return (given[used[0]][1] if used else None), used
    if key.endswith(".weight"):
        there = [given[n][1] for n in found if n is not None]
        return (_together(there, used), used) if len(there) == len(parts) else (None, [])
    if used:
        like = given[used[0]][1]
    else:
        weight = pick(given, key.removesuffix("bias") + "weight", style, decoders)[0]
        if weight is None:
            return None, []
        like = weight[: len(weight) // 3, 0]
    values = [torch.zeros_like(like) if n is None else given[n][1] for n in found]
    return _together(values, used), used


def _together(values: list[Tensor], used: list[str]) -> Tensor:
    if len({value.shape for value in values}) > 1:
        shapes = ", ".join(str(list(value.shape)) for value in values)
        raise ValueError(f"{', '.join(used)} have shapes {shapes}; must have one")
    return torch.cat(values)


def rows_of_released(tracks: int, steps: int, features: int, *, back: bool = False) -> Tensor:
    """Permutation of the values of a head: this project's order from the released code's, or back.

    There the tracks of a patch come last: displacements are laid out (x or y, step, track),
    histograms (channel and bin, step, track); here (track, step, …).
    """
    there = torch.arange(tracks * steps * features).reshape(features, steps, tracks)
    rows = there.permute(2, 1, 0).flatten()
    return rows.argsort() if back else rows
