"""The bench's server of very many files, held against ministack: the same requests get the same answers."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import botocore.exceptions
import pytest

from bench import scale_tree
from bench.scale_server import ScaleServer
from tests.fakes.s3_server import FakeS3
from tests.servers import S3Server

PREFIX, COUNT = 'contexts/c/', 120
#: what makes no difference to a client that asks, or differs between any two servers
IGNORED = {'ResponseMetadata', 'LastModified', 'NextContinuationToken', 'ContinuationToken', 'Name', 'MaxKeys', 'KeyCount', 'EncodingType',
           'Delimiter', 'Prefix', 'StartAfter', 'AcceptRanges', 'ContentType', 'ServerSideEncryption', 'ChecksumType', 'Metadata', 'StorageClass',
           'Owner', 'Marker', 'NextMarker'}

Question = tuple[str, dict[str, Any]]


@pytest.fixture(scope='module')
def both(s3_server: S3Server) -> Iterator[list[tuple[Any, str]]]:
    """(client, bucket) of each: the tree filled in here, and put there object by object."""
    bucket = s3_server.make_bucket()
    with ScaleServer() as scale, contextlib.closing(s3_server.client()) as there, contextlib.closing(scale.client()) as here:
        scale.fill(PREFIX, COUNT)
        for number in range(COUNT):
            one = scale_tree.file(number)
            there.put_object(Bucket=bucket, Key=PREFIX + one.path, Body=one.body)
        yield [(here, FakeS3.bucket), (there, bucket)]


def plain(value: Any) -> Any:
    """An answer without what is ignored."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items() if name not in IGNORED}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value.read() if hasattr(value, 'read') else value


def ask(client: Any, bucket: str, question: Question) -> Any:
    name, parameters = question
    try:
        if name == 'pages':
            return [plain(page) for page in client.get_paginator('list_objects_v2').paginate(Bucket=bucket, **parameters)]
        return plain(getattr(client, name)(Bucket=bucket, **parameters))
    except botocore.exceptions.ClientError as error:
        return error.response['ResponseMetadata']['HTTPStatusCode']


def key(number: int) -> str:
    return PREFIX + scale_tree.path_of(number)


def etag(number: int) -> str:
    return scale_tree.file(number).etag


def test_the_same_answers(both: list[tuple[Any, str]]) -> None:
    """Listings of every shape, reads under conditions, then writes and removals among the numbered objects, and the listings again."""
    listings: list[Question] = [
        ('pages', parameters | {'PaginationConfig': {'PageSize': size}}) for size in (1000, 40) for parameters in (
            {}, {'Prefix': PREFIX}, {'Prefix': PREFIX, 'Delimiter': '/'}, {'Prefix': f'{PREFIX}d0000/', 'Delimiter': '/'},
            {'Prefix': key(50)[:-6], 'Delimiter': '/'}, {'Prefix': PREFIX, 'StartAfter': key(60)}, {'Prefix': 'nothing/'}, {'Delimiter': '/'},
            {'Prefix': key(3)}, {'Prefix': f'{PREFIX}d0000', 'Delimiter': '/'})]
    listings += [('list_objects', {'Prefix': PREFIX, 'Delimiter': '/'}), ('list_objects', {'Prefix': PREFIX, 'MaxKeys': 9, 'Marker': key(20)})]
    reads: list[Question] = [
        ('get_object', {'Key': key(1)}), ('head_object', {'Key': key(25)}), ('get_object', {'Key': key(7), 'Range': 'bytes=3-9'}),
        ('get_object', {'Key': key(7), 'IfMatch': etag(7)}), ('get_object', {'Key': key(7), 'IfMatch': etag(8)}),
        ('head_object', {'Key': key(500)}), ('get_object', {'Key': f'{key(1)}x'})]
    writes: list[Question] = [
        ('put_object', {'Key': key(9), 'Body': b'x', 'IfNoneMatch': '*'}), ('put_object', {'Key': key(9), 'Body': b'new', 'IfMatch': etag(9)}),
        ('put_object', {'Key': f'{key(10)}.more', 'Body': b'beside', 'IfNoneMatch': '*'}),
        ('put_object', {'Key': key(11), 'Body': b'y', 'IfMatch': '"0"'}),
        ('delete_object', {'Key': key(13)}), ('put_object', {'Key': f'{PREFIX}a', 'Body': b'first'}),
        ('delete_objects', {'Delete': {'Objects': [{'Key': key(14)}, {'Key': key(15)}, {'Key': f'{PREFIX}a'}], 'Quiet': True}}),
        ('put_object', {'Key': key(15), 'Body': b'back'}), ('get_object', {'Key': key(14)}), ('get_object', {'Key': key(15)}),
        ('copy_object', {'Key': f'{key(20)}.copy', 'CopySource': {'Bucket': '', 'Key': key(20)}, 'CopySourceIfMatch': etag(20)})]
    for question in [*listings, *reads, *writes, *listings]:
        answers = []
        for client, bucket in both:
            name, parameters = question
            if name == 'copy_object':
                parameters = parameters | {'CopySource': {'Bucket': bucket, 'Key': key(20)}}
            answers.append(ask(client, bucket, (name, parameters)))
        assert answers[0] == answers[1], question


def test_the_questions_reach_objects(both: list[tuple[Any, str]]) -> None:
    """The comparison is of something: an object has the body, the metadata and the etag that its number says."""
    client, bucket = both[0]
    found = client.get_object(Bucket=bucket, Key=key(75))
    assert (found['Body'].read(), found['ETag'], found['Metadata']['mode']) == (scale_tree.body_of(75), etag(75), str(scale_tree.file(75).mode))
