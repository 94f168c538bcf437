"""
Splitting a text into what is translated and what stays: sentences on one side; code, URLs, placeholders, Markdown
structure and white space on the other. Joining the untranslated segments gives the text back, byte for byte.
"""

import re
from dataclasses import dataclass


# What a translator must not touch, inside a sentence
_PROTECTED = re.compile(
    r"""
      (?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)             # inline code
    | (?:https?://|www\.)[^\s<>()\[\]"']*(?:\([^\s()]*\)[^\s<>()\[\]"']*)*(?<![.,;:!?])  # URL without end mark
    | \]\([^()\s]*\) | \]\[[^\[\]\n]*\]              # target of a Markdown link or image
    | (?<![\w.+-])[\w.+-]{1,64}@[\w-]+\.[\w.-]*\w      # e-mail
    | \$\$[^$\n]+\$\$ | \$[^\s$][^$\n]*[^\s$]\$(?!\d) # LaTeX
    | \\\([^\n]+?\\\) | \\\[[^\n]+?\\\]
    | </?[A-Za-z][^<>\n]*>                            # HTML tag, <placeholder>
    | \{\{[^{}\n]*\}\} | \{[^{}\n]*\}                 # {placeholder}
    | %\(\w+\)[sdf] | %(?:\d+\$)?[-+0]*\d*(?:\.\d+)?[sdifgxu](?!\w)  # printf placeholder
    | \$[A-Z_][A-Z0-9_]+                              # shell variable
    | ZX\d+Q                                          # our own mask, should a text contain it
    """,
    re.VERBOSE,
)
_MASK = re.compile(r"ZX ?(\d+) ?Q", re.IGNORECASE)
_FENCE = re.compile(r"^\s*(?:(?:[-*+>]|\d{1,3}[.)])\s+)*(`{3,}|~{3,})")  # also inside lists and quotes
# List markers, headings, quotes and emphasis at the start of a line
_LINE_START = re.compile(r"^(?:\s+|[-*+•]\s+|\d{1,3}[.)]\s+|#{1,6}\s+|>\s*|\*{2,3}(?=\S))*")
_TABLE_RULE = re.compile(r"^[\s:|-]+$")
_ABBREVIATION = re.compile(r"(?:\b(?:[A-Za-z]|Dr|Mr|Mrs|Ms|Prof|St|vs|etc|e\.g|i\.e|Fig|approx))\.$")


@dataclass(frozen=True)
class Segment:
    """
    A piece of a text.

    Args:
        text (`str`): The piece, unchanged.
        translate (`bool`): Whether it goes to the translator.
    """

    text: str
    translate: bool

    @property
    def protected(self) -> list[str]:
        """The spans that the translator must not touch."""
        return [match[0] for match in _PROTECTED.finditer(self.text)]

    @property
    def masked(self) -> str:
        """Text for the translator: each protected span replaced by a word that translators copy (`ZX1Q`)."""
        numbers = iter(range(1, len(self.text) + 1))
        return _PROTECTED.sub(lambda _: f"ZX{next(numbers)}Q", self.text)

    def restore(self, translation: str) -> str | None:
        """Puts the protected spans back; `None` unless every mask is in the translation exactly once."""
        protected = self.protected
        if sorted(map(int, _MASK.findall(translation))) != list(range(1, len(protected) + 1)):
            return None
        return _MASK.sub(lambda match: protected[int(match[1]) - 1], translation)

    def split_at_masks(self) -> list["Segment"]:
        """The text between the masks as segments of their own, for translators that lose masks."""
        pieces, end = [], 0
        for match in _PROTECTED.finditer(self.text):
            pieces += [*_trimmed(self.text[end : match.start()]), Segment(match[0], translate=False)]
            end = match.end()
        return [*pieces, *_trimmed(self.text[end:])]


def segment(text: str, terminators: str, max_chars: int = 400) -> list[Segment]:
    """
    Splits a text without loss: `"".join(s.text for s in segment(text, ...)) == text`.

    Args:
        text (`str`):
            Text, possibly Markdown.
        terminators (`str`):
            Characters that end a sentence in the language of the text.
        max_chars (`int`, *optional*, defaults to `400`):
            Longer sentences are split at a comma or a space.
    """
    segments: list[Segment] = []
    fence = None
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence is not None:
            segments.append(Segment(line, translate=False))
            if mark and mark[1].startswith(fence) and not line.strip("> \t\r\n").strip(fence[0]):
                fence = None
        elif mark:
            fence = mark[1]
            segments.append(Segment(line, translate=False))
        elif _TABLE_RULE.match(line):
            segments.append(Segment(line, translate=False))
        else:
            cells = re.split(r"(?<!\\)(\|)", line) if line.lstrip().startswith("|") else [line]
            for cell in cells:
                segments += _split_line(cell, terminators, max_chars)
    return segments


def _split_line(line: str, terminators: str, max_chars: int) -> list[Segment]:
    start = _LINE_START.match(line).end()
    segments = [Segment(line[:start], translate=False)] if start else []
    spans = [match.span() for match in _PROTECTED.finditer(line)]
    # Scripts with spaces end a sentence at a terminator before white space, the others at the terminator
    behind = r"""["'”’」』）)\]*]*""" + ("(?=\\s)" if "." in terminators else "")
    for match in re.finditer(f"[{re.escape(terminators)}]+{behind}", line):
        end = match.end()
        inside = any(a < end < b for a, b in spans)
        if end > start and not inside and not _ABBREVIATION.search(line[start:end]):
            segments += _split_long(line[start:end], max_chars)
            start = end
    return segments + _split_long(line[start:], max_chars)


def _split_long(sentence: str, max_chars: int) -> list[Segment]:
    """Cuts a sentence that is too long for the engine, never inside a protected span."""
    segments = []
    while len(sentence) > max_chars:
        spans = [match.span() for match in _PROTECTED.finditer(sentence)]
        cuts = [m.end() for m in re.finditer(r"[,;:，；、]\s*", sentence[:max_chars])]
        cuts = cuts or [m.end() for m in re.finditer(r"\s+", sentence[:max_chars])] or [max_chars]
        cuts = [cut for cut in cuts if not any(a < cut < b for a, b in spans)]
        if not cuts:
            break
        segments += _trimmed(sentence[: cuts[-1]])
        sentence = sentence[cuts[-1] :]
    return segments + _trimmed(sentence)


def _trimmed(text: str) -> list[Segment]:
    """The text as one segment, the white space around it as others. Without a letter nothing is translated."""
    core = text.strip()
    if not core:
        return [Segment(text, translate=False)] if text else []
    head = text[: text.index(core)]
    tail = text[len(head) + len(core) :]
    has_letters = any(char.isalpha() for char in _PROTECTED.sub("", core))
    pieces = [Segment(head, False), Segment(core, has_letters), Segment(tail, False)]
    return [piece for piece in pieces if piece.text]
