"""Scores with confidence intervals and p-values, paired by item; corpus metrics are scored anew for every resample."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER


BothModels = tuple[str, np.ndarray, np.ndarray]  # a metric, and the statistics of two models on the same items
MAX_CELLS = 8_000_000  # numbers that a block of resamples may hold, 8 bytes each


@dataclass(frozen=True)
class Comparison:
    """
    Two models on the same items.

    Args:
        base (`float`): Score of the first model.
        tuned (`float`): Score of the second model.
        delta (`float`): `tuned - base`.
        low (`float`): Lower end of the 95 % confidence interval of `delta`.
        high (`float`): Upper end.
        n (`int`): Number of items.
        p (`float`): Two-sided p-value of no difference.
        test (`str`): Where `p` is from: `"McNemar"` or `"bootstrap"`.
    """

    base: float
    tuned: float
    delta: float
    low: float
    high: float
    n: int
    p: float
    test: str


def item_statistics(metric: str, items: list[Any]) -> np.ndarray:
    """
    Statistics of single items, a row for each, which add up over items: those of sacrebleu for chrF, BLEU, TER; else
    a sum and its divisor.

    Args:
        metric (`str`):
            `"chrf++"`, `"chrf"`, `"bleu"`, `"bleu_13a"`, `"bleu_char"` and `"ter"`, with `(reference, answer)` items;
            `"bits_per_byte"` and `"answer_bits_per_byte"`, with `(log-likelihood in nats, bytes)` items; any other
            name for numbers, which are averaged.
        items (`list`):
            Items of one model.

    Raises:
        `ValueError`: if the items do not have the form that the metric is computed from.
    """
    return _scoring(metric)[0](items)


def corpus_score(metric: str, items: list[Any]) -> float:
    """
    Score of one model.

    Args:
        metric (`str`):
            As in [`item_statistics`].
        items (`list`):
            As in [`item_statistics`].
    """
    statistics, of_sums = _scoring(metric)
    return float(of_sums(statistics(items).sum(0)))


def compare_pairs(pairs: list[BothModels], seed: int) -> list[Comparison]:
    """
    Two models on each of the metrics of a table, whose p-values Holm's method adjusts.

    The smallest p-value of 1,000 resamples is 0.001, which Holm multiplies by the number of rows: where that would
    keep a row from being significant, more are drawn.

    Args:
        pairs (`list[tuple[str, np.ndarray, np.ndarray]]`):
            As in [`bootstrap`].
        seed (`int`):
            Seed of the resampling.
    """
    found: dict[int, Comparison] = {}

    def draw(indices: list[int], n_resamples: int) -> None:
        for n in sorted({len(pairs[i][1]) for i in indices}):
            same = [i for i in indices if len(pairs[i][1]) == n]
            found.update(zip(same, bootstrap([pairs[i] for i in same], n_resamples, seed), strict=True))

    draw(list(range(len(pairs))), 1000)
    # Only those whose p-value the number of resamples may hold up; the smallest is then 0.025 after Holm
    if 40 * len(pairs) > 1000:
        draw([i for i, row in found.items() if row.test == "bootstrap" and row.p < 0.005], 40 * len(pairs))
    return [found[i] for i in range(len(pairs))]


def bootstrap(pairs: list[BothModels], n_resamples: int, seed: int) -> list[Comparison]:
    """
    Compares two models by paired bootstrap (Koehn 2004, https://aclanthology.org/W04-3250).

    The p-value of scores that are all 0 or 1, such as accuracies, is that of McNemar's exact test; of others, the
    share of resamples whose difference lies as far from the observed one as that from zero, on either side. sacrebleu
    counts the side of the difference alone, so its p-values are smaller, by half where they are small.

    Args:
        pairs (`list[tuple[str, np.ndarray, np.ndarray]]`):
            Metric and [`item_statistics`] of the first and of the second model, the same number of items everywhere:
            they share their resamples, as drawing these takes most of the time.
        n_resamples (`int`):
            Number of resamples.
        seed (`int`):
            Seed of the resampling.
    """
    scores = [_scoring(metric)[1] for metric, _, _ in pairs]
    # One matrix a model: what is the same in both is added up in the same order, so that no difference stays none
    models = [np.hstack([pair[i] for pair in pairs]).astype(float) for i in (1, 2)]
    ends = np.cumsum([base.shape[1] for _, base, _ in pairs])[:-1]
    n, width = models[0].shape
    rng = np.random.default_rng(seed)
    # All resamples at once may take more memory than there is
    block = max(1, MAX_CELLS // (n + width))
    blocks = []
    for start in range(0, n_resamples, block):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(block, n_resamples - start)).astype(float)
        sums = [np.split(counts @ statistics, ends, axis=1) for statistics in models]
        blocks.append([score(b) - score(a) for score, a, b in zip(scores, *sums, strict=True)])
    return [_comparison(*pair, deltas) for pair, deltas in zip(pairs, np.hstack(blocks), strict=True)]


def _comparison(metric: str, base: np.ndarray, tuned: np.ndarray, deltas: np.ndarray) -> Comparison:
    """From the differences in the resamples."""
    _, score = _scoring(metric)
    low, high = np.percentile(deltas, [2.5, 97.5])
    a, b = float(score(base.sum(0))), float(score(tuned.sum(0)))
    if score is _mean and np.isin([base[:, 0], tuned[:, 0]], (0, 1)).all():
        # Exact, where the bootstrap is not for few items
        p, test = mcnemar(base[:, 0], tuned[:, 0]), "McNemar"
    else:
        # The resamples are shifted to a difference of none
        as_far = np.abs(deltas - deltas.mean()) >= abs(b - a)
        p, test = float((as_far.sum() + 1) / (len(deltas) + 1)), "bootstrap"
    return Comparison(a, b, b - a, float(low), float(high), len(base), p, test)


def mcnemar(base: np.ndarray, tuned: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test (1947): of the items that differ, half should have gained."""
    gained, lost = int((tuned > base).sum()), int((base > tuned).sum())
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(p_values: list[float]) -> list[float]:
    """P-values adjusted for their number by Holm's step-down method (1979), in the same order."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


Scoring = tuple[Callable[[list], np.ndarray], Callable[[np.ndarray], np.ndarray]]


def _corpus_metric(metric: Any) -> Scoring:
    """[`_scoring`] of a metric of sacrebleu."""

    def statistics(items: list[tuple[str, str]]) -> np.ndarray:
        _check(items, str, "its items are not pairs of one reference and one answer")
        return np.array([metric._extract_corpus_statistics([answer], [[reference]])[0] for reference, answer in items])

    def score(sums: np.ndarray) -> float:
        return float(metric._compute_score_from_stats([int(x) for x in sums]).score)

    return statistics, lambda sums: np.apply_along_axis(score, -1, sums)


def _check(pairs: list[Any], kind: type, why: str) -> None:
    for pair in pairs:
        if not isinstance(pair, list | tuple) or [isinstance(x, kind) for x in pair] != [True, True]:
            raise ValueError(why)


def _pairs(items: list[tuple[float, int]]) -> np.ndarray:
    _check(items, Real, "its items are not pairs of a log-likelihood and a number of bytes")
    return np.array(items, dtype=float)


def _numbers(items: list[float]) -> np.ndarray:
    """Each row a sum and its divisor, 1."""
    if not all(isinstance(item, Real) for item in items):
        raise ValueError("its items are not numbers, of which the score would be the mean")
    return np.array([(item, 1) for item in items], dtype=float)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


@cache
def _scoring(metric: str) -> Scoring:
    """Of a metric: statistics of the items, which add up over items, and the score of sums, one or a row each."""
    if metric in ("bits_per_byte", "answer_bits_per_byte"):
        return _pairs, lambda sums: -_mean(sums) / math.log(2)
    if metric in ("chrf", "chrf++"):
        return _corpus_metric(CHRF(word_order=2 if metric == "chrf++" else 0))
    if metric in ("bleu", "bleu_13a", "bleu_char"):
        return _corpus_metric(BLEU(tokenize="char" if metric == "bleu_char" else "13a"))
    if metric == "ter":
        return _corpus_metric(TER())
    return _numbers, _mean
