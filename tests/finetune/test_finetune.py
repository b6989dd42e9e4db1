"""The `finetune` command learns, resumes bit-identically, exports, and rejects what cannot work."""

import dataclasses
import json
import statistics
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from bert_jax.config.finetuning import resolve
from bert_jax.finetune.command import summarize
from bert_jax.finetune.evaluator import task_streams
from bert_jax.finetune.load import load_finetuned
from bert_jax.finetune.seed import SeedResult, Setup
from bert_jax.finetune.start import prepare_start
from bert_jax.workdir.checkpoint import Checkpoints
from bert_jax.workdir.metrics import MetricsWriter
from tests.support.commands import run
from tests.support.documents import run_snippet
from tests.support.models import MODEL, write_model
from tests.support.processes import ROOT
from tests.support.runs import metric_lines
from tests.support.tasks import write_questions, write_reviews, write_sentences

pytestmark = pytest.mark.usefixtures('one_device')
SMALL = {
    'task.sequence_length': 16,
    'train.global_batch_size': 16,
    'train.checkpoint_every': 45,
    'train.log_every': 5,
    'optimizer.peak_learning_rate': 3e-3,
}


@pytest.fixture(scope='module')
def directory(tmp_path_factory) -> Path:
    """A directory with models/mine and the files of three tasks."""
    directory = tmp_path_factory.mktemp('finetune')
    write_model(directory / 'models' / 'mine')
    for number, split in enumerate(('train', 'dev')):
        write_reviews(directory / f'{split}.tsv', [240, 64][number], seed=number)
        write_sentences(directory / f'{split}.txt', [160, 40][number], seed=number)
        write_questions(directory / f'{split}.json', [200, 40][number], seed=number)
    return directory


def _flags(config: str, **changes: object) -> list[str]:
    values = SMALL | {name.replace('__', '.'): value for name, value in changes.items()}
    flags = [f'--config={ROOT}/configs/finetune/{config}', '--config.init=models/mine']
    return flags + [f'--config.{name}={value}' for name, value in values.items()]


REVIEWS = _flags('glue.py:sst2', train__epochs=6)


@pytest.fixture(scope='module')
def finished(one_device, directory: Path) -> Path:
    """The workdir of two seeds trained on reviews; the step is compiled once per row length."""
    found = []
    make = Setup.create
    with mock.patch.object(Setup, 'create', lambda *given: found.append(make(*given)) or found[-1]):
        assert run(['finetune', *REVIEWS, '--workdir=reviews', '--seeds=2'], directory) == 0
    [setup] = found
    streams = task_streams(setup.start.config, setup.start.tokenizer.pad_id, setup.program.device_mesh)
    trained = [streams(setup.data.train, seed) for seed in (0, 1)]
    shapes = {each.batch(step).input_ids.shape for each in trained for step in range(setup.program.num_steps)}
    assert setup.program.train_step._cache_size() == len(shapes) <= 3
    return directory / 'reviews'


@pytest.mark.compiles
def test_finetune_learns_and_reports_the_median_of_seeds(directory: Path, finished: Path, capsys) -> None:
    results = json.loads((finished / 'results.json').read_text())
    each = [seed['metrics']['accuracy'] for seed in results['seeds']]
    assert [seed['seed'] for seed in results['seeds']] == [0, 1] and results['finished']
    assert results['metrics'] == {'accuracy': statistics.median(each)}
    assert results['spread'] == {'accuracy': [min(each), max(each)]} and min(each) > 0.9
    predictions = [
        json.loads(line) for line in (finished / 'seed-1' / 'predictions-dev.jsonl').read_text().splitlines()
    ]
    assert [one['index'] for one in predictions] == list(range(64))
    assert np.mean([one['prediction'] == one['label'] for one in predictions]) == pytest.approx(each[1])
    assert [sum(one['probabilities'].values()) for one in predictions] == pytest.approx([1] * 64, abs=1e-5)
    # Run again: the seeds are finished, so nothing is trained; prints the same metrics as JSON.
    before = [(finished / f'seed-{seed}' / 'metrics.jsonl').read_bytes() for seed in (0, 1)]
    assert run(['finetune', '--workdir=reviews', '--json'], directory) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)['metrics'] == results['metrics'] and 'seed-1 is finished' in printed.err
    assert [(finished / f'seed-{seed}' / 'metrics.jsonl').read_bytes() for seed in (0, 1)] == before


