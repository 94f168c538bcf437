"""Options of the commands, from YAML, from a recipe and from the command line."""

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdrrl_trl.utils import SDRRLError, in_a_line


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """
    Defaults where there are any, each option under one name, and what it takes in few words, on lines as wide as those
    of `sdrrl train --help`. argparse has no public hooks for these.
    """

    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=119)

    def _format_args(self, action, default_metavar):
        if action.nargs == "?":
            return "[true|false]"
        if action.metavar is None and action.choices is None:
            folder = "FOLDER" if action.dest.endswith(("_dir", "_set")) else None
            word = action.dest.upper().rpartition("_")[2]
            default_metavar = {int: "N", float: "X"}.get(action.type) or folder or word
        name = action.metavar or default_metavar
        return f"{name} ..." if action.nargs == "+" else super()._format_args(action, default_metavar)

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)

    def _format_action_invocation(self, action):
        action = copy(action)
        action.option_strings = [name for name in action.option_strings if "-" not in name.strip("-")]
        return super()._format_action_invocation(action)


def parse_command(dataclasses: tuple[type, ...], arguments: list[str], prog: str, **about: str) -> tuple:
    """
    Instances of option classes from `--config FILE`, `--recipe NAME` and the options of a command; `about` is what
    `--help` shows besides.
    """
    common = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    common.add_argument("--config", metavar="FILE", help="YAML file with options; those that are given here win.")
    if (command := prog.rpartition(" ")[2]) in ("build", "train"):
        names = sorted({name for recipe in _recipes().values() for name in recipe[command]})
        known = "anchored (own answers, English held), t_sft (answers that came with the questions) or paper"
        common.add_argument("--recipe", metavar="NAME", help=f"{known}: sets {', '.join(names)}.")
    found, rest = common.parse_known_args(arguments)
    section = read_yaml(found.config) if found.config is not None else {}
    if getattr(found, "recipe", None) is not None:
        section["recipe"] = found.recipe
    return parse(dataclasses, section, rest, prog, parents=[common], **about)


def parse(
    dataclasses: tuple[type, ...], section: dict[str, Any], arguments: Sequence[str], prog: str, **about: Any
) -> tuple:
    """
    Instances of option classes, from a YAML section and command-line arguments, which win. A `recipe` in the section
    stands for the options that `recipes.yaml` has under its name; those of the section win.

    The section is read as if it stood on the command line, so that types and choices are checked alike.

    Raises:
        `SDRRLError`: for unknown options and recipes, and for values of a wrong type.
    """
    from trl.scripts.utils import TrlParser

    class Parser(TrlParser):
        def error(self, message):  # argparse would print the usage, hundreds of lines, and exit
            named = re.match("argument (--[^/:]+)", message)
            if named and (action := self._option_string_actions.get(named[1])):
                others = set(self._option_string_actions) - {*action.option_strings}
                message = f"{message.rstrip('.')}.{similar(named[1], others, cutoff=0.9)}"
            if "are required" in message:  # perhaps one of them is misspelt
                known, given_names = self._option_string_actions, [name.partition("=")[0] for name in arguments]
                unknown = [name for name in given_names if name.startswith("--") and name not in known]
                message += "".join(f". What is {name}?{similar(name, known)}" for name in unknown)
            raise SDRRLError(f"{self.prog}: {message}")

    parser = Parser(dataclasses, allow_abbrev=False, formatter_class=HelpFormatter, prog=prog, **about)
    for action in parser._actions:
        if any(name.startswith("--no_") for name in action.option_strings):  # by another name, `--name false`
            action.help = argparse.SUPPRESS
    _group(parser, "".join(kind.__doc__ or "" for kind in dataclasses))
    section = _with_recipe(section, prog.rpartition(" ")[2])  # of `sdrrl build`; of `build` in a run
    own = {field.name for kind in dataclasses for field in fields(kind)}
    actions = {action.dest: action for action in parser._actions if action.dest in own}
    given = []
    for name, value in section.items():
        if name not in actions:
            hint = similar(str(name), actions, "`{}`")
            raise SDRRLError(f"Unknown option `{name}` in the configuration of `{prog}`.{hint}")
        if value is None:
            if actions[name].default is not None:
                raise SDRRLError(f"`{name}` is empty. Give it a value, or leave the option out.")
            continue
        values = value if isinstance(value, list) else [value]
        is_list = isinstance(value, list) and actions[name].nargs != "+"
        if actions[name].type is str and (is_list or any(isinstance(item, bool) for item in values)):
            raise SDRRLError(f"`{name}`: YAML reads {value!r} there. Put it in quotes if it is text, such as `'no'`.")
        if isinstance(value, list) and actions[name].nargs == "+":
            given += [f"--{name}", *map(str, value)]
        else:
            given.append(f"--{name}={json.dumps(value) if isinstance(value, dict | list) else value}")
    if arguments and not arguments[0].startswith("-"):  # it would be taken for one more value of the section's last
        raise SDRRLError(f"{arguments[0]!r} belongs to no option. `{prog} --help` shows all.")
    if unknown := parser.parse_known_args([*given, *arguments])[1]:
        hint = similar(unknown[0].partition("=")[0], parser._option_string_actions)
        raise SDRRLError(f"Unknown option {unknown[0]}.{hint} `{prog} --help` shows all.")
    try:
        found = parser.parse_args_into_dataclasses([*given, *arguments], look_for_args_file=False)
    except (TypeError, ImportError, ValueError) as error:  # of the option classes themselves
        raise error if isinstance(error, SDRRLError) else SDRRLError(f"{prog}: {error}") from error
    return tuple(found[: len(dataclasses)])  # behind them, `--config` and `--recipe` of the help


