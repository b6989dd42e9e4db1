"""A stack of layers, unrolled, or run by one `jax.lax.scan` so that compile time does not grow with depth.

Layers may be of several kinds that repeat, such as one with global attention followed by two with local attention. Then
one period of them is the body of the scan, and the layers after the last whole period follow it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.platform import target_platform

# A loop copies what a layer keeps for the backward pass into stacks and out again. So layers are unrolled: on
# accelerators as many as compile within three minutes on 8 cores, elsewhere a few.
_FEW_LAYERS = 4
_MOST_UNROLLED = {'gpu': 28, 'tpu': 16}

Gather = Callable[[nnx.State], nnx.State]  # the whole weights of a layer, from the parts that a device holds
# (layer, x, its index counted from 1, its kind) -> x
Apply = Callable[[Any, Any, jax.Array, Any], Any]


def run_layers(
    layers: nnx.Module,
    x: Any,
    apply: Apply,
    kinds: Sequence[Any],
    *,
    remat: str,
    scan: bool | None,
    gather: Gather | None = None,
) -> Any:
    """Applies stacked layers one after the other.

    Args:
      layers: a module from `layers.stack`, whose parameters have a first dim for the layers.
      x: the input of the first layer, arrays of any structure.
      kinds: one hashable value per layer, passed to `apply`; layers of one kind are compiled once per period.
      remat: what the backward pass recomputes, as `config.Model.remat`.
      scan: False unrolls the loop; None decides by `is_scanned`.
      gather: applied to each layer's weights where they are used, and again in the backward pass.
    """
    graph, stacked = nnx.split(layers)
    period = pattern_length(kinds)
    if scan is None:
        scan = is_scanned(len(kinds), remat, gather is not None)

    def layer_of(kind: Any) -> Callable[..., tuple[Any, None]]:
        def run(x: Any, numbered: tuple) -> tuple[Any, None]:
            index, weights = numbered
            weights = gather(weights) if gather else weights
            return apply(nnx.merge(graph, weights), x, index, kind), None

        if remat == 'none' and not gather:
            return run
        policies = {'none': _keep_activations, 'dots': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims}
        return jax.checkpoint(run, policy=policies.get(remat), prevent_cse=not scan)

    one_period = [layer_of(kind) for kind in kinds[:period]]
    numbered = (jnp.arange(1, len(kinds) + 1, dtype=jnp.uint32), stacked)
    if period == 1:
        x, _ = jax.lax.scan(one_period[0], x, numbered, unroll=1 if scan else len(kinds))
        return x

    def run_period(x: Any, periods: tuple) -> tuple[Any, None]:
        for index, run in enumerate(one_period):
            x, _ = run(x, jax.tree.map(lambda leaf, index=index: leaf[index], periods))
        return x, None

    num_periods = len(kinds) // period
    whole = jax.tree.map(
        lambda leaf: leaf[: num_periods * period].reshape(num_periods, period, *leaf.shape[1:]), numbered
    )
    x, _ = jax.lax.scan(run_period, x, whole, unroll=1 if scan else num_periods)
    for index, run in zip(range(num_periods * period, len(kinds)), one_period, strict=False):
        x, _ = run(x, jax.tree.map(lambda leaf, index=index: leaf[index], numbered))
    return x


def is_scanned(num_layers: int, remat: str, is_gathered: bool) -> bool:
    """Returns whether layers run in a loop, on the platform that they are traced for.

    Many are unrolled only where all that they keep stays in memory. The loop orders the recomputation (remat) and the
    gathering of weights (fsdp), so that only one layer's results are in memory.
    """
    if num_layers <= _FEW_LAYERS:
        return False
    most = _MOST_UNROLLED.get(target_platform(), _FEW_LAYERS)
    return num_layers > most or remat != 'none' or is_gathered


def pattern_length(kinds: Sequence[Any]) -> int:
    """Returns the length of the shortest pattern that the kinds repeat; the last repetition may be incomplete."""
    return next(p for p in range(1, len(kinds) + 1) if all(kind == kinds[i % p] for i, kind in enumerate(kinds)))


def _keep_activations(operation: jax.extend.core.Primitive, *_: Any, **__: Any) -> bool:
    """Keeps everything but whole weights for the backward pass, which gathers them again.

    Weights appear as the result of the gather, or of its cast to the dtype of the computation.
    """
    return operation.name not in ('all_gather', 'convert_element_type')
