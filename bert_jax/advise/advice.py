"""Puts the advice together: what was found, what is recommended, and the commands that run it."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from bert_jax import config
from bert_jax.advise import sizes
from bert_jax.advise.law import Runs, load_runs
from bert_jax.advise.sample import TextSample, read_sample
from bert_jax.advise.sizes import LENGTH, SMALL_BATCH, Budget, Candidate
from bert_jax.advise.starting import Start, choose_start
from bert_jax.advise.vocabulary import Measured, choose_size, measure_sizes
from bert_jax.config import Config
from bert_jax.config.fields import content_of
from bert_jax.config.sizes import SIZES, gated_sizes
from bert_jax.plan import planning
from bert_jax.plan.targets import Target

_CONTINUED_ROWS = 64  # of configs/continue.py
_SMALL = ('tiny', 'mini')  # sizes that configs/small_budget.py was measured with
_TYPICAL_VOCABULARY = 16_384  # to compare sizes before the vocabulary is chosen


@dataclasses.dataclass(frozen=True)
class Advice:
    """Everything that `advise` prints.

    Attributes:
      sizes: best first.
      ranked_by: the law that ranks the sizes: 'runs' or 'published'.
      price: dollars per device-hour.
    """

    run: Config
    text: TextSample
    start: Start
    vocabularies: list[Measured]
    vocabulary: Measured
    sizes: list[Candidate]
    ranked_by: str
    target: Target
    hours: float
    price: float | None
    runs: Runs

    @property
    def size(self) -> Candidate:
        """The recommended size."""
        return self.sizes[0]

    @property
    def continued_tokens(self) -> float:
        """The tokens that continuing an existing model would be trained on."""
        name = 'mini' if 'small' in self.start.model else 'base'
        return next(each.tokens for each in self.sizes if each.name == name)

    def cost(self, seconds: float) -> float | None:
        """Returns dollars; None without a price."""
        return None if self.price is None else seconds / 3600 * self.target.num_devices * self.price

    # --- Commands. ---

    def commands(self, kind: str) -> list[str]:
        """Returns the commands for 'scratch' or 'continue'."""
        return self._continue_commands() if kind == 'continue' else self._scratch_commands()

    def _scratch_commands(self) -> list[str]:
        found, vocab_size = self.size, self.vocabulary.size
        corpus = self._corpus(f'{-(-vocab_size // 1024)}k')
        flags = [*_text_flags(self.run), f'--config.data.corpus={corpus}']
        if not self.run.tokenizer.path:
            flags.append(f'--config.tokenizer.vocab_size={vocab_size}')
        if found.name in _SMALL and found.rows == SMALL_BATCH:
            file = '--config=small_budget.py'
            fields: dict[str, Any] = {f'model.{name}': value for name, value in gated_sizes(*SIZES[found.name]).items()}
        else:
            file = f'--config=bert.py:{found.name}'
            fields = {
                'data.sequence_length': LENGTH,
                'data.packing': True,
                'data.pairing': 'none',
                'data.masking.rate': 0.3,
                'model.max_positions': LENGTH,
                'train.global_batch_size': found.rows,
                'train.microbatches': -1,
                'optimizer.peak_learning_rate': round(1e-4 * max(found.rows / 256, 1.0) ** 0.5, 6),
            }
        fields |= {
            'train.steps': found.steps,
            'train.checkpoint_every': max(1, min(1000, found.steps // 5)),
            'optimizer.warmup_steps': max(1, round(0.06 * found.steps)),
        }
        return [
            _command('prepare', [file, *flags]),
            _command('train', [file, *flags, *_as_flags(fields), f'--workdir=runs/{Path(corpus).name}']),
            _command('evaluate', [f'--workdir=runs/{Path(corpus).name}']),
        ]

    def _continue_commands(self) -> list[str]:
        model = f'models/{self.start.example.rpartition("/")[2]}'
        corpus = self._corpus('continued')
        flags = ['--config=continue.py', f'--config.init={model}', *_text_flags(self.run, tokenizer=False)]
        flags += [f'--config.data.corpus={corpus}', '--config.data.pairing=none']
        steps = max(1, round(self.continued_tokens / (_CONTINUED_ROWS * LENGTH)))
        fields = {
            'train.steps': steps,
            'train.checkpoint_every': max(1, min(1000, steps // 5)),
            'optimizer.warmup_steps': max(1, round(0.06 * steps)),
        }
        workdir = f'--workdir=runs/{Path(corpus).name}'
        return [
            f'hf download {self.start.example} --local-dir {model}',
            _command('prepare', flags),
            _command('train', [*flags, *_as_flags(fields), workdir]),
            _command('evaluate', [workdir]),
        ]

    def _corpus(self, ending: str) -> str:
        """Returns a directory for a corpus: that of the config, unless it holds a corpus or is that of another text."""
        data, default = self.run.data, config.Data()
        corpus = 'corpora/mine' if data.corpus == default.corpus and data.source != default.source else data.corpus
        return f'{corpus.rstrip("/")}-{ending}' if self.text.corpus_tokens else corpus

    # --- JSON. ---

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `--json` prints."""
        text, found = self.text, self.size
        return {
            'start': self.start.kind,
            'reasons': list(self.start.reasons),
            'existing_model': self.start.model,
            'text': {
                'characters': round(text.characters),
                'is_complete': text.is_complete,
                'scripts': text.scripts,
                'letters': text.letters,
                'is_english': text.is_english,
                'unigram_nats_per_character': text.unigram,
            },
            'vocabulary_size': self.vocabulary.size,
            'vocabularies': [each._asdict() for each in self.vocabularies],
            'size': found.name,
            'num_layers': SIZES[found.name][0],
            'hidden_size': SIZES[found.name][1],
            'parameters': found.parameters,
            'useful_epochs': sizes.useful_epochs(self.runs),
            'epochs': found.epochs,
            'tokens': round(found.tokens),
            'steps': found.steps,
            'limited_by': found.limited_by,
            'nats_per_character': found.expected.value,
            'nats_per_character_low': found.expected.low,
            'nats_per_character_high': found.expected.high,
            'beyond_runs': found.beyond,
            'ranked_by': self.ranked_by,
            'held_out_error': self.runs.held_out_error,
            'target': self.target.name,
            'tokens_per_second': found.tokens_per_second,
            'seconds': found.seconds,
            'cost': self.cost(found.seconds),
            'sizes': [self._size_to_json(each) for each in self.sizes],
            'commands': {kind: self.commands(kind) for kind in ('continue', 'scratch')},
        }

    def _size_to_json(self, candidate: Candidate) -> dict[str, Any]:
        return {
            'size': candidate.name,
            'parameters': candidate.parameters,
            'fits': candidate.fits,
            'epochs': candidate.epochs,
            'tokens': round(candidate.tokens),
            'seconds': candidate.seconds,
            'nats_per_character': candidate.expected.value,
        }


