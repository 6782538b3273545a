"""Paths, names and choices arrive as they are typed, or one line shows how to type them."""

import inspect
import random
import re
import shlex
import unicodedata
from pathlib import Path

import pytest
from composing import composed, never

from fer_lightning.config import compose
from fer_lightning.config.cli import main
from fer_lightning.config.compat import parse_override
from fer_lightning.config.compose import CONF, Conf
from fer_lightning.config.grammar import parse_typed, quoted, values_of
from fer_lightning.config.overrides import as_choice
from fer_lightning.config.schema import PATHS, to_dict
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folder")

# Names that cannot mean anything else in Hydra's grammar, and names that could.
CLEAR = [
    "fer.zip",
    "josé.zip",
    unicodedata.normalize("NFD", "été.zip"),
    "人脸.zip",
    "😀.zip",
    "my data/fer.zip",
    "archive (1).zip",
    "archive (1)",
    "fer[1].zip",
    "epoch=3.ckpt",
    "runs/x/checkpoints/epoch=3-step=10.ckpt",
    "a:b.zip",
    "a{1}.zip",
    "it's.zip",
    'a"b.zip',
    "a$b.zip",
    "$HOME.zip",
    "a#b.zip",
    "a%20b.zip",
    "a&b;c!d<e>f^g`h.zip",
    "a~b.zip",
    r"C:\Users\x\fer.zip",
    r"C:\my data\(1)\fer.zip",
    "backslash\\",
    "two\nlines",
    "2024",
    "1e3",
    "1_000",
    "1.10",
    "true",
    "nan",
    "=x",
    "(x)",
    "x]",
    "\\'",
]
AMBIGUOUS = [
    "a,b.zip",
    "epoch=3,step=10.ckpt",
    "x,",
    "[a].zip",
    "[a,b]",
    "[é (1)]",
    "[a",
    "{a}.zip",
    '"a" (1).zip',
    "'",
    "choice(a,b)",
    "range(3)",
]
ONLY_AS_FILES = ['"a"', r"\\server\x", r"a\(1\)", r"a\,b", " a", "a ", "int(3)"]  # Hydra changes these


def make(name: str) -> None:
    try:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    except OSError as error:  # Windows
        pytest.skip(f"the file system refuses {name}: {error}")


@pytest.mark.parametrize("key", ["data.path", "data.source.exclude", "ckpt", "+distill.ckpt", "++resume"])
@pytest.mark.parametrize("name", CLEAR + AMBIGUOUS + ONLY_AS_FILES)
def test_an_existing_path_arrives_unchanged(name, key):
    make(name)
    assert parse_typed(f"{key}={name}").value() == name


