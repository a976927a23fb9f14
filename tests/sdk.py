"""The policy classes of wuying-agentbay-sdk, as its releases have them.

Owns how a release gets here: the installed one by its file, an old one by pip into a directory of its own. It must not know ctxfs.
"""
from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from tests import leftovers


def load_source(file: Path) -> ModuleType:
    """The module in `file`, without its package: importing that opens a log file in the working directory."""
    name = f'sdk_{abs(hash(file))}'
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module      # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@cache
def old_release(version: str) -> ModuleType:
    """agentbay.context_sync of that release; skips the test where pip cannot get it."""
    work = Path(tempfile.mkdtemp(prefix='sdk-'))
    try:
        command = [sys.executable, '-m', 'pip', 'install', '-qq', '--no-deps', '--no-compile', '--target', work, f'wuying-agentbay-sdk=={version}']
        env = {**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
        if done.returncode:
            pytest.skip(f'pip cannot get wuying-agentbay-sdk {version}: {done.stderr.strip()[-200:]}')
        return load_source(work / 'agentbay/context_sync.py')
    finally:
        leftovers.remove_tree(work)
