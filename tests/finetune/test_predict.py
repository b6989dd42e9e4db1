"""A fine-tuned model from any directory predicts like `transformers`; `predict` reads and writes lines."""

import dataclasses
import io
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bert_jax
from bert_jax import console
from bert_jax.__main__ import main
from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import Record
from bert_jax.errors import BadInput
from bert_jax.finetune import predict
from bert_jax.finetune.exported import write_task
from bert_jax.finetune.heads import builder
from bert_jax.finetune.predict import FineTuned
from bert_jax.pretrained import hugging_face
from bert_jax.pretrained.bert import HUB
from tests.support.models import MODEL, TOKENS, Vocabulary, read_tokenizer

LABELS = {'classification': ('bad', 'fine', 'great'), 'regression': (), 'tagging': ('O', 'B-PER', 'I-PER'), 'spans': ()}
REVIEWS = ['the film is fine', 'awful plot, dull actor', '', 'great ' * 40]
CONTEXT = 'ada is in town. bob is in the end, and cleo is far'


def write_task_model(directory: Path, kind: str, *, task: Task | None = None, threshold: float | None = None) -> str:
    """Writes a random BERT with a task head as `transformers` would or, with `task`, as `export` does."""
    directory.mkdir(parents=True)
    read_tokenizer(directory)
    labels = LABELS[kind]
    rng, build = np.random.default_rng(3), builder(kind, {'regression': 1, 'spans': 2}.get(kind, len(labels)))
    shapes = nnx.state(nnx.eval_shape(lambda: build(MODEL, len(TOKENS), nnx.Rngs(0))), nnx.Param)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
    more: dict[str, Any] = {'id2label': {str(n): label for n, label in enumerate(labels)}} if labels else {}
    more |= {'problem_type': 'regression', 'num_labels': 1} if kind == 'regression' else {}
    hugging_face.write_model(directory, params, MODEL, Vocabulary(len(TOKENS)), HUB.task_class(kind), more)
    if task:
        write_task(directory, task, threshold)
    return str(directory)


