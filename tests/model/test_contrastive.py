"""Losses of embedding models equal those of sentence-transformers in value and gradient, and split into parts."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import contrastive
from bert_jax.model.contrastive import (
    Groups,
    Loss,
    Members,
    Part,
    cosent,
    cosine,
    group,
    info_nce,
    matryoshka,
)

Q, R, D = 6, 4, 16  # groups; query, positive, two hard negatives; size of a vector
DIMS, WEIGHTS = (16, 8, 4), (1.0, 0.5, 2.0)
INFO_NCE = functools.partial(info_nce, temperature=0.05)
SYMMETRIC = functools.partial(info_nce, temperature=0.1, symmetric=True)
COSENT = functools.partial(cosent, temperature=0.05)
LOSSES = {'info_nce': INFO_NCE, 'symmetric': SYMMETRIC, 'cosent': COSENT, 'cosine': cosine}


def _vectors(num_roles: int = R) -> np.ndarray:
    """Returns [R, Q, D]: the texts of a group are alike."""
    rng = np.random.default_rng(1)
    return np.float32(rng.normal(size=(1, Q, D)) + rng.normal(size=(num_roles, Q, D)))


SCORES = np.float32([0.1, 0.9, 0.5, 0.5, 0.2, 0.9])


def _groups(vectors: Any, present: np.ndarray | None = None, text_ids: np.ndarray | None = None) -> Groups:
    shape = vectors.shape[:2]
    return Groups(
        jnp.asarray(vectors),
        jnp.asarray(np.ones(shape, bool) if present is None else present),
        jnp.arange(shape[0] * shape[1]).reshape(shape) if text_ids is None else jnp.asarray(text_ids),
        jnp.broadcast_to(SCORES, shape),
    )


def _value_and_gradient(loss: Loss, vectors: np.ndarray, **nested: Any) -> tuple[jax.Array, jax.Array]:
    return jax.value_and_grad(lambda vectors: matryoshka(loss, _groups(vectors), **nested)[0])(jnp.asarray(vectors))


def _encoder(vectors: np.ndarray) -> Any:
    """Returns what a loss needs of a sentence-transformers model; a text is the index of its vector."""
    torch = pytest.importorskip('torch')

    class Encoder(torch.nn.Module):
        device = torch.device('cpu')

        def __init__(self) -> None:
            super().__init__()
            self.vectors = torch.nn.Parameter(torch.tensor(vectors))

        def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
            return {'sentence_embedding': self.vectors.flatten(0, 1)[features['input_ids'][:, 0]]}

        def get_embedding_dimension(self) -> int:
            return D

        def __getitem__(self, index: int) -> Any:  # its modules
            return self

    return Encoder()


def _theirs(make: Callable[[Any, Any], Any], vectors: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns (loss, gradient) of `make(losses, model)`."""
    torch = pytest.importorskip('torch')
    losses = pytest.importorskip('sentence_transformers').sentence_transformer.losses
    model = _encoder(vectors)
    rows = torch.arange(vectors.shape[0] * Q).reshape(-1, Q, 1)
    features = [{'input_ids': row, 'attention_mask': torch.ones_like(row)} for row in rows]
    loss = make(losses, model)(features, torch.tensor(SCORES))
    loss.backward()
    return loss.item(), model.vectors.grad.numpy()


BOTH = {'directions': ('query_to_doc', 'doc_to_query'), 'partition_mode': 'per_direction'}


@pytest.mark.parametrize(
    'ours, num_roles, make',
    [
        (INFO_NCE, R, lambda losses, model: losses.MultipleNegativesRankingLoss(model)),
        (INFO_NCE, 2, lambda losses, model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)),
        (SYMMETRIC, R, lambda losses, model: losses.MultipleNegativesRankingLoss(model, scale=10.0, **BOTH)),
        (COSENT, 2, lambda losses, model: losses.CoSENTLoss(model)),
        (cosine, 2, lambda losses, model: losses.CosineSimilarityLoss(model)),
    ],
    ids=['info_nce', 'cached', 'symmetric', 'cosent', 'cosine'],
)
@pytest.mark.parametrize('is_nested', [False, True])
def test_losses_and_gradients_equal_sentence_transformers(
    ours: Loss, num_roles: int, make: Callable, is_nested: bool
) -> None:
    vectors = _vectors(num_roles)
    nested = {'dims': DIMS, 'weights': WEIGHTS} if is_nested else {}
    value, gradient = _value_and_gradient(ours, vectors, **nested)

    def make_nested(losses: Any, model: Any) -> Any:
        loss = make(losses, model)
        return losses.MatryoshkaLoss(model, loss, list(DIMS), list(WEIGHTS)) if is_nested else loss

    expected, expected_gradient = _theirs(make_nested, vectors)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-5 * np.abs(expected_gradient).max())


