"""`doctor` finds every problem of text and settings, and reports none for a good run."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from bert_jax import config
from bert_jax.cli.diagnose import diagnose
from bert_jax.text import prepare
from bert_jax.text.corpus import load_corpus
from tests.support.commands import run
from tests.support.configs import as_config, tiny_run
from tests.support.processes import ROOT

WORDS = 'river stone house garden winter summer letter window market bridge doctor teacher'.split()


def _sentence(index: int) -> str:
    return ' '.join(WORDS[(index * step + step) % len(WORDS)] for step in range(1, 8)) + f' number {index}.'


def _text(documents: int, sentences: int, repeat: int = 10**9) -> str:
    return '\n\n'.join(
        '\n'.join(_sentence((document * sentences + line) % repeat) for line in range(sentences))
        for document in range(documents)
    )


def _diagnose(tmp_path: Path, text: str, **changes: object) -> str:
    """Returns the problems of a small run on this text, as one string."""
    (tmp_path / 'text.txt').write_text(text)
    small = {
        'tokenizer.vocab_size': 200,
        'model.num_layers': 2,
        'model.num_heads': 2,
        'model.hidden_size': 128,
        'model.max_positions': 512,
        'train.steps': 40,
        'train.global_batch_size': 8,
        'optimizer.warmup_steps': 4,
    }
    resolved = as_config(tiny_run(tmp_path) | small | changes)
    prepare.prepare(resolved.data, resolved.tokenizer, progress=False)
    return '\n'.join(map(str, diagnose(resolved, str(tmp_path / 'run'))))


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'model.family': 'modernbert', 'data.pairing': 'none', 'data.packing': True},
        {'model.family': 'eurobert', 'data.pairing': 'none', 'data.packing': True},
    ],
    ids=config.FAMILIES,
)
def test_good_run_has_no_problem(changes: dict[str, object], tmp_path: Path) -> None:
    assert _diagnose(tmp_path, _text(700, 6), **changes) == ''


def test_each_weakness_is_a_warning_with_a_fix(tmp_path: Path) -> None:
    cases = {
        'sentences repeat earlier ones': (_text(300, 6, repeat=50), {}),
        'are one sentence': (_text(900, 1), {}),
        'one document holds': (_text(200, 2) + '\n\n' + _text(1, 3000), {}),
        'training documents to take random next sentences from': (_text(40, 30), {}),
        'epochs of the training text': (_text(300, 6), {'train.steps': 100_000}),
        '--config.data.packing=True (': (_text(900, 2), {'data.sequence_length': 128}),
        'masked tokens': (_text(120, 6), {}),
        'are [UNK]': (_text(300, 6), {'tokenizer.path': str(_poor_vocabulary(tmp_path))}),
        'this text yields no more': (_text(300, 6), {'tokenizer.vocab_size': 5000}),
    }
    for index, (expected, (text, changes)) in enumerate(cases.items()):
        directory = tmp_path / str(index)
        directory.mkdir()
        found = _diagnose(directory, text, **changes)
        assert found.startswith('warning') and expected in found and 'fix:' in found, (expected, found)


@pytest.mark.parametrize(
    ('config', 'overrides', 'where', 'flags'),
    [
        ('bert.py:tiny', {'train.steps': 1_000_000}, 'config.train.steps', 2),
        ('bert.py:tiny', {'optimizer.warmup_steps': 0}, 'config.train.steps', 1),
        ('bert_two_phase.py:tiny', {'data.sequence_length': 32}, 'config.train.steps', 4),
        (
            'bert.py:tiny',
            {'tokenizer.vocab_size': 5000, 'train.steps': 40, 'optimizer.warmup_steps': 4},
            'tokenizer',
            1,
        ),
        ('bert.py:tiny', {'train.steps': 40}, 'config.optimizer.warmup_steps', 1),
        ('bert.py:tiny', {'data.sequence_length': 1024}, 'config.data.sequence_length', 1),
        ('bert.py:tiny', {'train.microbatches': 3}, 'config.train.microbatches', 1),
    ],
)
def test_suggested_flags_solve_the_problem(
    config: str, overrides: dict[str, object], where: str, flags: int, tmp_path: Path, capsys
) -> None:
    (tmp_path / 'text.txt').write_text(_text(100, 6))
    own = {'data.source': f'text:{tmp_path}/text.txt', 'data.corpus': 'corpus', 'tokenizer.vocab_size': 150} | overrides
    arguments = [f'--config={config}', *(f'--config.{name}={value}' for name, value in own.items())]
    prepared = ['data.source', 'data.corpus', 'tokenizer.vocab_size']
    assert (
        run(['prepare', '--config=bert.py:tiny', *(f'--config.{name}={own[name]}' for name in prepared)], tmp_path) == 0
    )

    def problems(*more: str) -> list[dict[str, str]]:
        capsys.readouterr()
        status, printed = run(['doctor', *arguments, *more, '--json'], tmp_path), capsys.readouterr()
        found = json.loads(printed.out)['problems']
        assert status == (2 if any(problem['level'] == 'error' for problem in found) else 0), printed.err
        return [problem for problem in found if where in problem['where']]

    [problem] = problems()
    suggested = re.findall(r'--config\.[^ ,;]+', problem['mend'])
    assert len(suggested) == flags and not problems(*suggested), suggested


def test_wrong_vocabulary_size_and_missing_tokens_are_reported(tmp_path: Path, monkeypatch) -> None:
    opened = []
    monkeypatch.setattr('bert_jax.cli.diagnose.load_corpus', lambda *args: opened.append(args) or load_corpus(*args))
    monkeypatch.setattr('bert_jax.data.streams.load_corpus', None)  # the corpus is open already
    _diagnose(tmp_path, _text(300, 6))
    chosen = config.resolve(
        {'data': {'corpus': str(tmp_path / 'corpus'), 'sequence_length': 32}, 'tokenizer': {'vocab_size': 100}}
    )
    assert any('whatever the config says' in problem.found for problem in diagnose(chosen)) and len(opened) == 2
    (tmp_path / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\nhouse\n')
    chosen = dataclasses.replace(chosen, tokenizer=config.Tokenizer(path=f'{tmp_path}/vocab.txt'))
    first = diagnose(chosen)[0]
    assert (first.level, first.found) == ('error', 'has no [MASK]')


def test_ignored_tokenizer_setting_is_reported_once(tmp_path: Path, capsys) -> None:
    _diagnose(tmp_path, _text(300, 6))
    data = [f'--config.data.corpus={tmp_path}/corpus', f'--config.data.source=text:{tmp_path}/text.txt']
    tokenizer = [f'--config.tokenizer.path={tmp_path}/corpus/tokenizer', '--config.tokenizer.lowercase=False']
    capsys.readouterr()
    run(['doctor', f'--config={ROOT}/configs/demo.py', *data, *tokenizer], tmp_path)
    printed = ''.join(capsys.readouterr())
    assert printed.count('config.tokenizer.lowercase: is False, but is not used') == 1
    assert 'is ignored' not in printed


def _poor_vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / 'vocab.txt'
    path.write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS, 'number', '.']) + '\n')
    return path


def test_all_errors_are_reported_together_with_status_2(tmp_path: Path, capsys) -> None:
    def errors(*overrides: str) -> list[str]:
        assert run(['doctor', f'--config={ROOT}/configs/demo.py', *overrides, '--json'], tmp_path) == 2
        problems = json.loads(capsys.readouterr().out)['problems']
        assert all(set(problem) == {'level', 'where', 'found', 'expected', 'mend'} for problem in problems)
        return [problem['found'] for problem in problems if problem['level'] == 'error']

    found = errors('--config.mesh.data=3', '--config.train.keep_checkpoints=100000000', '--config.data.corpus=no')
    assert [any(words in one for one in found) for words in ('is data=3', 'GiB free', 'not a corpus')] == [True] * 3
    [found] = errors('--config.data.sequence_length=1024')
    assert 'more than the model has positions' in found
