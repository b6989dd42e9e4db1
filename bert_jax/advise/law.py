"""The scaling laws behind the advice: one fitted to runs of this project, and the published one.

    L(N, D, U) = E + A / N^alpha + B / D'^beta,   D' = U + U R (1 - exp(-(D / U - 1) / R))

`N` parameters of the encoder's layers, `D` characters (or tokens) trained on, `U` of them distinct. D' is the amount of
fresh text that D is worth: the n-th repetition is worth exp(-n / R) of the first pass (Muennighoff et al. 2023,
"Scaling Data-Constrained Language Models", arXiv 2305.16264, equation 5).
"""

import dataclasses
import functools
import importlib.resources
import json
import math
from typing import Any, NamedTuple

PLATEAU = 0.65  # of the unigram baseline; runs above have learned little more than the frequencies of tokens
_QUANTILES = (0.1, 0.9)  # of a range
_TOLERANCE = 1.02  # beyond the runs that is none


@dataclasses.dataclass(frozen=True)
class Law:
    """The coefficients of a law; see the top of the file."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    R: float

    def __call__(self, parameters: float, amount: float, unique: float) -> float:
        """Returns the loss; `amount` and `unique` have the unit of the fit."""
        return self.E + self.A / parameters**self.alpha + self.B / self.effective(amount, unique) ** self.beta

    def effective(self, amount: float, unique: float) -> float:
        """Returns D', the amount of fresh text that training on `amount` of `unique` text is worth."""
        unique = min(unique, amount)
        return unique + unique * self.R * -math.expm1(-(amount / unique - 1) / self.R)

    def useful_epochs(self, worth: float) -> float:
        """Returns the epochs after which another pass is worth less than this share of fresh text."""
        return 1 + self.R * math.log(1 / worth)


# Appendix A of Muennighoff et al. 2023: causal language models of 7M to 9B parameters on C4, in tokens; all parameters
# count.
PUBLISHED = Law(E=1.8719, A=521.0, alpha=0.3526596, B=1488.0, beta=0.3526596, R=15.387756)
PARAMETERS_PER_TOKEN = 0.051  # of them, that distinct text can use (U_N / U_D in equation 17)


def encoder_parameters(num_layers: int, hidden_size: int) -> int:
    """Returns N, the parameters of the matmuls of the layers, with feed-forward layers of 4 x `hidden_size`."""
    return 12 * num_layers * hidden_size**2


class Range(NamedTuple):
    """A prediction, and the range that holds 80% of the predictions of refitted laws and of their errors."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of this project and the law fitted to them. Losses are shares of `unigram` losses.

    Attributes:
      points: one per run and budget; see docs/benchmarks/scaling-grid.md.
      law: in encoder parameters and characters; its loss is masked-word nats per character over the unigram baseline.
      refits: laws fitted to resampled runs.
      held_out_error: relative standard deviation of the error for runs left out of the fit.
      text_spread: the same of the differences between texts.
      origin: command, machine and date.
    """

    points: tuple[dict[str, Any], ...]
    law: Law
    refits: tuple[Law, ...]
    held_out_error: float
    text_spread: float
    origin: dict[str, Any]

    @property
    def fitted(self) -> list[dict[str, Any]]:
        """The points that the law is fitted to."""
        return [point for point in self.points if point['is_fitted']]

    def predict(self, parameters: float, characters: float, unique: float, unigram: float) -> Range:
        """Returns the expected masked-word nats per character.

        Args:
          unigram: nats per character of a model that knows only the frequencies of characters.
        """
        values = sorted(law(parameters, characters, unique) for law in self.refits)
        # The same quantiles of a normal distribution.
        spread = 1.2816 * math.hypot(self.held_out_error, self.text_spread)
        value = self.law(parameters, characters, unique)
        low, high = (values[min(int(q * len(values)), len(values) - 1)] for q in _QUANTILES)
        below, above = (math.hypot(value - low, value * spread), math.hypot(high - value, value * spread))
        return Range(value * unigram, max(value - below, 0.0) * unigram, min(value + above, 1.0) * unigram)

    def beyond(self, parameters: float, characters: float, unique: float) -> dict[str, float]:
        """Returns how many times each quantity exceeds (above 1) or falls short of (below 1) those of the fitted runs.

        Fewer epochs than theirs are no extrapolation, as fresh text is what the law is simplest about.
        """
        found = {}
        epochs = characters / min(unique, characters)
        asked = {'encoder_parameters': parameters, 'characters': characters, 'epochs': epochs}
        for name, value in asked.items():
            values = [point[name] for point in self.fitted]
            low, high = 0.0 if name == 'epochs' else min(values), max(values)
            if not low / _TOLERANCE <= value <= high * _TOLERANCE:
                found[name] = value / (high if value > high else low)
        return found


@functools.cache
def load_runs() -> Runs:
    """Reads the runs and the fit that are part of the package."""
    content = json.loads((importlib.resources.files('bert_jax.advise') / 'runs.json').read_text('utf-8'))
    fit = content['fit']
    return Runs(
        tuple(content['points']),
        Law(**fit['law']),
        tuple(Law(**law) for law in fit['refits']),
        fit['held_out_error'],
        fit['text_spread'],
        content['origin'],
    )
