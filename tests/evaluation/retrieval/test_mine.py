"""`mine` writes the negatives that brute force finds, and never a positive."""

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bert_jax.evaluation.retrieval import mine as mine_module
from bert_jax.evaluation.retrieval.mine import Mined, Mining
from bert_jax.evaluation.retrieval.pairs import open_pairs
from bert_jax.evaluation.retrieval.search import Hits
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.sentences import RetrievalSettings
from tests.support.commands import run
from tests.support.models import TOKENS, write_model
from tests.support.retrieval import write_lines

WORDS = [token for token in TOKENS if token.isalpha() and len(token) > 1 and not token.startswith('[')]


def _sentence(rng: np.random.Generator) -> str:
    return ' '.join(rng.choice(WORDS, rng.integers(2, 7)))


@pytest.fixture(scope='module')
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a model, 30 pairs with repeated anchors and positives, and further passages equal to some of them."""
    directory = tmp_path_factory.mktemp('mine')
    write_model(directory / 'model')
    rng = np.random.default_rng(0)
    anchors = [_sentence(rng) for _ in range(20)]
    positives = [f'{anchors[i % 20]} {rng.choice(WORDS)}' for i in range(25)]
    pairs = [(anchors[i % 20], positives[i % 25]) for i in range(30)]  # the last five positives do not fit
    write_lines(directory / 'pairs.jsonl', [{'id': i, 'anchor': a, 'positive': p} for i, (a, p) in enumerate(pairs)])
    passages = [*(_sentence(rng) for _ in range(40)), f' {anchors[0]} ', anchors[1], positives[0]]
    write_lines(directory / 'passages.jsonl', [{'_id': str(i), 'text': text} for i, text in enumerate(passages)])
    (directory / 'passages.txt').write_text('\n'.join(passages))
    return directory


def _mine(directory: Path, *flags: str, output: str = 'out.jsonl') -> list[dict[str, Any]]:
    command = ['mine', '--model=model', '--input=pairs.jsonl', f'--output={output}', *flags]
    assert run(command, directory) == 0
    return [json.loads(line) for line in (directory / output).read_text().splitlines()]


def _expected(
    directory: Path, n: int, skip: int, last: int, margin: float | None, relative: float | None
) -> dict[int, list[str]]:
    """Returns {id of a pair: its negatives} by sorting the cosines of all passages."""
    pairs = [json.loads(line) for line in (directory / 'pairs.jsonl').read_text().splitlines()]
    further = [json.loads(line)['text'].strip() for line in (directory / 'passages.jsonl').read_text().splitlines()]
    passages = [*dict.fromkeys([*(pair['positive'] for pair in pairs), *further])]
    model = load_pretrained(str(directory / 'model'))

    def vectors(texts: list[str]) -> np.ndarray:
        vectors, _ = model.mean_pooled(texts)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    scores = vectors([pair['anchor'] for pair in pairs]) @ vectors(passages).T
    negatives = {}
    for pair, row in zip(pairs, scores, strict=True):
        banned = {each['positive'] for each in pairs if each['anchor'] == pair['anchor']} | {pair['anchor']}
        ranked = [i for i in np.argsort(-row, kind='stable') if passages[i] not in banned][skip:last]
        positive = row[passages.index(pair['positive'])]
        limit = min(
            np.inf if m is None else m for m in (margin and positive - margin, relative and positive * (1 - relative))
        )
        if kept := [passages[i] for i in ranked if row[i] <= limit][:n]:
            negatives[pair['id']] = kept
    return negatives


@pytest.mark.compiles
@pytest.mark.parametrize(
    'n, skip, last, margin, relative',
    [(1, 0, 100, None, None), (3, 2, 100, None, None), (2, 4, 9, 0.02, None), (4, 0, 20, None, 0.03)],
)
def test_negatives_are_those_of_brute_force(
    n: int, skip: int, last: int, margin: float | None, relative: float | None, directory: Path, monkeypatch
) -> None:
    monkeypatch.setattr(mine_module, 'QUERY_ROWS', 8)
    monkeypatch.setattr(mine_module, 'PASSAGE_ROWS', 16)
    flags = [f'--negatives={n}', f'--skip_ranks={skip}', f'--max_rank={last}']
    flags += [f'--margin={margin}'] if margin else []
    flags += [f'--relative_margin={relative}'] if relative else []
    mined = _mine(directory, '--passages=passages.jsonl', *flags)
    found = {line['id']: [line['negative']] if n == 1 else line['negative'] for line in mined}
    expected = _expected(directory, n, skip, last, margin, relative)
    assert found == expected and [*found] == sorted(found) and len(found) > 5
    if margin:
        assert len(found) < 30  # some pairs have no negative, and are left out
    pairs = [json.loads(line) for line in (directory / 'pairs.jsonl').read_text().splitlines()]
    assert all(pairs[line['id']].items() <= line.items() for line in mined)


@pytest.mark.compiles
def test_output_is_the_same_for_text_passages_and_a_second_run(directory: Path) -> None:
    first = _mine(directory, '--passages=passages.jsonl', '--negatives=5')
    assert _mine(directory, '--passages=passages.txt', '--negatives=5', output='second.jsonl') == first
    without = _mine(directory, '--negatives=5')
    positives = {json.loads(line)['positive'] for line in (directory / 'pairs.jsonl').read_text().splitlines()}
    assert all({*line['negative']} <= positives for line in without)


@pytest.mark.compiles
def test_pairs_may_be_in_a_parquet_file(directory: Path, capsys: pytest.CaptureFixture) -> None:
    pairs = [json.loads(line) for line in (directory / 'pairs.jsonl').read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs), directory / 'pairs.parquet')
    assert run(['mine', '--model=model', '--input=pairs.parquet', '--output=parquet.jsonl'], directory) == 0
    assert (directory / 'parquet.jsonl').read_text().splitlines() == [json.dumps(line) for line in _mine(directory)]
    dated = [pair | {'day': datetime.date(2026, 1, 1)} for pair in pairs]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(dated), directory / 'dated.parquet')
    assert run(['mine', '--model=model', '--input=dated.parquet', '--output=dated.jsonl'], directory) == 2
    assert 'has a value that JSON cannot hold' in capsys.readouterr().err and not (directory / 'dated.jsonl').exists()


@pytest.mark.parametrize(
    'name', ['in.jsonl', 'in.ndjson', 'in.ndjson.gz', 'in.csv', 'in.tsv', 'in.parquet', 'in.txt', 'in.txt.gz']
)
def test_passages_have_the_format_of_their_suffix(name: str, tmp_path: Path) -> None:
    write_lines(tmp_path / 'pairs.jsonl', [{'anchor': 'a', 'positive': 'b'}])
    records = [{'title': 'the', 'text': 'film'}, {'title': '', 'text': 'ada is "in" town'}]
    content = {
        'jsonl': '\n'.join(map(json.dumps, records)),
        'csv': 'title,text\nthe,film\n,"ada is ""in"" town"\n',
        'tsv': 'title\ttext\nthe\tfilm\n\tada is "in" town\n',
        'txt': 'the film\n\nada is "in" town\n',
    }
    kind = name.split('.')[1].replace('ndjson', 'jsonl')
    if kind == 'parquet':
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / name)
    else:
        (tmp_path / name).write_bytes((gzip.compress if name.endswith('.gz') else bytes)(content[kind].encode()))
    with open_pairs(str(tmp_path / 'pairs.jsonl'), ('anchor', 'positive'), str(tmp_path / name)) as pairs:
        assert [*pairs.passages] == ['b', 'the film', 'ada is "in" town']


@pytest.mark.compiles
def test_a_single_pair_has_no_negative(tmp_path: Path, directory: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / 'model').symlink_to(directory / 'model')
    (tmp_path / 'pairs.tsv').write_text('q\tp\nthe film\ta great film\n')
    flags = ['--model=model', '--input=pairs.tsv', '--output=out.jsonl', '--anchor=q', '--positive=p', '--json']
    assert run(['mine', *flags], tmp_path) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary['pairs'], summary['written'], summary['mean_negative_score']) == (1, 0, None)
    assert (tmp_path / 'out.jsonl').read_text() == ''


def test_relative_margin_lowers_the_limit_of_any_score() -> None:
    scores, positives = np.array([[0.5, 0.39, 0.1], [-0.4, -0.49, -0.6]], np.float32), np.array([0.4, -0.4])
    hits = Hits(scores, np.array([[7, 8, 9]] * 2))
    chosen = [*mine_module._filter(hits, positives, Mining(negatives=3, relative_margin=0.2))]
    assert [each.indices for each in chosen] == [[9], [8, 9]]  # at most 0.32, and at most -0.48


def test_settings_are_those_of_a_fine_tuned_workdir(tmp_path: Path, directory: Path, monkeypatch) -> None:
    embedding = {'pooling': 'cls', 'normalize': False, 'query_prompt': 'who: ', 'passage_prompt': 'the '}
    task = {'kind': 'embedding', 'sequence_length': 24}
    (tmp_path / 'run').mkdir()
    recorded = {'init': 'model', 'task': task, 'embedding': embedding}
    (tmp_path / 'run' / 'config.json').write_text(json.dumps({'config': recorded, 'fingerprint': {}}))
    monkeypatch.setattr('bert_jax.finetune.load.load_model', lambda name: name)
    used: list[Any] = []

    def mine(pairs: object, model: object, settings: RetrievalSettings, *_: object) -> Mined:
        used.extend([model, settings])
        return Mined('out.jsonl', 30, 0, 0, 0, 0, 0, None, None, 0.0)

    monkeypatch.setattr(mine_module, 'mine', mine)
    (tmp_path / 'pairs.jsonl').symlink_to(directory / 'pairs.jsonl')
    command = ['mine', '--model=run', '--input=pairs.jsonl', '--output=out.jsonl', '--passages_prompt=a ']
    assert run(command, tmp_path) == 0
    name, settings = used
    assert name == 'run' and (settings.queries.prompt, settings.passages.prompt) == ('who: ', 'a ')
    assert (settings.queries.modes, settings.queries.normalize, settings.queries.max_length) == (('cls',), False, 24)


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--input=none.jsonl'], ['none.jsonl: does not exist']),
        (['--input=empty.jsonl'], ['empty.jsonl: has no pairs']),
        (['--input=blank.jsonl'], ["blank.jsonl:2: has no text in the column 'positive'"]),
        (['--input=pairs.jsonl', '--anchor=question'], ["has no column 'question'", '--anchor=NAME']),
        (['--input=pairs.jsonl', '--skip_ranks=99', '--negatives=2'], ['leaves 1 ranks', '--max_rank=199']),
        (['--input=pairs.jsonl', '--output=pairs.jsonl'], ['--output=pairs.jsonl: is a file to read']),
        (['--input=pairs.jsonl', '--passages=blank.jsonl'], ['blank.jsonl:1: has no text']),
        (['--input=pairs.jsonl', '--passages=untitled.csv'], ['untitled.csv:2: has no text', 'column "text"']),
        (['--input=pairs.jsonl', '--passages=latin.txt'], ['latin.txt: holds', 'iconv']),
        (['--input=pairs.jsonl', '--passages=none.txt'], ['none.txt: is not a file']),
        (['--input=pairs.jsonl', '--similarity=l2'], ['--similarity=l2: is not supported']),
    ],
)
def test_bad_input_is_rejected_before_a_model_is_loaded(
    flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr('bert_jax.finetune.load.load_model', None)
    write_lines(tmp_path / 'pairs.jsonl', [{'anchor': 'a', 'positive': 'b'}])
    write_lines(tmp_path / 'blank.jsonl', [{'anchor': 'a', 'positive': 'b'}, {'anchor': 'a', 'positive': ' '}])
    (tmp_path / 'empty.jsonl').write_text('')
    (tmp_path / 'latin.txt').write_bytes('café\n'.encode('latin-1'))
    (tmp_path / 'untitled.csv').write_text('passage\nfilm\n')
    assert run(['mine', '--model=model', '--output=out.jsonl', *flags], tmp_path) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (tmp_path / 'out.jsonl').exists()
