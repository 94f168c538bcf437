"""Code-switching: some words of a text are replaced through a bilingual word list. Rate, side and rule are ours."""

import random
import re
from collections import defaultdict
from dataclasses import dataclass

from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.lexicon import Lexicon
from sdrrl_trl.transfer.segment import segment
from sdrrl_trl.utils import sha256


# A word of letters, with marks (Devanagari, Thai) and inner apostrophes or hyphens
_WORD = re.compile(r"[^\W\d_](?:[^\W_]|[\u0300-\u036f\u0900-\u0fff\u1780-\u17ff])*(?:['’-][^\W\d_]+)*")


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

    Args:
        lexicon (`dict[str, str]`):
            Entries in lower case and their translations.
        source (`str`):
            Language of the texts.
        target (`str`):
            Language of the translations.
        rate (`float`, *optional*, defaults to `0.3`):
            Expected share of the words with an entry that are switched; at least one is, unless it is 0.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the choice, which depends on this, the row and nothing else.
    """

    def __init__(self, lexicon: Lexicon, source: str, target: str, rate: float = 0.3, seed: int = 42):
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
        rng = random.Random(int(sha256(f"{self.seed}:{row_id}:{self.source}>{self.target}")[:15], 16))
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
        found = []
        words = [(match.start(), match.end(), match[0].lower()) for match in _WORD.finditer(text)]
        i = 0
        while i < len(words):
            for n in range(min(self._longest.get(words[i][2], 0), len(words) - i), 0, -1):
                entry = " ".join(word for *_, word in words[i : i + n])
                start, end = words[i][0], words[i + n - 1][1]
                # as it stands there: no punctuation between the words
                if entry in self.lexicon and " ".join(text[start:end].lower().split()) == entry:
                    found.append((start, end, entry))
                    i += n - 1
                    break
            i += 1
        return found, len(words)

    def _find_characters(self, text: str) -> tuple[list[tuple[int, int, str]], int]:
        found, lower, i = [], text.lower(), 0
        if len(lower) != len(text):  # a few characters have lower-case forms of another length
            lower = text
        while i < len(lower):
            for n in range(self._longest.get(lower[i], 0), 1, -1):
                if lower[i : i + n] in self.lexicon:
                    found.append((i, i + n, lower[i : i + n]))
                    i += n - 1
                    break
            i += 1
        return found, len(found)

    def _like(self, original: str, translation: str) -> str:
        """The translation in the case of the original."""
        if original.isupper() and len(original) > 1:
            return translation.upper()
        if original[0].isupper():
            return translation[0].upper() + translation[1:]
        return translation
