"""
Tables, plots and the decision from whatever results of `run.py` there are.

    python benchmarks/evidence/tables.py [--write]

Prints the tables as Markdown; `--write` puts them between their marks in docs/results.md and README.md, and draws the
plots. The tables of the first round are in round1/tables.txt.
"""

import argparse
from pathlib import Path

import decide
import numpy as np
from decide import Run
from jinja2 import Environment, FileSystemLoader


HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = [ROOT / "docs" / "results.md", ROOT / "README.md"]
# Measures on the test items: name, what it is made of, digits shown, factor
BITS = {
    "T1 human answers, pt": ("human/pt",),
    "T2 FLORES, pt": ("flores/pt",),
    "S3 human answers, en": ("human/en",),
    "S3 FLORES, en": ("flores/en",),
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


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def progress(model: str) -> str:
    jobs = decide.jobs(model)
    done = sum(decide.is_done(*job) for job in jobs)
    return f"{model}: {done} of {len(jobs)} runs and measurements known to be needed are done."


def stage_1_table() -> str:
    """All arms at both rates on the dev items, the better rate of each arm in bold."""
    rows, base = [], Run("smollm2", "base")
    runs = [run for run in decide.stage_1() if decide.is_done(run, "dev")]
    for run in runs if decide.is_done(base, "dev") else []:
        found = decide.read(run, "dev")
        composite, drift = decide.dev_scores(run)
        same_arm = [other for other in runs if other.arm == run.arm]
        mark = "**" if run == min(same_arm, key=lambda other: decide.dev_scores(other)[0]) else ""
        cells = [f"{_percent(found, decide.read(base, 'dev'), name):+.2f}" for name in decide.TEXTS]
        training = found["training"]
        rows.append([f"{run.arm}, {run.rate:g}", f"{mark}{100 * composite:+.2f}{mark}", f"{drift:.4f}", *cells])
        rows[-1] += [f"{training['tokens']:,}", f"{training['seconds'] or float('nan'):.0f}"]
    head = ["arm, rate", "composite, %", "drift", *(f"{name}, %" for name in decide.TEXTS), "tokens", "seconds"]
    return table(head, rows)


def _percent(found: dict, base: dict, name: str) -> float:
    after, before = (decide.nats(content["likelihoods"][name]) for content in (found, base))
    return 100 * float(np.log(after / before))


def gate_table(model: str) -> str:
    if not decide.is_done(Run(model, "base"), "test"):
        return "not measured yet"
    rows = [
        [
            measure,
            f"{100 * decide.CHANCE[measure]:.1f}",
            f"{100 * share:.1f}",
            f"{100 * low:.1f}",
            "yes" if used else "no",
        ]
        for measure, (share, low, used) in decide.gate(model).items()
    ]
    return table(["measure", "chance, %", "right, %", "lower bound, %", "used"], rows)


def contestants(model: str) -> tuple[list[Run], list[Run]]:
    """Runs of stage 2 that are measured on the test items: the winner's and T-SFT's."""
    runs = [run for run, part in decide.jobs(model) if part == "test" and decide.is_done(run, "test")]
    seeds = {*decide.CONFIG["stage_2"]["seeds"], *decide.CONFIG["second_model"]["seeds"]}
    repeated = [run for run in runs if run.seed in seeds]
    return [run for run in repeated if run.arm != "t_sft"], [run for run in repeated if run.arm == "t_sft"]


def test_table(model: str) -> str:
    """The initial model, T-SFT, the winner, and the difference of the last two with both intervals."""
    ours, theirs = contestants(model)
    base = [Run(model, "base")]
    if not (ours and theirs):
        return "not measured yet"
    rows = []
    for fitted in (False, True):
        for name, measures in BITS.items():
            cells = [f"{_score(runs, measures[0], fitted):.4f}" for runs in (base, theirs, ours)]
            found = decide.contrast(ours, theirs, measures, fitted=fitted)
            label = f"D {name}, at the fitted temperature" if fitted else name
            rows.append([label, *cells, *_intervals(found, 100, " %")])
    for name, (measure, factor) in OTHERS.items():
        cells = [f"{factor * _score(runs, measure):.4g}" for runs in (base, theirs, ours)]
        found = decide.contrast(ours, theirs, (measure,), decide.same)
        rows.append([name, *cells, *_intervals(found, factor)])
    head = ["measure", "base", f"t_sft ({len(theirs)} seeds)", f"{ours[0].arm} ({len(ours)} seeds)"]
    return table([*head, "difference", "95 % over items", "95 % over seeds"], rows)


def _score(runs: list[Run], measure: str, fitted: bool = False) -> float:
    sums = [decide.items(run, measure, fitted).sum(0) for run in runs]
    return float(np.mean([number / of for number, of in sums]))


def _intervals(found: decide.Contrast, factor: float, unit: str = "") -> list[str]:
    intervals = [f"{factor * low:+.3g} to {factor * high:+.3g}" for low, high in (found.of_items, found.of_seeds)]
    return [f"{factor * found.delta:+.3g}{unit}", *intervals]


def arms_table() -> str:
    """Every arm of stage 1 at its better rate on the test items, one seed each: what the parts of the recipe do."""
    rows = []
    runs = [run for run, part in decide.jobs("smollm2") if part == "test" and decide.is_done(run, "test")]
    for run in [run for run in runs if run.seed in (0, decide.CONFIG["stage_1"]["seed"])]:
        bits = [f"{_score([run], measures[0]):.4f}" for measures in BITS.values()]
        rows.append([f"{run.arm}, {run.rate:g}", *bits])
        rows[-1] += [f"{factor * _score([run], measure):.4g}" for measure, factor in OTHERS.values()]
    return table(["arm, rate", *BITS, *OTHERS], rows)


def decision_table(model: str) -> str:
    ours, theirs = contestants(model)
    control = next(run for run in decide.stage_1() if run.arm == "positive_control")
    if not (len(ours) == len(theirs) > 1 and decide.is_done(control, "test")):
        return "not decided yet"
    found = decide.decision(ours, theirs, control)
    names = {True: "yes", False: "no", None: "nothing can be said"}
    c = decide.contrast(ours, theirs, decide.T)
    rows = [[condition, names[value]] for condition, value in found.items()]
    rows.insert(0, ["C of the winner minus C of t_sft, %", f"{100 * c.delta:+.2f}, bound {100 * c.upper:+.2f}"])
    return table(["condition", "holds"], [*rows, ["decision", decide.verdict(found)]])


def blocks() -> dict[str, str]:
    """All tables by the name that marks their place in a page."""
    return {
        "progress": progress("smollm2"),
        "gate": gate_table("smollm2"),
        "stage 1": stage_1_table(),
        "stage 2": test_table("smollm2"),
        "arms": arms_table(),
        "decision": decision_table("smollm2"),
        "second model": test_table("qwen"),
    }


def plots() -> dict[str, str]:
    """Both plots as SVG by name: gain in the target language against drift, on the dev and on the test items."""
    base = Run("smollm2", "base")
    dev = [run for run in decide.stage_1() if decide.is_done(run, "dev")] if decide.is_done(base, "dev") else []
    scores = {f"{run.arm} {run.rate:g}": decide.dev_scores(run) for run in dev}
    points = [(name, drift, -100 * composite) for name, (composite, drift) in scores.items()]
    ours, theirs = contestants("smollm2")
    repeated = [
        (f"{run.arm} {run.seed}", _score([run], "drift"), -100 * decide.contrast([run], [base], decide.T).delta)
        for run in (*ours, *theirs)
    ]
    return {
        "evidence_stage_1": scatter("Stage 1: one seed, dev items", points),
        "evidence_stage_2": scatter("Stage 2: four seeds, test items", repeated),
    }


def scatter(title: str, points: list[tuple[str, float, float]]) -> str:
    """A plot of gain against drift with each point's name beside it."""
    width, height, left, bottom = 720, 420, 60, 370
    most_x, most_y = (max([point[i] for point in points], default=1) * 1.1 or 1 for i in (1, 2))
    least_y = min([0.0, *(y for _, _, y in points)]) * 1.1
    dots = [
        {
            "name": name,
            "x": round(left + (width - left - 160) * drift / most_x, 1),
            "y": round(bottom - (bottom - 40) * (gain - least_y) / (most_y - least_y), 1),
            "value": f"drift {drift:.4f}, gain {gain:.2f} %",
        }
        for name, drift, gain in points
    ]
    # From the top down, a label that would lie on another one moves below it
    placed: list[dict] = []
    for dot in sorted(dots, key=lambda dot: dot["y"]):
        dot["label_y"] = dot["y"]
        near = [other for other in placed if abs(other["x"] - dot["x"]) < 150]
        for other in sorted(near, key=lambda other: other["label_y"]):
            if abs(other["label_y"] - dot["label_y"]) < 13:
                dot["label_y"] = other["label_y"] + 13
        placed.append(dot)
    zero = round(bottom - (bottom - 40) * -least_y / (most_y - least_y), 1)
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    size = {"width": width, "height": height, "left": left, "bottom": bottom, "zero": zero}
    limits = {"most_x": f"{most_x:.3g}", "most_y": f"{most_y:.3g}"}
    return environment.get_template("plot.svg.jinja").render(title=title, dots=dots, **size, **limits)


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
