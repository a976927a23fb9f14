"""Policies that anybody wrote: values that a mount can carry out, or one line that says what is wrong."""
from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctxfs.durations import MAX_DURATION
from ctxfs.errors import InvalidArgument, UsageError
from ctxfs.policy import SyncPolicy
from ctxfs.policy_check import check_for_mount
from ctxfs.policy_parse import MAX_BYTES, parse_policy, policy_to_bytes
from ctxfs.policy_text import describe
from ctxfs.rules import Reach, Rules
from ctxfs.storage.keys import KEY_MAX, mapped_prefix
from tests.fuzz.tools import DEEP, MIB, bounded, fuzz, integers, mutated, texts, values

GOOD = {'uploadPolicy': {'autoUpload': True, 'uploadStrategy': 'UploadBeforeResourceRelease', 'uploadMode': 'File', 'period': '30s'},
        'downloadPolicy': {'autoDownload': True, 'downloadStrategy': 'DownloadAsync'}, 'deletePolicy': {'syncLocalFile': False},
        'extractPolicy': {'extract': True, 'deleteSrcFile': True, 'extractToCurrentFolder': False},
        'recyclePolicy': {'lifecycle': 'Lifecycle_3Days', 'paths': ['/logs']}, 'mappingPolicy': {'path': '/home/x'},
        'bwList': {'whiteLists': [{'path': '/src', 'excludePaths': ['/node_modules'], 'isPathRegex': False, 'isExcludeRegex': False},
                                  {'path': '/logs'},
                                  {'path': 'a.*b', 'isPathRegex': True, 'excludePaths': ['c+'], 'isExcludeRegex': True}]}}
PLACES = [(part,) for part in GOOD] + [(part, key) for part, keys in GOOD.items() for key in keys] + [
    ('bwList', 'whiteLists', number, key) for number in (0, 2) for key in ('path', 'excludePaths', 'isPathRegex', 'isExcludeRegex', 'zzz')]


@st.composite
def policies(draw: st.DrawFn) -> str:
    """The good one with a few values replaced."""
    policy = json.loads(json.dumps(GOOD))
    for place in draw(st.lists(st.sampled_from(PLACES), max_size=3)):
        at: Any = policy
        for step in place[:-1]:
            try:
                at = at[step]
            except (LookupError, TypeError):        # an earlier one took that away
                at = None
        if isinstance(at, dict):
            at[place[-1]] = draw(st.one_of(values, texts, integers, st.lists(texts, max_size=3), st.lists(values, max_size=2)))
    return json.dumps(policy, ensure_ascii=draw(st.booleans()))


def check(policy: SyncPolicy, names: list[str]) -> None:
    """It says what it does, is written and read back as it is, and answers about any name."""
    assert parse_policy(policy_to_bytes(policy), origin='p') == policy and all(describe(policy))
    assert policy.upload_policy.period is None or 0 <= policy.upload_policy.period <= MAX_DURATION
    rules = Rules(policy)
    for name in names:
        assert rules.gate.decide(name).rule and rules.gate.reach(name + '/') in Reach and isinstance(rules.lifecycle_of(name), str)
    if policy.mapping_policy is not None:
        try:
            prefix = mapped_prefix(policy.mapping_policy.path)
        except InvalidArgument:
            return
        assert not prefix or (prefix.endswith('/') and not {'..', '.', ''} & set(prefix[:-1].split('/')) and len(prefix.encode()) < KEY_MAX)
        assert not prefix.startswith('.ctxfs/')


def refused_or(act: Callable[[], SyncPolicy]) -> SyncPolicy | None:
    try:
        return act()
    except UsageError as error:
        assert str(error).startswith('p') and str(error).isprintable() and len(str(error)) < 4000
        return None


@given(policies(), st.lists(texts.filter(lambda text: '\0' not in text), max_size=4))
@fuzz
def test_a_policy_with_any_values_does_what_it_says_or_is_refused(text: str, names: list[str]) -> None:
    """Wrong types, numbers without end, paths that lead out, patterns that are none."""
    policy = refused_or(lambda: parse_policy(text, origin='p'))
    if policy is not None:
        check(policy, names)
        refused_or(lambda: check_for_mount(policy, origin='p', mountpoint='/src') or policy)


