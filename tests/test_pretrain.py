"""Runs of the commands: uninterrupted, killed, resumed and rejected."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import run
from tests.support.configs import as_flags, tiny_run
from tests.support.processes import ROOT, Running, bert_jax, command, environment
from tests.support.runs import metrics
from tests.support.texts import write_text
from tests.support.watched import open_sockets

MASKED = 'waa [MASK] wab.'


@pytest.fixture(scope='module')
def directory(tmp_path_factory) -> Path:
    """Returns a directory with text.txt."""
    directory = tmp_path_factory.mktemp('run')
    write_text(directory / 'text.txt')
    return directory


@pytest.fixture(scope='module')
def watched(directory: Path) -> dict:
    """Returns what a process reported about itself after preparing and training a run on one device."""
    flags, workdir = _flags(directory), f'--workdir={directory}/finished'
    commands = [['prepare', *flags], ['train', *flags, workdir]]
    return _watched(commands)


@pytest.fixture(scope='module')
def finished(watched: dict, directory: Path) -> Path:
    """Returns the workdir of an uninterrupted run on one device."""
    return directory / 'finished'


@pytest.fixture(scope='module')
def settings(watched: dict, directory: Path) -> list[str]:
    """Returns the flags of that run, whose corpus is prepared."""
    return _flags(directory)


def _flags(directory: Path) -> list[str]:
    changes = {
        'model__num_layers': 2,
        'model__dropout_rate': 0.1,
        'train__steps': 60,
        'train__log_every': 5,
        'train__checkpoint_every': 10,
        'train__evaluate_every': 30,
        'optimizer__name': 'muon',
        'optimizer__warmup_steps': 10,
    }
    return as_flags(tiny_run(directory, **changes))


def _watched(commands: list[list[str]]) -> dict:
    program = [sys.executable, '-m', 'tests.support.watched', json.dumps([[*c, '--json'] for c in commands])]
    done = subprocess.run(program, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _train(settings: list[str], workdir: Path) -> Running:
    return Running(command('train', *settings, f'--workdir={workdir}'), environment())


pytestmark = pytest.mark.processes  # most tests need `finished`, which runs in a process


def test_single_process_opens_no_socket_and_imports_little(watched: dict) -> None:
    after_prepare, after_train = watched['loaded']
    assert watched['sockets'] == [] and after_train == after_prepare
    assert {*after_prepare} <= {'matplotlib', 'pandas'}  # which draw the report of the corpus
    prepared, trained = map(json.loads, watched['outputs'])
    assert prepared['documents'] == 60 and prepared['sentences'] == 720 and prepared['unknown_rate'] == 0
    assert trained['finished'] and trained['step'] == 60 and trained['resumed_from'] is None


def test_socket_detection_works() -> None:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen()
        assert open_sockets()[0].endswith(f':{listener.getsockname()[1]:04X}')


def test_killed_and_stopped_run_ends_bit_for_bit_as_uninterrupted_one(
    settings: list[str], finished: Path, tmp_path: Path, capsys
) -> None:
    with _train(settings, tmp_path) as running:
        assert running.wait_for('Devices')
        assert run(['train', *settings, f'--workdir={tmp_path}'], tmp_path) == 2
        assert f'is in use by process {running.process.pid} on ' in capsys.readouterr().err
        running.wait_until_logged(tmp_path, num_lines=3)  # some steps after a save
        running.send(signal.SIGKILL)
        running.wait()
    with _train(settings, tmp_path) as running:
        assert running.wait_for('step 25/')
        running.send(signal.SIGTERM)
        assert running.wait() == 75 and 'saved step' in running.text
    outcome = json.loads(bert_jax('train', f'--workdir={tmp_path}', '--json').stdout)
    assert outcome['finished'] and outcome['resumed_from'] >= 25
    ours, theirs = metrics(tmp_path), metrics(finished)
    assert {step: ours[step] for step in theirs} == theirs
    assert ours.keys() - theirs.keys() <= {outcome['resumed_from']}  # a save on a signal logs its step
    assert (tmp_path / 'examples.jsonl').read_bytes() == (finished / 'examples.jsonl').read_bytes()
    history = [json.loads(line) for line in (tmp_path / 'history.jsonl').read_text().splitlines()]
    assert [line['event'] for line in history] == ['start', 'start', 'stop', 'start', 'finish']
    assert history[-2]['step'] == history[2]['step'] == outcome['resumed_from'] and history[-1]['step'] == 60
    assert history[1]['devices'] == 1 and history[1]['mesh'] == {'data': 1, 'fsdp': 1, 'tensor': 1}


def test_signal_before_first_step_exits_75_and_frees_workdir(settings: list[str], tmp_path: Path) -> None:
    with _train(settings, tmp_path) as running:
        assert running.wait_for('Compiling')
        running.send(signal.SIGINT)
        assert running.wait() == 75 and 'SIGINT: stopped before the first step' in running.text
    [lease] = (tmp_path / '.lease').iterdir()
    assert json.loads(lease.read_text())['released'] and not list(tmp_path.glob('checkpoints/*'))


@pytest.mark.slow
def test_second_signal_ends_at_once(settings: list[str], tmp_path: Path) -> None:
    with _train([*settings, '--config.train.steps=100000'], tmp_path) as running:
        assert running.wait_for('step 5/')
        running.send(signal.SIGINT)
        assert running.wait_for('SIGINT: finishing')
        running.send(signal.SIGINT)
        assert running.wait() == 130 and 'SIGINT again: ended at once' in running.text


def test_finished_run_does_nothing_and_says_so(settings: list[str], finished: Path, capsys) -> None:
    before = (finished / 'metrics.jsonl').read_bytes()
    assert run(['train', *settings, f'--workdir={finished}'], finished) == 0
    assert 'finished' in capsys.readouterr().err
    assert (finished / 'metrics.jsonl').read_bytes() == before


@pytest.mark.slow
def test_eight_devices_in_microbatches_have_same_losses(settings: list[str], finished: Path, tmp_path: Path) -> None:
    mesh = ['--config.mesh.fsdp=2', '--config.mesh.tensor=2', '--config.train.microbatches=2']
    assert run(['train', *settings, *mesh, '--config.train.examples=()', f'--workdir={tmp_path}/run'], tmp_path) == 0
    ours, theirs = metrics(tmp_path / 'run'), metrics(finished)
    for step in theirs:
        assert ours[step]['loss'] == pytest.approx(theirs[step]['loss'], rel=1e-5)


def test_changed_config_in_same_workdir_is_rejected_by_field(settings: list[str], finished: Path, capsys) -> None:
    other = ['--config.train.seed=7', '--config.model.num_layers=3']
    assert run(['train', *settings, *other, f'--workdir={finished}'], finished) == 2
    printed = capsys.readouterr().err
    assert (
        'train.seed (workdir: 0, requested: 7)' in printed and 'model.num_layers (workdir: 2, requested: 3)' in printed
    )


@pytest.mark.slow
def test_evaluate_export_and_fill_mask_agree_without_network(finished: Path, directory: Path) -> None:
    workdir, export = f'--workdir={finished}', directory / 'export'
    watched = _watched([
        ['evaluate', workdir, '--sample=16'], ['report', workdir], ['export', workdir, f'--output={export}'],
        *(['fill-mask', f'--model={model}', MASKED] for model in (finished, export)),
    ])  # fmt: skip
    assert watched['sockets'] == [] and watched['loaded'][0] == []
    result, _, proof, *filled = map(json.loads, watched['outputs'])
    assert result['step'] == 60
    assert 0 < result['mlm_loss'] < np.log(500)  # better than a uniform guess
    assert 0 < result['most_frequent_accuracy'] < 0.5
    assert proof['largest_difference'] <= 1e-4
    ours, theirs = (fillers['results'][0] for fillers in filled)
    assert [filler['token'] for filler in ours] == [filler['token'] for filler in theirs]
    transformers = pytest.importorskip('transformers')
    torch = pytest.importorskip('torch')
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory / 'export')
    model = transformers.AutoModelForMaskedLM.from_pretrained(directory / 'export').eval()
    encoded = tokenizer(MASKED, return_tensors='pt')
    with torch.no_grad():
        logits = model(**encoded).logits[0]
    best = logits[encoded['input_ids'][0] == tokenizer.mask_token_id][0].softmax(-1).topk(5)
    assert tokenizer.convert_ids_to_tokens(best.indices) == [filler['token'] for filler in ours]
    np.testing.assert_allclose(best.values, [filler['score'] for filler in ours], atol=1e-4)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['train', '--config=no/such.py', '--workdir=x'], 'no/such.py'),
        (['train', f'--config={ROOT}/configs/demo.py', '--workdir=x', '--config.data.corpus=no/such'], 'no/such'),
    ],
)
def test_process_with_bad_input_exits_2_without_traceback(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = bert_jax(*arguments, check=2, cwd=tmp_path)
    assert words in done.stderr and 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())
