"""Two hosts, an outside writer and a store whose answers get lost, without kernels: nothing acknowledged is lost, no conflict is a false one.

Owns the size of a run: `CTXFS_FUZZ_PROGRAMS` programs (scripts/fuzz sets it), `CTXFS_FUZZ_SEED` to repeat one. `python -m
tests.model.pair_search` searches on and shortens what it finds; that stays below as a regression.
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ctxfs.errors import CtxfsError
from ctxfs.storage.object_store import Condition
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.planner import Planner
from ctxfs.sync.removals import Removals
from tests.model.archived_pair import ArchivedWorld
from tests.model.history import History, Violation
from tests.model.pair import Operation, play
from tests.model.pair_draw import drawn
from tests.model.pair_search import WORLDS, options_of
from tests.model.seeds import first_seed

PROGRAMS = int(os.environ.get('CTXFS_FUZZ_PROGRAMS', '20'))
LENGTH = 50


@pytest.mark.parametrize('mode', sorted(WORLDS))
@pytest.mark.timeout(120 + 20 * PROGRAMS)
def test_two_hosts_lose_nothing_of_each_others(mode: str, tmp_path: Path) -> None:
    """Any program: each acknowledged version is in the bucket, or was overwritten or removed by somebody who had seen it; both hosts and a
    third show the bucket; and nobody is told of a conflict with what he had seen."""
    first = first_seed()
    for seed in range(first, first + PROGRAMS):
        program, options = drawn(seed, LENGTH), options_of(seed, mode)
        (tmp_path / str(seed)).mkdir()
        try:
            play(tmp_path / str(seed), program, **options)
        except Exception as error:
            raise AssertionError(f'CTXFS_FUZZ_SEED={seed} CTXFS_FUZZ_PROGRAMS=1: {error!r}; shorten it with python -m tests.model.pair_search {seed} '
                                 f'1 {LENGTH} {mode}') from error


REGRESSIONS: dict[str, tuple[list[Operation], dict[str, Any]]] = {
    'regression_large_file_of_the_same_content': ([('write', 1, 'a', 400), ('same', 0, 'a')], {}),
    'regression_answer_lost_while_a_refused_upload_is_looked_at': (
        [('put', 'b', 0), ('poll', 0, {}), ('same', 1, 'b'), ('flush', 1, {3: ('lose',)})], {}),
    'regression_becomes_what_was_published_while_the_refusal_is_looked_at': (
        [('append', 0, 'b'), ('append', 1, 'b'), ('flush', 1, {}), ('flush', 0, {2: ('same', 0, 'b')})], {}),
    'regression_becomes_what_was_published_while_a_conflict_is_looked_at': (
        [('write', 1, 'b', 400), ('append', 0, 'b'), ('flush', 1, {}), ('clock', 0, {3: ('same', 0, 'b')})],
        {'page': 2, 'store': 'by version'}),
    'regression_upload_in_doubt_is_not_held_when_a_directory_takes_the_name': (
        [('write', 0, 'b', 10), ('flush', 0, {}), ('append', 0, 'e'), ('flush', 0, {3: ('lose',), 1: ('lose',)}),
         ('poll', 1, {3: ('put', 'e/x', 10)})], {'preferences': ('prefer-remote', 'keep-both'), 'store': 'by content'}),
    'regression_attributes_told_while_the_file_was_dirty': (
        [('put', 'a', 10), ('poll', 0, {}), ('open', 1, 1, 'c'), ('chmod', 0, 'a', 0o640), ('write', 1, 'a', 0)], {}),
    'regression_attributes_told_while_a_directory_had_the_name': (
        [('write', 1, 'a.txt', 10), ('mkdir', 1, 'a'), ('flush', 1, {}), ('chmod', 1, 'a.txt', 0o755), ('flush', 1, {}), ('write', 0, 'd', 10),
         ('write', 0, 'a', 400), ('poll', 0, {}), ('exchange', 0, 'a', 'a.txt'), ('symlink', 1, 'b')],
        {'preferences': ('prefer-local', 'prefer-local'), 'store': 'by version'}),
    'regression_symlink_removed_there_while_its_index_record_waits_here': (
        [('symlink', 1, 'a'), ('put', 'a', 10), ('write', 0, 'b', 0), ('rename', 1, 'a', 'b'), ('flush', 1, {2: ('drop',)}), ('delete', 'b'),
         ('poll', 1, {})], {'in_flight': 4}),
    'regression_file_removed_there_while_its_index_record_waits_here': (
        [('write', 1, 'a', 9), ('put', 'a', 10), ('write', 0, 'b', 0), ('rename', 1, 'a', 'b'), ('flush', 1, {2: ('drop',)}), ('delete', 'b'),
         ('poll', 1, {})], {'in_flight': 4}),
    'regression_another_host_publishes_the_same_between_the_looks_at_a_conflict': (
        [('write', 0, 'a', 10), ('write', 1, 'a', 150), ('flush', 0, {}), ('clock', 1, {}), ('poll', 0, {}), ('write', 0, 'a', 10),
         ('write', 1, 'a', 0), ('clock', 0, {}), ('same', 0, 'a'), ('flush', 1, {3: ('flush', 0, {})})],
        {'preferences': ('keep-both', 'prefer-local'), 'in_flight': 4, 'store': 'by version'}),
    'regression_file_where_another_host_made_a_directory': ([('put', 'd/x', 10), ('write', 1, 'd', 10)], {}),
    'regression_directory_where_another_host_made_a_file': ([('append', 1, 'd'), ('flush', 1, {}), ('mkdir', 0, 'd'), ('flush', 0, {})], {}),
    'regression_published_file_has_the_name_of_a_held_one': (
        [('append', 0, 'a.txt'), ('flush', 0, {}), ('write', 1, 'a.txt', 0), ('append', 0, 'a.txt'), ('flush', 1, {}), ('flush', 0, {})],
        {'preferences': ('prefer-remote', 'prefer-local')}),
    'regression_link_removed_there_while_its_index_record_waits_here': (
        [('mkdir', 0, 'd'), ('append', 0, 'a'), ('rename', 0, 'a', 'c'), ('clock', 0, {}), ('poll', 1, {}), ('link', 0, 'c', 'd/y'),
         ('rename', 1, 'c', 'd/y')], {'store': 'by version'}),
    'regression_moved_link_of_a_file_that_was_rewritten_to_the_same_length': (
        [('append', 0, 'a.txt'), ('write', 1, 'b', 10), ('link', 0, 'a.txt', 'a'), ('write', 1, 'd/x', 400), ('rename', 0, 'a', 'b'),
         ('append', 1, 'c'), ('write', 1, 'c', 10), ('flush', 0, {}), ('write', 1, 'd/x', 10), ('put', 'd', 10), ('flush', 1, {2: ('die', False)}),
         ('write', 1, 'd/x', 150), ('flush', 1, {6: ('append', 1, 'd'), 4: ('rename', 1, 'b', 'c')}), ('write', 0, 'b', 0)], {}),
    'regression_attributes_told_of_a_version_that_was_replaced': (
        [('write', 0, 'a', 10), ('flush', 0, {}), ('poll', 1, {}), ('write', 1, 'a', 10), ('flush', 1, {}), ('chmod', 1, 'a', 0o600),
         ('flush', 1, {}), ('chmod', 0, 'a', 0o755), ('flush', 0, {})], {}),
    'regression_archive_attributes_told_of_a_version_that_was_replaced': (
        [('write', 0, 'a', 10), ('flush', 0, {}), ('poll', 1, {}), ('write', 1, 'a', 10), ('flush', 1, {}), ('chmod', 1, 'a', 0o600),
         ('flush', 1, {}), ('chmod', 0, 'a', 0o755), ('flush', 0, {})], {'world': ArchivedWorld}),
    'regression_link_to_where_another_host_moved_the_file': (
        [('write', 0, 'b', 10), ('flush', 0, {}), ('poll', 1, {}), ('link', 0, 'b', 'a'), ('rename', 1, 'b', 'a'), ('flush', 1, {}),
         ('flush', 0, {})], {}),
    'regression_link_that_may_have_arrived_where_another_host_moved_the_file': (
        [('write', 0, 'b', 10), ('flush', 0, {}), ('poll', 1, {}), ('link', 0, 'b', 'a'), ('clock', 0, {1: ('drop',)}), ('rename', 1, 'b', 'a'),
         ('flush', 1, {}), ('poll', 0, {}), ('flush', 0, {})], {}),
    'regression_link_that_may_have_arrived_where_another_host_moved_the_file_and_made_it_anew': (
        [('write', 0, 'b', 10), ('flush', 0, {}), ('poll', 1, {}), ('link', 0, 'b', 'a'), ('clock', 0, {1: ('drop',)}), ('rename', 1, 'b', 'a'),
         ('write', 1, 'b', 10), ('flush', 1, {}), ('poll', 0, {}), ('flush', 0, {})], {}),
    'regression_archive_object_that_no_listing_showed_over_a_member_that_grows': (
        [('write', 0, 'a', 10), ('flush', 0, {}), ('poll', 1, {}), ('write', 0, 'a', 400), ('put', 'a', 10), ('write', 1, 'a', 400)],
        {'page': 2, 'in_flight': 4, 'store': 'by content', 'world': ArchivedWorld}),
    'regression_archive_objects_put_twice_around_a_commit': (
        [('write', 0, 'e', 150), ('append', 1, 'd'), ('flush', 1, {5: ('put', 'd', 10)}), ('put', 'd', 150), ('write', 1, 'e', 150)],
        {'preferences': ('prefer-local', 'keep-both'), 'in_flight': 4, 'world': ArchivedWorld}),
    'regression_archive_member_behind_an_object_that_has_no_place': (
        [('put', 'd', 0), ('write', 0, 'd', 10), ('put', 'd/y', 10), ('flush', 0, {}), ('poll', 1, {}), ('write', 1, 'a', 10),
         ('write', 1, 'd/x', 150)],
        {'preferences': ('prefer-local', 'prefer-local'), 'store': 'by content', 'world': ArchivedWorld}),
    'regression_archive_first_commit_while_an_empty_log_is_looked_at': (
        [('append', 0, 'a'), ('clock', 0, {3: ('die', True)}), ('write', 1, 'a', 10), ('flush', 1, {10: ('flush', 0, {})})],
        {'in_flight': 4, 'world': ArchivedWorld}),
    'regression_archive_member_that_another_host_replaces_while_it_is_open_for_writing': (
        [('open', 1, 0, 'a'), ('flush', 1, {}), ('poll', 0, {}), ('write', 0, 'a', 10), ('flush', 0, {}), ('poll', 1, {})], {'world': ArchivedWorld}),
    'regression_archive_member_that_another_host_removes_while_it_is_open_for_writing': (
        [('write', 1, 'a', 10), ('flush', 1, {}), ('open', 1, 0, 'a'), ('poll', 0, {}), ('unlink', 0, 'a'), ('flush', 0, {}), ('poll', 1, {})],
        {'world': ArchivedWorld}),
    'regression_archive_object_replaced_while_who_has_its_content_finds_a_conflict': (
        [('mkdir', 1, 'd'), ('flush', 1, {5: ('put', 'd/y', 10), 10: ('die', True)}), ('write', 1, 'd/x', 10), ('exchange', 1, 'd/x', 'd/y'),
         ('write', 0, 'a', 0), ('rename', 1, 'd/x', 'a')], {'store': 'by version', 'world': ArchivedWorld}),
    'regression_archive_member_replaced_while_who_has_its_content_finds_a_conflict': (
        [('mkdir', 1, 'd'), ('write', 1, 'd/y', 10), ('flush', 1, {}), ('remount', 1, {}), ('write', 1, 'd/x', 10), ('exchange', 1, 'd/x', 'd/y'),
         ('write', 0, 'a', 0), ('flush', 0, {}), ('rename', 1, 'd/x', 'a')], {'store': 'by version', 'world': ArchivedWorld}),
    'regression_archive_file_where_another_host_has_just_made_a_directory': (
        [('mkdir', 0, 'e'), ('write', 1, 'e', 10)], {'preferences': ('keep-both', 'prefer-remote'), 'world': ArchivedWorld}),
    'regression_archive_file_where_another_host_makes_a_directory_while_it_is_packed': (
        [('mkdir', 0, 'e'), ('write', 1, 'e', 10), ('flush', 1, {6: ('flush', 0, {})})],
        {'preferences': ('keep-both', 'prefer-remote'), 'world': ArchivedWorld}),
    'regression_archive_object_over_a_member_that_is_open_for_writing': (
        [('mkdir', 0, 'e'), ('flush', 0, {}), ('write', 0, 'e/x', 10), ('poll', 1, {3: ('put', 'a', 10)}), ('write', 1, 'e/x', 0), ('put', 'e/x', 0),
         ('flush', 0, {}), ('open', 0, 1, 'e/x'), ('poll', 0, {})],
        {'preferences': ('prefer-local', 'keep-both'), 'store': 'by content', 'world': ArchivedWorld}),
    'regression_archive_same_content_put_by_another_tool': (
        [('put', 'c', 10), ('poll', 0, {}), ('same', 1, 'c')], {'page': 2, 'world': ArchivedWorld}),
}


@pytest.mark.parametrize('name', sorted(REGRESSIONS))
def test_regressions_stay_fixed(name: str, tmp_path: Path) -> None:
    """Each program that once broke a promise keeps it."""
    program, options = REGRESSIONS[name]
    play(tmp_path, program, **options)


# --- the judge can condemn ----------------------------------------------------------------------------------------------------------

DISAGREE: list[Operation] = [
    ('write', 0, 'a', 10), ('flush', 0, {}), ('poll', 1, {}), ('write', 0, 'a', 10), ('write', 1, 'a', 10), ('flush', 0, {}), ('flush', 1, {})]


def test_an_unconditional_upload_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that overwrites what it has not seen loses a version, and that is said."""
    condition = Planner.condition
    monkeypatch.setattr(Planner, 'condition', lambda self, key: (Condition(), condition(self, key)[1]))
    with pytest.raises(Violation, match='lost: '):
        play(tmp_path, DISAGREE)


