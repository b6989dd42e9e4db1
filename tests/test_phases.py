"""Each phase has its own schedule, and a run resumes bit for bit within a phase and between phases."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax import config
from bert_jax.data.streams import open_streams
from bert_jax.errors import BadInput
from bert_jax.evaluation.evaluate import evaluate
from bert_jax.pretrain import pretrain
from bert_jax.pretrained.export import export
from bert_jax.pretrained.load import load_pretrained
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.optimizer import make_schedule
from bert_jax.train.program import TrainProgram, build_program
from bert_jax.train.speed import Speedometer
from bert_jax.workdir.checkpoint import restore_on
from tests.support.configs import PHASES, as_config, prepared
from tests.support.runs import assert_same_run, copy_stopped_at, metric_lines

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]


def test_each_phase_has_its_own_learning_rate_schedule() -> None:
    schedule = make_schedule(config.Optimizer(), 12, PHASES)
    alone = [
        make_schedule(config.Optimizer(peak_learning_rate=p.peak_learning_rate, warmup_steps=p.warmup_steps), p.steps)
        for p in PHASES
    ]
    expected = [float(alone[0](step)) for step in range(6)] + [float(alone[1](step)) for step in range(6)]
    np.testing.assert_allclose([float(schedule(step)) for step in range(12)], expected, rtol=1e-6)
    assert expected[2] == pytest.approx(1e-2) and expected[7] == pytest.approx(5e-3)


@pytest.fixture(scope='module')
def run(one_device, tmp_path_factory) -> tuple[config.Config, Path]:
    """Returns a config of two packed phases, and the workdir of its uninterrupted run with all checkpoints."""
    directory = tmp_path_factory.mktemp('phases')
    changes = {'phases': PHASES, 'data__packing': True, 'train__checkpoint_every': 3, 'train__keep_checkpoints': 4}
    resolved = as_config(prepared(directory, **changes, train__examples=()))
    assert pretrain(resolved, str(directory / 'run')).step == 12
    return resolved, directory / 'run'


@pytest.mark.slow
@pytest.mark.parametrize('stopped_at', [6, 9])  # between the phases, inside the second
def test_run_resumes_exactly(run, tmp_path: Path, stopped_at: int) -> None:
    resolved, finished = run
    workdir = tmp_path / 'run'
    copy_stopped_at(stopped_at, finished, workdir)
    outcome = pretrain(resolved, str(workdir))
    assert outcome.resumed_from == stopped_at and outcome.finished
    assert_same_run(workdir, finished)


def test_reports_and_files_show_both_phases(run) -> None:
    resolved, finished = run
    found = [line for line in metric_lines(finished) if 'loss' in line]
    assert [line['step'] for line in found] == list(range(1, 13))
    schedule = make_schedule(resolved.optimizer, 12, PHASES)
    rates = [float(schedule(step)) for step in range(12)]
    np.testing.assert_allclose([line['learning_rate'] for line in found], rates, rtol=1e-5)
    lines = (finished / 'metrics.jsonl').read_text().splitlines()
    waits = [json.loads(line).get('input_wait_fraction') for line in lines]
    assert all(0 <= wait <= 1 for wait in waits if wait is not None) and any(wait is not None for wait in waits)


# --- Phases that change the model, the masks and the optimizer. ---

_MODERNBERT = {
    'model__family': 'modernbert',
    'model__num_layers': 3,
    'model__global_rope_theta': 10_000.0,
    'model__local_attention': 8,
    'model__attention_dropout': 0.1,
    'data__pairing': 'none',
    'data__packing': True,
    'data__masking': {'rate': 0.3},
    'optimizer__schedule': 'constant',
    'optimizer__warmup_steps': 0,
    'train__checkpoint_every': 1,
    'train__keep_checkpoints': 8,
    'train__examples': (),
}
_KINDS = (
    {'steps': 2, 'warmup_steps': 1},
    # the context is extended: longer rows, as many tokens, longer wavelengths
    {'steps': 2, 'sequence_length': 64, 'global_batch_size': 8, 'global_rope_theta': 160_000, 'local_attention': 16},
    {
        'tokens': 1024,
        'microbatches': 2,
        'masking': {'rate': 0.1, 'unit': 'word', 'mask_fraction': 1.0, 'random_fraction': 0.0},
    },
    {'steps': 2, 'peak_learning_rate': 1e-4, 'schedule': '1-sqrt', 'final_fraction': 0.1, 'weight_decay': 0.5},
)


@pytest.fixture(scope='module')
def changing(one_device, tmp_path_factory) -> tuple[config.Config, Path]:
    """Returns a config whose phases change everything that phases may change, and the workdir of its run."""
    directory = tmp_path_factory.mktemp('kinds')
    resolved = config.resolve(dataclasses.asdict(as_config(prepared(directory, **_MODERNBERT))) | {'phases': _KINDS})
    assert pretrain(resolved, str(directory / 'run')).step == 8
    return resolved, directory / 'run'


@pytest.mark.slow
@pytest.mark.parametrize('stopped_at', range(1, 8))
def test_run_resumes_inside_and_across_phases_of_every_kind(changing, tmp_path: Path, stopped_at: int) -> None:
    resolved, finished = changing
    copy_stopped_at(stopped_at, finished, tmp_path / 'run')
    assert pretrain(resolved, str(tmp_path / 'run')).resumed_from == stopped_at
    assert_same_run(tmp_path / 'run', finished)


@pytest.mark.parametrize('phase', [0, 1, 2, 3])
def test_phase_masks_at_its_own_rate(changing, phase: int) -> None:
    resolved, _ = changing
    streams = open_streams(resolved)
    batches = [streams.train[phase].batch(step) for step in range(20)]
    masking, mask_id = resolved.in_phases[phase].data.masking, streams.tokenizer.mask_id
    tokens = sum((batch.sequence_ids > 0).sum() for batch in batches)
    predicted = sum(batch.masked_lm_weights.sum() for batch in batches)
    replaced = sum((batch.input_ids == mask_id).sum() for batch in batches)
    assert masking.rate == (0.1 if phase == 2 else 0.3)
    assert predicted / tokens == pytest.approx(masking.rate, rel=0.1)
    assert replaced / predicted == pytest.approx(masking.mask_fraction, abs=0.03)


@pytest.mark.parametrize('step, theta', [(4, 160_000), (6, 10_000)])
def test_export_has_the_wavelengths_of_its_phase(changing, tmp_path: Path, step: int, theta: int) -> None:
    export(str(changing[1]), str(tmp_path / 'model'), step=step)
    written = json.loads((tmp_path / 'model' / 'config.json').read_text())
    assert written['global_rope_theta'] == written['rope_parameters']['full_attention']['rope_theta'] == theta
    card = (tmp_path / 'model' / 'README.md').read_text()
    assert '30% of the tokens; ' in card and 'then 10% of the tokens, by whole words' in card and '1-sqrt' in card


class _Asked(Exception):
    pass


@pytest.mark.parametrize('step, theta, window', [(2, 1e4, 8), (3, 1.6e5, 16), (4, 1.6e5, 16), (5, 1e4, 8)])
def test_weights_of_a_step_belong_to_the_model_of_its_phase(
    changing, monkeypatch, step: int, theta: float, window: int
) -> None:
    resolved, finished = changing
    expected = dataclasses.replace(resolved.model, global_rope_theta=theta, local_attention=window)
    assert load_pretrained(f'{finished}@{step}').config == expected

    def asked(_params: object, program: TrainProgram, *_: object) -> None:
        raise _Asked(program.model)

    monkeypatch.setattr('bert_jax.evaluation.evaluate.evaluate_params', asked)
    with pytest.raises(_Asked) as raised:
        evaluate(str(finished), step)
    assert raised.value.args == (expected,)


@pytest.mark.parametrize('step', [2, 3, 5])
def test_step_of_a_phase_trains_its_model_on_its_rows(changing, step: int) -> None:
    """Repeats the step after a checkpoint with a program of the model of the phase alone."""
    resolved, finished = changing
    streams, index = open_streams(resolved), config.phase_at(resolved, step)
    model = dataclasses.replace(
        resolved.model, **({'global_rope_theta': 1.6e5, 'local_attention': 16} if index == 1 else {})
    )
    vocab_size, train = streams.tokenizer.vocab_size, resolved.train
    mesh = make_mesh(resolved.mesh, model, train, jax.devices())
    before, after = (restore_on(mesh, str(finished), resolved, vocab_size, at) for at in (step - 1, step))
    program = build_program(model, resolved.optimizer, train, vocab_size, mesh, phases=resolved.phases)
    batch = streams.train[index].batch((step - 1) % 2)  # every phase has two steps
    found, _ = program.train_step(before, batch)
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)


def test_only_waiting_with_idle_devices_counts() -> None:
    class Step:
        def __init__(self, is_ready: bool):
            self.is_ready = lambda: is_ready

    waited = {}
    for is_ready in (True, False):
        speed = Speedometer.__new__(Speedometer)
        speed._waited, speed._newest = 0.0, Step(is_ready)
        assert list(speed.waiting(iter(range(3)))) == [0, 1, 2]
        waited[is_ready] = speed._waited
    assert waited[True] > 0 and waited[False] == 0


@pytest.mark.slow
def test_run_in_buckets_resumes_exactly(run, tmp_path: Path) -> None:
    resolved, _ = run
    values = dataclasses.asdict(resolved) | {'phases': []}
    values['data'] |= {'packing': False, 'sequence_length': 32, 'bucket_lengths': (16,), 'pairing': 'none'}
    values['data'] |= {'short_sequence_probability': 0.7}
    values['train'] |= {'steps': 12, 'global_batch_size': 16}
    values['optimizer'] |= {'warmup_steps': 2}
    resolved = config.resolve(values)
    assert pretrain(resolved, str(tmp_path / 'whole')).step == 12
    copy_stopped_at(6, tmp_path / 'whole', tmp_path / 'stopped')
    assert pretrain(resolved, str(tmp_path / 'stopped')).resumed_from == 6
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')
    stream = open_streams(resolved).train[0]
    assert {stream.batch(step).input_ids.shape for step in range(12)} == {(16, 16), (16, 32)}
    with pytest.raises(BadInput, match='data.bucket_lengths'):
        pretrain(
            dataclasses.replace(resolved, data=dataclasses.replace(resolved.data, bucket_lengths=())),
            str(tmp_path / 'whole'),
        )
