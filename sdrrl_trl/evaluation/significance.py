"""Scores with confidence intervals and p-values, paired by item; corpus metrics are scored anew for every resample."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER


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


def compare(metric: str, base: list[Any], tuned: list[Any], n_resamples: int = 1000, seed: int = 1234) -> Comparison:
    """
    Compares two models by paired bootstrap (Koehn 2004, https://aclanthology.org/W04-3250).

    The p-value of scores that are all 0 or 1, such as accuracies, is that of McNemar's exact test; of others, the
    share of resamples whose difference lies as far from the observed one as that from zero (as sacrebleu has it).

    Args:
        metric (`str`):
            `"chrf++"`, `"chrf"`, `"bleu"`, `"bleu_13a"`, `"bleu_char"`, `"spbleu"` and `"ter"`, with `(reference,
            answer)` items; `"bits_per_byte"`, with `(log-likelihood in nats, bytes)` items; any other name for
            numbers, which are averaged.
        base (`list`):
            Items of the first model.
        tuned (`list`):
            Items of the second model, in the same order.
        n_resamples (`int`, *optional*, defaults to `1000`):
            Number of resamples.
        seed (`int`, *optional*, defaults to `1234`):
            Seed of the resampling.

    Raises:
        `ValueError`: if the models have different numbers of items, or none, or if an item has no score.
    """
    if len(base) != len(tuned) or not base:
        raise ValueError(f"{metric}: {len(base)} and {len(tuned)} items cannot be compared in pairs.")
    statistics, _ = _scoring(metric)
    return compare_statistics(metric, statistics(base), statistics(tuned), n_resamples, seed)


def compare_statistics(
    metric: str, base: np.ndarray, tuned: np.ndarray, n_resamples: int = 1000, seed: int = 1234
) -> Comparison:
    """
    [`compare`] for items of which only the statistics are known.

    Args:
        metric (`str`):
            As in [`compare`].
        base (`np.ndarray`):
            Statistics of the first model, a row for each item, which add up over items: those of sacrebleu for chrF,
            BLEU and TER; else a sum and its divisor.
        tuned (`np.ndarray`):
            Statistics of the second model.
        n_resamples (`int`, *optional*, defaults to `1000`):
            Number of resamples.
        seed (`int`, *optional*, defaults to `1234`):
            Seed of the resampling.
    """
    _, score = _scoring(metric)
    n = len(base)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    deltas = np.array([score(b) - score(a) for a, b in zip(counts @ base, counts @ tuned, strict=True)])
    low, high = np.percentile(deltas, [2.5, 97.5])
    a, b = score(base.sum(0)), score(tuned.sum(0))
    if score is _mean and np.isin([base[:, 0], tuned[:, 0]], (0, 1)).all():
        p, test = mcnemar(base[:, 0], tuned[:, 0]), "McNemar"
    else:
        as_far = np.abs(deltas - deltas.mean()) >= abs(b - a)
        p, test = float((as_far.sum() + 1) / (n_resamples + 1)), "bootstrap"
    return Comparison(a, b, b - a, float(low), float(high), n, p, test)


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


def _corpus_metric(metric: Any) -> tuple[Callable[[list], np.ndarray], Callable[[np.ndarray], float]]:
    """Statistics of single items, and the score of their sum, of a metric of sacrebleu."""

    def statistics(items: list[tuple[str, str]]) -> np.ndarray:
        return np.array([metric._extract_corpus_statistics([answer], [[reference]])[0] for reference, answer in items])

    return statistics, lambda sums: metric._compute_score_from_stats([int(x) for x in sums]).score


def _values(items: list[Any]) -> np.ndarray:
    """Each row a sum and its divisor: `(log-likelihood, bytes)` as it is, a number as `(number, 1)`."""
    rows = np.array([item if isinstance(item, list | tuple) else (item, 1) for item in items], dtype=float)
    if not np.isfinite(rows).all():
        raise ValueError("some items have no score (NaN or infinite); they cannot be averaged.")
    return rows


def _mean(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


@cache
def _scoring(metric: str) -> tuple[Callable[[list], np.ndarray], Callable[[np.ndarray], float]]:
    """Of a metric: statistics of the items, which add up over items, and the score of their sum."""
    if metric == "bits_per_byte":
        return _values, lambda sums: -_mean(sums) / math.log(2)
    if metric in ("chrf", "chrf++"):
        return _corpus_metric(CHRF(word_order=2 if metric == "chrf++" else 0))
    if metric in ("bleu", "bleu_13a", "bleu_char", "spbleu"):
        return _corpus_metric(BLEU(tokenize={"bleu_char": "char", "spbleu": "flores200"}.get(metric, "13a")))
    if metric == "ter":
        return _corpus_metric(TER())
    return _values, _mean
