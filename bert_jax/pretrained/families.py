"""The hub record of every family."""

from bert_jax import config
from bert_jax.config.finetuning import SCORES
from bert_jax.pretrained import bert, eurobert, modernbert
from bert_jax.pretrained.hub import HubFamily

HUB_FAMILIES = {hub.name: hub for hub in (bert.HUB, modernbert.HUB, eurobert.HUB)}
# Classes of `transformers` with the head of a task -> kind of task. Scores have the class of classification; the number
# of outputs tells them apart.
TASK_OF_CLASS = {
    hub.task_class(kind): kind for hub in HUB_FAMILIES.values() for kind in hub.tasks if kind not in SCORES
}


def hub_of(model: config.Model) -> HubFamily:
    """Returns the hub record of a model's family."""
    return HUB_FAMILIES[model.family]