@pytest.mark.parametrize('block', [1, 2, 1024])
@pytest.mark.parametrize('count', [1, 4])
@pytest.mark.parametrize('name', LOSSES)
def test_parts_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch, name: str, count: int, block: int) -> None:
    loss, groups = LOSSES[name], _groups(_vectors())
    expected, metrics = matryoshka(loss, groups, dims=DIMS)
    monkeypatch.setattr(contrastive, '_BLOCK', block)
    parts = [matryoshka(loss, groups, Part(index, count), DIMS) for index in range(count)]
    np.testing.assert_allclose(sum(part for part, _ in parts), expected, rtol=1e-6)
    for key, value in metrics.items():
        np.testing.assert_allclose(sum(found[key] for _, found in parts), value, rtol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_absent_groups_and_texts_change_nothing(name: str) -> None:
    loss, vectors, rng = LOSSES[name], _vectors(), np.random.default_rng(1)
    slots = [(role, index) for role in range(R) for index in range(Q) if (role, index) != (3, 2)]  # one negative less
    slots += [(1, Q), (2, Q)]  # of a group without a query
    size = len(slots) + 3  # three empty slots
    rows, texts = rng.permutation(size)[: len(slots)], rng.normal(size=(size, D)).astype(np.float32)
    members = Members(*(np.full(size, empty, np.int32) for empty in (-1, 0, -1)), np.zeros(size, np.float32))
    for row, (role, index) in zip(rows, slots, strict=True):
        members.groups[row], members.roles[row], members.text_ids[row] = index, role, row
        if index < Q:
            texts[row], members.scores[row] = vectors[role, index], SCORES[index]
    present = np.ones((R, Q), bool)
    present[3, 2] = False
    expected = matryoshka(loss, _groups(vectors, present))

    def of_texts(texts: jax.Array) -> tuple:
        return matryoshka(loss, group(texts, members, num_groups=Q + 2, num_roles=R))

    (found, metrics), gradient = jax.value_and_grad(of_texts, has_aux=True)(jnp.asarray(texts))
    np.testing.assert_allclose(found, expected[0], rtol=1e-6)
    assert jax.tree.map(float, metrics) == pytest.approx(jax.tree.map(float, expected[1]))
    assert np.isfinite(gradient).all()
    is_used = np.zeros(len(texts), bool)
    is_used[rows[:-2]] = True
    assert not np.asarray(gradient)[~is_used].any()


def _brute_force(vectors: np.ndarray, is_left_out: Callable[[int, int, int], bool]) -> float:
    """Returns the cross entropy at temperature 0.05. is_left_out: (query, role, group of a candidate)."""
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    losses = []
    for query in range(Q):
        others = [
            unit[0, query] @ unit[role, index] / 0.05
            for role in range(1, R)
            for index in range(Q)
            if (role, index) == (1, query) or not is_left_out(query, role, index)
        ]
        losses.append(np.logaddexp.reduce(others) - unit[0, query] @ unit[1, query] / 0.05)
    return float(np.mean(losses))


def test_false_negatives_with_the_same_text_are_left_out() -> None:
    vectors, texts = _vectors(), np.arange(R * Q).reshape(R, Q)
    texts[1, 3] = texts[1, 0]  # two queries with the same positive
    texts[2, 4] = texts[1, 2]  # a positive is the hard negative of another query
    texts[3, 5] = texts[0, 1]  # a query is the hard negative of another
    texts[0, 5] = texts[0, 4]  # one query with two positives

    def is_left_out(query: int, role: int, index: int) -> bool:
        is_other_positive = role == 1 and texts[0, index] == texts[0, query]
        return is_other_positive or texts[role, index] in (texts[0, query], texts[1, query])

    found, _ = matryoshka(functools.partial(INFO_NCE, mask_same_text=True), _groups(vectors, text_ids=texts))
    expected = _brute_force(vectors, is_left_out)
    assert expected < _brute_force(vectors, lambda *_: False) - 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('margin', [-0.3, 0.0, 0.1])
def test_candidates_above_the_positive_by_a_margin_are_left_out(margin: float) -> None:
    vectors = _vectors()
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def is_left_out(query: int, role: int, index: int) -> bool:
        return unit[0, query] @ unit[role, index] > unit[0, query] @ unit[1, query] + margin

    found, metrics = matryoshka(functools.partial(INFO_NCE, mask_margin=margin), _groups(vectors))
    expected = _brute_force(vectors, is_left_out)
    assert expected < _brute_force(vectors, lambda *_: False) - 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if margin <= 0:
        assert metrics['accuracy'] == 1


def test_accuracy_is_the_share_of_queries_whose_positive_is_nearest() -> None:
    vectors = _vectors()
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    similarities = unit[0] @ unit[1:].reshape(-1, D).T
    expected = np.mean(similarities.argmax(axis=1) == np.arange(Q))
    assert 0 < expected < 1
    assert float(matryoshka(INFO_NCE, _groups(vectors))[1]['accuracy']) == pytest.approx(expected)
