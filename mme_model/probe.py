"""`mme probe`: what a frozen encoder's features tell of the classes (§4.1, Table 4).

Each view of a video becomes one vector, the mean of the encoder's tokens (after its last norm,
where the checkpoint has one); a linear layer is trained on those of the training videos. On the
others, probabilities are averaged over the views. Features are kept (`features`), so that a second
probe, with another normalisation or rate, takes seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mme_targets.files import atomic_path

from . import keys
from .checkpoints import FORMAT, fit_state
from .evaluate import BATCH, add_views, views_of
from .features import Features, cached_features
from .finetune_recipe import FinetuneRecipe, ViewConfig
from .labels import class_names, data_hash, numbered, oddities
from .linear import LinearProbe, ProbeConfig, neighbours, sweep, train_linear
from .listed import known_labels, unique_videos
from .mvit import build_encoder
from .recipe import Recipe, load_recipe
from .reports import add_overwrite, out_folder, refuse_others, write_report
from .results import Row, figure, pretraining
from .runs import versions
from .scores import Predictions
from .sources import Source

__all__ = ["probe"]

CLIPS, CROPS = 2, 1
"""Views of a video in time and in space, unless said otherwise."""


class _Frozen(NamedTuple):
    """An encoder, what made it, and what the tables say of it."""

    encoder: nn.Module
    recipe: Recipe | FinetuneRecipe
    said: dict[str, str]


def probe(
    checkpoint: str | os.PathLike[str] | None,
    data: str = "",
    val: str = "",
    *,
    out: str | os.PathLike[str],
    init: Literal["checkpoint", "random"] = "checkpoint",
    recipe: str = "tiny",
    views: Mapping[str, Any] | None = None,
    config: ProbeConfig | None = None,
    sweep_lr: bool = False,
    knn: bool = False,
    cache: str | os.PathLike[str] | None = None,
    batch: int = BATCH,
    precision: str = "auto",
    unreadable: Literal["wrong", "exclude"] = "wrong",
    overwrite: bool = False,
    cpu: bool = False,
) -> dict[str, Any]:
    """Train and test a linear layer on frozen features; returns the summary that is also written.

    Parameters
    ----------
    checkpoint : of any format that holds an encoder; None: none, and `recipe` says what encoder.
    data, val : training and validation videos: lists, folders or "synthetic"; empty: those of the
        checkpoint's recipe, or for synthetic videos held-out ones.
    out : folder for summary.json, row.md, predictions.parquet, classes.csv, confusion.png,
        probe.safetensors (the linear layer and its normalisation) and, unless `cache` says
        elsewhere, features/.
    init : "random": the same encoder as it is before any training, by `config.seed`.
    recipe : a pre-training recipe, where there is no checkpoint.
    views : changes to the views, such as `{"test_clips": 4, "stride": 2}`. Unless said otherwise
        they are what the encoder was trained on, 2 in time by 1 in space, for training and testing
        alike.
    config : of the linear layer. The learning rate is its start where `sweep_lr` is set.
    sweep_lr : choose the learning rate by a fifth of the training videos.
    knn : measure 20 nearest neighbours as well, or all where there are fewer: the cosine of
        normalised features, averaged over the views, temperature .07.
    unreadable, overwrite : as in `evaluate`; training goes on without unreadable videos.

    Raises
    ------
    OSError, ValueError
        Where checkpoint, lists or folder cannot be used, and as `labels.class_names` for training
        videos without a label.
    """
    from accelerate import PartialState

    from .views import open_videos

    if batch < 1:
        raise ValueError(f"batch is {batch}; must be at least 1")
    config = config or ProbeConfig()
    folder = out_folder(out)
    state = PartialState(cpu=cpu or not torch.cuda.is_available())
    frozen = _frozen(checkpoint, init, recipe, config.seed)
    seen = _views_of(frozen.recipe).replace(**{"test_clips": CLIPS, "test_crops": CROPS,
                                               **(views or {})})  # fmt: skip
    specs = _specs(frozen.recipe, data, val)
    named = None if checkpoint is None else os.fspath(checkpoint)
    whose = {"job": "probe", "checkpoint": named, "init": {"from": init, **frozen.said},
             "data": specs[0], "val": specs[1]}  # fmt: skip
    refuse_others(folder, whose, overwrite)
    seed = frozen.recipe.train.seed
    train = open_videos(specs[0], seen, seed=seed, testing=True)
    test = open_videos(specs[1], seen, seed=seed, held_out=True, testing=True)
    classes = class_names(train, f"data {specs[0]}")
    labels = known_labels(test, classes, specs[1])
    if not (labels >= 0).any():
        raise ValueError(f"val {specs[1]}: no video has a label; there is nothing to measure")
    assumed = numbered(test, labels.tolist(), classes, f"val {specs[1]}")
    videos, notes = unique_videos(test, labels)
    encoder = frozen.encoder.to(state.device).eval()
    kept = Path(cache) if cache is not None else folder / "features"
    known = cached_features(encoder, train, seen, kept, what="training videos", batch=batch,
                            precision=precision, state=state)  # fmt: skip
    asked = cached_features(encoder, test, seen, kept, what="validation videos", batch=batch,
                            precision=precision, state=state)  # fmt: skip
    if not state.is_main_process:
        return {}
    for features, spec in ((known, specs[0]), (asked, specs[1])):
        if not len(features.values):
            raise ValueError(f"{spec}: not one of its {len(features.counts)} videos can be read; "
                             f"the first: {features.reasons[0]}")  # fmt: skip
    own = torch.tensor([train.label(i) for i in range(len(train))])[known.owners]
    tried: list[tuple[float, float]] = []
    device = state.device
    if sweep_lr:
        config, tried = sweep(known.values, own, known.owners, len(classes), config, device)
    linear = train_linear(known.values, own, len(classes), config, device)
    with torch.inference_mode():
        shares = linear(asked.values.to(device)).cpu().double().softmax(dim=1)
    made = _predictions(test, labels, videos, asked, _averaged(shares, asked), classes)
    figures = []
    near = min(20, int((known.counts > 0).sum()))
    if knn:
        share = _neighbours(linear, known, asked, train, labels, videos, len(classes), device, near)
        figures = [figure("knn", share, clips=seen.test_clips, crops=seen.test_crops,
                          videos=int((labels[videos] >= 0).sum()), k=near)]  # fmt: skip
    lost = [(train.name(i), why) for i, why in enumerate(known.reasons) if why]
    missing = [f"not trained on: {name}: {why}" for name, why in lost[:10]]
    missing += [f"… and {len(lost) - 10} more"] * (len(lost) > 10)
    about = {
        **whose,
        "data_hash": data_hash(train),
        "val_hash": data_hash(test),
        "trained_on": {"videos": len(train) - len(lost), "unreadable": len(lost)},
        "views": {"clips": seen.test_clips, "crops": seen.test_crops},
        "unreadable": unreadable,
        "probe": config.to_dict(),
        "sweep": [{"lr": lr, "accuracy": share, "unit": "%"} for lr, share in tried],
        "notes": [*assumed, *notes, *oddities(train, test, classes), *missing],
        "recipe": {"model": frozen.recipe.model.to_dict(), "views": seen.to_dict()},
        "versions": versions(),
    }
    weights = [*encoder.parameters(), *linear.parameters()]
    row = Row(
        model=frozen.recipe.model,
        clip=seen,
        parameters=sum(p.numel() for p in weights),
        clips=seen.test_clips,
        crops=seen.test_crops,
        accuracy=None,
        method=frozen.said["method"],
        data=frozen.said.get("data", "-"),
        epochs=frozen.said.get("epochs", "-"),
    )
    _save(linear, classes, folder / "probe.safetensors", config)
    summary = write_report(folder, made, about, row, more=figures)
    if knn:
        print(f"{near} nearest neighbours: top-1 {figures[0]['value']:.2f} %")
    return summary


def _frozen(
    checkpoint: str | os.PathLike[str] | None, init: str, recipe: str, seed: int
) -> _Frozen:
    from .weights import read_weights

    if init not in ("checkpoint", "random"):
        raise ValueError(f"init is {init!r}; must be checkpoint or random")
    if checkpoint is None and init == "checkpoint":
        raise ValueError("a checkpoint is missing; --init random probes an encoder without one")
    known: Recipe | FinetuneRecipe
    if checkpoint is None:
        known, state = load_recipe(recipe), None
        said = {"method": "random"}
        clip: Any = known.targets
    else:
        weights = read_weights(checkpoint, only_encoder=True)
        known, clip = weights.recipe, weights.clip
        state = {k.removeprefix("encoder."): v.float() for k, v in weights.state.items()}
        said = _said(known, weights.format, Path(checkpoint).name)
        for note in weights.notes:
            print(f"note: {note}", file=sys.stderr)
    torch.manual_seed(keys.number(seed, 0, 0, "weights"))
    encoder = build_encoder(known.model, clip)
    if state is not None and "norm.weight" not in state:
        encoder.norm = nn.Identity()
    if init == "random":
        return _Frozen(encoder, known, {"method": "random"})
    assert state is not None
    encoder.load_state_dict(fit_state(state, encoder.state_dict(), str(checkpoint)))
    return _Frozen(encoder, known, said)


def _said(recipe: Recipe | FinetuneRecipe, format: str, name: str) -> dict[str, str]:
    """Method, data and epochs, as far as the checkpoint says."""
    if format != "mme" or isinstance(recipe, FinetuneRecipe):
        return {"method": f"from {name}"}
    return pretraining(recipe)


def _views_of(recipe: Recipe | FinetuneRecipe) -> ViewConfig:
    """Views like the clips that the encoder was trained on."""
    if isinstance(recipe, FinetuneRecipe):
        return recipe.views
    clip, clips = recipe.targets, recipe.clips
    return ViewConfig(
        **{name: getattr(clip, name) for name in ("frames", "tubelet", "patch", "size", "stride")},
        **{name: getattr(clips, name) for name in ("format", "root", "clips", "workers")},
    )


def _specs(recipe: Recipe | FinetuneRecipe, data: str, val: str) -> tuple[str, str]:
    """Which videos to train and to test on."""
    train = data or recipe.data
    test = val or ("" if data else recipe.val)
    if not test and train.split(":")[0] == "synthetic":
        test = "synthetic"
    if not test:
        raise ValueError(f"val is missing; what is learnt from {train!r} must be tested on others")
    return train, test


def _averaged(values: Tensor, features: Features) -> Tensor:
    """[views, D] float64 to the mean over each video's views, [videos, D]; 0 where it has none."""
    total = values.new_zeros(len(features.counts), values.shape[1])
    total.index_add_(0, features.owners, values)
    return total / features.counts.clamp(min=1)[:, None]


