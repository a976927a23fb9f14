"""What a sync policy does, in sentences, and its wire form as a JSON Schema.

Owns the wording of `ctxfs policy show` and the schema that editors and other programs check files with. It must not know whether a mount
runs: it says what the policy says.
"""
from __future__ import annotations

from typing import Any

from ctxfs.config import Preference
from ctxfs.durations import spell_duration
from ctxfs.policy import DEFAULT_PERIOD, FOREVER, LIFECYCLE_DAYS, ONLY_ON_UNMOUNT, SyncPolicy, UploadPolicy, WhiteList
from ctxfs.policy_parse import policy_to_json

#: what becomes of a file that two hosts changed, by --conflict
_CONFLICTS = {
    'keep-both': 'where two hosts changed one file, the published version keeps the name, and this host\'s is uploaded beside it',
    'prefer-local': 'where two hosts changed one file, this host\'s version keeps the name, and the published one is kept beside it',
    'prefer-remote': 'where two hosts changed one file, the published version keeps the name, and this host\'s is kept beside it, not uploaded',
}


def describe(policy: SyncPolicy, *, sync_every: float | None = None) -> list[str]:
    """Sentences without a full stop. `sync_every`: seconds of --sync-every, None without it."""
    found = [_upload(policy.upload_policy, sync_every)]
    if policy.upload_policy.upload_mode == 'Archive':
        found.append(_archive(policy.upload_policy))
    found.append(_synced(policy.bw_list.white_lists))
    found.append('remote changes appear while mounted, and the cache is filled in the background' if policy.download_policy.auto_download
                 else 'content is fetched when it is read; remote changes come only by ctxfs sync --mode download')
    found.append('local deletes delete the object' if policy.delete_policy.sync_local_file
                 else 'local deletes keep the object: the file is hidden on this host')
    found.extend(_expiry(policy))
    found.append('zip files are left as they are' + (
        ' (extractPolicy is kept, but a mount unpacks no archives but its own)' if policy.extract_policy.extract else ''))
    if policy.mapping_policy is not None:
        found.append(f'the root of the mount is {policy.mapping_policy.path} of the context')
    return found


def policy_answer(policy: SyncPolicy, *, source: str, file: str | None = None, sync_every: float | None = None,
                  conflict: Preference | None = None) -> dict[str, Any]:
    """As JSON, for programs: of a file, and by the control socket's `policy` of a mount, which says `conflict`, too. `period` is seconds,
    null without a clock."""
    sentences = describe(policy, sync_every=sync_every)
    return {'source': source, 'file': file, 'period': _clock(policy.upload_policy, sync_every)[0], 'policy': policy_to_json(policy),
            'sentences': sentences if conflict is None else [*sentences, _CONFLICTS[conflict]]}


def _clock(upload: UploadPolicy, sync_every: float | None) -> tuple[float | None, str]:
    """(seconds from a change to its upload, None without a clock; who said so)."""
    if not upload.auto_upload:
        return None, 'uploadPolicy.autoUpload'
    if sync_every is not None:
        return None if sync_every == ONLY_ON_UNMOUNT else sync_every, '--sync-every'
    if upload.period is not None:
        return upload.period, 'uploadPolicy.period, where a bare number is minutes'
    return DEFAULT_PERIOD, ''


def _upload(upload: UploadPolicy, sync_every: float | None) -> str:
    if not upload.auto_upload:
        return 'only ctxfs sync uploads; on unmount changes stay on this host'
    seconds, source = _clock(upload, sync_every)
    if seconds is None:
        text = 'uploads on unmount only'
    elif seconds == 0:
        text = 'uploads as soon as a file is closed, and on unmount'
    else:
        text = f'uploads {spell_duration(seconds)} after the oldest change, and on unmount'
    return f'{text} ({source})' if source else text


def _archive(upload: UploadPolicy) -> str:
    excluded = [f'/{path.strip("/")}' for path in upload.archive_exclude_paths]
    text = f', and so does what is below {", ".join(excluded)}' if excluded else ''
    return f'small files go together into zip archives (Archive mode); large ones stay objects of their own{text}'