def reference(directory: str, *texts: Any, **options: Any) -> tuple[Any, Any]:
    """Returns (encoding, outputs) of `transformers` for one example."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    transformers.utils.logging.disable_progress_bar()
    model = getattr(transformers, json.loads((Path(directory) / 'config.json').read_text())['architectures'][0])
    tokenizer = transformers.BertTokenizerFast(f'{directory}/vocab.txt', do_lower_case=True, strip_accents=False)
    encoding = tokenizer(*texts, return_tensors='pt', truncation=True, max_length=MODEL.max_positions, **options)
    with torch.no_grad():
        return encoding, model.from_pretrained(directory).eval()(**encoding)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


@pytest.mark.compiles
def test_classes_and_values_match_transformers(tmp_path: Path) -> None:
    directory = write_task_model(tmp_path / 'classes', 'classification')
    model = bert_jax.load_pretrained(directory)
    pairs = [('the film', 'is great'), ('ada', 'bob ' * 40)]
    for example, found in zip([*REVIEWS, *pairs], model.predict([*REVIEWS, *pairs]), strict=True):
        texts = example if isinstance(example, tuple) else (example,)
        expected = softmax(reference(directory, *texts)[1].logits[0].numpy())
        np.testing.assert_allclose([*found['scores'].values()], expected, atol=1e-5)
        assert list(found['scores']) == [*LABELS['classification']] and found['score'] == max(found['scores'].values())
        assert found['label'] == LABELS['classification'][expected.argmax()]
    directory = write_task_model(tmp_path / 'numbers', 'regression')
    [found] = bert_jax.load_pretrained(directory).predict(['the film'])
    assert found['score'] == pytest.approx(float(reference(directory, 'the film')[1].logits[0, 0]), abs=1e-4)
    assert bert_jax.load_pretrained(directory).encode(['the film']).mean_pooled.shape == (1, MODEL.hidden_size)
    with pytest.raises(BadInput, match='example 1: has 3 texts'):
        model.predict(['one', ('one', 'two', 'three')])
    with pytest.raises(BadInput, match='no trained masked-LM head'):
        model.fill_mask('the [MASK]')


@pytest.mark.compiles
@pytest.mark.parametrize('kind', LABELS)
def test_encoder_of_every_task_gives_sentence_vectors(kind: str, tmp_path: Path) -> None:
    model = bert_jax.load_pretrained(write_task_model(tmp_path / 'model', kind))
    vectors = model.encode(['the film', 'ada is in town']).mean_pooled
    assert vectors.shape == (2, MODEL.hidden_size) and not np.allclose(vectors[0], vectors[1])


@pytest.mark.compiles
def test_tags_match_transformers_at_first_token_of_words(tmp_path: Path) -> None:
    directory = write_task_model(tmp_path / 'model', 'tagging')
    sentences = ['ada lives in town', 'bob', '', ['the', 'zebra', 'is', 'ada']]
    for words, found in zip(sentences, bert_jax.load_pretrained(directory).predict(sentences), strict=True):
        words = words.split() if isinstance(words, str) else words
        assert [each['word'] for each in found['tags']] == words
        if words:
            encoding, outputs = reference(directory, words, is_split_into_words=True)
            first = [encoding.word_ids().index(number) for number in range(len(words))]
            expected = softmax(outputs.logits[0].numpy())[first]
            assert [each['tag'] for each in found['tags']] == [LABELS['tagging'][n] for n in expected.argmax(1)]
            np.testing.assert_allclose([each['score'] for each in found['tags']], expected.max(1), atol=1e-5)
    long = ' '.join(['ada'] * 100)  # in several windows, each word in one of them
    assert len(bert_jax.load_pretrained(directory).predict([long])[0]['tags']) == 100


@pytest.mark.compiles
def test_answer_is_best_span_or_none_above_threshold(tmp_path: Path) -> None:
    directory = write_task_model(tmp_path / 'model', 'spans')
    task = Task(kind='spans', sequence_length=32, stride=8, max_question_tokens=8, max_answer_tokens=6)
    model = dataclasses.replace(bert_jax.load_pretrained(directory), task=task)
    [found] = model.predict([('who is in town', CONTEXT)])
    encoding, outputs = reference(directory, 'who is in town', CONTEXT, return_offsets_mapping=False)
    start, end = outputs.start_logits[0].numpy(), outputs.end_logits[0].numpy()
    positions = [n for n, kind in enumerate(encoding.sequence_ids()) if kind == 1]
    spans = [(start[i] + end[j], i, j) for i, j in itertools.product(positions, positions) if i <= j < i + 6]
    score, first, last = max(spans)
    chars = encoding.token_to_chars(first).start, encoding.token_to_chars(last).end
    assert (found['start'], found['end'], found['answer']) == (*chars, CONTEXT[slice(*chars)])
    assert 'null_odds' not in found
    for shift, answers in ((-0.01, False), (0.01, True)):
        odds = float(start[0] + end[0] - score)
        choosy = dataclasses.replace(model, null_threshold=odds + shift)
        [found] = choosy.predict([('who is in town', CONTEXT)])
        assert found['null_odds'] == pytest.approx(odds, abs=1e-4)
        assert bool(found['answer']) == answers == (found['start'] is not None)


@pytest.mark.compiles
def test_many_examples_keep_order_and_run_in_chunks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(predict, 'EXAMPLES_AT_ONCE', 4)
    model = bert_jax.load_pretrained(write_task_model(tmp_path / 'model', 'classification'))
    texts = [' '.join(['film', 'plot', 'great'][: 1 + n % 3] * (1 + n % 7)) for n in range(11)]
    taken = []

    def records():
        for number, text in enumerate(texts):
            taken.append(number)
            yield Record(f'{number}', {'text': text})

    for number, (record, found) in enumerate(predict.predict_stream(model, records(), Counter())):
        assert record.where == f'{number}' and len(taken) <= (number // 4 + 1) * 4
        assert found['scores'] == pytest.approx(model.predict([texts[number]])[0]['scores'], abs=1e-5)


# --- The command. ---


def command(*flags: str) -> int:
    return main(['bert_jax', 'predict', *flags])


@pytest.mark.compiles
def test_predict_reads_lines_pairs_and_json(tmp_path: Path, capsys, monkeypatch) -> None:
    task = Task(text='body', text_pair='', sequence_length=32)
    single = write_task_model(tmp_path / 'single', 'classification', task=task)
    both = write_task_model(
        tmp_path / 'both', 'classification', task=dataclasses.replace(task, text_pair='other', text='one')
    )
    (tmp_path / 'in.txt').write_bytes(b'the film\tis fine\n\xff great\r\n\n')
    assert command(f'--model={single}', f'--input={tmp_path}/in.txt', '--json') == 0
    printed = capsys.readouterr()
    results = json.loads(printed.out)['results']
    (tmp_path / 'none.txt').write_bytes(b'')
    assert command(f'--model={single}', f'--input={tmp_path}/none.txt', '--json') == 0
    assert json.loads(capsys.readouterr().out) == {'results': []}
    assert command(f'--model={single}', f'--input={tmp_path}/none.txt', f'--output={tmp_path}/none.jsonl') == 0
    assert (tmp_path / 'none.jsonl').read_text() == ''
    texts = ['the film\tis fine', '\ufffd great', '']
    assert results == bert_jax.load_pretrained(single).predict(texts)
    assert printed.err.endswith('1 x invalid utf8 replaced\n') and 'invalid bytes' not in printed.err
    (tmp_path / 'in.jsonl').write_text('{"body": "the film\\tis fine", "id": 7}\n\n{"body": "dull"}\n')
    assert command(f'--model={single}', f'--input={tmp_path}/in.jsonl', f'--output={tmp_path}/out.jsonl') == 0
    lines = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    assert lines[0] == {'id': 7} | results[0] and 'id' not in lines[1] and len(lines) == 2
    capsys.readouterr()
    (tmp_path / 'in.tsv').write_text('x\tone\tother\n1\tthe film\tis fine\n')
    assert command(f'--model={both}', f'--input=tsv:{tmp_path}/in.tsv') == 0
    from_tsv = capsys.readouterr().out
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(b'the film\tis fine\n')))
    assert command(f'--model={both}', '--input=-') == 0
    assert capsys.readouterr().out == from_tsv
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(b'{"one": "the film", "other": "is fine"}')))
    assert command(f'--model={both}', '--input=jsonl:-') == 0
    assert capsys.readouterr().out == from_tsv
    [expected] = bert_jax.load_pretrained(both).predict([('the film', 'is fine')])
    assert from_tsv == f'{expected["label"]}\t{expected["score"]}\n'


@pytest.mark.compiles
def test_predict_stops_when_its_output_pipe_closes(tmp_path: Path, capsys, monkeypatch) -> None:
    directory = write_task_model(tmp_path / 'model', 'classification', task=Task(text='a', sequence_length=32))
    (tmp_path / 'in.txt').write_text('the film\n' * 50)
    is_read = iter([True, True, False])
    monkeypatch.setattr(console, 'output_is_read', lambda: next(is_read))
    assert command(f'--model={directory}', f'--input={tmp_path}/in.txt') == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    'content, flags, words',
    [
        ('a\n', [], ['in.txt:1: has 1 text,', 'one and other']),
        ('a\tb\tc\n', [], ['in.txt:1: has 3 texts,']),
        ('{"one": "a"}\n', ['--input=in.jsonl'], ["in.jsonl:1: has no 'other'; it has 'one'", '--text_pair=COLUMN']),
        ('x\tone\n1\ta\n', ['--input=tsv:in.txt'], ["in.txt:2: has no 'other'; it has 'x', 'one'", '--text_pair']),
        ('{"one": "a", "other": []}\n', ['--input=in.jsonl'], ["'other' is of type list"]),
        ('[]\n', ['--input=in.jsonl'], ['in.jsonl:1: is a list']),
        ('{"one": "\\ud800", "other": "b"}\n', ['--input=in.jsonl'], ['in.jsonl:1: contains a lone surrogate']),
        ('a\tb\n', ['--input=no'], ['--input=no: is not a file']),
        ('a\tb\n', ['--input=tsv:no'], ['--input=tsv:no: is not a file']),
        ('a\tb\n', ['--output=no/out.jsonl'], ['no is not a directory']),
        ('a\tb\n', ['--output=.'], ['--output=.: is a directory']),
        ('a\tb\n', ['--output=no/out'], ['--output=no/out: no is not a directory']),
        ('a\tb\n', ['--model=no'], ['no/config.json: does not exist']),
        ('a\tb\n', ['--model=model@3'], ['model@3: is not a workdir']),
    ],
)
def test_invalid_input_is_rejected_and_nothing_written(
    content: str, flags: list[str], words: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    write_task_model(tmp_path / 'model', 'classification', task=Task(text='one', text_pair='other', sequence_length=32))
    monkeypatch.chdir(tmp_path)
    name = 'in.jsonl' if '--input=in.jsonl' in flags else 'in.txt'
    Path(name).write_text(content)
    given = dict(flag.split('=') for flag in ['--model=model', f'--input={name}', '--output=out.jsonl', *flags])
    assert command(*(f'{flag}={value}' for flag, value in given.items())) == 2
    printed = capsys.readouterr().err
    for word in words:
        assert word in printed
    assert {path.name for path in tmp_path.iterdir()} == {'model', name}


@pytest.mark.parametrize(
    'kind, change, words',
    [
        ('classification', {'id2label': {'0': 'a'}}, ['id2label does not name the outputs']),
        ('classification', {'id2label': {'0': 'a', '1': 'a', '2': 'b'}}, ['id2label']),
        ('classification', {'problem_type': 'multi_label_classification'}, ['multi_label']),
        ('classification', {'problem_type': 'regression'}, ['has 3 outputs']),
        ('classification', {'architectures': ['BertForQuestionAnswering']}, ['no qa_outputs.weight']),
    ],
)
def test_mismatched_head_is_rejected(kind: str, change: dict, words: list[str], tmp_path: Path) -> None:
    directory = write_task_model(tmp_path / 'model', kind)
    path = Path(directory) / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput) as caught:
        bert_jax.load_pretrained(directory)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    'change', [{'kind': 'spans'}, {'sequence_length': 99}, {'stride': 'x'}, {'null_threshold': 'x'}]
)
def test_invalid_task_file_is_rejected(change: dict, tmp_path: Path) -> None:
    directory = write_task_model(tmp_path / 'model', 'tagging', task=Task(kind='tagging', sequence_length=32))
    assert isinstance(bert_jax.load_pretrained(directory), FineTuned)
    path = Path(directory) / 'task.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput, match=r'task\.json: '):
        bert_jax.load_pretrained(directory)
