"""Cross-encoders: pairs with labels from 0 to 1 are read, ranked and measured, and open in sentence-transformers."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.config.finetuning import Task, Train, finetune, resolve
from bert_jax.data.labelled import Record
from bert_jax.errors import BadInput
from bert_jax.evaluation.retrieval import bm25
from bert_jax.evaluation.retrieval.dataset import read_set
from bert_jax.evaluation.retrieval.metrics import DEPTH, measure
from bert_jax.finetune.load import load_finetuned, load_model
from bert_jax.finetune.predict import FineTuned
from bert_jax.finetune.ranking import RankingSplit
from bert_jax.finetune.rows import make_rows
from bert_jax.finetune.tasks import read_task
from bert_jax.finetune.texts import cut_longest_first
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.pretrained.vectors import TextEncoder
from tests.support.commands import run
from tests.support.models import TOKENS, read_tokenizer, write_model
from tests.support.processes import ROOT
from tests.support.retrieval import write_names_set
from tests.support.tasks import BAD, GOOD, write_rankings

TASK = Task(kind='ranking', train='jsonl:train.jsonl', validation='jsonl:dev.jsonl', text='query', text_pair='passage')


def _split(queries: list[int], labels: list[float]) -> RankingSplit:
    rows = make_rows([[2, 3]] * len(labels), [2] * len(labels), np.float32(labels))
    return RankingSplit(rows, np.arange(len(labels)), Counter(), labels, queries)


def _write(path: Path, pairs: list[tuple[Any, ...]]) -> None:
    names = ('query', 'passage', 'label')
    path.write_text(''.join(json.dumps(dict(zip(names, pair, strict=False))) + '\n' for pair in pairs))


def test_metrics_equal_sklearn_and_brute_force() -> None:
    metrics = pytest.importorskip('sklearn.metrics')
    rng = np.random.default_rng(0)
    sizes = [2, 30, 15, 8]
    queries = rng.permutation(np.repeat(np.arange(4), sizes))
    labels = rng.integers(0, 5, len(queries)) / 4
    labels[[np.flatnonzero(queries == query)[0] for query in range(4)]] = 1
    scores = rng.permutation(len(queries)) / len(queries)
    names = ('mrr_at_10', 'average_precision', 'ndcg_at_10')
    found = _split(queries.tolist(), labels.tolist()).metrics(names, scores.tolist())
    assert tuple(found) == names
    of_query = [(labels[queries == query], scores[queries == query]) for query in range(4)]
    ndcg = [metrics.ndcg_score([gold], [predicted], k=10) for gold, predicted in of_query]
    ranks = [np.flatnonzero(gold[np.argsort(-predicted)] >= 0.5)[0] + 1 for gold, predicted in of_query]
    assert found['ndcg_at_10'] == pytest.approx(np.mean(ndcg), abs=1e-9)
    assert found['mrr_at_10'] == pytest.approx(np.mean([1 / rank if rank <= 10 else 0 for rank in ranks]), abs=1e-9)
    assert found['average_precision'] == pytest.approx(metrics.average_precision_score(labels >= 0.5, scores))


def test_constant_predictions_rank_relevant_passages_last() -> None:
    pytest.importorskip('sklearn')
    found = _split([0] * 4, [1.0, 0.0, 0.0, 0.0]).metrics(('mrr_at_10', 'average_precision'), [0.5] * 4)
    assert found == {'mrr_at_10': 0.25, 'average_precision': 0.25}


def test_predictions_are_sigmoids_of_logits_without_overflow() -> None:
    found = _split([0], [1.0]).predictions(np.float32([[-200.0], [0.0], [np.log(3)], [200.0]]))
    np.testing.assert_allclose(found, [0, 0.5, 0.75, 1], atol=1e-7)


def test_pairs_are_grouped_by_query_text(tmp_path: Path) -> None:
    _write(tmp_path / 'train.jsonl', [('ada', 'town', 0), ('bob', 'end', 0.25)])  # no relevant passage: allowed
    _write(tmp_path / 'dev.jsonl', [('ada', 'town', 1), ('bob', 'end', 0.75), ('ada', 'plot', 0)])
    _write(tmp_path / 'test.jsonl', [('ada', 'town')])
    task = dataclasses.replace(TASK, directory=str(tmp_path), predict='jsonl:test.jsonl')
    data = read_task(task, Train(), read_tokenizer(tmp_path))
    split = data.validation['dev']
    assert isinstance(split, RankingSplit)
    assert split.queries == [0, 1, 0] and split.gold == [1, 0.75, 0]
    assert data.num_outputs == 1 and data.labels == () and data.metrics == ('ndcg_at_10',)
    assert data.train.labels.tolist() == [0, 0.25] and data.predict is not None and not data.predict.gold


@pytest.mark.parametrize(
    'name, pairs, words',
    [
        ('train', [('ada', 'town', 1), ('ada', 'end', 1.5)], ['train.jsonl:2: has the label 1.5', 'from 0 to 1']),
        ('dev', [('ada', 'town', 1), ('ada', 'end', -1)], ['dev.jsonl:2: has the label -1']),
        ('dev', [('ada', 'town', 1), ('ada', 'end', 'yes')], ["dev.jsonl:2: has the label 'yes'", 'a number']),
        (
            'dev',
            [('ada', 'town', 1), ('bob', 'end', 0.25), ('bob', 'plot', 0)],
            ['dev.jsonl:2: has a query without a relevant passage', 'at least 0.5'],
        ),
    ],
)
def test_unusable_pair_is_reported_with_its_position(name: str, pairs: list, words: list, tmp_path: Path) -> None:
    for each in ('train', 'dev'):
        _write(tmp_path / f'{each}.jsonl', pairs if each == name else [('ada', 'town', 1)])
    with pytest.raises(BadInput) as caught:
        read_task(dataclasses.replace(TASK, directory=str(tmp_path)), Train(), read_tokenizer(tmp_path))
    assert all(word in str(caught.value) for word in words), caught.value


def test_passage_column_must_be_named_and_present(tmp_path: Path) -> None:
    given = finetune('ranking')
    given.init = 'models/mine'
    with pytest.raises(BadInput, match=r'config\.task\.text_pair: is empty'):
        resolve(given)
    (tmp_path / 'train.jsonl').write_text('{"query": "ada", "text": "town", "label": 1}\n')
    with pytest.raises(BadInput, match=r"train\.jsonl:1: has no column 'passage'"):
        read_task(dataclasses.replace(TASK, directory=str(tmp_path)), Train(), read_tokenizer(tmp_path))


def test_cut_equals_longest_first_of_tokenizers() -> None:
    tokenizers = pytest.importorskip('tokenizers')
    model = tokenizers.models.WordLevel({'a': 0, 'b': 1}, 'a')
    for room in (2, 5, 8):
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        tokenizer.enable_truncation(room, strategy='longest_first')
        for a, b in np.ndindex(12, 12):
            tokens = tokenizer.encode('a ' * a, 'b ' * b).tokens
            assert cut_longest_first(a, b, room) == (tokens.count('a'), tokens.count('b')), (a, b, room)


def _finetune(directory: Path, family: str, kind: str, epochs: float = 1.0) -> Path:
    """Fine-tunes a tiny model in a directory; returns the directory."""
    from tests.pretrained.test_sentence_export import MODELS

    write_model(directory / 'model', MODELS[family])
    write_rankings(directory / 'train.jsonl', 40, seed=0)
    write_rankings(directory / 'dev.jsonl', 16, seed=1)
    values = {'task.kind': kind, 'init': 'model', 'task.sequence_length': 22, 'optimizer.peak_learning_rate': 3e-3}
    values |= {'train.global_batch_size': 16, 'train.epochs': epochs}
    metrics = {} if kind == 'ranking' else {'task.metrics': "('spearman',)"}
    flags = [f'--config.{name}={value}' for name, value in (values | metrics).items()]
    config = f'--config={ROOT}/configs/finetune/ranking.py'
    assert run(['finetune', config, *flags, '--workdir=tuned'], directory) == 0
    return directory


@pytest.fixture(scope='module')
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a cross-encoder that has learned, in the workdir `tuned`."""
    return _finetune(tmp_path_factory.mktemp('ranking'), 'bert', 'ranking', epochs=8)


