"""The config files: the host's /etc/ctxfs/config.toml and the user's own, with defaults for options, and named mounts.

Owns their keys, which file counts (the user's, key by key and mount by mount) and what a bad one is refused with. It must not know commands:
a value that is wrong for its option is refused here, what a mount is made of is decided there.

    store = "s3://bucket"            # the default of --store; so are the other keys of FileConfig

    [mounts.home]                    # `ctxfs mount home`
    context = "my-project"           # default: the name
    mountpoint = "/home/me/ctx"
"""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ctxfs.config import FileConfig, Preference, file_store_url, nearest, normalise_store_url, parse_fuse_options, parse_size, parse_toml
from ctxfs.durations import lag_alarm_of, poll_every_of, store_timeout_of, sync_every_of
from ctxfs.errors import UsageError
from ctxfs.limits import metrics_addr_of, rate_of, transfers_of
from ctxfs.store_url import parse_sse, with_sse

#: for all users of the host
SYSTEM_FILE = Path('/etc/ctxfs/config.toml')
#: of a named mount: it is an argument, and the instance of a systemd unit
NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}')


class NamedMount(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """[mounts.NAME]: what `ctxfs mount NAME` does. Keys are named like the options; paths are absolute once read."""
    mountpoint: str
    #: the context's id or name; once read: NAME where it was left out
    context: str = ''
    store: str | None = None
    state_dir: str | None = None
    policy: str | None = None
    browser: Literal['minimal', 'standard'] | None = None
    create: bool = False
    read_only: bool = False
    #: what -o says
    options: str | None = None
    cache_size: str | int | None = None
    fsync: Literal['local', 'remote'] | None = None
    conflict: Preference | None = None
    sync_every: str | float | None = None
    poll_every: str | float | None = None
    store_timeout: str | float | None = None
    log_level: Literal['debug', 'info', 'warning', 'error'] | None = None
    log_json: bool | None = None
    lag_alarm: str | float | None = None
    audit_log: str | None = None
    max_upload_rate: str | int | None = None
    max_download_rate: str | int | None = None
    transfers: int | None = None
    metrics_addr: str | None = None
    sse: str | None = None


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What the files say together."""
    #: (file, its values), the one that counts first
    files: tuple[tuple[Path, FileConfig], ...]
    values: FileConfig
    mounts: Mapping[str, NamedMount]

    def origin(self, key: str) -> Path:
        """The file that a value of `values` comes from; the user's where none has it."""
        return next((file for file, values in self.files if getattr(values, key) is not None), self.files[0][0])

    def place(self, reference: str) -> str:
        """Where the named mount is; what is no name stays as it is."""
        return self.mounts[reference].mountpoint if reference in self.mounts else reference

    def named(self, name: str) -> NamedMount:
        """Raises UsageError with the nearest name."""
        if name in self.mounts:
            return self.mounts[name]
        places = ' or '.join(str(file) for file, _ in self.files)
        raise UsageError(f'no [mounts.{name}] in {places}{nearest(name, self.mounts)}; a table of that name with a mountpoint makes one')


def load_configuration(user_file: Path, system_file: Path | None = None) -> Configuration:
    """Both files. Raises UsageError that names the file and the key."""
    system_file = system_file or SYSTEM_FILE
    read = [(user_file, _read(user_file))]
    if system_file != user_file and (os.geteuid() == 0 or not _is_private(system_file)):
        read.append((system_file, _read(system_file)))
    mounts: dict[str, NamedMount] = {}
    files = []
    for file, values in read:
        found = _named_mounts(file, values.pop('mounts', {}))
        mounts = {**found, **mounts}
        files.append((file, _convert(values, FileConfig, str(file))))
    return Configuration(files=tuple(files), values=_merged([values for _, values in files]), mounts=mounts)


def load_config(file: Path) -> FileConfig:
    """The values of one file, the defaults where there is none. Raises UsageError that names the file and the key."""
    return load_configuration(file, file).values


def _is_private(file: Path) -> bool:
    """Readable for root alone: then it is about root's mounts."""
    return file.exists() and not os.access(file, os.R_OK)


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text('utf-8')
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f'cannot read {file}: {e}') from e
    return parse_toml(text, origin=str(file))


