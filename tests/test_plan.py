"""ClipPlan: the design's counts, and every index against its definition."""

from __future__ import annotations

import pytest
from floors import PROPERTY
from hypothesis import given
from hypothesis import strategies as st

from mme_targets import ClipPlan, TargetConfig


@pytest.mark.parametrize(
    ("stride", "span", "frames", "pairs"),
    [(4, 63, 56, 48), (3, 49, 49, 48), (2, 35, 35, 34), (1, 21, 21, 20)],
)
def test_counts(stride: int, span: int, frames: int, pairs: int) -> None:
    """L = 6, 16 frames, tubelets of 2. At stride 4 eight tubelets start 8 apart and reach 6 on."""
    config = TargetConfig(stride=stride)
    plan = ClipPlan.build(config)
    assert len(plan.frames) == frames
    assert len(plan.pairs) == pairs
    assert ClipPlan.span(config) == span
    assert plan.frames[-1] == span - 1
    assert (len(plan.rgb), len(plan.steps), plan.starts) == (16, 8, 8)


def test_stride_4_by_hand() -> None:
    plan = ClipPlan.build(TargetConfig(), start=100)
    assert plan.frames[:10] == (100, 101, 102, 103, 104, 105, 106, 108, 109, 110)
    assert plan.rgb[:4] == (0, 4, 7, 11)  # raw 100, 104, 108, 112
    assert plan.pairs[:7] == ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (7, 8))
    assert plan.steps[:2] == ((0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11))
    assert plan.hog[:2] == ((0, 1, 2, 3, 4, 5), (7, 8, 9, 10, 11, 12))


def test_overlapping_tracks_share_their_pairs() -> None:
    """Stride 1: tubelets start 2 apart and tracks reach 6 on."""
    plan = ClipPlan.build(TargetConfig(stride=1))
    assert plan.steps == tuple(tuple(range(s, s + 6)) for s in range(0, 16, 2))
    assert plan.pairs == tuple((i, i + 1) for i in range(20))


def test_without_interpolation_tracks_run_on_over_sampled_frames() -> None:
    config = TargetConfig(stride=4, interpolate=False)
    plan = ClipPlan.build(config)
    assert plan.frames == tuple(range(0, 84, 4))  # the last tubelet starts at 56 and goes 24 on
    assert plan.pairs == tuple((i, i + 1) for i in range(20))
    assert plan.steps[-1] == (14, 15, 16, 17, 18, 19)
    assert plan.rgb == tuple(range(16))
    assert ClipPlan.span(config) == 81


def test_length_0_reads_the_tubelets_middle_frame() -> None:
    plan = ClipPlan.build(TargetConfig(length=0))
    assert plan.frames == tuple(range(0, 64, 4))
    assert plan.pairs == ()
    assert plan.steps == plan.padded == ((),) * 8
    assert plan.hog == tuple((i,) for i in range(1, 16, 2))  # MaskFeat: frame t // 2 of each
    assert plan.starts == 8


def test_a_short_video_repeats_its_last_frame() -> None:
    """20 frames: the tubelets of raw 0 and 8 end in time, that of 16 after three steps."""
    plan = ClipPlan.build(TargetConfig(), video_frames=20)
    assert len(plan.frames) == 56
    assert plan.frames[:17] == (*range(7), *range(8, 15), 16, 17, 18)
    assert set(plan.frames[17:]) == {19}
    assert plan.padded[:2] == ((False,) * 6,) * 2
    assert plan.padded[2] == (False, False, False, True, True, True)
    assert plan.padded[3:] == ((True,) * 6,) * 5
    one = ClipPlan.build(TargetConfig(), video_frames=1)
    assert set(one.frames) == {0}
    assert all(map(all, one.padded))
    exact = ClipPlan.build(TargetConfig(), start=7, video_frames=70)
    assert not any(map(any, exact.padded))
    assert exact.frames == ClipPlan.build(TargetConfig(), start=7).frames
    short = ClipPlan.build(TargetConfig(), start=8, video_frames=70)
    assert [sum(row) for row in short.padded] == [0] * 7 + [1]


@PROPERTY
@given(st.data())
def test_every_index_by_its_definition(data: st.DataObject) -> None:
    draw = data.draw
    tubelet = draw(st.integers(1, 4))
    config = TargetConfig(
        tubelet=tubelet,
        frames=tubelet * draw(st.integers(1, 8)),
        stride=draw(st.integers(1, 9)),
        length=draw(st.integers(0, 32)),
        interpolate=draw(st.booleans()),
    )
    start = draw(st.integers(0, 50))
    video = draw(st.none() | st.integers(start + 1, start + 120))
    plan = ClipPlan.build(config, start, video)
    last = float("inf") if video is None else video - 1
    hop = config.flow_stride
    starts = range(config.frames // tubelet)
    endless = ClipPlan.build(config, start).frames

    assert list(plan.frames) == [min(raw, last) for raw in endless]
    assert list(endless) == sorted(set(endless))
    assert [endless[i] for i in plan.rgb] == [
        start + i * config.stride for i in range(config.frames)
    ]
    used = set(plan.rgb)
    assert len(plan.steps) == len(plan.hog) == len(plan.padded) == plan.starts == len(starts)
    for s in starts:
        first = start + s * tubelet * config.stride
        assert len(plan.steps[s]) == len(plan.padded[s]) == config.length
        for step, pair in enumerate(plan.steps[s]):
            a, b = plan.pairs[pair]
            assert (endless[a], endless[b]) == (first + step * hop, first + (step + 1) * hop)
            assert plan.hog[s][step] == a  # HOG at step l reads the frame that p_l lies in
            assert plan.padded[s][step] == (first + (step + 1) * hop > last)
            used |= {a, b}
        if not config.length:
            assert [endless[i] for i in plan.hog[s]] == [first + tubelet // 2 * config.stride]
            used |= set(plan.hog[s])
    assert used == set(range(len(endless)))  # nothing is decoded in vain,
    assert len(set(plan.pairs)) == len(plan.pairs)  # no pair is flowed twice,
    assert {p for row in plan.steps for p in row} == set(range(len(plan.pairs)))  # or in vain
    assert ClipPlan.span(config) == endless[-1] - start + 1


def test_positions_are_the_configs_alone() -> None:
    """So that clips of one config stack into a batch wherever they lie."""
    plans = [ClipPlan.build(TargetConfig(), s, n) for s, n in ((0, None), (31, 400), (5, 9))]
    for name in ("rgb", "pairs", "steps", "hog"):
        assert len({getattr(plan, name) for plan in plans}) == 1
    assert hash(plans[0]) == hash(ClipPlan.build(TargetConfig()))


@pytest.mark.parametrize(
    ("start", "video", "message"),
    [
        (-1, None, "start is -1; must be 0 or more"),
        (0, 0, "video_frames is 0; a clip needs at least one frame"),
        (9, 9, "start is 9, past the video's last frame 8"),
    ],
)
def test_bad_input_is_named(start: int, video: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipPlan.build(TargetConfig(), start, video)
