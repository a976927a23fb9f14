"""An S3 server with a bucket of very many small objects: filled at once, because they are made from their numbers.

Owns the listing over both kinds of objects, those of the synthetic tree and those that were written since; everything else is the test suite's
FakeS3, conditions included. tests/unit/test_bench_scale.py compares its answers with ministack's, and the tree with one that ctxfs wrote. A
page of 1,000 names costs it about 3 ms, which is its share of what is measured. A process of its own.

    with ScaleServer() as server:
        server.fill('contexts/ID/', 100_000)
"""

from __future__ import annotations

import bisect
import heapq
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from bench import scale_tree
from bench.processes import Failed, end, start_module
from ctxfs.records import Attrs, Stamp
from ctxfs.storage import posix_meta
from tests.fakes.s3_server import FakeS3, StoredObject
from tests.servers import S3Server

#: behind every key with the same prefix
LAST = '\U0010ffff'
MODIFIED = 1_700_000_000.0
_STAMP = time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(MODIFIED))
#: names that are spelled alike in XML and in URLs
_PLAIN = re.compile(r'[A-Za-z0-9_.~/-]*')
CREDENTIALS = {'AWS_ACCESS_KEY_ID': 'AKIABENCH', 'AWS_SECRET_ACCESS_KEY': 'bench', 'AWS_DEFAULT_REGION': 'us-east-1'}


class ScaleServer(S3Server):
    """See the module docstring; its one bucket is FakeS3's, and any credentials will do."""

    def __init__(self) -> None:
        super().__init__('', dict(CREDENTIALS))

    def __enter__(self) -> ScaleServer:
        self.process = start_module('bench.scale_server', stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.endpoint = self._answer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process is not None
        end(self.process)

    def fill(self, prefix: str, count: int) -> None:
        """The tree below `prefix`, and no other tree any more."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps([prefix, count]).encode() + b'\n')
        self.process.stdin.flush()
        self._answer()

    def _answer(self) -> Any:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed('the server of very many files has ended')
        return json.loads(line)


class Objects(MutableMapping[str, StoredObject]):
    """Objects by key: the tree's, unless they were removed or written anew."""

    def __init__(self) -> None:
        self._written: dict[str, StoredObject] = {}
        self._order: list[str] = []
        self._gone: set[str] = set()
        self.fill('', 0)

    def fill(self, prefix: str, count: int) -> None:
        self._keys = [prefix + scale_tree.path_of(number) for number in range(count)]
        self._told = [(one.etag, len(one.body)) for one in map(scale_tree.file, range(count))]

    def number(self, key: str) -> int | None:
        """Of an object of the tree that is still as it was made."""
        if key in self._written or key in self._gone:
            return None
        found = bisect.bisect_left(self._keys, key)
        return found if found < len(self._keys) and self._keys[found] == key else None

    def __getitem__(self, key: str) -> StoredObject:
        if key in self._written:
            return self._written[key]
        number = self.number(key)
        if number is None:
            raise KeyError(key)
        one = scale_tree.file(number)
        attrs = Attrs(mode=one.mode, uid=0, gid=0, mtime_ns=one.mtime_ns, atime_ns=one.mtime_ns, ctime_ns=one.mtime_ns, target=one.target)
        metadata = posix_meta.encode(attrs, Stamp(host='bench', etag=one.etag.strip('"')))
        return StoredObject(one.body, {f'x-amz-meta-{name}': value for name, value in metadata.items()}, one.etag, MODIFIED)

    def __setitem__(self, key: str, stored: StoredObject) -> None:
        if key not in self._written:
            bisect.insort(self._order, key)
        self._written[key] = stored

    def __delitem__(self, key: str) -> None:
        if self.number(key) is None and key not in self._written:
            raise KeyError(key)
        if key in self._written:
            del self._written[key]
            self._order.pop(bisect.bisect_left(self._order, key))
        self._gone.add(key)

    def __iter__(self) -> Iterator[str]:
        return self.keys_from('')

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def keys_from(self, start: str) -> Iterator[str]:
        """All keys from `start` on, in order."""
        made = (self._keys[number] for number in range(bisect.bisect_left(self._keys, start), len(self._keys)))
        if self._gone or self._written:
            made = (key for key in made if key not in self._written and key not in self._gone)
        return heapq.merge(made, self._order[bisect.bisect_left(self._order, start):])

    def listed(self, key: str) -> tuple[str, int, str]:
        """(etag, size, when) of a key that is there."""
        if key in self._written:
            stored = self._written[key]
            return stored.etag, len(stored.body), time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(stored.modified))
        return *self._told[bisect.bisect_left(self._keys, key)], _STAMP


