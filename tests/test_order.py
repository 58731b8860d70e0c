"""The data order: what a step sees follows from its number, whatever the processes."""

from __future__ import annotations

import itertools

import pytest

from mme_model.order import MicroBatches, Order


def steps_of(sampler: MicroBatches) -> list[list[tuple[int, int]]]:
    """Micro-batches put together to steps."""
    pieces = list(sampler)
    assert len(pieces) == len(sampler)
    per_step = [pieces[at : at + sampler.pieces] for at in range(0, len(pieces), sampler.pieces)]
    return [list(itertools.chain(*step)) for step in per_step]


def test_an_epoch_sees_each_video_once_and_leaves_out_the_rest() -> None:
    order = Order(23, 5, seed=3)
    assert order.steps_per_epoch == 4
    for epoch in range(3):
        keys = [key for s in range(4 * epoch, 4 * epoch + 4) for key in order.step(s)]
        assert {e for e, _ in keys} == {epoch}
        seen = [i for _, i in keys]
        assert len(set(seen)) == 20
        assert set(seen) <= set(range(23))
        assert seen == order.permutation(epoch)[:20].tolist()
    assert order.permutation(0).tolist() != order.permutation(1).tolist()
    assert order.permutation(0).tolist() != Order(23, 5, seed=4).permutation(0).tolist()
    assert order.permutation(1).tolist() == Order(23, 4, seed=3).permutation(1).tolist()


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9])
def test_a_resumed_run_goes_on_at_its_step(start: int) -> None:
    order = Order(23, 5)
    whole = steps_of(MicroBatches(order, 11))
    assert whole == [order.step(s) for s in range(11)]
    assert steps_of(MicroBatches(order, 11, start_step=start)) == whole[start:]


@pytest.mark.parametrize(("world", "micro"), [(1, 3), (2, 0), (2, 2), (3, 1), (6, 2)])
def test_processes_and_micro_batches_share_the_steps_of_one_process(world: int, micro: int) -> None:
    order = Order(40, 12)
    whole = steps_of(MicroBatches(order, 8))
    parts = [
        MicroBatches(order, 8, rank=rank, world=world, micro_batch=micro) for rank in range(world)
    ]
    assert all(len(piece) == (micro or 12 // world) for part in parts for piece in part)
    together = [list(itertools.chain(*step)) for step in zip(*map(steps_of, parts), strict=True)]
    assert together == whole


def test_it_ends_where_the_run_does() -> None:
    order = Order(4, 2)
    assert list(MicroBatches(order, 3, start_step=3)) == []
    assert len(MicroBatches(order, 3, start_step=5)) == 0


def test_errors_say_both_numbers() -> None:
    with pytest.raises(ValueError, match="batch_size is 9, but there are only 4 videos"):
        Order(4, 9)
    with pytest.raises(ValueError, match="no videos"):
        Order(0, 1)
    order = Order(20, 6)
    with pytest.raises(ValueError, match="batch_size is 6; must be divisible by the 4 processes"):
        MicroBatches(order, 1, world=4)
    with pytest.raises(ValueError, match=r"3 clips for each of 2 processes.*micro_batch \(2\)"):
        MicroBatches(order, 1, world=2, micro_batch=2)
    with pytest.raises(ValueError, match="rank is 2"):
        MicroBatches(order, 1, rank=2, world=2)
    with pytest.raises(ValueError, match="start_step is -1"):
        MicroBatches(order, 1, start_step=-1)
    with pytest.raises(ValueError, match="step is -1"):
        order.step(-1)
