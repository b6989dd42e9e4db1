"""Cross entropies equal those of PyTorch in value and gradient, however the vocabulary is divided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import losses as losses_module
from bert_jax.model.losses import cross_entropy, vocabulary_cross_entropy

T, D, V, NUM_TOKENS = 24, 16, 640, 600
_WITHIN = {'float32': 1e-6, 'bfloat16': 1e-2}


def _arguments(scale: float) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    x, decoder = rng.normal(size=(T, D)), rng.normal(size=(V, D)) * scale
    bias = np.where(np.arange(V) < NUM_TOKENS, rng.normal(size=V), -np.inf)
    labels = np.concatenate([[0, 127, 128, NUM_TOKENS - 1, 300, 300], rng.integers(0, NUM_TOKENS, T - 6)])
    weights = rng.random(T) * (rng.random(T) < 0.8)
    x, decoder = (np.asarray(jnp.asarray(each, jnp.bfloat16), np.float32) for each in (x, decoder))
    labels[6:10] = (x @ decoder.T + bias).argmax(axis=1)[6:10]
    return (x, decoder, np.float32(bias), np.int32(labels), np.float32(weights))


def _torch_value_and_gradients(
    x: np.ndarray, decoder: np.ndarray, bias: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    torch = pytest.importorskip('torch')
    leaves = [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (x, decoder, bias)]
    logits = leaves[0] @ leaves[1].T + leaves[2]
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long(), reduction='none')
    (losses * torch.tensor(weights)).sum().backward()
    return losses.detach().numpy(), [leaf.grad.nan_to_num().numpy() for leaf in leaves]


def _assert_close(found: jax.Array, expected: np.ndarray, within: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=within * np.abs(expected).max())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize('chunk, scale', [(10_000, 0.3), (128, 0.3), (256, 0.3), (128, 5.0)])
def test_vocabulary_loss_equals_torch_in_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch, chunk: int, scale: float, platform: str, dtype: str
) -> None:
    monkeypatch.setattr(losses_module, '_CHUNK', chunk)
    monkeypatch.setattr(losses_module, 'target_platform', lambda: platform)
    x, decoder, bias, labels, weights = _arguments(scale)

    @jax.jit
    def run(x: jax.Array, decoder: jax.Array, bias: jax.Array) -> tuple:
        (losses, hits), pull = jax.vjp(lambda *each: vocabulary_cross_entropy(*each, labels, dtype), x, decoder, bias)
        return losses, hits, pull((jnp.asarray(weights), jnp.zeros(T)))

    losses, hits, gradients = run(x, decoder, bias)
    expected, expected_gradients = _torch_value_and_gradients(x, decoder, bias, labels, weights)
    _assert_close(losses, expected, _WITHIN[dtype])
    for found, theirs in zip(gradients, expected_gradients, strict=True):
        _assert_close(found, theirs, _WITHIN[dtype])
    assert 4 <= hits.sum() < T
    np.testing.assert_array_equal(hits, (x @ decoder.T + bias).argmax(axis=1) == labels)


def test_loss_without_gradient_is_the_same() -> None:
    x, decoder, bias, labels, _ = _arguments(0.3)
    alone, _ = vocabulary_cross_entropy(x, decoder, bias, labels, 'float32')
    in_training, _ = jax.vjp(lambda x: vocabulary_cross_entropy(x, decoder, bias, labels, 'float32')[0], x)
    np.testing.assert_array_equal(alone, in_training)


def test_vocabulary_is_divided_into_at_most_sixteen_chunks_of_whole_tiles() -> None:
    for size in (128, 4096, 4224, 30_592, 50_432, 256_000):
        parts = losses_module.vocabulary_parts(size, tensor=1)
        assert len(parts) <= 16
        assert all(part.start % 128 == 0 for part in parts)
        assert [each for part in parts for each in range(size)[part]] == list(range(size))


@pytest.mark.parametrize('leading', [(), (3,), (2, 4)])
def test_cross_entropy_of_classes_equals_torch(leading: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    logits, labels = np.float32(rng.normal(size=(*leading, 5))), rng.integers(0, 5, leading)
    losses, hits = cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    torch = pytest.importorskip('torch')
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, 5), torch.tensor(labels).reshape(-1), reduction='none'
    )
    np.testing.assert_allclose(np.ravel(losses), expected, rtol=1e-6)
    np.testing.assert_array_equal(hits, logits.argmax(axis=-1) == labels)
