"""The record of how a family is stored in `transformers` (config.json, tensors, classes) and described in model cards.

bert.py, modernbert.py and eurobert.py hold one record each; families.py finds the record of a model.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config.finetuning import POOLED
from bert_jax.pretrained.tensors import Tensor

POOLER, PREDICTION_HEAD, MLM_HEAD, NSP_HEAD = 'pooler', 'prediction head', 'masked-LM head', 'next-sentence head'
HEADS = (POOLER, PREDICTION_HEAD, MLM_HEAD, NSP_HEAD)  # of all families

# Keys of config.json -> fields of the model section. Every config.json has them, as numbers of at least 1.
SIZES = {
    'vocab_size': 'vocab_size',
    'hidden_size': 'hidden_size',
    'num_hidden_layers': 'num_layers',
    'num_attention_heads': 'num_heads',
    'intermediate_size': 'intermediate_size',
    'max_position_embeddings': 'max_positions',
}

# The end of the name of the class for each kind of task.
TASK_CLASSES = dict.fromkeys(POOLED, 'ForSequenceClassification') | {
    'tagging': 'ForTokenClassification',
    'spans': 'ForQuestionAnswering',
}


class Keys(NamedTuple):
    """The keys of config.json besides `SIZES`.

    Attributes:
      settings: key -> field of the model section; where a key is absent, the field keeps its default.
      constants: key -> the only value that the family can have; an absent key means that value.
      unwritten_constants: the same, for keys that exports leave out.
      read_others: (content, path of config.json) -> more fields; raises BadInput for values that are not supported.
      write_others: model -> more keys.
      tokens: key -> attribute of the tokenizer with the id of a special token.
    """

    settings: dict[str, str]
    constants: dict[str, Any]
    tokens: dict[str, str]
    unwritten_constants: Mapping[str, Any] = {}
    read_others: Callable[[dict[str, Any], Path], dict[str, Any]] = lambda content, path: {}
    write_others: Callable[[Any], dict[str, Any]] = lambda model: {}


class HubFamily(NamedTuple):
    """How a family is stored in `transformers` and described in model cards.

    Attributes:
      name: the family, `model_type` in config.json, and the tag of model cards.
      title: the name of the family in sentences.
      citation: the BibTeX entry of the paper that introduced it.
      class_prefix: start of the names of its classes, such as 'Bert' in 'BertForMaskedLM'.
      keys: of config.json.
      tensors: model -> the tensors of the pretraining class.
      task_tensors: (model, kind of task) -> the tensors of the class for a task.
      tasks: the kinds of tasks that have a class.
      heads: name -> path prefixes of the parameters of what a directory may lack.
      classifiers: prefixes of the names of tensors that only classes for tasks have.
      current_name: the name of a tensor in a directory -> its name in the tables.
      copies: model -> {name of a tensor that repeats another: name of the other}.
      buffers: names of tensors that are not parameters.
      head_stddev: model -> standard deviation of the initial kernels of a head.
      has_token_types: whether the classes take token types.
      card_facts: model -> rows of the table in model cards, besides those of all families.
    """

    name: str
    title: str
    citation: str
    class_prefix: str
    keys: Keys
    tensors: Callable[[Any], list[Tensor]]
    task_tensors: Callable[[Any, str], list[Tensor]]
    tasks: tuple[str, ...]
    heads: Mapping[str, tuple[str, ...]]
    classifiers: tuple[str, ...]
    current_name: Callable[[str], str]
    copies: Callable[[Any], dict[str, str]]
    buffers: frozenset[str] = frozenset()
    head_stddev: Callable[[Any], float] = lambda model: model.initializer_range
    has_token_types: bool = False
    card_facts: Callable[[Any], dict[str, Any]] = lambda model: {}

    def task_class(self, kind: str) -> str:
        """Returns the name of the class for a kind of task."""
        return self.class_prefix + TASK_CLASSES[kind]

    def pretraining_class(self, untrained: Collection[str]) -> str:
        """Returns the name of the class with the trained heads of pretraining, and no other."""
        has_pairs = self.predicts_pairs(untrained)
        if not self.fills_masks(untrained):
            return self.class_prefix + ('ForNextSentencePrediction' if has_pairs else 'Model')
        return self.class_prefix + ('ForPreTraining' if has_pairs else 'ForMaskedLM')

    def fills_masks(self, untrained: Collection[str]) -> bool:
        """Returns whether the heads that predict masked tokens are trained."""
        return MLM_HEAD not in untrained and PREDICTION_HEAD not in untrained

    def predicts_pairs(self, untrained: Collection[str]) -> bool:
        """Returns whether the family has heads for pairs of segments and they are trained."""
        return NSP_HEAD in self.heads and NSP_HEAD not in untrained and POOLER not in untrained

    def paths_of(self, heads: Iterable[str]) -> tuple[str, ...]:
        """Returns the path prefixes of heads."""
        return tuple(path for head in heads for path in self.heads[head])

    def encoder_tensors(self, model: Any) -> list[Tensor]:
        """Returns the tensors of the class without any head."""
        return [tensor for tensor in self.tensors(model) if not tensor.path.startswith(self.paths_of(self.heads))]

    def task_heads(self, model: Any, kind: str) -> tuple[str, ...]:
        """Returns the heads of pretraining that the class for a kind of task contains."""
        paths = [tensor.path for tensor in self.task_tensors(model, kind)]
        return tuple(head for head, prefixes in self.heads.items() if any(map(_starts(prefixes), paths)))

    def absent_heads(self, names: Iterable[str], model: Any) -> tuple[str, ...]:
        """Returns the heads that a directory has no tensors for.

        Args:
          names: of the tensors in the directory.
        """
        paths = {tensor.name: tensor.path for tensor in self.tensors(model)}
        present = [paths.get(self.current_name(name), '') for name in names]
        existing = [head for head, prefixes in self.heads.items() if any(map(_starts(prefixes), paths.values()))]
        return tuple(head for head in existing if not any(map(_starts(self.heads[head]), present)))


def _starts(prefixes: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda path: path.startswith(prefixes)
