"""HOG along tracks: the cell that holds a point, the window around it, on every floor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import assert_close
from floors import (
    ALL,
    FAST,
    HISTOGRAMS,
    grid_flow,
    pixels,
    run,
    running,
    tolerance,
)

from mme_targets import hog, trajectories, trajectory_hog
from mme_targets.ops.descriptors import HistogramOptions, hog_along

# --- along tracks --------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", ALL)
@pytest.mark.parametrize("cell", [8, 5])
def test_cell_holds_the_rounded_point(floor: str, cell: int, rng) -> None:
    """Every point by hand: rounded (halves up), brought inside, divided by the cell."""
    height, width = 23, 32  # no whole number of cells: 7 px are left over below at 8, 3 and 2 at 5
    frames = pixels(rng, 2, 3, 3, height, width)
    maps = run(hog, frames, floor=floor, cell=cell)
    rows, columns = maps.shape[-2:]
    points = torch.from_numpy(rng.uniform(-9, 42, (2, 2, 3, 4, 4, 2)).astype(np.float32))
    points[0, 0, 0, 0, 0] = torch.tensor([7.5, 7.4375])
    points[0, 0, 0, 1, 0] = torch.tensor([31.0, 22])
    points[0, 0, 0, 2, 0] = torch.tensor([4.5, 14.5])  # to 5 and 15, which begin cells of 5
    times = torch.tensor([[0, 2, 1], [2, 2, 0]])
    got = run(trajectory_hog, frames, points, times, floor=floor, cell=cell)
    assert got.shape == (2, 2, 3, 4, 3, 3, 9)
    for b, s, i, j, step in np.ndindex(2, 2, 3, 4, 3):
        x, y = points[b, s, i, j, step].double().add(0.5).floor().tolist()
        column = min(int(min(max(x, 0), width - 1)) // cell, columns - 1)
        row = min(int(min(max(y, 0), height - 1)) // cell, rows - 1)
        expected = maps[b, times[s, step], :, :, row, column]
        assert torch.equal(got[b, s, i, j, step], expected)


@pytest.mark.parametrize("floor", ALL)
def test_window_is_the_cell_of_a_shifted_frame(floor: str, rng) -> None:
    """Around (x, y) lie the columns x - 4 ... x + 3: a cell, once the frame is cropped to fit."""
    frames = pixels(rng, 1, 3, 40, 48)
    centres = torch.tensor([[[4.0, 4], [12, 20]], [[44, 36], [28, 12]]])[None, :, :, None]
    times = torch.tensor([[0]])
    maps = run(hog, frames, floor=floor)
    got = run(trajectory_hog, frames, centres, times, floor=floor, sampling="window")[0, :, :, 0]
    for i, j in np.ndindex(2, 2):
        x, y = (int(v) // 8 for v in centres[0, i, j, 0])
        assert torch.equal(got[i, j], maps[0, :, :, y, x])
    for x, y in ((13, 17), (20, 27), (35, 12)):
        place = torch.tensor([x - 0.5, y + 0.4375]).view(1, 1, 1, 1, 2)
        crop = frames[..., y - 12 : y + 12, x - 12 : x + 12].contiguous()
        expected = run(hog, crop, floor=floor)[0, :, :, 1, 1]
        assert torch.equal(
            run(trajectory_hog, frames, place, times, floor=floor, sampling="window")[0, 0, 0, 0],
            expected,
        )
    # A window that would reach outside is shifted until it does not.
    outside = torch.tensor([[-30.0, 2], [1e6, 20], [47, -1e9], [3.4, 99]]).view(1, 1, 4, 1, 2)
    shifted = torch.tensor([[4.0, 4], [44, 20], [44, 4], [4, 36]]).view(1, 1, 4, 1, 2)
    pair = [
        run(trajectory_hog, frames, p, times, floor=floor, sampling="window")
        for p in (outside, shifted)
    ]
    assert torch.equal(*pair)


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("sampling", ["cell", "window"])
@pytest.mark.parametrize("options", HISTOGRAMS)
def test_trajectory_hog_agrees(floor: str, sampling: str, options: dict, rng) -> None:
    frames = pixels(rng, 2, 5, 3, 19, 26)
    flow = grid_flow(rng, 2, 4, 2, 19, 26, reach=6)
    tracks = trajectories(flow, length=4, grid=5)
    times = torch.tensor([[0, 1, 2, 3]])
    what = tolerance(options)
    for data in (frames, frames.float(), frames[:0]):
        points = tracks.points[: len(data)]
        got, expected = (
            run(trajectory_hog, data, points, times, floor=f, sampling=sampling, **options)
            for f in (floor, "reference")
        )
        assert_close(got, expected, what)
    alone = run(
        trajectory_hog,
        frames[1],
        tracks.points[1],
        times,
        floor=floor,
        sampling=sampling,
        **options,
    )
    both = run(
        trajectory_hog, frames, tracks.points, times, floor=floor, sampling=sampling, **options
    )
    assert torch.equal(alone, both[1])


@pytest.mark.parametrize("floor", FAST)
@pytest.mark.parametrize("sampling", ["cell", "window"])
def test_tracks_of_each_clip_alone(floor: str, sampling: str, rng) -> None:
    """Below the door: rows of `times` chosen for each clip's tracks, in any order."""
    frames = pixels(rng, 3, 4, 2, 20, 20)
    points = torch.from_numpy(rng.uniform(0, 20, (3, 7, 3, 2)).astype(np.float32))
    times = torch.tensor([[0, 1], [3, 2], [2, 2]], dtype=torch.int32)
    for clips in (1, 3):
        starts = torch.from_numpy(rng.integers(0, 3, (clips, 7), dtype=np.int32))
        results = []
        for name in ("reference", floor):
            with running(name) as backend:
                args = (frames, points, starts, times, sampling, HistogramOptions(), backend)
                results.append(hog_along(*args))
        assert_close(results[1], results[0], "hog")


