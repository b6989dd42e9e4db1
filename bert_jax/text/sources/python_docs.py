"""The built-in corpus: docstrings of Python's standard library and of the packages that this project requires.

Files are parsed with `ast`, never imported. Only the packages that `requirements.txt` requires are read, so installing
other packages does not change the corpus.
"""

import ast
import inspect
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.text.chunks import FileRange
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.records import Texts, clean
from bert_jax.text.stats import Stats

_REQUIREMENTS = Path(__file__).parents[3] / 'requirements.txt'
_LEFT_OUT_DISTRIBUTIONS = frozenset({'bert-jax', 'pip', 'setuptools', 'wheel'})
_LEFT_OUT_DIRECTORIES = frozenset(
    {'test', 'tests', 'idlelib', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
)

_RULE = re.compile(r'[^\w]*')  # underlines and table borders
_NEW_UNIT = re.compile(r'(?:[-*+•]\s|\d+[.)]\s|:\w|@\w|\*{0,2}[\w.]+(?:\s*\([^)]*\))?\s?:\s|\*{0,2}[\w.]+ : )')
_CODE_DIRECTIVE = re.compile(
    r'\.\.\s+(?:code|code-block|sourcecode|plot|math|doctest|testcode|testoutput|autosummary|toctree|ipython|'
    r'table|list-table|csv-table|figure|image|raw|tabs|graphviz)::'
)
_LETTER = re.compile(r'[^\W\d_]')


def find_modules() -> list[tuple[str, Path]]:
    """Returns (dotted module name, file) of every module of the corpus, sorted by name.

    Raises:
      BadInput: if neither an installed `bert_jax` nor a `requirements.txt` lists the packages.
    """
    modules = {}
    library = Path(sysconfig.get_path('stdlib'))
    for path in library.rglob('*.py'):
        relative = path.relative_to(library)
        if not _LEFT_OUT_DIRECTORIES.intersection(relative.parts):
            modules[_module_name(relative)] = path
    for distribution in _required_distributions():
        for file in distribution.files or ():
            if file.suffix == '.py' and '..' not in file.parts and not _LEFT_OUT_DIRECTORIES.intersection(file.parts):
                modules[_module_name(Path(file))] = Path(str(distribution.locate_file(file)))
    return sorted((name, path) for name, path in modules.items() if path.is_file())


def read(file_range: FileRange, options: ReadOptions, stats: Stats) -> Texts:
    """Yields the prose of a module as one document."""
    del options
    paragraphs = read_paragraphs(epath.Path(file_range.path), stats.counts)
    yield (clean(paragraph, stats.counts) for paragraph in paragraphs), None


def read_paragraphs(path: Path | epath.Path, counts: Counter) -> Iterator[str]:
    """Yields the prose of a module's docstrings, in source order: paragraphs, list items and arguments.

    Doctests, code blocks and tables are omitted. A file that does not parse yields nothing and is counted as
    `unparsable_module`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # invalid escapes in strings
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            counts['unparsable_module'] += 1
            return
    for node in _documented(tree):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield from _prose(inspect.cleandoc(docstring))


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(node: ast.AST) -> Iterator[_Documented]:
    """Yields modules, classes and functions, in source order; expressions contain none and are not walked."""
    if isinstance(node, _Documented):
        yield node
    for block in ('body', 'handlers', 'orelse', 'finalbody', 'cases'):
        for child in getattr(node, block, ()):
            yield from _documented(child)


def _module_name(relative: Path) -> str:
    parts = relative.with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' and len(parts) > 1 else parts)


def _required_distributions() -> list[metadata.Distribution]:
    """Returns the transitive closure of the project's requirements, from the metadata of installed packages.

    Extras of the project's own requirements select an accelerator; they are not followed.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    distributions, seen = {}, set()
    queue = [(Requirement(line), True) for line in _root_requirements()]
    while queue:
        requirement, is_root = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(() if is_root else requirement.extras)
        if (name, extras) in seen or name in _LEFT_OUT_DISTRIBUTIONS:
            continue
        seen.add((name, extras))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # required on another platform only
            continue
        distributions[name] = distribution
        for line in distribution.requires or ():
            child = Requirement(line)
            if child.marker is None or any(child.marker.evaluate({'extra': e}) for e in ('', *sorted(extras))):
                queue.append((child, False))
    return [distributions[name] for name in sorted(distributions)]


def _root_requirements() -> list[str]:
    if _REQUIREMENTS.is_file():
        lines = (line.partition(' #')[0].strip() for line in _REQUIREMENTS.read_text('utf-8').splitlines())
        return [line for line in lines if line and not line.startswith(('#', '-'))]
    try:
        lines = metadata.requires('bert_jax') or []
    except metadata.PackageNotFoundError:
        raise BadInput(
            'config.data.source=python-docs',
            'bert_jax is not installed, and there is no requirements.txt',
            'one of them, which lists the packages to read',
            'pip install -e .',
        ) from None
    return [line for line in lines if 'extra ==' not in line]


def _prose(docstring: str) -> Iterator[str]:
    unit: list[str] = []
    previous_indent = 0
    code_indent = None  # lines deeper than this belong to a code block
    in_doctest = in_fence = False
    for line in [*docstring.splitlines(), '']:
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if stripped.startswith('```'):
            in_fence = not in_fence
            stripped, in_doctest = '', False
        if not stripped or _RULE.fullmatch(stripped) or in_fence:
            in_doctest = in_doctest and bool(stripped)
            yield from _finish(unit)
            continue
        if code_indent is not None:
            if indent > code_indent:
                continue
            code_indent = None
        if stripped.startswith('>>>') or in_doctest:
            in_doctest = True
            yield from _finish(unit)
            continue
        if _CODE_DIRECTIVE.match(stripped):
            code_indent = indent
            yield from _finish(unit)
            continue
        if unit and (indent < previous_indent or unit[-1].endswith(':') or _NEW_UNIT.match(stripped)):
            yield from _finish(unit)
        unit.append(stripped)
        previous_indent = indent
        if stripped.endswith('::') and not stripped.startswith('..'):
            code_indent = indent


def _finish(unit: list[str]) -> Iterator[str]:
    text = ' '.join(' '.join(unit).split())
    unit.clear()
    letters = len(_LETTER.findall(text))
    if letters >= 2 and letters > 0.6 * (len(text) - text.count(' ')):
        yield text
