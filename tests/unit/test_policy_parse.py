"""Reading policies: every refusal says where, what and how to mend it; everything that the SDK emits is read and comes out the same.

The classes of wuying-agentbay-sdk come from its own source files, without the rest of the package: importing that opens a log file in
the working directory.
"""
from __future__ import annotations

import importlib.metadata
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxfs.config import MountOptions
from ctxfs.errors import UsageError
from ctxfs.policy import BWList, DownloadPolicy, MappingPolicy, RecyclePolicy, SyncPolicy, UploadPolicy, WhiteList
from ctxfs.policy_check import check_for_mount
from ctxfs.policy_parse import MAX_BYTES, parse_policy, policy_to_bytes, policy_to_json, read_policy_file, reload_policy
from ctxfs.policy_text import describe, json_schema
from ctxfs.rules import Rules
from tests.sdk import load_source, old_release

SDK = load_source(Path(str(importlib.metadata.distribution('wuying-agentbay-sdk').locate_file('agentbay/_common/params/context_sync.py'))))
SCHEMA = jsonschema.Draft202012Validator(json_schema())
LIFECYCLES = ', '.join(item.value for item in SDK.Lifecycle)


def wire(policy: object) -> str:
    """As the documents say to do it: the SDK's classes have `__dict__` as a method."""
    return json.dumps(policy.__dict__())    # type: ignore[operator]


def parse(value: object) -> SyncPolicy:
    return parse_policy(json.dumps(value), origin='policy.json')


def refusal(data: bytes | str | dict, **more: bool) -> str:
    with pytest.raises(UsageError) as caught:
        parse_policy(data, origin='policy.json', **more)
    text = str(caught.value)
    assert text.startswith('policy.json: ') and '\n' not in text
    return text.removeprefix('policy.json: ')


# --- refusals ----------------------------------------------------------------------------------------------------------------------

def whites(*entries: dict) -> dict:
    return {'bwList': {'whiteLists': list(entries)}}


