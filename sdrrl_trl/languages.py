"""The one table of languages (languages.txt), which builder, tasks and report read, and telling languages apart."""

import difflib
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
PARTS = {"Jpan": ("Hani", "Hira", "Kana"), "Hans": ("Hani",), "Hant": ("Hani",)}
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
        languages[tag] = Language(tag, name.replace("_", " "), flores, paper == "yes", benchmarks)
    return languages


LANGUAGES = _read_table()
# Fewer candidates, fewer mistakes on short texts: against all that it knows, py3langid takes Indonesian for Malay and
# Chinese for Wu. It says `no` where the table says `nb`
CANDIDATES = {"no" if tag == "nb" else tag: language.script for tag, language in LANGUAGES.items()}
MIN_LETTERS = 20  # below, language identification is unreliable
# Code, addresses, and the letter of a choice, as in "(B)", are in no language
NO_PROSE = re.compile(r"```.*?(```|$)|`[^`\n]*`|https?://\S+|(?<![^\W_])[A-H](?![^\W_])", re.DOTALL)
# Letters per word where words are written together, or with their particles; elsewhere words are seen
DENSE = {r"\p{Hani}\p{Hira}\p{Kana}ー": 2, r"\p{Hang}": 3, r"\p{Thai}\p{Khmr}\p{Laoo}\p{Mymr}": 4}
_DENSE = {regex.compile(rf"(?V1)[\p{{L}}&&[{chars}]]"): n for chars, n in DENSE.items()}
_SPACED = regex.compile(rf"(?V1)[\p{{L}}--[{''.join(DENSE)}]][[\p{{L}}\p{{M}}]--[{''.join(DENSE)}]]*")


def get_language(tag: str) -> Language:
    """
    Looks a language up by any spelling of its tag (`pt`, `pt-BR`, `por`, `no`).

    Raises:
        `SDRRLError`: if the tag is not a language tag or the language is not in the table.
    """
    try:
        exact = langcodes.Language.get(tag)
        if exact.to_tag() in LANGUAGES:  # before nn becomes no
            return LANGUAGES[exact.to_tag()]
        parsed = exact.prefer_macrolanguage()
        language = parsed.language
    except (langcodes.LanguageTagError, AttributeError) as error:
        known = {one.name.lower(): one for one in LANGUAGES.values()}
        near = difflib.get_close_matches(str(tag).lower(), known, n=1, cutoff=0.8)
        example = (
            f", that of {known[near[0]].name} is `{known[near[0]].tag}`" if near else " such as `pt`, `th` or `sw`"
        )
        apart = " Separate them by spaces." if "," in str(tag) else ""
        raise SDRRLError(f"{tag!r} is not a language tag. Use BCP-47 tags{example}.{apart}") from error
    language = "nb" if language == "no" else language
    if language == "zh" and parsed.maximize().script == "Hant":
        raise SDRRLError(f"{tag!r} is Chinese in traditional characters, the table has only `zh`, simplified.")
    if language not in LANGUAGES:
        country = langcodes.Language.make(territory=tag.upper()).maximize().language if len(tag) == 2 else None
        hint = f" Did you mean `{country}`, {LANGUAGES[country].name}?" if country in {*LANGUAGES} - {"en"} else ""
        raise SDRRLError(
            f"Unknown language {tag!r}, with no row in the table.{hint} Known: {', '.join(sorted(LANGUAGES))}. A row "
            "in sdrrl_trl/languages.txt adds one, see docs/howto.md."
        )
    return LANGUAGES[language]


def language_name(tag: str | None) -> str:
    """English name of a language, a dash for none."""
    return LANGUAGES[tag].name if tag else "–"


@cache
def identifier():
    """py3langid, limited to the languages of the table, loaded once; `None` where it is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:  # it is no dependency of lm-evaluation-harness: there, only the script tells
        return None
    model = LanguageIdentifier.from_model_file(MODEL_FILE)
    model.set_languages([code for code in model.nb_classes if code in CANDIDATES])
    return model


@cache
def letters_of(*scripts: str, before: str = "", after: str = "") -> regex.Pattern:
    """Pattern of a letter of one of some ISO 15924 scripts, between two other parts of a pattern."""
    parts = [part for script in scripts for part in PARTS.get(script, (script,))]
    letters = "|".join([rf"(?=\p{{L}})\p{{{part}}}" for part in parts] + ["ー"] * ("Kana" in parts))
    return regex.compile(f"{before}(?:{letters}){after}")


def count_words(text: str) -> float:
    """Number of words in a text, estimated by its letters where words are not separated by spaces."""
    estimated = sum(len(letters.findall(text)) / n for letters, n in _DENSE.items())
    return estimated + len(_SPACED.findall(text))


def script_share(text: str, *scripts: str) -> float:
    """Share of the words of `text` that are in one of some ISO 15924 scripts; 1.0 for a text without letters."""
    others, own_letters = (letters_of(*scripts, before=f"(?{sign}", after=r")\p{L}") for sign in "!=")
    own, rest = (count_words(letters.sub(" ", text)) for letters in (others, own_letters))
    return own / (own + rest) if own + rest else 1.0


def is_in_language(text: str, language: str, script: str, margin: float = 3.0) -> bool | None:
    """
    Whether a text is in a language (BCP-47 tag and ISO 15924 script); `None` if that cannot be told.

    At least half of its words must be of the script. If it can be of other languages of the table as well, py3langid
    must find the language the likeliest of them. Not known are texts of less than 20 such letters (8 Chinese or
    Japanese ones), those where another language is the likelier one by at most `margin` nats, and those without any
    letter; and languages that py3langid does not know. The empty text is in no language. The rule is not from the
    paper.
    """
    prose = NO_PROSE.sub(" ", text)
    if not text.strip() or script_share(prose, script) < 0.5:
        return False
    # Names and terms in other scripts say nothing
    own = letters_of(script, before="(?!", after=r")\p{L}+").sub(" ", prose)
    rivals = {code for code, other in CANDIDATES.items() if other == script}
    code, letters = "no" if language == "nb" else language, len(letters_of(script).findall(own))
    if script in PARTS:  # they share some letters, a word has 2 instead of 5
        rivals = {code for code, its in CANDIDATES.items() if its in PARTS and script_share(own, its) > 0.9}
        letters *= 2.5
    if letters and rivals <= {code}:
        return True
    if letters < MIN_LETTERS or identifier() is None or code not in identifier().nb_classes:
        return None
    scores = {found: score for found, score in identifier().rank(own) if found in rivals}
    lag = max(scores.values()) - scores[code]
    return True if lag == 0 else None if lag <= margin else False


def in_language(text: str, tag: str) -> bool:
    """Whether a text is in a language of the table, or may be: [`is_in_language`] does not deny it."""
    return is_in_language(text, tag, LANGUAGES[tag].script) is not False


def rates_of_language(text: str, language: str, script: str) -> dict[str, float]:
    """The metrics of tasks: 1.0 if a text is in another language, and 1.0 if that cannot be told, else 0.0."""
    found = is_in_language(text, language, script)
    return {"wrong_language": float(found is False), "language_unknown": float(found is None)}
