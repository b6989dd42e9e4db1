"""Finds the problems of a run before it trains.

An error means that the run cannot work; a warning, that it works but wastes time or yields a poor model.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bert_jax.cli.topics import help_command
from bert_jax.config import Config, is_records
from bert_jax.console import quantity, size
from bert_jax.errors import BadInput
from bert_jax.text.corpus import Corpus, load_corpus, verify
from bert_jax.text.existing import weighted_sources
from bert_jax.text.prepare import plan_sources
from bert_jax.text.preview import SAMPLE_CHARACTERS, find_vocab_size_issues, find_vocabulary_issues, first_sentences
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.tokenizer import load_configured_tokenizer, prefer_saved_tokenizer
from bert_jax.text.unknown_words import find_unknown_scripts

_NUM_SENTENCES_READ = 200_000
_MAX_UNKNOWN = 0.01
_MAX_REPEATED_LINES = 0.2
_MAX_ONE_SENTENCE_DOCUMENTS = 0.5
_MAX_IN_ONE_DOCUMENT = 0.25
_MIN_DOCUMENTS = 100  # with fewer, the partners of random pairs repeat often
_MIN_VALIDATION_PREDICTIONS = 1_000  # there the standard error of an accuracy of 50% is 1.6%
_BYTES_PER_PARAMETER = 12  # float32 parameter and two moments


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of a run.

    Attributes:
      level: `error` or `warning`. The others are those of `BadInput`.
    """

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
    """Returns an error that would stop the run."""
    return Problem('error', error.where, error.found, error.expected, error.fix or help_command('doctor', error.where))


def describe(problems: list[Problem]) -> str:
    """Describes all problems and counts them, for a terminal."""
    num_errors = sum(problem.level == 'error' for problem in problems)
    counts = f'{quantity(num_errors, "error")}, {quantity(len(problems) - num_errors, "warning")}'
    return '\n'.join([*map(str, problems), counts if problems else 'No problems found: this run can start.'])


def diagnose(config: Config, workdir: str | None = None) -> list[Problem]:
    """Returns the problems of a config with its devices, corpus, tokenizer and disk, errors first.

    Args:
      workdir: the directory that the run will use; by default, the disk of the current directory is checked.
    """
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
    """Checks the platform, and whether the mesh and the batch suit the devices."""
    from bert_jax.runtime.devices import select_platform
    from bert_jax.runtime.mesh import mesh_of_run

    select_platform(config.platform)
    mesh_of_run(config)
    yield from ()


def _tokenizer(config: Config) -> Iterator[Problem]:
    """Checks whether a provided tokenizer is complete and normalizes text as the config says."""
    settings, where = config.tokenizer, f'config.tokenizer.path={config.tokenizer.path}'
    if not settings.path:
        return
    tokenizer = load_configured_tokenizer(settings, report_ignored=False)  # the warnings below report them
    for name in ('lowercase', 'strip_accents'):
        wanted, found = getattr(settings, name), getattr(tokenizer, name)
        if wanted not in (None, found):
            fix = f'remove config.tokenizer.{name}, or set tokenizer.path to the vocabulary file itself'
            expected = f'{found}, the setting of {where}'
            yield _warning(f'config.tokenizer.{name}', f'is {wanted}, but is not used', expected, fix)
    of_corpus = prefer_saved_tokenizer(tokenizer, settings, f'{config.data.corpus}/tokenizer')
    for issue in find_vocabulary_issues(of_corpus, True, _sample(config)):
        yield _warning(where, *issue)


def _sample(config: Config) -> list[str]:
    """Returns sentences of the source, or [] if it is missing: training from a corpus does not need its text."""
    if is_records(config.data.source):
        return []
    try:
        sources = plan_sources(config.data, weighted_sources(config.data))
        return first_sentences(sources, ReadOptions.from_config(config.data), characters=SAMPLE_CHARACTERS)
    except BadInput:
        return []


def _initial_model(config: Config, corpus: Corpus, workdir: str | None) -> Iterator[Problem]:
    """Checks whether the corpus was prepared with the vocabulary of the initial model."""
    if config.init:
        from bert_jax.pretrained.initialize import pretraining_start

        pretraining_start(config, workdir or os.devnull).check(
            corpus.tokenizer
        )  # os.devnull stands for a workdir without a run
    yield from ()


def _disk(config: Config, vocab_size: int, workdir: str | None) -> Iterator[Problem]:
    """Checks whether the disk has room for the checkpoints that a run keeps and one that is being written."""
    from bert_jax.model.family import num_parameters
    from bert_jax.model.replaced_tokens import build_of

    directory = Path(workdir or '.').absolute()
    while not directory.exists():
        directory = directory.parent
    checkpoint_bytes = _BYTES_PER_PARAMETER * num_parameters(
        config.model, vocab_size, build_of(config.in_phases[0].objective)
    )
    num_checkpoints, free = config.train.keep_checkpoints + 1, shutil.disk_usage(directory).free
    needed = checkpoint_bytes * num_checkpoints
    if needed > free:
        yield Problem(
            'error',
            str(directory),
            f'has {size(free)} free',
            f'{size(needed)} for {num_checkpoints} checkpoints of {size(checkpoint_bytes)}',
            '--workdir on another disk, or --config.train.keep_checkpoints=1',
        )


