"""`prepare`: from text to a corpus."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from absl import flags

from bert_jax.cli.flags import AT_LEAST_0, AT_LEAST_1, CONFIG, Command, Flag, config_of, print_result
from bert_jax.config import Config
from bert_jax.console import json_text
from bert_jax.errors import BadInput

if TYPE_CHECKING:
    from bert_jax.text.corpus import Corpus


def _run(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.data.fill import fill_of_phases
    from bert_jax.text import prepare
    from bert_jax.text.corpus import load_corpus

    config, initial, workers = config_of(values), None, values.workers or len(os.sched_getaffinity(0))
    if config.init:
        from bert_jax.pretrained.initialize import initial_tokenizer

        initial = initial_tokenizer(config.init)
    if values.tokenizer_only:
        preview = prepare.tokenizer_preview(config.data, config.tokenizer, initial=initial, workers=workers)
        print_result(values, preview, json_text(preview, indent=2))
        return 0
    shard = None if values.shard is None else _parsed_shard(values.shard)
    beam = None if values.beam is None else values.beam.split()
    summary = prepare.prepare(config.data, config.tokenizer, initial=initial, workers=workers, shard=shard, beam=beam)
    if isinstance(summary, prepare.Unfinished):
        left = f'{summary.pieces_left} of {summary.pieces} chunks are left to other shards'
        text = f'Shard {values.shard} is done; {left}.'
        print_result(values, dataclasses.asdict(summary), text, is_in_files=True)
        return 0
    corpus = load_corpus(config.data.corpus, config.data.local_copy if values.show else '')
    fills = fill_of_phases(config, corpus.train)
    as_json = dataclasses.asdict(summary) | {'fill': [dataclasses.asdict(fill) for fill in fills]}
    text = '\n  '.join([_describe(summary), *map(str, fills)])
    if values.show:
        from bert_jax.data.show import describe_rows

        as_json['rows'] = _first_rows(config, corpus, values.show)
        text += '\n' + describe_rows(as_json['rows'])
    print_result(values, as_json, text, is_in_files=True)
    return 0


def _parsed_shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition('/')
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        expected = 'I/N, I from 0 to N - 1: which of N parts of the work this process does'
        raise BadInput('--shard', f'is {text!r}', expected, '--shard=$SLURM_ARRAY_TASK_ID/8 with --array=0-7')
    return int(index), int(count)


def _first_rows(config: Config, corpus: 'Corpus', num_rows: int) -> list[list[dict[str, Any]]]:
    """The first rows that a run of this config would train on, decoded."""
    from bert_jax.data.batches import CorpusStream
    from bert_jax.data.fill import with_chosen_sequences
    from bert_jax.data.show import decode_rows

    phase = with_chosen_sequences(config, corpus.train).in_phases[0]
    stream = CorpusStream(corpus, phase.data, 'train', batch_size=num_rows, seed=config.train.seed)
    return decode_rows(stream.batch(0), corpus.tokenizer, phase.data.pairing)


def _describe(summary: Any) -> str:
    dropped = ', '.join(f'{count:,} {reason.replace("_", " ")}' for reason, count in summary.dropped.items())
    return (
        f'Corpus {summary.path}: {summary.documents:,} documents, {summary.sentences:,} sentences, '
        f'{summary.tokens:,} tokens; {summary.tokens_per_word:.2f} tokens per word, '
        f'{summary.unknown_rate:.2%} unknown; {summary.seconds:.0f} s' + (f'\n  dropped: {dropped}' if dropped else '')
    )


COMMAND = Command(
    'prepare',
    _run,
    'reads text, trains the tokenizer unless one is given, writes the corpus',
    'python -m bert_jax prepare --config=configs/demo.py',
    (
        CONFIG,
        Flag('tokenizer_only', 'train, keep and show the tokenizer, then stop', flags.DEFINE_boolean, False),
        Flag('show', 'rows of the first batch to print', flags.DEFINE_integer, 0, AT_LEAST_0),
        Flag('workers', 'worker processes (default: one per core)', flags.DEFINE_integer, None, AT_LEAST_1),
        Flag('shard', 'I/N: do part I (from 0) of N parts of the work; the last to finish assembles the corpus'),
        Flag('beam', 'options of Apache Beam, for example --beam="--runner=DirectRunner"; see requirements-beam.txt'),
    ),
)
