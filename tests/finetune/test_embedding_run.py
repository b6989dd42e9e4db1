"""`finetune` trains embedding models from pairs, scores and raw text, resumes, and rejects bad data early."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bert_jax.finetune.embedding_task import PairSplit
from bert_jax.finetune.load import load_finetuned
from bert_jax.finetune.rows import make_rows
from bert_jax.text.corpus import load_corpus
from tests.support.commands import run
from tests.support.models import write_model
from tests.support.processes import ROOT
from tests.support.retrieval import write_names_set
from tests.support.runs import metric_lines
from tests.support.tasks import BAD, GOOD, NAMES, OTHER

pytestmark = pytest.mark.usefixtures('one_device')
WORDS = [*GOOD, *BAD, *NAMES, *OTHER]
SMALL = {
    'init': 'models/mine',
    'task.train': 'jsonl:train.jsonl',
    'task.validation': 'jsonl:dev.jsonl',
    'task.sequence_length': 16,
    'train.global_batch_size': 16,
    'train.checkpoint_every': 20,
    'train.log_every': 5,
    'optimizer.peak_learning_rate': 3e-3,
}


def _write_pairs(path: Path, num_pairs: int, seed: int) -> None:
    """Writes pairs that share a word, and have a score: how many words they share."""
    rng = np.random.default_rng(seed)
    with path.open('w') as file:
        for _ in range(num_pairs):
            words, shared = rng.permutation(WORDS), rng.integers(1, 4)
            anchor, positive = words[:3], [*words[:shared], *words[5 : 8 - shared]]
            record = {'anchor': ' '.join(anchor), 'positive': ' '.join(positive), 'shared': int(shared)}
            file.write(json.dumps(record) + '\n')


@pytest.fixture(scope='module')
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp('embedding')
    write_model(directory / 'models' / 'mine')
    _write_pairs(directory / 'train.jsonl', 160, seed=0)
    _write_pairs(directory / 'dev.jsonl', 60, seed=1)
    return directory


def _flags(variant: str = 'pairs', **changes: object) -> list[str]:
    values = SMALL | {name.replace('__', '.'): value for name, value in changes.items()}
    flags = [f'--config={ROOT}/configs/finetune/embedding.py:{variant}']
    return flags + [f'--config.{name}={value}' for name, value in values.items()]


@pytest.fixture(scope='module')
def finished(one_device, directory: Path) -> Path:
    write_names_set(directory / 'names')
    flags = _flags(train__epochs=8, train__evaluate_every=40, embedding__matryoshka_dims='(32,8)')
    flags += ['--config.train.probe_every=40', "--config.probe.sets=(('names', 'beir:names'),)"]
    flags += ['--config.embedding.passage_prompt=the ']
    assert run(['finetune', *flags, '--workdir=pairs'], directory) == 0
    return directory / 'pairs'


@pytest.mark.compiles
def test_pairs_are_learned_and_ranked(directory: Path, finished: Path, capsys) -> None:
    results = json.loads((finished / 'results.json').read_text())['metrics']
    predicted = [json.loads(line) for line in (finished / 'seed-0' / 'predictions-dev.jsonl').read_text().splitlines()]
    ranks = np.array([one['rank'] for one in predicted])
    assert [one['index'] for one in predicted] == list(range(60))
    assert results == pytest.approx({'accuracy': (ranks == 1).mean(), 'mrr': (1 / ranks).mean()})
    assert results['mrr'] > 0.5
    lines = metric_lines(finished / 'seed-0')
    assert any('validation/mrr' in line for line in lines)
    assert all('accuracy' in line for line in lines if 'loss' in line)
    assert run(['evaluate', '--workdir=pairs', '--json'], directory) == 0
    assert json.loads(capsys.readouterr().out)['metrics'] == pytest.approx(results, abs=0.02)


@pytest.mark.compiles
def test_probe_of_a_retrieval_set_measures_what_evaluate_does(directory: Path, finished: Path, capsys) -> None:
    probed = {line['step']: line for line in metric_lines(finished / 'seed-0') if 'retrieval/names/ndcg_at_10' in line}
    assert [*probed] == [40, 80]
    assert run(['evaluate', '--workdir=pairs', '--retrieval=names', '--nobm25', '--json'], directory) == 0
    whole, short = json.loads(capsys.readouterr().out)['retrieval']['systems']
    assert (whole['dims'], short['dims']) == (32, 8)
    for name in ('ndcg_at_10', 'mrr_at_10', 'recall_at_10', 'mean_cosine'):
        assert probed[80][f'retrieval/names/{name}'] == pytest.approx(whole[name], abs=1e-5)


@pytest.mark.compiles
def test_interrupted_run_resumes_bit_for_bit(directory: Path, finished: Path) -> None:
    flags = _flags(train__epochs=8, embedding__matryoshka_dims='(32,8)', train__keep_checkpoints=9)
    assert run(['finetune', *flags, '--workdir=whole'], directory) == 0
    checkpoints = directory / 'whole' / 'seed-0' / 'checkpoints'
    (directory / 'whole' / 'seed-0' / 'results.json').unlink()
    expected = load_finetuned(str(directory / 'whole' / 'seed-0')).encode(['fine film'])
    for path in checkpoints.iterdir():
        if path.name.isdigit() and int(path.name) > 40:
            path.rename(directory / f'later-{path.name}')
    assert run(['finetune', *flags, '--workdir=whole'], directory) == 0
    resumed = load_finetuned(str(directory / 'whole' / 'seed-0')).encode(['fine film'])
    np.testing.assert_array_equal(resumed.mean_pooled, expected.mean_pooled)


@pytest.mark.compiles
def test_scores_are_learned_and_an_embedding_model_starts_another(directory: Path, finished: Path, capsys) -> None:
    flags = _flags('scores', init='pairs', embedding__anchor='anchor', embedding__positive='positive')
    flags += ['--config.embedding.score=shared', '--config.train.epochs=4', '--config.embedding.max_score=3.0']
    assert run(['finetune', *flags, '--workdir=scores'], directory) == 0
    lines = (directory / 'scores' / 'seed-0' / 'predictions-dev.jsonl').read_text().splitlines()
    predicted = [json.loads(line) for line in lines]
    expected = stats.spearmanr([one['score'] for one in predicted], [one['similarity'] for one in predicted]).statistic
    found = json.loads((directory / 'scores' / 'results.json').read_text())['metrics']
    assert {one['score'] for one in predicted} == {1, 2, 3}
    assert found == {'sts_spearman': pytest.approx(expected, abs=1e-6)}
    assert found['sts_spearman'] > 0.4
    assert run(['predict', '--model=pairs', '--input=-'], directory) == 2
    assert 'is an embedding model' in capsys.readouterr().err


def _prepare(directory: Path, corpus: str, validation_fraction: float) -> None:
    """Prepares a corpus of documents of two sentences, which share three words."""
    rng = np.random.default_rng(2)
    documents = []
    for _ in range(120):
        words = rng.permutation(WORDS)
        documents.append(f'{" ".join(words[:4])}.\n{" ".join(words[1:5])}.')
    (directory / 'text.txt').write_text('\n\n'.join(documents))
    flags = [f'--config={ROOT}/configs/demo.py', '--config.data.source=text:text.txt', f'--config.data.corpus={corpus}']
    flags += ['--config.tokenizer.path=models/mine', f'--config.data.validation_fraction={validation_fraction}']
    assert run(['prepare', *flags], directory) == 0


@pytest.mark.compiles
def test_raw_text_trains_and_validates(directory: Path, capsys) -> None:
    _prepare(directory, 'split', 0.25)
    corpus = {'task.directory': 'split', 'task.train': 'corpus:.', 'task.validation': 'corpus:.'}
    flags = _flags('corpus', train__epochs=16, **corpus)
    assert run(['finetune', *flags, '--workdir=raw'], directory) == 0
    results = json.loads((directory / 'raw' / 'results.json').read_text())['metrics']
    lines = (directory / 'raw' / 'seed-0' / 'predictions-corpus.jsonl').read_text().splitlines()
    held_out = load_corpus(directory / 'split').validation
    assert len(lines) == len(held_out.documents) - 1 > 10
    assert results == pytest.approx(_ranking([json.loads(line)['rank'] for line in lines]))
    assert results['mrr'] > 0.25  # 0.12 by chance


def _ranking(ranks: list[int]) -> dict[str, float]:
    return {'accuracy': np.mean(np.array(ranks) == 1), 'mrr': np.mean(1 / np.array(ranks))}


@pytest.mark.compiles
def test_raw_text_trains_beside_pairs(directory: Path) -> None:
    _prepare(directory, 'corpus', 0.0)
    sources = "(('corpus:corpus', 1), ('jsonl:train.jsonl', 1))"
    assert run(['finetune', *_flags(task__train=sources, train__epochs=1), '--workdir=text'], directory) == 0
    assert json.loads((directory / 'text' / 'results.json').read_text())['finished']


def test_rank_counts_the_positives_that_are_not_less_similar() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((14, 3)).astype(np.float32)
    vectors[3] = vectors[1]  # the positive of pair 1 is the text of that of pair 0
    hashes = np.arange(14, dtype=np.uint64)
    hashes[3], hashes[8] = hashes[1], hashes[4]  # and pair 4 has the anchor of pair 2
    rows = make_rows([[2, 3]] * 14, [2] * 14, np.zeros(14, np.float32))
    split = PairSplit(rows, np.repeat(np.arange(7), 2), Counter(), [], hashes)
    predictions = split.predictions(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for pair, (similarity, rank) in enumerate(predictions):
        assert similarity == pytest.approx(unit[2 * pair] @ unit[2 * pair + 1], abs=1e-6)
        others = [
            other
            for other in range(7)
            if hashes[2 * other] != hashes[2 * pair] and hashes[2 * other + 1] != hashes[2 * pair + 1]
        ]
        assert rank == 1 + sum(unit[2 * pair] @ unit[2 * other + 1] >= similarity for other in others)
    expected = {'mrr': np.mean([1 / rank for _, rank in predictions])}
    assert split.metrics(('mrr', 'sts_spearman'), predictions) == expected
    collapsed = split.predictions(np.ones((14, 3), np.float32))  # equal vectors find nothing
    assert [rank for _, rank in collapsed] == [6, 6, 6, 7, 6, 7, 7]
    not_finite = split.predictions(np.full((14, 3), np.nan, np.float32))
    assert [rank for _, rank in not_finite] == [6, 6, 6, 7, 6, 7, 7]


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'train.global_batch_size': 1}, 'config.train.global_batch_size: is 1'),
        ({'train.global_batch_size': 512}, 'has 160 examples'),
        ({'embedding.matryoshka_dims': '(64,32)'}, 'has the dimension 64; the vectors of the model have 32'),
        ({'embedding.anchor': 'query'}, "train.jsonl:1: has no column 'query'"),
        ({'task.train': 'jsonl:blank.jsonl'}, "blank.jsonl:2: has no text in 'positive'"),
        ({'embedding.loss': 'cosent', 'task.train': 'jsonl:words.jsonl'}, "words.jsonl:2: has the score 'high'"),
        ({'task.validation': 'jsonl:constant.jsonl'}, 'constant.jsonl:1: has the score 2, as do all 2 pairs'),
        ({'task.train': 'corpus:none'}, 'is not a corpus'),
        ({'task.validation': 'corpus:none'}, 'is not a corpus'),
        ({'task.train': 'corpus:none', 'embedding.loss': 'cosent'}, 'the pairs of corpus:none have no scores'),
        ({'task.train': "(('jsonl:dev.jsonl', 1), ('jsonl:dev.jsonl', 2))"}, 'names jsonl:dev.jsonl twice'),
        ({'task.metrics': "('sts_spearman',)"}, 'config.task.metrics: has only metrics that do not apply'),
        ({'task.predict': 'jsonl:dev.jsonl'}, 'config.task.predict'),
        ({'train.reduction': 'exact'}, 'config.train.reduction'),
    ],
)
def test_unusable_data_exits_2_and_writes_nothing(directory: Path, changes: dict, words: str, capsys) -> None:
    pair = {'anchor': 'film', 'positive': 'end', 'score': 2}
    lines = {'blank': [pair, pair | {'positive': ' '}], 'constant': [pair, pair]}
    lines['words'] = [pair, pair | {'score': 'high'}]
    for name, records in lines.items():
        (directory / f'{name}.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    flags = [*_flags(), *(f'--config.{name}={value}' for name, value in changes.items())]
    assert run(['finetune', *flags, '--workdir=refused'], directory) == 2
    assert words in capsys.readouterr().err and not (directory / 'refused').exists()


@pytest.mark.compiles
def test_export_and_workdir_embed_as_trained(directory: Path, finished: Path) -> None:
    (directory / 'lines.txt').write_text('fine film\ndull plot\n')
    assert run(['export', '--workdir=pairs', '--output=exported'], directory) == 0
    for model, output in (('pairs', 'a.npy'), ('exported', 'b.npy')):
        assert run(['embed', f'--model={model}', '--input=lines.txt', f'--output={output}'], directory) == 0
    ours, exported = np.load(directory / 'a.npy'), np.load(directory / 'b.npy')
    np.testing.assert_allclose(ours, exported, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)  # `embedding.normalize`
    proof = json.loads((directory / 'exported' / 'proof.json').read_text())
    assert 'vectors_compared_with' in proof
