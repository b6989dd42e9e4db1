"""Decodes TFRecord files of BERT examples into arrays, without TensorFlow.

The fields are those of the original's `create_pretraining_data.py`, which MLPerf and NVIDIA kept, or the newer names of
the TensorFlow Model Garden. Nothing in a file is trusted: every checksum is verified, and sizes are bounded before
memory is allocated.

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
_LONGEST_LIST = 1 << 16  # bytes, packed
_DAMAGED = 'copy or create the file again, or exclude it from the pattern'
_FIELDS = {  # our name: (names in files, the original's first), kind of list
    'input_ids': (('input_ids', 'input_word_ids'), 'int64_list'),
    'input_mask': (('input_mask',), 'int64_list'),
    'segment_ids': (('segment_ids', 'input_type_ids'), 'int64_list'),
    'masked_lm_positions': (('masked_lm_positions',), 'int64_list'),
    'masked_lm_ids': (('masked_lm_ids',), 'int64_list'),
    'masked_lm_weights': (('masked_lm_weights',), 'float_list'),
    'next_sentence_labels': (('next_sentence_labels',), 'int64_list'),
}
_OPTIONAL = ('masked_lm_weights', 'next_sentence_labels')
_PER_POSITION = ('input_ids', 'input_mask', 'segment_ids')
_PER_PREDICTION = ('masked_lm_positions', 'masked_lm_ids', 'masked_lm_weights')


class Examples(NamedTuple):
    """Records as written, with unpadded lists padded with 0."""

    input_ids: np.ndarray  # [B, L] int32, masked
    lengths: np.ndarray  # [B] int64, tokens with [CLS] and [SEP]
    token_type_ids: np.ndarray  # [B, L] int32
    masked_lm_positions: np.ndarray  # [B, P] int32
    masked_lm_ids: np.ndarray  # [B, P] int32
    masked_lm_weights: np.ndarray  # [B, P] float32, 0 or 1
    next_sentence_labels: np.ndarray  # [B] int32, -1 without a label

    def original_ids(self) -> np.ndarray:
        """Returns [B, L] int32, the tokens before masking."""
        ids = self.input_ids.copy()
        rows, slots = np.nonzero(self.masked_lm_weights)
        ids[rows, self.masked_lm_positions[rows, slots]] = self.masked_lm_ids[rows, slots]
        return ids


# --- Framing: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details ---


def read_frames(file: BinaryIO, path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (offset, data) of every record of a file after verifying its checksums.

    Raises:
      BadInput: if a record is damaged; it gives the file and the offset.
    """
    offset = 0
    while head := file.read(12):
        if offset == 0 and head.startswith((b'\x1f\x8b', b'\x28\xb5\x2f\xfd')):
            tool = 'gunzip -k' if head.startswith(b'\x1f') else 'zstd -d'
            raise BadInput(
                path, 'is compressed, so its records cannot be read at random', 'uncompressed records', f'{tool} {path}'
            )
        if len(head) < 12:
            raise _damaged(path, offset, 'the file ends within the header of a record')
        if _checksum(head[:8]) != head[8:]:
            found = 'is not a TFRecord file' if offset == 0 else 'the checksum of the length of the record is wrong'
            raise _damaged(path, offset, found)
        (length,) = struct.unpack('<Q', head[:8])
        if length > _LONGEST_RECORD:
            raise _damaged(path, offset, f'the record claims to have {length:,} bytes', f'at most {_LONGEST_RECORD:,}')
        tail = file.read(length + 4)
        if len(tail) < length + 4:
            raise _damaged(path, offset, f'the file ends within a record of {length:,} bytes')
        if _checksum(tail[:-4]) != tail[-4:]:
            raise _damaged(path, offset, 'the checksum of the data of the record is wrong')
        yield offset, tail[:-4]
        offset += FRAME_BYTES + length


def unframe(frame: bytes, size: int, path: str, offset: int) -> bytes:
    """Returns the data of a frame of `size` bytes at a known offset after verifying its checksum."""
    if (
        len(frame) != size
        or struct.unpack('<Q', frame[:8])[0] != size - FRAME_BYTES
        or _checksum(frame[12:-4]) != frame[-4:]
    ):
        raise _damaged(path, offset, 'the record has changed since the file was indexed')
    return frame[12:-4]


