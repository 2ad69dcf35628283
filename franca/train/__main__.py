"""`python -m franca.train RUN_FOLDER/config.yaml`: train a run, or go on with it, in the folder of its configuration.

`--plan` prints instead what it would take, as JSON: parameters, FLOPs and memory of the model, which is not trained.

Exit codes: 0 finished, or paused at `until_iteration`; 75 interrupted by a signal, to be started again; 2 a
configuration or data that will not do, said in one line; 1 any other failure.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from franca.config import ConfigError, load_config
from franca.data.datasets import DataError
from franca.models.weights import WeightsError
from franca.train.checkpoint import CheckpointError
from franca.train.loop import train
from franca.train.metrics import NonFiniteError
from franca.train.plan import plan_run

EXIT_CODES = {"finished": 0, "paused": 0, "interrupted": 75}  # 75 is EX_TEMPFAIL of sysexits.h


def main(arguments: Sequence[str]) -> int:
    """Train the run that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m franca.train", description="train a run, or go on with it")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="config.yaml of a run folder")
    parser.add_argument("--plan", action="store_true", help="print what the run takes, as JSON, and do nothing else")
    options = parser.parse_args(arguments)
    path = options.config
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; a run folder holds one")
        if options.plan:
            print(json.dumps(plan_run(load_config(path)), indent=1))
            return 0
        return EXIT_CODES[train(load_config(path), folder=path.parent)]
    except (CheckpointError, ConfigError, DataError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (NonFiniteError, KeyboardInterrupt) as error:
        print(f"error: {error or 'stopped at once by a second Ctrl-C; what was not saved is lost'}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
