"""Losses of embedding models over the vectors of a global batch, all of them float32.

`S` texts of the batch, `Q` groups, `R` roles (query, positive, hard negatives), `D` size of a vector, `b` queries,
`C` candidates.

Each loss is computed in equal parts that add up to it, so that every device of a mesh computes one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.model.inputs import Array

QUERY, POSITIVE = 0, 1
_BLOCK = 1024  # queries whose similarities to all candidates are in memory at once
_MIN = -1e30  # stands for -inf, without its NaNs


class Members(NamedTuple):
    """What is known of each text of a global batch; for the meaning of the fields see `data.pair_batches.PairBatch`."""

    groups: Array  # [S] int32
    roles: Array  # [S] int32
    text_ids: Array  # [S] int32
    scores: Array  # [S] float32


class Groups(NamedTuple):
    """The texts of a global batch by role and group; a present group has a query and a positive."""

    vectors: jax.Array  # [R, Q, D] float32, 0 where there is no text
    present: jax.Array  # [R, Q] bool
    text_ids: jax.Array  # [R, Q] int32
    scores: jax.Array  # [R, Q] float32


class Part(NamedTuple):
    """The part of a loss that a device computes."""

    index: jax.Array | int
    count: int


WHOLE = Part(0, 1)
# (groups with vectors of length 1, part) -> (part of the loss, parts of its metrics)
Loss = Callable[[Groups, Part], tuple[jax.Array, dict[str, jax.Array]]]


def group(vectors: jax.Array, members: Members, num_groups: int, num_roles: int) -> Groups:
    """Orders the texts of a batch by role and group.

    Args:
      vectors: [S, D].
      num_groups, num_roles: Q and R.
    """
    index = jnp.where(
        (members.groups >= 0) & (members.groups < num_groups),
        members.roles * num_groups + members.groups,
        num_roles * num_groups,
    )
    num_texts = vectors.shape[0]
    texts = jnp.full(num_roles * num_groups, num_texts).at[index].set(jnp.arange(num_texts), mode='drop')
    texts = texts.reshape(num_roles, num_groups)
    present = texts < num_texts
    present &= present[QUERY] & present[POSITIVE]

    def ordered(array: Array) -> jax.Array:
        return jnp.asarray(array).at[jnp.where(present, texts, num_texts)].get(mode='fill', fill_value=0)

    return Groups(ordered(vectors), present, ordered(members.text_ids), ordered(members.scores))


def matryoshka(
    loss: Loss, groups: Groups, part: Part = WHOLE, dims: Sequence[int] = (), weights: Sequence[float] = ()
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns a part of the weighted sum of a loss over truncated vectors, and its metrics at the first dim.

    Vectors are scaled to length 1 after they are truncated. Kusupati et al. 2022, "Matryoshka Representation Learning".

    Args:
      dims: () for D alone.  weights: of the dims; () for 1 each.
    """
    dims = dims or (groups.vectors.shape[-1],)
    found = [loss(groups._replace(vectors=normalized(groups.vectors[..., :dim])), part) for dim in dims]
    total = sum(weight * each for weight, (each, _) in zip(weights or (1.0,) * len(dims), found, strict=True))
    return jnp.asarray(total), found[0][1]


