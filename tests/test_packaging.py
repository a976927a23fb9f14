"""What packagers and shells get: the wheel, the system-wide layout, the manual page, completions.

Owns none of what is installed: a root directory of the test's own takes it, and gives it up again.
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ctxfs
from tests.test_bootstrap import as_user, copied, path_without
from tests.test_docs import ROOT, command_of, usages

INSTALL = ROOT / 'scripts/install'
LAYOUT = {'usr/local/bin/ctxfs', 'usr/local/share/man/man1/ctxfs.1', 'usr/local/share/bash-completion/completions/ctxfs',
          'usr/local/share/zsh/site-functions/_ctxfs', 'usr/local/share/fish/vendor_completions.d/ctxfs.fish',
          'usr/local/lib/systemd/system/ctxfs@.service', 'usr/local/lib/systemd/user/ctxfs@.service', 'sbin/mount.fuse.ctxfs'}
VENV = Path(sys.prefix)


def run(*command: str | Path, env: dict[str, str] | None = None, status: int = 0, timeout: float = 280) -> str:
    """stdout, and stderr behind it."""
    done = subprocess.run(list(map(str, command)), env={**os.environ, **(env or {})}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          cwd='/', timeout=timeout, check=False)
    assert done.returncode == status, f'{command}: {done.returncode}\n{done.stdout}{done.stderr}'
    return done.stdout + done.stderr


def cli(*words: str, env: dict[str, str] | None = None) -> str:
    return run(sys.executable, '-I', '-m', 'ctxfs', *words, env=env)


# --- the wheel -------------------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_the_wheel_has_what_a_mount_needs(tmp_path: Path) -> None:
    """The schema, the units, the C source and what was made of it; and it runs from where pip puts it."""
    checkout = tmp_path / 'checkout'
    checkout.mkdir()
    for name in ('pyproject.toml', 'hatch_build.py', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, checkout)
    for name in ('ctxfs', 'systemd'):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns('__pycache__'))
    pip = (sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check')
    run(*pip, 'wheel', '--no-deps', '-w', tmp_path, checkout)
    wheel, = tmp_path.glob('ctxfs-*.whl')
    assert f'-{ctxfs.__version__}-py3-none-linux' in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith('METADATA'))).decode()
    sources = {f'ctxfs/edge/fuse_{name}' for name in ('ops.c', 'ops.h', 'made.c', 'answers.c')}
    assert sources | {'_ctxfs_fuse_ops.so', 'ctxfs/storage/schema.sql', 'ctxfs/systemd/ctxfs@.service', 'ctxfs/systemd/user/ctxfs@.service'} <= names
    assert f'Version: {ctxfs.__version__}' in metadata and not any(name.startswith(('tests/', 'scripts/')) for name in names)
    run(*pip, 'install', '--no-deps', '--no-index', '--target', tmp_path / 'site', wheel)
    place = 'import ctxfs; print(ctxfs.__file__)'
    env = {'PYTHONPATH': str(tmp_path / 'site'), 'XDG_CONFIG_HOME': str(tmp_path)}
    assert str(tmp_path / 'site') in run(sys.executable, '-c', place, env=env)
    (tmp_path / 'ctxfs').mkdir()
    (tmp_path / 'ctxfs/config.toml').write_text('[mounts.home]\nmountpoint = "/home/me/ctx"\n')
    run(sys.executable, '-m', 'ctxfs', 'service', 'install', 'home', '--no-start', '--unit-dir', tmp_path / 'units', env=env)
    assert (tmp_path / 'units/ctxfs@.service').exists()


# --- the layout ------------------------------------------------------------------------------------------------------------------------

def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob('*') if not path.is_dir()}


def test_installed_and_removed(tmp_path: Path) -> None:
    """The files are where they belong and say this ctxfs; a second installation is the same; a removal leaves what is not ours."""
    (tmp_path / 'usr/local/bin').mkdir(parents=True)
    (tmp_path / 'usr/local/bin/other').touch()
    for _ in range(2):
        run(INSTALL, '--root', tmp_path, '--venv', VENV)
    assert files_below(tmp_path) == LAYOUT | {'usr/local/bin/other', 'opt/ctxfs/installed'}
    assert run(tmp_path / 'usr/local/bin/ctxfs', '--version') == f'ctxfs, version {ctxfs.__version__}\n'
    for kind in ('system', 'user'):
        unit = (tmp_path / f'usr/local/lib/systemd/{kind}/ctxfs@.service').read_text()
        assert 'ExecStart=/usr/local/bin/ctxfs mount --foreground %i' in unit and '/usr/bin/ctxfs' not in unit
    helper = (tmp_path / 'sbin/mount.fuse.ctxfs').read_text().replace('/usr/local/bin', f'{tmp_path}/usr/local/bin')
    assert 'CTX DIRECTORY' in run('sh', '-c', helper, status=1)
    run(INSTALL, '--remove', '--root', tmp_path)
    assert files_below(tmp_path) == {'usr/local/bin/other'}
    assert 'not installed' in run(INSTALL, '--remove', '--root', tmp_path, status=1)


@pytest.mark.parametrize('words, said', [(('--rot', '/'), 'no such option'), (('--root',), 'needs a directory'), (('--venv', '/none'), 'no such')])
def test_wrong_words_install_nothing(words: tuple[str, ...], said: str) -> None:
    """One line, status 2."""
    answer = run(INSTALL, *words, status=2)
    assert said in answer and answer.count('\n') == 1


def test_missing_packages_are_named_before_anything_is_written(tmp: Path) -> None:
    """Who is not root is told what root must install, in one line; as root, it would be done."""
    environment, identity = as_user(tmp, path_without(tmp, 'fusermount3', 'cc', 'pkg-config'))
    (tmp / 'root').mkdir()
    if identity:
        os.chown(tmp / 'root', 65534, 65534)
    done = subprocess.run([copied(tmp) / 'scripts/install', '--root', tmp / 'root'], env=environment, capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=60, **identity)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == 'scripts/install: needs Debian packages, run: sudo apt-get install fuse3 pkg-config libfuse3-dev gcc libc6-dev\n'
    assert files_below(tmp / 'root') == set()


@pytest.mark.skipif(os.environ.get('CTXFS_TEST_PROGRAMS') != 'all', reason='installs a whole environment; scripts/programs runs it')
@pytest.mark.needs_root
@pytest.mark.timeout(900)
def test_a_whole_installation_runs_where_it_was_made_for(tmp_path: Path) -> None:
    """With --root, and then seen at /opt/ctxfs, as the host that it was made for sees it."""
    run(INSTALL, '--root', tmp_path, timeout=800)
    assert files_below(tmp_path) >= LAYOUT
    (tmp_path / 'mnt').mkdir()
    script = f'mount --bind {tmp_path}/opt /opt && {tmp_path}/usr/local/bin/ctxfs --version && /opt/ctxfs/bin/ctxfs doctor --json'
    said = run('unshare', '--mount', 'sh', '-c', script, env={'HOME': str(tmp_path)})
    assert f'version {ctxfs.__version__}' in said and '"library"' in said
    run(INSTALL, '--remove', '--root', tmp_path)
    assert files_below(tmp_path) == set()


# --- the manual page -------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def manual() -> str:
    return cli('manual')


def test_the_manual_has_every_command_and_option_of_the_readme(manual: str) -> None:
    """Each with its options, under its own heading."""
    sections = {found[1].replace('\\-', '-'): found[2].replace('\\-', '-') for found in
                re.finditer(r'^\.SS\n\\fB(ctxfs [^\\]*(?:\\-[^\\]*)*)\\fR.*\n((?:(?!\.S[SH]).*\n)*)', manual, re.M)}
    for usage in usages():
        command = ' '.join(('ctxfs', *command_of(usage)))
        assert command in sections, command
        for option in re.findall(r'--[a-z][a-z-]*', usage):
            assert option in sections[command], (command, option)
    assert len(sections) == len({command_of(usage) for usage in usages()})
    for word in ('.SH FILES', '.SH ENVIRONMENT', '.SH EXIT STATUS', '--state-dir', f'ctxfs {ctxfs.__version__}'):
        assert word in manual.replace('\\-', '-')


@pytest.mark.skipif(not shutil.which('groff'), reason='groff is not installed')
def test_the_manual_is_right_for_groff(manual: str, tmp_path: Path) -> None:
    """No warning, and a line of it as a reader sees it."""
    (tmp_path / 'ctxfs.1').write_text(manual)
    assert run('groff', '-man', '-ww', '-z', '-Kutf8', '-Tutf8', tmp_path / 'ctxfs.1') == ''
    assert 'ctxfs - mount a directory of an object-store bucket as a disk' in run('groff', '-man', '-Kutf8', '-Tascii', '-P-c', tmp_path / 'ctxfs.1')


# --- completions -----------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def program() -> str:
    return os.fspath(Path(sys.executable).with_name('ctxfs'))


def completed(words: str, program: str, tmp_path: Path) -> list[str]:
    """What bash offers for the last of the words, asked as bash asks."""
    (tmp_path / 'ctxfs').mkdir(exist_ok=True)
    (tmp_path / 'ctxfs/config.toml').write_text('[mounts.home]\nmountpoint = "/home/me/ctx"\n[mounts.work]\nmountpoint = "/work"\n')
    script = f'{cli("completion", "bash")}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _ctxfs_completion {program}; ' \
             'printf "%s\\n" "${COMPREPLY[@]}"'
    return run('bash', '-c', script, env={'XDG_CONFIG_HOME': str(tmp_path)}).split()


@pytest.mark.parametrize('words, offered', [
    ('ctxfs mo', ['mount']), ('ctxfs mount x /m --conf', ['--conflict']), ('ctxfs mount x --browser ""', ['minimal', 'standard']),
    ('ctxfs umount ""', ['home', 'work']), ('ctxfs wait w', ['work']), ('ctxfs context cl', ['clear'])])
def test_bash_completes(words: str, offered: list[str], program: str, tmp_path: Path) -> None:
    """Commands, options, values, mounts by their names."""
    assert completed(words, program, tmp_path) == offered


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_each_shell_reads_its_completions(shell: str, tmp_path: Path) -> None:
    """Where the shell is there; else it is looked at whether they are for it and for ctxfs."""
    script = cli('completion', shell)
    assert f'_CTXFS_COMPLETE={shell}_complete' in script
    (tmp_path / 'script').write_text(script)
    if shutil.which(shell):
        assert run(shell, '-n', tmp_path / 'script') == ''