def _predictions(
    source: Source,
    labels: np.ndarray[Any, np.dtype[np.int64]],
    videos: list[int],
    features: Features,
    shares: Tensor,
    classes: tuple[str, ...],
) -> Predictions:
    counts = features.counts[videos].numpy()
    values = shares[videos].float().numpy()
    values[counts == 0] = np.nan
    return Predictions(
        names=[source.name(i) for i in videos],
        labels=labels[videos],
        probabilities=values,
        views=counts,
        reasons=[features.reasons[i] for i in videos],
        classes=classes,
    )


def _neighbours(
    linear: LinearProbe,
    known: Features,
    asked: Features,
    train: Source,
    labels: np.ndarray[Any, np.dtype[np.int64]],
    videos: list[int],
    classes: int,
    device: torch.device,
    near: int,
) -> float:
    """Accuracy of the `near` nearest neighbours, % of labelled videos; unread ones are wrong."""
    with torch.inference_mode():
        both = [
            _averaged(linear.norm(features.values.to(device)).cpu().double(), features).float()
            for features in (known, asked)
        ]
    read = known.counts > 0
    own = torch.tensor([train.label(i) for i in range(len(train))])[read]
    found = neighbours(both[0][read], own, both[1], classes, k=near).argmax(dim=1)
    true = torch.from_numpy(labels)
    right = (found == true) & (asked.counts > 0)
    scored = [i for i in videos if labels[i] >= 0]
    return 100 * float(right[scored].double().mean())