def normalized(vectors: jax.Array) -> jax.Array:
    """Returns vectors [..., D] scaled to length 1; a vector of 0 stays 0."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(axis=-1, keepdims=True), 1e-24))


def info_nce(
    groups: Groups,
    part: Part = WHOLE,
    *,
    temperature: float,
    symmetric: bool = False,
    mask_same_text: bool = False,
    mask_margin: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross entropy of each query's positive among the positives and hard negatives of all groups (nats, the mean).

    van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding". The metric `accuracy` is the
    share of queries whose positive is the most similar candidate.

    Args:
      temperature: similarities are divided by it.
      symmetric: also takes the cross entropy of each positive's query among all queries; the loss is the mean of both.
      mask_same_text: leaves out candidates that have the text of the query or of its positive, or are the positive of
        another group with the same query text.
      mask_margin: leaves out candidates more similar to the query than its positive by more than this.
    """
    num_groups = groups.present.shape[1]
    num_blocks = -(-num_groups // (part.count * _BLOCK))
    size = -(-num_groups // (part.count * num_blocks))
    padding = size * num_blocks * part.count - num_groups
    groups = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)), groups)
    reverse = jax.tree.map(lambda x: x[jnp.array([POSITIVE, QUERY])], groups)

    @jax.checkpoint  # otherwise the similarities of all blocks are kept
    def of_block(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = (part.index * num_blocks + index) * size
        losses, hits = _ranked(groups, start, size, temperature, mask_same_text, mask_margin)
        if symmetric:
            losses = (losses + _ranked(reverse, start, size, temperature, mask_same_text, mask_margin)[0]) / 2
        is_present = jax.lax.dynamic_slice_in_dim(groups.present[QUERY], start, size)
        return jnp.where(is_present, losses, 0.0).sum(), (is_present & hits).sum()

    losses, hits = jax.lax.map(of_block, jnp.arange(num_blocks))
    num_present = jnp.maximum(groups.present[QUERY].sum(), 1)
    return losses.sum() / num_present, {'accuracy': hits.sum() / num_present}


def _ranked(
    groups: Groups, start: jax.Array, size: int, temperature: float, mask_same_text: bool, mask_margin: float | None
) -> tuple[jax.Array, jax.Array]:
    """Returns, for each query from `start`, (cross entropy, whether no candidate is above its positive), both [b]."""
    rows = start + jnp.arange(size)
    candidates = groups.vectors[POSITIVE:].reshape(-1, groups.vectors.shape[-1])
    similarities = _similarities(groups.vectors[QUERY, rows], candidates)  # bC
    positives = jnp.take_along_axis(similarities, rows[:, None], axis=1)  # b1
    is_left_out = ~groups.present[POSITIVE:].reshape(-1)
    if mask_same_text:
        is_left_out |= _has_same_text(groups, rows)
    if mask_margin is not None:
        is_left_out |= similarities > positives + mask_margin
    is_positive = jnp.arange(candidates.shape[0]) == rows[:, None]
    similarities = jnp.where(is_positive | ~is_left_out, similarities, _MIN)
    losses = jax.nn.logsumexp(similarities / temperature, axis=1) - positives[:, 0] / temperature
    return losses, positives[:, 0] >= similarities.max(axis=1)


def _similarities(queries: jax.Array, candidates: jax.Array) -> jax.Array:
    """[b, D], [C, D] -> [b, C] in float32, even where matmuls of float32 are computed in less by default."""
    return jnp.einsum('bd,cd->bc', queries, candidates, precision='highest')


def _has_same_text(groups: Groups, rows: jax.Array) -> jax.Array:
    """Returns [b, C], whether a candidate is no negative because of its text; see `info_nce`."""
    queries, positives = groups.text_ids[QUERY], groups.text_ids[POSITIVE]
    texts = groups.text_ids[POSITIVE:].reshape(-1)
    has_text = (texts == queries[rows, None]) | (texts == positives[rows, None])
    has_query = queries == queries[rows, None]  # bQ
    return has_text.at[:, : len(queries)].set(has_text[:, : len(queries)] | has_query)


def cosent(groups: Groups, part: Part = WHOLE, *, temperature: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """log(1 + sum of exp((similarity of j - similarity of i) / temperature)) over pairs i with a higher score than j.

    Huang et al. 2024, "CoSENT: Consistent Sentence Embedding via Similarity Ranking". Sorted by score, the pairs above
    one are a suffix, so that the sum takes Q log Q operations.
    """
    scores, present = groups.scores[QUERY], groups.present[QUERY]
    order = jnp.argsort(scores)
    scores, present = scores[order], present[order]
    scaled = _pair_similarities(groups)[order] / temperature
    above = jax.lax.cumlogsumexp(jnp.where(present, -scaled, _MIN), reverse=True)
    first_above = jnp.searchsorted(scores, scores, side='right')
    above = above.at[first_above].get(mode='fill', fill_value=_MIN)
    terms = jnp.where(present, scaled, _MIN) + above
    return jax.nn.logsumexp(jnp.concatenate([jnp.zeros(1), terms])) / part.count, {}


def cosine(groups: Groups, part: Part = WHOLE) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared difference of cosine similarities and scores."""
    present = groups.present[QUERY]
    errors = jnp.where(present, _pair_similarities(groups) - groups.scores[QUERY], 0.0)
    return jnp.square(errors).sum() / jnp.maximum(present.sum(), 1) / part.count, {}


def _pair_similarities(groups: Groups) -> jax.Array:
    return (groups.vectors[QUERY] * groups.vectors[POSITIVE]).sum(axis=-1)
