"""A stream of records has the properties of a corpus stream; masks are resampled each epoch, or as stored."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from bert_jax import config
from bert_jax.data import record_set
from bert_jax.data.batches import Batch
from bert_jax.data.record_set import open_records
from bert_jax.data.streams import Streams, open_streams
from bert_jax.errors import BadInput
from tests.support.records import CLS, MASK, SEP, VOCAB, make_records, mask, serialize, write_records, write_vocabulary

RECORDS, ORIGINALS = make_records(1, 150)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Writes three files of 50 records each and a vocabulary; returns their directory."""
    for index in range(3):
        write_records(tmp_path / f'part-{index}.tfrecord', RECORDS[index * 50 : index * 50 + 50])
    write_vocabulary(tmp_path / 'vocab.txt')
    return tmp_path


def _config(directory: Path, *, seed: int = 0, max_positions: int = 64, **data: object) -> config.Config:
    defaults = {'source': f'tfrecord:{directory}/part-*.tfrecord', 'validation_fraction': 0.0}
    return config.Config(
        data=config.Data(**defaults | data),
        tokenizer=config.Tokenizer(path=str(directory / 'vocab.txt')),
        model=config.Bert(max_positions=max_positions),
        train=config.Train(global_batch_size=10, seed=seed),
    )


def _open(directory: Path, **settings: object) -> Streams:
    return open_streams(_config(directory, **settings), progress=False)


def _restored(batch: Batch) -> list[list[int]]:
    """Returns the original tokens of each row: the masked batch with its labels put back."""
    ids = batch.input_ids.copy()
    rows, slots = np.nonzero(batch.masked_lm_weights)
    ids[rows, batch.masked_lm_positions[rows, slots]] = batch.masked_lm_ids[rows, slots]
    return [row[: present.sum()].tolist() for row, present in zip(ids, batch.sequence_ids, strict=True)]


