"""Hydra's sweeper for Optuna 5: ``python train.py -m sweep=optuna optim.lr=interval(1e-4,1e-2)``.

Hydra finds it here by the folder's name, which is a namespace package and so has no __init__.py. What is searched
is written in Hydra's own grammar: interval() and int(interval()) are ranges of numbers, on a logarithmic scale with
tag(log, ...); range() is a range in steps; everything else that lists values is a choice among them. The searching
itself is in fer_lightning/runs/search.py. The plugin that Hydra offers, hydra-optuna-sweeper 1.3, wants Optuna 2.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class OptunaSweeperConf:
    """hydra.sweeper with sweep=optuna."""

    _target_: str = "hydra_plugins.optuna_sweeper.OptunaSweeper"
    n_trials: int = 20
    seed: int = 0
    params: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="fer_lightning")


class OptunaSweeper(Sweeper):
    """Launches the trials of a study, one after the other.

    Args:
        n_trials: how many there shall be in the end, those of former and of parallel processes included.
        seed: of the choices; they depend on nothing else but the trials before.
        params: settings to search over, by name; those of the command line go before.
    """

    def __init__(self, n_trials: int, seed: int, params: dict[str, str]) -> None:
        self.n_trials, self.seed, self.params = n_trials, seed, params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra calls first."""
        self.config = config
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """What Hydra calls with the command line's settings."""
        from fer_lightning.runs.search import search

        texts = [f"{key}={values}" for key, values in self.params.items()] + arguments
        overrides = {o.get_key_element(): o for o in self.parser.parse_overrides(texts)}

        def launch(number: int, settings: list[str]) -> None:
            for done in self.launcher.launch([settings], initial_job_idx=number):
                _ = done.return_value  # raises what the launcher met with

        search(
            Path(self.config.hydra.sweep.dir),
            self.config.monitor,
            self.n_trials,
            self.seed,
            suggest=lambda trial: [_setting(trial, override) for override in overrides.values()],
            launch=launch,
        )


def _setting(trial: Any, override: Override) -> str:
    """An override as the trial has it, as NAME=value."""
    if not override.is_sweep_override():
        return str(override.input_line)
    name, values = override.key_or_group, override.value()
    if isinstance(values, IntervalSweep):
        suggest = trial.suggest_int if isinstance(values.start, int) else trial.suggest_float
        value = suggest(name, values.start, values.end, log="log" in values.tags)
    elif isinstance(values, RangeSweep):
        steps = list(override.sweep_iterator())
        suggest = trial.suggest_int if all(isinstance(step, int) for step in steps) else trial.suggest_float
        value = suggest(name, min(steps), max(steps), step=abs(values.step))
    else:
        value = trial.suggest_categorical(name, list(override.sweep_string_iterator()))
    return f"{override.get_key_element()}={value}"
