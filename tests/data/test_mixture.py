"""Phases mix the sources of a corpus in the shares that they ask for, and read each source in whole epochs."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bert_jax import config
from bert_jax.data.mixture import MixtureSampler, MixtureStream, describe_sources, source_ranges
from bert_jax.data.sampler import RowSelection
from bert_jax.data.streams import open_streams
from bert_jax.errors import BadInput
from bert_jax.text.corpus import load_corpus
from bert_jax.text.prepare import prepare
from tests.support.configs import as_config, tiny_run

NAMES = ('small', 'middle', 'large')
DOCUMENTS = {'small': 40, 'middle': 80, 'large': 160}


def _word(source: str, number: int) -> str:
    return f'{source[0]}{chr(97 + number // 20)}{chr(97 + number % 20)}'


@pytest.fixture(scope='module')
def fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Returns the fields of a run on a corpus of three sources, whose words begin with s, m or l."""
    directory = tmp_path_factory.mktemp('mixture')
    rng = np.random.default_rng(0)
    for name, count in DOCUMENTS.items():
        documents = [
            '\n'.join(' '.join(_word(name, n) for n in rng.integers(0, 60, 8)) + '.' for _ in range(10))
            for _ in range(count)
        ]
        (directory / f'{name}.txt').write_text('\n\n'.join(documents) + '\n')
    sources = tuple((f'text:{directory}/{name}.txt', 1.0) for name in NAMES)
    found = tiny_run(directory) | {'data.source': sources, 'data.pairing': 'none', 'train.steps': 40}
    resolved = as_config(found)
    prepare(resolved.data, resolved.tokenizer, progress=False)
    return found


def _stream(fields: dict[str, object], weights: tuple[float, ...]) -> MixtureStream:
    [stream] = open_streams(as_config(fields | {'data.source_weights': weights})).train
    assert isinstance(stream, MixtureStream)
    return stream


def _sources_of_rows(stream: MixtureStream, num_steps: int) -> Counter[str]:
    """Counts the rows of each source by the words in them."""
    tokenizer, found = stream._streams[0].tokenizer, Counter()
    letter_of = np.array(
        ['' if special else token[0] for token, special in zip(tokenizer.tokens, tokenizer.is_special, strict=True)]
    )
    for step in range(num_steps):
        batch = stream.batch(step)
        for ids, predicted in zip(batch.input_ids, batch.masked_lm_ids, strict=True):
            letters = Counter(letter for letter in letter_of[[*ids, *predicted]] if letter in ('s', 'm', 'l'))
            if letters:  # a row of two tokens may have none
                found[letters.most_common(1)[0][0]] += 1
    return found


def test_corpus_records_the_documents_of_each_source(fields: dict[str, object]) -> None:
    corpus = load_corpus(str(fields['data.corpus']))
    ranges = source_ranges(corpus)
    assert [Path(name).stem for name in ranges] == [*NAMES]
    assert sum(part.num_tokens for part in ranges.values()) == corpus.train.num_tokens
    for name, part in zip(NAMES, ranges.values(), strict=True):
        start = part.end - part.num_tokens
        words = {corpus.tokenizer.token(int(each))[0] for each in part.gather(np.arange(start, part.end))}
        assert name[0] in words and not words & ({'s', 'm', 'l'} - {name[0]})


@pytest.mark.parametrize('packing', [False, True])
def test_measured_shares_are_those_of_each_phase(fields: dict[str, object], packing: bool) -> None:
    phases = [
        {'steps': 60, 'source_weights': (3, 1, 0), 'warmup_steps': 0},
        {'steps': 60, 'source_temperature': 0.0, 'warmup_steps': 0},
        {'steps': 60, 'source_temperature': 0.5, 'warmup_steps': 0},
        {'steps': 60, 'warmup_steps': 0},
    ]
    resolved = as_config(fields | {'data.packing': packing})
    resolved = config.resolve(dataclasses.asdict(resolved) | {'phases': phases})
    streams = open_streams(resolved).train
    tokens = np.array([part.num_tokens for part in source_ranges(load_corpus(resolved.data.corpus)).values()])
    roots = np.sqrt(tokens) / np.sqrt(tokens).sum()
    for stream, expected in zip(streams, ([0.75, 0.25, 0], [1 / 3] * 3, roots), strict=False):
        assert isinstance(stream, MixtureStream)
        counts = _sources_of_rows(stream, 60)
        measured = np.array([counts[name[0]] for name in NAMES]) / counts.total()
        np.testing.assert_allclose(measured, expected, atol=0.06)  # of 960 rows
    assert not isinstance(streams[3], MixtureStream)