def advise(run: Config, target_name: str, hours: float, price: float | None = None) -> Advice:
    """Reads the text of a config and returns advice for some devices and hours.

    Raises:
      BadInput: if the text cannot be read, or for an unknown target.
    """
    runs = load_runs()
    text = read_sample(run.data, bool(run.tokenizer.for_training().lowercase))
    target = planning.find_target(target_name, _small_run(run))
    vocabularies = measure_sizes(run.tokenizer, text.documents)
    typical = min(vocabularies, key=lambda each: abs(each.size - _TYPICAL_VOCABULARY))
    compared, ranked_by = _compare(run, text, typical, target, hours, runs)
    vocabulary = choose_size(vocabularies, SIZES[compared[0].name][1], compared[0].encoder_parameters)
    if vocabulary is not typical:
        compared, ranked_by = _compare(run, text, vocabulary, target, hours, runs)
    base = next(each for each in compared if each.name == 'base')
    start = choose_start(text, base.tokens_per_second * hours * 3600, compared[0].tokens)
    return Advice(run, text, start, vocabularies, vocabulary, compared, ranked_by, target, hours, price, runs)


def _small_run(run: Config) -> Config:
    """Returns a run whose matmuls are measured on the local devices."""
    return sizes.sized(run, 'mini', 8192, SMALL_BATCH)


def _compare(
    run: Config, text: TextSample, vocabulary: Measured, target: Target, hours: float, runs: Runs
) -> tuple[list[Candidate], str]:
    budget = Budget(text.characters, vocabulary.characters_per_token, text.unigram, target, hours)
    return sizes.compare(run, vocabulary.size, budget, runs)


def _command(name: str, arguments: list[str]) -> str:
    return f'bert-jax {name} {shlex.join(arguments)}'


def _as_flags(fields: dict[str, Any]) -> list[str]:
    return [f'--config.{name}={value}' for name, value in fields.items()]


def _text_flags(run: Config, *, tokenizer: bool = True) -> list[str]:
    """Returns the flags for the text and tokenizer of a config, as far as they differ from the defaults."""
    sections: list[tuple[str, Any, Any]] = [('data', run.data, config.Data())]
    if tokenizer:
        sections.append(('tokenizer', run.tokenizer, config.Tokenizer()))
    flags = []
    for section, given, default in sections:
        names = [*content_of(type(given), vars(given)), *(['path'] if section == 'tokenizer' else [])]
        for name in names:
            value = getattr(given, name)
            if value != getattr(default, name) and name != 'vocab_size':
                flags.append(f'--config.{section}.{name}={value}')
    return flags