TOP = 'uploadPolicy, downloadPolicy, deletePolicy, extractPolicy, recyclePolicy, bwList, mappingPolicy'
REFUSED = [
    # unknown keys
    ({'bwlist': {}}, f"Unknown property in SyncPolicy: 'bwlist'. Valid properties are: {TOP} (did you mean bwList?)"),
    ({'upload_policy': {}}, f"Unknown property in SyncPolicy: 'upload_policy'. Valid properties are: {TOP} (did you mean uploadPolicy?)"),
    ({'autoUpload': True}, f"Unknown property in SyncPolicy: 'autoUpload'. Valid properties are: {TOP} (autoUpload belongs into UploadPolicy)"),
    ({'uploadPolicy': {'perod': 5}}, "uploadPolicy: Unknown property in UploadPolicy: 'perod'. Valid properties are: autoUpload, uploadStrategy, "
                                     'uploadMode, archiveExcludePaths, period (did you mean period?)'),
    ({'extractPolicy': {'extractCurrentFolder': True}}, "extractPolicy: Unknown property in ExtractPolicy: 'extractCurrentFolder'. Valid properties "
                                                        'are: extract, deleteSrcFile, extractToCurrentFolder (did you mean extractToCurrentFolder?)'),
    (whites({'pth': '/src'}), "bwList.whiteLists[0]: Unknown property in WhiteList: 'pth'. Valid properties are: path, excludePaths, isPathRegex, "
                              'isExcludeRegex (did you mean path?)'),
    ({'bwList': {'blackLists': []}}, 'bwList.blackLists: there are no black lists; write what is not to be synced into excludePaths of an entry of '
                                     'whiteLists'),
    # types
    ({'uploadPolicy': {'autoUpload': 'yes'}}, 'uploadPolicy.autoUpload: "yes": not a boolean; write true, without quotes'),
    ({'deletePolicy': {'syncLocalFile': 0}}, 'deletePolicy.syncLocalFile: 0: not a boolean; write false, without quotes'),
    ({'downloadPolicy': {'autoDownload': None}}, 'downloadPolicy.autoDownload: null: not a boolean; write true or false, without quotes'),
    ({'downloadPolicy': True}, 'downloadPolicy: true: not an object; write {"autoDownload": …}'),
    ({'bwList': [{'path': '/src'}]}, 'bwList: [{"path": "/src"}]: not an object; write {"whiteLists": …}'),
    ({'bwList': {'whiteLists': {'path': '/src'}}}, 'bwList.whiteLists: {"path": "/src"}: not a list; write [{"path": "/src"}]'),
    (whites({'path': 5}), 'bwList.whiteLists[0].path: 5: not a string; write it in quotes, like "/src"'),
    (whites('/src'), 'bwList.whiteLists[0]: "/src": not an object; write {"path": …}'),
    (whites({}, {'excludePaths': 'tmp'}), 'bwList.whiteLists[1].excludePaths: "tmp": not a list; write ["tmp"]'),
    (whites({'excludePaths': ['a', None]}), 'bwList.whiteLists[0].excludePaths[1]: null: not a string; write it in quotes, like "/src"'),
    (whites({'excludePaths': None}), 'bwList.whiteLists[0].excludePaths: null: not a list; write ["…"]'),
    ({'recyclePolicy': {'paths': 'logs'}}, 'recyclePolicy.paths: "logs": not a list; write ["logs"]'),
    (whites({'path': 'a\0b'}), 'bwList.whiteLists[0].path: "a\\u0000b": no path has a NUL character'),
    # the values that there are
    ({'uploadPolicy': {'uploadStrategy': 'BeforeResourceRelease'}},
     'uploadPolicy.uploadStrategy: "BeforeResourceRelease": the only strategy is "UploadBeforeResourceRelease"; write that, or leave the key out'),
    ({'downloadPolicy': {'downloadStrategy': 'Async'}},
     'downloadPolicy.downloadStrategy: "Async": the only strategy is "DownloadAsync"; write that, or leave the key out'),
    ({'uploadPolicy': {'uploadMode': 'archive'}},
     'uploadPolicy.uploadMode: "archive": Invalid upload_mode value: archive. Valid values are: File, Archive'),
    ({'uploadPolicy': {'uploadMode': None}}, 'uploadPolicy.uploadMode: null: Invalid upload_mode value: None. Valid values are: File, Archive'),
    ({'recyclePolicy': {'lifecycle': 'forever'}},
     f'recyclePolicy.lifecycle: "forever": Invalid lifecycle value: forever. Valid values are: {LIFECYCLES}'),
    # times
    ({'uploadPolicy': {'period': '5'}}, 'uploadPolicy.period: "5": not a time; write it like 30s, 5m or 1h; a bare number is minutes'),
    ({'uploadPolicy': {'period': True}}, 'uploadPolicy.period: true: not a time; write a number of minutes, or "30s", "5m", "1h"'),
    ({'uploadPolicy': {'period': -1}},
     'uploadPolicy.period: -1: no period is like that; write a number of minutes, 0 to upload when a file is closed'),
    ({'uploadPolicy': {'period': math.nan}},
     'uploadPolicy.period: NaN: no period is like that; write a number of minutes, 0 to upload when a file is closed'),
    ({'uploadPolicy': {'period': math.inf}},
     'uploadPolicy.period: Infinity: no period is like that; write a number of minutes, 0 to upload when a file is closed'),
    ({'uploadPolicy': {'period': '-5m'}}, 'uploadPolicy.period: "-5m": not a time; write it like 30s, 5m or 1h; a bare number is minutes'),
    ({'uploadPolicy': {'period': '9000h'}}, 'uploadPolicy.period: "9000h": longer than a year; a bare number is minutes'),
    # paths
    (whites({'path': '*.json'}), 'bwList.whiteLists[0].path: "*.json": Wildcard patterns are not supported in path when is_path_regex=False. Got: '
                                 '*.json. Please use exact directory paths or set is_path_regex=True for regex matching.'),
    (whites({'path': '/src', 'excludePaths': ['node_modules', '/a[b]']}),
     'bwList.whiteLists[0].excludePaths[1]: "/a[b]": Wildcard patterns are not supported in exclude_paths when is_exclude_regex=False. Got: /a[b]. '
     'Please use exact directory paths or set is_exclude_regex=True for regex matching.'),
    ({'recyclePolicy': {'lifecycle': 'Lifecycle_1Day', 'paths': ['/logs/?']}},
     'recyclePolicy.paths[0]: "/logs/?": Wildcard patterns are not supported in recycle policy paths. Got: /logs/?. '
     'Please use exact directory paths instead.'),
    ({'uploadPolicy': {'uploadMode': 'Archive', 'archiveExcludePaths': ['*.tmp']}},
     'uploadPolicy.archiveExcludePaths[0]: "*.tmp": Wildcard patterns are not supported in archiveExcludePaths. Got: *.tmp. '
     'Please use path prefixes, like "models/".'),
    (whites({'path': 'C:\\Users\\me'}), 'bwList.whiteLists[0].path: "C:\\\\Users\\\\me": a path of Windows; write it relative to the mount point, '
                                        'with forward slashes, like "/Users/me"'),
    (whites({'path': '\\data\\x'}), 'bwList.whiteLists[0].path: "\\\\data\\\\x": a path of Windows; write it relative to the mount point, with '
                                    'forward slashes, like "/data/x"'),
    (whites({'path': '~/src'}), 'bwList.whiteLists[0].path: "~/src": ~ is not expanded; write it relative to the mount point, like "/src"'),
    (whites({'path': 'src/../etc'}), 'bwList.whiteLists[0].path: "src/../etc": ".." leads out of the directory that it is relative to; '
                                     'write the path without it'),
    (whites({'path': '/src', 'excludePaths': ['..']}), 'bwList.whiteLists[0].excludePaths[0]: "..": ".." leads out of the directory that it is '
                                                       'relative to; write the path without it'),
    (whites({'path': '/.ctxfs/index'}), 'bwList.whiteLists[0].path: "/.ctxfs/index": .ctxfs is where ctxfs keeps its own objects; nothing of yours '
                                        'is there'),
    (whites({'path': 'a(', 'isPathRegex': True}), 'bwList.whiteLists[0].path: "a(": not a regular expression: missing ): a(; put \\ before '
                                                  'a character that stands for itself'),
    (whites({'excludePaths': ['*'], 'isExcludeRegex': True}),
     'bwList.whiteLists[0].excludePaths[0]: "*": not a regular expression: no argument for repetition operator: *; put \\ before a character that '
     'stands for itself'),
    (whites({'path': '^/src/.*', 'isPathRegex': True}), 'bwList.whiteLists[0].path: "^/src/.*": matches nothing, for it is matched against paths '
                                                        'without a first slash; write "src/.*"'),
    # contradictions
    ({'uploadPolicy': {'archiveExcludePaths': ['models/']}}, 'uploadPolicy.archiveExcludePaths: ["models/"]: has no effect while '
                                                             'uploadPolicy.uploadMode is "File"; remove one of the two'),
    (whites({'path': '/src', 'excludePaths': ['tmp', '/']}), 'bwList.whiteLists[0].excludePaths[1]: "/": excludes all of bwList.whiteLists[0].path '
                                                             '"/src", so that nothing of it would be synced; remove the one or the other'),
    ({'recyclePolicy': {'lifecycle': 'Lifecycle_3Days', 'paths': []}},
     'recyclePolicy.paths: []: no path expires, against recyclePolicy.lifecycle "Lifecycle_3Days"; write [""] for all paths, or lifecycle '
     '"Lifecycle_Forever"'),
    ({**whites({'path': '/src'}), 'recyclePolicy': {'lifecycle': 'Lifecycle_3Days', 'paths': ['src/logs', 'logs']}},
     'recyclePolicy.paths[1]: "logs": nothing below it is uploaded, for no entry of bwList.whiteLists reaches it; add it there, or remove it here'),
]


