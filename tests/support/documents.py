"""The commands and programs in Markdown documents, so that tests can run them."""

import contextlib
import re
import shlex
import textwrap
from pathlib import Path

_FENCE = re.compile(r'^( *)```(\w*)\n(.*?)^\1```$', re.M | re.S)


def code_blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """Returns (language, code) of each fenced block in one of the languages, in order."""
    found = [(language, textwrap.dedent(code)) for _, language, code in _FENCE.findall(text)]
    return [block for block in found if block[0] in languages]


def commands(code: str) -> list[list[str]]:
    """Returns the words of each command of a shell block; comments are left out, continued lines are joined."""
    lines = code.replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def arguments_of(words: list[str]) -> list[str]:
    """Returns the arguments of `bert_jax` in a shell command that starts it, directly or with a launcher; or []."""
    if words[0] == 'bert-jax':
        return words[1:]
    if '-m' in words and words[words.index('-m') + 1 :][:1] == ['bert_jax']:
        return words[words.index('bert_jax') + 1 :]
    if 'launch/local.py' in words:
        return words[words.index('--') + 1 :]
    for script in ('launch/slurm.sbatch', 'launch/tpu_pod.sh'):
        if script in words:
            return ['train', *(word for word in words[words.index(script) + 1 :] if word.startswith('--'))]
    if '--wrap' in words:
        return arguments_of(shlex.split(words[words.index('--wrap') + 1]))
    return []


def commands_of(text: str) -> list[list[str]]:
    """Returns the arguments of each `bert_jax` command in all shell blocks of a document."""
    blocks = [commands(code) for _, code in code_blocks(text, 'sh')]
    return [arguments for block in blocks for words in block if (arguments := arguments_of(words))]


def run_snippet(export: Path) -> None:
    """Runs the Python blocks in the model card of an export, in its directory."""
    [*blocks] = code_blocks((export / 'README.md').read_text(), 'python')
    assert blocks
    with contextlib.chdir(export):
        for _, code in blocks:
            exec(compile(code, 'README.md', 'exec'), {})
