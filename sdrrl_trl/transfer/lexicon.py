"""Bilingual word lists for code-switching. The paper's dictionary is not known; sources and rules here are ours."""

import re
from collections import Counter
from collections.abc import Iterable

from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.segment import segment
from sdrrl_trl.utils import SDRRLError


# Entry in lower case, its words joined by single spaces -> translation (the first sense)
Lexicon = dict[str, str]

MAX_WORDS = 5000
MAX_BROKEN = 0.01  # share of the lines of a file
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
# Words that word lists translate badly out of context
_STOP_WORDS = {
    "en": "a an the of to in on at by for from with as and or but if not no so be is are was were am been do does did "
    "have has had it its this that these those there he she they we you i me him her us them my your his our their "
    "which who whom what when where how why than then too very can could will would shall should may might must",
    "fr": "le la les un une des du de d l à au aux en et ou mais si ne pas y il elle ils elles on nous vous je tu me "
    "te se ce cet cette ces mon ton son ma ta sa mes tes ses qui que quoi dont où est sont été être a ont avoir",
}


def read_lexicon(path: str, source: str, target: str) -> Lexicon:
    """
    Reads a bilingual word list: FreeDict, PanLex (`source TAB target`) or MUSE (`source target`, `target @ source`).

    Function words, single letters, numbers, and entries that are their own translation are left out; of several senses
    the first is taken.

    Args:
        path (`str`):
            UTF-8 text file, one entry a line.
        source (`str`):
            Tag of the language of the entries.
        target (`str`):
            Tag of the language of the translations.

    Raises:
        `SDRRLError`: if more than 1 % of the lines are broken, naming the first, or if nothing is left.
    """
    lexicon: Lexicon = {}
    broken, n = [], 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for n, line in enumerate(file, 1):
                pair = _parse(line)
                if pair is None:
                    broken += [n] if line.strip() else []
                elif _is_useful(*pair, source):
                    lexicon.setdefault(_key(pair[0]), pair[1])
    except (OSError, UnicodeDecodeError) as error:
        raise SDRRLError(f"Cannot read the lexicon {path}: {error}. Give a UTF-8 text file.") from error
    if len(broken) > max(1, MAX_BROKEN * n):
        raise SDRRLError(
            f"{path}, line {broken[0]}: not an entry; {len(broken)} of {n} lines are not. Wrong words would be put "
            "into the texts. Give one entry a line, source and target separated by a tab."
        )
    if not lexicon:
        raise SDRRLError(f"The lexicon {path} has no usable entry from {source} to {target}. Give another file.")
    return lexicon


def _parse(line: str) -> tuple[str, str] | None:
    """Source and target of a line."""
    line = line.strip()
    if " @ " in line:
        target, _, source = line.partition(" @ ")
    elif "\t" in line:
        source, target = line.split("\t")[:2]
    else:
        source, _, target = line.partition(" ")
        if " " in target:  # not MUSE's pair of words
            return None
    target = re.split(r"[;,]", target)[0]
    target = re.sub(r"\s*[(\[].*?[)\]]", "", target).strip()
    return (source.strip(), target) if source.strip() and target else None


def _is_useful(entry: str, translation: str, language: str) -> bool:
    key = _key(entry)
    if key in _STOP_WORDS.get(language, "").split() or key == _key(translation):
        return False
    letters = sum(char.isalpha() for char in key)
    return letters >= (2 if LANGUAGES[language].spaces else 1) and any(char.isalpha() for char in translation)


def _key(entry: str) -> str:
    return " ".join(entry.lower().split())


def vocabulary(texts: Iterable[str], language: str, max_words: int = MAX_WORDS) -> list[str]:
    """The most frequent words of some texts outside of code, URLs and the like, without function words."""
    if not LANGUAGES[language].spaces:
        raise SDRRLError(
            f"A lexicon made by the translator needs spaces between words, which {LANGUAGES[language].name} has not. "
            "Give a file as `lexicon`."
        )
    counts: Counter[str] = Counter()
    stop = set(_STOP_WORDS.get(language, "").split())
    for text in texts:
        for part in segment(text, LANGUAGES[language].terminators):
            if part.translate:
                pieces = part.split_at_masks() if part.protected else [part]
                counts.update(word.lower() for p in pieces if p.translate for word in _WORD.findall(p.text))
    frequent = [word for word in counts if len(word) >= 3 and word not in stop]
    return sorted(frequent, key=lambda word: (-counts[word], word))[:max_words]


def lexicon_of(words: list[str], translations: list[str]) -> Lexicon:
    """A word list from the translations of single words; answers that are no translation are left out."""
    lexicon = {}
    for word, translation in zip(words, translations, strict=True):
        clean = translation.strip(" .!?…¡¿\"'").lower()
        if clean and clean != word and len(clean.split()) <= 3 and any(char.isalpha() for char in clean):
            lexicon[word] = clean
    return lexicon


def reverse_lexicon(lexicon: Lexicon) -> Lexicon:
    """Target to source; the first entry wins."""
    reverse: Lexicon = {}
    for entry, translation in lexicon.items():
        reverse.setdefault(_key(translation), entry)
    return reverse