@pytest.mark.parametrize('value, text', REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_a_wrong_policy_is_refused_in_one_line(value: dict, text: str) -> None:
    """The path of the key, the value, and the fix; the SDK's own text where it has one."""
    assert refusal(json.dumps(value)) == text


@pytest.mark.parametrize('data, text', [
    ('', 'empty; write {} for the default policy, or see ctxfs policy default'),
    (b' \n', 'empty; write {} for the default policy, or see ctxfs policy default'),
    ('[]', '[]: not an object; write {"uploadPolicy": …}'),
    ('null', 'null: not an object; write {"uploadPolicy": …}'),
    ('"\\"{}\\""', '"{}": not an object; write {"uploadPolicy": …}'),
    ('{', 'not JSON: Expecting property name enclosed in double quotes at line 1 column 2'),
    ('{\n"bwList": tru}', 'not JSON: Expecting value at line 2 column 11'),
    ('{"bwList": {}, "bwList": {}}', 'bwList: this key stands here twice; keep one'),
    ('{"uploadPolicy": {"period": 1, "autoUpload": true, "period": 2}}', 'uploadPolicy.period: this key stands here twice; keep one'),
    ('[' * 100_000, 'not a policy: nested too deeply'),
    ('{"uploadPolicy": {"period": ' + '9' * 5000 + '}}', 'not a policy: a number is too long'),
    (b'\xff\xfe{', 'not UTF-8 text (byte 2); save it as UTF-8'),
    (b'{"a": "\xe4"}', 'not UTF-8 text (byte 7); save it as UTF-8'),
    ('{"bwList": {"whiteLists": [{"path": "\\ud800"}]}}',
     'bwList.whiteLists[0].path: "\\ud800": half of a surrogate pair is no character; write the character itself'),
    (' ' * (MAX_BYTES + 1), f'{MAX_BYTES + 1} bytes are no policy; the most is {MAX_BYTES}'),
])
def test_text_that_is_no_policy_is_refused_in_one_line(data: bytes | str, text: str) -> None:
    """Odd encodings, half a file, a file of another kind: never a traceback, never a guess."""
    assert refusal(data) == text


def test_a_long_or_odd_value_is_quoted_short_and_printable() -> None:
    """What is quoted cannot break the line or the terminal."""
    assert len(refusal(json.dumps(whites({'path': 'x' * 5000, 'excludePaths': 'y' * 5000})))) < 500
    assert '\\x1b[2J' in refusal(json.dumps({'recyclePolicy': {'lifecycle': '\x1b[2J\n'}}))


def test_whole_exclusion_by_a_regular_expression_is_refused() -> None:
    """.* and its spellings; a pattern that leaves something is none of them."""
    for text in ('.*', '^.*$', '/.*', '.+', ''):
        assert 'excludes all of' in refusal(json.dumps(whites({'path': '/src', 'excludePaths': [text], 'isExcludeRegex': True})))
    assert parse(whites({'path': '/src', 'excludePaths': ['[^k].*'], 'isExcludeRegex': True}))


KEYS = [*TOP.split(', '), 'autoUpload', 'uploadStrategy', 'uploadMode', 'archiveExcludePaths', 'period', 'autoDownload', 'lifecycle', 'paths',
        'whiteLists', 'path', 'excludePaths', 'isPathRegex', 'isExcludeRegex', 'syncLocalFile', 'extract']
words = st.sampled_from(['File', '/src', '5m', 'Lifecycle_1Day', 'a.*'])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | words
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=12)


