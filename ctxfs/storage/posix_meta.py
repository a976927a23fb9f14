"""POSIX attributes as user metadata on objects: written as s3fs and ossfs write them, read from all dialects known.

Owns the names and formats of the dialects, and ctxfs's own key. It must not know stores or the index: a dict of text in and out. Reading never
raises: a value that makes no sense is treated as if it were not there, because anybody can write metadata.

    mode       decimal st_mode (s3fs, ossfs, geesefs); octal where rclone wrote it, see `_parse_mode`
    uid, gid   decimal              mtime, atime, ctime   `seconds.nanoseconds`          rdev   decimal
    xattr      url-encoded JSON {name: base64 of the value}
    ctxfs      `v=1;sha256=…;host=…;rev=…;link=…;etag=…;sums=…`, values url-encoded

A symlink's target is its object's body in s3fs's dialect, so that is how it is written; ossfs, geesefs and gcsfuse keep it in the metadata.
"""
from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes

import msgspec

from ctxfs.records import Attrs, Stamp
from ctxfs.storage.attr_bounds import INT64_MAX, INT64_MIN, are_xattrs, is_target
from ctxfs.storage.object_store import METADATA_MAX

DIRECTORY_TYPE = 'application/x-directory'
_NS = 1_000_000_000
#: years 1678 to 2261 are what a file's ns fit into (attr_bounds); beyond is garbage
_SECONDS_MAX = INT64_MAX // _NS
_ID_MAX = 0xffff_fffe
_DECIMAL = re.compile(r'-?[0-9]{1,20}')
_OCTAL = re.compile(r'(?:0o)?[0-7]{1,12}')
_SECONDS = re.compile(r'(-?)([0-9]{1,12})(?:\.([0-9]{1,9})[0-9]*)?')
_FORMATS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
#: an object's xattrs are left out of its metadata when they would take more than this: the rest has to fit as well
_XATTR_MAX = 1024
_TARGETS = ('symlink-target', '--symlink-target', 'gcsfuse_symlink_target')


def encode(attrs: Attrs | None, stamp: Stamp | None = None) -> dict[str, str]:
    """Metadata for an object, ASCII and within METADATA_MAX. Extended attributes that do not fit are left out (the index has them), and before
    them the stamp's sums."""
    metadata = {} if stamp is None else {'ctxfs': encode_stamp(stamp)}
    if attrs is None:
        return metadata
    metadata |= {'mode': str(attrs.mode), 'uid': str(attrs.uid), 'gid': str(attrs.gid), 'mtime': _format_time(attrs.mtime_ns),
                 'atime': _format_time(attrs.atime_ns), 'ctime': _format_time(attrs.ctime_ns)}
    if attrs.rdev:
        metadata['rdev'] = str(attrs.rdev)
    if attrs.xattrs:
        text = _encode_xattrs(attrs.xattrs)
        if len(text) > _room(metadata) and stamp is not None and stamp.sums:
            metadata['ctxfs'] = encode_stamp(msgspec.structs.replace(stamp, sums=''))
        if len(text) <= min(_XATTR_MAX, _room(metadata)):
            metadata['xattr'] = text
    return metadata


def decode(metadata: Mapping[str, str] | None, *, key: str, size: int, mtime_ns: int, content_type: str | None = None,
           uid: int, gid: int, umask: int = 0o022) -> Attrs:
    """The attributes that an object's metadata tells. What it does not tell: 0644 or 0755 (0666 and 0777 less `umask`), owner `uid` and
    `gid`, the object's own time `mtime_ns`.

    A symlink (S_IFLNK) with target None has its target in the object's body: the caller reads it there.
    """
    found = {name.lower(): value for name, value in (metadata or {}).items() if _is_text(value)}
    is_dir = _is_directory(found, key=key, size=size, content_type=content_type)
    target = _target(found)
    mode = _mode(found, is_dir=is_dir, target=target, umask=umask)
    if key.endswith('/') and not stat.S_ISDIR(mode):
        # whatever it says: a name with a slash behind it is no file
        mode = stat.S_IFDIR | stat.S_IMODE(mode) | (stat.S_IMODE(mode) & 0o444) >> 2
    times = _times(found, mtime_ns)
    return Attrs(mode=mode, uid=_first(found, ('uid', 'file-owner', 'owner', 'goog-reserved-posix-uid'), _parse_id, uid),
                 gid=_first(found, ('gid', 'file-group', 'group', 'goog-reserved-posix-gid'), _parse_id, gid),
                 mtime_ns=times[0], atime_ns=times[1], ctime_ns=times[2], target=target if stat.S_ISLNK(mode) else None,
                 rdev=_first(found, ('rdev',), _parse_rdev, 0), xattrs=_first(found, ('xattr',), _decode_xattrs, None))


