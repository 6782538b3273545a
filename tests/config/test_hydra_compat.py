"""Each private API of Hydra that the package uses still works; a failure shows which one does not."""

import pytest

from fer_lightning.config.compat import IntervalSweep, flag_parser, parse_override, run_composed, sweep_values
from fer_lightning.config.compose import CONF


def test_hydras_own_flags():
    flags = flag_parser().parse_args(["-m", "a=1", "--cfg", "job"])
    assert (flags.multirun, flags.cfg, flags.overrides) == (True, "job", ["a=1"])
    assert not any((flags.help, flags.hydra_help, flags.info, flags.shell_completion))


def test_hydras_grammar():
    plain, deleted, swept = (parse_override(text) for text in ("a.b=[1,x]", "~c", "d=1,2"))
    assert (plain.key_or_group, plain.value(), plain.input_line) == ("a.b", [1, "x"], "a.b=[1,x]")
    assert deleted.is_delete()
    assert swept.is_sweep_override()
    assert sweep_values(swept) == [1, 2]
    assert sweep_values(parse_override("d='a, b',[\"c\"]")) == ["a, b", ["c"]]
    interval = parse_override("e=interval(1,2)")
    assert interval.is_interval_sweep()
    assert isinstance(interval.value(), IntervalSweep)


def test_a_composed_job_runs_in_its_folder_and_raises_its_own_error(tmp_path):
    cfg = CONF.compose(["optim=sgd"])
    folder = tmp_path / "a" / "b"
    seen = []
    run_composed(cfg, folder, lambda plain: seen.append(plain.optim.name))
    assert seen == ["sgd"]
    assert folder.is_dir()

    def broken(plain):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        run_composed(cfg, folder, broken)
