"""
Tables, plots and the decision from whatever results of `run.py` there are.

    python benchmarks/evidence/tables.py [--write]

Prints the tables as Markdown; `--write` puts them between their marks in docs/results.md and README.md, and draws the
plots. The tables of the first round are in round1/tables.txt.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import decide
import numpy as np
from decide import Run
from jinja2 import Environment, FileSystemLoader


HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = [ROOT / "docs" / "results.md", ROOT / "README.md"]
# On the test items: name in the tables, name in the results, factor
BITS = {
    "T1 translated human answers, pt": "human/pt",
    "T2 FLORES, pt": "flores/pt",
    "S3 human answers, en": "human/en",
    "S3 FLORES, en": "flores/en",
}
OTHERS = {
    "T3 translation en-pt, bits saved": ("translation/en-pt", 1),
    "T3 translation pt-en, bits saved": ("translation/pt-en", 1),
    "T4 minimal pairs, % right": ("pairs", 100),
    "T5 questions, % right": ("questions", 100),
    "S1 drift, bits per byte": ("drift", 1),
    "S2 XStoryCloze-en, % right": ("stories", 100),
    "S2 XNLI-en, % right": ("inferences", 100),
    "W wrong language, %": ("texts/wrong_language", 100),
    "W repetitive, %": ("texts/repetitive", 100),
    "W characters": ("texts/characters", 1),
}
# Of single runs on the test items, all with the seed of stage 1: what each pair tells apart
PAIRS = {
    "sampled answers": ("sampled", "paper"),
    "the whole recipe": ("anchored", "paper"),
    "own answers": ("target_sampled", "t_sft"),
    "the anchor and English questions": ("anchored", "target_sampled"),
    "the anchor and fewer kinds": ("anchored", "sampled"),
}
TWO = ("t_sft", "anchored")  # on the second model
HALF = "bits@0.5"
ARMS = {  # and part, in the table for readers in haste
    ("t_sft", "bits"): "a stronger model's answers, translated (T-SFT)",
    ("t_sft", HALF): "the same, then half of the change taken back",
    ("anchored", "bits"): "its own answers, with the anchor (`anchored`)",
    ("anchored_references", "bits"): "the stronger model's, with the anchor",
}
ON_A_GPU = "`anchored`, as planned beforehand, on an H100"
NOT_YET = "Not measured yet."


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def progress(model: str) -> str:
    """
    How far the runs are.

    Raises:
        `SystemExit`: if some were made from other records than the rest.
    """
    jobs = decide.jobs(model)
    done = [job for job in jobs if decide.is_done(*job)]
    if len({decide.read(*job)["pool"] for job in done}) > 1:
        raise SystemExit(f"The runs of {model} were made from different pools: they cannot be compared.")
    return f"{len(done)} of the {len(jobs)} measurements that are due by now are done."


def gate_table(model: str) -> str:
    """Shares of right choices of the initial model, and whether each measure is used."""
    base, rows = Run(model, "base"), []
    if not decide.is_done(base, "gate"):
        return NOT_YET
    for measure, (share, low, used) in decide.gate(model).items():
        percents = [f"{100 * value:.1f}" for value in (decide.CHANCE[measure], share, low)]
        rows.append([measure, *percents, "yes" if used else "no"])
    drift = decide.items(base, "drift", part="gate").sum(0)[0]
    return table(["measure", "chance, %", "right, %", "lower bound, %", "used"], rows) + f"\n\nDrift: {drift:g}."


def stage_1_table() -> str:
    """All arms at both rates on the dev items: changes in per cent of the initial model's bits, and drift."""
    runs = [run for run in decide.stage_1() if decide.is_done(run, "dev")]
    if not decide.is_done(Run("smollm2", "base"), "dev"):
        return NOT_YET
    before = decide.read(Run("smollm2", "base"), "dev")["likelihoods"]
    rows = []
    for run in runs:
        found, (composite, drift) = decide.read(run, "dev"), decide.dev_scores(run)
        ratios = [decide.nats(found["likelihoods"][name]) / decide.nats(before[name]) for name in decide.TEXTS]
        changes = [f"{100 * value:+.2f}" for value in (composite, *np.log(ratios))]
        n_tokens = f"{found['training']['supervised_tokens']:,}"
        rows.append([f"{run.arm}, {run.rate:g}", changes[0], f"{drift:.4f}", *changes[1:], n_tokens])
    texts = [f"{name}, %" for name in decide.TEXTS]
    return table(["arm, rate", "composite, %", "drift", *texts, "supervised tokens"], rows)


