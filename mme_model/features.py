"""Features of a frozen encoder, computed once and kept on the disk.

A video's features are the mean of the encoder's tokens, one vector a view. They are kept in
``CACHE/<key>/``, some hundred videos a file, so that what an interrupted run has is used by the
next. The key is made of all that they depend on: the encoder's weights and attention heads, the
videos (paths, sizes and times of change; of built-in ones the seed), what a view is, and the
precision.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mme_targets.files import atomic_path

from .finetune_recipe import ViewConfig
from .labels import video_path
from .sources import Source
from .view_data import eval_loader
from .viewing import ViewProgress, autocast, group_size, in_chunks, share_of

__all__ = ["Features", "cache_key", "cached_features", "state_hash"]

PART = 128
"""Videos of a file, about."""
VERSION = 2
SEEN = [
    *("frames", "tubelet", "patch", "size", "sampling", "stride", "short_side"),
    *("test_clips", "test_crops"),
]
"""Fields of the views that features depend on."""


class Features(NamedTuple):
    """Of n videos, those of a video one after the other.

    Attributes
    ----------
    values : [sum of counts, width] float32.
    counts : [n] int64, views of each; 0 where it could not be read.
    reasons : why each could not be read; "" where it was.
    """

    values: Tensor
    counts: Tensor
    reasons: list[str]

    @property
    def owners(self) -> Tensor:
        """[sum of counts] int64, which video each vector is of."""
        return torch.arange(len(self.counts)).repeat_interleave(self.counts)


class _Kept(NamedTuple):
    """Of one video: features [views, width], and why there are none."""

    values: Tensor
    reason: str


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights: keys, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _heads(encoder: nn.Module) -> list[int]:
    """Attention heads of each block, which weights do not tell."""
    found = (getattr(module, "num_heads", None) for module in encoder.modules())
    return [heads for heads in found if isinstance(heads, int)]


def cache_key(
    encoder: nn.Module, source: Source, config: ViewConfig, precision: str
) -> dict[str, Any]:
    """All that features depend on; "key" names their folder."""
    digest = hashlib.sha256()
    made = {name: getattr(source, name, None) for name in ("seed", "length", "size", "held_out")}
    digest.update(repr(made).encode())
    for index in range(len(source)):
        path = video_path(source, index)
        try:
            status = os.stat(path)
            stamp = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            stamp = "-"
        digest.update(f"{os.path.abspath(path)}\0{stamp}\n".encode(errors="surrogateescape"))
    about = {
        "version": VERSION,
        "encoder": state_hash(encoder.state_dict()),
        "heads": _heads(encoder),
        "videos": digest.hexdigest(),
        "views": {name: getattr(config, name) for name in SEEN},
        "precision": precision,
    }
    text = json.dumps(about, sort_keys=True)
    return {"key": hashlib.sha256(text.encode()).hexdigest()[:20], **about}


def cached_features(
    encoder: nn.Module,
    source: Source,
    config: ViewConfig,
    cache: Path,
    *,
    what: str,
    batch: int,
    precision: str = "auto",
    state: Any,
) -> Features:
    """Read what there is of these features, compute and keep the rest.

    Parameters
    ----------
    encoder : clips to tokens [B, N, width]; on the device of `state`, in evaluation.
    cache : folder of all features.
    what : is read, for messages.
    state : Accelerate's of this process; each computes a share, and returns them all.

    Raises
    ------
    OSError, ValueError
        Where features cannot be kept, or are not finite.
    """
    device = state.device
    about = cache_key(encoder, source, config, f"{precision} on {device.type}")
    folder = cache / about["key"]
    folder.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        with atomic_path(folder / "about.json") as beside:
            beside.write_text(json.dumps(about, indent=1))
    done = _read(folder)
    state.wait_for_everyone()  # all have seen the same, so that shares fit together
    videos = range(len(source))
    left = [index for index in videos if index not in done]
    if state.is_main_process and done:
        print(f"{what}: features of {len(videos) - len(left)} of {len(videos)} videos are kept in "
              f"{folder}", file=sys.stderr)  # fmt: skip
    size = group_size(config.test_clips * config.test_crops, batch)
    mine = share_of(left, size, state.process_index, state.num_processes)
    if mine:
        with autocast(precision, device):
            _compute(encoder, source, config, mine, size, batch, device, folder, what,
                     state.is_main_process)  # fmt: skip
    state.wait_for_everyone()
    done = _read(folder) if left else done
    found = [done[index] for index in videos]
    counts = torch.tensor([len(one.values) for one in found])
    return Features(torch.cat([one.values for one in found]), counts, [f.reason for f in found])


@torch.inference_mode()
def _compute(
    encoder: nn.Module,
    source: Source,
    config: ViewConfig,
    videos: Sequence[int],
    size: int,
    batch: int,
    device: torch.device,
    folder: Path,
    what: str,
    show: bool,
) -> None:
    progress = ViewProgress(what, len(videos), show)
    held: dict[int, _Kept] = {}
    try:
        for views in eval_loader(config, source, videos, device=device, videos=size):
            if len(views):
                clips = views.rgb.to(device, non_blocking=True)
                pooled = in_chunks(lambda c: encoder(c).float().mean(dim=1), clips, batch)
                if not pooled.isfinite().all():
                    raise ValueError(f"features of {views.names[0]} and so on are not finite")
                for index in views.indices:
                    held[index] = _Kept(pooled[views.videos == index], "")
            for index, (_, why) in zip(views.lost, views.skipped, strict=True):
                held[index] = _Kept(torch.empty(0, 0), why)
            progress.step(views)
            if len(held) >= PART:
                _write(folder, held)
                held = {}
    finally:
        progress.close()
        if held:  # of an interrupted run as well
            _write(folder, held)


def _write(folder: Path, held: Mapping[int, _Kept]) -> None:
    from safetensors.torch import save_file

    read = {index: one.values for index, one in held.items() if not one.reason}
    lost = {str(index): one.reason for index, one in held.items() if one.reason}
    tensors = {
        "indices": torch.tensor(list(read), dtype=torch.int64),
        "counts": torch.tensor([len(v) for v in read.values()], dtype=torch.int64),
        "values": torch.cat(list(read.values())) if read else torch.empty(0, 0),
    }
    with atomic_path(folder / f"videos-{min(held):09d}.safetensors") as beside:
        save_file(tensors, str(beside), metadata={"lost": json.dumps(lost)})


def _read(folder: Path) -> dict[int, _Kept]:
    from safetensors import safe_open

    found: dict[int, _Kept] = {}
    width = 0
    for path in sorted(folder.glob("videos-*.safetensors")):
        try:
            with safe_open(str(path), framework="pt") as opened:
                lost = json.loads((opened.metadata() or {})["lost"])
                parts = {key: opened.get_tensor(key) for key in ("indices", "counts", "values")}
        except Exception as error:  # safetensors has an error class of its own
            print(f"note: {path} is damaged and is made anew: {error}", file=sys.stderr)
            continue
        width = max(width, parts["values"].shape[1])
        pieces = parts["values"].split(parts["counts"].tolist())
        for index, values in zip(parts["indices"].tolist(), pieces, strict=True):
            found[index] = _Kept(values, "")
        found |= {int(index): _Kept(torch.empty(0, 0), why) for index, why in lost.items()}
    return {
        i: _Kept(one.values.reshape(len(one.values), width), one.reason) for i, one in found.items()
    }
