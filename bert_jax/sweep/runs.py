"""Expands a sweep file into its runs, and checks all of them before any is started.

    base       a config file, as --config takes it; with :VARIANT if it has variants
    fixed      {field: value} for every run
    runs       [{field: value, …}, …]: explicit runs; each may have a 'name', which replaces its fields in the table
    grid       {field: [values]}: every combination, the first field varying slowest
    draws      {field: {'low': …, 'high': …, 'log': False} or {'choices': […]}}: num_draws random points
    num_draws  number of random points
    seed       of the random points (default: 0)

The runs are every explicit run x every point of the grid x every random point; an omitted part counts as one empty
point. A field may appear in only one part.
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

from bert_jax.config import FAMILIES, Config, Data, Tokenizer, field_names, resolve, unknown_field
from bert_jax.config.fields import content_of
from bert_jax.errors import BadInput
from bert_jax.files import json_digest

_KEYS = {'base': str, 'fixed': dict, 'runs': list, 'grid': dict, 'draws': dict, 'num_draws': int, 'seed': int}
_MAX_NAME_LENGTH = 120  # characters; file systems allow 255 bytes
_NUM_DIGITS = 3  # significant digits of a drawn number, so that it is easy to type
_MAX_REPEATS = 100  # repeated draws in a row, after which all points count as drawn


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a sweep.

    Attributes:
      name: name of its directory.
      label: name of the explicit run that it comes from, or ''.
      point: {field: value} from the grid and the draws.
      varied: `point` and the fields of the explicit run.
      overrides: everything that differs from the base config: `varied`, fixed fields, and possibly a separate corpus.
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
        """--config and its overrides, which every command accepts."""
        return [f'--config={self.base}'] + [f'--config.{field}={_text(v)}' for field, v in self.overrides.items()]

    @property
    def train_command(self) -> list[str]:
        """The command that trains this run."""
        return [sys.executable, '-m', 'bert_jax', 'train', *self.flags, f'--workdir={self.workdir}']


def expand(sweep: dict[str, Any], base_values: dict[str, Any], workdir: str) -> tuple[Run, ...]:
    """Returns the runs of a sweep.

    Args:
      sweep: what the sweep file's get_config() returned; see the top of this module.
      base_values: the values of its base config.

    Raises:
      BadInput: if a field does not exist or appears in two parts, if a value is invalid (with the name of the run), if
        two runs are the same, or if there is no run.
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
    short = short_names([field for part in (*explicit, grid, draws) for field in part])
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
                raise BadInput(f'runs {seen[config]} and {name}', 'are the same', 'runs that differ', 'remove one')
            seen[config] = name
            runs.append(Run(name, label, sweep['base'], point, varied, overrides, config, os.path.join(workdir, name)))
    _check_corpora(runs)
    return tuple(runs)


# --- Checks of a sweep file. ---


def check_keys(sweep: dict[str, Any]) -> None:
    """Raises BadInput unless a sweep file has all required parts and no unknown ones."""
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
    for index, run in enumerate(runs):
        if not isinstance(run, dict):
            raise BadInput(f'runs[{index}]', f'is {run!r}', '{field: value, …}')
        if ('name' in run) != ('name' in runs[0]):
            raise BadInput(f'runs[{index}]', f'has {"a" if "name" in run else "no"} name', 'all runs named, or none')
        name = run.get('name')
        if name is not None and not (isinstance(name, str) and re.fullmatch(r'[\w.+-]+', name)):
            raise BadInput(f'runs[{index}].name', f'is {name!r}', 'letters, digits, and any of _ . + -')
    names = [run['name'] for run in runs if 'name' in run]
    if len(set(names)) < len(names):
        raise BadInput('runs', f'has the names {", ".join(names)}', 'each name once')


