"""The documents say what is so: commands, options, paths and JSON in README.md exist as they are written there.

Owns the reading of README.md. It must not know how a command does its work: it asks `--help`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import ctxfs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text()
CHANGELOG = (ROOT / 'CHANGELOG.md').read_text()


def section(title: str) -> str:
    found = re.search(rf'^##+ {re.escape(title)}\n(.*?)(?=^## |\Z)', README, re.M | re.S)
    assert found, f'README has no section {title}'
    return found[1]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.M | re.S)


def usages() -> list[str]:
    """`ctxfs …` in the table of commands."""
    return [usage.replace('\\|', '|') for usage in re.findall(r'^\| `(ctxfs [^`]*)` \|', section('Command line'), re.M)]


@cache
def help_of(*command: str) -> str:
    done = subprocess.run([sys.executable, '-m', 'ctxfs', *command, '--help'], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f'ctxfs {" ".join(command)} --help: {done.stderr}'
    return done.stdout


def command_of(usage: str) -> tuple[str, ...]:
    words = shlex.split(usage)[1:]
    return tuple(words[:2]) if words[0] in groups() else (words[0],)


def groups() -> list[str]:
    """Commands that have commands."""
    return [name for name in subcommands(help_of()) if 'Commands:' in help_of(name)]


def subcommands(text: str) -> list[str]:
    return re.findall(r'^  ([\w-]+) ', text[text.index('Commands:') :], re.M)


@pytest.mark.parametrize('usage', usages())
def test_command_and_its_options_exist(usage: str) -> None:
    """A command in the README's table is known, with each option that stands there."""
    known = set(re.findall(r'(?<!\w)--?[a-z][a-z-]*', help_of(*command_of(usage))))
    assert set(re.findall(r'(?<![\w-])--?[a-z][a-z-]*', usage)) <= known


def test_every_command_and_option_is_in_the_table() -> None:
    """What the command line offers is documented, but for what every command has."""
    everywhere = {'--store', '--state-dir', '--json', '--help', '-h', '--version'}
    by_command = {command_of(usage): set(re.findall(r'--[a-z][a-z-]*', usage)) for usage in usages()}
    offered = [(name,) for name in subcommands(help_of()) if name not in groups()]
    offered += [(group, name) for group in groups() for name in subcommands(help_of(group))]
    assert sorted(by_command) == sorted(offered)
    for command in offered:
        listed = set(re.findall(r'^  (?:-\w, )?(--[a-z][a-z-]*)', help_of(*command), re.M))
        assert listed - everywhere == by_command[command] - everywhere, command


def test_set_up_is_two_commands() -> None:
    """The set-up section has exactly scripts/ctxfs and scripts/test."""
    lines = [line for block in blocks('sh', section('Set-up')) for line in block.splitlines()]
    assert [line.split()[0] for line in lines] == ['scripts/ctxfs', 'scripts/test']


def test_scripts_and_paths_exist() -> None:
    """Each script, directory and linked file that the README names is in the checkout, and scripts can be executed."""
    named = set(re.findall(r'(?<![\w./-])((?:scripts|ctxfs|tests|systemd)/[\w./@-]*\w)', README)) | set(
        re.findall(r'\]\(([^):#]+)\)', README)
    )
    assert {'scripts/ctxfs', 'scripts/test', 'CHANGELOG.md', 'LICENSE'} <= named
    for name in sorted(named):
        assert (ROOT / name).exists(), name
        if name.startswith('scripts/'):
            assert (ROOT / name).stat().st_mode & 0o111, f'{name} is not executable'


def test_json_in_the_documents_is_json() -> None:
    """Examples of output can be read by a program, and have the keys that the contract names."""
    examples = [json.loads(text) for text in blocks('json')]
    assert set(examples[0]['mounts'][0]) >= {
        'contextId',
        'contextName',
        'mountpoint',
        'pid',
        'store',
        'stateDir',
        'pending',
        'localOnly',
        'conflicts',
        'tasks',
    }


def test_the_policy_of_the_documents_does_what_they_say(tmp_path: Path) -> None:
    """The example is a policy, is described in these sentences, and its mistake is refused in this line."""
    text = section('Policies')
    (example,), (said, refused) = blocks('json', text), blocks('text', text)
    assert said.splitlines() == policy_command(tmp_path, 'show', example).stdout.splitlines()[1:]
    done = policy_command(tmp_path, 'check', example.replace('/src', '*.json', 1))
    assert (done.returncode, done.stderr) == (2, refused)


def policy_command(directory: Path, command: str, policy: str) -> subprocess.CompletedProcess[str]:
    (directory / 'policy.json').write_text(policy)
    return subprocess.run([sys.executable, '-m', 'ctxfs', 'policy', command, 'policy.json'], capture_output=True, text=True, cwd=directory,
                          check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})


def test_changelog_has_this_version() -> None:
    """The newest entry is the version of the package, or what is to become the next one."""
    newest = re.search(r'^## (.+)$', CHANGELOG, re.M)
    assert newest
    assert newest[1] == 'Unreleased' or newest[1].split()[0] == ctxfs.__version__
