"""An encoder as a plain sentence-transformers folder, where it is one."""

from pathlib import Path

import numpy as np

from nexus_integrations.backends import Backbone, load_backbone
from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.extras import extra


def save_plain(
    backbone: Backbone,
    query_head: DendriticHead | None,
    document_head: DendriticHead | None,
    folder: Path,
) -> None:
    """See `DendriticEncoder.save_sentence_transformers`."""
    head = query_head
    if head is not document_head or (head is not None and head.dendrites):
        raise ValueError(
            "only one linear head, shared by both roles, is a plain sentence-transformers "
            "model: train with heads='shared', dendrites=0, or use save"
        )
    runs = (backbone.backend, backbone.precision)
    if runs != ("torch", "float32") and backbone.folder is not None:
        backbone = load_backbone(backbone.folder, backend="torch", precision="float32")
    with extra("train"):
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize

        from nexus_integrations.backends.torch import TorchBackbone

    if not isinstance(backbone, TorchBackbone):
        raise ValueError(f"a {type(backbone).__name__} is no sentence-transformers model")
    modules = list(backbone.model)
    if head is not None:
        width = head.dimension
        dense = Dense(width, width, bias=False, activation_function=None)
        weight = np.eye(width, dtype=np.float32) + head.weight
        dense.load_state_dict({"linear.weight": torch.from_numpy(weight)})
        modules += [dense, Normalize()]  # (I + W)v needs no unit v: its length cancels
    prompts = {name: text or "" for name, text in backbone.model.prompts.items()}
    TorchBackbone(SentenceTransformer(modules=modules, prompts=prompts)).save(folder)