@given(trees | st.fixed_dictionaries({}, optional={
    'uploadPolicy': st.fixed_dictionaries({'period': leaves}),
    'recyclePolicy': st.fixed_dictionaries({'lifecycle': st.sampled_from(['Lifecycle_1Day', 'x']), 'paths': st.lists(leaves, max_size=2)}),
    'bwList': st.fixed_dictionaries({'whiteLists': st.lists(st.fixed_dictionaries(
        {'path': st.text(max_size=8), 'isPathRegex': st.booleans()}, optional={'excludePaths': st.lists(leaves, max_size=2)}), max_size=2)})}))
def test_anything_is_either_a_policy_or_refused_in_one_line(value: object) -> None:
    """No other error, no line broken; what passes can be carried out, described, sent to the daemon and written down again."""
    try:
        policy = parse_policy(json.dumps(value), origin='policy.json')
    except UsageError as error:
        assert str(error).startswith('policy.json: ') and str(error).isprintable()
        return
    Rules(policy).gate.decide('src/a')
    assert all(describe(policy)) and parse_policy(policy_to_bytes(policy), origin='x') == policy
    assert SCHEMA.is_valid(policy_to_json(policy))
    assert msgspec.json.decode(msgspec.json.encode(policy), type=SyncPolicy) == policy


# --- what is read ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('value, seconds', [(5, 300.0), (0, 0.0), (0.5, 30.0), (30, 1800.0), ('30s', 30.0), ('5m', 300.0), ('1h', 3600.0),
                                            ('1.5 h', 5400.0), ('0s', 0.0), (1e-3, 0.06), (None, None)])
