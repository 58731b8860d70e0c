"""MotionTargets: the whole of it against its parts, and each target against a plain recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mme_targets as mme
from mme_targets import ClipPlan, MotionTargets, TargetConfig
from mme_targets.region import crop_flow, crop_frames, follow_camera, to_frame

EVERY = ("trajectory", "pixel", "hog", "flow", "hof", "mbh")


def small(**changes: Any) -> TargetConfig:
    return TargetConfig.paper(frames=4, camera_motion=False, **changes)


def inputs(
    config: TargetConfig, batch: int = 2, height: int = 48, width: int = 64, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    plan = ClipPlan.build(config)
    g = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (batch, len(plan.frames), 3, height, width), generator=g)
    flow = torch.randn(batch, len(plan.pairs), 2, height, width, generator=g) * 3
    return frames.to(torch.uint8), flow


def raw(target: mme.Target) -> torch.Tensor:
    return target.values * target.std + target.mean


def test_paper_shapes() -> None:
    config = TargetConfig.paper(camera_motion=False)
    frames, flow = inputs(config, 1, 224, 224)
    made = MotionTargets(config)(frames, flow=flow)
    assert list(made) == ["position", "shape"]
    assert made["position"].values.shape == (1, 1568, 48)
    assert made["shape"].values.shape == (1, 1568, 648)
    assert made["shape"].valid.shape == (1, 1568, 4)
    assert not any(p.requires_grad for p in made["shape"])
    assert not list(MotionTargets(config).parameters())


@pytest.mark.parametrize("grid", [4, 8, 16])
@pytest.mark.parametrize("shape", ["cell", "window"])
def test_tokens_are_the_public_operations_in_patch_order(grid: int, shape: str) -> None:
    config = small(grid=grid, shape=shape)
    frames, flow = inputs(config)
    made = MotionTargets(config)(frames, flow=flow)
    plan = ClipPlan.build(config)
    tracked = mme.trajectories(flow, grid=grid, steps=plan.steps)
    along = mme.trajectory_hog(frames, tracked.points, plan.hog, sampling=shape)
    side = 16 // grid
    for s, h, w in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        token = (s * 3 + h) * 4 + w
        rows, columns = slice(h * side, (h + 1) * side), slice(w * side, (w + 1) * side)
        moves = tracked.displacements[:, s, rows, columns].reshape(2, -1)
        torch.testing.assert_close(raw(made["position"])[:, token], moves, atol=1e-4, rtol=1e-4)
        found = along[:, s, rows, columns].reshape(2, -1)
        torch.testing.assert_close(raw(made["shape"])[:, token], found, atol=2e-2, rtol=1e-4)
        seen = tracked.visible[:, s, rows, columns].reshape(2, -1)
        assert torch.equal(made["position"].valid[:, token], seen)


def test_each_patch_is_normalised_by_its_own_values() -> None:
    config = small()
    frames, flow = inputs(config)
    flow[:, :, :, :20, :20] = 0
    made = MotionTargets(config)(frames, flow=flow)["position"]
    still = made.values[:, 0]
    assert torch.equal(still, torch.zeros_like(still)), "a patch that does not move gives zeros"
    others = made.values[:, 11]
    torch.testing.assert_close(others.mean(-1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(others.std(-1), torch.ones(2), atol=1e-3, rtol=0)


def test_coordinate_norm_is_over_the_tracks_alone() -> None:
    config = small(norm="coordinate")
    frames, flow = inputs(config)
    values = MotionTargets(config)(frames, flow=flow)["shape"].values.unflatten(-1, (4, -1))
    torch.testing.assert_close(values.mean(2), torch.zeros_like(values[:, :, 0]), atol=1e-4, rtol=0)


def test_mask_makes_the_chosen_tokens_alone() -> None:
    config = small(targets=EVERY)
    frames, flow = inputs(config)
    module = MotionTargets(config)
    whole = module(frames, flow=flow)
    indices = torch.tensor([[1, 3, 23], [0, 7, 11]])
    chosen = module(frames, flow=flow, mask=indices)
    booleans = torch.zeros(2, 24, dtype=torch.bool).scatter_(1, indices, True)
    same = module(frames, flow=flow, mask=booleans)
    for name, target in whole.items():
        for part, mine, other in zip(target, chosen[name], same[name], strict=True):
            wanted = part.gather(1, indices[..., None].expand(-1, -1, part.shape[-1]))
            assert torch.equal(mine, wanted), name
            assert torch.equal(other, wanted), name


def test_pixel_is_videomaes() -> None:
    config = small(targets=("pixel",))
    frames, _ = inputs(config)
    made = MotionTargets(config)(frames)["pixel"].values
    clip = frames[:, list(ClipPlan.build(config).rgb)].double() / 255
    # (t p0) c (h p1) (w p2) -> (t h w) (p0 p1 p2) c, each channel by its own mean and deviation
    z = clip.reshape(2, 2, 2, 3, 3, 16, 4, 16).permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(2, 24, -1, 3)
    z = (z - z.mean(2, keepdim=True)) / (z.var(2, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(made.double(), z.reshape(2, 24, -1), atol=1e-4, rtol=1e-4)


def test_hog_without_interpolation_is_the_middle_frames() -> None:
    config = small(targets=("hog",), interpolate=False, norm="none")
    frames, flow = inputs(config)
    made = MotionTargets(config)(frames, flow=flow)["hog"].values
    maps = mme.hog(frames[:, list(ClipPlan.build(config).rgb)])
    one = maps[:, 1::2][:, 1, :, :, 2:4, 4:6]  # tubelet 1, patch (1, 2): cells (2..3, 4..5)
    wanted = one.permute(0, 3, 4, 1, 2).reshape(2, -1)
    torch.testing.assert_close(made[:, (1 * 3 + 1) * 4 + 2], wanted)


def test_the_middle_frames_hog_stands_beside_interpolated_motion() -> None:
    """Table 5's HOG + Traj. w/o shape: `hog_interpolate` is of HOG alone."""
    both = small(targets=("hog", "position"), norm="none")
    config = both.replace(hog_interpolate=False)
    frames, flow = inputs(config)
    made = MotionTargets(config)(frames, flow=flow)
    plan = ClipPlan.build(config)
    assert plan == ClipPlan.build(both), "the tracks read the frames that they read before"
    sparse = small(targets=("hog",), norm="none", interpolate=False)
    place = {frame: i for i, frame in enumerate(plan.frames)}
    order = [place.get(frame, 0) for frame in ClipPlan.build(sparse).frames]
    alone = MotionTargets(sparse)(frames[:, order])["hog"].values
    assert torch.equal(made["hog"].values, alone)
    moved = MotionTargets(both)(frames, flow=flow)
    assert torch.equal(made["position"].values, moved["position"].values)
    assert moved["hog"].values.shape[-1] == 6 * alone.shape[-1]


