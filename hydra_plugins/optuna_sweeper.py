"""Hydra's sweeper for Optuna 5: ``python train.py -m sweep=optuna optim.lr=interval(1e-4,1e-2)``.

Hydra discovers plugins in the namespace package ``hydra_plugins``, which therefore has no __init__.py. The search
space is written in Hydra's grammar: interval() and int(interval()) are ranges of floats and integers, logarithmic
with tag(log, ...); range() is a range with a step; any other list of values is a categorical choice. The search
itself is in fer_lightning/runs/search.py. Hydra's own plugin, hydra-optuna-sweeper 1.3, requires Optuna 2.
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
    """The schema of hydra.sweeper for sweep=optuna."""

    _target_: str = "hydra_plugins.optuna_sweeper.OptunaSweeper"
    n_trials: int = 20
    seed: int = 0
    params: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="fer_lightning")


class OptunaSweeper(Sweeper):
    """A sweeper that launches the trials of an Optuna study, one after the other.

    Args:
        n_trials: total number of trials, including those of earlier and parallel processes.
        seed: seed of the sampler; its choices depend only on this and on the earlier trials.
        params: settings to search over, by name; the command line overrides them.
    """

    def __init__(self, n_trials: int, seed: int, params: dict[str, str]) -> None:
        self.n_trials, self.seed, self.params = n_trials, seed, params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the parser and the launcher."""
        self.config = config
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the search over the settings of conf/ and the command line."""
        from fer_lightning.runs.search import search

        texts = [f"{key}={values}" for key, values in self.params.items()] + arguments
        overrides = {o.get_key_element(): o for o in self.parser.parse_overrides(texts)}

        def launch(number: int, settings: list[str]) -> None:
            for done in self.launcher.launch([settings], initial_job_idx=number):
                _ = done.return_value  # raises the job's exception, if any

        search(
            Path(self.config.hydra.sweep.dir),
            self.config.monitor,
            self.n_trials,
            self.seed,
            suggest=lambda trial: [_setting(trial, override) for override in overrides.values()],
            launch=launch,
        )


def _setting(trial: Any, override: Override) -> str:
    """Return an override as NAME=value, with the value that the trial suggests."""
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
