"""Chooses a model size, the epochs and the recipe for a text, some devices and some hours."""

import dataclasses
import math

from bert_jax import config
from bert_jax.advise.law import PARAMETERS_PER_TOKEN, PUBLISHED, Range, Runs, encoder_parameters
from bert_jax.config import Config
from bert_jax.config.sizes import SIZES, bert_sizes
from bert_jax.data.epochs import MOST_EPOCHS
from bert_jax.model.family import num_parameters
from bert_jax.plan import planning
from bert_jax.plan.targets import Target

NAMES = ('tiny', 'mini', 'small', 'medium', 'base', 'large')
MARGINAL_WORTH = 0.25  # of fresh text; epochs after which another is worth less are not useful
_MAX_FACTOR = 10.0  # beyond the runs up to which the project's own law chooses
_SAME = 0.005  # relative difference of losses below which the smaller model is better
SMALL_BATCH = 32  # rows of configs/small_budget.py
LENGTH = 128  # positions of a row
_MANY_STEPS = 30_000  # the rows of a batch grow with the tokens, so that a run has about this many steps


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model size, trained as long as the hours allow and the text is useful.

    Attributes:
      parameters: of the model; encoder_parameters: of its layers alone.
      fits: whether a step fits the memory of the devices.
      tokens: of training. epochs: passes over the text.
      limited_by: 'time' or 'text'.
      seconds: of training, without evaluation and saving.
      expected: masked-word nats per character on held-out text, by the runs of this project.
      beyond: how far that extrapolates; see `Runs.beyond`.
      rank: the loss by which sizes are compared.
    """

    name: str
    parameters: int
    encoder_parameters: int
    fits: bool
    tokens_per_second: float
    tokens: float
    epochs: float
    steps: int
    rows: int
    limited_by: str
    seconds: float
    expected: Range
    beyond: dict[str, float]
    rank: float = math.nan


@dataclasses.dataclass(frozen=True)
class Budget:
    """Text and time of a run: characters of text, its tokens, the unigram baseline, the devices and hours."""

    characters: float
    characters_per_token: float
    unigram: float
    target: Target
    hours: float


def useful_epochs(runs: Runs) -> float:
    """Returns the epochs after which another pass is worth less than a quarter of fresh text, at most those of BERT."""
    return min(runs.law.useful_epochs(MARGINAL_WORTH), MOST_EPOCHS)


def compare(run: Config, vocab_size: int, budget: Budget, runs: Runs) -> tuple[list[Candidate], str]:
    """Returns the sizes, best first, and the law that ranks them: 'runs' or 'published'.

    Args:
      run: the config of the user, for its text, tokenizer and mesh; the sizes are those of BERT.
    """
    candidates = [_candidate(run, name, vocab_size, budget, runs) for name in NAMES]
    law = 'runs' if _are_near(candidates) else 'published'
    ranked = [dataclasses.replace(each, rank=_loss(each, law, budget, runs)) for each in candidates]
    best = min((each.rank for each in ranked if each.fits), default=math.inf)
    same = [each for each in ranked if each.fits and each.rank <= best * (1 + _SAME)]
    chosen = min(same or ranked, key=lambda each: each.parameters)
    return [chosen, *(each for each in sorted(ranked, key=lambda each: each.rank) if each is not chosen)], law


def _are_near(candidates: list[Candidate]) -> bool:
    """Whether the two sizes that see most of the text for their cost are near the runs of the project."""
    factors = [max(each.beyond.values(), default=1.0) for each in candidates[:2]]
    return max(factors) <= _MAX_FACTOR


def _loss(candidate: Candidate, law: str, budget: Budget, runs: Runs) -> float:
    """Returns the loss by which a size is compared with others on the same text."""
    if law == 'runs':
        if candidate.beyond.get('encoder_parameters', 1.0) > _MAX_FACTOR:
            return math.inf  # the law knows no limit to the parameters that a text can use
        characters = candidate.tokens * budget.characters_per_token
        return runs.law(candidate.encoder_parameters, characters, budget.characters)
    unique = min(budget.characters / budget.characters_per_token, candidate.tokens)
    return PUBLISHED(_useful_parameters(candidate.parameters, unique), candidate.tokens, unique)


def _useful_parameters(parameters: float, unique_tokens: float) -> float:
    """Returns N' of Muennighoff et al., equation 6: parameters beyond those that the text can use are worth less."""
    used, worth = PARAMETERS_PER_TOKEN * unique_tokens, 5.309743
    if parameters <= used:
        return parameters
    return used + used * worth * -math.expm1(-(parameters / used - 1) / worth)


def _candidate(run: Config, name: str, vocab_size: int, budget: Budget, runs: Runs) -> Candidate:
    most_tokens = useful_epochs(runs) * budget.characters / budget.characters_per_token
    rows = SMALL_BATCH
    config_of_size = sized(run, name, vocab_size, rows)
    plan = _plan(config_of_size, budget.target)
    affordable = plan.tokens_per_second * budget.hours * 3600
    rows = _batch(min(affordable, most_tokens))
    if rows > SMALL_BATCH:
        plan = _plan(sized(run, name, vocab_size, rows), budget.target)
        affordable = plan.tokens_per_second * budget.hours * 3600
    tokens = min(affordable, most_tokens)
    encoder = encoder_parameters(*SIZES[name])
    characters = tokens * budget.characters_per_token
    steps = max(1, round(tokens / (rows * LENGTH)))
    return Candidate(
        name,
        num_parameters(config_of_size.model, vocab_size),
        encoder,
        plan.fits,
        plan.tokens_per_second,
        tokens,
        characters / budget.characters,
        steps,
        rows,
        'time' if affordable < most_tokens else 'text',
        tokens / plan.tokens_per_second,
        runs.predict(encoder, characters, budget.characters, budget.unigram),
        runs.beyond(encoder, characters, budget.characters),
    )


def _batch(tokens: float) -> int:
    """Returns the rows of a batch for a number of training tokens: a power of two from 32 to 4096."""
    rows = tokens / LENGTH / _MANY_STEPS
    return min(max(SMALL_BATCH, 2 ** round(math.log2(max(rows, 1)))), 4096)


def sized(run: Config, name: str, vocab_size: int, rows: int) -> Config:
    """Returns a BERT of a size with the batch and vocabulary of a candidate."""
    model = dataclasses.replace(
        config.Bert(), **bert_sizes(name), max_positions=LENGTH, dropout_rate=0.0, attention_dropout_rate=0.0
    )
    data = dataclasses.replace(run.data, sequence_length=LENGTH, packing=True, pairing='none', max_sequences=-1)
    return dataclasses.replace(
        Config(),
        data=data,
        model=model,
        tokenizer=dataclasses.replace(run.tokenizer, vocab_size=vocab_size),
        train=dataclasses.replace(run.train, steps=1, global_batch_size=rows, microbatches=-1, reduction='fast'),
    )


def _plan(run: Config, target: Target) -> planning.Plan:
    resolved = planning.with_dtype_of(run, target)
    return planning.analytic_plan(planning.choose_microbatches(resolved, target), target)