def test_interpolated_hog_reads_every_raw_frame() -> None:
    config = small(targets=("hog",), norm="none")
    frames, flow = inputs(config)
    made = MotionTargets(config)(frames, flow=flow)["hog"].values
    plan = ClipPlan.build(config)
    maps = mme.hog(frames)[:, list(plan.hog[1])]
    one = maps[:, :, :, :, 2:4, 4:6].permute(0, 4, 5, 1, 2, 3).reshape(2, -1)
    torch.testing.assert_close(made[:, (1 * 3 + 1) * 4 + 2], one)


@pytest.mark.parametrize("interpolate", [True, False])
def test_flow_hof_mbh_of_a_patch(interpolate: bool) -> None:
    config = small(targets=("flow", "hof", "mbh"), interpolate=interpolate, norm="none")
    frames, flow = inputs(config)
    made = MotionTargets(config)(frames, flow=flow)
    pairs = list(ClipPlan.build(config).steps[1])[: 6 if interpolate else 1]
    token = (1 * 3 + 1) * 4 + 2
    patch = flow[:, pairs, :, 16:32, 32:48].permute(0, 3, 4, 1, 2).reshape(2, -1)
    assert torch.equal(made["flow"].values[:, token], patch)
    for name, maps in (("hof", mme.hof(flow)), ("mbh", mme.mbh(flow))):
        cells = maps[:, pairs][..., 2:4, 4:6].permute(0, 4, 5, 1, 2, 3).reshape(2, -1)
        torch.testing.assert_close(made[name].values[:, token], cells)