@pytest.mark.parametrize("key", ["data.path", "ckpt", "resume"])
@pytest.mark.parametrize("name", CLEAR)
def test_a_name_without_a_second_meaning_needs_no_file(name, key):
    assert parse_typed(f"{key}={name}").value() == name


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_the_error_for_an_ambiguous_path_shows_how_to_type_it(name, capsys, tmp_path):
    assert main(never, [f"data.path={name}"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    [argument] = shlex.split(re.search("quote it: (.*)", line)[1])
    assert parse_typed(argument).value() == name
    assert list(tmp_path.iterdir()) == []


def test_any_text_can_be_quoted():
    characters = random.Random(0)
    for _ in range(500):
        text = "".join(characters.choices("""'"\\ab ,=()[]{}:~$é\n\t""", k=characters.randrange(12)))
        assert parse_override(f"a={quoted(text)}").value() == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ckpt=null", None),
        ("ckpt=[a.ckpt, best]", ["a.ckpt", "best"]),
        ("ckpt=[epoch=3.ckpt,b (1).ckpt]", ["epoch=3.ckpt", "b (1).ckpt"]),
        ('ckpt=["a,b.ckpt",c.ckpt]', ["a,b.ckpt", "c.ckpt"]),
        ("data.path='a, b'", "a, b"),
        (r"data.path=a\,b", "a,b"),
        ("data.path=${oc.env:DATA}/fer.zip", "${oc.env:DATA}/fer.zip"),
        ("data.path=${oc.env:DATA}/fer (1).zip", "${oc.env:DATA}/fer (1).zip"),
        ("model.channels=[8,16]", [8, 16]),
        ("callbacks.mine={a: 1}", {"a": 1}),
        ("seed=2024", 2024),
        ("name=2026", 2026),
    ],
)
def test_what_hydra_understands_keeps_its_meaning(text, value):
    for name in ("null", "2024", "a", "model.channels=[8,16]"):
        make(name)
    assert parse_typed(text).value() == value


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optim.lr=1,2", [1, 2]),
        ("data.path=a.zip,b (1).zip", ["a.zip", "b (1).zip"]),
        ("data.path=2024,2025", ["2024", "2025"]),
        ('tta="none","mirror"', ["none", "mirror"]),
        ("ckpt=null,é.ckpt", [None, "é.ckpt"]),
        ("ckpt=[a,b],[c,d]", [["a", "b"], ["c", "d"]]),
        ("data.path=C:\\a\\,D:\\b", ["C:\\a\\", "D:\\b"]),
    ],
)
def test_sweeps_keep_their_meaning(text, values):
    for name in ("2024", "2025", "C:\\a\\", "D:\\b"):
        make(name)
    assert values_of(parse_typed(text)) == values


def test_a_syntax_error_is_not_taken_for_a_name():
    for text in ("model.channels=[8,16", "trainer.devices=[0", "optim.lr=interval(1,2", "ckpt=[a,b],[é,c]"):
        with pytest.raises(UserError, match="cannot parse"):
            parse_typed(text)


def test_existing_paths_with_an_interpolation_are_refused(capsys):
    make("a${b}.zip")
    assert main(never, ["data.path=a${b}.zip"]) == 1
    assert capsys.readouterr().err.startswith("error: a${b}.zip: Hydra would replace ${...}. Rename the file")


def test_a_path_that_is_not_utf8_is_refused(capsys):
    assert main(never, ["data.path=\udce9.zip"]) == 1
    assert "is not valid UTF-8" in capsys.readouterr().err


def test_every_path_of_the_data_is_known_as_one():
    parameters = inspect.signature(load_faces).parameters
    paths = {f"data.source.{name}" for name, parameter in parameters.items() if "Path" in str(parameter.annotation)}
    assert paths - {"data.source.cache_dir"} <= set(PATHS)


NAMES = ["archive (1).zip", 'it\'s "q" \\ $HOME #1, [é=3] & {x} 😀.zip']


def test_a_recorded_command_can_be_pasted_and_its_run_resumed():
    for name in NAMES:
        make(name)
    arguments = [f"data.path={NAMES[1]}", f"ckpt=[{NAMES[0]},epoch=3.ckpt]", "name=été"]
    [(cfg, folder)] = composed(*arguments)
    assert cfg.data.source["path"] == NAMES[1]
    assert cfg.ckpt == [NAMES[0], "epoch=3.ckpt"]
    assert folder.name == "été"
    for name in NAMES:  # a quoted path needs no file
        Path(name).unlink()
    assert composed(*shlex.split(shlex.join(cfg.overrides))) == [(cfg, folder)]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(compose.to_yaml(to_dict(cfg)), encoding="utf-8")
    [(resumed, _)] = composed(f"resume={folder}", "data.exclude=fer (1).txt")
    assert (resumed.data.source["path"], resumed.ckpt) == (NAMES[1], cfg.ckpt)
    assert resumed.data.source["exclude"] == "fer (1).txt"
    assert resumed.overrides == [*cfg.overrides, 'data.exclude="fer (1).txt"']


