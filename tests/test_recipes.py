"""The comparison of recipes: fair sizes and schedules, and a table and a figure of what has finished."""

import argparse
import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks import recipes
from bert_jax import config
from bert_jax.model.family import num_parameters
from bert_jax.train.optimizer import make_schedule

_TRAINED = [name for name, recipe in recipes.RECIPES.items() if not recipe.average_of]


def _comparison(output: Path, **flags: Any) -> recipes.Comparison:
    defaults = {'recipes': list(recipes.RECIPES), 'seeds': 3, 'trials': 1, 'minutes': 20.0}
    return recipes.Comparison(output, argparse.Namespace(**defaults | flags))


def _resolved(comparison: recipes.Comparison, recipe: str, steps: int) -> config.Config:
    file, _, variant = recipes.RECIPES[recipe].file.partition(':')
    given: ConfigDict = runpy.run_path(f'configs/{file}')['get_config'](*filter(None, [variant]))
    given.update_from_flattened_dict(comparison.fields(recipe) | comparison.schedule(recipe, steps))
    return config.resolve(given)


@pytest.mark.parametrize('recipe', _TRAINED)
def test_recipe_resolves_to_the_size_of_the_base(recipe: str, tmp_path: Path) -> None:
    comparison = _comparison(tmp_path)
    resolved, base = (_resolved(comparison, name, 1000) for name in (recipe, recipes.BASE))
    assert resolved.train.steps == 1000 and sum(phase.steps for phase in resolved.phases) in (0, 1000)
    sizes = [num_parameters(each.model, base.tokenizer.vocab_size) for each in (resolved, base)]
    if recipe != 'wide':  # which is compared by time alone
        assert sizes[0] == pytest.approx(sizes[1], rel=0.03)


def test_last_phase_continues_the_learning_rate_of_one_phase(tmp_path: Path) -> None:
    comparison = _comparison(tmp_path)
    rates = []
    for recipe in (recipes.BASE, 'clm-mlm', 'masking-30-15'):
        resolved = _resolved(comparison, recipe, 1000)
        schedule = jax.vmap(make_schedule(resolved.optimizer, resolved.train.steps, resolved.phases))
        rates.append(schedule(np.arange(1000)))
    for found in rates[1:]:
        np.testing.assert_allclose(rates[0], found, rtol=1e-5, atol=1e-9)
    assert rates[0].argmax() == 100 and resolved.phases[1].masking.rate == 0.15
    phases = [(phase.steps, phase.objective) for phase in _resolved(comparison, 'clm-mlm', 1000).phases]
    assert phases == [(250, 'clm'), (750, 'mlm')]


def test_parts_train_every_recipe_with_every_seed_and_share_corpora(tmp_path: Path) -> None:
    parts = list(_comparison(tmp_path).parts())
    assert sum(name.startswith('corpus') for name in parts) == 3
    assert sum(name.startswith('pretrain') for name in parts) == 3 * len(recipes.RECIPES)
    assert parts.index(f'pretrain-{recipes.BASE}-0') < parts.index('pretrain-average-0')


def test_table_and_figure_show_medians_of_finished_seeds(tmp_path: Path) -> None:
    comparison = _comparison(tmp_path, recipes=[recipes.BASE, 'bert'])
    for seed, (nats, accuracy) in enumerate([(1.5, 0.7), (1.4, 0.8), (1.6, 0.75)]):
        comparison.write(f'pretrain-{recipes.BASE}-{seed}', {'steps': 100, 'masked_word_nats_per_character': nats})
        if seed < 2:
            comparison.write(f'sst2-{recipes.BASE}-{seed}', {'accuracy': accuracy})
    [row] = comparison.write_report().splitlines()[2:]
    assert row.endswith('| 100 | 1.500 (1.400 to 1.600) | 75.0 (70.0 to 80.0) |  | 3 |')
    assert 'WikiANN entity F1' in (tmp_path / 'recipes.svg').read_text()