def _room(metadata: Mapping[str, str]) -> int:
    return METADATA_MAX - sum(len(name) + len(value) for name, value in metadata.items()) - len('xattr')


def encode_stamp(stamp: Stamp) -> str:
    fields = {'sha256': stamp.sha256, 'host': stamp.host, 'rev': str(stamp.revision) if stamp.revision else '', 'link': stamp.link,
              'etag': stamp.etag, 'sums': stamp.sums, 'try': stamp.attempt, 'base': stamp.base, 'member': stamp.member}
    return ';'.join(['v=1', *(f'{name}={quote(value, safe="")}' for name, value in fields.items() if value)])


def version_id(key: str, etag: str) -> str:
    """What tells a version, and of which key (a full one): a copy takes its source's stamp along."""
    return hashlib.sha256(f'{key}\0{etag}'.encode('utf-8', 'surrogatepass')).hexdigest()[:16]


def decode_stamp(metadata: Mapping[str, str] | None) -> Stamp | None:
    """None when the object was not written by ctxfs, or by one that writes another version of the key."""
    text = (metadata or {}).get('ctxfs', '')
    fields = dict(field.partition('=')[::2] for field in text.split(';')) if _is_text(text) else {}
    if fields.get('v') != '1':
        return None
    revision = int(fields.get('rev', '')) if re.fullmatch('[0-9]{1,19}', fields.get('rev', '')) else 0
    return Stamp(sha256=unquote(fields.get('sha256', '')), host=unquote(fields.get('host', '')), link=unquote(fields.get('link', '')),
                 attempt=unquote(fields.get('try', '')), base=unquote(fields.get('base', '')), member=unquote(fields.get('member', '')),
                 etag=unquote(fields.get('etag', '')), sums=unquote(fields.get('sums', '')), revision=revision if revision <= INT64_MAX else 0)


def _is_text(value: str) -> bool:
    """Half of a surrogate pair comes with no header, but out of some JSON."""
    return value.isascii() or not any('\ud800' <= char <= '\udfff' for char in value)


def _first(found: Mapping[str, str], names: tuple[str, ...], parse: Callable[[str], Any], default: Any) -> Any:
    """The value of the first name that is there and makes sense."""
    for name in names:
        if name in found:
            value = parse(found[name])
            if value is not None:
                return value
    return default


def _is_directory(found: Mapping[str, str], *, key: str, size: int, content_type: str | None) -> bool:
    """What stands for a directory where no mode says it. `dir_$folder$` is Hadoop's; `hdi_isfolder` Azure's."""
    if key.endswith('/') or found.get('hdi_isfolder', '').lower() == 'true':
        return True
    return size == 0 and ((content_type or '').startswith(DIRECTORY_TYPE) or key.endswith('_$folder$'))


def _mode(found: Mapping[str, str], *, is_dir: bool, target: bytes | None, umask: int) -> int:
    mode = _first(found, ('mode',), lambda text: _parse_mode(text, is_dir=is_dir), None)
    if mode is None:
        mode = _first(found, ('file-permissions', 'permissions', 'goog-reserved-posix-mode'), _parse_octal, None)
    if mode is None and target is None and found.get('is_symlink', '').lower() != 'true':
        return (stat.S_IFDIR | 0o777 if is_dir else stat.S_IFREG | 0o666) & ~umask
    if mode is None:
        return stat.S_IFLNK | 0o777
    if stat.S_IFMT(mode) in _FORMATS:
        return int(mode)
    if target is not None:
        return stat.S_IFLNK | 0o777
    # permissions only: the type comes from the key
    return (stat.S_IFDIR if is_dir else stat.S_IFREG) | stat.S_IMODE(mode)


