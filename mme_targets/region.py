"""Between the whole frame and the crop that the model sees (Appendix B).

Pixel centres are integers, so a point of the crop lies at ``(x + ½)·w/size − ½ + x0`` of the frame.
"""

from __future__ import annotations

import torch
from torch.nn.functional import grid_sample


def to_frame(points: torch.Tensor, box: torch.Tensor, size: int) -> torch.Tensor:
    """Points [B or 1, R, 2] of a size x size crop in the frame; box [B, 4] (x, y, w, h) px."""
    corner, extent = box[:, None, :2], box[:, None, 2:]
    return (points + 0.5) * (extent / size) - 0.5 + corner


def crop_frames(frames: torch.Tensor, box: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear crops of [B, T, C, H, W], rounded back to uint8 where frames are."""
    out = _sample(frames.float(), box, size)
    return out.round().clamp(0, 255).to(torch.uint8) if frames.dtype == torch.uint8 else out


def crop_flow(flow: torch.Tensor, box: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear crops of flow [B, P, 2, H, W], in px of the crop."""
    scale = (size / box[:, 2:]).view(-1, 1, 2, 1, 1)
    return _sample(flow.float(), box, size) * scale


def follow_camera(
    points: torch.Tensor, moves: torch.Tensor, homographies: torch.Tensor, pairs: torch.Tensor
) -> torch.Tensor:
    """Points in the raw frames of tracks that live in stabilised ones.

    The step from a frame to the next is flow in the camera's absence, then the camera:
    q_{l+1} = H_l(q_l + Δ_l), as improved Dense Trajectories keep their descriptors on the object.

    Parameters
    ----------
    points : [B, R, L+1, 2]; moves : [B, R, L, 2] px.
    homographies : [B, P, 3, 3], from a pair's first frame to its second.
    pairs : [B or 1, R, L] the pair of each step.
    """
    batch = torch.arange(len(points), device=points.device)[:, None]
    path = [points[:, :, 0]]
    for step in range(moves.shape[2]):
        camera = homographies[batch, pairs[:, :, step].expand(len(points), -1)].float()
        at = path[-1] + moves[:, :, step]
        lifted = camera[..., :2] @ at[..., None] + camera[..., 2:]
        path.append((lifted[..., :2, 0]) / lifted[..., 2:, 0])
    return torch.stack(path, dim=2)


def _sample(maps: torch.Tensor, box: torch.Tensor, size: int) -> torch.Tensor:
    batch, count, channels, height, width = maps.shape
    line = torch.arange(size, device=maps.device, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(1, -1, 2)
    at = to_frame(grid, box, size)
    extent = torch.tensor([width, height], device=maps.device, dtype=torch.float32)
    unit = ((2 * at + 1) / extent - 1).view(batch, size, size, 2)
    flat = maps.reshape(batch, count * channels, height, width)
    out = grid_sample(flat, unit, mode="bilinear", padding_mode="border", align_corners=False)
    return out.view(batch, count, channels, size, size)
