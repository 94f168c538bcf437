"""
Multiple choice: which choice an answer names, and which one is the likeliest.

Rows have `choices` (`list[str]`), `gold` (index of the right one), and for generated answers `language` and `script`.
"""

import math
import re
import unicodedata

from sdrrl_trl.languages import wrong_language
from sdrrl_trl.tasks.thoughts import without_thoughts


# What stands before the letter in "The answer is B", "Richtig ist B", "答案是B", "Ответ: B"
CUES = (
    r"\b(?:is|ist|är|er|é|es|est|è|jest|je|on|là|ni|iko|adalah|yaitu)\b"
    r"|[:：=是为為选選はคือहै]|إجابة هي|هي|هو|정답은|답은"
)
# "A or B", "A, B": more than one is named
JOINERS = "[,/、&]|and|or|und|oder|et|ou|e|y|o|dan|atau|và|hoặc|na|au|и|или|و|أو|या|和|或|と|または|또는|และ|หรือ"
# What a letter that stands alone has not beside it
LATIN = r"[A-Za-zÀ-ɏ0-9']"


def score(doc, results):
    """
    Scores of a generated answer: right, no choice named, wrong language (apart from the text of the choice).

    Not named `acc`: lm-eval 0.5 keeps that name for log-likelihoods.
    """
    text = without_thoughts(results[0])
    chosen = choose(text, doc["choices"])
    rest = text if chosen is None else text.replace(doc["choices"][chosen].strip() or "\0", "")
    return {
        "accuracy": float(chosen == doc["gold"]),
        "invalid": float(chosen is None),
        "wrong_language": wrong_language(rest, doc["language"], doc["script"]) if rest.strip() or not text else 0.0,
    }


def choose(text, choices):
    """
    Index of the choice that an answer names, `None` if it names none or several.

    In this order: a letter at the start with punctuation or nothing behind it ("B", "(B)", "B. Lisbon"); the text of a
    choice as the whole answer; the only letter that stands alone; of several, the one after a word such as "is", or
    the first if punctuation follows it ("C, because A is wrong"); the only choice whose text is in the answer.
    """
    text, letters = tidy(text), "ABCDEFGH"[: len(choices)]
    if lists_choices(text, letters):
        return None
    start = re.match(rf"[(\['\s]*([{letters}])(?:[)\].:,;'\s]*$|[)\].:,;]|\s*\n)", text)
    if start:
        return letters.index(start[1])
    plain = [unicodedata.normalize("NFKC", choice).strip(" .!?。").casefold() for choice in choices]
    whole = text.strip(" .!?。").casefold()
    if whole and plain.count(whole) == 1:
        return plain.index(whole)
    text = re.sub(r"^A(?= [a-zà-ɏ])", "", text)  # "A resposta é B"
    alone = list(re.finditer(rf"(?<!{LATIN})([{letters}])(?!{LATIN})", text))
    if alone:
        letter = letter_meant(text, alone, letters)
        return letters.index(letter) if letter else None
    named = [i for i, choice in enumerate(plain) if len(choice) > 3 and choice in text.casefold()]
    return named[0] if len(named) == 1 else None


def tidy(text):
    """An answer without Markdown and quotation marks, its letters as Latin capitals where they stand alone."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    text = re.sub(r"[*_`\"“”«»「」]+", "", text).strip()
    # Cyrillic and Greek letters that look like Latin ones
    text = re.sub(r"(?<!\w)[АВСΑΒ](?=\W*$|[.):])", lambda match: "ABCAB"["АВСΑΒ".index(match[0])], text)
    return text.upper() if re.fullmatch(r"[(\[']?[a-h][)\]'.:]*", text) else text


def lists_choices(text, letters):
    """Whether an answer only repeats the choices, or begins with more than one letter ("A, B")."""
    listed = set(re.findall(rf"^\W*([{letters}])[).:]", text, flags=re.MULTILINE))
    joined = rf"\W*[{letters}][)\]]?\s*(?:{JOINERS})\s*[(\[]?[{letters}](?!{LATIN})\W*(?:[,/、\n]|$)"
    return len(listed) > 1 or re.match(joined, text)


def letter_meant(text, alone, letters):
    """Of the letters that stand alone in an answer, as matches, the one that it decides for, or `None`."""
    if len({match[1] for match in alone}) == 1:
        return alone[0][1]
    after = re.search(rf"(?:{CUES})\W*([{letters}])(?!{LATIN})", text)
    if after:
        return after[1]
    return alone[0][1] if re.match(r"[,.;，。]", text[alone[0].end() :]) else None


def score_likelihoods(doc, results):
    """1.0 if the right choice has the highest log-likelihood, as lm-eval has it; but a NaN is wrong, not a choice."""
    values = [value for value, _ in results]
    broken = any(math.isnan(value) for value in values)
    return {"acc": float(not broken and values.index(max(values)) == doc["gold"])}


def score_pair(doc, results):
    """
    Is the right one of two answers the likelier: as it is, per character, per byte?

    Not by lm-eval's own metrics, which take the first answer if a log-likelihood is NaN. Here NaN and ties are wrong.
    """
    texts = doc["choices"]
    lengths = {"acc": [1, 1], "acc_norm": map(len, texts), "acc_bytes": [len(text.encode()) for text in texts]}
    scores = {}
    for metric, sizes in lengths.items():
        values = [value / max(size, 1) for (value, _), size in zip(results, sizes, strict=True)]
        scores[metric] = float(values[doc["gold"]] > values[1 - doc["gold"]])
    return scores
