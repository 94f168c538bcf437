"""What counts of an answer, and whether it is in the language that was asked for."""

import re

from sdrrl_trl.languages import MIN_LETTERS, likely_languages, script_share


# Code, addresses, and the letter of a choice, as in "(B)", are in no language
NO_PROSE = re.compile(r"```.*?(```|$)|`[^`\n]*`|https?://\S+|(?<![^\W_])[A-H](?![^\W_])", re.DOTALL)


def without_thoughts(text):
    """An answer without its `<think>` block; one that is not closed leaves nothing."""
    text = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2].strip()  # chat templates may open the block in the prompt


def wrong_language(text, language, script):
    """
    1.0 if a text is not in a language (BCP-47 tag and ISO 15924 script), else 0.0.

    At least half of its letters must be of the script. From 20 letters on, py3langid must also find the language most
    likely, or less likely by at most 3 nats. The empty text is in no language.
    """
    if not text.strip():
        return 1.0
    prose = NO_PROSE.sub(" ", text)
    if script_share(prose, script) < 0.5:
        return 1.0
    if sum(char.isalpha() for char in prose) < MIN_LETTERS:
        return 0.0
    return float(language not in likely_languages(prose))
