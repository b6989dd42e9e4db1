"""A phase sets what it names and inherits the rest; durations in tokens and in steps mean the same."""

import dataclasses
import json
import math
from typing import Any

import pytest

from bert_jax import config
from bert_jax.config.fields import identity_of
from bert_jax.errors import BadInput

MODERN = {'model': {'family': 'modernbert'}, 'data': {'pairing': 'none'}}


def _resolve(*phases: Any, **sections: dict[str, Any]) -> config.Config:
    values = {'optimizer': {'warmup_steps': 0}} | sections | {'phases': phases}
    return config.resolve(values)


def test_phases_change_every_section_and_inherit_the_rest() -> None:
    run = _resolve(
        {'steps': 6, 'masking': {'rate': 0.3}},
        {
            'steps': 4,
            'schedule': '1-sqrt',
            'weight_decay': 0.5,
            'masking': {'unit': 'word', 'mask_fraction': 1, 'random_fraction': 0},
            'global_rope_theta': 160_000,
            'local_attention': 64,
        },
        **{name: dict(values) for name, values in MODERN.items()},
    )
    first, second = run.in_phases
    assert first == dataclasses.replace(
        run,
        phases=(),
        train=dataclasses.replace(run.train, steps=6),
        data=dataclasses.replace(run.data, masking=config.Masking(rate=0.3)),
    )
    masking = config.Masking(unit='word', mask_fraction=1.0, random_fraction=0.0)
    assert second == dataclasses.replace(
        run,
        phases=(),
        train=dataclasses.replace(run.train, steps=4),
        optimizer=dataclasses.replace(run.optimizer, schedule='1-sqrt', weight_decay=0.5),
        data=dataclasses.replace(run.data, masking=masking),
        model=dataclasses.replace(run.model, global_rope_theta=160_000.0, local_attention=64),
    )
    assert [config.model_at(run, step) for step in (0, 6, 7, 10)] == [first.model] * 2 + [second.model] * 2


def test_tokens_become_steps_of_the_rows_of_their_phase() -> None:
    run = _resolve(
        {'tokens': 1e6, 'warmup_tokens': 1e5},
        {'tokens': 500_000, 'sequence_length': 512, 'global_batch_size': 8, 'decay_tokens': 2e5, 'schedule': 'wsd'},
        {'steps': 3, 'warmup_steps': 1},
        data={'sequence_length': 128},
        train={'global_batch_size': 32},
        optimizer={'warmup_tokens': 40_960},
    )
    first, second, third = (phase for phase in run.in_phases)
    assert (first.train.steps, first.optimizer.warmup_steps) == (math.ceil(1e6 / 4096), math.ceil(1e5 / 4096))
    assert (second.train.steps, second.optimizer.warmup_steps) == (math.ceil(5e5 / 4096), 10)
    assert second.optimizer.decay_steps == math.ceil(2e5 / 4096)
    assert (third.train.steps, third.optimizer.warmup_steps) == (3, 1)
    assert run.train.steps == first.train.steps + second.train.steps + 3
    single = config.resolve({'train': {'tokens': 1e6, 'global_batch_size': 10}, 'optimizer': {'warmup_tokens': 1281}})
    assert (single.train.steps, single.optimizer.warmup_steps) == (math.ceil(1e6 / 1280), 2)


@pytest.mark.parametrize('unit', ['tokens', 'steps'])
def test_decay_of_the_run_is_replaced_in_any_unit(unit: str) -> None:
    optimizer = {'warmup_steps': 0, 'schedule': 'wsd', f'decay_{unit}': 4 * (4096 if unit == 'tokens' else 1)}
    sections = {'data': {'sequence_length': 128}, 'train': {'global_batch_size': 32}, 'optimizer': optimizer}
    phases = ({'steps': 10}, {'steps': 10, 'global_batch_size': 16}, {'steps': 10, 'decay_fraction': 0.2})
    run = _resolve(*phases, {'steps': 10, 'decay_tokens': 8192}, {'steps': 10, 'decay_steps': 3}, **sections)
    halved = 8 if unit == 'tokens' else 4
    assert [phase.optimizer.decay_steps for phase in run.in_phases] == [4, halved, 0, 2, 3]


def test_resolved_phases_resolve_to_themselves() -> None:
    run = _resolve(
        {'tokens': 1e6, 'decay_fraction': 0.5, 'masking': {'rate': 0.4}},
        {'steps': 9, 'warmup_tokens': 4096, 'final_fraction': 0.1, 'decay': 'cosine'},
        optimizer={'warmup_steps': 3, 'schedule': 'wsd', 'decay_tokens': 8192},
    )
    assert config.resolve(json.loads(json.dumps(dataclasses.asdict(run)))) == run


