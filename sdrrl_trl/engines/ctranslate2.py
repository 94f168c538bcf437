"""Translation models converted to CTranslate2: several times faster, and in 8 bits."""

from pathlib import Path
from typing import Any

from sdrrl_trl.engines.seq2seq import LanguageCodes
from sdrrl_trl.engines.transformers import own_device
from sdrrl_trl.utils import SDRRLError, package_version, require


class CTranslate2Translator:
    """
    Translation through `ctranslate2` (extra `ct2`).

    Args:
        model (`str`):
            Folder made by `ct2-transformers-converter`, with the files of the original model, but for the weights, in
            its folder `tokenizer`. CTranslate2 4.8 can convert M2M100 with transformers 4 only; once converted, the
            model works with any.
        batch_tokens (`int`, *optional*, defaults to `8192`):
            Most source tokens in a batch.

    Raises:
        `SDRRLError`: if the folder holds no converted model or no tokenizer, or one of no known family.
    """

    def __init__(self, model: str, batch_tokens: int = 8192):
        require("ctranslate2", "ct2", "The translator `ctranslate2`")
        import ctranslate2

        folder = Path(model)
        if not (folder / "model.bin").exists() or not (folder / "tokenizer").is_dir():
            raise SDRRLError(
                f"{model} holds no converted model (`model.bin`) with its tokenizer (`tokenizer/`). Convert it with "
                "`ct2-transformers-converter --model M --output_dir DIR`, and copy all files of M but the weights to "
                "DIR/tokenizer."
            )
        self.name, self.batch_tokens = folder.name, batch_tokens
        self.codes = LanguageCodes(str(folder / "tokenizer"), name=folder.name)
        self.tokenizer, self.max_tokens = self.codes.tokenizer, self.codes.max_tokens
        device = own_device()
        on_gpu = {"device": "cuda", "device_index": device.index} if device.type == "cuda" else {}
        try:
            self._translator = ctranslate2.Translator(model, **on_gpu)
        except RuntimeError as error:
            raise SDRRLError(f"Cannot load the converted model {model}: {error}. Convert it again.") from error

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "ctranslate2",
            "version": package_version("ctranslate2"),
            "model": self.name,
            "family": self.codes.family,
            "compute_type": self._translator.compute_type,
            "licence": self.codes.licence,
        }

    def check(self, source: str, target: str) -> None:
        """
        Raises:
            `SDRRLError`: if the model does not know one of the two languages.
        """
        self.codes.check(source, target)

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """
        One translation for each text. `""`, instead of a piece, for a text longer than the model can read, and for a
        translation that does not end within twice the length of the text.
        """
        encoded = self.codes.encode(texts, source, target)
        short = [i for i, ids in enumerate(encoded) if len(ids) <= self.max_tokens]
        limits = [self.codes.limit(encoded[i]) for i in short]
        first = self.codes.first_token(target)
        prefix = None if first is None else [[self.tokenizer.convert_ids_to_tokens(first)]] * len(short)
        found = self._translator.translate_batch(
            [self.tokenizer.convert_ids_to_tokens(encoded[i]) for i in short],
            target_prefix=prefix,
            max_batch_size=self.batch_tokens,
            batch_type="tokens",
            beam_size=1,
            max_input_length=0,
            min_decoding_length=0,
            max_decoding_length=max(limits, default=1),
            return_end_token=True,
        )
        results = [""] * len(texts)
        for i, limit, result in zip(short, limits, found, strict=True):
            tokens = result.hypotheses[0]
            if self.tokenizer.eos_token in tokens[:limit]:
                ids = self.tokenizer.convert_tokens_to_ids(tokens)
                results[i] = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return results