def test_paths_are_swept():
    jobs = composed("-m", "data.path=archive (1).zip,人脸.zip,fer[2].zip", "name=日本")
    assert [cfg.data.source["path"] for cfg, _ in jobs] == ["archive (1).zip", "人脸.zip", "fer[2].zip"]
    assert [folder.parts[-2:] for _, folder in jobs] == [("日本", str(number)) for number in range(3)]
    for cfg, _ in jobs:
        path = parse_override(cfg.overrides[0]).value()
        assert path == cfg.data.source["path"]


# The home folder


@pytest.fixture
def home(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("josé (1)")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))  # Windows
    return folder


def test_the_home_folder_is_expanded_in_every_path(home):
    [(cfg, _)] = composed(
        "data.path=~/x.zip",
        "data.exclude=~/x.txt",
        "data.relabel=~/x.csv",
        "ckpt=[~/a.ckpt,~/b.ckpt,best]",
        "distill.ckpt=~/c.ckpt",
        "trainer.default_root_dir=~/d",
        "callbacks.mine.dirpath=~/e",
    )
    assert cfg.data.source["path"] == f"{home}/x.zip"
    assert cfg.data.source["exclude"] == f"{home}/x.txt"
    assert cfg.data.source["relabel"] == f"{home}/x.csv"
    assert cfg.ckpt == [f"{home}/a.ckpt", f"{home}/b.ckpt", "best"]
    assert cfg.distill.ckpt == f"{home}/c.ckpt"
    assert cfg.trainer["default_root_dir"] == f"{home}/d"
    assert cfg.callbacks["mine"] == {"dirpath": f"{home}/e"}
    jobs = composed("-m", "data.path=~/a.zip,b~/c.zip", "name=s")
    assert [cfg.data.source["path"] for cfg, _ in jobs] == [f"{home}/a.zip", "b~/c.zip"]


def test_the_home_folder_is_expanded_for_resume(home, capsys):
    assert main(never, ["resume=~/run"]) == 1
    assert f"resume={home}/run: no run to resume" in capsys.readouterr().err


def test_the_home_folder_is_expanded_in_configuration_files(home):
    (home / "experiment").mkdir()
    text = "# @package _global_\nckpt: [~/a.ckpt, best]\ndistill:\n  ckpt: ~/b.ckpt\n"
    (home / "experiment" / "mine.yaml").write_text(text)
    for way in ("--config-dir=~", "hydra.searchpath=[~]"):
        [(cfg, _)] = composed(way, "experiment=mine")
        assert (cfg.ckpt, cfg.distill.ckpt) == ([f"{home}/a.ckpt", "best"], f"{home}/b.ckpt")


# Names of runs


@pytest.mark.parametrize(
    "name", ["été", unicodedata.normalize("NFD", "été"), "人脸", "👩\u200d💻", "1.10", "1e3", "007", "true"]
)
def test_a_name_becomes_the_folder_as_typed(name):
    [(cfg, folder)] = composed(f"name={name}")
    assert str(cfg.name) == folder.name == name


@pytest.mark.parametrize(
    "name", ["a=1", "my run", "a\u202eb", "a\u00a0b", "a\nb", "[a", "~/x", ".x", "-x", "a/b", "..", "\u200d"]
)
def test_a_name_that_is_no_folder_name_is_refused(name, capsys, tmp_path):
    assert main(never, [f"name={name}"]) == 1
    error = capsys.readouterr().err
    assert "becomes a folder name" in error or "cannot parse" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_name_that_is_too_long_is_refused_before_anything_is_written(sweep, capsys, tmp_path):
    assert main(never, [*sweep, f"name={'a' * 300}"]) == 1
    assert capsys.readouterr().err.endswith("is too long for a folder name. Choose a shorter one.\n")
    assert list(tmp_path.iterdir()) == []


# Choices of config groups


OPTIONAL = ("experiment", "sweep", "ablation", "debug", "augment", "callbacks", "logger")


