"""Says which attention a run computes, before it is compiled."""

from bert_jax.config import Config
from bert_jax.model.attention import unsupported_reason_of


def describe_attention(config: Config, platform: str, tensor: int) -> str:
    """Returns which attention implementation runs; if it is the plain one, why, and what allows a kernel.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      tensor: devices that heads are split over.
    """
    if config.model.attention == 'plain':
        return 'plain, as set by model.attention'
    reasons = [
        unsupported_reason_of(phase.model, platform, phase.data.sequence_length, tensor) for phase in config.in_phases
    ]
    reason = next(filter(None, reasons), None)
    if reason is None:
        return 'fused: scores stay on the chip'
    return f'plain: {reason[0]}' + ('' if platform == 'cpu' else f' ({reason[1]} allows a kernel)')
