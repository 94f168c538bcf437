"""The table of (kind, question language, answer language), of which each token carries an index."""

from typing import Any

from datasets import Dataset, IterableDataset
from trl.data_utils import get_dataset_column_names

from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig
from sdrrl_trl.utils import SDRRLError


Group = tuple[str | None, str | None, str | None]
GROUP_COLUMNS = ("kind", "question_language", "answer_language")
NO_GROUP: Group = (None, None, None)  # of data without the columns beside data that have them


def group_table(args: SDRRLConfig, train_dataset: Any, eval_dataset: Any) -> list[Group]:
    """
    All groups of the data, in sorted order, none if no data set has the columns. The same on every rank, so that sums
    over groups can be reduced.

    Raises:
        `SDRRLError`: for provenance columns of a wrong type or with missing values, and for streaming data with them
            but without `args.groups`.
    """
    groups: set[Group] = set()
    evaluation = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    for dataset in (train_dataset, *evaluation):
        if dataset is None:
            continue
        missing = set(GROUP_COLUMNS) - set(get_dataset_column_names(dataset))
        if len(missing) == len(GROUP_COLUMNS):
            groups.add(NO_GROUP)
            continue
        if missing:
            raise SDRRLError(
                f"The data have some of the columns {', '.join(GROUP_COLUMNS)}, but not {', '.join(sorted(missing))}: "
                "kinds and languages could not be told. Add what is missing, or remove the others."
            )
        if isinstance(dataset, IterableDataset):
            if not args.groups:
                raise SDRRLError(
                    "The kinds and languages of streaming data cannot be looked up before training. Declare them in "
                    '`groups`, such as [["source", "en", "en"], ["target", "pt", "pt"]], or load the data without '
                    "streaming."
                )
            groups |= {tuple(group) for group in args.groups}
        else:
            groups |= _groups_of(dataset)
    # Both are keys of the same figures
    both = sorted({kind for kind, *_ in groups if kind} & {answer for *_, answer in groups if answer})
    if both:
        raise SDRRLError(
            f"{', '.join(map(repr, both))} names a kind and a language: `nll/<name>` would mix them. Rename the kind."
        )
    return sorted(groups, key=str) if groups - {NO_GROUP} else []


def check_can_carry_groups(args: SDRRLConfig, data_collator: Any) -> None:
    """
    Raises:
        `SDRRLError`: for options that lose the kind and language of a token on its way into the batch.
    """
    if data_collator is not None:
        raise SDRRLError("SDRRLTrainer makes its own collator, which carries the rows' provenance. Leave it out.")
    if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
        raise SDRRLError(
            "`skip_prepare_dataset` would skip the step that notes each token's kind and language. Leave it out: data "
            "with `input_ids` and `labels` are taken as they are."
        )
    if args.packing and args.packing_strategy != "bfd":
        raise SDRRLError(
            f"With kinds and languages, `packing_strategy` must be 'bfd', got {args.packing_strategy!r}: the others "
            "cut rows in pieces, whose second halves no longer answer their question. Set it, or remove the columns."
        )


def _groups_of(dataset: Dataset) -> set[Group]:
    columns = [list(dataset[name]) for name in GROUP_COLUMNS]
    for name, values in zip(GROUP_COLUMNS, columns, strict=True):
        missing = sum(not isinstance(value, str) for value in values)
        if missing:  # they would count for no kind or language, and the shares would not add up
            raise SDRRLError(f"{missing} of {len(values)} rows have no text in `{name}`. Fill it in, or remove it.")
    return set(zip(*columns, strict=True))


def nothing_supervised(dataset_name: str, max_length: int | None) -> SDRRLError:
    return SDRRLError(
        f"The {dataset_name} data set has rows without a supervised token within `max_length` ({max_length}): they "
        "would train nothing. Their question alone may be too long. Raise `max_length`, or remove such rows."
    )


def add_provenance(
    dataset: Any, dataset_name: str, groups: list[Group], tokenizer: Any, max_length: int | None, **map_kwargs: Any
) -> Any:
    """
    Replaces all columns but `input_ids` and `labels` by two per-token ones, see [`DataCollatorForSDRRL`].

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows with `input_ids` and `labels`.
        dataset_name (`str`):
            Name for errors.
        groups (`list[tuple]`):
            Table that the group ids index.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the supervised text, whose bytes are counted.
        max_length (`int`, *optional*):
            What is behind this many tokens will be cut off, hence not counted.

    Raises:
        `SDRRLError`: for rows of an unknown group, or without a supervised token.
    """
    ids = {group: index for index, group in enumerate(groups)}
    has_groups = set(GROUP_COLUMNS) <= set(get_dataset_column_names(dataset))

    def add(rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        texts, ends = [], []
        for labels in rows["labels"]:
            supervised = [i for i, label in enumerate(labels[:max_length]) if label != -100 and i > 0]
            if not supervised and has_groups:  # TRL drops such rows without a word
                raise nothing_supervised(dataset_name, max_length)
            texts.append([labels[i] for i in supervised])
            ends.append(supervised[-1] if supervised else 0)
        lengths = [len(text.encode()) for text in tokenizer.batch_decode(texts, skip_special_tokens=True)]
        found = [NO_GROUP] * len(texts)
        if has_groups:
            found = list(zip(*(rows[column] for column in GROUP_COLUMNS), strict=True))
        for group in found:
            if group not in ids:
                raise SDRRLError(
                    f"The {dataset_name} data set has rows of (kind, question language, answer language) {group}, "
                    "which neither the training nor the evaluation data given to the trainer have. Give it as "
                    "`eval_dataset`, declare it in `groups`, or remove these rows."
                )
        sizes = [len(row) for row in rows["input_ids"]]
        return {
            "group_ids": [[ids[group]] * n for group, n in zip(found, sizes, strict=True)],
            # At one token of the row, so that sums over any part of a batch count each row once
            "label_bytes": [
                [length if i == end else 0 for i in range(n)]
                for length, end, n in zip(lengths, ends, sizes, strict=True)
            ],
        }

    kept = ("input_ids", "labels", "seq_lengths")
    others = [name for name in get_dataset_column_names(dataset) if name not in kept]
    return dataset.map(add, batched=True, remove_columns=others, **map_kwargs)
