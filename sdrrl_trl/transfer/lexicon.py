"""Bilingual word lists for code-switching. The paper's is not known."""

import re
from collections import Counter
from collections.abc import Iterable

from sdrrl_trl.engines import Translator
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.code_switch import WORD, to_key
from sdrrl_trl.transfer.files import BadRows, open_text, reading
from sdrrl_trl.transfer.segment import WORDS, sentence_pieces
from sdrrl_trl.transfer.translate import translate_texts
from sdrrl_trl.utils import SDRRLError


# Entry in lower case, its words joined by single spaces -> translation (the first sense)
Lexicon = dict[str, str]

_MARGIN = " .!?…¡¿。！？\"'\r\n"


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
        `SDRRLError`: if most of the lines are broken, naming the first, or if nothing is left.
    """
    pairs: Lexicon = {}
    bad, n = BadRows(path), 0
    with reading(f"the lexicon {path}"), open_text(path, newline=None) as file:
        for n, line in enumerate(file, 1):
            entries, translations = _parse(line)
            if entries and translations:
                for entry in entries:
                    pairs.setdefault(to_key(entry), translations[0])
            elif line.strip():
                bad.add(f"line {n}: not an entry")
    bad.check(n, "Give one entry a line, source and target separated by a tab.")
    # with the translations of the words listed, those words go, too
    function_words = {to_key(pairs[word]) for word in WORDS["stop_words"].get(source, "").split() if word in pairs}
    lexicon = {
        entry: translation
        for entry, translation in pairs.items()
        if to_key(translation) not in function_words | {entry}
        and sum(map(str.isalpha, entry)) >= 2
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


def translate_words(texts: Iterable[str], translator: Translator, source: str, target: str) -> Lexicon:
    """A word list made by translating the words of some texts one by one, without those that come back odd."""
    words = vocabulary(texts, source)
    lexicon: Lexicon = {}
    for word, result in zip(words, translate_texts(words, translator, source, target), strict=True):
        translation = to_key((result or "").strip(_MARGIN))
        # More is an explanation, or several senses
        is_short = len(translation.split()) <= 3 and not re.search("[.!?。！？]", translation)
        if is_short and translation != word and any(map(str.isalpha, translation)):
            lexicon[word] = translation
    return lexicon


def vocabulary(texts: Iterable[str], language: str, max_words: int = 5000) -> list[str]:
    """The most frequent words of some texts outside of code, URLs and the like, without function words."""
    counts: Counter[str] = Counter()
    for text in texts:
        for piece in sentence_pieces(text, LANGUAGES[language].terminators):
            counts.update(WORD.findall(piece.text.lower()) if piece.translate else [])
    stop_words = WORDS["stop_words"].get(language, "").split()
    words = [word for word in counts.keys() - stop_words if len(word) >= 3 and not re.search(r"[\d_./\\@]", word)]
    return sorted(words, key=lambda word: (-counts[word], word))[:max_words]
