"""Document -> Corpus: the token ids of every document on disk, ready to be memory-mapped.

    CORPUS/manifest.json             counts, settings, checksums
    CORPUS/tokenizer/                what `load_tokenizer` reads
    CORPUS/train/                    see `splits.py`
    CORPUS/validation/

It is written in one pass over the source, in memory that does not grow with it, and never changed. (Of each document a
digest of 16 bytes is kept meanwhile, about 110 bytes with the set that holds it.)
"""

import dataclasses
import hashlib
import heapq
import json
import pathlib
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.files import sync
from bert_jax.text.added_tokens import add_tokens
from bert_jax.text.documents import Document, read_documents
from bert_jax.text.progress import say, shown
from bert_jax.text.splits import Split, SplitWriter, differs, mend
from bert_jax.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

FORMAT_VERSION = 1
SPLITS = ('train', 'validation')
Ids = list[list[int]]  # of a document: the token ids of each sentence
TOKENS_PER_SHARD = 1 << 25
_CHARACTERS_AT_ONCE = 1 << 22  # given to the tokenizer together
_FEWEST = 2  # documents that a split needs for next sentence prediction


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus with its tokenizer; `manifest` is what `manifest.json` holds."""

    directory: str
    tokenizer: Tokenizer
    manifest: dict[str, Any]
    train: Split
    validation: Split

    def __reduce__(self):
        return load_corpus, (self.directory,)


def load_corpus(directory: str | pathlib.Path) -> Corpus:
    """Opens a corpus. Sizes and the tokenizer are checked against the manifest; `verify` checks every byte.

    Raises:
      BadInput: when there is no corpus, or when a file differs from what the manifest says.
    """
    path = pathlib.Path(directory)
    manifest = read_manifest(path)
    if manifest is None:
        raise BadInput(
            f'config.data.corpus={directory}',
            'holds no corpus',
            'a directory that `prepare` wrote',
            'python -m bert_jax prepare --config=…',
        )
    for name, file in manifest['files'].items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != file['bytes']:
            found = 'is missing' if size is None else f'has {size} bytes'
            raise differs(path / name, found, f'{file["bytes"]} bytes')
    tokenizer = load_tokenizer(path / 'tokenizer', lowercase=True, strip_accents=False)
    if tokenizer.hash != manifest['tokenizer_hash']:
        raise differs(path / 'tokenizer', 'is not the tokenizer that wrote the corpus', manifest['tokenizer_hash'])
    splits = {name: Split(path / name, manifest['splits'][name], manifest['tokens_per_shard']) for name in SPLITS}
    return Corpus(str(directory), tokenizer, manifest, **splits)


def verify(corpus: Corpus) -> None:
    """Reads all of a corpus: checksums, that offsets ascend to their ends, and that every id is in the vocabulary.

    Raises:
      BadInput: names the first file that is not as it was written.
    """
    directory = pathlib.Path(corpus.directory)
    for name, file in corpus.manifest['files'].items():
        if file_digest(directory / name) != file['sha256']:
            raise differs(directory / name, 'has another checksum', file['sha256'])
    for name in SPLITS:
        split = getattr(corpus, name)
        ends = (('sentences', split.num_tokens), ('documents', len(split.sentences) - 1))
        for field, end in ends:
            offsets = getattr(split, field)
            if offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) <= 0).any():
                raise differs(directory / name / f'{field}.npy', 'holds offsets out of order', f'from 0 up to {end}')
        split.unigram_counts(corpus.tokenizer.vocab_size)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a corpus holds.

    Attributes:
      documents, sentences, tokens: of both splits together.
      unknown_rate: share of the tokens that are [UNK].
      tokens_per_word: tokens by words, words being what blanks separate.
      seconds: that writing the corpus took, training the tokenizer included.
      dropped: {reason: count} of what was left out or mended.
      path: the directory.
      reused: whether it was there already, from the same settings.
      splits: {split: {documents, sentences, tokens}}.
    """

    documents: int
    sentences: int
    tokens: int
    unknown_rate: float
    tokens_per_word: float
    seconds: float
    dropped: dict[str, int]
    path: str
    reused: bool
    splits: dict[str, dict[str, int]]


