"""A worker process of this machine: `python -m circuits.sweep.worker FOLDER NAME`."""

import sys
from pathlib import Path

from circuits.sweep.work import work


def main(arguments: list[str]) -> None:
    """Work on the sweep of a folder under a name."""
    folder, name = arguments
    work(Path(folder), name)


if __name__ == "__main__":
    main(sys.argv[1:])
