"""
How much of Markdown survives the worst translator: one that changes every character except the masks it is given.

What has to survive is found by other means than ours: code, HTML and links by markdown-it-py, the rest by patterns of
this file. The opponent protects ``` fences and nothing else, as other translation pipelines do.

    python benchmarks/masks.py     # on the Markdown that is installed here; the last line is one JSON object
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import markdown_it

from sdrrl_trl.transfer.segment import Segment, segment


_MARKDOWN = markdown_it.MarkdownIt("commonmark").enable("table")
_HTML = re.compile(r"<!--.*?-->|<(script|style|pre)\b.*?</\1>|</?[A-Za-z][^<>]*>", re.DOTALL)
_OTHER = re.compile(
    r"""https?://[^\s<>()\[\]{}"'`|\\*]*[\w/]           # URL
    | \b[\w.+-]+@[\w-]+(?:\.[A-Za-z]{2,})+\b             # e-mail
    | \$\$[^$\n]+\$\$ | \$\\\w[^$\n]*\$ | \\\(.+?\\\)    # LaTeX
    | \{\{[ ]?\w+[ ]?\}\} | \$?\{\w+\} | %\(\w+\)[sd]     # placeholder
    """,
    re.VERBOSE,
)


def to_protect(text: str) -> Iterator[tuple[str, int, int]]:
    """Kind, start and end of everything in a text that a translation must not change."""
    lines = [0, *(match.end() for match in re.finditer(r"\r\n?|\n|.\Z", text, re.DOTALL))]
    context: dict = {}
    for token in _MARKDOWN.parse(text, context):
        if token.map is None:
            continue
        start, end = (lines[min(number, len(lines) - 1)] for number in token.map)
        if token.type in ("fence", "code_block"):
            yield token.type, start, end
        elif token.type == "html_block":
            yield from ((token.type, *match.span()) for match in _HTML.finditer(text, start, end))
        for child in token.children or []:
            raw = {"html_inline": child.content, "link_open": unquote(str(child.attrGet("href")))}.get(child.type, "")
            before = r"(?<=[(<])" if child.type == "link_open" else ""  # it may be the text of the link as well
            if child.type == "code_inline":
                raw = f"{child.markup} {child.content} {child.markup}"
            # A line break in the text is a space in the token; inside a quote it comes with a mark
            pattern = re.compile(before + re.sub(r"(?:\\[ \n])+", r"[\\s>]*", re.escape(raw)))
            if raw and (match := pattern.search(text, start, end)):
                yield child.type, *match.span()
                start = match.end()
    for reference in context.get("references", {}).values():
        yield from (("reference", *match.span()) for match in re.finditer(re.escape(reference["href"]), text))
    yield from (("other", *match.span()) for match in _OTHER.finditer(text))


def scramble(text: str) -> str:
    """Changes every letter, digit and sign except masks."""
    return "".join(piece if piece[:2] == "ZX" else re.sub(r"\S", "¤", piece) for piece in re.split(r"(ZX\d+Q)", text))


def with_masks(text: str, split: Callable[[str], list[Segment]]) -> str:
    """The scrambled translation of a text, put together as the builder does."""
    pieces = []
    for part in split(text):
        translation = part.restore(scramble(part.masked)) if part.translate else part.text
        if translation is None:
            translation = "".join(scramble(p.text) if p.translate else p.text for p in part.split_at_masks())
        pieces.append(translation)
    return "".join(pieces)


def with_fences_only(text: str) -> str:
    pieces = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    return "".join(piece if piece.startswith("```") else scramble(piece) for piece in pieces)


def damaged(text: str, translation: str) -> list[tuple[str, str]]:
    """Kind and text of what was to be protected and was not; the scrambler keeps every character in its place."""
    spans = [] if len(translation) != len(text) else to_protect(text)
    found = [(kind, text[start:end]) for kind, start, end in spans if translation[start:end] != text[start:end]]
    return found if len(translation) == len(text) else [("length", text)]


def fidelity(texts: list[str], split: Callable[[str], list[Segment]]) -> dict[str, float]:
    """
    Share of texts of which everything that had to survive did.

    Args:
        texts (`list[str]`): Markdown; texts with nothing to protect are not counted.
        split (`Callable[[str], list[Segment]]`): Our splitting, with the terminators of the language.

    Returns:
        `dict[str, float]`: number of `texts` counted, and the share intact with `masks` and with `fences_only`.
    """
    counted = [text for text in texts if any(True for _ in to_protect(text))]
    n = max(len(counted), 1)
    return {
        "texts": len(counted),
        "masks": sum(not damaged(text, with_masks(text, split)) for text in counted) / n,
        "fences_only": sum(not damaged(text, with_fences_only(text)) for text in counted) / n,
    }


def installed_markdown() -> list[str]:
    """The Markdown files and package descriptions among the installed packages."""
    root = Path(markdown_it.__file__).parents[1]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(root.rglob("*.md"))]
    for path in sorted(root.glob("*.dist-info/METADATA")):
        texts.append(path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[2])
    return [text for text in dict.fromkeys(texts) if text.strip()]


if __name__ == "__main__":
    print(json.dumps(fidelity(installed_markdown(), lambda text: segment(text, ".!?…"))))
