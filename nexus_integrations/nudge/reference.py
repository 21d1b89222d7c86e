"""The reference package `nudge-ft` in place of our solver."""

import contextlib
import io

import numpy as np

from nexus_integrations.nudge.gamma import Queries
from nexus_integrations.nudge.state import NudgeState
from nexus_integrations.protocols import Floats, VectorIndex


def reference(
    index: VectorIndex,
    planned: NudgeState,
    dev: Queries | None,
    gamma: float | None,
) -> tuple[float, Floats]:
    """Return γ and the targets as `nudge-ft` computes them, float32 (n_touched, dimension)."""
    from nudge import NUDGEM, NUDGEN

    assert dev is not None, "checked before anything was read"
    relevant = [id_ for found in dev.relevant.values() for id_ in found]
    inside = list(dict.fromkeys([*planned.document_ids, *relevant]))
    rows = {id_: row for row, id_ in enumerate(inside)}
    outside = [id_ for batch in index.ids() for id_ in batch if id_ not in rows]
    solver = NUDGEN("cpu") if planned.variant == "n" else NUDGEM("cpu")
    with contextlib.redirect_stdout(io.StringIO()):  # it reports to standard output
        vectors = solver.finetune_embeddings(
            index.vectors(inside),
            {"q_embs": planned.queries, "q_ans_indx": planned.answers},
            {
                "q_embs": dev.vectors,
                "q_ans_indx": [[rows[id_] for id_ in found] for found in dev.relevant.values()],
            },
            nontrain_embeddings=index.vectors(outside) if outside else None,
            gamma=gamma,
        )[: len(planned.base)]
    length = np.linalg.norm(planned.base, axis=1, keepdims=True)
    moves = np.linalg.norm(vectors - planned.base / length, axis=1)  # (n_touched,)
    if gamma is None:  # it does not tell: γ bounds the squared move under "n", the move under "m"
        furthest = float(moves.max())
        gamma = furthest**2 if planned.variant == "n" else furthest
    return gamma, vectors if planned.variant == "m" else vectors * length
