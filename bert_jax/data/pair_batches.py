"""The batch of a step that trains embeddings: texts that belong together, and where each lies in the rows.

`B` rows, `L` positions, `E` texts of a row, `Q` groups of a global batch, `R` roles: query, positive, hard negatives.
"""

from typing import NamedTuple

from bert_jax.model.inputs import Array, Inputs


class PairBatch(NamedTuple):
    """Packed texts, each a member of a group: a query, its positive and, perhaps, its hard negatives.

    Every field has the rows of the batch as its first dim, so that a batch is split over devices and microbatches like
    any other; the members of a group may lie in any rows. A loss finds them by (group, role) in the whole global batch.
    Q and R are fixed for a run: groups are 0 … Q - 1, roles 0 … R - 1, and no two slots have the same pair of them.

    A group without a query or a positive in the batch is absent: it has no loss, and its texts are no candidates. A
    group may have fewer than R - 2 hard negatives. Empty slots have `groups` -1 and are ignored.
    """

    input_ids: Array  # [B, L] int32
    token_type_ids: Array  # [B, L] int32, 0
    sequence_ids: Array  # [B, L] int32, k for the k-th text of the row; 0 for padding
    position_ids: Array  # [B, L] int32, position within the text
    cls_positions: Array  # [B, E] int32, where each text starts; 0 for empty slots
    groups: Array  # [B, E] int32, index of the group in the global batch; -1 for empty slots
    roles: Array  # [B, E] int32: 0 query, 1 positive, 2 … R - 1 hard negatives; for scored pairs 0 and 1
    text_ids: Array  # [B, E] int32, equal for equal texts of the global batch, whatever their roles; -1 for empty slots
    scores: Array  # [B, E] float32, at a query: the score of its pair, over `embedding.max_score`; 0 elsewhere

    @property
    def inputs(self) -> Inputs:
        """The inputs of the encoder."""
        return Inputs(self.input_ids, self.token_type_ids, self.sequence_ids, self.position_ids)

    @property
    def num_predictions(self) -> int:
        """0, because no masked-LM head runs."""
        return 0
