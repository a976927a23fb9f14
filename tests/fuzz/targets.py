"""Each reader of hostile input as a function of bytes, for a fuzzer that is led by coverage (atheris, optional), and for a few seeds in tests.

Owns what a reader may do with any bytes: return, or raise an error of ctxfs (ValueError where its docstring says so). What its result must
be is said by the properties beside this module.

    python -m tests.fuzz.targets NAME [libFuzzer's arguments…] [CORPUS]       usually by scripts/fuzz --input
"""
from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable
from typing import Any


def _index(data: bytes) -> None:
    from ctxfs.errors import CtxfsError
    from ctxfs.storage import index_format
    with contextlib.suppress(CtxfsError):
        for record in index_format.read(io.BytesIO(data))[1]:
            importlib.import_module('tests.fuzz.test_index').check(record)


def _index_lines(data: bytes) -> None:
    import zstandard
    _index(zstandard.compress(data))


def _policy(data: bytes) -> None:
    from ctxfs.errors import UsageError
    from ctxfs.policy_parse import parse_policy
    from ctxfs.rules import Rules
    with contextlib.suppress(UsageError):
        Rules(parse_policy(data, origin='p')).gate.decide('a/b')


def _pattern(data: bytes) -> None:
    from ctxfs.patterns import Pattern, PatternError
    text, _, name = data.decode('utf-8', 'surrogateescape').partition('\n')
    with contextlib.suppress(PatternError):
        Pattern(text).matches(name)


def _listing(data: bytes) -> None:
    from ctxfs.storage.s3_xml import parse_listing
    with contextlib.suppress(ValueError):
        importlib.import_module('tests.fuzz.test_listing').check(parse_listing(data, strip='p/'))


def _documents(data: bytes) -> None:
    from ctxfs.storage import s3_lifecycle, s3_xml
    s3_xml.parse_error(data)
    for parse in (s3_xml.parse_copy_etag, s3_xml.parse_tags, s3_xml.parse_delete_errors):
        with contextlib.suppress(ValueError):
            parse(data)
    if s3_lifecycle.is_lifecycle(data):
        s3_lifecycle._rules(data)


def _metadata(data: bytes) -> None:
    from ctxfs.storage import posix_meta
    fields = data.decode('latin-1').split('\n')
    found = dict(field.partition('=')[::2] for field in fields)
    importlib.import_module('tests.fuzz.test_metadata').check(posix_meta.decode(found, key='k', size=1, mtime_ns=1, uid=1, gid=1))
    posix_meta.decode_stamp({'ctxfs': data.decode('latin-1')})


def _key(data: bytes) -> None:
    from ctxfs.storage.keys import Unmountable, key_to_path
    path = key_to_path(data.decode('utf-8', 'replace'))
    assert isinstance(path, Unmountable) or not {b'', b'.', b'..'} & set(path)


def _request(data: bytes) -> None:
    from ctxfs.edge import control
    request = control._parse(data)
    assert isinstance(request, bytes) or control._error(request.id, 1, request.method)


def _frames(data: bytes) -> None:
    from ctxfs.errors import Corrupted
    from ctxfs.records import UNREADABLE
    from ctxfs.sync import protocol
    from ctxfs.sync.frames import FrameReader
    with contextlib.suppress(Corrupted, *UNREADABLE):
        for body in FrameReader().feed(data):
            protocol.decode_from_worker(body)


def _store_url(data: bytes) -> None:
    from ctxfs.config import normalise_store_url
    from ctxfs.errors import UsageError
    with contextlib.suppress(UsageError):
        normalise_store_url(data.decode('utf-8', 'replace'))


#: one of each kind, for all targets: what one knows another meets as a surprise
SEEDS = [
    b'', b'{"p":"a/b","n":1,"e":"x","s":3,"m":33188,"u":1,"g":1,"t":[1,2,3],"l":"YQ==","r":1,"x":{"user.a":"YQ=="},"h":"l","y":"Lifecycle_1Day"}\n',
    b'{"format":"ctxfs-index","version":1,"kind":"base","host":"h","created_ns":5,"covers":["a"]}\n{"p":"a","n":1}\n',
    b'{"uploadPolicy":{"autoUpload":true,"period":"30s"},"recyclePolicy":{"lifecycle":"Lifecycle_3Days","paths":["/a"]},'
    b'"mappingPolicy":{"path":"c:\\\\a"}}',
    b'{"bwList":{"whiteLists":[{"path":"a.*[b-d]+(?:x|y)?$","isPathRegex":true,"excludePaths":["^c{2,3}"],"isExcludeRegex":true}]}}',
    b'(a|b)*[^c]{1,5}\\d+\\pL(?i)x?$\nab/c',
    b'mode=33188\nmtime=1.5\nuid=0\nxattr=%7B%22user.a%22%3A%22YQ%3D%3D%22%7D\nsymlink-target=%2Fa\nrdev=5',
    b'v=1;sha256=ab;host=h;rev=7;link=l', b'<Error><Code>a</Code><Message>b</Message></Error>',
    b'<ListBucketResult xmlns="n"><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>'
    b'<Contents><Key>p/a%2F</Key><Size>1</Size><ETag>"e"</ETag><LastModified>2024-01-02T03:04:05.678Z</LastModified></Contents>'
    b'<CommonPrefixes><Prefix>p/b/</Prefix>'
    b'</CommonPrefixes></ListBucketResult>', b'<CopyObjectResult><ETag>"e"</ETag></CopyObjectResult>',
    b'<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>',
    b'<DeleteResult><Error><Key>a</Key><Code>b</Code></Error></DeleteResult>',
    b'<LifecycleConfiguration><Rule><ID>a</ID><Status>Enabled</Status></Rule></LifecycleConfiguration>',
    b'file:///a?fsync=no', b's3://b/p?endpoint=http://[::1]:80&region=r&addressing=auto', b'{"jsonrpc":"2.0","id":1,"method":"status","params":{}}',
    b'\0\0\0\x02\x90\x90', 'a/‛FF/ä'.encode()]
TARGETS: dict[str, Callable[[bytes], None]] = {
    'index': _index, 'index-lines': _index_lines, 'policy': _policy, 'pattern': _pattern, 'listing': _listing, 'documents': _documents,
    'metadata': _metadata, 'key': _key, 'request': _request, 'frames': _frames, 'store-url': _store_url}


def main(arguments: list[str]) -> None:
    name, *rest = arguments
    atheris: Any = importlib.import_module('atheris')
    with atheris.instrument_imports(include=['ctxfs']):
        for seed in (b'', b'{}', b'a=b'):
            TARGETS[name](seed)     # imports what it needs, instrumented
    atheris.Setup([sys.argv[0], *rest], TARGETS[name])
    atheris.Fuzz()


if __name__ == '__main__':
    main(sys.argv[1:])
