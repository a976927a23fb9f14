"""Where things live and what a mount was asked to do: directories, sizes, `MountOptions`.

Owns the resolution order (command line, environment, config file, default), the names of the per-context directories and the host id.
It must not know stores, FUSE or processes: it computes paths and values, and creates directories only when it is told to.

    state    --state-dir, config `state_dir`, $XDG_STATE_HOME/ctxfs, ~/.local/state/ctxfs     one directory per (store, context) below it
    cache    beside the state with --state-dir, else $XDG_CACHE_HOME/ctxfs, ~/.cache/ctxfs    the same names below it
    store    --store, $CTXFS_STORE, config `store`, file://$XDG_DATA_HOME/ctxfs/store
    runtime  $XDG_RUNTIME_DIR/ctxfs, /run/user/UID/ctxfs, /tmp/ctxfs-UID; root: /run/ctxfs    see ctxfs.edge.runtime_dir
    config   $XDG_CONFIG_HOME/ctxfs/config.toml, ~/.config/ctxfs/config.toml, then /etc/ctxfs/config.toml    see ctxfs.config_file

Credentials are in none of these: they come from the environment and the files of the AWS tools, and a store URL that carries some is
refused, because URLs end up in logs, in mount.json and in `ctxfs status`.
"""
from __future__ import annotations

import hashlib
import os
import pwd
import re
import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ctxfs.errors import Denied, UsageError
from ctxfs.nearest import nearest as nearest
from ctxfs.policy import SyncPolicy
from ctxfs.private_files import private_dir as private_dir
from ctxfs.private_files import publish
from ctxfs.private_files import read_state_file as read_state_file
from ctxfs.records import UNREADABLE
from ctxfs.store_url import file_store_url as file_store_url
from ctxfs.store_url import normalise_store_url as normalise_store_url
from ctxfs.store_url import store_identity as store_identity

GIB = 1 << 30
DEFAULT_CACHE_LIMIT = 10 * GIB
#: one request each: at 10 s about 8,600 a day, a few cents
DEFAULT_POLL = 10.0
#: how long a program waits for a store that does not answer, before EIO
STORE_TIMEOUT = 60.0
#: parts of large files that may be on their way at once
UNDER_WAY_BYTES = 256 << 20
#: one block of the block cache: a smaller bound could hold nothing
MIN_CACHE_SIZE = 1 << 20
#: -o options that go to mount(2) as they are; the rest of -o is ctxfs's own
KERNEL_OPTIONS = frozenset({'noatime', 'nodev', 'dev', 'noexec', 'exec', 'nosuid', 'suid'})
#: names in one dotted key of a TOML file
MAX_KEY_PARTS = 100
#: what --conflict may be: which version keeps the name
PREFERENCES = ('keep-both', 'prefer-local', 'prefer-remote')
Preference = Literal['keep-both', 'prefer-local', 'prefer-remote']
LOG_LEVELS = ('debug', 'info', 'warning', 'error')


class MountOptions(msgspec.Struct, kw_only=True, frozen=True):
    """Everything the daemon is told about one mount; travels to it as JSON through a pipe. Sizes are bytes, paths absolute."""
    context_id: str
    context_name: str
    mountpoint: str
    store_url: str
    state_dir: str
    cache_dir: str
    runtime_dir: str
    log_file: str
    host_id: str
    cache_size: int
    read_only: bool = False
    foreground: bool = False
    fsync: Literal['local', 'remote'] = 'local'
    #: which version keeps the name when two hosts changed one file
    conflict: Preference = 'keep-both'
    #: what names of conflict copies call this host; '': its id
    host_name: str = ''
    #: owner and mask of files whose objects carry no attributes
    uid: int = 0
    gid: int = 0
    umask: int = 0o022
    allow_other: bool = False
    xattrs: bool = False
    kernel_options: tuple[str, ...] = ()
    #: the prefix in the context that the mount's root stands for (mappingPolicy), '' or `a/b/`
    below: str = ''
    #: what counts for this mount, and where it comes from: 'default', 'config', 'context', or the path of --policy
    policy: SyncPolicy = SyncPolicy()
    policy_source: str = 'default'
    #: the file of --policy, watched while mounted
    policy_file: str | None = None
    #: the preset whose white lists were laid over the policy, and are over each that the file comes to say
    browser: Literal['minimal', 'standard'] | None = None
    #: --sync-every in seconds: 0 on close, policy.ONLY_ON_UNMOUNT; None: the policy's period
    sync_every: float | None = None
    #: seconds between two looks for remote changes
    poll_every: float = DEFAULT_POLL
    #: how long a program waits for a store that does not answer, in seconds; the other bounds follow from it
    store_timeout: float = STORE_TIMEOUT
    log_level: Literal['debug', 'info', 'warning', 'error'] = 'info'
    #: see ctxfs.logs
    log_style: Literal['text', 'journal', 'json'] = 'text'
    #: a change that waits for its upload for so many seconds is told; 0: none is; None: by the policy's period (edge.lag_alarm)
    lag_alarm: float | None = None
    #: where a line for each change goes; None: nowhere
    audit_log: str | None = None
    #: the bucket says in which mode the context is kept, and it is this one
    is_mode_recorded: bool = False
    #: bytes a second, and operations at once that no program waits for; 0: no limit
    upload_rate: float = 0.0
    download_rate: float = 0.0
    transfers: int = 0
    #: (host, port) where metrics are served; None: nowhere
    metrics_addr: tuple[str, int] | None = None

    @property
    def silence(self) -> float:
        """For which a server may say nothing before one request has failed: three of them fit into a program's wait."""
        return self.store_timeout / 3

    @property
    def final_seconds(self) -> float:
        """How long the last upload, at an unmount, goes on trying; beside what its own bound on bytes a second takes for what is under way."""
        return 2 * self.store_timeout + (UNDER_WAY_BYTES / self.upload_rate if self.upload_rate else 0.0)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> MountOptions:
        """Raises UsageError when `data` is no JSON form of these options."""
        try:
            return msgspec.json.decode(data, type=cls)
        except UNREADABLE as e:
            raise UsageError(f'mount options cannot be read: {e}') from e


