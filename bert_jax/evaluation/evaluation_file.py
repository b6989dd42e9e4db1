"""The content of evaluation.json, in which `evaluate` keeps results on samples of several sizes.

The top-level keys hold the results on the largest sample. Results on smaller samples are listed under
`smaller_samples`, so evaluating again with fewer windows never replaces a better measurement.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from bert_jax.json_files import DamagedJson, read_json

SAMPLE_KEYS = (
    'masked_word_nats_per_character',
    'unigram_nats_per_character',
    'masked_words',
    'unknown_characters',
    'windows',
    'windows_cut',
    'words_sample',
    'pseudo_perplexity',
)
_SMALLER_SAMPLES = 'smaller_samples'
_IDENTITY_KEYS = ('step', 'unigram_entropy')  # equal in two results of one model on one text


def samples_of(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the results on each sample in the content of an evaluation.json, largest sample first; [] without any."""
    results = [result for result in (evaluation, *_smaller_samples(evaluation)) if 'words_sample' in result]
    return [{key: result[key] for key in SAMPLE_KEYS if key in result} for result in results]


def read(path: epath.Path) -> dict[str, Any]:
    """Returns the content that an earlier evaluation wrote; {} if the file is missing or damaged."""
    try:
        content = read_json(path)
    except (OSError, DamagedJson):  # the new result replaces the file
        return {}
    return content if _are_samples([content, *_smaller_samples(content)]) else {}


def _smaller_samples(evaluation: Mapping[str, Any]) -> list[Any]:
    smaller = evaluation.get(_SMALLER_SAMPLES, [])
    return smaller if isinstance(smaller, list) else [smaller]


def _are_samples(values: list[Any]) -> bool:
    return all(isinstance(value, dict) and type(value.get('windows', 0)) is int for value in values)


def merge(earlier: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the new content of evaluation.json: `result`, and earlier samples of the same model and text."""
    samples = samples_of(result)
    if all(earlier.get(key) == result[key] for key in _IDENTITY_KEYS):
        sizes = {num_windows(sample) for sample in samples}
        samples += [sample for sample in samples_of(earlier) if num_windows(sample) not in sizes]
    samples.sort(key=num_windows, reverse=True)
    if not samples:
        return dict(result)
    largest_sample, *smaller_samples = samples
    unsampled = {key: value for key, value in result.items() if key not in (*SAMPLE_KEYS, 'sample_missing')}
    return unsampled | largest_sample | ({_SMALLER_SAMPLES: smaller_samples} if smaller_samples else {})


def num_windows(sample: Mapping[str, Any]) -> int:
    """Returns the number of windows in a sample; 0 for a file of an early version, which did not record it."""
    return sample.get('windows', 0)
