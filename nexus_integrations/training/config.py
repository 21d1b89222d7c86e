"""The settings of a training, and which training has which."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

HeadsKind = Literal["query", "shared", "separate"]
"""Which vectors a head maps: the queries', both roles' by one head, or each role's by its own."""

Loss = Literal["cosent", "cosine", "angle"]
"""Which loss sentence pairs are trained by; see `similarity_loss`."""

Data = Literal["questions", "pairs"]
"""What is trained on: questions with their passages, or sentence pairs with scores."""

# The settings that only some trainings have, with their defaults; None is no value of its own.
_OWN: dict[tuple[str, Data], dict[str, Any]] = {
    ("frozen", "questions"): {
        "heads": "query",
        "scale": 25.0,
        "anchor": 0.5,
        "gamma": 0.02,
        "split_by": None,
    },
    ("frozen", "pairs"): {"heads": "shared", "loss": "cosent", "scale": 25.0, "anchor": 0.5},
    ("trainable", "questions"): {
        "heads": "shared",
        "backbone_learning_rate": 2e-5,
        "dropout": False,
        "scale": 25.0,
        "split_by": None,
    },
    ("trainable", "pairs"): {
        "heads": "shared",
        "loss": "cosent",
        "backbone_learning_rate": 2e-5,
        "dropout": False,
        "scale": 25.0,
    },
}
_OPTIONAL = (*dict.fromkeys(name for own in _OWN.values() for name in own), "tries")
_OPTIONAL = (*_OPTIONAL, "warmup_epochs")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How to train heads, or heads and backbone.

    `backbone` "frozen" trains heads on vectors embedded once; "trainable" trains all weights on the
    texts: minutes instead of seconds, and every document is embedded anew afterwards. `dendrites`
    is how many perforatedai may grow, one per cycle of `epochs` while the dev score rises; with 0 a
    linear head is trained without perforatedai.

    A cycle is AdamW with `learning_rate`, which rises over the first tenth and falls linearly to
    zero (with `decay` False it stays), in batches of `batch_size` questions or sentence pairs. With
    `refit` heads of the size that dev chose are trained once more, on train and dev together.
    `average` is how many runs, of the seeds from `seed` on, are averaged weight by weight (model
    soups, Wortsman et al., 2022): of linear heads, since dendrites of two runs have no order in
    common.

    The settings below are None unless given: each training then takes its own default, the value
    in parentheses. A value for a setting that the training does not have raises `ValueError`, here
    or, where only the data tells, in `finetune`.

    - `heads`: "query" maps queries alone, so that stored document vectors stay valid (frozen
      backbone and questions); "shared" maps both roles by one head (all others); "separate" gives
      each role its own. Sentence pairs have no roles, and a trained backbone changes documents too.
    - `tries` (2): how many random starts a dendrite gets before growth ends, on a frozen backbone.
    - `warmup_epochs` (as `epochs`): the length of the cycle before the first dendrite.
    - `scale` (25): the inverse temperature of every softmax.
    - `anchor` (.5): weighs the squared change of vectors in the loss of a frozen backbone.
    - `gamma` (.02): the γ of the NUDGE-N that training heads on questions expects to follow.
    - `loss` ("cosent"): that of sentence pairs; "cosine" has no `scale`. See `similarity_loss`.
    - `backbone_learning_rate` (2e-5), `dropout` (False): those of a trained backbone. Its
      architecture's dropout takes half as long again.
    - `split_by` ("query"): "document" keeps questions of one document together where questions are
      split off for dev.

    The defaults were chosen by cross-validation over the train and dev queries of two corpora.
    Raises `ValueError` for values outside their range.
    """

    backbone: Literal["frozen", "trainable"] = "frozen"
    heads: HeadsKind | None = None
    dendrites: int = 3
    tries: int | None = None
    epochs: int = 12
    warmup_epochs: int | None = None
    loss: Loss | None = None
    learning_rate: float = 1e-3
    backbone_learning_rate: float | None = None
    dropout: bool | None = None
    decay: bool = True
    batch_size: int = 64
    weight_decay: float = 0.0
    scale: float | None = None
    anchor: float | None = None
    gamma: float | None = None
    refit: bool = False
    average: int = 1
    split_by: Literal["query", "document"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_ranges()
        if self.average > 1 and self.dendrites:
            raise ValueError(
                "dendrites of several runs cannot be averaged: use average with dendrites=0"
            )
        if self.backbone == "trainable" and self.heads == "query":
            raise ValueError(
                "a trained backbone changes documents as well: use heads='shared' or 'separate' "
                "with backbone='trainable', and embed the documents anew afterwards"
            )
        missing = [self._refused(data) for data in get_args(Data)]
        for name in missing[0]:
            if all(name in refused for refused in missing):
                raise ValueError(self._refusal(name, f"backbone={self.backbone!r}"))

    def resolved(self, data: Data) -> "FinetuneConfig":
        """Return the config of a training on such data, with its defaults filled in.

        Raises `ValueError` for a setting that was given and that this training does not have.
        """
        for name in self._refused(data):
            raise ValueError(self._refusal(name, f"backbone={self.backbone!r} on {data}"))
        own = {name: value for name, value in self._own(data).items() if value is not None}
        if data == "pairs" and self.heads not in (None, "shared"):
            raise ValueError(
                f"heads={self.heads!r}, but sentence pairs have no queries and documents: their "
                "head is 'shared'"
            )
        unset = {name: value for name, value in own.items() if getattr(self, name) is None}
        return replace(self, **unset)

    def settings(self, data: Data = "questions") -> dict[str, Any]:
        """Return by name the settings that a training on such data has, defaults included.

        Raises what `resolved` raises.
        """
        found = asdict(self.resolved(data))
        return {name: value for name, value in found.items() if value is not None}

    def _own(self, data: Data) -> dict[str, Any]:
        """Return the optional settings that apply, with their defaults."""
        own = dict(_OWN[self.backbone, data])
        if data == "pairs" and self.loss == "cosine":
            del own["scale"]
        if self.dendrites:
            own["warmup_epochs"] = self.epochs
            if self.backbone == "frozen":
                own["tries"] = 2
        return own

    def _refused(self, data: Data) -> list[str]:
        own = self._own(data)
        given = (name for name in _OPTIONAL if getattr(self, name) is not None)
        return [name for name in given if name not in own]

    def _refusal(self, name: str, training: str) -> str:
        if name in ("tries", "warmup_epochs") and not self.dendrites:
            training = "dendrites=0"
        elif name == "scale" and self.loss == "cosine":
            training = "loss='cosine'"
        return f"{name}={getattr(self, name)!r} changes nothing with {training}: leave it out"

    def _check_ranges(self) -> None:
        for name, known in (
            ("heads", get_args(HeadsKind)),
            ("loss", get_args(Loss)),
            ("split_by", ("query", "document")),
            ("backbone", ("frozen", "trainable")),
        ):
            value = getattr(self, name)
            if value not in known and (value is not None or name == "backbone"):
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        for name, least in (
            ("dendrites", 0),
            ("tries", 1),
            ("epochs", 1),
            ("warmup_epochs", 1),
            ("batch_size", 1),
            ("average", 1),
            ("weight_decay", 0),
            ("anchor", 0),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        for name in ("learning_rate", "backbone_learning_rate", "scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.gamma is not None and not 0 <= self.gamma < 4:
            raise ValueError(f"gamma must lie in 0 ≤ γ < 4, not {self.gamma}")
