"""Fuzz every reader of untrusted files for a limited time.

    pip install atheris
    python tests/long/fuzz.py --seconds 60 --out results/reliability/fuzz.json

Each reader in tests/hostile.py runs in its own process for --seconds. With atheris installed, valid files are
mutated guided by the coverage of the Python code (libFuzzer); otherwise at random. A crash is any outcome other
than a result or a UserError: another exception, a file written elsewhere, 20 seconds without a result, more than
4 GiB of memory, or a signal. The input and traceback of each crash are kept in --crashes. Takes ten times
--seconds, plus the start-ups.
"""

import argparse
import hashlib
import mmap
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

READERS = (
    "csv",
    "zip",
    "image",
    "photo",
    "exclude",
    "relabel",
    "cache",
    "probabilities",
    "checkpoint",
    "pickle",
    "config",
)
TIMEOUT = 20  # seconds for one input
MEMORY_MIB = 4096  # resident
MAX_BYTES = 32768  # of one input
INSTRUMENTED = ("fer_lightning", "PIL", "zipfile", "yaml", "omegaconf")


def fuzz(name: str, seconds: int, counts_file: Path, crashes: Path) -> None:
    """Fuzz one reader until the time is up, then exit the process."""
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None:
        import hostile
    else:
        with atheris.instrument_imports(include=list(INSTRUMENTED)):
            import hostile
    with counts_file.open("r+b") as file:
        counts = memoryview(mmap.mmap(file.fileno(), 24)).cast("q")  # tried, accepted, crashed; survives a kill
    seen: set[str] = set()

    def feed(content: bytes) -> None:
        counts[0] += 1
        try:
            counts[1] += hostile.attempt(name, content)
        except Exception as error:  # noqa: BLE001 (any exception is a finding)
            counts[2] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__} {where.filename}:{where.lineno}"
            if fault not in seen:
                seen.add(fault)
                keep(content, name, crashes, traceback.format_exc())

    seeds = hostile.READERS[name].seeds()
    for seed in seeds:
        feed(seed)
    if counts[1] != len(seeds):
        sys.exit(f"{name}: a valid file was rejected")
    if atheris is None:
        feed_randomly(feed, seeds, seconds)
    corpus = crashes / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    options = (f"-max_total_time={seconds}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY_MIB}")
    more = (f"-max_len={MAX_BYTES}", f"-artifact_prefix={crashes}/{name}-", "-verbosity=0")
    atheris.Setup([sys.argv[0], str(corpus), *options, *more], feed)
    atheris.Fuzz()


def feed_randomly(feed: object, seeds: list[bytes], seconds: int) -> None:
    """Feed random mutations, without coverage guidance."""
    import random
    import signal

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    end = time.monotonic() + seconds
    chance = random.Random()
    while time.monotonic() < end:
        signal.alarm(TIMEOUT)
        content = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 8)):
            start, length = chance.randrange(len(content) + 1), chance.randint(1, 64)
            other = chance.choice(seeds)
            at = chance.randrange(len(other))
            content[start : start + chance.choice((0, length))] = chance.choice(
                (b"", other[at : at + length], chance.randbytes(length), b"\xff" * 4, b"\0" * 4)
            )
        feed(bytes(content[:MAX_BYTES]))  # type: ignore[operator]
    signal.alarm(0)
    sys.exit(0)


def keep(content: bytes, name: str, crashes: Path, report: str) -> None:
    """Save the input and the traceback of a crash."""
    stem = crashes / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    stem.with_suffix(".bin").write_bytes(content)
    stem.with_suffix(".txt").write_text(report)


def main() -> int:
    """Fuzz the readers, print a table, and return 1 if any crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="time for each reader; default %(default)s")
    parser.add_argument(
        "--readers", nargs="+", choices=READERS, default=READERS, metavar="NAME", help="readers; default all"
    )
    parser.add_argument("--crashes", type=Path, default=Path("fuzz"), help="folder for crashes; default fuzz")
    parser.add_argument("--out", type=Path, metavar="PATH", help="write the counts as JSON")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        fuzz(args.child[0], args.seconds, Path(args.child[1]), args.crashes)

    from importlib.util import find_spec

    from fer_lightning.files import write_json
    from fer_lightning.text import format_table

    args.crashes.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name in args.readers:
        counts_file = args.crashes / f"counts-{name}"
        counts_file.write_bytes(bytes(24))
        command = [sys.executable, __file__, "--child", name, str(counts_file)]
        command += ["--seconds", str(args.seconds), "--crashes", str(args.crashes)]
        with (args.crashes / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        tried, accepted, crashed = memoryview(counts_file.read_bytes()).cast("q")
        counts[name] = {
            "tried": tried,
            "accepted": accepted,
            "refused": tried - accepted - crashed - bool(process.returncode),
            "crashed": crashed + bool(process.returncode),  # a timeout, a signal, too much memory
            "peak_mib": round(usage.ru_maxrss / 1024),
        }
        print(f"{name}: {counts[name]}", file=sys.stderr, flush=True)
    header = ["reader", "tried", "accepted", "refused", "crashed", "peak MiB"]
    print(format_table(header, [[name, *(f"{n:,}" for n in row.values())] for name, row in counts.items()]))
    if args.out:
        engine = "atheris" if find_spec("atheris") else "blind"
        write_json(args.out, {"engine": engine, "seconds_each": args.seconds, "readers": counts})
    return 1 if any(row["crashed"] for row in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
