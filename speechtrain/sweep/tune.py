"""A search within one process for the settings of a decoder: the model runs once, and each trial only decodes its log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from speechtrain.config.overlay import overlaid
from speechtrain.config.schemas.commands import EvaluateConfig
from speechtrain.config.targets import Direction, task_directions
from speechtrain.console import console, format_metric
from speechtrain.errors import ConfigError, Problem, did_you_mean
from speechtrain.inference.evaluation import evaluate, scored
from speechtrain.sweep.space.space import Choice, Space, parse_space


def tune_decoder(cfg: EvaluateConfig, overrides: Sequence[str]) -> list[str]:
    """Search settings of the decoder for the best metric on the validation data, and print each trial and the best one.

    Args:
        cfg: the config of `conf/evaluate.yaml`.
        overrides: overrides of the model's config; ranges of `decoder.*` are searched.

    Returns:
        The overrides with the best values in place of the ranges.

    Raises:
        ConfigError: there is no range, there are several decoders, or there is no such metric.
    """
    keys = [item for item in overrides if item.startswith("decoder.")]
    swept = {parameter.path for parameter in parse_space(keys, {}).all_parameters()}
    if not swept:
        message = "there is nothing to search"
        raise ConfigError([Problem("decoder", message, "give a range, for example 'decoder.lm_weight=interval(0,3)'")])
    space = parse_space([item for item in keys if item.partition("=")[0] in swept], {})
    fixed = [item for item in overrides if item.partition("=")[0] not in swept]
    split = cfg.split or "val"
    base = evaluate(cfg, [*fixed, *_any_point(space)], split=split)
    if len(base.results) != 1:
        raise ConfigError([Problem("decoder", "several cannot be searched at once", "choose one of them")])
    start = base.results[0].recognizer
    metrics = list(base.results[0].metrics)
    metric = cfg.metric or ("wer" if "wer" in metrics else start.cfg.objective.metric.rpartition("/")[2])
    if metric not in metrics:
        raise ConfigError([Problem("metric", f"there is no metric '{metric}'", did_you_mean(metric, metrics))])
    direction = task_directions(str(start.cfg.task["_target_"])).get(metric, "minimize")

    def value_of(settings: list[str]) -> float:
        value = scored("", settings, start.with_decoder(overlaid(start.cfg, settings)), base.passes).metrics[metric]
        console.print(f"{metric} {format_metric(metric, value):>9}   {' '.join(settings)}", markup=False, highlight=False)
        return value

    best, value = search_in_process(space, value_of, direction=direction, n_trials=cfg.n_trials, seed=cfg.seed)
    console.print(f"\nbest on {split}: {metric} {format_metric(metric, value)}   {' '.join(best)}", markup=False)
    return [*fixed, *best]


def _any_point(space: Space) -> list[str]:
    """Return the overrides of a point of the space, to build the decoder with before the search."""
    domains = [(parameter, parameter.domain) for parameter in space.all_parameters()]
    return [parameter.text(domain.labels[0] if isinstance(domain, Choice) else domain.low) for parameter, domain in domains]


def search_in_process(
    space: Space, value_of: Callable[[list[str]], float], *, direction: Direction, n_trials: int | None, seed: int
) -> tuple[list[str], float]:
    """Return the overrides with the best value, and that value; of equal ones the first.

    Args:
        space: what is searched, without branches; each point of a finite one is tried once if `n_trials` is None.
        value_of: returns the value of overrides.
        direction: direction in which values are better.
        n_trials: number of points that Optuna's TPE proposes; None: all points of a finite space.
        seed: seed of the search.

    Raises:
        ConfigError: the space is infinite and `n_trials` is None.
    """
    sign = 1 if direction == "minimize" else -1
    results: list[tuple[float, list[str]]] = []
    if n_trials is None:
        if not space.is_finite():
            raise ConfigError([Problem("n_trials", "must be set, for the ranges hold infinitely many values", "for example n_trials=50")])
        for point in space.points():
            settings = space.overrides(point)
            results.append((value_of(settings), settings))
    else:
        import optuna

        from speechtrain.sweep.study.study import distribution

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=seed))
        distributions = {parameter.name: distribution(parameter.domain) for parameter in space.all_parameters()}
        for _ in range(n_trials):
            trial = study.ask(distributions)
            settings = space.overrides(trial.params)
            results.append((value_of(settings), settings))
            study.tell(trial, results[-1][0])
    value, settings = min(results, key=lambda item: sign * item[0])
    return settings, value
