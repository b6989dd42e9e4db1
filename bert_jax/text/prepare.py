"""Text -> corpus, in three steps: chunks are read and encoded, by any number of processes; then they are merged.

What comes out is the same, byte for byte, whoever did what; and what is finished is not done again.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from bert_jax import config
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.files import json_digest, new_directory
from bert_jax.text.added_tokens import add_tokens
from bert_jax.text.checksums import checksums_of
from bert_jax.text.chunks import Source, plan_source
from bert_jax.text.corpus import FORMAT_VERSION, SPLITS
from bert_jax.text.documents import Reading, read_chunk
from bert_jax.text.existing import WeightedSource, find_existing, settings_of, weighted_sources
from bert_jax.text.hints import documents_hint, hints
from bert_jax.text.job import Job
from bert_jax.text.merge import FEWEST, Share, merge
from bert_jax.text.partial import open_job
from bert_jax.text.pool import Pool
from bert_jax.text.splits import SplitWriter
from bert_jax.text.tally import Tally
from bert_jax.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

TOKENS_PER_SHARD = 1 << 25
_PREVIEW_SENTENCES = 20_000
_MUCH_WORSE = 10  # times `data.bad_text`: so much in the sample for the tokenizer, and the rest is not read


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a corpus holds.

    Attributes:
      documents, sentences, tokens: of both splits together.
      unknown_rate: share of the tokens that are [UNK].
      tokens_per_word: tokens by words, words being what blanks separate.
      seconds: that the process that wrote the corpus took, training the tokenizer included.
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


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A shard has done its part, and others have not. The fields count chunks; they are keys of `prepare --json`."""

    path: str
    pieces: int
    pieces_left: int


def prepare(
    data: config.Data,
    tokenizer: config.Tokenizer,
    *,
    initial: Tokenizer | None = None,
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    beam: list[str] | None = None,
    progress: bool = True,
) -> Summary | Unfinished:
    """Reads `data.source`, trains the tokenizer unless one is given, and writes `data.corpus`.

    The corpus appears under its name only when all of it is on disk. One that is there already from the same settings
    and files is kept as it is. Progress goes to standard error.

    Args:
      initial: a tokenizer to use where `tokenizer.path` names none, that of the model that a run will start from.
      workers: processes on this host. More than one imports the caller's main module again (`multiprocessing`, spawn).
      shard: (I, N), to encode only the chunks I, I + N, I + 2N …; the shard that finds all chunks finished merges them.
      beam: options of Apache Beam, to do the chunks by its runner; this process merges them.

    Raises:
      BadInput: for a bad source (see `plan_source`, `read_chunk`) or tokenizer, a directory that holds something else
        or cannot be written, too many bad records, no document at all, or fewer than two training documents with
        `data.pairing='nsp'`. Chunks that are finished stay, and the same command goes on with them.
    """
    _check_is_text(data)
    start = time.monotonic()
    directory = pathlib.Path(data.corpus)
    given = _load_given(tokenizer, initial)
    settings, mixture = settings_of(data, tokenizer, given), weighted_sources(data)
    if (manifest := find_existing(directory, mixture, settings)) is not None:
        _check_documents(data, manifest['splits']['train']['documents'])
        if progress:
            say(f'{directory} holds this corpus already; the source was not read again')
        return _summary(directory, manifest, reused=True)
    make_pool = _pool_maker(workers, beam, progress)
    sources = _plan(data, mixture)
    for hint in hints(sources, Reading.of(data)) if progress else ():
        say(f'hint: {hint}')
    try:
        with open_job(directory, Reading.of(data), sources, settings, alone=shard is None, progress=progress) as job:
            with make_pool(job) as pool:
                _make_tokenizer(job, pool, mixture, tokenizer, given, progress)
                job.tally_of_sample().check_text(data.bad_text, _MUCH_WORSE)
                mine = range(len(job.chunks)) if shard is None else range(shard[0], len(job.chunks), shard[1])
                pool.run('encode', [(number,) for number in mine], 'encoding')
            if missing := [number for number in range(len(job.chunks)) if not job.is_encoded(number)]:
                return Unfinished(str(directory), len(job.chunks), len(missing))
            manifest = finish(job, data, mixture, settings, start, progress)
    except OSError as error:  # perhaps only because another process finished first, and cleaned up
        if (manifest := find_existing(directory, mixture, settings)) is None:
            raise _cannot_write(directory, error) from error
    return _summary(directory, manifest, reused=False)


def _pool_maker(workers: int, beam: list[str] | None, progress: bool) -> Callable[[Job], Any]:
    if beam is None:
        return lambda job: Pool(job, workers, progress)
    try:
        from bert_jax.text.beam import BeamPool
    except ImportError as error:
        mend = 'pip install -r requirements-beam.txt into an environment of its own'
        raise BadInput('--beam', f'needs Apache Beam ({error})', 'an environment with it', mend) from error
    return lambda job: BeamPool(job, beam, progress)