def test_mean_and_max_density() -> None:
    frames, flow = inputs(small())
    dense = MotionTargets(small(norm="none"))(frames, flow=flow)
    tracks = dense["position"].values.reshape(2, 24, 4, 6, 2)
    mean = MotionTargets(small(norm="none", density="mean"))(frames, flow=flow)
    torch.testing.assert_close(mean["position"].values, tracks.mean(2).flatten(2))
    assert torch.equal(mean["position"].valid[..., 0], dense["position"].valid.all(-1))
    largest = MotionTargets(small(norm="none", density="max"))(frames, flow=flow)
    best = tracks.norm(dim=-1).sum(-1).argmax(-1)
    for b, n in [(0, 0), (1, 13), (0, 23)]:
        k = int(best[b, n])
        assert torch.equal(largest["position"].values[b, n], tracks[b, n, k].flatten())
        shape = dense["shape"].values.reshape(2, 24, 4, -1)
        assert torch.equal(largest["shape"].values[b, n], shape[b, n, k])


def test_length_zero_is_maskfeats_hog() -> None:
    config = small(length=0, norm="none")
    frames, _ = inputs(config)
    made = MotionTargets(config)(frames)
    assert list(made) == ["shape"]
    middle = MotionTargets(small(targets=("hog",), interpolate=False, norm="none", length=6))
    twin = frames[:, :1].expand(-1, len(middle.plan.frames), -1, -1, -1).clone()
    for slot, source in zip(middle.plan.rgb, range(4), strict=True):
        twin[:, slot] = frames[:, source]
    torch.testing.assert_close(made["shape"].values, middle(twin)["hog"].values)


def test_padded_steps_make_their_tracks_invalid_and_no_others() -> None:
    config = small(targets=("trajectory", "flow", "hog"))
    frames, flow = inputs(config, 1)
    flow.mul_(0.1)
    plan = ClipPlan.build(config, 0, video_frames=13)  # tracks of tubelet 1 need frames 8 to 14
    made = MotionTargets(config)(frames, plan=plan, flow=flow)
    half = 12
    assert made["position"].valid[:, :half].any()
    assert not made["position"].valid[:, half:].any()
    assert made["flow"].valid[:, :half].all()
    assert not made["flow"].valid[:, half:].any()
    assert made["hog"].valid.all()
    two = MotionTargets(config)(
        frames.repeat(2, 1, 1, 1, 1),
        plan=[plan, ClipPlan.build(config)],
        flow=flow.repeat(2, 1, 1, 1, 1),
    )
    assert not two["position"].valid[0, half:].any()
    assert two["position"].valid[1, half:].any()


def test_without_the_loss_mask_all_count_but_padding() -> None:
    config = small(loss_mask=False)
    frames, flow = inputs(config, 1)
    assert MotionTargets(config)(frames, flow=flow * 9)["position"].valid.all()


def test_not_finite_flow_is_confined() -> None:
    config = small(targets=("trajectory", "flow"))
    frames, flow = inputs(config, 1)
    flow.mul_(0.1)
    clean = MotionTargets(config)(frames, flow=flow)
    flow[0, 0, 0, 20, 20] = float("nan")  # pair 0, patch (1, 1)
    made = MotionTargets(config)(frames, flow=flow)
    for target in made.values():
        assert all(part.isfinite().all() for part in target if part.dtype != torch.bool)
    changed = (made["position"].values != clean["position"].values).any(-1)[0].nonzero().flatten()
    assert changed.tolist() == [5]
    assert not made["flow"].valid[0, 5]


def test_frame_region_scales_displacements_back() -> None:
    config = small(region="frame", size=64, norm="none", targets=EVERY)
    frames, flow = inputs(config, 1, 120, 160)
    flow[:] = torch.tensor([2.0, -1.0]).view(1, 1, 2, 1, 1)
    box = torch.tensor([[20.0, 10.0, 96.0, 96.0]])
    made = MotionTargets(config)(frames, flow=flow, crop=box)
    moves = made["position"].values.reshape(1, 32, 4, 6, 2)
    wanted = torch.tensor([2.0, -1.0]) * 64 / 96
    torch.testing.assert_close(moves, wanted.expand_as(moves))
    assert made["position"].valid.all(), "visibility refers to the whole frame"
    shown = made["flow"].values.reshape(1, 32, 256, 6, 2)
    torch.testing.assert_close(shown, wanted.expand_as(shown), atol=1e-5, rtol=1e-5)
    assert made["pixel"].values.shape == (1, 32, 1536)


