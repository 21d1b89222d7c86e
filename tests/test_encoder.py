"""Text to unit vectors: by a tiny transformer, and by the real model."""

import json
import os
import re
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from nexus_integrations.backends.torch import TorchBackbone
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.head import DendriticHead

TEXTS = ["who signs the form", "room 4", "a", "where is the key", "b" * 12, "the answer is here"]


def make_head(dimension=16, dendrites=0, seed=0) -> DendriticHead:
    rng = np.random.default_rng(seed)
    arrays = DendriticHead.untrained(dimension, dendrites).arrays
    return DendriticHead(
        **{name: 0.3 * rng.normal(size=array.shape) for name, array in arrays.items()}
    )


def link_tree(source: Path, target: Path) -> Path:
    """Copy a folder without copying its bytes; files must be replaced, not written into."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def overwrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


# Vectors.


def test_unit_rows_of_float32(tiny):
    """Every row has length one to 1e-6, also through heads."""
    for encoder in (
        tiny,
        tiny.with_heads(query_head=make_head(), document_head=make_head(dendrites=2)),
    ):
        for encode in (encoder.encode_queries, encoder.encode_documents):
            vectors = encode(TEXTS)
            assert (vectors.dtype, vectors.shape) == (np.float32, (6, 16))
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_vectors_equal_sentence_transformers(tiny, tiny_model):
    """They are those of SentenceTransformer.encode(normalize_embeddings=True)."""
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(tiny_model), device="cpu").encode(
        TEXTS, normalize_embeddings=True
    )
    np.testing.assert_allclose(tiny.encode_queries(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(tiny.encode_documents(TEXTS), expected, atol=1e-6)


def test_order_is_kept_and_batches_do_not_matter(tiny):
    """200 texts of lengths 1 to 40 come back in their order, each as when encoded alone."""
    rng = np.random.default_rng(0)
    texts = [
        "".join(rng.choice(list("abcdef "), size=1 + n % 29)).strip() + "x" for n in range(200)
    ]
    together = tiny.encode_documents(texts)
    alone = np.concatenate([tiny.encode_documents([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_no_texts_make_no_rows(tiny):
    """An empty list gives an empty array of the right width."""
    assert tiny.encode_queries([]).shape == (0, 16)
    headed = tiny.with_heads(query_head=make_head(), document_head=None)
    assert headed.encode_queries([]).shape == (0, 16)


def test_heads_act_on_their_role_alone(tiny):
    """A query head maps queries as its transform does, and leaves documents bit for bit."""
    head = make_head()
    encoder = tiny.with_heads(query_head=head, document_head=None)
    plain = tiny.encode_queries(TEXTS)
    np.testing.assert_array_equal(encoder.encode_queries(TEXTS), head.transform(plain))
    np.testing.assert_array_equal(encoder.encode_documents(TEXTS), tiny.encode_documents(TEXTS))
    swapped = tiny.with_heads(query_head=None, document_head=head)
    np.testing.assert_array_equal(swapped.encode_documents(TEXTS), head.transform(plain))
    np.testing.assert_array_equal(swapped.encode_queries(TEXTS), plain)


def test_a_head_of_another_dimension_is_refused(tiny):
    """A head for 8 dimensions does not fit a backbone of 16."""
    with pytest.raises(ValueError, match="dimension 8 does not fit a backbone of dimension 16"):
        tiny.with_heads(query_head=make_head(8), document_head=None)


def test_an_encoder_is_immutable_under_with_heads(tiny):
    """The given encoder keeps having no heads; both share the backbone."""
    encoder = tiny.with_heads(query_head=make_head(), document_head=None)
    assert tiny.query_head is None
    assert encoder.backbone is tiny.backbone


@pytest.mark.parametrize("encode", ["encode_queries", "encode_documents"])
def test_what_is_no_list_of_texts_is_refused(tiny, encode):
    """A bare string, and an item that is not text, which is named."""
    with pytest.raises(TypeError, match=r"got one string: write \[text\]"):
        getattr(tiny, encode)("a question")
    with pytest.raises(TypeError, match="text 1 is NoneType, expected str"):
        getattr(tiny, encode)(["a", None])


# Warnings.


def test_truncation_is_counted_and_warned_of(tiny):
    """31 letters with [CLS] and [SEP] are 33 tokens, one above 32; 30 letters fit."""
    with pytest.warns(UserWarning, match="some of the texts are longer than 32 tokens") as seen:
        tiny.encode_queries(["a" * 30, "a" * 31])
    assert len(seen) == 1
    assert seen[0].filename == __file__  # it points at the caller
    with pytest.warns(UserWarning, match="longer than 32 tokens"):
        found = tiny.encode(["b" * 50, "b c " * 50, "d", ""], "document")
    assert (found.truncated, found.blank) == (2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny.encode(["d"], "query")[1:] == (0, 0)


def test_python_shows_a_warning_once_for_a_place(tiny):
    """A server that meets long texts all day fills no log."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for count in (1, 2, 3):
            tiny.encode_queries(["a" * 31] * count)
    assert len(seen) == 1


