"""Camera motion between two frames and its removal (Appendix A), by OpenCV and NumPy on the host.

As improved Dense Trajectories and the tool chain of Appendix A do it:

1. Interest points of both frames, matched where each is the other's nearest inside a ± window, and
   corners of the first frame carried to the second by the flow.
2. A homography by RANSAC if there are more than 50 matches, kept if more than 25 agree with it;
   otherwise the identity. A thing full of texture may have more matches than a background out of
   focus; so several are found, and that one is taken by which more of the frame's area looks alike.
3. The second frame is warped back by it, and flow is computed again, from the first frame to the
   warped second. Where no homography was found there is nothing to remove and the flow stays.

Points are (x, y) px, pixel centres are integers; a homography H maps a point of the first frame to
the second.

Interest points are SURF (`interest_points.py` beside this file; OpenCV's packages lack it), or
OpenCV's SIFT or ORB. Three slips of the tool chain are not copied: both frames' points are matched
for every pair, corners are taken on the first frame, and both components of a carried corner are
read at the same pixel. A homography that folds the frame or scales a part of it out of reason is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...flow_config import SurfConfig
from . import interest_points
from .optical_flow import (
    Flow,
    Image,
    Pairs,
    Progress,
    grey_frames,
    in_parallel,
    keys_of,
    opencv,
    rounded,
)

Points = NDArray[np.float64]
Solve = Callable[[Sequence[tuple[Image, Image]], Progress | None], Flow]
"""Pairs of grey images [H, W] → flow [N, 2, H, W]; progress is called with 1 for each."""

ENOUGH_MATCHES = 50
"""RANSAC runs on more matches than these."""
ENOUGH_INLIERS = 25
"""A homography is kept with more inliers than these."""
SCALES = (1.0, 0.5)
"""Hypotheses compete at so many times RANSAC's threshold; the best of each is a candidate."""
ROUNDS = 2
"""More candidates are found among the matches that the last one leaves."""
LEFT = 1.5
"""It leaves the matches that are farther from it than so many thresholds."""
POLISH, STILL = (0.7, 0.5, 0.35, 0.25, 0.25), 0.4
"""Fitted again to matches within so many thresholds, while they are so many of those within one."""
STEP, SAMPLES, NOISE = 2, 8, 1.0
"""To decide, pixels are compared at this step, px, in squares of so many by so many; differences
that deviate by fewer grey levels say little."""
CORNERS = (1000, 0.001, 3)
"""Corners at most, quality relative to the best, and distance between two, px."""
ORB = {"nfeatures": 1000, "edgeThreshold": 15}
"""ORB keeps the best so many; SIFT keeps all. OpenCV's margin of 31 px, at every level of the
pyramid, would leave the outer part of a small frame without points; 15 is a patch's half."""
BORDER = 5
"""Pixels that would be read this near to the second frame's border, px, are not."""
SMALLEST_SIDE = 32
"""px; frames smaller than the detectors' own windows have no interest points."""
LARGEST_ZOOM = 4.0
"""A homography may not scale any part of the frame by more than this, or by less than 1 over it."""


class Features(NamedTuple):
    """Interest points [N, 2] and their descriptors [N, D], of whole numbers."""

    points: Points
    descriptors: NDArray[np.float32]


class Settings(NamedTuple):
    """Detector ("surf", "sift", "orb", "corners"), ± window of its matches (px, or None), more.

    `threshold` is RANSAC's, px; its random numbers start from `seed` for every pair anew.
    """

    detector: str
    window: float | None
    threshold: float
    seed: int
    surf: SurfConfig


class Estimate(NamedTuple):
    """One pair's homography [3, 3], the matches that agree with it, and whether it is kept."""

    homography: NDArray[np.float64]
    inliers: int
    ok: bool


class Motion(NamedTuple):
    """Homographies [B, P, 3, 3], inliers [B, P] and ok [B, P] of all pairs."""

    homographies: NDArray[np.float64]
    inliers: NDArray[np.int64]
    ok: NDArray[np.bool_]


