"""The measurements that the documentation quotes, in small."""

import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # in front, its evaluate.py hides the package
from builder import segments_sent  # noqa: E402


def test_distinct_segments_are_fewer_than_sentences():
    loop, sent, distinct = segments_sent()
    assert 0 < distinct <= sent < loop
