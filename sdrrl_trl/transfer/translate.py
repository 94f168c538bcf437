"""Questions and answers are translated, sentence by sentence, each distinct sentence of a shard once."""

import re
import sys
from collections.abc import Iterable

from sdrrl_trl.engines import Translator
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.filters import reject_task, reject_translation
from sdrrl_trl.transfer.rows import Answer, Pair
from sdrrl_trl.transfer.segment import Segment, segment
from sdrrl_trl.transfer.select_engines import ask


# Thai, Khmer, Lao, Burmese and Tibetan have no spaces between words, but between sentences
_UNSPACED_SENTENCES = ("Jpan", "Hans", "Hant")


def translate_answers(answers: list[Answer], translator: Translator, source: str, target: str) -> list[Pair]:
    """The answers of a shard with their questions in another language, bad ones with the reason why."""
    texts = [text for answer in answers for text in (*answer.turns, answer.text)]
    results = iter(translate_texts(texts, translator, source, target))
    return [_pair(answer, [next(results) for _ in (*answer.turns, answer.text)], source, target) for answer in answers]


def _pair(answer: Answer, translated: list[str | None], source: str, target: str) -> Pair:
    originals = (*answer.turns, answer.text)
    sides = ["question"] * len(answer.turns) + ["answer"]
    found = (
        f"translate/{side}_{reason}"
        for side, original, translation in zip(sides, originals, translated, strict=True)
        if (reason := reject_translation(original, translation, target))
    )
    # A question that went wrong makes its answer useless, so the first is reason enough
    reason = next(found, None)
    target_texts = tuple(text or "" for text in translated)
    if reason is None and (lost := reject_task(originals[-2:], target_texts[-2:], source)):
        reason = f"translate/{lost}"
    return Pair(answer.source_id, target, originals, target_texts, answer.system, reason=reason)


def translate_texts(texts: list[str], translator: Translator, source: str, target: str) -> list[str | None]:
    """
    Translations of whole texts; `None` where the translator returned nothing for a sentence. Sentences that came back
    without their masks are translated again in the pieces between the masks.

    Args:
        texts (`list[str]`): Texts, possibly Markdown.
        translator ([`~sdrrl_trl.engines.Translator`]): Engine.
        source (`str`): Tag of their language.
        target (`str`): Tag of the language wanted.

    Raises:
        `SDRRLError`: if the engine returns other than one text for each.
    """
    split = [segment(text, LANGUAGES[source].terminators) for text in texts]
    parts = [part for segments in split for part in segments if part.translate]
    known = _translate((part.masked for part in parts), translator, source, target)
    lost = [part for part in parts if known[part.masked] and part.restore(known[part.masked]) is None]
    if lost:
        print(f"{len(lost)} of {len(parts)} segments came back without their masks: in pieces again", file=sys.stderr)
    pieces = {piece.text for part in lost for piece in part.split_at_masks() if piece.translate}
    known |= _translate(pieces - known.keys(), translator, source, target)
    return [_assemble(segments, known, LANGUAGES[target].script) for segments in split]


def _translate(texts: Iterable[str], translator: Translator, source: str, target: str) -> dict[str, str]:
    """Translations of distinct segments, which go to the engine sorted by length."""
    # By content as well, so that the batches do not depend on the order of a set
    batch = sorted(set(texts), key=lambda text: (len(text), text))
    results = ask(lambda texts: translator.translate(texts, source, target), batch, str | None)
    return {text: _clean(text, result or "") for text, result in zip(batch, results, strict=True)}


def _assemble(segments: list[Segment], known: dict[str, str], script: str) -> str | None:
    """The translation of a text; `None` if the translator returned nothing for one of its segments."""
    pieces = []
    for part in segments:
        text = part.restore(known[part.masked]) if part.translate else part.text
        if text is None and known[part.masked]:  # it came back without its masks
            inner = [(known[p.text] if p.translate else p.text, p.translate) for p in part.split_at_masks()]
            text = _join(inner, script) if all(piece for piece, _ in inner) else None
        if not text:  # with a hole in it, the text is of no use
            return None
        pieces.append((text, part.translate))
    return _join(pieces, script)


def _join(pieces: list[tuple[str, bool]], script: str) -> str:
    """Pieces of a text, each with whether it is translated, with such spaces between them as the script has."""
    text = "".join(f"\0{piece}\0" if is_translated else piece for piece, is_translated in pieces)
    if script in _UNSPACED_SENTENCES:
        # But between words of an alphabet, and behind emphasis, which Markdown would not see the end of
        text = re.sub(r"(?<![*_])(?:(?<![!-~])\0 *\0|\0 *\0(?![!-~]))", "", text)
    # From a script without spaces, there are none to keep, neither here nor beside code
    text = re.sub(r"\0[ \u3000]*\0|(?<=[\w)}`])\0(?=[\w({`])|(?<=:\*\*)\0(?=\w)", " ", text)
    return text.replace("\0", "")


def _clean(original: str, translation: str) -> str:
    """
    One line in, one line out, for line structure is ours to keep. And translators put spaces inside Markdown emphasis
    (`**Nota: ** isto`), which then shows as asterisks.
    """
    if len(translation) > 20 * len(original) + 200:  # which is no translation
        return ""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", translation)
    translation = " ".join(plain.encode("utf-8", "replace").decode().split())
    if re.search(r"\*\*[^\s*][^*]*\*\*", original):
        translation = re.sub(r"\*\*([^*]+)\*\*", lambda match: f"**{match[1].strip()}**", translation)
    return translation
