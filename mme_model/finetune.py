"""Fine-tuning: a classifier on a pre-trained encoder, or from scratch (§4, Table 9, Appendix D)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import keys
from .classifier import Classifier
from .finetune_recipe import FinetuneRecipe
from .foreign import locate
from .initial import initialised
from .labels import Relabelled, class_names, data_hash, matched, oddities
from .loading import Loader, Unreadable, beside, worker_count
from .prefetch import prefetched
from .results import Row, figure, write_row
from .scores import TOP
from .view_data import ViewBatch, eval_loader, train_loader
from .views import open_videos, seeded

__all__ = ["Finetuning", "add_arguments", "finetune", "layer_groups", "run"]

KEPT = 2**30
"""Bytes of held-out views that are kept in memory, so that they are decoded once."""


class Finetuning:
    """The job that `mme_model.engine` trains.

    Mixup and CutMix mix a micro-batch with itself reversed, by draws keyed by the step and the
    micro-batch's place in it; so a run on two processes is one process's with two micro-batches.

    Parameters
    ----------
    recipe : everything that the run depends on.

    Raises
    ------
    ValueError, OSError
        Where the data cannot be opened, labels are wrong (`labels.class_names`, `labels.matched`),
        videos are fewer than a batch, or the checkpoint to start from does not fit.
    """

    kind = "classifier"

    def __init__(self, recipe: FinetuneRecipe) -> None:
        self.recipe = recipe
        views, train, config = recipe.views, recipe.train, recipe.classifier
        if recipe.init:
            locate(recipe.init)  # before any work, whether there is one
        self.source = open_videos(recipe.data, views, seed=train.seed)
        self.classes = class_names(self.source, f"data {recipe.data}")
        self.val = self._held_out_videos()
        self.notes = [
            *(self.val.notes if self.val else ()),
            *oddities(self.source, self.val, self.classes),
        ]
        count = len(self.source)
        if train.batch_size > count:
            raise ValueError(
                f"train.batch_size is {train.batch_size}, more than the {count} videos of "
                f"{recipe.data!r}; take a smaller one, say --batch_size {max(1, count // 4)}"
            )
        self.steps_per_epoch = count // train.batch_size
        self.steps = train.steps or train.epochs * self.steps_per_epoch
        torch.manual_seed(keys.number(train.seed, 0, 0, "weights"))
        self.classifier = Classifier(recipe.model, views, len(self.classes), config)
        self.model: nn.Module = self.classifier
        self.init: dict[str, Any] = {}
        if recipe.init:
            self.init, said = initialised(self.classifier, recipe)
            self.notes += said
        self.groups = layer_groups(self.classifier, config.layer_decay, train.weight_decay)
        self.judged = self.val is not None
        self.ema = config.ema
        self.metadata = {"classes": _json(self.classes)}
        self._mix = self._mixing()
        self._unreadable = Unreadable(count, views.max_unreadable, "views.max_unreadable")
        self._held: Loader[ViewBatch] | None = None
        self._kept: list[ViewBatch] | None = None

    def batches(
        self, start: int, rank: int, world: int, device: torch.device
    ) -> Iterator[ViewBatch]:
        """Micro-batches of this process from step `start` on, on the device."""
        train = self.recipe.train
        self._check_even(train.micro_batch or train.batch_size // world)
        loader = train_loader(
            self.recipe.views,
            self.source,
            batch_size=train.batch_size,
            seed=train.seed,
            device=device,
            steps=self.steps,
            start_step=start,
            rank=rank,
            world=world,
            micro_batch=train.micro_batch,
        )
        made = prefetched(loader, lambda batch: batch.to(device), device)
        return beside(worker_count(self.recipe.views.workers), device, made)

    def loss(self, model: nn.Module, batch: ViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of soft labels: smoothed and, unless both are off, mixed."""
        smoothing = self.recipe.classifier.label_smoothing
        if self._mix is None:
            logits = model(batch.rgb).float()
            return F.cross_entropy(logits, batch.labels, label_smoothing=smoothing), {}
        draw = int(torch.randint(2**62, ()))  # from the generator that the engine keyed
        clips = batch.rgb.float()
        with seeded(draw):
            # Frames are channels here: one box, and one share, for the whole clip.
            mixed, labels = self._mix(clips.flatten(1, 2), batch.labels)
        logits = model(mixed.view_as(clips)).float()
        return F.cross_entropy(logits, labels.to(logits.dtype)), {}

    def held_out(self, model: nn.Module, rank: int, world: int) -> Iterator[tuple[ViewBatch, int]]:
        """One view of each held-out video of this process, none twice.

        Each process runs the model as often as the others. A video that cannot be read is left out,
        and said.
        """
        if self.val is None:
            return
        device = next(model.parameters()).device
        train = self.recipe.train
        count = min(train.val_clips, len(self.val))
        most = -(-count // world)
        size = min(train.micro_batch or max(1, train.batch_size // world), most, 64)
        if self._held is None:
            chosen = [i * len(self.val) // count for i in range(count)][rank::world]
            one = self.recipe.views.replace(test_clips=1, test_crops=1)
            self._held = eval_loader(one, self.val, chosen, device=device, videos=size)
        runs = 0
        for batch in self._measured():
            found = batch if len(batch) else self._blank(batch)
            yield found.to(device), len(batch)
            runs += 1
        for _ in range(runs, -(-most // size)):
            yield self._blank(None).to(device), 0

    def measure(self, model: nn.Module, batch: ViewBatch) -> dict[str, Tensor]:
        """Cross-entropy, and the share of views whose class is first, or among the first five
        where there are more than that.
        """
        logits = model(batch.rgb).float()
        best = logits.topk(min(TOP, logits.shape[1])).indices == batch.labels[:, None]
        found = {
            "loss": F.cross_entropy(logits, batch.labels),
            "accuracy": best[:, 0].float().mean(),
        }
        if logits.shape[1] > TOP:
            found["top5"] = best.any(dim=1).float().mean()
        return found

    def score(self, measured: dict[str, float]) -> float | None:
        """The share of held-out videos that are told wrong."""
        accuracy = measured.get("val/accuracy")
        return None if accuracy is None else 1 - accuracy

    def check(self, seen: list[ViewBatch]) -> None:
        """Stop where more than the set share of the videos met cannot be read."""
        self._unreadable.add(seen)

    def picture(self, model: nn.Module) -> None:
        """Nothing to draw."""

    @property
    def about(self) -> dict[str, Any]:
        """What the summary says of the data."""
        return {
            "videos": len(self.source),
            "classes": len(self.classes),
            "skipped": len(self._unreadable.lost),
            "data_hash": data_hash(self.source),
            "val_hash": data_hash(self.val) if self.val else None,
            "init": self.init,
        }

    def conclude(self, summary: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The figures of a finished run; writes its row, as in Tables 1 to 3."""
        last = summary["last"]
        if "val/accuracy" not in last:
            return {}
        names = ("accuracy", "top5", *(("ema/accuracy", "ema/top5") if self.ema else ()))
        found = {name: 100 * last[f"val/{name}"] for name in names if f"val/{name}" in last}
        assert self.val is not None
        videos = min(self.recipe.train.val_clips, len(self.val))
        row = Row(
            model=self.recipe.model,
            clip=self.recipe.views,
            parameters=sum(p.numel() for p in self.model.parameters()),
            clips=1,
            crops=1,
            accuracy=found["accuracy"],
            top5=found.get("top5"),
            method=self.init.get("method", "from scratch"),
            data=self.init.get("data", "-"),
            epochs=self.init.get("epochs", "-"),
        )
        write_row(folder, row.cells())
        figures = [
            figure(name, value, clips=1, crops=1, videos=videos, step=last["step"])
            for name, value in found.items()
        ]
        return {"figures": figures}

    def _held_out_videos(self) -> Relabelled | None:
        recipe = self.recipe
        synthetic = recipe.data.split(":")[0] == "synthetic"
        val = recipe.val or ("synthetic" if synthetic else "")
        if not val:
            return None
        views = recipe.views
        views = views.replace(clips=min(recipe.train.val_clips, views.clips))
        found = open_videos(val, views, seed=recipe.train.seed, held_out=True, testing=True)
        return matched(found, self.classes, f"val {val}")

    def _mixing(self) -> Any:
        config, train = self.recipe.classifier, self.recipe.train
        if not (config.mixup or config.cutmix):
            return None
        self._check_even(train.micro_batch or train.batch_size)
        from timm.data.mixup import Mixup

        return Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.label_smoothing,
            num_classes=len(self.classes),
        )

    def _check_even(self, videos: int) -> None:
        config, views = self.recipe.classifier, videos * self.recipe.views.repeats
        if (config.mixup or config.cutmix) and views % 2:
            raise ValueError(
                f"{views} views are mixed with one another by mixup or cutmix, which takes an even "
                "number: change train.batch_size or train.micro_batch, or leave both out with "
                "classifier.mixup and classifier.cutmix 0"
            )

    def _measured(self) -> Iterator[ViewBatch]:
        if self._kept is not None:
            yield from self._kept
            return
        assert self._held is not None
        kept: list[ViewBatch] | None = []
        size = 0
        for batch in self._held:
            size += batch.rgb.nbytes
            kept = None if kept is None or size > KEPT else [*kept, batch]
            yield batch
        self._kept = kept

    def _blank(self, batch: ViewBatch | None) -> ViewBatch:
        """Something for the model to run on where there is nothing to measure."""
        views = self.recipe.views
        rgb = torch.zeros((1, views.frames, 3, views.size, views.size), dtype=torch.uint8)
        none = torch.zeros(1, dtype=torch.int64)
        if batch is None:
            return ViewBatch(rgb, none, none, [], [], 0)
        return replace(batch, rgb=rgb, labels=none, videos=none)


def layer_groups(model: Classifier, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups by layer: `lr_scale` is 1 for the head and its norm, `decay` for the last
    block, and so on down to decay^(depth + 1) for the patch embedding (Table 9, BEiT).

    Weight decay is for matrices alone: not for biases and norms.
    """
    last = len(model.encoder.blocks) + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        block = re.match(r"encoder\.blocks\.(\d+)\.", name)
        layer = int(block[1]) + 1 if block else 0 if name.startswith("encoder.") else last
        plain = parameter.ndim <= 1 or name.endswith("bias")
        group = groups.setdefault(
            (layer, plain),
            {
                "params": [],
                "weight_decay": 0.0 if plain else weight_decay,
                "lr_scale": decay ** (last - layer),
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def finetune(
    recipe: FinetuneRecipe,
    out: str | os.PathLike[str],
    *,
    resume: Literal["never", "auto"] = "never",
    cpu: bool = False,
) -> dict[str, Any]:
    """Run a recipe, or go on with it; returns the summary that is also written.

    Parameters
    ----------
    out : folder for recipe.yaml, metrics.jsonl, skipped.csv, checkpoints/, tensorboard/ and, at the
        end, summary.json and row.md.
    resume : "auto" goes on from the last complete checkpoint in `out`, if there is one; "never"
        refuses a folder that holds a run.
    cpu : leave GPUs alone.

    Raises
    ------
    ValueError, OSError, TrainingError
        Wrong settings or labels; data, checkpoint or folder that cannot be used; a loss that is not
        finite.
    """
    from . import runs

    return runs.run(lambda: Finetuning(recipe), recipe, out, resume=resume, cpu=cpu)


def add_arguments(parser: Any) -> None:
    """Arguments of `mme finetune`."""
    from .options import add_recipe
    from .recipe import FINETUNING, recipe_names

    parser.add_argument("--out", type=str, required=True, metavar="DIR",
                        help="folder of the run: recipe, metrics.jsonl, checkpoints, row.md, "
                        "TensorBoard")  # fmt: skip
    parser.add_argument("--resume", type=Literal["never", "auto"], default="never",
                        metavar="auto|never",
                        help="auto goes on from the last checkpoint in --out, if there is "
                        "one")  # fmt: skip
    parser.add_argument("--cpu", type=bool, nargs="?", const=True, default=False,
                        help="leave GPUs alone")  # fmt: skip
    add_recipe(parser, FinetuneRecipe, recipe_names(FINETUNING))


def run(args: Any) -> int:
    """`mme finetune`."""
    from .finetune_recipe import load_finetune_recipe
    from .options import changes_of

    recipe = load_finetune_recipe(args.recipe, changes_of(args, FinetuneRecipe))
    summary = finetune(recipe, args.out, resume=args.resume, cpu=args.cpu)
    last = summary.get("last")
    if last:
        print(f"loss {last['loss']:.4f}")
        for one in summary.get("figures", []):
            name = one["name"].replace("accuracy", "top-1").replace("top5", "top-5")
            print(f"{name} {one['value']:.1f} {one['unit']} of {one['videos']} held-out "
                  f"videos, {one['views']} views")  # fmt: skip
        print(f"checkpoints, metrics.jsonl and summary.json -> {args.out}")
    return 0


def _json(classes: tuple[str, ...]) -> str:
    import json

    return json.dumps(list(classes))
