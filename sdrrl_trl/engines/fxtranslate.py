"""The translation models of Firefox: some 50 languages on a CPU, 20 to 40 MB each."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sdrrl_trl.hub import within
from sdrrl_trl.utils import SDRRLError, package_version


class FxTranslate:
    """
    Translation through `fxtranslate` (PyPI, extra `fx`), by way of English where there is no model of the pair.

    Args:
        folder (`str`, *optional*):
            Folder with the models, one folder for each pair (`en-pt`). What is not there is downloaded to it from
            Mozilla's service. Default: the cache of `fxtranslate`.
    """

    def __init__(self, folder: str | None = None):
        self._folder = folder
        self._loaded: dict[tuple[str, str], Any] = {}

    def describe(self) -> dict[str, Any]:
        engine = {"engine": "fxtranslate", "version": package_version("fxtranslate")}
        return {**engine, "licence": "MPL-2.0 (Firefox Translations)"}

    def is_here(self, source: str, target: str) -> bool:
        """
        Whether the model of two languages is on this machine.

        Raises:
            `SDRRLError`: if there is none elsewhere either, or Mozilla's service does not answer.
        """
        from fxtranslate import Cache, discovery

        names = {model["name"] for model in Cache(self._folder).list_cached()}
        if f"{source}-{target}" in names or {f"{source}-en", f"en-{target}"} <= names:
            return True
        with _telling(source, target):
            if isinstance(records := _records(), ConnectionError):
                raise records
            discovery.resolve_route(records, source, target)
        return False

    def check(self, source: str, target: str) -> None:
        """
        Raises:
            `SDRRLError`: if there is no model for the two languages.
        """
        if (source, target) not in self._loaded:
            from fxtranslate import Translator

            with _telling(source, target):
                self._loaded[source, target] = Translator.load(source, target, self._folder)

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        self.check(source, target)
        # One after the other: it can be used in one thread alone
        return [self._loaded[source, target].translate(text) for text in texts]


@cache  # a service that does not answer is not asked for each language
def _records() -> str | ConnectionError:
    """What models Mozilla's service has; or why it does not answer."""
    from fxtranslate import discovery

    try:
        return within(10, discovery.fetch_records_body)
    except (ValueError, TimeoutError) as error:
        why = str(error).rpartition(": ")[2] or "not within 10 s"
        return ConnectionError(f"Mozilla's service does not answer ({why})")


@contextmanager
def _telling(source: str, target: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:  # for lack of a model, a network or a whole file
        raise SDRRLError(
            f"No model of Firefox from {source} to {target}: {error}. `fxtranslate list` tells which there are; "
            "without a network, set `translator_model` to a folder that has them."
        ) from error
