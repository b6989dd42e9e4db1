"""Records as in the original's `create_pretraining_data.py`, written by libraries other than the tested code.

`tf.train.Example` is the copy in tensorflow-datasets; framing and checksums are tensorboardX's.
"""

from pathlib import Path

import numpy as np
from tensorboardX.record_writer import RecordWriter
from tensorflow_datasets.proto import tf_example_generated_pb2 as example_proto

PAD, CLS, SEP, MASK, FIRST_WORD, VOCAB = 0, 2, 3, 4, 5, 1000
Record = dict[str, list]


def make_record(
    rng: np.random.Generator, num_positions: int = 32, num_predictions: int = 5
) -> tuple[Record, list[int]]:
    """Returns (record, its tokens before masking); half of the records are shorter than a row."""
    length = int(rng.integers(8, num_positions + 1)) if rng.random() < 0.5 else num_positions
    ids = rng.integers(FIRST_WORD, VOCAB, length)
    a_end = int(rng.integers(2, length - 3))
    ids[0], ids[a_end], ids[-1] = CLS, SEP, SEP
    return mask(rng, ids.tolist(), a_end, num_positions, num_predictions), ids.tolist()


def mask(rng: np.random.Generator, ids: list[int], a_end: int, num_positions: int, num_predictions: int) -> Record:
    """Masks and pads as the original does, one token at a time."""
    length = len(ids)
    candidates = [position for position in range(length) if ids[position] not in (CLS, SEP)]
    count = min(num_predictions, max(1, round(length * 0.15)), len(candidates))
    positions = sorted(rng.choice(candidates, count, replace=False).tolist())
    masked = list(ids)
    for position in positions:
        draw = rng.random()
        masked[position] = MASK if draw < 0.8 else ids[position] if draw < 0.9 else int(rng.integers(VOCAB))
    padding, unused = num_positions - length, num_predictions - count
    return {
        'input_ids': masked + [PAD] * padding,
        'input_mask': [1] * length + [0] * padding,
        'segment_ids': [0] * (a_end + 1) + [1] * (length - a_end - 1) + [0] * padding,
        'masked_lm_positions': positions + [0] * unused,
        'masked_lm_ids': [ids[position] for position in positions] + [0] * unused,
        'masked_lm_weights': [1.0] * count + [0.0] * unused,
        'next_sentence_labels': [int(rng.integers(2))],
    }


def make_records(seed: int, count: int, **lengths: int) -> tuple[list[Record], list[list[int]]]:
    """Returns records and their original tokens."""
    rng = np.random.default_rng(seed)
    records, originals = zip(*(make_record(rng, **lengths) for _ in range(count)), strict=True)
    return list(records), list(originals)


def serialize(record: Record) -> bytes:
    """Serializes a record as `tf.train.Example`."""
    example = example_proto.Example()
    for name, values in record.items():
        feature = example.features.feature[name]
        kind = feature.float_list if values and isinstance(values[0], float) else feature.int64_list
        kind.value.extend(values)
    return example.SerializeToString()


def write_frames(path: Path, frames: list[bytes]) -> Path:
    """Writes a TFRecord file."""
    path.unlink(missing_ok=True)
    writer = RecordWriter(str(path))
    for frame in frames:
        writer.write(frame)
    writer.close()
    return path


def write_records(path: Path, records: list[Record]) -> Path:
    """Writes a TFRecord file of examples."""
    return write_frames(path, [serialize(record) for record in records])


def write_vocabulary(path: Path) -> Path:
    """Writes a vocab.txt of VOCAB tokens, with the special ones at the ids above."""
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *(f'w{token_id}' for token_id in range(FIRST_WORD, VOCAB))]
    path.write_text(''.join(f'{word}\n' for word in words))
    return path
