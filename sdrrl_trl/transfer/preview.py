"""What `sdrrl build --dry_run` shows."""

from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.inputs import Inputs


TOKENS_PER_SECOND = 1_000  # a round number for a small model on one GPU, for the order of magnitude


def preview(config: TransferConfig, inputs: Inputs) -> str:
    """What would be made, if nothing were rejected, and how long the answers may take."""
    tokens = 0 if config.answer_source == "reference" else len(inputs.seeds) * config.max_new_tokens
    lines = [f"{len(inputs.seeds):,} questions, {inputs.n_sentences:,} parallel sentences"]
    lines.append("training records, if nothing is rejected:")
    lines += [f"  {kind:<20}{language:<6}{n:>12,}" for (kind, language), n in sorted(inputs.quotas.items())]
    lines.append(f"  {'all':<26}{sum(inputs.quotas.values()):>12,}")
    hours = tokens / TOKENS_PER_SECOND / 3600
    lines.append(f"answer: at most {tokens:,} tokens; at {TOKENS_PER_SECOND:,} tokens/s at most {hours:,.2f} h")
    lines.append(
        f"translate: {inputs.seeds.n_characters:,} characters of questions, and the answers, into "
        f"{', '.join(config.target_languages)}"
    )
    return "\n".join(lines)
