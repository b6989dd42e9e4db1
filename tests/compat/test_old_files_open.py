"""Files that commit 79a7f4e wrote open with today's code, through the command line and `load_pretrained` alone.

`generate.py` made the archive, and says what is in it. Losses are compared with those that the old code reached without
a stop. They are the same on one machine, and on another to within the rounding of float32.
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
    """The old code ran on one device, and programs for one compile faster than for the eight simulated here."""
    devices = jax.devices()[:1]
    with mock.patch.object(jax, 'devices', lambda *_: devices):
        yield


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    """The directory that the archive is unpacked into; commands run there, for its paths are relative."""
    directory = tmp_path_factory.mktemp('old')
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter='data')
    return directory


def run(place: Path, *arguments: str) -> str:
    """What a command prints, which must succeed; ml_collections looks for overrides in `sys.argv`."""
    printed, argv = io.StringIO(), ['bert_jax', *arguments]
    with mock.patch.object(sys, 'argv', argv), contextlib.chdir(place), contextlib.redirect_stdout(printed):
        status = main(argv)
    assert status == 0, printed.getvalue()
    return printed.getvalue()


def run_json(place: Path, *arguments: str) -> dict[str, Any]:
    return json.loads(run(place, *arguments, '--json'))


def recorded(place: Path, name: str) -> dict[str, Any]:
    return json.loads((place / 'recorded' / f'{name}.json').read_text())


def copy(place: Path, name: str, suffix: str) -> str:
    """A copy of a directory of the archive, to be changed by one test."""
    shutil.copytree(place / name, place / f'{name}-{suffix}')
    return f'{name}-{suffix}'


def files_below(directory: Path) -> dict[Path, tuple[bytes, int]]:
    """The content and the time of modification of every file."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob('*') if path.is_file()}


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """The metrics of each step, without those that depend on the speed of the machine and the zeros of no pairs."""
    found: dict[int, dict[str, float]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        values = {name: value for name, value in line.items() if name not in (*CLOCK, 'step')}
        of_nothing = [name for name in values if name.endswith('nsp_loss') and values[name] == 0]
        for name in of_nothing:  # which the old code logged
            del values[name], values[name.replace('loss', 'accuracy')]
        assert not found.get(line['step'], {}).keys() & values.keys(), f'step {line["step"]} is there twice'
        found.setdefault(line['step'], {}).update(values)
    return found


def assert_close(found: Any, expected: Any) -> None:
    """Compares JSON values: numbers to within rounding, keys that the old code did not know left out."""
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys()
        for name, value in expected.items():
            assert_close(found[name], value)
    elif isinstance(expected, list):
        for one, value in zip(found, expected, strict=True):
            assert_close(one, value)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    else:
        assert found == expected


# --- Config files and corpora. ---


def test_old_config_files_import_what_they_name(place: Path) -> None:
    pretrain = runpy.run_path(str(place / 'pretrain.py'))['get_config']('phases')
    assert (pretrain.optimizer.name, pretrain.model.hidden_size, pretrain.phases[1]['steps']) == ('muon', 8, 3)
    finetune = runpy.run_path(str(place / 'finetune.py'))['get_config']()
    assert (finetune.task.kind, finetune.optimizer.bias_correction, finetune.train.epochs) == (
        'classification',
        False,
        3.0,
    )
    sweep = runpy.run_path(str(place / 'sweep.py'))['get_config']()
    assert sweep['base'] == 'pretrain.py:sweep'


@pytest.mark.parametrize('name', ['run', 'sentencepiece'])
def test_an_old_corpus_is_reused_and_not_rewritten(place: Path, name: str) -> None:
    corpus = place / CORPORA[name]
    before = files_below(corpus)
    summary = run_json(place, 'prepare', f'--config=pretrain.py:{name}', '--workers=1')
    assert summary['reused'] and summary['documents'] == 60
    problems = run_json(place, 'doctor', f'--config=pretrain.py:{name}', f'--workdir={name}')['problems']
    assert not [problem for problem in problems if problem['level'] == 'error']
    assert files_below(corpus) == before


# --- Pretraining workdirs. ---


@pytest.mark.parametrize('name', RUNS)
def test_an_old_run_resumes_and_ends_with_the_recorded_losses(place: Path, name: str) -> None:
    workdir, corpus = copy(place, name, 'resumed'), files_below(place / CORPORA[name])
    outcome = run_json(place, 'train', f'--workdir={workdir}')
    assert outcome['finished'] and outcome['resumed_from'] == STOPPED_AT[name]
    expected = read_metrics(place / 'recorded' / f'metrics-{name}.jsonl')
    assert outcome['step'] == max(expected) > STOPPED_AT[name]
    found = read_metrics(place / workdir / 'metrics.jsonl')
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert values.keys() <= found[step].keys(), step
        exact = {metric: value for metric, value in values.items() if 'accuracy' not in metric}
        assert {metric: found[step][metric] for metric in exact} == pytest.approx(exact, rel=1e-4, abs=1e-7), step
    assert files_below(place / CORPORA[name]) == corpus  # its plans included


@pytest.mark.parametrize('name', RUNS)
def test_an_old_run_evaluates_to_the_recorded_figures(place: Path, name: str) -> None:
    found = run_json(place, 'evaluate', f'--workdir={name}', '--sample=16')
    assert found['step'] == STOPPED_AT[name]
    assert_close(found, recorded(place, f'evaluate-{name}'))


@pytest.mark.parametrize('model', ['run', 'sentencepiece', 'export'])
def test_an_old_model_fills_masks_as_recorded(place: Path, model: str) -> None:
    found = run_json(place, 'fill-mask', f'--model={model}', '--top_k=60', TEXT)['results']
    expected = recorded(place, f'fill-mask-{model.replace("export", "run")}')['results']
    assert len(found) == len(expected) == 2
    for fillers, known in zip(found, expected, strict=True):
        scores = {filler['token']: filler['score'] for filler in fillers}
        best = {filler['token']: filler['score'] for filler in known[:50]}  # the last ones of 60 may be others
        assert {token: scores[token] for token in best} == pytest.approx(best, rel=1e-4)


def test_reports_of_old_workdirs_tell_their_losses(place: Path) -> None:
    workdirs = [copy(place, name, 'reported') for name in ('run', 'phases', 'finetuned')]
    printed = run(place, 'report', f'--workdir={workdirs[0]}')
    assert f'{recorded(place, "evaluate-run")["mlm_loss"]:.3f}' in printed
    written = run_json(place, 'report', *(f'--workdir={workdir}' for workdir in workdirs))
    html = (place / written['report']).read_text('utf-8')
    assert all(workdir in html for workdir in workdirs)


# --- Exports. ---


def test_an_old_export_and_its_workdir_are_the_same_model(place: Path) -> None:
    texts = (place / 'lines.txt').read_text('utf-8').splitlines()
    exported, trained = (bert_jax.load_pretrained(str(place / name)) for name in ('export', 'run'))
    assert (trained.step, exported.tokenizer.hash) == (STOPPED_AT['run'], trained.tokenizer.hash)
    one, other = exported.encode(texts), trained.encode(texts)
    assert one.input_ids == other.input_ids
    for vectors, same in zip(one.token_vectors, other.token_vectors, strict=True):
        np.testing.assert_allclose(vectors, same, rtol=1e-5, atol=1e-6)
    fillers, same = (model.fill_mask(TEXT, top_k=20) for model in (exported, trained))
    assert [[filler.token for filler in slot] for slot in fillers] == [
        [filler.token for filler in slot] for slot in same
    ]


def test_an_old_export_embeds_lines_as_recorded(place: Path) -> None:
    run(place, 'embed', '--model=export', '--input=lines.txt', '--output=vectors.npy')
    found, expected = (np.load(path) for path in (place / 'vectors.npy', place / 'recorded' / 'vectors.npy'))
    assert found.shape == expected.shape == (3, 8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('workdir, old', [('run', 'export'), ('finetuned', 'finetuned-export')])
def test_exporting_an_old_workdir_again_gives_the_same_tensors(place: Path, workdir: str, old: str) -> None:
    again = copy(place, old, 'again')  # `export` replaces an export, old ones too
    proof = run_json(place, 'export', f'--workdir={workdir}', f'--output={again}')
    assert proof['step'] == json.loads((place / old / 'proof.json').read_text())['step']
    expected = load_file(place / old / 'model.safetensors')
    found = load_file(place / again / 'model.safetensors')
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    for name in ('config.json', 'tokenizer.json', 'vocab.txt'):
        assert (place / again / name).read_text('utf-8') == (place / old / name).read_text('utf-8')


# --- Fine-tunes. ---


def test_an_old_finished_finetune_is_not_trained_again(place: Path) -> None:
    workdir = copy(place, 'finetuned', 'finished')
    before = {path: path.read_bytes() for path in (place / workdir).rglob('seed-*/*') if path.is_file()}
    summary = run_json(place, 'finetune', f'--workdir={workdir}')
    assert_close(summary['metrics'], json.loads((place / 'finetuned' / 'results.json').read_text())['metrics'])
    assert summary['finished'] and len(summary['seeds']) == 2
    assert {path: path.read_bytes() for path in before} == before


def test_an_old_finetune_evaluates_to_the_recorded_figures(place: Path) -> None:
    assert_close(run_json(place, 'evaluate', '--workdir=finetuned'), recorded(place, 'evaluate-finetuned'))


@pytest.mark.slow
def test_an_old_stopped_finetune_ends_as_the_uninterrupted_one(place: Path) -> None:
    workdir = copy(place, 'finetuned-stopped', 'resumed')
    summary = run_json(place, 'finetune', '--config=finetune.py', '--seeds=2', f'--workdir={workdir}')
    assert summary['finished'] and [seed['resumed_from'] for seed in summary['seeds']] == [1, None]
    assert_close(summary['metrics'], json.loads((place / 'finetuned' / 'results.json').read_text())['metrics'])
    for seed in ('seed-0', 'seed-1'):
        old, new = place / 'finetuned' / seed, place / workdir / seed
        found, expected = read_metrics(new / 'metrics.jsonl'), read_metrics(old / 'metrics.jsonl')
        losses = {step: values['loss'] for step, values in expected.items() if 'loss' in values}
        assert {step: found[step]['loss'] for step in losses} == pytest.approx(losses, rel=1e-4)
        names = sorted(path.name for path in old.glob('predictions-*'))
        assert len(names) == 2
        for name in names:
            said, known = ([json.loads(line) for line in (one / name).read_text().splitlines()] for one in (new, old))
            assert [line['prediction'] for line in said] == [line['prediction'] for line in known]
            for one, other in zip(said, known, strict=True):
                assert one['probabilities'] == pytest.approx(other['probabilities'], rel=1e-3)


# --- Sweeps. ---


def test_an_old_sweep_shows_its_table_again(place: Path) -> None:
    printed = run(place, 'sweep', '--config=sweep.py', '--workdir=sweep', '--jobs=0')
    expected = recorded(place, 'sweep')['runs']
    assert len(expected) == 2 and all(f'{one["final_mlm_loss"]:.3f}' in printed for one in expected)
    found = run_json(place, 'sweep', '--config=sweep.py', '--workdir=sweep', '--jobs=0')['runs']
    for one, known in zip(found, expected, strict=True):
        same = ('name', 'status', 'rank', 'step', 'final_mlm_loss', 'nsp_accuracy')
        assert {name: one[name] for name in same} == {name: known[name] for name in same}
