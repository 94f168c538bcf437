import json
import os
import re
import unicodedata
from functools import cache
from pathlib import Path

import datasets


# >>> rows
def read_rows(file, columns, from_hub):
    """
    Rows of `file` in the folder `SDRRL_DATA_DIR`, or of the hub if that is not set.

    `from_hub` is called without arguments and gives a data set or a list of rows. All `columns` must be there.
    """
    folder = os.environ.get("SDRRL_DATA_DIR")
    if folder:
        where = Path(folder) / file
        if not where.exists():
            raise FileNotFoundError(
                f"There is no {where}. Put the data there, or unset SDRRL_DATA_DIR to load them from the hub."
            )
        lines = where.read_text(encoding="utf-8-sig").split("\n")  # splitlines() also splits inside of texts
        rows = [json.loads(line) for line in lines if line.strip()]
    else:
        where, rows = "the data set on the hub", list(from_hub())
    missing = sorted(set(columns) - set(rows[0])) if rows else columns
    if missing:
        raise ValueError(f"{where} has no column {', '.join(missing)}: its schema has changed, or it is empty.")
    return rows


# <<< rows


# >>> in_language
# By the first word of a character's Unicode name
SCRIPTS = {
    "Latn": ("LATIN",),
    "Cyrl": ("CYRILLIC",),
    "Grek": ("GREEK",),
    "Arab": ("ARABIC",),
    "Beng": ("BENGALI",),
    "Deva": ("DEVANAGARI",),
    "Telu": ("TELUGU",),
    "Thai": ("THAI",),
    "Khmr": ("KHMER",),
    "Mymr": ("MYANMAR",),
    "Hang": ("HANGUL",),
    "Jpan": ("HIRAGANA", "KATAKANA", "CJK"),
    "Hans": ("CJK",),
}


CODES = (
    "ar bg bn ca cs da de el en es eu fi fr gl hi hu id it ja jv km ko my nl no pl pt ru sl sv sw te th tr uk ur "
    "vi yo zh"
)


@cache
def _identifier():
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError("The rate of answers in a wrong language needs `pip install py3langid`.") from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    # Those of the benchmarks: against all that it knows, Indonesian is taken for Malay, Chinese for Wu
    identifier.set_languages([code for code in identifier.nb_classes if code in CODES.split()])
    return identifier


def wrong_language(text, language, script, min_letters=20):
    """
    1.0 if a text is not in a language (ISO 639-1 code and ISO 15924 script), else 0.0.

    At least half of its letters must be of the script. From `min_letters` letters on, py3langid must also find the
    language most likely, or less likely by at most 3 nats; it is unreliable on less. The letter of a choice, as in
    "(B)", is not counted. The empty text is in no language.
    """
    if not text.strip():
        return 1.0
    text = re.sub(r"```.*?(```|$)|`[^`\n]*`|https?://\S+|(?<!\S)[(\[]?[A-H][)\].:]?(?!\S)", " ", text, flags=re.DOTALL)
    letters = [unicodedata.name(char, "").split(" ")[0].split("-")[0] for char in text if char.isalpha()]
    if letters and sum(name in SCRIPTS[script] for name in letters) < len(letters) / 2:
        return 1.0
    ranked = dict(_identifier().rank(text)) if len(letters) >= min_letters else {}
    code = {"nb": "no"}.get(language, language)
    if code not in ranked:  # too short, or a language that py3langid does not know
        return 0.0
    return float(ranked[code] < max(ranked.values()) - 3)


# <<< in_language


# >>> choose
def choose(text, choices):
    """
    Index of the choice that an answer names, `None` if it names none.

    In this order: a letter in brackets, "(B)"; a letter at the start with punctuation or nothing behind it, "B" or
    "B. Lisbon"; the choice itself, alone or, from five characters on, at the start; the last letter standing alone in
    the first line ("A resposta é B").
    """
    letters = "ABCDEFGH"[: len(choices)]
    text = unicodedata.normalize("NFKC", text).strip()
    lower = text.casefold()
    bracket = re.search(rf"[(\[]([{letters}])[)\]]", text)
    start = re.match(rf"([{letters}])(?:[^\w\s']|\s*$|\n)", text)
    if bracket or start:
        return letters.index((bracket or start)[1])
    plain = [unicodedata.normalize("NFKC", choice).strip().casefold() for choice in choices]
    whole = lower.rstrip(" .!?。")
    named = [i for i, c in enumerate(plain) if c and (c == whole or len(c) > 4 and lower.startswith(c))]
    if named:
        return max(named, key=lambda i: len(plain[i]))
    alone = re.findall(rf"(?<![\w'])[{letters}](?![\w'])", text.partition("\n")[0])
    return letters.index(alone[-1]) if alone else None


# <<< choose


REVISION = "b8dd5d7af51114dbda02c0e3f6133f332186418e"
COLUMNS = ["premise", "hypothesis", "label"]


def load(language, split="validation", script=None, **metadata):
    """XNLI of one language. With `script`, each row also has them for the check of the answer's language."""

    def from_hub():
        return datasets.load_dataset("facebook/xnli", language, split=split, revision=REVISION)

    rows = [{name: row[name] for name in COLUMNS} for row in read_rows(f"xnli/{language}.jsonl", COLUMNS, from_hub)]
    if script:
        rows = [row | {"language": language, "script": script} for row in rows]
    data = datasets.Dataset.from_list(rows)
    return {"train": data, split: data}


def process_results(doc, results):
    """Scores a generated answer: right, no choice named, wrong language."""
    chosen = choose(results[0], ["", "", ""])
    return {
        "acc": float(chosen == doc["label"]),
        "invalid": float(chosen is None),
        "wrong_language": wrong_language(results[0], doc["language"], doc["script"]),
    }
