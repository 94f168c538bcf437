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


# >>> choose
# What stands before the letter in "The answer is B", "Richtig ist B", "答案是B", "Ответ: B"
CUES = (
    r"\b(?:is|ist|är|er|é|es|est|è|jest|je|on|là|ni|iko|adalah|yaitu)\b"
    r"|[:：=是为為选選はคือहै]|إجابة هي|هي|هو|정답은|답은"
)


JOINERS = "[,/、&]|and|or|und|oder|et|ou|e|y|o|dan|atau|và|hoặc|na|au|и|или|و|أو|या|和|或|と|または|또는|และ|หรือ"


def choose(text, choices):
    """
    Index of the choice that an answer names, `None` if it names none or several.

    In this order: a letter at the start with punctuation or nothing behind it ("B", "(B)", "B. Lisbon"); the text of a
    choice as the whole answer; the only letter that stands alone; of several, the one after a word such as "is", or
    the first if punctuation follows it ("C, because A is wrong"); the only choice whose text is in the answer.
    """
    letters = "ABCDEFGH"[: len(choices)]
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    text = re.sub(r"[*_`\"“”«»「」]+", "", text).strip()
    # Cyrillic and Greek letters that look like ours, where they stand alone
    text = re.sub(r"(?<!\w)[АВСΑΒ](?=\W*$|[.):])", lambda m: "ABCAB"["АВСΑΒ".index(m[0])], text)
    if re.fullmatch(r"[(\[']?[a-h][)\]'.:]*", text):
        text = text.upper()
    single, latin = f"[{letters}]", r"[A-Za-zÀ-ɏ0-9']"
    listed = set(re.findall(rf"^\W*({single})[).:]", text, flags=re.MULTILINE))
    several = rf"\W*{single}[)\]]?\s*(?:{JOINERS})\s*[(\[]?{single}(?!{latin})\W*(?:[,/、\n]|$)"
    if len(listed) > 1 or re.match(several, text):
        return None  # the choices once more, or "A, B"
    start = re.match(rf"[(\['\s]*({single})(?:[)\].:,;'\s]*$|[)\].:,;]|\s*\n)", text)
    if start:
        return letters.index(start[1])
    plain = [unicodedata.normalize("NFKC", choice).strip(" .!?。").casefold() for choice in choices]
    whole = text.strip(" .!?。").casefold()
    if plain.count(whole) == 1 and whole:
        return plain.index(whole)
    text = re.sub(r"^A(?= [a-zà-ɏ])", "", text)  # "A resposta é B"
    alone = list(re.finditer(rf"(?<!{latin})({single})(?!{latin})", text))
    if len({match[1] for match in alone}) == 1:
        return letters.index(alone[0][1])
    if alone:
        after = re.search(rf"(?:{CUES})\W*({single})(?!{latin})", text)
        if after:
            return letters.index(after[1])
        return letters.index(alone[0][1]) if re.match(r"[,.;，。]", text[alone[0].end() :]) else None
    named = [i for i, choice in enumerate(plain) if len(choice) > 3 and choice in text.casefold()]
    return named[0] if len(named) == 1 else None


def choice_scores(text, choices, right, language, script):
    """Scores of a generated answer: right, no choice named, wrong language (apart from the text of the choice)."""
    text = without_thoughts(text)
    chosen = choose(text, choices)
    rest = text if chosen is None else text.replace(choices[chosen].strip() or "\0", "")
    return {
        "acc": float(chosen == right),
        "invalid": float(chosen is None),
        "wrong_language": wrong_language(rest, language, script) if rest.strip() or not text else 0.0,
    }


# <<< choose


# >>> likelihood
def right_is_likeliest(results, right):
    """1.0 if the right choice has the highest log-likelihood, as lm-eval has it; but a NaN is wrong, not a choice."""
    values = [value for value, _ in results]
    return float(not any(value != value for value in values) and values.index(max(values)) == right)


# <<< likelihood


REVISION = "c4c2d88a1ec8b37fe22166d2a610f272726724b6"
ENDINGS = ["sentence_quiz1", "sentence_quiz2", "answer_right_ending"]


def load(language, script=None, **metadata):
    """XStoryCloze's evaluation split in one language, the four sentences joined into `context`."""

    def from_hub():
        rows = datasets.load_dataset("juletxara/xstory_cloze", language, split="eval", revision=REVISION)
        return [row | {"context": " ".join(row[f"input_sentence_{i}"] for i in range(1, 5))} for row in rows]

    columns = ["context", *ENDINGS]
    rows = read_rows(f"xstorycloze/{language}.jsonl", columns, from_hub)
    rows = [{c: row[c] for c in columns} | {"context": spaced(row["context"])} for row in rows]
    if not all(str(row["answer_right_ending"]) in ("1", "2") for row in rows):
        raise ValueError(f"XStoryCloze in {language}: an `answer_right_ending` is neither 1 nor 2.")
    if script:
        rows = [row | {"language": language, "script": script} for row in rows]
    data = datasets.Dataset.from_list(rows)
    return {"train": data, "eval": data}


def spaced(context):
    """The sentences with a space between them, as in lm-eval's own tasks; some copies of the data have none."""
    return re.sub(r"(?<=[.!?।。！？؟])(?=[^\W\d_])", " ", context)


def process_results(doc, results):
    """Scores of a generated answer."""
    choices, right = [doc["sentence_quiz1"], doc["sentence_quiz2"]], int(doc["answer_right_ending"]) - 1
    return choice_scores(results[0], choices, right, doc["language"], doc["script"])


def process_likelihoods(doc, results):
    """Scores of the choices' log-likelihoods."""
    acc = right_is_likeliest(results, int(doc["answer_right_ending"]) - 1)
    return {"acc": acc}
