"""The sync policy: what AgentBay's SyncPolicy says, as values.

Owns the policy's parts, their defaults and their wire names. Reading and refusing texts is policy_parse.py's, sentences for people are
policy_text.py's, answers about single paths are rules.py's. It must not know the tree, stores or the command line.

The wire form is what `json.dumps(SyncPolicy(...).__dict__())` of wuying-agentbay-sdk emits (0.22; the texts of 0.4 to 0.8 with `period`, too).
"""
from __future__ import annotations

from typing import Literal

import msgspec

#: seconds from the oldest change that the bucket does not have to its upload, where the policy and the mount say nothing
DEFAULT_PERIOD = 60.0
#: the period that stands for `--sync-every unmount`
ONLY_ON_UNMOUNT = -1.0
LIFECYCLE_DAYS = {'Lifecycle_1Day': 1, 'Lifecycle_3Days': 3, 'Lifecycle_5Days': 5, 'Lifecycle_10Days': 10, 'Lifecycle_15Days': 15,
                  'Lifecycle_30Days': 30, 'Lifecycle_90Days': 90, 'Lifecycle_180Days': 180, 'Lifecycle_360Days': 360}
FOREVER = 'Lifecycle_Forever'


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    """Base of all parts: immutable, camelCase on the wire."""


class UploadPolicy(_Part, frozen=True, kw_only=True, rename='camel'):
    """`period`: seconds, None: not said (DEFAULT_PERIOD counts). On the wire a number is minutes, a string carries its unit."""
    auto_upload: bool = True
    upload_strategy: str = 'UploadBeforeResourceRelease'
    upload_mode: Literal['File', 'Archive'] = 'File'
    archive_exclude_paths: tuple[str, ...] = ()
    period: float | None = None


class DownloadPolicy(_Part, frozen=True, kw_only=True, rename='camel'):
    auto_download: bool = True
    download_strategy: str = 'DownloadAsync'


class DeletePolicy(_Part, frozen=True, kw_only=True, rename='camel'):
    sync_local_file: bool = True


class ExtractPolicy(_Part, frozen=True, kw_only=True, rename='camel'):
    extract: bool = True
    delete_src_file: bool = True
    extract_to_current_folder: bool = False


class RecyclePolicy(_Part, frozen=True, kw_only=True, rename='camel'):
    lifecycle: str = FOREVER
    paths: tuple[str, ...] = ('',)


class WhiteList(_Part, frozen=True, kw_only=True, rename='camel'):
    path: str = ''
    exclude_paths: tuple[str, ...] = ()
    is_path_regex: bool = False
    is_exclude_regex: bool = False


class BWList(_Part, frozen=True, kw_only=True, rename='camel'):
    """No entry, like one with path '', means everything."""
    white_lists: tuple[WhiteList, ...] = ()


class MappingPolicy(_Part, frozen=True, kw_only=True, rename='camel'):
    path: str = ''


class SyncPolicy(_Part, frozen=True, kw_only=True, rename='camel'):
    """See the module docstring. SyncPolicy() is the default: everything, both ways."""
    upload_policy: UploadPolicy = UploadPolicy()
    download_policy: DownloadPolicy = DownloadPolicy()
    delete_policy: DeletePolicy = DeletePolicy()
    extract_policy: ExtractPolicy = ExtractPolicy()
    recycle_policy: RecyclePolicy = RecyclePolicy()
    bw_list: BWList = BWList()
    mapping_policy: MappingPolicy | None = None
