"""Motion targets of a batch beside the training step, those of shuffled frames too (Fig. 3).

Where the model's frames are shuffled and the targets follow, the T frames are permuted and each
target is that of what stands in its place: what is made of the model's frames alone (pixel, HOG of
a tubelet's middle frame) is made of the permuted ones, and what is made of motion (position, shape,
flow, HOF, MBH, interpolated HOG) is that of the tubelet which the first frame of this one came
from, in its own order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mme_targets import ClipPlan, MotionTargets, TargetConfig
from mme_targets.targets import Target, Targets, names

from .batch import Batch

__all__ = ["TargetMaker", "per_frame_names", "source_tokens"]

Mark = Callable[[str], Any]


class TargetMaker(nn.Module):
    """Targets of masked patches, from the decoded frames of clips; without parameters.

    On a GPU, once moved there, this module never waits for the device: inputs are there already,
    and work is queued on the current stream. (Of `MotionTargets` a few tables of indices are copied
    from the host where flow begins and where targets other than tracks are laid out.)

    Parameters
    ----------
    config : what is to be made.
    shuffle : "both": targets follow the permutation of the model's frames (Fig. 3); with "none" and
        "input" they are those of the frames in their true order.
    backend : the floor of every stage.
    """

    def __init__(
        self, config: TargetConfig, *, shuffle: str = "none", backend: str = "auto"
    ) -> None:
        super().__init__()
        self.config = config
        self.names = names(config)
        self.follow = shuffle == "both"
        still = per_frame_names(config) if self.follow else ()
        self.motion = _part(config, [n for n in self.names if n not in still], backend)
        self.still = _part(config, still, backend)
        plan = ClipPlan.build(config)
        self.register_buffer("_rgb", torch.tensor(plan.rgb), persistent=False)

    @torch.no_grad()
    def forward(
        self,
        frames: torch.Tensor,
        masked: torch.Tensor,
        *,
        padded: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        permutation: torch.Tensor | None = None,
        tracks: list[torch.Tensor] | None = None,
        mark: Mark | None = None,
    ) -> Targets:
        """Make the targets of B clips of one size.

        Parameters
        ----------
        frames : [B, F, 3, H, W] uint8, those of the clips' plans, in their true order.
        masked : [B, M] int64, the patches to make targets of.
        padded : [B, S, L] bool, steps of tracks past the video's end; None: there are none.
        boxes : [B, 4] (x, y, width, height) px, needed by `region="frame"`.
        permutation : [B, T] int64: the model's frame t is frame permutation[t] of the clip.
            Needed where targets follow; read there alone.
        tracks : of the clip's patches, [1, R, L+1, 2], [1, R, L, 2], [1, R] and homographies
            [1, P, 3, 3], from a store; no flow is computed then. None: it is.
        mark : called with "flow" and with "targets" when each is done (on a GPU: queued).

        Returns
        -------
        Targets
            `values [B, M, D]` and so on, in the order of the config's names.

        Raises
        ------
        ValueError
            If targets follow the shuffled frames and `permutation` is None; and as `MotionTargets`.
        """
        if not self.follow:
            permutation = None
        elif permutation is None:
            raise ValueError("permutation is None; targets of shuffled frames need it")
        made: dict[str, Target] = {}
        if self.motion is not None:
            flow = cameras = known = None
            if tracks is not None:
                known, cameras = (tracks[0], tracks[1], tracks[2]), tracks[3]
            elif self.motion.needs_flow:
                flow, cameras = self.motion.flow(frames)
            if mark is not None:
                mark("flow")
            tokens = masked
            if permutation is not None:
                tokens = source_tokens(masked, permutation, self.config)
            made.update(
                self.motion(
                    frames,
                    padded,
                    flow,
                    tokens,
                    crop=boxes,
                    homographies=cameras,
                    known=known,
                )
            )
        if self.still is not None and permutation is not None:
            shuffled = self._shuffled(frames, permutation)
            made.update(self.still(shuffled, mask=masked, crop=boxes))
        if mark is not None:
            mark("targets")
        return Targets({name: made[name] for name in self.names})

    def of_batch(self, batch: Batch, *, at_once: int = 1, mark: Mark | None = None) -> Targets:
        """Make the targets of a batch that carries its frames, where those are.

        Parameters
        ----------
        batch : on this module's device.
        at_once : clips that are worked on together. On the host one is as fast as many, and needs
            the least memory; a GPU is filled by more. Each part waits for the one before, so give
            the whole batch where memory allows: its flow takes 19 MB a clip of 48 pairs of
            224x224 px, and TV-L1 several times that.
        mark : as in `forward`, for each part.
        """
        frames = batch.frames
        if frames is None:
            raise ValueError("the batch carries no frames: its targets were made by the loader")
        stored = batch.tracks
        step = 1 if isinstance(frames, list) or stored is not None else at_once
        parts = []
        for at in range(0, len(batch.masked), step):
            some = slice(at, at + step)
            held = None if stored is None else stored[at]
            parts.append(
                self(
                    frames[at][None] if isinstance(frames, list) else frames[some],
                    batch.masked[some],
                    padded=None if batch.padded is None else batch.padded[some],
                    boxes=None if batch.boxes is None else batch.boxes[some],
                    permutation=None if batch.permutation is None else batch.permutation[some],
                    tracks=None if held is None else [part[None] for part in held],
                    mark=mark,
                )
            )
        if len(parts) == 1:
            return parts[0]  # type: ignore[no-any-return]
        return Targets(
            {
                name: Target(*map(torch.cat, zip(*(part[name] for part in parts), strict=True)))
                for name in self.names
            }
        )

    def _shuffled(self, frames: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
        """The model's frames permuted among their places in `frames`."""
        rgb: torch.Tensor = self.get_buffer("_rgb").to(frames.device)
        seen = frames.index_select(1, rgb)
        index = permutation[:, :, None, None, None].expand_as(seen)
        return frames.index_copy(1, rgb, seen.gather(1, index))


def per_frame_names(config: TargetConfig) -> tuple[str, ...]:
    """The targets made of the model's frames alone: they hold no motion."""
    dense = config.interpolate and config.hog_interpolate and config.length > 0
    alone = {"pixel"} | (set() if dense else {"hog"}) | ({"shape"} if not config.length else set())
    return tuple(name for name in names(config) if name in alone)


def source_tokens(
    masked: torch.Tensor, permutation: torch.Tensor, config: TargetConfig
) -> torch.Tensor:
    """The patches [B, M] that `masked` stand for once frames are permuted [B, T].

    Patch t·hw + r becomes s·hw + r, with s the tubelet that the first frame of tubelet t came from.
    """
    patches = (config.size // config.patch) ** 2
    source = permutation[:, :: config.tubelet].div(config.tubelet, rounding_mode="floor")
    tubelet = masked.div(patches, rounding_mode="floor")
    return source.gather(1, tubelet) * patches + masked % patches


def _part(config: TargetConfig, wanted: Sequence[str], backend: str) -> MotionTargets | None:
    if not wanted:
        return None
    return MotionTargets(config.replace(targets=tuple(wanted)), backend=backend)
