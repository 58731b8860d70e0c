"""Optical flow by RAFT (Teed and Deng 2020) with the user's own weights, as torchvision builds it.

A learned method beside the paper's TV-L1 (Appendix A), from frames of values 0 to 255 to flow in
px, channel 0 to the right and channel 1 down. It runs wherever torch does. Frames are scaled to
[-1, 1], and continued on all sides by what lies at their border until both sides are multiples of
8 px and no less than 128, which the network asks for.

Pairs go through the network one at a time: convolutions choose their algorithm by the size of the
batch, so that only this makes a pair's flow the same whatever other pairs there are. Between
devices, versions of torch, numbers of threads and settings (TF32, `torch.backends.cudnn.benchmark`)
it differs by rounding. The memory of a pair grows with the square of its pixels: all-pairs
correlation of 224² takes 3 MB, of 1920x1080 some 6 GB.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

SMALLEST_SIDE = 128
"""px; below it the smallest map of correlations would have no pixel."""
MULTIPLE = 8
"""px; the network's features are that much smaller than the frames."""
HOW_TO_GET = (
    "a .pth, .pt or .safetensors file with a state dict of torchvision's raft_small or raft_large, "
    "for example torch.save(raft_large(weights='DEFAULT').state_dict(), 'raft_large.pth')"
)


class _Plain(TorchFunctionMode):
    """The network makes its grids as it would in a program that set no defaults in torch."""

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func in (torch.linspace, torch.tensor)
        plain = {"dtype": torch.float32, "device": "cpu"} if made else {}
        return func(*args, **{**plain, **(kwargs or {})})


_last = threading.local()
"""The network that each thread used last: it keeps state while it runs, so none is shared."""


def raft_flow(
    frames: torch.Tensor,
    pairs: torch.Tensor,
    weights: str | os.PathLike[str] | None,
    progress: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """Flow of pairs of frames by RAFT, on the frames' device and its current stream.

    Parameters
    ----------
    frames : torch.Tensor
        ``[M, 3, H, W]`` uint8 or float32, RGB of values 0 to 255; float32 is clamped.
    pairs : torch.Tensor
        ``[N, 2]`` integers in ``[0, M)``: first and second frame of each flow.
    weights : path
        A state dict, ``.pth`` or ``.pt`` (no code in it is run) or ``.safetensors``; small and
        large are told apart by its keys. Each thread keeps what it read last until the file
        changes.
    progress : callable, optional
        Called with 1 after each pair; on a GPU that is when its work is queued.

    Returns
    -------
    torch.Tensor
        ``[N, 2, H, W]`` float32 px, of each pair alone. It carries no gradient.

    Raises
    ------
    ValueError
        If frames have another shape, or the weights are missing or those of something else.
    TypeError
        If frames are neither uint8 nor float32.
    FileNotFoundError
        If there is no such file.
    ImportError
        If torchvision is not installed.
    """
    if frames.dim() != 4 or frames.shape[1] != 3 or 0 in frames.shape[2:]:
        raise ValueError(f"frames has shape {list(frames.shape)}; must be [M, 3, H, W]")
    if frames.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"frames is {frames.dtype}; must be uint8 or float32")
    network = _network(weights, frames.device)
    height, width = frames.shape[2:]
    index = pairs.to(frames.device, torch.int64).reshape(-1, 2)
    flow = frames.new_empty((len(index), 2, height, width), dtype=torch.float32)
    sides = _padding(width) + _padding(height)
    left, top = sides[0], sides[2]
    # Mixed precision and defaults of the caller's own training must not reach in here.
    with torch.no_grad(), torch.autocast(frames.device.type, enabled=False), _Plain():
        for k in range(len(index)):
            both = frames.index_select(0, index[k]).float().clamp(0, 255)
            both = F.pad((both / 255 - 0.5) / 0.5, sides, mode="replicate")
            refined = network(both[:1], both[1:])[-1][0]
            flow[k] = refined[:, top : top + height, left : left + width]
            if progress is not None:
                progress(1)
    return flow


def _padding(size: int) -> tuple[int, int]:
    """Pixels before and after one side of a frame."""
    missing = max(SMALLEST_SIDE, -(-size // MULTIPLE) * MULTIPLE) - size
    return missing // 2, missing - missing // 2


def _network(weights: str | os.PathLike[str] | None, device: torch.device) -> Any:
    """The network of a file on a device, read anew when the file has changed."""
    if weights is None:
        raise ValueError(f"weights is None; method 'raft' needs {HOW_TO_GET}")
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"weights is {path}, which is no file; must be {HOW_TO_GET}")
    about = path.stat()
    key = (path.resolve(), about.st_mtime_ns, about.st_size, device)
    if getattr(_last, "key", None) != key:
        _last.key, _last.network = None, None  # the old one goes before the new one comes
        _last.network = _built(path).to(device)
        _last.key = key
    return _last.network


def _built(path: Path) -> Any:
    """The network that the keys of a state dict belong to, with its values, for inference."""
    try:
        from torchvision.models import optical_flow as models
    except ImportError as error:
        raise ImportError(f"method 'raft' needs torchvision ({error})") from error
    state = _state(path)
    name = "raft_large" if any(key.startswith("mask_predictor.") for key in state) else "raft_small"
    with torch.device("meta"):  # no random numbers are drawn, no memory is filled twice
        network = getattr(models, name)()
    expected = network.state_dict()
    wrong = [f"has no {key}" for key in expected if key not in state]
    wrong += [f"has {key}" for key in state if key not in expected]
    wrong += [
        f"has {key} of shape {list(state[key].shape)}, not {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"weights is {path}, no {name} of torchvision's: it {', '.join(wrong[:3])}{more}; "
            f"must be {HOW_TO_GET}"
        )
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"weights is {path}, whose {broken[0]} holds values that are not finite")
    network.load_state_dict(state, assign=True)
    return network.float().eval().requires_grad_(False)


def _state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name."""
    suffix = path.suffix.lower()
    if suffix not in (".pth", ".pt", ".safetensors"):
        raise ValueError(f"weights is {path}; must be {HOW_TO_GET}")
    try:
        if suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of many types, struct.error among them
        raise ValueError(f"weights is {path}, which cannot be read ({error})") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # what torchvision's training script saves
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"weights is {path}, which holds no state dict; must be {HOW_TO_GET}")
    return state
