"""The state of a run of training, on disk: a killed run is resumed and ends with equal weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nexus_integrations.files import write_json, written_whole
from nexus_integrations.training.heads import Heads
from nexus_integrations.training.objectives import Objective
from nexus_integrations.training.result import Epoch

_FORMAT = "nexus-checkpoint"
# perforatedai keeps its tracker's state in a buffer of the module. Replaying the scores makes it.
_BOOKS = "tracker_string"


class Checkpoint:
    """A folder with `last.safetensors`, `best.safetensors` and `metrics.json`, for one run.

    `identity` is a hash of all that the run depends on. Every file appears whole or not at all.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity

    def part(self, name: str) -> "Checkpoint":
        """Return the checkpoint of one of several runs, in a folder of its own below this one."""
        return Checkpoint(self.folder / name, self.identity)

    def history(self) -> list[Epoch]:
        """Return the epochs that are done, none where nothing was saved.

        Raises `ValueError` for a folder of another run and for a damaged file.
        """
        if not (self.folder / "last.safetensors").is_file():
            return []
        metadata, _ = self._read("last")
        return [Epoch(**row) for row in json.loads(metadata["history"])]

    def save(
        self,
        history: Sequence[Epoch],
        heads: Heads,
        objective: Objective,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
    ) -> None:
        """Write the state after an epoch; without an optimizer the next one begins a cycle."""
        tensors = {"generator": generator.get_state(), "randomness": torch.get_rng_state()}
        for name, module in _modules(heads, objective).items():
            for key, tensor in module.state_dict().items():
                if key != _BOOKS:
                    tensors[f"{name}.{key}"] = tensor
        if optimizer is not None:
            for number, state in optimizer.state_dict()["state"].items():
                for key, tensor in state.items():
                    tensors[f"optimizer.{number}.{key}"] = tensor
        epochs = [asdict(epoch) for epoch in history]
        self._write("last", tensors, {"history": json.dumps(epochs)})
        write_json(self.folder / "metrics.json", {"identity": self.identity, "epochs": epochs})

    def restore(
        self,
        heads: Heads,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        """Set everything as it was when `save` was called last."""
        _, tensors = self._read("last")
        generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["randomness"])
        for name, module in _modules(heads, objective).items():
            own = {k: tensor for k, tensor in module.state_dict().items() if k == _BOOKS}
            module.load_state_dict({**own, **_below(tensors, name)})
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _below(tensors, "optimizer").items():
            number, _, name = key.partition(".")
            states.setdefault(int(number), {})[name] = tensor
        if states:
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": states, "param_groups": groups})

    def save_best(self, tensors: Mapping[str, Tensor]) -> None:
        """Write what training would return if it ended now."""
        self._write("best", tensors, {})

    def best(self) -> dict[str, Tensor]:
        """Return what `save_best` wrote last."""
        return self._read("best")[1]

    def _write(self, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
        with written_whole(self.folder / f"{name}.safetensors") as draft:
            save_file(own, str(draft), {"format": _FORMAT, "identity": self.identity, **metadata})

    def _read(self, name: str) -> tuple[dict[str, str], dict[str, Tensor]]:
        path = self.folder / f"{name}.safetensors"
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"the checkpoint {path} cannot be read ({error}): remove its folder to start anew"
            ) from None
        if metadata.get("format") != _FORMAT or metadata.get("identity") != self.identity:
            raise ValueError(
                f"{self.folder} holds the checkpoint of another run: the model, the data or the "
                "settings differ. Give another folder, or remove this one to start anew"
            )
        return metadata, tensors


def _modules(heads: Heads, objective: Objective) -> dict[str, torch.nn.Module]:
    modules: dict[str, torch.nn.Module] = {"heads": heads}
    if objective.tower is not None:
        modules["tower"] = objective.tower
    return modules


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    start = name + "."
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}
