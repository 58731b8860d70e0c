"""Compile the Triton kernels for GPUs that are not here: ``TRITON_INTERPRET=0 python FILE``.

Public functions are called on CPU tensors with their launches recorded, so what is compiled is what
they would launch, options included: all variants for sm_90, the first of each kernel for sm_80 and
sm_100. One JSON line a kernel and target: registers and local memory of a thread (spills and stack;
null without cuobjdump), and how many instructions it has that must not occur, fused multiply-adds
and approximate divisions or roots.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mme_targets import Tvl1Config
from mme_targets.backends.triton import (
    descriptors,
    histograms,
    median_filter,
    optical_flow,
    patch_norm,
    tracks,
    trajectories,
    tvl1,
    windows,
)

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


class Recorder:
    """Stands for a kernel: keeps what its launches are given."""

    def __init__(self, kernel: Any, calls: list[tuple[Any, ...]]) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **options: self.calls.append((self.kernel, args, options))


def record() -> list[Call]:
    """Every launch of the variants worth a look: the paper's setting and the options."""
    calls: list[tuple[Any, ...]] = []
    labels: list[str] = []
    norms = sys.modules[patch_norm.__module__]
    for module in (trajectories, descriptors, norms, optical_flow):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            setattr(module, name, Recorder(getattr(module, name), calls))
    for label, call in variants(torch.zeros((1, 4), dtype=torch.int32)):
        call()
        labels += [label] * (len(calls) - len(labels))
    return [(label, *call) for label, call in zip(labels, calls, strict=True)]


def variants(index: torch.Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls on small tensors; sizes are arguments, not constants, but for the N of patch norm."""
    seeds, points = torch.zeros(1, 4, 2), torch.zeros(1, 4, 5, 2)
    for dtype in (torch.float32, torch.float16):
        flow = torch.zeros(1, 4, 2, 16, 16, dtype=dtype)
        for sampling in ("nearest", "bilinear"):
            yield (
                f"{dtype} {sampling}",
                lambda flow=flow, sampling=sampling: tracks(
                    flow, seeds, index, index, bound=20.0, median=3, sampling=sampling
                ),
            )
    yield "", lambda: median_filter(torch.zeros(2, 16, 16), 3)
    frames = torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)
    vectors = torch.zeros(4, 2, 16, 16)
    hog = {"cell": 8, "pool": "sum", "padding": "reflect", "l2": False}
    for binning, bins in (("hard", 9), ("linear", 9), ("hard", 36)):
        options = {**hog, "binning": binning, "bins": bins}
        for images, kind, last in (
            (frames[0], "bytes", True),
            (vectors, "HOF", False),
            (vectors, "MBH", True),
        )[: 1 if bins == 36 else 3]:
            yield (
                f"{kind} {binning} {bins} {'cells last' if last else ''}",
                lambda images=images, kind=kind, last=last, options=options: histograms(
                    images, vectors=kind == "HOF", cells_last=last, **options
                ),
            )
        yield (
            f"bytes {binning} {bins}",
            lambda options=options: windows(frames, points, index, index, **options),
        )
    for tracks_, width in ((4, 12), (4, 162), (16, 432)):
        values = torch.zeros(3, tracks_, width)
        for mode in ("patch", "coordinate"):
            yield (
                f"{tracks_} x {width}",
                lambda values=values, mode=mode: patch_norm(values, mode=mode, eps=1e-6),
            )
    for config in (
        Tvl1Config(warps=1),
        Tvl1Config(warps=1, median=5, gamma=0.1),
        Tvl1Config.opencv_cuda().replace(warps=1),
    ):
        yield (
            f"median {config.median}, gamma {config.gamma}, {config.outside}",
            lambda config=config: tvl1(frames[0], index.view(2, 2), config),
        )


def compiled(call: Call, arch: int) -> dict[str, object]:
    """Compile one launch for sm_`arch` and read what came out."""
    label, kernel, args, options = call
    constants = {k: v for k, v in options.items() if k in kernel.arg_names}
    launch = {k: v for k, v in options.items() if k not in constants}
    signature, aligned = {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            aligned[(i,)] = [["tt.divisibility", 16]]  # as torch allocates
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(
        kernel, signature | dict.fromkeys(constants, "constexpr"), constants, aligned
    )
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch)
    ptx = result.asm["ptx"]
    registers, spills = resources(result.asm["cubin"])
    return {
        "kernel": kernel.__name__,
        "variant": label,
        "arch": arch,
        "registers": registers,
        "spills": spills,
        "fused": len(re.findall(r"\b(?:fma|mad)\.(?:rn\.)?f32", ptx)),
        "approximate": len(re.findall(r"\b(?:div\.full|\w+\.approx)", ptx)),
    }


def resources(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers, and bytes of local memory, that a thread uses."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return None, None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert found, usage
    return int(found[1]), int(found[2]) + int(found[3])


if __name__ == "__main__":
    launches = record()
    first = {launch[1].__name__: launch for launch in reversed(launches)}
    for target, chosen in ((90, launches), (80, first.values()), (100, first.values())):
        for launch in chosen:
            print(json.dumps(compiled(launch, target)), flush=True)
