"""Tracks and flow that others have computed, read into a store.

    NAME.gz                       the released tracks: a gzip pickle of arrays, `traj_feat`
                                  [2L, N, H/8, W/8] int8 px (x of all steps, then y) and `traj_type`
                                  [N, H/8, W/8]; read by an unpickler that builds arrays alone
    NAME/*.flo                    Middlebury's, one a pair
    NAME.npz                      `flow` [P, 2, H, W] px, as `mme flow` writes it
    NAME/flow_x_*.jpg, flow_y_*   bytes 0–255 that stand for −bound…bound, as TSN's `dense_flow`
    NAME/flow_x.mp4, flow_y.mp4   writes them; the pictures may lie in folders flow_x and flow_y

NAME is the video's without its ending; where that is an absolute path, it is looked for below the
folder all the same. Files are in the order of their names, numbers in these by their value, so that
10 follows 9. Which method made them, whether camera motion was removed and so on is for the store's
config to say: the files do not.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .flow_files import read_flo
from .store import Record, Store
from .store_config import TrackConfig
from .store_entry import NOT_FINITE, grid_size
from .store_extract import BLOCK, digest_of, extracted, write_flows
from .store_tracks import FlowBlock
from .store_writer import EntryWriter
from .video import VideoError, iter_clips, probe

__all__ = ["FlowSource", "check_bound", "find", "import_video", "load_arrays", "open_flow"]

LIMIT = 2**31
"""Bytes of a pickle at most, unpacked."""
_STEPS = 10000
"""Operations of a pickle at most: what nests deeper than that may overflow the stack."""


class _Arrays(pickle.Unpickler):
    """Builds NumPy arrays, and what Python's own literals are made of; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Those few functions that a pickled array names."""
        core = ("numpy.core.multiarray", "numpy._core.multiarray")
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module in core and name in ("_reconstruct", "scalar"):
            return _reconstruct if name == "_reconstruct" else _scalar
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _frombuffer
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if module in ("builtins", "__builtin__") and name == "bytes":
            return _no_bytes
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")


def _reconstruct(kind: Any, shape: Any, code: Any) -> NDArray[Any]:
    """An empty array, which its state then fills."""
    if kind is not np.ndarray or shape != (0,) or code != b"b":
        raise pickle.UnpicklingError("it holds a kind of array other than NumPy's own")
    empty: NDArray[Any] = np.ndarray((0,), np.int8)
    return empty


def _scalar(kind: Any, data: bytes = b"") -> Any:
    _plain(kind)
    return np.frombuffer(data, kind, 1)[0]


def _frombuffer(data: Any, kind: Any, shape: Any, order: str) -> NDArray[Any]:
    _plain(kind)
    flat: NDArray[Any] = np.frombuffer(data, dtype=kind)
    shaped: NDArray[Any] = flat.reshape(shape, order="F" if order == "F" else "C")
    return shaped


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, as Python 2's protocol writes them."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """What the data of an empty array are written as."""
    return b""


def _plain(kind: Any) -> None:
    if not isinstance(kind, np.dtype) or kind.hasobject:
        raise pickle.UnpicklingError("it holds an array of objects")


def load_arrays(path: str | os.PathLike[str], *, limit: int = LIMIT) -> dict[str, NDArray[Any]]:
    """Read a gzip pickle of a mapping from names to arrays of numbers.

    Raises
    ------
    ValueError
        If it is none, asks for anything but arrays, or is larger than `limit` bytes unpacked.
    """
    try:
        with gzip.open(path, "rb") as file:
            data = file.read(limit + 1)
        found = None
        if len(data) <= limit:
            _check_steps(data)
            found = _Arrays(io.BytesIO(data)).load()
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, EOFError, OSError, AttributeError, IndexError, TypeError,
            KeyError, ValueError, MemoryError, OverflowError, RecursionError,
            zlib.error) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a pickle of arrays: {reason}") from None
    if len(data) > limit:
        raise ValueError(f"{path}: more than {limit} bytes unpacked")
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds {type(found).__name__}; must be a mapping of arrays")
    for name, value in found.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise ValueError(f"{path}: {name!r} is no array of numbers")
    return found


def _check_steps(data: bytes) -> None:
    """Refuse a pickle that takes more operations than a few arrays do, before any is done."""
    for count, (code, value, _) in enumerate(pickletools.genops(data)):
        # The place where a thing is remembered is room that is made.
        if count > _STEPS or (code.name.endswith("PUT") and int(value or 0) > _STEPS):
            raise pickle.UnpicklingError("it takes more operations than arrays do")


@dataclass(frozen=True)
class FlowSource:
    """Flow of the pairs of one video, block after block: [n, 2, H, W] float32 px each."""

    blocks: Iterator[torch.Tensor]


