"""Makes the report of a sweep, an HTML page with Optuna's plots, a table of all trials and the cost. `recorder.py` asks for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from speechtrain.files import write_text
from speechtrain.report.pages import render
from speechtrain.sweep.study.cost import total_cost, trial_table
from speechtrain.sweep.study.results import Results
from speechtrain.sweep.study.storage import open_storage

_MAX_SLICES = 12


def sweep_page(study: optuna.Study, objectives: Sequence[str]) -> str:
    """Return the page; plots that cannot be drawn from these trials are left out."""
    from plotly.offline import get_plotlyjs

    trials = study.get_trials(deepcopy=False)
    results = Results(["minimize" if direction.name == "MINIMIZE" else "maximize" for direction in study.directions])
    for trial in trials:
        results.add(trial)
    return render(
        "sweep.html.j2",
        title=f"Sweep {study.study_name}",
        goal=", ".join(f"{direction.name.lower()} {name}" for name, direction in zip(objectives, study.directions, strict=False)),
        cost=total_cost(trials),
        running=sum(not trial.state.is_finished() for trial in trials),
        all_equal=results.all_equal,
        best=[{"number": trial.number, "values": list(trial.values), "params": dict(trial.params)} for trial in results.best[:10]],
        objectives=list(objectives),
        table=trial_table(trials, objectives),
        plots=list(_plots(study, objectives)),
        plotly=get_plotlyjs(),
        made=f"{datetime.now(tz=UTC):%Y-%m-%d %H:%M} UTC",
    )


def _plots(study: optuna.Study, objectives: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (title, HTML element) of each plot that can be drawn."""
    import optuna.visualization as draw

    single = len(study.directions) == 1
    name = objectives[0] if objectives else "value"
    makers: list[tuple[str, Callable[[], Any]]] = []
    if single:
        makers += [
            ("History", lambda: draw.plot_optimization_history(study, target_name=name)),
            ("Intermediate values", lambda: _by_epoch(draw.plot_intermediate_values(study))),
            *([] if _is_constant(study, 0) else [("Importance", lambda: draw.plot_param_importances(study, target_name=name))]),
            ("Parallel coordinates", lambda: draw.plot_parallel_coordinate(study, target_name=name)),
            ("Slices", lambda: draw.plot_slice(study, params=_swept(study)[:_MAX_SLICES], target_name=name)),
            ("Rank", lambda: draw.plot_rank(study, params=_swept(study)[:4], target_name=name)),
        ]
    elif len(study.directions) <= 3:
        makers.append(("Pareto front", lambda: draw.plot_pareto_front(study, target_names=list(objectives))))
        for index, objective in enumerate(objectives):
            if _is_constant(study, index):
                continue
            makers.append(
                (
                    f"Importance for {objective}",
                    lambda index=index, objective=objective: draw.plot_param_importances(  # type: ignore[misc]
                        study, target=lambda trial: trial.values[index], target_name=objective
                    ),
                )
            )
    makers.append(("Timeline", lambda: draw.plot_timeline(study)))
    for title, make in makers:
        try:
            figure = make()
        except Exception:  # too few trials, one value only: each plot has its own conditions
            continue
        if figure.data:
            figure.update_layout(title=None, margin={"t": 30, "l": 60, "r": 30, "b": 50}, height=None if title == "Rank" else 430)
            yield title, figure.to_html(full_html=False, include_plotlyjs=False, default_width="100%")


def _is_constant(study: optuna.Study, index: int) -> bool:
    """Return whether an objective has one value in all trials: Optuna finds each parameter as important as the others then."""
    return len({trial.values[index] for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}) == 1


def _by_epoch(figure: Any) -> Any:
    """Return a figure over the steps of a study, which pruners count from 0, with epochs counted from 1 in their place."""
    for trace in figure.data:
        trace.x = [step + 1 for step in trace.x]
    return figure.update_xaxes(title="epoch")


def _swept(study: optuna.Study) -> list[str]:
    return list(dict.fromkeys(name for trial in study.get_trials(deepcopy=False) for name in trial.params))


def write_page(path: Path, storage: str, study_name: str, objectives: Sequence[str]) -> None:
    """Write the page of a study, which is read from the storage of a URL."""
    warnings.simplefilter("ignore")
    study = optuna.load_study(study_name=study_name, storage=open_storage(storage))
    write_text(path, sweep_page(study, objectives))
