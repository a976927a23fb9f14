"""Reading a sync policy: from JSON as AgentBay's SDK emits it, or from TOML, to the values of ctxfs.policy, and back.

Owns the grammar: which keys there are, what type each has, and the one line that says where a text is wrong and what to write. What a
policy as a whole must not say is policy_check.py's. It must not know mounts, stores or the command line.

Every refusal is a UsageError `ORIGIN: KEY PATH: VALUE: what is wrong and what to write`. Where the SDK has a text of its own for the
case, that text follows the value unchanged (wuying-agentbay-sdk 0.22, context_sync.py; the one for unknown keys is of its TypeScript twin).
"""
from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from ctxfs.config import MountOptions, nearest, parse_toml
from ctxfs.durations import format_duration, parse_duration
from ctxfs.errors import UsageError
from ctxfs.patterns import Pattern, PatternError
from ctxfs.policy import (
    FOREVER,
    LIFECYCLE_DAYS,
    BWList,
    DeletePolicy,
    DownloadPolicy,
    ExtractPolicy,
    MappingPolicy,
    RecyclePolicy,
    SyncPolicy,
    UploadPolicy,
    WhiteList,
)
from ctxfs.policy_check import At, check, check_for_mount, quoted
from ctxfs.policy_presets import with_browser

#: far more than any policy has; what is larger is another file
MAX_BYTES = 1 << 20
LIFECYCLES = (*LIFECYCLE_DAYS, FOREVER)
#: of white lists and excludes
MAX_PATHS = 10_000
#: the SDK's test for wildcards
WILDCARD = re.compile(r'[*?\[\]]')
_BOOLEANS = {'yes': 'true', 'on': 'true', 'true': 'true', '1': 'true', 'no': 'false', 'off': 'false', 'false': 'false', '0': 'false'}
_S = TypeVar('_S', bound=msgspec.Struct)


# --- texts -------------------------------------------------------------------------------------------------------------------------

def parse_policy(data: bytes | str | dict[str, Any], *, origin: str, is_toml: bool = False) -> SyncPolicy:
    """The policy in `data`: JSON or TOML text, or what was read from one. `origin` (a file's name) begins every refusal.

    JSON may hold the policy as a string of JSON, as the wire does. Raises UsageError; also for what policy_check.check finds."""
    at = At(origin)
    value = data if isinstance(data, dict) else parse_toml(_text(data, at), origin=origin) if is_toml else _json(_text(data, at), at)
    if isinstance(value, str):
        value = _json(value, at)
    policy = _object(value, at, SyncPolicy)
    check(policy, origin=origin)
    return policy


