"""A run by its commands: whole, killed, resumed, refused."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import run
from tests.support.configs import as_flags, tiny_run
from tests.support.processes import ROOT, Running, bert_jax, command, environment
from tests.support.runs import metrics
from tests.support.texts import write_text


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> list[str]:
    """The flags of a small run whose corpus is prepared."""
    directory = tmp_path_factory.mktemp('run')
    write_text(directory / 'text.txt')
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
    flags = as_flags(tiny_run(directory, **changes))
    summary = json.loads(bert_jax('prepare', *flags, '--json').stdout)
    assert summary['documents'] == 60 and summary['sentences'] == 720 and summary['unknown_rate'] == 0
    return flags


@pytest.fixture(scope='module')
def finished(settings: list[str], tmp_path_factory) -> Path:
    """The workdir of an uninterrupted run on one device."""
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    outcome = json.loads(bert_jax('train', *settings, f'--workdir={workdir}', '--json').stdout)
    assert outcome['finished'] and outcome['step'] == 60 and outcome['resumed_from'] is None
    return workdir


def _train(settings: list[str], workdir: Path) -> Running:
    return Running(command('train', *settings, f'--workdir={workdir}'), environment())


pytestmark = pytest.mark.processes  # most need `finished`, which is what the command leaves


def test_killed_run_ends_bit_for_bit_as_uninterrupted_one(settings: list[str], finished: Path, tmp_path: Path) -> None:
    with _train(settings, tmp_path) as running:
        running.wait_until_logged(tmp_path, num_lines=5)  # in the middle, some steps after a save
        running.send(signal.SIGKILL)
        running.wait()
    outcome = json.loads(bert_jax('train', *settings, f'--workdir={tmp_path}', '--json').stdout)
    assert outcome['finished']
    assert metrics(tmp_path) == metrics(finished)
    assert (tmp_path / 'examples.jsonl').read_bytes() == (finished / 'examples.jsonl').read_bytes()
    history = [json.loads(line) for line in (tmp_path / 'history.jsonl').read_text().splitlines()]
    started, again = ('start', 0), ('start', outcome['resumed_from'] or 0)
    assert [(line['event'], line['step']) for line in history] == [started, again, ('finish', 60)]
    assert history[1]['devices'] == 1 and history[1]['mesh'] == {'data': 1, 'fsdp': 1, 'tensor': 1}


def test_signal_saves_exits_75_and_same_command_resumes(settings: list[str], finished: Path, tmp_path: Path) -> None:
    with _train(settings, tmp_path) as running:
        assert running.wait_for('step 5/')
        running.send(signal.SIGTERM)
        assert running.wait() == 75 and 'saved step' in running.text
    outcome = json.loads(bert_jax('train', f'--workdir={tmp_path}', '--json').stdout)
    assert outcome['finished'] and outcome['resumed_from'] >= 5
    ours, theirs = metrics(tmp_path), metrics(finished)
    assert {step: ours[step] for step in theirs} == theirs


def test_signal_before_first_step_exits_75_and_frees_workdir(settings: list[str], tmp_path: Path) -> None:
    with _train(settings, tmp_path) as running:
        assert running.wait_for('Compiling')
        running.send(signal.SIGINT)
        assert running.wait() == 75 and 'SIGINT: stopped before the first step' in running.text
    [lease] = (tmp_path / '.lease').iterdir()
    assert json.loads(lease.read_text())['released'] and not list(tmp_path.glob('checkpoints/*'))


def test_second_run_is_refused_and_second_signal_ends_at_once(settings: list[str], tmp_path: Path, capsys) -> None:
    with _train([*settings, '--config.train.steps=100000'], tmp_path) as holder:
        assert holder.wait_for('Devices')
        assert run(['train', *settings, f'--workdir={tmp_path}'], tmp_path) == 2
        assert f'is in use by process {holder.process.pid} on ' in capsys.readouterr().err
        assert holder.wait_for('step 5/')
        holder.send(signal.SIGINT)
        assert holder.wait_for('SIGINT: finishing')
        holder.send(signal.SIGINT)
        assert holder.wait() == 130 and 'SIGINT again: ended at once' in holder.text


def test_finished_run_does_nothing_and_says_so(settings: list[str], finished: Path, capsys) -> None:
    before = (finished / 'metrics.jsonl').read_bytes()
    assert run(['train', *settings, f'--workdir={finished}'], finished) == 0
    assert 'finished' in capsys.readouterr().err
    assert (finished / 'metrics.jsonl').read_bytes() == before


def test_eight_devices_in_microbatches_have_same_losses(settings: list[str], finished: Path, tmp_path: Path) -> None:
    mesh = ['--config.mesh.fsdp=2', '--config.mesh.tensor=2', '--config.train.microbatches=2']
    assert run(['train', *settings, *mesh, '--config.train.examples=()', f'--workdir={tmp_path}/run'], tmp_path) == 0
    ours, theirs = metrics(tmp_path / 'run'), metrics(finished)
    for step in theirs:
        assert ours[step]['loss'] == pytest.approx(theirs[step]['loss'], rel=1e-5)


def test_another_config_in_same_workdir_is_refused_by_field(settings: list[str], finished: Path, capsys) -> None:
    other = ['--config.train.seed=7', '--config.model.num_layers=3']
    assert run(['train', *settings, *other, f'--workdir={finished}'], finished) == 2
    told = capsys.readouterr().err
    assert 'train.seed (0 there, 7 asked)' in told and 'model.num_layers (2 there, 3 asked)' in told


def test_evaluate_export_and_fill_mask_agree(finished: Path, tmp_path: Path, capsys) -> None:
    def output(*arguments: object) -> dict:
        capsys.readouterr()
        assert run([*arguments, '--json'], tmp_path) == 0
        return json.loads(capsys.readouterr().out)

    result = output('evaluate', f'--workdir={finished}')
    assert result['step'] == 60
    assert 0 < result['mlm_loss'] < np.log(500)  # better than knowing nothing
    assert 0 < result['most_frequent_accuracy'] < 0.5
    export = tmp_path / 'export'
    proof = output('export', f'--workdir={finished}', f'--output={export}')
    assert proof['largest_difference'] <= 1e-4
    text = 'waa [MASK] wab.'
    ours, theirs = (output('fill-mask', f'--model={model}', text)['results'][0] for model in (finished, export))
    assert [filler['token'] for filler in ours] == [filler['token'] for filler in theirs]
    transformers = pytest.importorskip('transformers')
    torch = pytest.importorskip('torch')
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    model = transformers.AutoModelForMaskedLM.from_pretrained(export).eval()
    encoded = tokenizer(text, return_tensors='pt')
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
