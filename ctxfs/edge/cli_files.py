"""`ctxfs files …`: a context's files without a mount.

Owns the reading of arguments, as cp reads them, and the shape of the output. It must not know how anything is stored or told.
"""
from __future__ import annotations

import os
import stat
import sys
import time

import click

from ctxfs.durations import expires_of
from ctxfs.edge.cli_audit import audited
from ctxfs.edge.cli_common import Invocation, common_options, human_bytes, human_files, print_json, print_table, printable
from ctxfs.edge.context_desk import open_desk
from ctxfs.edge.progress import Transfer
from ctxfs.edge.runtime_dir import Pending
from ctxfs.errors import CtxfsError, IsADirectory, UsageError
from ctxfs.storage.object_store import PRESIGN_MAX
from ctxfs.sync import get_files, put_files
from ctxfs.sync.context_files import ContextFiles, Entry
from ctxfs.sync.put_files import Failure, Moved

#: failures that are named one by one
_NAMED = 20


@click.group()
def files() -> None:
    """A context's files without a mount. PATH is a path in the context, as /data/x."""


@files.command()
@click.argument('reference', metavar='CTX')
@click.argument('path', metavar='[PATH]', default='/')
@click.option('--recursive', '-r', is_flag=True, help='Also what is in folders, and below.')
@common_options
def ls(invocation: Invocation, reference: str, path: str, recursive: bool) -> int:
    """What is in the folder PATH, or the file PATH."""
    with open_desk(invocation, reference=reference) as desk:
        found = desk.files(desk.registry.find(reference))
        entry = found.find(path)
        entries = [entry] if not entry.is_dir else list(found.below(entry.path) if recursive else found.entries(entry.path))
    if invocation.as_json:
        print_json({'path': entry.path, 'entries': [_json_of(one) for one in entries]})
        return 0
    shown = [one.path.removeprefix(entry.path.rstrip('/')).lstrip('/') or one.name for one in entries]
    print_table(('SIZE', 'MODIFIED', 'NAME'), [
        ('-' if one.is_dir else human_bytes(one.size), '-' if one.is_dir else _when(one), name + ('/' if one.is_dir else ''))
        for one, name in zip(entries, shown, strict=True)])
    return 0


def _when(entry: Entry) -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(entry.mtime_ns / 1e9))


def _json_of(entry: Entry) -> dict[str, object]:
    if entry.is_dir:
        return {'name': printable(entry.name), 'path': printable(entry.path), 'type': 'FOLDER'}
    return {'name': printable(entry.name), 'path': printable(entry.path), 'type': 'FILE', 'size': entry.size, 'modified': _when(entry),
            'etag': entry.etag.strip('"')}


@files.command()
@click.argument('reference', metavar='CTX')
@click.argument('local', metavar='LOCAL')
@click.argument('path', metavar='[PATH]', required=False)
@common_options
def put(invocation: Invocation, reference: str, local: str, path: str | None) -> int:
    """Store the file or directory LOCAL as PATH; in PATH, if that is a folder or ends with a slash (default: in /)."""
    source = os.fsencode(local.rstrip('/') or '/')
    with audited(invocation, 'files-put', to=path or '/') as line, open_desk(invocation, reference=reference) as desk:
        record = desk.registry.find(reference)
        line.about(record)
        into = desk.files(record, for_writing=True)
        key = put_files.target_of(into, source, path)
        _check_no_folder(into, source, key)
        count, size = put_files.measure(source)
        with Transfer('put', Pending(files=count, bytes=size), quiet=invocation.as_json) as progress:
            moved = put_files.put(into, source, key, progress=progress)
    return _told(invocation, moved, 'put')


def _check_no_folder(files: ContextFiles, source: bytes, key: str) -> None:
    """A file must not get a name that a folder has, nor a directory one that a file has."""
    if not stat.S_ISDIR(os.lstat(source).st_mode) and files.has_folder(key):
        raise IsADirectory(f'/{printable(key)} is a folder in the context; remove it first, or choose another name')
    if stat.S_ISDIR(os.lstat(source).st_mode):
        files.check_parents(f'{key}/x')


