"""Only comparable losses are ranked; the table and the page say why."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from bert_jax.config import bert
from bert_jax.errors import BadInput
from bert_jax.report import rank
from bert_jax.runtime.lease import Lease
from bert_jax.runtime.stopping import EXIT_RUN_AGAIN
from bert_jax.sweep.launch import LOG, SignalForwarder, run_all, slurm_script, visible_devices
from bert_jax.sweep.page import write_page
from bert_jax.sweep.results import best_commands, comparable_groups, ranking_note, read_results, table
from bert_jax.sweep.runs import expand
from tests.support.pages import read_page

RATE, STEPS = 'optimizer.peak_learning_rate', 100


@pytest.fixture
def make(tmp_path):
    """Returns a function that expands a sweep in tmp_path/sweep."""

    def make(**parts):
        parts = {'base': 'bert.py', 'fixed': {'train.steps': STEPS, 'optimizer.warmup_steps': 10}, **parts}
        return expand(parts, bert('tiny').to_dict(), str(tmp_path / 'sweep'))

    return make


def write_workdir(run, losses, *, step=STEPS, tokenizer='t', corpus='c', fixed=False):
    """Writes the workdir of a run that logged these validation losses, on fixed rows or not; returns the run."""
    directory = Path(run.workdir)
    (directory / 'checkpoints' / str(step)).mkdir(parents=True)
    (directory / 'checkpoints' / str(step) / 'manifest.json').write_text('{}')
    (directory / 'checkpoints' / f'{step + 10}.orbax-checkpoint-tmp').mkdir()
    masking = {'rate': run.config.data.masking.rate}
    fingerprint = {'data.masking': masking, 'data.sequence_length': run.config.data.sequence_length}
    fingerprint |= {'tokenizer': tokenizer, 'corpus': corpus, 'train.seed': run.config.train.seed}
    config = {'data': {'pairing': 'nsp'}, 'train': {'fixed_evaluation': fixed}}
    content = {'config': config, 'fingerprint': fingerprint, 'versions': {}}
    (directory / 'config.json').write_text(json.dumps(content))
    lines = []
    for i, loss in enumerate(losses, start=1):
        logged = {'mlm_loss': 7.0, 'learning_rate': 1e-3, 'tokens_per_second': 1000.0 * i}
        logged |= {'validation/mlm_loss': loss, 'validation/nsp_accuracy': 0.6}
        lines.append(json.dumps({'step': i * step // len(losses)} | logged))
    (directory / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    return run


def ranks(results):
    return {result.run.name: result.rank for result in results}


def test_run_held_by_another_process_is_not_started_again(make):
    runs = make(runs=[{'name': name, 'train.seed': i} for i, name in enumerate('ab')])
    lease = Lease(write_workdir(runs[0], [4.0], step=50).workdir)
    lease.acquire()
    with SignalForwarder() as signals:
        assert list(run_all([runs[0]], 1, signals)) == [(runs[0], EXIT_RUN_AGAIN, 0.0)]
    for statuses in ({}, {'a': EXIT_RUN_AGAIN}):
        first, second = read_results(runs, statuses)
        assert first.status.startswith(f'running, step 50 of {STEPS} saved (process {os.getpid()} on ')
        assert second.status == 'not started' and not first.log_tail
    lease.close()
    assert read_results(runs, {'a': EXIT_RUN_AGAIN})[0].status == f'stopped at step 50 of {STEPS}'


def test_finished_runs_are_ranked_by_their_last_loss(make):
    runs = make(runs=[{'name': name, 'train.seed': i} for i, name in enumerate('abcdef')])
    write_workdir(runs[0], [6.0, 5.5])
    write_workdir(runs[1], [5.0, 5.25])  # lowest, though not its lowest at the end
    write_workdir(runs[2], [4.0], step=50)  # not finished
    write_workdir(runs[3], [5.0, float('nan')])  # diverged
    Path(runs[4].workdir).mkdir()
    Path(runs[4].workdir, LOG).write_text('one\ntwo <b>\n')
    results = read_results(runs, {'e': 1})
    assert ranks(results) == {'a': 2, 'b': 1, 'c': None, 'd': None, 'e': None, 'f': None}
    assert [result.status for result in results] == [
        'finished',
        'finished',
        'step 50 of 100',
        'finished',
        'failed (1)',
        'not started',
    ]
    b = results[1]
    assert (b.final_mlm_loss, b.best_mlm_loss, b.best_step) == (5.25, 5.0, 50)
    assert (b.nsp_accuracy, b.tokens_per_second) == (0.6, 1500.0)
    assert ranking_note(comparable_groups(results)) == ''
    [(_, command)] = best_commands(results)
    assert command.startswith('python -m bert_jax train --config=bert.py') and command.endswith('/sweep/b')
    lines = table(results).splitlines()
    assert len(lines) == 7
    assert lines[1].split() == ['1', 'b', '5.250', '5.000', 'at', 'step', '50', '60.0%', '1,500', 'finished']
    assert json.loads(json.dumps(b.as_json(), allow_nan=False))['rank'] == 1
    assert results[3].as_json()['final_mlm_loss'] is None


@pytest.mark.parametrize(
    'varied, content, named, why',
    [
        ({'data.masking.rate': 0.3}, {}, 'data.masking.rate', 'how hard it is to predict'),
        ({'data.sequence_length': 64}, {}, 'data.sequence_length', 'more context'),
        ({'tokenizer.vocab_size': 500}, {'tokenizer': 'u', 'corpus': 'd'}, 'tokenizer', 'tokens differ'),
        ({'data.validation_fraction': 0.1}, {'corpus': 'd'}, 'validation text', 'different text'),
        ({'train.evaluate_rows': 8}, {}, 'train.evaluate_rows', 'different text'),
    ],
)
def test_losses_of_different_tasks_are_ranked_separately_with_a_reason(make, varied, content, named, why):
    runs = make(runs=[{}, varied], grid={RATE: [0.001, 0.002]})
    for run, loss in zip(runs, (6.0, 5.0, 4.0, 3.0), strict=True):
        write_workdir(run, [loss], **(content if loss < 5 else {}))
    results = read_results(runs, {})
    assert [result.rank for result in results] == [2, 1, 2, 1]  # within each group
    reason = ranking_note(comparable_groups(results))
    assert 'ranked separately' in reason and named in reason and why in reason
    assert reason in table(results)
    assert len(best_commands(results)) == 2 and len({group for group, _ in best_commands(results)}) == 2


def test_runs_with_different_masking_are_ranked_together_if_evaluated_on_fixed_masks(make):
    runs = make(runs=[{'data.masking.rate': rate} for rate in (0.15, 0.3, 0.4)])
    for run, loss in zip(runs, (6.0, 5.0, 4.0), strict=True):
        write_workdir(run, [loss], fixed=loss > 4)
    assert [result.rank for result in read_results(runs, {})] == [2, 1, 1]  # the last one is a group of one run


@pytest.mark.parametrize('by', ['nats/char', 'probe', ''])
def test_runs_of_different_tasks_are_ranked_by_a_shared_metric(make, tmp_path, by):
    runs = make(runs=[{'tokenizer.vocab_size': 500}, {'tokenizer.vocab_size': 600}, {'tokenizer.vocab_size': 700}])
    for run, loss, tokenizer, better in zip(runs, (4.0, 5.0, 6.0), 'tuv', (0.2, 0.3, 0.1), strict=True):
        write_workdir(run, [loss], tokenizer=tokenizer)
        evaluation = {'masked_word_nats_per_character': 1 - better, 'words_sample': 's', 'step': STEPS}
        if by != 'nats/char' and tokenizer == 'v':  # evaluated before the end, so not the ranked model
            evaluation['step'] = STEPS - 1
        Path(run.workdir, 'evaluation.json').write_text(json.dumps(evaluation))
        if by == 'probe':
            with Path(run.workdir, 'metrics.jsonl').open('a') as file:
                file.write(json.dumps({'step': STEPS, 'probe/a': better, 'probe/a/most_frequent': 0.5}) + '\n')
    results = read_results(runs, {})
    assert [result.rank for result in results] == ([2, 1, 3] if by else [1, 1, 1])
    assert [result.as_json()['ranked_by'] for result in results] == [by or 'MLM loss'] * 3
    shown, page = table(results), ' '.join(read_page(write_page(results, tmp_path / 'sweep')).text)
    for text in (shown, page, '\n'.join(rank([result.logged for result in results]))):
        assert ('does not depend on the tokenizer' in text) == bool(by)
        assert not by or {'nats/char': '0.700', 'probe': '30.0%'}[by] in text
    assert ('tokens differ' in shown) and len(best_commands(results)) == (1 if by else 3)


@pytest.mark.parametrize('losses, end', [((5, 4, 3), 'highest'), ((3, 4, 5), 'lowest'), ((4, 3, 5), '')])
def test_best_rate_at_the_end_of_its_range_is_noted(make, losses, end):
    runs = make(grid={RATE: [0.001, 0.002, 0.003]})
    results = read_results(tuple(write_workdir(run, [float(loss)]) for run, loss in zip(runs, losses, strict=True)), {})
    assert ('may be even better' in table(results)) == bool(end) and end in table(results)


def test_different_corpora_with_the_same_held_out_text_are_comparable(make, tmp_path):
    runs = make(runs=[{'data.corpus': str(tmp_path / 'one')}, {'data.corpus': str(tmp_path / 'two')}])
    for run, content in zip(runs, 'cd', strict=True):
        files = {'train/a.npy': {'sha256': content}, 'validation/a.npy': {'sha256': 'same'}}
        Path(run.config.data.corpus).mkdir()
        Path(run.config.data.corpus, 'manifest.json').write_text(json.dumps({'files': files}))
        write_workdir(run, [5.0 if content == 'c' else 4.0], corpus=content)
    assert [result.rank for result in read_results(runs, {})] == [2, 1]


def test_page_needs_no_network_and_has_unique_ids(make):
    runs = make(grid={RATE: [1e-4, 1e-3, 1e-2], 'train.seed': [0, 1, 2, 3]})
    for i, run in enumerate(runs[:-1]):
        write_workdir(run, [6.0 + i / 10, 5.0 + i / 10])
    Path(runs[-1].workdir).mkdir()
    Path(runs[-1].workdir, LOG).write_text('what went wrong <script>')
    path = write_page(read_results(runs, {runs[-1].name: 2}), Path(runs[0].workdir).parent)
    page = read_page(path)
    assert not any(tag in ('script', 'link', 'img', 'iframe') for tag, _ in page.elements)
    references = [value for _, attributes in page.elements for key, value in attributes.items() if key.endswith('href')]
    references += re.findall(r'url\(([^)]*)\)', path.read_text())
    ids = [attributes['id'] for _, attributes in page.elements if 'id' in attributes]
    assert len(ids) == len(set(ids)) and {reference.removeprefix('#') for reference in references} <= set(ids)
    text = ' '.join(page.text)
    assert '11 of 12 runs finished' in text and 'what went wrong <script>' in text
    assert sum(tag == 'svg' for tag, _ in page.elements) == 5  # final loss over the rate, and four curves
    assert 'seed=3' in text and '5.000' in text


def test_page_draws_one_chart_per_task_and_says_why(make, tmp_path):
    runs = make(grid={'data.masking.rate': [0.1, 0.2], RATE: [0.001, 0.002]})
    results = read_results(tuple(write_workdir(run, [5.0]) for run in runs), {})
    page = read_page(write_page(results, tmp_path / 'sweep'))
    assert ranking_note(comparable_groups(results)) in ' '.join(page.text)
    labels = [attributes['aria-label'] for tag, attributes in page.elements if tag == 'svg']
    assert labels.count('Final MLM loss over optimizer.peak_learning_rate') == 2


def test_fields_of_named_runs_are_not_drawn(make, tmp_path):
    runs = make(runs=[{'name': 'a', 'train.seed': 1}, {'name': 'b', 'train.seed': 2}])
    results = read_results(tuple(write_workdir(run, [5.0]) for run in runs), {})
    page = read_page(write_page(results, tmp_path / 'sweep'))
    assert 'Final MLM loss over' not in ' '.join(page.text) and '2 of 2 runs finished' in page.text


def test_sweep_without_started_runs_has_a_table_and_a_page(make, tmp_path):
    results = read_results(make(grid={RATE: [0.1, 0.2]}), {})
    assert table(results).count('not started') == 2 and not best_commands(results)
    assert 'not started' in ' '.join(read_page(write_page(results, tmp_path / 'sweep')).text)


def test_gpus_are_divided_evenly_among_jobs(monkeypatch):
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,6,GPU-abc')
    shares = [visible_devices('', slot, 2)['CUDA_VISIBLE_DEVICES'] for slot in range(2)]
    assert shares == ['4,5', '6,GPU-abc']
    assert visible_devices('cuda', 3, 4) == {'CUDA_VISIBLE_DEVICES': 'GPU-abc'}
    assert visible_devices('', 0, 1) == visible_devices('cpu', 0, 8) == {}
    with pytest.raises(BadInput, match='at most 4'):
        visible_devices('', 0, 5)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert visible_devices('', 1, 8) == {}


@pytest.mark.processes
def test_each_task_of_the_slurm_array_is_one_run(make, tmp_path):
    runs = make(runs=[{'data.source': "text:it's here/*.txt", 'train.seed': i} for i in range(3)])
    script = slurm_script([runs[0], runs[2]], [0, 2], str(tmp_path / 'a b'), jobs=4)
    assert '#SBATCH --array=0,2%4\n' in script and f"--output='{tmp_path}/a b/slurm-%A_%a.out'\n" in script
    assert '#SBATCH --array=0,2\n' in slurm_script([runs[0], runs[2]], [0, 2], str(tmp_path), jobs=None)
    path = tmp_path / 'sweep.sbatch'
    path.write_text(script)
    assert subprocess.run(['bash', '-n', str(path)]).returncode == 0
    cases = script[script.index('case ') : script.index('esac') + 4]
    for task_id in (0, 2):
        printed = subprocess.run(
            ['bash', '-c', cases + '\nprintf "%s\\n" "$workdir" "$@"'],
            env={'SLURM_ARRAY_TASK_ID': str(task_id)},
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        assert printed == [runs[task_id].workdir, *runs[task_id].flags]
