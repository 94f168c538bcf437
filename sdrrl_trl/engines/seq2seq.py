"""Translation models of the NLLB, M2M100, MADLAD-400 and OPUS-MT families through transformers."""

import re
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from sdrrl_trl.engines.transformers import own_device
from sdrrl_trl.languages import LANGUAGES, get_language
from sdrrl_trl.utils import SDRRLError


_LICENCES = {
    "nllb": "CC-BY-NC-4.0",
    "madlad": "Apache-2.0",
    "m2m": "MIT",
    "opus-mt": "see the model's card (CC-BY-4.0 or Apache-2.0)",
}
_T5 = ("t5", "umt5")
# OPUS-MT's codes that are not the first half of FLORES's
_OPUS = {"ar": "ara", "zh": "cmn_Hans"}


def licence_of(model: str) -> str:
    """Licence of the weights of a model, by its name."""
    return next((licence for name, licence in _LICENCES.items() if name in model.lower()), "not stated")


class LanguageCodes:
    """
    Tokenizer of a translation model, and how its family is told the languages.

    Args:
        model (`str`):
            Local path or hub id.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the hub.
        name (`str`, *optional*):
            Name of the model for errors and its licence; by default `model`.

    Raises:
        `SDRRLError`: if there is no such model, it is of none of the four families, or its tokenizer is damaged.
    """

    def __init__(self, model: str, revision: str = "main", name: str | None = None):
        self.name = name or model
        try:
            config = AutoConfig.from_pretrained(model, revision=revision)
            # As a `T5Tokenizer`, transformers 5 does not read the tokenizer of MADLAD-400 as it is: it takes token 2
            # for unknown characters, which here is the end of the text, and drops the fallback to bytes
            loader = PreTrainedTokenizerFast if config.model_type in _T5 else AutoTokenizer
            self.tokenizer = loader.from_pretrained(model, revision=revision)
        except (OSError, ValueError, ImportError) as error:
            raise SDRRLError(f"Cannot load the translation model {model!r}: {error}") from error
        if config.model_type == "m2m_100" and self._knows("eng_Latn"):
            self.family = "nllb"
        elif config.model_type == "m2m_100" and self._knows("__en__"):
            self.family = "m2m100"
        elif config.model_type in _T5 and self._knows("<2en>"):
            self.family = "madlad"
        elif config.model_type == "marian":
            self.family = "marian"
        else:
            raise SDRRLError(
                f"{self.name} ({config.model_type}) is no NLLB, M2M100, MADLAD-400 or OPUS-MT model: it is unknown "
                "how to tell it the languages. Use one of these, or `translator: endpoint` for a prompted model."
            )
        unknown = self.tokenizer("\U0010fffd", add_special_tokens=False)["input_ids"]
        if self.tokenizer.eos_token_id in unknown:
            raise SDRRLError(
                f"The tokenizer of {self.name} reads unknown characters as the end of the text: translations would "
                "lack what follows them. Put the tokenizer.json of the original model in the place of its own."
            )
        # T5 has relative positions, hence no limit; MADLAD-400 was trained on up to 512
        self.max_tokens = vars(config).get("max_position_embeddings") or 512
        # Models made from NLLB inherit its restriction, whatever their name
        self.licence = licence_of("nllb" if self.family == "nllb" else self.name)

    def _knows(self, token: str) -> bool:
        return self.tokenizer.convert_tokens_to_ids(token) not in (None, self.tokenizer.unk_token_id)

    def token(self, tag: str) -> str | None:
        """Token of a language, `None` for models of one pair of languages."""
        short = {"nb": "no"}.get(tag, tag)
        flores = LANGUAGES[tag].flores
        if self.family == "marian":
            # models with several target languages: `>>por<<`, or with the script, `>>cmn_Hans<<`; old ones `>>pt<<`
            candidates = [f">>{code}<<" for code in (_OPUS.get(tag, flores[:3]), flores, tag, short)]
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
        if self.family == "marian":
            stated = (self.tokenizer.source_lang, self.tokenizer.target_lang)
            if any(map(_is_other, stated, (source, target))):
                raise SDRRLError(
                    f"The translation model {self.name} translates from {stated[0]} to {stated[1]}, not from {source} "
                    f"to {target}: its output would be in the wrong language. Choose the model of this pair."
                )

    def encode(self, texts: list[str], source: str, target: str) -> list[list[int]]:
        """Token ids of what the encoder reads."""
        self.check(source, target)
        if not texts:
            return []
        if self.family in ("nllb", "m2m100"):
            self.tokenizer.src_lang = self.token(source).strip("_")
        prefix = {"madlad": f"{self.token(target)} ", "marian": f"{self.token(target) or ''} ".lstrip()}
        return self.tokenizer([prefix.get(self.family, "") + text for text in texts])["input_ids"]

    def first_token(self, target: str) -> int | None:
        """Token that the decoder is made to begin with, for the families that tell it the language so."""
        in_decoder = self.family in ("nllb", "m2m100")
        return self.tokenizer.convert_tokens_to_ids(self.token(target)) if in_decoder else None

    def limit(self, ids: list[int]) -> int:
        """Longest translation of a text in tokens: one that goes on is an endless repetition."""
        return min(2 * len(ids) + 20, self.max_tokens)


