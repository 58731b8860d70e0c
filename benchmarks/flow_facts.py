"""What ratios do not tell of TV-L1: its accuracy on Middlebury, and where a CPU's time goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import mme_targets
from mme_targets import Tvl1Config
from mme_targets.backends import OPERATIONS

from . import inputs, peers
from .harness import Setting, textured_frames

PRESETS = {
    "default": Tvl1Config(),
    "`Tvl1Config.opencv_cuda()`": Tvl1Config.opencv_cuda(),
}
OPENCV = "OpenCV on a CPU, its defaults"
PHASES = ("iterations", "warps", "medians")
PAIRS = 8
Facts = dict[str, list[dict[str, Any]]]


def facts(setting: Setting) -> Facts:
    """Rows of both tables."""
    return {"accuracy": list(accuracy(setting)), "solver": list(solver(setting))}


def accuracy(setting: Setting) -> Iterator[dict[str, Any]]:
    """Mean end-point error on each Middlebury pair, px: each preset on each floor, and OpenCV's."""
    floors = [floor for floor in setting.floors if floor in OPERATIONS["tvl1"]]
    try:
        scenes = {name: inputs.middlebury(setting.data, name) for name in inputs.SCENES}
    except inputs.Missing as reason:
        setting.leave_out(f"accuracy on Middlebury: {reason}")
        return
    for floor in floors:
        for preset, config in PRESETS.items():
            error = {}
            for name, (frames, truth) in scenes.items():
                first, second = torch.from_numpy(frames).to(setting.device)
                flow = mme_targets.tvl1(first, second, config=config, backend=floor)
                error[name] = inputs.end_point_error(flow.cpu(), truth)
            yield {"of": f"ours, {preset}", "floor": floor, "error_px": error}
    error = {
        name: inputs.end_point_error(
            peers.opencv_flow(frames, [(0, 1)], "tvl1")[0].transpose(2, 0, 1), truth
        )
        for name, (frames, truth) in scenes.items()
    }
    yield {"of": OPENCV, "floor": "–", "error_px": error}


def solver(setting: Setting) -> Iterator[dict[str, Any]]:
    """Nanoseconds per pixel-iteration of the whole solve on one thread, and the shares of phases.

    Of some pairs of a clip, for the two best instruction sets: the median of some repetitions, in
    CPU time.
    """
    if "cpu" not in setting.floors:
        return
    from mme_targets import _cpu

    try:
        name = inputs.CLIPS[0]
        shown = {
            f"{name} at {setting.side}x{setting.side}": inputs.clip(
                setting.data, name, PAIRS + 1, setting.side
            ),
            f"{name} whole": inputs.clip(setting.data, name, PAIRS + 1, None),
        }
    except inputs.Missing as reason:
        setting.leave_out(
            f"TV-L1's time by phase on a real clip: {reason}; a texture stands for it"
        )
        large = textured_frames(1, 1, setting.side + PAIRS, setting.device)[0, 0]
        still = [large[:, t:, t:][:, : setting.side, : setting.side] for t in range(PAIRS + 1)]
        shown = {f"texture at {setting.side}x{setting.side}": torch.stack(still)}
    before, threads = _cpu.isa(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for isa in reversed(_cpu.isas()[-2:]):
            _cpu.use_isa(isa)
            for what, frames in shown.items():
                for preset, config in PRESETS.items():
                    times = _usual(frames.contiguous(), config, 3 if setting.quick else 9)
                    yield {"of": what, "preset": preset, "isa": isa, **times}
    finally:
        _cpu.use_isa(before)
        torch.set_num_threads(threads)


def _usual(frames: torch.Tensor, config: Tvl1Config, repetitions: int) -> dict[str, float]:
    from mme_targets import _cpu

    found: list[dict[str, float]] = []
    for _ in range(repetitions):
        _cpu.flow_times(True)
        mme_targets.optical_flow(frames, config=config, backend="cpu")
        times = _cpu.flow_times(False)
        whole = times["whole"]
        shares = {phase: times[phase] / whole for phase in PHASES}
        found.append({"ns": whole / times["work"], **shares})
    return sorted(found, key=lambda times: times["ns"])[repetitions // 2]
