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
    if not folder:
        rows = [(f"row {number} of the data set on the hub", row) for number, row in enumerate(from_hub(), 1)]
    else:
        path, rows = Path(folder) / file, []
        if not path.exists():
            raise FileNotFoundError(
                f"There is no {path}. Put the data there, or unset SDRRL_DATA_DIR to load them from the hub."
            )
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() also splits inside of texts
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    rows.append((f"{path}, line {number}", json.loads(line)))
                except ValueError as error:
                    raise ValueError(f"{path}, line {number} is no JSON: {error}. Correct or remove it.") from error
    for where, row in rows:
        missing = [name for name in columns if row.get(name) in (None, "")]
        if missing:
            raise ValueError(f"{where} has no {', '.join(missing)}: the schema has changed, or the row is damaged.")
    if not rows:
        raise ValueError(f"There is no row in {file}.")
    return [row for _, row in rows]


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
    text = re.sub(r"```.*?(```|$)|`[^`\n]*`|https?://\S+|(?<![^\W_])[A-H](?![^\W_])", " ", text, flags=re.DOTALL)
    letters = [unicodedata.name(char, "").split(" ")[0].split("-")[0] for char in text if char.isalpha()]
    if letters and sum(name in SCRIPTS[script] for name in letters) < len(letters) / 2:
        return 1.0
    ranked = dict(_identifier().rank(text)) if len(letters) >= min_letters else {}
    code = {"nb": "no"}.get(language, language)
    if code not in ranked:  # too short, or a language that py3langid does not know
        return 0.0
    return float(ranked[code] < max(ranked.values()) - 3)


# <<< in_language


# >>> thoughts
def without_thoughts(text):
    """An answer without its `<think>` block; one that is not closed leaves nothing."""
    text = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2].strip()  # chat templates may open the block in the prompt


# <<< thoughts


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
    "fi": "se yks yksi",
    "fr": "le la les l' un une des du de d'",
    "hu": "a az egy",
    "it": "il lo la l' i gli le del dello della dell' dei degli degl' delle un' uno una un",
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

    name = f"mkqa/{language}.jsonl"
    rows = []
    for number, row in enumerate(read_rows(name, ["question", "answers"], from_hub), 1):
        answers = row.get("answers")
        if not row.get("question") or not isinstance(answers, list) or not any(answers):
            raise ValueError(
                f"{name}, row {number}: a `question` and `answers`, a list with at least one text, are needed. "
                "Correct the row or remove it."
            )
        answers = [text for text in answers if text]
        rows.append({"question": row["question"], "answers": answers, "language": language, "script": script})
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc, results):
    """Scores the first line of an answer: the best F1 and exact match over the right answers, wrong language."""
    answer = next((line for line in without_thoughts(results[0]).splitlines() if line.strip()), "")
    said = tokens(answer, doc["language"])
    # MKQA writes whole numbers as "25.0"; nobody answers so
    right = doc["answers"] + [re.sub(r"(?<=\d)\.0\b", "", text) for text in doc["answers"]]
    right = [tokens(text, doc["language"]) for text in right]
    em = float(bool(said) and said in right)
    return {
        "f1": max(f1(said, text) for text in right),
        "em": em,
        # A right answer is in the language, whatever its script: "BBC" and "1999" are answers in Thai, too
        "wrong_language": 0.0 if em else wrong_language(answer, doc["language"], doc["script"]),
    }


def tokens(text, language):
    """
    What counts of an answer: in lower case, without punctuation, symbols and articles. If nothing else is in it, they
    count, so that only an empty answer has no tokens.
    """
    whole = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    short = whole
    if language == "ar":
        short = re.sub(r"\bال", "", whole)  # the article, written together with its word
    elif language in ARTICLES:
        # Before the punctuation goes, for that in l'Italia
        articles = "|".join(ARTICLES[language].split())
        short = re.sub(rf"\b({articles})(?<=')|\b({articles})\b", " ", whole)
    for text in (without_punctuation(short), without_punctuation(whole), whole):
        found = [char for char in text if not char.isspace()] if language in UNSPACED else text.split()
        if found:
            return found
    return []


def without_punctuation(text):
    return "".join(char for char in text if unicodedata.category(char)[0] not in "PSC" or char.isspace())


def f1(said, right):
    """Of two lists of tokens."""
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right)) if common else 0.0
