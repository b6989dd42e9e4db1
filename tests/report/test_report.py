"""The report shows what runs logged, needs no network, and names damaged files."""

import json
import re
from pathlib import Path

import pytest

from bert_jax import report
from bert_jax.errors import BadInput
from tests.support.pages import read_page, write_lines, write_run


def test_report_shows_metrics_with_their_baselines(tmp_path):
    path = report.write_report([write_run(tmp_path / 'a')])
    assert path == tmp_path / 'a' / 'report.html'
    page = read_page(path)
    cells = ' '.join(page.text)
    for value in ('6.25', '6.125', '6.875', '23.4%', '5.7%', '61.0%', '50.0%', '4,321', '3.1%', '200', 'abc123'):
        assert value in cells
    assert sum(tag == 'svg' for tag, _ in page.elements) == 6
    assert sorted(p.name for p in (tmp_path / 'a').iterdir() if 'report' in p.name) == ['report.html']


def test_report_needs_no_network_and_its_ids_are_unique(tmp_path):
    path = report.write_report([write_run(tmp_path / 'a')])
    page = read_page(path)
    assert not any(tag in ('script', 'link', 'img', 'iframe') for tag, _ in page.elements)
    references = [value for _, attributes in page.elements for key, value in attributes.items() if key.endswith('href')]
    references += re.findall(r'url\(([^)]*)\)', path.read_text())
    ids = [attributes['id'] for _, attributes in page.elements if 'id' in attributes]
    assert {reference.removeprefix('#') for reference in references} <= set(ids)
    assert len(ids) == len(set(ids))
    assert '#0a0' not in path.read_text()  # no placeholder colour is left


def test_report_of_the_same_run_has_the_same_bytes(tmp_path):
    workdir = write_run(tmp_path / 'a')
    first = report.write_report([workdir]).read_bytes()
    assert report.write_report([workdir]).read_bytes() == first


def test_settings_in_which_runs_differ_come_first(tmp_path):
    a = write_run(tmp_path / 'slow', config={'optimizer': {'peak_learning_rate': 0.0001, 'b1': 0.9}})
    b = write_run(tmp_path / 'fast', config={'optimizer': {'peak_learning_rate': 0.0007, 'b1': 0.9}}, evaluation=False)
    path = report.write_report([a, b])
    assert path.parent == tmp_path / 'slow'
    assert not (tmp_path / 'fast' / 'report.html').exists()
    text = ' '.join(read_page(path).text)
    differing, same = text[text.index('Settings that differ') :].split('Settings that are the same')
    assert all(value in differing for value in ('peak_learning_rate', '0.0007', '0.0001', 'slow', 'fast'))
    assert 'b1' in same and 'peak_learning_rate' not in same


def test_metrics_of_any_name_are_reported(tmp_path):
    odd = ['a\\qb', '${\\1^', '%s{0}{{x}}</svg><u>', '_', ' ' + 'x' * 3000, '\x1b[31m\u202e\0']
    names = [f'{kind}{name}' for name, kind in zip(odd, ['probe/', 'validation/', ''] * 3, strict=False)]
    for config in (None, {'task': {}}):
        workdir = write_run(tmp_path / ('finetune' if config else 'pretrain'), config=config)
        line = json.dumps({'step': 1, 'loss': 2.0} | dict.fromkeys(names, 0.5))
        Path(workdir, 'metrics.jsonl').write_text(line + '\n')
        page = read_page(report.write_report([workdir]))
        assert any('a\\qb' in text for text in page.text) and not any(tag == 'u' for tag, _ in page.elements)
        assert 'a\\qb' in report.summarize([workdir])


def test_runs_with_equal_names_are_named_by_their_paths(tmp_path):
    a, b = write_run(tmp_path / 'x' / 'run'), write_run(tmp_path / 'y' / 'run')
    text = ' '.join(read_page(report.write_report([a, b])).text)
    assert a in text and b in text


def test_report_without_pairs_has_no_nsp_metrics(tmp_path):
    path = report.write_report([write_run(tmp_path / 'a', config={'data': {'pairing': 'none'}})])
    assert 'NSP' not in ' '.join(read_page(path).text)


