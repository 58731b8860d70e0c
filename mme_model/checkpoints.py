"""Checkpoints: whole or not there, safetensors for tensors and JSON for the rest, never a pickle.

A run keeps them in ``OUT/checkpoints/step-000000100/``:

=======================  ==========================================================================
model.safetensors        weights; the header's metadata holds the recipe, the step and the version
optimizer.safetensors    AdamW's moments by the parameter's name
ema.safetensors          the moving average of the weights, where one is kept; as the weights
state.json               step, score, the scalars of the optimiser
=======================  ==========================================================================

A folder is written under a hidden name, flushed to the disk and then renamed, so that one with its
final name is complete whenever the process or the machine dies.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mme_targets.settings import Config

from .recipe import Recipe

if TYPE_CHECKING:
    from .classifier import Classifier
    from .finetune_recipe import FinetuneRecipe
    from .mvit import MViTEncoder
    from .vit import Encoder

__all__ = [
    "Checkpoint",
    "checkpoints",
    "fit_state",
    "latest",
    "load_average",
    "load_classifier",
    "load_encoder",
    "load_model",
    "load_state",
    "prune",
    "save",
]

FORMAT = "mme-1"
AVERAGE = "ema.safetensors"
_NAME = re.compile(r"step-(\d{9,})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint of a run.

    Attributes
    ----------
    path : its folder.
    step : optimiser steps done.
    score : what it is judged by, lower is better; None where nothing was measured.
    """

    path: Path
    step: int
    score: float | None


def checkpoints(run: str | os.PathLike[str]) -> list[Checkpoint]:
    """The complete checkpoints of a run's folder, by step."""
    folder = Path(run) / "checkpoints"
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if _NAME.fullmatch(path.name) and (path / "state.json").is_file():
            state = json.loads((path / "state.json").read_text())
            found.append(Checkpoint(path, int(state["step"]), state.get("score")))
    return sorted(found, key=lambda c: c.step)


def latest(run: str | os.PathLike[str]) -> Checkpoint | None:
    """The last complete checkpoint, or None."""
    found = checkpoints(run)
    return found[-1] if found else None


def save(
    run: str | os.PathLike[str],
    step: int,
    *,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, Any],
    recipe: Config,
    kind: str = "pretrain",
    score: float | None = None,
    state: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    average: Mapping[str, torch.Tensor] | None = None,
) -> Checkpoint:
    """Write a checkpoint of a job of that `kind`.

    Parameters
    ----------
    optimizer : as `torch.optim` lays it out, by the parameters' names.
    metadata : what the headers of files of weights say beside the recipe.
    average : weights of a moving average, for ema.safetensors.

    Raises
    ------
    OSError
        If it cannot be written (the disk is full, say); nothing half-written is left, and the
        checkpoints before it stay.
    """
    from safetensors.torch import save_file

    folder = Path(run) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:09d}"
    beside = folder / f".{final.name}.{secrets.token_hex(4)}"
    moments = {f"{name}/{k}": v for name, one in optimizer["state"].items() for k, v in one.items()}
    about = {"format": FORMAT, "kind": kind, "recipe": recipe.to_json(), "step": str(step)}
    about |= metadata or {}
    try:
        beside.mkdir()
        save_file(_apart(model), str(beside / "model.safetensors"), metadata=about)
        if average is not None:
            save_file(_apart(average), str(beside / AVERAGE), metadata=about)
        save_file(_apart(moments), str(beside / "optimizer.safetensors"))
        values = {"step": step, "score": score, **(state or {})}
        values["param_groups"] = optimizer["param_groups"]
        (beside / "state.json").write_text(json.dumps(values, indent=1))
        for file in (*beside.iterdir(), beside):
            _flush(file)
        if final.exists():  # of a run that was resumed from before it
            shutil.rmtree(final)
        beside.rename(final)
        _flush(folder)
    except Exception as error:  # safetensors has an error class of its own for a full disk
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(f"checkpoint {final} cannot be written: {error}") from error
    return Checkpoint(final, step, score)


def prune(run: str | os.PathLike[str], keep: int) -> None:
    """Remove all but the last `keep` checkpoints and the best, and what a killed process left."""
    folder = Path(run) / "checkpoints"
    found = checkpoints(run)
    scored = [c for c in found if c.score is not None]
    best = min(scored, key=lambda c: (c.score, -c.step)).path if scored else None
    for old in found[:-keep]:
        if old.path != best:
            # Renamed first: a folder that is half removed must not look complete.
            doomed = old.path.with_name(f".old-{old.path.name}")
            old.path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    for left in folder.glob(".*"):
        shutil.rmtree(left, ignore_errors=True)