# --- bad input -----------------------------------------------------------------------------------

FRAMES = torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8)
POINTS = torch.zeros(1, 1, 2, 2, 3, 2)


@pytest.mark.parametrize(
    ("points", "times", "options", "error", "message"),
    [
        (POINTS[0], [[0, 1]], {}, ValueError, r"points has shape \[1, 2, 2, 3, 2\]; must be \["),
        (POINTS[..., :1], [[0, 1]], {}, ValueError, r"points has shape \[1, 1, 2, 2, 3, 1\]"),
        (POINTS.double(), [[0, 1]], {}, TypeError, "points has dtype float64; must be float32"),
        (POINTS, [[0, 2]], {}, ValueError, "times spans 0 to 2; must .* the frames, 0 to 1"),
        (POINTS, [[-1, 0]], {}, ValueError, "times spans -1 to 0"),
        (POINTS, [0, 1], {}, ValueError, r"times has shape \[2\]; must be \[S, L\] with S = 1"),
        (POINTS, [[0], [1]], {}, ValueError, r"times has shape \[2, 1\]; must .* with S = 1"),
        (POINTS, [[0, 1, 0, 1]], {}, ValueError, r"times has shape \[1, 4\].* L up to 3"),
        (POINTS, [[0.0, 1]], {}, TypeError, "times has dtype float64; must be int32 or int64"),
        (POINTS, [[0, 1]], {"sampling": "near"}, ValueError, "sampling is 'near'; .*'cell'"),
        (POINTS.to("meta"), [[0, 1]], {}, ValueError, "points is on meta, frames on cpu"),
        (POINTS, [[0, 1]], {"cell": 20}, ValueError, "frames is 16x16 px, which holds no cell"),
    ],
)  # fmt: skip
def test_bad_input_along_tracks_is_named(points, times, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        trajectory_hog(FRAMES, points, times, **options)