def test_period(value: object, seconds: float | None) -> None:
    """A number is minutes, as in the SDK versions that had it; text has its unit; the wire form says the same time with its unit."""
    policy = parse({'uploadPolicy': {'period': value}})
    assert policy.upload_policy.period == seconds
    assert parse(policy_to_json(policy)) == policy


def test_missing_parts_and_null_parts_are_the_default() -> None:
    """As the SDK fills them; the strategies may be null, which it emits for None."""
    assert parse({}) == parse(dict.fromkeys(TOP.split(', '))) == SyncPolicy()
    assert parse({'uploadPolicy': {'uploadStrategy': None}, 'downloadPolicy': {'downloadStrategy': None}}) == SyncPolicy()
    assert parse({'mappingPolicy': {'path': ''}}).mapping_policy is None
    assert parse({'mappingPolicy': {'path': 'c:\\Users\\x'}}).mapping_policy == MappingPolicy(path='c:\\Users\\x')


def test_json_within_json_a_bom_and_utf_16_are_read() -> None:
    """The wire's Policy field is a string; editors on Windows write a BOM."""
    text = '{"downloadPolicy": {"autoDownload": false}}'
    wanted = SyncPolicy(download_policy=DownloadPolicy(auto_download=False))
    for data in (json.dumps(text), text.encode('utf-8-sig'), text.encode('utf-16'), '\ufeff' + text, json.loads(text)):
        assert parse_policy(data, origin='x') == wanted


def test_toml_says_the_same_as_json() -> None:
    """By the same rules."""
    text = '[uploadPolicy]\nperiod = "5m"\n[[bwList.whiteLists]]\npath = "/src"\nexcludePaths = ["tmp"]\n'
    assert parse_policy(text, origin='x', is_toml=True) == SyncPolicy(
        upload_policy=UploadPolicy(period=300.0), bw_list=BWList(white_lists=(WhiteList(path='/src', exclude_paths=('tmp',)),)))
    assert 'not a boolean' in refusal('[uploadPolicy]\nautoUpload = 1979-05-27\n', is_toml=True)
    assert refusal('uploadPolicy = \n', is_toml=True)


@pytest.mark.parametrize('path, clean', [('/src', '/src'), ('src/', 'src/'), ('//src///a//', '/src/a/'), ('./src', 'src'), ('.', ''), ('/', '/'),
                                         ('', ''), ('Local State', 'Local State'), ('a\\b', 'a\\b'), ('~x', '~x'), ('..x', '..x'),
                                         ('{a}', '{a}'), ('/a/./b', '/a/b')])
def test_paths_are_read_in_one_spelling(path: str, clean: str) -> None:
    """Doubled slashes and `.` say nothing; all else is a name."""
    assert parse(whites({'path': path})).bw_list.white_lists[0].path == clean


def test_redundant_entries_are_allowed() -> None:
    """A union that says a thing twice does what it says."""
    assert parse(whites({'path': '/src'}, {'path': '/src/a'}, {'path': '/src'}))
    assert parse({**whites({'path': '/src'}, {'path': 'x.*', 'isPathRegex': True}),
                  'recyclePolicy': {'lifecycle': 'Lifecycle_1Day', 'paths': ['logs', '/src/x', 'sr']}})


def test_recycle_paths_may_be_above_or_below_a_white_list() -> None:
    """Only what is wholly outside expires nothing; an excluded directory is outside."""
    lists = whites({'path': '/a/b', 'excludePaths': ['c']})
    for path in ('', '/', 'a', 'a/b', 'a/b/x'):
        assert parse({**lists, 'recyclePolicy': {'lifecycle': 'Lifecycle_1Day', 'paths': [path]}})
    for path in ('a/bb', 'b', 'a/b/c', 'a/b/c/d'):
        assert 'nothing below it is uploaded' in refusal(json.dumps({**lists, 'recyclePolicy': {'lifecycle': 'Lifecycle_1Day', 'paths': [path]}}))


# --- the SDK -----------------------------------------------------------------------------------------------------------------------

PATHS = ['', '/src', 'src/a b', '/Local State', '/tmp/extensions/', 'ä/中', 'node_modules']
paths = st.sampled_from(PATHS)
names = st.sampled_from([path for path in PATHS if path])
booleans = st.booleans()


