"""A sweep file -> the runs that it names, each checked before any is started.

    base       a config file, with :VARIANT where it has them, as --config takes it
    fixed      {field: value} of every run
    runs       [{field: value, …}, …]: explicit runs; each may have a 'name', which then stands for its fields
    grid       {field: [values]}: every combination, the first field varying slowest
    draws      {field: {'low': …, 'high': …, 'log': False} or {'choices': […]}}: num_draws points, the same for one seed
    num_draws  how many
    seed       of the draws (0)

The runs are every explicit run x every point of the grid x every draw; what is not given counts as one empty point. A
field stands in one place only.
"""

import copy
import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import os
import re
import sys
from typing import Any

import numpy as np

from bert_jax.config import Config, Data, Tokenizer, field_names, resolve, unknown_field
from bert_jax.config.fields import content_of
from bert_jax.errors import BadInput
from bert_jax.files import json_digest

_KEYS = {'base': str, 'fixed': dict, 'runs': list, 'grid': dict, 'draws': dict, 'num_draws': int, 'seed': int}
_LONGEST_NAME = 120  # characters; file systems take 255 bytes
_DIGITS = 3  # significant, of a drawn number: it can be typed
_MISSES = 100  # repeated draws in a row, after which there are no others


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a sweep.

    Attributes:
      name: of its directory.  label: of the explicit run it comes from, '' without a name.
      point: {field: value} that it has of the grid and the draws.  varied: these and the explicit run's.
      overrides: all that differs from the base config: varied, fixed, and a corpus of its own.
    """

    name: str
    label: str
    base: str
    point: dict[str, Any]
    varied: dict[str, Any]
    overrides: dict[str, Any]
    config: Config
    workdir: str

    @property
    def flags(self) -> list[str]:
        """--config and its overrides, as every command takes them."""
        return [f'--config={self.base}'] + [f'--config.{field}={_text(v)}' for field, v in self.overrides.items()]

    @property
    def train_command(self) -> list[str]:
        """The command that gets this run done."""
        return [sys.executable, '-m', 'bert_jax', 'train', *self.flags, f'--workdir={self.workdir}']


def expand(sweep: dict[str, Any], base_values: dict[str, Any], workdir: str) -> tuple[Run, ...]:
    """The runs of a sweep.

    Args:
      sweep: what the sweep file's get_config() returned; see the top of this module.
      base_values: the values of its base config.

    Raises:
      BadInput: for a field that does not exist or stands in two places, a value that the config refuses (with the name
        of the run), two runs that are the same, or no run at all.
    """
    check_keys(sweep)
    fixed, grid, draws = (sweep.get(key, {}) for key in ('fixed', 'grid', 'draws'))
    explicit = sweep.get('runs', [{}])
    _check_explicit(explicit)
    labels = [run.get('name', '') for run in explicit]
    explicit = [{field: value for field, value in run.items() if field != 'name'} for run in explicit]
    _check_fields(fixed=fixed, runs={field: None for run in explicit for field in run}, grid=grid, draws=draws)
    for field, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise BadInput(f"grid['{field}']", f'is {values!r}', 'a list of values')
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    points = [point | drawn for point in points for drawn in _draw(sweep)]
    common = _with_overrides(base_values, fixed, sweep['base'])
    usual_corpus = _corpus_settings(common)
    short = short_names([field for place in (*explicit, grid, draws) for field in place])
    runs, seen = [], {}
    for label, own in zip(labels, explicit, strict=True):
        for point in points:
            varied = own | point
            name = _name(label, point if label else varied, short)
            values = _with_overrides(common, varied, sweep['base'])
            overrides = fixed | varied
            if (settings := _corpus_settings(values)) != usual_corpus and 'data.corpus' not in varied:
                overrides['data.corpus'] = f'{values["data"]["corpus"]}-{json_digest(settings)[:8]}'
                values = _with_overrides(values, {'data.corpus': overrides['data.corpus']}, sweep['base'])
            config = _resolve(name, values)
            if config in seen:
                raise BadInput(f'runs {seen[config]} and {name}', 'are the same', 'runs that differ', 'drop one')
            seen[config] = name
            runs.append(Run(name, label, sweep['base'], point, varied, overrides, config, os.path.join(workdir, name)))
    _check_corpora(runs)
    return tuple(runs)


# --- What a sweep file may say. ---


def check_keys(sweep: dict[str, Any]) -> None:
    """Raises BadInput unless a sweep file has the parts that it must have, and no others."""
    for key, value in sweep.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            fix = f'did you mean {near[0]}?' if near else ''
            raise BadInput(f'sweep.{key}', 'is not a part of a sweep', ', '.join(_KEYS), fix)
        kinds = (list, tuple) if _KEYS[key] is list else _KEYS[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise BadInput(f'sweep.{key}', f'is {value!r}', f'of type {_KEYS[key].__name__}')
    if not sweep.get('base'):
        raise BadInput('sweep.base', 'is missing', 'a config file', "base='configs/demo.py'")
    if sweep.get('seed', 0) < 0:
        raise BadInput('sweep.seed', f'is {sweep["seed"]}', 'at least 0')
    if bool(sweep.get('draws')) != (sweep.get('num_draws', 0) > 0):
        found = f'is {sweep.get("num_draws", 0)}, and draws has {len(sweep.get("draws", {}))} fields'
        raise BadInput('sweep.num_draws', found, 'draws with num_draws of at least 1, or neither')
    if not any(sweep.get(key) for key in ('runs', 'grid', 'draws')):
        raise BadInput('sweep', 'names no run', 'runs, grid or draws')


def _check_explicit(runs: list[Any]) -> None:
    for number, run in enumerate(runs):
        if not isinstance(run, dict):
            raise BadInput(f'runs[{number}]', f'is {run!r}', '{field: value, …}')
        if ('name' in run) != ('name' in runs[0]):
            raise BadInput(f'runs[{number}]', f'has {"a" if "name" in run else "no"} name', 'a name in all or in none')
        name = run.get('name')
        if name is not None and not (isinstance(name, str) and re.fullmatch(r'[\w.+-]+', name)):
            raise BadInput(f'runs[{number}].name', f'is {name!r}', 'letters, digits, and any of _ . + -')
    names = [run['name'] for run in runs if 'name' in run]
    if len(set(names)) < len(names):
        raise BadInput('runs', f'has the names {", ".join(names)}', 'each name once')


def _check_fields(**places: dict[str, Any]) -> None:
    known, found = set(field_names()), {}
    for place, fields in places.items():
        for field in fields:
            if field not in known:
                error = unknown_field(field)
                raise BadInput(f'{place}: {error.where}', error.found, error.expected, error.fix)
            if field in found:
                raise BadInput(f'config.{field}', f'stands in {found[field]} and in {place}', 'one place')
            found[field] = place


def _check_corpora(runs: list[Run]) -> None:
    made: dict[str, Run] = {}
    for run in runs:
        other = made.setdefault(run.config.data.corpus, run)
        if _corpus_settings(dataclasses.asdict(other.config)) != _corpus_settings(dataclasses.asdict(run.config)):
            raise BadInput(
                f'runs {other.name} and {run.name}',
                f'want different text or tokenizers in one corpus, {run.config.data.corpus}',
                'a data.corpus for each, or none in the sweep: then each gets its own',
            )


# --- Draws. ---


def _draw(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """num_draws different points; more of them begin with the same ones."""
    draws, count = sweep.get('draws', {}), sweep.get('num_draws', 0)
    if not draws:
        return [{}]
    generators = {
        field: np.random.default_rng([sweep.get('seed', 0), int(hashlib.sha256(field.encode()).hexdigest()[:8], 16)])
        for field in draws
    }
    for field, ranges in draws.items():
        _check_range(f"draws['{field}']", ranges)
    points, misses = [], 0
    while len(points) < count:
        point = {field: _draw_one(generators[field], ranges) for field, ranges in draws.items()}
        misses = misses + 1 if point in points else 0
        if misses > _MISSES:
            raise BadInput('sweep.num_draws', f'is {count}', f'at most {len(points)}: there are no more to draw')
        if not misses:
            points.append(point)
    return points


def _check_range(where: str, ranges: Any) -> None:
    expected = "{'low': …, 'high': …, 'log': False} or {'choices': […]}"
    if not isinstance(ranges, dict) or set(ranges) not in ({'low', 'high'}, {'low', 'high', 'log'}, {'choices'}):
        raise BadInput(where, f'is {ranges!r}', expected)
    if 'choices' in ranges:
        if not isinstance(ranges['choices'], list | tuple) or not ranges['choices']:
            raise BadInput(where, f'has the choices {ranges["choices"]!r}', 'a list of values')
        return
    low, high, log = ranges['low'], ranges['high'], ranges.get('log', False)
    if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)) or low >= high:
        raise BadInput(where, f'goes from {low!r} to {high!r}', 'numbers, low below high')
    if not isinstance(log, bool) or (log and low <= 0):
        raise BadInput(where, f'is {ranges!r}', 'log as True or False; with log=True a low above 0')


def _draw_one(generator: np.random.Generator, ranges: dict[str, Any]) -> Any:
    """Whole numbers between whole ends (both may occur), else a float of few digits."""
    if 'choices' in ranges:
        return ranges['choices'][generator.integers(len(ranges['choices']))]
    low, high = ranges['low'], ranges['high']
    is_whole = isinstance(low, int) and isinstance(high, int)
    if is_whole:  # each whole number stands for the stretch of length 1 around it
        low, high = low - 0.5, high + 0.5
    if ranges.get('log'):
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    rounded = round(value) if is_whole else float(f'{value:.{_DIGITS}g}')
    return min(max(rounded, ranges['low']), ranges['high'])


# --- Configs and names. ---


def _with_overrides(values: dict[str, Any], overrides: dict[str, Any], base: str) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    for field, value in overrides.items():
        *sections, leaf = field.split('.')
        section = changed
        for name in sections:
            section = section.get(name, {})
        if leaf not in section:
            fix = 'start from bert_jax.config.bert(SIZE): it has every field'
            raise BadInput(base, f'has no {field}, so it cannot be overridden', '', fix)
        section[leaf] = value
    return changed


def _resolve(run: str, values: dict[str, Any]) -> Config:
    try:
        return resolve(values)
    except BadInput as error:
        raise BadInput(f'run {run}: {error.where}', error.found, error.expected, error.fix) from error


def _corpus_settings(values: dict[str, Any]) -> dict[str, Any]:
    """What the contents of a run's corpus depend on, of the values of its config."""
    settled = dataclasses.asdict(Tokenizer().for_training())
    tokenizer = {name: settled.get(name) if value is None else value for name, value in values['tokenizer'].items()}
    return content_of(Data, values['data']) | {'tokenizer': tokenizer}


def short_names(fields: list[str]) -> dict[str, str]:
    """Each field without its section (masking.rate), or with it where two would be the same."""
    short = {field: field.partition('.')[2] or field for field in fields}
    names = list(short.values())
    return {field: name if names.count(name) == 1 else field for field, name in short.items()}


def _name(label: str, varied: dict[str, Any], short: dict[str, str]) -> str:
    """The name of a run's directory; what a file name cannot hold is replaced, and a digest added."""
    parts = [label] if label else []
    plain = ','.join([*parts, *(f'{short[field]}={_text(value)}' for field, value in varied.items())]) or 'base'
    name = re.sub(r'[^\w.,=+-]', '_', plain)[:_LONGEST_NAME]
    return name if name == plain else f'{name}-{json_digest(plain)[:6]}'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, bool) else repr(value)
