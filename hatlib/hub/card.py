"""Model cards: what is known of a model, and what its user said, never over a user's own text."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCardData
from torch import nn

from hatlib.atomic import write_text

__all__ = ["ModelFacts", "write_card"]

CARD_NAME = "README.md"
_SEAL = re.compile(r"\n<!-- written by hatlib, unchanged while this is its hash: ([0-9a-f]{16}) -->\n$")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a card says that no model knows of itself. What is left out is not mentioned.

    Attributes:
        training_data: what it was trained on.
        recipe: how.
        metrics: benchmark -> metric -> value, for example {'Set5': {'PSNR': 30.1, 'SSIM': 0.86}}.
        command: the command that gives these metrics.
        license: SPDX name, in small letters, as the Hub has it.
        citation: BibTeX; the one of the model's class if empty.
        note: anything else.
    """

    training_data: str = ""
    recipe: str = ""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    command: str = ""
    license: str = ""
    citation: str = ""
    note: str = ""


def write_card(model: nn.Module, directory: Path, facts: ModelFacts, repo_id: str | None = None) -> None:
    """Writes the README.md of a `PretrainedModel`, unless there is one that somebody has written or changed."""
    path = directory / CARD_NAME
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        seal = _SEAL.search(text)
        if seal is None or _hash(text[: seal.start()]) != seal[1]:
            return
    text = card_text(model, facts, f"hf-hub:{repo_id}" if repo_id else "local-dir:.")
    seal = f"\n<!-- written by hatlib, unchanged while this is its hash: {_hash(text)} -->\n"
    write_text(path, text + seal)


def card_text(model: nn.Module, facts: ModelFacts, source: str) -> str:
    """The card: metadata for the Hub, facts, a snippet that loads `source`, and the citation."""
    config = model.config
    arguments = config["model_args"]
    arch, exact = model.arch_of(arguments)
    family, scale = type(model).__name__, getattr(model, "upscale", 1)
    title = arch if exact else f"{family} x{scale}, of a size of its own"
    weights = getattr(model, "loaded_weights", None)
    channels, out_channels = getattr(model, "in_chans", 3), getattr(model, "out_chans", 3)
    rows = [
        ("task", f"super-resolution x{scale}" if scale > 1 else "restoration at the same size"),
        ("channels", f"{channels} in, {out_channels} out"),
        ("parameters", f"{model.num_parameters():,}"),
        ("trained on", facts.training_data),
        ("recipe", facts.recipe),
        ("started from", f"{weights.file}: {weights.training_data}; {weights.origin}" if weights else ""),
        ("license of that", weights.license if weights else ""),
        ("license", facts.license),
    ]
    metadata = ModelCardData(
        library_name="hatlib",
        pipeline_tag="image-to-image",
        license=facts.license or None,
        tags=[*(["super-resolution"] if scale > 1 else []), "image-restoration", family.lower(), "timm"],
    )
    paragraphs = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {title}",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows if value)]),
        facts.note,
        _metrics(facts),
        "## Use",
        f"""```python
import hatlib
import torch

model = hatlib.create_model("{source}", pretrained=True).eval()
image = torch.rand(1, {channels}, 48, 64)  # (B, {channels}, H, W) in [0, 1]
with torch.inference_mode():
    restored = model(image).clamp(0, 1)  # (B, {out_channels}, {scale} * H, {scale} * W)
```""",
        "" if source.startswith("hf-hub:") else "(`.` is the directory of this file.)",
        "It loads in timm too (`timm.create_model`, same name, after `import hatlib`) and in transformers "
        "(`AutoModelForImageToImage.from_pretrained`, after `import hatlib.integrations.transformers`).",
        f"## Citation\n\n```bibtex\n{citation}\n```" if (citation := facts.citation or model.citation) else "",
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _metrics(facts: ModelFacts) -> str:
    if not facts.metrics:
        return ""
    names = list(dict.fromkeys(name for values in facts.metrics.values() for name in values))
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for benchmark, values in facts.metrics.items():
        lines.append(f"| {benchmark} | " + " | ".join(str(values.get(name, "")) for name in names) + " |")
    command = f"\n\nMeasured by:\n\n```\n{facts.command}\n```" if facts.command else ""
    return "## Metrics\n\n" + "\n".join(lines) + command


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
