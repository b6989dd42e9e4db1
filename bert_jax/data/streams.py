"""The data of a run, wherever it comes from: its streams, its tokenizer, and what it is known by."""

import dataclasses
from collections.abc import Callable

import numpy as np

from bert_jax import config
from bert_jax.data.batches import CorpusStream, Stream
from bert_jax.data.record_set import open_records
from bert_jax.data.record_stream import RecordStream, with_lengths_of
from bert_jax.errors import BadInput
from bert_jax.text.corpus import load_corpus
from bert_jax.text.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Streams:
    """What a run trains and is evaluated on.

    Attributes:
      config: of the run, with the lengths that its data dictate.
      validation: None when too little text is held out for the objective.
      content_hash: equal hashes give equal rows; nothing in it tells a path or a time.
      unigram_counts: how often each token occurs in the validation text, int64 [V].
    """

    config: config.Config
    tokenizer: Tokenizer
    train: Stream
    validation: Stream | None
    content_hash: str
    unigram_counts: Callable[[], np.ndarray]


def open_streams(run: config.Config, *, progress: bool = True) -> Streams:
    """Opens the corpus of a run, or its records.

    Raises:
      BadInput: when there is none, when it is damaged, or when it gives no row to train on.
    """
    streams = _open_records(run, progress) if config.is_records(run.data.source) else _open_corpus(run)
    if not streams.train.num_rows:
        where = run.data.source if config.is_records(run.data.source) else run.data.corpus
        expected = 'documents of at least two tokens, or records, that are not all held out'
        raise BadInput(where, 'its training split gives no row', expected)
    return streams


def _open_corpus(run: config.Config) -> Streams:
    corpus, batch_size = load_corpus(run.data.corpus), run.train.global_batch_size
    validation, needed = None, 2 if run.data.pairing == 'nsp' else 1
    if len(corpus.validation.documents) - 1 >= needed:
        validation = CorpusStream(corpus, run.data, 'validation', batch_size=batch_size, seed=None)
    return Streams(
        run,
        corpus.tokenizer,
        CorpusStream(corpus, run.data, 'train', batch_size=batch_size, seed=run.train.seed),
        validation,
        corpus.manifest['content_hash'],
        lambda: corpus.validation.unigram_counts(corpus.tokenizer.vocab_size),
    )


def _open_records(run: config.Config, progress: bool) -> Streams:
    data, batch_size, settings = run.data, run.train.global_batch_size, run.tokenizer
    if not settings.path:
        raise BadInput(
            'config.tokenizer.path',
            'is empty; records hold ids, which only their vocabulary tells the meaning of',
            'the vocabulary that the records were written with',
            '--config.tokenizer.path=vocab.txt',
        )
    tokenizer = load_tokenizer(settings.path, lowercase=settings.lowercase, strip_accents=settings.strip_accents)
    records = open_records(data.source, progress=progress)
    if data.validation_source:
        held_out: float | str
        train, validation = records, open_records(data.validation_source, progress=progress)
        held_out = validation.digest
        trained_on = {file.facts.digest: file.path for file in train.files}
        for file in validation.files:
            if file.facts.digest in trained_on and len(file.hashes):
                found = f'{file.path} holds the records of {trained_on[file.facts.digest]}, which are trained on'
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
    evaluated = RecordStream(validation, data, tokenizer, batch_size=batch_size, seed=None)
    return Streams(
        dataclasses.replace(run, data=with_lengths_of(records, data)),
        tokenizer,
        RecordStream(train, data, tokenizer, batch_size=batch_size, seed=run.train.seed),
        evaluated if evaluated.num_rows else None,
        config.digest([records.digest, held_out]),
        evaluated.unigram_counts,
    )
