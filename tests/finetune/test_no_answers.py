"""Questions without an answer, as in SQuAD 2.0, are learned, scored officially and predicted by a threshold."""

import json
import string
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from bert_jax.config.finetuning import Task, Train, finetune, resolve
from bert_jax.finetune.answers import score_with_no_answer
from bert_jax.finetune.command import describe, summarize
from bert_jax.finetune.evaluator import TaskEvaluator
from bert_jax.finetune.seed import SeedResult
from bert_jax.finetune.spans import AnswerPrediction, NoAnswerSplit, SpanSplit, read_spans
from bert_jax.finetune.tasks import read_task
from bert_jax.finetune.workdirs import fingerprint
from tests.support.commands import run
from tests.support.models import read_tokenizer, write_model
from tests.support.processes import ROOT
from tests.support.tasks import NAMES, OTHER, squad

TASK = Task(kind='spans', sequence_length=24, stride=6, max_question_tokens=6, max_answer_tokens=5, n_best=6)
PARAGRAPHS = [
    ('ada is in town.', [('who is in town?', [('ada', 0)]), ('who is far?', [])]),
    ('bob is in the end. ' * 6, [('who is in the end?', [('bob', 0)]), ('who is fine?', []), ('who?', [])]),
]


def write(path: Path, *, is_impossible: bool = True, paragraphs: list = PARAGRAPHS) -> str:
    """Writes a file in SQuAD 2.0 format, or 1.1 with unanswered questions."""
    content = json.loads(squad(paragraphs))
    for article in content['data']:
        for paragraph in article['paragraphs']:
            for question in paragraph['qas']:
                question |= {'is_impossible': not question['answers']} if is_impossible else {}
    path.write_text(json.dumps(content))
    return f'squad:{path}'


# --- Scores, compared with the rules of evaluate-v2.0.py, applied to one question at a time. ---


def official(texts: list[str], odds: list[float], gold: list[list[str]]) -> dict[str, float]:
    def normal(text: str) -> list[str]:
        kept = ''.join(character for character in text.lower() if character not in string.punctuation)
        return [word for word in kept.split() if word not in ('a', 'an', 'the')]

    def exact(mine: list[str], one: list[str]) -> float:
        return float(mine == one)

    def f1(mine: list[str], one: list[str]) -> float:
        if not mine or not one:
            return float(mine == one)
        shared = sum((Counter(mine) & Counter(one)).values())
        return 2 * shared / (len(mine) + len(one))

    found: dict[str, float] = {}
    for name, score in (('exact', exact), ('f1', f1)):
        raw = []
        for text, answers in zip(texts, gold, strict=True):
            golds = [normal(one) for one in answers if normal(one)] or [[]]
            raw.append(max(score(normal(text), one) for one in golds))

        def at(threshold: float, raw: list[float] = raw) -> list[float]:
            return [
                float(not answers) if odd > threshold else one
                for one, odd, answers in zip(raw, odds, gold, strict=True)
            ]

        found[name] = sum(at(0)) / len(gold)
        for prefix, wanted in (('HasAns', True), ('NoAns', False)):
            some = [one for one, answers in zip(at(0), gold, strict=True) if bool(answers) == wanted]
            if some:
                found[f'{prefix}_{name}'] = sum(some) / len(some)
        # Tries all thresholds. One below all odds answers no question; an answer to an unanswerable question scores 0.
        best, threshold = sum(not answers for answers in gold), 0.0
        for odd in sorted(odds):
            total = sum(
                float(not answers) if other > odd else (one if answers else float(not text))
                for one, other, answers, text in zip(raw, odds, gold, texts, strict=True)
            )
            if total > best:
                best, threshold = total, odd
        found[f'best_{name}'], found[f'best_{name}_thresh'] = best / len(gold), threshold
    return found


def test_no_answer_scores_match_the_official_scorer() -> None:
    rng = np.random.default_rng(0)
    words = ['ada', 'The', 'bob.', 'a', 'town', '']
    for _ in range(200):
        size = int(rng.integers(1, 12))
        texts = [' '.join(rng.choice(words, rng.integers(1, 3))).strip() for _ in range(size)]
        gold = [[' '.join(rng.choice(words, 2)) for _ in range(rng.integers(0, 3))] for _ in range(size)]
        odds = rng.permutation(size) - size / 2 + 0.25  # no two are equal
        assert score_with_no_answer(texts, odds.tolist(), gold) == pytest.approx(official(texts, odds.tolist(), gold))


def test_scores_omit_groups_without_questions() -> None:
    assert 'NoAns_f1' not in score_with_no_answer(['ada'], [-1.0], [['ada']])
    assert 'HasAns_f1' not in score_with_no_answer(['ada'], [-1.0], [[]])


# --- Reading and learning. ---


def open_training(source: str, tmp_path: Path, **changes: object) -> SpanSplit:
    task = Task(**(vars(TASK) | changes))
    return read_spans(source, task, read_tokenizer(tmp_path), is_training=True)


