"""Prepares a corpus: trains the tokenizer, encodes chunks of text in any number of processes, and merges them.

The corpus is the same byte for byte however the work was divided, and finished chunks are never encoded again.
"""

import errno
import hashlib
import itertools
import json
import pathlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from bert_jax import config
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.files import json_digest, new_directory
from bert_jax.text.checksums import compute_checksums
from bert_jax.text.chunks import Source
from bert_jax.text.cleaning.cleaner import check_cleaning
from bert_jax.text.corpus import FORMAT_VERSION, SPLITS
from bert_jax.text.existing import WeightedSource, corpus_settings, find_existing, train_sources, weighted_sources
from bert_jax.text.hints import documents_hint, find_hints
from bert_jax.text.job import PrepareJob
from bert_jax.text.job_tokenizer import load_provided_tokenizer, make_tokenizer
from bert_jax.text.merge import MIN_DOCUMENTS, MixtureComponent, merge
from bert_jax.text.partial import open_job
from bert_jax.text.pool import Pool
from bert_jax.text.preview import (
    PREVIEW_SENTENCES,
    SAMPLE_CHARACTERS,
    describe_tokenizer,
    find_vocab_size_issues,
    first_sentences,
    report_issues,
    report_vocabulary,
)
from bert_jax.text.reasons import describe_dropped
from bert_jax.text.scripts import total_counts
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.splits import SplitWriter
from bert_jax.text.stats import Stats
from bert_jax.text.summary import PrepareSummary, Unfinished, summarize
from bert_jax.text.tokenizer import Tokenizer

TOKENS_PER_SHARD = 1 << 25
_SAMPLE_MARGIN = 10  # times `data.bad_text`: the tokenizer's sample may hold that much invalid text

_OTHER_CORPUS = '--config.data.corpus=DIRECTORY'


def prepare(
    data: config.Data,
    tokenizer: config.Tokenizer,
    *,
    initial: Tokenizer | None = None,
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    beam: list[str] | None = None,
    progress: bool = True,
) -> PrepareSummary | Unfinished:
    """Reads `data.source`, trains the tokenizer unless one is provided, and writes `data.corpus`.

    The corpus appears under its name only when all of it is on disk. An existing corpus with the same settings and
    files is reused. Progress goes to standard error.

    Args:
      initial: the tokenizer of the model that a run will start from, used if `tokenizer.path` is empty.
      workers: processes on this host. More than one imports the caller's main module again (`multiprocessing`, spawn).
      shard: (I, N) encodes only the chunks I, I + N, I + 2N …; the shard that finds all chunks finished merges them.
      beam: options of Apache Beam, whose runner then encodes the chunks; this process merges them.

    Raises:
      BadInput: for a bad source (see `plan_source`, `read_chunk`) or tokenizer, a directory that holds something else
        or cannot be written, too many bad records, a source without documents, or fewer than two training documents
        with `data.pairing='nsp'`. Finished chunks are kept, and the same command resumes with them.
    """
    _check_input(data)
    start = time.monotonic()
    directory = pathlib.Path(data.corpus)
    provided = load_provided_tokenizer(tokenizer, initial, directory)
    settings, mixture = corpus_settings(data, tokenizer, provided), weighted_sources(data)
    if (manifest := find_existing(directory, mixture, settings)) is not None:
        _check_documents(data, manifest['splits']['train']['documents'], manifest['dropped'])
        if progress:
            say(f'{directory} already holds a corpus with these settings; the source was not read again.')
        return summarize(directory, manifest, provided, tokenizer, [], progress, reused=True)
    make_pool = _pool_maker(workers, beam, progress)
    sources, warnings, is_first = plan_sources(data, mixture), [], shard is None or shard[0] == 0
    if provided is not None and is_first:
        sentences = first_sentences(sources, ReadOptions.from_config(data), characters=SAMPLE_CHARACTERS)
        warnings = report_vocabulary(provided, tokenizer, sentences, progress)
    for hint in find_hints(sources, ReadOptions.from_config(data)) if progress and is_first else ():
        say(f'hint: {hint}')
    try:
        with open_job(
            directory, ReadOptions.from_config(data), sources, settings, alone=shard is None, progress=progress
        ) as job:
            with make_pool(job) as pool:
                job.find_boilerplate(pool.run, shard)
                make_tokenizer(job, pool, mixture, tokenizer, provided, progress)
                job.sample_stats().check_invalid_text(data.bad_text, _SAMPLE_MARGIN)
                chunks_of_shard = (
                    range(len(job.chunks)) if shard is None else range(shard[0], len(job.chunks), shard[1])
                )
                pool.run('encode', [(index,) for index in chunks_of_shard], 'encoding')
                if missing := [index for index in range(len(job.chunks)) if not job.is_encoded(index)]:
                    return Unfinished(str(directory), len(job.chunks), len(missing))
                pool.compare()
            manifest = merge_chunks(job, data, mixture, settings, start, progress)
    except OSError as error:  # perhaps another process finished first and cleaned up
        if (manifest := find_existing(directory, mixture, settings)) is None:
            raise _cannot_write_error(directory, error) from error
    return summarize(directory, manifest, provided, tokenizer, warnings, progress, reused=False)


