"""A sweep file expands to its runs, each with the config of its command line, or is rejected."""

import itertools
import math
import statistics

import pytest

from bert_jax.cli.commands import COMMANDS
from bert_jax.cli.flags import config_of, parse
from bert_jax.config import bert
from bert_jax.errors import BadInput
from bert_jax.sweep.runs import expand
from tests.support.processes import ROOT

BASE = f'{ROOT}/configs/bert.py:tiny'
RATE, STEPS, DECAY = 'optimizer.peak_learning_rate', 'train.steps', 'optimizer.weight_decay'


def expanded(**parts):
    return expand({'base': BASE, **parts}, bert('tiny').to_dict(), 'sweeps/a')


def message(**parts):
    with pytest.raises(BadInput) as raised:
        expanded(**parts)
    return str(raised.value)


def test_runs_are_the_product_of_explicit_runs_grid_and_draws():
    runs = expanded(
        runs=[{'model.num_layers': 1}, {'model.num_layers': 3, 'data.pairing': 'none'}, {}],
        grid={RATE: [1e-3, 1e-2], STEPS: [20_000, 30_000, 40_000]},
        draws={DECAY: {'low': 0.0, 'high': 0.1}},
        num_draws=2,
        fixed={'train.seed': 7},
    )
    drawn = list(dict.fromkeys(run.config.optimizer.weight_decay for run in runs))
    explicit = [(1, 'nsp'), (3, 'none'), (2, 'nsp')]  # the base has two layers
    expected = list(itertools.product(explicit, [1e-3, 1e-2], [20_000, 30_000, 40_000], drawn))
    actual = [
        (
            (run.config.model.num_layers, run.config.data.pairing),
            run.config.optimizer.peak_learning_rate,
            run.config.train.steps,
            run.config.optimizer.weight_decay,
        )
        for run in runs
    ]
    assert actual == expected and len(drawn) == 2 and len(actual) == 36
    assert all(run.config.train.seed == 7 for run in runs)
    assert len({run.workdir for run in runs}) == 36 and all(run.workdir == f'sweeps/a/{run.name}' for run in runs)


def test_command_of_a_run_gives_its_config():
    runs = expanded(
        runs=[
            {'data.source': 'text:some where/*.txt', 'mesh.fsdp': -1, 'mesh.data': 2},
            {'model.scan_layers': False, 'tokenizer.lowercase': False, 'optimizer.eps': 1e-12, 'tokenizer.path': ''},
        ],
        grid={RATE: [1, 0.00012345678], 'data.masking.rate': [0.2]},
        draws={'train.seed': {'low': 0, 'high': 1000}, DECAY: {'low': 1e-6, 'high': 0.1, 'log': True}},
        num_draws=5,
    )
    for run in runs:
        values, rest = parse(COMMANDS['train'], run.train_command[4:])
        assert config_of(values) == run.config and values.workdir == run.workdir and not rest


def test_names_say_what_varies_and_are_safe_file_names():
    [one, other] = expanded(grid={RATE: [1e-3, 1e-5]}, fixed={'train.seed': 3})
    assert (one.name, other.name) == ('peak_learning_rate=0.001', 'peak_learning_rate=1e-05')
    named = expanded(runs=[{'name': 'a', STEPS: 10_001}, {'name': 'b', STEPS: 10_002}], grid={'train.seed': [1]})
    assert [run.name for run in named] == ['a,seed=1', 'b,seed=1']
    [masks] = expanded(grid={'data.masking.rate': [0.2]})
    assert masks.name == 'masking.rate=0.2'
    sources = [f'text:{"x" * 300}/{letter}' for letter in ('a b', 'a/b', 'a_b')]
    names = [run.name for run in expanded(grid={'data.source': sources})]
    assert len(set(names)) == 3 and all(len(name) < 140 and '/' not in name and ' ' not in name for name in names)
    assert [run.name for run in expanded(runs=[{}, {STEPS: 10_001}])] == ['base', 'steps=10001']


def _draws(count, seed=0, **draws):
    return [run.varied for run in expanded(draws=draws, num_draws=count, seed=seed)]


def test_draws_are_seeded_and_larger_num_draws_extends_them():
    draws = {RATE: {'low': 1e-5, 'high': 1e-2, 'log': True}, 'model.num_layers': {'choices': [1, 2, 3]}}
    few, many, others = _draws(5, **draws), _draws(40, **draws), _draws(5, seed=1, **draws)
    assert many[:5] == few and few != others
    assert [draw[RATE] for draw in _draws(5, **{RATE: draws[RATE]})] == [draw[RATE] for draw in few]


def test_draws_are_log_uniform_uniform_or_integers_within_their_range():
    rates = [draw[RATE] for draw in _draws(400, **{RATE: {'low': 1e-5, 'high': 1e-1, 'log': True}})]
    assert min(rates) >= 1e-5 and max(rates) <= 1e-1
    assert all(rate == float(f'{rate:.2e}') for rate in rates)  # three digits
    # log10 is uniform on (-5, -1): mean -3, standard deviation 4 / sqrt(12); five standard errors of the mean
    assert statistics.fmean(map(math.log10, rates)) == pytest.approx(-3, abs=5 * 4 / math.sqrt(12 * 400))
    decays = [draw[DECAY] for draw in _draws(400, **{DECAY: {'low': 0.0, 'high': 0.1}})]
    assert statistics.fmean(decays) == pytest.approx(0.05, abs=5 * 0.1 / math.sqrt(12 * 400))
    layers = {draw['model.num_layers'] for draw in _draws(4, **{'model.num_layers': {'low': 3, 'high': 6}})}
    assert layers == {3, 4, 5, 6} and {type(value) for value in layers} == {int}


