import json
import os
import re
import unicodedata
from functools import cache
from pathlib import Path

import datasets
import regex
from rouge_score.rouge_scorer import RougeScorer


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


# The main branch is a script, which `datasets` no longer runs; this one is its conversion by the hub
REVISION = "refs/convert/parquet"
COLUMNS = ["text", "summary"]


def load(name, language, script, max_article_chars=None, **metadata):
    """
    Test articles of one language, `name` being that of XL-Sum.

    `max_article_chars` keeps the start of longer articles, for models with a short context.
    """

    def from_hub():
        files = {"test": f"{name}/test/0000.parquet"}
        return datasets.load_dataset("csebuetnlp/xlsum", data_files=files, split="test", revision=REVISION)

    rows = read_rows(f"xlsum/{language}.jsonl", COLUMNS, from_hub)
    limit = int(max_article_chars) if max_article_chars else None
    rows = [{"text": row["text"][:limit], "summary": row["summary"]} for row in rows]
    return {"test": datasets.Dataset.from_list([row | {"language": language, "script": script} for row in rows])}


# Also in unicode_rouge/unicode_rouge.py
class UnicodeTokenizer:
    """
    Words of letters, digits and their marks, in lower case; in scripts without spaces, each character with its marks.

    rouge_score's own tokenizer keeps a-z and 0-9 only, so that identical texts in Thai score 0.
    """

    UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Khmer}\p{Lao}\p{Myanmar}"
    TOKEN = rf"[[\p{{L}}\p{{N}}]&&[{UNSPACED}]]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]+"

    def tokenize(self, text):
        visible = regex.sub(r"\p{Cf}", "", unicodedata.normalize("NFKC", text))
        return regex.findall(self.TOKEN, visible.casefold(), regex.V1)


ROUGE = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=UnicodeTokenizer())


def process_results(doc, results):
    """Scores an answer: F-measures of ROUGE, wrong language."""
    answer = without_thoughts(results[0])
    scores = {name: score.fmeasure for name, score in ROUGE.score(doc["summary"], answer).items()}
    return scores | {"wrong_language": wrong_language(answer, doc["language"], doc["script"])}
