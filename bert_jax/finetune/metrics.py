"""Metrics of fine-tuning tasks, as fractions, never percentages.

Computed by scikit-learn (accuracy, F1, Matthews, average precision), scipy (Pearson, Spearman) and seqeval (entity F1,
counted like `conlleval`). A metric that is undefined is 0: a correlation with a constant, or F1 when no entity is
predicted.
"""

import importlib.util
import math
from collections.abc import Sequence

import numpy as np

from bert_jax.errors import BadInput

_LIBRARIES = {'sklearn': 'scikit-learn', 'scipy': 'scipy', 'seqeval': 'seqeval'}


def check_libraries() -> None:
    """Raises `BadInput` if a library that computes metrics is not installed."""
    missing = [name for module, name in _LIBRARIES.items() if importlib.util.find_spec(module) is None]
    if missing:
        fix = "pip install -e '.[finetune]'"
        verb = 'is' if len(missing) == 1 else 'are'
        found = f'needs {", ".join(missing)}, which {verb} not installed'
        raise BadInput('finetune', found, 'the extra finetune', fix)


def is_fraction(name: str) -> bool:
    """Returns whether a metric is a fraction; otherwise it is a score threshold."""
    return not name.endswith('_thresh')


def format_metric(name: str, value: float) -> str:
    """Formats a metric: fractions as percentages, thresholds as numbers."""
    return f'{value:.1%}' if is_fraction(name) else f'{value:.3f}'


def classification(name: str, labels: Sequence[int], predicted: Sequence[int]) -> float:
    """Computes a metric over class ids; `f1` is for class 1 (GLUE's MRPC and QQP), `macro_f1` the mean over classes."""
    from sklearn import metrics

    if name == 'accuracy':
        return float(metrics.accuracy_score(labels, predicted))
    if name == 'matthews':
        return float(metrics.matthews_corrcoef(labels, predicted))
    if name == 'f1':
        is_positive = [np.equal(values, 1) for values in (labels, predicted)]
        return float(metrics.f1_score(*is_positive, zero_division=0))
    return float(metrics.f1_score(labels, predicted, average='macro', zero_division=0))


def regression(name: str, labels: Sequence[float], predicted: Sequence[float]) -> float:
    """Computes the Pearson or Spearman correlation of labels and predictions."""
    from scipy import stats

    if len({*labels}) < 2 or len({*predicted}) < 2:
        return 0.0
    result = stats.pearsonr(labels, predicted) if name == 'pearson' else stats.spearmanr(labels, predicted)
    return 0.0 if math.isnan(result.statistic) else float(result.statistic)


def average_precision(is_relevant: Sequence[bool], scores: Sequence[float]) -> float:
    """Computes the average precision over all pairs; 0 if none is relevant."""
    from sklearn import metrics

    return float(metrics.average_precision_score(is_relevant, scores)) if any(is_relevant) else 0.0


def tagging(name: str, tags: list[list[str]], predicted: list[list[str]]) -> float:
    """Computes a metric over the tags of sentences (`B-PER`, `I-PER`, `O`)."""
    import seqeval.metrics

    if name == 'token_accuracy':
        return float(seqeval.metrics.accuracy_score(tags, predicted))
    score = {
        'entity_f1': seqeval.metrics.f1_score,
        'entity_precision': seqeval.metrics.precision_score,
        'entity_recall': seqeval.metrics.recall_score,
    }[name]
    return float(score(tags, predicted, zero_division=0))  # ty: ignore[invalid-argument-type]  its default is a str
