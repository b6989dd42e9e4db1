"""Pages of the documentation that are generated from the code, diagrams drawn inline, and what search prefers.

MkDocs calls the functions whose names begin with `on_` when it builds. Nothing here imports jax.
"""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import bert_jax.errors
from bert_jax.cli.commands import COMMANDS
from bert_jax.cli.flags import GROUPS, Command, Flag
from bert_jax.config import Config
from bert_jax.config.fields import Role, element_section, field_meanings, roles, section_variants
from bert_jax.config.finetuning import FinetuneConfig

_ROOT = pathlib.Path(__file__).parents[1]
_ROLES = {
    Role.IDENTITY: 'identity',
    Role.IDENTITY_IF_SET: 'identity',
    Role.SHAPES: 'fixed',
    Role.SHAPES_IF_SET: 'fixed',
    Role.CONTENT: 'content',
    Role.CONTENT_IF_SET: 'content',
    Role.EXECUTION: 'free',
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    pages = {'cli': commands_page(), 'config': config_page(), 'messages': messages_page()}
    contributing = (_ROOT / 'CONTRIBUTING.md').read_text('utf-8').replace('](LICENSE)', '](../index.md)')
    contributing = contributing.replace('](docs/contributing/', '](')
    files.append(File.generated(config, 'contributing/index.md', content=contributing))
    for name, text in pages.items():
        path = f'reference/{name}.md'
        files.append(File.generated(config, path, content=text))
    return files


# Weights of pages in the search, by the beginning of their path. Lists and records would otherwise come before guides.
_SEARCH_BOOST = {
    'getting-started/': 3.0,
    'guides/': 3.0,
    'reference/messages': 0.001,
    'benchmarks/log': 0.001,
    'benchmarks/': 0.5,
    'contributing/': 0.1,
    'reference/cli': 3.0,
}
_DIAGRAM = re.compile(r'<img alt="([^"]*)" src="[^"]*assets/(batch|data-flow|mesh)\.svg"\s*/?>')

_NAME_IN_TABLE = re.compile(r'(<td>(?:<span id="[^"]*"></span>)?<code>)([^<]*)(?=</code>)')
_NAME_JOINT = re.compile(r'(?<=\w)[._/](?!py\b)(?=\w)')


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Gives a page its weight in the search."""
    boosts = (boost for start, boost in _SEARCH_BOOST.items() if page.file.src_uri.startswith(start))
    page.meta.setdefault('search', {'boost': next(boosts, 1.0)})
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Draws diagrams inline, so that they follow the colours that a reader chose; `site.css` has the colours."""
    return _DIAGRAM.sub(lambda match: _drawn(match[2], match[1]), html)


def on_post_page(output: str, **_: Any) -> str:
    """Lets names in tables break where their parts join. The search has read the page by now, with whole names."""
    return _NAME_IN_TABLE.sub(lambda match: match[1] + _NAME_JOINT.sub(r'\g<0><wbr>', match[2]), output)


def _drawn(name: str, alt: str) -> str:
    svg = (_ROOT / 'docs' / 'assets' / f'{name}.svg').read_text('utf-8')
    svg = re.sub(r'<style>.*?</style>', '', svg, flags=re.DOTALL)
    return re.sub(r'aria-label="[^"]*"', lambda _: f'aria-label="{alt}"', ' '.join(svg.split()), count=1)


def commands_page() -> str:
    """Every command with its flags."""
    lines = [
        '# Commands',
        '',
        '`bert-jax COMMAND [--config=FILE.py[:VARIANT]] [--workdir=DIR] [--config.FIELD=VALUE …]`',
        '',
        'This page is generated from the code. `bert-jax COMMAND --help` prints the same.',
        '`--config.FIELD=VALUE` changes a field of the [configuration](config.md).',
        '`--workdir=DIR@STEP` names a checkpoint, as `--step` does. `--version` prints the version.',
        '',
        '## Exit status',
        '',
        '| status | meaning |',
        '|--:|---|',
        '| 0 | finished |',
        '| 2 | bad input or an impossible request, reported without a traceback |',
        '| 75 | stopped by a signal or a time limit, and saved: rerun the same command to resume |',
        '| other | a bug or a hardware fault |',
    ]
    for command in COMMANDS.values():
        lines += ['', *_command(command)]
    return '\n'.join(lines) + '\n'


def _command(command: Command) -> Iterator[str]:
    yield f'## {command.name}'
    yield ''
    yield f'{_sentence(command.summary)}'
    yield ''
    yield f'```sh\n{command.example}\n```'
    yield ''
    yield '| flag | meaning | default |'
    yield '|---|---|---|'
    for group in GROUPS:
        for flag in command.flags_of(group):
            anchor = f'{command.name}-{flag.name}'
            name = f'<span id="{anchor}"></span>`--{flag.name}`'
            yield f'| {name} | {_cell(_sentence(flag.meaning))} | {_default(flag)} |'


def _default(flag: Flag) -> str:
    return '' if flag.default in (None, []) else f'`{flag.default}`'


def config_page() -> str:
    """Every field of the configuration."""
    lines = [
        '# Configuration',
        '',
        'This page is generated from the code. Set a field in a config file, or on the command line with',
        '`--config.SECTION.FIELD=VALUE`. `bert-jax help config.SECTION` prints the same for one section.',
        '',
        '**When a run resumes**, a field that is *free* may change at any time. One that is part of the *identity* of',
        'the run may change only with `--allow_change`, and a *fixed* one never. For *content*, a hash of the data',
        'counts instead of the field itself.',
    ]
    for title, root, prefix in (('', Config, ''), ('Fine-tuning', FinetuneConfig, 'finetune-')):
        if title:
            lines += [
                '',
                f'## {title} {{ #fine-tuning }}',
                '',
                'Sections of a `finetune` config that differ from those above.',
            ]
        lines += _sections(root, prefix)
    return '\n'.join(lines) + '\n'


def _sections(root: type, prefix: str) -> Iterator[str]:
    level = '##' if not prefix else '###'
    shared = {field.name: section_variants(field) for field in dataclasses.fields(Config)} if prefix else {}
    singles = [field for field in dataclasses.fields(root) if not section_variants(field)]
    for field in dataclasses.fields(root):
        variants = section_variants(field)
        if not variants or shared.get(field.name) == variants:
            continue
        for index, (name, section) in enumerate(variants.items()):
            label = f'{field.name} (family {name})' if len(variants) > 1 else field.name
            anchor = f'{prefix}{field.name}' + (f'-{name}' if len(variants) > 1 else '')
            yield from ['', f'{level} {label} {{ #{anchor} }}', '', (section.__doc__ or '').split('\n')[0], '']
            # The fields of the first variant have plain anchors; an anchor may occur only once.
            yield from _fields(section, f'{field.name}.', f'{prefix}{name}-' if index else prefix)
    for field in singles:
        if (section := element_section(field)) is not None:
            yield from ['', f'{level} {field.name}[] {{ #fields-of-{prefix}{field.name} }}', '']
            yield from [(section.__doc__ or '').split('\n')[0], '']
            yield from _fields(section, f'{field.name}[].', prefix)
    yield from ['', f'{level} Top level {{ #{prefix}top-level }}', '']
    yield from _fields(root, '', prefix, {field.name for field in singles})


def _fields(section: type, path: str, prefix: str, only: set[str] | None = None) -> Iterator[str]:
    yield '| field | default | meaning | on resume |'
    yield '|---|---|---|---|'
    meanings, found_roles = field_meanings(section), roles(section)
    nested = []
    for field in dataclasses.fields(section):
        if only is not None and field.name not in only:
            continue
        if variants := section_variants(field):
            nested.append((field.name, variants))
            continue
        name = f'{path}{field.name}'
        expected = field.metadata.get('expected', '')
        meaning = _sentence(meanings.get(field.name, ''))
        text = ' '.join(filter(None, (meaning, f'Allowed: {expected}.' if expected else '')))
        anchor = f'{prefix}{name}'.replace('[].', '-').replace('.', '-')
        role = _ROLES[found_roles[field.name]]
        yield f'| <span id="{anchor}"></span>`{name}` | {_value(field.default)} | {_cell(text)} | {role} |'
    for name, variants in nested:
        for inner in variants.values():
            yield from ['', f'`{path}{name}`: {(inner.__doc__ or "").split(chr(10))[0]}', '']
            yield from _fields(inner, f'{path}{name}.', prefix)


def _value(default: Any) -> str:
    text = repr(default)
    return '' if default == '' else f'`{text}`' if len(text) <= 40 else '(see the source)'


def _sentence(text: str) -> str:
    text = text.strip()
    return text and text[0].upper() + text[1:] + ('' if text.endswith(('.', '?', '!')) else '.')


def _cell(text: str) -> str:
    return text.replace('|', '\\|').replace('<', '&lt;').replace('\n', ' ')


# --- Every error, read from the source. ---

_STAGES = {
    'config': 'Configuration',
    'cli': 'Command line',
    'text': 'Preparing text',
    'data': 'Data and records',
    'model': 'Model and attention',
    'runtime': 'Devices and processes',
    'train': 'Training',
    'workdir': 'Workdirs and checkpoints',
    'pretrained': 'Models in and out',
    'evaluation': 'Evaluation',
    'finetune': 'Fine-tuning',
    'plan': 'Planning',
    'advise': 'Advice',
    'sweep': 'Sweeps',
    'report': 'Reports',
}


class Message(NamedTuple):
    """An error as the source states it, with `…` for what differs."""

    where: str
    found: str
    expected: str
    fix: str


def messages() -> dict[str, list[Message]]:
    """{package: its errors} from all calls of `BadInput`; the packages in the order of `_STAGES`, others last."""
    root = pathlib.Path(bert_jax.errors.__file__).parent
    found: dict[str, list[Message]] = {name: [] for name in (*_STAGES, '')}
    for path in sorted(root.rglob('*.py')):
        package = path.relative_to(root).parts[0] if path.parent != root else ''
        found[package if package in found else ''] += _messages_in(ast.parse(path.read_text()))
    return {package: list(dict.fromkeys(each)) for package, each in found.items() if each}


def _messages_in(tree: ast.Module) -> Iterator[Message]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Module)]
    seen = set()
    for function in sorted(functions, key=lambda node: isinstance(node, ast.Module)):  # the module itself last
        values = {
            target.id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            is_error = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'BadInput'
            if not is_error or id(node) in seen:
                continue
            seen.add(id(node))
            named = {keyword.arg: keyword.value for keyword in node.keywords}
            parts = dict(zip(Message._fields, node.args, strict=False)) | named
            message = Message(*(_text(parts.get(field), values) for field in Message._fields))
            if message.found.strip('… '):
                yield message


def _text(node: ast.expr | None, values: dict[str, ast.expr], depth: int = 0) -> str:
    """The text of an expression, `…` for what only a run knows."""
    if node is None:
        return ''
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return ''.join(_text(part, {}, depth) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, values, depth) + _text(node.right, values, depth)
    if isinstance(node, ast.Name) and node.id in values and depth < 3:
        return _text(values[node.id], values, depth + 1)
    return '…'


def messages_page() -> str:
    """Every error that the program can print."""
    lines = [
        '# Error messages',
        '',
        'This page is generated from the code: every error, grouped by where it comes from, with `…` for what differs.',
        'An error has the form',
        '',
        '```',
        'bert_jax: WHERE: FOUND',
        '  expected: …',
        '  fix:      …',
        '```',
        '',
        'The exit status is 2, and nothing was written. The most important ones, and warnings, are explained in',
        '[Troubleshooting](../guides/troubleshooting.md).',
    ]
    for package, found in messages().items():
        lines += ['', f'## {_STAGES.get(package, "Other")}']
        for message in found:
            heading = f'{message.where}: {message.found}' if message.where.strip('…') else message.found
            lines += ['', f'### `{_plain(heading)}`', '']
            lines += [f'- Expected: `{_plain(message.expected)}`'] if message.expected.strip('… ') else []
            lines += [f'- Fix: `{_plain(message.fix)}`'] if message.fix.strip('… ') else []
    return '\n'.join(lines) + '\n'


def _plain(text: str) -> str:
    return ' '.join(text.replace('`', "'").split())
