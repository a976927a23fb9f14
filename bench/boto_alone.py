"""What boto3 reaches without a mount: a multipart upload, and ranged GETs in parallel. A process of its own: its threads share no interpreter
with the bench.

Owns its settings, which are boto3's own: 10 threads, parts of 8 MiB. What is downloaded is thrown away: the mount that it is compared with has to
keep it.

    boto_alone upload ENDPOINT BUCKET KEY PATH      prints the seconds
    boto_alone download ENDPOINT BUCKET KEY SIZE
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from bench.processes import Failed, start_module
from tests.servers import S3Server

THREADS = 10
PART = 8 << 20


def alone(server: S3Server, what: str, *arguments: str) -> float:
    """Seconds that it took, without the start of the process."""
    process = start_module('bench.boto_alone', what, server.endpoint, *arguments, stdout=subprocess.PIPE, env=server.environment)
    said, _ = process.communicate(timeout=600)
    if process.returncode:
        raise Failed(f'boto3 alone: {what} failed')
    return float(said)


def client(endpoint: str) -> Any:
    config = Config(s3={'addressing_style': 'path'}, request_checksum_calculation='when_required', response_checksum_validation='when_required',
                    max_pool_connections=THREADS)
    return boto3.client('s3', endpoint_url=endpoint, region_name='us-east-1', config=config)


def upload(s3: Any, bucket: str, key: str, path: str) -> None:
    s3.upload_file(path, bucket, key, Config=TransferConfig(max_concurrency=THREADS, multipart_chunksize=PART))


def download(s3: Any, bucket: str, key: str, size: str) -> None:
    def get(start: int) -> int:
        stop = min(start + PART, int(size))
        return len(s3.get_object(Bucket=bucket, Key=key, Range=f'bytes={start}-{stop - 1}')['Body'].read())
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        total = sum(pool.map(get, range(0, int(size), PART)))
    if total != int(size):
        raise SystemExit(f'{total} bytes of {size}')


def main() -> None:
    what, endpoint, bucket, *rest = sys.argv[1:]
    work: Callable[..., None] = {'upload': upload, 'download': download}[what]
    s3 = client(endpoint)
    s3.list_objects_v2(Bucket=bucket, MaxKeys=1)    # credentials, a connection, and the modules that are loaded lately
    os.sync()
    begin = time.perf_counter()
    work(s3, bucket, *rest)
    print(time.perf_counter() - begin)
