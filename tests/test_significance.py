import math
import random

import numpy as np
import pytest
from conftest import cases
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest
from scipy import stats

from sdrrl_trl.evaluation import significance
from sdrrl_trl.evaluation.significance import bootstrap, compare_pairs, holm, item_statistics, mcnemar


RNG = random.Random(0)
WORDS = "the sky is blue because air scatters light o céu é azul porque o ar espalha a luz 天 空".split()


@pytest.fixture(autouse=True)
def same_texts_in_any_order_of_tests():
    RNG.seed(0)


def sentence(n=12):
    return " ".join(RNG.choices(WORDS, k=n))


def noisy(text, share=0.4, rng=RNG):
    return " ".join(rng.choice(WORDS) if rng.random() < share else word for word in text.split())


def compare(metric, base, tuned, n_resamples=1000, seed=1234):
    (found,) = bootstrap([(metric, item_statistics(metric, base), item_statistics(metric, tuned))], n_resamples, seed)
    return found


def test_bits_per_byte_is_the_ratio_of_the_sums():
    result = compare("bits_per_byte", [(-10.0, 10), (-30.0, 90)], [(-5.0, 10), (-15.0, 90)])
    assert result.base == pytest.approx(40 / 100 / math.log(2))
    assert result.tuned == pytest.approx(result.base / 2)


def test_the_same_seed_gives_the_same_interval_and_equal_models_give_zero():
    items = [RNG.random() for _ in range(50)]
    other = [RNG.random() for _ in range(50)]
    assert compare("x", items, other) == compare("x", items, other)
    same = compare("x", items, items)
    assert (same.delta, same.low, same.high, same.p) == (0, 0, 0, 1.0)
    pairs = [(text, noisy(text)) for text in (sentence() for _ in range(20))]
    assert compare("chrf++", pairs, pairs).p == 1.0


METRICS = {"bleu_13a": BLEU(), "bleu_char": BLEU(tokenize="char"), "ter": TER()}
METRICS |= {"chrf": CHRF(), "chrf++": CHRF(word_order=2)}


@pytest.mark.parametrize("name", METRICS)
def test_corpus_metrics_are_those_of_sacrebleu(name):
    references = [sentence() for _ in range(30)]
    base, tuned = ([(reference, noisy(reference)) for reference in references] for _ in range(2))
    result = compare(name, base, tuned, n_resamples=100)
    for items, score in ((base, result.base), (tuned, result.tuned)):
        expected = METRICS[name].corpus_score([answer for _, answer in items], [references]).score
        assert score == pytest.approx(expected, abs=1e-9)
    assert result.low < result.delta < result.high and result.n == 30


@pytest.mark.parametrize("noise", [0.4, 0.5])
def test_the_paired_bootstrap_counts_both_sides_where_sacrebleu_counts_one(noise):
    references = [sentence() for _ in range(120)]
    rng = random.Random(3)
    base, tuned = ([noisy(r, share, rng) for r in references] for share in (0.5, noise))
    signature, theirs = PairedTest(
        [("base", base), ("tuned", tuned)], {"chrf": CHRF(word_order=2)}, [references], test_type="bs", n_samples=2000
    )()
    (chrf,) = [value for key, value in theirs.items() if key != "System"]
    ours = compare("chrf++", list(zip(references, base, strict=True)), list(zip(references, tuned, strict=True)), 2000)
    assert ours.tuned == pytest.approx(chrf[1].score)
    assert ours.p == pytest.approx(2 * stats.norm.sf(abs(ours.delta) / (ours.high - ours.low) * 3.92), abs=0.02)
    assert chrf[1].p_value < ours.p
    assert (ours.p < 0.05) == (noise == 0.4)


def test_accuracies_are_compared_by_mcnemars_exact_test():
    rng = np.random.default_rng(1)
    base, tuned = rng.random(300) < 0.5, rng.random(300) < 0.6
    result = compare("acc", [float(x) for x in base], [float(x) for x in tuned])
    gained, lost = int((tuned & ~base).sum()), int((base & ~tuned).sum())
    assert result.test == "McNemar"
    assert result.p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert mcnemar(np.ones(5), np.ones(5)) == 1.0


def test_p_values_are_adjusted_for_their_number():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5]) == [0.5] and holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_bound_on_memory_changes_neither_the_number_of_resamples_nor_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    items = [
        (list(base), list(base + gain)) for base, gain in zip(rng.random((60, 300)), [0.3, 0.0] * 30, strict=True)
    ]
    rows = [("f1", *(item_statistics("f1", list(values)) for values in pair)) for pair in items]
    free = compare_pairs(rows, seed=1)
    monkeypatch.setattr(significance, "MAX_CELLS", 10_000)
    bound = compare_pairs(rows, seed=1)
    assert [row.p for row in bound] == [row.p for row in free]
    assert [row.low for row in bound] == pytest.approx([row.low for row in free])
    adjusted = holm([row.p for row in bound])
    assert adjusted[0] < 0.05 and adjusted[1] == 1.0 and (bound[1].low, bound[1].high) == (0, 0)


@pytest.mark.parametrize("metric, items, why", cases("items"))
def test_items_of_another_form_than_the_metric_has_are_refused(metric, items, why):
    with pytest.raises(ValueError, match=why):
        item_statistics(metric, items)
