"""`python -m tasks.data NAME` puts a data set into the data folder. It is the one place that downloads anything."""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.request import urlretrieve

from tasks.data import text_prepare
from tasks.data.place import folder
from tasks.data.sets import DATA_SETS, GET

TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "food101": "Food101",
    "caltech256": "Caltech256",
}
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def get(name: str, arguments: argparse.Namespace) -> None:
    """Puts one data set, or the weights of one model, into the data folder.

    Raises:
        SystemExit: if no command can do it, with the way to get it.
    """
    if name in TORCHVISION:
        from torchvision import datasets

        getattr(datasets, TORCHVISION[name])(str(folder()), download=True)
    elif name.startswith("weights/"):
        from torchvision import models

        models.get_model_weights(name.removeprefix("weights/")).DEFAULT.get_state_dict(
            model_dir=str(folder() / "weights")
        )
    elif name in text_prepare.CORPORA:
        text_prepare.prepare(name, arguments.tokenizer, arguments.tokens, arguments.source)
    elif name == "shakespeare":
        file = folder() / "text" / "tinyshakespeare" / "input.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        urlretrieve(SHAKESPEARE, file)
    elif name in DATA_SETS and DATA_SETS[name].get != GET:
        raise SystemExit(f"{name}: {DATA_SETS[name].get.format(name=name)} (the data folder is {folder()})")
    else:
        names = [*TORCHVISION, *text_prepare.CORPORA, "shakespeare", "weights/MODEL"]
        raise SystemExit(f"NAME: found {name!r}, allowed: {', '.join(names)}; what comes with a package needs nothing")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m tasks.data", description="Puts a data set into the data folder.")
    parser.add_argument("name", metavar="NAME", nargs="+", help="data sets, or weights/MODEL")
    parser.add_argument("--tokenizer", choices=text_prepare.TOKENIZERS, default="gpt2", help="for corpora")
    parser.add_argument("--tokens", type=int, help="at most so many tokens of a corpus")
    parser.add_argument(
        "--from", dest="source", type=Path, help="a folder of the corpus's files, instead of a download"
    )
    arguments = parser.parse_args()
    for name in arguments.name:
        get(name, arguments)
        print(f"{name}: in {folder()}")


if __name__ == "__main__":
    main()