def test_placeholder_values_in_old_files_are_left_out(tmp_path):
    lines = [{'step': step, 'loss': 4.0, 'mlm_loss': 4.0, 'mlm_accuracy': 0.1, 'mfu': 1.31} for step in (10, 20)]
    lines = [line | {'nsp_loss': 0.0, 'nsp_accuracy': 0.0, 'validation/nsp_loss': 0.0} for line in lines]
    lines = [line | {'validation/nsp_accuracy': 0.0} for line in lines]
    old = tmp_path / 'old'
    write_run(old)
    write_lines(old / 'metrics.jsonl', *lines)
    (old / 'evaluation.json').write_text(json.dumps({'step': 20, 'mlm_loss': 0.0, 'mlm_accuracy': 0.0}))
    alone = ' '.join(read_page(report.write_report([str(old)])).text)
    assert 'MLM loss' in alone and 'NSP' not in alone and 'MFU' not in alone and '0.000' not in alone
    with_pairs = report.read_run(write_run(tmp_path / 'pairs'), 'pairs')
    without = report.read_run(str(old), 'old')
    for key in ('nsp_loss', 'nsp_accuracy', 'validation/nsp_loss'):
        assert without.curve(key) == ([], []) and without.last(key) is None
    assert with_pairs.curve('nsp_loss')[0] and 'mfu' in with_pairs.metrics[0]


def test_sampled_metric_appears_with_the_size_of_its_sample(tmp_path):
    workdir = write_run(tmp_path / 'a')
    path = tmp_path / 'a' / 'evaluation.json'
    sampled = {'masked_word_nats_per_character': 1.446, 'words_sample': 's', 'windows': 512}
    path.write_text(json.dumps(json.loads(path.read_text()) | sampled))
    assert '1.446, on 512 text windows' in report.summarize([workdir])
    assert '512 text windows' in ' '.join(read_page(report.write_report([workdir])).text)


def test_losses_by_row_length_are_reported(tmp_path):
    workdir = write_run(tmp_path / 'a', config={'train': {'fixed_evaluation': True}})
    path = tmp_path / 'a' / 'evaluation.json'
    evaluation = json.loads(path.read_text())
    path.write_text(json.dumps(evaluation | {'mlm_loss_by_length': {'128': 2.625, '2048': 2.375}}))
    assert 'MLM loss, rows of 2,048    2.375' in report.summarize([workdir])
    cells = ' '.join(read_page(report.write_report([workdir])).text)
    assert '2.625' in cells and '2.375' in cells and 'always masks 15% of the tokens' in cells
    path.write_text(json.dumps(evaluation | {'mlm_loss_by_length': {'128': 2.625}}))
    assert '2.625' not in report.summarize([workdir])  # the loss at the only length is that of all rows
    for damaged in ([1.0], {'many': 1.0}, {'128': 'low'}):
        path.write_text(json.dumps(evaluation | {'mlm_loss_by_length': damaged}))
        with pytest.raises(BadInput, match='evaluation.json'):
            report.write_report([workdir])


@pytest.mark.parametrize('tail', ['{"step": 210, "mlm_lo', '{"step": 210, "name": "\u00e9'])
def test_incomplete_last_line_is_skipped(tmp_path, tail):
    workdir = write_run(tmp_path / 'a')
    metrics = tmp_path / 'a' / 'metrics.jsonl'
    metrics.write_bytes(metrics.read_bytes() + tail.encode()[:-1])
    assert 'step 200 of 200' in report.summarize([workdir])
    assert report.write_report([workdir]).exists()


@pytest.mark.parametrize(
    'line', ['{"step": 210, "mlm_lo', '[1]', '{"mlm_loss": 1.0}', '{"step": "210"}', '{"step": 210, "mlm_loss": "1"}']
)
def test_damaged_line_is_named(tmp_path, line):
    workdir = write_run(tmp_path / 'a', num_lines=5, tail=line + '\n')
    with pytest.raises(BadInput) as caught:
        report.write_report([workdir])
    assert caught.value.where == f'{workdir}/metrics.jsonl:6'
    assert not (tmp_path / 'a' / 'report.html').exists()