def _parse_mode(text: str, *, is_dir: bool) -> int | None:
    """s3fs writes st_mode in decimal, rclone in octal, under one name. Decimal st_mode has at most 5 digits (53247), octal st_mode 6 for all
    types but directories and fifos: 6 digits are octal. 5 digits are decimal, unless the object is a directory and only octal makes it one
    (rclone's 40755); 41471 is a symlink in one reading and a sticky directory in the other, and then the key decides."""
    text = text.strip()
    if not _DECIMAL.fullmatch(text) or text.startswith('-'):
        return None
    is_octal_text = bool(_OCTAL.fullmatch(text))
    if len(text) >= 6 or (len(text) > 1 and text.startswith('0')):
        return _parse_octal(text)
    mode = int(text)
    if is_dir and is_octal_text and stat.S_IFMT(mode) != stat.S_IFDIR and stat.S_IFMT(int(text, 8)) == stat.S_IFDIR:
        return int(text, 8)
    return mode if mode <= 0o177777 else None


def _parse_octal(text: str) -> int | None:
    text = text.strip()
    if not _OCTAL.fullmatch(text):
        return None
    mode = int(text, 8)
    return mode if mode <= 0o177777 else None


def _times(found: Mapping[str, str], mtime_ns: int) -> tuple[int, int, int]:
    """(mtime, atime, ctime) in ns; what is missing follows mtime, and mtime the object's own."""
    mtime = _first(found, ('mtime', 'file-mtime', 'goog-reserved-file-mtime', 'gcsfuse_mtime'), _parse_time, mtime_ns)
    atime = _first(found, ('atime', 'file-atime', 'goog-reserved-file-atime'), _parse_time, mtime)
    return mtime, atime, _first(found, ('ctime',), _parse_time, mtime)


def _parse_time(text: str) -> int | None:
    """ns from `seconds[.fraction]` (s3fs, rclone, geesefs), `…ns` (FSx) or RFC 3339 (gcsfuse, rclone --metadata). All in integers: a float
    has no nanoseconds."""
    text = text.strip()
    if text.endswith('ns'):
        digits = text[:-2]
        return _in_range(int(digits)) if _DECIMAL.fullmatch(digits) else None
    match = _SECONDS.fullmatch(text)
    if match:
        ns = int(match[2]) * _NS + int((match[3] or '').ljust(9, '0'))
        return _in_range(-ns if match[1] else ns)
    return _parse_rfc3339(text) if 'T' in text else _parse_exponent(text)


def _in_range(ns: int) -> int | None:
    return ns if INT64_MIN <= ns <= INT64_MAX else None


def _parse_rfc3339(text: str) -> int | None:
    match = re.fullmatch(r'(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)', text, re.ASCII)
    if not match:
        return None
    try:
        moment = datetime.fromisoformat(match[1] + (match[3] if match[3] != 'Z' else '+00:00'))
        return _in_range(int(moment.timestamp()) * _NS + int((match[2] or '').ljust(9, '0')))
    except (ValueError, OverflowError):
        return None


def _parse_exponent(text: str) -> int | None:
    """A float in Go's spelling (`1.5959e+09`), as rclone may write it."""
    try:
        seconds = float(text) if text.isascii() and len(text) < 40 else math.nan
    except ValueError:
        return None
    return round(seconds * _NS) if abs(seconds) <= _SECONDS_MAX else None


def _format_time(ns: int) -> str:
    """`seconds.nanoseconds`; before 1970 the sign is that of the whole number, so that every reader of decimals gets it right."""
    seconds, fraction = divmod(abs(ns), _NS)
    return f'{"-" if ns < 0 else ""}{seconds}.{fraction:09d}'


def _parse_id(text: str) -> int | None:
    value = int(text) if _DECIMAL.fullmatch(text.strip()) else -1
    return value if 0 <= value <= _ID_MAX else None


def _parse_rdev(text: str) -> int | None:
    value = int(text) if _DECIMAL.fullmatch(text.strip()) else -1
    return value if 0 <= value <= INT64_MAX else None


def _target(found: Mapping[str, str]) -> bytes | None:
    """A symlink's target where a dialect keeps it in the metadata; ossfs and geesefs url-encode it."""
    text = next((found[name] for name in _TARGETS if found.get(name)), None)
    if text is None:
        return None
    target = unquote_to_bytes(text)
    return target if is_target(target) else None


def _encode_xattrs(xattrs: Mapping[str, bytes]) -> str:
    values = {name: base64.b64encode(value).decode('ascii') for name, value in sorted(xattrs.items())}
    return quote(json.dumps(values, separators=(',', ':')), safe='')


def _decode_xattrs(text: str) -> dict[str, bytes] | None:
    try:
        values = json.loads(unquote(text))
        found = {name: base64.b64decode(value, validate=True) for name, value in values.items() if name}
        return found if found and are_xattrs(found) else None
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error):
        return None
