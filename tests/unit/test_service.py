"""What a service manager is told, and the units that ctxfs installs."""
from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ctxfs.edge import cli, cli_service
from ctxfs.edge.launch import Readiness
from ctxfs.edge.service_credentials import use_service_credentials
from ctxfs.edge.service_notify import Notifier, notifier_of
from ctxfs.edge.service_task import ServiceTask
from ctxfs.errors import Corrupted
from ctxfs.storage.tally import Tally

ROOT = Path(__file__).resolve().parents[2]


class Manager:
    """The socket of one, and the messages that came."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def messages(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(1 << 16).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def manager(tmp_path: Path):
    made = Manager(str(tmp_path / 'notify'))
    yield made
    made.socket.close()


class Counts:
    """A LiveTally whose counts a test sets."""

    def __init__(self) -> None:
        self.now: Tally | Exception = Tally()

    async def read(self) -> Tally:
        await trio.lowlevel.checkpoint()
        if isinstance(self.now, Exception):
            raise self.now
        return self.now


def test_the_manager_is_found_once(manager: Manager, tmp_path: Path) -> None:
    """What the daemon starts is not the service: it does not inherit the variables."""
    env = {'NOTIFY_SOCKET': str(tmp_path / 'notify'), 'WATCHDOG_USEC': '30000000', 'WATCHDOG_PID': str(os.getpid()), 'A': 'b'}
    notifier = notifier_of(env)
    assert notifier is not None and notifier.watchdog_seconds == 30 and env == {'A': 'b'}
    Readiness(notifier=notifier).ok('two\nlines')
    notifier.alive()
    notifier.extend(1.5)
    assert manager.messages() == ['READY=1\nSTATUS=mounted; two lines', 'WATCHDOG=1', 'EXTEND_TIMEOUT_USEC=1500000']
    notifier.close()
    assert notifier_of({'A': 'b'}) is None


@pytest.mark.parametrize('pid, microseconds, seconds', [('1', '5', None), ('', 'x', None), ('', '0', None), ('', '', None), ('', '500000', 0.5)])
def test_a_watchdog_is_for_this_process(pid: str, microseconds: str, seconds: float | None) -> None:
    notifier = notifier_of({'NOTIFY_SOCKET': '/nobody', 'WATCHDOG_USEC': microseconds, 'WATCHDOG_PID': pid})
    assert notifier is not None and notifier.watchdog_seconds == seconds
    notifier.close()


def test_a_manager_that_is_gone_harms_nobody() -> None:
    """Neither by a path without a socket nor by an abstract name."""
    for address in ('/nobody/here', '@ctxfs-nobody'):
        notifier = Notifier(address)
        notifier.ready('x')
        notifier.close()


def test_the_life_of_a_service(manager: Manager, tmp_path: Path) -> None:
    """Alive in each third of the watchdog's time; the state when it changes; more time in each second of stopping, and a last word."""
    async def main() -> None:
        notifier, counts = Notifier(str(tmp_path / 'notify'), watchdog_seconds=60), Counts()
        task = ServiceTask(counts, '/m')  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run, notifier)
            await trio.sleep(1)
            assert sorted(manager.messages()) == ['STATUS=mounted on /m', 'WATCHDOG=1']
            await trio.sleep(60)
            assert manager.messages() == ['WATCHDOG=1'] * 3
            counts.now = Tally(files=2, bytes=2048)
            await trio.sleep(10)
            assert [text for text in manager.messages() if text != 'WATCHDOG=1'] == ['STATUS=mounted on /m; 2 files (2.0 KiB) pending']
            task.stop()
            await trio.testing.wait_all_tasks_blocked()
            assert manager.messages() == ['EXTEND_TIMEOUT_USEC=60000000', 'STOPPING=1\nSTATUS=uploading what is left: 2 files (2.0 KiB)']
            counts.now = Corrupted('bad')
            await trio.sleep(2.5)
            assert manager.messages()[:3] == ['EXTEND_TIMEOUT_USEC=60000000', 'STATUS=bad', 'EXTEND_TIMEOUT_USEC=60000000']
            task.end('2 files are not uploaded')
            await trio.sleep(5)
            assert manager.messages()[-1] == 'STATUS=2 files are not uploaded'
        notifier.close()
    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_without_a_manager_nothing_runs() -> None:
    async def main() -> None:
        task = ServiceTask(Counts(), '/m')  # type: ignore[arg-type]
        await task.run(None)
        task.stop()
        task.end('')
    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_credentials_of_a_service(tmp_path: Path) -> None:
    """The file that systemd hands over is used, unless the environment names another."""
    env = {'CREDENTIALS_DIRECTORY': str(tmp_path)}
    use_service_credentials(env)
    assert 'AWS_SHARED_CREDENTIALS_FILE' not in env
    (tmp_path / 'aws-credentials').write_text('[default]\n')
    use_service_credentials(env)
    assert env['AWS_SHARED_CREDENTIALS_FILE'] == str(tmp_path / 'aws-credentials')
    env['AWS_SHARED_CREDENTIALS_FILE'] = '/mine'
    use_service_credentials(env)
    assert env['AWS_SHARED_CREDENTIALS_FILE'] == '/mine'


# --- units -------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with two named mounts, and a systemctl that notes what it is told, as on a host that systemd runs."""
    (tmp_path / 'config/ctxfs').mkdir(parents=True)
    (tmp_path / 'config/ctxfs/config.toml').write_text('[mounts.home]\nmountpoint = "/home/me/a b"\n[mounts.w-2]\nmountpoint = "/w"\n')
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin/systemctl').write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\ncase "$*" in *w-2*) echo "no such  unit" >&2; exit 5;; esac\n')
    (tmp_path / 'bin/systemctl').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
    monkeypatch.setattr(cli_service, 'RUNNING', str(tmp_path))
    return tmp_path