def _group(parser: argparse.ArgumentParser, doc: str) -> None:
    """Puts the options under the headings that they have in the docstring of their class."""
    for heading, text in re.findall(r"> Parameters that control (.+)\n((?:(?! +> ).*\n)*)", doc):
        group, names = parser.add_argument_group(heading), re.findall(r"^ {8}(\w+) \(`", text, re.MULTILINE)
        group._group_actions += [action for action in parser._optionals._group_actions if action.dest in names]
        parser._optionals._group_actions = [
            action for action in parser._optionals._group_actions if action.dest not in names
        ]


def similar(name: str, known: Iterable[str], form: str = "{}", cutoff: float = 0.6) -> str:
    """A hint at the nearest of the known names, if any is near."""
    known, short = list(known), name.strip("-")
    in_short = [full for full in known if short == "".join(word[:1] for word in full.strip("-").split("_"))]  # `lr`
    close = in_short or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f" Did you mean {form.format(close[0])}?" if close else ""


def _with_recipe(section: dict[str, Any], command: str) -> dict[str, Any]:
    """The options of the section's recipe, and those of the section over them."""
    if "recipe" not in section or command not in ("build", "train"):
        return section
    recipes, recipe = _recipes(), str(section["recipe"])
    if recipe not in recipes:
        raise SDRRLError(f"Unknown recipe {recipe!r}. Known: {', '.join(recipes)}.")
    own = {name: value for name, value in section.items() if name != "recipe"}
    return recipes[recipe][command] | own


def _recipes() -> dict[str, Any]:
    return read_yaml(str(Path(__file__).with_name("recipes.yaml")))


def read_yaml(path: str) -> dict[str, Any]:
    """
    Content of a YAML file.

    Raises:
        `SDRRLError`: if it cannot be read or is not a mapping.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:  # such as bytes that are no UTF-8
        raise SDRRLError(f"Cannot read the configuration {path!r}: {in_a_line(error)}") from error
    if not isinstance(content, dict):
        raise SDRRLError(f"The configuration {path} must be a YAML mapping of options.")
    return content