def test_runs_with_different_text_or_tokenizer_get_separate_corpora():
    usual, small, again, longer = expanded(
        runs=[{'tokenizer.vocab_size': 30522}, {'tokenizer.vocab_size': 500}],
        grid={'data.sequence_length': [64, 128]},
        fixed={'data.corpus': 'corpora/c'},
    )
    assert usual.config.data.corpus == small.config.data.corpus == 'corpora/c'  # small: the second length
    assert again.config.data.corpus == longer.config.data.corpus != 'corpora/c'
    assert again.config.data.corpus.startswith('corpora/c-')
    [alone] = expanded(grid={'tokenizer.vocab_size': [500]}, fixed={'data.corpus': 'corpora/c'})
    assert alone.config.data.corpus == again.config.data.corpus  # independent of the other runs of the sweep
    defaults = {'tokenizer.lowercase': True, 'tokenizer.strip_accents': False}  # of a trained tokenizer
    [explicit] = expanded(grid={'tokenizer.vocab_size': [500]}, fixed={'data.corpus': 'corpora/c'} | defaults)
    assert explicit.config.data.corpus == alone.config.data.corpus
    [own] = expanded(runs=[{'tokenizer.vocab_size': 500, 'data.corpus': 'mine'}])
    assert own.config.data.corpus == 'mine'
    [fixed] = expanded(grid={'train.seed': [1]}, fixed={'tokenizer.vocab_size': 500})
    assert fixed.config.data.corpus == 'corpora/python-docs'  # nothing varies


@pytest.mark.parametrize(
    'parts, words',
    [
        ({'grid': {'optimizer.peak_learning_rat': [1]}}, 'did you mean config.optimizer.peak_learning_rate?'),
        ({'fixed': {'stepz': 1}, 'grid': {RATE: [1]}}, 'fixed: config.stepz: there is no such field'),
        ({'runs': [{'model.layers': 1}]}, 'runs: config.model.layers'),
        ({'grid': {'model': [{}]}}, 'there is no such field'),
        ({'gird': {RATE: [1]}}, 'did you mean grid?'),
        ({'grid': [RATE]}, 'of type dict'),
        ({'grid': {RATE: 0.1}}, 'a list of values'),
        ({'grid': {RATE: []}}, 'a list of values'),
        ({}, 'names no run'),
        ({'runs': []}, 'names no run'),
        ({'fixed': {RATE: 1}}, 'names no run'),
        ({'runs': [3]}, 'runs[0]: is 3'),
        ({'runs': [{RATE: 0.1, 'name': 'a'}, {RATE: 0.2}]}, 'runs[1]: has no name'),
        ({'runs': [{RATE: 0.1, 'name': 'a'}, {RATE: 0.2, 'name': 'a'}]}, 'each name once'),
        ({'runs': [{RATE: 0.1, 'name': '../a'}]}, 'letters, digits'),
        ({'grid': {RATE: [0.1]}, 'fixed': {RATE: 0.1}}, 'appears in fixed and in grid'),
        ({'grid': {RATE: [1e-3, 0.001]}}, 'are the same'),
        ({'runs': [{}, {'model.num_layers': 2}]}, 'runs base and num_layers=2: are the same'),
        ({'grid': {RATE: [0.1, -1.0]}}, 'run peak_learning_rate=-1.0: config.optimizer.peak_learning_rate: is -1.0'),
        ({'grid': {'model.num_heads': [2, 3]}}, 'run num_heads=3: config.model.num_heads'),
        ({'grid': {'data.pairing': ['nsp', 'npr']}}, "did you mean 'nsp'?"),
        ({'draws': {RATE: {'low': 1e-4, 'high': 1e-2}}}, 'num_draws'),
        ({'num_draws': 3, 'grid': {RATE: [1]}}, 'num_draws'),
        ({'num_draws': 3, 'draws': {RATE: {'low': 0.0, 'high': 1.0, 'log': True}}}, 'a low above 0'),
        ({'num_draws': 3, 'draws': {RATE: {'low': 2.0, 'high': 1.0}}}, 'low below high'),
        ({'num_draws': 3, 'draws': {RATE: {'low': 0.0, 'high': math.inf}}}, 'low below high'),
        ({'num_draws': 3, 'draws': {RATE: {'low': 0.1}}}, "{'choices': […]}"),
        ({'num_draws': 3, 'draws': {RATE: {'choices': []}}}, 'a list of values'),
        ({'num_draws': 3, 'draws': {'model.num_layers': {'choices': [1, 2]}}}, 'at most 2'),
        ({'num_draws': 3, 'seed': -1, 'draws': {RATE: {'low': 0.1, 'high': 0.2}}}, 'at least 0'),
        ({'grid': {'tokenizer.vocab_size': [500, 600], 'data.corpus': ['c']}}, 'a separate data.corpus for each'),
    ],
)
def test_invalid_sweeps_are_rejected_with_what_was_expected(parts, words):
    assert words in message(**parts)


def test_base_config_without_a_swept_field_is_rejected():
    with pytest.raises(BadInput, match='has no train.seed'):
        expand({'base': 'mine.py', 'grid': {'train.seed': [1]}}, {'data': {}, 'tokenizer': {}}, 'a')
