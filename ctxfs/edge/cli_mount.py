"""`ctxfs mount` and `ctxfs umount`.

Owns the order of their steps: everything that can be refused is refused before the daemon starts. It must not know how a daemon works.
"""
from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import click
import msgspec

from ctxfs import logs
from ctxfs.config import (
    LOG_LEVELS,
    PREFERENCES,
    FuseOptions,
    MountOptions,
    Preference,
    cache_dir_of,
    cache_size_of,
    load_host_id,
    parse_fuse_options,
    private_dir,
    state_dir_of,
)
from ctxfs.durations import lag_alarm_of, poll_every_of, store_timeout_of, sync_every_of
from ctxfs.edge import busy, cli_named, flush_wait, launch, policy_choice, preflight
from ctxfs.edge.cli_audit import audit_path
from ctxfs.edge.cli_common import Invocation, common_options, print_json, select
from ctxfs.edge.context_opening import Opened, open_context
from ctxfs.edge.download_wait import wait_for_download
from ctxfs.edge.mount_table import mount_at, real_mountpoint
from ctxfs.edge.progress import Progress
from ctxfs.edge.runtime_dir import find_mounts, runtime_dir_of
from ctxfs.edge.service_credentials import use_service_credentials
from ctxfs.errors import CtxfsError, Exists, InvalidArgument, NotFound, UsageError
from ctxfs.limits import Address, metrics_addr_of, rate_of, transfers_of
from ctxfs.policy import SyncPolicy
from ctxfs.policy_check import check_for_mount
from ctxfs.policy_presets import BROWSER, Browser
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.audit_log import AuditLog, Tell, about
from ctxfs.storage.keys import mapped_prefix
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.policy_store import POLICY_NAME
from ctxfs.storage.registry import ContextRecord, Registry
from ctxfs.storage.registry_changes import check_whole
from ctxfs.storage.stores import directory_of
from ctxfs.sync import context_mode, spare_worker
from ctxfs.sync.conflict_names import host_part
from ctxfs.sync.process_guard import helper_environment

#: how long a new mount waits for the daemon of the last one to finish its upload
TAKE_OVER_SECONDS = 60.0
#: how long one waits for the store to note that the context is used
NOTE_SECONDS = 5.0

_T = TypeVar('_T')


@click.command()
@click.argument('reference', metavar='CTX')
@click.argument('mountpoint', metavar='[MOUNTPOINT]', required=False)
@click.option('--create', is_flag=True, help='Make the context if there is none of that name, and the directory.')
@click.option('--read-only', is_flag=True, help='Refuse every change.')
@click.option('--foreground', is_flag=True, help='Stay in this process until it is unmounted and written back.')
@click.option('--cache-size', metavar='SIZE', help='Bound of the local cache, like 10G (default: 10G or half of what is free).')
@click.option('--fsync', type=click.Choice(['local', 'remote']), help='What fsync() waits for (default: local).')
@click.option('--conflict', type=click.Choice(PREFERENCES), help='Which version keeps the name when two hosts changed one file (default: keep-both).')
@click.option('--policy', 'policy_file', metavar='FILE', help='The sync policy, as JSON or TOML (default: the one stored with CTX).')
@click.option('--browser', type=click.Choice(tuple(BROWSER)), help='For a mount at a browser\'s user-data directory: sync its cookies (minimal) or '
              'also storage, logins and settings (standard), and nothing else. Laid over the policy, which must have no bwList of its own.')
