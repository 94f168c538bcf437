"""Translation models of the NLLB, M2M100, MADLAD-400 and OPUS-MT families through transformers."""

import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from sdrrl_trl.engines.transformers import own_device
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.utils import SDRRLError


_LICENCES = {
    "nllb": "CC-BY-NC-4.0",
    "madlad": "Apache-2.0",
    "m2m": "MIT",
    "opus-mt": "see the model's card (CC-BY-4.0 or Apache-2.0)",
}


def licence_of(model: str) -> str:
    """Licence of the weights of a model, by its name."""
    return next((licence for name, licence in _LICENCES.items() if name in model.lower()), "not stated")


class LanguageCodes:
    """
    How a family of translation models is told the languages.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        model_type (`str`):
            `model_type` of its configuration.
        name (`str`):
            Name of the model for errors.

    Raises:
        `SDRRLError`: for a model of none of the four families.
    """

    def __init__(self, tokenizer: Any, model_type: str, name: str):
        self.tokenizer, self.name = tokenizer, name
        if model_type == "m2m_100" and self._knows("eng_Latn"):
            self.family = "nllb"
        elif model_type == "m2m_100" and self._knows("__en__"):
            self.family = "m2m100"
        elif model_type in ("t5", "umt5") and self._knows("<2en>"):
            self.family = "madlad"
        elif model_type == "marian":
            self.family = "marian"
        else:
            raise SDRRLError(
                f"{name} ({model_type}) is no NLLB, M2M100, MADLAD-400 or OPUS-MT model: it is unknown how to tell it "
                "the languages. Use one of these, or `translator: endpoint` for a prompted model."
            )

    def _knows(self, token: str) -> bool:
        return self.tokenizer.convert_tokens_to_ids(token) not in (None, self.tokenizer.unk_token_id)

    def token(self, tag: str) -> str | None:
        """Token of a language, `None` for models of one pair of languages."""
        short = {"nb": "no"}.get(tag, tag)
        flores = LANGUAGES[tag].flores
        if self.family == "marian":
            # models with several target languages: `>>por<<`, or with the script, `>>cmn_Hans<<`
            candidates = [f">>{code}<<" for code in (flores[:3], flores, short)]
            several = any(re.fullmatch(">>.+<<", token) for token in self.tokenizer.get_vocab())
            token = next((code for code in candidates if self._knows(code)), None)
            if several and token is None:
                raise self._unknown(tag)
            return token
        token = {"nllb": flores, "m2m100": f"__{short}__", "madlad": f"<2{short}>"}[self.family]
        if not self._knows(token):
            raise self._unknown(tag)
        return token

    def _unknown(self, tag: str) -> SDRRLError:
        return SDRRLError(f"The translation model {self.name} does not know {LANGUAGES[tag].name}. Choose another.")

    def check(self, source: str, target: str) -> None:
        """
        Raises:
            `SDRRLError`: if the model does not know one of the two languages.
        """
        if self.family in ("nllb", "m2m100"):
            self.token(source)
        self.token(target)

    def encode(self, texts: list[str], source: str, target: str) -> list[list[int]]:
        """Token ids of what the encoder reads."""
        if self.family in ("nllb", "m2m100"):
            self.tokenizer.src_lang = self.token(source).strip("_")
        prefix = {"madlad": f"{self.token(target)} ", "marian": f"{self.token(target) or ''} ".lstrip()}
        return self.tokenizer([prefix.get(self.family, "") + text for text in texts])["input_ids"]

    def first_token(self, target: str) -> int | None:
        """Token that the decoder is made to begin with, for the families that tell it the language so."""
        in_decoder = self.family in ("nllb", "m2m100")
        return self.tokenizer.convert_tokens_to_ids(self.token(target)) if in_decoder else None


class Seq2SeqTranslator:
    """
    Translation through `transformers`.

    Args:
        model (`str`):
            Local path or hub id.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        batch_tokens (`int`, *optional*, defaults to `8192`):
            Most source tokens, with padding, in a batch. Halved when memory runs out.
        num_beams (`int`, *optional*, defaults to `1`):
            Beams.

    Raises:
        `SDRRLError`: if the model cannot be loaded or is of no known family.
    """

    def __init__(
        self,
        model: str,
        revision: str = "main",
        dtype: str = "auto",
        batch_tokens: int = 8192,
        num_beams: int = 1,
    ):
        self.name, self.batch_tokens, self.num_beams = model, batch_tokens, num_beams
        disable_progress_bar()
        try:
            config = AutoConfig.from_pretrained(model, revision=revision)
            self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
            self.codes = LanguageCodes(self.tokenizer, config.model_type, model)
            self.model = AutoModelForSeq2SeqLM.from_pretrained(model, revision=revision, dtype=dtype)
        except SDRRLError:
            raise
        except (OSError, ValueError, ImportError) as error:
            raise SDRRLError(f"Cannot load the translation model {model!r}: {error}") from error
        self.model.to(own_device()).eval()
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            decoder_start_token_id=own.decoder_start_token_id or config.decoder_start_token_id,
            eos_token_id=own.eos_token_id or config.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            bad_words_ids=own.bad_words_ids,  # Marian never generates its padding
            num_beams=num_beams,
        )
        # T5 has relative positions, hence no limit; MADLAD-400 was trained on up to 512
        self.max_tokens = vars(config).get("max_position_embeddings") or 512

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "seq2seq",
            "model": self.name,
            "family": self.codes.family,
            "commit": vars(self.model.config).get("_commit_hash"),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "num_beams": self.num_beams,
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
        encoded = self.codes.encode(texts, source, target)
        results = [""] * len(texts)
        order = sorted((len(ids), i) for i, ids in enumerate(encoded) if len(ids) <= self.max_tokens)
        batch: list[int] = []
        for length, i in order:
            if batch and (len(batch) + 1) * length > self.batch_tokens:
                self._translate([encoded[j] for j in batch], batch, target, results)
                batch = []
            batch.append(i)
        if batch:
            self._translate([encoded[j] for j in batch], batch, target, results)
        return results

    @torch.inference_mode()
    def _translate(self, encoded: list[list[int]], places: list[int], target: str, results: list[str]) -> None:
        inputs = self.tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self.model.device)
        limits = [limit_of(ids) for ids in encoded]
        try:
            output = self.model.generate(
                **inputs,
                max_new_tokens=min(max(limits), self.max_tokens),
                forced_bos_token_id=self.codes.first_token(target),
            )
        except torch.OutOfMemoryError:
            if len(places) == 1:
                raise
            torch.accelerator.empty_cache()
            half = len(places) // 2
            self._translate(encoded[:half], places[:half], target, results)
            self._translate(encoded[half:], places[half:], target, results)
            return
        end = self.model.generation_config.eos_token_id
        for i, limit, ids in zip(places, limits, output[:, 1:].tolist(), strict=True):
            if end in ids[:limit]:
                results[i] = self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def limit_of(ids: list) -> int:
    """Longest translation in tokens: one that goes on is an endless repetition."""
    return 2 * len(ids) + 20
