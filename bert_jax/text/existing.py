"""Decides whether an existing corpus can be reused for a config."""

import itertools
import json
import pathlib
from typing import Any, NamedTuple

from bert_jax import config
from bert_jax.config.fields import content_of
from bert_jax.errors import BadInput
from bert_jax.json_files import read_json
from bert_jax.text.corpus import read_manifest
from bert_jax.text.sources.plan import stat_files
from bert_jax.text.tokenizer import Tokenizer


def corpus_settings(data: config.Data, tokenizer: config.Tokenizer, provided: Tokenizer | None) -> dict[str, Any]:
    """Returns the settings that determine the contents of a corpus, {name in the config: JSON value}."""
    settings = {f'data.{name}': value for name, value in content_of(config.Data, vars(data)).items()}
    if provided is not None:
        settings['tokenizer.path'] = provided.hash
    else:
        content = content_of(config.Tokenizer, vars(tokenizer.for_training()))
        settings |= {f'tokenizer.{name}': value for name, value in content.items()}
    return json.loads(json.dumps(settings))


class WeightedSource(NamedTuple):
    """A source of a corpus; its documents go to `split`, or to a split chosen by their hash if that is ''."""

    source: str
    weight: float
    split: str


def weighted_sources(data: config.Data) -> list[WeightedSource]:
    """Returns the sources in the order of the corpus: validation text first."""
    split = 'train' if data.validation_source else ''
    train = [WeightedSource(source, weight, split) for source, weight in config.sources(data)]
    return [WeightedSource(data.validation_source, 1.0, 'validation'), *train] if data.validation_source else train


def train_sources(mixture: list[WeightedSource], documents_after: list[int]) -> list[dict[str, Any]]:
    """Returns the name of each source in the training split, in its order, and the number of its documents there.

    Args:
      documents_after: training documents after each source of the mixture.
    """
    counts = (after - before for before, after in itertools.pairwise([0, *documents_after]))
    sources = zip(mixture, counts, strict=True)
    return [{'source': each.source, 'documents': count} for each, count in sources if each.split != 'validation']


def find_existing(
    directory: pathlib.Path, mixture: list[WeightedSource], settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Returns the manifest of the existing corpus, or None if there is none.

    Raises:
      BadInput: if the directory holds something else, or a corpus with other settings or from text that has changed.
    """
    manifest = read_manifest(directory)
    where = f'config.data.corpus={directory}'
    if manifest is None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise BadInput(
                where, 'exists and is not a corpus', 'a new or empty directory', '--config.data.corpus=DIRECTORY'
            )
        return None
    recorded = manifest['settings']
    fix = f'--config.data.corpus=DIRECTORY, or rm -r {directory} to replace it'
    differing = [name for name in sorted({*recorded, *settings}) if recorded.get(name) != settings.get(name)]
    if differing:
        found, expected = (
            '; '.join(f'{name}={side[name]!r}' for name in differing if name in side) for side in (recorded, settings)
        )
        raise BadInput(where, f'holds a corpus made with {found or "other settings"}', expected, fix)
    for source, _, _ in mixture:
        if changes := changes_since(directory, source):
            found = f'holds a corpus whose source files have changed since: {changes}'
            raise BadInput(where, found, 'the files it was prepared from', fix)
    return manifest


def changes_since(directory: pathlib.Path, source: str) -> str:
    """Describes how the files of a source have changed since a corpus was prepared from them.

    Returns '' if they have not changed or no longer exist: a corpus does not need its text.
    """
    before: dict[str, list[int]] = read_json(directory / 'sources.json').get(source, {})
    now = stat_files(source)
    if not now:
        return ''
    changes = [f'{path} is new' for path in now if path not in before]
    changes += [f'{path} was removed' for path in before if path not in now]
    for path in before.keys() & now.keys():
        if before[path][0] != now[path][0]:
            changes.append(f'{path} had {before[path][0]:,} bytes and now has {now[path][0]:,}')
        elif before[path][1] != now[path][1]:
            changes.append(f'{path} was modified')
    others = f' and {len(changes) - 3} more' if len(changes) > 3 else ''
    return ', '.join(sorted(changes)[:3]) + others
