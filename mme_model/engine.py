"""The training loop that every job shares: steps, schedule, checkpoints, resuming and logs.

A `Job` says what a batch is and what its loss; everything else is here, over any number of
processes (`torchrun`, `accelerate launch`) through Accelerate. Nothing depends on the history of a
run but its weights and moments: the learning rate, the data and all random numbers follow from the
step, so that a resumed run goes on exactly as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import checkpoints, keys
from .checkpoints import Checkpoint
from .errors import TrainingError
from .job import Job
from .logs import Log, Progress
from .recipe import TrainConfig

__all__ = ["Job", "accelerator", "learning_rate", "train"]


@dataclass
class _Sum:
    """Means of a step over micro-batches and processes: one reduction for all of them."""

    values: dict[str, torch.Tensor | float] = field(default_factory=dict)

    def add(self, name: str, value: torch.Tensor | float) -> None:
        self.values[name] = self.values.get(name, 0.0) + value

    def reduce(self, acc: Any) -> dict[str, float]:
        names = sorted(self.values)
        row = torch.stack(
            [
                torch.as_tensor(self.values[n], dtype=torch.float32, device=acc.device).reshape(())
                for n in names
            ]
        )
        total = acc.reduce(row, reduction="sum").tolist()  # the one wait for the device in a step
        return dict(zip(names, total, strict=True))


def accelerator(config: TrainConfig, cpu: bool = False) -> Any:
    """Accelerate's view of the devices and processes, as the environment has them."""
    from accelerate import Accelerator

    cpu = cpu or not torch.cuda.is_available()
    asked = {"auto": "no" if cpu else "bf16", "fp32": "no"}.get(config.precision, config.precision)
    return Accelerator(cpu=cpu, mixed_precision=asked, step_scheduler_with_optimizer=False)


