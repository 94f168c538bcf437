"""The measurements that the documentation quotes, in small."""

from builder import segments_sent


def test_distinct_segments_are_fewer_than_sentences():
    loop, sent, distinct = segments_sent()
    assert 0 < distinct <= sent < loop
