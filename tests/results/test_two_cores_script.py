"""results/two_cores.sh: its commands compose, each uses what earlier ones wrote, and a failure ends it."""

import sys
from pathlib import Path

import pytest
import scripts

from fer_lightning.config.cli import main

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.slow
def test_every_command_composes_and_uses_only_what_earlier_ones_wrote():
    composed = []

    def compose(cfg, run_dir):
        composed.append((run_dir, cfg))
        (run_dir / "results.json").write_text('{"status": "finished", "history": []}')
        (run_dir / "checkpoints").mkdir()
        (run_dir / "checkpoints/best.ckpt").touch()

    def used(words):
        values = [word.split("=", 1)[1] for word in words if word.startswith(("ckpt=", "distill.ckpt="))]
        if words[1].endswith("choose_ensemble.py"):
            values = [",".join(words[2 : words.index("--out")])]
        return [Path(ckpt) for value in values for ckpt in value.strip("[]").split(",")]

    tested = []
    for command in scripts.plan("two_cores.sh", "trainer.log_every_n_steps=7"):
        assert all(ckpt.exists() for ckpt in used(command)), command
        if command[1] == "results/choose_ensemble.py":
            assert not tested
            continue
        assert command[:3] == ["python", "train.py", "-m"]
        assert main(compose, command[2:]) == 0
        if "stages=[test]" in command:
            tested.append(command)
        else:
            assert not tested, "PrivateTest is used last"
            assert "stages=[fit]" in command
    names = [str(run_dir.parent.relative_to("runs")) for run_dir, _ in composed]
    assert {name: names.count(name) for name in names} == {
        "best/two-cores-round-1": 2,
        "best/two-cores-round-2-0": 1,
        "best/two-cores-round-2-1": 1,
        "fast_70/two-cores": 3,
        "tiny/two-cores": 2,
        "best_cpu/two-cores": 10,
        **{f"default/two-cores-{name}": 1 for name in ("best-0", "best-1", "tiny-0", "tiny-1", "ensemble")},
    }
    for name, (_, cfg) in zip(names, composed, strict=True):
        assert (cfg.trainer["log_every_n_steps"] == 7) == (not name.startswith("default")), name


# Replaces Python: notes its arguments, fails where FAIL says, and writes the choice of the ensemble.
PYTHON = """#!/usr/bin/env bash
[ "$1" != -c ] || exec "$PYTHON" "$@"
echo "$*" >> "$STARTED"
[ -z "$FAIL" ] || [[ "$*" != *"$FAIL"* ]] || exit 1
if [ "$1" = results/choose_ensemble.py ]; then
    mkdir -p runs
    echo '{"chosen": {"ckpt": ["a.ckpt", "b.ckpt"], "tta": "mirror"}}' > "${!#}"
fi
"""


def test_a_failure_ends_the_script_and_the_next_run_goes_on(tmp_path):
    start = scripts.with_fake_python("two_cores.sh", PYTHON, tmp_path)
    done, started = start(PYTHON=sys.executable, FAIL="experiment=fast_70")
    assert (done.returncode, len(started)) == (1, 4)
    done, started = start(PYTHON=sys.executable, FAIL="")
    assert done.returncode == 0
    [distill] = [command for command in started if "experiment=tiny" in command]
    assert "distill.ckpt=[a.ckpt,b.ckpt]" in distill
    assert started[-1].endswith("ckpt=[a.ckpt,b.ckpt] tta=mirror")
    # The choice stays: `tiny` is trained on it.
    _, again = start(PYTHON=sys.executable, FAIL="")
    assert again == [command for command in started if "choose_ensemble" not in command]
