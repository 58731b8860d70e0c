"""Can the model learn a few real clips by heart? `python -m benchmarks.overfit`.

Two clips of each of four real videos (`../shared/data/videos` beside the checkout), their crops and
masks fixed, are shown again and again to the model of a recipe. Printed is the loss as a share
of that of predicting zero.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
VIDEOS = ("kinetics_340x256.mp4", "kinetics_426x240.mkv", "ucf_320x240.avi", "bear_854x480.mp4")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and print the loss every 50 steps."""
    from mme_model.data import ClipDataset, collate
    from mme_model.inline import TargetMaker
    from mme_model.mme import motion_loss, zero_loss
    from mme_model.mvit import build_model
    from mme_model.recipe import load_recipe
    from mme_model.sources import VideoSource, read_folder

    parser = argparse.ArgumentParser(prog="python -m benchmarks.overfit", description=__doc__)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--videos", type=Path, default=ROOT.parent / "shared" / "data" / "videos")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    recipe = load_recipe(given.recipe)
    listed = read_folder(given.videos)
    few = tuple(entry for entry in listed.entries if Path(entry.path).name in VIDEOS)
    if len(few) < len(VIDEOS):
        parser.error(f"--videos is {given.videos}; must hold {', '.join(VIDEOS)}")
    clips = ClipDataset(recipe, VideoSource(listed._replace(entries=few)))
    keys = [(epoch, video) for video in range(len(few)) for epoch in (0, 1)]
    batch = collate([clips[key] for key in keys], TargetMaker(recipe.targets))
    assert batch.targets is not None
    zero = float(zero_loss(batch.targets, recipe.loss)[0])

    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe.model, recipe.targets)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, betas=(0.9, 0.95))
    began = time.perf_counter()
    for step in range(given.steps):
        rate = min(1, (step + 1) / 30) * (1 + math.cos(math.pi * step / given.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = given.lr * rate
        loss, parts = motion_loss(model(batch.rgb, batch.masked), batch.targets, recipe.loss)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == given.steps:
            share = ", ".join(f"{name} {float(part):.3f}" for name, part in parts.items())
            print(f"step {step + 1}: {float(loss) / zero:.1%} of predicting zero ({share}), "
                  f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
