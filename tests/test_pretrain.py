"""A run by its commands: whole, killed, continued, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BY_THE_CLOCK = ('tokens_per_second', 'input_wait_fraction', 'mfu')
WORDS = [f'w{chr(97 + i)}{chr(97 + j)}' for i in range(20) for j in range(20)]


def write_text(path: Path, num_documents: int = 60, seed: int = 0) -> None:
    """Documents that each keep to a topic of 20 of the 400 words."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(num_documents):
        topic = rng.choice(WORDS, 20)
        documents.append('\n'.join(' '.join(rng.choice(topic, rng.integers(5, 12))) + '.' for _ in range(12)))
    path.write_text('\n\n'.join(documents) + '\n')


def bert_jax(*arguments: object, devices: int = 1, check: int | None = 0) -> subprocess.CompletedProcess:
    """Runs a command; with `check`, the exit status that it must have."""
    done = subprocess.run(_command(arguments), env=_environment(devices), capture_output=True, text=True, timeout=300)
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def _command(arguments: tuple) -> list[str]:
    return [sys.executable, '-m', 'bert_jax', *map(str, arguments)]


def _environment(devices: int = 1) -> dict[str, str]:
    flags = f'--xla_force_host_platform_device_count={devices}'
    return os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)}


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> list[str]:
    """The flags of a small run whose corpus is prepared."""
    directory = tmp_path_factory.mktemp('run')
    write_text(directory / 'text.txt')
    flags = [f'--config={ROOT}/configs/demo.py']
    values = {
        'data.source': f'text:{directory}/text.txt',
        'data.corpus': directory / 'corpus',
        'data.validation_fraction': 0.2,
        'data.sequence_length': 32,
        'tokenizer.vocab_size': 500,
        'model.hidden_size': 32,
        'model.intermediate_size': 64,
        'model.dropout_rate': 0.1,
        'train.steps': 60,
        'train.global_batch_size': 16,
        'train.log_every': 5,
        'train.checkpoint_every': 10,
        'train.evaluate_every': 30,
        'optimizer.warmup_steps': 10,
    }
    flags += [f'--config.{name}={value}' for name, value in values.items()]
    summary = json.loads(bert_jax('prepare', *flags, '--json').stdout)
    assert summary['documents'] == 60 and summary['sentences'] == 720 and summary['unknown_rate'] == 0
    return flags


@pytest.fixture(scope='module')
def finished(settings: list[str], tmp_path_factory) -> Path:
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    outcome = json.loads(bert_jax('train', *settings, f'--workdir={workdir}', '--json').stdout)
    assert outcome['finished'] and outcome['step'] == 60 and outcome['resumed_from'] is None
    return workdir


def _metrics(workdir: Path) -> dict[int, dict[str, float]]:
    """By step, without what depends on the clock."""
    found: dict[int, dict[str, float]] = {}
    for line in (workdir / 'metrics.jsonl').read_text().splitlines():
        values = json.loads(line)
        step = values.pop('step')
        values = {name: value for name, value in values.items() if name not in BY_THE_CLOCK}
        assert not found.get(step, {}).keys() & values.keys(), f'step {step} appears twice'
        found.setdefault(step, {}).update(values)
    return found


