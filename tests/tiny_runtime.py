"""A runtime folder made without PyTorch, for the environments of `nox -s versions`.

Its graph is the mean of an embedding table's rows, at length one.
"""

import hashlib
import string
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from nexus_integrations.backends.folder import GRAPH, RuntimeModel, write_runtime
from nexus_integrations.backends.tokens import TextTokenizer

DIMENSION, PIECES = 16, 32


def write_tiny_runtime(folder: Path) -> None:
    """Write the model: 16 dimensions, 32 pieces of a text, a piece a letter."""
    signs = [*string.ascii_lowercase, *string.digits, ":", "\ufffd"]
    vocabulary = ["[PAD]", "[UNK]", *signs, *("##" + sign for sign in signs)]
    tokenizer = Tokenizer(
        WordPiece({piece: row for row, piece in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    table = np.random.default_rng(0).normal(size=(len(vocabulary), DIMENSION)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["read"]),
        helper.make_node("ReduceSum", ["read", "pieces"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["vectors"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", DIMENSION])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "pieces"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    folder.mkdir()
    onnx.save(model, str(folder / GRAPH))
    write_runtime(
        folder,
        RuntimeModel(
            precision="float32",
            made_from=hashlib.sha256(table.tobytes()).hexdigest(),
            dimension=DIMENSION,
            tokenizer=TextTokenizer(
                definition=tokenizer.to_str(),
                prompts={"query": "", "document": ""},
                max_length=PIECES,
            ),
        ),
    )