def _vocabulary(config: Config, corpus: Corpus) -> Iterator[Problem]:
    """Checks the size of the vocabulary and how often text of the corpus is unknown to it."""
    wanted, found = config.tokenizer.vocab_size, corpus.tokenizer.vocab_size
    if not config.tokenizer.path and not config.init:
        yield from (
            _warning(f'{corpus.directory} (tokenizer)', *issue)
            for issue in find_vocab_size_issues(found, config.tokenizer)
        )
    if not config.tokenizer.path and not config.init and found > wanted:
        yield _warning(
            f'{corpus.directory} (tokenizer)',
            f'has {found:,} tokens, and the model will have as many, whatever the config says',
            f'{wanted:,} tokens, as set by tokenizer.vocab_size',
            f'--config.tokenizer.vocab_size={found}, or prepare another data.corpus',
        )
    unknown = corpus.manifest['unknown_rate']
    is_initial = config.init and not config.tokenizer.path  # otherwise checked already, or trained on this text
    by_script = find_unknown_scripts(corpus.tokenizer, _sample(config)) if unknown and is_initial else []
    for issue in by_script:
        yield _warning(f'{corpus.directory} (tokenizer)', *issue)
    if unknown > _MAX_UNKNOWN and not by_script:
        yield _warning(
            corpus.directory,
            f'{unknown:.1%} of its tokens are [UNK]',
            f'at most {_MAX_UNKNOWN:.0%}',
            'leave tokenizer.path empty to train a vocabulary on this text, or raise tokenizer.vocab_size',
        )


def _lines(config: Config, corpus: Corpus) -> Iterator[Problem]:
    """Checks how many of the first sentences are repeated."""
    sentences = np.asarray(corpus.train.sentences[: _NUM_SENTENCES_READ + 1])
    tokens = corpus.train.gather(np.arange(sentences[-1]))
    bounds = sentences.tolist()
    seen = {tokens[low:high].tobytes() for low, high in zip(bounds, bounds[1:], strict=False)}
    share = 1 - len(seen) / max(1, len(bounds) - 1)
    if share > _MAX_REPEATED_LINES:
        yield _warning(
            corpus.directory,
            f'{share:.0%} of its sentences repeat earlier ones',
            f'at most {_MAX_REPEATED_LINES:.0%}',
            '--config.data.deduplicate_lines=True, which drops boilerplate (menus, licences, signatures)',
        )


def _documents(config: Config, corpus: Corpus) -> Iterator[Problem]:
    """Checks the number of documents and whether their lengths suit the pairing."""
    documents, sentences = np.asarray(corpus.train.documents), corpus.train.sentences
    num_sentences = np.diff(documents)
    tokens = np.diff(np.asarray(sentences[documents]))
    single = (num_sentences == 1).mean()
    if config.data.pairing != 'none' and single > _MAX_ONE_SENTENCE_DOCUMENTS:
        yield _warning(
            corpus.directory,
            f'{single:.0%} of its documents are one sentence, which cannot be split into a pair between sentences',
            'several sentences per document; in a text file only a blank line ends a document',
            '--config.data.pairing=none if documents are really that short',
        )
    if (largest := tokens.max() / tokens.sum()) > _MAX_IN_ONE_DOCUMENT and len(tokens) > 1:
        yield _warning(
            corpus.directory,
            f'one document holds {largest:.0%} of the tokens',
            f'at most {_MAX_IN_ONE_DOCUMENT:.0%}, because its random partners come from the few others',
            'split it into documents; blank lines do that in a text file',
        )
    if config.data.pairing == 'nsp' and len(num_sentences) < _MIN_DOCUMENTS:
        yield _warning(
            corpus.directory,
            f'has {len(num_sentences)} training documents to take random next sentences from',
            f'at least {_MIN_DOCUMENTS}',
            '--config.data.pairing=sop, which needs no other documents',
        )


def _epochs(config: Config, corpus: Corpus | None) -> Iterator[Problem]:
    """Checks whether there is enough text for the planned steps."""
    from bert_jax.data.epochs import MOST_EPOCHS, flags_of_shorter, num_epochs
    from bert_jax.data.streams import open_streams

    epochs = num_epochs(config, open_streams(config, corpus=corpus).train)
    if epochs > MOST_EPOCHS:
        yield _warning(
            'config.train.steps',
            f'{config.train.steps:,} steps are {epochs:,.0f} epochs of the training text',
            f'at most about {MOST_EPOCHS} epochs',
            f'more text, or {flags_of_shorter(config, MOST_EPOCHS / epochs)}',
        )


def _fill(config: Config, corpus: Corpus) -> Iterator[Problem]:
    """Checks whether rows are mostly padding, which takes as long to compute as text."""
    from bert_jax.data.fill import fill_of_phases

    for found in fill_of_phases(config, corpus.train):
        if found.better:
            suggested = [f'{flags} ({share:.0%})' for flags, share in found.better.items()]
            yield _warning(
                'config.data',
                f'only {found.share:.0%} of the positions in rows of {found.sequence_length} hold tokens',
                'fuller rows, because padding takes as long to compute as text',
                ', or '.join(suggested),
            )


def _held_out(config: Config, corpus: Corpus) -> Iterator[Problem]:
    """Checks whether enough text is held out for reliable metrics."""
    from bert_jax.data.evaluation_rows import rows_of_phase

    lengths = np.diff(np.asarray(corpus.validation.sentences[np.asarray(corpus.validation.documents)]))
    num_predictions = int(rows_of_phase(config, 0).data.masking.rate * lengths.sum())
    if num_predictions < _MIN_VALIDATION_PREDICTIONS:
        yield _warning(
            f'{corpus.directory} (validation)',
            f'has {len(lengths):,} documents with about {num_predictions} masked tokens',
            f'at least {_MIN_VALIDATION_PREDICTIONS:,} masked tokens, for reliable metrics',
            'prepare another data.corpus with a larger data.validation_fraction, or with data.validation_source',
        )
