"""Windows cover every answer, answers are recovered, and unusable questions are dropped and counted."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config.finetuning import Task, finetune, resolve
from bert_jax.errors import BadInput
from bert_jax.finetune.spans import SpanSplit, read_spans
from bert_jax.finetune.windows import Window, cut_windows, rank_spans, with_probabilities
from tests.support.models import read_tokenizer
from tests.support.tasks import OTHER, squad

TASK = Task(kind='spans', sequence_length=24, stride=6, max_question_tokens=6, max_answer_tokens=5, n_best=6)


def _open(tmp_path: Path, paragraphs: list, is_training: bool = True) -> SpanSplit:
    (tmp_path / 'a.json').write_text(squad(paragraphs))
    return read_spans(f'squad:{tmp_path}/a.json', TASK, read_tokenizer(tmp_path), is_training=is_training)


def _long_paragraphs() -> list:
    """Returns contexts of up to 80 words with punctuation, capitals and accents; answers have 1 to 3 words."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(30):
        words = [str(rng.choice([*OTHER, 'Ada', 'Bob,', '(town)', 'É2'])) for _ in range(rng.integers(1, 80))]
        first = int(rng.integers(len(words)))
        answer = ' '.join(words[first : first + int(rng.integers(1, 4))])
        start = len(' '.join([*words[:first], ''])) if first else 0
        found.append((' '.join(words), [('who is in town?', [(answer, start)])]))
    return found


def test_every_answer_is_labelled_in_some_window(tmp_path: Path) -> None:
    paragraphs = _long_paragraphs()
    split = _open(tmp_path, paragraphs)
    assert len(split.rows) > 60 and split.counts['answer in no window as a whole'] == 0
    labelled = dict.fromkeys(range(len(paragraphs)), 0)
    for row, (window, (first, last)) in enumerate(zip(split.windows, split.rows.labels, strict=True)):
        context, ((_, [(answer, start)]),) = paragraphs[split.example_indices[row]]
        ends = window.offsets[0, 0], window.offsets[-1, 1]
        if ends[0] <= start and start + len(answer) <= ends[1]:
            low, high = window.offsets[first - window.text_start, 0], window.offsets[last - window.text_start, 1]
            assert context[low:high] == answer
            labelled[int(split.example_indices[row])] += 1
        else:
            assert (first, last) == (0, 0)
    assert min(labelled.values()) >= 1
    lengths = np.diff(split.rows.starts)
    assert lengths.max() == TASK.sequence_length


def test_windows_are_a_stride_apart_and_partition_tokens(tmp_path: Path) -> None:
    for num_tokens in (0, 1, 15, 16, 17, 40, 61):
        offsets = np.stack([np.arange(num_tokens)] * 2, axis=1)
        windows = cut_windows(offsets, 7, TASK)  # room for 16 tokens
        assert [window.first_token for window in windows] == [6 * n for n in range(len(windows))]
        covered = np.concatenate([window.offsets[:, 0] for window in windows])
        assert {*covered.tolist()} == {*range(num_tokens)}
        chosen = np.concatenate([window.offsets[window.has_most_context, 0] for window in windows])
        assert sorted(chosen.tolist()) == list(range(num_tokens))
        for token in range(num_tokens):  # as the original works it out, window by window
            scores = []
            for window in windows:
                position, last = token - window.first_token, len(window.offsets) - 1
                inside = 0 <= position <= last
                scores.append(min(position, last - position) + 0.01 * len(window.offsets) if inside else -1)
            best = windows[int(np.argmax(scores))]
            assert best.has_most_context[token - best.first_token]


