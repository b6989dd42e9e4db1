"""What `evaluate` says of a run is what was measured, on any text and any mesh, and nothing of what there was not."""

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
from bert_jax.evaluation.probe import open_sets
from bert_jax.evaluation.sample import held_out_windows
from bert_jax.pretrain import pretrain
from bert_jax.pretrained.load import load_pretrained
from bert_jax.text.chunks import plan_source
from bert_jax.text.corpus import load_corpus
from bert_jax.text.documents import ReadOptions, read_chunk
from bert_jax.text.stats import Stats
from bert_jax.workdir.identity import load_config
from tests.support.configs import as_config, prepared
from tests.support.texts import WORDS

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]


@pytest.fixture(scope='module')
def place(one_device, tmp_path_factory) -> Path:
    """A directory with a run of two steps on its text.txt, without pairs."""
    place = tmp_path_factory.mktemp('evaluate')
    rows = [f'{a} {b}\t{a in WORDS[:3]}' for a in WORDS[:12] for b in WORDS[:12]]
    (place / 'first.tsv').write_text('\n'.join(['sentence\tlabel', *rows]) + '\n')
    changes = {
        'data__pairing': 'none',
        'probe__sets': (('first', f'tsv:{place}/first.tsv'),),
    }
    changes |= {'train__steps': 2, 'train__evaluate_every': 1, 'train__probe_every': 1, 'optimizer__warmup_steps': 0}
    changes |= {'train__examples': ()}
    config = as_config(prepared(place, **changes))
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        assert pretrain(config, str(place / 'run')).finished
    (place / 'shown').write_text(shown.getvalue())
    return place


def _without_results(run: Path, directory: Path) -> Path:
    """A workdir with the files of a run, by links, but for what `evaluate` wrote."""
    (workdir := directory / 'run').mkdir()
    for path in run.iterdir():
        if not path.name.startswith('evaluation'):
            (workdir / path.name).symlink_to(path)
    return workdir


def test_without_pairs_nothing_is_reported_of_next_sentences(place: Path) -> None:
    shown = (place / 'shown').read_text()
    assert 'held-out MLM loss' in shown and 'NSP' not in shown
    result = evaluate(str(place / 'run'), sample=16)
    assert result['nsp_loss'] is None and result['nsp_accuracy'] is None and 0 < result['mlm_loss'] < 10
    shown = describe(result)
    assert 'MLM accuracy' in shown and 'Masked words' in shown and 'in 16 windows of text' in shown
    assert 'Pseudo-perplexity' in shown and 'NSP' not in shown
    assert json.loads((place / 'run' / 'evaluation.json').read_text()) == result
    assert result['windows'] == 16 and result['unknown_characters'] == 0


def test_a_smaller_sample_does_not_replace_a_larger_one(place: Path, tmp_path: Path, monkeypatch) -> None:
    workdir = _without_results(place / 'run', tmp_path)
    larger, smaller = ({'step': 2, 'unigram_entropy': 4.5, 'words_sample': f'{n}', 'windows': n} for n in (16, 8))
    found = iter([larger, smaller])
    monkeypatch.setattr('bert_jax.evaluation.evaluate._on_validation', lambda *_: next(found))
    assert evaluate(str(workdir)) == larger and evaluate(str(workdir)) == smaller
    assert json.loads((workdir / 'evaluation.json').read_text()).items() >= larger.items()


