"""What would go wrong with a run, reported before a device is used.

Errors mean that the run cannot work; warnings, that it would work and disappoint.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bert_jax.config import Config, is_records
from bert_jax.console import size
from bert_jax.errors import BadInput
from bert_jax.text.corpus import Corpus, load_corpus, verify
from bert_jax.text.documents import ReadOptions
from bert_jax.text.existing import weighted_sources
from bert_jax.text.normalization import find_normalization_issues
from bert_jax.text.prepare import plan_sources
from bert_jax.text.preview import SAMPLE_CHARACTERS, find_vocab_size_issues, first_sentences
from bert_jax.text.tokenizer import load_configured_tokenizer, prefer_saved_tokenizer

_SENTENCES_LOOKED_AT = 200_000
_MOST_UNKNOWN = 0.01
_MOST_REPEATED_LINES = 0.2
_MOST_ONE_SENTENCE_DOCUMENTS = 0.5
_MOST_IN_ONE_DOCUMENT = 0.25
_FEW_DOCUMENTS = 100  # partners of a random next sentence repeat often below this
_FEW_VALIDATION_PREDICTIONS = 1_000  # the standard error of an accuracy of 50% is 1.6% there
_BYTES_PER_PARAMETER = 12  # float32 parameter and two moments


@dataclasses.dataclass(frozen=True)
class Problem:
    """level: `error` or `warning`; the rest as in `BadInput`."""

    level: str
    where: str
    found: str
    expected: str
    fix: str

    def __str__(self) -> str:
        return f'{self.level}: {self._error()}'

    def as_json(self) -> dict[str, str]:
        """Returns the problem as `doctor --json` prints it."""
        return {'level': self.level} | self._error().as_json()

    def _error(self) -> BadInput:
        return BadInput(self.where, self.found, self.expected, self.fix)


def problem_of(error: BadInput) -> Problem:
    """What would stop the run."""
    return Problem('error', error.where, error.found, error.expected, error.fix)


def describe(problems: list[Problem]) -> str:
    """All problems and how many there are, for a terminal."""
    num_errors = sum(problem.level == 'error' for problem in problems)
    counted = f'{num_errors} errors, {len(problems) - num_errors} warnings'
    return '\n'.join([*map(str, problems), counted if problems else 'Nothing found: this run can start.'])


def diagnose(config: Config, workdir: str | None = None) -> list[Problem]:
    """Every problem of a config with its corpus, its devices and its disk; errors first."""
    problems = []

    def check(findings: Callable[..., Iterator[Problem]], *arguments: object) -> None:
        try:
            problems.extend(findings(*arguments))
        except BadInput as error:
            problems.append(problem_of(error))

    check(_devices, config)
    check(_tokenizer, config)
    corpus = None
    if not is_records(config.data.source):
        try:
            corpus = load_corpus(config.data.corpus, config.data.local_copy)
            verify(corpus)
        except BadInput as error:
            check(_disk, config, config.tokenizer.vocab_size, workdir)
            return _errors_first([*problems, problem_of(error)])
        check(_initial_model, config, corpus, workdir)
        for findings in (_vocabulary, _lines, _documents, _held_out, _fill):
            check(findings, config, corpus)
    check(_disk, config, corpus.tokenizer.vocab_size if corpus else config.tokenizer.vocab_size, workdir)
    check(_epochs, config, corpus)
    return _errors_first(problems)


def _errors_first(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: problem.level != 'error')


def _warning(where: str, found: str, expected: str, fix: str) -> Problem:
    return Problem('warning', where, found, expected, fix)


def _devices(config: Config) -> Iterator[Problem]:
    """The platform, and whether the mesh and the batch divide over what is here."""
    from bert_jax.runtime.devices import select_platform
    from bert_jax.runtime.mesh import mesh_of_run

    select_platform(config.platform)
    mesh_of_run(config)
    yield from ()


def _tokenizer(config: Config) -> Iterator[Problem]:
    """Whether a tokenizer that is brought along is one, special tokens and all, and reads text as it should."""
    settings, where = config.tokenizer, f'config.tokenizer.path={config.tokenizer.path}'
    if not settings.path:
        return
    tokenizer = load_configured_tokenizer(settings, report_ignored=False)  # the warnings below report them
    for name in ('lowercase', 'strip_accents'):
        wanted, found = getattr(settings, name), getattr(tokenizer, name)
        if wanted not in (None, found):
            fix = f'leave config.tokenizer.{name} out, or name the vocabulary file itself'
            yield _warning(
                f'config.tokenizer.{name}', f'is {wanted}, and is not used', f'{found}, as {where} says', fix
            )
    of_corpus = prefer_saved_tokenizer(tokenizer, settings, f'{config.data.corpus}/tokenizer')
    for issue in find_normalization_issues(of_corpus, _sample(config)):
        yield _warning(where, *issue)


def _sample(config: Config) -> list[str]:
    """Sentences of the source; none where it is not there, as a corpus does not need its text any more."""
    if is_records(config.data.source):
        return []
    try:
        sources = plan_sources(config.data, weighted_sources(config.data))
        return first_sentences(sources, ReadOptions.from_config(config.data), characters=SAMPLE_CHARACTERS)
    except BadInput:
        return []


def _initial_model(config: Config, corpus: Corpus, workdir: str | None) -> Iterator[Problem]:
    """Whether the corpus was made with the vocabulary of the model that the run starts from."""
    if config.init:
        from bert_jax.pretrained.initialize import pretraining_start

        pretraining_start(config, workdir or os.devnull).check(corpus.tokenizer)  # without a workdir nothing is begun
    yield from ()


def _disk(config: Config, vocab_size: int, workdir: str | None) -> Iterator[Problem]:
    """Whether the checkpoints that a run keeps, and one being written, fit where the workdir lies."""
    from bert_jax.model.family import num_parameters

    place = Path(workdir or '.').absolute()
    while not place.exists():
        place = place.parent
    each = _BYTES_PER_PARAMETER * num_parameters(config.model, vocab_size)
    needed, free = each * (config.train.keep_checkpoints + 1), shutil.disk_usage(place).free
    if needed > free:
        yield Problem(
            'error',
            str(place),
            f'has {size(free)} free',
            f'{size(needed)}: {config.train.keep_checkpoints + 1} checkpoints of {size(each)}',
            'another --workdir, or --config.train.keep_checkpoints=1',
        )


def _vocabulary(config: Config, corpus: Corpus) -> Iterator[Problem]:
    wanted, found = config.tokenizer.vocab_size, corpus.tokenizer.vocab_size
    if not config.tokenizer.path and not config.init:
        yield from (
            _warning(f'{corpus.directory} (tokenizer)', *issue)
            for issue in find_vocab_size_issues(found, config.tokenizer)
        )
    if not config.tokenizer.path and not config.init and found > wanted:
        yield _warning(
            f'{corpus.directory} (tokenizer)',
            f'has {found:,} tokens: the model gets a row for each, whatever the config says',
            f'tokenizer.vocab_size={wanted:,}',
            f'--config.tokenizer.vocab_size={found}, or prepare another data.corpus',
        )
    unknown = corpus.manifest['unknown_rate']
    if unknown > _MOST_UNKNOWN:
        yield _warning(
            corpus.directory,
            f'{unknown:.1%} of its tokens are [UNK]',
            f'at most {_MOST_UNKNOWN:.0%}',
            'a vocabulary trained on this text: leave tokenizer.path empty, or a larger tokenizer.vocab_size',
        )


def _lines(config: Config, corpus: Corpus) -> Iterator[Problem]:
    """Repeated sentences, among the first ones."""
    sentences = np.asarray(corpus.train.sentences[: _SENTENCES_LOOKED_AT + 1])
    tokens = corpus.train.gather(np.arange(sentences[-1]))
    bounds = sentences.tolist()
    seen = {tokens[low:high].tobytes() for low, high in zip(bounds, bounds[1:], strict=False)}
    share = 1 - len(seen) / max(1, len(bounds) - 1)
    if share > _MOST_REPEATED_LINES:
        yield _warning(
            corpus.directory,
            f'{share:.0%} of its sentences were there before',
            f'at most {_MOST_REPEATED_LINES:.0%}',
            'drop boilerplate (menus, licences, signatures) from the text',
        )


def _documents(config: Config, corpus: Corpus) -> Iterator[Problem]:
    documents, sentences = np.asarray(corpus.train.documents), corpus.train.sentences
    in_each = np.diff(documents)
    tokens = np.diff(np.asarray(sentences[documents]))
    single = (in_each == 1).mean()
    if config.data.pairing != 'none' and single > _MOST_ONE_SENTENCE_DOCUMENTS:
        yield _warning(
            corpus.directory,
            f'{single:.0%} of its documents are one sentence: a pair cannot be cut between sentences there',
            'several sentences a document; in a text file a blank line ends a document, so none between sentences',
            '--config.data.pairing=none where the documents are that short',
        )
    if (largest := tokens.max() / tokens.sum()) > _MOST_IN_ONE_DOCUMENT and len(tokens) > 1:
        yield _warning(
            corpus.directory,
            f'one document holds {largest:.0%} of the tokens',
            f'at most {_MOST_IN_ONE_DOCUMENT:.0%}: random partners come from the others, over and over',
            'divide it (in a text file by blank lines)',
        )
    if config.data.pairing == 'nsp' and len(in_each) < _FEW_DOCUMENTS:
        yield _warning(
            corpus.directory,
            f'has {len(in_each)} training documents to take random next sentences from',
            f'at least {_FEW_DOCUMENTS}',
            '--config.data.pairing=sop needs no other documents',
        )


def _epochs(config: Config, corpus: Corpus | None) -> Iterator[Problem]:
    """Whether there is enough to train on for the planned steps."""
    from bert_jax.data.epochs import MOST_EPOCHS, flags_of_shorter, num_epochs
    from bert_jax.data.streams import open_streams

    epochs = num_epochs(config, open_streams(config, corpus=corpus).train)
    if epochs > MOST_EPOCHS:
        yield _warning(
            'config.train.steps',
            f'{config.train.steps:,} steps go {epochs:,.0f} times through the training text',
            f'at most about {MOST_EPOCHS} times',
            f'more text, or {flags_of_shorter(config, MOST_EPOCHS / epochs)}',
        )


def _fill(config: Config, corpus: Corpus) -> Iterator[Problem]:
    """Whether rows are mostly padding, which costs as much as text."""
    from bert_jax.data.fill import fill_of_phases

    for found in fill_of_phases(config, corpus.train):
        if found.better:
            suggested = [f'{flags} ({share:.0%})' for flags, share in found.better.items()]
            yield _warning(
                'config.data',
                f'in rows of {found.sequence_length} positions only {found.share:.0%} of the positions hold tokens',
                'fuller rows: padding takes as long to compute as text',
                ', or '.join(suggested),
            )


def _held_out(config: Config, corpus: Corpus) -> Iterator[Problem]:
    """Whether enough text is held out for figures that mean something."""
    lengths = np.diff(np.asarray(corpus.validation.sentences[np.asarray(corpus.validation.documents)]))
    held = int(config.data.masking.rate * lengths.sum())
    if held < _FEW_VALIDATION_PREDICTIONS:
        yield _warning(
            f'{corpus.directory} (validation)',
            f'has {len(lengths)} documents, about {held} masked tokens in all',
            f'at least {_FEW_VALIDATION_PREDICTIONS:,}, or its figures mean little',
            'a larger data.validation_fraction, or data.validation_source, in another data.corpus',
        )