def _is_other(stated: str | None, tag: str) -> bool:
    """Whether what an OPUS-MT model states is a language other than `tag`. It may state nothing, or a group."""
    try:
        return stated is not None and get_language(stated).tag != tag
    except SDRRLError:
        return False


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
        self.codes = LanguageCodes(model, revision)
        self.tokenizer, self.max_tokens = self.codes.tokenizer, self.codes.max_tokens
        try:
            self.model = AutoModelForSeq2SeqLM.from_pretrained(model, revision=revision, dtype=dtype)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise SDRRLError(f"Cannot load the translation model {model!r}: {error}") from error
        self.model.to(own_device()).eval()
        own, config = self.model.generation_config, self.model.config
        self.model.generation_config = GenerationConfig(
            decoder_start_token_id=own.decoder_start_token_id or config.decoder_start_token_id,
            eos_token_id=own.eos_token_id or config.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            bad_words_ids=own.bad_words_ids,  # Marian never generates its padding
            num_beams=num_beams,
        )

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "seq2seq",
            "model": self.name,
            "family": self.codes.family,
            "commit": vars(self.model.config).get("_commit_hash"),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "num_beams": self.num_beams,
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
        results = [""] * len(texts)
        short = [i for i, ids in enumerate(encoded) if len(ids) <= self.max_tokens]
        batch: list[int] = []
        # By content as well as by length: the same texts in another order make the same batches
        for i in sorted(short, key=lambda i: (len(encoded[i]), encoded[i])):
            if batch and (len(batch) + 1) * len(encoded[i]) > self.batch_tokens:
                self._translate(batch, encoded, target, results)
                batch = []
            batch.append(i)
        if batch:
            self._translate(batch, encoded, target, results)
        return results

    def _translate(self, batch: list[int], encoded: list[list[int]], target: str, results: list[str]) -> None:
        limits = [self.codes.limit(encoded[i]) for i in batch]
        try:
            output = self._generate([encoded[i] for i in batch], max(limits), target)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            output = None  # inside `except`, the error keeps what the failed attempt has allocated
        if output is None:
            torch.accelerator.empty_cache()
            self._translate(batch[: len(batch) // 2], encoded, target, results)
            self._translate(batch[len(batch) // 2 :], encoded, target, results)
            return
        end = self.model.generation_config.eos_token_id
        for i, limit, ids in zip(batch, limits, output, strict=True):
            if end in ids[:limit]:
                results[i] = self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    @torch.inference_mode()
    def _generate(self, rows: list[list[int]], limit: int, target: str) -> list[list[int]]:
        inputs = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.model.device)
        first = self.codes.first_token(target)
        return self.model.generate(**inputs, max_new_tokens=limit, forced_bos_token_id=first)[:, 1:].tolist()
