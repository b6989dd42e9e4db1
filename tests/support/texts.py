"""Small texts: documents on a topic, documents with duplicates, and writers for all source formats."""

import json
from pathlib import Path

import numpy as np
import pytest

WORDS = [f'w{chr(97 + i)}{chr(97 + j)}' for i in range(20) for j in range(20)]
SYLLABLES = [a + b for a in 'bdfgklmnprst' for b in 'aeiou']


def write_text(path: Path, num_documents: int = 60, seed: int = 0) -> None:
    """Writes documents, each on a topic of 20 of the 400 `WORDS`."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(num_documents):
        topic = rng.choice(WORDS, 20)
        documents.append('\n'.join(' '.join(rng.choice(topic, rng.integers(5, 12))) + '.' for _ in range(12)))
    path.write_text('\n\n'.join(documents) + '\n')


def make_documents(count, seed=0, longest=6):
    """Makes documents of 1 to `longest` lines; about one in six is a duplicate."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        if documents and rng.random() < 0.15:
            documents.append(documents[rng.integers(len(documents))])
        else:
            documents.append(
                [' '.join(rng.choice(SYLLABLES, rng.integers(1, 7))) for _ in range(rng.integers(1, longest + 1))]
            )
    return documents


def write_documents(path, documents):
    path.write_text('\n\n'.join('\n'.join(lines) for lines in documents) + '\n')
    return f'text:{path}'


def write_jsonl(path, documents, groups=None):
    records = [{'text': '\n'.join(lines)} for lines in documents]
    for record, group in zip(records, groups or [], strict=False):
        record['book'] = group
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return f'jsonl:{path}'


def contents(directory):
    """Returns the files of a corpus, and its manifest without times and without its own checksum.

    `report.html`, which only the command writes, is left out.
    """
    files = {
        str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob('*') if path.is_file()
    }
    files.pop('report.html', None)
    manifest = json.loads(files.pop('manifest.json'))
    del manifest['seconds'], manifest['created'], manifest['checksum']
    return files, manifest


def write_tfds(data_dir, documents):
    """Writes a dataset `letters` of documents, lists of lines; see `write_tfds_records`."""
    tfds = pytest.importorskip('tensorflow_datasets')
    features = {'text': tfds.features.Text(), 'label': tfds.features.Scalar(np.int64)}
    return write_tfds_records(
        data_dir, 'letters', features, [{'text': '\n'.join(lines), 'label': 1} for lines in documents]
    )


def write_tfds_records(data_dir, name, features, records):
    """Writes a dataset with the split `train` in the format of TFDS, without TensorFlow; returns the module."""
    tfds = pytest.importorskip('tensorflow_datasets')
    from array_record.python.array_record_module import ArrayRecordWriter

    features = tfds.features.FeaturesDict(features)
    directory = data_dir / name / '1.0.0'
    directory.mkdir(parents=True)
    writer = ArrayRecordWriter(str(directory / f'{name}-train.array_record-00000-of-00001'), 'group_size:1')
    for record in records:
        writer.write(features.serialize_example(record))
    writer.close()
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=name, split='train', filetype_suffix='array_record'
    )
    split = tfds.core.SplitInfo(name='train', shard_lengths=[len(records)], num_bytes=0, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=[split],
        check_data=False,
        filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    )
    return tfds
