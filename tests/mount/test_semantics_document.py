"""docs/SEMANTICS.md is true: each of its examples prints what stands there, on a real mount of two hosts.

Owns the reading of `console` blocks: `$ ` begins a command, the lines up to the next are what it prints.
"""
from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.model.hosts import IS_DOUBLE
from tests.mount.harness import CTXFS, Host

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='a directory has no second host')
DOCUMENT = Path(__file__).resolve().parents[2] / 'docs/SEMANTICS.md'
MARK = '\x1e'


class Example(NamedTuple):
    """A block: its section, and its commands with what they print."""
    section: str
    commands: list[tuple[str, str]]


def examples() -> list[Example]:
    found = []
    for section in re.split(r'^## ', DOCUMENT.read_text(), flags=re.M)[1:]:
        for block in re.findall(r'^```console\n(.*?)^```', section, re.M | re.S):
            commands = re.findall(r'^\$ (.*)\n((?:(?!\$ ).*\n)*)', block, re.M)
            assert ''.join(f'$ {command}\n{printed}' for command, printed in commands) == block, block
            found.append(Example(section.splitlines()[0], commands))
    return found


@pytest.fixture(scope='module')
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory with both mount points, `a` and `b`, and the environment in which `ctxfs` finds both mounts."""
    work = Path(os.environ['TMPDIR']) / f'doc-{os.getpid()}'
    (work / 'bin').mkdir(parents=True)
    (work / 'store').mkdir()
    (work / 'bin/ctxfs').write_text(f'#!/bin/sh\nexec {shlex.join(CTXFS)} "$@"\n')
    (work / 'bin/ctxfs').chmod(0o755)
    store = f'file://{work}/store'
    first = Host(work / 'state-a', store=store)
    both = {'a': first, 'b': Host(work / 'state-b', store=store, runtime=first.runtime)}
    for name, host in both.items():
        (work / name).mkdir()
        host.mount('doc', work / name, create=True, options=('--sync-every', 'unmount', '--poll-every', '1h'))
    yield work, {**os.environ, **first.env, 'PATH': f'{work}/bin:{os.path.dirname(sys.executable)}:{os.environ["PATH"]}', 'LC_ALL': 'C.UTF-8',
                 'HOST_A': str(work / 'a'), 'HOST_B': str(work / 'b')}
    for name, host in both.items():
        host.unmount(work / name)
    subprocess.run(['rm', '-rf', work], check=True)


@pytest.mark.parametrize('example', examples(), ids=lambda example: re.sub(r'\W+', '-', example.section))
def test_an_example_prints_what_stands_there(example: Example, hosts: tuple[Path, dict[str, str]], request: pytest.FixtureRequest) -> None:
    """All its commands, in one shell."""
    work, env = hosts
    name = re.sub(r'\W', '_', request.node.name)
    (work / 'a' / name).mkdir()
    script = ''.join(f'{{ {command}\n}} 2>&1\nprintf "{MARK}"\n' for command, _ in example.commands)
    done = subprocess.run(['sh', '-c', script], cwd=work / 'a' / name, env={**env, 'A': str(work / 'a' / name), 'B': str(work / 'b' / name)},
                          capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
    printed = done.stdout.split(MARK)[:-1]
    assert list(zip((command for command, _ in example.commands), printed)) == example.commands, done.stderr


def test_there_are_examples_of_most_sections() -> None:
    """A block that nobody finds would be one that nobody runs."""
    assert len(examples()) >= 11 == DOCUMENT.read_text().count('```console') - (len(examples()) - 11)