@st.composite
def white_list(draw: st.DrawFn) -> object:
    by_path, by_exclude = draw(booleans), draw(booleans)
    return SDK.WhiteList(path=r'/project-[0-9]+/.*\.json' if by_path else draw(paths), is_path_regex=by_path,
                         exclude_paths=[r'cache.*'] if by_exclude else draw(st.lists(names, max_size=2)), is_exclude_regex=by_exclude)


def optional(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


def upload(draw: st.DrawFn) -> object:
    mode = draw(st.sampled_from(SDK.UploadMode))
    return SDK.UploadPolicy(auto_upload=draw(booleans), upload_strategy=draw(optional(st.just(SDK.UploadStrategy.UPLOAD_BEFORE_RESOURCE_RELEASE))),
                            upload_mode=mode, archive_exclude_paths=draw(st.lists(names, max_size=2)))


@st.composite
def sdk_policies(draw: st.DrawFn) -> object:
    """Any policy that the SDK can make and that contradicts itself nowhere."""
    lists = draw(optional(st.lists(white_list(), max_size=3)))
    lifecycle = draw(st.sampled_from(SDK.Lifecycle))
    recycled = [''] if lifecycle.value != 'Lifecycle_Forever' else draw(st.lists(paths, max_size=2))
    return SDK.SyncPolicy(
        upload_policy=upload(draw) if draw(booleans) else None,
        download_policy=draw(optional(st.builds(SDK.DownloadPolicy, booleans))),
        delete_policy=draw(optional(st.builds(SDK.DeletePolicy, booleans))),
        extract_policy=draw(optional(st.builds(SDK.ExtractPolicy, booleans, booleans, booleans))),
        recycle_policy=draw(optional(st.just(SDK.RecyclePolicy(lifecycle=lifecycle, paths=recycled)))),
        bw_list=None if lists is None else SDK.BWList(lists),
        mapping_policy=draw(optional(st.builds(SDK.MappingPolicy, names))))


@given(sdk_policies())
def test_whatever_the_sdk_emits_is_read_and_comes_out_the_same(made: object) -> None:
    """Every policy of the SDK: parsed, described by the schema, and written as the SDK had it but for a strategy that was null."""
    text = wire(made)
    policy = parse_policy(text, origin='sdk')
    SCHEMA.validate(json.loads(text))
    expected = json.loads(text)
    expected['uploadPolicy']['uploadStrategy'] = 'UploadBeforeResourceRelease'
    assert policy_to_json(policy) == expected
    assert parse_policy(policy_to_bytes(policy), origin='again') == policy
    SCHEMA.validate(json.loads(policy_to_bytes(policy)))


@pytest.mark.parametrize('make, value', [
    (lambda: SDK.WhiteList(path='*.json'), whites({'path': '*.json'})),
    (lambda: SDK.WhiteList(path='/src', exclude_paths=['a', 'b?']), whites({'path': '/src', 'excludePaths': ['a', 'b?']})),
    (lambda: SDK.RecyclePolicy(paths=['/a', 'b]']), {'recyclePolicy': {'paths': ['/a', 'b]']}}),
    (lambda: SDK.RecyclePolicy(lifecycle='Lifecycle_7Days'), {'recyclePolicy': {'lifecycle': 'Lifecycle_7Days'}}),
    (lambda: SDK.UploadPolicy(upload_mode='Zip'), {'uploadPolicy': {'uploadMode': 'Zip'}}),
])
def test_refusals_have_the_texts_of_the_installed_sdk(make: object, value: dict) -> None:
    """What the SDK says when such a policy is made stands in our line word for word; its schema refuses the value, too."""
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) in refusal(json.dumps(value))
    assert not SCHEMA.is_valid(value)