@pytest.mark.parametrize("group", OPTIONAL)
def test_null_and_none_leave_out_a_group(group):
    forms = "{}=null", "{}=NULL", "{}=None", "{}=none", "+{}=null", "++{}=none", "{}=[]", "~{}", "~{}=null"
    for form in forms:
        assert as_choice(parse_typed(form.format(group)), CONF).input_line == f"{group}=none"


def test_all_groups_that_a_run_does_not_need_can_be_left_out():
    [(cfg, folder)] = composed(*(f"{group}=null" for group in OPTIONAL))
    assert cfg.overrides == [f"{group}=none" for group in OPTIONAL]
    assert cfg.experiment == folder.parts[-2] == "default"
    assert cfg.callbacks == cfg.logger == {}


@pytest.mark.parametrize("form", ["{}=null", "{}=none", "+{}=null", "{}=[]", "{}={{}}", "{}=", "~{}"])
@pytest.mark.parametrize("group", ["model", "optim", "data", "trainer", "hydra/launcher", "hydra"])
def test_a_group_that_a_run_needs_cannot_be_left_out(group, form, capsys, tmp_path):
    flags = ["-m"] if group == "hydra/launcher" else []
    assert main(never, [*flags, form.format(group)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {group}=")
    assert "does not exist." in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("plus", ["+", "++"])
@pytest.mark.parametrize("choice", ["experiment=demo", "model=resnet", "callbacks=[default,ema]", "logger=none"])
def test_a_choice_may_have_a_plus_sign(choice, plus):
    assert as_choice(parse_typed(f"{plus}{choice}"), CONF).input_line == choice


def test_a_group_of_ones_own_needs_its_plus_sign(tmp_path):
    (tmp_path / "own" / "mine").mkdir(parents=True)
    conf = Conf((tmp_path / "own",))
    assert as_choice(parse_typed("+mine=a"), conf).input_line == "+mine=a"


def test_left_out_and_several_choices_are_swept():
    jobs = composed("-m", "experiment=null,demo", "+augment=null,strong", "name=s")
    assert [(cfg.experiment, cfg.overrides[1]) for cfg, _ in jobs] == [
        ("default", "augment=none"),
        ("default", "augment=strong"),
        ("demo", "augment=none"),
        ("demo", "augment=strong"),
    ]
    assert jobs[0][1].parts[-3:] == ("default+demo", "s", "0")


def test_several_experiments_are_combined():
    [(cfg, folder)] = composed("experiment=[demo,fast]", "name=a")
    assert cfg.experiment == folder.parts[-2] == "demo+fast"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("hydra/sweeper=null", "hydra/sweeper=null: expected hydra/sweeper=NAME."),
        ("~hydra/job_logging", "~hydra/job_logging: expected hydra/job_logging=NAME."),
        ("hydra.launcher=null", "hydra.launcher=null: expected settings."),
        ("hydra.sweeper=null", "hydra.sweeper=null: expected settings."),
        ("hydra.sweeper.params.seed=1", "hydra.sweeper.params.seed=1: the sweeper has no params."),
        ("distill=3", "distill=3: expected settings such as distill.ckpt=VALUE."),
        ("~model.name", "model: name is missing."),
        ("model.name=null", "model: name is missing."),
        ("~augment._target_", "augment: _target_ is missing."),
        ("resume=a,b", "resume=a,b: expected the folder of one run."),
        ("=x", "cannot parse '=x': expected NAME=value, e.g. trainer.max_epochs=20.\n"),
        ("é=1", "cannot parse 'é=1': expected NAME=value, e.g. trainer.max_epochs=20.\n"),
        ("experiment=été", "experiment=été does not exist."),
        ("optim.lr=1é", "optim.lr=1é: expected a number"),
    ],
)
def test_other_mistakes_are_one_line(argument, message, capsys, tmp_path):
    assert main(never, [argument]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nodes_of_settings_may_be_null():
    [(cfg, _)] = composed("distill=null", "checkpoint=null")
    assert (cfg.distill.weight, cfg.checkpoint.every_n_minutes) == (0.5, None)
