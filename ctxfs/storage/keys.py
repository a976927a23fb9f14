"""How names on the mount (raw bytes) become object keys (text), and back, without loss in either direction.

Owns the escape for bytes that are not UTF-8, the verdict which keys a file system can hold, and its reasons. It must not know stores,
trees or sizes: whether `dir/` has content, or `a` stands beside `a/b`, is for the caller that sees the whole listing.

The escape is rclone's: a byte that is no UTF-8 becomes U+201B and two upper-case hex digits. The mapping is a bijection between the
names and all texts: a text is read as an escape only if it is exactly what escaping some name gives, and is taken literally otherwise;
a name that itself looks like such an escape gets its U+201B doubled. So every key keeps its spelling, and no two keys share a name.
"""
from __future__ import annotations

import os
import re
from collections.abc import Sequence

import msgspec

from ctxfs.errors import InvalidArgument, NameTooLong
from ctxfs.records import RESERVED_DIR

#: bytes of UTF-8 in a key: OSS allows 1,023 (S3 1,024), so the smaller one holds everywhere
KEY_MAX = 1023
#: behind every key with the same prefix
LAST = '\U0010ffff'
#: of these for a mappingPolicy's path, so that some are left for the files below it
PREFIX_MAX = 512
#: bytes in one name: NAME_MAX of Linux's file systems, and FUSE's own bound
NAME_MAX = 255

_QUOTE = '\u201b'
_TOKEN = re.compile(_QUOTE + '(?:([89A-F][0-9A-F])|(' + _QUOTE + '))?')


class Unmountable(msgspec.Struct, frozen=True):
    """Why a key has no place in a file system: one line for a person."""
    reason: str


def name_to_component(name: bytes) -> str:
    """The text that stands for one name in a key."""
    try:
        text = name.decode('utf-8')
    except UnicodeDecodeError:
        return _escape(name)
    return text.replace(_QUOTE, _QUOTE * 2) if _unescape(text) is not None else text


def component_to_name(component: str) -> bytes:
    """The inverse of `name_to_component`, defined for every text without lone surrogates (UnicodeEncodeError for those)."""
    name = _unescape(component)
    return component.encode('utf-8') if name is None else name


def printable(key: str) -> str:
    """JSON can hold any text but lone surrogates; terminals get what they can show from the command line."""
    return key.encode('utf-8', 'backslashreplace').decode()


def _escape(name: bytes) -> str:
    parts = []
    for char in name.decode('utf-8', 'surrogateescape'):
        if '\udc80' <= char <= '\udcff':
            parts.append(f'{_QUOTE}{ord(char) - 0xdc00:02X}')
        else:
            parts.append(char * 2 if char == _QUOTE else char)
    return ''.join(parts)


def _unescape(text: str) -> bytes | None:
    """The name whose escape is exactly `text`; None where there is none, so that `text` stands for itself."""
    if _QUOTE not in text:
        return None
    parts, end = [], 0
    for token in _TOKEN.finditer(text):
        if token.group(0) == _QUOTE:
            return None
        parts.append(text[end:token.start()].encode('utf-8'))
        parts.append(bytes.fromhex(token.group(1)) if token.group(1) else _QUOTE.encode('utf-8'))
        end = token.end()
    name = b''.join(parts) + text[end:].encode('utf-8')
    try:
        plain = name.decode('utf-8')
    except UnicodeDecodeError:
        return name if _escape(name) == text else None
    # a valid name is escaped only where it would be misread, that is where its plain text is an escape itself (it is shorter: this ends)
    is_canonical = plain.replace(_QUOTE, _QUOTE * 2) == text and _unescape(plain) is not None
    return name if is_canonical else None