def _checksum(data: bytes) -> bytes:
    """Returns the CRC-32C, masked as in TensorFlow and LevelDB, little-endian."""
    value = google_crc32c.value(data)
    return struct.pack('<I', (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _damaged(path: str, offset: int, found: str, expected: str = '') -> BadInput:
    return BadInput(f'{path}, byte {offset}', found, expected, _DAMAGED)


# --- Examples. ---


@functools.cache
def _example_messages() -> tuple[Any, Any]:
    """Makes two message classes for `tf.train.Example`, in a separate pool because TensorFlow may be loaded too.

    The first is as published. The second leaves packed lists as bytes: converting each value to a Python number would
    take most of the time.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    # protobuf makes its classes at import, where a type checker does not see them.
    descriptors: Any = descriptor_pb2
    field_type = descriptors.FieldDescriptorProto
    pool = descriptor_pool.DescriptorPool()  # ty: ignore[possibly-missing-implicit-call]

    def add(message: Any, name: str, number: int, kind: int | str, repeated: bool = False) -> None:
        label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
        typed = {'type': kind} if isinstance(kind, int) else {'type': field_type.TYPE_MESSAGE, 'type_name': kind}
        message.field.add(name=name, number=number, label=label, **typed)

    def make(package: str, integer: int, number: int) -> type:
        file = descriptors.FileDescriptorProto(name=f'{package}.proto', package=package, syntax='proto3')
        add(file.message_type.add(name='Int64List'), 'value', 1, integer, repeated=True)
        add(file.message_type.add(name='FloatList'), 'value', 1, number, repeated=True)
        feature = file.message_type.add(name='Feature')
        add(feature, 'float_list', 2, f'.{package}.FloatList')
        add(feature, 'int64_list', 3, f'.{package}.Int64List')
        features = file.message_type.add(name='Features')
        entry = features.nested_type.add(name='FeatureEntry')
        entry.options.map_entry = True
        add(entry, 'key', 1, field_type.TYPE_STRING)
        add(entry, 'value', 2, f'.{package}.Feature')
        add(features, 'feature', 1, f'.{package}.Features.FeatureEntry', repeated=True)
        add(file.message_type.add(name='Example'), 'features', 1, f'.{package}.Features')
        pool.AddSerializedFile(file.SerializeToString())
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'{package}.Example'))

    return make('typed', field_type.TYPE_INT64, field_type.TYPE_FLOAT), make('packed', *[field_type.TYPE_BYTES] * 2)


def decode(records: list[bytes], locations: list[tuple[str, int]]) -> Examples:
    """Parses the data of records; `L` and `P` are those of the longest.

    Args:
      locations: (file, offset) of each record, for errors.

    Raises:
      BadInput: if a record is not a BERT example; it gives the file and the offset.
    """
    parsed = [_parse(record, *place) for record, place in zip(records, locations, strict=True)]
    columns = {
        name: (_floats if name == 'masked_lm_weights' else _integers)(lists)
        for name, lists in zip(_FIELDS, zip(*parsed, strict=True), strict=True)
    }
    sizes = {name: sizes for name, (_, sizes) in columns.items()}
    _check_sizes(sizes, locations)
    num_positions, num_predictions = sizes['input_ids'].max(), sizes['masked_lm_ids'].max()
    fields = {name: _stacked(*columns[name], num_positions) for name in _PER_POSITION}
    fields |= {name: _stacked(*columns[name], num_predictions) for name in _PER_PREDICTION}
    # Lists without weights are padded with position 0, which is [CLS] and never predicted.
    weighted = (sizes['masked_lm_weights'] > 0)[:, None]
    weights = np.where(weighted, fields['masked_lm_weights'], np.float32(1) * (fields['masked_lm_positions'] > 0))
    labels = np.full(len(records), -1, np.int64)
    labels[sizes['next_sentence_labels'] > 0] = columns['next_sentence_labels'][0]
    lengths = fields['input_mask'].sum(axis=1)
    _check_values(fields, lengths, weights, labels, locations)
    real = weights > 0
    return Examples(
        fields['input_ids'].astype(np.int32),
        lengths,
        fields['segment_ids'].astype(np.int32),
        np.where(real, fields['masked_lm_positions'], 0).astype(np.int32),
        np.where(real, fields['masked_lm_ids'], 0).astype(np.int32),
        weights,
        labels.astype(np.int32),
    )


def _check_sizes(sizes: dict[str, np.ndarray], locations: list[tuple[str, int]]) -> None:
    weights, labels = sizes['masked_lm_weights'], sizes['next_sentence_labels']
    fits = (sizes['input_ids'] > 0) & (sizes['masked_lm_ids'] == sizes['masked_lm_positions']) & (labels <= 1)
    fits &= (sizes['input_ids'] == sizes['input_mask']) & (sizes['input_ids'] == sizes['segment_ids'])
    fits &= (weights == 0) | (weights == sizes['masked_lm_ids'])
    if not fits.all():
        row = int(fits.argmin())
        found = ', '.join(f'{name} has {counts[row]:,} values' for name, counts in sizes.items())
        expected = 'equally many values in the first three, equally many in each masked_lm_…, and one label'
        raise _damaged(*locations[row], found, expected)


def _check_values(
    fields: dict[str, np.ndarray],
    lengths: np.ndarray,
    weights: np.ndarray,
    labels: np.ndarray,
    locations: list[tuple[str, int]],
) -> None:
    ids, mask, positions, labels_ids = (
        fields[name] for name in ('input_ids', 'input_mask', 'masked_lm_positions', 'masked_lm_ids')
    )
    limit = np.iinfo(np.int32).max
    beyond = (positions < 0) | (positions >= lengths[:, None])
    for found, wrong in (
        ('input_ids holds an impossible id', (ids < 0) | (ids > limit)),
        ('masked_lm_ids holds an impossible id', (labels_ids < 0) | (labels_ids > limit)),
        ('input_mask is not 1 up to a length and then 0', mask != (np.arange(mask.shape[1]) < lengths[:, None])),
        ('input_mask is all 0', lengths == 0),
        ('segment_ids has a value other than 0 and 1', fields['segment_ids'] & ~1 != 0),
        ('masked_lm_weights has a value other than 0 and 1', (weights != 0) & (weights != 1)),
        ('masked_lm_positions holds a position beyond the sequence', (weights > 0) & beyond),
        ('next_sentence_labels is neither 0 nor 1', (labels < -1) | (labels > 1)),
    ):
        if wrong.any():
            row = int(wrong.reshape(len(locations), -1).any(axis=1).argmax())
            raise _damaged(*locations[row], found, 'a BERT pretraining example')


def _parse(record: bytes, path: str, offset: int) -> list[bytes]:
    """Returns the packed values of one record in the order of `_FIELDS`."""
    from google.protobuf.message import DecodeError

    typed, packed = _example_messages()
    try:
        features = packed.FromString(record).features.feature
        lists = _find_lists(features)
        if any(len(values) != 1 for values in lists.values()):
            # Empty, split or unpacked lists, as protocol buffers allow: serializing the message again packs each list.
            features = packed.FromString(typed.FromString(record).SerializeToString()).features.feature
            lists = _find_lists(features)
    except DecodeError:
        raise _damaged(path, offset, 'the record is not a tf.train.Example') from None
    missing = [name for name in _FIELDS if name not in lists and name not in _OPTIONAL]
    if missing:
        found = f'the record has no {missing[0]}; it has {_listed(features)}'
        raise BadInput(f'{path}, byte {offset}', found, 'the fields of create_pretraining_data.py')
    chunks = [lists[name][0] if lists.get(name) else b'' for name in _FIELDS]
    if max(map(len, chunks)) > _LONGEST_LIST:
        raise _damaged(path, offset, 'a list of the record is too long', f'at most {_LONGEST_LIST:,} bytes')
    return chunks


def _find_lists(features: Any) -> dict[str, Any]:
    """Returns the parts of the list of each present field, by our name."""
    return {
        name: getattr(features[theirs], kind).value
        for name, (names, kind) in _FIELDS.items()
        for theirs in names
        if theirs in features
    }


def _integers(chunks: tuple[bytes, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes packed varints: (all values, int64; [B] counts); -1 for a truncated value or one above 35 bits."""
    joined = np.frombuffer(b''.join(chunks), np.uint8)
    ends = np.cumsum([len(chunk) for chunk in chunks])
    is_last = joined < 128
    is_last[ends[ends > 0] - 1] = True  # a truncated varint must not run into the next record
    last = np.flatnonzero(is_last)
    values = joined[last].astype(np.int64)
    sizes = np.diff(last, prepend=-1)
    for back in range(1, min(int(sizes.max(initial=1)), 5)):
        longer = np.flatnonzero(sizes > back)
        values[longer] = (values[longer] << 7) | (joined[last[longer] - back] & 127)
    values[(sizes > 5) | (joined[last] > 127)] = -1
    return values, np.diff(np.searchsorted(last, ends), prepend=0)


def _floats(chunks: tuple[bytes, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes packed floats: (all values, float32; [B] counts, -1 for a truncated list)."""
    sizes = [len(chunk) // 4 if len(chunk) % 4 == 0 else -1 for chunk in chunks]
    joined = b''.join(chunks)
    return np.frombuffer(joined[: len(joined) // 4 * 4], '<f4'), np.array(sizes)


def _stacked(values: np.ndarray, sizes: np.ndarray, width: int) -> np.ndarray:
    """Stacks B lists as [B, width], padded with 0."""
    stacked = np.zeros((len(sizes), width), values.dtype)
    stacked[np.arange(width) < sizes[:, None]] = values
    return stacked


def _listed(features: Any) -> str:
    """Lists the names of a record's first fields in one line."""
    shown = sorted(features)[:12]
    names = ', '.join(name if name.isidentifier() and len(name) < 40 else '(an unusual name)' for name in shown)
    return names or 'no fields'
