"""What is run, who wins, and what follows from it: the rules of `PLAN.md`, on whatever results there are."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from data import CONFIG, HERE
from scipy.stats import t as student


DEV = ("sampled/pt", "reference/pt", "flores/pt")  # texts of the composite that rates and the winner are chosen by
CANDIDATES = ("sampled", "anchored")
CHANCE = {"pairs": 1 / 2, "questions": 1 / 4, "stories": 1 / 2, "inferences": 1 / 3}
# All that is measured on the dev items: those of the composite, and the same in English
TEXTS = (*DEV, "sampled/en", "reference/en", "flores/en")
T, SOURCE = ("human/pt", "flores/pt"), ("human/en", "flores/en")
RESAMPLES = 2000
AT_1 = 1  # where the temperature 1 is among those of the dev texts


@dataclass(frozen=True)
class Run:
    """
    One training, or the initial model.

    Args:
        model (`str`): Name in `config.yaml`.
        arm (`str`): Name in `config.yaml`, or `"base"` for the initial model.
        rate (`float`): Learning rate, 0 for the initial model.
        seed (`int`): Seed of the rows that are drawn, their order, and the adapter's start.
    """

    model: str
    arm: str
    rate: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.model}-{self.arm}-{self.rate:g}-{self.seed}"

    @classmethod
    def of(cls, name: str) -> "Run":
        model, arm, rate, seed = name.split("-")
        return cls(model, arm, float(rate), int(seed))


def options_of(arm: str) -> dict:
    """The defaults with what is different in this arm."""
    return CONFIG["defaults"] | (CONFIG["arms"] | CONFIG["later_arms"])[arm]


def result_file(run: Run, part: str) -> Path:
    return HERE / "results" / f"{run.name}.{part}.json"


def is_done(run: Run, part: str) -> bool:
    return result_file(run, part).exists()


@cache
def read(run: Run, part: str) -> dict:
    return json.loads(result_file(run, part).read_text(encoding="utf-8"))


def stage_1(model: str = "smollm2") -> list[Run]:
    seed = CONFIG["stage_1"]["seed"]
    return [Run(model, arm, rate, seed) for arm in CONFIG["arms"] for rate in options_of(arm)["rates"]]


def jobs(model: str) -> list[tuple[Run, str]]:
    """All that can be said to be needed by now, in order: each stage shows when the one before is complete."""
    base, seeds = Run(model, "base"), CONFIG["stage_2"]["seeds"]
    found = [(base, "gate"), (base, "dev")]
    found += [(run, "dev") for run in stage_1()]
    if not all(is_done(*job) for job in found if job[0].model == "smollm2"):
        return found
    if model != "smollm2":
        found, seeds = found[:2], CONFIG["second_model"]["seeds"]
    contestants = [(arm, rate) for arm, rate in (winner(), ("t_sft", better_rate("t_sft")))]
    repeated = [Run(model, arm, rate, seed) for seed in seeds for arm, rate in contestants]
    found += [(run, "dev") for run in repeated]
    if not all(is_done(run, "dev") for run in repeated):
        return found
    # The test items are opened only now
    shown = [base, *repeated, *(best_runs() if model == "smollm2" else [])]
    return found + [(run, "test") for run in shown]


def best_runs() -> list[Run]:
    """Each arm of stage 1 at its better rate, the positive control first."""
    arms = sorted(CONFIG["arms"], key=lambda arm: arm != "positive_control")
    return [Run("smollm2", arm, better_rate(arm), CONFIG["stage_1"]["seed"]) for arm in arms]


def dev_scores(run: Run, part: str = "dev") -> tuple[float, float]:
    """The dev composite (mean log ratio of bits per byte to the initial model's; lower is better), and the drift."""
    base, found = read(Run(run.model, "base"), "dev")["likelihoods"], read(run, part)
    ratios = [np.log(nats(found["likelihoods"][name]) / nats(base[name])) for name in DEV]
    n_bytes, lost = np.sum(found["drift"], axis=0)
    return float(np.mean(ratios)), float(lost / n_bytes / math.log(2))


def nats(rows: list[list[float]]) -> float:
    """Of dev texts at temperature 1; a row has its bytes before the log-likelihoods."""
    return -sum(row[1 + AT_1] for row in rows)


def better_rate(arm: str) -> float:
    runs = [run for run in stage_1() if run.arm == arm]
    return min(runs, key=lambda run: dev_scores(run)[0]).rate


def winner() -> tuple[str, float]:
    """Arm and rate: of the candidates with at most half the drift of T-SFT the one with the best composite."""
    seed = CONFIG["stage_1"]["seed"]
    _, limit = dev_scores(Run("smollm2", "t_sft", better_rate("t_sft"), seed))
    scores = {run: dev_scores(run) for run in stage_1() if run.arm in CANDIDATES}
    close = [run for run, (_, drift) in scores.items() if drift <= limit / 2]
    if not close:
        return "target_sampled", better_rate("target_sampled")
    best = min(close, key=lambda run: scores[run][0])
    return best.arm, best.rate


def items(run: Run, measure: str, fitted: bool = False, part: str = "test") -> np.ndarray:
    """
    A measure of a run on the test items, or on those of another part: of each item a number and what it is divided by,
    shape `(items, 2)`: bits and bytes, or 0 or 1 and 1, or for translations the bits that the original saves and 1.
    """
    found = read(run, part)
    kind, _, rest = measure.partition("/")
    if part == "dev" and kind != "drift":
        rows = np.array(found["likelihoods"][measure], dtype=float)
        return np.stack([-rows[:, 1 + AT_1] / math.log(2), rows[:, 0]], axis=1)
    if kind in ("human", "flores", "own"):
        rows = np.array(found[measure], dtype=float)
        return np.stack([-rows[:, 2 if fitted else 1] / math.log(2), rows[:, 0]], axis=1)
    if kind == "drift":
        rows = np.array(found["drift"], dtype=float)
        return np.stack([rows[:, 1] / math.log(2), rows[:, 0]], axis=1)
    if kind == "translation":
        rows = np.array(found["translation"][rest], dtype=float)
        values = (rows[:, 0] - rows[:, 1]) / math.log(2)
    elif kind == "texts":
        values = np.array(found["texts"][rest], dtype=float)
    else:  # all kinds of minimal pairs together
        names = [name for name in found["choices"] if name.partition("/")[0] == kind]
        values = np.concatenate([found["choices"][name] for name in names]).astype(float)
    return np.stack([values, np.ones(len(values))], axis=1)


@dataclass(frozen=True)
class Contrast:
    """
    Difference of two groups of runs, differing in their seeds.

    Args:
        delta (`float`): Mean of the first group minus that of the second.
        of_items (`tuple[float, float]`): 95 % interval by paired bootstrap over the items.
        of_seeds (`tuple[float, float]`): 95 % interval by Student's t over the seeds; Welch's, if both groups vary.
        upper (`float`): The larger of the two one-sided 95 % bounds from above.
    """

    delta: float
    of_items: tuple[float, float]
    of_seeds: tuple[float, float]
    upper: float


def contrast(
    a: list[Run],
    b: list[Run],
    measures: tuple[str, ...],
    scale: Callable = np.log,
    part: str = "test",
    other: str | None = None,
    fitted: bool = False,
) -> Contrast:
    """Of the mean over the measures of their `scale`d values; `other` is the part of `b`, if another."""
    rng = np.random.default_rng(1234)
    runs = [*((run, part) for run in a), *((run, other or part) for run in b)]
    scores, resampled = 0.0, 0.0
    for measure in measures:
        # Shape (items, 2, runs): the same items for all, so that they are paired
        values = np.stack([items(run, measure, fitted, part) for run, part in runs], axis=-1)
        counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
        sums = np.tensordot(np.vstack([np.ones(len(values)), counts]), values, axes=1)
        of_runs = scale(sums[:, 0] / sums[:, 1]) / len(measures)
        scores, resampled = scores + of_runs[0], resampled + of_runs[1:]
    first, second = scores[: len(a)], scores[len(a) :]
    delta = float(first.mean() - second.mean())
    deltas = resampled[:, : len(a)].mean(1) - resampled[:, len(a) :].mean(1)
    error, freedom = _welch(first, second)
    low, high, upper = (float(x) for x in np.percentile(deltas, [2.5, 97.5, 95]))
    reach = student.ppf([0.975, 0.95], freedom) * error if error else (0.0, 0.0)
    seeds = (float(delta - reach[0]), float(delta + reach[0]))
    return Contrast(delta, (low, high), seeds, max(upper, float(delta + reach[1])))


def _welch(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Standard error of a difference of means and its degrees of freedom (Welch-Satterthwaite); one run is fixed."""
    parts = [(x.var(ddof=1) / len(x), len(x) - 1) for x in (first, second) if len(x) > 1]
    variance = sum(part for part, _ in parts)
    if not variance:
        return 0.0, 1.0
    return math.sqrt(variance), variance**2 / sum(part**2 / freedom for part, freedom in parts)


def gate(model: str = "smollm2") -> dict[str, tuple[float, float, bool]]:
    """Of each measure of choices the initial model's share, its lower 95 % bound (Wilson), and whether it is used."""
    found = {}
    for measure, chance in CHANCE.items():
        values = items(Run(model, "base"), measure, part="gate")[:, 0]
        n, share, z = len(values), values.mean(), 1.96
        centre = share + z**2 / (2 * n)
        low = (centre - z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))) / (1 + z**2 / n)
        found[measure] = (float(share), float(low), bool(low > chance))
    return found