@pytest.mark.compiles
@pytest.mark.usefixtures('one_device')
def test_cross_encoder_learns_which_passages_are_relevant(tuned: Path) -> None:
    metrics = json.loads((tuned / 'tuned' / 'results.json').read_text())['metrics']
    assert [*metrics] == ['ndcg_at_10', 'mrr_at_10', 'average_precision'] and min(metrics.values()) > 0.9, metrics
    found = load_model(str(tuned / 'tuned')).predict([('film', f'a {GOOD[0]} film'), ('film', BAD[0])])
    good, bad = (each['score'] for each in found)
    assert 0 <= bad < 0.5 < good <= 1


@pytest.mark.compiles
@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize(
    'family, kind',
    [
        ('bert', 'ranking'),
        pytest.param('modernbert', 'ranking', marks=pytest.mark.slow),
        pytest.param('bert', 'regression', marks=pytest.mark.slow),
    ],
)
def test_export_scores_pairs_like_cross_encoder(family: str, kind: str, tuned: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip('sentence_transformers')
    directory = tuned if (family, kind) == ('bert', 'ranking') else _finetune(tmp_path, family, kind)
    trained = load_finetuned(str(directory / 'tuned' / 'seed-0'))
    assert run(['export', '--workdir=tuned', '--output=exported'], directory) == 0
    rng = np.random.default_rng(0)
    words = [token for token in TOKENS if token.isalpha() and len(token) > 1]
    pairs = [tuple(' '.join(rng.choice(words, n)) for n in lengths) for lengths in rng.integers(1, 24, (50, 2))]
    if kind == 'regression':  # cuts pairs of two long texts as the original BERT does
        pairs = [(first[:20], second) for first, second in pairs]
    exported = load_model(str(directory / 'exported'))
    assert exported.task.kind == kind and exported.predict(pairs) == trained.predict(pairs)
    encoder = sentence_transformers.CrossEncoder(str(directory / 'exported'), device='cpu')
    found = [each['score'] for each in trained.predict(pairs)]
    np.testing.assert_allclose(found, encoder.predict(pairs), atol=1e-5)
    assert np.ptp(found) > 1e-3
    # Without task.json it is a directory of another program, whose activation tells the kind.
    (directory / 'exported' / 'task.json').unlink()
    assert load_model(str(directory / 'exported')).task.kind == kind


@pytest.mark.compiles
@pytest.mark.usefixtures('one_device')
def test_reranked_row_has_the_first_hits_in_order_of_scores(tuned: Path, tmp_path: Path, capsys) -> None:
    directory = write_names_set(tmp_path / 'set')
    dataset, model = read_set(str(directory), 'test'), write_model(tmp_path / 'model')
    flags = [f'--model={model}', f'--retrieval={directory}', f'--rerank={tuned}/tuned', '--bm25=false']
    queries, passages = dataset.queries, [*dataset.passages()]
    vectors = [
        TextEncoder(load_pretrained(str(model)), SentenceSettings('')).encode(texts)[0] for texts in (queries, passages)
    ]
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in vectors]
    cosines = unit[0] @ unit[1].T
    cosines[dataset.same_id >= 0, dataset.same_id[dataset.same_id >= 0]] = -2
    found = load_finetuned(f'{tuned}/tuned/seed-0')
    ranked_by_model = [
        [int(index) for index in np.argsort(-row, kind='stable') if index != same]
        for same, row in zip(dataset.same_id, cosines, strict=True)
    ]
    logits = [_logits(found, query, passages) for query in queries]
    for depth in (1, 3, DEPTH):
        assert run(['evaluate', *flags, f'--rerank_depth={depth}', '--json'], tmp_path) == 0
        first, second = json.loads(capsys.readouterr().out)['retrieval']['systems']
        rankings = _reordered(ranked_by_model, logits, depth)
        assert depth != 1 or rankings == ranked_by_model
        assert depth != DEPTH or rankings != ranked_by_model
        for system, expected in ((first, ranked_by_model), (second, rankings)):
            metrics = dataclasses.asdict(measure(expected, dataset.judgements))
            assert {name: system[name] for name in metrics} == pytest.approx(metrics)
        assert second['system'] == f'{model} + {tuned}/tuned' and second['mean_cosine'] is None