def strengths_table() -> str:
    """Runs of which a part of the change was added to the weights, on the dev items. No part of the plan."""
    rows = []
    for run in decide.stage_1():
        parts = _strengths(run)
        for part in [*parts, "dev"] if parts else []:
            composite, drift = decide.dev_scores(run, part)
            strength = part.partition("@")[2] or "1"
            rows.append([f"{run.arm}, {run.rate:g}", strength, f"{100 * composite:+.2f}", f"{drift:.4f}"])
    return table(["arm, rate", "strength", "composite, %", "drift"], rows) if rows else NOT_YET


def _strengths(run: Run) -> list[str]:
    """Parts such as `dev@0.5` that a run was measured at."""
    files = decide.result_file(run, "dev").parent.glob(f"{run.name}.dev@*.json")
    return [file.name.removeprefix(f"{run.name}.").removesuffix(".json") for file in sorted(files)]


def stage_2_table(model: str) -> str:
    """The initial model, T-SFT, the winner, and the difference of the last two with both intervals."""
    base, ours, theirs = [Run(model, "base")], *contestants(model)
    if not (ours and theirs):
        return NOT_YET
    rows = []
    for prefix, fitted in (("", False), ("D, ", True)):
        for name, measure in BITS.items():
            cells = [f"{score(runs, measure, fitted=fitted):.4f}" for runs in (base, theirs, ours)]
            found = decide.contrast(ours, theirs, (measure,), fitted=fitted)
            rows.append([prefix + name, *cells, *_intervals(found, 100, " %")])
    for name, (measure, factor) in OTHERS.items():
        cells = [f"{factor * score(runs, measure):.4g}" for runs in (base, theirs, ours)]
        found = decide.contrast(ours, theirs, (measure,), decide.same)
        rows.append([name, *cells, *_intervals(found, factor)])
    head = ["measure", "base", f"t_sft ({len(theirs)} seeds)", f"{ours[0].arm} ({len(ours)} seeds)"]
    return table([*head, "difference", "95 % over items", "95 % over seeds"], rows)


def second_model_table() -> str:
    """T-SFT and the winner on the second model, at each rate, on its dev items: changes against the initial model."""
    rows, base = [], Run("qwen", "base")
    files = decide.result_file(base, "dev").parent.glob("qwen-*.dev.json")
    found = [Run.of(file.name.removesuffix(".dev.json")) for file in files]
    for rate in sorted({run.rate for run in found} - {0}):
        arms = [sorted((run for run in found if (run.arm, run.rate) == (arm, rate)), key=str) for arm in TWO]
        if not all(arms):
            continue
        for name, measures, scale, factor in (
            ("Portuguese, %", decide.DEV, np.log, 100),
            # Not the model's own answers, which every training makes less likely
            ("English, %", ("reference/en", "flores/en"), np.log, 100),
            ("drift", ("drift",), decide.same, 1),
        ):
            changes = [decide.contrast(runs, [base], measures, scale, part="dev").delta for runs in arms]
            shown = _intervals(decide.contrast(*arms[::-1], measures, scale, part="dev"), factor)
            if len(arms[0]) == 1:
                shown[2] = "one seed"
            rows.append([f"{rate:g}: {name}", *(f"{factor * change:+.3g}" for change in changes), *shown])
    head = ["rate: measure", *TWO, "difference", "95 % over items", "95 % over seeds"]
    return table(head, rows) if rows else NOT_YET


