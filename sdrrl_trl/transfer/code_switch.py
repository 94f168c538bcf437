"""Code-switching: some words of a text are replaced through a bilingual word list."""

import random
import re
import unicodedata
from collections import defaultdict

from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.segment import sentence_pieces
from sdrrl_trl.utils import sha256


# Vowel signs and accents, which `\w` lacks, and invisible joiners
_MARKS = "".join(c for c in map(chr, range(0x300, 0x3100)) if unicodedata.category(c)[0] == "M") + "\u200c\u200d\u00ad"
# A word with all that hangs on it: `dog's`, `hot-dog`, `and/or`, `dog.txt`. There is none in `2dog`, `@dog`, `dog(s)`
WORD = re.compile(rf"(?<![\w{_MARKS}@#$&\\/.-])[^\W\d_][\w{_MARKS}]*+(?:['’./\\@-][\w{_MARKS}]+)*+(?!\()")


def to_key(text: str) -> str:
    """Words as the entries of a lexicon are written: in lower case, joined by single spaces."""
    return " ".join(text.lower().split())


class CodeSwitcher:
    """
    Replaces words of one language by those of another. Whole words only, never inside code, URLs and the like.

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
        # Number of words of the longest entry for each first word
        self._longest: dict[str, int] = defaultdict(int)
        for entry in lexicon:
            words = entry.split()
            self._longest[words[0]] = max(self._longest[words[0]], len(words))

    def switch(self, text: str, row_id: str) -> str | None:
        """The text with some of its words switched, `None` if none can be. The same row gives the same result."""
        pieces: list[tuple[str, str | None]] = []  # each with its entry, if it can be switched
        for piece in sentence_pieces(text, LANGUAGES[self.source].terminators):
            end = 0
            for start, stop, entry in self._find(piece.text) if piece.translate else ():
                pieces += [(piece.text[end:start], None), (piece.text[start:stop], entry)]
                end = stop
            pieces.append((piece.text[end:], None))
        rng = random.Random(int(sha256(f"{self.seed}:{row_id}:{self.source}>{self.target}:{text}")[:15], 16))
        spots = [number for number, (_, entry) in enumerate(pieces) if entry]
        chosen = [spot for spot in spots if rng.random() < self.rate]
        if spots and not chosen and self.rate > 0:
            chosen = [rng.choice(spots)]
        texts = [piece for piece, _ in pieces]
        for spot in chosen:
            texts[spot] = self._like(texts[spot], self.lexicon[pieces[spot][1]])
        return "".join(texts) if chosen else None

    def _find(self, text: str) -> list[tuple[int, int, str]]:
        """Start, end and entry of all words that can be switched, longest entries first."""
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
        return found

    def _like(self, original: str, translation: str) -> str:
        """The translation in the case of the original."""
        if original.isupper() and len(original) > 1:
            return self._upper(translation)
        if original[0].isupper():
            return self._upper(translation[0]) + translation[1:]
        return translation

    def _upper(self, text: str) -> str:
        return (text.replace("i", "İ") if self.target == "tr" else text).upper()