def test_a_retry_that_does_not_know_itself_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload whose answer is lost, and that is taken for somebody else's, is a false conflict."""
    def refuse(context: object, key: str, digest: str, error: CtxfsError, **more: object) -> None:
        raise error
    monkeypatch.setattr('ctxfs.sync.worker_ops_put._recover', refuse)
    monkeypatch.setattr(Doubt, '_is_ours', lambda self, item, revision, sign: False)
    with pytest.raises(Violation, match='false conflicts: '):
        play(tmp_path, [('write', 0, 'a', 10), ('flush', 0, {1: ('lose',)}), ('flush', 0, {})])


def test_a_listing_that_removes_what_was_changed_here_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dirty file that follows the bucket loses what was written."""
    monkeypatch.setattr(Removals, 'may_follow', lambda self, inode: True)
    with pytest.raises(Exception, match=r'lost: |nobody wrote|shows'):
        play(tmp_path, [*DISAGREE[:-1], ('poll', 1, {})])


def test_the_history_knows_who_had_seen_what() -> None:
    """A version may go only by somebody who had seen it; ancestry goes over any number of hosts."""
    history = History()
    history.write(b'1', by='a', over=None)
    history.write(b'2', by='b', over=b'1')
    history.write(b'3', by='a', over=b'1')
    for version in (b'1', b'2', b'3'):
        history.acknowledge(version, 'closed')
    history.check_present({b'2', b'3'})
    with pytest.raises(Violation, match="lost: '2'"):
        history.check_present({b'3'})
    history.write(b'4', by='a', over=b'2')
    history.check_present({b'3', b'4'})
    assert history.why_false(b'4', b'1') and history.why_false(b'1', b'4') and history.why_false(b'3', b'3')
    assert not history.why_false(b'4', b'3')
    with pytest.raises(Violation, match='nobody wrote'):
        history.check_known(b'12', 'a')
