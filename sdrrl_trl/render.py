"""Templates → text: words and looks of summaries, cards, report and plot stand in `sdrrl_trl/templates/`."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from sdrrl_trl.languages import language_name


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
    environment.filters |= {"language": language_name, "number": "{:,}".format}
    return environment


def render(template: str, **data: Any) -> str:
    """The text of a template in `sdrrl_trl/templates/`."""
    return _environment().get_template(template).render(data)
