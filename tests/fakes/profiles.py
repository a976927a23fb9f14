"""Whole providers, as far as their servers differ in what ctxfs relies on: a name, and the quirks that make a fake behave like it.

Owns the table, and how a fake is reached as its provider is. tests/contract/test_profiles.py compares those that have a real server to be had
with it.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.fakes.s3_server import FakeS3, Quirk

_OSS = frozenset({Quirk.FORBID_OVERWRITE, Quirk.VIRTUAL_ONLY, Quirk.REFUSES_CHUNKED, Quirk.NO_TAGS})
PROFILES: dict[str, frozenset[Quirk]] = {
    'aws': frozenset(),
    'oss': _OSS,
    'oss-versioned': _OSS | {Quirk.VERSIONED},
    'ceph': frozenset({Quirk.UNQUOTED_ETAGS, Quirk.MISSING_IS_412, Quirk.UNCONDITIONAL_COPY, Quirk.UNCONDITIONAL_PARTS,
                       Quirk.UNCONDITIONAL_DELETE, Quirk.NO_ETAG_OF_PARTS, Quirk.COPY_KEEPS_TAGS}),
    'ignoring': frozenset({Quirk.IGNORES_CONDITIONS, Quirk.IGNORES_RANGE, Quirk.NO_TAGS, Quirk.NO_LIFECYCLE}),
}
OSS_ENDPOINT = 'http://s3.oss-cn-hangzhou.aliyuncs.com'


@contextlib.contextmanager
def provider(name: str) -> Iterator[tuple[FakeS3, dict[str, str]]]:
    """A fake with a provider's quirks, and the environment of whoever uses it. OSS is reached by its own host name, the fake as a proxy: what
    follows from the name (virtual-hosted addressing, the region) follows here, too."""
    env = {'AWS_ACCESS_KEY_ID': 'any', 'AWS_SECRET_ACCESS_KEY': 'any'}
    with FakeS3(quirks=PROFILES[name]) as fake:
        if Quirk.VIRTUAL_ONLY in fake.quirks:
            env['http_proxy'] = fake.endpoint
            fake.url = f's3://{fake.bucket}?endpoint={OSS_ENDPOINT}'
        yield fake, env
