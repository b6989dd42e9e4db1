"""Pages escape all text of runs, and templates can only use attributes that their page has."""

import dataclasses
import json
from pathlib import Path

import jinja2
import pytest
from markupsafe import Markup

from bert_jax import report
from bert_jax.config import bert
from bert_jax.report import curves
from bert_jax.report.html import SHARED_PACKAGE, Column, Group, Table, Text, render
from bert_jax.report.svg import Drawing
from bert_jax.sweep.launch import LOG
from bert_jax.sweep.page import write_page
from bert_jax.sweep.results import read_results
from bert_jax.sweep.runs import expand
from tests.support.pages import Page, write_lines, write_run

ATTACK = '\'"><script>alert(1)<b data-attack="">$x$&amp;'
TEMPLATES = [path for package in ('report', 'sweep') for path in Path('bert_jax', package, 'templates').iterdir()]


def _config(workdir: Path, config: dict, **document: dict) -> None:
    (workdir / 'config.json').write_text(json.dumps({'config': config} | document))


def _metrics(workdir: Path, *lines: dict) -> None:
    write_lines(workdir / 'metrics.jsonl', *lines)


def _history(workdir: Path, **start: object) -> None:
    write_lines(workdir / 'history.jsonl', {'event': 'start', 'step': 0} | start)


def _examples(workdir: Path, text: str, token: str) -> None:
    example = {'text': text, 'fillers': [[{'token': token, 'score': 0.5}]]}
    write_lines(workdir / 'examples.jsonl', {'step': 1, 'examples': [example]})


# How text of a run reaches a page: each function writes the attack to a workdir.
WRITERS = {
    'setting': lambda workdir: _config(workdir, {'data': {'source': ATTACK}}),
    'name of a setting': lambda workdir: _config(workdir, {'data': {ATTACK: 1}}),
    'section': lambda workdir: _config(workdir, {ATTACK: {'a': 1}}),
    'fingerprint': lambda workdir: _config(workdir, {}, fingerprint={'model': ATTACK}),
    'version': lambda workdir: _config(workdir, {}, versions={'jax': ATTACK}),
    'probe': lambda workdir: _metrics(workdir, {'step': 1, f'probe/{ATTACK}': 0.5}),
    'event': lambda workdir: write_lines(workdir / 'history.jsonl', {'event': ATTACK, 'step': 0}),
    'reason': lambda workdir: write_lines(workdir / 'history.jsonl', {'event': 'stop', 'step': 0, 'why': ATTACK}),
    'time': lambda workdir: _history(workdir, time=ATTACK),
    'device': lambda workdir: _history(workdir, device_kind=ATTACK),
    'mesh': lambda workdir: _history(workdir, mesh={ATTACK: 8}),
    'sentence': lambda workdir: _examples(workdir, f'a [MASK] {ATTACK}', 'b'),
    'filler': lambda workdir: _examples(workdir, 'a [MASK]', ATTACK),
}


@pytest.fixture(autouse=True)
def empty_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves charts empty, because Matplotlib takes most of the time and draws no text of a run."""
    monkeypatch.setattr(curves, 'draw', lambda key, title, plot: Drawing(title, '0 0 1 1', Markup()))


def check(path: Path) -> None:
    """Asserts that the attack is on the page, but only as text."""
    page = Page(path.read_text())
    assert not any(tag == 'script' or 'data-attack' in attributes for tag, attributes in page.elements)
    assert ATTACK in ''.join(page.text)


@pytest.mark.parametrize('kind', WRITERS)
def test_report_escapes_text_of_a_run(tmp_path: Path, kind: str) -> None:
    a, b = write_run(tmp_path / 'a', num_lines=1), write_run(tmp_path / 'b', num_lines=1)
    WRITERS[kind](tmp_path / 'a')
    check(report.write_report([a]))
    check(report.write_report([a, b]))


def test_report_escapes_names_of_runs_and_metrics(tmp_path: Path) -> None:
    check(report.write_report([write_run(tmp_path / ATTACK, num_lines=1), write_run(tmp_path / 'b', num_lines=1)]))
    seed = tmp_path / 'fine-tune' / 'seed-0'
    seed.mkdir(parents=True)
    _config(seed, {'task': {}})
    _metrics(seed, {'step': 1, 'loss': 0.5, f'validation/{ATTACK}': 0.5})
    (seed / 'results.json').write_text(json.dumps({'metrics': {ATTACK: 0.5}}))
    check(report.write_report([str(tmp_path / 'fine-tune')]))


def test_sweep_page_escapes_text_of_the_sweep(tmp_path: Path) -> None:
    source = {'data.source': f'text:{ATTACK}', 'data.sequence_length': 64}
    runs = expand({'base': f'{ATTACK}.py', 'runs': [{}, source]}, bert('tiny').to_dict(), str(tmp_path))
    for run in runs:
        write_run(Path(run.workdir), num_lines=1)
        _config(Path(run.workdir), {}, fingerprint={'tokenizer': 't', 'corpus': 'c', 'data.a': run.name})
        Path(run.workdir, LOG).write_text(f'{ATTACK} in the log')
    results = read_results(runs, {run.name: 2 for run in runs})
    results = [dataclasses.replace(result, rank=1) for result in results]
    directory = tmp_path / ATTACK
    path = write_page(results, str(directory))
    check(path)
    text = ''.join(Page(path.read_text()).text)
    for expected in (directory.name, f'text:{ATTACK}', f'{ATTACK} in the log', 'python -m bert_jax train'):
        assert expected in text


def test_no_template_disables_escaping() -> None:
    sources = {path: path.read_text() for path in TEMPLATES}
    assert len(sources) >= 5
    for path, source in sources.items():
        assert 'safe' not in source and 'autoescape' not in source, path


def test_template_using_a_missing_attribute_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="no attribute 'title'"):
        render('report.html', Text('not a page'))


def _render_table(monkeypatch: pytest.MonkeyPatch, table: Table) -> str:
    template = jinja2.DictLoader({'t.html': "{% from 'macros.html' import table %}{{ table(page) }}"})
    shared = jinja2.PackageLoader(SHARED_PACKAGE)
    monkeypatch.setattr(jinja2, 'PackageLoader', lambda _: jinja2.ChoiceLoader([template, shared]))
    return render('t.html', table)


def test_table_escapes_headings_groups_cells_and_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = [f'{ATTACK}{i}' for i in range(10)]
    columns = [Column(attacks[0], 'label'), Column(Text(attacks[1], attacks[2], 0), 'number')]
    rows = [[attacks[3], attacks[4]], [Text(attacks[5], attacks[6]), Text(attacks[7], attacks[8], 1)]]
    page = Page(_render_table(monkeypatch, Table(columns, [Group(rows, attacks[9])])))
    assert [text for text in map(str.strip, page.text) if text] == attacks[:3] + [attacks[9]] + attacks[3:9]
    assert {tag for tag, _ in page.elements} <= {
        'div',
        'table',
        'thead',
        'tbody',
        'tr',
        'th',
        'td',
        'span',
        'small',
        'wbr',
    }


def test_long_labels_break_between_parts_but_not_within_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table([Column('', 'label')], [Group([['runs/model.hidden_size=64,rate=0.1']])])
    expected = '<th>runs/<wbr>model.<wbr>hidden_<wbr>size=<wbr>64,<wbr>rate=<wbr>0.1</th>'
    assert expected in _render_table(monkeypatch, table)
