"""Runs Snakemake's commands in forks of a process that has imported it, which saves seconds at the start of each.

It is a process of its own, so that its forks have none of the tests' threads. A line of JSON on its input is one run:
arguments, environment, folder, and the files for the output; its answer is a line with the exit code.
"""

import atexit
import json
import os
import sys

from snakemake import cli


def run(arguments: list[str], environment: dict[str, str], folder: str, out: str, err: str) -> int:
    """Returns the exit code of Snakemake's command line, run in a fork."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in (1, out), (2, err):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.path[0] = folder  # as with python -m
        sys.argv = ["snakemake", *arguments]
        cli.main(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        print(run(**json.loads(line)), flush=True)