@click.option('--sync-every', metavar='TIME', help='Upload so long after a change, like 30s or 5m; 0: on close; unmount: only then.')
@click.option('--poll-every', metavar='TIME', help='Look for remote changes so often (default: 10s).')
@click.option('--store-timeout', metavar='TIME', help='How long a program waits for a store that does not answer (default: 60s).')
@click.option('--max-upload-rate', metavar='RATE', help='Send at most so many bytes a second, like 512K or 10M.')
@click.option('--max-download-rate', metavar='RATE', help='Receive at most so many; what a program waits for goes before the rest.')
@click.option('--transfers', type=int, metavar='N', help='Have at most N files transferred at once, beside what programs wait for.')
@click.option('--metrics-addr', metavar='[HOST:]PORT', help='Serve metrics for Prometheus over HTTP there (HOST: 127.0.0.1).')
@click.option('--sse', metavar='HOW', help='Have every object encrypted by the server: AES256, aws:kms or aws:kms:KEYID.')
@click.option('--wait-download', is_flag=True, help='Return when the content is in the local cache.')
@click.option('--log-level', type=click.Choice(LOG_LEVELS), help='How much goes into the log (default: info).')
@click.option('--log-json', is_flag=True, help='Log lines as JSON (default: text, or what journald reads where it listens).')
@click.option('--lag-alarm', metavar='TIME', help='Warn of changes that wait longer for their upload (default: 10 periods, at least 10m); or: off.')
@click.option('--audit-log', metavar='PATH', help='Write a line for each change of the bucket to this file (default: none).')
@click.option('-o', 'fuse', metavar='OPTS', multiple=True,
              help='ro, allow_other, nonempty, xattrs, uid=N, gid=N, umask=OCTAL, noexec, nosuid, nodev, noatime.')
@common_options
def mount(invocation: Invocation, reference: str, mountpoint: str | None, **options: Any) -> int:
    """Mount context CTX at the directory MOUNTPOINT; returns when the mount answers.

    Without MOUNTPOINT, CTX is the name of a mount in the config file: [mounts.NAME].
    """
    if mountpoint is None:
        invocation, reference, mountpoint, options = cli_named.complete(invocation, reference, options)
    return _mount(invocation, reference, mountpoint, **options)


def _mount(invocation: Invocation, reference: str, mountpoint: str, *, create: bool, read_only: bool, foreground: bool, fuse: tuple[str, ...],
           policy_file: str | None, browser: Browser | None, wait_download: bool, **settings: Any) -> int:
    use_service_credentials(os.environ)
    invocation = invocation.encrypted(settings['sse'])
    fuse_options, url = parse_fuse_options(fuse), invocation.store_url
    wishes = _wishes(invocation, settings, read_only=read_only or fuse_options.read_only, wait_download=wait_download)
    _check_limits(settings, url)
    if wait_download and foreground:
        raise UsageError('--wait-download needs a mount in the background; leave out --foreground')
    preflight.check_fuse()
    preflight.check_allow_other(fuse_options)
    path = real_mountpoint(mountpoint)
    chooser = policy_choice.Chooser(policy_file, invocation.config, invocation.configuration.origin('policy'), browser=browser,
                                    check=wishes.checker({path, os.path.abspath(mountpoint)}))
    audit = audit_path(invocation, settings['audit_log'], mountpoint=path)
    with contextlib.ExitStack() as stack:
        if create:
            stack.enter_context(preflight.made_directories(path))
        preflight.check_mountpoint(path, fuse_options, invocation.paths.runtime)
        stack.enter_context(preflight.exclusive(path))
        tell = stack.enter_context(contextlib.closing(AuditLog(audit, about(url)))).write
        with _told_when_it_fails(tell, reference, path):
            store, context, own = _open(invocation, stack, reference, create=create, refusal=chooser.refusal, tell=tell)
            chooser.has_none_stored = own is not None and POLICY_NAME not in own
            chosen = preflight.patiently(lambda: chooser.choose(store, context))
            is_free = own is not None and context_mode.MODE_NAME.removeprefix(RESERVED_DIR) not in own
            mode = '' if is_free else preflight.patiently(lambda: context_mode.recorded(store, context.prefix))
            chosen = policy_choice.fitted(chosen, context, mode)
            _take_over(invocation, context, _below(chosen.policy))
            options = _options(invocation, context, path, fuse_options, chosen=chosen, wishes=wishes, foreground=foreground, audit_log=audit,
                               is_mode_recorded=bool(mode))
        started = launch.Started(os.getpid(), '') if foreground else launch.start(
            options, meanwhile=lambda: chooser.look(store, context, read_only=options.read_only))
        _note_use(store, context)
        _say(started.note)
        if wishes.metrics_addr is not None and not wishes.metrics_addr.is_loopback:
            _say(f'whoever reaches {wishes.metrics_addr} can read the metrics, with the names of context and mount point')
        _say(chooser.keep(store, context, read_only=options.read_only))
        if chooser.is_kept:
            tell('policy-set', contextId=context.id, context=context.name)
    if foreground:
        spare_worker.begin()
        from ctxfs.edge import daemon  # pyfuse3 and the rest of the daemon: no other command needs them
        return launch.run_foreground(options, daemon.run)
    if wait_download:
        _wait_for_download(invocation, options)
    _say_mounted(invocation, options, started.pid)
    return 0


