"""Compares the configs of runs with each other, or the config of one run with the defaults."""

import collections
import dataclasses
import json
from typing import Any

from bert_jax.report.html import Column, Group, Table, Text
from bert_jax.report.logged import LoggedRun

_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Section:
    """Settings of one section of the config."""

    name: str
    table: Table


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of runs as they appear on a page.

    Attributes:
      several_runs: whether runs are compared with each other; otherwise one run is compared with the defaults.
      differing: the settings that differ; None if none do.
      same: the other settings, the fingerprint and the versions.
      num_same: how many those are.
    """

    several_runs: bool
    differing: Table | None
    same: list[Section]
    num_same: int


def flatten(values: Any, prefix: str = '') -> dict[str, Any]:
    """Flattens {'a': {'b': 1}} to {'a.b': 1}; an empty dict counts as a value."""
    if not isinstance(values, dict) or not values:
        return {prefix[:-1]: values} if prefix else {}
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f'{prefix}{name}.')
    return flat


def _without_unset(value: Any) -> Any:
    """Leaves out the fields of phases that have the values of the run."""
    if isinstance(value, list):
        return [_without_unset(item) for item in value]
    if isinstance(value, dict):
        inner = {name: _without_unset(item) for name, item in value.items() if item is not None}
        return {name: item for name, item in inner.items() if item != {}}
    return value


def _defaults(run: LoggedRun) -> dict[str, Any]:
    """Returns the flattened default config of a pretraining run or a fine-tune."""
    from bert_jax.config import Config
    from bert_jax.config.finetuning import FinetuneConfig

    default = FinetuneConfig() if run.is_finetune else Config()
    return flatten(json.loads(json.dumps(dataclasses.asdict(default))))


def differing_fields(runs: list[LoggedRun]) -> dict[str, list[Any]]:
    """Returns the config fields in which runs differ, with the value in each run; None if a run lacks the field."""
    flat = [flatten(run.config_json['config']) for run in runs]
    return {path: [settings.get(path) for settings in flat] for path in _paths(flat) if not _is_same(path, flat)}


def settings_of(runs: list[LoggedRun]) -> Settings:
    """Compares configs, fingerprints and versions: settings that differ, and the others by section."""
    configs = [flatten(run.config_json['config']) for run in runs]
    others = [flatten({part: run.config_json.get(part) or {} for part in ('fingerprint', 'versions')}) for run in runs]
    if len(runs) == 1:
        config, default = configs[0], _defaults(runs[0])
        rows = {path: [config[path], default.get(path, _MISSING)] for path in config}
        rows = {path: values for path, values in rows.items() if values[0] != values[1]}
        same = {path: value for path, value in config.items() if path not in rows} | others[0]
        headings = [Text('this run'), Text('default')]
    else:
        flat = [config | other for config, other in zip(configs, others, strict=True)]
        rows = {path: [s.get(path, _MISSING) for s in flat] for path in _paths(flat) if not _is_same(path, flat)}
        same = {path: flat[0][path] for path in _paths(flat) if path not in rows}
        headings = [Text(run.name, series=i) for i, run in enumerate(runs)]
    columns = [Column('', 'label'), *(Column(heading, 'text') for heading in headings)]
    cells = [[path, *map(_format, values)] for path, values in rows.items()]
    table = Table(columns, [Group(cells)], style='settings') if rows else None
    return Settings(len(runs) > 1, table, _sections(same), len(same))


def _paths(flat: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(path for settings in flat for path in settings))


def _is_same(path: str, flat: list[dict[str, Any]]) -> bool:
    return all(settings.get(path, _MISSING) == flat[0].get(path, _MISSING) for settings in flat)


def _sections(settings: dict[str, Any]) -> list[Section]:
    """Groups settings by section of the config; those outside any section belong to the section `run`."""
    sections = collections.defaultdict(list)
    for path, value in settings.items():
        section, _, name = path.partition('.')
        sections[section if name else 'run'].append([name or section, _format(value)])
    columns = [Column('', 'label'), Column('', 'text')]
    return [Section(name, Table(columns, [Group(rows)])) for name, rows in sections.items()]


def _format(value: Any) -> Text:
    if value is _MISSING:
        return Text('–')
    text = value if isinstance(value, str) else json.dumps(_without_unset(value), ensure_ascii=False)
    return Text(text, note='' if text else 'empty')
