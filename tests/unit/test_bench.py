"""The pure parts of the bench: what becomes of samples, what is counted as a request, the rows, the drawing; and its proxy, over real sockets.

Nothing is asserted about times.
"""
from __future__ import annotations

import http.client
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench import chart, report, scale_tree
from bench.command import MEASURE, keep, parse, wanted_rows
from bench.delay_proxy import DelayProxy
from bench.figures import Samples, figure, is_fastest, results
from bench.requests import count
from bench.rows import BOTO, BY_NAME, CTXFS, GROUPS, LOCAL, RIVALS, ROWS
from bench.scale_server import Objects
from bench.world import SMALL, Sizes
from tests.fakes.s3_server import FakeS3, StoredObject

ROOT = Path(__file__).resolve().parents[2]
UNPACK, CREATE, FLUSH = BY_NAME['unpack'], BY_NAME['create'], BY_NAME['flush']


def document() -> dict:
    """A run in which every row was measured, by ctxfs exactly at its goal."""
    samples = Samples()
    for row in ROWS:
        for side in (CTXFS, *(RIVALS if row.basis in (LOCAL, BOTO) else ())):
            value = row.goal * (1 if side == CTXFS else 7)
            samples.add(row.name, side, {side: value, **({row.basis: 1.0} if row.basis else {})})
    samples.note('flush', 'a note with <angle brackets> & more')
    return report.document(results(ROWS, samples), sizes=SMALL, rounds=1, took=1.0, directory=ROOT, missing=['s3fs: needs s3fs'])


def test_a_ratio_is_of_the_medians_and_its_range_of_the_rounds() -> None:
    found = figure(UNPACK, CTXFS, [{CTXFS: 2.0, LOCAL: 1.0}, {CTXFS: 9.0, LOCAL: 3.0}, {CTXFS: 3.0, LOCAL: 2.0}])
    assert found == (3.0 / 2.0, 1.5, 3.0, 3.0, 2.0)


def test_a_row_without_a_basis_says_what_was_measured() -> None:
    assert figure(FLUSH, CTXFS, [{CTXFS: 5.0}, {CTXFS: 1.0}, {CTXFS: 4.0}]) == (4.0, 1.0, 5.0, 4.0, None)


def test_a_basis_of_nothing_is_no_crash() -> None:
    assert figure(CREATE, CTXFS, [{CTXFS: 5.0, LOCAL: 0.0}]).value == float('inf')


@pytest.mark.parametrize(('row', 'value', 'is_met'), [(UNPACK, 1.6, True), (UNPACK, 1.61, False), (CREATE, 0.35, True), (CREATE, 0.34, False)])
def test_goals_are_met_from_their_own_side(row, value: float, is_met: bool) -> None:
    samples = Samples()
    samples.add(row.name, CTXFS, {CTXFS: value, LOCAL: 1.0})
    entry, = results(ROWS, samples)
    assert (entry['met'], entry['fastest'], entry['value']) == (is_met, None, value)


def test_ahead_means_ahead_of_each_other_mount() -> None:
    assert is_fastest(UNPACK, {CTXFS: {'value': 2}, 'rclone': {'value': 3}, 's3fs': {'value': 4}})
    assert not is_fastest(UNPACK, {CTXFS: {'value': 3}, 'rclone': {'value': 2}, 's3fs': {'value': 4}})
    assert is_fastest(CREATE, {CTXFS: {'value': 3}, 'rclone': {'value': 2}})


def test_every_row_is_measured_and_named_once() -> None:
    assert set(MEASURE) == set(GROUPS)
    assert len(BY_NAME) == len(ROWS)


def test_the_document_has_every_row_with_its_goal() -> None:
    """docs/BENCHMARK.md repeats the table of rows."""
    text = (ROOT / 'docs/BENCHMARK.md').read_text()
    listed = re.findall(r'^\| `([\w-]+)` \| ([^|]+) \| ([^|]+) \|$', text, re.M)
    assert listed == [(row.name, row.title, f'{row.direction} {row.goal:,g} {row.unit}') for row in ROWS]


def test_rows_are_chosen_by_name_and_by_group() -> None:
    assert wanted_rows([]) == set(BY_NAME)
    assert wanted_rows(['find,flush-20ms']) == {'find', 'flush-20ms', 'flush-20ms-ceiling', 'remove-requests'}
    with pytest.raises(SystemExit, match='no row or group is called nonsense'):
        wanted_rows(['nonsense'])


def test_small_sizes_are_smaller() -> None:
    assert all(small < whole for small, whole in zip(SMALL, Sizes(), strict=True))


def test_the_chart_is_svg_with_a_mark_for_each_side() -> None:
    found = document()
    drawing = ET.fromstring(chart.draw(found))
    said = [element.text or '' for element in drawing.iter('{http://www.w3.org/2000/svg}title')]
    assert any(text.startswith('rclone: ') for text in said)
    texts = [element.text or '' for element in drawing.iter('{http://www.w3.org/2000/svg}text')]
    assert any(text.startswith(found['date']) for text in texts)
    width, height = (float(drawing.attrib[name]) for name in ('width', 'height'))
    for mark in drawing.iter('{http://www.w3.org/2000/svg}circle'):
        assert 0 < float(mark.attrib['cx']) < width and 0 < float(mark.attrib['cy']) < height