@pytest.mark.parametrize('kill_after', [12, 37])
def test_a_killed_run_ends_as_an_uninterrupted_one_bit_for_bit(
    settings: list[str], finished: Path, tmp_path: Path, kill_after: int
) -> None:
    workdir = tmp_path / 'run'
    command = _command(('train', *settings, f'--workdir={workdir}'))
    process = subprocess.Popen(command, env=_environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics, deadline = workdir / 'metrics.jsonl', time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count('\n') < kill_after // 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    outcome = json.loads(bert_jax('train', *settings, f'--workdir={workdir}', '--json').stdout)
    assert outcome['finished']
    assert _metrics(workdir) == _metrics(finished)
    assert (workdir / 'examples.jsonl').read_bytes() == (finished / 'examples.jsonl').read_bytes()
    history = [json.loads(line) for line in (workdir / 'history.jsonl').read_text().splitlines()]
    started, again = ('start', 0), ('start', outcome['resumed_from'] or 0)
    assert [(line['event'], line['step']) for line in history] == [started, again, ('finish', 60)]
    assert history[1]['devices'] == 1 and history[1]['mesh'] == {'data': 1, 'fsdp': 1, 'tensor': 1}


def _interrupted(settings: list[str], workdir: Path, line: str, number: int) -> tuple[int, str]:
    """Starts a run and sends it a signal when it says a line that begins so; its exit status and what it says then."""
    command = _command(('train', *settings, f'--workdir={workdir}'))
    process = subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True)
    with process.stderr as lines:
        next(said for said in lines if said.startswith(line))
        process.send_signal(number)
        rest = lines.read()
    return process.wait(timeout=60), rest


def test_a_signal_saves_and_exits_75_and_the_same_command_goes_on(
    settings: list[str], finished: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / 'run'
    status, said = _interrupted(settings, workdir, 'step 5/', signal.SIGTERM)
    assert status == 75 and 'saved step' in said
    outcome = json.loads(bert_jax('train', f'--workdir={workdir}', '--json').stdout)
    assert outcome['finished'] and outcome['resumed_from'] >= 5
    ours, theirs = _metrics(workdir), _metrics(finished)
    assert {step: ours[step] for step in theirs} == theirs


def test_a_signal_before_the_first_step_ends_at_once_with_75_and_frees_the_workdir(
    settings: list[str], tmp_path: Path
) -> None:
    status, said = _interrupted(settings, tmp_path, 'Compiling', signal.SIGINT)
    assert status == 75 and 'SIGINT: stopped before a step was made' in said
    [lease] = (tmp_path / '.lease').iterdir()
    assert json.loads(lease.read_text())['released'] and not list(tmp_path.glob('checkpoints/*'))


def test_a_second_run_in_the_same_workdir_is_refused_and_a_second_signal_ends_the_first_at_once(
    settings: list[str], tmp_path: Path
) -> None:
    command = _command(('train', *settings, '--config.train.steps=100000', f'--workdir={tmp_path}'))
    holder = subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True)
    try:
        with holder.stderr as lines:
            next(line for line in lines if line.startswith('Devices'))
            done = bert_jax('train', *settings, f'--workdir={tmp_path}', check=2)
            assert f'is in use by process {holder.pid} on ' in done.stderr
            next(line for line in lines if line.startswith('step 5/'))
            holder.send_signal(signal.SIGINT)
            next(line for line in lines if line.startswith('SIGINT: finishing'))
            holder.send_signal(signal.SIGINT)
            assert 'SIGINT again: ended at once' in lines.read()
        assert holder.wait(timeout=60) == 130
    finally:
        holder.kill()
        holder.wait()


def test_a_finished_run_says_so_and_does_nothing(settings: list[str], finished: Path) -> None:
    before = (finished / 'metrics.jsonl').read_bytes()
    done = bert_jax('train', *settings, f'--workdir={finished}')
    assert 'finished' in done.stderr
    assert (finished / 'metrics.jsonl').read_bytes() == before


def test_eight_devices_go_on_where_one_stopped(settings: list[str], finished: Path, tmp_path: Path) -> None:
    workdir = tmp_path / 'run'
    mesh = ['--config.mesh.fsdp=2', '--config.mesh.tensor=2', '--config.train.microbatches=2']
    bert_jax('train', *settings, *mesh, f'--workdir={workdir}', devices=8)
    ours, theirs = _metrics(workdir), _metrics(finished)
    for step in theirs:
        assert ours[step]['loss'] == pytest.approx(theirs[step]['loss'], rel=1e-5)


