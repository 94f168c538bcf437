import textwrap
from collections import defaultdict
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from trl import SFTTrainer, pack_dataset
from trl.data_utils import get_dataset_column_names

from sdrrl_trl.trainer.data_collator import DataCollatorForSDRRL
from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig
from sdrrl_trl.utils import SDRRLError


GROUP_COLUMNS = ("kind", "question_language", "answer_language")


class SDRRLTrainer(SFTTrainer):
    """
    Trainer for self-distillation from resource-rich languages (SDRRL, https://huggingface.co/papers/2402.12204).

    It trains as [`~trl.SFTTrainer`] does, with the same arguments in the same order. If the training data has the
    columns `kind`, `question_language` and `answer_language` of a transfer set, it also logs, exactly and under
    packing too, the mean loss per token of each kind (`nll/<kind>`) and of each answer language (`nll/<language>`).

    Example:

    ```python
    from datasets import load_dataset
    from sdrrl_trl import SDRRLConfig, SDRRLTrainer

    trainer = SDRRLTrainer(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        args=SDRRLConfig(packing=True),
        train_dataset=load_dataset("transfer_set", split="train"),
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "sdrrl"]
    _name = "SDRRL"
    _paper = {
        "title": (
            "Enhancing Multilingual Capabilities of Large Language Models through Self-Distillation from "
            "Resource-Rich Languages"
        ),
        "id": "2402.12204",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{zhang2024sdrrl,
                title     = {{Enhancing Multilingual Capabilities of Large Language Models through Self-Distillation
                             from Resource-Rich Languages}},
                author    = {Zhang, Yuanchi and Wang, Yile and Liu, Zijun and Wang, Shuo and Wang, Xiaolong
                             and Li, Peng and Sun, Maosong and Liu, Yang},
                booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational Linguistics},
                year      = 2024,
                eprint    = {arXiv:2402.12204},
            }"""),
    }

    def __init__(self, model, args=None, data_collator=None, train_dataset=None, *pos_args, **kwargs):
        if args is None:
            args = SDRRLConfig(output_dir="sdrrl_output")
        if not isinstance(args, SDRRLConfig):
            raise SDRRLError(
                f"`args` must be an `SDRRLConfig`, got `{type(args).__name__}`. It takes the same parameters."
            )
        if data_collator is not None:
            raise SDRRLError(
                "SDRRLTrainer needs its own collator, which carries the rows' provenance. Leave `data_collator` out."
            )
        if isinstance(train_dataset, IterableDataset):
            raise SDRRLError(
                "SDRRLTrainer does not support streaming data sets. Load the data with `streaming=False`."
            )
        self._groups = _group_table(train_dataset)
        self._group_sums: dict[str, torch.Tensor] = {}
        super().__init__(model, args, None, train_dataset, *pos_args, **kwargs)
        # SFTTrainer refuses a custom collator with packing, so extend the one it has built
        self.data_collator = DataCollatorForSDRRL(**vars(self.data_collator))

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if "group_ids" in get_dataset_column_names(dataset):  # `evaluate` on a dict prepares its data sets twice
            return dataset
        # The parent keeps only `input_ids` and `labels` when it packs: pack here, with one more per-token column
        dataset = super()._prepare_dataset(dataset, processing_class, args, False, formatting_func, dataset_name)
        ids = {group: index for index, group in enumerate(self._groups)}

        def add_group_ids(row: dict[str, Any]) -> dict[str, Any]:
            group = tuple(row.get(column) for column in GROUP_COLUMNS)
            if group not in ids:
                raise SDRRLError(
                    f"The {dataset_name} data set has rows of (kind, question language, answer language) {group}, "
                    "which the training data has not. Add such a row there, or remove these."
                )
            return {"group_ids": [ids[group]] * len(row["input_ids"])}

        other = [name for name in get_dataset_column_names(dataset) if name not in ("input_ids", "labels")]
        dataset = dataset.map(add_group_ids, remove_columns=other)
        if not packing:
            return dataset
        dataset = pack_dataset(dataset, args.max_length, args.packing_strategy)
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset  # again, as the parent does

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "group_ids" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "group_ids"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        group_ids = inputs.pop("group_ids")[:, 1:]
        seen = {}

        def recording_model(**model_inputs):  # the parent only calls the model: keep its per-token outputs
            seen["outputs"] = model(**model_inputs)
            return seen["outputs"]

        loss = super().compute_loss(recording_model, inputs, return_outputs, num_items_in_batch)
        mask, nll = seen["outputs"].label_mask, -seen["outputs"].log_probs
        values = torch.stack([nll, mask.to(nll)], dim=-1).detach()[mask].float()
        sums = torch.zeros(len(self._groups), 2, device=nll.device).index_add_(0, group_ids[mask], values)
        # `reduce`, not `gather_for_metrics`, which cuts the gathered tensor on the last batch
        sums = self.accelerator.reduce(sums, reduction="sum").cpu()
        self._group_sums[mode] = self._group_sums.get(mode, 0) + sums
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        sums = self._group_sums.pop(mode, None)
        if sums is not None and self._groups != [(None, None, None)]:
            totals = defaultdict(lambda: torch.zeros(2))
            for (kind, _, answer_language), group_sum in zip(self._groups, sums, strict=True):
                totals[kind] += group_sum
                totals[answer_language] += group_sum
            for name, (nll, count) in totals.items():
                if count > 0:
                    self._metrics[mode][f"nll/{name}"].append((nll / count).item())
        super().log(logs, start_time)


def _group_table(dataset: Dataset) -> list[tuple[str | None, ...]]:
    """All (kind, question language, answer language) of a data set, the same on every rank."""
    if not isinstance(dataset, Dataset) or not set(GROUP_COLUMNS) <= set(dataset.column_names):
        return [(None, None, None)]
    return sorted(set(zip(*(dataset[column] for column in GROUP_COLUMNS), strict=True)))
