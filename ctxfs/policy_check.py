"""What a policy must not say: contradictions in itself, and what a particular mount cannot do.

Owns those rules, and how a refusal names its place: a policy that passes does what it says. It must not know how a policy is written
down (policy_parse.py) nor how one is carried out.
"""
from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from ctxfs.errors import UsageError
from ctxfs.patterns import MAX_TOTAL_SIZE, Pattern
from ctxfs.policy import FOREVER, SyncPolicy, WhiteList

#: of a value that is quoted in a message
MAX_QUOTED = 120

#: of what is wrong with it
MAX_PROBLEM = 1000

#: regular expressions that, anchored at their start, match whatever name there is
_MATCHES_ALL = frozenset({'', '.', '.*', '.+', '.*?', '.+?', '(.*)', '(.+)', '[^/]', '[^/]+', '[^/]*'})


class At:
    """A place in a policy, for messages: `policy.json: bwList.whiteLists[0].path`."""

    def __init__(self, origin: str, path: str = '') -> None:
        self.origin, self.path = origin, path

    def key(self, name: str) -> At:
        return At(self.origin, f'{self.path}.{name}' if self.path else name)

    def item(self, number: int) -> At:
        return At(self.origin, f'{self.path}[{number}]')

    def refuse(self, problem: str, *value: Any) -> NoReturn:
        """Raises UsageError; the value, if given, is quoted before the problem."""
        if len(problem) > MAX_PROBLEM:      # it quotes a value that is long
            problem = f'{problem[:MAX_PROBLEM // 2]} … {problem[-MAX_PROBLEM // 2:]}'
        raise UsageError(': '.join(filter(None, (self.origin, one_line(self.path[-MAX_PROBLEM:]), *map(quoted, value), one_line(problem)))))