def test_identity_holds_steps_and_only_the_newer_fields_that_are_set() -> None:
    in_tokens = _resolve({'tokens': 81_920, 'warmup_tokens': 1e4, 'sequence_length': 64, 'global_batch_size': 128})
    in_steps = _resolve({'steps': 10, 'warmup_steps': 2, 'sequence_length': 64, 'global_batch_size': 128})
    assert identity_of(in_tokens) == identity_of(in_steps)
    assert identity_of(in_steps)['phases'] == [
        {'steps': 10, 'sequence_length': 64, 'global_batch_size': 128, 'peak_learning_rate': 1e-4, 'warmup_steps': 2}
    ]
    newer = _resolve({'steps': 10, 'masking': {'rate': 0.3}, 'weight_decay': 0.0})
    assert identity_of(newer)['phases'][0].items() >= {'weight_decay': 0.0, 'masking': {'rate': 0.3}}.items()


@pytest.mark.parametrize(
    'phases, sections, words',
    [
        ([{'steps': 5, 'tokens': 1e6}], {}, r'phases\[0\].tokens: is 1,000,000, which takes 31 steps of 32,768 tokens'),
        ([{'steps': 50, 'warmup_steps': 1, 'warmup_tokens': 1e5}], {}, r'fix: +--config.phases\[0\].warmup_steps=4'),
        ([{'tokens': 1e6}, {'tokens': 5e5}], {'train': {'tokens': 2e6}}, 'but the phases add up to 1,500,000'),
        ([{'tokens': 0.5}], {}, r'phases\[0\].tokens: is 0.5'),
        (
            [{'steps': 9, 'decay_steps': 10}],
            {'optimizer': {'schedule': 'wsd', 'warmup_steps': 0}},
            'more than the phase',
        ),
        (
            [{'steps': 9, 'warmup_steps': 2, 'decay_steps': 8, 'schedule': 'wsd'}],
            {},
            r'decay_steps: is 8, with warmup_steps=2, more than the phase has steps\n.*\n.*decay_steps=7',
        ),
        ([{'steps': 9, 'masking': {'mask_fraction': 0.95}}], {}, r'phases\[0\].masking: mask_fraction=0.95'),
        ([{'steps': 9, 'masking': {'rat': 0.5}}], {}, r'did you mean config.phases\[0\].masking.rate'),
        ([{'steps': 9, 'masking': {'rate': 1.5}}], {}, r'phases\[0\].masking.rate: is 1.5'),
        ([{'steps': 9, 'global_rope_theta': 1e5}], {}, r'phases\[0\].global_rope_theta: .* family bert has no'),
        ([{'steps': 9, 'rope_theta': 1e5}], MODERN, 'expected: global_rope_theta'),
        ([{'steps': 9, 'decay': 'inverse_sqrt', 'schedule': 'wsd'}], {}, r'phases\[0\].final_fraction: is 0'),
        ([{'steps': 9, 'schedule': 'sqrt'}], {}, r"phases\[0\].schedule: is 'sqrt'"),
        (
            [{'tokens': 1e6}],
            {'data': {'source': 'tfrecord:x'}},
            r'phases\[0\].tokens: .*\n.*known only from the records',
        ),
    ],
)
def test_impossible_phases_are_rejected_with_what_works(phases: list, sections: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        _resolve(*phases, **sections)


def test_steps_and_tokens_of_a_run_must_agree() -> None:
    with pytest.raises(BadInput, match=r'train.tokens: is 1,000,000, which takes 31 steps[^$]*--config.train.steps=31'):
        config.resolve({'train': {'tokens': 1e6, 'steps': 30}, 'optimizer': {'warmup_steps': 0}})
    assert config.resolve({'train': {'tokens': 1e6, 'steps': 31}, 'optimizer': {'warmup_steps': 0}}).train.steps == 31


def test_a_number_of_steps_that_the_phases_replace_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    _resolve({'steps': 6}, {'steps': 4}, train={'steps': 10})
    assert not capsys.readouterr().err
    assert _resolve({'steps': 6}, {'steps': 4}, train={'steps': 100}).train.steps == 10
    assert 'train.steps=100 is ignored: the phases have 10 steps together' in capsys.readouterr().err
