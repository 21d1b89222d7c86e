"""A sentence-transformers model: its folder, its digest, its tokenizer, its unit vectors."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from transformers.utils import logging

from nexus_integrations.backends import Role
from nexus_integrations.backends.tokens import TextTokenizer, plain_definition


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars into logs while it reads or writes weights."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_model(folder: Path, device: str) -> SentenceTransformer:
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no sentence-transformers model: it has no modules.json")
    try:
        with without_progress_bars():
            return SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
    except Exception as error:
        # Damaged folders fail in many ways, deep in three libraries; to the user they are one.
        raise ValueError(f"{folder} holds no readable model: {error}") from error


def _tokenizer_settings(tokenizer: Any) -> object:
    """Return vocabulary, casing and splitting; a fast tokenizer tells all of it as JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    settings = json.loads(backend.to_str())
    # Calls leave their truncation and padding behind; they are no property of the model.
    return {k: v for k, v in settings.items() if k not in ("truncation", "padding")}


def model_digest(model: SentenceTransformer) -> str:
    """Return the SHA-256, in hex, over weights, vocabulary, modules, prompts and maximal length."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    settings = {
        "modules": [
            [type(module).__name__, getattr(module, "get_config_dict", dict)()] for module in model
        ],
        "prompts": dict(model.prompts),
        "max_length": int(model.max_seq_length or 0),
        "tokenizer": _tokenizer_settings(model.tokenizer),
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def text_tokenizer(model: SentenceTransformer) -> TextTokenizer | None:
    """Return the tokenizer that makes a model's tokens, or None where there is none.

    A few texts of all kinds must give what sentence-transformers feeds the model, so that a model
    with other towers, inputs or prompts is not taken for a plain one.
    """
    module = next(iter(model))
    fast = getattr(getattr(module, "tokenizer", None), "backend_tokenizer", None)
    if fast is None or not isinstance(module, Transformer):
        return None
    pooled = all(module.include_prompt for module in model if isinstance(module, Pooling))
    tokenizer = TextTokenizer(
        definition=plain_definition(fast.to_str()),
        prompts={
            "query": _prompt(model, "query"),
            "document": _prompt(model, "document", "passage", "corpus"),
        },
        max_length=int(model.max_seq_length or 0),
    )
    roles: tuple[Role, Role] = ("query", "document")
    for role in roles:
        prompt = tokenizer.prompts[role]
        if prompt and not pooled:  # the prompt's tokens are left out of the mean
            return None
        for text in _probes(tokenizer.max_length):
            ids = np.array(tokenizer.tokens([text], role).ids)  # (1, length)
            if not ids.size:  # without special tokens a blank text has no input
                return None
            theirs = model.preprocess([text], prompt=prompt or None, task=role)
            known = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
            }
            for name, value in theirs.items():
                if name in ("modality", "prompt_length"):
                    continue
                if name not in known or not np.array_equal(known[name], np.asarray(value)):
                    return None
    return tokenizer


def _prompt(model: SentenceTransformer, *names: str) -> str:
    """Return the prompt that `encode_query` or `encode_document` takes."""
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return model.prompts[name] or "" if name is not None else ""


def _probes(max_length: int) -> list[str]:
    return [
        "Who signs FORM K-12, and when?",
        "",
        "line one\nline two\ttab \u00a0 space",
        "naïve Ærøskøbing ﬁne Ⅳ 病院 병원 😀👩‍⚕️ \u0000 \u200b <s> [MASK]",
        " word" * (max_length or 600),
    ]


class UnitVectors(nn.Module):
    """A sentence-transformers model from tokens to unit vectors."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.token_types = "token_type_ids" in getattr(model.tokenizer, "model_input_names", ())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return unit vectors, float32 (n, dimension), of ids, int64 (n, length).

        The mask is int64 (n, length), 1 for a token and 0 for padding; None is all ones.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.token_types:
            # One row for all texts: each would look up the same vector for each of its tokens.
            features["token_type_ids"] = torch.zeros_like(input_ids[:1])
        vectors = self.model(features)["sentence_embedding"]
        return nn.functional.normalize(vectors.float(), dim=1)