def find(folder: str | os.PathLike[str], name: str) -> Path:
    """What lies in `folder` for the video `name`.

    Raises
    ------
    FileNotFoundError
        If nothing does.
    """
    stem = Path(folder) / os.path.splitext(name)[0].lstrip("/")
    for suffix in (".gz", ".npz", ".pkl.gz"):
        file = stem.with_name(stem.name + suffix)
        if file.is_file():
            return file
    if stem.is_dir():
        return stem
    raise FileNotFoundError(f"{stem}: there is no .gz, no .npz and no folder of flow")


def open_flow(path: str | os.PathLike[str], *, bound: float = 20.0) -> FlowSource:
    """Open flow in any of the forms that the module's docstring lists.

    Parameters
    ----------
    bound : px that the byte 255 stands for, and −bound the byte 0; zero lies between 127 and 128,
        so what stood still moves by bound/255.

    Raises
    ------
    ValueError
        If there is none in it, or x and y do not belong together.
    """
    path = Path(path)
    if path.is_file():
        return FlowSource(_npz(path))
    check_bound(bound)
    flo = sorted(path.glob("*.flo"), key=_order)
    if flo:
        return FlowSource(_read_flo(flo))
    x, y = ([p for p in path.glob(f"flow_{c}.*") if p.is_file()] for c in "xy")
    if len(x) == 1 and len(y) == 1:
        return FlowSource(_videos(x[0], y[0], bound))
    x, y = (_pictures(path, c) for c in "xy")
    if not x:
        raise ValueError(f"{path}: holds no .flo, no flow_x_*.jpg and no flow_x video")
    if [p.name.replace("flow_x", "") for p in x] != [p.name.replace("flow_y", "") for p in y]:
        raise ValueError(f"{path}: {len(x)} pictures of x and {len(y)} of y do not belong together")
    return FlowSource(_read_pictures(x, y, bound))


def check_bound(bound: float) -> None:
    """ValueError unless a byte of 255 can stand for so many px."""
    if not 0 < bound < float("inf"):
        raise ValueError(f"bound of flow in bytes is {bound:g}; must be more than 0 px")


