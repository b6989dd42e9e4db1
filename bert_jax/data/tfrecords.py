"""Bytes of TFRecord files -> arrays: framing and `tf.train.Example`s of BERT's preparations, without TensorFlow.

The fields are those of the original's `create_pretraining_data.py`, which the preparations of MLPerf and NVIDIA kept,
or the newer names of the TensorFlow Model Garden. Nothing in a file is trusted: every checksum is compared, and sizes
are bounded before memory is given.

`B` records, `L` positions, `P` predictions per record.
"""

import functools
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import numpy as np

from bert_jax.errors import BadInput

FRAME_BYTES = 16  # of each record: length (8), checksum of the length (4), before the data; checksum of the data (4)
_LONGEST_RECORD = 1 << 20  # bytes; a record of 512 positions has at most 5 KB
_LONGEST_LIST = 1 << 16  # values
_DAMAGED = 'copy or make the file again, or leave it out of the pattern'
_FIELDS = {  # ours: what the preparations call it, the original's first, and the kind of its list
    'input_ids': (('input_ids', 'input_word_ids'), 'int64_list'),
    'input_mask': (('input_mask',), 'int64_list'),
    'segment_ids': (('segment_ids', 'input_type_ids'), 'int64_list'),
    'masked_lm_positions': (('masked_lm_positions',), 'int64_list'),
    'masked_lm_ids': (('masked_lm_ids',), 'int64_list'),
    'masked_lm_weights': (('masked_lm_weights',), 'float_list'),
    'next_sentence_labels': (('next_sentence_labels',), 'int64_list'),
}
_OPTIONAL = ('masked_lm_weights', 'next_sentence_labels')


class Examples(NamedTuple):
    """Records as they were written, unpadded lists padded with 0."""

    input_ids: np.ndarray  # [B, L] int32, masked
    lengths: np.ndarray  # [B] int64, tokens with [CLS] and [SEP]
    token_type_ids: np.ndarray  # [B, L] int32
    masked_lm_positions: np.ndarray  # [B, P] int32
    masked_lm_ids: np.ndarray  # [B, P] int32
    masked_lm_weights: np.ndarray  # [B, P] float32, 0 or 1
    next_sentence_labels: np.ndarray  # [B] int32, -1 where a record has none

    def original_ids(self) -> np.ndarray:
        """[B, L] int32, the tokens before they were masked."""
        ids = self.input_ids.copy()
        rows, slots = np.nonzero(self.masked_lm_weights)
        ids[rows, self.masked_lm_positions[rows, slots]] = self.masked_lm_ids[rows, slots]
        return ids


# --- Framing: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details ---


def read_frames(file: BinaryIO, path: str) -> Iterator[tuple[int, bytes]]:
    """(offset, data) of every record of a file from its start, checksums compared.

    Raises:
      BadInput: names file and offset of the first record that is damaged.
    """
    offset = 0
    while head := file.read(12):
        if offset == 0 and head.startswith((b'\x1f\x8b', b'\x28\xb5\x2f\xfd')):
            tool = 'gunzip -k' if head.startswith(b'\x1f') else 'zstd -d'
            raise BadInput(
                path, 'is compressed: its records cannot be read at random', 'plain records', f'{tool} {path}'
            )
        if len(head) < 12:
            raise _damaged(path, offset, 'the file ends within the head of a record')
        if _checksum(head[:8]) != head[8:]:
            found = 'is not a TFRecord file' if offset == 0 else 'the checksum of the length of the record is wrong'
            raise _damaged(path, offset, found)
        (length,) = struct.unpack('<Q', head[:8])
        if length > _LONGEST_RECORD:
            raise _damaged(
                path, offset, f'the record says that it has {length:,} bytes', f'at most {_LONGEST_RECORD:,}'
            )
        tail = file.read(length + 4)
        if len(tail) < length + 4:
            raise _damaged(path, offset, f'the file ends within a record of {length:,} bytes')
        if _checksum(tail[:-4]) != tail[-4:]:
            raise _damaged(path, offset, 'the checksum of the data of the record is wrong')
        yield offset, tail[:-4]
        offset += FRAME_BYTES + length


def unframe(frame: bytes, size: int, path: str, offset: int) -> bytes:
    """The data of a frame of `size` bytes that was read at a known offset, its checksum compared."""
    if (
        len(frame) != size
        or struct.unpack('<Q', frame[:8])[0] != size - FRAME_BYTES
        or _checksum(frame[12:-4]) != frame[-4:]
    ):
        raise _damaged(path, offset, 'the record is not what it was when the file was indexed')
    return frame[12:-4]


