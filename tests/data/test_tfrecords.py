"""Every field decodes to what other libraries wrote; any damage is reported with its file and offset."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.record_writer import masked_crc32c

from bert_jax.data.tfrecords import Examples, decode, read_frames
from bert_jax.errors import BadInput
from tests.support.records import Record, make_records, serialize, write_frames, write_records

RECORDS, ORIGINALS = make_records(0, 40)


def _read(path: Path) -> Examples:
    with path.open('rb') as file:
        frames = list(read_frames(file, str(path)))
    return decode([data for _, data in frames], [(str(path), offset) for offset, _ in frames])


def _assert_as_written(examples: Examples, records: list[Record]) -> None:
    for row, record in enumerate(records):
        assert examples.input_ids[row].tolist() == record['input_ids']
        assert (np.arange(32) < examples.lengths[row]).tolist() == record['input_mask']
        assert examples.token_type_ids[row].tolist() == record['segment_ids']
        assert examples.masked_lm_positions[row].tolist() == record['masked_lm_positions']
        assert examples.masked_lm_ids[row].tolist() == record['masked_lm_ids']
        assert examples.masked_lm_weights[row].tolist() == record['masked_lm_weights']
        assert [examples.next_sentence_labels[row]] == record['next_sentence_labels']


def _renamed(record: Record) -> Record:
    """Returns the record with the field names of the TensorFlow Model Garden."""
    names = {'input_ids': 'input_word_ids', 'segment_ids': 'input_type_ids'}
    return {names.get(name, name): values for name, values in record.items()}


def _unpadded(record: Record) -> Record:
    length, count = sum(record['input_mask']), int(sum(record['masked_lm_weights']))
    per_position = ('input_ids', 'input_mask', 'segment_ids')
    return {name: values[: length if name in per_position else max(count, 1)] for name, values in record.items()}


def _without_weights(record: Record) -> Record:
    return {name: values for name, values in record.items() if name != 'masked_lm_weights'}


@pytest.mark.parametrize('variant', [dict, _renamed, _unpadded, _without_weights])
def test_every_field_decodes_to_the_written_values(tmp_path: Path, variant) -> None:
    path = write_records(tmp_path / 'records', [variant(record) for record in RECORDS])
    examples = _read(path)
    _assert_as_written(examples, RECORDS)
    for ids, length, original in zip(examples.original_ids(), examples.lengths, ORIGINALS, strict=True):
        assert ids[:length].tolist() == original


def _varint(value: int) -> bytes:
    out = b''
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _encoded(record: Record, integers: Callable[[list], bytes], floats: Callable[[list], bytes]) -> bytes:
    """Serializes an example whose lists `integers` and `floats` encode."""
    entries = b''
    for name, values in record.items():
        kind, content = (2, floats(values)) if name == 'masked_lm_weights' else (3, integers(values))
        entries += _field(1, _field(1, name.encode()) + _field(2, _field(kind, content)))
    return _field(1, entries)


def _unpacked(values: list) -> bytes:
    if isinstance(values[0], float):
        return b''.join(b'\x0d' + struct.pack('<f', value) for value in values)
    return b''.join(b'\x08' + _varint(value) for value in values)


def _packed(values: list) -> bytes:
    if isinstance(values[0], float):
        return _field(1, struct.pack(f'<{len(values)}f', *values))
    return _field(1, b''.join(map(_varint, values)))


def _in_two_parts(values: list) -> bytes:
    return _packed(values[:3]) + _packed(values[3:]) if len(values) > 3 else _packed(values)


@pytest.mark.parametrize('encode', [_packed, _unpacked, _in_two_parts])
def test_lists_decode_in_every_protocol_buffer_encoding(encode) -> None:
    records = [_encoded(record, encode, encode) for record in RECORDS]
    _assert_as_written(decode(records, [('file', 0)] * len(records)), RECORDS)


def test_truncated_number_does_not_extend_into_the_next_record() -> None:
    def cut(values: list) -> bytes:
        return _field(1, b''.join(map(_varint, values))[:-1] + b'\x83')

    positions = [('file', 10), ('file', 20), ('file', 30)]
    records = [serialize(RECORDS[0]), _encoded(RECORDS[1], cut, _packed), serialize(RECORDS[2])]
    with pytest.raises(BadInput, match='file, byte 20: input_ids holds an impossible id'):
        decode(records, positions)


def _changed(**changes: list | None) -> bytes:
    changed = RECORDS[1] | changes
    return serialize({name: values for name, values in changed.items() if values is not None})


@pytest.mark.parametrize(
    'data, words',
    [
        (_changed(input_ids=None), 'has no input_ids; it has input_mask, masked_lm_ids'),
        (_changed(masked_lm_positions=None), 'has no masked_lm_positions'),
        (_changed(segment_ids=[0] * 31), 'segment_ids has 31 values'),
        (_changed(masked_lm_ids=[7] * 4), 'masked_lm_ids has 4 values'),
        (_changed(input_ids=[-1] + [7] * 31), 'input_ids holds an impossible id'),
        (_changed(input_ids=[2**40] + [7] * 31), 'input_ids holds an impossible id'),
        (_changed(input_ids=[1.5] * 32), 'input_ids has 0 values'),
        (_changed(input_mask=[0] * 32), 'input_mask is all 0'),
        (_changed(input_mask=[1, 0] * 16), 'input_mask is not 1 up to a length'),
        (_changed(segment_ids=[2] * 32), 'segment_ids has a value other'),
        (_changed(masked_lm_positions=[32] * 5, masked_lm_weights=[1.0] * 5), 'position beyond the sequence'),
        (_changed(masked_lm_positions=[-1] * 5, masked_lm_weights=[1.0] * 5), 'position beyond the sequence'),
        (_changed(masked_lm_weights=[float('nan')] * 5), 'masked_lm_weights has a value other'),
        (_changed(next_sentence_labels=[2]), 'next_sentence_labels is neither'),
        (_changed(next_sentence_labels=[0, 1]), 'next_sentence_labels has 2 values'),
        (_changed(**{name: [1] * 70_000 for name in ('input_ids', 'input_mask', 'segment_ids')}), 'is too long'),
        (b'', 'no fields'),
        (_field(1, b'\x0a\x00' * 500_000), 'it has (an unusual name)'),
        (b'\xff\xff\xff', 'is not a tf.train.Example'),
    ],
)
def test_invalid_record_is_reported_by_file_and_offset(tmp_path: Path, data: bytes, words: str) -> None:
    first = serialize(RECORDS[0])
    path = write_frames(tmp_path / 'records', [first, data])
    with pytest.raises(BadInput) as error:
        _read(path)
    assert words in str(error.value)
    assert f'{path}, byte {len(first) + 16}:' in str(error.value)


def _header(length: int) -> bytes:
    packed = struct.pack('<Q', length)
    return packed + struct.pack('<I', masked_crc32c(packed))


@pytest.mark.parametrize(
    'damage, offset, words',
    [
        (lambda frames: frames[0][:-1], 0, 'ends within a record'),
        (lambda frames: frames[0][:10], 0, 'ends within the header'),
        (lambda frames: frames[0] + frames[1][:-20], 1, 'ends within a record'),
        (lambda frames: frames[0] + b'\x01' + frames[1][1:], 1, 'checksum of the length'),
        (lambda frames: frames[0] + frames[1][:-30] + b'?' + frames[1][-29:], 1, 'checksum of the data'),
        (lambda frames: frames[0] + frames[1][:-1] + b'?', 1, 'checksum of the data'),
        (lambda frames: b'not a record, but a text of some length', 0, 'is not a TFRecord file'),
        (lambda frames: _header(1 << 40), 0, 'claims to have 1,099,511,627,776 bytes'),
    ],
)
def test_damaged_file_is_reported_by_offset(tmp_path: Path, damage, offset: int, words: str) -> None:
    path = write_records(tmp_path / 'records', RECORDS[:2])
    content = path.read_bytes()
    cut = len(serialize(RECORDS[0])) + 16
    path.write_bytes(damage([content[:cut], content[cut:]]))
    with pytest.raises(BadInput) as error:
        _read(path)
    assert words in str(error.value) and f'{path}, byte {(0, cut)[offset]}:' in str(error.value)


@pytest.mark.parametrize('magic, fix', [(b'\x1f\x8b\x08', 'gunzip -k'), (b'\x28\xb5\x2f\xfd', 'zstd -d')])
def test_compressed_file_is_rejected_with_the_command_to_decompress(tmp_path: Path, magic: bytes, fix: str) -> None:
    (tmp_path / 'records').write_bytes(magic + bytes(100))
    with pytest.raises(BadInput, match=f'{fix} {tmp_path}/records'):
        _read(tmp_path / 'records')


SERIALIZED = [serialize(record) for record in RECORDS[:4]]


@settings(max_examples=300, deadline=None)
@given(
    index=st.integers(0, 3),
    edits=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 9), st.binary(max_size=9)), max_size=4),
)
def test_any_bytes_are_an_example_or_bad_input(index: int, edits: list[tuple[int, int, bytes]]) -> None:
    data = SERIALIZED[index]
    for position, removed, inserted in edits:
        data = data[:position] + inserted + data[position + removed :]
    try:
        examples = decode([data], [('file', 7)])
    except BadInput as error:
        assert str(error).startswith('file, byte 7:')
    else:
        assert examples.input_ids.shape[1] >= examples.lengths[0] > 0
        assert (examples.masked_lm_positions[0] < examples.lengths[0]).all()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_records_or_bad_input(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / 'any'
    path.write_bytes(content)
    if content:
        with pytest.raises(BadInput, match='any'):
            _read(path)


def test_announced_size_without_data_takes_no_memory(tmp_path: Path) -> None:
    """The header has a valid checksum and announces the largest record, but no data follow."""
    (tmp_path / 'head').write_bytes(_header(1 << 20) + b'data')
    tracemalloc.start()
    with pytest.raises(BadInput, match='ends within a record of 1,048,576 bytes'):
        _read(tmp_path / 'head')
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
