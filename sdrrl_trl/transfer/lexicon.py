"""Bilingual word lists for code-switching. The paper's dictionary is not known; sources and rules here are ours."""

import re
import sys
from collections import Counter
from collections.abc import Iterable

from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.code_switch import WORD, to_key
from sdrrl_trl.transfer.segment import segment
from sdrrl_trl.utils import SDRRLError


# Entry in lower case, its words joined by single spaces -> translation (the first sense)
Lexicon = dict[str, str]

_MARGIN = " .!?…¡¿。！？\"'\r\n"
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
    Reads a word list: FreeDict, PanLex joined by meaning (`source TAB target`), MUSE (space, or `target @ source`).

    Of several senses the first is taken. Left out are numbers, single letters, entries that are their own translation,
    and function words: those listed here (English, French), and entries with the same translation as one of those.

    Args:
        path (`str`): UTF-8 text file, one entry a line.
        source (`str`): Tag of the language of the entries.
        target (`str`): Tag of the language of the translations.

    Raises:
        `SDRRLError`: if more than 1 % of the lines are broken, naming the first, or if nothing is left.
    """
    pairs: Lexicon = {}
    broken, n = [], 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for n, line in enumerate(file, 1):
                entries, translations = _parse(line)
                if entries and translations:
                    for entry in entries:
                        pairs.setdefault(to_key(entry), translations[0])
                elif line.strip():
                    broken.append(n)
    except (OSError, UnicodeDecodeError) as error:
        raise SDRRLError(f"Cannot read the lexicon {path}: {error}. Give a UTF-8 text file.") from error
    if len(broken) > max(1, 0.01 * n):
        raise SDRRLError(
            f"{path}, line {broken[0]}: not an entry; {len(broken)} of {n} lines are not. Wrong words would be put "
            "into the texts. Give one entry a line, source and target separated by a tab."
        )
    if broken:
        print(f"warning: {path}, line {broken[0]}: not an entry; {len(broken)} of {n} left out", file=sys.stderr)
    # with the translations of the words listed, those words go, too
    function_words = {to_key(pairs[word]) for word in _STOP_WORDS.get(source, "").split() if word in pairs}
    least = 2 if LANGUAGES[source].spaces else 1
    lexicon = {
        entry: translation
        for entry, translation in pairs.items()
        if to_key(translation) not in function_words | {entry}
        and sum(map(str.isalpha, entry)) >= least
        and not any(map(str.isdigit, entry))
        and any(map(str.isalpha, translation))
    }
    if not lexicon:
        raise SDRRLError(f"The lexicon {path} has no usable entry from {source} to {target}. Give another file.")
    return lexicon


def _parse(line: str) -> tuple[list[str], list[str]]:
    """Entries and translations of a line; one of them is empty if it is broken."""
    if "\t" in line:
        source, target = line.split("\t")[:2]
    elif " @ " in line:
        target, source = line.split(" @ ", 1)
    else:
        source, target = line.split() if len(line.split()) == 2 else ("", "")  # MUSE has pairs of words only
    return _split(source), _split(target)


def _split(field: str) -> list[str]:
    """`fibre, fiber (textile)` -> `fibre`, `fiber`"""
    parts = re.split("[;,；，、]", re.sub(r"[(\[].*?[)\]]", " ", field))
    return [" ".join(part.split()) for part in (part.strip(_MARGIN) for part in parts) if part]


def vocabulary(texts: Iterable[str], language: str, max_words: int = 5000) -> list[str]:
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
            for piece in part.split_at_masks() if part.translate else []:
                counts.update(WORD.findall(piece.text.lower()) if piece.translate else [])
    frequent = [word for word in counts if len(word) >= 3 and word not in stop and not re.search(r"[\d_./\\@]", word)]
    return sorted(frequent, key=lambda word: (-counts[word], word))[:max_words]


def lexicon_of(words: list[str], translations: list[str]) -> Lexicon:
    """A word list from the translations of single words; answers that are no translation are left out."""
    lexicon = {}
    for word, translation in zip(words, translations, strict=True):
        clean = to_key(translation.strip(_MARGIN))
        is_one = len(clean.split()) <= 3 and not re.search("[.!?。！？]", clean)
        if is_one and clean != word and any(char.isalpha() for char in clean):
            lexicon[word] = clean
    return lexicon


def reverse_lexicon(lexicon: Lexicon) -> Lexicon:
    """Target to source. Of several entries, the first of those with the fewest words is taken."""
    reverse: Lexicon = {}
    for entry, translation in sorted(lexicon.items(), key=lambda pair: len(pair[0].split())):
        reverse.setdefault(to_key(translation), entry)
    return reverse
