"""A fine-tuned model in a Hugging Face directory: an export of `finetune`, or one from elsewhere.

An export also holds task.json: how the texts of its task are laid out, which config.json has no keys for. For a model
from elsewhere the defaults of `config.task` take its place, as far as it has positions for them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from bert_jax.config.fields import resolve_section
from bert_jax.config.finetuning import FRAME, Task, unknown_field
from bert_jax.errors import BadInput
from bert_jax.finetune.heads import ARCHITECTURES, builder
from bert_jax.finetune.predict import FineTuned
from bert_jax.json_files import read_given_json
from bert_jax.pretrained import hugging_face, tensor_names
from bert_jax.pretrained.provenance import of_files
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.pretrained.tensor_names import MLM_HEAD, NSP_HEAD, POOLER
from bert_jax.train.state import model_of
from bert_jax.workdir import identity

TASK_FILE = 'task.json'
# Classification's class is regression's, too; which of the two it is, its labels say.
_KINDS = {architecture: kind for kind, architecture in ARCHITECTURES.items() if kind != 'regression'}
_WRITTEN = (
    'kind',
    'text',
    'text_pair',
    'sequence_length',
    'stride',
    'max_question_tokens',
    'max_answer_tokens',
    'n_best',
    'token_prefix',
    'columns',
)


def task_architecture(directory: Path) -> str | None:
    """The class of `transformers` of a fine-tuned model in a directory; None for what is something else.

    Raises:
      BadInput: for a config.json that is not JSON.
    """
    path = directory / 'config.json'
    if identity.is_workdir(str(directory)) or not path.is_file():
        return None
    named = read_given_json(path, 'a Hugging Face BERT directory').get('architectures')
    return next((name for name in named if name in _KINDS), None) if isinstance(named, list) else None


def write_task(directory: Path, task: Task, null_threshold: float | None) -> None:
    """Writes task.json; null_threshold: as of `FineTuned`."""
    content: dict[str, Any] = {name: getattr(task, name) for name in _WRITTEN}
    text = json.dumps(content | {'null_threshold': null_threshold}, indent=2, ensure_ascii=False)
    (directory / TASK_FILE).write_text(text + '\n', 'utf-8')


def read_finetuned(directory: Path, architecture: str) -> FineTuned:
    """The model in a directory of `architecture`, as `task_architecture` found it.

    Raises:
      BadInput: naming the file, and the tensors, labels or settings in it that do not fit.
    """
    path = directory / 'config.json'
    content = read_given_json(path, 'a Hugging Face BERT directory')
    model, vocab_size = hugging_face.read_model_json(directory)
    tokenizer = hugging_face.read_tokenizer(directory)
    file, tensors = read_tensors(directory)
    kind = _KINDS[architecture]
    if kind != 'classification':  # files of `transformers` may hold a pooler that no head uses
        tensors = {name: tensor for name, tensor in tensors.items() if '.pooler.' not in f'.{name}'}
    num_outputs = _num_outputs(tensors, 'qa_outputs' if kind == 'spans' else 'classifier', file)
    if kind == 'classification' and (content.get('problem_type') == 'regression' or num_outputs == 1):
        kind = 'regression'
    if content.get('problem_type') == 'multi_label_classification':
        found = "problem_type is 'multi_label_classification'"
        raise BadInput(str(path), found, 'one label for each text; this kind of model cannot be used here')
    expected = {'regression': 1, 'spans': 2}.get(kind, num_outputs)
    if num_outputs != expected:
        raise BadInput(str(file), f'the head of a {kind} model has {num_outputs} outputs', str(expected))
    labels = () if kind in ('regression', 'spans') else _labels(content, num_outputs, path)
    provenance = of_files(directory, model.max_positions, (MLM_HEAD, NSP_HEAD), vocab_size - tokenizer.vocab_size)
    task, takes_pairs, null_threshold = _read_task(directory, kind, provenance.max_length(model.max_positions))
    build, table = builder(kind, num_outputs), tensor_names.TASK_TABLES[architecture]
    params, model, num_tokens = hugging_face.assemble(
        tensors, model, vocab_size, tokenizer.vocab_size, file, build, table
    )
    if POOLER in tensor_names.absent_heads(tensors) and kind in ('classification', 'regression'):
        raise BadInput(str(file), f'has no {POOLER}, and its head needs one', 'all tensors of the model')
    merged = model_of(params, model, num_tokens, build)
    return FineTuned(merged, tokenizer, model, None, provenance, labels, task, takes_pairs, null_threshold)


def _num_outputs(tensors: dict[str, Any], head: str, file: Path) -> int:
    weight = tensors.get(f'{head}.weight')
    if weight is None or weight.ndim != 2 or not len(weight):
        raise BadInput(str(file), f'has no {head}.weight of two dimensions', 'the tensors of a fine-tuned model')
    return len(weight)


def _labels(content: dict[str, Any], count: int, path: Path) -> tuple[str, ...]:
    """The names of the outputs; those of `transformers` for a config.json without."""
    given = content.get('id2label') or {str(number): f'LABEL_{number}' for number in range(count)}
    names = [given.get(str(number)) for number in range(count)] if isinstance(given, dict) else []
    if len(given) != count or not all(isinstance(name, str) for name in names) or len({*names}) != count:
        raise BadInput(str(path), 'id2label does not name the outputs of the head', f'{count} names, by number from 0')
    return tuple(map(str, names))


def _read_task(directory: Path, kind: str, max_length: int) -> tuple[Task, bool | None, float | None]:
    """(task, whether it takes pairs, null threshold), by task.json or else by the length of the texts."""
    path = directory / TASK_FILE
    if not path.is_file():
        num_question_tokens = max(1, min(Task.max_question_tokens, max_length // 4))
        stride = max(1, min(Task.stride, (max_length - FRAME['spans'] - num_question_tokens) // 2))
        task = Task(kind=kind, text='text', sequence_length=max_length, stride=stride)
        return dataclasses.replace(task, max_question_tokens=num_question_tokens), None, None
    content = read_given_json(path, 'what export wrote')
    threshold = content.pop('null_threshold', None)
    try:
        if threshold is not None and type(threshold) not in (int, float):
            raise BadInput('null_threshold', f'is {threshold!r}', 'a number or null')
        task = resolve_section(Task, content, 'task.', unknown_field)
        if task.kind != kind or task.sequence_length > max_length:
            found = f'is of {task.kind} with {task.sequence_length} tokens'
            raise BadInput('task', found, f'{kind} with at most {max_length} tokens')
    except BadInput as error:
        raise BadInput(f'{path}: {error.where}', error.found, error.expected, 'export the model again') from None
    return task, bool(task.text_pair), threshold
