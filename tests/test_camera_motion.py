"""Camera motion: known homographies with something else moving; its removal; bad input."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from mme_targets.backends.batched import camera_motion as batched
from mme_targets.backends.reference import camera_motion as reference
from mme_targets.config import SurfConfig, Tvl1Config
from mme_targets.ops.camera_motion import CameraMotion, camera_motion, flow_and_camera
from mme_targets.ops.optical_flow import DETECTORS, optical_flow

SIZE = 160
THIRD = SIZE // 3
OWN = np.array([-4.0, 3.0])
"""About how far the thing in the middle third moves by itself, px. (At the frame's edge one
homography with strong perspective can agree with thing and background better than the true one.)"""
BAND = slice(THIRD, 2 * THIRD)


def about_centre(matrix: np.ndarray) -> np.ndarray:
    """`matrix` with its origin at the centre of the frame."""
    shift = np.array([[1, 0, (SIZE - 1) / 2], [0, 1, (SIZE - 1) / 2], [0, 0, 1]])
    return shift @ matrix @ np.linalg.inv(shift)


COS, SIN = np.cos(np.deg2rad(3)), np.sin(np.deg2rad(3))
HOMOGRAPHIES = {
    "zoom": about_centre(np.diag([1.06, 1.06, 1])),
    "rotation": about_centre(np.array([[COS, -SIN, 2], [SIN, COS, -2], [0, 0, 1]])),
    "perspective": about_centre(np.array([[1.02, 0.01, 6], [-0.02, 0.99, 4], [2e-4, -1.5e-4, 1]])),
}


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth random RGB image [H, W, 3] with structure at several sizes."""
    noise = [
        s * cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), s)
        for s in (1, 2, 4, 8, 16)
    ]
    total = np.sum(noise, axis=0)
    return np.clip(128 + 45 * total / total.std(), 0, 255).astype(np.uint8)


def thing_moves(homography: np.ndarray) -> np.ndarray:
    """Whole px by which the thing moves in the picture: by the camera at its middle, and by OWN."""
    middle = np.array([[[SIZE / 2, SIZE / 2]]])
    return np.rint(cv2.perspectiveTransform(middle, homography)[0, 0] - middle[0, 0] + OWN)


def seen(homography: np.ndarray, rng: np.random.Generator, thing: bool = True) -> np.ndarray:
    """Two frames [2, 3, H, W] of a texture; in the middle third is a thing with its own motion."""
    room = 40
    big = texture(rng, SIZE + 2 * room, SIZE + 2 * room)
    shift = np.array([[1, 0, room], [0, 1, room], [0, 0, 1.0]])
    matrix = shift @ homography @ np.linalg.inv(shift)
    moved = cv2.warpPerspective(big, matrix, big.shape[:2], flags=cv2.INTER_CUBIC)
    first, second = (b[room:-room, room:-room].copy() for b in (big, moved))
    if thing:
        dx, dy = thing_moves(homography).astype(int)
        other = texture(rng, SIZE + 2 * room, THIRD + 2 * room)
        first[:, BAND] = other[room : room + SIZE, room : room + THIRD]
        second[:, BAND] = other[room - dy :, room - dx :][:SIZE, :THIRD]
    return np.stack([first, second]).transpose(0, 3, 1, 2).copy()


def corners(size: int = SIZE) -> np.ndarray:
    return np.array([[0, 0], [size - 1, 0], [0, size - 1], [size - 1, size - 1]], np.float64)


