"""What a fine-tune is judged by, as the field defines it; fractions, never percentages.

By scikit-learn (accuracy, F1, Matthews), scipy (Pearson, Spearman) and seqeval (F1 of entities, as `conlleval` counts
them). Where a figure is not defined (a constant has no correlation with anything; no entity was found) it is 0.
"""

import importlib.util
import math
from collections.abc import Sequence

import numpy as np

from bert_jax.errors import BadInput

_LIBRARIES = {'sklearn': 'scikit-learn', 'scipy': 'scipy', 'seqeval': 'seqeval'}


def check_libraries() -> None:
    """Raises `BadInput` when a library that counts is not installed."""
    missing = [name for module, name in _LIBRARIES.items() if importlib.util.find_spec(module) is None]
    if missing:
        fix = "pip install -e '.[finetune]'"
        raise BadInput('finetune', f'needs {", ".join(missing)}, which are not installed', 'the extra finetune', fix)


def is_fraction(name: str) -> bool:
    """Whether a figure is a fraction; else it is a threshold of scores."""
    return not name.endswith('_thresh')


def shown(name: str, value: float) -> str:
    """A figure for people: a percentage, or a number for a threshold."""
    return f'{value:.1%}' if is_fraction(name) else f'{value:.3f}'


def classification(name: str, labels: Sequence[int], predicted: Sequence[int]) -> float:
    """A figure over ids of classes; `f1` is of class 1 (GLUE's MRPC and QQP), `macro_f1` the mean over all."""
    from sklearn import metrics

    if name == 'accuracy':
        return float(metrics.accuracy_score(labels, predicted))
    if name == 'matthews':
        return float(metrics.matthews_corrcoef(labels, predicted))
    if name == 'f1':
        is_one = [np.equal(values, 1) for values in (labels, predicted)]
        return float(metrics.f1_score(*is_one, zero_division=0))
    return float(metrics.f1_score(labels, predicted, average='macro', zero_division=0))


def regression(name: str, labels: Sequence[float], predicted: Sequence[float]) -> float:
    """The correlation of two lists of numbers."""
    from scipy import stats

    if len({*labels}) < 2 or len({*predicted}) < 2:
        return 0.0
    found = stats.pearsonr(labels, predicted) if name == 'pearson' else stats.spearmanr(labels, predicted)
    return 0.0 if math.isnan(found.statistic) else float(found.statistic)


def tagging(name: str, tags: list[list[str]], predicted: list[list[str]]) -> float:
    """A figure over the tags (`B-PER`, `I-PER`, `O`) of sentences."""
    import seqeval.metrics

    if name == 'token_accuracy':
        return float(seqeval.metrics.accuracy_score(tags, predicted))
    count = {
        'entity_f1': seqeval.metrics.f1_score,
        'entity_precision': seqeval.metrics.precision_score,
        'entity_recall': seqeval.metrics.recall_score,
    }[name]
    return float(count(tags, predicted, zero_division=0))  # ty: ignore[invalid-argument-type]  its default is a str
