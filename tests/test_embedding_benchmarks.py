"""Benchmarks of embedding models: their data, the settings that both programs share, and tables of the results."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import embedding_training, reviews_retrieval
from benchmarks.parts import Parts
from bert_jax.evaluation.retrieval.dataset import read_set

FLAGS = {'length': 64, 'learning_rate': 3e-4, 'dtype': 'float32', 'epochs': 0.0}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_paragraphs_are_either_trained_on_or_searched_for(tmp_path: Path) -> None:
    paragraphs = [
        {'context': f'text {index}', 'qas': [{'question': f'question {index} {part}'} for part in range(2)]}
        for index in range(10)
    ]
    source = tmp_path / 'squad.json'
    source.write_text(json.dumps({'data': [{'paragraphs': paragraphs}]}))
    embedding_training.write_data('xquad', source, tmp_path / 'data')
    trained, held_out = (_lines(tmp_path / 'data' / f'{part}.jsonl') for part in ('train', 'dev'))
    assert len(trained) == 16 and {row['positive'] for row in held_out} == {'text 0', 'text 5'}
    dataset = read_set(str(tmp_path / 'data'), 'test')
    passages = [*dataset.passages()]
    assert sorted(passages) == sorted(paragraph['context'] for paragraph in paragraphs)
    for query, judged in zip(dataset.queries, dataset.judgements, strict=True):
        assert [passages[index].split()[1] for index in judged] == [query.split()[1]]


def test_scored_pairs_are_those_of_glue(tmp_path: Path) -> None:
    header = 'index\tgenre\tsentence1\tsentence2\tscore\n'
    for part in ('train', 'dev'):
        (tmp_path / f'{part}.tsv').write_text(f'{header}0\tnews\tA "b\tc\t3.5\n')
    embedding_training.write_data('stsb', tmp_path, tmp_path / 'data')
    assert _lines(tmp_path / 'data' / 'train.jsonl') == [{'sentence1': 'A "b', 'sentence2': 'c', 'score': 3.5}]


def _comparison(output: Path, name: str, steps: int | None = None) -> embedding_training.Comparison:
    flags = argparse.Namespace(**FLAGS, output=output)
    return embedding_training.Comparison(name, output / 'data', output / 'mine', steps, 2, flags)


@pytest.mark.parametrize('name', embedding_training.TASKS)
def test_flags_of_every_task_are_valid(name: str, tmp_path: Path) -> None:
    config, task = _comparison(tmp_path, name).config(run=1), embedding_training.TASKS[name]
    assert (config.train.seed, config.train.epochs, config.train.global_batch_size) == (1, task.epochs, task.batch)
    assert task.columns[:2] == (config.embedding.anchor, config.embedding.positive)


def test_page_has_medians_of_metrics_and_of_paired_ratios(tmp_path: Path) -> None:
    rates = {'hidden_dropout_prob': 0.1, 'attention_probs_dropout_prob': 0.1}
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'config.json').write_text(json.dumps({'num_hidden_layers': 2, 'hidden_size': 128} | rates))
    parts, ours, theirs = Parts(tmp_path), *embedding_training.SIDES
    for run, (a, b) in enumerate(((300.0, 100.0), (200.0, 200.0))):
        parts.write(f'mine-stsb-{ours}-{run}', {'examples_per_second': a})
        parts.write(f'mine-stsb-{theirs}-{run}', {'examples_per_second': b})
        parts.write(f'mine-stsb-metrics-{run}', {ours: 0.6 + run / 10, theirs: 0.6})
    parts.write('mine-stsb-metrics-before', {'untrained': 0.5})
    parts.write(f'mine-xquad-{ours}-0', {'examples_per_second': 1.0})
    page = embedding_training.page([_comparison(tmp_path, 'stsb'), _comparison(tmp_path, 'xquad')])
    rows = [line for line in page.splitlines() if line.startswith('| 2 layers')]
    encoder = '2 layers of 128, dropout 0.1'
    assert rows == [
        f'| {encoder} | stsb | Spearman | 50.0 | 65.0 ± 7.1 | 60.0 ± 0.0 | +5.0 | 2 |',
        f'| {encoder} | stsb | 250 | 150 | 2.00 (1.00 to 3.00) | 2 |',
    ]


def _review(index: int) -> str:
    sentences = [f'Sentence {part} of review {index} has a total of ten words.' for part in range(4)]
    return ' '.join(sentences[:2]) + '\n' + ' '.join(sentences[2:])


def test_query_is_a_sentence_that_its_passage_no_longer_has(tmp_path: Path) -> None:
    reviews = [*map(_review, range(20)), 'Too short.', _review(0)]
    (tmp_path / 'held_out.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in reviews))
    counts = reviews_retrieval.write_set(tmp_path / 'held_out.jsonl', tmp_path / 'set')
    assert counts == {'passages': 21, 'dev': 5, 'test': 15}
    seen = set()
    for split in ('dev', 'test'):
        dataset = read_set(str(tmp_path / 'set'), split)
        passages = [*dataset.passages()]
        for query, judged in zip(dataset.queries, dataset.judgements, strict=True):
            [index] = judged
            review = ' '.join(_review(index).split())
            assert query in review and query not in passages[index]
            assert sorted((query + ' ' + passages[index]).split()) == sorted(review.split())
            seen.add(query)
    assert len(seen) == 20
    reviews_retrieval.write_set(tmp_path / 'held_out.jsonl', tmp_path / 'short', max_words=5)
    assert max(len(text.split()) for text in read_set(str(tmp_path / 'short'), 'test').passages()) == 5


def test_table_and_figure_show_every_system(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    keys = ('ndcg_at_10', 'mrr_at_10', 'recall_at_100', 'mean_cosine')
    systems = {
        'pretrained only': [dict.fromkeys(keys, 0.1) | {'truncated': 3}],
        'contrastive training': [dict.fromkeys(keys, value) | {'truncated': 3} for value in (0.4, 0.5)],
        'BM25': [dict.fromkeys(keys, 0.9) | {'truncated': 0, 'mean_cosine': None}],
    }
    measured = dict.fromkeys(reviews_retrieval.SETS, systems)
    rows = reviews_retrieval.table(measured).splitlines()
    assert len(rows) == 2 + 6
    assert (
        rows[3] == '| whole reviews | contrastive training | 0.450 (0.400 to 0.500) | 0.450 | 0.450 | 0.450 | 3 | 2 |'
    )
    assert rows[4] == '| whole reviews | BM25 | 0.900 | 0.900 | 0.900 |  | 0 | 1 |'
    reviews_retrieval.draw(measured, tmp_path / 'figure.svg')
    assert 'contrastive' in (tmp_path / 'figure.svg').read_text()
