"""Kinds and languages of the rows: their table, their index at each token, and their way into the batch."""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from trl.data_utils import get_dataset_column_names
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad

from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig
from sdrrl_trl.utils import SDRRLError


logger = logging.getLogger(__name__)
Group = tuple[str | None, str | None, str | None]
GROUP_COLUMNS = ("kind", "question_language", "answer_language")
NO_GROUP: Group = (None, None, None)  # of data without the columns beside data that have them
PROVENANCE_KEYS = ("group_ids", "label_bytes", "row_ids")


@dataclass
class DataCollatorForSDRRL(DataCollatorForLanguageModeling):
    """
    Data collator of [`SDRRLTrainer`]: that of [`~trl.SFTTrainer`] with three more keys of the shape of `input_ids`.

    `group_ids` holds, for each token, the index of its row's (kind, question language, answer language) in the
    trainer's table. `label_bytes` holds the length of the row's supervised text in UTF-8 bytes at its last supervised
    token, 0 elsewhere. `row_ids` holds the place of its row in the batch, which padding-free batches do not show. All
    are padded with 0, or concatenated when padding-free.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().torch_call(examples)
        sizes = [len(example["input_ids"]) for example in examples]
        rows = {"row_ids": [[index] * n for index, n in enumerate(sizes)]}
        for key in ("group_ids", "label_bytes"):  # data prepared elsewhere, for `predict`, have none
            rows[key] = [example.get(key, [0] * n) for example, n in zip(examples, sizes, strict=True)]
        for key in PROVENANCE_KEYS:
            values = [torch.tensor(row) for row in rows[key]]
            if self.padding_free:
                values = [torch.cat(values)]
            output[key] = pad(values, 0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
        return output


def group_table(train_dataset: Any, eval_dataset: Any) -> list[Group]:
    """
    All groups of the data, in sorted order, none if no data set has the columns. The same on every rank, so that sums
    over groups can be reduced.

    Raises:
        `SDRRLError`: for provenance columns of a wrong type, or with missing values.
    """
    evaluation = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    datasets = [dataset for dataset in (train_dataset, *evaluation) if dataset is not None]
    groups = set().union(*map(_groups_of, datasets))
    if {kind for kind, *_ in groups if kind} & {answer for *_, answer in groups}:  # both are keys of the same figures
        raise SDRRLError("A kind has the name of a language: `nll/<name>` would mix them. Rename the kind.")
    return sorted(groups, key=str) if groups - {NO_GROUP} else []


def has_groups(dataset: Any) -> bool:
    """Whether a data set has the columns, and can be looked through for them before training, unlike a stream."""
    return isinstance(dataset, Dataset) and not set(GROUP_COLUMNS).isdisjoint(dataset.column_names)


def _groups_of(dataset: Any) -> set[Group]:
    if not has_groups(dataset):
        return {NO_GROUP}
    missing = ", ".join(sorted(set(GROUP_COLUMNS) - set(dataset.column_names)))
    if missing:
        raise SDRRLError(f"The data name kinds or languages, but not {missing}. Add it, or remove the other columns.")
    columns = [list(dataset[name]) for name in GROUP_COLUMNS]
    for name, values in zip(GROUP_COLUMNS, columns, strict=True):
        n_missing = sum(not isinstance(value, str) for value in values)
        if n_missing:  # they would count for no kind or language, and the shares would not add up
            raise SDRRLError(f"{n_missing} of {len(values)} rows have no text in `{name}`. Fill it in, or remove it.")
    return set(zip(*columns, strict=True))


def check_anchors(anchor_languages: list[str], answered_in: set[str]) -> None:
    """
    Raises:
        `SDRRLError`: for an anchor language that no record of the training data is answered in, and if all records
            would be anchored.
    """
    for language in anchor_languages:
        if language not in answered_in:
            raise SDRRLError(
                f"`anchor_languages` names {language!r}, but no training record is answered in it: nothing would be "
                f"anchored. Answered in: {', '.join(sorted(answered_in)) or 'not known, the data do not say'}."
            )
    if answered_in <= {*anchor_languages}:
        # Anchored records hold the model where it starts
        raise SDRRLError(
            "`anchor_languages` names all languages that are answered in: nothing would be trained. Leave the target "
            "languages out of it."
        )


def check_can_carry_groups(args: SDRRLConfig, data_collator: Any) -> None:
    """
    Raises:
        `SDRRLError`: for options that lose the kind and language of a token on its way into the batch.
    """
    if data_collator is not None:
        raise SDRRLError("SDRRLTrainer makes its own collator, which carries the rows' provenance. Leave it out.")
    if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
        # Data with `input_ids` and `labels` are taken as they are
        raise SDRRLError("`skip_prepare_dataset` would skip noting each token's kind and language. Leave it out.")
    if args.packing and args.packing_strategy != "bfd":
        # Second halves of rows no longer answer their question
        raise SDRRLError("With kinds and languages `packing_strategy` must be 'bfd': the others cut rows in pieces.")
    if args.packing and args.max_length is None:
        raise SDRRLError("`packing` needs `max_length`, the length of the packed rows. Set it.")


def without_too_long(dataset: Dataset, dataset_name: str, args: SDRRLConfig, **map_kwargs: Any) -> Dataset:
    """
    Leaves out the rows of a data set with the three columns that are longer than `max_length`, and says how many. Cut,
    they would lose the end of their answer, and the model would learn not to stop; or all of it, and train nothing.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `input_ids` and `labels` of any length.
        dataset_name (`str`):
            Name for messages.
        args ([`SDRRLConfig`]):
            With a `max_length`.

    Raises:
        `SDRRLError`: if no row is left.
    """

    limit = args.max_length  # alone: the cache is found again by what the function refers to

    def fits(input_ids: list[int], labels: list[int]) -> bool:
        # A row without any supervised token trains nothing; the parent leaves it out, too
        return len(input_ids) <= limit and any(label != -100 for label in labels)

    kept = dataset.filter(fits, input_columns=["input_ids", "labels"], **map_kwargs)
    if len(kept) == len(dataset):
        return dataset
    before, after = (Counter(rows["answer_language"]) for rows in (dataset, kept))
    lost = ", ".join(f"{n - after[name]} of {n} in {name}" for name, n in sorted(before.items()) if n > after[name])
    message = (
        f"{len(dataset) - len(kept)} of {len(dataset)} rows of the {dataset_name} data set are left out ({lost}): "
        f"they are longer than `max_length` ({limit} tokens), and would lose the end of their answers. Raise it to "
        "use them."
    )
    if not len(kept):
        raise SDRRLError(f"No row is left: {message}")
    if args.process_index == 0:
        logger.warning(message)
    return kept


def add_provenance(dataset: Any, dataset_name: str, groups: list[Group], tokenizer: Any, **map_kwargs: Any) -> Any:
    """
    Replaces all columns but `input_ids` and `labels` by two per-token ones, see [`DataCollatorForSDRRL`]. Of answers
    that were cut off (column `truncated`), the end of turn behind them is not trained.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows with `input_ids` and `labels`, cut to the length that is trained on.
        dataset_name (`str`):
            Name for errors.
        groups (`list[tuple]`):
            Table that the group ids index.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the supervised text, whose bytes are counted.

    Raises:
        `SDRRLError`: for rows of an unknown group.
    """
    ids = {group: index for index, group in enumerate(groups)}
    is_grouped = has_groups(dataset)
    end = _end_of_turn(tokenizer) if "truncated" in get_dataset_column_names(dataset) else []

    def add(row: dict[str, Any]) -> dict[str, list[int]]:
        group = tuple(row[name] for name in GROUP_COLUMNS) if is_grouped else NO_GROUP
        if group not in ids:
            raise SDRRLError(
                f"The {dataset_name} data set has rows of (kind, question language, answer language) {group}, which "
                "neither the training nor the evaluation data given to the trainer have. Give it as `eval_dataset`, "
                "or remove these rows."
            )
        labels = _without(end, row["labels"]) if end and row["truncated"] else row["labels"]
        text = tokenizer.decode([label for label in labels[1:] if label != -100], skip_special_tokens=True)
        # The bytes at one token of the row, so that sums over any part of a batch count each row once
        last = max((i for i, label in enumerate(labels) if label != -100), default=0)
        label_bytes = [len(text.encode()) if i == last else 0 for i in range(len(labels))]
        return {"labels": labels, "group_ids": [ids[group]] * len(labels), "label_bytes": label_bytes}

    kept = ("input_ids", "labels", "seq_lengths")
    others = [name for name in get_dataset_column_names(dataset) if name not in kept]
    return dataset.map(add, remove_columns=others, **map_kwargs)


def _end_of_turn(tokenizer: Any) -> list[int]:
    """The tokens that the chat template puts behind an answer."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "¤"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    answered = text[: text.rindex("¤") + 1]
    # Not what is behind alone: some tokenizers begin a text otherwise than they go on
    whole, start = tokenizer([text, answered], add_special_tokens=False)["input_ids"]
    return whole[len(start) :]


def _without(end: list[int], labels: list[int]) -> list[int]:
    """Labels without those of the end of turn, which a row of a stream may have lost to `max_length`."""
    return [*labels[: -len(end)], *[-100] * len(end)] if labels[-len(end) :] == end else labels
