"""The figures that `evaluate` keeps in evaluation.json: samples of different sizes side by side.

The figures of the largest sample are the file's own keys. Those of smaller ones are a list under `smaller_samples`, so
that evaluating again with fewer windows never replaces a better measurement.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from bert_jax.json_files import DamagedJson, read_json

OF_SAMPLE = (
    'masked_word_nats_per_character',
    'unigram_nats_per_character',
    'masked_words',
    'unknown_characters',
    'windows',
    'windows_cut',
    'words_sample',
    'pseudo_perplexity',
)
_SMALLER = 'smaller_samples'
_OF_TEXT = ('step', 'unigram_entropy')  # equal where two results are of one model on one text


def samples_of(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of each sample in an evaluation.json, the largest first; empty for one without samples."""
    found = [evaluation, *_listed(evaluation)]
    return [{key: one[key] for key in OF_SAMPLE if key in one} for one in found if 'words_sample' in one]


def read(path: epath.Path) -> dict[str, Any]:
    """What an earlier evaluation left; {} where there is none, or none that can be read."""
    try:
        content = read_json(path)
    except (OSError, DamagedJson):  # the new result takes its place
        return {}
    return content if _are_samples([content, *_listed(content)]) else {}


def _listed(evaluation: Mapping[str, Any]) -> list[Any]:
    smaller = evaluation.get(_SMALLER, [])
    return smaller if isinstance(smaller, list) else [smaller]


def _are_samples(values: list[Any]) -> bool:
    return all(isinstance(value, dict) and type(value.get('windows', 0)) is int for value in values)


def merged(earlier: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The new content of evaluation.json: `result`, and the samples of the same model and text from before."""
    samples = samples_of(result)
    if all(earlier.get(key) == result[key] for key in _OF_TEXT):
        samples += [one for one in samples_of(earlier) if size_of(one) not in map(size_of, samples)]
    samples.sort(key=size_of, reverse=True)
    if not samples:
        return dict(result)
    largest, *smaller = samples
    of_text = {key: value for key, value in result.items() if key not in (*OF_SAMPLE, 'sample_missing')}
    return of_text | largest | ({_SMALLER: smaller} if smaller else {})


def size_of(sample: Mapping[str, Any]) -> int:
    """Windows in a sample; 0 in files of early versions, which did not count them."""
    return sample.get('windows', 0)