def _save(linear: LinearProbe, classes: tuple[str, ...], path: Path, config: ProbeConfig) -> None:
    import json

    from safetensors.torch import save_file

    state = {k: v.detach().cpu().contiguous() for k, v in linear.state_dict().items()}
    about = {"format": FORMAT, "kind": "probe", "probe": config.to_json(),
             "classes": json.dumps(list(classes))}  # fmt: skip
    with atomic_path(path) as beside:
        save_file(state, str(beside), metadata=about)


def add_arguments(parser: Any) -> None:
    """Arguments of `mme probe`."""
    defaults = ProbeConfig()
    parser.add_argument("checkpoint", type=str, nargs="?", default="", metavar="CHECKPOINT",
                        help="a run of `mme pretrain` or `mme finetune`, or another checkpoint "
                        "with an encoder")  # fmt: skip
    parser.add_argument("--data", type=str, default="", metavar="LIST|DIR|synthetic",
                        help="training videos [the checkpoint's]")  # fmt: skip
    parser.add_argument("--val", type=str, default="", metavar="LIST|DIR|synthetic",
                        help="validation videos [the checkpoint's]")  # fmt: skip
    parser.add_argument("--out", type=str, required=True, metavar="DIR",
                        help="folder for figures, predictions and features")  # fmt: skip
    parser.add_argument("--init", type=Literal["checkpoint", "random"], default="checkpoint",
                        metavar="checkpoint|random",
                        help="random probes the same encoder untrained")  # fmt: skip
    parser.add_argument("--recipe", type=str, default="tiny", metavar="NAME|FILE",
                        help="pre-training recipe of a random encoder without a "
                        "checkpoint")  # fmt: skip
    for name, kind, shown, words in (
        ("norm", Literal["standardise", "batchnorm", "l2", "none"],
         "standardise|batchnorm|l2|none",
         "of the features: by mean and deviation of the training features, by batch norm without "
         "an affine part, to length 1, or none"),
        ("optimizer", Literal["adamw", "sgd"], "adamw|sgd", "of the linear layer"),
        ("lr", float, "X", "learning rate of the linear layer, falling along a cosine"),
        ("weight_decay", float, "X", "of the linear layer"),
        ("epochs", int, "N", "of the linear layer (Table 4)"),
        ("batch_size", int, "N", "feature vectors of a step"),
        ("seed", int, "N", "of the linear layer, and of a random encoder"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=getattr(defaults, name),
                            metavar=shown, help=words)  # fmt: skip
    for name, words in (
        ("sweep", "choose among seven learning rates by a fifth of the training videos"),
        ("knn", "measure 20 nearest neighbours as well (all, where there are fewer)"),
    ):
        parser.add_argument(f"--{name}", type=bool, nargs="?", const=True, default=False,
                            help=words)  # fmt: skip
    parser.add_argument("--cache", type=str, default="", metavar="DIR",
                        help="where features are kept; empty: features/ in --out")  # fmt: skip
    parser.add_argument("--unreadable", type=Literal["wrong", "exclude"], default="wrong",
                        metavar="wrong|exclude",
                        help="what a video that cannot be read is in the accuracy that is "
                        "quoted; both are reported")  # fmt: skip
    add_overwrite(parser)
    add_views(parser, clips=f"{CLIPS}", crops=f"{CROPS}")


def run(args: Any) -> int:
    """`mme probe`."""
    from accelerate import PartialState

    config = ProbeConfig(
        norm=args.norm, optimizer=args.optimizer, lr=args.lr, weight_decay=args.weight_decay,
        epochs=args.epochs, batch_size=args.batch_size, seed=args.seed,
    )  # fmt: skip
    probe(
        args.checkpoint or None, args.data, args.val, out=args.out, init=args.init,
        recipe=args.recipe, views=views_of(args), config=config, sweep_lr=args.sweep,
        knn=args.knn, cache=args.cache or None, batch=args.batch, precision=args.precision,
        unreadable=args.unreadable, overwrite=args.overwrite, cpu=args.cpu,
    )  # fmt: skip
    PartialState().destroy_process_group()
    return 0