def tokenizer_preview(
    data: config.Data, tokenizer: config.Tokenizer, *, initial: Tokenizer | None = None, progress: bool = True
) -> dict[str, Any]:
    """Trains (or loads) the tokenizer, writes no corpus, and shows how it cuts up a part of the text.

    Returns:
      `vocab_size`, `kind`, `tokens_per_word` and `unknown_rate` over the first thousands of sentences, and `splits`,
      {word: pieces} of words that occur often and those of them that are cut most; None for a rate of nothing.
    """
    _check_is_text(data)
    trained = _load_given(tokenizer, initial)
    reading = Reading.of(data)
    sentences, num_bytes = [], 0
    for chunk in itertools.chain.from_iterable(source.chunks for source in _plan(data, weighted_sources(data))):
        for document in read_chunk(chunk, reading, Tally()):
            sentences += document.sentences
            num_bytes += sum(len(sentence.encode()) for sentence in document.sentences)
            if num_bytes >= tokenizer.sample_bytes or (trained and len(sentences) >= _PREVIEW_SENTENCES):
                break
        else:
            continue
        break
    trained = trained or train_tokenizer(tokenizer, iter(sentences))
    if progress:
        say(f'tokenizer: {trained.vocab_size} tokens')
    sentences = sentences[:_PREVIEW_SENTENCES]
    ids = trained.encode_batch(sentences)
    num_tokens, num_words = sum(map(len, ids)), sum(len(sentence.split()) for sentence in sentences)
    words = Counter(word for sentence in sentences for word in sentence.split() if word.isalpha())
    frequent = [word for word, count in words.most_common(2000) if count > 1]
    rows = trained.encode_batch(frequent)
    pieces = {word: [trained.token(i) for i in row] for word, row in zip(frequent, rows, strict=True)}
    most_cut = sorted(frequent, key=lambda word: (-len(pieces[word]), word))[:10]
    return {
        'kind': trained.kind,
        'vocab_size': trained.vocab_size,
        'tokens_per_word': num_tokens / num_words if num_words else None,
        'unknown_rate': sum(row.count(trained.unk_id) for row in ids) / num_tokens if num_tokens else None,
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


def _plan(data: config.Data, mixture: list[WeightedSource]) -> list[Source]:
    return [
        plan_source(source, number, data.text_field, data.group_field, data.documents)
        for number, (source, _, _) in enumerate(mixture)
    ]


def _check_documents(data: config.Data, num_train: int) -> None:
    if num_train == 0:
        raise BadInput(f'data.source={data.source}', 'gives no document to train on', 'text')
    if data.pairing == 'nsp' and num_train < FEWEST:
        raise BadInput(
            f'data.source={data.source}',
            'is one document: next sentence prediction takes its random sentences from another',
            'at least two documents (in a text file a blank line ends a document)',
            '--config.data.pairing=sop or none',
        )


def _cannot_write(directory: pathlib.Path, error: OSError) -> BadInput:
    return BadInput(
        f'config.data.corpus={directory}',
        f'cannot be written: {error.strerror or error}' + (f' ({error.filename})' if error.filename else ''),
        'a directory to write in, on a disk with room',
        'make room; the same command goes on with the chunks that are finished',
    )


def _summary(directory: pathlib.Path, manifest: dict[str, Any], reused: bool) -> Summary:
    splits = manifest['splits']
    totals = {name: sum(split[name] for split in splits.values()) for name in ('documents', 'sentences', 'tokens')}
    rest = {name: manifest[name] for name in ('unknown_rate', 'tokens_per_word', 'seconds', 'dropped')}
    return Summary(**totals, **rest, path=str(directory), reused=reused, splits=splits)


# --- The tokenizer. ---


def _make_tokenizer(
    job: Job,
    pool: Pool,
    mixture: list[WeightedSource],
    settings: config.Tokenizer,
    given: Tokenizer | None,
    progress: bool,
) -> None:
    """Puts the tokenizer into the job's directory, unless it is there.

    It is trained on `sample_bytes` of text, spread over all chunks of the training sources by their size and weight.
    Shards that start together all train it, and get the same; the first to finish gives it its name.
    """
    if job.tokenizer_directory.is_dir():
        return
    trained = given
    if trained is None:
        weights = [weight * (split != 'validation') for _, weight, split in mixture]
        sizes = [chunk.num_bytes * weights[chunk.source] for chunk in job.chunks]
        total = max(1, sum(sizes))
        shares = [(number, -(-settings.sample_bytes * size // total)) for number, size in enumerate(sizes)]
        pool.run('sample', [(number, int(share)) for number, share in shares if share], 'reading')
        start = time.monotonic()
        trained = train_tokenizer(settings, job.read_sample())
        if progress:
            say(f'tokenizer: {trained.vocab_size} tokens, {time.monotonic() - start:.0f} s')
    with new_directory(job.tokenizer_directory) as temporary:
        trained.save(temporary)


# --- The end. ---


def finish(
    job: Job,
    data: config.Data,
    mixture: list[WeightedSource],
    settings: dict[str, Any],
    start: float,
    progress: bool,
) -> dict[str, Any]:
    """Merges the finished chunks of a job into its corpus; returns the manifest.

    Raises:
      BadInput: for more bad records than `data.bad_records` allows, a damaged chunk, or too few documents.
      OSError: when it cannot be written; FileExistsError if another process was faster.
    """
    tally = _tally_of(job)
    for where, found, _ in tally.bad if progress else ():
        say(f'skipped: {where} {found}')
    for line in tally.describe_invalid() if progress else ():
        say(line)
    tally.check_records(data.bad_records)
    tally.check_text(data.bad_text)
    directory = pathlib.Path(data.corpus)
    with (
        new_directory(directory, existing='refuse', temporary_in=job.directory) as temporary,
        tempfile.TemporaryDirectory(prefix='scratch.', dir=job.directory, ignore_cleanup_errors=True) as scratch,
    ):
        manifest = _write_corpus(job, data, mixture, settings, temporary, pathlib.Path(scratch), tally, start)
    num_documents = sum(split['documents'] for split in manifest['splits'].values())
    if progress and (hint := documents_hint(list(job.sources), num_documents, job.reading)):
        say(f'hint: {hint}')
    return manifest


def _tally_of(job: Job) -> Tally:
    """What was found while all chunks were read; raises `BadInput` for a source that gave no document."""
    tally, characters = Tally(), [0] * len(job.sources)
    for number, chunk in enumerate(job.chunks):
        found = job.tally_of(number)
        characters[chunk.source] += found.characters
        tally.add(found)
    for source, size in zip(job.sources, characters, strict=True):
        if not size:
            raise BadInput(f'data.source={source.name}', 'holds no text', 'files with text')
        tally.counts['empty_file'] += sum(not length for length, _ in source.files.values())
    return tally


def _write_corpus(
    job: Job,
    data: config.Data,
    mixture: list[WeightedSource],
    settings: dict[str, Any],
    directory: pathlib.Path,
    scratch: pathlib.Path,
    tally: Tally,
    start: float,
) -> dict[str, Any]:
    """Writes all files of a corpus; returns the manifest."""
    shutil.copytree(job.tokenizer_directory, directory / 'tokenizer')
    tokenizer = job.encoder.tokenizer
    files = {source.name: source.files for source in job.sources}
    (directory / 'sources.json').write_text(json.dumps(files, indent=1) + '\n', 'utf-8')
    numbers = range(len(job.chunks))
    shares = [
        Share([job.chunk_directory(n) for n in numbers if job.chunks[n].source == number], weight, split)
        for number, (_, weight, split) in enumerate(mixture)
    ]
    writers = {name: SplitWriter(directory / name, job.encoder.dtype, TOKENS_PER_SHARD) for name in SPLITS}
    try:
        dropped, measured = merge(
            shares,
            scratch,
            writers,
            tokenizer.unk_id,
            validation_fraction=data.validation_fraction,
            deduplicate_lines=data.deduplicate_lines,
        )
        _check_documents(data, writers['train'].counts['documents'])
    finally:
        for writer in writers.values():
            writer.close()
    files = checksums_of(directory)
    contents = [[name, file] for name, file in files.items() if name.startswith(tuple(f'{split}/' for split in SPLITS))]
    num_tokens = sum(writer.counts['tokens'] for writer in writers.values())
    manifest = {
        'format_version': FORMAT_VERSION,
        'splits': {name: writer.counts for name, writer in writers.items()},
        'settings': settings,
        'tokenizer_hash': tokenizer.hash,
        'content_hash': hashlib.sha256(json.dumps([tokenizer.hash, contents]).encode()).hexdigest(),
        'tokens_per_shard': TOKENS_PER_SHARD,
        'unknown_rate': measured['unknown'] / max(1, num_tokens),
        'tokens_per_word': num_tokens / max(1, measured['words']),
        'dropped': dict(sorted((+(tally.counts + dropped)).items())),
        'seconds': round(time.monotonic() - start, 3),
        'created': int(time.time()),  # seconds since 1970
        'files': files,
    }
    manifest['checksum'] = json_digest(manifest)  # so that a corrupt manifest is not reported as a corrupt file
    (directory / 'manifest.json').write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + '\n', 'utf-8')
    return manifest
