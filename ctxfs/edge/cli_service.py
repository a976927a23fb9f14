"""`ctxfs service`: named mounts as services of systemd.

Owns the order of its steps and what systemctl is told. It must not know what is in a unit (service_units.py), nor what a mount does.
"""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import click

from ctxfs.edge import preflight, service_units
from ctxfs.edge.cli_common import Invocation, common_options, print_json
from ctxfs.edge.mount_table import mount_at, probe, real_mountpoint
from ctxfs.errors import CtxfsError, UsageError

#: there while systemd is this host's init
RUNNING = '/run/systemd/system'
JOURNAL_SECONDS = 10.0
_UNIT_DIR = click.option('--unit-dir', metavar='DIR', help='Where units are (default: /etc/systemd/system, or the user\'s directory).')
_USER = click.option('--user', 'is_user', is_flag=True, help='A service of this user\'s manager, not of the host.')


@click.group()
def service() -> None:
    """Run the mounts of the config file as services of systemd."""


@service.command()
@click.argument('name', metavar='NAME')
@_USER
@click.option('--no-start', is_flag=True, help='Only write the unit; do not start it now nor at boot.')
@_UNIT_DIR
@common_options
def install(invocation: Invocation, name: str, is_user: bool, no_start: bool, unit_dir: str | None) -> int:
    """Make [mounts.NAME] of the config file the service ctxfs@NAME, now and at each boot."""
    named = invocation.configuration.named(name)
    if not is_user and os.geteuid() != 0 and unit_dir is None:
        raise UsageError('a service of the host is installed by root; --user makes one of your own')
    directory = _directory(unit_dir, is_user)
    files = service_units.write(directory, name, named.mountpoint, is_user=is_user)
    is_started = not no_start and _has_manager()
    if is_started:
        _systemctl(is_user, 'daemon-reload')
        _start(is_user, f'ctxfs@{name}.service')
    if invocation.as_json:
        print_json({'unit': f'ctxfs@{name}.service', 'files': [str(file) for file in files], 'started': is_started})
    elif not is_started and not no_start:
        print(f'{directory / service_units.TEMPLATE} is written; systemd does not run here, so nothing was started')
    return 0


@service.command()
@click.argument('name', metavar='NAME')
@_USER
@_UNIT_DIR
@common_options
def remove(invocation: Invocation, name: str, is_user: bool, unit_dir: str | None) -> int:
    """Stop the service ctxfs@NAME, which writes everything back, and remove it."""
    directory = _directory(unit_dir, is_user)
    service_units.check_unit_name(directory, name)
    if _has_manager():
        _systemctl(is_user, 'disable', '--now', f'ctxfs@{name}.service')
    files = service_units.remove(directory, name, others=service_units.others_use_it(directory, name))
    if _has_manager():
        _systemctl(is_user, 'daemon-reload')
    if invocation.as_json:
        print_json({'unit': f'ctxfs@{name}.service', 'files': [str(file) for file in files]})
    return 0


@service.command()
@click.argument('name', metavar='NAME')
@common_options
def cleanup(invocation: Invocation, name: str) -> int:
    """Detach what a killed daemon of [mounts.NAME] left: a mount point that does not answer. A living mount stays."""
    path = real_mountpoint(invocation.configuration.named(name).mountpoint)
    entry = mount_at(path)
    is_dead = entry is not None and entry.is_ctxfs and probe(path, device=entry.device) in preflight.DEAD
    if is_dead:
        preflight.clear_dead_mount(path)
    if invocation.as_json:
        print_json({'mountpoint': path, 'detached': is_dead})
    return 0


def _directory(given: str | None, is_user: bool) -> Path:
    return Path(os.path.abspath(given)) if given is not None else service_units.directory_of(is_user=is_user)


def _has_manager() -> bool:
    return os.path.isdir(RUNNING) and shutil.which('systemctl') is not None


def _start(is_user: bool, unit: str) -> None:
    """Raises CtxfsError with what the mount said, where the journal lets this user know; systemctl says only that it failed."""
    try:
        _systemctl(is_user, 'enable', '--now', '--quiet', unit)
    except CtxfsError:
        said = _last_word(['journalctl', *(['--user'] if is_user else []), '--no-pager', '-q', '-o', 'cat', '-n', '1',
                           f'--{"user-" if is_user else ""}unit={unit}', '_TRANSPORT=stdout'])
        if not said:
            raise
        user = '--user ' if is_user else ''
        raise CtxfsError(f'{unit} does not start, and tries again: {said.removeprefix("ctxfs: ")} (systemctl {user}status {unit})') from None


def _last_word(command: list[str]) -> str:
    try:
        return ' '.join(subprocess.run(command, capture_output=True, text=True, check=False, timeout=JOURNAL_SECONDS).stdout.split())
    except (OSError, subprocess.TimeoutExpired):
        return ''


def _systemctl(is_user: bool, *words: str) -> None:
    """Raises CtxfsError with the last line of what it said. No limit of time: a stop waits for the upload, a start for the mount, and
    systemd bounds both."""
    command = ['systemctl', *(['--user'] if is_user else []), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = ' '.join((done.stderr or done.stdout).split())
        raise CtxfsError(f'{" ".join(command)}: {said or f"status {done.returncode}"}')
