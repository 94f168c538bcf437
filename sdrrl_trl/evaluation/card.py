"""The results in a tuned model's card, with metadata for the hub."""

import re
from pathlib import Path
from typing import Any

import yaml

from sdrrl_trl.evaluation.compare import FEW, Row
from sdrrl_trl.hub import NON_COMMERCIAL, licence_fields
from sdrrl_trl.render import inline, render
from sdrrl_trl.transfer.publish import non_commercial_parts
from sdrrl_trl.utils import SDRRLError, on_hub, package_version, public_name, write_atomic


BEGIN, END = "<!-- sdrrl report: begin -->", "<!-- sdrrl report: end -->"


# Its metadata as they stand there, what they say, and the text below
Card = tuple[str, dict[str, Any], str]


def load(model: str) -> Card:
    """
    The card of a model, or a new one if there is none here. The model's folder itself is never written to.

    Args:
        model (`str`):
            Folder or hub id of the model.

    Raises:
        `SDRRLError`: if the metadata of the card cannot be read.
    """
    path = Path(model) / "README.md"
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else f"# {inline(Path(model).name)}\n"
        found = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$(.*)", text, re.DOTALL | re.MULTILINE)
        front, text = found.groups() if found else ("library_name: transformers\n", text)
        metadata = yaml.safe_load(front) or {}
        _with_results(metadata, [], "")
        return front, metadata, text
    except (OSError, yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise SDRRLError(
            f"The metadata at the top of {path} cannot be read, so the results cannot be added without losing it. "
            f"Correct the lines between the two `---`, or move the file away for a new card. The mistake: {error}"
        ) from error


def write(
    path: Path, card: Card, content: dict[str, Any], rows: list[Row], model: str, data_set: dict[str, Any] | None
) -> None:
    """
    Writes a card with the results, in the place of those of an earlier report. All else in it stays as it is.

    Args:
        path (`Path`):
            Where to write.
        card ([`Card`]):
            The card so far, from [`load`].
        content (`dict[str, Any]`):
            What `report.json` holds.
        rows (`list[Row]`):
            The comparisons.
        model (`str`):
            Name of the tuned model.
        data_set (`dict[str, Any]`, *optional*):
            Manifest of the transfer set that it was trained on.
    """
    rows = [row for row in rows if row.model == model]
    front, old, text = card
    base, tuned = (public_name(content["models"][name]) for name in (content["base"], model))
    new: dict[str, Any] = {"licence": None}  # a slip of TRL's for `license`
    # PEFT notes the folder that the base model was loaded from, which the hub rejects
    bases = old.get("base_model") or []
    if not all(map(on_hub, [bases] if isinstance(bases, str) else bases)):
        new["base_model"] = None
        tags = map(str, old.get("tags") or [])
        new["tags"] = [tag for tag in tags if not tag.startswith("base_model:") or on_hub(tag.rpartition(":")[2])]
    non_commercial = non_commercial_parts(data_set) if data_set else []
    if data_set:
        new["language"] = [data_set["options"]["source_language"], *data_set["options"]["target_languages"]]
    # That of a card of ours is the base model's; somebody else's was chosen
    if non_commercial and (not old.get("license") or "license_name" in old or "sdrrl" in (old.get("tags") or [])):
        new |= NON_COMMERCIAL | {"license_link": None}
    elif not old.get("license"):
        new |= licence_fields(content["models"][content["base"]])
    new["model-index"] = _with_results(old, rows, tuned)
    section = render(
        "card.md.jinja",
        sentences=content["summary"][model],
        base=base,
        tuned=tuned,
        rows=rows,
        data_set=data_set,
        answered_by=public_name(data_set["options"]["model_name_or_path"]) if data_set else None,
        non_commercial=non_commercial,
        versions={name: package_version(name) for name in ("sdrrl-trl", "lm_eval", "transformers")},
        signatures=sorted(set(content["signatures"].values())),
    )
    # TRL's card of a model that was trained from a folder
    text = text.replace("[None](https://huggingface.co/None)", f"`{base}`").replace('"None"', f'"{tuned}"')
    # What is not changed stays as it was written, and is no YAML made anew: 1.10 would be 1.1
    kept = re.split(r"^(?=[^\s#\]}-])", front, flags=re.MULTILINE)
    kept = [block for block in kept if block.partition(":")[0].strip(" '\"") not in new]
    changed = {name: value for name, value in new.items() if value}
    kept.append(yaml.safe_dump(changed, sort_keys=False, allow_unicode=True) if changed else "")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2].rstrip()
    front = "".join(kept).strip()
    write_atomic(path, f"---\n{front}\n---\n{before.strip()}\n\n{BEGIN}\n{section}{END}{after}\n")


def _with_results(metadata: dict[str, Any], rows: list[Row], name: str) -> list[dict[str, Any]]:
    """
    The hub's `model-index` of some metadata with the tuned model's scores: in its first entry, beside the results of
    others there, or in a new one under `name`.
    """
    ours = [
        {
            "task": {"type": "text-generation"},
            "dataset": {
                "name": row.task,
                "type": row.benchmark.removesuffix("_*").replace("*", "xx"),
                "config": row.language or "default",  # the hub tells results apart by it, not by the name
                "args": {"items": row.comparison.n},
            },
            "metrics": [
                {
                    "type": "drift" if row.role == "drift" else row.metric_name,
                    "value": round(row.comparison.tuned, 5),
                    "name": row.title,
                }
            ],
        }
        for row in rows
        if row.role != "agreement" and row.verdict != FEW
    ]

    def keys(result: dict[str, Any]) -> list[tuple[Any, ...]]:
        return [(result["dataset"].get("name"), m["type"], m.get("name")) for m in result["metrics"]]

    known = {key for result in ours for key in keys(result)}
    first, *others = metadata.get("model-index") or [{"name": metadata.get("model_name") or name}]
    left = [result for result in first.get("results") or [] if not known & set(keys(result))]
    return [*([first | {"results": left + ours}] if left + ours else []), *others]