def _synced(white_lists: tuple[WhiteList, ...]) -> str:
    """Excludes with the whole path from the mount point: what they are relative to is what people get wrong."""
    names = [_entry(white_list) for white_list in white_lists]
    if not names or 'everything' in names:
        return 'everything is synced'
    verb = '1 path is' if len(names) == 1 else f'{len(names)} paths are'
    return f'{verb} synced: {", ".join(names)}; everything else stays on this host'


def _entry(white_list: WhiteList) -> str:
    top = white_list.path.strip('/')
    if white_list.is_path_regex:
        name, below = f'what matches {white_list.path}', ' below it'
    else:
        name, below = f'/{top}' if top else 'everything', ''
    if white_list.is_exclude_regex:
        excludes = [f'what matches {text}{below or (f" below /{top}" if top else "")}' for text in white_list.exclude_paths]
    else:
        base = '' if white_list.is_path_regex or not top else f'/{top}'
        excludes = [f'{base}/{text.strip("/")}{below}' for text in white_list.exclude_paths]
    return f'{name} (without {", ".join(excludes)})' if excludes else name


def _expiry(policy: SyncPolicy) -> list[str]:
    recycle = policy.recycle_policy
    if recycle.lifecycle == FOREVER:
        return ['nothing expires']
    days = LIFECYCLE_DAYS[recycle.lifecycle]
    after = f'{days} day{"" if days == 1 else "s"} after upload'
    names = [path.strip('/') for path in recycle.paths]
    return [f'everything expires {after}'] if '' in names else [f'/{name} expires {after}' for name in names]


# --- the schema --------------------------------------------------------------------------------------------------------------------

_BOOL = {'type': 'boolean'}
_PATH = {'type': 'string'}
#: relative to the mount point; the SDK's rule for wildcards
_PLAIN_PATH = {'type': 'string', 'pattern': r'^[^*?\[\]]*$'}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the wire form. What a schema can say: contradictions and regular expressions are left to parse_policy."""
    return {
        '$schema': 'https://json-schema.org/draft/2020-12/schema', 'title': 'SyncPolicy', **_part(
            uploadPolicy=_or_null(_upload_schema()),
            downloadPolicy=_or_null(_part(autoDownload=_BOOL, downloadStrategy={'enum': ['DownloadAsync', None]})),
            deletePolicy=_or_null(_part(syncLocalFile=_BOOL)),
            extractPolicy=_or_null(_part(extract=_BOOL, deleteSrcFile=_BOOL, extractToCurrentFolder=_BOOL)),
            recyclePolicy=_or_null(_part(lifecycle={'enum': [*LIFECYCLE_DAYS, FOREVER]}, paths=_list(_PLAIN_PATH))),
            bwList=_or_null(_part(whiteLists=_list(_white_list_schema()))),
            mappingPolicy=_or_null(_part(path=_PATH)))}


def _upload_schema() -> dict[str, Any]:
    period = {'description': 'a number is minutes; a string has its unit; 0 uploads when a file is closed',
              'anyOf': [{'type': 'number', 'minimum': 0}, {'type': 'string', 'pattern': r'^\s*[0-9]+(\.[0-9]+)?\s*[smh]\s*$'}, {'type': 'null'}]}
    return _part(autoUpload=_BOOL, uploadStrategy={'enum': ['UploadBeforeResourceRelease', None]}, uploadMode={'enum': ['File', 'Archive']},
                 archiveExcludePaths=_list(_PLAIN_PATH), period=period)


def _white_list_schema() -> dict[str, Any]:
    part = _part(path=_PATH, excludePaths=_list(_PATH), isPathRegex=_BOOL, isExcludeRegex=_BOOL)
    return {**part, 'allOf': [_unless('isPathRegex', path=_PLAIN_PATH), _unless('isExcludeRegex', excludePaths=_list(_PLAIN_PATH))]}


def _unless(flag: str, **properties: Any) -> dict[str, Any]:
    return {'if': {'properties': {flag: {'const': True}}, 'required': [flag]}, 'else': {'properties': properties}}


def _part(**properties: Any) -> dict[str, Any]:
    return {'type': 'object', 'additionalProperties': False, 'properties': properties}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {'anyOf': [schema, {'type': 'null'}]}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {'type': 'array', 'items': item}
