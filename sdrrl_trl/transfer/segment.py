"""
Splitting a text into what is translated and what stays: sentences on one side; code, URLs, placeholders, Markdown
structure and white space on the other. Joining the untranslated segments gives the text back, byte for byte.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


# What a translator must not touch, inside a line. Bounded, so that no input takes more than linear time
_PROTECTED = re.compile(
    r"""
      (?<!`)(`+)(?!`)[\s\S]{1,2000}?(?<!`)\1(?!`)      # inline code
    | (?:https?://|www\.)[^\s<>()\[\]"'。，、]*(?:\([^\s()]*\)[^\s<>()\[\]"'。，、]*)*(?<![.,;:!?])  # URL, no end mark
    | \]\([^()\s]*(?:\s"[^"\n]*")?\) | \]\[[^\[\]\n]*\]  # target of a Markdown link or image
    | \[\^[^\]\s]{1,99}\]:?                             # footnote
    | (?<![\w.+-])[\w.+-]{1,64}@[\w-]+\.[\w.-]*\w      # e-mail
    | \$\$[^$\n]+\$\$ | \$[^\s$](?:[^$\n]*[^\s$])?\$(?!\d)  # LaTeX
    | \\\([^\n]{1,2000}?\\\) | \\\[[^\n]{1,2000}?\\\]
    | \\(?:begin|end)\{\w+\*?\}
    | <!--[^\n]{0,2000}?-->
    | </?[A-Za-z][^<>\n]*>                            # HTML tag, <placeholder>
    | &(?:[A-Za-z]+|\#\d+);                           # HTML entity
    | \$?\{\{[^{}\n]*\}\} | \$?\{[^{}\n]*\} | \[\[[^\[\]\n]*\]\]  # {placeholder}, ${variable}
    | %\(\w+\)[sdf] | %(?:\d+\$)?[-+0]*\d*(?:\.\d+)?[sdifgxu](?!\w)  # printf placeholder
    | \$[A-Z_][A-Z0-9_]+                              # shell variable
    | (?<![\w-])--[A-Za-z][\w-]*                      # --option
    | (?<![\w/.-])(?:~|\.{1,2})?/[\w.-]+(?:/[\w.-]+)*(?<!\.)  # /path
    | (?<![\w/.-])[\w-]+(?:/[\w-]+)*\.(?:py|md|txt|json|ya?ml|toml|cfg|ini|csv|tsv|xml|html?|css|js|ts|sh|sql|rs|go|
        java|cpp|hpp|ipynb|parquet|pdf|png|jpe?g|svg|zip|gz|log)\b  # file.py
    | (?<![\w*])[A-Za-z][^\W_]*+(?:_++[^\W_]++)+(?!\w)  # snake_case
    | (?<![\w.])[A-Za-z_][\w.]*+\(\)                  # function()
    | (?<!\w):[a-z0-9_+-]+:(?!\w)                     # :emoji:
    | ZX\d+Q                                          # our own mask, should a text contain it
    """,
    re.VERBOSE,
)
_MAY_BE_PROTECTED = re.compile(r"[`@$\\<{%&\[_/~]|--|:[a-z0-9_+-]+:|www\.|ZX\d|\w\.\w|\(\)")
_CODE = re.compile(r"(?<!`)(`+)(?!`)[\s\S]{1,2000}?(?<!`)\1(?!`)")
_MASK = re.compile(r"ZX ?(\d+) ?Q", re.IGNORECASE)
_FENCE = re.compile(r"^\s*(?:(?:[-*+>]|\d{1,3}[.)])\s+)*(`{3,}|~{3,})")  # also inside lists and quotes
_LIST_ITEM = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+")
# List markers, boxes, headings, quotes and emphasis at the start of a line
_LINE_START = re.compile(r"^(?:\s+|[-*+•]\s+|\d{1,3}[.)]\s+|\[[ xX]\]\s+|#{1,6}\s+|>\s*|\*{2,3}(?=\S))*")
_TABLE_RULE = re.compile(r"^[\s:|-]+$")
_REFERENCE = re.compile(r"^\s{0,3}\[[^\]\n]+\]:\s*\S+")  # target of a reference link
# Blocks of several lines: how they begin and how they end
_BLOCKS = [
    (re.compile(r"^\s*\$\$(?![^\n]*\$\$)"), "$$"),
    (re.compile(r"^\s*\\\[(?![^\n]*\\\])"), "\\]"),
    (re.compile(r"^\s*\\begin\{(\w+\*?)\}"), "\\end{{{}}}"),
    (re.compile(r"^[^\n]*<(pre|code|script|style)\b(?![^\n]*</\1>)", re.IGNORECASE), "</{}>"),
    (re.compile(r"^[^\n]*<!--(?![^\n]*-->)"), "-->"),
]
_MAY_BEGIN_BLOCK = re.compile(r"\$\$|\\\[|\\begin|<!--|<(?:pre|code|script|style)\b", re.IGNORECASE)
_ABBREVIATIONS = (
    "[A-Za-z]|Dr|Dra|Mr|Mrs|Ms|Mme|Mlle|Prof|Sr|Sra|Srta|St|Jr|vs|etc|Fig|Nr|approx|Inc|Ltd|Co|cf|al|bzw|ca|usw|Abs|"
    r"pág|págs|ex|[Ee]\.g|[Ii]\.e|a\.m|p\.m|z\.B|d\.h|u\.a|p\.ex|U\.S"
)
_ABBREVIATION = re.compile(rf"(?:^|[\s(\[\"'])(?:{_ABBREVIATIONS})\.$")


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

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Start and end of what the translator must not touch."""
        return _spans(self.text)

    @property
    def protected(self) -> list[str]:
        """What the translator must not touch."""
        return [self.text[start:end] for start, end in self.spans]

    @cached_property
    def masked(self) -> str:
        """Text for the translator: each protected span replaced by a word that translators copy (`ZX1Q`)."""
        pieces, end = [], 0
        for number, (start, stop) in enumerate(self.spans, 1):
            pieces += [self.text[end:start], f"ZX{number}Q"]
            end = stop
        return "".join(pieces) + self.text[end:]

    def restore(self, translation: str) -> str | None:
        """Puts the protected spans back; `None` unless every mask is in the translation exactly once."""
        protected = self.protected
        if sorted(map(int, _MASK.findall(translation))) != list(range(1, len(protected) + 1)):
            return None
        return _MASK.sub(lambda match: protected[int(match[1]) - 1], translation) if protected else translation

    def split_at_masks(self) -> list["Segment"]:
        """The text between the masks as segments of their own, for translators that lose masks."""
        pieces, end = [], 0
        for start, stop in self.spans:
            pieces += [*_trimmed(self.text[end:start]), Segment(self.text[start:stop], translate=False)]
            end = stop
        return [*pieces, *_trimmed(self.text[end:])]


def _spans(text: str) -> list[tuple[int, int]]:
    if not _MAY_BE_PROTECTED.search(text):
        return []
    return [match.span() for match in _PROTECTED.finditer(text)]


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
    for line, is_code in _lines(text):
        if is_code or _TABLE_RULE.match(line) or _REFERENCE.match(line):
            segments.append(Segment(line, translate=False))
        elif line.lstrip().startswith("|"):
            for cell in _cells(line):
                segments += _split_line(cell, terminators, max_chars)
        else:
            segments += _split_line(line, terminators, max_chars)
    return segments


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Lines, each with whether it belongs to a block of code, mathematics or a comment."""
    fence = closing = None
    in_list = in_indented = False
    after_blank, place, lower = True, 0, None
    never_closed: set[str] = set()
    lines = _joined(text.splitlines(keepends=True))
    front = next((i for i, line in enumerate(lines[1:50], 1) if line.strip() == "---"), 0)
    front = front if lines and lines[0].strip() == "---" and any(":" in line for line in lines[1:front]) else 0
    for number, line in enumerate(lines):
        place += len(line)
        mark, blank = _FENCE.match(line), not line.strip()
        if front and number <= front:  # YAML front matter
            yield line, True
        elif fence is not None:
            yield line, True
            if mark and mark[1].startswith(fence) and not line.strip("> \t\r\n").strip(fence[0]):
                fence = None
        elif closing is not None:
            yield line, True
            if closing in line.lower():
                closing = None
        elif mark:
            fence = mark[1]
            yield line, True
        elif not blank and not in_list and (after_blank or in_indented) and line.startswith(("    ", "\t")):
            in_indented = True
            yield line, True
        else:
            in_indented = in_indented and blank
            if _MAY_BEGIN_BLOCK.search(line):
                closing = _closing(line)
            if closing is not None and closing not in never_closed:
                lower = lower or text.lower()
                if lower.find(closing, place) < 0:
                    never_closed.add(closing)
            if closing in never_closed:
                closing = None
            yield line, closing is not None
            if _LIST_ITEM.match(line):
                in_list = True
            elif after_blank and not blank and not line[0].isspace():
                in_list = False
        after_blank = blank


def _joined(lines: list[str]) -> list[str]:
    """Lines, of which those that share a piece of inline code (`like\\nthis`) are one."""
    joined: list[str] = []
    for line in lines:
        if joined and "`" in line and "`" in joined[-1] and not _FENCE.match(line) and not _FENCE.match(joined[-1]):
            rest = _CODE.sub("", joined[-1])
            runs = set(re.findall("`+", rest)) & set(re.findall("`+", _CODE.sub("", line)))
            if runs:
                joined[-1] += line
                continue
        joined.append(line)
    return joined


def _closing(line: str) -> str | None:
    """What ends the block of several lines that begins in a line, if one does."""
    for begin, end in _BLOCKS:
        match = begin.match(line)
        if match:
            closing = end.format(*match.groups()).lower() if match.groups() else end
            return closing if closing not in line.lower() or not match.groups() else None
    return None


def _cells(line: str) -> list[str]:
    """Cells of a table row and the bars between them; a bar inside of code is none."""
    spans, pieces, end = _spans(line), [], 0
    for match in re.finditer(r"(?<!\\)\|", line):
        if not _is_inside(match.start(), spans):
            pieces += [line[end : match.start()], "|"]
            end = match.end()
    return [piece for piece in (*pieces, line[end:]) if piece]


def _is_inside(place: int, spans: list[tuple[int, int]]) -> bool:
    """Whether a cut there would go through a span."""
    i = bisect_right(spans, (place, -1)) - 1
    return i >= 0 and spans[i][0] < place < spans[i][1]


def _split_line(line: str, terminators: str, max_chars: int) -> list[Segment]:
    start = _LINE_START.match(line).end()
    segments = [Segment(line[:start], translate=False)] if start else []
    spans = _spans(line)
    # Scripts with spaces end a sentence at a terminator before white space, the others at the terminator
    behind = r"""["'”’」』）)\]*]*""" + ("(?=\\s)" if "." in terminators else "")
    marks = f"[{re.escape(terminators)}]"
    for match in re.finditer(f"(?<!{marks}){marks}++{behind}", line):
        end = match.end()
        is_end = not _is_inside(end, spans) and not _ABBREVIATION.search(line[max(start, end - 12) : end])
        if end > start and is_end:
            segments += _split_long(line[start:end], max_chars)
            start = end
    return segments + _split_long(line[start:], max_chars)


def _split_long(sentence: str, max_chars: int) -> list[Segment]:
    """Cuts a sentence that is too long for the engine, never inside a protected span."""
    if len(sentence) <= max_chars:
        return _trimmed(sentence)
    segments, spans, start = [], _spans(sentence), 0
    while len(sentence) - start > max_chars:
        window = sentence[start : start + max_chars]
        for pattern in (r"[,;:，；、]\s*", r"\s+", r"(?s)."):
            cuts = [start + match.end() for match in re.finditer(pattern, window)]
            cuts = [cut for cut in cuts if not _is_inside(cut, spans)]
            if cuts:
                break
        else:  # it is inside a span that is longer: behind that
            cuts = [spans[bisect_right(spans, (start + max_chars, -1)) - 1][1]]
        segments += _trimmed(sentence[start : cuts[-1]])
        start = cuts[-1]
    return segments + _trimmed(sentence[start:])


def _trimmed(text: str) -> list[Segment]:
    """The text as one segment, the white space around it as others. Without a letter nothing is translated."""
    core = text.strip()
    if not core:
        return [Segment(text, translate=False)] if text else []
    head = len(text) - len(text.lstrip())
    part = Segment(core, translate=True)
    if not any(char.isalpha() for char in re.sub(r"ZX\d+Q", "", part.masked)):
        part = Segment(core, translate=False)
    around = [Segment(text[:head], translate=False), part, Segment(text[head + len(core) :], translate=False)]
    return [piece for piece in around if piece.text]
