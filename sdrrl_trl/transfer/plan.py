"""What a build needs, read and checked before any model is loaded, and the dry run that shows it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdrrl_trl.engines import Generator, Translator
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.stages import check_options, clear_stage
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL, TransferConfig
from sdrrl_trl.transfer.generate import MAX_CHARACTERS
from sdrrl_trl.transfer.items import Item
from sdrrl_trl.transfer.lexicon import read_lexicon
from sdrrl_trl.transfer.mix import check_quotas, forms_of, quotas
from sdrrl_trl.transfer.parallel import read_parallel
from sdrrl_trl.transfer.publish import is_non_commercial, load_manifest
from sdrrl_trl.transfer.seeds import Seeds
from sdrrl_trl.transfer.segment import segment
from sdrrl_trl.utils import SDRRLError, check_output_dir, fingerprint, package_version


class Plan:
    """
    The checked inputs of a build: everything that can be wrong is found out here, before any model is loaded.

    Args:
        config ([`TransferConfig`]):
            What to build.
        generator ([`~sdrrl_trl.engines.Generator`], *optional*):
            Engine given by the caller.
        translator ([`~sdrrl_trl.engines.Translator`], *optional*):
            Engine given by the caller.

    Raises:
        `SDRRLError`: for bad input, and for an output folder that was made with other options.
    """

    def __init__(
        self, config: TransferConfig, generator: Generator | None = None, translator: Translator | None = None
    ):
        self.config = config
        self._given = {"generate": _described(generator), "translate": _described(translator)}
        self.folder = Path(config.output_dir)
        self.stages = self.folder / "stages"
        self.seeds = Seeds(
            config.seeds, config.seeds_split, config.columns, config.limit, config.seed if config.sample else None
        )
        if config.answer_source != "own" and (id := self.seeds.without_reference()):
            raise SDRRLError(
                f'`answer_source="{config.answer_source}"` needs a reference answer to every question; {id} has none. '
                "Name their column in `columns`, or use the model's own answers."
            )
        self.languages = [config.source_language, *config.target_languages]
        self.lexicons = {}
        if isinstance(config.lexicon, dict):
            self.lexicons = {
                target: read_lexicon(path, config.source_language, target) for target, path in config.lexicon.items()
            }
        digest, self.n_sentences, self.expected = hashlib.sha256(), 0, self._expected_of_seeds()
        for sentence in self.sentences():
            digest.update(json.dumps(sentence.texts).encode())
            self.n_sentences += 1
            self.expected.update(form[:2] for form in forms_of(sentence, config.source_language, ""))
        try:
            check_quotas(self.quotas(), config)
        except SDRRLError as error:
            raise SDRRLError(
                f"{error} There are {len(self.seeds)} questions, of which `test_size` holds out a share of "
                f"{config.test_size}, and {self.n_sentences} parallel sentences. Give more, or change `proportions`, "
                "`size` or `test_size`."
            ) from error
        self._parallel_sha256 = digest.hexdigest()
        needed = 50_000_000 + 20 * self.seeds.characters() * len(self.languages)
        check_output_dir(self.folder, needed)
        names = ("train.parquet", "test.parquet", "rejected.parquet", "README.md", "manifest.json")
        foreign = [name for name in names if (self.folder / name).exists() and not self.stages.exists()]
        if foreign:
            raise SDRRLError(
                f"{self.folder} holds {', '.join(foreign)}, which `sdrrl build` has not written and would replace. "
                "Choose another `output_dir`."
            )
        # The mix follows from the other two stages, so it is done again with each of them
        self.again = {config.overwrite_stage, "mix"} if config.overwrite_stage else set()
        for stage in ("generate", "translate", "mix"):
            if stage not in self.again:
                check_options(self.stages / stage, self.options(stage), stage)

    def sentences(self) -> Iterator[Item]:
        return read_parallel(self.config.parallel or [], self.languages)

    def clear(self) -> None:
        """Deletes the stages that are to be done again."""
        if self.again - {"mix"}:  # a mix that fails leaves the old set
            for name in ("manifest.json", "timings.json", "train.parquet", "test.parquet", "rejected.parquet"):
                (self.folder / name).unlink(missing_ok=True)
        for stage in self.again:
            clear_stage(self.stages / stage, stage)

    def options(self, stage: str) -> dict[str, Any]:
        """Options and inputs that the results of a stage depend on."""
        names = {
            "generate": "source_language answer_source generator model_name_or_path model_revision dtype "
            "system_prompt max_new_tokens temperature top_p num_samples generation_batch_size",
            "translate": "translator translator_model",
            "mix": "target_languages back_translation_chrf code_switch_rate code_switch_side code_switch_direction "
            "proportions language_temperature size test_size seed licences",
        }[stage].split()
        options = {name: getattr(self.config, name) for name in names}
        if self._given.get(stage) is not None:
            options |= {"engine": self._given[stage]}
        if stage == "generate":
            options |= {"seeds_sha256": self.seeds.sha256}
            if self.config.answer_source != "reference" and self.config.generator != "endpoint":
                options |= {"model": fingerprint(self.config.model_name_or_path)}
        if stage == "translate":
            options |= {"translator_version": package_version(self.config.translator)}
            if self.config.translator == "self":
                options |= {"translating_model": self.options("generate")}
            if self.config.translator_model and self.config.translator != "endpoint":
                options |= {"translator_weights": fingerprint(self.config.translator_model)}
        if stage == "mix":
            lexicons = {
                target: hashlib.sha256(json.dumps(x).encode()).hexdigest() for target, x in self.lexicons.items()
            }
            options |= {"parallel_sha256": self._parallel_sha256, "lexicons": lexicons or self.config.lexicon}
        return options

    def licences(self, translator: dict[str, Any] | None = None) -> dict[str, str]:
        """Licence of each input, as far as it is known."""
        used = {"seeds": True, "model": self.config.answer_source != "reference"}
        used |= {"parallel": self.config.parallel is not None, "lexicon": self.config.lexicon is not None}
        given = self.config.licences or {}
        found = {name: given.get(name, "not stated") for name, is_used in used.items() if is_used}
        if self.config.lexicon == "translator":
            found.pop("lexicon")
        if "translator" in given:
            found["translator"] = given["translator"]
        elif translator is not None:
            found["translator"] = translator.get("licence", "not stated")
        elif self.config.translator in ("seq2seq", "ctranslate2"):
            from sdrrl_trl.engines.seq2seq import licence_of

            found["translator"] = licence_of(self.config.translator_model or DEFAULT_TRANSLATOR_MODEL)
        return dict(sorted(found.items()))

    def is_done(self) -> bool:
        """Whether the set is complete; its files are checked against their hashes."""
        if self.again or not (self.folder / "manifest.json").exists():
            return False
        load_manifest(self.folder)
        return True

    def _expected_of_seeds(self) -> Counter[tuple[str, str]]:
        """Training records by kind and language that the seeds would give if nothing were rejected."""
        config, n = self.config, self.seeds.count(MAX_CHARACTERS)
        held_out = max(1, round(n * config.test_size)) if config.test_size else 0
        item = Item("", ("",), "", None, {target: ["", ""] for target in config.target_languages})
        switched = self.lexicons or (config.target_languages if config.lexicon else [])
        item.switched = {target: ["", ""] for target in switched}
        cells: Counter[tuple[str, str]] = Counter()
        for kind, language, _ in forms_of(item, config.source_language, config.code_switch_side):
            cells[kind, language] += n - held_out
        return +cells

    def quotas(self) -> dict[tuple[str, str], int]:
        """Training records that would be made if nothing were rejected."""
        config = self.config
        return quotas(self.expected, config.proportions, config.language_temperature, config.size)

    def preview(self) -> str:
        """What would be made, if nothing were rejected."""
        config, seeds = self.config, self.seeds
        n, chosen = seeds.count(MAX_CHARACTERS), self.quotas()
        tokens = 0 if config.answer_source == "reference" else n * config.num_samples * config.max_new_tokens
        terminators = LANGUAGES[config.source_language].terminators
        segments = {
            hash(part.masked)
            for batch in seeds.batches(1000, MAX_CHARACTERS)
            for seed in batch
            for turn in seed.turns
            for part in segment(turn, terminators)
            if part.translate
        }
        lines = [f"{n:,} questions, {self.n_sentences:,} parallel sentences"]
        lines += ["training records, if nothing is rejected:"]
        lines += [f"  {kind:<20}{language:<6}{quota:>12,}" for (kind, language), quota in sorted(chosen.items())]
        lines += [f"  {'all':<26}{sum(chosen.values()):>12,}", f"generate: at most {tokens:,} tokens"]
        if config.tokens_per_second:
            hours = tokens / config.tokens_per_second / 3600
            lines.append(f"  at {config.tokens_per_second:,.0f} tokens/s: at most {hours:,.2f} h")
        if config.price_per_million_tokens is not None:
            price = tokens / 1e6 * config.price_per_million_tokens
            lines.append(f"  at {config.price_per_million_tokens} per million tokens: at most {price:,.2f}")
        lines.append(
            f"translate: {len(segments):,} distinct segments of the questions, and those of the answers, into "
            f"{', '.join(config.target_languages)}"
        )
        for name, licence in self.licences().items():
            lines.append(f"licence of {name}: {licence}{' (non-commercial)' if is_non_commercial(licence) else ''}")
        return "\n".join(lines)


def _described(engine: Generator | Translator | None) -> dict[str, Any] | None:
    """What an engine given by the caller says of itself, checked now, for it ends up in the manifest."""
    if engine is None:
        return None
    description = engine.describe()
    try:
        json.dumps(description)
        if not isinstance(description["engine"], str) or not isinstance(description.get("licence", ""), str):
            raise TypeError("`engine` and `licence` must be text")
    except (TypeError, ValueError, KeyError) as error:
        raise SDRRLError(
            f"`describe()` of {type(engine).__name__} must return a JSON object with `engine` and, for translators, "
            f"`licence`; it returns {description!r:.200} ({type(error).__name__}: {error})."
        ) from error
    return description
