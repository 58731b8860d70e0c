"""Opening anyone's checkpoint without running what is in it.

Tensors are mapped from the disk, not read, so that what is not used (an optimiser's moments, say)
costs nothing. A pickle is read by torch's restricted reader, which knows tensors, containers and,
of classes, `argparse.Namespace` alone: VideoMAE keeps its options in one, and here it is a mapping
of plain values. A file that needs any other class is refused by its name.

=====================  ============================================================================
what may be given      read
=====================  ============================================================================
a file                 .safetensors, or what `torch.save` wrote (.pth, .pt, .bin, .ckpt)
a run's folder         its last checkpoint
any other folder       model.safetensors or pytorch_model.bin, whole or in shards, with the
                       config.json beside it; or DeepSpeed's mp_rank_00_model_states.pt
=====================  ============================================================================
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .carried import KEY
from .checkpoints import latest

__all__ = ["Opened", "locate", "open_weights"]

ALLOWED = (argparse.Namespace,)
"""Classes that a pickle may name, beside torch's own tensors and containers."""
HOLDERS = ("model", "module", "state_dict")
"""Where a file keeps its weights, first come first served; DeepSpeed's is `module`."""
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every key."""
SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = (
    "model.safetensors",
    "pytorch_model.bin",
    "mp_rank_00_model_states.pt",
    "checkpoint.pth",
)


class Opened(NamedTuple):
    """A checkpoint's contents, as they are in it.

    Attributes
    ----------
    path : the file, or the index of its shards.
    tensors : by key, on the CPU, mapped from the disk where the format allows.
    config : of the config.json beside it, as Hugging Face writes one; empty where there is none.
    carried : what this project's exports say beside the weights (`carried`); None without.
    about : metadata of a safetensors file.
    options : what the program that made it was run with, where it says; plain values.
    left : what else the file holds and is not read, with the reason.
    processor : how Hugging Face's config.json has its frames prepared, where a file beside says it.
    """

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    about: dict[str, str]
    options: dict[str, Any]
    left: dict[str, str]
    carried: Any = None
    processor: Mapping[str, Any] = MappingProxyType({})


def open_weights(path: str | os.PathLike[str]) -> Opened:
    """Open a checkpoint of any format.

    Raises
    ------
    OSError
        If there is none, or it is damaged.
    ValueError
        If it would run code to be read (the class is named), or holds no weights.
    """
    file = locate(path)
    beside = file.parent / "config.json"
    config = _json(beside) if beside.is_file() else {}
    about: dict[str, str] = {}
    options: dict[str, Any] = {}
    left: dict[str, str] = {}
    beyond: Any = config.get(KEY)
    if file.name in SHARDED:
        tensors = _shards(file)
    elif _is_safetensors(file):
        tensors, about = _safetensors(file)
    else:
        loaded = _restricted(file)
        tensors, options, left = _unpack(loaded, file)
        beyond = loaded.get(KEY, beyond)
    while wrapper := _wrapper(tensors):
        tensors = {key[len(wrapper) :]: value for key, value in tensors.items()}
    if not tensors:
        raise ValueError(f"{file} holds no weights")
    processor = _processor(file.parent) if config else {}
    return Opened(file, tensors, config, about, options, left, beyond, processor)


def _wrapper(tensors: Iterable[str]) -> str:
    """What stands before every key, if it is one of `WRAPPERS`."""
    keys = list(tensors)
    found = (wrapper for wrapper in WRAPPERS if all(key.startswith(wrapper) for key in keys))
    return next(found, "") if keys else ""


def locate(path: str | os.PathLike[str]) -> Path:
    """The file, or index of shards, of a checkpoint; FileNotFoundError where there is none."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    for name in (*SHARDED, *WHOLE):
        if (path / name).is_file():
            return path / name
    last = latest(path)
    if last is not None:
        return last.path / "model.safetensors"
    raise FileNotFoundError(f"{path} holds no checkpoint; looked for {', '.join(WHOLE)}")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is {type(found).__name__}; must be an object")
    return found


def _processor(folder: Path) -> dict[str, Any]:
    """preprocessor_config.json, or as newer versions have it, a part of processor_config.json."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = _json(folder / name)
            inner = found.get("image_processor") or found.get("video_processor")
            return inner if isinstance(inner, dict) else found
    return {}


def _shards(index: Path) -> dict[str, Tensor]:
    files = _json(index).get("weight_map")
    if not isinstance(files, dict):
        raise ValueError(f"{index} has no weight_map")
    found: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in files.values()}):
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}; a shard must lie beside it")
        shard = index.parent / name
        if not shard.is_file():
            raise FileNotFoundError(f"{shard} is missing, which {index.name} names")
        safe = _is_safetensors(shard)
        found |= _safetensors(shard)[0] if safe else _unpack(_restricted(shard), shard)[0]
    missing = [key for key in files if key not in found]
    if missing:
        raise OSError(f"{index} names {missing[0]}, which no shard holds")
    return found


def _is_safetensors(path: Path) -> bool:
    """By its contents, since names say little: a length, then a JSON object."""
    with path.open("rb") as opened:
        head = opened.read(9)
    return len(head) == 9 and head[8:] == b"{" and not zipfile.is_zipfile(path)


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as opened:
            about = opened.metadata() or {}
            return {k: opened.get_tensor(k) for k in opened.keys()}, about  # noqa: SIM118
    except Exception as error:  # safetensors has an error class of its own
        raise OSError(f"{path} cannot be read: {error}") from error


def _restricted(path: Path) -> Any:
    """What `torch.save` wrote, by a reader that builds tensors, containers and `ALLOWED` alone."""
    zipped = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = _refused(path, zipped, str(error))
        allowed = ", ".join(f"{c.__module__}.{c.__qualname__}" for c in ALLOWED)
        if named:
            raise ValueError(
                f"{path} is refused: to read it, {', '.join(named)} would have to run; "
                f"beside tensors and containers only {allowed} may be in it"
            ) from None
        raise ValueError(f"{path} is no checkpoint that can be read safely") from None
    except Exception as error:  # bytes that are no pickle fail in any way
        reason = str(error).strip().splitlines()
        raise OSError(f"{path} cannot be read: {reason[0] if reason else error!r}") from None


def _refused(path: Path, zipped: bool, message: str) -> list[str]:
    """The classes and functions of a pickle that are not allowed."""
    if zipped:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    found = re.search(r"(?:GLOBAL|global|class|callable)[: ]+`?([\w]+(?:\.[\w]+)+)", message)
    return [found[1]] if found else []


def _unpack(loaded: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Weights, options and what is left of a training program's file."""
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds {type(loaded).__name__}; must be a mapping of weights")
    holder = next((h for h in HOLDERS if isinstance(loaded.get(h), Mapping)), None)
    state = loaded if holder is None else loaded[holder]
    options = loaded.get("args") if holder else None
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    others: Iterable[Any] = () if holder is None else loaded
    left = {str(key): "not weights" for key in others if key not in (holder, "args", KEY)}
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    left |= {str(key): "no tensor" for key, value in state.items() if not isinstance(value, Tensor)}
    plain = (bool, int, float, str)
    kept = options if isinstance(options, Mapping) else {}
    return tensors, {str(k): v for k, v in kept.items() if isinstance(v, plain)}, left
