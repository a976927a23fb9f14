"""The white lists of --browser are the SDK's, and are laid over a policy but never over white lists that somebody wrote."""
from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

from ctxfs.errors import UsageError
from ctxfs.policy import BWList, DeletePolicy, SyncPolicy, WhiteList
from ctxfs.policy_parse import parse_policy, policy_to_bytes
from ctxfs.policy_presets import BROWSER, Browser, with_browser

SOURCE = Path(str(importlib.metadata.distribution('wuying-agentbay-sdk').locate_file('agentbay/_sync/agentbay.py')))


def lists_of_the_sdk() -> list[list[str]]:
    """Each list of WhiteList(path="…") in the SDK's source, the shortest first."""
    lists = [node for node in ast.walk(ast.parse(SOURCE.read_text())) if isinstance(node, ast.List) and node.elts]
    paths = [[keyword.value.value for element in found.elts if isinstance(element, ast.Call) for keyword in element.keywords
              if keyword.arg == 'path' and isinstance(keyword.value, ast.Constant)] for found in lists]
    return sorted((found for found in paths if '/Local State' in found), key=len)


def test_the_lists_are_the_sdks() -> None:
    """Entry for entry."""
    ours = [[entry.path for entry in BROWSER[name].white_lists] for name in ('minimal', 'standard')]
    assert lists_of_the_sdk() == ours
    assert [len(found) for found in ours] == [3, 19]


@pytest.mark.parametrize('white_lists', [(), (WhiteList(),), BROWSER['minimal'].white_lists, BROWSER['standard'].white_lists])
@pytest.mark.parametrize('preset', ['minimal', 'standard'])
def test_a_preset_is_laid_over_everything_else(preset: Browser, white_lists: tuple[WhiteList, ...]) -> None:
    """Over no white lists, over "everything", over a preset; the other parts stay. It is a policy as any other: written and read, it is the same."""
    policy = SyncPolicy(delete_policy=DeletePolicy(sync_local_file=False), bw_list=BWList(white_lists=white_lists))
    found = with_browser(policy, preset, origin='p.json')
    assert found.bw_list == BROWSER[preset] and found.delete_policy == policy.delete_policy
    assert parse_policy(policy_to_bytes(found), origin='p.json') == found
    assert with_browser(policy, None, origin='p.json') == policy


def test_white_lists_of_somebody_are_not_replaced() -> None:
    """One line that says what to leave out."""
    with pytest.raises(UsageError, match=r'^p\.json: bwList: --browser minimal brings white lists of its own; leave out --browser, or bwList'):
        with_browser(SyncPolicy(bw_list=BWList(white_lists=(WhiteList(path='/src'),))), 'minimal', origin='p.json')
