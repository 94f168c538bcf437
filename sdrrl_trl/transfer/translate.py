"""Stage 2: questions and answers are translated, sentence by sentence, each distinct sentence once."""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from accelerate import PartialState

from sdrrl_trl.engines import Translator
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.segment import Segment, segment
from sdrrl_trl.transfer.store import Store
from sdrrl_trl.utils import SDRRLError, progress, sha256


@dataclass(frozen=True)
class Translated:
    """
    A text put together from its translated segments.

    Args:
        text (`str`, *optional*): The translation; `None` if the translator returned nothing for one of the segments.
        has_masks (`bool`): Whether there are spans that the translator must not touch.
        lost_masks (`bool`): Whether the translator has lost one, so that the text around it was translated in pieces.
    """

    text: str | None
    has_masks: bool
    lost_masks: bool


class Translations:
    """
    Translations of whole texts from one language.

    Args:
        store ([`Store`]):
            Finished segments; each distinct segment of a language pair is translated once.
        source (`str`):
            Language of the texts.
        batch_size (`int`):
            Segments handed to the translator, and committed, at a time.
    """

    def __init__(self, store: Store, source: str, batch_size: int):
        self.store, self.source, self.batch_size = store, source, batch_size
        self._terminators = LANGUAGES[source].terminators
        self._path = store.folder / f"segments_{source}.sqlite"

    def run(self, texts: Iterable[str], translator: Translator, targets: list[str]) -> None:
        """Translates the segments of `texts` that are not in the store, then, in pieces, those that lost masks."""
        state = PartialState()
        if state.is_main_process:
            self._path.unlink(missing_ok=True)
            self._collect("segments", (part for text in texts for part in self._split(text) if part.translate))
        for target in targets:
            state.wait_for_everyone()
            self._translate("segments", translator, target, f"translate to {target}")
            if state.is_main_process:
                self._collect("pieces", self._pieces_of_lost(target))
            state.wait_for_everyone()
            self._translate("pieces", translator, target, f"translate to {target}, around lost masks")
        if state.is_main_process:
            self._path.unlink()

    def assemble(self, text: str, target: str) -> Translated:
        """The translation of a whole text, after [`run`]."""
        pieces, has_masks, lost_masks = [], False, False
        for part in self._split(text):
            if not part.translate:
                pieces.append(part.text)
                continue
            masked = part.masked
            translation = self._translation(masked, target)
            restored = part.restore(translation)
            has_masks |= masked != part.text
            if restored is None and translation:
                lost_masks = True
                split = part.split_at_masks()
                found = [self._translation(p.text, target) if p.translate else p.text for p in split]
                restored = "".join(found) if all(found) else None
            if not restored:
                return Translated(None, has_masks, lost_masks)
            pieces.append(restored)
        return Translated("".join(pieces), has_masks, lost_masks)

    def _split(self, text: str) -> list[Segment]:
        return segment(text, self._terminators)

    def _key(self, text: str, target: str) -> str:
        return sha256(f"{self.source}>{target}\n{text}")[:32]

    def _translation(self, text: str, target: str) -> str:
        return self.store[self._key(text, target)]["translation"]

    def _collect(self, table: str, parts: Iterable[Segment]) -> None:
        """Writes the distinct segments, sorted by length, to a table on disk, of which each process takes a share."""
        rows = ((part.masked, part.text) for part in parts)
        database = sqlite3.connect(self._path)
        with database:
            database.execute("CREATE TABLE unsorted (masked TEXT PRIMARY KEY, text TEXT)")
            database.executemany("INSERT OR IGNORE INTO unsorted VALUES (?, ?)", rows)
            database.execute(f"DROP TABLE IF EXISTS {table}")
            database.execute(f"CREATE TABLE {table} (n INTEGER PRIMARY KEY, masked TEXT, text TEXT)")
            database.execute(
                f"INSERT INTO {table} (masked, text) SELECT masked, text FROM unsorted ORDER BY length(masked), masked"
            )
            database.execute("DROP TABLE unsorted")
        database.close()

    def _pieces_of_lost(self, target: str) -> Iterator[Segment]:
        """What stands around the masks that the translator has lost."""
        database = sqlite3.connect(self._path)
        for masked, text in database.execute("SELECT masked, text FROM segments WHERE masked != text"):
            part = Segment(text, translate=True)
            translation = self._translation(masked, target)
            if translation and part.restore(translation) is None:
                yield from (piece for piece in part.split_at_masks() if piece.translate)
        database.close()

    def _translate(self, table: str, translator: Translator, target: str, what: str) -> None:
        """Translates this process's share of a table; then process 0 takes all results."""
        state = PartialState()
        database = sqlite3.connect(self._path)

        def missing(start: int) -> list[str]:
            query = f"SELECT masked FROM {table} WHERE n > ? AND n <= ? ORDER BY n"
            batch = database.execute(query, (start, start + self.batch_size))
            return [masked for (masked,) in batch if self._key(masked, target) not in self.store]

        (n,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
        share = range(self.batch_size * state.process_index, n, self.batch_size * state.num_processes)
        pending = [(size, start) for start in share if (size := len(missing(start)))]
        total = sum(min(self.batch_size, n - start) for start in share)
        left = sum(size for size, _ in pending)
        for start in progress(pending, total, what, "segments", done=total - left):
            batch = missing(start)
            new = list(translator.translate(batch, self.source, target) or [])
            if len(new) != len(batch) or not all(isinstance(text, str | None) for text in new):
                raise SDRRLError(
                    f"The translator returned {len(new)} results for {len(batch)} segments, or results that are not "
                    "text: they cannot be matched with their originals. Check the engine."
                )
            self.store.put(
                {
                    self._key(text, target): {"text": text, "translation": _clean(text, translation or "")}
                    for text, translation in zip(batch, new, strict=True)
                }
            )
        database.close()
        self.store.gather(state)


def _clean(original: str, translation: str) -> str:
    """
    One line in, one line out, for line structure is ours to keep. And translators put spaces inside Markdown emphasis
    (`**Nota: ** isto`), which then shows as asterisks.
    """
    translation = " ".join(translation.encode("utf-8", "replace").decode().split())
    if re.search(r"\*\*[^\s*][^*]*\*\*", original):
        translation = re.sub(r"\*\*([^*]+)\*\*", lambda match: f"**{match[1].strip()}**", translation)
    return translation
