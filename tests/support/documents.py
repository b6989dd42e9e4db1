"""The commands and programs in Markdown documents, so that tests can run them."""

import re
import shlex

_FENCE = re.compile(r'^( *)```(\w*)\n(.*?)^\1```$', re.M | re.S)


def code_blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """Returns (language, code) of each fenced block in one of the languages, in order."""
    found = [(language, code) for _, language, code in _FENCE.findall(text)]
    return [block for block in found if block[0] in languages]


def commands(code: str) -> list[list[str]]:
    """Returns the words of each command of a shell block; comments are left out, continued lines are joined."""
    lines = code.replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands_of(text: str, program: str = 'bert-jax') -> list[list[str]]:
    """Returns the arguments of each command of one program in all shell blocks of a document."""
    blocks = [commands(code) for _, code in code_blocks(text, 'sh')]
    return [words[1:] for block in blocks for words in block if words[0] == program]
