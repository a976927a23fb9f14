"""A bucket's lifecycle rules: seeing to it that one of ours is among them, and that nobody else's is touched.

Owns the XML of the rules and the read-modify-write around it. It must not know lifecycles' names or policies: an id, a tag and days.

PutBucketLifecycle replaces the whole set (docs.aws.amazon.com, "PutBucketLifecycleConfiguration"; OSS likewise) and knows no condition. So
the set that was read is sent back as the very bytes that came, with one rule added in front of its end: elements that ctxfs has never heard
of pass through. Then it is read again: if our rule is not there, or another is not what it was, somebody wrote at the same time, and it is
done once more. Two who add rules at the same instant can still lose one; ctxfs asks again with each mount and each day.
"""
from __future__ import annotations

import collections
import logging
import re
import time
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

from ctxfs.errors import CtxfsError, Exists, RemoteUnavailable, Unsupported
from ctxfs.storage.object_store import ExpiryRule
from ctxfs.storage.s3_client import S3Client, content_md5
from ctxfs.storage.s3_errors import code_of
from ctxfs.storage.s3_xml import parse_xml

log = logging.getLogger(__name__)

#: the code of the answer that says that the bucket has no rules
NO_RULES = 'NoSuchLifecycleConfiguration'
_NAMESPACE = 'http://s3.amazonaws.com/doc/2006-03-01/'
_ATTEMPTS = 4
#: lets another writer finish before the set is read again
_PAUSE_SECONDS = 0.2
_END = re.compile(rb'</LifecycleConfiguration\s*>\s*$')
#: a setting of the whole set that goes back to AWS's default unless it is sent again
_SET_HEADER = 'x-amz-transition-default-minimum-object-size'

#: what a rule says: (path of element names, text) of all its leaves that say something
Saying = frozenset[tuple[str, str]]


def is_lifecycle(body: bytes) -> bool:
    """Whether the body is a set of lifecycle rules, and not what a server sends that ignores `?lifecycle`."""
    try:
        return _local(parse_xml(body)) == 'LifecycleConfiguration'
    except ValueError:
        return False


def ensure_rule(client: S3Client, rule_id: str, *, tag: tuple[str, str], days: int) -> None:
    """See ObjectStore.ensure_expiry."""
    wanted = _saying_of(rule_id, tag, days)
    for _ in range(_ATTEMPTS):
        body, headers = _read(client)
        before = _rules(body)
        if _is_there(before, wanted, rule_id):
            return
        _write(client, _with_rule(body, rule_id, tag, days), headers)
        after = _rules(_read(client)[0])
        if _is_there(after, wanted, rule_id) and not _foreign(before, rule_id) - _foreign(after, rule_id):
            log.info('the bucket has the lifecycle rule %s now: objects with the tag %s=%s expire after %d days', rule_id, *tag, days)
            return
        time.sleep(_PAUSE_SECONDS)
    raise RemoteUnavailable(f'the lifecycle rule {rule_id} cannot be added: the rules of the bucket {client.bucket} keep changing')


def expiry_rules(client: S3Client, store_prefix: str) -> list[ExpiryRule]:
    """See ObjectStore.expiry_rules; prefixes are below `store_prefix`."""
    found = [_expiry(dict(saying)) for _, saying, _ in _rules(_read(client)[0])]
    return [rule._replace(prefix=rule.prefix.removeprefix(store_prefix) if rule.prefix.startswith(store_prefix) else '') for rule in found
            if rule is not None and (rule.prefix.startswith(store_prefix) or store_prefix.startswith(rule.prefix))]


def _expiry(said: dict[str, str]) -> ExpiryRule | None:
    """None for one that is off, or removes no objects. The filter stands in one of three places, by the age of who wrote it."""
    days, date = said.get('Expiration/Days'), said.get('Expiration/Date') or said.get('Expiration/CreatedBeforeDate')
    if said.get('Status') != 'Enabled' or not (days or date):
        return None
    filters = {path.removeprefix('Filter/').removeprefix('And/'): text for path, text in said.items()
               if path.startswith(('Filter/', 'Prefix', 'Tag/'))}
    prefix, key, value = filters.pop('Prefix', ''), filters.pop('Tag/Key', ''), filters.pop('Tag/Value', '')
    return ExpiryRule(said.get('ID', ''), prefix, f'{key}={value}' if key else '', ', '.join(f'{k} {v}' for k, v in sorted(filters.items())),
                      f'after {days} days' if days else f'at {date}')


