"""Opens the data of a run, from a corpus or from records: streams, tokenizer and content hash."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from bert_jax import config
from bert_jax.data.batches import CorpusStream
from bert_jax.data.evaluation_rows import EvaluationRows, fixed_rows, rows_by_length, rows_of_phase
from bert_jax.data.fill import resolve_max_sequences
from bert_jax.data.mixture import MixtureStream
from bert_jax.data.record_set import open_records
from bert_jax.data.record_stream import RecordStream, with_lengths_of
from bert_jax.errors import BadInput
from bert_jax.files import json_digest
from bert_jax.text.corpus import Corpus, load_corpus
from bert_jax.text.tokenizer import Tokenizer, load_configured_tokenizer, prefer_saved_tokenizer

HeldOutStream = CorpusStream | RecordStream


@dataclasses.dataclass(frozen=True)
class Streams:
    """The training and validation data of a run.

    Attributes:
      config: of the run, with the lengths that the data dictate and the `data.max_sequences` chosen from the corpus.
      train: one stream per phase.
      validation: one stream per phase; None if too little text is held out for the objective.
      validation_by_length: takes the longest trained length, and returns a stream of fixed rows for each length up to
        it (`evaluation_rows.rows_by_length`); records have a single length.
      content_hash: equal hashes give equal rows; it does not depend on paths or times.
      unigram_counts: returns the count of each token in the validation text, int64 [V].
    """

    config: config.Config
    tokenizer: Tokenizer
    train: tuple[CorpusStream | MixtureStream, ...] | tuple[RecordStream, ...]
    validation: tuple[HeldOutStream | None, ...]
    validation_by_length: Callable[[int], Mapping[int, HeldOutStream]]
    content_hash: str
    unigram_counts: Callable[[], np.ndarray]

    def of_workdir(self, workdir: str) -> 'Streams':
        """With the tokenizer that a run on records has saved already; see `prefer_saved_tokenizer`."""
        if not config.is_records(self.config.data.source):
            return self
        tokenizer = prefer_saved_tokenizer(self.tokenizer, self.config.tokenizer, f'{workdir}/tokenizer')
        return dataclasses.replace(self, tokenizer=tokenizer)


def open_streams(run: config.Config, *, corpus: Corpus | None = None, progress: bool = True) -> Streams:
    """Opens the records of a run, or its corpus unless it is passed in.

    Raises:
      BadInput: if the data are missing or damaged, or hold no row to train on.
    """
    streams = _open_records(run, progress) if config.is_records(run.data.source) else _open_corpus(run, corpus)
    if not all(stream.num_rows for stream in streams.train):
        where = run.data.source if config.is_records(run.data.source) else run.data.corpus
        expected = 'documents of at least two tokens, or records, that are not all held out for validation'
        raise BadInput(where, 'has no rows in its training split', expected)
    return streams


def _open_corpus(run: config.Config, corpus: Corpus | None) -> Streams:
    corpus = corpus or load_corpus(run.data.corpus, run.data.local_copy)
    run = resolve_max_sequences(run, corpus.train)
    train = [_train_stream(corpus, phase, index) for index, phase in enumerate(run.in_phases)]
    is_enough = len(corpus.validation.documents) - 1 >= (2 if run.data.pairing == 'nsp' else 1)

    @functools.cache
    def held_out(rows: EvaluationRows) -> CorpusStream:
        return CorpusStream(corpus, rows.data, 'validation', batch_size=rows.batch_size, seed=None)

    def by_length(positions_trained: int) -> dict[int, HeldOutStream]:
        return {length: held_out(rows) for length, rows in rows_by_length(run, positions_trained).items()}

    return Streams(
        run,
        corpus.tokenizer,
        tuple(train),
        tuple(held_out(rows_of_phase(run, index)) if is_enough else None for index in range(len(train))),
        by_length,
        corpus.manifest['content_hash'],
        lambda: corpus.validation.unigram_counts(corpus.tokenizer.vocab_size),
    )


def _train_stream(corpus: Corpus, phase: config.Config, index: int) -> CorpusStream | MixtureStream:
    sizes, seed = config.batch_sizes(phase.train), phase.train.seed
    if config.mixes_sources(phase.data):
        return MixtureStream(corpus, phase.data, batch_size=sizes, seed=seed, phase=index)
    return CorpusStream(corpus, phase.data, 'train', batch_size=sizes, seed=seed, phase=index)


def _open_records(run: config.Config, progress: bool) -> Streams:
    data, settings = run.data, run.tokenizer
    assert config.is_records(data.source)
    if not settings.path:
        raise BadInput(
            'config.tokenizer.path',
            'is empty; records hold token ids, which mean nothing without their vocabulary',
            'the vocabulary that the records were written with',
            '--config.tokenizer.path=vocab.txt',
        )
    tokenizer = load_configured_tokenizer(settings)
    records = open_records(data.source, progress=progress)
    if data.validation_source:
        held_out: float | str
        train, validation = records, open_records(data.validation_source, progress=progress)
        held_out = validation.digest
        trained_on = {file.summary.digest: file.path for file in train.files}
        for file in validation.files:
            if file.summary.digest in trained_on and len(file.hashes):
                training_file = trained_on[file.summary.digest]
                found = f'{file.path} holds the same records as {training_file}, which is used for training'
                raise BadInput('config.data.validation_source', found, 'other records')
    else:
        train, validation = records.split(data.validation_fraction)
        held_out = data.validation_fraction
    longest = max(records.sequence_length, validation.sequence_length)
    if longest > run.model.max_positions:
        raise BadInput(
            'config.model.max_positions',
            f'is {run.model.max_positions}; the records are {longest} positions long',
            f'at least {longest}',
            f'--config.model.max_positions={longest}',
        )
    inferred = with_lengths_of(records, data)
    lengths = [dataclasses.replace(phase, sequence_length=inferred.sequence_length) for phase in run.phases]
    run = dataclasses.replace(run, data=inferred, phases=tuple(lengths))
    trained, evaluated = [], []
    for index, phase in enumerate(run.in_phases):
        sizes, rows = config.batch_sizes(phase.train), rows_of_phase(run, index)
        trained.append(RecordStream(train, phase.data, tokenizer, batch_size=sizes, seed=run.train.seed, phase=index))
        evaluated.append(RecordStream(validation, rows.data, tokenizer, batch_size=rows.batch_size, seed=None))
    fixed = fixed_rows(run, inferred.sequence_length)
    one_length = RecordStream(validation, fixed.data, tokenizer, batch_size=fixed.batch_size, seed=None)
    return Streams(
        run,
        tokenizer,
        tuple(trained),
        tuple(stream if stream.num_rows else None for stream in evaluated),
        lambda _: {inferred.sequence_length: one_length},
        json_digest([records.digest, held_out]),
        evaluated[0].unigram_counts,
    )