def test_best_answers_match_brute_force_over_all_spans() -> None:
    rng = np.random.default_rng(1)
    context = ' '.join(f'w{n}' for n in range(9))
    offsets = np.array([(3 * n, 3 * n + 2) for n in range(9)])
    windows = [
        Window(0, 3, offsets[:6], np.array([True] * 4 + [False] * 2)),
        Window(3, 3, offsets[3:], np.array([False] + [True] * 5)),
    ]
    outputs = [rng.standard_normal((12, 2)).astype(np.float32) for _ in windows]
    scores: dict[str, float] = {}
    for window, logits in zip(windows, outputs, strict=True):
        for first, last in itertools.product(range(6), range(6)):
            if window.has_most_context[first] and first <= last < first + 3:
                text = context[window.offsets[first, 0] : window.offsets[last, 1]]
                score = float(logits[3 + first, 0] + logits[3 + last, 1])
                scores[text] = max(score, scores.get(text, -np.inf))
    expected = sorted(scores.items(), key=lambda item: -item[1])
    found = with_probabilities(rank_spans(context, windows, outputs, n_best=100, max_tokens=3))
    assert [text for text, _ in found] == [text for text, _ in expected]
    weights = np.exp([score for _, score in expected])
    np.testing.assert_allclose([probability for _, probability in found], weights / weights.sum(), rtol=1e-5)
    fewer = rank_spans(context, windows, outputs, n_best=6, max_tokens=3)
    assert fewer[0].text == found[0][0] == context[fewer[0].start : fewer[0].end]


def test_answer_missing_from_its_text_is_dropped_in_training_only(tmp_path: Path, capsys) -> None:
    paragraphs = [
        ('ada is in town.', [('who?', [('ada', 0)]), ('who?', [('bob', 0)]), ('where?', [('town', 99)])]),
        ('the end', [('who?', []), ('what?', [('nothing', 0), ('end', 4)])]),
    ]
    split = _open(tmp_path, paragraphs)
    assert [question.id for question in split.questions] == ['q0', 'q4']
    assert split.counts['answer not in its text, dropped'] == 2
    assert split.counts['question without an answer, dropped'] == 1
    validation = _open(tmp_path, paragraphs, is_training=False)
    assert validation.gold == [['ada'], ['bob'], ['town'], ['nothing', 'end']]
    assert validation.counts['answer not in its text'] == 2
    predictions = [[('Ada.', 1.0)], [], [('the town', 1.0)], [('the end', 1.0)]]
    assert validation.metrics(['exact_match', 'f1'], predictions) == {'exact_match': 0.75, 'f1': 0.75}
    files = validation.files(predictions)
    assert json.loads(files['.json']) == {'q0': 'Ada.', 'q1': '', 'q2': 'the town', 'q4': 'the end'}
    assert json.loads(files['-nbest.json'])['q1'] == []


def test_answer_format_of_datasets_gives_same_rows(tmp_path: Path) -> None:
    record = {'id': 1, 'question': 'who?', 'context': 'ada is', 'answers': {'text': ['ada'], 'answer_start': [0]}}
    (tmp_path / 'a.jsonl').write_text(json.dumps(record) + '\n')
    flat = read_spans(f'jsonl:{tmp_path}/a.jsonl', TASK, read_tokenizer(tmp_path), is_training=True)
    nested = _open(tmp_path, [('ada is', [('who?', [('ada', 0)])])])
    assert flat.rows.content_hash() == nested.rows.content_hash()


@pytest.mark.parametrize(
    'content, words',
    [
        ('{"data": 5}', 'is not SQuAD JSON'),
        ('not json', 'is not JSON'),
        ('{"data": "\\ud800"}', 'contains a lone surrogate'),
        (squad([('ada', [('who?', [('bob', 0)])])]), 'no usable question'),
        (
            squad([('ada', [('who?', [])])]).replace('"answers": [], ', '').replace(', "answers": []', ''),
            "no 'answers'",
        ),
    ],
)
def test_invalid_question_file_is_reported(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(BadInput) as caught:
        read_spans(f'squad:{tmp_path}/a.json', TASK, read_tokenizer(tmp_path), is_training=True)
    assert words in str(caught.value)


def test_stride_that_skips_tokens_is_rejected() -> None:
    config = finetune('spans').to_dict() | {'init': 'x'}
    config['task'] |= {'sequence_length': 128, 'max_question_tokens': 64, 'stride': 62}
    with pytest.raises(BadInput, match='task.stride.*is 62'):
        resolve(config)
    config['task'] |= {'stride': 61}
    resolve(config)