def test_truncation_counts_tokens_not_characters(tiny):
    """20 and 11 Hangul syllables are 60 and 33 tokens, but 39 and 21 characters."""
    hangul = "\ud55c"
    with pytest.warns(UserWarning, match="some of the texts are longer"):
        found = tiny.encode([" ".join([hangul] * 20), " ".join([hangul] * 11), "a"], "query")
    assert found.truncated == 2


def test_the_rest_of_a_long_text_is_cut_off(tiny):
    """What stands after piece 30 has no part in the vector."""
    with pytest.warns(UserWarning, match="longer than"):
        vectors = tiny.encode_queries(["a b " * 15 + "x y z", "a b " * 15 + "1 2 3", "a b " * 15])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)


def test_blank_texts_are_embedded_with_a_warning(tiny):
    """Unit vectors without NaN, and a warning without the texts."""
    with pytest.warns(UserWarning, match="some of the texts are blank"):
        vectors, _, blank = tiny.encode(["", "a", "  \n"], "query")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert blank == 2


def test_lone_surrogates_are_read_as_the_replacement_character(tiny):
    """ "a\\ud800b" is read as "a\\ufffdb"; a pair in two halves is one character and no loss."""
    with pytest.warns(UserWarning, match="some of the texts hold lone surrogates"):
        vectors = tiny.encode_queries(["a\ud800b", "a\ufffdb"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_a_text_of_100000_characters(tiny):
    """It is cut off like any other."""
    with pytest.warns(UserWarning, match="longer than"):
        vectors, truncated, _ = tiny.encode(["word " * 20_000, "a"], "document")
    assert np.isfinite(vectors).all()
    assert truncated == 1


# Prompts.


@pytest.fixture(scope="session")
def prompted_model(tiny_model, tmp_path_factory):
    """The tiny model with a prompt for each role."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("prompted")
    model = SentenceTransformer(str(tiny_model), device="cpu")
    prompted = SentenceTransformer(
        modules=list(model), prompts={"query": "query: ", "document": "passage: "}
    )
    prompted.save(str(folder), create_model_card=False)
    return folder


def test_prompts_of_the_model_are_honoured(tiny, prompted_model, tmp_path):
    """A query is encoded as "query: …", a document as "passage: …", also after saving."""
    prompted = DendriticEncoder.load(prompted_model)
    prompted.save(tmp_path / "saved")
    for encoder in (prompted, DendriticEncoder.load(tmp_path / "saved")):
        np.testing.assert_allclose(
            encoder.encode_queries(TEXTS),
            tiny.encode_queries([f"query: {text}" for text in TEXTS]),
            atol=1e-6,
        )
        np.testing.assert_allclose(
            encoder.encode_documents(TEXTS),
            tiny.encode_documents([f"passage: {text}" for text in TEXTS]),
            atol=1e-6,
        )
    assert prompted.fingerprint != tiny.fingerprint


# Fingerprints.


def test_fingerprint_follows_every_head(tiny):
    """No head, query head, document head, both, and another weight: all different."""
    head, other = make_head(), make_head(seed=1)
    prints = [
        tiny.with_heads(query_head=query, document_head=document).fingerprint
        for query, document in [
            (None, None),
            (head, None),
            (None, head),
            (head, head),
            (other, None),
        ]
    ]
    assert len(set(prints)) == 5
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in prints)


@pytest.mark.parametrize("dendrites", [0, 3])
def test_an_untrained_head_keeps_the_fingerprint(tiny, dendrites):
    """It changes no vector."""
    untrained = DendriticHead.untrained(16, dendrites)
    encoder = tiny.with_heads(query_head=untrained, document_head=untrained)
    assert encoder.fingerprint == tiny.fingerprint


def test_document_fingerprint_ignores_the_query_head(tiny):
    """Encoders that differ in their query head can share stored vectors; others cannot."""
    head, other = make_head(), make_head(seed=1)
    first = tiny.with_heads(query_head=head, document_head=other)
    second = tiny.with_heads(query_head=other, document_head=other)
    third = tiny.with_heads(query_head=head, document_head=head)
    assert first.document_fingerprint == second.document_fingerprint
    assert first.fingerprint != second.fingerprint
    assert first.document_fingerprint != third.document_fingerprint
    queries_alone = tiny.with_heads(query_head=head, document_head=None)
    assert queries_alone.document_fingerprint == tiny.document_fingerprint


def test_fingerprint_follows_the_maximal_length(tiny_model, tmp_path):
    """A model that reads fewer pieces is another model."""
    folder = link_tree(tiny_model, tmp_path / "shorter")
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    settings["max_seq_length"] = 20
    overwrite(folder / "sentence_bert_config.json", json.dumps(settings).encode())
    shorter = DendriticEncoder.load(folder)
    if shorter.max_length != 20:  # where the tokenizer's own limit wins
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer["model_max_length"] = 20
        overwrite(folder / "tokenizer_config.json", json.dumps(tokenizer).encode())
        shorter = DendriticEncoder.load(folder)
    assert shorter.max_length == 20
    assert shorter.fingerprint != DendriticEncoder.load(tiny_model).fingerprint


# Saving and loading.


@pytest.mark.parametrize(
    ("query", "document"),
    [
        (None, None),
        (make_head(), None),
        (None, make_head(dendrites=1)),
        (make_head(dendrites=2), make_head(seed=1)),
        ("shared", "shared"),
    ],
)
def test_save_and_load_keep_vectors_and_fingerprint(tiny, tmp_path, query, document):
    """What is loaded encodes bit for bit as what was saved; one shared head stays one."""
    shared = make_head(dendrites=1)
    query, document = (shared if head == "shared" else head for head in (query, document))
    encoder = tiny.with_heads(query_head=query, document_head=document)
    encoder.save(tmp_path / "saved")
    loaded = DendriticEncoder.load(tmp_path / "saved")
    assert loaded.fingerprint == encoder.fingerprint
    assert loaded.document_fingerprint == encoder.document_fingerprint
    np.testing.assert_array_equal(loaded.encode_queries(TEXTS), encoder.encode_queries(TEXTS))
    np.testing.assert_array_equal(loaded.encode_documents(TEXTS), encoder.encode_documents(TEXTS))
    assert (query is shared) == (
        loaded.query_head is not None and loaded.query_head is loaded.document_head
    )


@pytest.fixture
def saved(tiny, tmp_path) -> Path:
    """A folder with a saved encoder of two heads."""
    encoder = tiny.with_heads(query_head=make_head(dendrites=1), document_head=make_head(seed=1))
    encoder.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_folder_holds_safetensors_and_json_alone(saved):
    """No pickle, no code; the folder is readable like any other, and nothing lies beside it."""
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".txt"}
    assert list(saved.parent.iterdir()) == [saved]
    manifest = json.loads((saved / "nexus.json").read_text())
    assert manifest["heads"] == {
        "query": "query_head.safetensors",
        "document": "document_head.safetensors",
    }
    assert (manifest["dimension"], manifest["max_length"]) == (16, 32)
    umask = os.umask(0)
    os.umask(umask)
    assert saved.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize(
    "name",
    ["query_head.safetensors", "document_head.safetensors", "backbone/model.safetensors",
     "backbone/tokenizer.json", "backbone/config.json"],
)  # fmt: skip
def test_an_altered_or_missing_file_is_named(saved, name):
    """One more byte, half of the file, or no file at all."""
    whole = (saved / name).read_bytes()
    for data in (whole + b" ", whole[: len(whole) // 2]):
        (saved / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"was altered: the SHA-256 of {name} differs"):
            DendriticEncoder.load(saved)
    (saved / name).unlink()
    with pytest.raises(ValueError, match=f"is incomplete: {name} is missing"):
        DendriticEncoder.load(saved)


def test_a_file_of_the_backbone_without_a_hash_is_refused(saved):
    """A library may read it; a model card beside the manifest is no part of the model."""
    (saved / "README.md").write_text("a card")
    DendriticEncoder.load(saved)
    (saved / "backbone" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"its manifest has no hash of backbone/adapter_config"):
        DendriticEncoder.load(saved)


def alter(manifest, how):
    if how == "fingerprint":
        manifest["fingerprint"] = "0" * 64
    elif how == "version":
        manifest["version"] = 2
    elif how == "format":
        manifest["format"] = "other"
    elif how == "no hashes":
        del manifest["sha256"]
    elif how == "head without hash":
        del manifest["sha256"]["query_head.safetensors"]
    elif how == "heads swapped":
        manifest["heads"] = {
            "query": "document_head.safetensors",
            "document": "query_head.safetensors",
        }
    elif how == "a list":
        return []
    return manifest


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("fingerprint", "its fingerprint differs"),
        ("heads swapped", "its fingerprint differs"),
        ("version", "format version 2, this package reads 1: update it"),
        ("format", "has format version None"),
        ("no hashes", "is damaged: KeyError"),
        ("head without hash", "names heads that it has no hash of"),
        ("a list", "is damaged: TypeError"),
    ],
)
def test_an_altered_manifest_is_refused(saved, how, message):
    """The manifest cannot be changed unnoticed either."""
    path = saved / "nexus.json"
    path.write_text(json.dumps(alter(json.loads(path.read_text()), how)))
    with pytest.raises(ValueError, match=message):
        DendriticEncoder.load(saved)


def test_a_truncated_manifest_is_damaged(saved):
    """Half of the JSON is no JSON."""
    path = saved / "nexus.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"nexus.json is not valid JSON"):
        DendriticEncoder.load(saved)


def test_saving_again_replaces_the_whole_folder(saved, tiny):
    """A folder that an encoder was saved to takes another; nothing of the old one remains."""
    tiny.save(saved)
    assert not list(saved.glob("*head*"))
    assert DendriticEncoder.load(saved).fingerprint == tiny.fingerprint
    assert list(saved.parent.iterdir()) == [saved]


def test_a_foreign_folder_is_not_overwritten(tiny, tmp_path):
    """A folder with something else in it is refused and kept; an empty one is used."""
    (tmp_path / "mine").mkdir()
    tiny.save(tmp_path / "mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something other than a saved encoder"):
        tiny.save(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "years of work"


def test_an_unwritable_place_is_an_os_error(tiny, tmp_path):
    """Below a file there is no folder; no draft is left anywhere."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        tiny.save(tmp_path / "file" / "saved")
    with pytest.raises(OSError, match="file"):
        tiny.save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_save_leaves_the_old_folder(saved, tiny, monkeypatch):
    """When writing breaks off the saved encoder is as it was, and no draft is left."""
    before = DendriticEncoder.load(saved).fingerprint

    def fail(self, folder):
        folder.mkdir()
        (folder / "half").write_text("x")
        raise OSError("the disk is full")

    monkeypatch.setattr(TorchBackbone, "save", fail)
    with pytest.raises(OSError, match="the disk is full"):
        tiny.save(saved)
    monkeypatch.undo()
    assert DendriticEncoder.load(saved).fingerprint == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_without_a_model_is_refused(tmp_path):
    """An empty folder, and one with other files, hold no model."""
    with pytest.raises(ValueError, match="holds no sentence-transformers model"):
        DendriticEncoder.load(tmp_path)
    (tmp_path / "modules.json").write_text("[]garbage")
    with pytest.raises(ValueError, match="holds no readable model"):
        DendriticEncoder.load(tmp_path)


def test_a_truncated_plain_model_is_refused(tiny_model, tmp_path):
    """Half of the weights of a plain folder are no model."""
    folder = link_tree(tiny_model, tmp_path / "broken")
    data = (folder / "model.safetensors").read_bytes()
    overwrite(folder / "model.safetensors", data[: len(data) // 2])
    with pytest.raises(ValueError, match="holds no readable model"):
        DendriticEncoder.load(folder)


def test_weights_as_pickle_are_not_read(tiny_model, tmp_path):
    """Without safetensors there is no model, whatever else lies there."""
    folder = link_tree(tiny_model, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no readable model"):
        DendriticEncoder.load(folder)


# One backbone per process.


def test_one_backbone_serves_the_process(tiny_model, saved):
    """Loading twice, a copy, and from two threads at once, gives one backbone."""
    first, found = DendriticEncoder.load(tiny_model), []
    threads = [
        threading.Thread(target=lambda: found.append(DendriticEncoder.load(saved).backbone))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1]
    assert DendriticEncoder.load(str(tiny_model)).backbone is first.backbone
    assert found[0] is first.backbone  # a copy in another folder is the same backbone


def test_a_folder_that_changed_is_loaded_anew(tiny, prompted_model, tmp_path):
    """Another model under the same path is not taken for the one loaded before."""
    tiny.save(tmp_path / "saved")
    first = DendriticEncoder.load(tmp_path / "saved")
    DendriticEncoder.load(prompted_model).save(tmp_path / "saved")
    second = DendriticEncoder.load(tmp_path / "saved")
    assert second.backbone is not first.backbone
    assert second.fingerprint != first.fingerprint


def test_threads_encode_what_one_thread_encodes(tiny):
    """Four threads with texts of their own get the vectors of these texts."""
    expected = [tiny.encode_queries([f"text {n}"] * 3) for n in range(4)]
    found: dict[int, np.ndarray] = {}

    def encode(n):
        for _ in range(5):
            found[n] = tiny.encode_queries([f"text {n}"] * 3)

    threads = [threading.Thread(target=encode, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        np.testing.assert_array_equal(found[n], expected[n])


# As a plain sentence-transformers folder.


@pytest.mark.parametrize("headed", [False, True])
def test_save_sentence_transformers_gives_the_same_vectors(tiny, tmp_path, headed):
    """Any user of sentence-transformers gets our vectors, and so do we on loading it."""
    from sentence_transformers import SentenceTransformer

    head = make_head() if headed else None
    encoder = tiny.with_heads(query_head=head, document_head=head)
    encoder.save_sentence_transformers(tmp_path / "plain")
    theirs = SentenceTransformer(str(tmp_path / "plain"), device="cpu")
    vectors = theirs.encode(TEXTS, normalize_embeddings=not headed)
    np.testing.assert_allclose(vectors, encoder.encode_queries(TEXTS), atol=1e-6)
    ours = DendriticEncoder.load(tmp_path / "plain")
    np.testing.assert_allclose(
        ours.encode_documents(TEXTS), encoder.encode_documents(TEXTS), atol=1e-6
    )
    if headed:
        assert np.abs(vectors - tiny.encode_queries(TEXTS)).max() > 0.1


@pytest.mark.parametrize(
    ("query", "document"),
    [(make_head(), None), (make_head(), make_head()), (None, make_head())],
)
def test_heads_that_are_not_shared_are_no_plain_model(tiny, tmp_path, query, document):
    """One layer for both roles is all that such a folder can hold."""
    encoder = tiny.with_heads(query_head=query, document_head=document)
    with pytest.raises(ValueError, match="only one linear head, shared by both roles"):
        encoder.save_sentence_transformers(tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_dendrites_are_no_plain_model(tiny, tmp_path):
    """A dendrite is no Dense layer."""
    head = make_head(dendrites=1)
    encoder = tiny.with_heads(query_head=head, document_head=head)
    with pytest.raises(ValueError, match="dendrites=0, or use save"):
        encoder.save_sentence_transformers(tmp_path / "plain")


# The real model.


@pytest.mark.model
def test_the_real_model_equals_sentence_transformers(encoder):
    """all-MiniLM-L6-v2 has 384 dimensions, reads 256 pieces, and gives the usual vectors."""
    from sentence_transformers import SentenceTransformer

    from nexus_integrations.encoder.source import find_model

    texts = ["Who signs Form K-12?", "An insurance card.", "x", "word " * 150]
    reference = SentenceTransformer(str(find_model("all-MiniLM-L6-v2")), device="cpu")
    expected = reference.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_queries(texts), expected, atol=1e-6)
    assert (encoder.dimension, encoder.max_length) == (384, 256)


@pytest.mark.model
def test_batches_do_not_matter_to_the_real_model(clinic, clinic_table, encoder):
    """Passages encoded alone are those encoded with the whole corpus, to 1e-6."""
    for text in list(clinic[0].corpus.values())[:8]:
        np.testing.assert_allclose(
            encoder.encode_documents([text])[0], clinic_table[text], atol=1e-6
        )