@given(st.one_of(st.binary(max_size=50), mutated(st.just(json.dumps(GOOD).encode())), values.map(lambda value: json.dumps(value).encode())),
       st.booleans())
@example(b'{"uploadPolicy":{"period":NaN}}', False)
@example(b'{"uploadPolicy":{"period":1e400}}', False)
@example(b'{"uploadPolicy":{"period":-Infinity}}', False)
@example(b'{"bwList":null,"bwList":{}}', False)
@example(b'"' + json.dumps(json.dumps(GOOD)).encode()[1:], False)
@example(b'\xff\xfe{\x00}\x00', False)
@example(b'\xff\xfe\x00\xd8', False)
@example(b'[uploadPolicy]\nperiod = nan', True)
@example(b'uploadPolicy = 1979-05-27T07:32:00Z', True)
@fuzz
def test_any_bytes_are_a_policy_or_refused(data: bytes, is_toml: bool) -> None:
    """JSON or TOML, or neither."""
    policy = refused_or(lambda: parse_policy(data, origin='p', is_toml=is_toml))
    if policy is not None:
        check(policy, ['a'])


def white_lists(text: bytes) -> bytes:
    return within('bwList', within('whiteLists', text))


def within(key: str, value: bytes) -> bytes:
    return b'{"' + key.encode() + b'":' + value + b'}'


BOMBS: dict[str, bytes] = {
    'deep': DEEP[0], 'deep objects': DEEP[1], 'open': DEEP[2], 'deep in a part': within('uploadPolicy', DEEP[0]),
    'deep in a key that is unknown': within('zzz', DEEP[0]), 'nearly too deep': within('bwList', b'[' * 900 + b']' * 900),
    'deep in a place': white_lists(b'[' * 400 + b']' * 400),
    'a long number': within('uploadPolicy', within('period', b'9' * (MIB - 100))),
    'digits': within('uploadPolicy', within('period', b'0.' + b'9' * (MIB - 100))),
    'an exponent': within('uploadPolicy', within('period', b'1e999999999')),
    'a long text': within('uploadPolicy', within('period', b'"' + b'9' * (MIB - 100) + b's"')),
    'one key many times': b'{' + b','.join([b'"bwList":{}'] * 80_000) + b'}',
    'many keys': b'{' + b','.join(b'"k%d":0' % n for n in range(80_000)) + b'}',
    'many keys, the last twice': b'{' + b','.join(b'"k%d":0' % n for n in [*range(80_000), 79_999]) + b'}',
    'many white lists': white_lists(b'[' + b','.join([b'{}'] * 300_000) + b']'),
    'many excludes': white_lists(b'[{"path":"a","excludePaths":[' + b','.join([b'"b"'] * 200_000) + b']}]'),
    'many patterns': white_lists(b'[{"path":"a","isExcludeRegex":true,"excludePaths":[' + b','.join([b'"b"'] * 9_900) + b']}]'),
    'a long path': white_lists(b'[{"path":"' + b'a/' * 500_000 + b'"}]'),
    'slashes': white_lists(b'[{"path":"a' + b'/' * 1_000_000 + b'b"}]'),
    'a long pattern': white_lists(b'[{"isPathRegex":true,"path":"' + b'(a|' * 300_000 + b'"}]'),
    'strings of JSON in JSON': json.dumps(json.dumps(json.dumps('{}'))).encode(), 'too long': b' ' * (MAX_BYTES + 1), 'nothing': b' ' * MAX_BYTES}


@pytest.mark.parametrize('name', BOMBS)
def test_a_policy_that_is_a_bomb_takes_little_memory_and_time(name: str) -> None:
    """It is read, or refused."""
    policy = bounded(lambda: refused_or(lambda: parse_policy(BOMBS[name], origin='p')), megabytes=256)
    assert policy is None or bounded(lambda: Rules(policy).gate.decide('a/' * 500)) is not None


def test_a_prefix_that_leaves_no_room_for_names_is_refused() -> None:
    """A mapped path as long as a key: not one file below it could be uploaded."""
    with pytest.raises(InvalidArgument):
        mapped_prefix('/' + 'a/' * 600)