def told(config: Path) -> list[str]:
    try:
        return (config / 'told').read_text().splitlines()
    finally:
        (config / 'told').unlink(missing_ok=True)


def test_install_and_remove(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written, started and enabled; removed after it has stopped, the template with the last one."""
    units = config / 'units'
    assert cli.run(['service', 'install', 'home', '--unit-dir', str(units)]) == 0
    assert told(config) == ['daemon-reload', 'enable --now --quiet ctxfs@home.service']
    assert sorted(str(path.relative_to(units)) for path in units.rglob('*.*') if path.is_file()) == [
        'ctxfs@.service', 'ctxfs@home.service.d/ctxfs-mountpoint.conf']
    assert 'RequiresMountsFor=/home/me\n' in (units / 'ctxfs@home.service.d/ctxfs-mountpoint.conf').read_text()
    assert cli.run(['service', 'install', 'w-2', '--no-start', '--unit-dir', str(units)]) == 0
    assert cli.run(['service', 'remove', 'home', '--unit-dir', str(units)]) == 0
    assert told(config) == ['disable --now ctxfs@home.service', 'daemon-reload'] and (units / 'ctxfs@.service').exists()
    capsys.readouterr()
    assert cli.run(['service', 'remove', 'w-2', '--unit-dir', str(units)]) == 1
    assert capsys.readouterr().err == 'ctxfs: systemctl disable --now ctxfs@w-2.service: no such unit\n'
    assert (units / 'ctxfs@.service').exists()


def test_a_user_service(config: Path) -> None:
    """In the user's directory, for his manager."""
    assert cli.run(['service', 'install', 'home', '--user']) == 0
    assert told(config) == ['--user daemon-reload', '--user enable --now --quiet ctxfs@home.service']
    assert [path.name for path in (config / 'config/systemd/user').iterdir()] == ['ctxfs@.service']
    assert cli.run(['service', 'remove', 'home', '--user']) == 0
    assert told(config) == ['--user disable --now ctxfs@home.service', '--user daemon-reload']
    assert list((config / 'config/systemd/user').iterdir()) == []


@pytest.mark.parametrize('said, told', [
    ('ctxfs: no such store', 'ctxfs@w-2.service does not start, and tries again: no such store (systemctl --user status ctxfs@w-2.service)'),
    ('', 'systemctl --user enable --now --quiet ctxfs@w-2.service: no such unit')])
def test_a_service_that_does_not_start_says_why(config: Path, capsys: pytest.CaptureFixture[str], said: str, told: str) -> None:
    """By the journal; else what systemctl said."""
    (config / 'bin/journalctl').write_text(f'#!/bin/sh\ncase "$*" in *"--user-unit=ctxfs@w-2.service _TRANSPORT=stdout") echo "{said}";; esac\n')
    (config / 'bin/journalctl').chmod(0o755)
    assert cli.run(['service', 'install', 'w-2', '--user']) == 1
    assert capsys.readouterr().err == f'ctxfs: {told}\n'


def test_what_cannot_be_installed(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that no config file has; a unit that is not there; a host without systemd."""
    for words, said in ((['install', 'hme', '--user'], '(did you mean home?)'), (['remove', 'home', '--user'], 'nothing is installed there')):
        assert cli.run(['service', *words]) != 0
        assert said in capsys.readouterr().err
    monkeypatch.setattr(cli_service, 'RUNNING', str(config / 'none'))
    assert cli.run(['service', 'install', 'home', '--user']) == 0
    assert told_nothing(config) and 'systemd does not run here' in capsys.readouterr().out


def told_nothing(config: Path) -> bool:
    return not (config / 'told').exists()


@pytest.mark.parametrize('flags', [[], ['--user']])
def test_systemd_understands_the_unit(config: Path, flags: list[str]) -> None:
    """systemd-analyze verify has nothing to say about an instance; ctxfs's own command stands in it."""
    if shutil.which('systemd-analyze') is None:
        pytest.skip('there is no systemd-analyze')
    units = config / 'units'
    assert cli.run(['service', 'install', 'home', *flags, '--no-start', '--unit-dir', str(units)]) == 0
    done = subprocess.run(['systemd-analyze', *flags, 'verify', '--man=no', str(units / 'ctxfs@home.service')], capture_output=True, text=True,
                          check=False, env={**os.environ, 'XDG_RUNTIME_DIR': str(config)})
    assert (done.returncode, done.stderr) == (0, '')
    assert ' mount --foreground %i\n' in (units / 'ctxfs@.service').read_text() and '/usr/bin/ctxfs' not in (units / 'ctxfs@.service').read_text()


def test_the_exposure_is_what_the_readme_says(config: Path) -> None:
    """systemd-analyze security."""
    if shutil.which('systemd-analyze') is None:
        pytest.skip('there is no systemd-analyze')
    done = subprocess.run(['systemd-analyze', 'security', '--offline=yes', '--no-pager', str(ROOT / 'systemd/ctxfs@.service')], capture_output=True,
                          text=True, check=False)
    level = done.stdout.split('Overall exposure level for ')[1].split(': ')[1].split()[0]
    assert f'`systemd-analyze security` says {level} ' in (ROOT / 'docs/OPERATIONS.md').read_text()
