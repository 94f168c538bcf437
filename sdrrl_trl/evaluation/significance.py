"""Scores with confidence intervals: paired bootstrap over items, corpus metrics scored anew for every resample."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.metrics import CHRF


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
    """

    base: float
    tuned: float
    delta: float
    low: float
    high: float
    n: int


def compare(metric: str, base: list[Any], tuned: list[Any], n_resamples: int = 1000, seed: int = 1234) -> Comparison:
    """
    Compares two models by paired bootstrap (Koehn 2004, https://aclanthology.org/W04-3250).

    Args:
        metric (`str`):
            `"chrf++"`, with `(reference, answer)` items; `"bits_per_byte"`, with `(log-likelihood in nats, bytes)`
            items; any other name for numbers, which are averaged.
        base (`list`):
            Items of the first model.
        tuned (`list`):
            Items of the second model, in the same order.
        n_resamples (`int`, *optional*, defaults to `1000`):
            Number of resamples.
        seed (`int`, *optional*, defaults to `1234`):
            Seed of the resampling.

    Raises:
        `ValueError`: if the models have different numbers of items, or none.
    """
    if len(base) != len(tuned) or not base:
        raise ValueError(f"{metric}: {len(base)} and {len(tuned)} items cannot be compared in pairs.")
    statistics, score = _METRICS.get(metric, (_values, _mean))
    base_statistics, tuned_statistics = statistics(base), statistics(tuned)
    n = len(base)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    resampled = zip(counts @ base_statistics, counts @ tuned_statistics, strict=True)
    deltas = [score(b) - score(a) for a, b in resampled]
    low, high = np.percentile(deltas, [2.5, 97.5])
    a, b = score(base_statistics.sum(0)), score(tuned_statistics.sum(0))
    return Comparison(a, b, b - a, float(low), float(high), n)


_CHRF = CHRF(word_order=2)


def _chrf_statistics(items: list[tuple[str, str]]) -> np.ndarray:
    return np.array([_CHRF._extract_corpus_statistics([answer], [[reference]])[0] for reference, answer in items])


def _values(items: list[Any]) -> np.ndarray:
    """Each row a sum and its divisor: `(log-likelihood, bytes)` as it is, a number as `(number, 1)`."""
    rows = np.array([item if isinstance(item, list | tuple) else (item, 1) for item in items], dtype=float)
    if not np.isfinite(rows).all():
        raise ValueError("some items have no score (NaN or infinite); they cannot be averaged.")
    return rows


def _mean(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


# For each metric: statistics of the items, which add up over items, and the score of their sum
_METRICS: dict[str, tuple[Callable[[list], np.ndarray], Callable[[np.ndarray], float]]] = {
    "chrf++": (_chrf_statistics, lambda sums: _CHRF._compute_f_score([int(x) for x in sums])),
    "bits_per_byte": (_values, lambda sums: -_mean(sums) / math.log(2)),
}