def test_crop_of_the_same_size_is_the_identity() -> None:
    box = torch.tensor([[0.0, 0.0, 48.0, 48.0]])
    frames = torch.randint(0, 256, (1, 2, 3, 48, 48), dtype=torch.uint8)
    assert torch.equal(crop_frames(frames, box, 48), frames)
    flow = torch.randn(1, 2, 2, 48, 48)
    torch.testing.assert_close(crop_flow(flow, box, 48), flow, atol=1e-4, rtol=1e-4)
    points = torch.rand(1, 5, 2) * 48
    torch.testing.assert_close(to_frame(points, box, 48), points)


def test_follow_camera_adds_the_camera_back() -> None:
    camera = torch.eye(3, dtype=torch.float64).repeat(1, 3, 1, 1)
    camera[0, :, 0, 2] = torch.tensor([3.0, 5.0, 7.0])  # pans to the right
    camera[0, 1, 1, 1] = 1.5  # and stretches once
    points = torch.tensor([[[[10.0, 20], [11, 20], [12, 20], [13, 20]]]])
    moves = torch.tensor([[[[1.0, 0], [1, 0], [1, 0]]]])
    found = follow_camera(points, moves, camera, torch.tensor([[[0, 1, 2]]]))
    wanted = torch.tensor([[[[10.0, 20], [14, 20], [20, 30], [28, 30]]]])
    torch.testing.assert_close(found, wanted)
    config = TargetConfig.paper(frames=4, follow_camera=True)
    frames, flow = inputs(config, 1)
    still = torch.eye(3, dtype=torch.float64).expand(1, len(ClipPlan.build(config).pairs), 3, 3)
    made = MotionTargets(config)(frames, flow=flow, homographies=still)
    plain = MotionTargets(config.replace(follow_camera=False))(frames, flow=flow)
    assert torch.equal(made["shape"].values, plain["shape"].values)
    with pytest.raises(ValueError, match="homographies"):
        MotionTargets(config)(frames, flow=flow)


def test_flow_is_computed_when_it_is_not_given() -> None:
    config = TargetConfig.paper(frames=2, stride=1, flow="dis", camera_motion=False)
    frames, _ = inputs(config, 1)
    ticks: list[int] = []
    made = MotionTargets(config)(frames, progress=ticks.append)
    flow = mme.optical_flow(frames, method="dis")
    given = MotionTargets(config)(frames, flow=flow)
    assert torch.equal(made["position"].values, given["position"].values)
    assert sum(ticks) == len(ClipPlan.build(config).pairs)


def test_unbatched_frames_give_unbatched_targets() -> None:
    config = small()
    frames, flow = inputs(config, 1)
    module = MotionTargets(config)
    one, batch = module(frames[0], flow=flow[0]), module(frames, flow=flow)
    for name in batch:
        for a, b in zip(one[name], batch[name], strict=True):
            assert torch.equal(a, b[0])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_batch_is_its_clips(backend: str) -> None:
    config = small(targets=EVERY)
    frames, flow = inputs(config, 3)
    module = MotionTargets(config, backend=backend)
    whole = module(frames, flow=flow)
    for b in range(3):
        one = module(frames[b : b + 1], flow=flow[b : b + 1])
        for name in whole:
            assert torch.equal(one[name].values[0], whole[name].values[b]), name


def test_floors_agree_on_the_whole() -> None:
    config = small(targets=EVERY, norm="none")
    frames, flow = inputs(config)
    flow = (flow * 64).round() / 64  # exact positions on every floor
    a = MotionTargets(config, backend="cpu")(frames, flow=flow)
    b = MotionTargets(config, backend="reference")(frames, flow=flow)
    for name in a:
        torch.testing.assert_close(a[name].values, b[name].values, atol=4e-3, rtol=1e-5)
        assert torch.equal(a[name].valid, b[name].valid)


@pytest.mark.parametrize(
    ("names", "compiler"), [(EVERY, "aot_eager"), (("trajectory",), "inductor")]
)
def test_compiles_as_one_graph(names: tuple[str, ...], compiler: str) -> None:
    torch.compiler.reset()
    config = small(targets=names)
    frames, flow = inputs(config)
    mask = torch.tensor([[1, 3, 23], [0, 7, 11]])
    module = MotionTargets(config)
    compiled = torch.compile(module, fullgraph=True, backend=compiler)
    made, wanted = compiled(frames, flow=flow, mask=mask), module(frames, flow=flow, mask=mask)
    assert list(made) == list(wanted)
    for name in wanted:
        for a, b in zip(made[name], wanted[name], strict=True):
            torch.testing.assert_close(a, b)


