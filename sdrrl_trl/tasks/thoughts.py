"""What a reasoning model thinks before it answers is no part of its answer."""

import re


def without_thoughts(text):
    """An answer without the `<think>` block before it; one that is not closed leaves nothing."""
    # Some chat templates put the opening tag into the prompt
    return re.sub(r"^.*?</think>|^\s*<think>.*", "", text, count=1, flags=re.DOTALL).strip()
