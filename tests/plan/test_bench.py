"""`bench` measures the real step and counts its work correctly."""

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from bert_jax import config
from bert_jax.data.random_rows import FIRST, MASK, RandomRows
from bert_jax.model.family import num_parameters
from bert_jax.model.matmul import training_flops
from bert_jax.plan import bench
from bert_jax.plan.matmuls import step_matmuls
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.speed import flops_per_step, full_batch_flops
from tests.support.configs import PLANNED_FAMILIES, planned_run

ONE_DEVICE = {'data': 1, 'fsdp': 1, 'tensor': 1}


@pytest.mark.parametrize('packing', [False, True])
def test_random_rows_have_the_form_of_rows_from_a_corpus(packing: bool) -> None:
    data = config.Data(sequence_length=128, packing=packing)
    batch = RandomRows(data, 300, batch_size=64, seed=0).batch(5)
    positions = np.arange(128)
    for row in range(64):
        ids, starts = batch.sequence_ids[row], batch.cls_positions[row][batch.next_sentence_weights[row] > 0]
        assert starts[0] == 0 and (np.diff(starts) > 0).all()
        expected = (positions >= starts[:, None]).sum(axis=0)
        assert (ids == expected).all()  # full rows; ids start at 1
        assert (batch.position_ids[row] == positions - starts[expected - 1]).all()
    assert batch.masked_lm_weights.all() and (batch.masked_lm_ids >= FIRST).all()
    rows = np.arange(64)[:, None]
    assert (batch.input_ids[rows, batch.masked_lm_positions] == MASK).all()
    assert all(len({*row}) == len(row) for row in batch.masked_lm_positions.tolist())
    assert (batch.sequence_ids.max(axis=1) > 1).any() == packing
    assert all(
        (a == b).all() for a, b in zip(batch, RandomRows(data, 300, batch_size=64, seed=0).batch(5), strict=True)
    )
    assert batch.input_ids.max() < 300 and {array.dtype for array in batch} == {np.dtype('i4'), np.dtype('f4')}


MODELS = {
    'bert_mini': config.Bert(num_layers=4, hidden_size=256, num_heads=4, intermediate_size=1024),
    'bert_base': config.Bert(),
    'bert_large': config.Bert(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096),
    'modernbert_base': config.ModernBert(),
    'eurobert_210m': config.EuroBert(),
    'eurobert_fewer_kv_heads_than_devices': config.EuroBert(num_key_value_heads=2),
}


@pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)
def test_matmuls_of_the_ceiling_add_up_to_the_flops_of_the_step(model: config.Model) -> None:
    rows, length, vocabulary = 256, 512, 30592  # a multiple of 128, so that nothing is padded
    chosen = config.Config(
        model=model,
        data=config.Data(sequence_length=length, pairing='nsp' if model.LEARNS_PAIRS else 'none'),
        train=config.Train(global_batch_size=rows),
    )
    predictions = rows * config.num_predictions(chosen.data)
    counted = flops_per_step(
        model,
        vocabulary,
        tokens=rows * length,
        squared_lengths=rows * length**2,
        predictions=predictions,
        sequences=rows,
    )
    listed = step_matmuls(chosen, vocabulary, ONE_DEVICE)
    next_sentence = 6 * rows * 2 * model.hidden_size * model.LEARNS_PAIRS  # too small to time
    # Blocks of 64 queries are multiplied with 192 keys, of which each query sees 129; in 14 layers.
    unseen = 14 * 12 * rows * length * 768 * (192 - 129) * (model.family == 'modernbert')
    assert training_flops(listed) + next_sentence == counted + unseen
    split = step_matmuls(chosen, vocabulary, {'data': 2, 'fsdp': 4, 'tensor': 4})
    assert training_flops(split) * 32 == pytest.approx(training_flops(listed), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize('family', PLANNED_FAMILIES)
def test_bench_measures_the_real_step(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = planned_run(family, **{'data.corpus': 'none/here'})
    # With several steps in flight, eight simulated devices can wait for each other longer than XLA allows.
    one_device = make_mesh(config.Mesh(), chosen.model, chosen.train, jax.devices()[:1])
    monkeypatch.setattr(bench, 'mesh_of_run', lambda _: one_device)
    result = bench.bench(chosen, seconds=0.0)
    assert result.num_devices == 1 and result.rounds >= 5
    assert 'random ids' in result.data and 'none/here' in result.data
    assert result.parameters == num_parameters(chosen.model, 1000)
    assert result.flops_per_step == full_batch_flops(chosen, chosen.tokenizer.vocab_size)
    assert result.tokens_per_second == pytest.approx(16 * 32 / result.step_seconds)
    assert result.sequences_per_second == pytest.approx(16 / result.step_seconds)
    assert 0 < result.ceiling_fraction and 0 < result.mfu < 1 and 0 <= result.input_wait_fraction <= 1
    assert result.fastest_seconds <= result.step_seconds <= result.slowest_seconds
    documented = (
        'step_seconds sequences_per_second tokens_per_second mfu ceiling_fraction compile_seconds peak_memory_bytes '
        'input_wait_fraction'
    )
    assert {*documented.split()} <= dataclasses.asdict(result).keys()
    assert f'{result.parameters:,} parameters' in bench.describe(result)


def test_rounds_end_after_the_seconds_off_a_terminal() -> None:
    run: Any = SimpleNamespace(run_steps=lambda count: bench.StepSeconds(1.0, 0.0))

    def time_matmul() -> float:
        time.sleep(0.01)
        return 1.0

    started = time.perf_counter()
    rounds = bench._measure_rounds(run, time_matmul, time_matmul, 0.4)
    assert 0.4 <= time.perf_counter() - started < 4.0 and len(rounds) > bench._MIN_ROUNDS
