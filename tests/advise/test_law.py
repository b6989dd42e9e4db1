"""The law: repetitions lose their worth, the file of runs is complete, and a fit recovers a known law."""

import math

import numpy as np
import pytest

from bert_jax.advise.law import PUBLISHED, Law, load_runs

LAW = Law(E=0.2, A=2.0, alpha=0.3, B=20.0, beta=0.35, R=10.0)


def test_fresh_text_counts_in_full_and_repetitions_less_and_less() -> None:
    assert LAW.effective(5e6, 5e6) == LAW.effective(5e6, 9e9) == 5e6
    worth = np.diff([LAW.effective(epochs * 1e6, 1e6) for epochs in range(1, 60)])
    assert (np.diff(worth) < 0).all() and worth[0] == pytest.approx(1e6, rel=0.06)
    assert LAW.effective(1e12, 1e6) == pytest.approx(11e6)  # U (1 + R)


def test_useful_epochs_end_where_the_next_one_is_worth_the_given_share() -> None:
    epochs = LAW.useful_epochs(0.25)
    slope = (LAW.effective((epochs + 1e-4) * 1e6, 1e6) - LAW.effective(epochs * 1e6, 1e6)) / 1e2
    assert slope == pytest.approx(0.25, rel=1e-3)


def test_published_law_is_equation_17_of_its_paper() -> None:
    assert PUBLISHED(2.8e9, 55e9, 55e9) == pytest.approx(1.87 + 521 / 2.8e9**0.353 + 1488 / 55e9**0.353, abs=0.01)


def test_runs_of_the_package_have_points_and_a_fit_with_its_error() -> None:
    runs = load_runs()
    assert len({point['run'] for point in runs.fitted}) >= 2 and len(runs.refits) >= 20
    assert 0 < runs.held_out_error < 0.5 and {'command', 'machine', 'date'} <= runs.origin.keys()
    point = runs.fitted[-1]
    asked = [point[name] for name in ('encoder_parameters', 'characters', 'unique_characters')]
    value, low, high = runs.predict(*asked, point['unigram_nats_per_character'])
    assert low <= value <= high and value == pytest.approx(point['nats_per_character'], rel=0.2)
    assert not runs.beyond(*asked) and runs.beyond(asked[0] * 1000, *asked[1:])['encoder_parameters'] > 1


def test_fit_recovers_a_known_law_where_it_has_points() -> None:
    pytest.importorskip('scipy')
    from benchmarks import scaling_fit

    points = [
        {
            'run': f'{parameters}-{unique}',
            'text': 'reviews',
            'encoder_parameters': parameters,
            'characters': unique * epochs,
            'unique_characters': unique,
            'nats_per_character': 3.0 * LAW(parameters, unique * epochs, unique),
            'unigram_nats_per_character': 3.0,
        }
        for parameters in (25_000, 100_000, 400_000)
        for unique in (1e5, 1e6, 1e7)
        for epochs in (1, 4, 16)
    ]
    found = scaling_fit.fit(points)
    assert np.abs(scaling_fit.errors(found, points)).max() < 0.01
    assert math.log(found.law.R / LAW.R) == pytest.approx(0, abs=0.3)
