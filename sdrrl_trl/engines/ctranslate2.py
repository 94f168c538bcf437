"""Translation models converted to CTranslate2: several times faster, and in 8 bits."""

from pathlib import Path
from typing import Any

from sdrrl_trl.engines.seq2seq import BATCH_TOKENS, TranslationModel
from sdrrl_trl.engines.transformers import loading, own_device
from sdrrl_trl.utils import SDRRLError, package_version


class CTranslate2Translator(TranslationModel):
    """
    Translation through `ctranslate2` (extra `ct2`).

    Args:
        model (`str`):
            Folder made by `ct2-transformers-converter`, with the files of the original model, but for the weights, in
            its folder `tokenizer`. CTranslate2 4.8 can convert M2M100 with transformers 4 only; once converted, the
            model works with any.

    Raises:
        `SDRRLError`: if the folder holds no converted model or no tokenizer, or one of no known family.
    """

    def __init__(self, model: str):
        import ctranslate2

        super().__init__(str(tokenizer_of(model)), Path(model).name)
        device = own_device()
        on_gpu = {"device": "cuda", "device_index": device.index} if device.type == "cuda" else {}
        with loading("the converted model", model):
            self._translator = ctranslate2.Translator(model, **on_gpu)

    def describe(self) -> dict[str, Any]:
        engine = {"engine": "ctranslate2", "version": package_version("ctranslate2")}
        return {**engine, **super().describe(), "compute_type": self._translator.compute_type}

    def _generate(self, rows: list[list[int]], target: str) -> list[list[int]]:
        first = self.first_token(target)
        found = self._translator.translate_batch(
            list(map(self.tokenizer.convert_ids_to_tokens, rows)),
            target_prefix=None if first is None else [[self.tokenizer.convert_ids_to_tokens(first)]] * len(rows),
            max_batch_size=BATCH_TOKENS,
            batch_type="tokens",
            beam_size=1,
            # Its own limits off: what is too long is left out, not cut
            max_input_length=0,
            min_decoding_length=0,
            max_decoding_length=max(map(self.limit, rows), default=1),
            return_end_token=True,
        )
        return [self.tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in found]


def tokenizer_of(model: str) -> Path:
    """
    Folder of the tokenizer of a converted model.

    Raises:
        `SDRRLError`: if it is none.
    """
    folder = Path(model)
    if not (folder / "model.bin").exists() or not (folder / "tokenizer").is_dir():
        raise SDRRLError(
            f"{model} holds no converted model (`model.bin`) with its tokenizer (`tokenizer/`). Convert it with "
            "`ct2-transformers-converter --model M --output_dir DIR`, and copy all files of M but the weights to "
            "DIR/tokenizer."
        )
    return folder / "tokenizer"