def larger_table() -> str:
    """What `larger.py` has measured: changes against the initial model, one line for the seeds of an arm and place."""
    base, found = Run("larger", "base"), defaultdict(list)
    for file in sorted(decide.result_file(base, "").parent.glob("larger-*.json")):
        name, _, part = file.stem.rpartition(".")
        found[Run.of(name).arm, part].append(Run.of(name))
    rows = []
    for (arm, part), runs in found.items():
        if arm == "base":
            continue
        change = partial(decide.contrast, runs, [base], part=part)
        cells = [wider_interval(change((text,)), in_per_cent, ".1f") for text in ("flores/pt", "own/pt", "flores/en")]
        cells.append(wider_interval(change(("drift",), decide.same), np.asarray, ".3f"))
        rows.append([arm.replace("_", " "), part, str(len(runs)), *cells])
    texts = ("Portuguese, FLORES, %", "own answers, translated, %", "English, FLORES, %", "drift")
    return table(["fine-tuned on", "where", "seeds", *texts], rows) if rows else NOT_YET


def clean_runs() -> tuple[list[Run], list[Run], list[Run]]:
    """On texts without the fault of the translator: the initial model, the winner and T-SFT with the same seeds."""
    ours, theirs = ([replace(run, model="smollm2_clean") for run in runs] for runs in contestants("smollm2"))
    return [Run("smollm2_clean", "base")], ours, theirs


def clean_table() -> str:
    """The winner against T-SFT on texts without the fault of the translator, and how far they were apart with it."""
    base, ours, theirs = clean_runs()
    if not (ours and all(decide.is_done(run, "bits") for run in (*base, *ours, *theirs))):
        return NOT_YET
    shown = {name.partition(" ")[2]: (measure,) for name, measure in BITS.items()}
    shown |= {"mean change, pt": decide.T, "drift, bits per byte": ("drift",)}  # the first is the C of the plan
    rows = []
    for name, measures in shown.items():
        scale, factor, unit = (decide.same, 1, "") if measures == ("drift",) else (np.log, 100, " %")
        if len(measures) > 1:
            changes = (decide.contrast(runs, base, measures, part="bits").delta for runs in (theirs, ours))
            cells = ["0 %", *(f"{100 * change:+.3g} %" for change in changes)]
        else:
            cells = [f"{score(runs, *measures, part='bits'):.4f}" for runs in (base, theirs, ours)]
        found = decide.contrast(ours, theirs, measures, scale, part="bits")
        before = decide.contrast(*contestants("smollm2"), measures, scale)
        rows.append([f"{name} ↓", *cells, *_intervals(found, factor, unit), f"{factor * before.delta:+.3g}{unit}"])
    head = ["measure", "base", f"t_sft ({len(theirs)} seeds)", f"{ours[0].arm} ({len(ours)} seeds)"]
    head += [f"{ours[0].arm} - t_sft", "95 % over items", "95 % over seeds", "the same, planned runs"]
    return table(head, rows)


def short_table(cell: Callable[..., str]) -> str:
    """On clean texts, what each arm has gained, how far behind T-SFT that is, and how far English has drifted."""
    base, ours, theirs = clean_runs()
    later = [[replace(run, arm=arm) for run in ours] for arm in decide.CONFIG["later_arms"]]
    shown = [(theirs, "bits"), (theirs, HALF), (ours, "bits"), *((runs, "bits") for runs in later)]
    measured = [(run, part) for runs, part in [(base, "bits"), *shown] for run in runs]
    if not (ours and all(decide.is_done(*job) for job in measured)):
        return NOT_YET
    if len({decide.read(*job)["pool"] for job in measured}) > 1:
        raise SystemExit("The runs on clean texts were made from different pools: they cannot be compared.")
    planned = contestants("smollm2")
    jobs = [(ARMS[runs[0].arm, part], runs, part, base, theirs, "bits") for runs, part in shown]
    jobs.append((ON_A_GPU, planned[0], "test", [Run("smollm2", "base")], planned[1], "test"))
    rows = []
    for name, runs, part, before, rivals, other in jobs:
        change = partial(decide.contrast, runs, part=part, other=other)
        behind = "" if runs is theirs and part == other else cell(change(rivals, decide.T), in_per_cent, ".1f")
        gain, english = (cell(change(before, texts), in_per_cent, ".1f") for texts in (decide.T, decide.SOURCE))
        drift = cell(change(before, ("drift",), decide.same), np.asarray, ".3f")
        rows.append([name, gain, behind, english, drift])
    head = ["fine-tuned on", "Portuguese, %", "behind T-SFT, %", "English, %", "drift"]
    return table(head, rows)


