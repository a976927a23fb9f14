"""The port to an object store: what every store must do, and how a URL becomes one.

Owns the contract (this Protocol, checked by tests/contract against each store) and nothing of any provider. It must not know paths,
inodes or schedules: keys and bytes only. All calls are synchronous, thread-safe, bounded in time, and raise only `ctxfs.errors`:
NotFound, RemoteChanged (a condition failed), Denied (credentials, rights), Unsupported (no such feature), RemoteUnavailable
(transient; OutOfTurn, Contradicted), InvalidArgument (this store cannot hold such a key, or a part is too large).
"""
from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import BinaryIO, NamedTuple, Protocol

import msgspec

from ctxfs.errors import InvalidArgument
from ctxfs.records import ListPage, ObjectInfo, PutResult

#: files above this are stored in parts
PARTS_ABOVE = 16 << 20
#: seconds for which a presigned URL can be good (AWS: seven days)
PRESIGN_MAX = 7 * 86400


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """When a write may happen: `etag` set: only over that version; `absent`: only where there is no object; neither: always. `is_claim`: it is
    how hosts take turns, so it needs none."""
    etag: str | None = None
    absent: bool = False
    is_claim: bool = False


class Memory(Protocol):
    """Where it is remembered what a store can do (remembered.py)."""

    def recall(self) -> Capabilities | None: ...

    def keep(self, capabilities: Capabilities) -> None: ...

    def forget(self) -> None: ...


class Resume(Protocol):
    """What is remembered of one upload in parts, so that it can be gone on with after its process has ended."""

    #: '' where nothing was begun, or is known
    @property
    def upload_id(self) -> str: ...

    @property
    def parts(self) -> dict[int, str]:
        """Their etags by number, as far as they are there."""

    def begun(self, upload_id: str) -> None: ...

    def sent(self, number: int, etag: str) -> None: ...

    def over(self) -> None: ...


ALWAYS = Condition()
_ABSENT, _OVER = Condition(absent=True), Condition(etag='any')


class Write(enum.Enum):
    """The ways to write an object, whose conditions servers honour or ignore one by one."""
    PUT = 'put'
    PARTS = 'parts'
    COPY = 'copy'


#: changes with the questions (s3_probe.py) and the fields: an answer to other ones is not remembered
PROBE_VERSION = 2


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What this endpoint and bucket were found to honour (probed once, remembered). A False makes the caller, or the store itself
    where it says so, fall back to check-then-act with a window that is as small as it can be."""
    conditional_create: bool
    conditional_overwrite: bool
    conditional_delete: bool
    conditional_copy: bool
    batch_delete: bool
    #: a batch delete leaves an object alone whose etag is not the one named
    conditional_batch_delete: bool = False
    #: etags in conditions go without their quotes (Ceph RGW)
    unquoted_etags: bool = False
    #: a create-only PUT goes by OSS's own header; so do copies and uploads in parts
    forbid_overwrite: bool = False
    forbid_overwrite_everywhere: bool = False
    #: a copy is refused when its source is not the version named (without it, the source is looked at first)
    conditional_copy_source: bool = False
    #: objects carry tags; a store without them ignores the ones it is given
    tagging: bool = False
    #: the bucket has lifecycle rules that may be read, so that `ensure_expiry` is worth a try
    lifecycle: bool = False
    #: conditions hold at the end of an upload in parts
    conditional_parts: bool = False
    #: an answer was refused for want of rights, which are better elsewhere in the bucket: good for the prefix that was asked about only
    is_limited: bool = False

    @property
    def can_create(self) -> bool:
        """Of several who create the same object at once exactly one succeeds."""
        return self.conditional_create or self.forbid_overwrite

    def is_atomic(self, write: Write, condition: Condition) -> bool:
        """Whether the store itself sees to the condition. Where it does not, the object is looked at first, and then written."""
        if condition == ALWAYS:
            return True
        has_put = self.can_create if condition.absent else self.conditional_overwrite
        if write is Write.PUT:
            return has_put
        has_parts = self.conditional_parts or (condition.absent and self.forbid_overwrite_everywhere)
        # what cannot be copied under a condition is read and put, or copied in parts
        return has_parts if write is Write.PARTS else self.conditional_copy or (has_parts and has_put)

    def needs_turn(self, write: Write, condition: Condition) -> bool:
        """Whether hosts must take turns to write so: it is not atomic, or it could come between another host's look and its write."""
        if condition == ALWAYS or condition.is_claim:
            return False
        if not self.is_atomic(write, condition):
            return True
        overwrites = all(self.is_atomic(other, _OVER) for other in Write)
        if not condition.absent:
            return not (overwrites and self.conditional_delete)
        return not all(self.is_atomic(other, _ABSENT) for other in Write) or (self.conditional_delete and not overwrites)

    @property
    def deletes_need_turn(self) -> bool:
        """An atomic one harms nobody: who finds the object gone puts it back."""
        return not self.conditional_delete