def _assert_equal(first: Batch, second: Batch) -> None:
    for name, a, b in zip(Batch._fields, first, second, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_stored_masks_are_used_unchanged_without_remask(files: Path) -> None:
    stream = _open(files, remask=False).train[0]
    by_original = {tuple(ids): record for ids, record in zip(ORIGINALS, RECORDS, strict=True)}
    seen = 0
    for step in range(len(stream)):
        batch = stream.batch(step)
        assert batch.input_ids.shape == (10, 32) and batch.masked_lm_ids.shape == (10, 5)
        for row, original in enumerate(_restored(batch)):
            record = by_original[tuple(original)]
            seen += 1
            for ours, theirs in {
                'input_ids': 'input_ids',
                'token_type_ids': 'segment_ids',
                'sequence_ids': 'input_mask',
                'masked_lm_positions': 'masked_lm_positions',
                'masked_lm_ids': 'masked_lm_ids',
                'masked_lm_weights': 'masked_lm_weights',
                'next_sentence_labels': 'next_sentence_labels',
            }.items():
                assert getattr(batch, ours)[row].tolist() == record[theirs], ours
            length = sum(record['input_mask'])
            assert batch.position_ids[row].tolist() == [*range(length), *[0] * (32 - length)]
        assert not batch.cls_positions.any() and (batch.next_sentence_weights == 1).all()
    assert seen == len(RECORDS)


def test_tokens_are_restored_and_masks_resampled_each_epoch(files: Path) -> None:
    stream = _open(files).train[0]
    masks: list[dict[tuple, tuple]] = [{}, {}]
    for step in range(2 * len(stream)):
        batch = stream.batch(step)
        for row, original in enumerate(_restored(batch)):
            count = int(batch.masked_lm_weights[row].sum())
            assert count == max(1, round(0.15 * len(original)))
            positions = batch.masked_lm_positions[row][:count].tolist()
            assert all(original[position] not in (CLS, SEP) for position in positions)
            masks[step // len(stream)][tuple(original)] = tuple(positions)
    assert masks[0].keys() == masks[1].keys() == {tuple(ids) for ids in ORIGINALS}
    stored = {tuple(ids): tuple(r['masked_lm_positions']) for ids, r in zip(ORIGINALS, RECORDS, strict=True)}
    for other in (masks[1], stored):
        assert sum(masks[0][ids] == other[ids][: len(masks[0][ids])] for ids in masks[0]) < 30


def test_mask_token_without_a_label_is_never_predicted(files: Path) -> None:
    records = [record | {'masked_lm_weights': [0.0] * 5} for record in RECORDS[:50]]
    write_records(files / 'part-0.tfrecord', records)
    stream = _open(files, source=f'tfrecord:{files}/part-0.tfrecord').train[0]
    batches = [stream.batch(step) for step in range(len(stream))]
    assert all(MASK in batch.input_ids for batch in batches)
    assert not any((batch.masked_lm_ids == MASK).any() for batch in batches)


@pytest.mark.parametrize('remask', [True, False])
def test_batch_is_a_function_of_its_step(files: Path, remask: bool) -> None:
    first, again = _open(files, remask=remask).train[0], _open(files, remask=remask).train[0]
    for step in (31, 0, 7, 1_000_000):
        whole = first.batch(step)
        _assert_equal(again.batch(step), whole)
        halves = [again.batch(step, slice(0, 5)), again.batch(step, slice(5, 10))]
        _assert_equal(Batch(*(np.concatenate(pair) for pair in zip(*halves, strict=True))), whole)
    other = _open(files, remask=remask, seed=1).train[0].batch(0)
    assert not np.array_equal(other.input_ids, first.batch(0).input_ids)


def test_copies_with_other_masks_are_in_one_split(files: Path) -> None:
    """Such copies are what `dupe_factor` of the original writes."""
    rng = np.random.default_rng(5)
    copies = [mask(rng, ids, record['segment_ids'].index(1) - 1, 32, 5) for ids, record in zip(ORIGINALS, RECORDS)]  # noqa: B905
    write_records(files / 'part-copies.tfrecord', copies)
    streams = _open(files, validation_fraction=0.2)
    splits = []
    for stream in (streams.train[0], streams.validation[0]):
        rows = [row for step in range(len(stream)) for row in _restored(stream.batch(step)) if row]
        splits.append([tuple(row) for row in rows[: stream.num_rows]])
    train, validation = splits
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 300 and 30 < len(validation) < 90
    assert all(validation.count(row) == 2 for row in validation)


def test_evaluation_reads_each_record_once_with_fixed_masks(files: Path) -> None:
    write_records(files / 'held-out.tfrecord', make_records(9, 23)[0])
    settings = {'validation_source': f'tfrecord:{files}/held-out.tfrecord'}
    stream, again = _open(files, **settings).validation[0], _open(files, **settings, seed=4).validation[0]
    assert stream.num_rows == 23 and len(stream) == 3
    batches = [stream.batch(step) for step in range(3)]
    assert sum(batch.next_sentence_weights.sum() for batch in batches) == 23
    padding = batches[-1].next_sentence_weights[:, 0] == 0
    assert padding.sum() == 7 and not batches[-1].masked_lm_weights[padding].any()
    assert not batches[-1].sequence_ids[padding].any() and not batches[-1].input_ids[padding].any()
    for step, batch in enumerate(batches):
        _assert_equal(again.batch(step), batch)


def test_unigram_counts_are_of_unmasked_tokens(files: Path) -> None:
    write_records(files / 'held-out.tfrecord', RECORDS)
    streams = _open(files, source=f'tfrecord:{files}/part-0.tfrecord', validation_source=f'tfrecord:{files}/held-out*')
    tokens = [token for ids in ORIGINALS for token in ids if token not in (CLS, SEP)]
    np.testing.assert_array_equal(streams.unigram_counts(), np.bincount(tokens, minlength=VOCAB))


def test_lengths_are_inferred_from_the_records(files: Path) -> None:
    streams = _open(files)
    assert streams.config.data.sequence_length == 32 and streams.config.data.max_predictions == -1
    assert streams.train[0].batch(0).masked_lm_ids.shape == (10, 5)
    assert _open(files, remask=False).config.data.max_predictions == 5
    assert _open(files, remask=False, max_predictions=8).train[0].batch(0).masked_lm_ids.shape == (10, 8)
    write_records(files / 'part-long.tfrecord', make_records(3, 5, num_positions=48, num_predictions=9)[0])
    assert _open(files).train[0].batch(0).input_ids.shape == (10, 48)
    assert _open(files, remask=False).train[0].batch(0).masked_lm_ids.shape == (10, 9)


def test_vocabulary_may_have_special_tokens_anywhere(files: Path) -> None:
    """Rows are padded with the id that [PAD] has in the vocabulary."""
    lines = (files / 'vocab.txt').read_text().splitlines()
    lines[0], lines[7] = lines[7], lines[0]
    (files / 'vocab.txt').write_text('\n'.join(lines) + '\n')
    batch = _open(files).train[0].batch(0)
    assert (batch.input_ids[batch.sequence_ids == 0] == 7).all()


def test_content_hash_depends_on_content_and_not_on_paths(files: Path, tmp_path: Path) -> None:
    first = _open(files)
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    for path in files.glob('*.t*'):
        (elsewhere / path.name).write_bytes(path.read_bytes())
    assert _open(elsewhere).content_hash == first.content_hash
    write_records(elsewhere / 'part-1.tfrecord', RECORDS[51:100])
    assert _open(elsewhere).content_hash != first.content_hash
    assert _open(files, validation_fraction=0.1).content_hash != first.content_hash


def test_index_is_cached_and_only_changed_files_scanned_again(files: Path, monkeypatch) -> None:
    scanned = []
    scan = record_set._scan
    monkeypatch.setattr(record_set, '_scan', lambda path: scanned.append(Path(path).name) or scan(path))
    source = f'tfrecord:{files}/part-*.tfrecord'
    before = open_records(source, progress=False)
    assert len(scanned) == 3
    again = open_records(source, progress=False)
    assert len(scanned) == 3 and again.digest == before.digest
    write_records(files / 'part-1.tfrecord', RECORDS[:7])
    assert len(open_records(source, progress=False)) == 107 and scanned[3:] == ['part-1.tfrecord']


def test_index_built_by_several_processes_is_the_same(files: Path, monkeypatch, tmp_path: Path) -> None:
    source = f'tfrecord:{files}/part-*.tfrecord'
    alone = open_records(source, progress=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
    monkeypatch.setattr(record_set, '_WORTH_PROCESSES', 0)
    together = open_records(source, progress=False)
    assert together.digest == alone.digest
    for ours, theirs in zip(together.files, alone.files, strict=True):
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
        np.testing.assert_array_equal(ours.hashes, theirs.hashes)


def test_record_changed_after_indexing_is_reported(files: Path) -> None:
    stream, path = _open(files).train[0], files / 'part-0.tfrecord'
    status, content = path.stat(), bytearray(path.read_bytes())
    start = len(serialize(RECORDS[0])) + 16
    content[start + 40] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BadInput, match=f'{path}, byte {start}: the record has changed since'):
        for step in range(len(stream)):
            stream.batch(step)


def _gzip(directory: Path) -> None:
    import gzip

    path = directory / 'part-1.tfrecord'
    path.write_bytes(gzip.compress(path.read_bytes()))


def _cut(directory: Path) -> None:
    path = directory / 'part-1.tfrecord'
    path.write_bytes(path.read_bytes()[:-3])


def _small_vocabulary(directory: Path) -> None:
    lines = (directory / 'vocab.txt').read_text().splitlines(keepends=True)
    (directory / 'vocab.txt').write_text(''.join(lines[:500]))


def _other_vocabulary(directory: Path) -> None:
    lines = (directory / 'vocab.txt').read_text().splitlines()
    (directory / 'vocab.txt').write_text('\n'.join([*lines[5:], *lines[:5]]) + '\n')


def _without_labels(directory: Path) -> None:
    records = [{name: v for name, v in record.items() if name != 'next_sentence_labels'} for record in RECORDS[:9]]
    write_records(directory / 'part-1.tfrecord', [RECORDS[0], *records])


@pytest.mark.parametrize(
    'damage, settings, words',
    [
        (_gzip, {}, ('part-1.tfrecord: is compressed', 'gunzip -k')),
        (_cut, {}, ('part-1.tfrecord, byte ', 'the file ends within a record')),
        (_small_vocabulary, {}, ('.tfrecord, byte ', 'holds the token id 99', "below the vocabulary's 500")),
        (_other_vocabulary, {}, ('.tfrecord, byte 0: the record starts with the id 2', '[CLS] is 997')),
        (_without_labels, {}, (f'byte {len(serialize(RECORDS[0])) + 16}', 'no next_sentence_labels', 'pairing=none')),
        (None, {'source': 'tfrecord:/no/such-*'}, ('no file matches /no/such-*',)),
        (None, {'source': 'tfrecord:gs://bucket/part-*'}, ('is not on a disk',)),
        (None, {'max_positions': 16}, ('model.max_positions', 'records are 32 positions', 'max_positions=32')),
        (None, {'remask': False, 'max_predictions': 3}, ('max_predictions', '--config.data.max_predictions=5')),
        (None, {'validation_source': 'tfrecord:{}/part-2*'}, ('validation_source', 'part-2.tfrecord holds')),
    ],
)
def test_unusable_input_is_rejected_with_a_fix(files: Path, cache: Path, damage, settings: dict, words: tuple) -> None:
    if damage:
        damage(files)
    settings = {name: v.format(files) if isinstance(v, str) else v for name, v in settings.items()}
    with pytest.raises(BadInput) as error:
        _open(files, **settings)
    for word in words:
        assert word in str(error.value)
    if damage in (_gzip, _cut):
        assert not list(cache.rglob('*.partial'))


def test_empty_files_are_skipped_unless_all_are_empty(files: Path) -> None:
    for name in ('part-0', 'part-3'):
        (files / f'{name}.tfrecord').write_bytes(b'')
    streams = _open(files, validation_fraction=0.1)
    assert streams.train[0].num_rows + streams.validation[0].num_rows == 100
    with pytest.raises(BadInput, match='holds no record'):
        _open(files, source=f'tfrecord:{files}/part-3*')
    write_records(files / 'one.tfrecord', RECORDS[:1])
    with pytest.raises(BadInput, match='no rows in its training split'):
        _open(files, source=f'tfrecord:{files}/one*', validation_fraction=0.999999)


def test_records_without_labels_train_without_pairs(files: Path) -> None:
    _without_labels(files)
    batch = _open(files, pairing='none').train[0].batch(0)
    assert not batch.next_sentence_weights.any() and not batch.next_sentence_labels.any()


def test_missing_vocabulary_and_mixed_sources_are_rejected(files: Path) -> None:
    run = _config(files)
    with pytest.raises(BadInput, match='tokenizer.path: is empty'):
        open_streams(dataclasses.replace(run, tokenizer=config.Tokenizer()))
    mixed = {'data': {'source': 'tfrecord:x', 'validation_source': 'text:y'}}
    with pytest.raises(BadInput, match='both text, or both tfrecord'):
        config.resolve(mixed)
