"""The one table of languages (languages.txt), which builder, tasks and report read, and telling languages apart."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import langcodes
import regex

from sdrrl_trl.utils import SDRRLError


# Scripts without spaces between words
UNSPACED = ("Jpan", "Thai", "Khmr", "Laoo", "Mymr", "Hans", "Hant")
# What Unicode calls the parts of a script; the others have one, of their own name
_PARTS = {"Jpan": r"\p{Hira}\p{Kana}\p{Hani}ー", "Hans": r"\p{Hani}"}
_TERMINATORS = {
    "Jpan": "。．！？!?…",
    "Hans": "。．！？!?…",
    "Khmr": "។៕!?…",
    "Mymr": "။!?…",
    "Thai": "!?…",  # Thai sentences end with a space: they are translated by the line
    "Arab": ".!؟۔…",
    "Deva": ".!?।…",
    "Beng": ".!?।…",
}


@dataclass(frozen=True)
class Language:
    """
    One language.

    Args:
        tag (`str`): BCP-47 tag used in our files and options, such as `"pt"`.
        name (`str`): English name.
        flores (`str`): FLORES-200 and NLLB code, such as `"por_Latn"`.
        paper (`bool`): Whether it is a target language of the SDRRL paper.
        benchmarks (`dict[str, str]`): What each benchmark that has the language calls it.
    """

    tag: str
    name: str
    flores: str
    paper: bool
    benchmarks: dict[str, str]

    @property
    def script(self) -> str:
        """ISO 15924 code."""
        return self.flores.partition("_")[2]

    @property
    def spaces(self) -> bool:
        """Whether words are separated by spaces."""
        return self.script not in UNSPACED

    @property
    def terminators(self) -> str:
        """Characters that end a sentence."""
        return _TERMINATORS.get(self.script, ".!?…")


def _read_table() -> dict[str, Language]:
    lines = Path(__file__).with_name("languages.txt").read_text(encoding="utf-8").splitlines()
    header, *rows = [line.split() for line in lines if line and not line.startswith("#")]
    languages = {}
    for tag, name, flores, paper, *codes in rows:
        known = {benchmark: code for benchmark, code in zip(header[4:], codes, strict=True) if code != "-"}
        benchmarks = {benchmark: flores if code == "yes" else code for benchmark, code in known.items()}
        languages[tag] = Language(tag, name, flores, paper == "yes", benchmarks)
    return languages


LANGUAGES = _read_table()
# Fewer candidates, fewer mistakes on short texts: against all that it knows, py3langid takes Indonesian for Malay and
# Chinese for Wu. It says `no` where the table says `nb`
CANDIDATES = tuple("no" if tag == "nb" else tag for tag in LANGUAGES)
MIN_LETTERS = 20  # below, language identification is unreliable
# Code, addresses, and the letter of a choice, as in "(B)", are in no language
NO_PROSE = re.compile(r"```.*?(```|$)|`[^`\n]*`|https?://\S+|(?<![^\W_])[A-H](?![^\W_])", re.DOTALL)


def get_language(tag: str) -> Language:
    """
    Looks a language up by any spelling of its tag (`pt`, `pt-BR`, `por`, `no`).

    Raises:
        `SDRRLError`: if the tag is not a language tag or the language is not in the table.
    """
    try:
        parsed = langcodes.Language.get(tag).prefer_macrolanguage()
        language = parsed.language
    except (langcodes.LanguageTagError, AttributeError) as error:
        raise SDRRLError(f"{tag!r} is not a language tag. Use BCP-47 tags such as `pt`, `th` or `sw`.") from error
    language = "nb" if language == "no" else language
    if language == "zh" and parsed.maximize().script == "Hant":
        raise SDRRLError(
            f"{tag!r} is Chinese in traditional characters, the table has only simplified ones: use `zh`."
        )
    if language not in LANGUAGES:
        raise SDRRLError(
            f"Unknown language {tag!r}: no translation or evaluation codes are known for it. "
            f"Known: {', '.join(sorted(LANGUAGES))}."
        )
    return LANGUAGES[language]


def language_name(tag: str | None) -> str:
    """English name of a language, a dash for none."""
    return LANGUAGES[tag].name if tag else "–"


@cache
def identifier():
    """py3langid, limited to the languages of the table; loaded once."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    model = LanguageIdentifier.from_model_file(MODEL_FILE)
    model.set_languages([code for code in model.nb_classes if code in CANDIDATES])
    return model


def likely_languages(text: str, margin: float = 3.0) -> set[str]:
    """
    Languages of the table that py3langid finds most likely for a text, or less likely by at most `margin` nats.

    The margin is not from the paper: on 30 characters of FLORES Portuguese it raises recall from 0.93 to 0.99, on
    whole sentences it changes nothing.
    """
    ranked = identifier().rank(text)
    best = max(score for _, score in ranked)
    return {"nb" if code == "no" else code for code, score in ranked if score >= best - margin}


def script_share(text: str, *scripts: str) -> float:
    """Share of the letters of `text` that belong to one of some ISO 15924 scripts; 1.0 for a text without letters."""
    letters = "".join(filter(str.isalpha, text))
    parts = "".join(_PARTS.get(script, rf"\p{{{script}}}") for script in scripts)
    return len(regex.findall(f"[{parts}]", letters)) / len(letters) if letters else 1.0


def wrong_language(text: str, language: str, script: str) -> float:
    """
    1.0 if a text is not in a language (BCP-47 tag and ISO 15924 script), else 0.0.

    At least half of its letters must be of the script. From 20 letters on, py3langid must also find the language most
    likely, or less likely by at most 3 nats. The empty text is in no language. The rule is not from the paper.
    """
    if not text.strip():
        return 1.0
    prose = NO_PROSE.sub(" ", text)
    if script_share(prose, script) < 0.5:
        return 1.0
    if sum(char.isalpha() for char in prose) < MIN_LETTERS:
        return 0.0
    return float(language not in likely_languages(prose))


def in_language(text: str, tag: str) -> bool:
    """Whether a text is in a language of the table, by the rule of [`wrong_language`]."""
    return not wrong_language(text, tag, LANGUAGES[tag].script)
