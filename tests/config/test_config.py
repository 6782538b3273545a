"""The command line reports mistakes with a suggestion before it writes or imports anything heavy."""

import inspect
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from composing import composed, never
from lightning.pytorch import Trainer
from project import ROOT

from fer_lightning.arguments import fits
from fer_lightning.config import compose
from fer_lightning.config.cli import main
from fer_lightning.config.compose import CONF, CONF_DIR, build
from fer_lightning.config.overrides import TRAINER_ARGUMENTS
from fer_lightning.config.saved import _check_saved
from fer_lightning.config.schema import keys, shown, to_dict
from fer_lightning.errors import UserError, did_you_mean

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def in_conf(monkeypatch, tmp_path):
    """Replace conf/ by a copy, and return a function that writes a file into it."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF_DIR, conf)
    monkeypatch.setattr(compose, "CONF_DIR", conf)
    return lambda name, text: (conf / name).write_text(text)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainer.max_epoch=5", "Did you mean trainer.max_epochs?"),
        ("+trainer.max_epoch=5", "Did you mean trainer.max_epochs?"),
        ("++trainer.max_epoch=5", "Did you mean trainer.max_epochs?"),
        ("trainer.gradient_clip=1", "Did you mean trainer.gradient_clip_val?"),
        ("modle=x", "Did you mean model?"),
        ("data.batchsize=8", "Did you mean data.batch_size?"),
        ("+data.batchsize=8", "Did you mean data.batch_size?"),
        ("data.pth=x", "Did you mean data.path?"),
        ("data.source.pth=x", "Did you mean data.source.path?"),
        ("data.skip_bad=perhaps", "data.skip_bad=perhaps: expected true or false"),
        ("lr=1e-3", "Did you mean optim.lr?"),
        ("max_epochs=3", "Did you mean trainer.max_epochs?"),
        ("model=fer_modle0", "Did you mean fer_model0?"),
        ("augment=basline", "Did you mean baseline?"),
        ("experiment=dmo", "Did you mean demo?"),
        ("data=sinthetic", "Did you mean synthetic?"),
        ("augment.rotation=5", "Did you mean augment.rotation_deg?"),
        ("~callbacks.x", ""),
        ("data.batch_size=eight", "data.batch_size=eight: expected an integer"),
        ("data.batch_size=8.5", "expected an integer"),
        ("data.download=perhaps", "expected true or false"),
        ("optim.lr=fast", "expected a number"),
        ("data.batch_size=null", "data.batch_size=null: expected an integer, e.g. data.batch_size=32"),
        ("checkpoint.every_n_minutes=x", "checkpoint.every_n_minutes=x: expected a number or null."),
        ("ckpt=[1]", "ckpt=[1]: expected a string, a list of strings or null."),
        ("stages=fit", "stages=fit: expected a list of strings, e.g. stages=[fit,test]."),
        ("model.channels=16", "expected a list"),
        ("tta=3", "tta=3: expected a string, e.g. tta=none"),
        ("trainer.max_epochs=ten", "expected an integer"),
        ("augment=glob(*)", "list the choices"),
        ("name=../elsewhere", "becomes a folder name"),
        ("seed=range(0,3,0)", "must not be zero"),
        ("~checkpoint.every_n_minutes", "'checkpoint.every_n_minutes' does not exist"),
        ("hydra.job.num=abc", "'abc' of type 'str' could not be converted"),
        ("hydra.sweep.subdir=x", "a run's folder is runs/<experiment>/<name>"),
        ("resume=nowhere", "resume=nowhere: no run to resume"),
        ("--epochs", "without dashes"),
        ("trainer.max_epochs", "expected NAME=value"),
        ("data.source=3", "data.source: expected a _target_"),
        ("seed=${tta}", "seed=none: expected an integer"),
        ("optim.lr=${nope}", "Interpolation key 'nope' not found"),
    ],
)
@pytest.mark.parametrize("sweep", [False, True])
def test_mistakes_are_reported_with_a_remedy(argument, message, sweep, capsys, tmp_path):
    assert main(never, ["-m", argument] if sweep and not argument.startswith("resume") else [argument]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["optim.lr=1,2"], "error: optim.lr=1,2: several values need a sweep. Add -m, or give one value.\n"),
        (
            ["model=resnet,fer_model0", "--cfg", "job"],
            "error: model=resnet,fer_model0: several values need a sweep.",
        ),
        (["seed=range(3)"], "error: seed=range(3): several values need a sweep."),
        (["-cn", "mine"], "error: --config-name is not supported. Use --config-dir=FOLDER for your own files.\n"),
        (["--experimental-rerun", "x"], "error: --experimental-rerun is not supported. Use resume=RUN_FOLDER.\n"),
        (["hydra.mode=MULTIRUN"], "error: hydra.mode=MULTIRUN: leave it out, and add -m for a sweep.\n"),
        (["+hydra.callbacks.mine._target_=nowhere.Mine"], "error: A setting of hydra.* is invalid: "),
    ],
)
def test_what_is_not_a_single_run_is_one_line(arguments, line, capsys, tmp_path):
    assert main(never, arguments) == 1
    assert capsys.readouterr().err.startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_a_job_may_change_into_its_folder(tmp_path):
    folders = []
    assert main(lambda cfg, run_dir: folders.append(run_dir.resolve()), ["hydra.job.chdir=true", "name=a"]) == 0
    assert folders == [tmp_path / "runs/default/a"]


def test_a_global_group_may_be_deleted():
    jobs = []
    assert main(lambda cfg, run_dir: jobs.append(cfg.experiment), ["~experiment"]) == 0
    assert jobs == ["default"]


@pytest.mark.parametrize("key", ["data.exclude", "data.source.exclude"])
def test_settings_of_the_data_source_work_with_and_without_source_in_the_key(key):
    [(cfg, _)] = composed(f"{key}=a.txt", "data.seed=3", "data.batch_size=8")
    assert cfg.data.source == {
        "_target_": "fer_lightning.data.fer2013.load_faces",
        "path": None,
        "download": True,
        "skip_bad": False,
        "exclude": "a.txt",
        "relabel": None,
        "labels": "fer2013",
        "targets": "majority",
        "ferplus": None,
        "classes": None,
        "rename": None,
        "seed": 3,
    }
    assert cfg.data.batch_size == 8
    assert cfg.overrides == [f"{key}=a.txt", "data.seed=3", "data.batch_size=8"]


def test_settings_of_the_data_source_can_be_swept():
    got = composed("-m", "data=synthetic", "data.seed=3,4", "name=s")
    assert [cfg.data.source["seed"] for cfg, _ in got] == [3, 4]
    assert got[1][0].overrides == ["data=synthetic", "data.seed=4", "name=s"]


def test_a_custom_data_source_accepts_its_own_settings():
    own = ["data.source._target_=my.faces", "data.source.folder=x", "~data.skip_bad"]
    [(cfg, _)] = composed(*own)
    assert (cfg.data.source["_target_"], cfg.data.source["folder"]) == ("my.faces", "x")
    assert "skip_bad" not in cfg.data.source
    [(cfg, _)] = composed("data._target_=my.faces", "data.folder=x")
    assert (cfg.data.source["_target_"], cfg.data.source["folder"]) == ("my.faces", "x")
    assert cfg.overrides == ["data._target_=my.faces", "data.folder=x"]


def test_a_sweep_file_whose_key_lacks_the_source_is_reported(capsys, in_conf):
    params = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      data.path: a,b\n"
    in_conf("sweep/mine.yaml", params)
    assert main(never, ["-m", "sweep=mine"]) == 1
    assert "data.path does not exist. Did you mean data.source.path?" in capsys.readouterr().err


def test_mistakes_in_swept_values_are_reported(capsys, tmp_path):
    assert main(never, ["-m", "augment=none,basline"]) == 1
    assert "Did you mean baseline?" in capsys.readouterr().err
    assert main(never, ["-m", "optim.lr=1e-3,fast"]) == 1
    assert "optim.lr=fast" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_zero_parallel_processes_are_refused(capsys, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert main(never, ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0", "seed=0,1"]) == 1
    assert (
        capsys.readouterr().err
        == "error: hydra.launcher.n_jobs=0: expected a number of processes, or -1 for all cores.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_key_in_an_experiment_file_is_reported(capsys, in_conf):
    in_conf("experiment/mine.yaml", "# @package _global_\ndata:\n  batchsize: 8\n")
    assert main(never, ["experiment=mine"]) == 1
    assert "Did you mean data.batch_size?" in capsys.readouterr().err


@pytest.mark.parametrize("experiment", sorted(CONF.options("experiment") - {"none"}))
def test_an_experiment_sets_only_what_the_chosen_network_and_augmentation_have(experiment):
    [(cfg, _)] = composed(f"experiment={experiment}", "model=torchvision", "augment=none")
    assert (list(cfg.model), list(cfg.augment)) == (["name", "architecture", "weights"], ["_target_"])


def test_every_run_of_a_sweep_has_the_settings_of_its_own_network():
    runs = composed("-m", "experiment=best,demo", "model=torchvision,resnet,fer_model0", "name=s")
    torchvision = {"name": "torchvision", "architecture": "resnet18", "weights": None}
    resnet = {"name": "resnet", "blocks": 2, "stem_stride": 1}
    assert [cfg.model for cfg, _ in runs] == [
        torchvision,
        resnet | {"channels": [64, 128, 256, 256], "dropout": 0.2},
        {"name": "fer_model0", "channels": [64, 128, 256, 256]},
        torchvision,
        resnet | {"channels": [16, 32, 64], "dropout": 0.0},
        {"name": "fer_model0", "channels": [16, 32, 64]},
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # What a person names is never left out.
        (
            ["experiment=demo", "model=torchvision", "model.channels=[4]"],
            "model.channels does not exist. Choose from",
        ),
        (
            ["experiment=best_cpu", "ablation=mirrored", "model=resnet"],
            "model.mirrored (set in a YAML file) does not",
        ),
    ],
)
def test_a_setting_that_the_network_lacks_is_refused_if_named(arguments, message, capsys):
    assert main(never, arguments) == 1
    assert message in capsys.readouterr().err


def test_cfg_shows_an_experiment_without_what_does_not_apply(capfd):
    assert main(never, ["experiment=demo", "model=torchvision", "--cfg", "job"]) == 0
    assert "channels:" not in capfd.readouterr().out


def test_an_experiment_can_set_top_level_settings(in_conf):
    in_conf("experiment/mine.yaml", "# @package _global_\nseed: 7\nmonitor: loss/val\n")
    [(cfg, _)] = composed("experiment=mine")
    assert (cfg.seed, cfg.monitor) == (7, "loss/val")


@pytest.mark.parametrize("value", ["a.ckpt", "[a.ckpt,b/b.ckpt]", "null"])
def test_ckpt_accepts_one_or_several_whatever_the_experiment_sets(value, in_conf):
    in_conf("experiment/several.yaml", "# @package _global_\nckpt: [c.ckpt]\n")
    in_conf("experiment/one.yaml", "# @package _global_\nckpt: c.ckpt\n")
    for experiment in ("one", "several"):
        [(cfg, _)] = composed(f"experiment={experiment}", f"ckpt={value}")
        assert cfg.ckpt == {"a.ckpt": "a.ckpt", "null": None}.get(value, ["a.ckpt", "b/b.ckpt"])


@pytest.mark.parametrize(("value", "got"), [("auto", "auto"), ("[1]", [1]), ("'0,1'", "0,1"), ("null", None)])
def test_trainer_arguments_accept_values_of_any_type(value, got):
    [(cfg, _)] = composed(f"trainer.devices={value}")
    assert cfg.trainer["devices"] == got


def test_every_trainer_argument_is_listed():
    assert set(TRAINER_ARGUMENTS) == set(inspect.signature(Trainer.__init__).parameters) - {"self"}


@pytest.mark.parametrize("argument", ["trainer.gradient_clip_val=0.5", "+trainer.gradient_clip_val=0.5"])
def test_trainer_arguments_need_no_plus(argument):
    [(cfg, _)] = composed(argument)
    assert cfg.trainer["gradient_clip_val"] == 0.5
    assert cfg.trainer["max_epochs"] == 20


def test_run_folders():
    [(_, folder)] = composed("experiment=demo", "name=first")
    assert folder.parts[-3:] == ("runs", "demo", "first")
    [(_, folder)] = composed("name=2026")
    assert folder.name == "2026"
    [(_, folder)] = composed("seed=0")
    assert folder.parts[-3:-1] == ("runs", "default")
    jobs = composed("-m", "name=both", "seed=0,1")
    assert [folder.parts[-4:] for _, folder in jobs] == [("runs", "default", "both", str(n)) for n in (0, 1)]
    assert [cfg.seed for cfg, _ in jobs] == [0, 1]


def test_a_run_is_not_overwritten(capsys):
    Path("runs/default/mine").mkdir(parents=True)
    Path("runs/default/mine/config.yaml").write_text("seed: 0\n")
    assert main(never, ["name=mine"]) == 1
    assert "runs/default/mine already contains a run. Choose another name" in capsys.readouterr().err


def test_experiment_baseline_is_the_known_recipe():
    [(cfg, _)] = composed("experiment=baseline")
    assert cfg.data.split == "kaggle_folder"
    assert (cfg.data.image_size, cfg.data.batch_size, cfg.data.mean, cfg.data.std) == (
        128,
        32,
        0.5,
        0.5,
    )
    assert cfg.optim == {
        "name": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0.0,
    }
    assert cfg.trainer["max_epochs"] == 20
    [(plain, _)] = composed()
    assert plain.data == replace(cfg.data, split="official")
    for group in ("augment", "model", "optim", "trainer"):
        assert getattr(plain, group) == getattr(cfg, group)


def test_every_setting_has_a_default_of_its_type_and_a_help_text(capsys):
    [(cfg, _)] = composed()
    plain = to_dict(cfg)
    assert main(never, ["--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    for key, kind, default, text in keys():
        assert fits(default, kind), key
        assert f"{key}={shown(default)} {text}" in output
        node, _, name = key.rpartition(".")
        if not key.startswith("data."):
            assert (plain[node] if node else plain)[name] == default, key


def test_help_lists_each_setting_once_in_80_columns(capsys):
    assert main(never, ["--help", "callbacks=[default,ema]", "optim=sgd", "seed=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = lines[lines.index("== Settings ==") :]
    names = [line.strip().partition("=")[0] for line in settings if re.match(r" *[a-z_0-9.]+=", line)]
    assert len(names) == len(set(names))
    assert {key for key, *_ in keys()} | {"data.path", "augment.flip_prob", "callbacks.ema.horizon_epochs"} <= set(
        names
    )
    assert {"seed=7", "stages=[fit,test]", "    optim.momentum=0.9", "    augment.scale=[0.9,1.1]"} <= set(lines)
    assert all(len(line) <= 80 or len(line.split()) == 1 for line in lines)
    for group in CONF.groups() - {"hydra"}:
        choices = ", ".join(sorted(CONF.options(group) - {"null", "None"}))
        assert f"{group}: {choices}" in " ".join(" ".join(lines).split())


def test_a_wrong_type_in_an_experiment_file_is_reported(capsys, in_conf):
    in_conf("experiment/mine.yaml", "# @package _global_\ndata:\n  batch_size: eight\n")
    assert main(never, ["experiment=mine"]) == 1
    expected = "error: data: batch_size=eight: expected an integer.\n"
    assert capsys.readouterr().err == expected
    assert main(never, ["-m", "experiment=mine", "name=s"]) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error


def test_help_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as left: assert not left.code, left.code\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "experiment=demo" in done.stdout
    assert "trainer.max_epochs=20" in done.stdout


def test_the_clock_starts_before_the_imports():
    # The fake clock reports whether Hydra, the first slow import, has been imported.
    code = (
        "import sys, time; time.perf_counter = lambda: float('hydra' in sys.modules)\n"
        "from fer_lightning.commands import train\nassert train._process_start == [0.0]\n"
        "train.main(['--cfg', 'job'])\nassert time.perf_counter() == 1.0"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_build_reports_wrong_arguments_and_targets():
    with pytest.raises(UserError, match="flip_prob=2"):
        build({"_target_": "fer_lightning.data.augment.BatchAugment", "flip_prob": 2})
    with pytest.raises(UserError, match="Nothing"):
        build({"_target_": "fer_lightning.data.augment.Nothing"})


@pytest.mark.parametrize(
    ("name", "candidates", "answer"),
    [
        ("data.batchsize", {"data.batch_size", "data.path"}, " Did you mean data.batch_size?"),
        ("lr", {"optim.lr", "model"}, " Did you mean optim.lr?"),
        ("zzz", {"optim.lr", "model"}, ""),
    ],
)
def test_did_you_mean(name, candidates, answer):
    assert did_you_mean(name, candidates) == answer


def test_several_teachers_replace_one():
    [(cfg, _)] = composed("experiment=tiny", "distill.ckpt=[best,a.ckpt]")
    assert cfg.distill.ckpt == ["best", "a.ckpt"]


@pytest.mark.parametrize(
    "choice",
    [
        f"{path.parent.name}={path.stem}"
        for path in sorted(CONF_DIR.glob("*/*.yaml"))
        if path.parent.name != "sweep"  # applies to sweeps only
    ],
)
def test_a_run_with_any_choice_can_be_resumed(choice):
    # Ablations change experiment=fast, including its network.
    [(cfg, _)] = composed(choice, *(["experiment=fast"] if choice.startswith("ablation=") else []))
    saved = to_dict(cfg)
    _check_saved(compose.OmegaConf.create(saved), set(), compose.CONF)
    saved["callbacks"] = {"mine": {"_target_": "os.system"}}
    with pytest.raises(UserError, match=r"callbacks\.mine\._target_=os\.system is not one of"):
        _check_saved(compose.OmegaConf.create(saved), set(), compose.CONF)


# The user's own configuration folders


@pytest.fixture
def own(tmp_path):
    """Create a folder with an experiment, a model and a callback."""
    folder = tmp_path / "own"
    for name, text in {
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /model: wide\nseed: 7\n",
        "model/wide.yaml": "name: fer_model0\nchannels: [32, 64]\n",
        "callbacks/mine.yaml": "mine:\n  _target_: contributed.MyCallback\n  n: 3\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("way", ["flag", "search path"])
def test_own_configurations_are_found(way, own):
    given = ["--config-dir", str(own)] if way == "flag" else [f"hydra.searchpath=[file://{own}]"]
    [(cfg, folder)] = composed(*given, "experiment=mine", "callbacks=mine", "callbacks.mine.n=4")
    assert (cfg.seed, cfg.model["channels"]) == (7, [32, 64])
    assert cfg.callbacks == {"mine": {"_target_": "contributed.MyCallback", "n": 4}}
    assert folder.parts[-2] == "mine"
    first = f"--config-dir={own}" if way == "flag" else given[0]
    assert cfg.overrides == [first, "experiment=mine", "callbacks=mine", "callbacks.mine.n=4"]
    assert main(never, [cfg.overrides[0], "--help"]) == 0


def test_own_configurations_are_swept(own):
    got = composed("-m", "--config-dir", str(own), "model=wide,fer_model0", "name=s")
    assert [cfg.model["channels"] for cfg, _ in got] == [[32, 64], [16, 32, 128]]


def test_a_data_file_without_a_source_is_reported(own, capsys):
    (own / "data").mkdir()
    for text in ("batch_size: 8\n", "_target_: my.faces\nfolder: x\n", "source: my.faces\n"):
        (own / "data" / "mine.yaml").write_text(text)
        for further in ([], ["data.path=x"]):
            assert main(never, ["--config-dir", str(own), "data=mine", *further]) == 1
            error = capsys.readouterr().err
            assert error.startswith("error: ")
            assert "Traceback" not in error
    assert main(never, ["--config-dir", str(own), "data=mine"]) == 1
    assert "data.source: expected a _target_" in capsys.readouterr().err


def test_a_run_in_an_own_folder_is_not_trusted(own, capsys):
    [(cfg, _)] = composed("callbacks.mine._target_=os.system", "name=a")
    folder = own / "stranger"
    folder.mkdir()
    (folder / "config.yaml").write_text(compose.to_yaml(to_dict(cfg)))
    assert main(never, ["--config-dir", str(own), f"resume={folder}"]) == 1
    assert "callbacks.mine._target_=os.system is not one of the settings" in capsys.readouterr().err


def test_a_damaged_own_file_is_reported(own, capsys):
    [(cfg, _)] = composed("name=a")
    folder = Path("runs/default/a")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(compose.to_yaml(to_dict(cfg)))
    (own / "model" / "broken.yaml").write_text("a: [\n")
    assert main(never, ["--config-dir", str(own), f"resume={folder}"]) == 1
    assert f"{own / 'model' / 'broken.yaml'} cannot be read" in capsys.readouterr().err


def test_packages_on_the_search_path_are_left_to_hydra():
    [(cfg, _)] = composed("hydra.searchpath=[pkg://hydra]")
    assert cfg.overrides == ["hydra.searchpath=[pkg://hydra]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=mien"], "experiment=mien does not exist. Did you mean mine?"),
        (["model=wid"], "Did you mean wide?"),
        (["--config-dir", "nowhere"], "--config-dir=nowhere: nowhere is not a folder."),
        (["hydra.searchpath=[file://nowhere]"], "nowhere is not a folder."),
    ],
)
def test_mistakes_about_own_configurations_are_reported(arguments, message, own, capsys):
    given = [] if "nowhere" in message else ["--config-dir", str(own)]
    assert main(never, [*given, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_misspelt_key_in_an_own_file_is_reported(own, capsys):
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\nsede: 7\n")
    assert main(never, ["--config-dir", str(own), "experiment=mine"]) == 1
    assert "sede (set in a YAML file) does not exist. Did you mean seed?" in capsys.readouterr().err


def test_a_run_with_own_configurations_needs_them_to_be_resumed(own, capsys):
    [(cfg, _)] = composed("--config-dir", str(own), "callbacks=mine", "name=a")
    folder = Path("runs/default/a")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(compose.to_yaml(to_dict(cfg)))
    got = composed("--config-dir", str(own), f"resume={folder}")
    assert got[0][0].callbacks == cfg.callbacks
    assert main(never, [f"resume={folder}"]) == 1
    assert "callbacks.mine._target_=contributed.MyCallback is not one of the settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "classes", "rename"),
    [
        ("data.classes=folders", "folders", None),
        ("data.classes=[Glück,not sure,3]", ["Glück", "not sure", 3], None),
        ("data.rename={contempt: null, fear: negative}", None, {"contempt": None, "fear": "negative"}),
        ("data.rename.contempt=null", None, {"contempt": None}),
        ("+data.source.rename.fear=negative", None, {"fear": "negative"}),
    ],
)
def test_classes_are_set_by_name_list_and_mapping(setting, classes, rename):
    [(cfg, _)] = composed(setting)
    assert (cfg.data.source["classes"], cfg.data.source["rename"]) == (classes, rename)


def test_wrong_keys_and_types_of_classes(capsys):
    for setting, message in (
        ("data.clases=folders", "data.clases does not exist. Did you mean data.classes?"),
        ("data.classes=3", "data.classes=3: expected a string, a list or null."),
        ("data.renam.fear=sad", "data.renam.fear does not exist."),
    ):
        assert main(lambda cfg, run_dir: None, [setting]) == 1
        assert message in capsys.readouterr().err