class ScaleS3(FakeS3):
    """FakeS3 with a listing that does not sort all there is."""

    def __init__(self) -> None:
        super().__init__()
        self.numbered = Objects()
        self.objects = cast('dict[str, StoredObject]', self.numbered)

    def new_etag(self, body: bytes) -> str:
        return scale_tree.File('', 0, 0, body).etag

    def list_objects(self, query: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
        prefix, delimiter, limit = query.get('prefix', ''), query.get('delimiter', ''), int(query.get('max-keys', '1000'))
        after = unquote(query['continuation-token']) if 'continuation-token' in query else query.get('start-after', query.get('marker', ''))
        names = list(self._names(prefix, delimiter, after, limit + 1))
        coding = quote if query.get('encoding-type') == 'url' else escape

        def spell(name: str) -> str:
            return name if _PLAIN.fullmatch(name) else coding(name)

        told = {'Name': self.bucket, 'Prefix': spell(prefix), 'Delimiter': spell(delimiter), 'MaxKeys': str(limit),
                'EncodingType': query.get('encoding-type', ''), 'IsTruncated': 'true' if len(names) > limit else 'false'}
        if len(names) > limit and query.get('list-type') == '2':
            told['NextContinuationToken'] = quote(names[limit - 1])
        elif len(names) > limit:
            told['NextMarker'] = spell(names[limit - 1])
        head = ''.join(f'<{name}>{value}</{name}>' for name, value in told.items() if value or name == 'Prefix')
        entries = ''.join(self._entry(name, prefix, delimiter, spell) for name in names[:limit])
        return 200, {}, f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{head}{entries}</ListBucketResult>'.encode()

    def _names(self, prefix: str, delimiter: str, after: str, limit: int) -> Iterator[str]:
        """Keys and common prefixes in order, at most `limit`; behind a common prefix it goes on where that ends."""
        start = max(prefix, after + (LAST if delimiter and after.endswith(delimiter) else '\0') if after else '')
        while limit:
            for key in self.numbered.keys_from(start):
                if not key.startswith(prefix):
                    return
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                name = key if cut < 0 else key[:cut + len(delimiter)]
                yield name
                limit -= 1
                if not limit:
                    return
                if cut >= 0:
                    start = name + LAST
                    break
            else:
                return

    def _entry(self, name: str, prefix: str, delimiter: str, spell: Callable[[str], str]) -> str:
        if delimiter and name.endswith(delimiter) and len(name) > len(prefix):
            return f'<CommonPrefixes><Prefix>{spell(name)}</Prefix></CommonPrefixes>'
        etag, size, stamp = self.numbered.listed(name)
        return (f'<Contents><Key>{spell(name)}</Key><LastModified>{stamp}</LastModified><ETag>{etag}</ETag><Size>{size}</Size>'
                '<StorageClass>STANDARD</StorageClass></Contents>')


def main() -> None:
    """Until stdin ends; each line is a tree to have."""
    fake = ScaleS3()
    with fake:
        print(json.dumps(fake.endpoint), flush=True)
        for line in sys.stdin:
            with fake.lock:
                fake.numbered.fill(*json.loads(line))
            print('null', flush=True)