def quoted(value: Any) -> str:
    """As JSON, cut where it is long."""
    text = one_line(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + '…'


def one_line(text: str) -> str:
    return ''.join(c if c.isprintable() else c.encode('unicode_escape', 'surrogatepass').decode() for c in text)


# --- in itself ---------------------------------------------------------------------------------------------------------------------

def check(policy: SyncPolicy, *, origin: str) -> None:
    """Raises UsageError that names both keys that contradict each other."""
    at = At(origin)
    _check_archive_excludes(policy, at.key('uploadPolicy').key('archiveExcludePaths'))
    for number, white_list in enumerate(policy.bw_list.white_lists):
        _check_excludes(white_list, at.key('bwList').key('whiteLists').item(number))
    _check_patterns(policy.bw_list.white_lists, at.key('bwList').key('whiteLists'))
    _check_recycle(policy, at.key('recyclePolicy').key('paths'))


def _check_archive_excludes(policy: SyncPolicy, at: At) -> None:
    upload = policy.upload_policy
    if upload.archive_exclude_paths and upload.upload_mode != 'Archive':
        at.refuse('has no effect while uploadPolicy.uploadMode is "File"; remove one of the two', list(upload.archive_exclude_paths))


def _check_excludes(white_list: WhiteList, at: At) -> None:
    for number, text in enumerate(white_list.exclude_paths):
        if _excludes_all(text, white_list.is_exclude_regex):
            at.key('excludePaths').item(number).refuse(
                f'excludes all of {at.path}.path "{white_list.path}", so that nothing of it would be synced; remove the one or the other', text)


def _excludes_all(text: str, is_regex: bool) -> bool:
    if not is_regex:
        return not text.strip('/')
    return text.removeprefix('/').removeprefix('^').removesuffix('$') in _MATCHES_ALL


def _check_patterns(white_lists: tuple[WhiteList, ...], at: At) -> None:
    """Every one is matched against every name, so what they cost together is bounded."""
    texts = [text for entry in white_lists for text in ((entry.path,) * entry.is_path_regex + entry.exclude_paths * entry.is_exclude_regex)]
    if sum(Pattern(text.removeprefix('/')).size for text in texts) > MAX_TOTAL_SIZE:
        at.refuse(f'{len(texts)} regular expressions are together too large; the most is {MAX_TOTAL_SIZE} instructions of RE2; use plain paths '
                  'where they do')


def _check_recycle(policy: SyncPolicy, at: At) -> None:
    recycle, white_lists = policy.recycle_policy, policy.bw_list.white_lists
    if recycle.lifecycle == FOREVER:
        return
    if not recycle.paths:
        at.refuse(f'no path expires, against recyclePolicy.lifecycle "{recycle.lifecycle}"; write [""] for all paths, or lifecycle "{FOREVER}"', [])
    for number, path in enumerate(recycle.paths):
        if white_lists and not any(_meet(path.strip('/'), white_list) for white_list in white_lists):
            at.item(number).refuse('nothing below it is uploaded, for no entry of bwList.whiteLists reaches it; '
                                   'add it there, or remove it here', path)


def _meet(path: str, white_list: WhiteList) -> bool:
    """Whether something below `path` may be synced by that entry; a regular expression may match anything."""
    if white_list.is_path_regex:
        return True
    white = white_list.path.strip('/')
    if not is_below(path, white):
        return is_below(white, path)
    rest = path[len(white):].strip('/')
    return white_list.is_exclude_regex or not rest or not any(is_below(rest, text.strip('/')) for text in white_list.exclude_paths)


def is_below(path: str, top: str) -> bool:
    """Whether `path` is `top` or below it; both without slashes at their ends, '' is above all."""
    return not top or path == top or path.startswith(top + '/')


# --- on a mount --------------------------------------------------------------------------------------------------------------------

def check_for_mount(policy: SyncPolicy, *, origin: str, mountpoint: str, read_only: bool = False, fsync: str = 'local',
                    sync_every: float | None = None) -> None:
    """Raises UsageError for a policy that would do nothing, or something else than it says, on this mount. `mountpoint` is absolute and
    resolved; `sync_every` (seconds) only where somebody asked for it."""
    at = At(origin)
    if not policy.upload_policy.auto_upload:
        switch = at.key('uploadPolicy').key('autoUpload')
        if sync_every is not None:
            switch.refuse('--sync-every has no effect on it, for only ctxfs sync uploads; leave out --sync-every, or write true', False)
        if fsync == 'remote':
            switch.refuse('--fsync remote uploads at every fsync(), which this forbids; use --fsync local, or write true', False)
    if read_only and sync_every is not None:
        raise UsageError('--sync-every has no effect on a read-only mount; leave one of the two out')
    _check_roots(policy, at, mountpoint)


def _check_roots(policy: SyncPolicy, at: At, mountpoint: str) -> None:
    for number, white_list in enumerate(policy.bw_list.white_lists):
        entry = at.key('bwList').key('whiteLists').item(number)
        top = '/' + white_list.path.strip('/') if not white_list.is_path_regex else None
        _check_root(white_list.path, entry.key('path'), mountpoint, is_regex=white_list.is_path_regex)
        for index, text in enumerate(white_list.exclude_paths):
            _check_root(text, entry.key('excludePaths').item(index), mountpoint, is_regex=white_list.is_exclude_regex, below=top)
    for number, path in enumerate(policy.recycle_policy.paths):
        _check_root(path, at.key('recyclePolicy').key('paths').item(number), mountpoint)


def _check_root(path: str, at: At, mountpoint: str, *, is_regex: bool = False, below: str | None = None) -> None:
    """Paths are relative to the mount point, so one that begins with the mount point means MOUNTPOINT/MOUNTPOINT/…: AgentBay's users
    write that by mistake, and then nothing is synced. `below`: what excludes are relative to."""
    start = next((start for start in _starts(mountpoint, is_regex=is_regex) if is_below(path.rstrip('/') or '/', start)), None)
    if start is None or mountpoint == '/':
        return
    rest = path.rstrip('/')[len(start):]
    if below is not None and is_below(rest.strip('/'), below.strip('/')):
        rest = rest[len(below.rstrip('/')):]
    base = 'the mount point' if below is None else 'the path of its white list'
    inside = '' if is_regex else f' (a directory {path.strip("/")} inside the mount is written without the first slash)'
    at.refuse(f'paths are relative to {base}, not absolute; write "{rest}"{inside}', path)


def _starts(mountpoint: str, *, is_regex: bool) -> list[str]:
    """How a path that begins with the mount point begins."""
    plain = {mountpoint, re.escape(mountpoint)} if is_regex else {mountpoint}
    return [*plain, *('^' + start for start in plain)] if is_regex else [*plain]
