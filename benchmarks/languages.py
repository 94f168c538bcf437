"""
How often answers are said to be in a wrong language, or not to be known, on sentences of FLORES-200 in the folder
`SDRRL_DATA_DIR`: as they are, their first five and two words, and with each word replaced by an English one with a
probability of 0.25; and how often English ones are. Files of languages that are not in the table are tried as the
languages with their script, which shows the neighbours that pass.

    SDRRL_DATA_DIR=... python benchmarks/languages.py     # tables in Markdown; the last line is one JSON object
"""

import json
import os
import random
from pathlib import Path

from sdrrl_trl.languages import DENSE, LANGUAGES, Language, is_in_language


N = 200
FOLDER = Path(os.environ.get("SDRRL_DATA_DIR", "../shared/data")) / "flores200" / "devtest"


def words_of(sentence: str, language: Language) -> list[str]:
    """Words; pieces of the length of a word where they are written together."""
    if language.spaces:
        return sentence.split()
    size = next((n for scripts, n in DENSE.items() if language.script in scripts), 2)
    return [sentence[i : i + size] for i in range(0, len(sentence), size)]


def rates(sentences: list[str], language: Language) -> dict[str, float]:
    found = [is_in_language(text, language.tag, language.script) for text in sentences]
    return {"wrong": found.count(False) / len(found), "unknown": found.count(None) / len(found)}


def first(n: int, sentences: list[str], language: Language) -> list[str]:
    joint = " " if language.spaces else ""
    return [joint.join(words_of(sentence, language)[:n]) for sentence in sentences]


def mixed(sentences: list[str], english: list[str], language: Language) -> list[str]:
    rng, joint = random.Random(0), " " if language.spaces else ""
    return [
        joint.join(rng.choice(other.split()) if rng.random() < 0.25 else word for word in words_of(sentence, language))
        for sentence, other in zip(sentences, english, strict=True)
    ]


def main():
    texts = {file.stem: file.read_text(encoding="utf-8").split("\n")[:N] for file in sorted(FOLDER.glob("*.devtest"))}
    languages = [language for language in LANGUAGES.values() if language.flores in texts]
    english, result = texts["eng_Latn"], {}
    print("| | sentences | five words | two words | a quarter English | English | English, five words |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for language in languages:
        own = texts[language.flores]
        kinds = {"sentences": own, "five": first(5, own, language), "two": first(2, own, language)}
        kinds |= {"mixed": mixed(own, english, language), "english": english}
        kinds["english five"] = first(5, english, LANGUAGES["en"])
        found = result[language.tag] = {kind: rates(sentences, language) for kind, sentences in kinds.items()}
        cells = [f"{rate['wrong']:.3f} ({rate['unknown']:.3f})" for rate in found.values()]
        print(f"| {language.tag} | {' | '.join(cells)} |", flush=True)
    known = {language.flores for language in LANGUAGES.values()}
    for code in texts.keys() - known:
        passing = {x.tag: 1 - rates(texts[code], x)["wrong"] for x in LANGUAGES.values() if x.script == code[4:]}
        best = max(passing, key=passing.get, default=None)
        print(f"{code} passes as {best}: {passing.get(best, 0):.3f}")
        result[code] = passing
    print(json.dumps({"benchmark": "languages", "n": N, **result}))


if __name__ == "__main__":
    main()