@pytest.mark.slow
def test_killed_run_resumes_and_ends_bit_identical(directory: Path, finished: Path, monkeypatch) -> None:
    class Died(Exception):
        pass

    arguments = ['finetune', *REVIEWS, '--config.train.checkpoint_every=7', '--workdir=died']
    write = MetricsWriter.write

    def write_or_die(self: MetricsWriter, step: int, values: dict) -> None:
        if step == 20:  # after two checkpoints; some steps are repeated
            self.close()
            raise Died
        write(self, step, values)

    save = Checkpoints.save

    def save_and_wait(self: Checkpoints, *what: object, **how: object) -> None:
        save(self, *what, **how)
        self._wait_for_save()  # the process and its writer are still running

    with monkeypatch.context() as patched:
        patched.setattr(MetricsWriter, 'write', write_or_die)
        patched.setattr(Checkpoints, 'save', save_and_wait)
        with pytest.raises(Died):
            run(arguments, directory)
    assert len(metric_lines(directory / 'died' / 'seed-0')) == 3 and not (directory / 'died' / 'results.json').exists()
    assert run(arguments, directory) == 0
    assert json.loads((directory / 'died' / 'results.json').read_text())['seeds'][0]['resumed_from'] in (7, 14)
    ours, theirs = directory / 'died' / 'seed-0', finished / 'seed-0'
    assert metric_lines(ours) == metric_lines(theirs)
    assert (ours / 'predictions-dev.jsonl').read_bytes() == (theirs / 'predictions-dev.jsonl').read_bytes()


@pytest.mark.compiles
def test_evaluate_reproduces_the_metrics_of_the_run(directory: Path, finished: Path, capsys) -> None:
    assert run(['evaluate', '--workdir=reviews', '--json'], directory) == 0
    found, results = json.loads(capsys.readouterr().out), json.loads((finished / 'results.json').read_text())
    assert found['metrics'] == results['metrics'] and [seed['step'] for seed in found['seeds']] == [90, 90]
    assert run(['report', '--workdir=reviews'], directory) == 0
    assert f'{results["metrics"]["accuracy"]:.1%}' in capsys.readouterr().out


@pytest.mark.slow
def test_persistent_non_finite_loss_ends_the_run(directory: Path, finished: Path, capsys) -> None:
    wild = ['--config.init=reviews', '--config.optimizer.peak_learning_rate=1e30', '--config.train.max_bad_steps=3']
    assert run(['finetune', *REVIEWS, *wild, '--workdir=wild'], directory) == 2
    printed = capsys.readouterr().err
    assert (
        'using its encoder without the classifier' in printed
        and 'the loss or its gradient is not finite, 3 steps in a row' in printed
    )


@pytest.mark.compiles
def test_time_limit_saves_and_exits_75(directory: Path) -> None:
    stopping = [*REVIEWS, '--workdir=stopped', '--seeds=2']
    assert run(['finetune', *stopping, '--config.train.stop_at=2001-01-01T00:00'], directory) == 75
    assert not (directory / 'stopped' / 'results.json').exists() and not (directory / 'stopped' / 'seed-1').exists()
    assert (directory / 'stopped' / 'seed-0' / 'checkpoints' / '1' / 'manifest.json').exists()