def _text(data: bytes | str, at: At) -> str:
    if len(data) > MAX_BYTES:
        at.refuse(f'{len(data)} bytes are no policy; the most is {MAX_BYTES}')
    if isinstance(data, bytes):
        try:
            # a BOM is what editors on Windows begin a file with; UTF-16 has one too
            data = data.decode('utf-16' if data[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig')
        except UnicodeDecodeError as e:
            at.refuse(f'not UTF-8 text (byte {e.start}); save it as UTF-8')
    return data.removeprefix('\ufeff')


class _Object(dict[str, Any]):
    """An object with the key that it had twice, if any: which of the two counts differs between readers."""
    twice: str | None = None


def _object_of(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        found.twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return found


def _json(text: str, at: At) -> Any:
    if not text.strip():
        at.refuse('empty; write {} for the default policy, or see ctxfs policy default')
    try:
        return json.loads(text, object_pairs_hook=_object_of)
    except json.JSONDecodeError as e:
        at.refuse(f'not JSON: {e.msg} at line {e.lineno} column {e.colno}')
    except (RecursionError, ValueError) as e:    # ValueError: a number of thousands of digits
        at.refuse(f'not a policy: {"nested too deeply" if isinstance(e, RecursionError) else "a number is too long"}')


# --- files -------------------------------------------------------------------------------------------------------------------------

def read_policy_file(file: str | Path) -> SyncPolicy:
    """The policy in a file: TOML where its name ends in .toml, else JSON. Raises UsageError that begins with the file's name."""
    path = Path(file)
    try:
        with path.open('rb') as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as e:
        raise UsageError(f'cannot read the policy {path}: {e.strerror}') from e
    return parse_policy(data, origin=str(file), is_toml=path.suffix.lower() == '.toml')


def reload_policy(options: MountOptions) -> SyncPolicy:
    """What --policy FILE says now, checked for the mount of these options. Raises UsageError; the mount then keeps what it has."""
    if options.policy_file is None:
        raise UsageError(f'{options.mountpoint} was not mounted with --policy: there is no file to read again')
    origin = options.policy_file
    policy = with_browser(read_policy_file(origin), options.browser, origin=origin)
    check_for_mount(policy, origin=origin, mountpoint=options.mountpoint, read_only=options.read_only, fsync=options.fsync,
                    sync_every=options.sync_every)
    was = options.policy
    if policy.mapping_policy != was.mapping_policy:
        raise UsageError(f'{origin}: mappingPolicy: cannot change while mounted; unmount, and mount again')
    if policy.upload_policy.upload_mode != was.upload_policy.upload_mode:
        raise UsageError(f'{origin}: uploadPolicy.uploadMode: cannot change while mounted; unmount, and mount again')
    return policy


# --- values ------------------------------------------------------------------------------------------------------------------------

def _object(value: Any, at: At, kind: type[_S]) -> _S:
    if not isinstance(value, dict):
        at.refuse(f'not an object; write {{"{kind.__struct_encode_fields__[0]}": …}}', value)
    twice = getattr(value, 'twice', None)
    if twice is not None:
        at.key(twice).refuse('this key stands here twice; keep one')
    fields = {field.encode_name: field.name for field in msgspec.structs.fields(kind)}
    for key in value:
        if key not in fields:
            _refuse_key(key, at, kind, list(fields))
    readers = _READERS[kind]
    return kind(**{fields[key]: readers[key](item, at.key(key)) for key, item in value.items()
                   if not (item is None and key in _NULLABLE)})


def _refuse_key(key: str, at: At, kind: type, known: list[str]) -> NoReturn:
    if kind is BWList and key.lower().startswith('black'):
        at.key(key).refuse('there are no black lists; write what is not to be synced into excludePaths of an entry of whiteLists')
    owner = next((other.__name__ for other, readers in _READERS.items() if key in readers), '')
    at.refuse(f"Unknown property in {kind.__name__}: '{key}'. Valid properties are: {', '.join(known)}"
              + (f' ({key} belongs into {owner})' if owner else nearest(key, known)))


def _bool(value: Any, at: At) -> bool:
    if not isinstance(value, bool):
        at.refuse(f'not a boolean; write {_BOOLEANS.get(str(value).lower(), "true or false")}, without quotes', value)
    return value


def _str(value: Any, at: At, example: str = '/src') -> str:
    if not isinstance(value, str):
        at.refuse(f'not a string; write it in quotes, like "{example}"', value)
    try:
        value.encode()
    except UnicodeEncodeError:
        at.refuse('half of a surrogate pair is no character; write the character itself', value)
    if '\0' in value:
        at.refuse('no path has a NUL character', value)
    return value


def _strings(value: Any, at: At) -> tuple[str, ...]:
    if isinstance(value, str):
        at.refuse(f'not a list; write [{quoted(value)}]', value)
    if not isinstance(value, list):
        at.refuse('not a list; write ["…"]', value)
    return tuple(_str(item, at.item(number)) for number, item in enumerate(value))


def _strategy(only: str) -> Callable[[Any, At], str]:
    def read(value: Any, at: At) -> str:
        if value != only:
            at.refuse(f'the only strategy is "{only}"; write that, or leave the key out', value)
        return only
    return read


def _upload_mode(value: Any, at: At) -> str:
    if value not in ('File', 'Archive'):
        at.refuse(f'Invalid upload_mode value: {value}. Valid values are: File, Archive', value)
    return value


def _lifecycle(value: Any, at: At) -> str:
    if value not in LIFECYCLES:
        hint = nearest(value, LIFECYCLES) if isinstance(value, str) else ''
        at.refuse(f'Invalid lifecycle value: {value}. Valid values are: {", ".join(LIFECYCLES)}{hint}', value)
    return value


def _period(value: Any, at: At) -> float:
    """A number is minutes, as in the SDK versions that had it (0.4 to 0.8: "in minutes"); a string carries its unit."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        at.refuse('not a time; write a number of minutes, or "30s", "5m", "1h"', value)
    if not isinstance(value, str) and not 0 <= value < math.inf:     # NaN too
        at.refuse('no period is like that; write a number of minutes, 0 to upload when a file is closed', value)
    try:
        return parse_duration(f'{value:.9f}' if isinstance(value, float) else value, unit='' if isinstance(value, str) else 'm')
    except UsageError as e:
        at.refuse(f'{e}; a bare number is minutes', value)


def _white_list(value: Any, at: At) -> WhiteList:
    found = _object(value, at, WhiteList)
    path = _pattern(found.path, at.key('path')) if found.is_path_regex else clean_path(found.path, at.key('path'), (
        'Wildcard patterns are not supported in path when is_path_regex=False. Got: {}. '
        'Please use exact directory paths or set is_path_regex=True for regex matching.'))
    excludes = at.key('excludePaths')
    return msgspec.structs.replace(found, path=path, exclude_paths=tuple(
        _pattern(text, excludes.item(number)) if found.is_exclude_regex else clean_path(text, excludes.item(number), (
            'Wildcard patterns are not supported in exclude_paths when is_exclude_regex=False. Got: {}. '
            'Please use exact directory paths or set is_exclude_regex=True for regex matching.'))
        for number, text in enumerate(found.exclude_paths)))


def _white_lists(value: Any, at: At) -> tuple[WhiteList, ...]:
    if not isinstance(value, list):
        at.refuse('not a list; write [{"path": "/src"}]', value)
    # each is compared with every name
    count = len(value) + sum(len(item['excludePaths']) for item in value if isinstance(item, dict) and isinstance(item.get('excludePaths'), list))
    if count > MAX_PATHS:
        at.refuse(f'{count} paths are too many; the most is {MAX_PATHS}; name the directories that they are in')
    return tuple(_white_list(item, at.item(number)) for number, item in enumerate(value))


def _pattern(text: str, at: At) -> str:
    """A regular expression as it stands. rules.py compiles it without its first slash, and so does this; what it is matched against has no
    slash at its start either."""
    if re.match(r'\^?\\?/', text.removeprefix('/')):
        at.refuse('matches nothing, for it is matched against paths without a first slash; write "' + re.sub(r'^[/^\\]+', '', text) + '"', text)
    try:
        Pattern(text.removeprefix('/'))
    except PatternError as e:
        at.refuse(f'not a regular expression: {e}', text)
    return text


def clean_path(text: str, at: At, wildcards: str) -> str:
    """The path without empty and `.` components. Refuses one that could match nothing below a mount; `wildcards` says so of patterns."""
    if WILDCARD.search(text):
        at.refuse(wildcards.format(text), text)
    if re.match(r'[A-Za-z]:([\\/]|$)|\\', text):
        rest = re.sub(r'^([A-Za-z]:)?[\\/]*', '', text).replace('\\', '/')
        at.refuse(f'a path of Windows; write it relative to the mount point, with forward slashes, like "/{rest}"', text)
    parts = [part for part in text.split('/') if part not in ('', '.')]
    if parts[:1] == ['~']:
        at.refuse(f'~ is not expanded; write it relative to the mount point, like "/{"/".join(parts[1:])}"', text)
    if '..' in parts:
        at.refuse('".." leads out of the directory that it is relative to; write the path without it', text)
    if parts[:1] == ['.ctxfs']:
        at.refuse('.ctxfs is where ctxfs keeps its own objects; nothing of yours is there', text)
    return ('/' if text.startswith('/') else '') + '/'.join(parts) + ('/' if parts and text.endswith('/') else '')


def _recycle_paths(value: Any, at: At) -> tuple[str, ...]:
    return _clean_paths(value, at, 'Wildcard patterns are not supported in recycle policy paths. Got: {}. Please use exact directory paths instead.')


def _archive_excludes(value: Any, at: At) -> tuple[str, ...]:
    return _clean_paths(value, at, 'Wildcard patterns are not supported in archiveExcludePaths. Got: {}. Please use path prefixes, like "models/".')


def _clean_paths(value: Any, at: At, wildcards: str) -> tuple[str, ...]:
    return tuple(clean_path(text, at.item(number), wildcards) for number, text in enumerate(_strings(value, at)))


def _mapping(value: Any, at: At) -> MappingPolicy | None:
    """An empty path is no mapping (document 002); the path is one of a session on any system, so it is kept as it stands."""
    found = _object(value, at, MappingPolicy)
    return found if found.path else None


def _part(kind: type[_S]) -> Callable[[Any, At], _S]:
    return lambda value, at: _object(value, at, kind)


_READERS: dict[type, dict[str, Callable[[Any, At], Any]]] = {
    SyncPolicy: {
        'uploadPolicy': _part(UploadPolicy), 'downloadPolicy': _part(DownloadPolicy), 'deletePolicy': _part(DeletePolicy),
        'extractPolicy': _part(ExtractPolicy), 'recyclePolicy': _part(RecyclePolicy), 'bwList': _part(BWList), 'mappingPolicy': _mapping},
    UploadPolicy: {
        'autoUpload': _bool, 'uploadStrategy': _strategy('UploadBeforeResourceRelease'), 'uploadMode': _upload_mode,
        'archiveExcludePaths': _archive_excludes, 'period': _period},
    DownloadPolicy: {'autoDownload': _bool, 'downloadStrategy': _strategy('DownloadAsync')},
    DeletePolicy: {'syncLocalFile': _bool},
    ExtractPolicy: {'extract': _bool, 'deleteSrcFile': _bool, 'extractToCurrentFolder': _bool},
    RecyclePolicy: {'lifecycle': _lifecycle, 'paths': _recycle_paths},
    BWList: {'whiteLists': _white_lists},
    WhiteList: {'path': _str, 'excludePaths': _strings, 'isPathRegex': _bool, 'isExcludeRegex': _bool},
    MappingPolicy: {'path': _str},
}
#: null is the default: for the parts, and for what the SDK itself emits as null
_NULLABLE = {*_READERS[SyncPolicy], 'uploadStrategy', 'downloadStrategy', 'period'}


# --- the wire form -----------------------------------------------------------------------------------------------------------------

def policy_to_json(policy: SyncPolicy) -> dict[str, Any]:
    """What `SyncPolicy(...).__dict__()` of the SDK gives for it: keys that it leaves out are left out. parse_policy reads it back."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(policy))
    upload = found['uploadPolicy']
    if policy.upload_policy.upload_mode != 'Archive' or not upload['archiveExcludePaths']:
        del upload['archiveExcludePaths']
    if upload['period'] is None:
        del upload['period']
    else:
        upload['period'] = format_duration(upload['period'])
    if policy.mapping_policy is None:
        del found['mappingPolicy']
    return found


def policy_to_bytes(policy: SyncPolicy) -> bytes:
    """As a file that people edit."""
    return msgspec.json.format(msgspec.json.encode(policy_to_json(policy)), indent=2) + b'\n'