@pytest.mark.compiles
@pytest.mark.usefixtures('one_device')
def test_passages_that_bm25_finds_are_reranked_without_another_model(tuned: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip('bm25s')
    dataset, found = (
        read_set(str(write_names_set(tmp_path / 'set')), 'test'),
        load_finetuned(f'{tuned}/tuned/seed-0'),
    )
    flags = ['--retrieval=set', f'--rerank={tuned}/tuned', '--first_stage=bm25', '--json']
    assert run(['evaluate', *flags], tmp_path) == 0
    systems = json.loads(capsys.readouterr().out)['retrieval']['systems']
    assert [system['system'] for system in systems] == ['BM25', f'BM25 + {tuned}/tuned']
    first = [[int(index) for index in row if index >= 0] for row in bm25.rank(dataset, DEPTH)]
    logits = [_logits(found, query, [*dataset.passages()]) for query in dataset.queries]
    for system, rankings in zip(systems, (first, _reordered(first, logits, DEPTH)), strict=True):
        metrics = dataclasses.asdict(measure(rankings, dataset.judgements))
        assert {name: system[name] for name in metrics} == pytest.approx(metrics)


def _reordered(rankings: list[list[int]], logits: list[np.ndarray], depth: int) -> list[list[int]]:
    return [
        [*sorted(ranking[:depth], key=lambda index, row=row: -row[index]), *ranking[depth:]]
        for ranking, row in zip(rankings, logits, strict=True)
    ]


def _logits(trained: FineTuned, query: str, passages: list[str]) -> np.ndarray:
    return trained.logits([Record('', {'query': query, 'passage': passage}) for passage in passages], Counter())


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--retrieval=set', '--rerank=model'], '--rerank=model: is not a cross-encoder'),
        (['--retrieval=set', '--rerank_depth=5'], '--rerank_depth: applies only with --rerank'),
        (['--sts=pairs.csv', '--rerank=model'], '--rerank: applies only with --retrieval'),
    ],
)
def test_unusable_flags_of_reranking_are_reported(flags: list[str], words: str, tmp_path: Path, capsys) -> None:
    write_names_set(tmp_path / 'set')
    write_model(tmp_path / 'model')
    assert run(['evaluate', '--model=model', *flags], tmp_path) == 2
    assert words in capsys.readouterr().err