def load_state(
    checkpoint: Checkpoint,
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Weights, the optimiser's state as `save` took it, and what else was kept.

    Raises
    ------
    OSError
        If a file of it is missing or damaged.
    """
    from safetensors.torch import load_file

    try:
        model = load_file(str(checkpoint.path / "model.safetensors"))
        moments = load_file(str(checkpoint.path / "optimizer.safetensors"))
        state = json.loads((checkpoint.path / "state.json").read_text())
    except Exception as error:
        raise OSError(f"checkpoint {checkpoint.path} cannot be read: {error}") from error
    named: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        name, kind = key.rsplit("/", 1)
        named.setdefault(name, {})[kind] = value
    return model, {"state": named, "param_groups": state.pop("param_groups")}, state


def load_average(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The moving average of the weights; OSError where it is missing or damaged."""
    from safetensors.torch import load_file

    try:
        return dict(load_file(str(checkpoint.path / AVERAGE)))
    except Exception as error:
        raise OSError(f"checkpoint {checkpoint.path / AVERAGE} cannot be read: {error}") from error


def load_model(path: str | os.PathLike[str], device: str = "cpu") -> tuple[nn.Module, Recipe]:
    """The pre-trained model of a checkpoint, ready for evaluation, and the recipe that made it.

    Parameters
    ----------
    path : a run's folder (its last checkpoint), a checkpoint's folder, or a model.safetensors.

    Raises
    ------
    OSError, ValueError
        If there is no checkpoint, or the file is not one of this project.
    """
    from safetensors import safe_open

    from .mvit import build_model

    file = _weights(Path(path))
    try:
        with safe_open(str(file), framework="pt", device=device) as opened:
            about = opened.metadata() or {}
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except Exception as error:
        raise OSError(f"{file} cannot be read: {error}") from error
    if about.get("format") != FORMAT or about.get("kind") != "pretrain":
        raise ValueError(f"{file} is no checkpoint of `mme pretrain` (format {FORMAT})")
    recipe = Recipe.from_json(about["recipe"])
    model = build_model(recipe.model, recipe.targets).to(device)
    model.load_state_dict(fit_state(state, model.state_dict(), str(file)))
    return model.eval(), recipe


def load_classifier(
    path: str | os.PathLike[str], device: str = "cpu"
) -> tuple[Classifier, FinetuneRecipe, list[str]]:
    """As `convert.load_classifier`: of any format, with its recipe and its classes' names."""
    from .convert import load_classifier as load

    return load(path, device)


def load_encoder(
    path: str | os.PathLike[str], device: str = "cpu"
) -> tuple[Encoder | MViTEncoder, dict[str, Any]]:
    """As `convert.load_encoder`: of a checkpoint of any format, with facts about it."""
    from .convert import load_encoder as load

    return load(path, device)


def fit_state(
    state: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    where: str,
    hint: str = "",
) -> Mapping[str, torch.Tensor]:
    """Give `state` back if its keys and shapes are those `wanted`.

    Raises
    ------
    ValueError
        With how many do not fit, the `hint` on why and what to do, and a table of them.
    """
    rows = []
    for key in sorted({*state, *wanted}):
        have = list(state[key].shape) if key in state else "-"
        want = list(wanted[key].shape) if key in wanted else "-"
        if have != want:
            rows.append(f"  {key:<48} {have!s:<22} {want!s}")
    if rows:
        shown = rows[:12] + ([f"  … and {len(rows) - 12} more"] if len(rows) > 12 else [])
        head = f"  {'weight':<48} {'in the checkpoint':<22} in the model"
        raise ValueError(
            f"{where} is of another architecture: {len(rows)} of {len({*state, *wanted})} weights "
            f"do not fit{f': {hint}' if hint else ''}\n" + "\n".join([head, *shown])
        )
    return state


def _weights(path: Path) -> Path:
    if path.is_file():
        return path
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    last = latest(path)
    if last is not None:
        return last.path / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    raise FileNotFoundError(f"{path} holds no complete checkpoint")


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous, on the host, sharing no memory: what safetensors takes."""
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