def prepare(
    data: config.Data, tokenizer: config.Tokenizer, *, initial: Tokenizer | None = None, progress: bool = True
) -> Summary:
    """Reads `data.source`, trains the tokenizer unless one is given, and writes `data.corpus`.

    Given is `tokenizer.path`, or else `initial`, the tokenizer of the model that training will start from; either may
    be extended by `tokenizer.add_tokens`.

    The corpus appears under its name only when all of it is on disk. One that is there already from the same settings
    is kept as it is, without looking at the source again. Of equal documents the first is kept, so that none is in
    both splits. Progress goes to standard error.

    Raises:
      BadInput: for a bad source (see `read_documents`) or tokenizer, a directory that holds something else, no
        document at all, or fewer than two training documents with `data.pairing='nsp'`.
    """
    _check_is_text(data)
    directory = pathlib.Path(data.corpus)
    given = _load_given(tokenizer, initial)
    settings = _settings(data, tokenizer, given)
    if (manifest := _existing(directory, settings)) is not None:
        _check_documents(data, manifest['splits']['train']['documents'])
        say(f'{directory} holds this corpus already; the source was not read again', progress)
        return _summary(directory, manifest, reused=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.parent / f'.{directory.name}.{uuid.uuid4().hex[:12]}'
    temporary.mkdir()
    try:
        manifest = _write_corpus(temporary, data, tokenizer, given, settings, progress)
        try:
            temporary.rename(directory)
        except OSError:  # another process finished first
            manifest = _existing(directory, settings)
            if manifest is None:
                raise
        sync(directory.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _summary(directory, manifest, reused=False)


def tokenizer_preview(
    data: config.Data, tokenizer: config.Tokenizer, *, initial: Tokenizer | None = None, progress: bool = True
) -> dict[str, Any]:
    """Trains the tokenizer unless one is given, writes nothing, and shows how it cuts up a part of the text.

    Returns:
      `vocab_size`, `kind`, `tokens_per_word` and `unknown_rate` over the first thousands of sentences, and `splits`,
      {word: pieces} of words that occur often and those of them that are cut most.
    """
    _check_is_text(data)
    given = _load_given(tokenizer, initial)
    trained = given or _train(data, tokenizer, progress)[0]
    sentences = []
    for document in _read(data, data.source, Counter()):
        sentences += document.sentences
        if len(sentences) >= 20_000:
            break
    ids = trained.encode_batch(sentences)
    num_tokens = sum(map(len, ids))
    words = Counter(word for sentence in sentences for word in sentence.split() if word.isalpha())
    frequent = [word for word, count in words.most_common(2000) if count > 1]
    rows = trained.encode_batch(frequent)
    pieces = {word: [trained.token(i) for i in row] for word, row in zip(frequent, rows, strict=True)}
    most_cut = sorted(frequent, key=lambda word: (-len(pieces[word]), word))[:10]
    return {
        'kind': trained.kind,
        'vocab_size': trained.vocab_size,
        'tokens_per_word': num_tokens / max(1, sum(len(sentence.split()) for sentence in sentences)),
        'unknown_rate': sum(row.count(trained.unk_id) for row in ids) / max(1, num_tokens),
        'splits': {word: pieces[word] for word in [*frequent[:10], *most_cut]},
    }


# --- What is asked for, and what is there. ---


def _check_is_text(data: config.Data) -> None:
    if config.is_records(data.source):
        raise BadInput(
            f'config.data.source={data.source}',
            'holds examples already: there is nothing to prepare',
            'a source of text',
            'python -m bert_jax train --config=… --config.tokenizer.path=vocab.txt --workdir=…',
        )


def _load_given(tokenizer: config.Tokenizer, initial: Tokenizer | None) -> Tokenizer | None:
    given = initial
    if tokenizer.path:
        given = load_tokenizer(tokenizer.path, lowercase=tokenizer.lowercase, strip_accents=tokenizer.strip_accents)
    return add_tokens(given, tokenizer.add_tokens) if given is not None and tokenizer.add_tokens else given


def _settings(data: config.Data, tokenizer: config.Tokenizer, given: Tokenizer | None) -> dict[str, Any]:
    """The settings that the contents of a corpus depend on, by their names in the config."""
    names = ['source', 'text_field', 'split_sentences', 'validation_source', 'validation_fraction']
    settings = {f'data.{name}': getattr(data, name) for name in names}
    if given is not None:
        return settings | {'tokenizer.path': given.hash}
    names = ['kind', 'vocab_size', 'lowercase', 'strip_accents', 'sample_bytes']
    return settings | {f'tokenizer.{name}': getattr(tokenizer, name) for name in names}


def _existing(directory: pathlib.Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    manifest = read_manifest(directory)
    where = f'config.data.corpus={directory}'
    if manifest is None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise BadInput(where, 'is there and is not a corpus', 'a directory to make', 'set another data.corpus')
        return None
    theirs = manifest['settings']
    differing = [name for name in sorted({*theirs, *settings}) if theirs.get(name) != settings.get(name)]
    if differing:
        found = '; '.join(f'{name}={theirs.get(name)!r}' for name in differing)
        expected = '; '.join(f'{name}={settings.get(name)!r}' for name in differing)
        raise BadInput(
            where, f'holds a corpus made with {found}', expected, f'set another data.corpus, or rm -r {directory}'
        )
    return manifest


def _check_documents(data: config.Data, num_train: int) -> None:
    if num_train == 0:
        raise BadInput(f'data.source={data.source}', 'gives no document to train on', 'text')
    if data.pairing == 'nsp' and num_train < _FEWEST:
        raise BadInput(
            f'data.source={data.source}',
            'is one document: next sentence prediction takes its random sentences from another',
            'at least two documents (in a text file a blank line ends a document)',
            '--config.data.pairing=sop or none',
        )


def _summary(directory: pathlib.Path, manifest: dict[str, Any], reused: bool) -> Summary:
    splits = manifest['splits']
    totals = {name: sum(split[name] for split in splits.values()) for name in ('documents', 'sentences', 'tokens')}
    rest = {name: manifest[name] for name in ('unknown_rate', 'tokens_per_word', 'seconds', 'dropped')}
    return Summary(**totals, **rest, path=str(directory), reused=reused, splits=splits)


# --- Writing. ---


def _write_corpus(
    directory: pathlib.Path,
    data: config.Data,
    tokenizer_settings: config.Tokenizer,
    given: Tokenizer | None,
    settings: dict[str, Any],
    progress: bool,
) -> dict[str, Any]:
    """Writes all files of a corpus and syncs them; returns the manifest."""
    start = time.monotonic()
    sample = None
    if given is None:
        tokenizer, sample = _train(data, tokenizer_settings, progress)
    else:
        tokenizer = given
    tokenizer.save(directory / 'tokenizer')
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    writers = {name: SplitWriter(directory / name, dtype, TOKENS_PER_SHARD) for name in SPLITS}
    dropped, measured = Counter(), Counter()
    if sample is None:
        documents = _read(data, data.source, dropped)
    else:  # the tokenizer was trained on all there is: it is not read twice
        documents, dropped = iter(sample.documents), sample.counts
    documents = shown(documents, 'encoding', progress)
    try:
        for split, ids in _assigned(
            data, documents, lambda kept: _encoded(kept, tokenizer, dropped, measured), dropped
        ):
            writers[split].add(ids)
        _check_documents(data, writers['train'].counts['documents'])
    finally:
        for writer in writers.values():
            writer.close()
    files = {}
    for path in sorted(path for path in directory.rglob('*') if path.is_file()):
        name = path.relative_to(directory).as_posix()
        files[name] = {'bytes': path.stat().st_size, 'sha256': file_digest(path)}
        sync(path)
    contents = [[name, file['sha256']] for name, file in files.items() if not name.startswith('tokenizer/')]
    manifest = {
        'format_version': FORMAT_VERSION,
        'splits': {name: writer.counts for name, writer in writers.items()},
        'settings': settings,
        'tokenizer_hash': tokenizer.hash,
        'content_hash': hashlib.sha256(json.dumps([tokenizer.hash, contents]).encode()).hexdigest(),
        'tokens_per_shard': TOKENS_PER_SHARD,
        'unknown_rate': measured['unknown'] / max(1, measured['tokens']),
        'tokens_per_word': measured['tokens'] / max(1, measured['words']),
        'dropped': dict(sorted(dropped.items())),
        'seconds': round(time.monotonic() - start, 3),
        'created': int(time.time()),  # seconds since 1970
        'files': files,
    }
    path = directory / 'manifest.json'
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + '\n', 'utf-8')
    for synced in (path, *(child for child in directory.iterdir() if child.is_dir()), directory):
        sync(synced)
    return manifest


def _read(data: config.Data, source: str, counts: Counter) -> Iterator[Document]:
    return read_documents(source, text_field=data.text_field, split_sentences=data.split_sentences, counts=counts)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """All the documents of a source, and what was counted while reading them."""

    documents: list[Document]
    counts: Counter


def _train(data: config.Data, settings: config.Tokenizer, progress: bool) -> tuple[Tokenizer, _Sample | None]:
    """The tokenizer, and the source when all of it was within the sample (which is in memory anyway)."""
    counts, documents, num_bytes = Counter(), [], 0
    is_all = True
    for document in shown(_read(data, data.source, counts), 'reading', progress):
        documents.append(document)
        num_bytes += sum(len(text.encode()) for text in document.sentences)
        if num_bytes >= settings.sample_bytes:
            is_all = False
            break
    start = time.monotonic()
    tokenizer = train_tokenizer(settings, (text for document in documents for text in document.sentences))
    say(f'tokenizer: {tokenizer.vocab_size} tokens, {time.monotonic() - start:.0f} s', progress)
    return tokenizer, _Sample(documents, counts) if is_all else None


def _assigned(
    data: config.Data,
    documents: Iterator[Document],
    encode: Callable[[Iterator[tuple[Document, int]]], Iterator[tuple[Ids, int]]],
    dropped: Counter,
) -> Iterator[tuple[str, Ids]]:
    """(split, ids) of the documents of `data.source`, and of those of `data.validation_source`, without duplicates."""
    seen: set[bytes] = set()
    if data.validation_source:
        for ids, _ in encode(_unique(_read(data, data.validation_source, dropped), seen, dropped)):
            yield 'validation', ids
        for ids, _ in encode(_unique(documents, seen, dropped)):
            yield 'train', ids
    else:
        yield from _assign_by_hash(encode(_unique(documents, seen, dropped)), data.validation_fraction)


def _unique(documents: Iterable[Document], seen: set[bytes], dropped: Counter) -> Iterator[tuple[Document, int]]:
    """Documents not seen before, each with a hash of its text, uniform below 2**64."""
    for document in documents:
        digest = hashlib.blake2b('\n'.join(document.sentences).encode(), digest_size=16).digest()
        if digest in seen:
            dropped['duplicate_document'] += 1
            continue
        seen.add(digest)
        yield document, int.from_bytes(digest[:8], 'big')


def _encoded(
    documents: Iterator[tuple[Document, int]], tokenizer: Tokenizer, dropped: Counter, measured: Counter
) -> Iterator[tuple[Ids, int]]:
    """(ids, hash) of the documents that have tokens."""
    for batch in _batches(documents):
        encoded = iter(tokenizer.encode_batch([text for document, _ in batch for text in document.sentences]))
        for document, uniform in batch:
            ids = [next(encoded) for _ in document.sentences]
            measured['words'] += sum(len(text.split()) for text in document.sentences)
            measured['unknown'] += sum(sentence.count(tokenizer.unk_id) for sentence in ids)
            measured['tokens'] += sum(map(len, ids))
            kept = [sentence for sentence in ids if sentence]
            if len(kept) < len(ids):
                dropped['empty_sentence'] += len(ids) - len(kept)
            if kept:
                yield kept, uniform
            else:
                dropped['empty_document'] += 1


def _batches(documents: Iterator[tuple[Document, int]]) -> Iterator[list[tuple[Document, int]]]:
    batch, size = [], 0
    for document, uniform in documents:
        batch.append((document, uniform))
        size += sum(map(len, document.sentences))
        if size >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _assign_by_hash(documents: Iterable[tuple[Ids, int]], fraction: float) -> Iterator[tuple[str, Ids]]:
    """A document goes to validation when its hash is below the fraction: the same one however the source grows.

    A small corpus gets its two training documents first; then the documents of the lowest hashes are held back until
    validation has two, so that next sentence prediction works in both splits.
    """
    num_train = num_validation = 0
    held: list[tuple[int, int, Ids]] = []  # the largest hash first
    for number, (ids, uniform) in enumerate(documents):
        if not fraction or num_train < _FEWEST:
            num_train += 1
            yield 'train', ids
        elif uniform < fraction * 2**64:
            num_validation += 1
            yield 'validation', ids
        else:
            heapq.heappush(held, (-uniform, number, ids))
        while len(held) > max(0, _FEWEST - num_validation):
            yield 'train', heapq.heappop(held)[2]
    for _, _, ids in held:
        yield 'validation', ids


def read_manifest(directory: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a corpus, or None where there is no corpus.

    Raises:
      BadInput: for a manifest that is damaged or of another format version.
    """
    path = directory / 'manifest.json'
    try:
        manifest = json.loads(path.read_text('utf-8'))
        version = manifest['format_version']
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        raise BadInput(str(path), 'is damaged', 'the manifest of a corpus', mend(directory)) from None
    if version != FORMAT_VERSION:
        raise BadInput(str(path), f'has format version {version}', str(FORMAT_VERSION), mend(directory))
    return manifest


def file_digest(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
