"""Can an existing corpus be reused for a config?"""

import json
import pathlib
from typing import Any, NamedTuple

from bert_jax import config
from bert_jax.config.fields import content_of
from bert_jax.errors import BadInput
from bert_jax.json_files import read_json
from bert_jax.text.chunks import stat_files
from bert_jax.text.corpus import read_manifest
from bert_jax.text.tokenizer import Tokenizer


def corpus_settings(data: config.Data, tokenizer: config.Tokenizer, given: Tokenizer | None) -> dict[str, Any]:
    """The settings that the contents of a corpus depend on, by their names in the config, as JSON gives them back."""
    settings = {f'data.{name}': value for name, value in content_of(config.Data, vars(data)).items()}
    if given is not None:
        settings['tokenizer.path'] = given.hash
    else:
        content = content_of(config.Tokenizer, vars(tokenizer.for_training()))
        settings |= {f'tokenizer.{name}': value for name, value in content.items()}
    return json.loads(json.dumps(settings))


class WeightedSource(NamedTuple):
    """A source of a corpus; `split` is where its documents go, '' by their hashes."""

    source: str
    weight: float
    split: str


def weighted_sources(data: config.Data) -> list[WeightedSource]:
    """The sources in the order of the corpus. Validation text comes first."""
    split = 'train' if data.validation_source else ''
    train = [WeightedSource(source, weight, split) for source, weight in config.sources(data)]
    return [WeightedSource(data.validation_source, 1.0, 'validation'), *train] if data.validation_source else train


def find_existing(
    directory: pathlib.Path, mixture: list[WeightedSource], settings: dict[str, Any]
) -> dict[str, Any] | None:
    """The manifest of the corpus that is there already; None when there is none.

    Raises:
      BadInput: for a directory that holds something else, or a corpus of other settings or of text that has changed.
    """
    manifest = read_manifest(directory)
    where = f'config.data.corpus={directory}'
    if manifest is None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise BadInput(where, 'is there and is not a corpus', 'a directory to make', 'set another data.corpus')
        return None
    theirs = manifest['settings']
    fix = f'set another data.corpus, or rm -r {directory}'
    differing = [name for name in sorted({*theirs, *settings}) if theirs.get(name) != settings.get(name)]
    if differing:
        found, expected = (
            '; '.join(f'{name}={side[name]!r}' for name in differing if name in side) for side in (theirs, settings)
        )
        raise BadInput(where, f'holds a corpus made with {found or "other settings"}', expected, fix)
    for source, _, _ in mixture:
        if changes := changes_since(directory, source):
            found = f'holds a corpus of text that has changed since: {changes}'
            raise BadInput(where, found, 'the text that it was made of', fix)
    return manifest


def changes_since(directory: pathlib.Path, source: str) -> str:
    """How the files of a source differ from those that a corpus was made of, in words; '' when they do not, or are not
    there any more (a corpus does not need its text)."""
    before: dict[str, list[int]] = read_json(directory / 'sources.json').get(source, {})
    now = stat_files(source)
    if not now:
        return ''
    told = [f'{path} is new' for path in now if path not in before]
    told += [f'{path} is gone' for path in before if path not in now]
    for path in before.keys() & now.keys():
        if before[path][0] != now[path][0]:
            told.append(f'{path} had {before[path][0]:,} bytes and has {now[path][0]:,}')
        elif before[path][1] != now[path][1]:
            told.append(f'{path} was written to')
    return ', '.join(sorted(told)[:3]) + (f' and {len(told) - 3} more' if len(told) > 3 else '')
