"""The units of systemd: the templates that ctxfs brings, where they go, and what belongs to one mount.

Owns the files. It must not run systemctl (cli_service.py) or know what a mount is made of.

    ctxfs@.service                              the template, with the command of this ctxfs
    ctxfs@NAME.service.d/ctxfs-mountpoint.conf  what is below the mount point is mounted before
"""
from __future__ import annotations

import contextlib
import os
from pathlib import Path

import ctxfs
from ctxfs.config import home
from ctxfs.edge import installed
from ctxfs.errors import CtxfsError, NotFound

TEMPLATE = 'ctxfs@.service'
_DROP_IN = 'ctxfs-mountpoint.conf'
#: what the templates have for the command
_PACKAGED_COMMAND = '/usr/bin/ctxfs'


def directory_of(*, is_user: bool) -> Path:
    """Where an administrator, or a user, puts units."""
    if not is_user:
        return Path('/etc/systemd/system')
    value = os.environ.get('XDG_CONFIG_HOME', '')
    return (Path(value) if value.startswith('/') else home(os.environ) / '.config') / 'systemd/user'


def template(*, is_user: bool) -> str:
    """Its text, which runs this ctxfs. Raises NotFound where the installation lacks it."""
    package = Path(ctxfs.__file__).parent
    for root in (package / 'systemd', package.parent / 'systemd'):
        with contextlib.suppress(FileNotFoundError):
            text = (root / ('user' if is_user else '') / TEMPLATE).read_text('utf-8')
            return text.replace(_PACKAGED_COMMAND, ' '.join(_quoted(word) for word in installed.own_command()))
    raise NotFound(f'{TEMPLATE} is missing in {package}: install ctxfs again')


def write(directory: Path, name: str, mountpoint: str, *, is_user: bool) -> list[Path]:
    """The files, written. Raises CtxfsError."""
    files = [directory / TEMPLATE]
    installed.write(files[0], template(is_user=is_user))
    if not is_user:     # a user's manager knows no mounts below his
        files.append(_drop_in(directory, name))
        above = _quoted(os.path.dirname(mountpoint.rstrip('/')) or '/')
        installed.write(files[1], f'# {installed.MARK}\n[Unit]\nRequiresMountsFor={above}\n')
    return files


def remove(directory: Path, name: str, *, others: bool) -> list[Path]:
    """What was written for NAME, removed; the template too, unless `others` use it."""
    files = [_drop_in(directory, name)] + ([] if others else [directory / TEMPLATE])
    found = []
    for file in files:
        with contextlib.suppress(NotFound):
            installed.remove(file)
            found.append(file)
    with contextlib.suppress(OSError):      # somebody's own drop-ins stay
        files[0].parent.rmdir()
    return found


def others_use_it(directory: Path, name: str) -> bool:
    """Whether an enabled unit of another mount is made from the template."""
    own = f'ctxfs@{name}.service'
    return any(link.name != own for link in directory.glob('*.wants/ctxfs@*.service')) \
        or any(path.name != f'{own}.d' for path in directory.glob('ctxfs@?*.service.d'))


def check_unit_name(directory: Path, name: str) -> None:
    """Raises NotFound for a mount that has no unit here."""
    if not (directory / TEMPLATE).exists():
        raise NotFound(f'{directory / TEMPLATE}: nothing is installed there; ctxfs service install {name} does')


def _drop_in(directory: Path, name: str) -> Path:
    return directory / f'ctxfs@{name}.service.d' / _DROP_IN


def _quoted(word: str) -> str:
    """As systemd reads it: percent signs are specifiers, blanks separate."""
    if '\n' in word:
        raise CtxfsError(f'{word!r} has a newline, which no unit can name')
    word = word.replace('%', '%%')
    if all(c.isalnum() or c in '/._-+@:=%' for c in word):
        return word
    return '"' + word.replace('\\', '\\\\').replace('"', '\\"').replace('$', '$$') + '"'
