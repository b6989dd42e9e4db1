"""How advice chooses: the start, the vocabulary and the size."""

import dataclasses

import pytest

from bert_jax.advise.law import load_runs
from bert_jax.advise.sample import TextSample
from bert_jax.advise.sizes import Budget, compare
from bert_jax.advise.starting import choose_start
from bert_jax.advise.vocabulary import Measured, choose_size
from bert_jax.config import Config
from bert_jax.plan.targets import parse_target

ENGLISH = TextSample(1e8, True, ('a text',), {'Latin': 1.0}, 0.95, 0.35, 2.9, None)


@pytest.mark.parametrize(
    'change, own_tokens, kind, model',
    [
        ({'characters': 5e6}, 1e9, 'continue', 'English'),
        ({'characters': 1e9}, 1e9, 'continue', 'English'),
        ({'characters': 2e10}, 5e9, 'scratch', 'English'),
        ({'characters': 2e10}, 1e7, 'continue', 'English'),  # too few hours
        ({'letters': 0.3}, 1e7, 'scratch', 'English'),  # no prose
        ({'english': 0.02, 'scripts': {'Cyrillic': 1.0}}, 1e9, 'continue', 'Cyrillic'),
    ],
)
def test_start_follows_from_text_and_tokens(change: dict, own_tokens: float, kind: str, model: str) -> None:
    start = choose_start(dataclasses.replace(ENGLISH, **change), 1e9, own_tokens)
    assert start.kind == kind and model in start.model and start.reasons


def test_slow_devices_continue_a_small_model() -> None:
    start = choose_start(dataclasses.replace(ENGLISH, characters=1e7), 1e6, 1e7)
    assert 'small' in start.model and 'continue a small one' in ' '.join(start.reasons)


def test_vocabulary_grows_while_doubling_saves_tokens_and_the_layers_outweigh_it() -> None:
    words = {4096: 1.6, 8192: 1.45, 16_384: 1.35, 32_768: 1.32}
    measured = [Measured(size, size, rate, 4.0, 0.0) for size, rate in words.items()]
    assert choose_size(measured, 768, 85_000_000).size == 16_384  # 32,768 saves 2%
    assert choose_size(measured, 128, 400_000).size == 8192
    assert choose_size([Measured(4096, 500, 1.2, 5.0, 0.0)], 128, 400_000).size == 500  # the text yields no more


def test_more_time_and_text_make_a_larger_model_and_text_limits_epochs() -> None:
    runs, target = load_runs(), parse_target('h100:1x8')
    found = []
    for characters in (1e6, 3e8, 3e11):
        sizes, law = compare(Config(), 16_384, Budget(characters, 4.3, 2.9, target, 10.0), runs)
        found.append(sizes[0])
        assert sizes[0].fits
    assert law == 'published'  # far beyond the runs
    assert found[0].parameters < found[2].parameters
    assert found[0].limited_by == 'text' and found[2].limited_by == 'time'
    assert found[0].epochs == pytest.approx(runs.law.useful_epochs(0.25)) or found[0].epochs == pytest.approx(40)
    assert found[2].seconds == pytest.approx(36_000)
