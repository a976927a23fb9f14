"""`ctxfs doctor`: each check has its line, and one that fails hides none of the others."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxfs.edge import cli, preflight
from ctxfs.edge.doctor import Finding, Level, examine
from ctxfs.errors import Denied


def test_a_check_that_raises_is_a_finding_and_the_others_go_on() -> None:
    """Its error is the text."""
    def broken() -> Iterator[Finding]:
        yield Finding(Level.OK, 'a', 'half of it')
        raise Denied('not allowed')
    found = list(examine([('a', broken), ('b', lambda: [Finding(Level.WARN, 'b', 'slow', 'wait')])]))
    assert found == [Finding(Level.OK, 'a', 'half of it'), Finding(Level.FAIL, 'a', 'not allowed'), Finding(Level.WARN, 'b', 'slow', 'wait')]


def test_the_exit_status_says_whether_anything_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A store that is there is ok; one that is not fails, with its line."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(preflight, 'check_fuse', lambda: None)
    assert cli.run(['doctor']) == 0
    assert 'ok   store: file://' in capsys.readouterr().out
    assert cli.run(['doctor', '--store', f'file://{tmp_path}/none', '--json']) == 1
    findings = {finding['check']: finding for finding in json.loads(capsys.readouterr().out)['findings']}
    assert findings['fuse']['level'] == 'ok'
    assert findings['store']['level'] == 'fail'
    assert str(tmp_path) in findings['store']['text']
