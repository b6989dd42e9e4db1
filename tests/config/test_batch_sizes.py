"""Batch sizes during a warm-up equal a plain list of all steps, and durations in tokens count its smaller batches."""

import dataclasses
import itertools

import pytest

from bert_jax.config import Config, Train, batch_sizes, num_full_steps, num_rows, resolve
from bert_jax.errors import BadInput

WARMUPS = [(2, 16, 21), (8, 4096, 100), (448, 4928, 30), (1, 2, 5), (32, 96, 7), (4, 32, 3), (768, 4608, 13)]


def _train(first: int, last: int, warmup: int, **fields: int) -> Train:
    sizes = {'first_batch_size': first, 'global_batch_size': last, 'batch_warmup_steps': warmup}
    return dataclasses.replace(Train(), **sizes | fields)


@pytest.mark.parametrize('first, last, steps', WARMUPS)
def test_batch_grows_in_few_multiples_of_the_first(first: int, last: int, steps: int) -> None:
    sizes = batch_sizes(_train(first, last, steps))
    listed = [sizes.at(step) for step in range(steps + 50)]
    assert listed == sorted(listed) and listed[steps - 1] < last and {*listed[steps:]} == {last}
    assert len({*listed}) <= 8 and all(size % first == 0 for size in listed)
    lengths = [len([*group]) for size, group in itertools.groupby(listed) if size < last]
    assert max(lengths) - min(lengths) <= 1 and sizes.largest == last
    assert listed[0] == first or steps < 7


@pytest.mark.parametrize('first, last, steps', WARMUPS)
def test_rows_and_steps_equal_those_of_a_list_of_all_steps(first: int, last: int, steps: int) -> None:
    sizes = batch_sizes(_train(first, last, steps))
    listed = [sizes.at(step) for step in range(steps + 40)]
    sums = [0, *itertools.accumulate(listed)]
    assert [sizes.before(step) for step in range(len(sums))] == sums
    for rows in {*range(0, 50), *range(0, sums[-1], 97), *sums}:
        assert sizes.steps_of(rows) == next(step for step, before in enumerate(sums) if before >= rows)
        from_end = next(step for step in range(len(sums)) if sums[-1] - sums[len(listed) - step] >= rows)
        assert sizes.last_steps_of(rows, len(listed)) == from_end
    train = _train(first, last, steps, steps=len(listed))
    assert num_rows(train) == sums[-1] and num_full_steps(train) == sums[-1] / last


def test_run_without_warmup_has_equal_batches() -> None:
    sizes = batch_sizes(Train(global_batch_size=32, steps=7))
    assert sizes.is_constant and sizes.at(10**9) == 32 and sizes.before(10**9) == 32 * 10**9
    assert sizes.steps_of(65) == 3 and sizes.last_steps_of(65, 7) == 3 and sizes.last_steps_of(64 * 7, 7) == 14


def _resolve(train: dict, **sections: object) -> Config:
    values = {'data': {'sequence_length': 128}, 'optimizer': {'warmup_steps': 0}} | sections
    return resolve(values | {'train': {'global_batch_size': 64, 'first_batch_size': 16, 'steps': 100} | train})


def test_durations_in_tokens_count_the_smaller_batches() -> None:
    tokens = {'batch_warmup_tokens': 128 * (16 + 32 + 48) * 10, 'tokens': 128 * ((16 + 32 + 48) * 10 + 64 * 20)}
    warmup = {'warmup_steps': 0, 'warmup_tokens': 128 * (16 * 10 + 32 * 5), 'schedule': 'wsd'}
    resolved = _resolve(tokens | {'steps': 1_000_000}, optimizer=warmup | {'decay_tokens': 128 * 64 * 10})
    assert (resolved.train.batch_warmup_steps, resolved.train.steps) == (30, 50)
    assert (resolved.optimizer.warmup_steps, resolved.optimizer.decay_steps) == (15, 10)
    assert num_rows(resolved.train) * 128 == tokens['tokens']
    assert resolve(dataclasses.asdict(resolved)) == resolved


def test_only_phases_that_ask_for_a_warmup_have_one() -> None:
    phases = [
        {'steps': 20, 'first_batch_size': 8, 'batch_warmup_tokens': 128 * 8 * 28, 'warmup_steps': 0},
        {'steps': 10, 'warmup_steps': 0},
    ]
    resolved = _resolve({'first_batch_size': 0}, phases=phases)
    first, second = (batch_sizes(phase.train) for phase in resolved.in_phases)
    assert [first.at(step) for step in range(9)] == [8, 16, 24, 32, 40, 48, 56, 64, 64] and second.is_constant
    assert resolve(dataclasses.asdict(resolved)) == resolved
    with pytest.raises(BadInput, match='the phases add up to'):
        _resolve({'first_batch_size': 0, 'tokens': 128 * 64 * 30.0}, phases=phases)


@pytest.mark.parametrize(
    'train, message',
    [
        ({}, r'train.batch_warmup_steps: is 0, and first_batch_size is 16'),
        (
            {'first_batch_size': 0, 'batch_warmup_steps': 5},
            r'train.first_batch_size: is 0, and batch_warmup_steps is 5',
        ),
        ({'first_batch_size': 24, 'batch_warmup_steps': 5}, 'a smaller number that divides it'),
        ({'first_batch_size': 64, 'batch_warmup_steps': 5}, 'a smaller number that divides it'),
        ({'batch_warmup_steps': 101}, 'more than the run has steps'),
        ({'batch_warmup_steps': 5, 'reduction': 'exact', 'exact_shards': 32}, 'a multiple of 32'),
        ({'batch_warmup_steps': 5, 'batch_warmup_tokens': 1e6}, 'one of the two'),
    ],
)
def test_unsuitable_warmup_is_rejected(train: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        _resolve(train)
