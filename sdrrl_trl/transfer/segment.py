"""
Splitting a text into what is translated and what stays: sentences on one side; code, URLs, placeholders, Markdown
structure and white space on the other. Joining the untranslated segments gives the text back, byte for byte.

Whatever stays is first blanked out in a copy of the text: by line breaks where it stands between sentences, by `\\0`
inside of them. Then the sentences are looked for in the copy, where they have the same places as in the text.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import yaml


WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
_BRACES = r"\{[^{}]*+\}"
for _ in range(20):  # levels of JSON
    _BRACES = rf"\{{(?:[^{{}}]|{_BRACES})*+\}}"


def _read_patterns() -> dict[str, str]:
    """The patterns of each kind in `spans.txt`, joined; those with a name in capitals stand in others, too."""
    found = {"BRACES": _BRACES}
    for line in Path(__file__).with_name("spans.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            kind, pattern = line.split("\t", 1)
            for name in filter(str.isupper, found):
                pattern = pattern.replace(name, found[name])
            found[kind] = f"{found[kind]}|{pattern}" if kind in found else pattern
    return found


_PATTERNS = _read_patterns()
_SPAN = re.compile(_PATTERNS["span"], re.ASCII)
# Most sentences have no span: two quick looks tell
_SIGN = re.compile(r"[`$\\<{%&\[\]_/@#\u2190-\u21ff\u2300-\u2bff\U0001f000-\U0001ffff]")
_SIGNS = re.compile(
    r"\.(?<=\w\w\.)[a-z\d]|-(?<![\w-]-)[-A-Za-z]|:[a-z+-]|[=<>~!]=\d|\d[a-f]|[a-f]\d|-[\dA-F]{4}-"
    r"|\(\)|\w\([^()]*[\"'\d=]|SELECT|[Zz][Xx]",
    re.ASCII,
)

_ITEM = r"(?:[-*+•]|\(?(?:\d{1,9}|[A-Za-z])[.)])(?=\s)"
_BLOCK = re.compile(rf"(?:[ \t]+|(?P<quote>>)|{_ITEM})*+(?:{_PATTERNS['block']})", re.MULTILINE | re.DOTALL)
_LINE = re.compile(
    rf"(?P<quote>(?: {{0,3}}> ?)*+)(?P<indent>[ \t]*+)(?P<item>(?:{_ITEM}[ \t]*)*+)"
    r"(?P<mark>(?:(?:#{1,6}|\[[ xX]\]|\[\^[^\[\]\s]+\]:|\[!\w+\])(?=\s)[ \t]*)*+)(?P<rest>[^\n]*\n?)"
)
_TABLE = re.compile(r"\A\||^[ \t]*:?-+:?[ \t]*\|[\s:|-]*$", re.MULTILINE)
# **Note:** at the start of a line, and a link that is all of it: translators are at their best without the signs
_LEAD = re.compile(
    r"(?<!.)([ \t]*(?:\*\*|\[))([^*\[\]\n]+?)(:\*\*|(?:\*\*|\0+)(?=:|\.?\s*$|\s+[–—-]\s))", re.MULTILINE
)
_LETTER = re.compile(r"[^\W\d_]")
_MASK = re.compile(r"ZX[\s-]?(\d{1,6})[\s-]?Q", re.IGNORECASE)  # as translators may change it

_ABBREVIATIONS = "|".join(WORDS["abbreviations"].split())
_ABBREVIATION = re.compile(
    rf"""(?:^|[\s("“„«\[])(?:(?:(?:[^\W\d_]\.-?)*[^\W\d_]|\d\d?|{_ABBREVIATIONS})\.\w?"""
    r"|(?i:nos?|nr|núm|pp|págs?|figs?|abb|abs|art|vol|ch|cap|kap|sec|eq|bd)\.\d)$"
)
_CUTS = [re.compile(r"(?s).{60,}[.!?…]\s"), re.compile(r"(?s).{60,}(?:[,;:]\s|[，；、])"), re.compile(r"(?s).+\s")]


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
        return [piece for piece, is_span in self._pieces() if is_span]

    @property
    def masked(self) -> str:
        """Text for the translator: each protected span replaced by a word that translators copy (`ZX1Q`)."""
        number = count(1)
        return "".join(f"ZX{next(number)}Q" if is_span else piece for piece, is_span in self._pieces())

    def restore(self, translation: str) -> str | None:
        """Puts the protected spans back; `None` unless every mask is in the translation exactly once."""
        protected = self.protected
        if sorted(map(int, _MASK.findall(translation))) != list(range(1, len(protected) + 1)):
            return None
        return _MASK.sub(lambda match: protected[int(match[1]) - 1], translation)

    def split_at_masks(self) -> list["Segment"]:
        """The text between the masks as segments of their own, for translators that lose masks."""
        copy = _without_spans(self.text)
        return _segments(self.text, copy, (match.span() for match in re.finditer(r"[^\0]+", copy)))

    def _pieces(self) -> Iterator[tuple[str, bool]]:
        for match in re.finditer(r"\0+|[^\0]+", _without_spans(self.text)):
            yield self.text[match.start() : match.end()], match[0][0] == "\0"


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
    copy = _without_blocks(text)
    return _segments(text, copy, _sentences(copy, terminators, max_chars))


def sentence_pieces(text: str, terminators: str) -> Iterator[Segment]:
    """The segments of a text, what a translator must not touch inside of sentences in segments of its own."""
    for part in segment(text, terminators):
        yield from part.split_at_masks() if part.translate else [part]


def prose(text: str) -> str:
    """What a translator changes in a text, on one line: without code, formulas, URLs and the like."""
    return " ".join(_without_blocks(text).replace("\0", " ").split())


def without_blocks(text: str) -> str:
    """A text with its paragraphs as they are, but without the blocks, structure and `code` beside and in them."""
    return re.sub(r"`[^`\n]*`", "", "".join(piece if is_text else "\n" for piece, is_text in _paragraphs(text)))


def _without_blocks(text: str) -> str:
    """A copy of the text in which everything that is not translated is blanked out."""
    pieces = _paragraphs(text)
    return "".join(_without_structure(piece) if is_text else "\n" * len(piece) for piece, is_text in pieces)


def _paragraphs(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, each with whether it is a paragraph, or else a block or structure, and not translated."""
    start, end = 0, 0  # text[start:end] is the paragraph so far
    columns, is_fresh = [0], True  # where the texts of the list items begin; whether an indented line would be code
    lines = re.sub(r"\r(?=\r*\n)", " ", text)  # of the same length
    while end < len(text):
        if block := _BLOCK.match(lines, end):
            kept = following = block.end()
        else:
            line = _LINE.match(text, end)
            following, indent = line.end(), len(line["indent"].expandtabs(4))
            is_blank = not line["rest"].strip()
            while not is_blank and (is_fresh or line["item"]) and columns[-1] > indent:
                columns.pop()
            is_code = is_fresh and not is_blank and indent >= columns[-1] + 4
            if line["item"] and not is_code:
                columns.append(indent + len(line["item"]))
            kept = following if is_blank or is_code else line.start("rest")
            if kept == line.end("indent") and not line["quote"]:
                kept = end  # a line with nothing before its text goes on with the paragraph
            is_fresh = is_blank or is_code or "#" in line["mark"]
        if kept > end:
            yield text[start:end], True
            yield text[end:kept], False
            start = kept
        end = following
    yield text[start:], True


def _without_structure(paragraph: str) -> str:
    copy = _without_spans(paragraph)
    if "\n" in paragraph:  # a span over several lines is no part of a sentence
        copy = re.sub(r"\0+", lambda m: ("\n" if "\n" in paragraph[m.start() : m.end()] else "\0") * len(m[0]), copy)
    if "|" in copy and _TABLE.search(copy):
        copy = re.sub(r"(?<!\\)\|", "\n", copy)
    if "**" in copy or "[" in copy:
        copy = _LEAD.sub(lambda match: "\n" * len(match[1]) + match[2] + "\n" * len(match[3]), copy)
    return copy


def _without_spans(text: str) -> str:
    if not (_SIGN.search(text) or _SIGNS.search(text)):
        return text
    copy = _SPAN.sub(lambda match: "\0" * len(match[0]), text)
    return re.sub(r"(?<=\0),? ?(?=\0)", lambda match: "\0" * len(match[0]), copy)  # one mask for `a`, `b`


def _sentences(copy: str, terminators: str, max_chars: int) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence, with white space around it."""
    for line in re.finditer(r"[^\n\r\t\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+", copy):
        start = line.start()
        for match in _ends(terminators).finditer(copy, start, line.end()):
            mark, following = match[1], match[2] or ""
            word = copy[max(start, match.start() - 12) : match.start()]
            if following.islower() or mark == "." and _ABBREVIATION.search(f"{word}.{following}"):
                continue
            yield from _short(copy, start, match.end(), max_chars)
            start = match.end()
        yield from _short(copy, start, line.end(), max_chars)


@cache
def _ends(terminators: str) -> re.Pattern[str]:
    """What ends a sentence, and the letter behind it: in scripts with spaces, `.!?…` do so before white space only."""
    anywhere = "".join(set(terminators) - set(".!?…" if "." in terminators else ""))
    mark = f"[{re.escape(terminators)}]"
    behind = [r"""["'”’“‘»«)\]*_]*+(?:[ \u00a0\u202f]»)?(?=\s+[^\w\s\0]*(\w?))"""] if "." in terminators else []
    behind += [rf"""(?<=[{re.escape(anywhere)}])["'”’」』）)\]*_]*+"""] if anywhere else []
    return re.compile(f"({mark}(?<!{mark}{{2}}){mark}*+)(?:{'|'.join(behind)}){'' if '.' in terminators else '()'}")


def _short(copy: str, start: int, end: int, max_chars: int) -> Iterator[tuple[int, int]]:
    """A sentence, cut where it is too long for the engine, but not inside of a span."""
    while end - start > max_chars:
        found = next(filter(None, (cut.match(copy, start, start + max_chars) for cut in _CUTS)), None)
        cut = found.end() if found else start + max_chars
        if copy[cut - 1 : cut + 1] == "\0\0":
            before = start + len(copy[start:cut].rstrip("\0"))
            cut = before if before > start else re.compile(r"\0+").match(copy, start).end()
        yield start, cut
        start = cut
    yield start, end


def _segments(text: str, copy: str, places: Iterable[tuple[int, int]]) -> list[Segment]:
    """What stands at the places, if it has letters, as segments to translate; all else as others."""
    segments, end = [], 0
    for start, stop in places:
        piece = copy[start:stop]
        if _LETTER.search(piece):
            start += len(piece) - len(piece.lstrip())
            stop = start + len(piece.strip())
            if end < start:
                segments.append(Segment(text[end:start], translate=False))
            segments.append(Segment(text[start:stop], translate=True))
            end = stop
    return [*segments, Segment(text[end:], translate=False)] if end < len(text) else segments
