"""The shell scripts of results/: their plans, and copies of them that start another program in place of Python."""

import os
import shlex
import shutil
import subprocess

from project import ROOT


def plan(name, *arguments):
    """Return the commands that a script would run."""
    done = subprocess.run(
        ["bash", str(ROOT / "results" / name), *arguments],
        env={**os.environ, "PLAN": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def with_fake_python(name, python, folder):
    """Return a function that runs a copy of a script with another program in place of Python.

    Args:
        name: file in results/.
        python: source of the program, which adds each of its command lines to the file named by $STARTED.
        folder: empty folder; the copy's project is `project` in it.

    Returns:
        A function that takes the script's arguments, and variables of its environment as keywords. It returns the
        completed process and the command lines that the script started.
    """
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text(python)
    (folder / "bin/python").chmod(0o755)
    (folder / "project/results").mkdir(parents=True)
    script = shutil.copy(ROOT / "results" / name, folder / "project/results")
    started = folder / "started"

    def start(*arguments, **env):
        started.write_text("")
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", script, *arguments],
            env={**os.environ, "PATH": path, "STARTED": str(started), **env},
            capture_output=True,
            text=True,
        )
        return done, started.read_text().splitlines()

    return start
