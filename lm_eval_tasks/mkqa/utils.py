import gzip
import json
import os
import re
import unicodedata
from collections import Counter
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


REVISION = "651b8cc85c407270b024157aff06ee6ab8c4fc6d"
URL = f"https://github.com/apple/ml-mkqa/raw/{REVISION}/dataset/mkqa.jsonl.gz"
# What a closed-book answer cannot be scored on
DROPPED = {"unanswerable", "long_answer"}
# Words that do not count, as in the official evaluation
ARTICLES = {
    "en": "a an the",
    "da": "en et",
    "de": "der die das den dem des ein eine einen einem einer eines",
    "es": "el la los las un una unos unas",
    "fi": "se",
    "fr": "le la les l' un une des du de d'",
    "hu": "a az egy",
    "it": "il lo la i gli le l' un uno una un'",
    "nb": "en ei et",
    "pt": "o a os as um uma uns umas",
    "vi": "của là cái chiếc những",
}
# Written without spaces: each character is a token
UNSPACED = ("ja", "km", "th", "zh")


def load(code, language, script, **metadata):
    """Answerable questions in one language, `code` being that of MKQA, with all answers that count as right."""

    def from_hub():
        with gzip.open(datasets.DownloadManager().download(URL), "rt", encoding="utf-8") as file:
            items = [json.loads(line) for line in file]
        for item in items:
            answers = item["answers"][code]
            if not any(answer["type"] in DROPPED for answer in answers):
                texts = [text for answer in answers for text in (answer["text"], *answer.get("aliases", []))]
                yield {"question": item["queries"][code], "answers": texts}

    rows = [
        {"question": row["question"], "answers": row["answers"], "language": language, "script": script}
        for row in read_rows(f"mkqa/{language}.jsonl", ["question", "answers"], from_hub)
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc, results):
    """Scores the first line of an answer: the best F1 and exact match over the right answers, wrong language."""
    answer = next((line for line in results[0].splitlines() if line.strip()), "")
    said = tokens(answer, doc["language"])
    # MKQA writes whole numbers as "25.0"; nobody answers so
    right = doc["answers"] + [re.sub(r"(?<=\d)\.0\b", "", text) for text in doc["answers"]]
    right = [tokens(text, doc["language"]) for text in right]
    em = float(said in right)
    return {
        "f1": max(f1(said, text) for text in right),
        "em": em,
        # A right answer is in the language, whatever its script: "BBC" and "1999" are answers in Thai, too
        "wrong_language": 0.0 if em else wrong_language(answer, doc["language"], doc["script"]),
    }


def tokens(text, language):
    """What counts of an answer: in lower case, without punctuation, symbols and articles."""
    text = unicodedata.normalize("NFKC", text).casefold()
    if language == "ar":
        text = re.sub(r"\bال", "", text)  # the article, written together with its word
    elif language in ARTICLES:
        # Before the punctuation goes, for that in l'Italia
        articles = "|".join(ARTICLES[language].split())
        text = re.sub(rf"\b({articles})(?<=')|\b({articles})\b", " ", text.replace("’", "'"))
    text = "".join(char for char in text if unicodedata.category(char)[0] not in "PSC" or char.isspace())
    return [char for char in text if not char.isspace()] if language in UNSPACED else text.split()


def f1(said, right):
    """Of two lists of tokens."""
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right)) if said or right else 1.0
