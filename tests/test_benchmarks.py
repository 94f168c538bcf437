"""The measurements that the documentation quotes, in small."""

import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # in front, its evaluate.py hides the package
from builder import mask_fidelity, segments_sent  # noqa: E402


def test_no_code_link_or_tag_of_real_markdown_is_changed_by_a_translator_that_changes_every_letter():
    counts = mask_fidelity(400)
    assert counts["rows"] >= 150 and counts["spans"] >= 1000
    assert counts["intact"] == counts["rows"]
    assert counts["fence_only"] < 0.5 * counts["rows"]  # the measure can fail


def test_distinct_segments_are_fewer_than_sentences():
    loop, sent = segments_sent()
    assert 0 < sent < loop