@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl'])
def test_missing_file_is_named(tmp_path, name):
    workdir = write_run(tmp_path / 'a')
    (tmp_path / 'a' / name).unlink()
    with pytest.raises(BadInput, match=re.escape(f'{workdir}/{name}')):
        report.write_report([workdir])


@pytest.mark.parametrize(('name', 'content'), [('config.json', '{'), ('config.json', '{}'), ('evaluation.json', '[]')])
def test_damaged_file_is_named(tmp_path, name, content):
    workdir = write_run(tmp_path / 'a')
    (tmp_path / 'a' / name).write_text(content)
    with pytest.raises(BadInput, match=re.escape(f'{workdir}/{name}')):
        report.summarize([workdir])


def test_run_without_a_logged_step_is_rejected(tmp_path):
    with pytest.raises(BadInput, match='no complete line'):
        report.write_report([write_run(tmp_path / 'a', num_lines=0)])


def test_diverged_run_is_reported(tmp_path):
    tail = '{"step": 210, "mlm_loss": NaN, "grad_norm": Infinity}\n{"step": 220, "mlm_loss": null}\n'
    workdir = write_run(tmp_path / 'a', tail=tail)
    assert 'nan' in ' '.join(read_page(report.write_report([workdir])).text)
    assert '!' in report.summarize([workdir])


def test_page_of_a_long_run_is_small(tmp_path):
    path = report.write_report([write_run(tmp_path / 'a', num_lines=5000)])
    assert len(path.read_bytes()) < 1_000_000


def test_summary_shows_a_falling_loss_curve(tmp_path):
    summary = report.summarize([write_run(tmp_path / 'a')])
    assert '█' in summary and '▁' in summary and summary.index('█') < summary.index('▁')
    for value in ('8.15', '6.25', '6.125', '6.875', '23.4%'):
        assert value in summary
    assert len(summary.splitlines()) < 9


def test_events_are_listed_and_counted(tmp_path):
    workdir = write_run(
        tmp_path / 'a', tail='{"step": 210, "skipped_updates": 0}\n{"step": 220, "skipped_updates": 3}\n'
    )
    hardware = {'devices': 8, 'device_kind': 'TPU v4', 'platform': 'tpu', 'hosts': 2, 'processes': 2}
    hardware |= {'mesh': {'data': 8}, 'versions': {'jax': '9.9'}}
    write_lines(
        tmp_path / 'a' / 'history.jsonl',
        {'event': 'start', 'step': 0, 'lost_steps': 0} | hardware,
        {'event': 'back', 'step': 40, 'from': 57, 'why': 'not finite'},
        {'event': 'start', 'step': 100, 'lost_steps': 15} | hardware | {'devices': 16},
        {'event': 'start', 'step': 100, 'lost_steps': 0} | hardware,
    )
    with (tmp_path / 'a' / 'history.jsonl').open('a') as file:
        file.write('{"event": "st\n')  # incomplete, as after a kill
    summary = report.summarize([workdir])
    assert 'restarted 2 times, rolled back once, 32 logged steps repeated, 3 updates skipped' in summary
    text = ' '.join(read_page(report.write_report([workdir])).text)
    for expected in (
        '8 × TPU v4 (tpu) · 2 hosts',
        '16 × TPU v4',
        'from step 100',
        'rolled back: not finite',
        '▲ restarted',
    ):
        assert expected in text


def test_example_sentences_appear_at_five_steps(tmp_path):
    workdir = write_run(tmp_path / 'a')
    lines = [
        {'step': s, 'examples': [{'text': 'a [MASK] b', 'fillers': [[{'token': f'<t{s}>', 'score': 0.25}]]}]}
        for s in range(1, 101)
    ]
    write_lines(tmp_path / 'a' / 'examples.jsonl', *lines)
    text = ' '.join(read_page(report.write_report([workdir])).text)
    assert re.findall(r'<t(\d+)> 25%', text) == ['1', '26', '51', '75', '100']
    assert 'a [MASK] b  <t100> 25%' in report.summarize([workdir])
    write_lines(tmp_path / 'a' / 'examples.jsonl', {'step': 1, 'examples': [{'text': 1, 'fillers': []}]})
    with pytest.raises(BadInput, match=r'examples\.jsonl:1'):
        report.summarize([workdir])