def _pool_maker(workers: int, beam: list[str] | None, progress: bool) -> Callable[[PrepareJob], Any]:
    if beam is None:
        return lambda job: Pool(job, workers, progress)
    try:
        from bert_jax.text.beam import BeamPool
    except ImportError as error:
        fix = 'python -m venv beam && beam/bin/pip install -r requirements-beam.txt'
        raise BadInput('--beam', f'needs Apache Beam ({error})', 'an environment with Apache Beam', fix) from error
    return lambda job: BeamPool(job, beam, progress)


def tokenizer_preview(
    data: config.Data,
    tokenizer: config.Tokenizer,
    *,
    initial: Tokenizer | None = None,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains (or loads) the tokenizer and measures it on the first thousands of sentences; writes no corpus.

    A trained tokenizer is saved next to `data.corpus`; `prepare` with the same settings and text reuses it.

    Returns:
      What `describe_tokenizer` returns, `vocab_size_requested`, and `warnings`: possible problems, one sentence each.

    Raises:
      BadInput: see `prepare`.
    """
    _check_input(data)
    directory, mixture = pathlib.Path(data.corpus), weighted_sources(data)
    provided, sources, options = (
        load_provided_tokenizer(tokenizer, initial, directory),
        plan_sources(data, mixture),
        ReadOptions.from_config(data),
    )
    if provided is not None:
        sentences = first_sentences(sources, options)
        warnings = report_vocabulary(provided, tokenizer, sentences, progress)
        preview = describe_tokenizer(provided, sentences)
    else:
        settings = corpus_settings(data, tokenizer, None)
        try:
            with open_job(
                directory, options, sources, settings, alone=True, progress=progress, removes_others=False
            ) as job:
                with Pool(job, workers, progress) as pool:
                    job.find_boilerplate(pool.run, None)
                    make_tokenizer(job, pool, mixture, tokenizer, None, progress)
                job.sample_stats().check_invalid_text(data.bad_text, _SAMPLE_MARGIN)
                trained = job.encoder.tokenizer
                sentences = list(itertools.islice(job.read_sample(), PREVIEW_SENTENCES))
        except OSError as error:
            raise _cannot_write_error(directory, error) from error
        warnings = report_issues(find_vocab_size_issues(trained.vocab_size, tokenizer), 'the tokenizer', progress)
        preview = describe_tokenizer(trained, sentences)
        if progress and job.tokenizer_directory.is_dir():
            say(f'tokenizer: saved in {job.tokenizer_directory}; `prepare` with the same settings reuses it')
    return preview | {'vocab_size_requested': None if provided else tokenizer.vocab_size, 'warnings': warnings}


# --- Inputs and checks. ---


def _check_input(data: config.Data) -> None:
    check_cleaning(data)
    if config.is_records(data.source):
        raise BadInput(
            f'config.data.source={data.source}',
            'holds finished training examples, which need no preparation',
            'a source of text',
            'bert-jax train --config=… --config.tokenizer.path=vocab.txt --workdir=…',
        )


def plan_sources(data: config.Data, mixture: list[WeightedSource]) -> list[Source]:
    """Divides the sources of a corpus into chunks; see `plan_source`."""
    options = ReadOptions.from_config(data)
    return [plan_source(source, source_index, options) for source_index, (source, _, _) in enumerate(mixture)]


def _check_documents(data: config.Data, num_train: int, dropped: Mapping[str, int]) -> None:
    if num_train == 0:
        left_out = f' (left out: {describe_dropped(dropped)})' if dropped else ''
        found = f'contains no training documents{left_out}'
        raise BadInput(f'config.data.source={data.source}', found, 'files with text')
    if data.pairing == 'nsp' and num_train < MIN_DOCUMENTS:
        raise BadInput(
            f'config.data.source={data.source}',
            'holds only one training document; next-sentence prediction takes random sentences from other documents',
            'at least two documents (in text files, blank lines separate documents)',
            '--config.data.pairing=sop (or --config.data.pairing=none)',
        )


def _cannot_write_error(directory: pathlib.Path, error: OSError) -> BadInput:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return BadInput(
        f'config.data.corpus={directory}',
        f'cannot be written: {error.strerror or error}' + (f' ({error.filename})' if error.filename else ''),
        'a writable directory on a disk with enough free space',
        'free some space; the same command resumes with the finished chunks' if is_full else _OTHER_CORPUS,
    )


# --- Merging. ---


def merge_chunks(
    job: PrepareJob,
    data: config.Data,
    mixture: list[WeightedSource],
    settings: dict[str, Any],
    start: float,
    progress: bool,
) -> dict[str, Any]:
    """Merges the finished chunks of a job into its corpus; returns the manifest.

    Raises:
      BadInput: for more bad records than `data.bad_records` allows, a damaged chunk, or too few documents.
      OSError: if the corpus cannot be written; FileExistsError if another process wrote it first.
    """
    stats = _job_stats(job)
    for where, found, _ in stats.bad if progress else ():
        say(f'skipped a bad record: {where} {found}')
    for line in [*stats.describe_encodings(), *stats.describe_invalid()] if progress else ():
        say(f'note: {line}')
    stats.check_bad_records(data.bad_records)
    stats.check_invalid_text(data.bad_text)
    directory = pathlib.Path(data.corpus)
    with (
        new_directory(directory, existing='refuse', temporary_in=job.directory) as temporary,
        tempfile.TemporaryDirectory(prefix='scratch.', dir=job.directory, ignore_cleanup_errors=True) as scratch,
    ):
        manifest = _write_corpus(job, data, mixture, settings, temporary, pathlib.Path(scratch), stats, start)
    num_documents = sum(split['documents'] for split in manifest['splits'].values())
    if progress and (hint := documents_hint(list(job.sources), num_documents, job.options)):
        say(f'hint: {hint}')
    return manifest


def _job_stats(job: PrepareJob) -> Stats:
    """Returns the stats of all chunks; raises `BadInput` for a source without text."""
    stats, characters = Stats(), [0] * len(job.sources)
    for index, chunk in enumerate(job.chunks):
        stats_of_chunk = job.chunk_stats(index)
        characters[chunk.source_index] += stats_of_chunk.characters
        stats.add(stats_of_chunk)
    for source, num_characters in zip(job.sources, characters, strict=True):
        if not num_characters:
            raise BadInput(f'config.data.source={source.name}', 'holds no text', 'files with text')
        stats.counts['empty_file'] += sum(not num_bytes for num_bytes, _ in source.files.values())
    return stats


def _write_corpus(
    job: PrepareJob,
    data: config.Data,
    mixture: list[WeightedSource],
    settings: dict[str, Any],
    directory: pathlib.Path,
    scratch: pathlib.Path,
    stats: Stats,
    start: float,
) -> dict[str, Any]:
    """Writes all files of a corpus; returns the manifest."""
    shutil.copytree(job.tokenizer_directory, directory / 'tokenizer')
    if job.boilerplate.exists():
        shutil.copy(job.boilerplate, directory)
    tokenizer = job.encoder.tokenizer
    files = {source.name: source.files for source in job.sources}
    (directory / 'sources.json').write_text(json.dumps(files, indent=1) + '\n', 'utf-8')
    chunks: list[list[pathlib.Path]] = [[] for _ in mixture]
    for index, chunk in enumerate(job.chunks):
        chunks[chunk.source_index].append(job.chunk_directory(index))
    components = [
        MixtureComponent(directories, weight, split)
        for directories, (_, weight, split) in zip(chunks, mixture, strict=True)
    ]
    writers = {name: SplitWriter(directory / name, job.encoder.dtype, TOKENS_PER_SHARD) for name in SPLITS}
    try:
        dropped, measured, documents_after = merge(
            components,
            scratch,
            writers,
            tokenizer.unk_id,
            validation_fraction=data.validation_fraction,
            deduplicate_lines=data.deduplicate_lines,
            links=job.links(),
        )
        _check_documents(data, writers['train'].counts['documents'], stats.counts + dropped)
    finally:
        for writer in writers.values():
            writer.close()
    files = compute_checksums(directory)
    contents = [[name, file] for name, file in files.items() if name.startswith(tuple(f'{split}/' for split in SPLITS))]
    num_tokens = sum(writer.counts['tokens'] for writer in writers.values())
    manifest = {
        'format_version': FORMAT_VERSION,
        'splits': {name: writer.counts for name, writer in writers.items()},
        'train_sources': train_sources(mixture, documents_after),
        'settings': settings,
        'tokenizer_hash': tokenizer.hash,
        'content_hash': hashlib.sha256(json.dumps([tokenizer.hash, contents]).encode()).hexdigest(),
        'tokens_per_shard': TOKENS_PER_SHARD,
        'unknown_rate': measured['unknown'] / max(1, num_tokens),
        'tokens_per_word': num_tokens / max(1, measured['words']),
        'characters_read': stats.characters,
        **_text_counts(stats, dropped),
        'scripts': total_counts(itertools.chain.from_iterable(chunks), tokenizer),
        'seconds': round(time.monotonic() - start, 3),
        'created': int(time.time()),  # seconds since 1970
        'files': files,
    }
    manifest['checksum'] = json_digest(manifest)  # so that a corrupt manifest is not reported as a corrupt file
    (directory / 'manifest.json').write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + '\n', 'utf-8')
    return manifest


def _text_counts(stats: Stats, dropped_by_merge: Counter) -> dict[str, dict[str, int]]:
    counts = {
        'dropped': +(stats.counts + dropped_by_merge),
        'dropped_characters': stats.dropped_characters,
        'languages': stats.languages,
    }
    return {name: dict(sorted(counter.items())) for name, counter in counts.items()}