def both_intervals(found: decide.Contrast, shown: Callable, digits: str) -> str:
    """A difference with its 95 % intervals over items and over seeds, each number as the function shows it."""
    delta, items, seeds = map(shown, (found.delta, found.of_items, found.of_seeds))
    intervals = [f"{low:+{digits}} to {high:+{digits}}" for low, high in (items, seeds)]
    return f"{delta:+{digits}} ({'; '.join(intervals)})"


def wider_interval(found: decide.Contrast, shown: Callable, digits: str) -> str:
    """A difference, and how far the wider one of its 95 % intervals reaches from it; as [`both_intervals`]."""
    delta, *ends = map(shown, (found.delta, found.of_items, found.of_seeds))
    return f"{delta:{digits}} ± {np.abs(np.array(ends) - delta).max():{digits}}"


def in_per_cent(logarithms: float | tuple[float, float]) -> np.ndarray:
    return 100 * np.expm1(logarithms)


def contestants(model: str) -> tuple[list[Run], list[Run]]:
    """The winner's and T-SFT's runs with the seeds of stage 2 that are measured on the test items."""
    seeds = {*decide.CONFIG["stage_2"]["seeds"], *decide.CONFIG["second_model"]["seeds"]}
    runs = [run for run in _tested(model) if run.seed in seeds]
    return [run for run in runs if run.arm != "t_sft"], [run for run in runs if run.arm == "t_sft"]


def _tested(model: str) -> list[Run]:
    return [run for run, part in decide.jobs(model) if part == "test" and decide.is_done(run, part)]


def score(runs: list[Run], measure: str, **options) -> float:
    """A measure on the test items, the mean over the runs."""
    sums = [decide.items(run, measure, **options).sum(0) for run in runs]
    return float(np.mean([number / of for number, of in sums]))


def _intervals(found: decide.Contrast, factor: float, unit: str = "") -> list[str]:
    intervals = [f"{factor * low:+.3g} to {factor * high:+.3g}" for low, high in (found.of_items, found.of_seeds)]
    return [f"{factor * found.delta:+.3g}{unit}", *intervals]


def arms_table() -> str:
    """The initial model and each arm at its better rate on the test items, one seed each."""
    runs = [run for run in _tested("smollm2") if run.seed not in decide.CONFIG["stage_2"]["seeds"]]
    rows = [[name, *(f"{score([run], measure):.4f}" for run in runs)] for name, measure in BITS.items()]
    for name, (measure, factor) in OTHERS.items():
        rows.append([name, *(f"{factor * score([run], measure):.4g}" for run in runs)])
    return table(["measure", *(f"{run.arm}, {run.rate:g}" for run in runs)], rows)


def pairs_table() -> str:
    """Differences of two arms, of a seed each, with 95 % intervals over the items."""
    runs = {run.arm: [run] for run in decide.best_runs()} if _tested("smollm2") else {}
    rows = []
    for what, (a, b) in PAIRS.items() if runs else ():
        cells = [f"{what}: {a} against {b}"]
        for measures, scale, factor in (
            (decide.T, np.log, 100),
            (decide.SOURCE, np.log, 100),
            (("drift",), decide.same, 1),
        ):
            delta, items, _ = _intervals(decide.contrast(runs[a], runs[b], measures, scale), factor)
            cells.append(f"{delta} ({items})")
        rows.append(cells)
    return table(["what it tells", "T, Portuguese, %", "S3, English, %", "drift"], rows) if rows else NOT_YET


