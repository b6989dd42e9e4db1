"""Files written by commit 79a7f4e still work, through the command line and `load_pretrained` only.

`generate.py` made the archive and lists its contents. Losses are compared with those of uninterrupted runs of the old
code: on the same machine they are equal, on others equal up to float32 rounding.
"""

import contextlib
import io
import json
import runpy
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import bert_jax
from bert_jax.__main__ import main

pytestmark = pytest.mark.compiles
ARCHIVE = Path(__file__).parent / 'fixtures-79a7f4e.tar.xz'
STOPPED_AT = {'run': 2, 'phases': 1, 'sentencepiece': 1}
RUNS = ['run', *(pytest.param(name, marks=pytest.mark.slow) for name in STOPPED_AT if name != 'run')]
CORPORA = {'run': 'corpus', 'phases': 'corpus', 'sentencepiece': 'corpus-sentencepiece'}
CLOCK = ('tokens_per_second', 'input_wait_fraction', 'mfu')
TEXT = 'the [MASK] of an [MASK] valley.'


@pytest.fixture(scope='module', autouse=True)
def one_device() -> Iterator[None]:
    """Uses one device, as the old code did; this also compiles faster than eight simulated devices."""
    devices = jax.devices()[:1]
    with mock.patch.object(jax, 'devices', lambda *_: devices):
        yield


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    """Unpacks the archive; commands run in this directory, because paths in the archive are relative."""
    directory = tmp_path_factory.mktemp('old')
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter='data')
    return directory


def run(root: Path, *arguments: str) -> str:
    """Runs a command that must succeed and returns its output; ml_collections reads overrides from `sys.argv`."""
    printed, argv = io.StringIO(), ['bert_jax', *arguments]
    with mock.patch.object(sys, 'argv', argv), contextlib.chdir(root), contextlib.redirect_stdout(printed):
        status = main(argv)
    assert status == 0, printed.getvalue()
    return printed.getvalue()


def run_json(root: Path, *arguments: str) -> dict[str, Any]:
    return json.loads(run(root, *arguments, '--json'))


def recorded(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / 'recorded' / f'{name}.json').read_text())


def copy(root: Path, name: str, suffix: str) -> str:
    """Copies a directory of the archive, so that a test can change it."""
    shutil.copytree(root / name, root / f'{name}-{suffix}')
    return f'{name}-{suffix}'