class FileConfig(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The keys that config.toml may have; each is the default of the command-line option of the same name."""
    store: str | None = None
    state_dir: str | None = None
    cache_size: str | int | None = None
    fsync: Literal['local', 'remote'] | None = None
    conflict: Preference | None = None
    log_level: Literal['debug', 'info', 'warning', 'error'] | None = None
    sync_every: str | float | None = None
    poll_every: str | float | None = None
    store_timeout: str | float | None = None
    log_json: bool | None = None
    lag_alarm: str | float | None = None
    audit_log: str | None = None
    max_upload_rate: str | int | None = None
    max_download_rate: str | int | None = None
    transfers: int | None = None
    sse: str | None = None
    #: the policy of contexts that have none of their own, as ctxfs.policy_parse reads it
    policy: dict[str, Any] | None = None


class FuseOptions(msgspec.Struct, kw_only=True, frozen=True):
    """What `-o` said, parsed. None: not given."""
    read_only: bool = False
    allow_other: bool = False
    nonempty: bool = False
    xattrs: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    kernel_options: tuple[str, ...] = ()


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """The roots for one invocation. `cache` is None where the cache lies inside each context's state directory."""
    state: Path
    cache: Path | None
    data: Path
    runtime: Path
    config_file: Path


# --- directories -------------------------------------------------------------------------------------------------------------------

def home(env: Mapping[str, str]) -> Path:
    """The user's home: $HOME, else the password database (services and containers often run without HOME).
    Raises UsageError when neither knows one."""
    if env.get('HOME', '').startswith('/'):
        return Path(env['HOME'])
    try:
        entry = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        entry = ''
    if not entry.startswith('/'):
        raise UsageError(f'user {os.getuid()} has no home directory; set HOME, or XDG_STATE_HOME, XDG_CACHE_HOME and XDG_DATA_HOME')
    return Path(entry)


def xdg(env: Mapping[str, str], variable: str, default: str) -> Path:
    """$variable/ctxfs, or ~/default/ctxfs. A relative value is ignored, as the XDG base directory specification demands."""
    value = env.get(variable, '')
    return Path(value) / 'ctxfs' if value.startswith('/') else home(env) / default / 'ctxfs'


def runtime_root(env: Mapping[str, str], uid: int | None = None) -> Path:
    """Where sockets and records of running mounts are; not created here."""
    uid = os.getuid() if uid is None else uid
    value = env.get('XDG_RUNTIME_DIR', '')
    # root's mounts outlive its logins, which /run/user/0 does not, and its services have no such directory: both shall see the same mounts
    if uid == 0 and value in ('', '/run/user/0') and os.access('/run', os.W_OK):
        return Path('/run/ctxfs')
    if value.startswith('/'):
        return Path(value) / 'ctxfs'
    per_user = Path(f'/run/user/{uid}')
    return per_user / 'ctxfs' if per_user.is_dir() else Path(f'/tmp/ctxfs-{uid}')


def resolve_paths(env: Mapping[str, str], state_dir: str | None = None) -> Paths:
    """All roots. `state_dir` (the option, else the config file's) moves state and cache together."""
    own = Path(os.path.abspath(os.path.expanduser(state_dir))) if state_dir else None
    return Paths(state=own or xdg(env, 'XDG_STATE_HOME', '.local/state'), cache=None if own else xdg(env, 'XDG_CACHE_HOME', '.cache'),
                 data=xdg(env, 'XDG_DATA_HOME', '.local/share'), runtime=runtime_root(env), config_file=config_file(env))


def config_file(env: Mapping[str, str]) -> Path:
    return xdg(env, 'XDG_CONFIG_HOME', '.config') / 'config.toml'


def context_slug(store_url: str, context_id: str, below: str = '') -> str:
    """The name of the directories of one (store, context, prefix in it): readable, and unique by a hash of what identifies them."""
    readable = re.sub(r'[^A-Za-z0-9._-]', '_', context_id).lstrip('.')[:60]
    what = '\0'.join(filter(None, (store_identity(store_url), context_id, below)))
    digest = hashlib.sha256(what.encode('utf-8', 'surrogateescape')).hexdigest()
    return f'{readable}-{digest[:16]}'


def state_dir_of(paths: Paths, store_url: str, context_id: str, below: str = '') -> Path:
    return paths.state / context_slug(store_url, context_id, below)


def cache_dir_of(paths: Paths, store_url: str, context_id: str, below: str = '') -> Path:
    slug = context_slug(store_url, context_id, below)
    return paths.state / slug / 'cache' if paths.cache is None else paths.cache / slug


def load_host_id(state_root: Path) -> str:
    """This host's random id, made once per state root: another state root is another host. Safe against two processes at once:
    the file appears whole by link(2), and the loser reads the winner's."""
    file = private_dir(state_root) / 'host-id'
    for _ in range(2):
        is_there = True
        try:
            found = read_state_file(file).decode('ascii').strip()
            file.chmod(0o600)
        except FileNotFoundError:
            found, is_there = '', False
        except (OSError, UnicodeDecodeError) as e:
            raise Denied(f'cannot read {file}: {e}') from e
        if re.fullmatch(r'[0-9a-f]{16}', found):
            return found
        publish(file, secrets.token_hex(8) + '\n', replace=is_there)       # only what was read: another process may have made one by now
    raise Denied(f'{file} does not keep what is written to it')


# --- values ------------------------------------------------------------------------------------------------------------------------

_UNITS = {'': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}


def parse_size(text: str | int) -> int:
    """Bytes of `500M`, `10G`, `1.5T`, `10GiB` (powers of 1,024), `10GB` (powers of 1,000) or a plain number. Raises UsageError."""
    match = re.fullmatch(r'\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(I?B)?\s*', str(text).upper())
    if not match:
        raise UsageError(f'{text!r} is not a size; write it like 500M, 10G or 1.5T')
    number, unit, suffix = match.groups()
    factor = 1000 ** ' KMGT'.index(unit) if unit and suffix == 'B' else _UNITS[unit]
    return int(float(number) * factor) if '.' in number else int(number) * factor


def default_cache_size(cache_dir: Path) -> int:
    """10 GiB, or half of what is free where the cache lies, whichever is less."""
    place = cache_dir
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return max(MIN_CACHE_SIZE, min(DEFAULT_CACHE_LIMIT, found.f_bavail * found.f_frsize // 2))


def cache_size_of(text: str | int | None, cache_dir: Path) -> int:
    """Raises UsageError for a text that is no size, or too small to hold one block."""
    if text is None:
        return default_cache_size(cache_dir)
    size = parse_size(text)
    if size < MIN_CACHE_SIZE:
        raise UsageError(f'a cache of {text} holds nothing; the least is 1M')
    return size


def parse_fuse_options(texts: Iterable[str]) -> FuseOptions:
    """The comma-separated words of all `-o`. Raises UsageError for one that is unknown: an option that does nothing must not pass."""
    found: dict[str, Any] = {}
    kernel: list[str] = []
    for word in (w.strip() for text in texts for w in text.split(',')):
        name, equals, value = word.partition('=')
        if not word or word in ('rw', 'default_permissions'):
            continue    # both are what ctxfs does anyway
        if word in _FLAGS:
            found[_FLAGS[word]] = True
        elif word in KERNEL_OPTIONS:
            kernel.append(word)
        elif name in _NUMBERS and equals:
            found[name] = _number(name, value)
        else:
            raise UsageError(f'unknown mount option -o {word}{nearest(name, [*_FLAGS, *_NUMBERS, *KERNEL_OPTIONS])}')
    return FuseOptions(kernel_options=tuple(kernel), **found)


_FLAGS = {'ro': 'read_only', 'allow_other': 'allow_other', 'nonempty': 'nonempty', 'xattrs': 'xattrs'}
#: name → (base, largest value)
_NUMBERS = {'uid': (10, 2**32 - 2), 'gid': (10, 2**32 - 2), 'umask': (8, 0o777)}


def _number(name: str, text: str) -> int:
    base, largest = _NUMBERS[name]
    try:
        value = int(text, base)
    except ValueError:
        value = -1
    if not 0 <= value <= largest:
        kind, most = ('an octal mask', f'{largest:o}') if base == 8 else ('a number', str(largest))
        raise UsageError(f'-o {name}={text}: not {kind} from 0 to {most}')
    return value


# --- TOML --------------------------------------------------------------------------------------------------------------------------

def parse_toml(text: str, *, origin: str) -> dict[str, Any]:
    """Raises UsageError that begins with `origin`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]
    # tomllib takes quadratic time for dotted keys: half a minute for 40 KB of one
    if any(re.match(r'[^=\'"#]*', line).group().count('.') > MAX_KEY_PARTS for line in text.splitlines()):  # type: ignore[union-attr]
        raise UsageError(f'{origin}: nested too deeply')
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as e:       # ValueError: TOML's own error, and a number of thousands of digits
        raise UsageError(f'{origin}: {e or "nested too deeply"}') from e
