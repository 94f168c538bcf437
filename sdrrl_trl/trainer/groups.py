"""The table of (kind, question language, answer language), of which each token carries an index."""

from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset, Value
from trl.data_utils import get_dataset_column_names

from sdrrl_trl.utils import SDRRLError


if TYPE_CHECKING:
    from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig

Group = tuple[str | None, str | None, str | None]
GROUP_COLUMNS = ("kind", "question_language", "answer_language")
NO_GROUPS: list[Group] = [(None, None, None)]


def group_table(args: "SDRRLConfig", train_dataset: Any, eval_dataset: Any) -> list[Group]:
    """
    All groups of the data, in sorted order. The same on every rank, so that sums over groups can be reduced.

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
            groups.add(NO_GROUPS[0])
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
    both = sorted({kind for kind, *_ in groups if kind} & {answer for *_, answer in groups if answer})
    if both:
        raise SDRRLError(
            f"{', '.join(map(repr, both))} names a kind and a language: their figures (`nll/<name>`) would be "
            "mixed up. Rename the kind."
        )
    return sorted(groups, key=str) or NO_GROUPS


def _groups_of(dataset: Dataset) -> set[Group]:
    for column in GROUP_COLUMNS:
        feature = dataset.features[column]
        if not isinstance(feature, Value) or feature.dtype not in ("string", "large_string"):
            raise SDRRLError(f"The column `{column}` must hold strings, it holds {feature}. Convert or remove it.")
        missing = sum(value is None for value in dataset[column])
        if missing:
            raise SDRRLError(
                f"{missing} of {len(dataset)} rows have no `{column}`: they would count for no kind or "
                "language. Fill it in everywhere, or remove the column."
            )
    return set(zip(*(dataset[column] for column in GROUP_COLUMNS), strict=True))


def group_weights(groups: list[Group], args: "SDRRLConfig") -> torch.Tensor | None:
    """
    Weight of each group's tokens, `None` if none is asked for.

    Only the ratios matter, for the loss is a weighted mean. They are scaled so that the smallest above 0 is 1.

    Raises:
        `SDRRLError`: for weights of a kind or language that the data have not, and for weights that are all 0.
    """
    if not args.kind_weights and not args.language_weights:
        return None
    kinds, languages = args.kind_weights or {}, args.language_weights or {}
    for name, weights, known in (
        ("kind_weights", kinds, {group[0] for group in groups}),
        ("language_weights", languages, {group[2] for group in groups}),
    ):
        unknown = sorted(set(weights) - known)
        if unknown:
            found = ", ".join(sorted(name for name in known if name)) or "none: the columns are missing"
            raise SDRRLError(
                f"`{name}` names {', '.join(map(repr, unknown))}, of which the data have no row: it would "
                f"change nothing. The data have: {found}."
            )
    values = torch.tensor([float(kinds.get(kind, 1)) * float(languages.get(answer, 1)) for kind, _, answer in groups])
    if not values.isfinite().all():
        raise SDRRLError(
            "The product of the weights of some rows is infinite. Only their ratios matter: use smaller numbers."
        )
    if not values.any():
        raise SDRRLError("The weights of all rows are 0: nothing would be trained. Set at least one above 0.")
    return values / values[values > 0].min()


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
            if not supervised and has_groups:
                raise nothing_supervised(dataset_name, max_length)
            texts.append([labels[i] for i in supervised])
            ends.append(supervised[-1] if supervised else 0)
        lengths = [len(text.encode()) for text in tokenizer.batch_decode(texts, skip_special_tokens=True)]
        if not has_groups:
            found = NO_GROUPS * len(texts)
        else:
            found = list(zip(*(rows.get(column, [None] * len(texts)) for column in GROUP_COLUMNS), strict=True))
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
            "label_bytes": [
                [length if i == end else 0 for i in range(n)]
                for length, end, n in zip(lengths, ends, sizes, strict=True)
            ],
        }

    kept = ("input_ids", "labels", "seq_lengths")
    others = [name for name in get_dataset_column_names(dataset) if name not in kept]
    return dataset.map(add, batched=True, remove_columns=others, **map_kwargs)