def apart(one: np.ndarray, other: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Distance, px, between where two homographies take points."""
    return np.linalg.norm(
        cv2.perspectiveTransform(at[None], one)[0] - cv2.perspectiveTransform(at[None], other)[0],
        axis=1,
    )


# Right


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("name", HOMOGRAPHIES)
def test_known_camera_beside_a_moving_thing(
    rng: np.random.Generator, name: str, detector: str
) -> None:
    truth = HOMOGRAPHIES[name]
    assert 5 < apart(truth, np.eye(3), corners()).max() < 25
    clip = seen(truth, rng)
    before = optical_flow(clip, bound=None)[0]
    flow, camera = flow_and_camera(clip, detector=detector, bound=None)

    assert camera.homographies.shape == (1, 3, 3)
    assert camera.homographies.dtype == np.float64
    assert camera.ok.dtype == np.bool_
    assert camera.ok[0]
    assert camera.inliers.dtype == np.int64
    assert camera.inliers[0] > 100
    assert camera.homographies[0, 2, 2] == 1
    assert apart(camera.homographies[0], truth, corners()).max() < 0.5

    background = np.full((SIZE, SIZE), False)
    background[12:-12, 12 : THIRD - 12] = background[12:-12, 2 * THIRD + 12 : -12] = True
    assert np.median(np.linalg.norm(before[:, background], axis=0)) > 1.5
    assert np.median(np.linalg.norm(flow[0][:, background], axis=0)) < 0.1

    # The thing's point p is at p + moves in the second frame, so at H⁻¹ of that once stabilised.
    moves = thing_moves(truth)
    y, x = np.mgrid[30 : SIZE - 30, THIRD + 16 : 2 * THIRD - 16]
    points = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64)
    still = cv2.perspectiveTransform((points + moves)[None], np.linalg.inv(truth))[0] - points
    error = np.linalg.norm(flow[0][:, y, x].reshape(2, -1).T - still, axis=1)
    assert np.median(error) < 0.6
    assert np.median(np.linalg.norm(still, axis=1)) > 3.5


def test_large_motion_is_seen_by_interest_points(rng: np.random.Generator) -> None:
    """20 px are more than flow on so small a frame follows, but lie inside the window."""
    truth = np.array([[1, 0, 18], [0, 1, -9], [0, 0, 1.0]])
    clip = seen(truth, rng, thing=False)
    flow = np.full((1, 2, SIZE, SIZE), np.nan, np.float32)  # no corner is carried by it
    found = camera_motion(clip, flow)
    assert found.ok[0]
    assert apart(found.homographies[0], truth, corners()).max() < 1
    narrow = camera_motion(clip, flow, window=8.0)
    assert not narrow.ok[0]
    assert np.array_equal(narrow.homographies[0], np.eye(3))


def test_flow_and_camera_are_camera_motion_of_the_unclipped_flow(rng: np.random.Generator) -> None:
    clip = seen(HOMOGRAPHIES["rotation"], rng)
    raw = optical_flow(clip, method="dis", bound=None)
    alone = camera_motion(clip, raw, seed=5)
    flow, camera = flow_and_camera(clip, method="dis", seed=5, bound=1.5)
    assert isinstance(alone, CameraMotion)
    for one, other in zip(alone, camera, strict=True):
        assert np.array_equal(one, other)
    first, second = (cv2.cvtColor(f.transpose(1, 2, 0).copy(), cv2.COLOR_RGB2GRAY) for f in clip)
    greys = (torch.from_numpy(grey)[None] for grey in (first, second))
    still = batched.warp_second(*greys, torch.from_numpy(camera.homographies))[0].numpy()
    again = optical_flow(
        np.stack([first, np.rint(still).astype(np.uint8)])[:, None].repeat(3, axis=1),
        method="dis",
        bound=1.5,
    )
    assert np.array_equal(flow, again)


# The parts


def test_warp_is_opencvs_inside_and_the_first_frame_at_the_border(rng: np.random.Generator) -> None:
    first, second = (texture(rng, 60, 80) for _ in range(2))
    matrix = np.array([[1.03, 0.02, 4.3], [-0.01, 0.98, -6.6], [1e-4, -2e-4, 1]])
    warped = reference.warp_second(first, second, matrix)
    assert warped.dtype == np.float32
    expected = cv2.warpPerspective(
        second.astype(np.float32), matrix, (80, 60), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    y, x = np.mgrid[:60, :80]
    at = np.stack([x, y], axis=-1).reshape(1, -1, 2).astype(np.float64)
    source = cv2.perspectiveTransform(at, matrix).reshape(60, 80, 2)
    inside = ((source >= 5) & (source <= [74, 54])).all(axis=-1)
    assert 0.5 < inside.mean() < 0.9
    # OpenCV rounds the source to 1/32 px; the texture's steepest step is some 60 levels a px.
    assert np.abs(warped - expected)[inside].max() < 3
    assert np.abs(warped - expected)[inside].mean() < 0.3
    assert np.array_equal(warped[~inside], first[~inside].astype(np.float32))

    grey = reference.warp_second(first[..., 0], second[..., 0], matrix)
    assert np.array_equal(grey, warped[..., 0])
    identity = reference.warp_second(first, second, np.eye(3))
    assert np.array_equal(identity[5:-5, 5:-5], second[5:-5, 5:-5])
    assert np.array_equal(identity[:5], first[:5])


def test_warp_is_exact_on_a_ramp() -> None:
    y, x = np.mgrid[:40, :50]
    ramp = (2.0 * x + 1.0 * y).astype(np.float32)
    matrix = np.array([[1, 0, 0.25], [0, 1, -1.5], [0, 0, 1.0]])
    warped = reference.warp_second(np.zeros_like(ramp), ramp, matrix)
    assert np.allclose(warped[7:-7, 7:-7], (ramp + 0.5 - 1.5)[7:-7, 7:-7], atol=1e-5)


@pytest.mark.parametrize("bits", [False, True])
def test_match_is_mutual_and_inside_the_window(rng: np.random.Generator, bits: bool) -> None:
    counts, top = (1300, 150), 2 if bits else 256  # more than one part of 1024 rows
    described = [rng.integers(0, top, (n, 32)).astype(np.float32) for n in counts]
    placed = [rng.uniform(0, 100, (n, 2)) for n in counts]
    one, two = (reference.Features(*pair) for pair in zip(placed, described, strict=True))
    for window in (None, 20.0):
        far = np.square(described[0][:, None] - described[1]).sum(axis=2)
        if window is not None:
            far[(np.abs(placed[0][:, None] - placed[1]) > window).any(axis=2)] = np.inf
        expected = [
            (i, j)
            for i, j in enumerate(far.argmin(axis=1))
            if np.isfinite(far[i, j]) and far[:, j].argmin() == i
        ]
        source, target = reference.match(one, two, window)
        assert len(expected) > 20
        assert np.array_equal(source, placed[0][[i for i, _ in expected]])
        assert np.array_equal(target, placed[1][[j for _, j in expected]])


def test_corners_are_of_the_first_frame_and_both_components_of_one_pixel(
    rng: np.random.Generator,
) -> None:
    first = texture(rng, 60, 80)[..., 0]
    y, x = np.mgrid[:60, :80].astype(np.float32)
    flow = np.stack([0.1 * x, -0.05 * y])
    source, target = reference.carried_corners(first, flow)
    expected = cv2.goodFeaturesToTrack(first, 1000, 0.001, 3).reshape(-1, 2)
    assert len(source) > 50
    kept = expected[(expected[:, 0] * 1.1) <= 79]
    assert np.array_equal(source, kept)
    assert np.allclose(target, kept * [1.1, 0.95], atol=1e-5)

    flow[:, :, 40:] = np.nan
    flow[1, :, :8] = np.inf
    source, target = reference.carried_corners(first, flow)
    assert len(source) > 10
    assert (source[:, 0] >= 8).all()
    assert (source[:, 0] < 40).all()


@pytest.mark.parametrize(
    ("matrix", "good"),
    [
        (np.eye(3), True),
        (np.diag([1.2, 0.9, 1]), True),
        (5 * np.diag([1.2, 0.9, 1]), True),
        (np.diag([-1.0, 1, 1]), False),  # mirrors
        (np.diag([1.0, 0, 1]), False),  # flattens
        (np.diag([5.0, 5, 1]), False),
        (np.diag([0.1, 0.1, 1]), False),
        (np.array([[1, 0, 0], [0, 1, 0], [-0.02, 0, 1]]), False),  # the horizon crosses the frame
        (np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]]), False),
        (np.full((3, 3), np.nan), False),
    ],
)
def test_folding_and_crushing_homographies_are_refused(matrix: np.ndarray, good: bool) -> None:
    assert reference.plausible(matrix, (100, 100)) is good


def settings(seed: int = 0) -> reference.Settings:
    return reference.Settings("sift", 25.0, 1.0, seed, SurfConfig())


def test_how_many_matches_and_inliers_it_takes(rng: np.random.Generator) -> None:
    source = rng.uniform(0, 100, (51, 2))
    truth = np.array([[1.02, 0.01, 3], [-0.02, 1, -2], [1e-4, 0, 1]])
    target = cv2.perspectiveTransform(source[None], truth)[0]
    assert not reference.ransac(source[:50], target[:50], (100, 100), settings()).ok
    found = reference.ransac(source, target, (100, 100), settings())
    assert found.ok
    assert found.inliers == 51
    assert apart(found.homography, truth, corners(100)).max() < 1e-3

    spoilt = target.copy()
    spoilt[:26] += rng.uniform(20, 60, (26, 2)) * rng.choice([-1, 1], (26, 2))  # 25 left
    assert not reference.ransac(source, spoilt, (100, 100), settings()).ok
    spoilt[0] = target[0]
    assert reference.ransac(source, spoilt, (100, 100), settings()).ok


@pytest.mark.parametrize("kind", ["one point", "a line", "mirror"])
def test_degenerate_matches_give_the_identity(rng: np.random.Generator, kind: str) -> None:
    source = rng.uniform(0, 100, (80, 2))
    target = source.copy()
    if kind == "one point":
        source[:] = target[:] = 50
    elif kind == "a line":
        source[:, 1] = target[:, 1] = 7
    else:
        target[:, 0] = 99 - target[:, 0]
    found = reference.ransac(source, target, (100, 100), settings())
    if kind != "a line" or not found.ok:  # on a line many homographies agree; any is in reason
        assert not found.ok
        assert np.array_equal(found.homography, np.eye(3))
    assert np.isfinite(found.homography).all()


# Equal and flat frames


@pytest.mark.parametrize("detector", DETECTORS)
def test_flat_frames_have_no_camera(detector: str) -> None:
    clip = np.full((3, 3, 64, 72), 90, np.uint8)
    clip[2] = 120
    flow, camera = flow_and_camera(clip, detector=detector, method="dis")
    assert np.array_equal(camera.homographies, np.broadcast_to(np.eye(3), (2, 3, 3)))
    assert not camera.ok.any()
    assert not camera.inliers.any()
    assert np.isfinite(flow).all()


@pytest.mark.parametrize("detector", DETECTORS)
def test_equal_frames_give_exactly_the_identity(rng: np.random.Generator, detector: str) -> None:
    frame = texture(rng, 64, 72).transpose(2, 0, 1)
    flow, camera = flow_and_camera(
        np.stack([frame, frame]), pairs=[(0, 0), (0, 1)], detector=detector
    )
    assert not flow.any()
    assert camera.ok.all()
    assert np.array_equal(camera.homographies, np.broadcast_to(np.eye(3), (2, 3, 3)))


def test_a_pair_without_a_camera_keeps_its_flow(rng: np.random.Generator) -> None:
    clip = texture(rng, 30, 60)[:, :, None].transpose(2, 3, 0, 1).repeat(2, axis=0)
    clip[1] = np.roll(clip[0], 1, axis=-1)
    flow, camera = flow_and_camera(clip[..., :24, :24], method="dis", bound=None)
    assert not camera.ok[0]
    assert np.array_equal(flow, optical_flow(clip[..., :24, :24], method="dis", bound=None))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (20, 300)])
def test_tiny_frames(rng: np.random.Generator, size: tuple[int, int]) -> None:
    clip = rng.integers(0, 256, (2, 3, *size), dtype=np.uint8)
    config = Tvl1Config(warps=1, inner_iterations=2)
    for detector in DETECTORS:
        flow, camera = flow_and_camera(clip, detector=detector, config=config)
        assert flow.shape == (1, 2, *size)
        assert np.isfinite(flow).all()
        assert np.isfinite(camera.homographies).all()


# Same result whatever the batch, the threads, the kind


def test_batch_pairs_kinds_and_threads(rng: np.random.Generator) -> None:
    clips = np.stack([seen(h, rng, thing=False)[..., :96, :112] for h in HOMOGRAPHIES.values()])
    clips = np.concatenate([clips, clips[:, :1]], axis=1)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(flow_and_camera(clips, method="dis"))
    finally:
        torch.set_num_threads(before)
    flow, camera = results[0]
    assert flow.shape == (3, 2, 2, 96, 112)
    assert camera.homographies.shape == (3, 2, 3, 3)
    assert camera.inliers.shape == camera.ok.shape == (3, 2)
    for other in results[1:]:
        assert np.array_equal(other.flow, flow)
        assert all(np.array_equal(a, b) for a, b in zip(other.camera, camera, strict=True))

    raw = optical_flow(clips, method="dis", bound=None)
    alone = camera_motion(torch.from_numpy(clips[2]), torch.from_numpy(raw[2, 1:]), pairs=[(1, 2)])
    for part, whole in zip(alone, camera, strict=True):
        assert isinstance(part, torch.Tensor)
        assert np.array_equal(part.numpy(), whole[2, 1:])
    floats = camera_motion(clips.astype(np.float32), raw.astype(np.float16))
    assert apart(floats.homographies[0, 0], camera.homographies[0, 0], corners()).max() < 0.5


def test_the_seed_is_ransacs_own(rng: np.random.Generator) -> None:
    source = rng.uniform(0, 200, (600, 2))
    target = source + rng.normal(0, 0.6, source.shape) + [4, 2]
    target[:250] += rng.uniform(-20, 20, (250, 2))
    results = []
    for state in (1, 99):
        cv2.setRNGSeed(state)
        results.append(
            [reference.ransac(source, target, (200, 200), settings(s)) for s in range(6)]
        )
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one.homography, other.homography)
    assert len({found.homography.tobytes() for found in results[0]}) > 1


@pytest.mark.parametrize("huge", [float("inf"), 1e300, 10**400, Fraction(10**50, 3)], ids=range(4))
def test_limits_beyond_any_frame(rng: np.random.Generator, huge: float) -> None:
    """They limit nothing."""
    clip = seen(HOMOGRAPHIES["zoom"], rng, thing=False)
    flow = optical_flow(clip, method="dis", bound=None)
    assert np.array_equal(optical_flow(clip, method="dis", bound=huge), flow)
    usual = camera_motion(clip, flow, window=None)
    for one, other in zip(camera_motion(clip, flow, window=huge), usual, strict=True):
        assert np.array_equal(one, other)
    assert np.isfinite(camera_motion(clip, flow, threshold=huge).homographies).all()


U8 = torch.zeros(1, 3, 3, 40, 44, dtype=torch.uint8)
FLOW = torch.zeros(1, 2, 2, 40, 44)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"frames": U8[0, 0]}, ValueError, "frames has shape"),
        ({"frames": U8.long()}, TypeError, "frames has dtype int64"),
        ({"flow": FLOW[0]}, ValueError, "flow has shape .* must be"),
        ({"flow": FLOW[:, :1]}, ValueError, r"flow has shape .* must be \[1, 2, 2, 40, 44\]"),
        ({"flow": FLOW.double()}, TypeError, "flow has dtype float64"),
        ({"flow": None}, TypeError, "flow is a"),
        ({"pairs": [(0, 1), (2, 3)]}, ValueError, "pairs names frame 3"),
        ({"detector": "star"}, ValueError, "detector is 'star'"),
        ({"window": -1.0}, ValueError, "window is -1.0"),
        ({"threshold": 0}, ValueError, "threshold is 0"),
        ({"threshold": None}, ValueError, "threshold is None"),
        ({"seed": "x"}, TypeError, "seed is 'x'"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' cannot run camera_motion"),
    ],
)
def test_errors_name_the_argument(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        camera_motion(**{"frames": U8, "flow": FLOW, **arguments})
