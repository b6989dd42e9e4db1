"""The configs of runs: what differs between them, or from the defaults."""

import collections
import dataclasses
import html
import json
from typing import Any

from bert_jax.report.html import swatch
from bert_jax.report.runs import Run

_MISSING = object()


def flatten(values: Any, prefix: str = '') -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}; an empty group is a value."""
    if not isinstance(values, dict) or not values:
        return {prefix[:-1]: values} if prefix else {}
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f'{prefix}{name}.')
    return flat


def defaults(run: Run) -> dict[str, Any]:
    """What every field of a run's kind of config is where nothing is said, flat."""
    from bert_jax.config import Config
    from bert_jax.config.finetuning import FinetuneConfig

    kind = FinetuneConfig if run.is_finetune else Config
    return flatten(json.loads(json.dumps(dataclasses.asdict(kind()))))


def differing(runs: list[Run]) -> dict[str, list[Any]]:
    """Fields of the config in which runs differ, with each run's value; None where one has no such field."""
    flat = [flatten(run.document['config']) for run in runs]
    return {path: [settings.get(path) for settings in flat] for path in _paths(flat) if not _is_same(path, flat)}


def show_settings(runs: list[Run]) -> str:
    """The config, fingerprint and versions, as HTML; what differs comes first."""
    configs = [flatten(run.document['config']) for run in runs]
    beside = [flatten({part: run.document.get(part) or {} for part in ('fingerprint', 'versions')}) for run in runs]
    if len(runs) == 1:
        own, default = configs[0], defaults(runs[0])
        rows = {path: [own.get(path, _MISSING), default.get(path, _MISSING)] for path in own}
        rows = {path: values for path, values in rows.items() if values[0] != values[1]}
        rest = {path: value for path, value in own.items() if path not in rows} | beside[0]
        head, title, same = ['this run', 'default'], 'What differs from the defaults', 'What is as by default'
    else:
        flat = [config | more for config, more in zip(configs, beside, strict=True)]
        rows = {path: [s.get(path, _MISSING) for s in flat] for path in _paths(flat) if not _is_same(path, flat)}
        rest = {path: flat[0][path] for path in _paths(flat) if path not in rows}
        head = [swatch(i) + html.escape(run.name) for i, run in enumerate(runs)]
        title, same = 'What differs', 'What is the same'
    nothing = '<p>Nothing.</p>'
    return (
        f'<h2>{title}</h2>{_table(head, rows) if rows else nothing}'
        f'<details><summary>{same} ({len(rest)} settings)</summary>{_sections(rest)}</details>'
    )


def _paths(flat: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(path for settings in flat for path in settings))


def _is_same(path: str, flat: list[dict[str, Any]]) -> bool:
    return all(settings.get(path, _MISSING) == flat[0].get(path, _MISSING) for settings in flat)


def _table(head: list[str], rows: dict[str, list[Any]]) -> str:
    names = ''.join(f'<th>{name}</th>' for name in head)
    body = ''.join(
        f'<tr><th>{html.escape(path)}</th>' + ''.join(f'<td>{_setting(value)}</td>' for value in values) + '</tr>'
        for path, values in rows.items()
    )
    table = f'<table class="settings"><thead><tr><th></th>{names}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _sections(settings: dict[str, Any]) -> str:
    """Settings as small tables, one for each group of the config."""
    groups = collections.defaultdict(list)
    for path, value in settings.items():
        group, _, name = path.partition('.')
        groups[group if name else 'run'].append((name or group, value))
    tables = []
    for group, rows in groups.items():
        body = ''.join(f'<tr><th>{_breakable(name)}</th><td>{_setting(value)}</td></tr>' for name, value in rows)
        tables.append(f'<div><h3>{html.escape(group)}</h3><table>{body}</table></div>')
    return f'<div class="sections">{"".join(tables)}</div>'


def _breakable(name: str) -> str:
    return html.escape(name).replace('_', '_<wbr>')


def _setting(value: Any) -> str:
    if value is _MISSING:
        return '–'
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return html.escape(text) if text else '<i>empty</i>'