def _merged(configs: list[FileConfig]) -> FileConfig:
    return FileConfig(**{key: next((value for config in configs if (value := getattr(config, key)) is not None), None)
                         for key in FileConfig.__struct_fields__})


def _convert(values: dict[str, Any], kind: type[Any], origin: str) -> Any:
    """Raises UsageError that begins with `origin`: an unknown key is refused with the nearest known one."""
    extra = ['mounts'] if kind is FileConfig else []
    known = [*kind.__struct_fields__, *extra]
    separator = ': ' if kind is FileConfig else '.'
    for key in values:
        if re.search(r'secret|access_key|password|token', key):
            raise UsageError(f'{origin}{separator}{key}: no credentials here; put them into the environment or ~/.aws/credentials')
        if key not in known:
            raise UsageError(f'{origin}: unknown key {key}{nearest(key, known)}')
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as e:
        raise UsageError(f'{origin}: {e}') from e


# --- named mounts ------------------------------------------------------------------------------------------------------------------

def _named_mounts(file: Path, tables: Any) -> dict[str, NamedMount]:
    if not isinstance(tables, dict):
        raise UsageError(f'{file}: mounts: write a table for each, [mounts.NAME]')
    return {name: _named_mount(file, name, table) for name, table in tables.items()}


def _named_mount(file: Path, name: str, table: Any) -> NamedMount:
    origin = f'{file}: mounts.{name}'
    if not NAME.fullmatch(name):
        raise UsageError(f'{file}: mounts."{name}": a name has letters, digits, "_", "." and "-" only, and begins with none of the last two')
    if not isinstance(table, dict):
        raise UsageError(f'{origin}: write a table, [mounts.{name}]')
    found: NamedMount = _convert(table, NamedMount, origin)
    for key, check in _CHECKS.items():
        value = getattr(found, key)
        try:
            if value is not None:
                check(value)
        except UsageError as e:
            raise UsageError(f'{origin}.{key}: {e}') from e
    paths = {key: _absolute(value, f'{origin}.{key}') for key in ('mountpoint', 'state_dir', 'policy', 'audit_log')
             if (value := getattr(found, key)) is not None}
    return msgspec.structs.replace(found, context=found.context or name, **paths)


def _absolute(text: str, origin: str) -> str:
    """A mount is made from anywhere, also by a service: relative to the working directory is relative to nothing."""
    path = os.path.expanduser(text)
    if not os.path.isabs(path):
        raise UsageError(f'{origin}: {text or "empty"}: write an absolute path, or one that begins with ~/')
    return path


_CHECKS: dict[str, Callable[[Any], object]] = {
    'store': normalise_store_url, 'cache_size': parse_size, 'sync_every': sync_every_of, 'poll_every': poll_every_of,
    'store_timeout': store_timeout_of, 'lag_alarm': lag_alarm_of, 'transfers': transfers_of, 'metrics_addr': metrics_addr_of,
    'sse': parse_sse,
    'max_upload_rate': lambda text: rate_of(text, '--max-upload-rate'), 'max_download_rate': lambda text: rate_of(text, '--max-download-rate'),
    'options': lambda text: parse_fuse_options([text])}


# --- the store ---------------------------------------------------------------------------------------------------------------------

def resolve_store_url(given: str | None, env: Mapping[str, str], config: FileConfig, data: Path) -> str:
    """The store to use. Raises UsageError."""
    url = normalise_store_url(given or env.get('CTXFS_STORE') or config.store or file_store_url(data / 'store'))
    return with_sse(url, config.sse, is_default=True)
