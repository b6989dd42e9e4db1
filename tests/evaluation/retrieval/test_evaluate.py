"""`evaluate --retrieval` and `--sts` print the metrics of the vectors that sentence-transformers computes."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bert_jax.evaluation.retrieval import bm25
from bert_jax.evaluation.retrieval.dataset import RetrievalSet, read_set
from bert_jax.evaluation.retrieval.metrics import DEPTH, measure
from bert_jax.evaluation.retrieval.similarity import spearman
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.pretrained.vectors import TextEncoder
from tests.support.commands import run
from tests.support.models import write_model
from tests.support.retrieval import write_lines, write_names_set

METRICS = ('ndcg_at_10', 'mrr_at_10', 'recall_at_10', 'recall_at_100')
MODES = {'pooling_mode_mean_tokens': True}


def write_sentence_model(
    directory: Path, prompts: dict[str, str], default: str | None, similarity: str, dims: tuple[int, ...] = ()
) -> Path:
    """Writes a small model whose sentence-transformers files name prompts."""
    write_model(directory)
    (directory / 'tokenizer_config.json').write_text(json.dumps({'do_lower_case': True, 'model_max_length': 24}))
    modules = [{'idx': 0, 'name': '0', 'path': '', 'type': 'sentence_transformers.models.Transformer'}]
    modules.append({'idx': 1, 'name': '1', 'path': '1_Pooling', 'type': 'sentence_transformers.models.Pooling'})
    (directory / 'modules.json').write_text(json.dumps(modules))
    (directory / '1_Pooling').mkdir()
    (directory / '1_Pooling' / 'config.json').write_text(json.dumps({'word_embedding_dimension': 32} | MODES))
    content = {'prompts': prompts, 'default_prompt_name': default, 'similarity_fn_name': similarity}
    content |= {'matryoshka_dims': dims} if dims else {}
    (directory / 'config_sentence_transformers.json').write_text(json.dumps(content))
    return directory


def _metrics(queries: np.ndarray, passages: np.ndarray, dataset: RetrievalSet) -> dict[str, float]:
    """Returns the metrics of vectors by sorting all scores."""
    scores = queries @ passages.T
    for row, index in enumerate(dataset.same_id):
        if index >= 0:
            scores[row, index] = -np.inf
    rankings = np.argsort(-scores, axis=1, kind='stable')[:, :DEPTH]
    rankings[np.isneginf(np.take_along_axis(scores, rankings, 1))] = -1
    found = measure(rankings.tolist(), dataset.judgements)
    return {name: getattr(found, name) for name in METRICS}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.compiles
def test_table_has_the_model_its_baseline_and_bm25(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip('bm25s')
    dataset = read_set(str(write_names_set(tmp_path / 'set')), 'test')
    write_model(tmp_path / 'model')
    write_sentence_model(tmp_path / 'other', {}, None, 'dot')
    flags = ['--model=model', '--retrieval=set', '--baseline=other', '--output=result.json']
    assert run(['evaluate', *flags, '--json'], tmp_path) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / 'result.json').read_text()) == result
    table = result['retrieval']
    assert (table['queries'], table['passages'], table['judgements']) == (3, 6, 5)
    assert [system['system'] for system in table['systems']] == ['model', 'other', 'BM25']
    model = load_pretrained(str(tmp_path / 'model'))
    settings = SentenceSettings('')
    queries, _ = TextEncoder(model, settings).encode(dataset.queries)
    passages, _ = TextEncoder(model, settings).encode([*dataset.passages()])
    for system, scale in zip(table['systems'], (_unit, np.asarray), strict=False):
        expected = _metrics(scale(queries), scale(passages), dataset)
        assert {name: system[name] for name in METRICS} == pytest.approx(expected)
    assert table['systems'][2]['ndcg_at_10'] > 0.5 and table['systems'][2]['mean_cosine'] is None
    assert run(['evaluate', *flags], tmp_path) == 0
    printed = capsys.readouterr().out
    assert 'nDCG@10' in printed and re.search(r'^BM25 +\d\.\d{4} ', printed, flags=re.M)


@pytest.mark.compiles
@pytest.mark.parametrize(
    'prompts, default, name',
    [
        ({'query': 'who is ', 'document': 'the '}, None, None),
        ({'other': 'in '}, 'other', None),
        ({'query': 'the end ', 'passage': 'in '}, 'query', 'passage'),  # theirs ignores it without the argument
    ],
)
def test_prompts_are_those_of_sentence_transformers(
    prompts: dict[str, str], default: str | None, name: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    reference = pytest.importorskip('sentence_transformers')
    dataset = read_set(str(write_names_set(tmp_path / 'set')), 'test')
    directory = write_sentence_model(tmp_path / 'model', prompts, default, 'dot')
    theirs = reference.SentenceTransformer(str(directory), device='cpu')
    queries = theirs.encode_query(dataset.queries)
    passages = theirs.encode_document([*dataset.passages()], prompt_name=name)
    assert run(['evaluate', '--model=model', '--retrieval=set', '--nobm25', '--json'], tmp_path) == 0
    [system] = json.loads(capsys.readouterr().out)['retrieval']['systems']
    assert {name: system[name] for name in METRICS} == pytest.approx(_metrics(queries, passages, dataset))


@pytest.mark.compiles
def test_spearman_of_scored_pairs_is_that_of_the_cosines(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_model(tmp_path / 'model')
    rows = [('ada is in town', 'bob is in town', 4), ('a great film', 'sad', 1.5), ('the plot', 'the end', '3')]
    write_lines(tmp_path / 'pairs.jsonl', [{'a': a, 'b': b, 'gold': gold} for a, b, gold in rows])
    flags = ['--model=model', '--sts=pairs.jsonl', '--sts_columns=a,b,gold', '--json']
    assert run(['evaluate', *flags], tmp_path) == 0
    [system] = json.loads(capsys.readouterr().out)['sts']['systems']
    model = load_pretrained(str(tmp_path / 'model'))
    first, second = (_unit(model.mean_pooled([row[i] for row in rows])[0]) for i in range(2))
    assert system['spearman'] == pytest.approx(spearman((first * second).sum(1), np.array([4, 1.5, 3])))


@pytest.mark.compiles
def test_every_matryoshka_dim_has_a_row_equal_to_that_of_dims(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dataset = read_set(str(write_names_set(tmp_path / 'set')), 'test')
    write_sentence_model(tmp_path / 'model', {}, None, 'cosine', (32, 8))
    rows = [('ada is in town', 'bob is in town', 4), ('a great film', 'sad', 1.5), ('the plot', 'the end', 3)]
    write_lines(
        tmp_path / 'pairs.jsonl', [dict(zip(('sentence1', 'sentence2', 'score'), row, strict=True)) for row in rows]
    )
    flags = ['--model=model', '--retrieval=set', '--sts=pairs.jsonl', '--nobm25', '--json']
    assert run(['evaluate', *flags], tmp_path) == 0
    found = json.loads(capsys.readouterr().out)
    for systems in (found['retrieval']['systems'], found['sts']['systems']):
        assert [(each['system'], each['dims']) for each in systems] == [('model', 32), ('model, 8 dims', 8)]
    encoder = TextEncoder(load_pretrained(str(tmp_path / 'model')), SentenceSettings(''))
    texts = dataset.queries, [*dataset.passages()], [row[0] for row in rows], [row[1] for row in rows]
    for index, dims in enumerate((32, 8)):
        queries, passages, first, second = (_unit(encoder.encode(each)[0][:, :dims]) for each in texts)
        system = found['retrieval']['systems'][index]
        assert {name: system[name] for name in METRICS} == pytest.approx(_metrics(queries, passages, dataset))
        expected = spearman((first * second).sum(1), np.array([row[2] for row in rows]))
        assert found['sts']['systems'][index]['spearman'] == pytest.approx(expected)
    assert run(['evaluate', *flags, '--dims=8'], tmp_path) == 0
    short = json.loads(capsys.readouterr().out)
    for task in ('retrieval', 'sts'):
        [system], expected = short[task]['systems'], found[task]['systems'][1]
        assert system['system'] == 'model'
        assert {k: v for k, v in system.items() if k not in ('system', 'seconds')} == pytest.approx(
            {k: v for k, v in expected.items() if k not in ('system', 'seconds')}, abs=1e-6
        )
    assert run(['evaluate', *flags, '--dims=33'], tmp_path) == 2
    assert '--dims=33: the vectors of this model have 32 dims' in capsys.readouterr().err


def test_bm25_equals_the_formula(tmp_path: Path) -> None:
    pytest.importorskip('bm25s')
    dataset = read_set(str(write_names_set(tmp_path)), 'test')
    passages = [re.findall(r'\w\w+', text.lower()) for text in dataset.passages()]
    mean_length = sum(map(len, passages)) / len(passages)
    holding = Counter(word for passage in passages for word in {*passage})
    scores = np.zeros((len(dataset.queries), len(passages)))
    for row, query in enumerate(dataset.queries):
        for column, passage in enumerate(passages):
            for word in re.findall(r'\w\w+', query.lower()):
                count = passage.count(word)
                idf = math.log(1 + (len(passages) - holding[word] + 0.5) / (holding[word] + 0.5))
                scores[row, column] += idf * count / (count + 1.5 * (0.25 + 0.75 * len(passage) / mean_length))
    scores[2, 5] = 0  # has the id of the query
    order = np.argsort(-np.round(scores, 5), axis=1, kind='stable')
    expected = np.where(np.take_along_axis(scores, order, 1) > 0, order, -1)
    np.testing.assert_array_equal(bm25.rank(dataset, 4), expected[:, :4])


def test_equal_bm25_scores_are_ranked_by_index() -> None:
    scores = np.array([0, 1, 2, 1, 0, 1, 3, 1], np.float32)
    assert [bm25.best_first(scores, k).tolist() for k in (3, 4, 9)] == [[6, 2, 1], [6, 2, 1, 3], [6, 2, 1, 3, 5, 7]]


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--model=model'], ['--model: applies only with --retrieval']),
        (['--workdir=x', '--split=dev'], ['--split: applies only with --retrieval']),
        (['--model=model', '--workdir=x', '--retrieval=set'], ['--model: is given together with --workdir']),
        (['--model=model', '--retrieval=set', '--source=text:x'], ['--source: does not apply']),
        (['--model=model', '--retrieval=none'], ['none: is not a directory']),
        (['--model=model', '--retrieval=set', '--similarity=euclidean'], ['--similarity=euclidean: is not supported']),
        (['--model=model', '--retrieval=set', '--baseline=model'], ['--baseline=model: is the model itself']),
        (['--model=model', '--sts=constant.tsv'], ['constant.tsv: has no two different scores']),
        (['--model=model', '--sts=empty.csv'], ['empty.csv:3: has an empty text']),
        (['--model=model', '--sts=unscored.jsonl'], ['unscored.jsonl:1: has the score None']),
        (['--model=model', '--sts=constant.tsv', '--sts_columns=a,b'], ['does not name three columns']),
        (['--model=model', '--sts=constant.tsv', '--sts_columns=a,b,c'], ["has no column 'a'", '--sts_columns=']),
        (['--model=model', '--sts=constant.tsv', '--queries_prompt=q'], ['--queries_prompt: applies only with --retr']),
        (['--model=model', '--sts=constant.tsv', '--passages_prompt='], ['--passages_prompt: applies only with --re']),
        (['--model=model', '--sts=constant.tsv', '--similarity=dot'], ['--similarity: applies only with --retrieval']),
        (['--model=model', '--sts=pairs.xml'], ['pairs.xml: has no known format']),
        (['--retrieval=set'], ['--model: is missing']),
        (['--model=model', '--retrieval=set', '--first_stage=bm25'], ['--first_stage: applies only with --rerank']),
        (['--retrieval=set', '--rerank=x', '--first_stage=tf'], ['--first_stage=tf: is not a first stage', 'bm25']),
        (['--retrieval=set', '--rerank=x', '--first_stage=bm25', '--nobm25'], ['--nobm25: is given together']),
    ],
)
def test_bad_arguments_are_rejected_before_a_model_is_loaded(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr('bert_jax.finetune.load.load_model', None)
    write_names_set(tmp_path / 'set')
    (tmp_path / 'constant.tsv').write_text('sentence1\tsentence2\tscore\na\tb\t1\nc\td\t1.0\n')
    (tmp_path / 'empty.csv').write_text('sentence1,sentence2,score\na,b,1\n,d,2\n')
    (tmp_path / 'unscored.jsonl').write_text('{"sentence1": "a", "sentence2": "b", "score": null}\n')
    assert run(['evaluate', *arguments], tmp_path) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


def test_missing_bm25_is_an_error_only_if_requested(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bm25, 'is_installed', lambda: False)
    write_names_set(tmp_path / 'set')
    assert run(['evaluate', '--model=model', '--retrieval=set', '--bm25'], tmp_path) == 2
    message = capsys.readouterr().err
    assert '--bm25: needs bm25s' in message and "pip install -e '.[retrieval]'" in message