def _read(client: S3Client) -> tuple[bytes, dict[str, str]]:
    """The bucket's set of rules ('' where there is none) and the headers to send with a new one."""
    try:
        response = client.request('GET', query={'lifecycle': ''}, what='read the lifecycle rules')
    except CtxfsError as exc:
        if code_of(exc) == NO_RULES:
            return b'', {}
        raise
    if not is_lifecycle(response.body):
        raise Unsupported('this store sends no lifecycle rules')
    setting = response.headers.get(_SET_HEADER)
    return response.body, {_SET_HEADER: setting} if setting else {}


def _write(client: S3Client, body: bytes, headers: dict[str, str]) -> None:
    client.request('PUT', query={'lifecycle': ''}, body=body, what='write the lifecycle rules', is_repeatable=True,
                   headers={'Content-MD5': content_md5(body), 'Content-Type': 'application/xml', **headers})


def _with_rule(body: bytes, rule_id: str, tag: tuple[str, str], days: int) -> bytes:
    rule = (f'<Rule><ID>{escape(rule_id)}</ID><Filter><Tag><Key>{escape(tag[0])}</Key><Value>{escape(tag[1])}</Value></Tag></Filter>'
            f'<Status>Enabled</Status><Expiration><Days>{days}</Days></Expiration></Rule>').encode()
    if not _rules(body):
        return (f'<?xml version="1.0" encoding="UTF-8"?><LifecycleConfiguration xmlns="{_NAMESPACE}">'.encode() + rule
                + b'</LifecycleConfiguration>')
    end = _END.search(body)
    if end is None:
        raise Unsupported('the lifecycle rules of this bucket are written in a way to which ctxfs cannot add')
    return body[:end.start()] + rule + body[end.start():]


def _rules(body: bytes) -> list[tuple[str, Saying, str]]:
    """(id, what it says, its canonical text) of each rule."""
    if not body:
        return []
    found = []
    for node in parse_xml(body):        # it was one when it was read
        if _local(node) == 'Rule':
            saying = frozenset(_leaves(node, ''))
            name = next((text for path, text in saying if path == 'ID'), '')
            found.append((name, saying, ET.canonicalize(ET.tostring(node, encoding='unicode'), strip_text=True)))
    return found


def _leaves(node: ET.Element, path: str) -> list[tuple[str, str]]:
    """Empty elements say nothing: servers add them (`<Prefix/>`) to what they are given."""
    leaves = []
    for child in node:
        below = f'{path}/{_local(child)}'.lstrip('/')
        text = (child.text or '').strip()
        leaves += _leaves(child, below) if len(child) else [(below, text)] if text else []
    return leaves


def _saying_of(rule_id: str, tag: tuple[str, str], days: int) -> Saying:
    return frozenset({('ID', rule_id), ('Status', 'Enabled'), ('Filter/Tag/Key', tag[0]), ('Filter/Tag/Value', tag[1]),
                      ('Expiration/Days', str(days))})


def _is_there(rules: list[tuple[str, Saying, str]], wanted: Saying, rule_id: str) -> bool:
    """Whether our rule is among them. Exists where its id is, and says something else: an administrator's word counts more."""
    same = [saying for name, saying, _ in rules if name == rule_id]
    if same and same[0] != wanted:
        said = ', '.join(f'{path}={text}' for path, text in sorted(same[0] - wanted)) or 'less'
        raise Exists(f'the bucket has a lifecycle rule {rule_id} that says something else ({said}): it is left as it is; remove or rename it '
                     'and ctxfs makes its own')
    return bool(same)


def _foreign(rules: list[tuple[str, Saying, str]], rule_id: str) -> collections.Counter[str]:
    return collections.Counter(text for name, _, text in rules if name != rule_id)


def _local(node: ET.Element) -> str:
    return node.tag.rpartition('}')[2]