@pytest.mark.compiles
def test_workdir_of_different_settings_is_rejected(directory: Path, finished: Path, capsys) -> None:
    other = ['--config.optimizer.weight_decay=0.1', '--config.train.epochs=7']
    assert run(['finetune', *REVIEWS, *other, '--workdir=reviews'], directory) == 2
    printed = capsys.readouterr().err
    assert (
        'optimizer.weight_decay (workdir: 0.01, requested: 0.1)' in printed
        and 'train.steps (workdir: 90, requested: 105)' in printed
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    'config, files, main, class_name',
    [
        ('ner.py', ('conll', 'txt'), 'entity_f1', 'AutoModelForTokenClassification'),
        pytest.param('squad.py', ('squad', 'json'), 'f1', 'AutoModelForQuestionAnswering', marks=pytest.mark.slow),
    ],
)
def test_tags_and_spans_are_learned_and_exported(
    directory: Path, config: str, files: tuple[str, str], main: str, class_name: str, capsys
) -> None:
    kind, ending = files
    more = {'task__train': f'{kind}:train.{ending}', 'task__validation': f'{kind}:dev.{ending}', 'train__epochs': 8}
    if kind == 'squad':
        more |= {'task__sequence_length': 32, 'task__max_question_tokens': 8, 'task__stride': 8, 'train__epochs': 8}
    flags = _flags(config, **more)
    assert run(['finetune', *flags, f'--workdir={kind}', '--json'], directory) == 0
    assert json.loads(capsys.readouterr().out)['metrics'][main] > (0.9 if kind == 'conll' else 0.5)
    assert run(['export', f'--workdir={kind}', f'--output={kind}-export'], directory) == 0
    transformers = pytest.importorskip('transformers')
    getattr(transformers, class_name).from_pretrained(directory / f'{kind}-export')
    if kind == 'conll':
        config_json = json.loads((directory / 'conll-export' / 'config.json').read_text())
        assert config_json['id2label'] == {'0': 'O', '1': 'B-LOC', '2': 'B-PER', '3': 'I-LOC'}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.compiles
def test_export_predicts_and_embeds_like_the_run(directory: Path, finished: Path, capsys) -> None:
    transformers = pytest.importorskip('transformers')
    assert run(['export', '--workdir=reviews', '--output=export', '--json'], directory) == 0
    printed = capsys.readouterr()
    proof, best = json.loads(printed.out), json.loads((finished / 'results.json').read_text())['spread']['accuracy'][1]
    assert 'the best of 2 seeds by accuracy' in printed.err and proof['largest_difference'] <= 1e-4
    results = json.loads((directory / proof['workdir'] / 'results.json').read_text())
    assert results['metrics']['accuracy'] == best
    classify = transformers.pipeline('text-classification', model=str(directory / 'export'))
    texts = [line.split('\t')[0] for line in (directory / 'dev.tsv').read_text().splitlines()[1:9]]
    lines = (directory / proof['workdir'] / 'predictions-dev.jsonl').read_text().splitlines()
    for prediction, line in zip(classify(texts), lines, strict=False):
        ours = json.loads(line)
        assert prediction['label'] == ours['prediction']
        assert prediction['score'] == pytest.approx(ours['probabilities'][prediction['label']], abs=1e-4)
    # However the model is named, its predictions are those made at the end of training.
    (directory / 'dev.txt.in').write_text(
        '\n'.join(line.split('\t')[0] for line in _lines(directory / 'dev.tsv')[1:]) + '\n'
    )
    for model in ('reviews', f'{proof["workdir"]}@90', 'export'):
        assert run(['predict', f'--model={model}', '--input=dev.txt.in', '--json'], directory) == 0
        found = json.loads(capsys.readouterr().out)['results']
        for prediction, line in zip(found, lines, strict=True):
            assert prediction['scores'] == pytest.approx(json.loads(line)['probabilities'], abs=1e-4)
    for model in ('reviews', 'export'):
        assert run(['embed', f'--model={model}', '--input=dev.txt.in', f'--output={model}.npy'], directory) == 0
    vectors, of_export = np.load(directory / 'reviews.npy'), np.load(directory / 'export.npy')
    assert vectors.shape == (64, MODEL.hidden_size) and len(np.unique(vectors, axis=0)) > 1
    np.testing.assert_allclose(vectors, of_export, atol=1e-5)
    # Another task can start from the export or the workdir: from the trained encoder, without the head.
    task = {'sequence_length': 16}
    inits = [str(directory / init) for init in (proof['workdir'], 'export')]
    starts = [prepare_start(resolve({'task': task, 'init': init}), []) for init in inits]
    theirs = load_finetuned(str(directory / proof['workdir'])).model.bert
    for start in starts:
        assert start.fingerprint == starts[0].fingerprint
        np.testing.assert_array_equal(
            start.initialization.initial.model.bert.pooler.kernel[...], theirs.pooler.kernel[...]
        )
    card = (directory / 'export' / 'README.md').read_text()
    assert f'| Accuracy | {best:.1%} |' in card and 'pipeline_tag: "text-classification"' in card
    assert '# reviews\n' in card and 'the best of 2 seeds' in card
    run_snippet(directory / 'export')


