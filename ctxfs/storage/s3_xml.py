"""The XML of S3 requests and responses that are frequent: listings, batch deletes, copies, tags, errors.

Owns their element names and escapes. It must not know stores or errors of ctxfs: plain values in and out. ElementTree on the raw body is ten
times faster than botocore's parser (1,000 keys: 5 ms against 52 ms), which is what makes listing 100,000 objects half a second.
"""
from __future__ import annotations

import datetime
import functools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from urllib.parse import unquote_plus
from xml.sax.saxutils import escape

from ctxfs.records import ListPage, ObjectInfo
from ctxfs.storage.attr_bounds import clamp_ns

#: XML 1.0 cannot hold most control characters, and parsers turn CR into LF: such keys need requests without XML
_NOT_IN_XML_AT_ALL = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]')
_NOT_IN_XML = re.compile('[\x00-\x1f\x7f-\x9f\ufffe\uffff]')


#: what may stand in the XML declaration: ASCII means the same in all of them
_ENCODING = re.compile(rb'\s*(?:\xef\xbb\xbf)?<\?xml[^>]{0,100}?encoding=["\']([^"\']*)["\']')
_ENCODINGS = (b'utf-8', b'us-ascii', b'iso-8859-1')
#: in a document: a page of 1,000 keys has some 30,000
MAX_TAGS = 200_000


def fits_xml(key: str) -> bool:
    return not _NOT_IN_XML.search(key)


def quoted_etag(etag: str) -> str:
    """One spelling for an etag: some servers quote it in headers and not in listings, and the two must compare equal."""
    return etag if etag.startswith(('"', 'W/')) else f'"{etag}"'


def parse_listing(body: bytes, *, strip: str) -> ListPage:
    """A ListObjectsV2 response, with `strip` taken off the front of each key, which must be there. ValueError when it is not one."""
    root = _parse_listing(body)
    if _local(root) != 'ListBucketResult':      # what is not listed counts as deleted: a proxy's page must not pass for an empty listing
        raise ValueError(f'no listing but a document {_local(root)[:40]!r}')
    # each object is a ListPage.objects entry; the namespace is cut off once, from the root's tag
    space = root.tag[:root.tag.rfind('}') + 1]
    decode = _unquoted if root.findtext(space + 'EncodingType') == 'url' else str

    def key_of(node: ET.Element, name: str) -> str:
        key = decode(_text(node, space + name))
        if not key.startswith(strip):
            raise ValueError(f'{key[:80]!r} does not start with {strip!r}')
        return key[len(strip):]

    objects = [ObjectInfo(key=key_of(node, 'Key'), size=_parse_size(_text(node, space + 'Size')),
                          etag=quoted_etag(_text(node, space + 'ETag')), mtime_ns=_parse_time(_text(node, space + 'LastModified')))
               for node in root.iter(space + 'Contents')]
    prefixes = [key_of(node, 'Prefix') for node in root.iter(space + 'CommonPrefixes')]
    is_truncated = root.findtext(space + 'IsTruncated') == 'true'
    token = root.findtext(space + 'NextContinuationToken')
    if is_truncated and not token:
        raise ValueError('a truncated listing without a token')
    return ListPage(objects=objects, prefixes=prefixes, next_token=token if is_truncated else None)


def _parse_listing(body: bytes) -> ET.Element:
    """Servers repeat the prefix and the like as they were sent, also where XML cannot hold them (Ceph: U+FFFF); only keys count."""
    try:
        return parse_xml(body)
    except ValueError:
        root = parse_xml(_NOT_IN_XML_AT_ALL.sub('', body.decode('utf-8', 'replace')).encode())
        if not any(_local(node) == 'EncodingType' and node.text == 'url' for node in root):
            raise       # then a key is what is damaged
        return root


def parse_error(body: bytes) -> tuple[str, str]:
    """(code, message) of an error document; ('', '') when the body is none, as of a proxy."""
    try:
        root = parse_xml(body)
    except ValueError:
        return '', ''
    if _local(root) != 'Error':
        return '', ''
    fields = {_local(node): (node.text or '') for node in root}
    return fields.get('Code', ''), fields.get('Message', '')


def parse_copy_etag(body: bytes) -> str:
    """The etag in the answer to a copy or a completed upload. ValueError when there is none: both may answer 200 and then report an error."""
    for node in parse_xml(body).iter():
        if _local(node) == 'ETag' and node.text:
            return quoted_etag(node.text)
    raise ValueError('no etag in the response')