def learning_rate(config: TrainConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then cosine (Table 8), at `step` of `steps`, from 0.

    A run too short for its warm-up spends half of itself on it.
    """
    peak = config.base_lr * config.batch_size / 256
    low = min(config.min_lr, peak)
    warm = min(round(config.warmup_epochs * steps_per_epoch), steps // 2)
    if step < warm:
        start = min(config.warmup_lr, peak)
        return start + (peak - start) * step / warm
    along = (step - warm) / max(steps - warm, 1)
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * along))


def train(
    job: Job, out: str | os.PathLike[str], resume: Checkpoint | None = None, cpu: bool = False
) -> dict[str, float]:
    """Train until the job's last step; returns the last step's record.

    Parameters
    ----------
    out : folder of the run; metrics.jsonl, checkpoints and the rest go there.
    resume : where to go on from.
    cpu : leave GPUs alone.

    Raises
    ------
    TrainingError
        Where the loss is not finite (naming the batch's clips), or data cannot be read.
    OSError
        Where a checkpoint cannot be written.
    """
    return _Run(job, Path(out), resume, cpu).go()


class _Run:
    def __init__(self, job: Job, out: Path, resume: Checkpoint | None, cpu: bool) -> None:
        self.job, self.out, self.config = job, out, job.recipe.train
        self.acc = accelerator(self.config, cpu)
        self.main = self.acc.is_main_process
        self.rank, self.world = self.acc.process_index, self.acc.num_processes
        self.micro = _micro_batches(self.config, self.world)
        self.step: int = resume.step if resume else 0
        loaded = checkpoints.load_state(resume) if resume else None
        if resume and loaded:
            checkpoints.fit_state(loaded[0], job.model.state_dict(), str(resume.path))
        model = torch.compile(job.model) if self.config.compile else job.model
        optimizer = torch.optim.AdamW(job.groups, lr=0.0, betas=_pair(self.config.betas))
        self.model, self.optimizer = self.acc.prepare(model, optimizer)
        if loaded:
            self._load(*loaded)
        self.ema = self._average(resume) if job.ema else None
        self.log = Log(out, self.step) if self.main else None
        self.progress = Progress(job.steps, self.step, self.config.batch_size, self.main)
        self.since: list[float] = []
        self.stop = False

    def go(self) -> dict[str, float]:
        record: dict[str, float] = {}
        with _signals(self), contextlib.closing(self._batches()) as batches:
            try:
                while self.step < self.job.steps:
                    record = self._one(batches)
            finally:
                self.progress.close()
                if self.log:
                    self.log.close()
        self.acc.end_training()
        return record

    def _batches(self) -> Generator[Any, None, None]:
        yield from self.job.batches(self.step, self.rank, self.world, self.acc.device)

    def _one(self, batches: Iterator[Any]) -> dict[str, float]:
        """One optimiser step, its record, and what falls due after it."""
        config, began = self.config, time.perf_counter()
        sums, wait = _Sum(), 0.0
        seen: list[Any] = []
        rate = learning_rate(config, self.step, self.job.steps, self.job.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.model.train()
        for i in range(self.micro):
            asked = time.perf_counter()
            batch = next(batches)
            wait += time.perf_counter() - asked
            seen.append(batch)
            last = i == self.micro - 1
            # After the batch is there: a loader that starts draws from the same generator.
            place = self.rank * self.micro + i
            torch.manual_seed(keys.number(config.seed, self.step, place, "model"))
            with contextlib.nullcontext() if last else self.acc.no_sync(self.model):
                loss, parts = self.job.loss(self.model, batch)
                self.acc.backward(loss / self.micro)
            scale = 1 / (self.micro * self.world)
            sums.add("loss", loss.detach() * scale)
            for name, value in parts.items():
                sums.add(f"loss/{name}", value * scale)
        sums.add("skipped", float(sum(len(b.skipped) for b in seen)))
        sums.add("stop", float(self.stop))
        total = sums.reduce(self.acc)
        if not math.isfinite(total["loss"]):
            self._not_finite("loss", total["loss"], seen)
        norm = self._update(seen)
        step_time = time.perf_counter() - began
        self.step += 1
        record: dict[str, float] = {
            "step": self.step,
            "epoch": (self.step - 1) // self.job.steps_per_epoch,
        }
        record |= {k: v for k, v in total.items() if k.startswith("loss")}
        record |= {"lr": rate, "grad_norm": norm, "clips_per_second": config.batch_size / step_time}
        record |= self._seconds(seen, step_time, wait)
        if total["skipped"]:
            self._skip([pair for b in seen for pair in b.skipped])
        self.job.check(seen)
        self.since.append(total["loss"])
        self._due(record, stopping=total["stop"] > 0)
        return record

    def _update(self, seen: list[Any]) -> float:
        """Clip and step; the norm of the gradient, which must be finite before it reaches weights
        (but in fp16, where the scaler passes over such a step).
        """
        largest = self.config.clip_grad or math.inf
        norm = float(self.acc.clip_grad_norm_(self.model.parameters(), largest))
        if not math.isfinite(norm) and not self.acc.scaler:
            self._not_finite("gradient's norm", norm, seen)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.job.model, step=self.step + 1)
        return norm

    def _seconds(self, seen: list[Any], whole: float, wait: float) -> dict[str, float]:
        """Seconds of work on this process's clips, in whichever process, and of waiting for it."""
        made = [b.timings() for b in seen]
        phases = ["decode", "crop", "flow", "targets"]
        if any("tracks" in one for one in made):
            phases.append("tracks")
        spent = {k: sum(one.get(k, 0.0) for one in made) for k in phases}
        spent |= {"model": whole - wait, "wait": wait}
        return {f"seconds/{k}": v for k, v in spent.items()}

    def _due(self, record: dict[str, float], stopping: bool) -> None:
        """Measure, draw and save where it is time to, then log."""
        config, step = self.config, self.step
        every = config.checkpoint_every or min(self.job.steps_per_epoch, 1000)
        end = step == self.job.steps
        saving = step % every == 0 or end or stopping
        judged = step % config.val_every == 0 if config.val_every else saving
        score = None
        if judged or end:
            measured = self._held_out()
            record |= measured
            score = self.job.score(measured)
        drawing = config.picture_every and (step % config.picture_every == 0 or end)
        if drawing and self.main and "FSDP" not in str(self.acc.distributed_type):
            image = self.job.picture(self.acc.unwrap_model(self.model))
            if image is not None and self.log:
                self.log.picture("tracks", image, step)
        if self.log:
            self.log.write(record)
        self.progress.step(record)
        if saving:
            if not self.job.judged:
                score = sum(self.since) / max(len(self.since), 1)
            self._save(score)
            self.since = []
        if stopping and not end:
            raise KeyboardInterrupt(f"stopped after step {step}; --resume auto goes on from there")

    @torch.no_grad()
    def _held_out(self) -> dict[str, float]:
        self.model.eval()
        sums = _Sum({"count": 0.0})
        skipped: list[tuple[str, str]] = []
        sharded = "FSDP" in str(self.acc.distributed_type)
        model = self.model if sharded else self.acc.unwrap_model(self.model)
        for batch, count in self.job.held_out(model, self.rank, self.world):
            sums.add("count", float(count))
            for name, value in self.job.measure(model, batch).items():
                sums.add(f"val/{name}", value * count)
            if self.ema:
                for name, value in self.job.measure(self.ema.module, batch).items():
                    sums.add(f"val/ema/{name}", value * count)
            skipped += batch.skipped
        if not self.job.judged:
            return {}
        sums.add("skipped", float(len(skipped)))
        total = sums.reduce(self.acc)
        if total.pop("skipped"):
            self._skip(skipped)
        counted = total.pop("count")
        return {k: v / counted for k, v in total.items()} if counted else {}

    def _not_finite(self, what: str, value: float, seen: list[Any]) -> None:
        names = self._gathered([name for batch in seen for name in batch.names])
        kept = checkpoints.latest(self.out)
        good = f"the last good checkpoint is {kept.path}" if kept else "there is no checkpoint yet"
        raise TrainingError(
            f"the {what} of step {self.step + 1} is {value}; {good}. Its clips were from:\n  "
            + "\n  ".join(dict.fromkeys(names))
        )

    def _skip(self, found: list[tuple[str, str]]) -> None:
        everyone = self._gathered(found)
        if self.log:
            for name, reason in everyone:
                if name not in self.log.skipped:
                    self.progress.say(f"skipped {name}: {reason}")
            self.log.skip(everyone)

    def _gathered(self, mine: list[Any]) -> list[Any]:
        if self.world == 1:
            return mine
        from accelerate.utils import gather_object

        out: list[Any] = gather_object(mine)
        return out

    def _save(self, score: float | None) -> None:
        from torch.distributed.checkpoint import state_dict as dcp

        options = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: Any = dcp.get_model_state_dict(self.model, options=options)
        moments = dcp.get_optimizer_state_dict(
            self.model, self.optimizer.optimizer, options=options
        )
        failed = ""
        if self.main:
            scaler = self.acc.scaler.state_dict() if self.acc.scaler else None
            try:
                checkpoints.save(
                    self.out, self.step, model=weights, optimizer=moments,
                    kind=self.job.kind, recipe=self.job.recipe, score=score,
                    state={"scaler": scaler}, metadata=self.job.metadata,
                    average=self.ema.module.state_dict() if self.ema else None,
                )  # fmt: skip
                checkpoints.prune(self.out, self.config.keep)
            except OSError as error:
                failed = str(error)
        # All processes go on, or none: the others must not wait for one that has stopped.
        reasons = [r for r in self._gathered([failed]) if r]
        if reasons:
            raise OSError(reasons[0])

    def _average(self, resume: Checkpoint | None) -> Any:
        """Timm's moving average of the weights: of all steps alike at first, then fading."""
        from timm.utils import ModelEmaV3

        if "FSDP" in str(self.acc.distributed_type):
            raise ValueError("an average of the weights (ema) cannot be kept of a sharded model")
        average = ModelEmaV3(self.job.model, decay=self.job.ema, use_warmup=True)
        if resume:
            average.module.load_state_dict(checkpoints.load_average(resume))
        return average

    def _load(
        self, weights: dict[str, Any], moments: dict[str, Any], state: dict[str, Any]
    ) -> None:
        from torch.distributed.checkpoint import state_dict as dcp

        options = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
        dcp.set_model_state_dict(self.model, weights, options=options)
        dcp.set_optimizer_state_dict(self.model, self.optimizer.optimizer, moments, options=options)
        if state.get("scaler") and self.acc.scaler:
            self.acc.scaler.load_state_dict(state["scaler"])


@contextlib.contextmanager
def _signals(run: _Run) -> Iterator[None]:
    """SIGTERM (a scheduler's notice) and ^C end the step and save; a second one ends at once."""

    def asked(number: int, frame: Any) -> None:
        if run.stop:
            raise KeyboardInterrupt
        run.stop = True
        run.progress.hint("stopping after this step; once more stops at once")

    try:
        old = {s: signal.signal(s, asked) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        old = {}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _micro_batches(config: TrainConfig, world: int) -> int:
    """Micro-batches of a process in one step."""
    if config.batch_size % world:
        raise ValueError(
            f"train.batch_size is {config.batch_size}; must be divisible by the {world} processes"
        )
    mine = config.batch_size // world
    micro = config.micro_batch or mine
    if mine % micro:
        raise ValueError(
            f"train.micro_batch is {micro}; must divide the {mine} clips that each of {world} "
            f"processes takes of batch_size {config.batch_size}"
        )
    return mine // micro


def _pair(betas: tuple[float, ...]) -> tuple[float, float]:
    return betas[0], betas[1]