def test_what_a_run_does_not_measure_is_in_no_line_and_no_event(place: Path) -> None:
    lines = [json.loads(line) for line in (place / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert {line['step'] for line in lines} == {1, 2} and any('validation/mlm_loss' in line for line in lines)
    assert not [key for line in lines for key in line if 'nsp' in key]
    [events] = (place / 'run' / 'tensorboard').iterdir()
    assert b'mlm_loss' in events.read_bytes() and b'nsp' not in events.read_bytes()


def test_text_with_nothing_to_guess_has_no_losses(place: Path) -> None:
    (place / 'letters.txt').write_text('a\n\nb\n\nc\n')
    result = evaluate(str(place / 'run'), source=f'text:{place}/letters.txt', sample=8)
    measured = ('loss', 'mlm_loss', 'mlm_accuracy', 'nsp_loss', 'nsp_accuracy')
    assert [result[name] for name in measured] == [None] * len(measured)
    assert 'MLM loss      – nats   (not measured; the ' in describe(result)
    lines = [describe(result | {'mlm_loss': loss, 'unigram_entropy': 2.0}) for loss in (1.5, 2.5)]
    assert '(0.50 under the 2.000 of' in lines[0] and '(0.50 over the 2.000 of' in lines[1]


def test_probe_is_logistic_regression_on_mean_vectors_of_frozen_encoder(place: Path) -> None:
    logged = [json.loads(line) for line in (place / 'run' / 'metrics.jsonl').read_text().splitlines()]
    found = {line['step']: line for line in logged if 'probe/first' in line}
    assert sorted(found) == [1, 2] and 'probe first' in (place / 'shown').read_text()
    config, encoder = load_config(str(place / 'run')), load_pretrained(str(place / 'run'))
    [labelled] = open_sets(config.probe, config.train.probe_every)
    vectors, _ = encoder.mean_pooled(labelled.texts)
    classifier = LogisticRegression(max_iter=1000)
    rest, test = slice(labelled.num_test, None), slice(labelled.num_test)
    vectors = (vectors - vectors[rest].mean(0)) / vectors[rest].std(0)
    classifier.fit(vectors[rest], labelled.labels[rest])
    hits = np.equal(classifier.predict(vectors[test]), labelled.labels[test])
    assert len(labelled.texts) == 144 and len(hits) == 28
    assert found[2]['probe/first'] == pytest.approx(hits.mean(), abs=1.5 / 28)  # a text may lie on the border
    assert found[2]['probe/first/most_frequent'] == labelled.labels[test].count('False') / 28 > 0.5


@pytest.mark.parametrize(
    'content, told', [('sentence\tmood\na\tb\n', 'no column'), ('sentence\tlabel\na\tb\n', '1 different texts')]
)
def test_a_labelled_set_that_cannot_be_used_is_told_before_the_run(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / 'set.tsv').write_text(content)
    sets = {'sets': (('set', f'tsv:{tmp_path}/set.tsv'),)}
    with pytest.raises(BadInput, match=told):
        resolved = bert_jax.config.resolve({'train': {'probe_every': 5}, 'probe': sets})
        open_sets(resolved.probe, resolved.train.probe_every)
    with pytest.raises(BadInput, match='probe_every asks for probes'):
        bert_jax.config.resolve({'train': {'probe_every': 5}})


def test_the_words_are_of_the_documents_that_are_held_out(place: Path) -> None:
    config = load_config(str(place / 'run'))
    windows = held_out_windows(config.data, 10_000)
    corpus = load_corpus(config.data.corpus)
    [chunk] = plan_source(config.data.source, 0, 'text').chunks
    held_out = corpus.validation.gather(np.arange(corpus.validation.num_tokens)).tolist()
    held_out = ' '.join(map(str, held_out))
    documents = [' '.join(document.sentences) for document in read_chunk(chunk, ReadOptions(), Stats())]
    found = [corpus.tokenizer.encode_batch([text])[0] for text in documents]
    is_held_out = [' '.join(map(str, ids)) in held_out for ids in found]
    of_window = {window.text: [window.text in text for text in documents].index(True) for window in windows}
    assert all(is_held_out[number] for number in of_window.values())
    assert len({*of_window.values()}) == corpus.manifest['splits']['validation']['documents'] == sum(is_held_out)


@pytest.mark.slow
def test_the_figures_are_the_same_on_any_mesh(place: Path) -> None:
    mesh = {'data': 2, 'fsdp': 1, 'tensor': 2}
    split = bert_jax.config.resolve({'mesh': mesh, 'train': {'global_batch_size': 16}})
    alone = evaluate(str(place / 'run'), sample=0, devices=jax.local_devices()[:1])
    spread = evaluate(str(place / 'run'), sample=0, config=split, devices=jax.local_devices()[:4])
    for name in ('mlm_loss', 'mlm_accuracy'):
        assert spread[name] == pytest.approx(alone[name], rel=1e-6)


@pytest.mark.slow
def test_other_text_has_its_own_baselines_and_leaves_nothing_behind(place: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, 'tempdir', str(place / 'temporary'))
    (place / 'temporary').mkdir()
    corpora = sorted(path.name for path in place.iterdir())
    own = evaluate(str(place / 'run'), sample=16)
    (place / 'one.jsonl').write_text(json.dumps({'text': 'waa wab waa.\nwac waa qqq waa wad.'}) + '\n')
    other = evaluate(str(place / 'run'), source=f'jsonl:{place}/one.jsonl', sample=16)
    assert other['unigram_entropy'] < own['unigram_entropy'] and other['words_sample'] != own['words_sample']
    assert describe(other).startswith(f'jsonl:{place}/one.jsonl at step 2')
    assert json.loads((place / 'run' / 'evaluation.json').read_text()) == own
    [written] = (place / 'run').glob('evaluation-*one.jsonl*.json')
    assert json.loads(written.read_text()) == other
    assert not list((place / 'temporary').iterdir())
    assert sorted(path.name for path in place.iterdir()) == sorted([*corpora, 'one.jsonl'])


def test_a_source_without_files_is_told_by_its_flag(place: Path) -> None:
    before = sorted((place / 'run').iterdir())
    with pytest.raises(BadInput, match=f'--source=text:{place}/none.*: no file matches'):
        evaluate(str(place / 'run'), source=f'text:{place}/none*')
    assert sorted((place / 'run').iterdir()) == before


def test_source_that_cannot_be_reread_is_reported_without_failing(place: Path) -> None:
    (place / 'text.txt').rename(place / 'away.txt')
    try:
        result = evaluate(str(place / 'run'))
    finally:
        (place / 'away.txt').rename(place / 'text.txt')
    assert (
        'masked_word_nats_per_character' not in result
        and f'{place}/text.txt: no file matches' in result['sample_missing']
    )
    assert 'were not measured' in describe(result) and 0 < result['mlm_loss'] < 10


def test_a_read_only_run_is_evaluated_and_the_result_is_printed_or_saved_elsewhere(
    place: Path, tmp_path: Path, capsys
) -> None:
    workdir = _without_results(place / 'run', tmp_path)
    (workdir / 'evaluation.json' / 'in the way').mkdir(parents=True)  # not even root can write that file
    command = ['bert_jax', 'evaluate', f'--workdir={workdir}', '--sample=0', '--json']
    assert main(command) == 0
    shown = capsys.readouterr()
    assert 'evaluation.json could not be written' in shown.err
    assert main([*command, f'--output={tmp_path}/result.json']) == 0
    assert capsys.readouterr().out == shown.out == (tmp_path / 'result.json').read_text()
    assert main([*command, f'--output={tmp_path}']) == 2
