"""Write made.json anew, on purpose; the log says why."""

import json
import sys
from pathlib import Path

from tests import tiny
from tests.integration import golden
from tests.integration.golden import chain


def main() -> None:
    """Run the command line."""
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit("python -m tests.integration.golden FOLDER, one that is not there yet")
    where = Path(sys.argv[1])
    made = golden.summary(chain.make(where / "checkout", tiny.save_whole(where / "teacher")))
    golden.MADE.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in made.items()) + "\n}\n")
    print(f"{golden.MADE}: {len(made)} tensors and columns")


if __name__ == "__main__":
    main()
