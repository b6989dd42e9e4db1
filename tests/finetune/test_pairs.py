"""Files and corpora become batches of texts that belong together: a pure function of examples, seed and step."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from bert_jax import config
from bert_jax.config.embedding import Embedding
from bert_jax.config.finetuning import Task
from bert_jax.data.pair_batches import PairBatch
from bert_jax.errors import BadInput
from bert_jax.finetune import corpus_pairs
from bert_jax.finetune.corpus_pairs import CorpusPairs
from bert_jax.finetune.packing import Packing
from bert_jax.finetune.pair_stream import PairStream
from bert_jax.finetune.pairs import Pairs, has_scores, read_pairs
from bert_jax.text.tokenizer import Tokenizer, train_tokenizer
from tests.support.corpora import MemorySplit, random_split, tokenizer_of
from tests.support.models import read_tokenizer
from tests.support.tasks import GOOD, NAMES, OTHER
from tests.support.texts import write_tfds_records

WORDS = [*GOOD, *NAMES, *OTHER]


def _records(num_records: int, seed: int = 0) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)

    def text() -> str:
        return ' '.join(rng.choice(WORDS, rng.integers(1, 6)))

    return [{'anchor': text(), 'positive': text(), 'score': str(n / 4)} for n in range(num_records)]


def _write(directory: Path, records: list[dict]) -> dict[str, str]:
    """Writes the records in every format; returns {format: source}."""
    names = list(records[0])
    (directory / 'a.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    lines = ['\t'.join(names), *('\t'.join(record.values()) for record in records)]
    (directory / 'a.tsv').write_text('\n'.join(lines) + '\n')
    with (directory / 'a.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, names, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(records)
    parquet.write_table(pyarrow.Table.from_pylist(records), directory / 'a.parquet', row_group_size=7)
    return {name: f'{name}:a.{name}' for name in ('jsonl', 'tsv', 'csv', 'parquet')}


def _read(directory: Path, source: str, is_scored: bool = False, **fields: object) -> Pairs:
    task = Task(kind='embedding', directory=str(directory), sequence_length=16)
    return read_pairs(source, task, Embedding(**fields), read_tokenizer(directory), is_scored=is_scored)


def _jsonl(directory: Path, records: list[dict], name: str = 'pairs') -> str:
    (directory / f'{name}.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    return f'jsonl:{name}.jsonl'


def _stream(*sources: Pairs, weights: tuple[float, ...] = (), num_roles: int = 2, seed: int = 3) -> PairStream:
    return PairStream(
        sources,
        weights or (1.0,) * len(sources),
        batch_size=8,
        num_roles=num_roles,
        seed=seed,
        pad_id=0,
        packing=Packing(4, num_rows_multiple=2),
    )


def _texts(batch: PairBatch) -> dict[tuple[int, int], tuple[int, ...]]:
    """Returns {(group, role): ids}, read token by token."""
    found = {}
    for row, slot in zip(*np.nonzero(batch.groups >= 0), strict=True):
        start = batch.cls_positions[row, slot]
        ids = batch.input_ids[row][batch.sequence_ids[row] == slot + 1]
        assert (batch.input_ids[row, start : start + len(ids)] == ids).all()
        assert (batch.position_ids[row, start : start + len(ids)] == np.arange(len(ids))).all()
        key = int(batch.groups[row, slot]), int(batch.roles[row, slot])
        assert key not in found
        found[key] = tuple(ids.tolist())
    return found


def _is_equal(one: PairBatch, other: PairBatch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_format_gives_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tfds = pytest.importorskip('tensorflow_datasets')
    found, records = {}, _records(40)
    features = {'anchor': tfds.features.Text(), 'positive': tfds.features.Text(), 'score': tfds.features.Text()}
    write_tfds_records(tmp_path / 'datasets', 'scored', features, records)
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path / 'datasets'))
    for name, source in (_write(tmp_path, records) | {'tfds': 'tfds:scored'}).items():
        assert has_scores(source, Task(directory=str(tmp_path)), Embedding())
        pairs = _read(tmp_path, source, is_scored=True, loss='cosent')
        stream = _stream(pairs)
        found[name] = pairs.content_hash(), [stream.batch(step) for step in range(7)]
    first_hash, first = found.pop('jsonl')
    for digest, batches in found.values():
        assert digest == first_hash and all(map(_is_equal, batches, first))


def test_batch_holds_the_texts_and_scores_of_its_examples(tmp_path: Path) -> None:
    records, tokenizer = _records(40), read_tokenizer(tmp_path)
    stream = _stream(_read(tmp_path, _jsonl(tmp_path, records), is_scored=True, loss='cosent', max_score=5.0))
    expected = Counter(
        (
            *(tuple(ids) for ids in tokenizer.encode_batch([record['anchor'], record['positive']])),
            float(record['score']),
        )
        for record in records
    )
    found: Counter = Counter()
    for step in range(len(records) // 8):
        batch = stream.batch(step)
        texts = _texts(batch)
        scores = {int(batch.groups[at]): batch.scores[at] * 5 for at in zip(*np.nonzero(batch.roles == 0), strict=True)}
        assert {*texts} == {(group, role) for group in range(8) for role in (0, 1)}
        assert all(ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id for ids in texts.values())
        found.update((texts[n, 0][1:-1], texts[n, 1][1:-1], round(float(scores[n]), 3)) for n in range(8))
    assert found == expected


def test_seeking_equals_reading_step_by_step_and_rows_equal_the_whole(tmp_path: Path) -> None:
    pairs = _read(tmp_path, _jsonl(tmp_path, _records(43)))
    forwards = [_stream(pairs).batch(step) for step in range(12)]
    stream = _stream(pairs)
    for step in (11, 3, 7, 3):
        batch = stream.batch(step)
        assert _is_equal(batch, forwards[step]) and len(batch.input_ids) == stream.batch_size
        assert all(np.array_equal(a, b[1:3]) for a, b in zip(stream.batch(step, slice(1, 3)), batch, strict=True))
    assert not _is_equal(forwards[0], forwards[5]) and not _is_equal(_stream(pairs, seed=4).batch(0), forwards[0])


def test_batch_and_epoch_hold_no_example_twice(tmp_path: Path) -> None:
    records = [{'anchor': ' '.join([*f'{n:02d}']), 'positive': 'film'} for n in range(43)]
    stream = _stream(_read(tmp_path, _jsonl(tmp_path, records)))
    epochs = [
        [
            text
            for step in range(epoch * 5, epoch * 5 + 5)
            for (_, role), text in _texts(stream.batch(step)).items()
            if not role
        ]
        for epoch in range(3)
    ]
    assert all(len(texts) == len({*texts}) == 40 for texts in epochs)
    assert {*epochs[0]} != {*epochs[1]} and len({*epochs[0], *epochs[1], *epochs[2]}) == 43


def test_equal_texts_have_equal_ids_whatever_their_role_and_prompt(tmp_path: Path) -> None:
    records = [
        {'anchor': 'film' if n % 2 else NAMES[n % 3], 'positive': ' film ' if n < 4 else 'end'} for n in range(8)
    ]
    batch = _stream(_read(tmp_path, _jsonl(tmp_path, records), query_prompt='who: ')).batch(0)
    by_id: dict[int, set] = {}
    for at in zip(*np.nonzero(batch.groups >= 0), strict=True):
        by_id.setdefault(int(batch.text_ids[at]), set()).add(
            _texts(batch)[int(batch.groups[at]), int(batch.roles[at])][-2]
        )
    assert sorted(map(len, by_id.values())) == [1] * len({'film', 'end', *NAMES})


def test_prompts_precede_the_texts_of_their_side(tmp_path: Path) -> None:
    records = [{'anchor': 'film', 'positive': 'plot', 'negative': 'scene'}] * 8
    source, tokenizer = _jsonl(tmp_path, records), read_tokenizer(tmp_path)
    pairs = _read(tmp_path, source, query_prompt='who: ', passage_prompt='the ', num_negatives=1)
    texts = _texts(_stream(pairs, num_roles=3).batch(0))
    expected = tokenizer.encode_batch(['who: film', 'the plot', 'the scene'])
    assert all(list(ids[1:-1]) == expected[role] for (_, role), ids in texts.items())


def test_hard_negatives_come_from_columns_and_lists_and_vary_by_epoch(tmp_path: Path) -> None:
    records = [
        {'anchor': 'film', 'positive': 'end', 'negative': [*NAMES, ' '], 'worse': 'dull'},
        {'anchor': 'plot', 'positive': 'end', 'negative': 'sad', 'worse': None},
        {'anchor': 'scene', 'positive': 'end', 'negative': [], 'worse': ''},
    ] * 3
    tokenizer = read_tokenizer(tmp_path)
    pairs = _read(tmp_path, _jsonl(tmp_path, records), num_negatives=2, negatives=('negative', 'worse'))
    word = {ids[0]: text for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True)}
    seen: dict[str, Counter] = {}
    stream = _stream(pairs, num_roles=4)
    for step in range(300):
        texts = _texts(stream.batch(step))
        for group in range(8):
            negatives = [word[texts[group, role][1]] for role in range(2, 5) if (group, role) in texts]
            seen.setdefault(word[texts[group, 0][1]], Counter())[tuple(negatives)] += 1
    assert {*seen['scene']} == {()} and {*seen['plot']} == {('sad',)}
    assert all(len(chosen) == len({*chosen}) == 2 for chosen in seen['film'])  # in the order of the record
    assert len(seen['film']) == 6 and min(seen['film'].values()) > 0.6 * max(seen['film'].values())


TEXTS = ['film', 'plot', 'scene', *NAMES, 'dull', 'sad', 'end']


def test_lists_of_hard_negatives_come_from_tfds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tfds = pytest.importorskip('tensorflow_datasets')
    records = [
        {'anchor': f'{name} film', 'positive': f'{name} town', 'negative': [f'{name} {word}' for word in OTHER[:count]]}
        for count, name in enumerate(NAMES)
    ]
    features = {'anchor': tfds.features.Text(), 'positive': tfds.features.Text()}
    features |= {'negative': tfds.features.Sequence(tfds.features.Text())}
    write_tfds_records(tmp_path / 'datasets', 'triplets', features, records)
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path / 'datasets'))
    found = [_read(tmp_path, source, num_negatives=2) for source in ('tfds:triplets', _jsonl(tmp_path, records))]
    assert found[0].content_hash() == found[1].content_hash()
    assert np.diff(found[0].starts).tolist() == [2 + len(record['negative']) for record in records]


def test_sources_take_turns_in_proportion_to_their_weights(tmp_path: Path) -> None:
    sources = [_read(tmp_path, _jsonl(tmp_path, _records(24 + 8 * n, seed=n), str(n))) for n in range(3)]
    stream = _stream(*sources, weights=(1, 2.0, 5))
    turns = np.array([stream.source_at(step) for step in range(4096)])
    assert np.bincount(turns).tolist() == [512, 1024, 2560]
    shares = np.cumsum(turns[:, None] == np.arange(3), axis=0) / np.arange(1, 4097)[:, None]
    assert np.abs(shares[80:] - np.array([1, 2, 5]) / 8).max() < 0.02  # at any time, not only in the end
    alone = _stream(sources[2])
    own = {tuple(ids) for step in range(5) for ids in _texts(alone.batch(step)).values()}
    for step in np.flatnonzero(turns == 2)[:20].tolist():
        assert {*_texts(stream.batch(step)).values()} <= own


def test_sample_of_examples_keeps_their_texts_together(tmp_path: Path) -> None:
    records = [{'anchor': f'film {n}', 'positive': f'end {n}'} for n in range(30)]
    pairs = _read(tmp_path, _jsonl(tmp_path, records)).sample(11)
    assert len(pairs) == 11 and pairs.sample(0) is pairs
    texts = _texts(_stream(pairs).batch(0))
    assert all(texts[n, 0][2:] == texts[n, 1][2:] for n in range(8))


@pytest.mark.parametrize(
    'record, fields, message',
    [
        ({'positive': ' '}, {}, r"pairs.jsonl:3: has no text in 'positive'; 1 of 9 records"),
        ({'anchor': None}, {}, r"pairs.jsonl:3: has no text in 'anchor'"),
        ({'anchor': ['film']}, {}, r"pairs.jsonl:3: 'anchor' is of type list"),
        ({'negative': [3]}, {'num_negatives': 1}, r"pairs.jsonl:3: 'negative' holds a int"),
        ({}, {'num_negatives': 1}, r"pairs.jsonl: has no text in 'negative'"),
        ({}, {'anchor': 'query'}, r"pairs.jsonl:1: has no column 'query'(.|\n)*--config.embedding.anchor=NAME"),
        ({'score': 'high'}, {'loss': 'cosent'}, r"pairs.jsonl:3: has the score 'high'(.|\n)*expected: a number"),
        ({'score': 'nan'}, {'loss': 'cosent'}, r"pairs.jsonl:3: has the score 'nan'"),
        ({'score': '-3'}, {'loss': 'cosine', 'max_score': 2.0}, r'pairs.jsonl:3: has the score -3(.|\n)*from -2 to 2'),
    ],
)
def test_bad_record_is_named_by_file_and_line(tmp_path: Path, record: dict, fields: dict, message: str) -> None:
    records = _records(9)
    records[2] |= record
    with pytest.raises(BadInput, match=message):
        _read(tmp_path, _jsonl(tmp_path, records), is_scored='loss' in fields, **fields)


def test_equal_scores_are_rejected(tmp_path: Path) -> None:
    source = _jsonl(tmp_path, [record | {'score': 1.5} for record in _records(9)])
    with pytest.raises(BadInput, match=r'pairs.jsonl:1: has the score 1.5, as do all 9 pairs'):
        _read(tmp_path, source, is_scored=True)


def _corpus_pairs(split: MemorySplit, monkeypatch, **fields: object) -> CorpusPairs:
    tokenizer = tokenizer_of(split.vocab_size)
    tokenizer.agrees_with = lambda other: other is tokenizer
    tokenizer.encode_batch = lambda texts: [[7] * len(text) for text in texts]
    corpus = type('Corpus', (), {'tokenizer': tokenizer, 'train': split, 'manifest': {'content_hash': 'c'}})
    monkeypatch.setattr(corpus_pairs, 'load_corpus', lambda path: corpus)
    return CorpusPairs('data', 'train', Task(sequence_length=64), Embedding(**fields), tokenizer)


@pytest.mark.parametrize('longest', [6, 40, 90])
def test_spans_are_neighbours_in_one_document(longest: int, monkeypatch) -> None:
    split = random_split(1, longest=longest)
    pairs = _corpus_pairs(split, monkeypatch, query_prompt='ab', passage_prompt='c')
    document_of = np.searchsorted(split.sentences[split.documents], np.arange(split.num_tokens), 'right')
    borders, orders = set(), Counter()
    for key in range(40):
        examples = np.arange(len(pairs))
        texts = pairs.draw(examples, np.full(len(pairs), key * 1000, np.uint64) + examples.astype(np.uint64))
        starts = np.cumsum(texts.lengths) - texts.lengths
        for example in range(len(pairs)):
            spans = []
            for text, prompt in ((2 * example, [7, 7]), (2 * example + 1, [7])):
                ids = texts.ids[starts[text] : starts[text] + texts.lengths[text]].tolist()
                assert len(ids) <= 64 and ids[0] == 2 and ids[-1] == 3 and ids[1 : 1 + len(prompt)] == prompt
                spans.append(np.array(ids[1 + len(prompt) : -1]) - 10)  # positions in the corpus
            assert all(len(span) and (np.diff(span) == 1).all() for span in spans)
            assert len({*document_of[np.concatenate(spans)].tolist()}) == 1
            early, late = sorted(spans, key=lambda span: span[0])
            assert early[-1] + 1 == late[0] and late[0] in split.sentences  # the border of a sentence
            if len(early) < 16 and late[0] - 16 >= split.sentences[split.documents[document_of[late[0]] - 1]]:
                assert early[0] in split.sentences  # no span is short but one of whole sentences
            borders.add(int(late[0]))
            orders[spans[0] is early] += 1
    assert len(borders) > 0.8 * (len(split.sentences) - len(split.documents))  # 40 draws from up to 29 in a document
    assert 0.45 < orders[True] / orders.total() < 0.55


def test_dropout_pairs_are_the_same_span_twice(monkeypatch) -> None:
    split = random_split(2)
    pairs = _corpus_pairs(split, monkeypatch, corpus_pairs='dropout')
    assert len(pairs) == len(split.documents) - 1  # one sentence is enough
    texts = pairs.draw(np.arange(len(pairs)), np.arange(len(pairs), dtype=np.uint64))
    assert (texts.hashes[::2] == texts.hashes[1::2]).all() and len({*texts.hashes.tolist()}) == len(pairs)
    spans = np.split(texts.ids, np.cumsum(texts.lengths)[:-1])
    assert all(np.array_equal(*spans[n : n + 2]) for n in range(0, len(spans), 2))


def test_corpus_batches_vary_by_epoch_and_mix_with_files(tmp_path: Path, monkeypatch) -> None:
    corpus = _corpus_pairs(random_split(3, num_documents=30), monkeypatch)
    stream = _stream(corpus, _read(tmp_path, _jsonl(tmp_path, _records(20))), weights=(3, 1))
    batches = [stream.batch(step) for step in range(12)]
    assert all(len(_texts(batch)) == 16 for batch in batches)
    assert [_is_equal(stream.batch(step), batch) for step, batch in enumerate(batches)] == [True] * 12
    of_corpus = [
        text for step, batch in enumerate(batches) if not stream.source_at(step) for text in _texts(batch).values()
    ]
    assert len(of_corpus) == 9 * 16 and len({*of_corpus}) > 120  # three epochs; short documents have few spans
    assert len({*of_corpus[: 3 * 16]}) == 3 * 16  # one epoch


def _byte_level_corpus(monkeypatch, **fields: object) -> tuple[Tokenizer, CorpusPairs]:
    """Returns a byte-level BPE tokenizer, and pairs of documents of a few sentences, some with a blank before them."""
    words = [*GOOD, *NAMES, *OTHER]
    lines = [' '.join(np.random.default_rng(seed).permutation(words)) for seed in range(200)]
    settings = config.Tokenizer(kind='bpe', vocab_size=1024)
    tokenizer = train_tokenizer(settings, iter([*lines, *words * 50]))
    sentences = [' ' * (n % 3 > 0) + ' '.join(line.split()[:9]) for n, line in enumerate(lines[:90])]
    encoded = tokenizer.encode_batch(sentences)
    ids = np.concatenate(encoded).astype(np.int32)
    split = MemorySplit(np.cumsum([0, *map(len, encoded)]), np.arange(0, 91, 3), tokenizer.vocab_size)
    monkeypatch.setattr(split, 'gather', lambda positions: ids[positions])
    corpus = type('Corpus', (), {'tokenizer': tokenizer, 'train': split, 'manifest': {'content_hash': 'c'}})
    monkeypatch.setattr(corpus_pairs, 'load_corpus', lambda path: corpus)
    return tokenizer, CorpusPairs('data', 'train', Task(sequence_length=32), Embedding(**fields), tokenizer)


def test_ids_of_prompts_and_spans_are_those_of_their_joined_text(monkeypatch) -> None:
    tokenizer, pairs = _byte_level_corpus(monkeypatch, query_prompt='who is: ', passage_prompt='the ')
    texts = pairs.draw(np.arange(len(pairs)), np.arange(len(pairs), dtype=np.uint64))
    spans = [ids[1:-1].tolist() for ids in np.split(texts.ids, np.cumsum(texts.lengths)[:-1])]
    assert len(spans) == 60
    for ids, role in zip(spans, texts.roles, strict=True):
        text = tokenizer.decode(ids)
        assert text.startswith(('who is: ', 'the ')[role]) and '  ' not in text
        assert tokenizer.encode_batch([text]) == [ids]


def test_prompt_whose_tokens_depend_on_the_text_is_rejected(monkeypatch) -> None:
    with pytest.raises(BadInput, match=r"config.embedding.query_prompt: is 'fil'(.|\n)*query_prompt=fil '"):
        _byte_level_corpus(monkeypatch, query_prompt='fil')
    with pytest.raises(BadInput, match=r"config.embedding.passage_prompt: is 'the fine'"):
        _byte_level_corpus(monkeypatch, passage_prompt='the fine')


def test_corpus_of_short_documents_or_another_tokenizer_is_rejected(monkeypatch) -> None:
    split = MemorySplit(np.array([0, 5, 9]), np.array([0, 1, 2]))
    with pytest.raises(BadInput, match='holds no document of at least 2 sentences'):
        _corpus_pairs(split, monkeypatch)
    _corpus_pairs(split, monkeypatch, corpus_pairs='dropout')
    tokenizer = tokenizer_of(99)
    with pytest.raises(BadInput, match='prepared with another tokenizer'):
        CorpusPairs('data', 'train', Task(), Embedding(), tokenizer)
    with pytest.raises(BadInput, match='a prompt has 70 tokens'):
        _corpus_pairs(random_split(2), monkeypatch, passage_prompt='x' * 70)
