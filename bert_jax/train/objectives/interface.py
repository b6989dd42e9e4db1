"""The loss that a train step minimizes. `B` rows, `L` positions, `E` sequences per row."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from bert_jax.model.contrastive import Part
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.family import matmuls
from bert_jax.model.inputs import Array
from bert_jax.model.layer_stack import Gather
from bert_jax.model.matmul import Matmul


class Objective(Protocol):
    """A loss over a global batch as sums and ratios of sums, so that it does not depend on how rows are split.

    Batches are NamedTuples of arrays with a first dim B; the step itself reads `input_ids` and `sequence_ids` [B, L]
    and `cls_positions` [B, E].
    """

    def labelled(self, batch: Any, key: DropoutKey | None) -> Any:
        """Returns the batch with the labels of the objective, for `sums` and `weights`: arrays with a first dim B.

        Args:
          key: the step and the global rows, for random choices; None in evaluation (`evaluated`).
        """
        del key
        return batch

    @property
    def evaluated(self) -> 'Objective':
        """The objective that held-out text is measured with, whose `labelled` needs no key."""
        return self

    def matmuls(self, model: Any, vocab_size: int, **counts: Any) -> list[Matmul]:
        """Returns the matmuls of one forward pass; arguments as for `family.matmuls`."""
        return matmuls(model, vocab_size, **counts)

    def sums(self, model: Any, batch: Any, key: DropoutKey | None, gather: Gather | None = None) -> Any:
        """Returns a NamedTuple of float32 scalars, each summed over the rows of a batch.

        Args:
          key: dropout key; None for no dropout.
          gather: passed on to the model's forward pass.
        """

    def weights(self, batch: Any) -> Any:
        """Returns the divisors of `loss`, summed over the rows of a batch: whole numbers."""

    def loss(self, sums: Any, weights: Any) -> jax.Array:
        """Returns the scalar to minimize. sums: of some rows; weights: of the whole global batch."""

    def metrics(self, sums: Any) -> dict[str, jax.Array]:
        """Returns the metrics to log, including `loss`, from the sums of a global batch or a whole split.

        A mean over nothing is NaN (`mean`). `loss` alone is 0 then, so that such a batch trains on.
        """


@runtime_checkable
class VectorObjective(Protocol):
    """A loss over the vectors of a whole global batch, in which texts of different rows are compared.

    Batches as for `Objective`. The loss is computed in parts, one per device.
    """

    def vectors(self, model: Any, batch: Any, key: DropoutKey | None, gather: Gather | None = None) -> jax.Array:
        """Returns float32 vectors with a first dim B; arguments as for `Objective.sums`."""

    def labels(self, batch: Any) -> Any:
        """Returns what else the loss needs of a batch: arrays with a first dim B."""

    def loss(self, vectors: jax.Array, labels: Any, part: Part) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns a part of the scalar to minimize and of each other metric; the sums over all parts are the whole.

        Args:
          vectors, labels: of the whole global batch.
        """


def mean(total: Array, weight: Array) -> jax.Array:
    """Returns total / weight as a metric; NaN for a weight of 0, because nothing was measured."""
    return jnp.where(weight > 0, total / jnp.maximum(weight, 1.0), jnp.nan)


def ratio(total: Array, weight: Array) -> jax.Array:
    """Returns total / weight as a part of a loss; 0 for a weight of 0."""
    return jnp.where(weight > 0, total / jnp.maximum(weight, 1.0), 0.0)
