"""What a model reads: token ids, and where each token belongs."""

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray  # on a device, or on the host before it is placed


class Inputs(NamedTuple):
    """Rows of tokens; arrays are [B, L] int32 but for the last, for `B` rows of `L` positions.

    Attributes:
      input_ids: of the tokens.
      token_type_ids: 0 for sentence A and padding, 1 for sentence B.
      sequence_ids: 0 is padding, k the k-th sequence of its row; attention stays within equal ids.
      position_ids: position within its own sequence.
      is_causal: [B] bool, rows whose positions see no later ones; None: there are none.
    """

    input_ids: Array
    token_type_ids: Array
    sequence_ids: Array
    position_ids: Array
    is_causal: Array | None = None