def test_settings_that_differ_from_the_defaults_come_first(tmp_path):
    config = {'train': {'steps': 200, 'seed': 0}, 'optimizer': {'b1': 0.9, 'b2': 0.98}}
    text = ' '.join(read_page(report.write_report([write_run(tmp_path / 'a', config=config)])).text)
    differing, other = text[text.index('Settings that differ from the defaults') :].split('All other settings')
    assert all(value in differing for value in ('optimizer.b2', '0.98', '0.999'))
    assert 'optimizer.b1' not in differing and 'abc123' in other


def test_probes_have_charts_and_final_metrics(tmp_path):
    tail = ''.join(f'{{"step": {step}, "probe/tree depth": 0.{step}}}\n' for step in (201, 202))
    workdir = write_run(tmp_path / 'a', tail=tail)
    page = read_page(report.write_report([workdir]))
    assert sum(tag == 'svg' for tag, _ in page.elements) == 7
    assert 'Probe: tree depth' in ' '.join(page.text) and '20.2%' in report.summarize([workdir])


def test_fine_tune_shows_its_seeds_and_their_medians(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.9, 0.7)):
        seed_workdir = tmp_path / 'sst2' / f'seed-{seed}'
        seed_workdir.mkdir(parents=True)
        config_json = {
            'config': {'task': {'kind': 'classification'}, 'train': {'seed': seed}},
            'fingerprint': {'train.steps': 20},
        }
        (seed_workdir / 'config.json').write_text(json.dumps(config_json))
        write_lines(
            seed_workdir / 'metrics.jsonl',
            {'step': 10, 'loss': 0.7},
            {'step': 20, 'loss': 0.3, 'validation/f1': accuracy},
        )
        metrics = {'f1': accuracy, 'best_f1_thresh': -3.25}
        if accuracy != 0.9:  # this seed has not finished
            (seed_workdir / 'results.json').write_text(json.dumps({'seed': seed, 'metrics': metrics}))
    workdir = str(tmp_path / 'sst2')
    page = read_page(report.write_report([workdir]))
    text = ' '.join(page.text)
    assert '-3.250' in text and '-325' not in text  # a score threshold is not a fraction
    assert '2 of 3 seeds finished' in text and '60.0%' in text and 'sst2/seed-2' in text and 'MLM' not in text
    assert sum(tag == 'svg' for tag, _ in page.elements) == 2  # the loss, and f1
    assert 'step 20 of 20' in report.summarize([workdir]) and '60.0%   50.0% to 70.0%' in report.summarize([workdir])


def test_phases_are_tabulated_and_their_ends_are_drawn(tmp_path):
    phases = [{'steps': 100, 'sequence_length': 64}, {'steps': 60, 'masking': {'rate': 0.05}}, {'steps': 900}]
    config = {'train': {'steps': 1060}, 'data': {'pairing': 'nsp'}, 'optimizer': {'warmup_steps': 0}}
    plain, phased = (
        write_run(tmp_path / 'plain', config=config),
        write_run(tmp_path / 'a', config=config | {'phases': phases}),
    )
    page = read_page(report.write_report([phased]))
    text = ' '.join(page.text)
    assert 'Phases' in text and 'next phase' in text and '256 x 64' in text and '5%' in text
    lines = {}
    for name, workdir in (('plain', plain), ('phased', phased)):
        page = read_page(report.write_report([workdir]))
        lines[name] = [attributes['id'] for _, attributes in page.elements if '-line2d_' in attributes.get('id', '')]
    # Each of the six charts shows both ends, at steps 100 and 160; the last one is not reached at step 200.
    assert len(lines['phased']) == len(lines['plain']) + 6 * 2


def test_report_leaves_out_phases_that_this_version_cannot_read(tmp_path):
    config = {'data': {'pairing': 'nsp'}, 'phases': [{'steps': 3, 'of_a_later_version': 1}]}
    assert 'Phases' not in ' '.join(read_page(report.write_report([write_run(tmp_path / 'a', config=config)])).text)
