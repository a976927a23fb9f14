"""Package managers: pip in a virtual environment, npm; what they installed runs on the next host."""
from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs.home import Home, wants_all

#: as pip and npm have them where the large examples run
REAL_PACKAGES = ('flask', 'rich')
NPM_PACKAGE = 'express@4'


def a_wheel(directory: Path) -> Path:
    """A distribution of 120 modules with a console script, put together as PEP 427 says."""
    wheel = directory / 'parcel-1.0-py3-none-any.whl'
    files = {f'parcel/m{n}.py': f'VALUE = {n}\n' for n in range(120)}
    files['parcel/__init__.py'] = 'from importlib import import_module\n\ndef main():\n' \
                                  '    print(sum(import_module(f"parcel.m{n}").VALUE for n in range(120)))\n'
    meta = {'METADATA': 'Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n',
            'WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
            'entry_points.txt': '[console_scripts]\nparcel = parcel:main\n'}
    files |= {f'parcel-1.0.dist-info/{name}': text for name, text in meta.items()}
    files['parcel-1.0.dist-info/RECORD'] = ''.join(f'{name},,\n' for name in [*files, 'parcel-1.0.dist-info/RECORD'])
    with zipfile.ZipFile(wheel, 'w') as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def test_pip(home: Home, outside: Path) -> None:
    """venv, an installation with a console script; elsewhere it runs, pip finds all it recorded, and takes it away again."""
    if not wants_all():
        pytest.skip('it takes long, and a registry (scripts/programs runs it)')
    python = home.at / 'venv/bin/python'
    home.run(sys.executable, '-m', 'venv', *([] if wants_all() else ['--without-pip']), 'venv')
    runner = (python, '-m', 'pip') if wants_all() else (sys.executable, '-m', 'pip', '--python', python)
    pip = (*runner, '--disable-pip-version-check', '--no-cache-dir')
    home.run(*pip, 'install', '-q', '--no-index', a_wheel(outside))
    if wants_all():
        home.run(*pip, 'install', '-q', *REAL_PACKAGES)
    assert home.run('venv/bin/parcel') == f'{sum(range(120))}\n'
    home.move()
    assert home.run('venv/bin/parcel') == f'{sum(range(120))}\n'
    assert {'parcel'} <= {entry['name'] for entry in json.loads(home.run(*pip, 'list', '--format=json'))}
    if wants_all():
        home.run(*pip, 'check')
        home.run(python, '-c', 'import flask, rich')
    home.run(*pip, 'uninstall', '-qy', 'parcel')
    assert not list((home.at / 'venv').rglob('*parcel*'))


def test_npm(home: Home, outside: Path, needs: Callable[..., None]) -> None:
    """npm install of a server with its dependencies, npm ci on the next host; the modules load, and npm finds the tree whole."""
    needs('npm', 'node')
    if not wants_all():
        pytest.skip('it takes long, and a registry (scripts/programs runs it)')
    env = {'npm_config_cache': os.environ.get('CTXFS_TEST_NPM_CACHE') or str(outside / 'cache'), 'npm_config_update_notifier': 'false'}
    flags = ('--no-audit', '--no-fund', '--loglevel=error', '--prefer-offline', '--fetch-retries=0')
    (home.at / 'package.json').write_text(json.dumps({'name': 'home', 'version': '1.0.0', 'private': True}))
    home.run('npm', 'install', *flags, NPM_PACKAGE, env=env)
    serve = ('const app = require("express")(); app.get("/", (q, r) => r.send("hello"));'
             'const s = app.listen(0, "127.0.0.1", () => require("http").get({port: s.address().port, path: "/"}, r => {'
             'r.on("data", d => process.stdout.write(d)); r.on("end", () => process.exit(0)); }));')
    assert home.run('node', '-e', serve) == 'hello'
    home.move()
    assert home.run('node', '-e', serve) == 'hello'
    assert not json.loads(home.run('npm', 'ls', '--all', '--json', env=env)).get('problems')
    if wants_all():
        home.run('npm', 'ci', *flags, env=env)
        assert home.run('node', '-e', serve) == 'hello'
        home.move()
        assert home.run('node', '-e', serve) == 'hello'