def _order(path: Path) -> list[str | int]:
    """Sorts names by their texts, and by the values of the numbers in them."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def import_video(
    store: Store,
    config: TrackConfig,
    name: str,
    path: str | os.PathLike[str],
    have: str | os.PathLike[str],
    *,
    bound: float = 20.0,
) -> Record:
    """Put into a store what `have` holds for a video; tracks are made of flow here.

    Parameters
    ----------
    name, path : of the video.
    have : folder of tracks or flow (see the module).
    bound : of flow in bytes, px.

    Raises
    ------
    VideoError
        If the video cannot be read, or has another number of frames or another size than what is
        there for it.
    ValueError, OSError
        If that is missing or damaged.
    """
    info, found = probe(path), find(have, name)
    source = {"bytes": os.path.getsize(path), "sha256": digest_of(path)}
    about: dict[str, Any] = {"source": source, "imported": found.name}
    if found.name.endswith(".gz"):
        return _import_tracks(store, config, name, info, found, about)
    pairs = max(0, info.frames - config.flow_stride)

    def blocks() -> Iterator[FlowBlock]:
        seen = 0
        for flow in open_flow(found, bound=bound).blocks:
            if flow.shape[-2:] != (info.height, info.width):
                raise VideoError(
                    f"{found}: flow is {flow.shape[-1]}x{flow.shape[-2]} px, the video "
                    f"{info.width}x{info.height}"
                )
            seen += len(flow)
            if seen > pairs:
                raise VideoError(f"{found}: more than the {pairs} pairs of {info.frames} frames")
            flow = flow.clamp(-config.bound, config.bound)
            yield FlowBlock(flow, np.tile(np.eye(3), (len(flow), 1, 1)), 0)

    return write_flows(store, config, name, blocks(), info.frames, info.fps, about)


def _import_tracks(
    store: Store, config: TrackConfig, name: str, info: Any, path: Path, about: dict[str, Any]
) -> Record:
    arrays = load_arrays(path)
    moves, valid = arrays.get("traj_feat"), arrays.get("traj_type")
    length = config.length
    if moves is None or moves.ndim != 4 or moves.shape[0] != 2 * length:
        shape = "missing" if moves is None else list(moves.shape)
        raise ValueError(f"{path}: traj_feat is {shape}; must be [{2 * length}, N, H/8, W/8]")
    if valid is None or valid.shape != moves.shape[1:]:
        raise ValueError(f"{path}: traj_type does not fit traj_feat")
    count = moves.shape[1]
    if not info.frames - length - 1 <= count <= info.frames:
        raise VideoError(f"{path}: tracks of {count} starts; the video has {info.frames} frames")
    size = grid_size(info.height, info.width, config.grid)
    if any(abs(a - b) > 1 for a, b in zip(size, moves.shape[2:], strict=True)):
        raise VideoError(f"{path}: a grid of {moves.shape[2:]} points; the video's is {size}")
    writer = EntryWriter(config, info.frames, info.height, info.width)
    whole = np.zeros((info.frames, length, *size, 2), np.float32)
    rows, columns = (min(a, b) for a, b in zip(size, moves.shape[2:], strict=True))
    split = moves.reshape(2, length, *moves.shape[1:]).transpose(2, 1, 3, 4, 0)
    whole[:count, :, :rows, :columns] = split[:, :, :rows, :columns]
    real = np.clip(info.frames - config.flow_stride - np.arange(info.frames), 0, None)
    real = np.minimum(-(-real // config.flow_stride), length)
    # What the pickle calls invalid, or does not hold, cannot be told from the points.
    seen = np.full((info.frames, *size), NOT_FINITE, np.uint8)
    seen[:count, :rows, :columns] = np.where(valid[:, :rows, :columns] > 0, length, NOT_FINITE)
    for start in range(info.frames):
        whole[start, real[start] :] = 0
    # Such as the store has no numbers for; also what is not finite.
    beyond = np.any(~(np.abs(whole) <= 32000 * config.step), axis=(1, 4))
    whole[np.broadcast_to(beyond[:, None, :, :, None], whole.shape)] = 0
    seen[beyond] = NOT_FINITE
    known = seen != NOT_FINITE
    seen[known] = np.minimum(seen, real[:, None, None].astype(np.uint8))[known]
    pairs = max(0, info.frames - config.flow_stride)
    writer.add(whole, seen, np.tile(np.eye(3), (pairs, 1, 1)))
    target = store.file(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole_of_them = {"name": name, "fps": info.fps, "still": 0, "finite": bool(known.all())}
    writer.finish(target, {**whole_of_them, **about})
    return extracted(store, name)


def _npz(path: Path) -> Iterator[torch.Tensor]:
    try:
        with np.load(path, allow_pickle=False) as held:
            flow = held["flow"]
    except (KeyError, OSError, ValueError, EOFError, TypeError, NotImplementedError, MemoryError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise ValueError(f"{path}: holds no array `flow`: {error}") from None
    if flow.dtype.kind not in "fiu":
        raise ValueError(f"{path}: flow is {flow.dtype}; must be real numbers, px")
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"{path}: flow has shape {list(flow.shape)}; must be [P, 2, H, W]")
    for at in range(0, len(flow), BLOCK):
        yield torch.from_numpy(flow[at : at + BLOCK].astype(np.float32))


def _read_flo(paths: list[Path]) -> Iterator[torch.Tensor]:
    for at in range(0, len(paths), BLOCK):
        flows = [read_flo(path) for path in paths[at : at + BLOCK]]
        # Over 1e9 means unknown: tracks that read it are not valid.
        yield torch.from_numpy(np.stack([np.where(np.abs(f) > 1e9, np.nan, f) for f in flows]))


def _pictures(path: Path, component: str) -> list[Path]:
    inner = path / f"flow_{component}"
    found = inner.iterdir() if inner.is_dir() else path.glob(f"flow_{component}_*")
    pictures = (p for p in found if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return sorted(pictures, key=_order)


def _read_pictures(x: list[Path], y: list[Path], bound: float) -> Iterator[torch.Tensor]:
    import cv2

    def grey(path: Path) -> NDArray[np.uint8]:
        try:
            image = cv2.imread(os.fspath(path), cv2.IMREAD_GRAYSCALE)
        except cv2.error:  # larger than it takes
            image = None
        if image is None:
            raise ValueError(f"{path}: cannot be read as a picture")
        return np.asarray(image, dtype=np.uint8)

    for at in range(0, len(x), BLOCK):
        some = zip(x[at : at + BLOCK], y[at : at + BLOCK], strict=True)
        pairs = [np.stack([grey(a), grey(b)]) for a, b in some]
        yield _unpacked(torch.from_numpy(np.stack(pairs)), bound)


def _videos(x: Path, y: Path, bound: float) -> Iterator[torch.Tensor]:
    from .plan import ClipPlan

    counts = [probe(path).frames for path in (x, y)]
    if counts[0] != counts[1]:
        raise ValueError(f"{x} has {counts[0]} frames, {y} {counts[1]}")
    plans = [
        ClipPlan(tuple(range(at, min(at + BLOCK, counts[0]))), (), (), (), (), ())
        for at in range(0, counts[0], BLOCK)
    ]
    for a, b in zip(iter_clips(x, plans), iter_clips(y, plans), strict=True):
        if a.frames.shape != b.frames.shape:
            raise ValueError(f"{x} and {y} are of different sizes")
        yield _unpacked(torch.stack([a.frames[:, 1], b.frames[:, 1]], dim=1), bound)


def _unpacked(values: torch.Tensor, bound: float) -> torch.Tensor:
    """Bytes to px."""
    return values.float() * (2 * bound / 255) - bound
