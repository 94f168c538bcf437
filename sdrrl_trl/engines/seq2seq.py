"""Translation models of the NLLB, M2M100, MADLAD-400 and OPUS-MT families."""

import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from sdrrl_trl.engines.transformers import in_batches, loading, own_device, shard_bar, weights_of
from sdrrl_trl.languages import LANGUAGES, get_language
from sdrrl_trl.utils import SDRRLError


_LICENCES = {"nllb": "CC-BY-NC-4.0", "madlad": "Apache-2.0", "m2m": "MIT"}
_LICENCES["opus-mt"] = "see the model's card (CC-BY-4.0 or Apache-2.0)"
# Of the source, with padding. Halved when memory runs out
BATCH_TOKENS = 8192
_T5 = ("t5", "umt5")
# OPUS-MT's codes that are not the first half of FLORES's
_OPUS = {"ar": "ara", "zh": "cmn_Hans"}


def licence_of(model: str) -> str:
    """Licence of the weights of a model, by its name."""
    return next((licence for name, licence in _LICENCES.items() if name in model.lower()), "not stated")


class TranslationModel:
    """
    What the engines of translation models share: the tokenizer, how each family is told the languages, and the rule
    that a text is translated whole or not at all. A subclass has `_generate`.

    Args:
        files (`str`):
            Local path or hub id of the original model, whose weights are not read.
        name (`str`):
            Name of the model, for errors and its licence.

    Raises:
        `SDRRLError`: if there is no such model, it is of none of the four families, or its tokenizer is damaged.
    """

    def __init__(self, files: str, name: str):
        self.name = name
        with loading("the translation model", name):
            config = AutoConfig.from_pretrained(files, trust_remote_code=False)
            # As a `T5Tokenizer`, transformers 5 does not read the tokenizer of MADLAD-400 as it is: it takes token 2
            # for unknown characters, which here is the end of the text, and drops the fallback to bytes
            loader = PreTrainedTokenizerFast if config.model_type in _T5 else AutoTokenizer
            self.tokenizer = loader.from_pretrained(files, trust_remote_code=False)
        self.family = self._find_family(config.model_type)
        unknown = self.tokenizer("\U0010fffd", add_special_tokens=False)["input_ids"]
        if self.tokenizer.eos_token_id in unknown:
            raise SDRRLError(
                f"The tokenizer of {name} reads unknown characters as the end of the text: translations would "
                "lack what follows them. Put the tokenizer.json of the original model in the place of its own."
            )
        # T5 has relative positions, hence no limit; MADLAD-400 was trained on up to 512
        self.max_tokens = vars(config).get("max_position_embeddings") or 512
        # Models made from NLLB inherit its restriction, whatever their name
        self.licence = licence_of("nllb" if self.family == "nllb" else name)

    def _find_family(self, model_type: str) -> str:
        if model_type == "m2m_100" and self._knows("eng_Latn"):
            return "nllb"
        if model_type == "m2m_100" and self._knows("__en__"):
            return "m2m100"
        if model_type in _T5 and self._knows("<2en>"):
            return "madlad"
        if model_type == "marian":
            return "marian"
        raise SDRRLError(
            f"{self.name} ({model_type}) is no NLLB, M2M100, MADLAD-400 or OPUS-MT model: it is unknown how to tell "
            "it the languages. Use one of these, or as `translator` the address of a server with a prompted model."
        )

    def _knows(self, token: str) -> bool:
        return self.tokenizer.convert_tokens_to_ids(token) not in (None, self.tokenizer.unk_token_id)

    def language_token(self, tag: str) -> str | None:
        """
        Token of a language, `None` for models of one pair of languages.

        Raises:
            `SDRRLError`: if the model has none.
        """
        short, flores = {"nb": "no"}.get(tag, tag), LANGUAGES[tag].flores
        one_pair = False
        if self.family == "marian":
            # models with several target languages: `>>por<<`, or with the script, `>>cmn_Hans<<`; old ones `>>pt<<`
            candidates = [f">>{code}<<" for code in (_OPUS.get(tag, flores[:3]), flores, tag, short)]
            one_pair = not any(re.fullmatch(">>.+<<", token) for token in self.tokenizer.get_vocab())
        else:
            candidates = [{"nllb": flores, "m2m100": f"__{short}__", "madlad": f"<2{short}>"}[self.family]]
        token = next((candidate for candidate in candidates if self._knows(candidate)), None)
        if token is None and not one_pair:
            raise SDRRLError(f"The translation model {self.name} does not know {LANGUAGES[tag].name}. Choose another.")
        return token

    def describe(self) -> dict[str, Any]:
        return {"model": self.name, "family": self.family, "licence": self.licence}

    def check(self, source: str, target: str) -> None:
        """
        Raises:
            `SDRRLError`: if the model does not know one of the two languages.
        """
        if self.family in ("nllb", "m2m100"):
            self.language_token(source)
        self.language_token(target)
        if self.family == "marian":
            stated = (self.tokenizer.source_lang, self.tokenizer.target_lang)
            if any(map(_is_other, stated, (source, target))):
                raise SDRRLError(
                    f"The translation model {self.name} translates from {stated[0]} to {stated[1]}, not from {source} "
                    f"to {target}: its output would be in the wrong language. Choose the model of this pair."
                )

    def encode(self, texts: list[str], source: str, target: str) -> list[list[int]]:
        """Token ids of what the encoder reads."""
        if self.family in ("nllb", "m2m100"):
            self.tokenizer.src_lang = self.language_token(source).strip("_")
            prefix = ""
        else:
            token = self.language_token(target)
            prefix = "" if token is None else f"{token} "
        return self.tokenizer([prefix + text for text in texts])["input_ids"] if texts else []

    def first_token(self, target: str) -> int | None:
        """Token that the decoder is made to begin with, for the families that tell it the language so."""
        in_decoder = self.family in ("nllb", "m2m100")
        return self.tokenizer.convert_tokens_to_ids(self.language_token(target)) if in_decoder else None

    def limit(self, ids: list[int]) -> int:
        """Longest translation of a text in tokens: one that goes on is an endless repetition."""
        return min(2 * len(ids) + 20, self.max_tokens)

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """
        One translation for each text. `""`, instead of a piece, for a text longer than the model can read, and for a
        translation that does not end within twice the length of the text.
        """
        self.check(source, target)
        encoded = self.encode(texts, source, target)
        short = [i for i, ids in enumerate(encoded) if len(ids) <= self.max_tokens]
        results = [""] * len(texts)
        for i, ids in zip(short, self._generate([encoded[i] for i in short], target), strict=True):
            if self.tokenizer.eos_token_id in ids[: self.limit(encoded[i])]:
                # French has spaces before its marks, which a tokenizer would clean up
                text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                results[i] = text.strip()
        return results


