"""A corpus on disk: the token ids of every document, ready to be memory-mapped.

    CORPUS/manifest.json             counts, settings, checksums
    CORPUS/sources.json              the files it was prepared from: {source: {path: [bytes, modification time]}}
    CORPUS/tokenizer/                files that `load_tokenizer` reads
    CORPUS/boilerplate.npy           hashes of the lines that were dropped, if `data.boilerplate_documents` is set
    CORPUS/train/                    see `splits.py`
    CORPUS/validation/

`prepare.py` writes a corpus; it never changes afterwards.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from bert_jax.errors import BadInput
from bert_jax.files import json_digest
from bert_jax.json_files import read_json
from bert_jax.text.checksums import BLOCK_BYTES, first_mismatch
from bert_jax.text.local_copy import copy_to_local_disk
from bert_jax.text.splits import Split, damaged_file_error, rebuild_command
from bert_jax.text.tokenizer import Tokenizer, load_saved_tokenizer

FORMAT_VERSION = 2
_MAX_MANIFEST_BYTES = 1 << 30  # the checksums of a corpus of 20 TB
SPLITS = ('train', 'validation')


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus with its tokenizer; `manifest` holds the contents of `manifest.json`."""

    directory: str
    tokenizer: Tokenizer
    manifest: dict[str, Any]
    train: Split
    validation: Split

    def __reduce__(self):
        return load_corpus, (self.directory,)


def load_corpus(directory: str | pathlib.Path, local_copy: str = '') -> Corpus:
    """Opens a corpus. File sizes and the tokenizer are checked here, checksums when data are first read.

    `verify` checks every byte.

    Args:
      local_copy: a directory on a local disk; if given, the corpus is copied there once and read from there.

    Raises:
      BadInput: if there is no corpus, or a file differs from the manifest.
    """
    path = pathlib.Path(directory)
    manifest = read_manifest(path)
    if manifest is None:
        raise BadInput(
            f'config.data.corpus={directory}',
            'is not a corpus',
            'a directory written by `prepare`',
            'bert-jax prepare --config=…',
        )
    if local_copy:
        path = copy_to_local_disk(path, manifest, pathlib.Path(local_copy))
    for name, file in manifest['files'].items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != file['bytes']:
            found = 'is missing' if size is None else f'has {size:,} bytes'
            raise damaged_file_error(path / name, found, f'{file["bytes"]:,} bytes')
    tokenizer = load_saved_tokenizer(path / 'tokenizer')
    if tokenizer.hash != manifest['tokenizer_hash']:
        raise damaged_file_error(
            path / 'tokenizer', 'is not the tokenizer that wrote the corpus', manifest['tokenizer_hash']
        )
    splits = {}
    for name in SPLITS:
        entries = manifest['files'].items()
        files = {file.removeprefix(f'{name}/'): entry for file, entry in entries if file.startswith(f'{name}/')}
        splits[name] = Split(path / name, manifest['splits'][name], manifest['tokens_per_shard'], files)
    return Corpus(str(path), tokenizer, manifest, **splits)


def verify(corpus: Corpus) -> None:
    """Reads a whole corpus and checks that checksums match, offsets ascend, and every id is in the vocabulary.

    Raises:
      BadInput: for the first file that has changed since it was written.
    """
    directory = pathlib.Path(corpus.directory)
    if difference := first_mismatch(directory, corpus.manifest['files']):
        raise BadInput(str(directory), difference, 'the files that `prepare` wrote', rebuild_command(directory))
    for name in SPLITS:
        split = getattr(corpus, name)
        ends = (('sentences', split.num_tokens), ('documents', len(split.sentences) - 1))
        for field, end in ends:
            offsets = getattr(split, field)
            if offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) <= 0).any():
                raise damaged_file_error(
                    directory / name / f'{field}.npy', 'holds offsets that do not ascend', f'offsets from 0 to {end:,}'
                )
        split.unigram_counts(corpus.tokenizer.vocab_size)


def read_manifest(directory: pathlib.Path) -> dict[str, Any] | None:
    """Reads the manifest of a corpus; returns None if there is no corpus.

    Raises:
      BadInput: for a manifest that is damaged or has another format version.
    """
    path = directory / 'manifest.json'
    try:
        manifest = read_json(path, max_bytes=_MAX_MANIFEST_BYTES)
        version = manifest['format_version']
        if version == FORMAT_VERSION and not _is_complete(manifest):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadInput(str(path), f'cannot be read ({error.strerror})', 'a directory to read') from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(str(path), 'is damaged', 'the manifest of a corpus', rebuild_command(directory)) from None
    if version != FORMAT_VERSION:
        raise BadInput(str(path), f'has format version {version}', str(FORMAT_VERSION), rebuild_command(directory))
    return manifest


def _is_complete(manifest: dict[str, Any]) -> bool:
    """Whether a manifest holds everything that `load_corpus` reads, with the right types."""

    def is_count(value: Any) -> bool:
        return type(value) is int and value >= 0

    def is_file(name: str, file: Any) -> bool:
        path = pathlib.PurePosixPath(name)
        has_all = is_count(file['bytes']) and all(isinstance(block, str) for block in file['blocks'])
        return has_all and len(file['blocks']) == -(-file['bytes'] // BLOCK_BYTES) and '..' not in path.parts

    if 'checksum' in manifest:  # older manifests have none
        hashed = {name: value for name, value in manifest.items() if name != 'checksum'}
        if manifest['checksum'] != json_digest(hashed):
            return False

    def has_all_files(name: str) -> bool:
        num_shards = -(-manifest['splits'][name]['tokens'] // manifest['tokens_per_shard'])
        if num_shards > len(manifest['files']):
            return False
        names = (*(f'tokens-{shard:05d}' for shard in range(num_shards)), 'sentences', 'documents')
        return all(f'{name}/{file}.npy' in manifest['files'] for file in names)

    splits = [manifest['splits'][name] for name in SPLITS]
    return (
        all(is_count(split[name]) for split in splits for name in ('documents', 'sentences', 'tokens'))
        and is_count(manifest['tokens_per_shard'])
        and manifest['tokens_per_shard'] > 0
        and all(isinstance(manifest[name], str) for name in ('tokenizer_hash', 'content_hash'))
        and all(is_file(name, file) and not name.startswith('/') for name, file in manifest['files'].items())
        and all(map(has_all_files, SPLITS))
    )
