"""`finetune` follows `transformers` and torch's AdamW step by step from the same weights on the same batches."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.config.finetuning import finetune, resolve
from bert_jax.finetune.evaluator import task_streams
from bert_jax.finetune.rows import TaskBatch, TaskStream
from bert_jax.finetune.seed import Setup
from bert_jax.finetune.start import prepare_start
from bert_jax.finetune.tasks import read_task
from bert_jax.pretrained.families import hub_of
from bert_jax.pretrained.tensor_names import to_tensors
from tests.support.models import MODEL, write_model
from tests.support.tasks import write_questions, write_reviews, write_sentences

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.usefixtures('one_device')
STEPS, SEED = 20, 3
TASKS = {
    'classification': (write_reviews, {}),
    'regression': (write_reviews, {}),
    'tagging': (write_sentences, {'train': 'conll:train.tsv', 'validation': 'conll:dev.tsv', 'text': 'words'}),
    'spans': (
        write_questions,
        {'train': 'squad:train.tsv', 'validation': 'squad:dev.tsv', 'max_question_tokens': 8, 'stride': 8},
    ),
}


def _setup(kind: str, directory: Path) -> Setup:
    """A fine-tune of 20 steps without dropout, whose clipping and weight decay change every step."""
    write, fields = TASKS[kind]
    for seed, name in enumerate(('train.tsv', 'dev.tsv')):
        write(directory / name, 128, seed)
    still = dataclasses.replace(MODEL, dropout_rate=0.0, attention_dropout_rate=0.0)
    given = finetune(kind)
    given.task.update({'directory': str(directory), 'sequence_length': 32} | fields)
    if kind == 'tagging':
        given.task.label = 'tags'
    given.init = str(write_model(directory / 'mine', still))
    given.train.update({'global_batch_size': 16, 'epochs': STEPS * 16 / 128})
    given.optimizer.update({'peak_learning_rate': 3e-3, 'weight_decay': 0.1, 'clip_norm': 0.5})
    start = prepare_start(resolve(given), [])
    return Setup.create(start, read_task(start.config.task, start.config.train, start.tokenizer))


def _reference(kind: str, setup: Setup, params):
    """The model of `transformers` with the same weights, the head included."""
    model, hub = setup.start.config.model, hub_of(setup.start.config.model)
    vocab_size = setup.start.tokenizer.vocab_size
    tensors = to_tensors(params, model, vocab_size, hub.task_tensors(model, kind))
    sizes = {field: getattr(model, field) for field in ('hidden_size', 'intermediate_size', 'layer_norm_eps')} | {
        'num_hidden_layers': model.num_layers,
        'num_attention_heads': model.num_heads,
    }
    settings = transformers.BertConfig(
        vocab_size=vocab_size,
        max_position_embeddings=model.max_positions,
        num_labels=setup.data.num_outputs,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    reference = getattr(transformers, hub.task_class(kind))(settings)
    found = reference.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()}, strict=False)
    assert not found.missing_keys and not found.unexpected_keys
    return reference


def _loss(reference, kind: str, batch: TaskBatch):
    """The loss of a batch of one example per row."""
    is_real = torch.tensor(batch.sequence_ids).long()
    outputs = reference(
        input_ids=torch.tensor(batch.input_ids).long(),
        token_type_ids=torch.tensor(batch.token_type_ids).long(),
        attention_mask=is_real,
    )
    labels = torch.tensor(batch.labels)
    if kind == 'regression':
        return torch.nn.functional.mse_loss(outputs.logits[:, 0], labels[:, 0])
    if kind == 'spans':  # `transformers` counts padding among the positions that may be the answer; both sides mask it
        logits = [each.masked_fill(is_real == 0, -1e30) for each in (outputs.start_logits, outputs.end_logits)]
        losses = [torch.nn.functional.cross_entropy(each, labels[:, 0, end].long()) for end, each in enumerate(logits)]
        return (losses[0] + losses[1]) / 2
    labels = labels.long().masked_fill(torch.tensor(batch.weights) == 0, -100)
    return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, -2), labels.flatten())


@pytest.mark.slow
@pytest.mark.parametrize('kind', TASKS)
def test_packed_training_follows_transformers_step_by_step(kind: str, tmp_path: Path) -> None:
    setup = _setup(kind, tmp_path)
    config, data, program = setup.start.config, setup.data, setup.program
    params = setup.start.params(data.num_outputs, SEED)
    reference = _reference(kind, setup, params)
    packed = task_streams(config, setup.start.tokenizer.pad_id, program.device_mesh)(data.train, SEED)
    padded = TaskStream(data.train, batch_size=16, seed=SEED, sequence_length=32, pad_id=0)
    assert packed.batch_size < 16 and program.num_steps == STEPS
    is_plain = {name: name.endswith('bias') or 'LayerNorm' in name for name, _ in reference.named_parameters()}
    groups = [
        {'params': [value for name, value in reference.named_parameters() if is_plain[name] is plain], **decay}
        for plain, decay in ((False, {'weight_decay': 0.1}), (True, {'weight_decay': 0.0}))
    ]
    optimizer = config.optimizer
    adamw = torch.optim.AdamW(groups, betas=(optimizer.b1, optimizer.b2), eps=optimizer.eps)
    state = program.init_state(SEED, params)
    losses = []
    for step in range(STEPS):
        state, metrics = program.train_step(state, jax.tree.map(jax.numpy.asarray, packed.batch(step)))
        adamw.zero_grad()
        loss = _loss(reference, kind, padded.batch(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), optimizer.clip_norm)
        warmup = int(optimizer.warmup_fraction * STEPS)
        up, down = (step + 1) / (warmup + 1), (STEPS - step) / (STEPS - warmup)
        for group in adamw.param_groups:
            group['lr'] = optimizer.peak_learning_rate * min(up, down)
        adamw.step()
        losses.append((float(metrics['loss']), loss.item()))
    ours, theirs = np.transpose(losses)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert theirs[-5:].mean() < theirs[:5].mean()  # it learns, so that the later steps depend on the earlier updates
