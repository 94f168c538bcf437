"""The translation models of Firefox: some 50 languages on a CPU, 20 to 40 MB each."""

from typing import Any

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

    def check(self, source: str, target: str) -> None:
        """
        Raises:
            `SDRRLError`: if there is no model for the two languages.
        """
        if (source, target) not in self._loaded:
            from fxtranslate import Translator

            try:
                self._loaded[source, target] = Translator.load(source, target, self._folder)
            except ValueError as error:  # for lack of a model, a network or a whole file
                raise SDRRLError(
                    f"No model of Firefox from {source} to {target}: {error}. `fxtranslate list` tells which there "
                    "are; without a network, set `translator_model` to a folder that has them."
                ) from error

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        self.check(source, target)
        # One after the other: it can be used in one thread alone
        return [self._loaded[source, target].translate(text) for text in texts]
