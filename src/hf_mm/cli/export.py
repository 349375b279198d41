"""`hf-mm export`: write a saved model as a checkpoint that plain transformers loads."""

import argparse
import sys
from collections.abc import Sequence

from ..hub.export import export

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Print the files written, one a line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="hf-mm export", description=__doc__)
    parser.add_argument("source", metavar="FOLDER", help="folder or Hub id of a model of this package")
    parser.add_argument("target", metavar="OUT", help="new folder for the converted model")
    parser.add_argument(
        "--as", dest="model_type", metavar="TYPE", help="architecture of transformers, if several"
    )
    args = parser.parse_args(argv)
    try:
        names = export(args.source, args.target, args.model_type)
    except (OSError, ValueError) as error:
        print(f"hf-mm export: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"{args.target}/{name}" for name in names))
    return 0