def test_another_config_in_the_same_workdir_is_refused_field_by_field(settings: list[str], finished: Path) -> None:
    other = ['--config.train.seed=7', '--config.model.num_layers=3']
    done = bert_jax('train', *settings, *other, f'--workdir={finished}', check=2)
    assert 'train.seed (0 there, 7 asked)' in done.stderr and 'model.num_layers (2 there, 3 asked)' in done.stderr
    assert 'Traceback' not in done.stderr


def test_evaluate_export_and_fill_mask_agree(finished: Path, tmp_path: Path) -> None:
    result = json.loads(bert_jax('evaluate', f'--workdir={finished}', '--json').stdout)
    assert result['step'] == 60
    assert 0 < result['mlm_loss'] < np.log(500)  # better than knowing nothing
    assert 0 < result['most_frequent_accuracy'] < 0.5
    export = tmp_path / 'export'
    bert_jax('export', f'--workdir={finished}', f'--output={export}')
    proof = json.loads((export / 'proof.json').read_text())
    assert proof['largest_difference'] <= 1e-4
    text = 'waa [MASK] wab.'
    answers = [
        json.loads(bert_jax('fill-mask', f'--model={directory}', '--json', text).stdout)['results']
        for directory in (finished, export)
    ]
    assert [filler['token'] for filler in answers[0][0]] == [filler['token'] for filler in answers[1][0]]
    transformers = pytest.importorskip('transformers')
    torch = pytest.importorskip('torch')
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    model = transformers.AutoModelForMaskedLM.from_pretrained(export).eval()
    encoded = tokenizer(text, return_tensors='pt')
    with torch.no_grad():
        logits = model(**encoded).logits[0]
    best = logits[encoded['input_ids'][0] == tokenizer.mask_token_id][0].softmax(-1).topk(5)
    assert tokenizer.convert_ids_to_tokens(best.indices) == [filler['token'] for filler in answers[0][0]]
    np.testing.assert_allclose(best.values, [filler['score'] for filler in answers[0][0]], atol=1e-4)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['trian'], 'did you mean train?'),
        (['train', '--workdri=x'], 'did you mean --workdir?'),
        (['train', '--workdir=no/such'], 'config.json'),
        (['prepare'], '--config'),
        (['prepare', '--config=no/such.py'], 'no/such.py'),
        (['train', '--config=configs/demo.py', '--workdir=x', '--config.train.stepz=3'], 'config.train.steps'),
        (['train', '--config=configs/demo.py', '--workdir=x', '--config.train.steps=many'], 'train.steps'),
        (['train', '--config=configs/bert.py:huge', '--workdir=x'], 'huge'),
        (['train', '--config=configs/demo.py', '--workdir=x', '--config.data.corpus=no/such'], 'no/such'),
        (['fill-mask', '--model=no/such', 'a [MASK]'], 'no/such'),
        (['evaluate'], '--workdir'),
        (['report'], '--workdir'),
    ],
)
def test_bad_input_exits_2_with_the_mend_and_writes_nothing(arguments: list[str], words: str, tmp_path: Path) -> None:
    found = [argument.replace('configs/', f'{ROOT}/configs/') for argument in arguments]
    done = subprocess.run(
        _command(tuple(found)), env=_environment(), capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'change, words',
    [
        ({'train.global_batch_size': 12}, 'for example 8 or 16'),
        ({'mesh.tensor': 4}, 'one of 1, 2'),
        ({'mesh.data': 3}, 'there are 8 devices'),
    ],
)
def test_what_the_mesh_cannot_do_is_told_with_what_it_can(
    settings: list[str], tmp_path: Path, change: dict, words: str
) -> None:
    overrides = [f'--config.{name}={value}' for name, value in change.items()]
    done = bert_jax('train', *settings, *overrides, f'--workdir={tmp_path}/run', devices=8, check=2)
    assert words in done.stderr and not (tmp_path / 'run').exists()


def test_help_is_quick_and_gives_an_example() -> None:
    start = time.monotonic()
    done = bert_jax('train', '--help')
    assert time.monotonic() - start < 3
    assert 'Example: python -m bert_jax train' in done.stdout
