"""evaluation.json keeps results on samples of several sizes, with the largest at the top level."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from bert_jax.evaluation.evaluate import baselines
from bert_jax.evaluation.evaluation_file import merge, read, samples_of
from bert_jax.evaluation.ranking import RunMetrics, common_metric

TEXT = {'step': 2, 'unigram_entropy': 4.5, 'mlm_loss': 3.0}


def result(windows: int, nats: float, **changes: Any) -> dict[str, Any]:
    """Returns a result of `evaluate` on a sample of `windows` windows."""
    sample = {'masked_word_nats_per_character': nats, 'windows': windows, 'words_sample': f'of {windows}'}
    return TEXT | sample | changes


@pytest.mark.parametrize('sizes', [(512, 64, 8), (8, 512, 64), (64, 8, 512), (512, 512, 64)])
def test_largest_sample_is_at_the_top_level_whatever_the_order(sizes: tuple[int, ...]) -> None:
    content: dict[str, Any] = {}
    for size in sizes:
        content = merge(content, result(size, size / 1000))
    assert content['windows'] == 512 and content['masked_word_nats_per_character'] == 0.512
    assert [sample['windows'] for sample in samples_of(content)] == sorted({*sizes}, reverse=True)


def test_earlier_samples_are_kept_only_for_the_same_model_and_text() -> None:
    before = merge({}, result(512, 1.4))
    assert merge(before, TEXT | {'sample_missing': 'moved'}) == before
    assert merge(before, result(64, 1.7, step=3)) == result(64, 1.7, step=3)
    assert merge(before, result(64, 1.7, unigram_entropy=4.4)) == result(64, 1.7, unigram_entropy=4.4)


def test_runs_are_ranked_by_the_largest_sample_they_share() -> None:
    both = merge(result(64, 1.7), result(512, 1.4))
    runs = [RunMetrics(2, evaluation, {}, None) for evaluation in (both, result(64, 1.6))]
    metric = common_metric(runs)
    assert metric is not None and metric.values == (1.7, 1.6) and 'of 64, 64 text windows' in metric.reason
    assert common_metric([*runs, RunMetrics(2, result(8, 1.0), {}, None)]) is None


def test_text_without_tokens_has_no_baselines() -> None:
    assert baselines(np.zeros(100, np.int64)) == {'unigram_entropy': None, 'most_frequent_accuracy': None}
    assert baselines(np.array([0, 5, 0]))['most_frequent_accuracy'] == 1.0


@pytest.mark.parametrize(
    'content', ['', '[', '[1]', '{"smaller_samples": 5}', '{"smaller_samples": [{"windows": "a"}]}']
)
def test_damaged_evaluation_file_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / 'evaluation.json').write_text(content)
    assert read(epath.Path(tmp_path / 'evaluation.json')) == {}
    assert merge(read(epath.Path(tmp_path)), result(8, 1.0)) == result(8, 1.0)