def files_below(directory: Path) -> dict[Path, tuple[bytes, int]]:
    """Returns the content and modification time of every file."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob('*') if path.is_file()}


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Reads the metrics of each step, except those that depend on speed, and NSP metrics without pairs."""
    metrics: dict[int, dict[str, float]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        values = {name: value for name, value in line.items() if name not in (*CLOCK, 'step')}
        without_pairs = [name for name in values if name.endswith('nsp_loss') and values[name] == 0]
        for name in without_pairs:  # the old code logged zeros
            del values[name], values[name.replace('loss', 'accuracy')]
        assert not metrics.get(line['step'], {}).keys() & values.keys(), f'step {line["step"]} occurs twice'
        metrics.setdefault(line['step'], {}).update(values)
    return metrics


def assert_close(found: Any, expected: Any) -> None:
    """Compares JSON values: numbers up to rounding; keys that the old code did not write are ignored."""
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys()
        for name, value in expected.items():
            assert_close(found[name], value)
    elif isinstance(expected, list):
        for item, expected_item in zip(found, expected, strict=True):
            assert_close(item, expected_item)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    else:
        assert found == expected


# --- Config files and corpora. ---


def test_old_config_files_still_import(root: Path) -> None:
    pretrain = runpy.run_path(str(root / 'pretrain.py'))['get_config']('phases')
    assert (pretrain.optimizer.name, pretrain.model.hidden_size, pretrain.phases[1]['steps']) == ('muon', 8, 3)
    finetune = runpy.run_path(str(root / 'finetune.py'))['get_config']()
    assert (finetune.task.kind, finetune.optimizer.bias_correction, finetune.train.epochs) == (
        'classification',
        False,
        3.0,
    )
    sweep = runpy.run_path(str(root / 'sweep.py'))['get_config']()
    assert sweep['base'] == 'pretrain.py:sweep'


@pytest.mark.parametrize('name', ['run', 'sentencepiece'])
def test_old_corpus_is_reused_unchanged(root: Path, name: str) -> None:
    corpus = root / CORPORA[name]
    before = files_below(corpus)
    summary = run_json(root, 'prepare', f'--config=pretrain.py:{name}', '--workers=1')
    assert summary['reused'] and summary['documents'] == 60
    problems = run_json(root, 'doctor', f'--config=pretrain.py:{name}', f'--workdir={name}')['problems']
    assert not [problem for problem in problems if problem['level'] == 'error']
    after = files_below(corpus)
    assert after.pop(corpus / 'report.html') and after == before  # older versions wrote no report


# --- Pretraining workdirs. ---


@pytest.mark.parametrize('name', RUNS)
def test_old_run_resumes_to_the_recorded_losses(root: Path, name: str) -> None:
    workdir, corpus = copy(root, name, 'resumed'), files_below(root / CORPORA[name])
    outcome = run_json(root, 'train', f'--workdir={workdir}')
    assert outcome['finished'] and outcome['resumed_from'] == STOPPED_AT[name]
    expected = read_metrics(root / 'recorded' / f'metrics-{name}.jsonl')
    assert outcome['step'] == max(expected) > STOPPED_AT[name]
    found = read_metrics(root / workdir / 'metrics.jsonl')
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert values.keys() <= found[step].keys(), step
        exact = {metric: value for metric, value in values.items() if 'accuracy' not in metric}
        assert {metric: found[step][metric] for metric in exact} == pytest.approx(exact, rel=1e-4, abs=1e-7), step
    assert files_below(root / CORPORA[name]) == corpus  # including its plans


@pytest.mark.parametrize('name', RUNS)
def test_old_run_evaluates_to_the_recorded_metrics(root: Path, name: str) -> None:
    found = run_json(root, 'evaluate', f'--workdir={name}', '--sample=16')
    assert found['step'] == STOPPED_AT[name]
    assert_close(found, recorded(root, f'evaluate-{name}'))


@pytest.mark.parametrize('model', ['run', 'sentencepiece', 'export'])
def test_old_model_fills_masks_as_recorded(root: Path, model: str) -> None:
    found = run_json(root, 'fill-mask', f'--model={model}', '--top_k=60', TEXT)['results']
    expected = recorded(root, f'fill-mask-{model.replace("export", "run")}')['results']
    assert len(found) == len(expected) == 2
    for fillers, known in zip(found, expected, strict=True):
        scores = {filler['token']: filler['score'] for filler in fillers}
        best = {filler['token']: filler['score'] for filler in known[:50]}  # the last of 60 may differ
        assert {token: scores[token] for token in best} == pytest.approx(best, rel=1e-4)


def test_reports_of_old_workdirs_show_their_losses(root: Path) -> None:
    workdirs = [copy(root, name, 'reported') for name in ('run', 'phases', 'finetuned')]
    printed = run(root, 'report', f'--workdir={workdirs[0]}')
    assert f'{recorded(root, "evaluate-run")["mlm_loss"]:.3f}' in printed
    written = run_json(root, 'report', *(f'--workdir={workdir}' for workdir in workdirs))
    html = (root / written['report']).read_text('utf-8')
    assert all(workdir in html for workdir in workdirs)


# --- Exports. ---


def test_old_export_matches_its_workdir(root: Path) -> None:
    texts = (root / 'lines.txt').read_text('utf-8').splitlines()
    exported, trained = (bert_jax.load_pretrained(str(root / name)) for name in ('export', 'run'))
    assert (trained.step, exported.tokenizer.hash) == (STOPPED_AT['run'], trained.tokenizer.hash)
    from_export, from_workdir = exported.encode(texts), trained.encode(texts)
    assert from_export.input_ids == from_workdir.input_ids
    for vectors, expected in zip(from_export.token_vectors, from_workdir.token_vectors, strict=True):
        np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    tokens = [
        [[filler.token for filler in fillers] for fillers in model.fill_mask(TEXT, top_k=20)]
        for model in (exported, trained)
    ]
    assert tokens[0] == tokens[1]


def test_old_export_embeds_lines_as_recorded(root: Path) -> None:
    run(root, 'embed', '--model=export', '--input=lines.txt', '--output=vectors.npy')
    found, expected = (np.load(path) for path in (root / 'vectors.npy', root / 'recorded' / 'vectors.npy'))
    assert found.shape == expected.shape == (3, 8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('workdir, old', [('run', 'export'), ('finetuned', 'finetuned-export')])
def test_exporting_an_old_workdir_writes_the_same_tensors(root: Path, workdir: str, old: str) -> None:
    again = copy(root, old, 'again')  # `export` also replaces old exports
    proof = run_json(root, 'export', f'--workdir={workdir}', f'--output={again}')
    assert proof['step'] == json.loads((root / old / 'proof.json').read_text())['step']
    expected = load_file(root / old / 'model.safetensors')
    found = load_file(root / again / 'model.safetensors')
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    assert json.loads((root / again / 'config.json').read_text()) == json.loads(
        (root / old / 'config.json').read_text()
    )
    for name in ('tokenizer.json', 'vocab.txt'):
        assert (root / again / name).read_text('utf-8') == (root / old / name).read_text('utf-8')


# --- Fine-tunes. ---


def test_old_finished_finetune_is_not_retrained(root: Path) -> None:
    workdir = copy(root, 'finetuned', 'finished')
    before = {path: path.read_bytes() for path in (root / workdir).rglob('seed-*/*') if path.is_file()}
    summary = run_json(root, 'finetune', f'--workdir={workdir}')
    assert_close(summary['metrics'], json.loads((root / 'finetuned' / 'results.json').read_text())['metrics'])
    assert summary['finished'] and len(summary['seeds']) == 2
    assert {path: path.read_bytes() for path in before} == before


def test_old_finetune_evaluates_to_the_recorded_metrics(root: Path) -> None:
    assert_close(run_json(root, 'evaluate', '--workdir=finetuned'), recorded(root, 'evaluate-finetuned'))


@pytest.mark.slow
def test_old_stopped_finetune_resumes_to_the_recorded_results(root: Path) -> None:
    workdir = copy(root, 'finetuned-stopped', 'resumed')
    summary = run_json(root, 'finetune', '--config=finetune.py', '--seeds=2', f'--workdir={workdir}')
    assert summary['finished'] and [seed['resumed_from'] for seed in summary['seeds']] == [1, None]
    assert_close(summary['metrics'], json.loads((root / 'finetuned' / 'results.json').read_text())['metrics'])
    for seed in ('seed-0', 'seed-1'):
        old, new = root / 'finetuned' / seed, root / workdir / seed
        found, expected_metrics = read_metrics(new / 'metrics.jsonl'), read_metrics(old / 'metrics.jsonl')
        losses = {step: values['loss'] for step, values in expected_metrics.items() if 'loss' in values}
        assert {step: found[step]['loss'] for step in losses} == pytest.approx(losses, rel=1e-4)
        names = sorted(path.name for path in old.glob('predictions-*'))
        assert len(names) == 2
        for name in names:
            predictions, expected = (
                [json.loads(line) for line in (directory / name).read_text().splitlines()] for directory in (new, old)
            )
            assert [line['prediction'] for line in predictions] == [line['prediction'] for line in expected]
            for line, expected_line in zip(predictions, expected, strict=True):
                assert line['probabilities'] == pytest.approx(expected_line['probabilities'], rel=1e-3)


# --- Sweeps. ---


def test_old_sweep_shows_its_table(root: Path) -> None:
    printed = run(root, 'sweep', '--config=sweep.py', '--workdir=sweep', '--jobs=0')
    expected = recorded(root, 'sweep')['runs']
    assert len(expected) == 2 and all(f'{run_["final_mlm_loss"]:.3f}' in printed for run_ in expected)
    found = run_json(root, 'sweep', '--config=sweep.py', '--workdir=sweep', '--jobs=0')['runs']
    for shown, expected_run in zip(found, expected, strict=True):
        names = ('name', 'status', 'rank', 'step', 'final_mlm_loss', 'nsp_accuracy')
        assert {name: shown[name] for name in names} == {name: expected_run[name] for name in names}
