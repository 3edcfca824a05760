"""``python -m tests.benchmarks.study``: train the CAM paper's networks on cluttered scenes and check its claims there.

Scenes are rendered once, and every network learns them from random values. Finished trainings stay in the folder, so a
run that was stopped, or whose minutes were over, continues with the next training. At full size, with a GPU:

    python -m tests.benchmarks.study --folder large --size 224 --cells 14 --width 1 --scenes 20000 --lr 3e-4
"""

import time
from pathlib import Path

import torch

from jobs.terminal.console import Screen, main, verb
from schemas.errors import UsageError
from tests.benchmarks.study import figure, page, scene_sets
from tests.benchmarks.study.results import Result, claim_folder, read_all
from tests.benchmarks.study.running import run_tasks, unfinished, workers
from tests.benchmarks.study.study_config import StudyConfig
from tests.benchmarks.study.study_networks import StudyNetwork, chosen_networks, tasks


def run(config: StudyConfig, screen: Screen) -> None:
    """Render, train what is left while there is time, and write the page, its numbers and the figure."""
    started = time.monotonic()
    entries, device = chosen_networks(config.networks), chosen_device(config)
    folder = claim_folder(config)
    planned = tasks(entries, config.seeds)
    left = unfinished(config, planned)
    screen.say(f"{len(planned)} trainings, {len(planned) - len(left)} of them finished before")

    def may_begin() -> bool:
        return time.monotonic() - started < 60 * config.minutes

    def report(entry: StudyNetwork, result: Result) -> None:
        way = entry.ways[0]
        screen.say(
            f"{(time.monotonic() - started) / 60:.1f} min: {entry.key}, seed {result.seed}, in {result.seconds:.0f} s:"
            f" top-1 error {result.wrong.mean():.1%}, MaxBoxAcc by {way} {result.found[way].right.mean():.1%}"
        )

    with workers(config.workers) as pool:
        scene_sets.render_all(config, folder / "scenes", pool, screen.say)
        run_tasks(config, device, left, pool, may_begin, report)
    write(config, entries, folder, screen)
    missing = unfinished(config, planned)
    if missing:
        screen.say(f"{len(missing)} trainings are left; the same command goes on with them")


def write(config: StudyConfig, entries: tuple[StudyNetwork, ...], folder: Path, screen: Screen) -> None:
    """Write study.md, study.json and study.png of the finished trainings; raises UsageError where none is finished."""
    results = read_all(folder, entries, config.seeds)
    if not results:
        raise UsageError(f"--minutes {config.minutes:g}: no training was begun; allowed: more, with the same --folder")
    study = page.summarize(config, entries, results, scene_sets.load(folder / "scenes", "test"))
    page.write(study, folder)
    finished = tuple(entry for entry in entries if entry.key in results)
    (folder / "study.png").write_bytes(figure.maps_png(config, finished, folder))
    screen.table("study", study.columns, study.rows)
    for number, judged in enumerate(study.claims, 1):
        screen.result(f"claim {number}: {judged.verdict}. {judged.claim.text}", verdict=judged.verdict)
    screen.result(f"written: {folder / 'study.md'}, study.json, study.png")


def chosen_device(config: StudyConfig) -> str:
    """Return the device of the trainings; raises UsageError where CUDA is configured but not available."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device here; allowed: cpu, or auto")
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


command = verb(
    "Train the networks of the CAM paper on cluttered scenes and hold its claims against what they find.",
    StudyConfig,
    run,
    "python -m tests.benchmarks.study --minutes 45",
)

if __name__ == "__main__":
    main(command)
