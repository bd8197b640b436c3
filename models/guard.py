"""Fit the guards of the shipped bundles: `models/<bundle>/models/guard.safetensors`, figures in `docs/guard.json`.

    python models/guard.py --data DIR [BUNDLE …]

DIR holds the sets that the bundles were trained on; the patients are split as `models/datalists.py` splits them, and
only those of training and validation are looked at. A few minutes on a CPU. Run `make pins` afterwards.
"""

import argparse
import json
import sys
from pathlib import Path

import datalists
import torch

from node.bundles import SHIPPED, load
from workers.train import guard


def main() -> None:
    """Fit the guard of each bundle and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    parser.add_argument("bundles", nargs="*", default=list(datalists.LISTS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the same sums in the same order
    for name in options.bundles:
        lists = datalists.datalist(datalists.LISTS[name](options.data))
        told = lambda share, name=name: print(f"\r{name} {share:4.0%}", end="", file=sys.stderr)  # noqa: E731
        figures = guard.fit(load(SHIPPED / name), lists, options.data, told)
        print(f"\r{name} {json.dumps(figures)}")


if __name__ == "__main__":
    main()
