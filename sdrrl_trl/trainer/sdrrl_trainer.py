import copy
import inspect
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, PromptLearningConfig
from trl import SFTTrainer, pack_dataset
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import global_then_local_main_first

from sdrrl_trl.engines.chat import fix_date
from sdrrl_trl.trainer import groups
from sdrrl_trl.trainer.checkpoints import last_complete_checkpoint, seal
from sdrrl_trl.trainer.divergence import DistillationOutput
from sdrrl_trl.trainer.model_card import model_card
from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig
from sdrrl_trl.trainer.teacher import initial_model, prepare_teacher, teacher_states
from sdrrl_trl.utils import SDRRLError, write_atomic


class SDRRLTrainer(SFTTrainer):
    """
    Trainer for self-distillation from resource-rich languages (SDRRL, https://huggingface.co/papers/2402.12204).

    It takes the arguments of [`~trl.SFTTrainer`] in the same order, and trains exactly as it does unless
    [`SDRRLConfig`] asks for more. If the data have the columns `kind`, `question_language` and `answer_language` of a
    transfer set, it logs for each kind and each answer language the mean loss per token (`nll/<name>`), the bits per
    UTF-8 byte of the supervised text (`bpb/<name>`), the loss that can be compared across scripts, the share of the
    supervised tokens (`share/<name>`) and, with `kl_coef`, the divergence from the initial model in nats per token
    (`kl/<name>`) and in bits per byte (`drift/<name>`). All are sums over the tokens since the last log, exact under
    packing, accumulation and over processes. Rows longer than `max_length` are left out, and a warning counts them;
    [`~trl.SFTTrainer`] cuts them. Prepared data sets keep no other columns, and batches have three more keys
    ([`DataCollatorForSDRRL`]). Streaming data are trained on without these figures, and are cut.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to train, see [`~trl.SFTTrainer`].
        args ([`SDRRLConfig`] or [`~transformers.TrainingArguments`], *optional*):
            Configuration. If `None`, a default one.
        data_collator (`Callable`, *optional*):
            For data without the three columns. With them, the trainer makes its own, see [`DataCollatorForSDRRL`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            A transfer set, or any data set that [`~trl.SFTTrainer`] takes.
        eval_dataset (`Dataset`, `IterableDataset` or `dict` of them, *optional*):
            Data to evaluate on; with a `dict`, each set has its own `eval_<key>_loss`.
        *rest, **kwargs:
            The other arguments of [`~trl.SFTTrainer`].
        ref_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            Frozen initial model, for `kl_coef` and [`ForgettingCallback`]. Not needed with PEFT, where the adapter is
            turned off instead (or, if the model came with a trained adapter, a copy of that is used, which is saved
            beside it as `sdrrl_teacher`), nor if `model` is a path.

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

    _tag_names = ["trl", "sft", "sdrrl"]

    def __init__(
        self,
        model,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        *rest,
        ref_model=None,
        **kwargs,
    ):
        if args is None:
            args = SDRRLConfig(output_dir="sdrrl_output")
        if not isinstance(args, SDRRLConfig):  # as the parent takes any `TrainingArguments`
            hidden = {name: value for name, value in vars(args).items() if name.endswith("_token")}  # by `to_dict`
            args = SDRRLConfig(**args.to_dict() | hidden)
        given = (model, args, data_collator, train_dataset, eval_dataset, *rest)
        peft_config = inspect.signature(super().__init__).bind(*given, **kwargs).arguments.get("peft_config")
        self._origin = (model, ref_model, peft_config)
        # Of the transfer set, for the card
        self.manifest: dict[str, Any] | None = None
        self.example: list[dict[str, str]] | None = None
        if args.kl_coef:
            initial_model(*self._origin)  # that there is one, before the data are prepared
        # Before the parent prepares the data, which it does in its `__init__`. Empty for data without provenance
        self._groups = groups.group_table(train_dataset, eval_dataset)
        if self._groups:
            groups.check_can_carry_groups(args, data_collator)
        if args.anchor_languages:
            answered_in = {answer for *_, answer in groups.group_table(train_dataset, None) if answer}
            groups.check_anchors(args.anchor_languages, answered_in)
        # Of the data to evaluate on, for callbacks
        self.eval_kinds = {kind for kind, *_ in groups.group_table(None, eval_dataset)}
        self._watches_drift = False
        self._sums: dict[str, torch.Tensor] = {}
        self._eval_prefix = "eval"

        super().__init__(*given, **kwargs)

        self._check_supported()
        if self._groups:
            # SFTTrainer refuses a custom collator with packing, so extend the one it has built
            self.data_collator = groups.DataCollatorForSDRRL(**vars(self.data_collator))
        self.ref_model, self._teacher_adapter = prepare_teacher(self, self._origin) if args.kl_coef else (None, None)

    def _check_supported(self) -> None:
        """Refuses what the divergence, or figures by kind and language, would be wrong with."""
        if not self._groups and not self.args.kl_coef:
            return
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise SDRRLError("Context and sequence parallelism split rows past kinds and teacher. Use FSDP or ZeRO.")
        adapters = self.model.peft_config.values() if isinstance(self.model, PeftModel) else []
        if any(isinstance(adapter, PromptLearningConfig) for adapter in adapters):
            raise SDRRLError("Prompt-learning adapters shift the tokens against their kinds and teacher. Use LoRA.")
        if self.args.kl_coef and self.compute_loss_func is not None:
            raise SDRRLError("`compute_loss_func` replaces the loss that `kl_coef` belongs to. Leave it out.")

    def watch_drift(self) -> None:
        """
        Has evaluations measure `drift/<name>` without `kl_coef`, too. The loss stays as it is.

        Raises:
            `SDRRLError`: if nothing says what the initial model was, or it cannot be compared with.
        """
        if not self.args.kl_coef and not self._watches_drift:
            self.ref_model, self._teacher_adapter = prepare_teacher(self, self._origin)
        self._watches_drift = True

    def _asks_teacher(self) -> bool:
        return self.args.kl_coef > 0 or (self._watches_drift and not self.model.training)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        fix_date(processing_class)  # as the questions were asked when the data were made
        if not self._groups:
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        # `evaluate` on a dict prepares its data sets twice
        if {"input_ids", "group_ids", "label_bytes"} <= set(get_dataset_column_names(dataset)):
            return dataset
        whole = copy.copy(args)
        if groups.has_groups(dataset):
            whole.max_length = None  # the parent would cut rows, and say nothing
        # The parent keeps only `input_ids` and `labels` when it packs: pack here, with two more per-token columns
        dataset = super()._prepare_dataset(dataset, processing_class, whole, False, formatting_func, dataset_name)
        map_kwargs = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
        with global_then_local_main_first():  # the other processes then read the cache of the first
            if groups.has_groups(dataset) and args.max_length is not None:
                dataset = groups.without_too_long(dataset, dataset_name, args, **map_kwargs)
            dataset = groups.add_provenance(dataset, dataset_name, self._groups, processing_class, **map_kwargs)
            if packing:
                dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, map_kwargs)
        # Once more after packing, as the parent does
        return dataset.shuffle(seed=args.seed) if packing and args.shuffle_dataset else dataset

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self._groups:
            self._signature_columns = [*dict.fromkeys([*self._signature_columns, "group_ids", "label_bytes"])]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self._groups and not self._asks_teacher():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        provenance = {name: inputs.pop(name)[:, 1:] for name in groups.PROVENANCE_KEYS if name in inputs}
        found: list[Any] = []

        def watched_model(**model_inputs):
            # `SFTTrainer.compute_loss` only calls the model, so what it gets can be looked at, or be another loss
            if "fused_lm_head" not in model_inputs:  # the logits, for label smoothing or `return_outputs`
                return model(**model_inputs)
            asks = self._asks_teacher()
            group_ids = provenance.get("group_ids")
            found.append(self._distill(model, model_inputs, group_ids) if asks else model(**model_inputs))
            if not self.args.kl_coef:  # the divergence is only watched, if that
                return found[-1]
            # Its loss is `-log_probs`, summed, normalised, scaled. With the sum of both losses in their place, all of
            # that stays its business: accumulation, processes, tensor parallelism. It reads them for nothing else
            return replace(found[-1], log_probs=-found[-1].loss)

        loss = super().compute_loss(watched_model, inputs, return_outputs, num_items_in_batch)
        if provenance:
            self._add_to_sums(found[-1], **provenance)
        return loss

    def _distill(self, model, inputs: dict[str, Any], group_ids: torch.Tensor | None) -> DistillationOutput:
        del inputs["fused_lm_head"]
        with self.accelerator.autocast():
            teacher = teacher_states(self.model, self.ref_model, self._teacher_adapter, inputs)
        anchored = None
        if self.args.anchor_languages:
            is_anchor = [answer in self.args.anchor_languages for *_, answer in self._groups]
            anchored = torch.tensor(is_anchor, device=group_ids.device)[group_ids]
        options = {"teacher": teacher, "kl_coef": self.args.kl_coef, "anchored": anchored}
        return model(**inputs, distillation=options)

    def _add_to_sums(self, outputs, group_ids, label_bytes, row_ids) -> None:
        """Adds a batch to the sums of NLL, KL, tokens and bytes by group, shape `(number of groups, 4)`."""
        mode = "train" if self.model.training else "eval"
        counts = outputs.label_mask * (row_ids < self._rows_that_count(mode, row_ids))
        nll = -outputs.log_probs.detach()
        kl = outputs.kl if self._asks_teacher() else torch.zeros_like(nll)
        values = torch.stack([(x * counts).float().flatten() for x in (nll, kl, counts, label_bytes)], dim=-1)
        sums = values.new_zeros(len(self._groups), 4).index_add_(0, group_ids.flatten(), values)
        self._sums[mode] = self._sums[mode] + sums if mode in self._sums else sums

    def _rows_that_count(self, mode: str, row_ids: torch.Tensor) -> float:
        """How many rows of this rank's batch are not repetitions that fill up the last batch of an evaluation."""
        state = self.accelerator.gradient_state
        if mode == "train" or not state.end_of_dataloader or state.remainder <= 0:
            return math.inf
        return state.remainder - self.accelerator.process_index * (row_ids.max().item() + 1)

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
        super().log(logs, start_time)

    def _group_metrics(self, sums: torch.Tensor) -> dict[str, float]:
        by_name = defaultdict(lambda: torch.zeros(4).double())
        for part in (0, 2):  # kinds, then answer languages
            for group, group_sums in zip(self._groups, sums, strict=True):
                by_name[group[part]] += group_sums
        by_name.pop(None, None)  # of data without the columns
        metrics, total = {}, sums[:, 2].sum()
        for name, (nll, kl, n_tokens, n_bytes) in by_name.items():
            if n_tokens == 0:
                continue
            metrics |= {f"nll/{name}": nll / n_tokens, f"share/{name}": n_tokens / total}
            metrics[f"bpb/{name}"] = nll / n_bytes / math.log(2)
            if self._asks_teacher():
                metrics |= {f"kl/{name}": kl / n_tokens, f"drift/{name}": kl / n_bytes / math.log(2)}
        return {name: value.item() for name, value in metrics.items()}

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes files of its own
        # Without the optimizer's state, no training can go on from it
        if self.is_world_process_zero() and not self.args.save_only_model:
            seal(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        self._sums.clear()
        if resume_from_checkpoint is True:  # transformers takes the newest, which a kill may have left half-written
            resume_from_checkpoint = last_complete_checkpoint(Path(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise SDRRLError(f"There is no complete checkpoint in {self.args.output_dir} to resume from.")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        if self.is_world_process_zero():
            name = model_name or self.hub_model_id or Path(self.args.output_dir).name
            languages = sorted({answer for _, _, answer in self._groups if answer})
            card = model_card(self, name, languages, dataset_name, self.manifest, self.example)
            write_atomic(Path(self.args.output_dir) / "README.md", card)