def test_the_chart_of_one_row_is_a_chart() -> None:
    found = document()
    found['results'] = [result for result in found['results'] if result['name'] == 'unpack']
    ET.fromstring(chart.draw(found))


def test_what_was_kept_is_printed_and_drawn_again(tmp_path: Path) -> None:
    arguments = parse(['--json', str(tmp_path / 'a.json'), '--chart', str(tmp_path / 'a.svg'), '--markdown', str(tmp_path / 'a.md')])
    keep(document(), arguments)
    kept = json.loads((tmp_path / 'a.json').read_text())
    assert chart.draw(kept) == (tmp_path / 'a.svg').read_text()
    assert '| unpack 2,500 files, 100 MB |' in (tmp_path / 'a.md').read_text()
    lines = '\n'.join(report.lines(kept))
    assert 'left out: s3fs: needs s3fs' in lines and 'MISS' not in lines


def test_a_document_gets_the_table_between_its_marks(tmp_path: Path) -> None:
    path, whole = tmp_path / 'a.md', f'above\n\n{report.BEGIN}superseded\n{report.END}\nbelow\n'
    path.write_text(whole)
    (tmp_path / 'docs').mkdir()
    for _ in range(2):
        keep(document(), parse(['--markdown', str(path), '--chart', str(tmp_path / 'docs/a.svg')]))
    text = path.read_text()
    assert text.startswith('above\n') and text.endswith('\nbelow\n') and 'superseded' not in text
    assert text.count('| unpack 2,500 files, 100 MB |') == text.count('](docs/a.svg)') == 1


def test_requests_are_counted_without_what_belongs_to_no_operation() -> None:
    counted = count([('PUT', '/b/contexts/c/a'), ('PUT', '/b/contexts/c/.ctxfs/index/x'), ('PUT', '/b/contexts/c/.ctxfs/mounts/x'),
                     ('GET', '/b?list-type=2&prefix=x'), ('HEAD', '/b/.ctxfs/probe-1'), ('GET', '/b/contexts/c/b')])
    assert counted.total == 4
    assert counted.kinds['GET', 'list'] == counted.kinds['PUT', 'index'] == counted.kinds['HEAD', 'probe'] == 1


def test_the_proxy_passes_everything_and_tells_requests_apart() -> None:
    """Also large bodies, answers that come late, and a connection that the client keeps."""
    body = os.urandom(3_000_001)
    with FakeS3() as server, DelayProxy(server.endpoint) as proxy:
        server.objects['large'] = StoredObject(body, {}, '"e"', 0)
        connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=30)
        for method, key, sent in (('PUT', 'new', body), ('GET', 'large', b''), ('HEAD', 'new', b''), ('GET', 'missing', b'')):
            connection.request(method, f'/bucket/{key}', body=sent)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == {'missing': (404, answer_body(server))}.get(key, (200, body if method == 'GET' else b''))
        assert server.objects['new'].body == body
        assert proxy.requests() == [('PUT', '/bucket/new'), ('GET', '/bucket/large'), ('HEAD', '/bucket/new'), ('GET', '/bucket/missing')]
        proxy.delay(0.001)
        proxy.reset()
        connection.request('GET', '/bucket/large')
        assert connection.getresponse().read() == body
        assert proxy.requests() == [('GET', '/bucket/large')]
        connection.close()


def answer_body(server: FakeS3) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=30)
    connection.request('GET', '/bucket/missing')
    body = connection.getresponse().read()
    connection.close()
    return body


def test_what_find_must_print_is_what_find_prints(tmp_path: Path) -> None:
    """The tree of a scale row, made on the disk; a wrong mode, a wrong target and a missing file are found."""
    from bench.processes import run

    total = 120
    for number in range(total):
        one = scale_tree.file(number)
        path = tmp_path / one.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if one.target is None:
            path.write_bytes(one.body)
            path.chmod(one.mode & 0o7777)
        else:
            path.symlink_to(os.fsdecode(one.target))
        os.utime(path, ns=(one.mtime_ns, one.mtime_ns), follow_symlinks=False)
    for directory in reversed([*scale_tree.directories(total)]):
        (tmp_path / directory.path).chmod(directory.mode & 0o7777)
        os.utime(tmp_path / directory.path, ns=(directory.mtime_ns, directory.mtime_ns))

    def said() -> str:
        return run('find', tmp_path, '-mindepth', '1', '-printf', scale_tree.PRINTF).decode()

    assert scale_tree.differences(said(), total) == []
    (tmp_path / scale_tree.path_of(1)).chmod(0o640)
    assert len(scale_tree.differences(said(), total)) == 2
    (tmp_path / scale_tree.path_of(1)).unlink()
    assert [line.partition(':')[0] for line in scale_tree.differences(said(), total)] == ['printed', 'missing', 'missing']


def test_numbered_objects_are_in_the_order_of_their_keys() -> None:
    objects = Objects()
    objects.fill('p/', 2345)
    keys = [*objects]
    assert keys == sorted(keys) and len(set(keys)) == 2345
    assert [*objects.keys_from(keys[777])] == keys[777:]
    assert all(objects.number(key) == number for number, key in enumerate(keys))