def parse_upload_id(body: bytes) -> str:
    """Of an upload that was begun. ValueError when there is none."""
    for node in parse_xml(body).iter():
        if _local(node) == 'UploadId' and node.text:
            return node.text
    raise ValueError('no upload id in the response')


def complete_request(etags: Iterable[str]) -> bytes:
    """The parts of an upload, in order, from number 1 on."""
    parts = ''.join(f'<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>' for number, etag in enumerate(etags, 1))
    return f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{parts}</CompleteMultipartUpload>'.encode()


def parse_completed_etag(body: bytes) -> str:
    """The etag in a CompleteMultipartUploadResult; '' where the server does not say it. ValueError when it is another document."""
    root = parse_xml(body)
    if _local(root) != 'CompleteMultipartUploadResult':
        raise ValueError('no CompleteMultipartUploadResult')
    return next((quoted_etag(node.text) for node in root if _local(node) == 'ETag' and node.text), '')


def parse_tags(body: bytes) -> dict[str, str]:
    """The tags of a GetObjectTagging response. ValueError when it is none, as where a server ignores `?tagging` and sends the object."""
    root = parse_xml(body)
    if _local(root) != 'Tagging':
        raise ValueError('no Tagging document')
    pairs = ({_local(field): field.text or '' for field in node} for node in root.iter() if _local(node) == 'Tag')
    return {pair.get('Key', ''): pair.get('Value', '') for pair in pairs}


def delete_request(items: Iterable[tuple[str, str | None]]) -> bytes:
    parts = ['<?xml version="1.0" encoding="UTF-8"?><Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>']
    for key, etag in items:
        condition = f'<ETag>{escape(etag)}</ETag>' if etag is not None else ''
        parts.append(f'<Object><Key>{escape(key)}</Key>{condition}</Object>')
    parts.append('</Delete>')
    return ''.join(parts).encode('utf-8')


def parse_delete_errors(body: bytes) -> Sequence[tuple[str, str, str]]:
    """(key, code, message) of what a DeleteObjects request in quiet mode could not remove."""
    if not body.strip():
        return []
    errors = []
    for node in parse_xml(body).iter():
        if _local(node) == 'Error':
            fields = {_local(child): (child.text or '') for child in node}
            errors.append((fields.get('Key', ''), fields.get('Code', ''), fields.get('Message', '')))
    return errors


def parse_xml(body: bytes) -> ET.Element:
    """ValueError for what is no XML, or no such XML as an S3 server sends: a document type could define entities that unfold without end, and
    another encoding could hide one."""
    encoding = _ENCODING.match(body)
    if b'\0' in body[:200] or (encoding and encoding[1].lower() not in _ENCODINGS) or b'<!DOCTYPE' in body:
        raise ValueError('no XML that S3 servers send')
    if body.count(b'<') > MAX_TAGS:
        raise ValueError(f'more than {MAX_TAGS} tags')
    try:
        return ET.fromstring(body)
    except (ET.ParseError, LookupError) as exc:
        raise ValueError(f'no XML: {exc}') from exc


def _local(node: ET.Element) -> str:
    return node.tag.rpartition('}')[2]


def _text(node: ET.Element, name: str) -> str:
    text = node.findtext(name)
    if text is None:
        raise ValueError(f'no {name} in a listing')
    return text


def _unquoted(text: str) -> str:
    """What most keys have quoted is nothing but slashes."""
    plain = text.replace('%2F', '/')
    return unquote_plus(text) if '%' in plain or '+' in plain else plain


def _parse_size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError(f'{text[:40]!r} is no size')
    return int(text)


@functools.lru_cache(maxsize=4096)
def _seconds(text: str) -> int:
    """Of `2026-11-30T12:34:56`. What is uploaded together has one of a few."""
    return int(datetime.datetime.fromisoformat(text + '+00:00').timestamp())


def _parse_time(text: str) -> int:
    """ns since the epoch of `2026-11-30T12:34:56.789Z`; of times that no file can have (from 2262 on) the nearest that one can."""
    seconds = _seconds(text[:19])
    fraction = text[20:].rstrip('Z') if text[19:20] == '.' else ''
    if not (fraction.isascii() and fraction.isdigit() or not fraction):
        raise ValueError(f'{text[:40]!r} is no time')
    return clamp_ns(seconds * 1_000_000_000 + (int(fraction[:9].ljust(9, '0')) if fraction else 0))