def decision(a: list[Run], b: list[Run], control: Run) -> dict[str, bool | None]:
    """
    The rule of `PLAN.md`.

    Args:
        a (`list[Run]`): The winner.
        b (`list[Run]`): T-SFT.
        control (`Run`): The positive control of forgetting.

    Returns:
        `dict`: by condition, whether it holds; `None` where nothing can be said.
    """
    base, usable = [Run(a[0].model, "base")], {name for name, (*_, used) in gate(a[0].model).items() if used}
    both = contrast(a, b, T)
    each = [contrast(a, b, (measure,)).delta for measure in T]
    pairs = contrast(a, b, ("pairs",), same).delta if "pairs" in usable else 0.0
    found: dict[str, bool | None] = {
        "superior": both.upper < 0 and max(each) < 0 and pairs >= -0.02,
        "not inferior": both.upper < 0.01,
        "drift below that of t_sft": contrast(a, b, ("drift",), same).delta < 0,
    }
    tasks = tuple(name for name in ("stories", "inferences") if name in usable)
    change = contrast(a, base, tasks, same) if tasks else None
    found["English tasks kept"] = change and min(change.of_items[0], change.of_seeds[0]) > -0.02
    change = contrast(a, base, SOURCE)
    found["English texts kept"] = max(change.of_items[1], change.of_seeds[1]) < 0.005
    kept = [found[name] for name in ("drift below that of t_sft", "English tasks kept", "English texts kept")]
    forgets = contrast([control], b, ("drift",), same).delta > 0
    found["positive control forgets"] = forgets
    found["source kept"] = all(value is not False for value in kept) if forgets else None
    return found


def verdict(found: dict[str, bool | None]) -> str:
    if found["source kept"] and found["superior"]:
        return "WIN"
    return "PARTIAL" if found["source kept"] and found["not inferior"] else "FAIL"


def same(values: np.ndarray) -> np.ndarray:
    return values