def _is_other(stated: str | None, tag: str) -> bool:
    """Whether what an OPUS-MT model states is a language other than `tag`. It may state nothing, or a group."""
    try:
        return stated is not None and get_language(stated).tag != tag
    except SDRRLError:
        return False


class Seq2SeqTranslator(TranslationModel):
    """
    Translation through `transformers`.

    Args:
        model (`str`):
            Local path or hub id.

    Raises:
        `SDRRLError`: if the model cannot be loaded or is of no known family.
    """

    def __init__(self, model: str):
        disable_progress_bar()
        super().__init__(model, model)
        with loading("the translation model", model):
            self.model = AutoModelForSeq2SeqLM.from_pretrained(model, dtype="auto", trust_remote_code=False)
        self.model.to(own_device()).eval()
        own, config = self.model.generation_config, self.model.config
        # Greedy, whatever the model recommends: four beams take four times as long
        self.model.generation_config = GenerationConfig(
            decoder_start_token_id=own.decoder_start_token_id or config.decoder_start_token_id,
            eos_token_id=own.eos_token_id or config.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            bad_words_ids=own.bad_words_ids,  # Marian never generates its padding
        )

    def describe(self) -> dict[str, Any]:
        return {"engine": "seq2seq", **super().describe(), **weights_of(self.model)}

    def _generate(self, rows: list[list[int]], target: str) -> list[list[int]]:
        with shard_bar(len(rows), f"translate_{target}") as bar:

            def generate(batch: list[int]) -> list[list[int]]:
                found = self._generate_batch([rows[i] for i in batch], target)
                bar.update(len(batch))
                return found

            return in_batches(generate, rows, BATCH_TOKENS)

    @torch.inference_mode()
    def _generate_batch(self, rows: list[list[int]], target: str) -> list[list[int]]:
        inputs = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.model.device)
        options = {"max_new_tokens": max(map(self.limit, rows)), "forced_bos_token_id": self.first_token(target)}
        return self.model.generate(**inputs, **options)[:, 1:].tolist()