def _check_fields(**parts: dict[str, Any]) -> None:
    known, seen = {name for family in FAMILIES for name in field_names(family=family)}, {}
    for part, fields in parts.items():
        for field in fields:
            if field not in known:
                error = unknown_field(field)
                raise BadInput(f'{part}: {error.where}', error.found, error.expected, error.fix)
            if field in seen:
                raise BadInput(f'config.{field}', f'appears in {seen[field]} and in {part}', 'only one of them')
            seen[field] = part


def _check_corpora(runs: list[Run]) -> None:
    first_runs: dict[str, Run] = {}
    for run in runs:
        other = first_runs.setdefault(run.config.data.corpus, run)
        if _corpus_settings(dataclasses.asdict(other.config)) != _corpus_settings(dataclasses.asdict(run.config)):
            raise BadInput(
                f'runs {other.name} and {run.name}',
                f'have different text or tokenizers but the same corpus, {run.config.data.corpus}',
                'a separate data.corpus for each, or no data.corpus in the sweep: then each gets its own',
            )


# --- Draws. ---


def _draw(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns num_draws distinct points; a larger num_draws extends the same sequence."""
    draws, count = sweep.get('draws', {}), sweep.get('num_draws', 0)
    if not draws:
        return [{}]
    generators = {
        field: np.random.default_rng([sweep.get('seed', 0), int(hashlib.sha256(field.encode()).hexdigest()[:8], 16)])
        for field in draws
    }
    for field, ranges in draws.items():
        _check_range(f"draws['{field}']", ranges)
    points, num_repeats = [], 0
    while len(points) < count:
        point = {field: _draw_one(generators[field], ranges) for field, ranges in draws.items()}
        num_repeats = num_repeats + 1 if point in points else 0
        if num_repeats > _MAX_REPEATS:
            raise BadInput(
                'sweep.num_draws', f'is {count}', f'at most {len(points)}: there are no more distinct points'
            )
        if not num_repeats:
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
    """Draws an integer if both ends are integers (which are included), otherwise a float with few digits."""
    if 'choices' in ranges:
        return ranges['choices'][generator.integers(len(ranges['choices']))]
    low, high = ranges['low'], ranges['high']
    is_whole = isinstance(low, int) and isinstance(high, int)
    if is_whole:  # each integer represents the interval of length 1 around it
        low, high = low - 0.5, high + 0.5
    if ranges.get('log'):
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    rounded = round(value) if is_whole else float(f'{value:.{_NUM_DIGITS}g}')
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
            fix = 'start from a config of bert_jax.config, such as bert(SIZE), which has every field of its family'
            raise BadInput(base, f'has no {field}, so it cannot be overridden', '', fix)
        section[leaf] = value
    return changed


def _resolve(run: str, values: dict[str, Any]) -> Config:
    try:
        return resolve(values)
    except BadInput as error:
        raise BadInput(f'run {run}: {error.where}', error.found, error.expected, error.fix) from error


def _corpus_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a config that determine the contents of the corpus."""
    defaults = dataclasses.asdict(Tokenizer().for_training())
    tokenizer = {name: defaults.get(name) if value is None else value for name, value in values['tokenizer'].items()}
    return content_of(Data, values['data']) | {'tokenizer': tokenizer}


def short_names(fields: list[str]) -> dict[str, str]:
    """Returns {field: field without its section}, for example masking.rate; with the section if two would be equal."""
    short = {field: field.partition('.')[2] or field for field in fields}
    names = list(short.values())
    return {field: name if names.count(name) == 1 else field for field, name in short.items()}


def _name(label: str, varied: dict[str, Any], short: dict[str, str]) -> str:
    """Returns the name of a run's directory; characters unsafe in file names are replaced, and a digest is added."""
    parts = [label] if label else []
    plain = ','.join([*parts, *(f'{short[field]}={_text(value)}' for field, value in varied.items())]) or 'base'
    name = re.sub(r'[^\w.,=+-]', '_', plain)[:_MAX_NAME_LENGTH]
    return name if name == plain else f'{name}-{json_digest(plain)[:6]}'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, bool) else repr(value)
