"""Names that a user types: of datasets, models and files; what is misspelt, and what is in use."""

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nexus_integrations.data import RetrievalDataset, SimilarityDataset


def read_questions(name: str, *, training: bool = False) -> "RetrievalDataset":
    """Read `file.json` or `folder:split`; a split is never guessed.

    `training` refuses the test split: a measure of questions that were trained on says nothing.
    """
    from nexus_integrations.data import RetrievalDataset

    folder, _, split = name.rpartition(":")
    if not Path(folder or name).is_dir():
        return RetrievalDataset.from_json(existing(name))
    if not folder:
        folder, split = name, ""
    splits = sorted({path.name.split(".")[0] for path in Path(folder, "qrels").glob("*.tsv*")})
    if not splits:
        raise FileNotFoundError(f"{folder} has no split: there is no file qrels/….tsv in it")
    if split not in splits:
        wrong = f"has no split {split!r}" if split else "needs a split"
        example = "train" if "train" in splits else splits[0]
        raise ValueError(
            f"{folder} {wrong}: it has {', '.join(splits)}; name one, as in {folder}:{example}"
        )
    if training and split == "test":
        raise ValueError(
            f"{name} is the test split, which is kept to measure with: train and choose on others, "
            f"as in {folder}:train"
        )
    return RetrievalDataset.from_beir(folder, split=split)


def read_training_data(
    name: str, scale: tuple[float, float]
) -> "RetrievalDataset | SimilarityDataset":
    """Read sentence pairs with scores from a CSV file, or questions from anything else."""
    from nexus_integrations.data import SimilarityDataset

    if name.endswith((".csv", ".csv.gz")):
        return SimilarityDataset.from_csv(existing(name), scale=scale)
    return read_questions(name, training=True)


def model_name(name: str | None) -> str | None:
    """Return the name of a model; one that is misspelt is not looked up on the hub.

    Raises `FileNotFoundError` for a name that can only be a folder's, and is not.
    """
    if name is None or name == "all-MiniLM-L6-v2" or Path(name).expanduser().is_dir():
        return name
    if "/" in name and not name.startswith((".", "/", "~")):
        return name
    raise FileNotFoundError(
        f"there is no folder {name}{_near(Path(name).expanduser())}; models of the hub are named "
        "organisation/model"
    )


def existing(path: str | Path) -> Path:
    """Return a path that exists; else raise `FileNotFoundError` with the names that are near."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}{_near(path)}")
    return path


def check_free(*paths: Path | None, force: bool) -> None:
    """Raise `FileExistsError` for a file that is there, or a folder that is not empty."""
    for path in paths:
        if path is None or force or not path.exists():
            continue
        if not path.is_dir():
            raise FileExistsError(f"{path} exists: --force overwrites it")
        if any(path.iterdir()):
            raise FileExistsError(f"{path} is not empty: --force overwrites what is in it")


def check_free_for_encoder(folder: Path, *, force: bool) -> None:
    """Raise before the work what would be raised when its result is saved to this folder."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file: name a folder to save the encoder to")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "nexus.json").is_file():
        raise FileExistsError(f"{folder} holds something other than a saved encoder")
    check_free(folder, force=force)


def _near(path: Path) -> str:
    names = [found.name for found in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, sorted(names), n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
