"""The SDK's ContextSync, SyncPolicy and its parts, for programs that build policies in Python: its names, defaults, checks and texts.

Owns these classes and the wire form that they make. It must not know what a policy does: ctxfs reads the wire form (policy_parse.py), and
refuses more than the SDK does. Checks are made when an object is made, not when a field is set later, as in the SDK.

    policy = SyncPolicy(upload_policy=UploadPolicy(upload_mode=UploadMode.ARCHIVE), bw_list=BWList([WhiteList(path='/src')]))
    ContextSync.new(context.id, '/home/me/work', policy)
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

_WILDCARD = re.compile(r'[*?\[\]]')


class UploadStrategy(Enum):
    UPLOAD_BEFORE_RESOURCE_RELEASE = 'UploadBeforeResourceRelease'


class DownloadStrategy(Enum):
    DOWNLOAD_ASYNC = 'DownloadAsync'


class UploadMode(Enum):
    FILE = 'File'
    ARCHIVE = 'Archive'


class Lifecycle(Enum):
    LIFECYCLE_1DAY = 'Lifecycle_1Day'
    LIFECYCLE_3DAYS = 'Lifecycle_3Days'
    LIFECYCLE_5DAYS = 'Lifecycle_5Days'
    LIFECYCLE_10DAYS = 'Lifecycle_10Days'
    LIFECYCLE_15DAYS = 'Lifecycle_15Days'
    LIFECYCLE_30DAYS = 'Lifecycle_30Days'
    LIFECYCLE_90DAYS = 'Lifecycle_90Days'
    LIFECYCLE_180DAYS = 'Lifecycle_180Days'
    LIFECYCLE_360DAYS = 'Lifecycle_360Days'
    LIFECYCLE_FOREVER = 'Lifecycle_Forever'


def _check_plain(paths: Iterable[str], text: str) -> None:
    for path in paths:
        if _WILDCARD.search(path):
            raise ValueError(text.format(path))


def _check_enum(name: str, value: object, kind: type[Enum]) -> None:
    if not isinstance(value, kind):
        raise ValueError(f'Invalid {name} value: {value}. Valid values are: {", ".join(member.value for member in kind)}')


@dataclass
class UploadPolicy:
    auto_upload: bool = True
    upload_strategy: UploadStrategy | None = UploadStrategy.UPLOAD_BEFORE_RESOURCE_RELEASE
    upload_mode: UploadMode = UploadMode.FILE
    archive_exclude_paths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_enum('upload_mode', self.upload_mode, UploadMode)

    @classmethod
    def default(cls) -> UploadPolicy:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {'autoUpload': self.auto_upload, 'uploadStrategy': _wire(self.upload_strategy),
                                 'uploadMode': _wire(self.upload_mode)}
        if self.archive_exclude_paths and self.upload_mode is UploadMode.ARCHIVE:
            found['archiveExcludePaths'] = self.archive_exclude_paths
        return found


@dataclass
class DownloadPolicy:
    auto_download: bool = True
    download_strategy: DownloadStrategy | None = DownloadStrategy.DOWNLOAD_ASYNC

    @classmethod
    def default(cls) -> DownloadPolicy:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {'autoDownload': self.auto_download, 'downloadStrategy': _wire(self.download_strategy)}


@dataclass
class DeletePolicy:
    sync_local_file: bool = True

    @classmethod
    def default(cls) -> DeletePolicy:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {'syncLocalFile': self.sync_local_file}


@dataclass
class ExtractPolicy:
    extract: bool = True
    delete_src_file: bool = True
    extract_current_folder: bool = False

    @classmethod
    def default(cls) -> ExtractPolicy:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {'extract': self.extract, 'deleteSrcFile': self.delete_src_file, 'extractToCurrentFolder': self.extract_current_folder}


@dataclass
class RecyclePolicy:
    lifecycle: Lifecycle = Lifecycle.LIFECYCLE_FOREVER
    paths: list[str] = field(default_factory=lambda: [''])

    def __post_init__(self) -> None:
        _check_enum('lifecycle', self.lifecycle, Lifecycle)
        _check_plain(self.paths, 'Wildcard patterns are not supported in recycle policy paths. Got: {}. Please use exact directory paths instead.')

    @classmethod
    def default(cls) -> RecyclePolicy:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {'lifecycle': _wire(self.lifecycle), 'paths': self.paths}


@dataclass
class WhiteList:
    path: str = ''
    exclude_paths: list[str] = field(default_factory=list)
    is_path_regex: bool = False
    is_exclude_regex: bool = False

    def __post_init__(self) -> None:
        text = ('Wildcard patterns are not supported in {0} when {1}=False. Got: {{}}. Please use exact directory paths or set {1}=True for '
                'regex matching.')
        if not self.is_path_regex:
            _check_plain([self.path], text.format('path', 'is_path_regex'))
        if not self.is_exclude_regex:
            _check_plain(self.exclude_paths, text.format('exclude_paths', 'is_exclude_regex'))

    def to_dict(self) -> dict[str, Any]:
        return {'path': self.path, 'excludePaths': self.exclude_paths, 'isPathRegex': self.is_path_regex, 'isExcludeRegex': self.is_exclude_regex}


@dataclass
class BWList:
    white_lists: list[WhiteList] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {'whiteLists': [entry.to_dict() for entry in self.white_lists]}


@dataclass
class MappingPolicy:
    path: str = ''

    @classmethod
    def default(cls) -> MappingPolicy:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {'path': self.path}


@dataclass
class SyncPolicy:
    """A part that is None gets its default, but for `mapping_policy`."""
    upload_policy: UploadPolicy | None = None
    download_policy: DownloadPolicy | None = None
    delete_policy: DeletePolicy | None = None
    extract_policy: ExtractPolicy | None = None
    recycle_policy: RecyclePolicy | None = None
    bw_list: BWList | None = None
    mapping_policy: MappingPolicy | None = None

    def __post_init__(self) -> None:
        self.upload_policy = self.upload_policy or UploadPolicy()
        self.download_policy = self.download_policy or DownloadPolicy()
        self.delete_policy = self.delete_policy or DeletePolicy()
        self.extract_policy = self.extract_policy or ExtractPolicy()
        self.recycle_policy = self.recycle_policy or RecyclePolicy()
        self.bw_list = self.bw_list or BWList([WhiteList()])

    @classmethod
    def default(cls) -> SyncPolicy:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """The wire form, as `ctxfs mount --policy` reads it."""
        parts = {'uploadPolicy': self.upload_policy, 'downloadPolicy': self.download_policy, 'deletePolicy': self.delete_policy,
                 'extractPolicy': self.extract_policy, 'recyclePolicy': self.recycle_policy, 'bwList': self.bw_list,
                 'mappingPolicy': self.mapping_policy}
        return {name: part.to_dict() for name, part in parts.items() if part is not None}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)


@dataclass
class ContextSync:
    """A context, where it is to be seen, and how it is synced. `beta_wait_for_completion` is taken and not used: a mount answers at once."""
    context_id: str
    path: str
    policy: SyncPolicy | None = None
    beta_wait_for_completion: bool | None = None

    @classmethod
    def new(cls, context_id: str, path: str, policy: SyncPolicy | None = None, beta_wait_for_completion: bool | None = None) -> ContextSync:
        return cls(context_id, path, policy, beta_wait_for_completion)

    def with_policy(self, policy: SyncPolicy) -> ContextSync:
        self.policy = policy
        return self


def _wire(value: Enum | None) -> Any:
    return None if value is None else value.value
