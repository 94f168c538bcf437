"""
Tables and plots of what `run.py` has measured.

    python benchmarks/evidence/tables.py [--write]

Prints the tables as Markdown; `--write` puts them between their marks in docs/results.md and README.md, and draws the
plots. Scores are those of seed 0, which all arms have. Differences take all seeds that both arms have, and all their
items together, paired by item and seed; 95 % intervals and p-values are from the paired bootstrap over the items
(2,000 resamples, seed 1234): they say how far other items would change the difference, not how far another training
would. Bold is p below 0.05 after Holm's correction over the table.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from sdrrl_trl.evaluation.significance import bootstrap, holm


HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = [ROOT / "docs" / "results.md", ROOT / "README.md"]
TARGETS = {"pt": "Portuguese", "es": "Spanish"}
# Held-out text: name, where it is in the results, what it is. "T" stands for the target language
LIKELIHOODS = {
    "T own": "test/T/own",
    "T references": "test/T/reference",
    "T FLORES": "test/T/flores",
    "en own": "test/en/own",
    "en references": "test/en/reference",
    "en FLORES": "test/en/flores",
}
DEV = {"T own, dev": "dev/T/own", "T references, dev": "dev/T/reference"}
# Arms that change one thing in `sdrrl`
PARTS = ("sdrrl_references", "sdrrl_lr_", "sdrrl_full", "without_", "kl_")
TEXTS = {
    "answers T chrF++": ("answers/T", "chrf++/reference"),
    "answers en chrF++": ("answers/en", "chrf++/reference"),
    "answers T chrF++ to own": ("answers/T", "chrf++/own"),
    "answers en chrF++ to own": ("answers/en", "chrf++/own"),
    "en-T chrF++": ("flores/en-T", "chrf++/reference"),
    "T-en chrF++": ("flores/T-en", "chrf++/reference"),
    "repetitive, T": ("answers/T", "repetitive"),
    "wrong language, T": ("answers/T", "wrong_language"),
    "characters, T": ("answers/T", "characters"),
}
CURVES = ("t_sft_curve", "sdrrl_curve")
Runs = dict[str, dict[int, dict]]  # by arm and seed


def read(target: str) -> Runs:
    runs: Runs = defaultdict(dict)
    for file in sorted((HERE / "results").glob(f"{target}-*.json")):
        run = json.loads(file.read_text())
        runs[run["arm"]][run["seed"]] = run
    pools = {run["pool"] for seeds in runs.values() for run in seeds.values()}
    if len(pools) > 1:
        raise SystemExit(f"The {target} runs were made from {len(pools)} different pools: they cannot be compared.")
    return runs


def statistics(runs: Runs, arm: str, seeds: list[int], measure: str, target: str) -> tuple[str, np.ndarray]:
    """Metric and statistics of each item, summed over seeds. The base model is the same for all seeds."""
    found = []
    for seed in seeds:
        run = runs[arm][0 if arm == "base" else seed]
        if measure not in TEXTS:
            metric, items = "bits_per_byte", run["likelihoods"][(LIKELIHOODS | DEV)[measure].replace("T", target)]
        else:
            place, name = TEXTS[measure]
            texts = run["texts"][place.replace("T", target)]
            # Without spaces: the number of unigrams in chrF's statistics
            items = [item[0] for item in texts["chrf++/own"]] if name == "characters" else texts[name]
            metric = name.partition("/")[0]
            items = items if metric == "chrf++" else [[item, 1] for item in items]
        found.append(np.array(items, dtype=int if measure in TEXTS else float))
    return metric, sum(found)


def first_seed(runs: Runs) -> Runs:
    """All arms have this one, so that an arm with more seeds is compared like with like."""
    return {arm: {0: seeds[0]} for arm, seeds in runs.items()}


def score(runs: Runs, arm: str, measure: str, target: str) -> float:
    metric, values = statistics(runs, arm, sorted(runs[arm]), measure, target)
    return bootstrap([(metric, values, values)], 1, seed=1234)[0].base


def difference(runs: Runs, a: str, b: str, measure: str, target: str):
    """`b` against `a` on the seeds that both have."""
    seeds = sorted(runs[b] if a == "base" else set(runs[a]) & set(runs[b]))
    metric, before = statistics(runs, a, seeds, measure, target)
    _, after = statistics(runs, b, seeds, measure, target)
    return bootstrap([(metric, before, after)], 2000, seed=1234)[0], len(seeds)


def shown(measure: str, value: float, sign: str = "") -> str:
    if measure.startswith("characters"):
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.1f}" if "chrF++" in measure else f"{value:{sign}.3f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def scores_table(runs: Runs, target: str, measures: dict, arms: list[str]) -> str:
    runs = first_seed(runs)
    rows = [[arm, *(shown(measure, score(runs, arm, measure, target)) for measure in measures)] for arm in arms]
    return table(["arm", *(measure.replace("T", target) for measure in measures)], rows)


def differences_table(runs: Runs, target: str, pairs: list[tuple[str, str]], measures: list[str]) -> str:
    """A row for each pair of arms, the second against the first, with intervals."""
    pairs = [(a, b) for a, b in pairs if a in runs and b in runs and (a == "base" or set(runs[a]) & set(runs[b]))]
    found = [(a, b, m, *difference(runs, a, b, m, target)) for a, b in pairs for m in measures]
    corrected = holm([comparison.p for *_, comparison, _ in found])
    rows = defaultdict(list)
    for (a, b, measure, c, n_seeds), p in zip(found, corrected, strict=True):
        mark = "**" if p < 0.05 else ""
        interval = f"{shown(measure, c.low, '+')} to {shown(measure, c.high, '+')}"
        rows[f"{b} against {a}", n_seeds].append(f"{mark}{shown(measure, c.delta, '+')}{mark} ({interval})")
    return table(
        ["arms", "seeds", *(m.replace("T", target) for m in measures)],
        [[name, str(n_seeds), *cells] for (name, n_seeds), cells in rows.items()],
    )


def curve(runs: Runs, arm: str, measure: str, target: str) -> list[tuple[int, float]]:
    """Supervised tokens and bits per byte at the start and at each checkpoint."""
    run = runs[arm][0]
    points = {int(name.split("-")[1]): found for name, found in run["points"].items()}
    points |= {0: runs["base"][0]["likelihoods"], run["options"]["steps"]: run["likelihoods"]}
    key = LIKELIHOODS[measure].replace("T", target)
    sums = {step: np.sum(found[key], axis=0) for step, found in sorted(points.items())}
    tokens = run["supervised_tokens"] / run["options"]["steps"]
    return [(round(step * tokens), -nats / n_bytes / math.log(2)) for step, (nats, n_bytes) in sums.items()]


def curves_table(runs: Runs, target: str) -> str:
    rows = []
    for arm in CURVES:
        if arm in runs:
            curves = [curve(runs, arm, measure, target) for measure in LIKELIHOODS]
            for point in zip(*curves, strict=True):
                rows.append([arm, f"{point[0][0]:,}", *(f"{value:.3f}" for _, value in point)])
    return table(["arm", "supervised tokens", *(measure.replace("T", target) for measure in LIKELIHOODS)], rows)


def tasks_table(target: str) -> str:
    """Benchmark tasks: the score of the arm compared with, and the difference of the other from it."""
    file = HERE / "results" / f"tasks-{target}.json"
    content = json.loads(file.read_text()) if file.exists() else {"rows": []}
    rows = []
    for row, p in zip(content["rows"], holm([row["comparison"]["p"] for row in content["rows"]]), strict=True):
        c, mark, task = row["comparison"], "**" if p < 0.05 else "", row["task"]
        chance = f"{content['most_frequent'][task]:.3f}" if row["metric"] in ("acc", "accuracy") else ""
        rows.append(
            [f"{task} {row['metric']}", f"{row['model']} against {row['base']}", str(c["n"]), chance]
            + [f"{c['base']:.3f}", f"{c['tuned']:.3f}"]
            + [f"{mark}{c['delta']:+.3f}{mark} ({c['low']:+.3f} to {c['high']:+.3f})"]
        )
    return table(["task", "arms", "n", "most frequent answer", "before", "after", "difference"], sorted(rows))


def seeds_table(runs: Runs, target: str) -> str:
    """How far the seed of the training changes scores: the mean over seeds, and the lowest and highest."""

    def cells(by_measure: list[list[float]]) -> list[str]:
        return [f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in by_measure]

    scores = {
        arm: [
            [score({arm: {seed: run}}, arm, measure, target) for seed, run in sorted(seeds.items())]
            for measure in LIKELIHOODS
        ]
        for arm, seeds in runs.items()
        if len(seeds) > 1
    }
    rows = [[arm, str(len(runs[arm])), *cells(values)] for arm, values in scores.items()]
    if {"sdrrl", "t_sft"} <= set(scores) and set(runs["sdrrl"]) == set(runs["t_sft"]):
        changes = [np.subtract(*pair) for pair in zip(scores["sdrrl"], scores["t_sft"], strict=True)]
        rows.append(["sdrrl minus t_sft", str(len(runs["sdrrl"])), *cells(changes)])
    return table(["arm", "seeds", *(measure.replace("T", target) for measure in LIKELIHOODS)], rows)


def cost_table(all_runs: dict[str, Runs]) -> str:
    rows = []
    for target, runs in all_runs.items():
        for arm, seeds in runs.items():
            for seed, run in seeds.items():
                if "cost" not in run:
                    continue
                cost = run["cost"]
                seconds = cost["seconds"]
                rate = f"{run['tokens'] / seconds:.0f}" if seconds else "resumed"
                rows.append(
                    [f"{target} {arm}", str(seed), f"{run['supervised_tokens']:,}"]
                    + [f"{run['supervised_bytes'].get(tag, 0) / 1000:.0f}" for tag in (target, "en")]
                    + [f"{run['tokens']:,}", str(run["rows"]), f"{seconds or math.nan:.0f}", rate]
                    + [str(cost["peak_memory_mb"])]
                )
    head = ["arm", "seed", "supervised tokens", "kB in target language", "kB in English", "all tokens", "rows"]
    head += ["seconds", "tokens/s", "peak MB"]
    return table(head, rows)


def plot(runs: Runs, target: str, path: Path) -> None:
    """Gain in the target language against loss in the source language, both on FLORES, against the base model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    runs, points = first_seed(runs), {}
    for arm in runs:
        if arm in ("base", *CURVES):
            continue
        gain, loss = (difference(runs, "base", arm, f"{name} FLORES", target)[0] for name in ("T", "en"))
        points[arm] = (loss.delta, -gain.delta)
        axes.errorbar(
            loss.delta,
            -gain.delta,
            xerr=[[loss.delta - loss.low], [loss.high - loss.delta]],
            yerr=[[gain.high - gain.delta], [gain.delta - gain.low]],
            marker="os^Dv<>"[len(axes.containers) % 7],
            capsize=2,
            label=arm,
        )
    if "kl_1" in points:
        knob = [points[arm] for arm in ("sdrrl", "kl_0.1", "kl_1")]
        axes.plot(*zip(*knob, strict=True), color="black", linestyle=":", linewidth=1, label="kl_coef 0, 0.1, 1")
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("loss in English: rise of bits per byte on FLORES")
    axes.set_ylabel(f"gain in {TARGETS[target]}: fall of bits per byte on FLORES")
    axes.set_title("up and to the left is better", fontsize=9)
    axes.legend(fontsize=8, title="arm, seed 0", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def read_all() -> dict[str, Runs]:
    return {target: runs for target in TARGETS if (runs := read(target))}


def blocks(all_runs: dict[str, Runs]) -> dict[str, str]:
    """All tables by the name that marks their place in a page."""
    found = {"cost": cost_table(all_runs)}
    for target, runs in all_runs.items():
        arms = sorted(runs, key=lambda arm: (arm != "base", arm))
        found[f"{target} likelihoods"] = scores_table(runs, target, LIKELIHOODS, arms)
        wrote = [arm for arm in arms if all("texts" in run for run in runs[arm].values())]
        found[f"{target} texts"] = scores_table(runs, target, TEXTS, wrote)
        short = [("base", "sft_en"), ("base", "t_sft"), ("base", "sdrrl"), ("t_sft", "sdrrl")]
        found[f"{target} short"] = differences_table(runs, target, short, list(LIKELIHOODS))
        against = [*short, ("sft_en", "sdrrl"), ("t_sft", "sdrrl_references")]
        against += [("t_sft", "target_only"), ("target_only", "sdrrl")]
        found[f"{target} main"] = differences_table(runs, target, against, list(LIKELIHOODS))
        found[f"{target} main texts"] = differences_table(runs, target, against, list(TEXTS)[:-1])
        changed = [arm for arm in arms if arm.startswith(PARTS)]
        found[f"{target} parts"] = differences_table(
            runs, target, [("sdrrl", arm) for arm in changed], list(LIKELIHOODS)
        )
        settings = ("lr_3e-4", "lr_3e-3", "full")
        pairs = [(f"t_sft_{name}", f"sdrrl_{name}") for name in settings]
        pairs += [("t_sft_lr_3e-3", "sdrrl"), ("kl_1", "sdrrl_lr_3e-4")]
        pairs += [(than, f"without_{kind}") for kind in ("source", "english_answers") for than in ("base", "t_sft")]
        found[f"{target} settings"] = differences_table(runs, target, pairs, list(LIKELIHOODS))
        found[f"{target} dev"] = scores_table(runs, target, DEV, arms)
        found[f"{target} seeds"] = seeds_table(runs, target)
        found[f"{target} curves"] = curves_table(runs, target)
        found[f"{target} tasks"] = tasks_table(target)
    return found


def fill(page: str, found: dict[str, str]) -> str:
    """A page with the tables between their marks."""
    for name, text in found.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if start in page:
            before, rest = page.split(start)
            page = f"{before}{start}\n{text}\n\n{end}{rest.split(end)[1]}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the pages")
    write = parser.parse_args().write
    all_runs = read_all()
    found = blocks(all_runs)
    for name, text in found.items():
        print(f"## {name}\n\n{text}\n")
    if write:
        for page in PAGES:
            page.write_text(fill(page.read_text(encoding="utf-8"), found), encoding="utf-8")
        for target, runs in all_runs.items():
            if len(runs) > 1:
                plot(runs, target, ROOT / "docs" / f"evidence_{target}.png")


if __name__ == "__main__":
    main()
