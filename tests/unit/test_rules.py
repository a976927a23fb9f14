"""What the sync policy says about single paths: white lists, excludes, regular expressions, lifecycles."""

from __future__ import annotations

import pytest

from ctxfs.policy import BWList, RecyclePolicy, SyncPolicy, WhiteList
from ctxfs.rules import Gate, Reach, Rules


def gate(*entries: WhiteList) -> Gate:
    return Gate(BWList(white_lists=entries))


SOURCES = WhiteList(path='/src', exclude_paths=('/node_modules', 'build/out'))
REGEX = WhiteList(path=r'project-.*', is_path_regex=True, exclude_paths=(r'cache.*',), is_exclude_regex=True)


@pytest.mark.parametrize('path, is_synced', [
    ('src', True), ('src/', True), ('src/a.py', True), ('src/deep/er/a', True), ('srcx', False), ('srcx/a', False), ('sr', False),
    ('src/node_modules', False), ('src/node_modules/x', False), ('src/node_modules2', True), ('src/a/node_modules', True),
    ('src/build', True), ('src/build/out', False), ('src/build/output', True), ('', True), ('other', False),
])  # fmt: skip
def test_a_white_list_is_a_path_prefix_at_whole_components_and_excludes_are_relative_to_it(path: str, is_synced: bool) -> None:
    """`/src` lets in src and what is below it, and not srcx."""
    assert gate(SOURCES).is_synced(path) is is_synced


@pytest.mark.parametrize('path, is_synced', [
    ('project-a', True), ('project-a/x', True), ('my-project-a', False), ('project', False), ('a/project-b', False),
    ('project-a/cache', False), ('project-a/cache2/x', False), ('project-a/x/cache', True),
])  # fmt: skip
def test_a_regular_expression_is_anchored_at_its_start_and_excludes_are_relative_to_the_matched_directory(path: str, is_synced: bool) -> None:
    """`project-.*` names first-level directories."""
    assert gate(REGEX).is_synced(path) is is_synced


def test_a_regular_expression_may_name_files_anywhere() -> None:
    """A leading slash is optional, as with plain paths."""
    one = gate(WhiteList(path=r'/.*\.json', is_path_regex=True, exclude_paths=(r'.*\.tmp',), is_exclude_regex=True))
    assert one.is_synced('a/b.json') and one.is_synced('b.json') and not one.is_synced('b.txt')


@pytest.mark.parametrize('entries', [(), (WhiteList(),), (WhiteList(path='/'),), (SOURCES, WhiteList())])
def test_no_entry_or_an_empty_path_means_everything(entries: tuple[WhiteList, ...]) -> None:
    """AGENTBAY.md §7."""
    assert gate(*entries).is_everything and gate(*entries).is_synced('any/thing')


def test_entries_are_a_union() -> None:
    """What one entry excludes another may let in."""
    both = gate(SOURCES, WhiteList(path='src/node_modules/mine'))
    assert both.is_synced('src/node_modules/mine/x') and not both.is_synced('src/node_modules/theirs')


def test_an_empty_path_with_excludes_lets_in_all_but_those() -> None:
    """The excludes of '' are relative to the root."""
    one = gate(WhiteList(exclude_paths=('.cache',)))
    assert not one.is_everything and one.is_synced('a/.cache') and not one.is_synced('.cache/x')


@pytest.mark.parametrize('path, names', [
    ('src/a', 'whiteLists[0] "/src"'), ('src/build/out/x', 'whiteLists[0].excludePaths[1] "build/out"'), ('zzz', 'no entry of'),
])  # fmt: skip
def test_a_decision_names_its_rule(path: str, names: str) -> None:
    """What `ctxfs explain` shows."""
    assert names in gate(SOURCES).decide(path).rule


@pytest.mark.parametrize('entries, directory, reach', [
    ((SOURCES,), 'src', Reach.SOME), ((WhiteList(path='src'),), 'src/a', Reach.ALL), ((SOURCES,), 'src/node_modules/a', Reach.NONE),
    ((WhiteList(path='a/b/c'),), 'a/b', Reach.SOME), ((WhiteList(path='a/b/c'),), 'a/x', Reach.NONE), ((REGEX,), 'zzz', Reach.SOME),
    ((SOURCES, WhiteList(path='src/node_modules/mine')), 'src/node_modules', Reach.SOME), ((), 'x', Reach.ALL), ((SOURCES,), '', Reach.SOME),
])  # fmt: skip
def test_reach_says_what_holds_for_everything_below_a_directory(entries: tuple[WhiteList, ...], directory: str, reach: Reach) -> None:
    """NONE and ALL must be true of every path below."""
    assert gate(*entries).reach(directory) is reach


def test_reach_never_contradicts_a_decision_below() -> None:
    """All combinations of a few entries and paths."""
    lists = [SOURCES, REGEX, WhiteList(path='a/b'), WhiteList(exclude_paths=('a',)), WhiteList(path='src/node_modules/x')]
    paths = ['src', 'src/node_modules', 'src/node_modules/x', 'a', 'a/b', 'a/b/c', 'project-1', 'project-1/cache', 'z']
    for one in lists:
        for other in lists:
            both = gate(one, other)
            for directory in paths:
                below = [both.is_synced(path) for path in paths if path.startswith(directory + '/')]
                assert both.reach(directory) is not Reach.NONE or not any(below)
                assert both.reach(directory) is not Reach.ALL or all(below)


def test_a_lifecycle_counts_below_the_recycle_paths() -> None:
    """'' for ever, elsewhere."""
    rules = Rules(SyncPolicy(recycle_policy=RecyclePolicy(lifecycle='Lifecycle_3Days', paths=('/logs', 'tmp'))))
    assert [rules.lifecycle_of(key) for key in ('logs/a', 'tmp', 'logsx', 'a/logs')] == ['Lifecycle_3Days', 'Lifecycle_3Days', '', '']
    rules.replace(SyncPolicy(recycle_policy=RecyclePolicy(lifecycle='Lifecycle_1Day')))
    assert rules.lifecycle_of('any/thing') == 'Lifecycle_1Day'
    assert Rules(SyncPolicy()).lifecycle_of('any/thing') == ''
