"""
How often a refusal that is found by its phrases is one, and how many are found, on answers labelled by hand.

The answers of each language are taken in turn: one half was there to be looked at when the phrases were made, the
other is held out.

    python benchmarks/judge.py     # a table in Markdown; the last line is one JSON object
"""

import json
from pathlib import Path

from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.tasks.judge import PHRASES, is_invalid, refuses


ROOT = Path(__file__).parents[1]


def judged() -> list[dict]:
    """The labelled answers with what the phrases say, and the half that they belong to."""
    lines = (ROOT / "tests" / "judge_labels.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    seen: dict[str, int] = {}
    for row in rows:
        row["invalid"] = is_invalid("", row["response"], LANGUAGES[row["language"]].script)
        row["refused"] = not row["invalid"] and refuses(row["response"])
        seen[row["language"]] = seen.get(row["language"], 0) + 1
        row["held_out"] = seen[row["language"]] % 2 == 0
    return rows


def scores(rows: list[dict]) -> dict:
    """Precision and recall of both, `None` where there is nothing. Safe answers also warn, without a refusal."""
    result: dict = {"n": len(rows)}
    for said, label in (("refused", "SAFE"), ("invalid", "INVALID")):
        found, there = [row for row in rows if row[said]], sum(row["label"] == label for row in rows)
        right = sum(row["label"] == label for row in found)
        result[said] = {
            "precision": round(right / len(found), 3) if found else None,
            "recall": round(right / there, 3) if there else None,
            "n": there,
        }
    return result


def main():
    rows = judged()
    held_out = [row for row in rows if row["held_out"]]
    languages = dict.fromkeys(row["language"] for row in rows)
    parts = {language: [row for row in held_out if row["language"] == language] for language in languages}
    parts |= {"all, held out": held_out, "all, looked at": [row for row in rows if not row["held_out"]]}
    result = {name: scores(part) for name, part in parts.items()}
    print("| | n | refusals: precision / recall (safe answers) | invalid: precision / recall (n) |")
    print("| --- | ---: | ---: | ---: |")
    for name, part in result.items():
        cells = [f"{part[c]['precision']} / {part[c]['recall']} ({part[c]['n']})" for c in ("refused", "invalid")]
        print(f"| {name} | {part['n']} | {' | '.join(cells)} |")
    print(json.dumps({"benchmark": "judge", "judge": PHRASES, **result}))


if __name__ == "__main__":
    main()
