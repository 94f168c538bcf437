"""The card of a trained model: what it is made of, and how. `sdrrl report` adds what it is worth."""

from statistics import mean
from typing import Any

import yaml
from peft import LoraConfig, PeftModel
from trl import SFTTrainer

from sdrrl_trl import hub
from sdrrl_trl.render import render
from sdrrl_trl.transfer.publish import non_commercial_parts
from sdrrl_trl.utils import RUINED, on_hub, package_version, public_name


ROSE = 2  # times the loss at the start, which one pack does not differ by from another
# Of the configuration, what a model depends on most
_RECIPE = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_length", "packing")
_RECIPE += ("kl_coef", "seed")


def anchor_drifts(args: Any) -> list[str]:
    """What the drift is called in logs where the model is to stay as it is."""
    return [f"drift/{tag}" for tag in getattr(args, "anchor_languages", None) or ()]


def why_ruined(args: Any, log_history: list[dict[str, float]]) -> str | None:
    """By the log of a training, why its model is probably ruined, if it is."""
    drifts = [log[name] for log in log_history for name in anchor_drifts(args) if name in log]
    losses = [log["loss"] for log in log_history if "loss" in log]
    last = losses[-max(1, len(losses) // 4) :]
    if drifts and drifts[-1] > RUINED:
        return f"its own answers took {drifts[-1]:.2f} bits per byte more than before, at the last log of them"
    if losses and mean(last) > ROSE * losses[0]:
        return f"the loss rose from {losses[0]:.2f} to {mean(last):.2f}"
    return None


def model_card(
    trainer: SFTTrainer,
    name: str,
    languages: list[str],
    data: str | None,
    manifest: dict[str, Any] | None,
    example: list[dict[str, str]] | None = None,
) -> str:
    """
    A card in Markdown, with metadata for the hub.

    Args:
        trainer ([`~trl.SFTTrainer`]):
            Trainer of the model.
        name (`str`):
            Name of the model.
        languages (`list[str]`):
            Tags of the languages that were answered in.
        data (`str`, *optional*):
            Hub id of the data set; a folder here is not named.
        manifest (`dict[str, Any]`, *optional*):
            Manifest of the transfer set, if the data are one.
        example (`list[dict[str, str]]`, *optional*):
            Messages to ask the model, as it was trained with.
    """
    args, options, adapter = trainer.args, trainer.args.to_dict(), None
    base = trainer.model.config._name_or_path
    # Of a folder, the model on the hub that its card says it is made of
    on_the_hub = base if on_hub(base) else hub.base_of(base)
    if isinstance(trainer.model, PeftModel):
        adapter = trainer.model.active_peft_config
    non_commercial = non_commercial_parts(manifest) if manifest else []
    licence = hub.NON_COMMERCIAL if non_commercial else hub.licence_fields(base)
    metadata = {
        "library_name": "peft" if adapter else "transformers",
        "base_model": on_the_hub,
        "datasets": [data] if data and on_hub(data) else None,
        "language": languages,
        "pipeline_tag": "text-generation",
        "tags": ["sdrrl", "trl", "sft"],
    }
    n_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    recipe = {
        "records, if not too long": manifest
        and ", ".join(f"{n:,} {cell}" for cell, n in manifest["counts"]["train"].items()),
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0, 2),
        f"{'packs' if args.packing else 'rows'} per step": n_rows,
    }
    recipe["translator"] = manifest and manifest["engines"].get("translator", {}).get("engine")
    recipe |= {option: options.get(option) for option in _RECIPE}
    recipe["system_prompt"] = manifest and manifest["options"].get("system_prompt")
    recipe["anchor_languages"] = ", ".join(args.anchor_languages or ()) or None
    recipe["weights"] = "all" if adapter is None else type(adapter).__name__.removesuffix("Config")
    if isinstance(adapter, LoraConfig):
        recipe["weights"] += f", r={adapter.r}, alpha={adapter.lora_alpha}"
    versions = ("sdrrl-trl", "trl", "transformers", "torch", "peft")
    return render(
        "model_card.md.jinja",
        metadata=yaml.safe_dump({k: v for k, v in (metadata | licence).items() if v}, sort_keys=False),
        ruined=why_ruined(args, trainer.state.log_history),
        name=name,
        base=public_name(base),
        on_the_hub=on_the_hub,
        messages=example or [{"role": "user", "content": "Hello!"}],
        needs_folder=adapter is not None and not on_hub(base),
        licence=licence,
        non_commercial=non_commercial,
        licences=manifest["licences"] if manifest else {},
        answer_source=manifest["options"].get("answer_source") if manifest else None,
        languages=languages,
        source=manifest["options"]["source_language"] if manifest else None,
        recipe={fact: value for fact, value in recipe.items() if value is not None},
        versions=", ".join(f"{package} {package_version(package)}" for package in versions),
    )
