"""`evaluate` measures a run on its held-out text or on other text, on any mesh, and omits what it cannot measure."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import bert_jax.config
from bert_jax.__main__ import main
from bert_jax.errors import BadInput
from bert_jax.evaluation.evaluate import describe, evaluate
from bert_jax.evaluation.probe import LabelledDataset, load_datasets
from bert_jax.evaluation.retrieval.dataset import read_set
from bert_jax.evaluation.retrieval.evaluate import evaluate_model
from bert_jax.evaluation.sample import read_held_out_windows
from bert_jax.pretrain import pretrain
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.sentences import read_retrieval_settings, read_settings
from bert_jax.report.page import write_report
from bert_jax.text.corpus import load_corpus
from bert_jax.text.documents import read_chunk
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats
from bert_jax.workdir.identity import load_config
from tests.support.configs import as_config, prepared
from tests.support.retrieval import write_names_set
from tests.support.texts import WORDS

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]


@pytest.fixture(scope='module')
def directory(one_device, tmp_path_factory) -> Path:
    """Returns a directory with `run`, two steps without pairs on text.txt, and `stderr`, what it printed."""
    directory = tmp_path_factory.mktemp('evaluate')
    rows = [f'{a} {b}\t{a in WORDS[:3]}' for a in WORDS[:12] for b in WORDS[:12]]
    (directory / 'first.tsv').write_text('\n'.join(['sentence\tlabel', *rows]) + '\n')
    write_names_set(directory / 'names')
    changes = {
        'data__pairing': 'none',
        'probe__sets': (('first', f'tsv:{directory}/first.tsv'), ('names', f'beir:{directory}/names/qrels/test.tsv')),
    }
    changes |= {'train__steps': 2, 'train__evaluate_every': 1, 'train__probe_every': 1, 'optimizer__warmup_steps': 0}
    changes |= {'train__examples': ()}
    config = as_config(prepared(directory, **changes))
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert pretrain(config, str(directory / 'run')).finished
    (directory / 'stderr').write_text(stderr.getvalue())
    return directory


def _link_without_results(run: Path, parent: Path) -> Path:
    """Returns a workdir with links to the files of a run, except those that `evaluate` wrote."""
    (workdir := parent / 'run').mkdir()
    for path in run.iterdir():
        if not path.name.startswith('evaluation'):
            (workdir / path.name).symlink_to(path)
    return workdir


def test_run_without_pairs_reports_no_nsp_metrics(directory: Path) -> None:
    stderr = (directory / 'stderr').read_text()
    assert 'held-out MLM loss' in stderr and 'NSP' not in stderr
    result = evaluate(str(directory / 'run'), sample=16)
    assert result['nsp_loss'] is None and result['nsp_accuracy'] is None and 0 < result['mlm_loss'] < 10
    description = describe(result)
    assert 'MLM accuracy' in description and 'Masked words' in description and 'in 16 text windows' in description
    assert 'Pseudo-perplexity' in description and 'NSP' not in description
    assert json.loads((directory / 'run' / 'evaluation.json').read_text()) == result
    assert result['windows'] == 16 and result['unknown_characters'] == 0


def test_smaller_sample_does_not_replace_a_larger_one(directory: Path, tmp_path: Path, monkeypatch) -> None:
    workdir = _link_without_results(directory / 'run', tmp_path)
    larger, smaller = ({'step': 2, 'unigram_entropy': 4.5, 'words_sample': f'{n}', 'windows': n} for n in (16, 8))
    results = iter([larger, smaller])
    monkeypatch.setattr('bert_jax.evaluation.evaluate._evaluate_validation_split', lambda *_: next(results))
    assert evaluate(str(workdir)) == larger and evaluate(str(workdir)) == smaller
    assert json.loads((workdir / 'evaluation.json').read_text()).items() >= larger.items()


def test_metrics_that_a_run_does_not_measure_are_not_logged(directory: Path) -> None:
    lines = [json.loads(line) for line in (directory / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert {line['step'] for line in lines} == {1, 2} and any('validation/mlm_loss' in line for line in lines)
    assert not [key for line in lines for key in line if 'nsp' in key]
    [events] = (directory / 'run' / 'tensorboard').iterdir()
    assert b'mlm_loss' in events.read_bytes() and b'nsp' not in events.read_bytes()


def test_description_aligns_values_and_baselines() -> None:
    result = {'step': 7, 'mlm_loss': 1.5, 'mlm_accuracy': 0.5, 'nsp_accuracy': None}
    result |= {'unigram_entropy': 2.0, 'most_frequent_accuracy': 0.25}
    assert describe(result).splitlines() == [
        'Held-out text at step 7:',
        '  MLM loss           1.500 nats per token      baseline: 2.000 (token frequencies alone)',
        '  MLM accuracy       50.0%                     baseline: 25.0% (always the most frequent token)',
    ]


def test_text_with_nothing_to_predict_has_no_losses(directory: Path) -> None:
    (directory / 'letters.txt').write_text('a\n\nb\n\nc\n')
    result = evaluate(str(directory / 'run'), source=f'text:{directory}/letters.txt', sample=8)
    names = ('loss', 'mlm_loss', 'mlm_accuracy', 'nsp_loss', 'nsp_accuracy')
    assert [result[name] for name in names] == [None] * len(names)
    assert 'MLM loss – nats per token baseline: ' in ' '.join(describe(result).split())


def test_probe_equals_logistic_regression_on_mean_vectors(directory: Path) -> None:
    logged = [json.loads(line) for line in (directory / 'run' / 'metrics.jsonl').read_text().splitlines()]
    probed = {line['step']: line for line in logged if 'probe/first' in line}
    assert sorted(probed) == [1, 2] and 'probe first' in (directory / 'stderr').read_text()
    config, encoder = load_config(str(directory / 'run')), load_pretrained(str(directory / 'run'))
    dataset, _ = load_datasets(config.probe, config.train.probe_every)
    assert isinstance(dataset, LabelledDataset)
    vectors, _ = encoder.mean_pooled(dataset.texts)
    classifier = LogisticRegression(max_iter=1000)
    training, test = slice(dataset.num_test, None), slice(dataset.num_test)
    vectors = (vectors - vectors[training].mean(0)) / vectors[training].std(0)
    classifier.fit(vectors[training], dataset.labels[training])
    hits = np.equal(classifier.predict(vectors[test]), dataset.labels[test])
    assert len(dataset.texts) == 144 and len(hits) == 28
    # One text may lie on the decision boundary.
    assert probed[2]['probe/first'] == pytest.approx(hits.mean(), abs=1.5 / 28)
    assert probed[2]['probe/first/most_frequent'] == dataset.labels[test].count('False') / 28 > 0.5


def test_retrieval_during_training_equals_evaluate(directory: Path) -> None:
    logged = [json.loads(line) for line in (directory / 'run' / 'metrics.jsonl').read_text().splitlines()]
    probed = {line['step']: line for line in logged if 'retrieval/names/ndcg_at_10' in line}
    assert sorted(probed) == [1, 2] and 'names nDCG@10' in (directory / 'stderr').read_text()
    encoder = load_pretrained(str(directory / 'run'))
    run, names = str(directory / 'run'), read_set(str(directory / 'names'), 'test')
    settings = read_retrieval_settings(run, read_settings(run))
    measured = evaluate_model('', encoder, settings, names)
    for name in ('ndcg_at_10', 'mrr_at_10', 'recall_at_10', 'recall_at_100', 'mean_cosine'):
        assert probed[2][f'retrieval/names/{name}'] == pytest.approx(measured[name], abs=1e-5)
    page = write_report([str(directory / 'run')])
    assert 'Retrieval (nDCG@10): names' in Path(page).read_text()


@pytest.mark.parametrize('source, message', [('beir:none', 'none: is not a directory'), ('beir:', 'probe.sets')])
def test_unusable_retrieval_set_is_rejected_before_the_run(source: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        resolved = bert_jax.config.resolve({'train': {'probe_every': 5}, 'probe': {'sets': (('set', source),)}})
        load_datasets(resolved.probe, resolved.train.probe_every)


@pytest.mark.parametrize(
    'content, message', [('sentence\tmood\na\tb\n', 'no column'), ('sentence\tlabel\na\tb\n', '1 distinct texts')]
)
def test_unusable_probe_dataset_is_rejected_before_the_run(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / 'set.tsv').write_text(content)
    sets = {'sets': (('set', f'tsv:{tmp_path}/set.tsv'),)}
    with pytest.raises(BadInput, match=message):
        resolved = bert_jax.config.resolve({'train': {'probe_every': 5}, 'probe': sets})
        load_datasets(resolved.probe, resolved.train.probe_every)
    with pytest.raises(BadInput, match='probe_every asks for probes'):
        bert_jax.config.resolve({'train': {'probe_every': 5}})


def test_words_come_from_the_held_out_documents(directory: Path) -> None:
    config = load_config(str(directory / 'run'))
    windows = read_held_out_windows(config.data, 10_000)
    corpus = load_corpus(config.data.corpus)
    [chunk] = plan_source(config.data.source, 0).chunks
    held_out = corpus.validation.gather(np.arange(corpus.validation.num_tokens)).tolist()
    held_out = ' '.join(map(str, held_out))
    documents = [' '.join(document.sentences) for document in read_chunk(chunk, ReadOptions(), Stats())]
    encoded = [corpus.tokenizer.encode_batch([text])[0] for text in documents]
    is_held_out = [' '.join(map(str, ids)) in held_out for ids in encoded]
    document_indices = [[window.text in text for text in documents].index(True) for window in windows]
    assert all(is_held_out[i] for i in document_indices)
    assert len({*document_indices}) == corpus.manifest['splits']['validation']['documents'] == sum(is_held_out)


@pytest.mark.slow
def test_metrics_are_equal_on_any_mesh(directory: Path) -> None:
    mesh = {'data': 2, 'fsdp': 1, 'tensor': 2}
    config = bert_jax.config.resolve({'mesh': mesh, 'train': {'global_batch_size': 16}})
    one_device = evaluate(str(directory / 'run'), sample=0, devices=jax.local_devices()[:1])
    four_devices = evaluate(str(directory / 'run'), sample=0, config=config, devices=jax.local_devices()[:4])
    for name in ('mlm_loss', 'mlm_accuracy'):
        assert four_devices[name] == pytest.approx(one_device[name], rel=1e-6)


@pytest.mark.slow
def test_other_text_has_its_own_baselines_and_no_leftover_files(directory: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, 'tempdir', str(directory / 'temporary'))
    (directory / 'temporary').mkdir()
    names = sorted(path.name for path in directory.iterdir())
    own = evaluate(str(directory / 'run'), sample=16)
    (directory / 'one.jsonl').write_text(json.dumps({'text': 'waa wab waa.\nwac waa qqq waa wad.'}) + '\n')
    other = evaluate(str(directory / 'run'), source=f'jsonl:{directory}/one.jsonl', sample=16)
    assert other['unigram_entropy'] < own['unigram_entropy'] and other['words_sample'] != own['words_sample']
    assert describe(other).startswith(f'jsonl:{directory}/one.jsonl at step 2')
    assert json.loads((directory / 'run' / 'evaluation.json').read_text()) == own
    [written] = (directory / 'run').glob('evaluation-*one.jsonl*.json')
    assert json.loads(written.read_text()) == other
    assert not list((directory / 'temporary').iterdir())
    assert sorted(path.name for path in directory.iterdir()) == sorted([*names, 'one.jsonl'])


def test_error_for_a_source_without_files_names_the_flag(directory: Path) -> None:
    before = sorted((directory / 'run').iterdir())
    with pytest.raises(BadInput, match=f'--source=text:{directory}/none.*: no file matches'):
        evaluate(str(directory / 'run'), source=f'text:{directory}/none*')
    assert sorted((directory / 'run').iterdir()) == before


def test_missing_source_of_the_corpus_is_reported_without_failing(directory: Path) -> None:
    (directory / 'text.txt').rename(directory / 'away.txt')
    try:
        result = evaluate(str(directory / 'run'))
    finally:
        (directory / 'away.txt').rename(directory / 'text.txt')
    assert 'masked_word_nats_per_character' not in result
    assert f'{directory}/text.txt: no file matches' in result['sample_missing']
    assert 'were not measured' in describe(result) and 0 < result['mlm_loss'] < 10


def test_result_for_a_read_only_run_is_printed_or_saved_elsewhere(directory: Path, tmp_path: Path, capsys) -> None:
    workdir = _link_without_results(directory / 'run', tmp_path)
    (workdir / 'evaluation.json' / 'in the way').mkdir(parents=True)  # not even root can write this file
    command = ['bert_jax', 'evaluate', f'--workdir={workdir}', '--sample=0', '--json']
    assert main(command) == 0
    printed = capsys.readouterr()
    assert 'evaluation.json could not be written' in printed.err
    assert main([*command, f'--output={tmp_path}/result.json']) == 0
    assert capsys.readouterr().out == printed.out == (tmp_path / 'result.json').read_text()
    assert main([*command, f'--output={tmp_path}']) == 2