def features(image: Image, detector: str, surf: SurfConfig) -> Features:
    """Interest points of a grey image [H, W]; OpenCV's are ordered by place, SURF's by strength."""
    none = Features(np.zeros((0, 2)), np.zeros((0, 1), np.float32))
    if detector == "surf":
        found = interest_points.surf(rounded(image), surf)
        return Features(found.points.astype(np.float64), found.descriptors)
    if detector == "corners" or min(image.shape) < SMALLEST_SIDE:
        return none
    cv2 = opencv()
    finder = cv2.SIFT_create() if detector == "sift" else cv2.ORB_create(**ORB)
    keypoints, descriptors = finder.detectAndCompute(rounded(image), None)
    if not keypoints:
        return none
    if descriptors.dtype == np.uint8:  # ORB: Hamming distance is squared distance between bits
        descriptors = np.unpackbits(descriptors, axis=1)
    points = np.array([k.pt for k in keypoints], np.float64)
    sizes = np.array([(k.size, k.angle) for k in keypoints], np.float64)
    order = np.lexsort((sizes[:, 1], sizes[:, 0], points[:, 0], points[:, 1]))
    return Features(points[order], descriptors[order].astype(np.float32))


def match(first: Features, second: Features, window: float | None) -> tuple[Points, Points]:
    """Points [M, 2] of both frames that are each other's nearest inside ±`window` px.

    Descriptors are whole numbers small enough for float32, so that the distances are exact and the
    order in which a library adds them does not matter.
    """
    count, others = len(first.points), len(second.points)
    if count == 0 or others == 0:
        return np.zeros((0, 2)), np.zeros((0, 2))
    nearest = np.zeros(count, np.int64)
    distance = np.full(count, np.inf, np.float32)
    nearest_back = np.zeros(others, np.int64)
    distance_back = np.full(others, np.inf, np.float32)
    norms = np.square(second.descriptors).sum(axis=1)
    rows = 1024  # at a time, so that memory grows with the points and not with their square
    for at in range(0, count, rows):
        part = first.descriptors[at : at + rows]
        far = np.square(part).sum(axis=1)[:, None] + norms - 2 * (part @ second.descriptors.T)
        if window is not None:
            apart = np.abs(first.points[at : at + rows, None] - second.points).max(axis=2)
            far[apart > window] = np.inf
        nearest[at : at + rows] = far.argmin(axis=1)
        distance[at : at + rows] = far.min(axis=1)
        best, row = far.min(axis=0), far.argmin(axis=0)
        closer = best < distance_back
        nearest_back[closer], distance_back[closer] = at + row[closer], best[closer]
    mutual = np.isfinite(distance) & (nearest_back[nearest] == np.arange(count))
    return first.points[mutual], second.points[nearest[mutual]]


def carried_corners(first: Image, flow: Flow) -> tuple[Points, Points]:
    """Corners [M, 2] of the first frame, and where the flow [2, H, W] carries them.

    Those that leave the frame, or whose flow is not finite, are left out.
    """
    corners = opencv().goodFeaturesToTrack(rounded(first), *CORNERS)
    if corners is None:
        return np.zeros((0, 2)), np.zeros((0, 2))
    source = corners.reshape(-1, 2).astype(np.float64)
    x, y = np.rint(source).astype(np.int64).T
    target = source + flow[:, y, x].T.astype(np.float64)
    last = np.array(first.shape[::-1], np.float64) - 1
    with np.errstate(invalid="ignore"):
        inside = ((target >= 0) & (target <= last)).all(axis=1)  # False for NaN
    return source[inside], target[inside]


def estimate(
    first: Image,
    second: Image,
    flow: Flow,
    found: tuple[Features, Features],
    settings: Settings,
) -> Estimate:
    """Camera motion of one pair, from the interest points `found` and the corners together."""
    matched, carried = match(*found, settings.window), carried_corners(first, flow)
    source, target = (np.concatenate(both) for both in zip(matched, carried, strict=True))
    motion = judged(first, second, candidates(source, target, first.shape, settings))
    if motion.ok and np.array_equal(first, second):
        return motion._replace(homography=np.eye(3))  # found to within rounding, known exactly
    return motion


def candidates(
    source: Points, target: Points, shape: tuple[int, ...], settings: Settings
) -> list[Estimate]:
    """Homographies of matches [M, 2], those of each round found in what the one before leaves."""
    models, left, least = [], np.full(len(source), True), ENOUGH_MATCHES
    for _ in range(ROUNDS):
        for scale in SCALES:
            found = ransac(source[left], target[left], shape, settings, scale, least)
            error = _errors(found.homography, source, target)
            if found.ok:  # of those left, and so of all
                found = found._replace(inliers=int((error <= settings.threshold).sum()))
            models.append(found)
        left, least = left & found.ok & (error > LEFT * settings.threshold), ENOUGH_INLIERS
    return models