def test_the_default_is_the_sdks_default(tmp_path: Path) -> None:
    """Through the package as its users import it, and `ctxfs policy default` prints that very object."""
    code = 'import json, agentbay; print(json.dumps(agentbay.SyncPolicy().__dict__()))'
    made = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    shown = subprocess.run([sys.executable, '-m', 'ctxfs', 'policy', 'default'], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == json.loads(made)
    assert parse_policy(made, origin='sdk') == SyncPolicy(bw_list=BWList(white_lists=(WhiteList(),)))


#: json.dumps(SyncPolicy(upload_policy=UploadPolicy(period=7)).__dict__()) of these releases, which had a period
OLD = {
    '0.4.0': '{"uploadPolicy": {"autoUpload": false, "uploadStrategy": "UploadBeforeResourceRelease", "period": 7}}',
    '0.5.2': '{"uploadPolicy": {"autoUpload": true, "uploadStrategy": "UploadBeforeResourceRelease", "period": 7}, "downloadPolicy": '
             '{"autoDownload": true, "downloadStrategy": "DownloadAsync"}, "deletePolicy": {"syncLocalFile": true}, "bwList": {"whiteLists": '
             '[{"path": "", "excludePaths": []}]}}',
    '0.8.1': '{"uploadPolicy": {"autoUpload": true, "uploadStrategy": "UploadBeforeResourceRelease", "period": 7}, "downloadPolicy": '
             '{"autoDownload": true, "downloadStrategy": "DownloadAsync"}, "deletePolicy": {"syncLocalFile": true}, "extractPolicy": {"extract": '
             'true, "deleteSrcFile": true, "extractToCurrentFolder": false}, "bwList": {"whiteLists": [{"path": "", "excludePaths": []}]}}',
}


@pytest.mark.parametrize('version', OLD)
def test_policies_of_old_releases_are_read(version: str) -> None:
    """With a period in minutes and without the parts that came later."""
    policy = parse_policy(OLD[version], origin=version)
    SCHEMA.validate(json.loads(OLD[version]))
    assert (policy.upload_policy.period, policy.upload_policy.auto_upload) == (420.0, version != '0.4.0')
    assert policy.recycle_policy == RecyclePolicy()


@pytest.mark.parametrize('version', OLD)
def test_the_recorded_policies_are_what_the_old_releases_emit(version: str) -> None:
    """Against the release itself, where pip can get it."""
    old: ModuleType = old_release(version)
    made = old.SyncPolicy(upload_policy=old.UploadPolicy(period=7))
    assert wire(made) == OLD[version]
    assert parse_policy(wire(old.SyncPolicy.default()), origin=version).upload_policy.period == 1800.0


# --- on a mount --------------------------------------------------------------------------------------------------------------------

def mount_refusal(value: dict, **mount: object) -> str:
    with pytest.raises(UsageError) as caught:
        check_for_mount(parse(value), origin='policy.json', **{'mountpoint': '/home/wuying', **mount})  # type: ignore[arg-type]
    return str(caught.value)


INSIDE = ' (a directory {} inside the mount is written without the first slash)'


@pytest.mark.parametrize('value, text', [
    (whites({'path': '/home/wuying/src'}), 'bwList.whiteLists[0].path: "/home/wuying/src": paths are relative to the mount point, not absolute; '
                                           'write "/src"' + INSIDE.format('home/wuying/src')),
    (whites({'path': '/home/wuying'}), 'bwList.whiteLists[0].path: "/home/wuying": paths are relative to the mount point, not absolute; write ""'
     + INSIDE.format('home/wuying')),
    (whites({'path': r'/home/wuying/.*\.json', 'isPathRegex': True}),
     r'bwList.whiteLists[0].path: "/home/wuying/.*\\.json": paths are relative to the mount point, not absolute; write "/.*\.json"'),
    (whites({'path': '/src', 'excludePaths': ['/home/wuying/src/tmp']}),
     'bwList.whiteLists[0].excludePaths[0]: "/home/wuying/src/tmp": paths are relative to the path of its white list, not absolute; write "/tmp"'
     + INSIDE.format('home/wuying/src/tmp')),
    ({'recyclePolicy': {'lifecycle': 'Lifecycle_1Day', 'paths': ['/home/wuying/logs/']}},
     'recyclePolicy.paths[0]: "/home/wuying/logs/": paths are relative to the mount point, not absolute; write "/logs"'
     + INSIDE.format('home/wuying/logs')),
])
def test_paths_that_begin_with_the_mount_point_are_refused(value: dict, text: str) -> None:
    """They would mean MOUNTPOINT/MOUNTPOINT/…, and nothing would be synced; the line has the corrected path."""
    assert mount_refusal(value) == f'policy.json: {text}'


@pytest.mark.parametrize('path', ['home/wuying/src', '/home/wuyingx', '/home', '/src', ''])
def test_paths_that_only_resemble_the_mount_point_pass(path: str) -> None:
    """Whole components count, and a path without its first slash is meant as it stands."""
    check_for_mount(parse(whites({'path': path})), origin='x', mountpoint='/home/wuying')


def test_what_a_mount_cannot_do_is_refused() -> None:
    """Options against the policy, each with both named."""
    manual = {'uploadPolicy': {'autoUpload': False}}
    assert mount_refusal(manual, sync_every=5.0) == (
        'policy.json: uploadPolicy.autoUpload: false: --sync-every has no effect on it, for only ctxfs sync uploads; leave out --sync-every, '
        'or write true')
    assert mount_refusal(manual, fsync='remote') == (
        'policy.json: uploadPolicy.autoUpload: false: --fsync remote uploads at every fsync(), which this forbids; use --fsync local, or write true')
    assert mount_refusal({}, read_only=True, sync_every=0.0) == (
        '--sync-every has no effect on a read-only mount; leave one of the two out')
    check_for_mount(parse({'uploadPolicy': {'uploadMode': 'Archive', 'archiveExcludePaths': ['a']}}), origin='x', mountpoint='/m')
    for passes in ({'fsync': 'remote', 'sync_every': 5.0}, {'read_only': True, 'fsync': 'remote'}):
        check_for_mount(SyncPolicy(), origin='x', mountpoint='/m', **passes)  # type: ignore[arg-type]


# --- files -------------------------------------------------------------------------------------------------------------------------

def options(file: Path | None, **more: object) -> MountOptions:
    return MountOptions(context_id='i', context_name='n', mountpoint='/home/wuying', store_url='s3://b', state_dir='/s', cache_dir='/c',
                        runtime_dir='/r', log_file='/l', host_id='h', cache_size=1, policy_file=str(file) if file else None, **more)  # type: ignore[arg-type]


def test_a_policy_file_is_read_by_its_name(tmp_path: Path) -> None:
    """.toml is TOML; everything else JSON; what cannot be read is one line."""
    (tmp_path / 'p.TOML').write_text('[deletePolicy]\nsyncLocalFile = false\n')
    (tmp_path / 'p.json').write_text('{"deletePolicy": {"syncLocalFile": false}}')
    assert read_policy_file(tmp_path / 'p.TOML') == read_policy_file(tmp_path / 'p.json')
    for bad in (tmp_path, tmp_path / 'none'):
        with pytest.raises(UsageError, match=f'cannot read the policy {bad}'):
            read_policy_file(bad)


def test_a_changed_policy_file_is_checked_for_its_mount(tmp_path: Path) -> None:
    """As when mounting; what the mount is built on cannot change under it."""
    file = tmp_path / 'p.json'
    file.write_text('{"uploadPolicy": {"period": "9s"}}')
    assert reload_policy(options(file)).upload_policy.period == 9.0
    for text, said in (('{"uploadPolicy": {"autoUpload": "no"}}', 'not a boolean'), ('', 'empty'),
                       ('{"bwList": {"whiteLists": [{"path": "/home/wuying/x"}]}}', 'write "/x"'),
                       ('{"uploadPolicy": {"autoUpload": false}}', '--sync-every has no effect'),
                       ('{"uploadPolicy": {"uploadMode": "Archive"}}', 'uploadMode: cannot change while mounted'),
                       ('{"mappingPolicy": {"path": "/a"}}', 'mappingPolicy: cannot change while mounted')):
        file.write_text(text)
        with pytest.raises(UsageError, match=said):
            reload_policy(options(file, sync_every=5.0))
    archived = SyncPolicy(upload_policy=UploadPolicy(upload_mode='Archive'))
    file.write_text('{}')
    with pytest.raises(UsageError, match='uploadMode: cannot change while mounted'):
        reload_policy(options(file, policy=archived))
    with pytest.raises(UsageError, match='not mounted with --policy'):
        reload_policy(options(None))


def test_policies_travel_to_the_daemon() -> None:
    """As part of the mount's options, whatever they hold."""
    policy = parse({**whites({'path': 'a.*', 'isPathRegex': True}), 'uploadPolicy': {'period': '9s'}, 'mappingPolicy': {'path': 'C:\\x'}})
    made = msgspec.structs.replace(options(Path('/p')), policy=policy)
    assert MountOptions.from_json(made.to_json()) == made
