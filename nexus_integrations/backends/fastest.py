"""What the precision "auto" means: the fastest whose loss is negligible, measured here."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from time import perf_counter

from nexus_integrations.backends import Backbone
from nexus_integrations.backends.cache import cache_folder, check_owner, source_digest
from nexus_integrations.backends.folder import RECIPE
from nexus_integrations.files import read_json, write_json
from nexus_integrations.protocols import Floats

NEGLIGIBLE = 0.998
"""The mean cosine to float32, over the sample, from which on a loss counts as negligible."""

_TEXTS = 32  # of each role
_REPEATS = 3


def sample_texts() -> tuple[list[str], list[str]]:
    """Return the passages and the questions of the corpus that the package brings."""
    demo = files("nexus_integrations") / "demo" / "clinic.json"
    corpus = json.loads(demo.read_text(encoding="utf-8"))
    return list(corpus["corpus"].values()), list(corpus["queries"].values())


def fastest(ways: Sequence[Backbone]) -> Backbone:
    """Return the backbone that embeds the sample fastest; the first one, float32, is the measure.

    One that is too far from it is left out.
    """
    documents, queries = (texts[:_TEXTS] for texts in sample_texts())

    def embedded(way: Backbone) -> tuple[Floats, Floats]:
        return way.encode(documents, "document")[0], way.encode(queries, "query")[0]

    expected = embedded(ways[0])
    seconds: dict[int, float] = {}
    for number, way in enumerate(ways):
        found = embedded(way)
        cosines = [(own * other).sum(axis=1) for own, other in zip(found, expected, strict=True)]
        if min(cosine.mean() for cosine in cosines) < NEGLIGIBLE:
            continue
        times = []
        for _ in range(_REPEATS):
            begun = perf_counter()
            embedded(way)
            times.append(perf_counter() - begun)
        seconds[number] = min(times)
    return ways[min(seconds, key=lambda number: seconds[number])]


def fastest_of_model(
    folder: Path, device: str, ways: Mapping[str, Callable[[], Backbone]]
) -> Backbone:
    """Return the fastest way of running a model's folder; `ways` are by precision, float32 first.

    A way that this machine or installation does not have is left out. What was found is kept beside
    the cached graphs, for this CPU: vectors of two precisions do not mix, so the answer must
    not follow the noise of a second measurement. Raises `ValueError` where it cannot be kept.
    """
    place = cache_folder() / f"{source_digest(folder)[:40]}-auto-{_key(device, ways)}-{RECIPE}.json"
    check_owner(place.parent, place)
    with suppress(OSError, ValueError, KeyError, TypeError):
        return ways[read_json(place)["precision"]]()
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (place.parent / ".lock").touch()
    except OSError as error:
        raise ValueError(
            f'precision="auto" keeps what it measured, so that it does not change, and {place} '
            f"cannot be written ({error.strerror}): name a precision, or set XDG_CACHE_HOME"
        ) from None
    there = []
    for name, way in ways.items():
        try:
            there.append(way())
        except (ImportError, ValueError):
            if name == "float32":
                raise
    chosen = fastest(there)
    write_json(place, {"precision": chosen.precision})
    return chosen


def _key(device: str, ways: Mapping[str, Callable[[], Backbone]]) -> str:
    names = [platform.machine(), platform.processor(), device, *ways]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names += [line for line in lines if line.startswith(("model", "flags", "Features"))][:4]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