def ransac(
    source: Points,
    target: Points,
    shape: tuple[int, ...],
    settings: Settings,
    scale: float = 1.0,
    least: int = ENOUGH_MATCHES,
) -> Estimate:
    """The homography that most matches [M, 2] agree with; the identity from `least` or fewer."""
    if len(source) <= least:
        return Estimate(np.eye(3), 0, False)
    cv2 = opencv()
    options = cv2.UsacParams()  # its random numbers start from `seed`, and are nobody else's
    options.randomGeneratorState = settings.seed
    options.threshold = settings.threshold * scale
    options.confidence = 0.999
    options.maxIterations = 5000
    try:
        homography, _ = cv2.findHomography(source, target, options)
    except cv2.error:  # raised, rather than none returned, for some degenerate sets of points
        homography = None
    if homography is None or not plausible(homography, shape):
        return Estimate(np.eye(3), 0, False)
    homography = np.asarray(homography, np.float64) / homography[2, 2]
    error = _errors(homography, source, target)
    for factor in POLISH:
        near, within = (error <= k * settings.threshold for k in (factor, 1))
        if near.sum() < max(STILL * within.sum(), ENOUGH_INLIERS):
            break
        finer, _ = cv2.findHomography(source[near], target[near], 0)
        if finer is None or not plausible(finer, shape):
            break
        homography = np.asarray(finer, np.float64) / finer[2, 2]
        error = _errors(homography, source, target)
    inliers = int((error <= settings.threshold).sum())
    if inliers <= ENOUGH_INLIERS:
        return Estimate(np.eye(3), inliers, False)
    return Estimate(homography, inliers, True)


def _errors(homography: NDArray[np.float64], source: Points, target: Points) -> Points:
    """How far a homography takes points [M, 2] from others, px."""
    errors: Points = np.linalg.norm(apply(homography, source) - target, axis=1)
    return errors


def judged(first: Image, second: Image, models: list[Estimate]) -> Estimate:
    """The model by which more of the frame looks alike, the earlier of equal ones."""
    kept = [m for m in models if m.ok]
    if not kept:
        return models[0]
    return kept[int(explained(first, second, [m.homography for m in kept]).argmax())]


