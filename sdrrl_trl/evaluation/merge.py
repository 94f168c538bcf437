"""`sdrrl merge`: writes a model at a strength as full weights, for whatever reads those of transformers."""

from pathlib import Path

from sdrrl_trl.evaluation.card import on_hub
from sdrrl_trl.evaluation.weights import base_path, check_strength, is_adapter, load_full, split_strength
from sdrrl_trl.render import render
from sdrrl_trl.utils import SDRRLError, check_output_dir, package_version, write_atomic


def merge(model: str, output_dir: Path, base: str | None = None) -> Path:
    """
    Writes `base + strength * (tuned - base)`, with the tokenizer and a card.

    Args:
        model (`str`):
            Path or hub id of the tuned model, or of an adapter; with a strength, as `output/model@0.75`, else all of
            what training changed.
        output_dir (`Path`):
            New folder.
        base (`str`, *optional*):
            Path or hub id of the model that it was trained from. Default: the one that the adapter names.

    Returns:
        `Path`: `output_dir`.

    Raises:
        `SDRRLError`: for a full model without its base, a folder that is not empty, or models that do not fit.
    """
    from sdrrl_trl.engines.transformers import check_model

    check_strength(model)
    path, strength = split_strength(model)
    if base is None and not is_adapter(path):
        raise SDRRLError(f"{path!r} is no adapter, which would name its base. Give that: `--base`.")
    base = base or base_path(path)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise SDRRLError(f"{output_dir} is not empty. Name a new folder.")
    check_output_dir(output_dir, needed_bytes=1_000_000_000)
    check_model(base, needs_chat_template=False)
    strength = 1.0 if strength is None else strength
    merged, tokenizer = load_full(path, base, strength)
    merged.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    card = render(
        "merged_card.md",
        name=output_dir.name,
        strength=strength,
        tuned=Path(path).name,
        base=base if on_hub(base) else Path(base).name,  # a path here says nothing to others
        on_hub=on_hub(base),
        version=package_version("sdrrl-trl"),
    )
    write_atomic(output_dir / "README.md", card)
    return output_dir
