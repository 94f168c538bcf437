import copy
import math
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, PromptLearningConfig
from trl import SFTTrainer, pack_dataset
from trl.data_utils import get_dataset_column_names

from sdrrl_trl.trainer.checkpoints import last_complete_checkpoint
from sdrrl_trl.trainer.data_collator import PROVENANCE_KEYS, DataCollatorForSDRRL
from sdrrl_trl.trainer.groups import (
    NO_GROUPS,
    add_provenance,
    group_table,
    group_weights,
    nothing_supervised,
)
from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig
from sdrrl_trl.trainer.teacher import prepare_teacher, teacher_states
from sdrrl_trl.utils import SDRRLError


class SDRRLTrainer(SFTTrainer):
    """
    Trainer for self-distillation from resource-rich languages (SDRRL, https://huggingface.co/papers/2402.12204).

    It takes the arguments of [`~trl.SFTTrainer`] in the same order, and trains exactly as it does unless
    [`SDRRLConfig`] asks for more. If the data have the columns `kind`, `question_language` and `answer_language` of a
    transfer set, it logs for each kind and each answer language the mean loss per token (`nll/<name>`), the share of
    the supervised tokens (`share/<name>`) and, with `kl_coef`, the divergence (`kl/<name>`), and for each language the
    bits per UTF-8 byte of the supervised text (`bpb/<language>`), the loss that can be compared across scripts. All
    are sums over the tokens since the last log, exact under packing, accumulation and over processes.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to train, see [`~trl.SFTTrainer`].
        args ([`SDRRLConfig`], *optional*):
            Configuration. If `None`, a default one.
        data_collator ([`DataCollatorForSDRRL`], *optional*):
            Leave it out: the trainer makes the one that fits the configuration.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            A transfer set, or any data set that [`~trl.SFTTrainer`] takes.
        eval_dataset (`Dataset`, `IterableDataset` or `dict` of them, *optional*):
            Data to evaluate on; with a `dict`, each set has its own `eval_<key>_loss`.
        *positional, **kwargs:
            The other arguments of [`~trl.SFTTrainer`].
        ref_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            Frozen initial model for `kl_coef`. Not needed with PEFT, where the adapter is turned off instead (or, if
            the model came with a trained adapter, a copy of that is used), nor if `model` is a path.

    Raises:
        `SDRRLError`: before the first step, if options and data do not fit.

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

    def __init__(
        self,
        model,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        *positional,
        ref_model=None,
        **kwargs,
    ):
        if args is None:
            args = SDRRLConfig(output_dir="sdrrl_output")
        if not isinstance(args, SDRRLConfig):
            raise SDRRLError(
                f"`args` must be an `SDRRLConfig`, got `{type(args).__name__}`. It takes the same parameters."
            )
        if data_collator is not None:
            raise SDRRLError("SDRRLTrainer makes its own collator, which carries the rows' provenance. Leave it out.")
        if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
            raise SDRRLError(
                "`skip_prepare_dataset` would skip the step that notes each token's kind and language. Leave "
                "it out: data with `input_ids` and `labels` are taken as they are."
            )
        if ref_model is model and not isinstance(model, str | None):
            raise SDRRLError("`ref_model` is the model itself: it would change with it. Give its path, or a copy.")
        if ref_model is not None and not args.kl_coef:
            raise SDRRLError("`ref_model` does nothing without `kl_coef`. Set `kl_coef`, or leave it out.")
        self._groups = group_table(args, train_dataset, eval_dataset)
        self._group_weights = group_weights(self._groups, args)
        self._has_own_loss = self._group_weights is not None or args.kl_coef > 0
        self._sums: dict[str, torch.Tensor] = {}
        self._eval_prefix = "eval"
        came_with_adapter = isinstance(model, PeftModel)
        model_path = model if isinstance(model, str) else None

        super().__init__(model, args, None, train_dataset, eval_dataset, *positional, **kwargs)

        self._check_supported()
        # SFTTrainer refuses a custom collator with packing, so extend the one it has built
        self.data_collator = DataCollatorForSDRRL(**vars(self.data_collator))
        self.ref_model, self._teacher_adapter = None, None
        if self.args.kl_coef > 0:
            self.ref_model, self._teacher_adapter = prepare_teacher(self, ref_model, model_path, came_with_adapter)

    def _check_supported(self) -> None:
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise SDRRLError(
                "Context and sequence parallelism split each row over processes, past the kinds and languages of its "
                "tokens. Use data parallelism, FSDP or DeepSpeed ZeRO."
            )
        if self._is_vision_dataset:
            raise SDRRLError("SDRRLTrainer trains on text only, the data set has images. Use `SFTTrainer` for it.")
        adapters = self.model.peft_config.values() if isinstance(self.model, PeftModel) else []
        if any(isinstance(adapter, PromptLearningConfig) for adapter in adapters):
            raise SDRRLError(
                "Prompt-learning adapters put virtual tokens before each row, so that tokens and their kinds "
                "no longer match. Use LoRA."
            )
        if (self.args.kl_coef or self._group_weights is not None) and self.compute_loss_func is not None:
            raise SDRRLError(
                "`compute_loss_func` replaces the loss that weights and `kl_coef` belong to. Leave it out."
            )
        if self._group_weights is not None:
            if parallelism is not None and parallelism.tp_enabled:
                raise SDRRLError("Token weights do not support tensor parallelism. Use FSDP or DeepSpeed ZeRO.")
            # The loss is normalised here for models that do not offer it, too
            self.model_accepts_loss_kwargs = True
        if self.args.kl_coef and self.aux_loss_enabled:
            raise SDRRLError(
                "`kl_coef` does not support mixture-of-experts models with a router loss. Set "
                "`router_aux_loss_coef=0.0` or `kl_coef=0.0`."
            )

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        # `evaluate` on a dict prepares its data sets twice
        if {"input_ids", "group_ids", "label_bytes"} <= set(get_dataset_column_names(dataset)):
            return dataset
        unpacked = copy.copy(args)
        if packing:
            if args.max_length is None:
                raise SDRRLError("`packing` needs `max_length`, the length of the packed rows. Set it.")
            unpacked.max_length = None  # `pack_dataset` cuts, as in the parent
        n_rows = len(dataset) if isinstance(dataset, Dataset) else None
        # The parent keeps only `input_ids` and `labels` when it packs: pack here, with two more per-token columns
        dataset = super()._prepare_dataset(dataset, processing_class, unpacked, False, formatting_func, dataset_name)
        if self._groups != NO_GROUPS and n_rows is not None and len(dataset) < n_rows:  # dropped by the parent
            raise nothing_supervised(dataset_name, args.max_length)
        map_kwargs = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
        dataset = add_provenance(dataset, dataset_name, self._groups, processing_class, args.max_length, **map_kwargs)
        if not packing:
            return dataset
        dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, map_kwargs)
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset  # again, as the parent does

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        missing = {"group_ids", "label_bytes"} - set(self._signature_columns)
        self._signature_columns = [*self._signature_columns, *sorted(missing)]

    def _get_num_items_in_batch(self, batch_samples, device):
        if self._group_weights is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        # The loss is a weighted mean: its divisor is the sum of the weights
        total = sum(
            (self._group_weights[batch["group_ids"][:, 1:].cpu()] * (batch["labels"][:, 1:] != -100).cpu()).sum()
            for batch in batch_samples
        )
        total = torch.as_tensor(total).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        group_ids, label_bytes, row_ids = (inputs.pop(name)[:, 1:] for name in PROVENANCE_KEYS)
        counts = row_ids < self._rows_that_count(mode, row_ids)
        weights = None if self._group_weights is None else self._group_weights.to(group_ids.device)[group_ids]
        seen: dict[str, torch.Tensor] = {}

        def recording_model(**model_inputs):
            # `SFTTrainer.compute_loss` only calls the model: what it gets back has the weights and the divergence in
            # it, so that normalisation, accumulation and scaling stay TRL's
            if "fused_lm_head" not in model_inputs:
                return model(**model_inputs)
            mask = model_inputs["labels"][:, 1:] != -100
            if self.args.kl_coef > 0:
                outputs = self._distill(model, model_inputs, mask, weights)
                seen["nll"], seen["kl"] = outputs.nll, outputs.kl
            else:
                outputs = model(**model_inputs)
                seen["nll"], seen["kl"] = -outputs.log_probs.detach(), torch.zeros_like(outputs.log_probs)
                if weights is not None:
                    outputs.log_probs = outputs.log_probs * weights
            seen["mask"] = outputs.label_mask
            return outputs

        loss = super().compute_loss(recording_model, inputs, return_outputs, num_items_in_batch)
        if self._groups == NO_GROUPS and not self._has_own_loss:
            return loss
        objective = seen["nll"] + self.args.kl_coef * seen["kl"]
        token_weights = seen["mask"] if weights is None else weights * seen["mask"]
        columns = [seen["nll"], seen["kl"], seen["mask"], label_bytes * seen["mask"]]
        columns += [token_weights * objective, token_weights]
        values = torch.stack([(column * counts).float().flatten() for column in columns], dim=-1)
        sums = values.new_zeros(len(self._groups), len(columns)).index_add_(0, group_ids.flatten(), values)
        self._sums[mode] = self._sums[mode] + sums if mode in self._sums else sums
        return loss

    def _rows_that_count(self, mode: str, row_ids: torch.Tensor) -> float:
        """How many rows of this rank's batch are not repetitions that fill up the last batch of an evaluation."""
        state = self.accelerator.gradient_state
        if mode == "train" or not state.end_of_dataloader or state.remainder <= 0:
            return math.inf
        return state.remainder - self.accelerator.process_index * (row_ids.max().item() + 1)

    def _distill(self, model, inputs: dict[str, Any], mask: torch.Tensor, weights: torch.Tensor | None):
        teacher_inputs = {name: value for name, value in inputs.items() if name != "fused_lm_head"}
        with self.accelerator.autocast():
            teacher, head = teacher_states(self.model, self.ref_model, self._teacher_adapter, teacher_inputs)
        options = {
            "teacher": teacher,
            "teacher_head": head,
            "weights": torch.ones(len(teacher), device=teacher.device) if weights is None else weights[mask],
            "kl_coef": self.args.kl_coef,
            "direction": self.args.kl_direction,
            "temperature": self.args.kl_temperature,
            "token_weights": self.args.kl_token_weights,
        }
        return model(**inputs, distillation=options)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        self._eval_prefix = metric_key_prefix
        self._sums.pop("eval", None)  # of a `predict`
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if mode in self._sums:
            # One reduction a log, of the same shape on every rank. Not `gather_for_metrics`, which cuts the last batch
            sums = self.accelerator.reduce(self._sums.pop(mode), reduction="sum").cpu().double()
            prefix = "" if mode == "train" else f"{self._eval_prefix}_"
            logs.update({f"{prefix}{name}": value for name, value in self._group_metrics(sums).items()})
            if mode == "eval" and self._has_own_loss:  # transformers averages over batches, whatever their weights
                logs[f"{prefix}loss"] = (sums[:, 4].sum() / sums[:, 5].sum()).item()
        super().log(logs, start_time)

    def _group_metrics(self, sums: torch.Tensor) -> dict[str, float]:
        kinds, languages = defaultdict(lambda: torch.zeros(4).double()), defaultdict(lambda: torch.zeros(4).double())
        for group, group_sums in zip(self._groups, sums[:, :4], strict=True):
            if group != NO_GROUPS[0]:
                kinds[group[0]] += group_sums
                languages[group[2]] += group_sums
        metrics, total = {}, sums[:, 2].sum()
        for name, (nll, kl, n_tokens, _) in [*kinds.items(), *languages.items()]:
            if n_tokens > 0:
                metrics[f"nll/{name}"] = (nll / n_tokens).item()
                metrics[f"share/{name}"] = (n_tokens / total).item()
                if self.args.kl_coef > 0:
                    metrics[f"kl/{name}"] = (kl / n_tokens).item()
        for language, (nll, _, _, n_bytes) in languages.items():
            if n_bytes > 0:
                metrics[f"bpb/{language}"] = (nll / n_bytes).item() / math.log(2)
        return metrics

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        self._sums.clear()
        if resume_from_checkpoint is True:  # transformers takes the newest, which a kill may have left half-written
            resume_from_checkpoint = last_complete_checkpoint(Path(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise SDRRLError(
                    f"There is no complete checkpoint in {self.args.output_dir}. Leave "
                    "`resume_from_checkpoint` out to start anew."
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_model_card(self, *args, **kwargs):
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir) / "README.md"
        if self.is_world_process_zero() and self._groups != NO_GROUPS:
            lines = ["## Training data", "", "| kind | question | answer |", "| --- | --- | --- |"]
            lines += [f"| {kind} | {question} | {answer} |" for kind, question, answer in self._groups if kind]
            path.write_text(path.read_text(encoding="utf-8") + "\n" + "\n".join(lines) + "\n", encoding="utf-8")
