import math
import random

import numpy as np
import pytest
from sacrebleu.metrics import CHRF
from scipy import stats

from sdrrl_trl.evaluation.significance import compare


RNG = random.Random(0)
WORDS = "the sky is blue because air scatters light o céu é azul porque o ar espalha a luz 天 空".split()


def sentence(n=12):
    return " ".join(RNG.choices(WORDS, k=n))


def noisy(text):
    return " ".join(RNG.choice(WORDS) if RNG.random() < 0.4 else word for word in text.split())


def test_corpus_chrf_is_that_of_sacrebleu():
    references = [sentence() for _ in range(30)]
    base = [(reference, noisy(reference)) for reference in references]
    tuned = [(reference, noisy(reference)) for reference in references]
    result = compare("chrf++", base, tuned)
    for items, score in ((base, result.base), (tuned, result.tuned)):
        expected = CHRF(word_order=2).corpus_score([answer for _, answer in items], [references]).score
        assert score == pytest.approx(expected, abs=1e-9)
    assert result.low < result.delta < result.high and result.n == 30


def test_bits_per_byte_is_the_ratio_of_the_sums():
    result = compare("bits_per_byte", [(-10.0, 10), (-30.0, 90)], [(-5.0, 10), (-15.0, 90)])
    assert result.base == pytest.approx(40 / 100 / math.log(2))
    assert result.tuned == pytest.approx(result.base / 2)


def test_the_interval_of_a_mean_is_near_that_of_scipy():
    rng = np.random.default_rng(0)
    base, tuned = rng.normal(0, 1, 200), rng.normal(0.3, 1, 200)
    ours = compare("score", list(base), list(tuned), n_resamples=4000)
    theirs = stats.bootstrap((tuned - base,), np.mean, method="percentile", n_resamples=4000, rng=rng)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_the_same_seed_gives_the_same_interval_and_equal_models_give_zero():
    items = [RNG.random() for _ in range(50)]
    other = [RNG.random() for _ in range(50)]
    assert compare("x", items, other) == compare("x", items, other)
    same = compare("x", items, items)
    assert (same.delta, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize("base, tuned", [([1.0], [1.0, 2.0]), ([], []), ([float("nan")], [1.0])])
def test_items_that_cannot_be_paired_or_averaged_are_refused(base, tuned):
    with pytest.raises(ValueError):
        compare("x", base, tuned)