def _checksum(data: bytes) -> bytes:
    """CRC-32C, masked as in TensorFlow (and LevelDB), little-endian."""
    value = google_crc32c.value(data)
    return struct.pack('<I', (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _damaged(path: str, offset: int, found: str, expected: str = '') -> BadInput:
    return BadInput(f'{path}, byte {offset}', found, expected, _DAMAGED)


# --- Examples. ---


@functools.cache
def _example_message() -> type:
    """The message class of `tf.train.Example`, in a pool of its own: TensorFlow may be loaded beside it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name='example.proto', package='tensorflow', syntax='proto3')

    def add(message: Any, name: str, number: int, kind: int | str, repeated: bool = False) -> None:
        label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
        scalar = isinstance(kind, int)
        typed = {'type': kind} if scalar else {'type': field_type.TYPE_MESSAGE, 'type_name': f'.tensorflow.{kind}'}
        message.field.add(name=name, number=number, label=label, **typed)

    lists = {'BytesList': field_type.TYPE_BYTES, 'FloatList': field_type.TYPE_FLOAT, 'Int64List': field_type.TYPE_INT64}
    feature = descriptor_pb2.DescriptorProto(name='Feature')
    for number, (name, kind) in enumerate(lists.items(), 1):
        add(file.message_type.add(name=name), 'value', 1, kind, repeated=True)
        add(feature, name.removesuffix('List').lower() + '_list', number, name)
    file.message_type.append(feature)
    features = file.message_type.add(name='Features')
    entry = features.nested_type.add(name='FeatureEntry')
    entry.options.map_entry = True
    add(entry, 'key', 1, field_type.TYPE_STRING)
    add(entry, 'value', 2, 'Feature')
    add(features, 'feature', 1, 'Features.FeatureEntry', repeated=True)
    add(file.message_type.add(name='Example'), 'features', 1, 'Features')
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('tensorflow.Example'))


def decode(records: list[bytes], places: list[tuple[str, int]]) -> Examples:
    """Parses the data of records; `L` and `P` are those of the longest.

    Args:
      places: (file, offset) of each, for errors.

    Raises:
      BadInput: names file and offset of the first record that is no example of BERT's.
    """
    parsed = [_parse(record, *place) for record, place in zip(records, places, strict=True)]
    fields = {name: _stacked(lists) for name, lists in zip(_FIELDS, zip(*parsed, strict=True), strict=True)}
    positions = fields['input_ids'].shape[1]
    weights, labels = fields['masked_lm_weights'], fields['next_sentence_labels'][:, 0]
    lengths = fields['input_mask'].sum(axis=1)
    real = weights > 0
    limit = np.iinfo(np.int32).max
    for found, wrong, expected in (
        ('input_ids has an impossible id', (fields['input_ids'] < 0) | (fields['input_ids'] > limit), ''),
        ('masked_lm_ids has an impossible id', (fields['masked_lm_ids'] < 0) | (fields['masked_lm_ids'] > limit), ''),
        (
            'input_mask is not a run of 1 and then 0',
            fields['input_mask'] != (np.arange(positions) < lengths[:, None]),
            'one sequence, at the start of the row',
        ),
        ('input_mask is all 0', lengths == 0, 'at least one token'),
        ('segment_ids has another value than 0 and 1', fields['segment_ids'] & ~1 != 0, ''),
        ('masked_lm_weights has another value than 0 and 1', (weights != 0) & (weights != 1), ''),
        (
            'masked_lm_positions has a position beyond the sequence',
            real & ((fields['masked_lm_positions'] < 0) | (fields['masked_lm_positions'] >= lengths[:, None])),
            'positions of tokens',
        ),
        ('next_sentence_labels is neither 0 nor 1', (labels < -1) | (labels > 1), ''),
    ):
        if wrong.any():
            row = int(np.argmax(wrong.reshape(len(parsed), -1).any(axis=1)))
            raise _damaged(*places[row], found, expected)
    return Examples(
        fields['input_ids'].astype(np.int32),
        lengths,
        fields['segment_ids'].astype(np.int32),
        np.where(real, fields['masked_lm_positions'], 0).astype(np.int32),
        np.where(real, fields['masked_lm_ids'], 0).astype(np.int32),
        weights,
        labels.astype(np.int32),
    )


def _parse(record: bytes, path: str, offset: int) -> list[np.ndarray]:
    """The value lists of one record in the order of `_FIELDS`, their lengths compared."""
    from google.protobuf.message import DecodeError

    try:
        features = _example_message().FromString(record).features.feature
    except DecodeError:
        raise _damaged(path, offset, 'the record is no tf.train.Example') from None
    found = {}
    for name, (names, kind) in _FIELDS.items():
        for theirs in names:
            if theirs in features:
                found[name] = np.asarray(getattr(features[theirs], kind).value)
                break
    if len(found) < len(_FIELDS):
        missing = [name for name in _FIELDS if name not in found and name not in _OPTIONAL]
        if missing:
            told = f'the record has no {missing[0]}; it has {_listed(features)}'
            raise BadInput(f'{path}, byte {offset}', told, 'the fields of create_pretraining_data.py')
        # Without weights, lists are filled up with position 0, which is [CLS] and never predicted.
        found.setdefault('masked_lm_weights', (found['masked_lm_positions'] > 0).astype(np.float32))
        found.setdefault('next_sentence_labels', np.array([-1]))
    lists = [found[name] for name in _FIELDS]
    sizes = [len(values) for values in lists]
    if not (
        0 < sizes[0] == sizes[1] == sizes[2] <= _LONGEST_LIST
        and sizes[3] == sizes[4] == sizes[5] <= _LONGEST_LIST
        and sizes[6] == 1
    ):
        told = ', '.join(f'{name} has {size:,} values' for name, size in zip(_FIELDS, sizes, strict=True))
        expected = f'1 to {_LONGEST_LIST:,} in each of the first three, as many in each masked_lm_…, and 1 label'
        raise _damaged(path, offset, told, expected)
    return lists


def _stacked(lists: tuple[np.ndarray, ...]) -> np.ndarray:
    """[B, W] of B lists, W that of the longest, filled up with 0."""
    sizes = np.array([len(values) for values in lists])
    stacked = np.zeros((len(lists), sizes.max()), lists[0].dtype)
    stacked[np.arange(stacked.shape[1]) < sizes[:, None]] = np.concatenate(lists)
    return stacked


def _listed(features: Any) -> str:
    """Names of a record's fields, as far as a line has room for them."""
    shown = sorted(features)[:12]
    names = ', '.join(name if name.isidentifier() and len(name) < 40 else '(an odd name)' for name in shown)
    return names or 'no field at all'