def explained(
    first: Image, second: Image, homographies: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Scores [M] of homographies: how much of the frame looks alike by each, and how far spread.

    In every square of the first frame [H, W] the difference to the second [H, W], seen by each
    homography, has a standard deviation s over what all of them see; the homography's share is
    ((least s + NOISE) / (s + NOISE))², so that squares count alike whatever their texture, and flat
    ones for all. The mean difference, which exposure changes, does not count. Its score is the sum
    of its shares times the root of the area that they spread over (the fourth root of the
    determinant of their covariance): the background surrounds a thing, however large.
    """
    y, x = np.mgrid[1 : first.shape[0] : STEP, 1 : first.shape[1] : STEP]
    seen = [looked_up(second, apply(h, np.stack([x, y], -1) * 1.0)) for h in homographies]
    off = np.stack([values for values, _ in seen]) - first[y, x]
    there = np.logical_and.reduce([inside for _, inside in seen])
    shares, places = [np.zeros(len(seen))], [(0, 0)]
    for top in range(0, y.shape[0], SAMPLES):
        for left in range(0, y.shape[1], SAMPLES):
            rows, columns = slice(top, top + SAMPLES), slice(left, left + SAMPLES)
            inside = there[rows, columns]
            if inside.sum() > SAMPLES**2 / 4:
                deviation = off[:, rows, columns][:, inside].std(axis=1)
                shares.append(((deviation.min() + NOISE) / (deviation + NOISE)) ** 2)
                places.append((top // SAMPLES, left // SAMPLES))
    share, place = np.array(shares), np.array(places, float)
    total = share.sum(axis=0)
    apart = place[:, None] - (share.T @ place) / np.maximum(total, 1e-9)[:, None]
    covariance = np.einsum("nm,nmi,nmj->mij", share, apart, apart)
    area = np.linalg.det(covariance / np.maximum(total, 1e-9)[:, None, None])
    scores: NDArray[np.float64] = total * np.maximum(area, 0) ** 0.25
    return scores


def apply(homography: NDArray[np.float64], points: Points) -> Points:
    """Where a homography takes points [..., 2]."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        moved = points @ homography[:, :2].T + homography[:, 2]
        result: Points = moved[..., :2] / moved[..., 2:]
    return result


def plausible(homography: NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    """Whether a homography is finite and neither folds nor crushes a frame of shape (H, W).

    At a point whose third coordinate is w, it scales areas by det(H) / w³ (with H's last entry 1).
    w is linear, so its extremes over the frame lie at the corners.
    """
    if not np.isfinite(homography).all() or abs(homography[2, 2]) < 1e-12:
        return False
    scaled = homography / homography[2, 2]
    right, bottom = shape[1] - 1.0, shape[0] - 1.0
    corners = np.array([[0, 0, 1], [right, 0, 1], [0, bottom, 1], [right, bottom, 1]])
    w = corners @ scaled[2]
    if not (w > 1e-6).all():
        return False
    area = np.linalg.det(scaled) / w**3
    return bool((area >= LARGEST_ZOOM**-2).all() and (area <= LARGEST_ZOOM**2).all())


def warp_second(first: Image, second: Image, homography: NDArray[np.float64]) -> Flow:
    """The second frame as if the camera had stood still, float32: second(H·x) at every pixel x.

    `first` and `second` are [H, W] or [H, W, C]. Read bilinearly; a pixel that would be read within
    `BORDER` px of the second frame's border, or outside it, takes the first frame's value, so that
    it shows no motion.
    """
    height, width = first.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)
    seen, inside = looked_up(second, apply(homography, grid))
    warped = first.astype(np.float32)
    warped[inside] = seen[inside]
    return warped


def looked_up(image: Image, points: Points) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """An image [H, W] or [H, W, C] read bilinearly at points [..., 2], zero where not inside.

    Inside is farther than `BORDER` px from its border.
    """
    height, width = image.shape[:2]
    x, y = np.moveaxis(points, -1, 0)
    inside = (x >= BORDER) & (x <= width - 1 - BORDER) & (y >= BORDER) & (y <= height - 1 - BORDER)
    x, y = x[inside], y[inside]
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = x - left, y - top
    if image.ndim == 3:
        fx, fy = fx[:, None], fy[:, None]
    pixels = image.astype(np.float64)
    above = (1 - fx) * pixels[top, left] + fx * pixels[top, left + 1]
    below = (1 - fx) * pixels[top + 1, left] + fx * pixels[top + 1, left + 1]
    seen = np.zeros((*inside.shape, *image.shape[2:]))
    seen[inside] = (1 - fy) * above + fy * below
    return seen, inside


def camera_motion(frames: Image, flow: Flow, pairs: Pairs, settings: Settings) -> Motion:
    """Camera motion of each pair: frames [B, T, 3, H, W], their unclipped flow [B, P, 2, H, W]."""
    return _motion(grey_frames(frames, pairs), flow, pairs, settings)


def _motion(
    greys: dict[tuple[int, int], Image], flow: Flow, pairs: Pairs, settings: Settings
) -> Motion:
    """The same of grey frames [H, W] by (clip, frame)."""
    detector, surf = settings.detector, settings.surf
    found = in_parallel(lambda key: features(greys[key], detector, surf), list(greys))

    def solve(key: tuple[int, int]) -> Estimate:
        one, two = ((key[0], t) for t in pairs[key[1]])
        return estimate(greys[one], greys[two], flow[key], (found[one], found[two]), settings)

    count = flow.shape[:2]
    motion = Motion(np.empty((*count, 3, 3)), np.empty(count, np.int64), np.empty(count, np.bool_))
    for key, one in in_parallel(solve, keys_of(flow, pairs)).items():
        motion.homographies[key], motion.inliers[key], motion.ok[key] = one
    return motion


def flow_and_camera(
    frames: Image,
    pairs: Pairs,
    settings: Settings,
    *,
    solve: Solve,
    progress: Progress | None = None,
) -> tuple[Flow, Motion]:
    """Flow with camera motion removed [B, P, 2, H, W], px, not clipped, and that motion.

    `solve` computes the flow of pairs of grey images, all at once.
    """
    greys = grey_frames(frames, pairs)
    keys = keys_of(frames, pairs)
    images = {(b, p): (greys[b, pairs[p][0]], greys[b, pairs[p][1]]) for b, p in keys}
    flow = solve(list(images.values()), None)
    flow = flow.reshape(len(frames), len(pairs), 2, *frames.shape[-2:])
    motion = _motion(greys, flow, pairs, settings)
    again = [key for key in keys if motion.ok[key]]
    if progress is not None:
        for _ in range(len(keys) - len(again)):
            progress(1)
    still = in_parallel(lambda key: warp_second(*images[key], motion.homographies[key]), again)
    moved = [(images[key][0], still[key]) for key in again]
    for key, field in zip(again, solve(moved, progress), strict=True):
        flow[key] = field
    return flow, motion
