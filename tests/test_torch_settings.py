"""Flow and camera motion are the same whatever a program has set in torch before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from test_camera_motion import texture
from torchvision.models.optical_flow import raft_small

from mme_targets import SurfConfig, Tvl1Config, optical_flow
from mme_targets.backends.batched import homography, matches
from mme_targets.ops.camera_motion import flow_and_camera
from mme_targets.ops.optical_flow import DETECTORS


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS: dict[str, Callable[[], object]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "mixed precision": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
}


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    """Frames [3, 3, H, W] that move by 2 and 1 px."""
    big = texture(np.random.default_rng(3), 110, 130)
    frames = [big[10 + 2 * t :][:75, 10 + t :][:, :91] for t in range(3)]
    return torch.from_numpy(np.stack(frames).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kernels", [True, False])
def test_camera_motion(
    clip: torch.Tensor, setting: str, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernels it is what a GPU runs."""
    if not kernels:
        monkeypatch.setattr(homography, "has_kernels", lambda _: False)
    tvl1 = Tvl1Config(warps=1, inner_iterations=10, outer_iterations=2)
    for detector in DETECTORS:
        for window in (25.0, None):
            options = {"detector": detector, "window": window, "config": tvl1}
            options["surf"] = SurfConfig(upright=False)
            usual = flow_and_camera(clip, **options)
            assert usual.camera.ok.all()
            with SETTINGS[setting]():
                found = flow_and_camera(clip, **options)
            what = f"{detector}, window {window}"
            assert found.flow.dtype == torch.float32, what
            assert torch.equal(found.flow, usual.flow), what
            for one, other in zip(found.camera, usual.camera, strict=True):
                assert torch.equal(one, other), what


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", ["tvl1", "farneback", "dis"])
def test_flow(clip: torch.Tensor, setting: str, method: str) -> None:
    for frames in (clip, clip.float() + 0.25):
        usual = optical_flow(frames, method=method)
        with SETTINGS[setting]():
            assert torch.equal(optical_flow(frames, method=method), usual)


@pytest.mark.parametrize("setting", SETTINGS)
def test_raft(clip: torch.Tensor, setting: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("weights") / "raft.pth"
    with torch.random.fork_rng():
        torch.manual_seed(2)
        torch.save(raft_small().state_dict(), path)
    with SETTINGS[setting]():
        found = optical_flow(clip[:2], method="raft", weights=path)
    assert torch.equal(found, optical_flow(clip[:2], method="raft", weights=path))


@pytest.mark.parametrize("setting", SETTINGS)
def test_matches(setting: str) -> None:
    """Distances are exact: products of whole numbers that bfloat16 does not hold."""
    rng = np.random.default_rng(4)
    values = torch.from_numpy(rng.integers(-300, 301, (2, 500, 16)).astype(np.float32))
    there = torch.ones(2, 500, dtype=torch.bool)
    points = matches.Points(values[..., :2].contiguous(), values, there)
    usual = matches.mutual(points, points._replace(descriptors=values.flip(0)), None)
    with SETTINGS[setting]():
        found = matches.mutual(points, points._replace(descriptors=values.flip(0)), None)
    for one, other in zip(found, usual, strict=True):
        assert torch.equal(one, other)