@pytest.mark.compiles
def test_export_takes_the_model_card_from_the_config(directory: Path, finished: Path) -> None:
    card = ['--config.card.name=Film reviews', '--config.card.license=mit']
    assert run(['export', *REVIEWS, *card, '--workdir=reviews', '--output=carded'], directory) == 0
    readme = (directory / 'carded' / 'README.md').read_text()
    assert '# Film reviews\n' in readme and 'license: "mit"' in readme


def test_dropout_and_initializer_come_from_the_initial_model_unless_set(directory: Path) -> None:
    changed = dataclasses.replace(MODEL, dropout_rate=0.0, initializer_range=0.05)
    init = write_model(directory / 'models' / 'still', changed)
    given = {'task': {'sequence_length': 16}, 'init': str(init)}
    own = {'model': {'dropout_rate': 0.2, 'initializer_range': 0.01}}
    for changes, expected in (({}, (0.0, 0.1, 0.05)), (own, (0.2, 0.1, 0.01))):
        model = prepare_start(resolve(given | changes), []).config.model
        assert (model.dropout_rate, model.attention_dropout_rate, model.initializer_range) == expected


def test_absent_pooler_is_initialized_like_the_head_by_seed(directory: Path) -> None:
    wide = dataclasses.replace(MODEL, hidden_size=256, initializer_range=0.05)
    init = write_model(directory / 'models' / 'wide', wide)
    given = resolve({'task': {'sequence_length': 16}, 'init': str(init)})
    trained = nnx.to_pure_dict(prepare_start(given, []).params(2, 0))['bert']['pooler']['kernel']
    file = init / 'model.safetensors'
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({name: value for name, value in tensors.items() if 'pooler' not in name}, file)
    start = prepare_start(given, [])
    first, again, other = (nnx.to_pure_dict(start.params(2, seed))['bert']['pooler']['kernel'] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all() and (first != trained).all()
    # The normal distribution of `transformers`, not truncated at two standard deviations.
    assert first.std() == pytest.approx(0.05, rel=0.02) and np.abs(first).max() > 0.15


@pytest.mark.compiles
def test_top_layers_and_pooler_are_reinitialized_by_seed(directory: Path) -> None:
    init = write_model(directory / 'models' / 'deep', dataclasses.replace(MODEL, num_layers=3))
    given = {'task': {'sequence_length': 16}, 'init': str(init)}
    plain, start = (prepare_start(resolve(given | more), []) for more in ({}, {'reinitialized_layers': 2}))
    made = [plain.params(2, 0), start.params(2, 0), start.params(2, 0), start.params(2, 1)]
    as_it_is, first, again, other = map(nnx.to_pure_dict, made)
    kernels = [params['bert']['encoder']['layers']['output']['kernel'] for params in (as_it_is, first, again, other)]
    assert [kernel.shape for kernel in kernels] == [(3, 48, 32)] * 4
    for kernel in kernels[1:]:
        np.testing.assert_array_equal(kernel[0], kernels[0][0])
        assert (kernel[1:] != kernels[0][1:]).all() and 0.01 < kernel[1:].std() < 0.03
    np.testing.assert_array_equal(kernels[1], kernels[2])
    assert (kernels[1][1:] != kernels[3][1:]).all() and (kernels[1][1] != kernels[1][2]).any()
    assert (first['bert']['pooler']['kernel'] != as_it_is['bert']['pooler']['kernel']).all()
    assert (first['bert']['encoder']['layers']['output_norm']['scale'][1:] == 1).all()
    jax.tree.map(np.testing.assert_array_equal, first['bert']['embeddings'], as_it_is['bert']['embeddings'])
    np.testing.assert_array_equal(first['classifier']['kernel'], as_it_is['classifier']['kernel'])


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'init': 'models/none'}, 'models/none'),
        ({'init': ''}, 'config.init: is empty'),
        ({'init': 'scratch'}, 'config.tokenizer.path: is empty, and scratch brings no tokenizer'),
        ({'tokenizer.path': 'other.txt'}, 'differs from the tokenizer of config.init'),
        ({'task.sequence_length': 64}, 'is 64; the model has 32 positions'),
        ({'reinitialized_layers': 2}, 'expected: at most the 1 layers of config.init'),
        ({'task.label': 'lable'}, "train.tsv:1: has no column 'lable'"),
        ({'task.labels': "('1', '2')"}, "has the label '0'"),
        ({'task.train': 'tsv:none.tsv'}, 'none.tsv: does not exist'),
        ({'task.metrics': "('acuracy',)"}, 'accuracy, f1, macro_f1, matthews'),
        ({'task.kind': 'tagging'}, "names 'accuracy'"),
        ({'train.epoch': 3}, 'did you mean config.train.epochs?'),
        ({'mesh.data': 3}, 'there is 1 device'),
        ({'train.probe_every': 5}, 'probe_every asks for probes'),
        ({'train.probe_every': 5, 'probe.sets': "(('a', 'tsv:none.tsv'),)"}, 'none.tsv: does not exist'),
        ({'train.reduction': 'exact', 'train.global_batch_size': 12}, 'config.train.exact_shards: is 8'),
    ],
)
def test_unusable_config_exits_2_and_writes_nothing(directory: Path, changes: dict, words: str, capsys) -> None:
    tokens = (directory / 'models' / 'mine' / 'vocab.txt').read_text()
    (directory / 'other.txt').write_text(tokens + 'another\n')
    flags = [*REVIEWS, *(f'--config.{name}={value}' for name, value in changes.items())]
    assert run(['finetune', *flags, '--workdir=refused'], directory) == 2
    assert words in capsys.readouterr().err and not (directory / 'refused').exists()


@pytest.mark.compiles
def test_pretraining_and_finetune_inputs_are_not_confused(directory: Path, finished: Path, capsys) -> None:
    assert run(['finetune', f'--config={ROOT}/configs/demo.py', '--workdir=refused'], directory) == 2
    assert 'is not the config of a fine-tune' in capsys.readouterr().err
    assert run(['fill-mask', '--model=reviews/seed-0', 'a [MASK]'], directory) == 2
    assert 'has no trained masked-LM head' in capsys.readouterr().err


def test_median_excludes_unfinished_seeds() -> None:
    outcomes = [SeedResult(seed, 5, seed < 3, None, {'f1': 0.1 * seed} if seed < 3 else {}) for seed in range(4)]
    summary = summarize(outcomes, 5)
    assert not summary.finished and summary.metrics == {'f1': 0.1} and summary.spread == {'f1': [0.0, 0.2]}
