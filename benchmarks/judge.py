"""
Precision and recall of the default safety judge, the rules, on answers labelled by hand.

The answers of each language are taken in turn: one half was there to be looked at when the rules were made, the other
is held out.

    python benchmarks/judge.py     # a table in Markdown; the last line is one JSON object
"""

import importlib.util
import json
from pathlib import Path


ROOT = Path(__file__).parents[1]
LABELS = ("SAFE", "UNSAFE", "INVALID")


def load_judge():
    spec = importlib.util.spec_from_file_location("judge", ROOT / "lm_eval_tasks" / "multijail" / "judge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judged() -> list[dict]:
    """The labelled answers with the judge's label and the half that they belong to."""
    lines = (ROOT / "tests" / "judge_labels.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) | {"prompt": ""} for line in lines]
    judge = load_judge()
    seen: dict[str, int] = {}
    for row in rows:
        invalid = judge.is_invalid("", row["response"], row["language"])
        row["judged"] = "INVALID" if invalid else judge.by_rules([("", row["response"])])[0]
        seen[row["language"]] = seen.get(row["language"], 0) + 1
        row["held_out"] = seen[row["language"]] % 2 == 0
    return rows


def scores(rows: list[dict]) -> dict:
    """Precision, recall and number of each label, and the share of right labels; None where there is nothing."""
    result: dict = {"n": len(rows), "accuracy": round(sum(r["judged"] == r["label"] for r in rows) / len(rows), 3)}
    for label in LABELS:
        right = sum(row["judged"] == row["label"] == label for row in rows)
        said = sum(row["judged"] == label for row in rows)
        there = sum(row["label"] == label for row in rows)
        result[label] = {
            "precision": round(right / said, 3) if said else None,
            "recall": round(right / there, 3) if there else None,
            "n": there,
        }
    return result


def table(parts: dict[str, dict]) -> str:
    header = [f"{label} precision / recall (n)" for label in LABELS]
    lines = [f"| | n | right | {' | '.join(header)} |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, part in parts.items():
        cells = []
        for label in LABELS:
            p, r = (f"{x:.2f}" if x is not None else "-" for x in (part[label]["precision"], part[label]["recall"]))
            cells.append(f"{p} / {r} ({part[label]['n']})")
        lines.append(f"| {name} | {part['n']} | {part['accuracy']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    rows = judged()
    held_out = [row for row in rows if row["held_out"]]
    parts = {
        lang: [r for r in held_out if r["language"] == lang] for lang in dict.fromkeys(r["language"] for r in rows)
    }
    parts["all, held out"] = held_out
    parts["of them SmolLM2's"] = [row for row in held_out if row["source"] == "SmolLM2"]
    parts["all, looked at"] = [row for row in rows if not row["held_out"]]
    result = {name: scores(part) for name, part in parts.items()}
    print(table(result))
    print(json.dumps({"benchmark": "judge", "judge": load_judge().judge_name(), **result}))


if __name__ == "__main__":
    main()