def decision_table(model: str) -> str:
    ours, theirs = contestants(model)
    control = next(run for run in decide.stage_1() if run.arm == "positive_control")
    if not (len(ours) == len(theirs) > 1 and decide.is_done(control, "test")):
        return "Not decided yet."
    found, c = decide.decision(ours, theirs, control), decide.contrast(ours, theirs, decide.T)
    rows = [["C(winner) - C(t_sft)", f"{100 * c.delta:+.2f} %, bound {100 * c.upper:+.2f} %"]]
    for name, (a, b) in {"seeds 11 to 14": (ours, theirs), "seed 10, of stage 1": _of_stage_1(ours[0].arm)}.items():
        deltas = [100 * decide.contrast([x], [y], decide.T).delta for x, y in zip(a, b, strict=True)]
        rows.append([f"the same, {name}", ", ".join(f"{delta:+.2f}" for delta in deltas) + " %"])
    base = [Run(model, "base")]
    against_base = {
        "English tasks kept": decide.contrast(ours, base, ("stories", "inferences"), decide.same),
        "English texts kept": decide.contrast(ours, base, decide.SOURCE),
    }
    for name, holds in found.items():
        shown = {True: "yes", False: "no", None: "unknown"}[holds]
        if name in against_base:
            change, items, seeds = _intervals(against_base[name], 100, " points" if "tasks" in name else " %")
            shown += f": {change} against base (items {items}, seeds {seeds})"
        rows.append([name, shown])
    return table(["condition", "holds"], [*rows, ["decision", decide.verdict(found)]])


def _of_stage_1(arm: str) -> tuple[list[Run], list[Run]]:
    """Runs of an arm and of T-SFT in stage 1, if they were measured on the test items."""
    runs = {run.arm: run for run in decide.best_runs() if decide.is_done(run, "test")}
    return ([runs[arm]], [runs["t_sft"]]) if {arm, "t_sft"} <= runs.keys() else ([], [])


def blocks() -> dict[str, str]:
    """All tables by the name that marks their place in a page."""
    return {
        "progress": progress("smollm2"),
        "gate": gate_table("smollm2"),
        "stage 1": stage_1_table(),
        "stage 2": stage_2_table("smollm2"),
        "arms": arms_table(),
        "pairs": pairs_table(),
        "strengths": strengths_table(),
        "decision": decision_table("smollm2"),
        "second model": second_model_table(),
        "larger": larger_table(),
        "clean texts": clean_table(),
        "in short": short_table(wider_interval),
        "anchor": short_table(both_intervals),
    }


def plots() -> dict[str, str]:
    """Gain in the target language against drift, as SVG by name: on the dev items and on the test items."""
    base, first, second = Run("smollm2", "base"), [], []
    for run in decide.stage_1() if decide.is_done(base, "dev") else []:
        # The positive control is far below and to the right
        for part in ["dev", *_strengths(run)] if decide.is_done(run, "dev") and run.arm != "positive_control" else []:
            composite, drift = decide.dev_scores(run, part)
            first.append((f"{run.arm} {run.rate:g}{part.removeprefix('dev')}", drift, -100 * composite))
    for run in sum(contestants("smollm2"), []):
        gain = -100 * decide.contrast([run], [base], decide.T).delta
        second.append((f"{run.arm} {run.seed}", score([run], "drift"), gain))
    return {
        "evidence_stage_1": scatter("Dev items, arms, rates and strengths", first),
        "evidence_stage_2": scatter("Test items, arms and seeds", second),
    }


def scatter(title: str, points: list[tuple[str, float, float]]) -> str:
    """A plot of points, each with its name beside it."""
    most_x, most_y = (1.1 * max([point[axis] for point in points], default=1) for axis in (1, 2))
    least_y = min([0.0, *(1.1 * y for *_, y in points)])
    dots: list[dict] = []
    # From the top down: a name that would lie on another one moves below it
    for name, x, y in sorted(points, key=lambda point: -point[2]):
        dot = {"name": name, "x": 60 + 500 * x / most_x, "y": 40 + 330 * (most_y - y) / (most_y - least_y)}
        dot["label_y"] = dot["y"]
        for other in sorted(dots, key=lambda other: other["label_y"]):
            if abs(other["x"] - dot["x"]) < 150 and abs(other["label_y"] - dot["label_y"]) < 13:
                dot["label_y"] = other["label_y"] + 13
        dots.append(dot)
    zero = 40 + 330 * most_y / (most_y - least_y)
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.get_template("plot.svg.jinja")
    return template.render(title=title, dots=dots, zero=zero, most_x=most_x, most_y=most_y)


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
    found = blocks()
    for name, text in found.items():
        print(f"## {name}\n\n{text}\n")
    if write:
        for page in PAGES:
            page.write_text(fill(page.read_text(encoding="utf-8"), found), encoding="utf-8")
        for name, svg in plots().items():
            (ROOT / "docs" / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
