"""The report in a few sentences: does it help, does it hurt, can I believe it?"""

from statistics import median
from typing import Any

from sdrrl_trl.evaluation.compare import ALPHA, FEW, MIN_ITEMS, ROLES, Row
from sdrrl_trl.languages import language_name
from sdrrl_trl.render import render


RISE = 0.05  # of the share of empty or repetitive answers, from where on it is said; the number is not from the paper


def sentences(rows: list[Row], content: dict[str, Any], model: str) -> list[str]:
    """Four to eight sentences about one tuned model, from the rows and from what else `report.json` holds."""
    mine = [row for row in rows if row.model == model]
    by_role = {role: [row for row in mine if row.role == role] for role in ROLES}
    closed = [gap["closed"] for gap in content["gaps"] if gap["model"] == model and gap["closed"] is not None]
    before, now = (
        {rate["language"]: rate for rate in content["answers"] if rate["model"] == name}
        for name in (content["base"], model)
    )
    rates = [(before[tag], now[tag]) for tag in now]
    targets = [(old, new) for old, new in rates if new["language"] != content["source_language"]]
    enough = [(old, new) for old, new in rates if new["n"] >= MIN_ITEMS]
    text = render(
        "sentences.jinja",
        source=language_name(content["source_language"]),
        rows=by_role,
        worst=max(by_role["source"], key=lambda row: row.worst_loss or 0.0, default=None),
        n_rows=len(content["rows"]),
        closed=closed,
        closed_median=median(closed) if closed else None,
        # A model that answered nothing in a language has no rate there
        written=[pair for pair in targets if all(rate["wrong_language"] is not None for rate in pair)],
        risen={
            kind: [(old, new) for old, new in enough if new[kind] - old[kind] > RISE]
            for kind in ("empty", "repetitive")
        },
        n_few=sum(row.verdict == FEW for row in mine),
        alpha=ALPHA,
        min_items=MIN_ITEMS,
    )
    return [line for line in text.splitlines() if line]