def test_unanswerable_questions_are_labelled_cls_in_every_window(tmp_path: Path) -> None:
    split = open_training(write(tmp_path / 'a.json'), tmp_path)
    assert isinstance(split, NoAnswerSplit) and len(split.questions) == 5
    assert split.counts['question without an answer'] == 3
    for example, label in zip(split.example_indices, split.rows.labels, strict=True):
        if not split.questions[example].answers:
            assert label.tolist() == [0, 0]
    answered = {
        int(example) for example, label in zip(split.example_indices, split.rows.labels, strict=True) if label.any()
    }
    assert answered == {0, 2} and len(split.rows) > 5


@pytest.mark.parametrize(
    'is_impossible, unanswerable, is_learned',
    [(True, 'auto', True), (False, 'auto', False), (False, 'learn', True), (True, 'drop', False)],
)
def test_file_or_config_decides_whether_no_answer_is_learned(
    is_impossible: bool, unanswerable: str, is_learned: bool, tmp_path: Path
) -> None:
    source = write(tmp_path / 'a.json', is_impossible=is_impossible)
    split = open_training(source, tmp_path, unanswerable=unanswerable)
    assert isinstance(split, NoAnswerSplit) == is_learned
    dropped = open_training(write(tmp_path / 'b.json', is_impossible=False), tmp_path)
    same = split.rows.content_hash() == dropped.rows.content_hash()
    assert same != is_learned  # if it is not learned, the rows do not change


def test_training_file_decides_no_answer_for_all_splits(tmp_path: Path, capsys) -> None:
    second, first = write(tmp_path / 'v2.json'), write(tmp_path / 'v1.json', is_impossible=False)
    for train, dev in ((second, first), (first, second)):
        task = Task(**(vars(TASK) | {'train': train, 'validation': dev, 'predict': dev}))
        data = read_task(task, Train(), read_tokenizer(tmp_path))
        assert data.learns_no_answer == (train == second)
        splits = [*data.validation.values(), data.predict]
        assert all(isinstance(split, NoAnswerSplit) == data.learns_no_answer for split in splits)
        given = finetune('spans').to_dict() | {'init': 'x'}
        given['task'] |= {'stride': 32}
        config = resolve(given)
        assert ('unanswerable' in fingerprint(config, data, '', 1)) == data.learns_no_answer


# --- Predictions. ---


def test_no_answer_is_a_candidate_with_lowest_cls_score(tmp_path: Path) -> None:
    source = write(tmp_path / 'a.json')
    split = read_spans(source, TASK, read_tokenizer(tmp_path), learns_no_answer=True)
    plain = read_spans(source, TASK, read_tokenizer(tmp_path), learns_no_answer=False)
    rng = np.random.default_rng(1)
    outputs = rng.standard_normal((len(split.rows), TASK.sequence_length, 2)).astype(np.float32)
    predictions = split.predictions(outputs)
    with_answer = [n for n, question in enumerate(split.questions) if question.answers]
    of_plain = np.isin(split.example_indices, with_answer)
    for number, expected in zip(with_answer, plain.predictions(outputs[of_plain]), strict=True):
        found = predictions[number]
        spans = [(text, probability) for text, probability in found.candidates if text]
        assert found.best_span == expected[0][0] and [text for text, _ in spans] == [text for text, _ in expected]
        null = min(float(outputs[row, 0].sum()) for row in np.flatnonzero(split.example_indices == number))
        ratio = dict(found.candidates)[''] / spans[0][1]
        assert np.log(ratio) == pytest.approx(found.null_odds, abs=1e-4)
        assert sum(probability for _, probability in found.candidates) == pytest.approx(1)
        score = null - found.null_odds  # of the best span
        assert score == pytest.approx(max(_scores(split, outputs, number)), abs=1e-5)
    gold = [[text for text, _ in question.answers] for question in split.questions]
    texts, odds = [found.best_span for found in predictions], [found.null_odds for found in predictions]
    figures = split.metrics(['f1', 'exact_match'], predictions)
    assert list(figures)[:2] == ['f1', 'exact'] and figures == pytest.approx(official(texts, odds, gold))
    files = {ending: json.loads(content) for ending, content in split.files(predictions).items()}
    assert [*files['.json'].values()] == ['' if odd > 0 else text for odd, text in zip(odds, texts, strict=True)]
    assert [*files['-null_odds.json'].values()] == odds
    assert '' in [each['text'] for each in files['-nbest.json']['q0']]


