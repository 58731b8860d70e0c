"""`mme reconstruct`: true and predicted tracks of masked patches, side by side (Figs. 4, 10, 11).

A model predicts normalised displacements. They are taken back to pixels by the mean and deviation
of the patch's own true ones, as reconstructions of normalised pixels are, so a sheet shows the
pattern of the motion that a model predicts rather than its strength: read the distances below it
beside those of predicting zero. Points are `(x, y)` px of the crop, pixel centres are integers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mme_targets import MotionTargets, TargetConfig, Targets
from mme_targets.region import crop_frames
from mme_targets.targets import Target, names

from .keys import rng
from .recipe import Recipe

if TYPE_CHECKING:
    from .batch import Batch

__all__ = ["Distances", "Reconstruction", "reconstruct", "reconstruct_video", "sheet"]


class Distances(NamedTuple):
    """Mean distance from the true end of a track, px, over the tracks that are shown.

    Attributes
    ----------
    tracks : how many.
    predicted : of the predicted end.
    zero : of the end when zero is predicted: what the patch's mean alone gives.
    still : of the start, which is how far the true tracks go.
    """

    tracks: int
    predicted: float
    zero: float
    still: float


@dataclass(frozen=True)
class Reconstruction:
    """Tracks of one clip, true and predicted, on the CPU.

    Attributes
    ----------
    frames : [S, 3, H, W] uint8, the first frame of each tubelet as the model is given it.
    masked : [S, h, w] bool, the patches that are hidden from it.
    true, predicted, zero : [S, Gy, Gx, L+1, 2] float32 px, from the start of each track on; where
        a patch's tracks are merged (Table 7c) there is one a patch, drawn from its centre.
    shown : [S, Gy, Gx] bool: of a masked patch, and valid.
    name : of the clip.
    times : (S,) what to call each tubelet.
    """

    frames: Tensor
    masked: Tensor
    true: Tensor
    predicted: Tensor
    zero: Tensor
    shown: Tensor
    name: str
    times: tuple[str, ...]

    @property
    def distances(self) -> Distances:
        """How far the ends of tracks are from the true ones; NaN where no track is shown."""
        end = self.true[self.shown][:, -1]

        def mean(points: Tensor) -> float:
            return float((points - end).norm(dim=-1).mean())

        return Distances(
            len(end),
            mean(self.predicted[self.shown][:, -1]),
            mean(self.zero[self.shown][:, -1]),
            mean(self.true[self.shown][:, 0]),
        )


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    recipe: Recipe,
    rgb: Tensor,
    masked: Tensor,
    targets: Targets,
    *,
    clip_names: Sequence[str] = (),
) -> list[Reconstruction]:
    """Predict the tracks of masked patches and take them to pixels.

    Parameters
    ----------
    model : a `MaskedMotionEncoder`; in training or not, it is left so.
    recipe : what it was trained by.
    rgb : [B, T, 3, H, W] uint8, the model's input.
    masked : [B, M] int64.
    targets : of those patches, `values [B, M, D]`.
    clip_names : of the B clips.

    Returns
    -------
    list
        One `Reconstruction` a clip.

    Raises
    ------
    ValueError
        If displacements are not among what the recipe predicts, or `targets` lacks them.
    """
    config = recipe.targets
    check_tracks(config)
    if "position" not in targets:
        raise ValueError(f"targets holds {', '.join(targets) or 'nothing'}; must hold position")
    position = targets["position"]
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        predictions = model(rgb.to(device), masked.to(device))["position"].float().cpu()
    finally:
        model.train(training)
    values, valid, mean, std = (part.cpu() for part in position)
    masked, rgb = masked.cpu(), rgb.cpu()
    patches = [rgb.shape[3] // config.patch, rgb.shape[4] // config.patch]
    starts = rgb.shape[1] // config.tubelet
    made = []
    for clip in range(len(rgb)):
        where, scale, offset = masked[clip], std[clip], mean[clip]
        true, predicted, zero = (
            _paths(z * scale + offset, where, (starts, *patches), config)
            for z in (values[clip], predictions[clip], torch.zeros_like(values[clip]))
        )
        hidden = torch.zeros(starts * patches[0] * patches[1], dtype=torch.bool)
        hidden[where] = True
        counted = hidden.new_zeros((len(hidden), valid.shape[-1]))
        counted[where] = valid[clip]
        made.append(
            Reconstruction(
                frames=rgb[clip, :: config.tubelet],
                masked=hidden.reshape(starts, *patches),
                true=true,
                predicted=predicted,
                zero=zero,
                shown=_on_grid(counted, (starts, *patches)),
                name=clip_names[clip] if clip_names else "",
                times=tuple(
                    f"frame {s * config.tubelet + 1} of {rgb.shape[1]}" for s in range(starts)
                ),
            )
        )
    return made


def reconstruct_video(
    model: nn.Module,
    recipe: Recipe,
    path: str | os.PathLike[str],
    *,
    start: int = 0,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> Reconstruction:
    """Predict the tracks of a clip in a video's centre; `progress(n)`: n more flows are known.

    Parameters
    ----------
    start : raw index of the clip's first frame.
    seed : of the mask.

    Raises
    ------
    VideoError, ValueError
        As `mme_targets.extract.VideoJob` and `reconstruct`.
    """
    from mme_targets.extract import VideoJob

    from .masking import draw_mask

    config = recipe.targets
    check_tracks(config)
    mask = draw_mask(recipe.mask, recipe.grid, rng(seed, 0, 0, "mask"))
    masked = torch.from_numpy(np.flatnonzero(mask))[None]
    (one,) = VideoJob(path, config, start=start).measure(progress)
    frames = one.clip.frames[None]
    box = None if one.box is None else torch.tensor([one.box])
    made = MotionTargets(config)(
        frames,
        one.plan,
        one.flow[None],
        masked,
        crop=box,
        homographies=None if one.homographies is None else one.homographies[None],
    )
    rgb = frames[:, list(one.plan.rgb)]
    if box is not None:
        rgb = crop_frames(rgb, box, config.size)
    (found,) = reconstruct(model, recipe, rgb, masked, made, clip_names=[Path(path).name])
    first = one.plan.rgb[:: config.tubelet]
    times = tuple(f"frame {one.clip.indices[i]}  ·  {one.clip.times[i]:.2f} s" for i in first)
    return replace(found, times=times)


def sheet(
    model: nn.Module, recipe: Recipe, batch: Batch, *, clips: int = 1, rows: int = 4
) -> Tensor:
    """Draw the first clips of a batch, for TensorBoard: uint8 [3, H, W].

    `batch.targets` must be there already; its first `clips` clips are shown, `rows` tubelets each.

    Raises
    ------
    ValueError
        As `reconstruct`.
    """
    from .sheet import draw_sheet

    if batch.targets is None:
        raise ValueError("batch.targets is None; a sheet of tracks needs them made")
    few = Targets(
        {name: Target(*(part[:clips] for part in target)) for name, target in batch.targets.items()}
    )
    shown = reconstruct(
        model,
        recipe,
        batch.rgb[:clips],
        batch.masked[:clips],
        few,
        clip_names=[Path(name).name for name in batch.names[:clips]],
    )
    picture = draw_sheet(shown, rows=rows, panel=448, note=_note(recipe))
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous()


def check_tracks(config: TargetConfig) -> None:
    """Raise `ValueError` unless displacements are predicted."""
    made = names(config)
    if "position" not in made:
        raise ValueError(
            f"this model predicts {', '.join(made)}; tracks are drawn from position, which comes "
            "with the targets trajectory or position at length 1 or more"
        )


def add_arguments(parser: Any) -> None:
    """Arguments of `mme reconstruct`."""
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT",
                        help="a checkpoint of `mme pretrain`")  # fmt: skip
    parser.add_argument("video", type=str, metavar="VIDEO", help="a video file")
    parser.add_argument("--out", type=str, required=True, metavar="FILE",
                        help="the .png to write")  # fmt: skip
    parser.add_argument("--start", type=int, default=0, metavar="N",
                        help="raw index of the clip's first frame")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the mask")
    parser.add_argument("--rows", type=int, default=4, metavar="N",
                        help="tubelets shown, spread over the clip")  # fmt: skip


def run(args: Any) -> int:
    """`mme reconstruct`."""
    from rich.console import Console

    from mme_targets.cli import progress_bar
    from mme_targets.files import check_writable
    from mme_targets.plan import ClipPlan

    from .checkpoints import load_model
    from .sheet import draw_sheet

    if Path(args.out).suffix.lower() != ".png":
        raise ValueError(f"--out is {args.out!r}; must end in .png, which is what it will be")
    if args.rows < 1:
        raise ValueError(f"--rows is {args.rows}; must be 1 or more")
    check_writable(args.out)
    model, recipe = load_model(args.checkpoint, device="cpu")
    pairs = len(ClipPlan.build(recipe.targets).pairs)
    with progress_bar("flow", pairs, "pairs") as advance:
        found = reconstruct_video(
            model, recipe, args.video, start=args.start, seed=args.seed, progress=advance
        )
    draw_sheet([found], args.out, rows=args.rows)
    console = Console(soft_wrap=True)
    apart = found.distances
    console.print(
        f"  ends of {apart.tracks} masked tracks: {apart.predicted:.2f} px from the true ones "
        f"({apart.zero:.2f} px where zero is predicted; the true tracks go {apart.still:.2f} px)",
        highlight=False,
    )
    console.print(f"tracks of {args.video} -> {args.out}", highlight=False)
    return 0


def _note(recipe: Recipe) -> str:
    """What a reader of the sheet must know of shuffled frames (Fig. 3)."""
    if recipe.clips.shuffle == "none":
        return ""
    return "Frames are shuffled: tracks may have begun on another one than they are drawn on."


def _paths(moves: Tensor, masked: Tensor, grid: tuple[int, ...], config: TargetConfig) -> Tensor:
    """Displacements [M, K·L·2] px of the masked patches to tracks [S, Gy, Gx, L+1, 2].

    The patches that are visible have tracks that stand still.
    """
    steps = moves.unflatten(-1, (-1, config.length, 2))  # [M, K, L, 2]
    every = steps.new_zeros((grid[0] * grid[1] * grid[2], *steps.shape[1:]))
    every[masked] = steps
    placed = _on_grid(every, grid)
    # The grid of `trajectories`, or one point in the centre of each patch.
    apart = config.patch / round(steps.shape[1] ** 0.5)
    x, y = (torch.arange(n) * apart + apart / 2 for n in (placed.shape[2], placed.shape[1]))
    seeds = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # [Gy, Gx, 2]
    start = seeds[None, :, :, None].expand(len(placed), -1, -1, -1, -1)
    return torch.cat([start, start + placed.cumsum(dim=3)], dim=3)


def _on_grid(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """[N, K, …] in (t, h, w) order, K row-major in the patch, to [S, h·side, w·side, …]."""
    side = round(values.shape[1] ** 0.5)
    split = values.reshape(*grid, side, side, *values.shape[2:])  # [S, h, w, ky, kx, …]
    return split.transpose(2, 3).flatten(3, 4).flatten(1, 2)
