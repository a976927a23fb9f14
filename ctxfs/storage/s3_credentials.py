"""Where the credentials of a bucket come from, beside what the AWS tools know: the variables of Alibaba's tools.

Owns the order. It must not know boto3: what that finds (variables, profiles, `credential_process`, roles of instances and containers, web
identities, all renewed by it) comes by a function.

    at Alibaba's endpoints     the URL's profile │ OSS_… │ AWS_… variables │ ALIBABA_CLOUD_… │ the rest of what boto3 finds
    elsewhere                  the URL's profile │ all that boto3 finds │ OSS_… │ ALIBABA_CLOUD_…
So keys of one provider are not shown to another while there are others.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ctxfs.errors import Denied

#: (key id, secret, token of temporary ones), as Alibaba's tools name them
OSS = ('OSS_ACCESS_KEY_ID', 'OSS_ACCESS_KEY_SECRET', 'OSS_SESSION_TOKEN')
ALIBABA = ('ALIBABA_CLOUD_ACCESS_KEY_ID', 'ALIBABA_CLOUD_ACCESS_KEY_SECRET', 'ALIBABA_CLOUD_SECURITY_TOKEN')


class Fixed(NamedTuple):
    """Credentials that never change, in the shape of botocore's."""
    access_key: str
    secret_key: str
    token: str | None

    def get_frozen_credentials(self) -> Fixed:
        return self


def environment_keys(env: Mapping[str, str]) -> Fixed | None:
    """What boto3 would find first, and without looking anywhere else: keys in the environment that never expire (botocore's EnvProvider)."""
    if any(env.get(name) for name in ('AWS_PROFILE', 'AWS_DEFAULT_PROFILE', 'AWS_CREDENTIAL_EXPIRATION')):
        return None
    key, secret = env.get('AWS_ACCESS_KEY_ID'), env.get('AWS_SECRET_ACCESS_KEY')
    return Fixed(key, secret, env.get('AWS_SECURITY_TOKEN') or env.get('AWS_SESSION_TOKEN') or None) if key and secret else None


def find_credentials(find: Callable[[], Any], *, endpoint: str, has_profile: bool, env: Mapping[str, str]) -> Any:
    """What has `get_frozen_credentials()`, or None. `find`: what boto3 finds. Raises Denied for variables of which one is missing."""
    if has_profile:
        return find()
    if (urlsplit(endpoint).hostname or '').endswith('.aliyuncs.com'):
        is_aws = bool(env.get('AWS_ACCESS_KEY_ID') or env.get('AWS_PROFILE'))
        return _of(env, OSS) or (None if is_aws else _of(env, ALIBABA)) or environment_keys(env) or find()
    return environment_keys(env) or find() or _of(env, OSS) or _of(env, ALIBABA)


def _of(env: Mapping[str, str], names: tuple[str, str, str]) -> Fixed | None:
    key, secret, token = (env.get(name, '').strip() for name in names)
    if bool(key) != bool(secret):
        given, missing = (names[0], names[1]) if key else (names[1], names[0])
        raise Denied(f'{given} is set, but {missing} is not; set both, or none')
    return Fixed(key, secret, token or None) if key else None
