"""`fill-mask`: predicts the tokens in place of [MASK]."""

import dataclasses
import os

from absl import flags

from bert_jax.cli.devices import enable_compilation_cache
from bert_jax.cli.flags import AT_LEAST_1, MODEL, Command, Flag, print_result, required
from bert_jax.errors import BadInput


def _run(values: flags.FlagValues, texts: list[str]) -> int:
    directory = required(COMMAND, values, 'model')
    if not texts:
        raise BadInput('fill-mask', 'has no text', 'one or more texts with [MASK]', COMMAND.example)
    texts = [os.fsencode(text).decode('utf-8', 'replace') for text in texts]  # bytes that the locale cannot decode
    from bert_jax.finetune.load import load_model

    enable_compilation_cache()
    pretrained = load_model(directory)
    answers = [pretrained.fill_mask(text, values.top_k) for text in texts]
    lines = []
    for text, slots in zip(texts, answers, strict=True):
        lines.append(text)
        lines += ['    ' + '  '.join(f'{filler.token} {filler.score:.0%}' for filler in slot) for slot in slots]
    results = [[dataclasses.asdict(filler) for filler in slot] for slots in answers for slot in slots]
    print_result(values, {'results': results}, '\n'.join(lines))
    return 0


COMMAND = Command(
    'fill-mask',
    _run,
    'show the most likely tokens for each [MASK] of a text',
    'bert-jax fill-mask --model=runs/demo "the [MASK] of the file"',
    (MODEL, Flag('top_k', 'number of tokens to show for each [MASK]', flags.DEFINE_integer, 5, AT_LEAST_1)),
    arguments=' "TEXT WITH [MASK]" …',
)
