"""Splits of the pretraining benchmarks are reproducible, and their tables show what was measured."""

import gzip
import json
from pathlib import Path

from benchmarks import pretraining_data, pretraining_report


def test_reviews_lose_markup_and_splits_are_disjoint(tmp_path: Path) -> None:
    source = tmp_path / 'reviews.jsonl.gz'
    with gzip.open(source, 'wt') as lines:
        lines.writelines(json.dumps({'text': f'{index}<br /><br />good'}) + '\n' for index in range(120))
    counts = pretraining_data.write_reviews(source, tmp_path / 'text', limit=110)
    texts = {
        side: [json.loads(line)['text'] for line in (tmp_path / 'text' / f'{side}.jsonl').read_text().splitlines()]
        for side in counts
    }
    assert counts == {'train': 107, 'held_out': 3} == {side: len(found) for side, found in texts.items()}
    assert sorted(sum(texts.values(), [])) == sorted(f'{index}\n\ngood' for index in range(110))


def test_subset_is_reproducible_and_without_repetition() -> None:
    lines = ['sentence\tlabel\n', *(f'{index}\t0\n' for index in range(500))]
    few = pretraining_data.subset(lines, 100)
    assert few == pretraining_data.subset(lines, 100) != pretraining_data.subset(lines, 100, seed=1)
    assert few[0] == lines[0] and len({*few[1:]}) == 100 and {*few} <= {*lines}


def test_questions_of_a_paragraph_are_in_one_split() -> None:
    paragraphs = [{'context': str(index), 'qas': [index]} for index in range(12)]
    squad = {'data': [{'paragraphs': paragraphs[:7]}, {'paragraphs': paragraphs[7:]}]}
    train, dev = (part['data'][0]['paragraphs'] for part in pretraining_data.split_paragraphs(squad))
    assert [paragraph['context'] for paragraph in dev] == ['0', '5', '10']
    assert sorted(train + dev, key=paragraphs.index) == paragraphs


def test_table_has_medians_ranges_and_only_measured_rows(tmp_path: Path) -> None:
    results = {
        'bert_jax': {
            'steps': 2000,
            'tokens': 4_096_000,
            'minutes': 19.96,
            'masked_word_nats_per_character': 1.25,
            'unigram_nats_per_character': 2.5,
        },
        'sst2-1000-bert_jax': {'seeds': [{'accuracy': accuracy} for accuracy in (0.7, 0.75, 0.71)]},
        'spans-scratch': {'seeds': [{'f1': 0.1, 'exact_match': 0.05}]},
    }
    _, _, nothing, _, ours, _, spans = pretraining_report.table(results).splitlines()
    assert ours == '| bert_jax | 2,000 | 4.1 M | 20.0 | 1.250 | 71.0% (70.0 to 75.0) |  |'
    assert nothing == '| no pretraining |  |  |  | 2.500 (frequencies) |  |  |'
    assert spans == 'XQuAD English, 4/5 for training: no pretraining F1 10.0%, exact match 5.0%.'
    pretraining_report.draw(results, 0.5, tmp_path / 'sst2.svg')
    assert '71.0%' in (tmp_path / 'sst2.svg').read_text()
