"""Ten AdamW steps of ModernBERT and EuroBERT equal those of `transformers` and torch, batch by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config
from bert_jax.data.batches import Batch
from bert_jax.pretrained.tensor_names import to_tensors
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import build_program
from tests.support.families import MODELS, initial_params, reference_of, rows_of

pytestmark = pytest.mark.compiles

torch = pytest.importorskip('torch')

VOCAB, L, P, STEPS = 301, 50, 6, 10
LENGTHS = (L, 13, 29, 41)
SETTINGS = config.Optimizer(peak_learning_rate=1e-3, warmup_steps=3, weight_decay=0.01, clip_norm=1.0)


def _batch(seed: int) -> Batch:
    """Rows of different lengths, each with a filler prediction."""
    inputs, rng = rows_of(LENGTHS, L, VOCAB, seed), np.random.default_rng(seed)
    positions = np.stack([rng.permutation(np.arange(1, length - 1))[:P] for length in LENGTHS]).astype(np.int32)
    weights = np.ones(positions.shape, np.float32)
    weights[:, -1], positions[:, -1] = 0, 0
    no_pairs = np.zeros((len(LENGTHS), 1), np.int32)
    return Batch(
        *inputs[:4],
        masked_lm_positions=positions,
        masked_lm_ids=rng.integers(5, VOCAB, positions.shape).astype(np.int32),
        masked_lm_weights=weights,
        cls_positions=no_pairs,
        next_sentence_labels=no_pairs,
        next_sentence_weights=no_pairs.astype(np.float32),
    )


def _reference_loss(reference: torch.nn.Module, batch: Batch) -> torch.Tensor:
    labels = np.full(batch.input_ids.shape, -100)
    predicted = np.where(batch.masked_lm_weights > 0, batch.masked_lm_ids, -100)
    np.put_along_axis(labels, batch.masked_lm_positions, predicted, axis=1)  # filler is written to position 0
    return reference(
        input_ids=torch.tensor(batch.input_ids).long(),
        attention_mask=torch.tensor(batch.sequence_ids).long(),
        labels=torch.tensor(labels),
    ).loss


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * ('_' in name)) for name in MODELS])
def test_ten_adamw_steps_equal_those_of_the_reference(name: str) -> None:
    model = MODELS[name]
    train = config.Train(steps=STEPS, global_batch_size=len(LENGTHS))
    program = build_program(model, SETTINGS, train, VOCAB, make_mesh(config.Mesh(), model, train, jax.devices()[:1]))
    params = initial_params(model, VOCAB)
    reference = reference_of(params, model, VOCAB)
    state = program.init_state(0, params)
    matrices = [value for value in reference.parameters() if value.ndim > 1]
    vectors = [value for value in reference.parameters() if value.ndim == 1]
    groups = [{'params': matrices, 'weight_decay': SETTINGS.weight_decay}, {'params': vectors, 'weight_decay': 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(SETTINGS.b1, SETTINGS.b2), eps=SETTINGS.eps)
    for step in range(STEPS):
        batch = _batch(step)
        state, metrics = program.train_step(state, jax.tree.map(jnp.asarray, batch))
        adamw.zero_grad()
        loss = _reference_loss(reference, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), SETTINGS.clip_norm)
        for group in adamw.param_groups:
            group['lr'] = float(program.schedule(step))
        adamw.step()
        assert abs(float(metrics['loss']) - float(loss.detach())) < 1e-4
        assert abs(float(metrics['grad_norm']) - float(norm)) < 1e-3 * float(norm)
    ours = to_tensors(state.params, model, VOCAB)
    for tensor_name, value in reference.named_parameters():
        found, expected = ours[tensor_name], value.detach().numpy()
        if tensor_name.endswith(('k_proj.bias', 'Wqkv.bias')):  # the gradient of key biases is rounding noise
            found, expected = (np.delete(each, _keys(tensor_name, model), 0) for each in (found, expected))
        assert np.abs(found - expected).max(initial=0) < 1e-4, tensor_name


def _keys(tensor_name: str, model: config.Model) -> slice:
    """The elements of a bias that belong to keys."""
    size = model.hidden_size
    return slice(None) if tensor_name.endswith('k_proj.bias') else slice(size, 2 * size)
