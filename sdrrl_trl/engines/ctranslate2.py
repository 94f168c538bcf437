"""Translation models converted to CTranslate2: several times faster, and in 8 bits."""

from pathlib import Path
from typing import Any

from sdrrl_trl.engines.seq2seq import LanguageCodes, licence_of, limit_of
from sdrrl_trl.utils import SDRRLError, package_version, require


class CTranslate2Translator:
    """
    Translation through `ctranslate2` (extra `ct2`).

    Args:
        model (`str`):
            Folder made by `ct2-transformers-converter`, with the tokenizer's files and `config.json` of the original
            model in its folder `tokenizer`.
        batch_tokens (`int`, *optional*, defaults to `8192`):
            Most source tokens in a batch.

    Raises:
        `SDRRLError`: if the folder holds no converted model or no tokenizer.
    """

    def __init__(self, model: str, batch_tokens: int = 8192):
        require("ctranslate2", "ct2", "The translator `ctranslate2`")
        import ctranslate2
        import torch
        from transformers import AutoConfig, AutoTokenizer

        folder = Path(model)
        if not (folder / "model.bin").exists() or not (folder / "tokenizer").is_dir():
            raise SDRRLError(
                f"{model} holds no converted model (`model.bin`) with its tokenizer (`tokenizer/`). Convert it with "
                "`ct2-transformers-converter --model M --output_dir DIR`, and save M's tokenizer and configuration to "
                "DIR/tokenizer."
            )
        self.name, self.batch_tokens = folder.name, batch_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        config = AutoConfig.from_pretrained(folder / "tokenizer")
        self.codes = LanguageCodes(self.tokenizer, config.model_type, self.name)
        self.max_tokens = vars(config).get("max_position_embeddings") or 512
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._translator = ctranslate2.Translator(model, device=device)

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "ctranslate2",
            "version": package_version("ctranslate2"),
            "model": self.name,
            "family": self.codes.family,
            "compute_type": self._translator.compute_type,
            "licence": licence_of(self.name),
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
        tokens = [self.tokenizer.convert_ids_to_tokens(ids) for ids in self.codes.encode(texts, source, target)]
        short = [i for i, text in enumerate(tokens) if len(text) <= self.max_tokens]
        first = self.codes.first_token(target)
        prefix = None if first is None else [[self.tokenizer.convert_ids_to_tokens(first)]] * len(short)
        found = self._translator.translate_batch(
            [tokens[i] for i in short],
            target_prefix=prefix,
            max_batch_size=self.batch_tokens,
            batch_type="tokens",
            beam_size=1,
            max_input_length=0,
            max_decoding_length=max(map(limit_of, tokens)),
            return_end_token=True,
        )
        results = [""] * len(texts)
        for i, result in zip(short, found, strict=True):
            found = result.hypotheses[0]
            if self.tokenizer.eos_token in found[: limit_of(tokens[i])]:
                ids = self.tokenizer.convert_tokens_to_ids(found)
                results[i] = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return results
