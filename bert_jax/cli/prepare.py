"""`prepare`: turns text into a corpus of token shards with a tokenizer."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from absl import flags

from bert_jax.cli.flags import AT_LEAST_0, AT_LEAST_1, CONFIG, Command, Flag, config_of, print_result
from bert_jax.config import Config
from bert_jax.console import duration, quantity, say
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
        print_result(values, preview, _describe_tokenizer(preview))
        return 0
    shard = None if values.shard is None else _parsed_shard(values.shard)
    beam = None if values.beam is None else values.beam.split()
    summary = prepare.prepare(config.data, config.tokenizer, initial=initial, workers=workers, shard=shard, beam=beam)
    if isinstance(summary, prepare.Unfinished):
        chunks = f'{summary.pieces_left:,} of {quantity(summary.pieces, "chunk")}'
        text = f'Shard {values.shard} is finished; other shards have yet to encode {chunks}.'
        print_result(values, dataclasses.asdict(summary), text, is_in_files=True)
        return 0
    corpus = load_corpus(config.data.corpus, config.data.local_copy if values.show else '')
    fills = fill_of_phases(config, corpus.train)
    as_json = dataclasses.asdict(summary) | {'fill': [dataclasses.asdict(fill) for fill in fills]}
    text = '\n  '.join([_describe(summary), *map(str, fills)])
    if report := _write_report(summary):
        as_json['report'] = report
        text += f'\n  {"report:":11} {report}'
    if values.show:
        from bert_jax.data.show import describe_rows

        as_json['rows'] = _first_rows(config, corpus, values.show)
        text += '\n' + describe_rows(as_json['rows'])
    if values.show_dropped:
        from bert_jax.text.cleaning.examples import describe_examples

        as_json['dropped_examples'] = _dropped_examples(config, summary, values.show_dropped)
        text += '\n' + describe_examples(as_json['dropped_examples'])
    print_result(values, as_json, text, is_in_files=True)
    return 0


def _write_report(summary: Any) -> str:
    """Returns the path of the report of a corpus, which is written if the corpus has none; '' if it cannot be."""
    path = os.path.join(summary.path, 'report.html')
    if summary.reused and os.path.exists(path):
        return path
    try:
        from bert_jax.report.corpus import write_corpus_report
    except ImportError as error:  # an environment for Apache Beam
        say(f'{path} was not written ({error}); the same command writes it where all requirements are installed.')
        return ''
    return str(write_corpus_report(summary.path) or '')


def _dropped_examples(config: Config, summary: Any, num_examples: int) -> dict[str, list[str]]:
    """Returns examples of what cleaning dropped, by reason."""
    from bert_jax.text.cleaning.examples import dropped_examples
    from bert_jax.text.existing import weighted_sources
    from bert_jax.text.prepare import plan_sources

    dropped = {reason: summary.dropped[reason] for reason in summary.dropped_characters}
    sources = plan_sources(config.data, weighted_sources(config.data)) if dropped else []
    return dropped_examples(config.data, sources, dropped, num_examples)


def _parsed_shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition('/')
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        expected = 'I/N, part I of N, with I from 0 to N - 1'
        raise BadInput('--shard', f'is {text!r}', expected, '--shard=$SLURM_ARRAY_TASK_ID/8 with --array=0-7')
    return int(index), int(count)


def _first_rows(config: Config, corpus: 'Corpus', num_rows: int) -> list[list[dict[str, Any]]]:
    """Returns the first rows that a run of this config would train on, decoded."""
    from bert_jax.data.batches import CorpusStream
    from bert_jax.data.fill import resolve_max_sequences
    from bert_jax.data.show import decode_rows

    phase = resolve_max_sequences(config, corpus.train).in_phases[0]
    stream = CorpusStream(corpus, phase.data, 'train', batch_size=num_rows, seed=config.train.seed)
    return decode_rows(stream.batch(0), corpus.tokenizer, phase.data.pairing)


def _describe(summary: Any) -> str:
    """Describes a corpus for a terminal: its counts, its tokenizer, and what was cleaned."""
    from bert_jax.text.reasons import describe_dropped

    nouns = ('document', 'sentence', 'token')
    rows = [[quantity(summary.splits[name][f'{noun}s'], noun) for noun in nouns] for name in ('train', 'validation')]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    counts = [', '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines = list(zip(('training:', 'validation:'), counts, strict=True))
    rates = f'{summary.tokens_per_word:.2f} tokens per word, {summary.unknown_rate:.2%} [UNK]'
    lines.append(('tokenizer:', f'{summary.vocab_size:,} tokens in the vocabulary, {rates}'))
    if summary.dropped:
        lines.append(('cleaned:', describe_dropped(summary.dropped)))
    title = f'Corpus {summary.path}, prepared in {duration(summary.seconds)}'
    return '\n  '.join([title, *(f'{label:11} {text}' for label, text in lines)])


def _describe_tokenizer(preview: dict[str, Any]) -> str:
    """Describes a tokenizer for a terminal: its size, and how it splits frequent words."""
    lines = [f'Tokenizer: {preview["kind"]}, {quantity(preview["vocab_size"], "token")}']
    if preview['tokens_per_word'] is not None:
        lines += [
            f'  tokens per word:  {preview["tokens_per_word"]:.2f}',
            f'  [UNK] tokens:     {preview["unknown_rate"]:.2%}',
        ]
    if splits := preview['splits']:
        width = max(map(len, splits))
        lines.append('The most frequent words, and the frequent words with the most subwords:')
        lines += [f'  {word:{width}}  {" ".join(subwords)}' for word, subwords in splits.items()]
    return '\n'.join(lines)


COMMAND = Command(
    'prepare',
    _run,
    'read text, train a tokenizer unless one is provided, and write a corpus',
    'bert-jax prepare --config=demo.py',
    (
        CONFIG,
        Flag('tokenizer_only', 'train, save and show the tokenizer, and stop', flags.DEFINE_boolean, False),
        Flag(
            'show',
            'number of rows of the first batch to print; they contain text of the corpus',
            flags.DEFINE_integer,
            0,
            AT_LEAST_0,
        ),
        Flag(
            'show_dropped',
            'number of examples to print of what each rule dropped or replaced; they contain text of the source',
            flags.DEFINE_integer,
            0,
            AT_LEAST_0,
        ),
        Flag('workers', 'worker processes (default: one per core)', flags.DEFINE_integer, None, AT_LEAST_1),
        Flag(
            'shard',
            'I/N, with I from 0: encode every Nth chunk from the Ith on; the last shard to finish writes the corpus',
            group='advanced',
        ),
        Flag(
            'beam',
            'encode with Apache Beam, with these options, such as "--runner=DirectRunner"; see requirements-beam.txt',
            group='advanced',
        ),
    ),
)