@files.command()
@click.argument('reference', metavar='CTX')
@click.argument('path', metavar='PATH')
@click.argument('local', metavar='[LOCAL]', required=False)
@common_options
def get(invocation: Invocation, reference: str, path: str, local: str | None) -> int:
    """Fetch the file or folder PATH as LOCAL; into LOCAL, if that is a directory or ends with a slash (default: here). `-` is stdout."""
    with open_desk(invocation, reference=reference) as desk:
        found = desk.files(desk.registry.find(reference))
        entry = found.find(path)
        if local == '-':
            return _to_stdout(found, entry)
        to = _local_target(entry, local)
        left = Pending(files=1, bytes=entry.size)
        if entry.is_dir:
            sizes = [one.size for one in found.below(entry.path) if not one.is_dir]
            left = Pending(files=len(sizes), bytes=sum(sizes))
        with Transfer('get', left, quiet=invocation.as_json) as progress:
            moved = get_files.get(found, entry, to, progress=progress)
    return _told(invocation, moved, 'got')


def _local_target(entry: Entry, local: str | None) -> bytes:
    name = os.fsencode(entry.name)
    to = os.fsencode(local if local is not None else '.')
    if to.endswith(b'/') or os.path.isdir(to):
        to = os.path.join(to, name) if name else to
    above = os.path.dirname(to) or b'.'
    if not os.path.isdir(above):
        raise UsageError(f'{os.fsdecode(above)}: no such directory; make it with mkdir -p')
    if not entry.is_dir and os.path.isdir(to):
        raise IsADirectory(f'{os.fsdecode(to)} is a directory, and {entry.path} a file')
    return to


def _to_stdout(found: ContextFiles, entry: Entry) -> int:
    if entry.is_dir:
        raise IsADirectory(f'{entry.path} is a folder; only a file goes to stdout')
    at = 0
    while at < entry.size:
        data = found.read(entry, at, min(at + (8 << 20), entry.size))
        sys.stdout.buffer.write(data)
        at += len(data)
    sys.stdout.buffer.flush()
    return 0


@files.command()
@click.argument('reference', metavar='CTX')
@click.argument('paths', metavar='PATH…', nargs=-1, required=True)
@click.option('--recursive', '-r', is_flag=True, help='Folders with all below them.')
@common_options
def rm(invocation: Invocation, reference: str, paths: tuple[str, ...], recursive: bool) -> int:
    """Remove files; with -r also folders."""
    count = 0
    with audited(invocation, 'files-rm', paths=list(paths)) as line, open_desk(invocation, reference=reference) as desk:
        record = desk.registry.find(reference)
        line.about(record)
        found = desk.files(record)
        with Transfer('rm', quiet=invocation.as_json) as progress:
            for path in paths:
                entry = found.find(path)
                if entry.is_dir and not recursive:
                    raise IsADirectory(f'{entry.path} is a folder; remove it with -r')
                for gone in found.delete_below(entry.path) if entry.is_dir else [1]:
                    if not entry.is_dir:
                        found.delete_file(entry.path)
                    count += gone
                    progress(gone)
    if invocation.as_json:
        print_json({'removed': count})
    return 0


@files.command()
@click.argument('reference', metavar='CTX')
@click.argument('path', metavar='PATH')
@click.option('--upload', is_flag=True, help='A URL to put the file at: curl -T FILE URL.')
@click.option('--expires', default='1h', show_default=True, metavar='TIME', help='How long it is good; at most 168h.')
@common_options
def url(invocation: Invocation, reference: str, path: str, upload: bool, expires: str) -> int:
    """A URL by which whoever has it can fetch the file PATH."""
    seconds = expires_of(expires, longest=PRESIGN_MAX)
    with open_desk(invocation, reference=reference) as desk:
        record = desk.registry.find(reference)
        found = desk.files(record, for_writing=upload)
        made = found.upload_url(path, seconds) if upload else found.download_url(path, seconds)
    print_json({'url': made, 'method': 'PUT' if upload else 'GET', 'expireTime': int(time.time()) + seconds}) if invocation.as_json else print(made)
    return 0


def _told(invocation: Invocation, moved: Moved, done: str) -> int:
    """Raises CtxfsError when something is not there."""
    if invocation.as_json:
        print_json({'files': moved.files, 'bytes': moved.bytes,
                    'failed': [{'path': printable(failure.path), 'errorMessage': printable(failure.why)} for failure in moved.failures]})
    elif sys.stdout.isatty() or moved.failures:
        print(f'{done} {human_files(moved.files)}, {human_bytes(moved.bytes)}')
    for failure in moved.failures[:_NAMED]:
        print(f'ctxfs: {_line(failure)}', file=sys.stderr)
    if moved.failures:
        raise CtxfsError(f'{human_files(len(moved.failures))} could not be {done}')
    return 0


def _line(failure: Failure) -> str:
    return f'{printable(failure.path)}: {printable(failure.why)}'
