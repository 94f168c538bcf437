"""Stage 2: questions and answers are translated, sentence by sentence, each distinct sentence once."""

import re
from collections.abc import Iterable

from sdrrl_trl.engines import Translator
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.segment import Segment, segment
from sdrrl_trl.transfer.store import Store
from sdrrl_trl.utils import SDRRLError, progress, sha256


BATCH_SIZE = 64


class Translations:
    """
    Translations of whole texts, put together from translated segments.

    Args:
        store ([`Store`]):
            Finished segments; each distinct segment of a language pair is translated once.
        source (`str`):
            Language of the texts.
    """

    def __init__(self, store: Store, source: str):
        self.store = store
        self.source = source
        self._terminators = LANGUAGES[source].terminators
        self._done: dict[str, str] = {key: value["translation"] for key, value in store}

    def run(self, texts: Iterable[str], translator: Translator, target: str) -> None:
        """Translates the segments of `texts` that are not in the store, then, in pieces, those that lost masks."""
        segments = {part.text: part for text in texts for part in self._split(text) if part.translate}
        self._translate([part.masked for part in segments.values()], translator, target, f"translate to {target}")
        lost = [part for part in segments.values() if part.restore(self._done[self._key(part.masked, target)]) is None]
        pieces = [piece.text for part in lost for piece in part.split_at_masks() if piece.translate]
        self._translate(pieces, translator, target, f"translate to {target}, around lost masks")

    def assemble(self, text: str, target: str) -> str:
        """The translation of a whole text, after [`run`]."""
        parts = [self._translated(part, target) if part.translate else part.text for part in self._split(text)]
        return "".join(parts)

    def _split(self, text: str) -> list[Segment]:
        return segment(text, self._terminators)

    def _translated(self, part: Segment, target: str) -> str:
        whole = part.restore(self._done[self._key(part.masked, target)])
        if whole is not None:
            return whole
        pieces = part.split_at_masks()
        return "".join(self._done[self._key(p.text, target)] if p.translate else p.text for p in pieces)

    def _key(self, text: str, target: str) -> str:
        return sha256(f"{self.source}>{target}\n{text}")[:32]

    def _translate(self, texts: list[str], translator: Translator, target: str, what: str) -> None:
        wanted = {self._key(text, target): text for text in texts}
        pending = sorted(
            ((key, text) for key, text in wanted.items() if key not in self._done),
            key=lambda unit: (len(unit[1]), unit[1]),
        )
        if not pending:
            return
        batches = [pending[i : i + BATCH_SIZE] for i in range(0, len(pending), BATCH_SIZE)]
        done = len(wanted) - len(pending)
        for batch in progress([(len(b), b) for b in batches], len(wanted), what, "segments", done=done):
            new = translator.translate([text for _, text in batch], self.source, target)
            if len(new) != len(batch) or not all(isinstance(text, str) for text in new):
                raise SDRRLError(
                    f"The translator returned {len(new)} results for {len(batch)} segments, or results that are not "
                    "text: they cannot be matched with their originals. Check the engine."
                )
            clean = {key: _clean(text, new) for (key, text), new in zip(batch, new, strict=True)}
            self.store.put({key: {"text": text, "translation": clean[key]} for key, text in batch})
            self._done |= clean


def _clean(original: str, translation: str) -> str:
    """
    One line in, one line out, for line structure is ours to keep. And translators put spaces inside Markdown emphasis
    (`**Nota: ** isto`), which then shows as asterisks.
    """
    translation = " ".join(translation.split())
    if re.search(r"\*\*[^\s*][^*]*\*\*", original):
        translation = re.sub(r"\*\*([^*]+)\*\*", lambda match: f"**{match[1].strip()}**", translation)
    return translation
