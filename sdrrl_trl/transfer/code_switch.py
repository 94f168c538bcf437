"""Code-switching: some words of a text are replaced through a bilingual word list. Rate, side and rule are ours."""

import random
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass

from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.segment import segment
from sdrrl_trl.utils import sha256


# Vowel signs and accents, which `\w` lacks, and invisible joiners
_MARKS = "".join(c for c in map(chr, range(0x300, 0x3100)) if unicodedata.category(c)[0] == "M") + "\u200c\u200d\u00ad"
# A word with all that hangs on it: `dog's`, `hot-dog`, `and/or`, `dog.txt`. There is none in `2dog`, `@dog`, `dog(s)`
WORD = re.compile(rf"(?<![\w{_MARKS}@#$&\\/.-])[^\W\d_][\w{_MARKS}]*+(?:['’./\\@-][\w{_MARKS}]+)*+(?!\()")
# Places inside a word in a text without spaces: in Latin words and numbers, in katakana, before a mark or a vowel that
# follows its consonant, after one that precedes it (Thai) or that joins the next (Khmer)
_INSIDE = re.compile(
    rf"(?<=[0-9A-Za-zÀ-ɏ_])(?=[0-9A-Za-zÀ-ɏ_])|(?<=[ァ-ヺー])(?=[ァ-ヺー])|(?=[{_MARKS}ะาำๅー])|(?<=[เ-ไ\u17d2])"
)


def to_key(text: str) -> str:
    """Words as the entries of a lexicon are written: in lower case, joined by single spaces."""
    return " ".join(text.lower().split())


@dataclass(frozen=True)
class Switched:
    """
    A code-switched text.

    Args:
        text (`str`): The text.
        n_switched (`int`): Number of replaced words; a multi-word entry counts once.
        n_words (`int`): Number of words (or entries, in languages without spaces) that could be told apart.
    """

    text: str
    n_switched: int
    n_words: int


class CodeSwitcher:
    """
    Replaces words of one language by those of another. Whole words only, never inside code, URLs and the like.

    In languages without spaces, words are the longest entries of two or more characters found from the left: an entry
    may be part of a word that the lexicon lacks.

    Args:
        lexicon (`dict[str, str]`):
            Entries in lower case and their translations.
        source (`str`):
            Language of the texts.
        target (`str`):
            Language of the translations.
        rate (`float`, *optional*, defaults to `0.3`):
            Share of the words with an entry that are switched: each is with this probability. If none would be, one
            is, unless the rate is 0: in texts with few such words the share is larger.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the choice, which depends on this, the row, the text and the languages, not on other calls.
    """

    def __init__(self, lexicon: dict[str, str], source: str, target: str, rate: float = 0.3, seed: int = 42):
        self.lexicon, self.source, self.target, self.rate, self.seed = lexicon, source, target, rate, seed
        # Longest entry, in words or characters, for each first word or character
        self._longest: dict[str, int] = defaultdict(int)
        for entry in lexicon:
            units = entry.split() if LANGUAGES[source].spaces else entry
            self._longest[units[0]] = max(self._longest[units[0]], len(units))

    def switch(self, text: str, row_id: str) -> Switched:
        """Switches words of a text. The same text and row give the same result."""
        pieces, spots, n_words = [], [], 0
        for part in segment(text, LANGUAGES[self.source].terminators):
            for piece in part.split_at_masks() if part.translate else [part]:
                found, n = self._find(piece.text) if piece.translate else ([], 0)
                n_words += n
                end = 0
                for start, stop, entry in found:
                    pieces.append(piece.text[end:start])
                    spots.append((len(pieces), entry))
                    pieces.append(piece.text[start:stop])
                    end = stop
                pieces.append(piece.text[end:])
        rng = random.Random(int(sha256(f"{self.seed}:{row_id}:{self.source}>{self.target}:{text}")[:15], 16))
        chosen = [spot for spot in spots if rng.random() < self.rate]
        if spots and not chosen and self.rate > 0:
            chosen = [rng.choice(spots)]
        for index, entry in chosen:
            pieces[index] = self._like(pieces[index], self.lexicon[entry])
        return Switched("".join(pieces), len(chosen), n_words)

    def _find(self, text: str) -> tuple[list[tuple[int, int, str]], int]:
        """Start, end and entry of all words that can be switched, longest entries first; and the number of words."""
        if LANGUAGES[self.source].spaces:
            return self._find_words(text)
        return self._find_characters(text)

    def _find_words(self, text: str) -> tuple[list[tuple[int, int, str]], int]:
        found, i = [], 0
        words = [match.span() for match in WORD.finditer(text)]
        while i < len(words):
            start, end = words[i]
            for n in range(min(self._longest.get(text[start:end].lower(), 0), len(words) - i), 0, -1):
                end = words[i + n - 1][1]
                entry = to_key(text[start:end])  # with the punctuation between the words, which no entry has
                if entry in self.lexicon:
                    found.append((start, end, entry))
                    i += n - 1
                    break
            i += 1
        return found, len(words)

    def _find_characters(self, text: str) -> tuple[list[tuple[int, int, str]], int]:
        found, lower, i = [], text.lower(), 0
        if len(lower) != len(text):  # a few characters have lower-case forms of another length
            lower = text
        inside = {match.start() for match in _INSIDE.finditer(text)}
        while i < len(lower):
            for n in range(0 if i in inside else self._longest.get(lower[i], 0), 1, -1):
                if lower[i : i + n] in self.lexicon and i + n not in inside:
                    found.append((i, i + n, lower[i : i + n]))
                    i += n - 1
                    break
            i += 1
        return found, len(found)

    def _like(self, original: str, translation: str) -> str:
        """The translation in the case of the original."""
        if original.isupper() and len(original) > 1:
            return self._upper(translation)
        if original[0].isupper():
            return self._upper(translation[0]) + translation[1:]
        return translation

    def _upper(self, text: str) -> str:
        return (text.replace("i", "İ") if self.target == "tr" else text).upper()