def _scores(split: SpanSplit, outputs: np.ndarray, question: int) -> list[float]:
    """Returns the score of every span that may answer a question."""
    found = []
    for row in np.flatnonzero(split.example_indices == question):
        window, places = split.windows[row], range(len(split.windows[row].offsets))
        inside = outputs[row, window.text_start :]
        for first in places:
            if window.has_most_context[first]:
                lasts = [last for last in places if first <= last < first + TASK.max_answer_tokens]
                best = {*np.argsort(-inside[: len(places), 1], kind='stable')[: TASK.n_best].tolist()}
                firsts = np.where(window.has_most_context, inside[: len(places), 0], -np.inf)
                if first in np.argsort(-firsts, kind='stable')[: TASK.n_best]:
                    found += [float(inside[first, 0] + inside[last, 1]) for last in lasts if last in best]
    return found


def test_unlabelled_file_uses_threshold_of_validation_file(tmp_path: Path) -> None:
    source = write(tmp_path / 'dev.json')
    (tmp_path / 'test').mkdir()
    unlabelled = write(tmp_path / 'test' / 'test.json')
    task = Task(**(vars(TASK) | {'train': source, 'validation': source, 'predict': unlabelled}))
    data = read_task(task, Train(), read_tokenizer(tmp_path))
    predictions = [AnswerPrediction('ada', [('ada', 1.0)], odds) for odds in (-3.0, -1.0, -2.0, -0.5, 2.0)]
    evaluator = TaskEvaluator(data, mock.Mock(), mock.Mock(), mock.Mock())
    with (
        mock.patch.object(NoAnswerSplit, 'predictions', lambda self, outputs: predictions),
        mock.patch.object(TaskEvaluator, '_outputs', lambda *_: np.zeros(0)),
    ):
        metrics, (of_dev, of_test) = evaluator.evaluate(mock.Mock())
    assert metrics['best_f1_thresh'] == -3.0  # 'ada' is right for the first question alone
    assert [found.answer for found in of_dev] == ['ada', 'ada', 'ada', 'ada', '']
    assert [found.answer for found in of_test] == ['ada', '', '', '', '']
    shown = describe(summarize([SeedResult(0, 1, True, None, metrics)], 1))
    assert '  best_f1_thresh       -3.000' in shown and '  exact                 40.0%' in shown


# --- From files to answers. ---


def towns(num_questions: int, seed: int) -> list:
    """Writes questions about who is in town; half of the contexts do not say."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(num_questions):
        names, is_there = rng.permutation(NAMES), bool(rng.integers(2))
        parts = [f'{names[0]} is in the {rng.choice(OTHER)}.', f'{names[1]} is in {"town" if is_there else "plot"}.']
        context = ' '.join(rng.permutation(parts))
        found.append((context, [('who is in town?', [(names[1], context.index(names[1]))] if is_there else [])]))
    return found


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.usefixtures('one_device')
def test_small_model_learns_to_predict_no_answer(tmp_path: Path, capsys) -> None:
    write_model(tmp_path / 'model')
    for number, name in enumerate(('train', 'dev', 'test')):
        write(tmp_path / f'{name}.json', paragraphs=towns((400, 60, 60)[number], number))
    values = {
        'init': 'model',
        'task.train': 'squad:train.json',
        'task.validation': 'squad:dev.json',
        'task.predict': 'squad:test.json',
        'task.sequence_length': 32,
        'task.stride': 8,
        'task.max_question_tokens': 8,
        'task.max_answer_tokens': 3,
        'train.global_batch_size': 16,
        'train.epochs': 8,
        'optimizer.peak_learning_rate': 3e-3,
        'model.dtype': 'float32',  # as `evaluate` computes
    }
    flags = [f'--config.{name}={value}' for name, value in values.items()]
    arguments = ['finetune', f'--config={ROOT}/configs/finetune/squad.py:v2', *flags, '--workdir=run', '--json']
    assert run(arguments, tmp_path) == 0
    metrics = json.loads(capsys.readouterr().out)['metrics']
    assert next(iter(metrics)) == 'f1' and min(metrics['best_f1'], metrics['NoAns_f1'], metrics['HasAns_f1']) > 0.8
    predictions = json.loads((tmp_path / 'run' / 'seed-0' / 'predictions-dev.json').read_text())
    odds = json.loads((tmp_path / 'run' / 'seed-0' / 'predictions-dev-null_odds.json').read_text())
    assert {name for name, text in predictions.items() if not text} == {name for name, odd in odds.items() if odd > 0}
    of_test = json.loads((tmp_path / 'run' / 'seed-0' / 'predictions-predict.json').read_text())
    assert run(['export', '--workdir=run', '--output=export'], tmp_path) == 0
    for model in ('run', 'export'):
        capsys.readouterr()
        assert run(['predict', f'--model={model}', '--input=squad:test.json', '--json'], tmp_path) == 0
        found = {each['id']: each['answer'] for each in json.loads(capsys.readouterr().out)['results']}
        assert found == of_test and '' in found.values()
    assert run(['evaluate', '--workdir=run', '--json'], tmp_path) == 0
    assert json.loads(capsys.readouterr().out)['metrics'] == pytest.approx(metrics)