def test_each_source_is_read_in_whole_epochs_of_its_own() -> None:
    numbers, shares = [300, 1000, 7], [0.2, 0.79, 0.01]
    sampler = MixtureSampler(numbers, shares, 64, seed=1)
    rows = np.concatenate([sampler.rows(step).rows for step in range(1024)])  # one block
    in_order = [rows[(rows >= 300) & (rows < 1300)][start : start + 1000] for start in (0, 1000, 50_000)]
    assert all(len({*epoch.tolist()}) == 1000 for epoch in in_order) and not (in_order[0] == in_order[1]).all()
    ends = np.cumsum(numbers)
    sources = np.searchsorted(ends, rows, side='right')
    counts = np.bincount(sources, minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), shares, atol=1e-4)
    for source, number in enumerate(numbers):
        uses = np.bincount(rows[sources == source] - (ends[source] - number), minlength=number)
        assert uses.max() - uses.min() <= 1  # whole epochs, and a part of the last one
    later = MixtureSampler(numbers, shares, 64, seed=1).rows(1500, slice(10, 20))
    np.testing.assert_array_equal(later.rows, sampler.rows(1500).rows[10:20])
    np.testing.assert_array_equal(later.keys, sampler.rows(1500).keys[10:20])


def test_row_of_a_mixture_is_a_row_of_its_source(fields: dict[str, object]) -> None:
    stream = _stream(fields, (1, 1, 1))
    selection = stream._sampler.rows(5)
    batch = stream.batch(5)
    ends = np.cumsum([each.num_rows for each in stream._streams])
    for index, row in enumerate(selection.rows.tolist()):
        source = int(np.searchsorted(ends, row, side='right'))
        own = stream._streams[source]
        one = RowSelection(np.array([row - ends[source] + own.num_rows]), np.ones(1, bool), selection.keys[[index]])
        for mine, theirs in zip(batch, own._assemble(one), strict=True):
            np.testing.assert_array_equal(mine[index], theirs[0])


def test_epochs_of_each_source_are_reported(fields: dict[str, object]) -> None:
    resolved = as_config(fields | {'data.source_weights': (1, 1, 0), 'train.steps': 400})
    streams = open_streams(resolved)
    [stream] = streams.train
    assert isinstance(stream, MixtureStream)
    rows = [each.num_rows for each in stream._streams]
    uses = stream.uses(400 * 16)
    assert [use.epochs for use in uses] == pytest.approx([400 * 16 / 2 / number for number in rows])
    line, warning = describe_sources(resolved, streams.train)
    assert f'small.txt 50.0% ({uses[0].epochs:.2f} epochs)' in line and 'large' not in line
    assert 'small.txt' in warning and 'read more than 4 times' in warning


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'data.source_weights': (1, 1)}, 'has 2 weights; the corpus has 3 sources'),
        ({'data.source_weights': (1, 0, 1), 'train.global_batch_size': 4096}, 'at least a batch of them'),
    ],
)
def test_unsuitable_mixture_is_rejected(fields: dict[str, object], changes: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_streams(as_config(fields | changes))


def test_corpus_of_an_earlier_version_is_read_but_not_mixed(fields: dict[str, object]) -> None:
    corpus = load_corpus(str(fields['data.corpus']))
    manifest = {name: value for name, value in corpus.manifest.items() if name != 'train_sources'}
    older = dataclasses.replace(corpus, manifest=manifest)
    assert open_streams(as_config(fields), corpus=older).train[0].num_rows
    with pytest.raises(BadInput, match='did not record which documents came from which source'):
        open_streams(as_config(fields | {'data.source_temperature': 0.5}), corpus=older)


@pytest.mark.parametrize(
    'data, message',
    [
        ({'source_weights': (0, 0)}, 'not all of them 0'),
        ({'source_temperature': 1.5}, 'a number from 0 to 1'),
        ({'source_weights': (1, 2), 'bucket_lengths': (16,)}, 'data.source_weights: is set, and data.bucket_lengths'),
        ({'source_temperature': 0.5, 'source': 'tfrecord:a', 'validation_source': 'tfrecord:b'}, 'records are one'),
    ],
)
def test_unsuitable_settings_are_rejected(data: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        config.resolve({'data': data, 'tokenizer': {'path': 'vocab.txt'}})