def key_to_path(key: str) -> tuple[bytes, ...] | Unmountable:
    """The names from the context's root to the object whose key, relative to the context, is `key`.

    A trailing slash (a directory marker) is dropped: ask `key.endswith('/')`. The empty key is the root: ().
    """
    if not key:
        return ()
    if len(key) > KEY_MAX:      # (a key of fewer characters that has more bytes has long names, too, or is no deeper than others)
        return Unmountable(f'it has {len(key)} characters, and a key at most {KEY_MAX} bytes')
    components = key.removesuffix('/').split('/')
    if components[0] == RESERVED_DIR.rstrip('/'):
        return Unmountable(f'the name {RESERVED_DIR} is reserved for ctxfs itself')
    names = []
    for component in components:
        reason = _why_not(component)
        if reason:
            return Unmountable(reason)
        names.append(component_to_name(component))
    return tuple(names)


def component_to_valid_name(component: str) -> bytes | None:
    """The name; None where a file cannot have it."""
    if component.isascii() and 0 < len(component) <= NAME_MAX and '\0' not in component and component not in ('.', '..'):
        return component.encode()       # of most names nothing more is to be asked
    return None if _why_not(component) else component_to_name(component)


def _why_not(component: str) -> str | None:
    if not component:
        return 'it has an empty name between two slashes, before the first or after the last one'
    if component in ('.', '..'):
        return f'it has the name {component!r}, which means a directory itself or its parent'
    if '\0' in component:
        return 'it has a NUL character in a name'
    try:
        size = len(component_to_name(component))
    except UnicodeEncodeError:
        return 'it is no valid Unicode text'
    if size > NAME_MAX:
        return f'it has a name of {size} bytes, and a file name has at most {NAME_MAX}'
    return None


def mapped_prefix(path: str) -> str:
    """The key prefix, relative to the context, of a mappingPolicy's path: where a session on any system had the directory that a mount's
    root now stands for. `/home/wuying/x` is `home/wuying/x/`, `c:\\Users\\A` is `c:/Users/A/`; '' is the context's root.

    Raises InvalidArgument for a path that no key can have.
    """
    components = _components_of(path)
    prefix = ''.join(f'{component}/' for component in components)
    if len(prefix.encode()) > PREFIX_MAX:
        raise InvalidArgument(f'{path[:80]!r}… is too long: of the {KEY_MAX} bytes of a key, the path in the context may take {PREFIX_MAX}')
    return prefix


def key_of_path(path: str) -> str:
    """The key, relative to the context, of a path in it as people and other tools write it: `/data/x`, `data/x`, `C:\\Users\\x`; '' is the root.
    A slash at its end says nothing here.

    Raises InvalidArgument for a path that no key can have.
    """
    key = '/'.join(_components_of(path))
    if len(key.encode()) > KEY_MAX:
        raise InvalidArgument(f'{path[:80]!r}… is too long: a key has at most {KEY_MAX} bytes')
    return key


def path_of_key(key: str) -> str:
    """The inverse, for the key of something that can be mounted: `/data/x`, with a slash at its end for a directory."""
    return '/' + '/'.join(os.fsdecode(component_to_name(component)) for component in key.split('/'))


def _components_of(path: str) -> list[str]:
    is_windows = re.match(r'[A-Za-z]:\\|\\\\', path) is not None
    names = [name for name in (path.replace('\\', '/') if is_windows else path).split('/') if name]
    try:
        components = [name_to_component(os.fsencode(name)) for name in names]
    except UnicodeEncodeError:
        raise InvalidArgument(f'{path!r} cannot be a path in a context: it is no valid Unicode text') from None
    for number, component in enumerate(components):
        reason = _why_not(component)
        if reason is None and number == 0 and component == RESERVED_DIR.rstrip('/'):
            reason = 'the name is reserved for ctxfs itself'
        if reason:
            raise InvalidArgument(f'{path!r} cannot be a path in a context: {reason}')
    return components


def path_to_key(path: Sequence[bytes], *, is_dir: bool = False, prefix: str = '') -> str:
    """The key of the object at `path` below `prefix`; with `is_dir` the key of its directory marker (the root's marker is `prefix`).

    Raises NameTooLong when the key would have more than KEY_MAX bytes.
    """
    key = prefix + '/'.join(map(name_to_component, path))
    if is_dir and path:
        key += '/'
    size = len(key.encode('utf-8'))
    if size > KEY_MAX:
        raise NameTooLong(f'the path needs an object key of {size} bytes, and a key has at most {KEY_MAX}')
    return key