@contextlib.contextmanager
def _told_when_it_fails(tell: Tell, reference: str, mountpoint: str) -> Iterator[None]:
    """What fails later, or not at all, the daemon tells."""
    try:
        yield
    except CtxfsError as error:
        tell('mount', result='failed', error=str(error), context=reference, mountpoint=mountpoint)
        raise


class _Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of the mount, and config.toml where it says nothing; checked."""
    read_only: bool
    cache_size: str | int | None
    fsync: Literal['local', 'remote']
    conflict: Preference
    log_level: Any
    log_style: logs.Style
    lag_alarm: float | None
    poll_every: float
    is_poll_given: bool
    wait_download: bool
    store_timeout: float
    upload_rate: float
    download_rate: float
    transfers: int
    metrics_addr: Address | None
    #: of --sync-every
    sync_every: float | None
    #: of config.toml: for policies that upload by themselves and have no period
    default_sync_every: float | None

    def checker(self, mountpoints: set[str]) -> policy_choice.Check:
        """`mountpoints`: the one, in each spelling that a policy may have it in."""
        def check(policy: SyncPolicy, *, origin: str) -> None:
            try:
                _below(policy)
            except InvalidArgument as e:
                raise UsageError(f'{origin}: mappingPolicy.path: {e}') from None
            for mountpoint in mountpoints:
                check_for_mount(policy, origin=origin, mountpoint=mountpoint, read_only=self.read_only, fsync=self.fsync, sync_every=self.sync_every)
            if not policy.download_policy.auto_download:
                for option, is_given in (('--wait-download', self.wait_download), ('--poll-every', self.is_poll_given)):
                    if is_given:
                        raise UsageError(f'{origin}: downloadPolicy.autoDownload: false: {option} has no effect on it, for only ctxfs sync '
                                         f'--mode download looks for remote changes; leave out {option}, or write true')
        return check

    def sync_every_for(self, policy: SyncPolicy) -> float | None:
        upload = policy.upload_policy
        is_open = self.sync_every is None and upload.auto_upload and upload.period is None
        return self.default_sync_every if is_open else self.sync_every


def _wishes(invocation: Invocation, settings: dict[str, Any], *, read_only: bool, wait_download: bool) -> _Wishes:
    """Raises UsageError: everything is refused before anything is touched."""
    config = invocation.config
    for size in (settings['cache_size'], config.cache_size):
        if size is not None:
            cache_size_of(size, invocation.paths.state)
    return _Wishes(
        read_only=read_only, wait_download=wait_download, is_poll_given=settings['poll_every'] is not None,
        cache_size=settings['cache_size'] or config.cache_size, fsync=settings['fsync'] or config.fsync or 'local',
        conflict=settings['conflict'] or config.conflict or 'keep-both',
        log_level=settings['log_level'] or config.log_level or 'info',
        log_style=logs.style_of(os.environ, as_json=settings['log_json'] or config.log_json or False),
        lag_alarm=lag_alarm_of(settings['lag_alarm']) if settings['lag_alarm'] is not None else _of_config(invocation, lag_alarm_of, 'lag_alarm'),
        sync_every=sync_every_of(settings['sync_every']),
        default_sync_every=_of_config(invocation, sync_every_of, 'sync_every'),
        upload_rate=_rate(invocation, settings, 'max_upload_rate'), download_rate=_rate(invocation, settings, 'max_download_rate'),
        transfers=transfers_of(settings['transfers']) if settings['transfers'] is not None
        else _of_config(invocation, transfers_of, 'transfers'), metrics_addr=metrics_addr_of(settings['metrics_addr']),
        poll_every=poll_every_of(settings['poll_every']) if settings['poll_every'] is not None
        else _of_config(invocation, poll_every_of, 'poll_every'),
        store_timeout=store_timeout_of(settings['store_timeout']) if settings['store_timeout'] is not None
        else _of_config(invocation, store_timeout_of, 'store_timeout'))


def _rate(invocation: Invocation, settings: dict[str, Any], key: str) -> float:
    def read(text: Any) -> float:
        return rate_of(text, f'--{key.replace("_", "-")}')
    return read(settings[key]) if settings[key] is not None else _of_config(invocation, read, key)


def _check_limits(settings: dict[str, Any], store_url: str) -> None:
    """A limit that would do nothing must not pass; one of the config file is about all stores."""
    for key in ('max_upload_rate', 'max_download_rate'):
        if settings[key] is not None and directory_of(store_url) is not None:
            option = f'--{key.replace("_", "-")}'
            raise UsageError(f'{option} has no effect on a file:// store, which no request goes to; leave it out')


def _of_config(invocation: Invocation, read: Callable[[Any], _T], key: str) -> _T:
    try:
        return read(getattr(invocation.config, key))
    except UsageError as e:
        raise UsageError(f'{invocation.configuration.origin(key)}: {e}') from e


def _open(invocation: Invocation, stack: contextlib.ExitStack, reference: str, *, create: bool,
          refusal: UsageError | None, tell: Tell) -> Opened:
    """The store and the context; `refusal`: why neither may be made."""
    def created(context: ContextRecord) -> None:
        tell('context-create', contextId=context.id, context=context.name)

    is_default = preflight.is_default_store(invocation.store_url, invocation.paths.data)
    may_make = refusal is None
    try:
        opened = open_context(invocation.store_url, reference, create_store=may_make and (create or is_default), create=may_make and create,
                              state_root=invocation.paths.state, created=created)
        stack.enter_context(contextlib.closing(opened.store))
        check_whole(opened.context)
        return opened
    except NotFound:
        if create and refusal is not None:
            raise refusal from None
        raise


def _options(invocation: Invocation, context: ContextRecord, path: str, fuse: FuseOptions, *, chosen: policy_choice.Choice,
             wishes: _Wishes, foreground: bool, audit_log: str | None, is_mode_recorded: bool) -> MountOptions:
    paths, url = invocation.paths, invocation.store_url
    below = _below(chosen.policy)
    state_dir, cache_dir = state_dir_of(paths, url, context.id, below), cache_dir_of(paths, url, context.id, below)
    for directory in (paths.state, state_dir, cache_dir.parent, cache_dir, paths.runtime):
        private_dir(directory)
    runtime_dir = runtime_dir_of(paths.runtime, path, context.id, state_dir)
    return MountOptions(
        context_id=context.id, context_name=context.name, mountpoint=path, store_url=url, state_dir=str(state_dir),
        cache_dir=str(cache_dir), runtime_dir=str(runtime_dir), log_file=str(state_dir / 'ctxfs.log'), host_id=load_host_id(paths.state),
        cache_size=cache_size_of(wishes.cache_size, cache_dir), read_only=wishes.read_only, foreground=foreground, fsync=wishes.fsync,
        conflict=wishes.conflict, host_name=host_part(socket.gethostname()),
        uid=os.getuid() if fuse.uid is None else fuse.uid, gid=os.getgid() if fuse.gid is None else fuse.gid,
        umask=0o022 if fuse.umask is None else fuse.umask, allow_other=fuse.allow_other, xattrs=fuse.xattrs,
        kernel_options=fuse.kernel_options, below=below, policy=chosen.policy, policy_source=chosen.source, policy_file=chosen.file,
        browser=chosen.browser,
        sync_every=wishes.sync_every_for(chosen.policy), poll_every=wishes.poll_every, store_timeout=wishes.store_timeout,
        log_level=wishes.log_level, log_style=wishes.log_style, lag_alarm=wishes.lag_alarm, audit_log=audit_log,
        upload_rate=wishes.upload_rate, download_rate=wishes.download_rate, transfers=wishes.transfers, metrics_addr=wishes.metrics_addr,
        is_mode_recorded=is_mode_recorded)


def _below(policy: SyncPolicy) -> str:
    """Raises InvalidArgument."""
    return mapped_prefix(policy.mapping_policy.path) if policy.mapping_policy is not None else ''


def _take_over(invocation: Invocation, context: ContextRecord, below: str) -> None:
    """Refuse a context that is mounted with this state already; let one that still uploads after its unmount finish first, so that
    `fusermount3 -u A; ctxfs mount CTX B` shows at B what was at A. What it cannot upload the new mount goes on with."""
    state_dir = state_dir_of(invocation.paths, invocation.store_url, context.id, below)
    running = preflight.running_mount(invocation.paths.runtime, context.id, state_dir)
    preflight.check_not_running(running)
    preflight.free_dead_mount_of(invocation.paths.runtime, state_dir)
    if running is None:
        return
    with Progress(quiet=invocation.as_json) as progress:
        flush_wait.wait_for(running, timeout=TAKE_OVER_SECONDS, report=progress.update)
    if running.is_alive():
        raise Exists(f'context {context.name} is still being written back after its last unmount (pid {running.record.pid}); '
                     f'follow it with ctxfs wait {context.name}')


def _note_use(store: ObjectStore, context: ContextRecord) -> None:
    """The mount is what counts: a store that is slow to take this note, or never does, neither makes it fail nor keeps the user waiting."""
    def note() -> None:
        with contextlib.suppress(CtxfsError):
            Registry(store).touch(context)
    thread = threading.Thread(target=note, name='ctxfs-note', daemon=True)
    thread.start()
    thread.join(NOTE_SECONDS)


def _say(note: str) -> None:
    if note:
        print(f'ctxfs: {" ".join(note.split())}', file=sys.stderr)


def _wait_for_download(invocation: Invocation, options: MountOptions) -> None:
    mounts = find_mounts(invocation.paths.runtime)
    found = next((m for m in mounts if str(m.path) == options.runtime_dir), None)
    if found is None:
        raise CtxfsError(f'{options.mountpoint}: the mount went away')
    with Progress(quiet=invocation.as_json) as progress:
        remark = wait_for_download(found, report=progress.update)
    _say(remark)


def _say_mounted(invocation: Invocation, options: MountOptions, pid: int) -> None:
    if invocation.as_json:
        print_json({'contextId': options.context_id, 'contextName': options.context_name, 'mountpoint': options.mountpoint, 'pid': pid,
                    'store': options.store_url, 'stateDir': options.state_dir})
    elif sys.stdout.isatty():
        print(f'{options.context_name} ({options.context_id}) is mounted at {options.mountpoint}')


@click.command()
@click.argument('mountpoint', metavar='MOUNTPOINT')
@click.option('--lazy', '-z', is_flag=True, help='Detach now, also while programs still use it.')
@click.option('--timeout', type=click.FloatRange(min=0), metavar='S', help='Wait at most so many seconds for the upload.')
@common_options
def umount(invocation: Invocation, mountpoint: str, lazy: bool, timeout: float | None) -> int:
    """Unmount MOUNTPOINT and wait until every change is in the bucket."""
    found = [m for m in select(invocation.mounts(), mountpoint, invocation.configuration) if m.is_attached()]
    if len(found) > 1:
        places = ' and '.join(m.record.mountpoint for m in found)
        raise UsageError(f'{mountpoint} is mounted at {places}; name the mount point')
    path = found[0].record.mountpoint if found else real_mountpoint(invocation.configuration.place(mountpoint))
    _detach(path, lazy=lazy)
    if not found:
        raise CtxfsError(f'{path} is unmounted, but nothing is known of its mount process; ctxfs status shows what is')
    with Progress(quiet=invocation.as_json) as progress:
        outcome = flush_wait.wait_for(found[0], timeout=timeout, report=progress.update)
    if invocation.as_json:
        print_json(outcome)
    failure = flush_wait.failure_of([outcome])
    if failure is not None:
        raise failure
    return 0


def _detach(path: str, *, lazy: bool) -> None:
    """Raises NotFound, Exists (something else is mounted there) or the reason why fusermount3 refused."""
    entry = mount_at(path)
    if entry is None:
        raise NotFound(f'{path}: nothing is mounted there')
    if not entry.is_ctxfs:
        raise CtxfsError(f'{path}: not a ctxfs mount but {entry.fstype}')
    done = subprocess.run(['fusermount3', '-uz' if lazy else '-u', '--', path], capture_output=True, text=True, check=False,
                          env=helper_environment())
    if done.returncode == 0:
        return
    reason = ' '.join(done.stderr.replace('fusermount3:', '').split())
    if 'busy' in reason:
        who = busy.describe(path)
        raise CtxfsError(f'{path} is busy: {who or "a program of another user"}; end it, or use --lazy')
    raise CtxfsError(f'{path}: {reason or "fusermount3 failed"}')
