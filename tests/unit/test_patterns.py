"""Regular expressions of a policy: linear in time whatever they are, refused with what to write where RE2 does not know them."""
from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxfs.errors import UsageError
from ctxfs.patterns import MAX_LENGTH, Pattern, PatternError
from ctxfs.policy import SyncPolicy
from ctxfs.policy_parse import MAX_PATHS, parse_policy
from ctxfs.rules import Gate
from tests.fuzz.tools import fuzz


def parse(*white_lists: dict[str, object]) -> SyncPolicy:
    return parse_policy(json.dumps({'bwList': {'whiteLists': white_lists}}), origin='p')


def refusal(*white_lists: dict[str, object]) -> str:
    with pytest.raises(UsageError) as refused:
        parse(*white_lists)
    return str(refused.value)


@pytest.mark.parametrize('text', ['(a+)+$', '(a|aa)+$', '(.*a){20}$', '(a|a)*b', '(?:a?){50}a{50}$'])
def test_a_pattern_that_takes_for_ever_in_python_takes_no_time(text: str) -> None:
    """What backtracks 2^n times over a name that another host may have made. (Python's re takes days for each.)"""
    gate = Gate(parse({'path': text, 'isPathRegex': True}).bw_list)
    began = time.process_time()
    assert gate.decide('a' * 255 + '!') is not None
    assert time.process_time() - began < 5


@pytest.mark.parametrize(('text', 'hint'), [
    ('(?!keep).*', 'look-arounds are not possible; write what is to be left out into excludePaths'),
    ('(?<=a)b', 'look-arounds are not possible'), ('(?<!a)b', 'look-arounds are not possible'), ('(?=a)', 'look-arounds are not possible'),
    (r'(a)\1', 'back-references are not possible'), ('(?P<x>a)(?P=x)', 'back-references'), ('(a)?(?(1)b|c)', 'conditions are not possible'),
    ('(?>a)b', 'atomic groups'), ('a++b', 'possessive repetitions are not possible'), (r'a\Z', r'write \z for the end of the path'),
    ('(?x) a', 'does not know this kind of group'), ('a{1001}', 'at most 1000 repetitions'), ('(?:a{100}){100}', 'at most 1000 repetitions'),
    (r'[^\pL]{900}', 'make it simpler'), ('(?:a?){900}b{900}c', 'make it simpler'), ('x' * (MAX_LENGTH + 1), 'the most is 1000'),
    ('a(', 'missing ): a(; put \\ before a character that stands for itself')])
def test_what_re2_does_not_know_is_refused_with_what_to_write(text: str, hint: str) -> None:
    """For paths and for excludes, by their key, in one line."""
    for key, entry in [('path', {'path': text, 'isPathRegex': True}),
                       ('excludePaths[0]', {'path': 'a', 'excludePaths': [text], 'isExcludeRegex': True})]:
        message = refusal(entry)
        assert message.startswith(f'p: bwList.whiteLists[0].{key}: ') and 'not a regular expression: ' in message
        assert hint in message and '\n' not in message


def test_patterns_are_small_together_too() -> None:
    """Every one is matched against every name: many that are each within the bound are refused."""
    large = '(?:a?){200}b'
    assert parse({'path': 'a', 'excludePaths': [large], 'isExcludeRegex': True})
    assert 'together too large' in refusal({'path': 'a', 'excludePaths': [large + str(n) for n in range(100)], 'isExcludeRegex': True})
    assert f'the most is {MAX_PATHS}' in refusal(*[{'path': 'a', 'excludePaths': ['x'] * MAX_PATHS}])
    assert f'the most is {MAX_PATHS}' in refusal(*[{'path': 'a'}] * (MAX_PATHS + 1))


#: patterns of the kind that policies have, which both engines know
simple = st.recursive(
    st.sampled_from(['a', 'b', 'é', '.', '/', r'\.', '[ab]', '[^a/]', r'\d', 'x-']),
    lambda inner: st.one_of(st.tuples(inner, inner).map(''.join), inner.map('(?:{})*'.format), inner.map('(?:{})?'.format),
                            st.tuples(inner, inner).map(lambda two: '(?:{}|{})'.format(*two)), inner.map('{}$'.format)), max_leaves=6)


@given(simple, st.text('abé./1x-', max_size=12))
@fuzz
def test_a_pattern_means_what_it_meant_in_python(text: str, name: str) -> None:
    """Anchored at its start, `$` at the end of the text: for what both know, RE2 decides as Python's re did."""
    assert Pattern(text).matches(name) == (re.match(text.replace('$', r'\Z'), name, re.ASCII) is not None)


@given(st.text(max_size=30), st.text(max_size=30))
@fuzz
def test_any_text_is_a_pattern_or_refused(text: str, name: str) -> None:
    """Also one of halves of surrogates: a PatternError of one line, or a pattern that answers."""
    try:
        assert Pattern(text).matches(name) in (True, False)
    except PatternError as error:
        assert str(error)
