"""What the two processes of growth send each other through pipes: JSON lines, and tensors."""

import json
from dataclasses import fields
from typing import IO, Any

from safetensors.torch import load, save
from torch import Tensor

from nexus_integrations.training.objectives import (
    Objective,
    RetrievalObjective,
    SimilarityObjective,
)

Message = tuple[dict[str, Any], dict[str, Tensor]]


def send(stream: IO[bytes], content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a line of JSON and, behind it, the tensors in the format of safetensors."""
    own = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = save(own) if own else b""
    stream.write(json.dumps({**content, "bytes": len(data)}).encode() + b"\n")
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> Message | None:
    """Read what `send` wrote; None where the other process ended first."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    content = json.loads(line)
    data = stream.read(content.pop("bytes"))
    return content, load(data) if data else {}


def packed(objective: Objective) -> Message:
    """Return an objective as numbers and tensors, but for its tower."""
    content: dict[str, Any] = {"objective": type(objective).__name__}
    tensors: dict[str, Tensor] = {}
    for name in _names(type(objective)):
        value = getattr(objective, name)
        if isinstance(value, Tensor):
            tensors[name] = value
        elif hasattr(value, "_asdict"):  # tokens
            tensors |= {f"{name}.{part}": tensor for part, tensor in value._asdict().items()}
        else:
            content[name] = value
    return content, tensors


def unpacked(content: dict[str, Any], tensors: dict[str, Tensor], tower: Any) -> Objective:
    """Return the objective that `packed` took apart; `tower` None is that of a frozen backbone."""
    kinds: list[Any] = [RetrievalObjective, SimilarityObjective]
    parts: dict[str, Any] = {**content, **tensors}
    if tower is not None:  # imported where it is needed: sentence-transformers takes seconds
        from nexus_integrations.training.text_objectives import (
            TextRetrievalObjective,
            TextSimilarityObjective,
        )
        from nexus_integrations.training.tower import Tokens

        kinds = [TextRetrievalObjective, TextSimilarityObjective]
        for name in [name for name in tensors if name.endswith(".ids")]:
            field = name.removesuffix(".ids")
            parts[field] = Tokens(tensors[name], tensors[f"{field}.starts"])
        parts["tower"] = tower
    (kind,) = (kind for kind in kinds if kind.__name__ == content["objective"])
    names = {one.name for one in fields(kind)}
    objective: Objective = kind(**{name: parts[name] for name in names})
    return objective


def _names(kind: Any) -> list[str]:
    return [one.name for one in fields(kind) if one.name != "tower"]
