"""MotionTargets: frames → flow → tracks → HOG along them → tokens, in the paper's order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .arrays import Array, as_tensor, check_dtype, check_rank
from .backends import check_name
from .config import TargetConfig
from .ops.camera_motion import flow_and_camera
from .ops.optical_flow import optical_flow
from .ops.trajectories import tracks
from .plan import ClipPlan
from .region import crop_flow, crop_frames, follow_camera, to_frame
from .targets import TRACKED, Clip, Target, Targets, finish, names


class MotionTargets(nn.Module):
    """Motion targets of a batch of clips; without parameters, and without gradient.

    Parameters
    ----------
    config : every constant; the paper's by default.
    backend : the floor of every stage: "auto", "reference", "cpu", "triton" or "cuda".
    """

    def __init__(self, config: TargetConfig | None = None, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config if config is not None else TargetConfig.paper()
        check_name(backend)
        self.backend = backend
        self.names = names(self.config)
        self.plan = ClipPlan.build(self.config)
        # Positions are the config's alone; as buffers they follow the module to its device.
        for name, rows in (("steps", self.plan.steps), ("hog_times", self.plan.hog)):
            shape = (self.plan.starts, -1 if rows[0] else 0)
            self.register_buffer(
                f"_{name}", torch.tensor(rows, dtype=torch.int32).reshape(shape), persistent=False
            )

    @torch.no_grad()
    def forward(
        self,
        frames: Array,
        plan: ClipPlan | Sequence[ClipPlan] | torch.Tensor | None = None,
        flow: Array | None = None,
        mask: Array | None = None,
        *,
        crop: Array | None = None,
        homographies: Array | None = None,
        known: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
        progress: Callable[[int], Any] | None = None,
    ) -> Targets:
        """Make every target that the config names.

        Parameters
        ----------
        frames : [B, F, 3, H, W] uint8 RGB (float32 0–255 accepted), or [F, 3, H, W]: the frames of
            `plan.frames`, in that order.
        plan : of each clip, or one for all; read for what lies past a video's end. Or that alone,
            `padded` of the plans as [B, S, L] bool on the frames' device, which then nothing waits
            for. None: no clip reaches past it.
        flow : [B, P, 2, H, W] px of `plan.pairs`, when already known; else it is computed here.
        mask : which of the N patches to make: indices [B, M], or booleans [B, N] with equal counts
            (which on a GPU wait for the device; indices do not). None: all.
        crop : [B, 4] (x, y, width, height) px, needed by `region="frame"`: the box of each frame
            that the model sees, resized to `config.size`.
        homographies : [B, P, 3, 3], needed with `flow` or `known` by `follow_camera`.
        known : tracks of the chosen patches where they are known already, in place of flow: points
            [B, R, L+1, 2], displacements [B, R, L, 2] px of the frames, visible [B, R]; R = M·K,
            patch by patch, as `store_read` looks them up. Not for the targets flow, hof and mbh.
        progress : called with 1 for each flow computed.

        Returns
        -------
        Targets
            `values [B, N, D]`, `valid [B, N, K]`, `mean`, `std` by name, N in (t, h, w) order; M in
            place of N with a mask. Unbatched frames give [N, D] and so on.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what it was and what it must be.
        """
        config = self.config
        images = as_tensor(frames, "frames")
        batched = self._check_frames(images)
        images = images if batched else images[None]
        padded = self._padded(plan, len(images), images.device)
        omega = self._given(flow, "flow", images, batched)
        cameras = None if homographies is None else as_tensor(homographies, "homographies")
        if cameras is not None and not batched:
            cameras = cameras[None]

        box = self._box(crop, images, batched)
        height, width = (config.size, config.size) if box is not None else images.shape[-2:]
        tokens = self._tokens(mask, height, width, len(images), images.device, batched)
        given = omega is not None or known is not None
        if config.follow_camera and given and cameras is None:
            raise ValueError("homographies is None; follow_camera needs it where flow is given")
        if known is not None and {"flow", "hof", "mbh"} & set(self.names):
            raise ValueError("known holds tracks, which the targets flow, hof and mbh are not of")
        known = known if known is None or batched else _batch(known)

        # Appendix A: flow, camera motion removed.
        if omega is None and known is None and self.needs_flow:
            omega, cameras = self.flow(images, progress)

        # Appendix B: what the model sees of frames and flow, and where in them tracks start.
        shown, shown_flow = images, omega
        if box is not None and set(self.names) - set(TRACKED):
            shown = crop_frames(images, box, config.size)
            shown_flow = None if omega is None else crop_flow(omega, box, config.size)
        clip = Clip(
            config=config,
            plan=self.plan,
            backend=self.backend,
            frames=shown,
            flow=shown_flow,
            steps=self._on("_steps", images.device),
            hog_times=self._on("_hog_times", images.device),
            tokens=tokens,
            padded=padded,
            tracked_frames=images,
        )
        if config.quirks == "released":
            from .backends.reference import released

            seeds, starts = self._seeds(height, width, clip.tokens, images.device)
            return _unbatch(released.targets(clip, seeds, starts), batched)
        if set(self.names) & set(TRACKED):
            self._track(clip, omega, cameras, box, height, width, known)
        return _unbatch(Targets({name: finish(name, clip) for name in self.names}), batched)

    @torch.no_grad()
    def flow(
        self, frames: torch.Tensor, progress: Callable[[int], Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Clipped flow [B, P, 2, H, W] px of the plan's pairs in `frames` [B, F, 3, H, W], and the
        camera's homographies [B, P, 3, 3] where its motion is removed: what `forward` computes
        where it is not given (Appendix A).
        """
        images = frames
        config = self.config
        options: dict[str, Any] = {
            "method": config.flow,
            "pairs": self.plan.pairs,
            "bound": config.bound,
            "config": config.tvl1,
            "weights": config.weights or None,
            "detector": config.detector,
            "progress": progress,
        }
        if images.is_cuda and self.backend in ("triton", "cuda") and config.flow == "tvl1":
            options["backend"] = self.backend
        if not config.camera_motion:
            return optical_flow(images, **options), None
        found = flow_and_camera(images, surf=config.surf, **options)
        return found.flow, found.camera.homographies

    def _track(
        self,
        clip: Clip,
        omega: torch.Tensor | None,
        cameras: torch.Tensor | None,
        box: torch.Tensor | None,
        height: int,
        width: int,
        known: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """Eq. 2, 4, 6, 7: tracks of the chosen patches, patch by patch."""
        config, images = self.config, clip.tracked_frames
        seeds, starts = self._seeds(height, width, clip.tokens, images.device)
        if box is not None:
            seeds = to_frame(seeds, box, config.size)
        if omega is None:  # L = 0 needs none
            omega = images.new_zeros((len(images), 1, 2, *images.shape[-2:]), dtype=torch.float32)
        clip.starts = starts
        if known is None:
            known = tracks(
                omega,
                seeds,
                starts,
                clip.steps,
                config.bound,
                config.median,
                config.sampling,
                self.backend,
            )
        clip.points, moves, visible = known
        if moves.shape[:3] != (len(images), seeds.shape[1], config.length):
            raise ValueError(
                f"known has displacements {list(moves.shape)}; must be "
                f"{[len(images), seeds.shape[1], config.length, 2]}"
            )
        clip.lookup = clip.points
        if config.follow_camera and cameras is not None:
            pair_of = clip.steps[starts.long()].long()
            clip.lookup = follow_camera(clip.points, moves, cameras.to(images.device), pair_of)
        if not config.loss_mask:
            visible = torch.ones_like(visible)
        if clip.padded is not None:
            late = clip.padded.any(dim=2)
            visible = visible & ~late.gather(1, starts.long().expand(len(late), -1))
        if box is not None:
            moves = moves * (config.size / box[:, None, None, 2:])
        clip.displacements, clip.visible = moves, visible

    @property
    def needs_flow(self) -> bool:
        """Whether any of the targets is made of flow."""
        tracked = bool(set(self.names) & set(TRACKED))
        return bool({"flow", "hof", "mbh"} & set(self.names)) or (
            tracked and self.config.length > 0
        )

    def _on(self, name: str, device: torch.device) -> torch.Tensor:
        buffer: torch.Tensor = getattr(self, name)
        return buffer if buffer.device == device else buffer.to(device)

    def _check_frames(self, images: torch.Tensor) -> bool:
        config, count = self.config, len(self.plan.frames)
        check_dtype(images, "frames", (torch.uint8, torch.float32))
        check_rank(images, "frames", (4, 5), "[B, F, 3, H, W] or [F, 3, H, W]")
        if images.shape[-3] != 3 or images.shape[-4] != count:
            raise ValueError(
                f"frames has shape {list(images.shape)}; must be [B, F, 3, H, W] with the "
                f"F = {count} frames of the plan (frames={config.frames}, stride={config.stride}, "
                f"length={config.length})"
            )
        if (
            images.dtype == torch.float32
            and images.device.type == "cpu"
            and images.numel()
            and not torch.compiler.is_compiling()
            and 0 < float(images.max()) <= 1
        ):
            warnings.warn("frames lie in 0 to 1; they are read as 0 to 255", stacklevel=3)
        height, width = images.shape[-2:]
        if config.region == "crop" and (
            height % config.patch or width % config.patch or not height
        ):
            raise ValueError(
                f"frames is {height}x{width} px; both must be divisible by patch ({config.patch})"
            )
        return images.dim() == 5

    def _given(
        self, flow: Array | None, name: str, images: torch.Tensor, batched: bool
    ) -> torch.Tensor | None:
        if flow is None:
            return None
        omega = as_tensor(flow, name)
        check_dtype(omega, name, (torch.float32, torch.float16))
        wanted = [len(images), len(self.plan.pairs), 2, *images.shape[-2:]]
        if list(omega.shape) != (wanted if batched else wanted[1:]):
            raise ValueError(
                f"{name} has shape {list(omega.shape)}; must be "
                f"{wanted if batched else wanted[1:]}, one for each of the plan's pairs"
            )
        if omega.device != images.device:
            raise ValueError(f"{name} is on {omega.device}, frames on {images.device}")
        return omega if batched else omega[None]

    def _padded(
        self,
        plan: ClipPlan | Sequence[ClipPlan] | torch.Tensor | None,
        batch: int,
        device: torch.device,
    ) -> torch.Tensor | None:
        if isinstance(plan, torch.Tensor):
            wanted = [batch, self.plan.starts, self.config.length]
            if plan.dtype != torch.bool or list(plan.shape) != wanted or plan.device != device:
                raise ValueError(
                    f"plan is {plan.dtype} {list(plan.shape)} on {plan.device}; must be bool "
                    f"{wanted} on {device}, or a ClipPlan"
                )
            return plan
        if plan is None:
            return None
        plans = [plan] * batch if isinstance(plan, ClipPlan) else list(plan)
        if len(plans) != batch:
            raise ValueError(f"plan has {len(plans)} clips, frames {batch}; they must match")
        for one in plans:
            if (one.rgb, one.pairs, one.steps) != (self.plan.rgb, self.plan.pairs, self.plan.steps):
                raise ValueError("plan was built for another config than this module's")
        if not any(late for one in plans for row in one.padded for late in row):
            return None
        return torch.tensor([one.padded for one in plans], dtype=torch.bool).to(device)

    def _box(self, crop: Array | None, images: torch.Tensor, batched: bool) -> torch.Tensor | None:
        if self.config.region == "crop":
            if crop is not None:
                raise ValueError(
                    "crop is given, but the config's region is 'crop': frames are the crop"
                )
            return None
        if crop is None:
            raise ValueError(
                "crop is None; region='frame' needs each clip's box [B, 4] (x, y, w, h)"
            )
        box = as_tensor(crop, "crop").to(images.device, torch.float32)
        box = box if batched else box[None]
        if list(box.shape) != [len(images), 4]:
            raise ValueError(
                f"crop has shape {list(box.shape)}; must be [{len(images)}, 4] (x, y, w, h)"
            )
        return box

    def _tokens(
        self,
        mask: Array | None,
        height: int,
        width: int,
        batch: int,
        device: torch.device,
        batched: bool,
    ) -> torch.Tensor | None:
        if mask is None:
            return None
        chosen = as_tensor(mask, "mask").to(device)
        chosen = chosen if batched else chosen[None]
        patches = (height // self.config.patch) * (width // self.config.patch)
        count = self.plan.starts * patches
        if chosen.dim() != 2 or len(chosen) != batch:
            raise ValueError(
                f"mask has shape {list(chosen.shape)}; must be [{batch}, M] or [{batch}, {count}]"
            )
        if chosen.dtype == torch.bool:
            if chosen.shape[1] != count:
                raise ValueError(f"mask has {chosen.shape[1]} booleans a clip; must have {count}")
            per_clip = chosen.sum(dim=1)
            if not bool((per_clip == per_clip[0]).all()):
                raise ValueError(
                    f"mask chooses {per_clip.tolist()} patches; must be as many in each clip"
                )
            return chosen.nonzero()[:, 1].view(batch, -1)
        if chosen.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"mask has dtype {chosen.dtype}; must be bool, int32 or int64")
        if chosen.device.type == "cpu" and chosen.numel() and not torch.compiler.is_compiling():
            low, high = int(chosen.min()), int(chosen.max())
            if low < 0 or high >= count:
                raise ValueError(f"mask spans {low} to {high}; must lie within 0 to {count - 1}")
        return chosen.long()

    def _seeds(
        self, height: int, width: int, tokens: torch.Tensor | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Seeds [B or 1, R, 2] and the tubelet of each [B or 1, R]: patch by patch, row-major."""
        grid, patch, tracks_ = self.config.grid, self.config.patch, self.config.tracks
        x = torch.arange(width // grid * 1.0, device=device) * grid + grid / 2
        y = torch.arange(height // grid * 1.0, device=device) * grid + grid / 2
        side = patch // grid
        points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        points = points.unflatten(1, (-1, side)).unflatten(0, (-1, side))  # [h, ky, w, kx, 2]
        points = points.transpose(1, 2).reshape(-1, tracks_, 2)  # [h·w, K, 2]
        patches = len(points)
        if tokens is None:
            tokens = torch.arange(self.plan.starts * patches, device=device)[None]
        starts = tokens.div(patches, rounding_mode="floor").int().repeat_interleave(tracks_, dim=1)
        return points[tokens % patches].flatten(1, 2), starts


def _batch(
    known: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    points, displacements, visible = known
    return points[None], displacements[None], visible[None]


def _unbatch(targets: Targets, batched: bool) -> Targets:
    if batched:
        return targets
    return Targets({name: Target(*(t[0] for t in target)) for name, target in targets.items()})