#: without the right to write nothing can be found out
UNKNOWN = Capabilities(conditional_create=False, conditional_overwrite=False, conditional_delete=False, conditional_copy=False,
                       batch_delete=False, is_limited=True)
#: (key, why): what `delete_many` could not remove
Failures = list[tuple[str, Exception]]


class EtagMaker(Protocol):
    """Is given the whole content in order, then asked."""

    def update(self, data: bytes) -> None: ...

    def etag(self) -> str:
        """Without quotes."""


class ExpiryRule(NamedTuple):
    """Objects whose keys begin with `prefix` (and that have the tag, `key=value`, and are what else `narrowed` says) go `when`."""
    rule_id: str
    prefix: str
    tag: str
    narrowed: str
    when: str


class ObjectStore(Protocol):
    """See the module docstring for errors. Keys are non-empty str that encode to at most 1,023 bytes of UTF-8 (S3's and OSS's rule)."""

    url: str

    def capabilities(self) -> Capabilities:
        """Asked of the server at the first call, unless `learn` said it before; UNKNOWN without the right to write."""

    def learn(self, known: Capabilities | None) -> None:
        """What the store can do from now on; None: it is to be asked again when it is needed."""

    def etag_maker(self, size: int) -> EtagMaker | None:
        """Foretells the etag of an object of `size` bytes that `put` or `put_file` makes, where this store's follow from the content."""

    def proves(self, etag: str, pieces: Callable[[], Iterable[bytes]]) -> bool:
        """False where the etag says that these pieces, in order, are not the whole content. They are looked at only where it can say so."""

    def etag_of(self, body: bytes) -> str | None:
        """An etag that proves that an object holds exactly `body`, in stores whose etags can; another etag proves nothing."""

    def check(self) -> None:
        """Answer within 10 s whether the bucket exists and may be listed. Raises RemoteUnavailable (endpoint unreachable), Denied
        (wrong credentials), NotFound (no such bucket); each message is one line that says what to do."""

    def head(self, key: str) -> ObjectInfo:
        """The object's description with metadata."""

    def get(self, key: str, start: int = 0, stop: int | None = None, *, if_match: str | None = None) -> bytes:
        """Bytes [start, stop) of the object (to its end if stop is None; shorter where the object ends). RemoteChanged unless its etag
        is `if_match`, when given; never a mixture of two versions, and RemoteUnavailable instead of bytes that contradict a checksum that
        came with them. An empty range returns b'' (still verified where if_match is set)."""

    def put(self, key: str, body: bytes, *, metadata: dict[str, str] | None = None, content_type: str | None = None,
            condition: Condition = ALWAYS, tags: Mapping[str, str] | None = None) -> PutResult:
        """Store `body` whole, or raise and leave the object as it was; except that RemoteUnavailable may mean that only the answer was lost,
        so the caller looks at the object's metadata. The same content may get the same etag again (S3: an MD5).

        `tags` become the object's only ones, where `capabilities().tagging`; elsewhere they are left out. Without `tags` a new version
        has none on AWS, and its predecessor's on some servers (ministack): a tag that must go is replaced by another."""

    def put_file(self, key: str, file: BinaryIO, size: int, *, metadata: dict[str, str] | None = None,
                 content_type: str | None = None, condition: Condition = ALWAYS, tags: Mapping[str, str] | None = None,
                 may_commit: Callable[[], bool] = lambda: True, progress: Callable[[int], None] = lambda n: None,
                 resume: Resume | None = None) -> PutResult:
        """Store `size` bytes read from `file` from offset 0, as one PUT or as a multipart upload in parallel parts of bounded memory.
        After the last byte was read and before the object becomes visible `may_commit()` is asked: False means the content moved, so
        the attempt is thrown away (multipart aborted) and RemoteChanged is NOT raised but `Aborted`; so it is for a file with fewer than
        `size` bytes. `progress(n)`: n more bytes sent, called by any thread. `resume`: an upload in parts that fails for a reason that
        passes, or whose process ends, stays, and the next call with the same content goes on with it; a store without parts ignores it."""

    def abandon(self, key: str, upload_id: str) -> None:
        """Throw away an upload in parts that nobody goes on with; one that is gone already is success."""

    def copy(self, source: str, key: str, *, source_etag: str | None = None, size: int | None = None, condition: Condition = ALWAYS,
             metadata: dict[str, str] | None = None, content_type: str | None = None, tags: Mapping[str, str] | None = None) -> PutResult:
        """Server-side copy; metadata and tags are kept, each unless given. RemoteChanged when the source is not `source_etag` or the
        condition fails. One request where `source_etag` and its `size` are given and nothing else is to change."""

    def tags(self, key: str) -> dict[str, str]:
        """The object's tags. Unsupported without `capabilities().tagging`."""

    def presigned(self, method: str, key: str, seconds: int) -> str:
        """A URL by which whoever has it may send `method` (GET, PUT) for that key, with any body, for so many seconds (up to PRESIGN_MAX).
        Nothing is asked. Raises Unsupported where there is no server, Denied without credentials."""

    def ensure_expiry(self, rule_id: str, *, tag: tuple[str, str], days: int) -> None:
        """See to it that the store itself removes objects with this tag `days` days after their upload, by one rule of the whole bucket.
        Every other rule stays as it is; the rule is made only where it is missing.

        Raises Unsupported (no such rules here: the caller removes the objects), Denied (no right to them), Exists (a rule with this id
        says something else), RemoteUnavailable."""

    def expiry_rules(self) -> list[ExpiryRule]:
        """The rules that are in force by which the store itself removes objects of this store, whoever made them.
        Raises Unsupported (it has no rules), Denied (no right to read them), RemoteUnavailable."""

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove the object; absent is success. RemoteChanged where if_match names another version."""

    def delete_many(self, items: Sequence[tuple[str, str | None]]) -> Failures:
        """Remove (key, etag or None) pairs with as few requests as the store allows; returns what failed and why (RemoteChanged: the
        object is no longer that version and was left alone). Absent is success."""

    def list(self, prefix: str, *, delimiter: str = '', token: str | None = None, start_after: str = '', limit: int = 1000) -> ListPage:
        """One page of the keys that start with prefix, in UTF-8 byte order. Any key the store holds comes back exactly.

        `token`: the page after the one that gave it, with the same arguments. `start_after`: only keys behind it; whether a common prefix
        that it lies inside of is listed differs between servers, so not to be used together with a delimiter in that way.
        """

    def close(self) -> None: ...


class Aborted(Exception):
    """`may_commit` said no: nothing became visible in the store. Not an error; the caller schedules a new attempt."""


#: names and values together (docs.aws.amazon.com, "User-defined object metadata")
METADATA_MAX = 2048
_NAME = re.compile(r'[a-z0-9!#$%&\'*+.^_`|~-]+')
_VALUE = re.compile(r'(?:[!-~](?:[ -~]*[!-~])?)?')


#: OSS allows fewer characters than S3: letters, digits and these (help.aliyun.com, "Object tagging")
_TAG = re.compile(r'[A-Za-z0-9 +\-=._:/]*')
_TAGS_MAX, _TAG_NAME_MAX, _TAG_VALUE_MAX = 10, 128, 256


def check_tags(tags: Mapping[str, str]) -> Mapping[str, str]:
    """The tags themselves when every store that knows tags takes them. InvalidArgument otherwise."""
    for name, value in tags.items():
        is_short = 0 < len(name) <= _TAG_NAME_MAX and len(value) <= _TAG_VALUE_MAX
        if not is_short or not _TAG.fullmatch(name) or not _TAG.fullmatch(value):
            raise InvalidArgument(f'the object tag {name!r}={value!r} cannot be stored: letters, digits and " +-=._:/" are possible')
    if len(tags) > _TAGS_MAX:
        raise InvalidArgument(f'{len(tags)} tags on one object, and {_TAGS_MAX} are possible')
    return tags


def check_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """The metadata itself when every store keeps it unchanged: it travels in HTTP headers. InvalidArgument otherwise."""
    for name, value in metadata.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise InvalidArgument(f'object metadata {name!r} cannot be stored: names are lower-case header names, values printable ASCII '
                                  'without spaces at their ends')
    if sum(len(name) + len(value) for name, value in metadata.items()) > METADATA_MAX:
        raise InvalidArgument(f'object metadata of more than {METADATA_MAX} bytes cannot be stored')
    return metadata