def test_numpy_frames_are_taken() -> None:
    config = small()
    frames, flow = inputs(config)
    made = MotionTargets(config)(np.asarray(frames), flow=np.asarray(flow))
    wanted = MotionTargets(config)(frames, flow=flow)
    assert torch.equal(made["shape"].values, wanted["shape"].values)


class TestReleased:
    """What `TargetConfig.released()` repeats of the authors' code."""

    def made(self, flow_value: tuple[float, float] = (0.0, 0.0)) -> mme.Targets:
        config = TargetConfig.released(frames=4)
        frames, flow = inputs(config, 1)
        flow[:] = torch.tensor(flow_value).view(1, 1, 2, 1, 1)
        return MotionTargets(config)(frames, flow=flow)

    def test_sizes_are_the_checkpoints_heads(self) -> None:
        made = self.made()
        assert made["position"].values.shape[-1] == 8 * 4
        assert made["shape"].values.shape[-1] == 9 * 3 * 4

    def test_bytes_are_added_undequantised_and_clamped_when_kept(self) -> None:
        made = self.made()  # no motion is byte 128
        assert (raw(made["position"]) == 20).all()
        assert not made["position"].valid.any(), "the second point lies 128 px away, outside"

    def test_lowest_byte_does_not_move(self) -> None:
        made = self.made((-20.0, -20.0))
        assert (raw(made["position"]) == 0).all()
        assert made["position"].valid.all()

    def test_an_integer_phase_loses_its_magnitude(self) -> None:
        config = TargetConfig.released(frames=2, norm="none")
        plan = ClipPlan.build(config)
        ramp = torch.arange(32, dtype=torch.uint8).view(-1, 1).expand(32, 32) * 4
        frames = ramp.expand(1, len(plan.frames), 3, 32, 32).contiguous()
        flow = torch.zeros(1, len(plan.pairs), 2, 32, 32)
        made = MotionTargets(config)(frames, flow=flow)
        assert (raw(made["shape"]) == 0).all(), "gx = 0: phase 0 exactly"


def test_other_floors_do_not_know_the_quirks() -> None:
    config = TargetConfig.released(frames=4)
    frames, flow = inputs(config, 1)
    a = MotionTargets(config, backend="cpu")(frames, flow=flow)
    b = MotionTargets(config, backend="reference")(frames, flow=flow)
    assert torch.equal(a["shape"].values, b["shape"].values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": torch.zeros(2, 5, 3, 48, 64, dtype=torch.uint8)}, "frames has shape"),
        ({"frames": torch.zeros(2, 14, 3, 48, 64, dtype=torch.float64)}, "frames has dtype"),
        ({"flow": torch.zeros(2, 5, 2, 48, 64)}, "flow has shape"),
        ({"mask": torch.zeros(2, 5, dtype=torch.bool)}, "mask has 5 booleans"),
        ({"mask": torch.full((2, 3), 24)}, "mask spans"),
        ({"mask": torch.zeros(3, 3, dtype=torch.long)}, "mask has shape"),
        ({"mask": torch.zeros(2, 3)}, "mask has dtype"),
        ({"mask": torch.eye(2, 24).bool() * torch.tensor([[1], [0]]).bool()}, "mask chooses"),
        ({"crop": torch.zeros(2, 4)}, "crop is given"),
        ({"plan": ClipPlan.build(TargetConfig.ssv2())}, "plan was built for another"),
        ({"plan": [ClipPlan.build(small())]}, "plan has 1 clips"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    config = small()
    frames, flow = inputs(config)
    arguments: dict[str, Any] = {"frames": frames, "flow": flow, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        MotionTargets(config)(**arguments)


def test_sizes_that_hold_no_whole_patches_are_refused() -> None:
    config = small()
    frames, flow = inputs(config, height=50)
    with pytest.raises(ValueError, match=r"frames is 50x64 px.*divisible by patch"):
        MotionTargets(config)(frames, flow=flow)
    with pytest.raises(ValueError, match="crop is None"):
        MotionTargets(small(region="frame", size=32))(*inputs(small())[:1])


def test_frames_in_0_to_1_are_warned_of() -> None:
    config = small()
    frames, flow = inputs(config)
    with pytest.warns(UserWarning, match="0 to 255"):
        MotionTargets(config)(frames.float() / 255, flow=flow)


def test_unknown_backend_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="backend is 'gpu'"):
        MotionTargets(small(), backend="gpu")
