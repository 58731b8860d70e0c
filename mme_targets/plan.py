"""ClipPlan: which frames to decode, which pairs to flow, where each track starts (§3.3, App. A, B).

Made once a clip and read by the decoder, the flow, the tracker, HOG and the tests alike, so that no
index is computed twice. Only `frames` and `padded` depend on where the clip lies in the video: all
positions are the config's alone, so clips of one config stack into a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from .config import TargetConfig


@dataclass(frozen=True)
class ClipPlan:
    """Indices of one clip; tuples, so that a plan can be hashed and traced.

    Attributes
    ----------
    frames : (F,) raw indices into the video to decode, ascending; past the video's end the last
        one repeats.
    rgb : (T,) positions in `frames` of the model's input.
    pairs : (P, 2) positions in `frames` of each flow's first and second frame.
    steps : (S, L) the pair that step l of the tracks from tubelet s reads.
    hog : (S, L) position in `frames` that HOG reads at step l; at L = 0 (S, 1), the tubelet's
        middle frame (MaskFeat).
    padded : (S, L) True where a step reaches past the video's end.
    """

    frames: tuple[int, ...]
    rgb: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    steps: tuple[tuple[int, ...], ...]
    hog: tuple[tuple[int, ...], ...]
    padded: tuple[tuple[bool, ...], ...]

    @classmethod
    def build(
        cls, config: TargetConfig, start: int = 0, video_frames: int | None = None
    ) -> ClipPlan:
        """Plan the clip whose first frame is `start` of a video of `video_frames` (None: endless).

        Raises
        ------
        ValueError
            If the video is empty, or `start` lies outside it.
        """
        if start < 0:
            raise ValueError(f"start is {start}; must be 0 or more")
        if video_frames is not None and video_frames < 1:
            raise ValueError(f"video_frames is {video_frames}; a clip needs at least one frame")
        if video_frames is not None and start >= video_frames:
            raise ValueError(f"start is {start}, past the video's last frame {video_frames - 1}")
        base = _layout(config)
        raw = tuple(start + offset for offset in base.frames)
        if video_frames is None:
            return cls(raw, base.rgb, base.pairs, base.steps, base.hog, base.padded)
        last = video_frames - 1
        padded = tuple(tuple(raw[base.pairs[p][1]] > last for p in row) for row in base.steps)
        frames = tuple(min(index, last) for index in raw)
        return cls(frames, base.rgb, base.pairs, base.steps, base.hog, padded)

    @staticmethod
    def span(config: TargetConfig) -> int:
        """Raw frames from a clip's first to its last, both counted: what decoding passes over."""
        return _layout(config).frames[-1] + 1

    @property
    def starts(self) -> int:
        """S, the number of times at which tracks start: one a tubelet."""
        return len(self.hog)


@lru_cache(maxsize=256)
def _layout(config: TargetConfig) -> ClipPlan:
    """The plan of an endless video from frame 0."""
    sampled = [i * config.stride for i in range(config.frames)]
    first = sampled[:: config.tubelet]
    tracks = [[s + step * config.flow_stride for step in range(config.length + 1)] for s in first]
    wanted = sorted({*sampled, *(raw for track in tracks for raw in track)})
    position = {raw: i for i, raw in enumerate(wanted)}

    ends = sorted({edge for track in tracks for edge in pairwise(track)})
    pair = {edge: i for i, edge in enumerate(ends)}
    steps = tuple(tuple(pair[e] for e in pairwise(t)) for t in tracks)
    if config.length:
        hog = tuple(tuple(position[raw] for raw in track[:-1]) for track in tracks)
    else:
        hog = tuple((position[s + config.tubelet // 2 * config.stride],) for s in first)
    return ClipPlan(
        frames=tuple(wanted),
        rgb=tuple(position[raw] for raw in sampled),
        pairs=tuple((position[a], position[b]) for a, b in ends),
        steps=steps,
        hog=hog,
        padded=tuple((False,) * config.length for _ in first),
    )
