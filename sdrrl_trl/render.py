"""Templates → text: words and looks of summaries, cards, report and plot stand in `sdrrl_trl/templates/`."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from sdrrl_trl.languages import language_name
from sdrrl_trl.utils import on_hub, public_name


def inline(text: Any) -> str:
    """A text of others in one line, without what would end a piece of code in Markdown or change a terminal."""
    text = "".join(char if char.isprintable() else " " for char in str(text).replace("`", "'"))
    return " ".join(text.split())


def linked(name: str, kind: str = "") -> str:
    """A model, or with the kind `"datasets/"` a data set: its id on the hub as a link, or its file's name."""
    shown = f"`{inline(public_name(name))}`"
    # In a manifest, what was a folder is a name without a slash
    return f"[{shown}](https://huggingface.co/{kind}{name})" if "/" in name and on_hub(name) else shown


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sdrrl_trl"),
        # Names and texts come from models and files of others. Markdown is for readers of plain text, too
        autoescape=select_autoescape(["html.jinja", "svg.jinja"]),
        undefined=StrictUndefined,  # a wrong name is an error
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"language": language_name, "number": "{:,}".format, "inline": inline}
    environment.filters |= {"linked": linked, "public_name": public_name}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment


def render(template: str, **data: Any) -> str:
    """The text of a template in `sdrrl_trl/templates/`."""
    return _environment().get_template(template).render(data)
