"""Samples of different sizes are kept side by side, and the largest is the one that is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from bert_jax.evaluation.evaluate import baselines
from bert_jax.evaluation.ranking import Figures, common_measure
from bert_jax.evaluation.recorded import merged, read, samples_of

TEXT = {'step': 2, 'unigram_entropy': 4.5, 'mlm_loss': 3.0}


def result(windows: int, nats: float, **changes: Any) -> dict[str, Any]:
    """What `evaluate` finds on a sample."""
    sample = {'masked_word_nats_per_character': nats, 'windows': windows, 'words_sample': f'of {windows}'}
    return TEXT | sample | changes


@pytest.mark.parametrize('sizes', [(512, 64, 8), (8, 512, 64), (64, 8, 512), (512, 512, 64)])
def test_the_largest_sample_is_read_whatever_came_last(sizes: tuple[int, ...]) -> None:
    content: dict[str, Any] = {}
    for size in sizes:
        content = merged(content, result(size, size / 1000))
    assert content['windows'] == 512 and content['masked_word_nats_per_character'] == 0.512
    assert [sample['windows'] for sample in samples_of(content)] == sorted({*sizes}, reverse=True)


def test_losses_alone_keep_the_sample_of_before_and_another_model_or_text_drops_it() -> None:
    before = merged({}, result(512, 1.4))
    assert merged(before, TEXT | {'sample_missing': 'moved'}) == before
    assert merged(before, result(64, 1.7, step=3)) == result(64, 1.7, step=3)
    assert merged(before, result(64, 1.7, unigram_entropy=4.4)) == result(64, 1.7, unigram_entropy=4.4)


def test_runs_are_ranked_by_the_largest_sample_that_all_of_them_have() -> None:
    both = merged(result(64, 1.7), result(512, 1.4))
    runs = [Figures(2, evaluation, {}, None) for evaluation in (both, result(64, 1.6))]
    measure = common_measure(runs)
    assert measure is not None and measure.values == (1.7, 1.6) and 'of 64, 64 windows' in measure.why
    assert common_measure([*runs, Figures(2, result(8, 1.0), {}, None)]) is None


def test_a_text_without_tokens_has_no_baselines() -> None:
    assert baselines(np.zeros(100, np.int64)) == {'unigram_entropy': None, 'most_frequent_accuracy': None}
    assert baselines(np.array([0, 5, 0]))['most_frequent_accuracy'] == 1.0


@pytest.mark.parametrize(
    'content', ['', '[', '[1]', '{"smaller_samples": 5}', '{"smaller_samples": [{"windows": "a"}]}']
)
def test_a_damaged_evaluation_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / 'evaluation.json').write_text(content)
    assert read(epath.Path(tmp_path / 'evaluation.json')) == {}
    assert merged(read(epath.Path(tmp_path)), result(8, 1.0)) == result(8, 1.0)
