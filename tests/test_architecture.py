"""The rules of the code's shape, checked: layers, one importer for each third-party package, sizes, docstrings.

Owns the tables below: a change of the architecture is a change here. It reads sources only, and is itself tested on packages that
break each rule.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 60

#: what each layer may import besides itself. core and sync never meet: only edge, which wires, sees both.
LAYERS: dict[str, set[str]] = {
    'base': set(),
    'storage': {'base'},
    'core': {'base', 'storage'},
    'sync': {'base', 'storage'},
    'edge': {'base', 'storage', 'core', 'sync'},
}
#: modules of the package itself: what all others may know
BASE = {'ctxfs', 'ctxfs.crash_points', 'ctxfs.errors', 'ctxfs.config', 'ctxfs.config_file', 'ctxfs.durations', 'ctxfs.limits', 'ctxfs.logs',
        'ctxfs.nearest', 'ctxfs.patterns', 'ctxfs.policy', 'ctxfs.policy_check', 'ctxfs.policy_parse', 'ctxfs.policy_presets', 'ctxfs.policy_text',
        'ctxfs.private_files', 'ctxfs.records', 'ctxfs.rules', 'ctxfs.store_url'}
#: no third-party package has two importers, so that it can be replaced, and its errors translated, in one place
IMPORTERS: dict[str, tuple[str, ...]] = {
    'boto3': ('ctxfs.storage.s3_boto',),
    'botocore': ('ctxfs.storage.s3_boto',),
    'click': ('ctxfs.edge.cli*',),
    'diskcache': ('ctxfs.storage.cache_database',),
    'exceptiongroup': ('ctxfs.edge.supervision',),
    'greenlet': ('ctxfs.storage.fibers',),
    'prometheus_client': ('ctxfs.edge.metrics_server',),
    'pyfuse3': ('ctxfs.edge.fuse_adapter',),
    're2': ('ctxfs.patterns',),
    'rich': ('ctxfs.edge.progress',),
    'sqlite3': ('ctxfs.storage.tree_connection',),
    'tomli': ('ctxfs.config',),
    'urllib3': ('ctxfs.storage.s3_boto',),
    'watchdog': ('ctxfs.edge.watcher',),
    'xxhash': ('ctxfs.storage.block_sums',),
    'zstandard': ('ctxfs.storage.index_format',),
}
#: where a distribution has another name than its package
DISTRIBUTIONS = {'re2': 'google-re2', 'prometheus_client': 'prometheus-client'}
#: languages more than libraries: anywhere, but trio not where everything is synchronous
ANYWHERE = {'msgspec', 'trio'}
FORBIDDEN = {('storage', 'trio'), ('base', 'trio')}


class Module:
    """One source file: its dotted name, its layer, its tree."""

    def __init__(self, root: Path, path: Path) -> None:
        parts = path.relative_to(root).with_suffix('').parts
        self.name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
        self.is_package = parts[-1] == '__init__'
        self.text = path.read_text()
        self.tree = ast.parse(self.text)

    @property
    def layer(self) -> str:
        if self.name in BASE:
            return 'base'
        if self.name == 'ctxfs.__main__':
            return 'edge'
        return self.name.split('.')[1]

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of every import, wherever it stands: inside functions and TYPE_CHECKING too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                origin = self._absolute(node)
                for alias in node.names:
                    yield node.lineno, f'{origin}.{alias.name}'
            elif isinstance(node, ast.Call) and _called(node.func) in ('import_module', '__import__') and node.args:
                if isinstance(node.args[0], ast.Constant):
                    yield node.lineno, str(node.args[0].value)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ''
        parts = self.name.split('.')
        here = parts[: len(parts) - node.level + (1 if self.is_package else 0)]
        return '.'.join([*here, *([node.module] if node.module else [])])


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, 'id', '')


def modules_of(root: Path) -> list[Module]:
    return [Module(root, path) for path in sorted((root / 'ctxfs').rglob('*.py'))]


def layer_violations(modules: list[Module]) -> list[str]:
    by_name = {module.name: module for module in modules}
    found = []
    for module in modules:
        if module.layer not in LAYERS:
            found.append(f'{module.name}: no layer; a module lies in one of {", ".join(LAYERS)}')
            continue
        for line, imported in module.imports():
            # `from ctxfs.x import y`: y is a module of x, or a name in it
            target = by_name.get(imported) or by_name.get(imported.rpartition('.')[0])
            if target and target.layer != module.layer and target.layer not in LAYERS[module.layer]:
                found.append(f'{module.name}:{line}: {module.layer} imports {target.name} of {target.layer}')
    return found


def import_violations(modules: list[Module]) -> list[str]:
    found = []
    for module in modules:
        for line, imported in module.imports():
            package = imported.partition('.')[0]
            if (module.layer, package) in FORBIDDEN:
                found.append(f'{module.name}:{line}: {module.layer} imports {package}')
            elif package in IMPORTERS:
                if not any(_fits(module.name, pattern) for pattern in IMPORTERS[package]):
                    found.append(f'{module.name}:{line}: {package} is imported by {", ".join(IMPORTERS[package])} only')
            elif package not in ANYWHERE and package != 'ctxfs' and package not in sys.stdlib_module_names:
                found.append(f'{module.name}:{line}: {package} has no importer in the table')
    return found


def _fits(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith('*') else name == pattern


def size_violations(modules: list[Module]) -> list[str]:
    found = []
    for module in modules:
        lines = module.text.count('\n')
        if lines > MAX_MODULE_LINES:
            found.append(f'{module.name}: {lines} lines, {MAX_MODULE_LINES} at most')
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = node.end_lineno - node.lineno + 1
                if size > MAX_FUNCTION_LINES:
                    found.append(f'{module.name}:{node.lineno}: {node.name} has {size} lines, {MAX_FUNCTION_LINES} at most')
    return found


def docstring_violations(modules: list[Module]) -> list[str]:
    """An empty `__init__.py` says nothing because it holds nothing."""
    return [f'{module.name}: no docstring' for module in modules if module.tree.body and not ast.get_docstring(module.tree)]


RULES = [layer_violations, import_violations, size_violations, docstring_violations]


@pytest.mark.parametrize('rule', RULES)
def test_ctxfs_keeps_the_rule(rule) -> None:
    """The package breaks none of the rules."""
    modules = modules_of(ROOT)
    assert len(modules) > 10
    assert rule(modules) == []


BROKEN = {
    'storage imports core': (layer_violations, 'storage/a.py', '"""x"""\nfrom ctxfs.core import b\n'),
    'core imports sync': (layer_violations, 'core/b.py', '"""x"""\nimport ctxfs.sync.c\n'),
    'sync imports core, relatively and late': (layer_violations, 'sync/c.py', '"""x"""\ndef f():\n    from ..core.b import thing\n'),
    'core imports edge, by its package': (layer_violations, 'core/b.py', '"""x"""\nfrom ctxfs import edge\n'),
    'a base module imports storage': (layer_violations, 'errors.py', '"""x"""\nfrom ctxfs.storage.a import thing\n'),
    'a module outside the layers': (layer_violations, 'helpers/h.py', '"""x"""\n'),
    'sqlite3 in core': (import_violations, 'core/b.py', '"""x"""\nimport sqlite3\n'),
    'pyfuse3 imported lazily': (import_violations, 'edge/d.py', '"""x"""\ndef f():\n    import pyfuse3\n'),
    'boto3 by name': (import_violations, 'edge/d.py', '"""x"""\nimport importlib\nimportlib.import_module("boto3.session")\n'),
    'a package that is in no table': (import_violations, 'edge/d.py', '"""x"""\nfrom requests import get\n'),
    'trio in storage': (import_violations, 'storage/a.py', '"""x"""\nimport trio\n'),
    'a long module': (size_violations, 'core/b.py', '"""x"""\n' + 'x = 1\n' * MAX_MODULE_LINES),
    'a long function': (
        size_violations,
        'core/b.py',
        '"""x"""\nclass C:\n    async def f(self):\n' + '        x = 1\n' * MAX_FUNCTION_LINES,
    ),
    'no docstring': (docstring_violations, 'core/b.py', 'x = 1\n'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_rule_is_found(name: str, tmp_path: Path) -> None:
    """A package that is right but for one module yields exactly one complaint, of the rule that it breaks."""
    rule, path, source = BROKEN[name]
    made = {
        '__init__.py': '"""x"""\n',
        'errors.py': '"""x"""\n',
        'storage/__init__.py': '',
        'storage/a.py': '"""x"""\nimport ctxfs.errors\n',
        'core/__init__.py': '',
        'core/b.py': '"""x"""\nfrom ctxfs.storage import a\n',
        'sync/__init__.py': '',
        'sync/c.py': '"""x"""\n',
        'edge/__init__.py': '',
        'edge/d.py': '"""x"""\nfrom ctxfs.core import b\nfrom ctxfs.sync.c import thing\n',
    }
    right = _package(tmp_path / 'right', made)
    assert [complaint for rule in RULES for complaint in rule(right)] == []
    broken = _package(tmp_path / 'broken', made | {path: source})
    assert {rule.__name__: len(rule(broken)) for rule in RULES if rule(broken)} == {rule.__name__: 1}


def _package(root: Path, files: dict[str, str]) -> list[Module]:
    for path, source in files.items():
        (root / 'ctxfs' / path).parent.mkdir(parents=True, exist_ok=True)
        (root / 'ctxfs' / path).write_text(source)
    return modules_of(root)


def test_every_dependency_has_an_importer_in_the_table() -> None:
    """pyproject.toml names what the table names: a dependency that nobody imports is not one."""
    text = (ROOT / 'pyproject.toml').read_text()
    block = text[text.index('dependencies = [') : text.index('[project.optional-dependencies]')]
    named = {line.strip()[1:].split('>')[0] for line in block.splitlines() if line.strip().startswith('"')}
    # what boto3 brings, at the versions that it wants, is not ours to name
    assert named == {DISTRIBUTIONS.get(name, name) for name in (set(IMPORTERS) | ANYWHERE) - {'sqlite3', 'botocore', 'urllib3'}}
