"""``camlake verify``: proves that every listed input ended in exactly one of images and quarantine."""

from typing import TYPE_CHECKING

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.folders import refuse_missing
from pipeline.storage.lake.records import refuse_no_output
from schemas.errors import StoreError
from schemas.input_options import InputOptions
from schemas.options.reading import VerifyConfig
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    from pipeline.storage.lake.integrity.verify import VerifyReport


def run(config: VerifyConfig, screen: Screen) -> None:
    """Check the output, after a repair if configured, and print every problem; raises StoreError for any problem."""
    refuse_no_output(config.out, config, reads_only=False)
    if config.input:
        refuse_missing(config.input, config)
    from pipeline.storage.lake.integrity.repair import repair
    from pipeline.storage.lake.integrity.verify import verify

    fs, root = connect(config.out, config)
    if config.repair:
        for done in repair(fs, root, config.wait_s, screen.say):
            screen.result(f"repaired: {done}")
    report = verify(fs, root)
    problems, facts = report.problems, dict(report.facts)
    if config.input:
        compared = _compare(config, config.input)
        problems, facts = problems + compared.problems, facts | compared.facts
    for problem in problems:
        screen.result(f"problem: {problem}")
    screen.table("What was checked", ("fact", "value"), list(facts.items()))
    if problems:
        raise StoreError(f"{safe_url(config.out)}: {len(problems)} problems, see above")
    screen.result("complete: every listed input ended in exactly one of images or quarantine", **facts)


def _compare(config: VerifyConfig, input_url: str) -> "VerifyReport":
    """List the input with the options of the newest run, and return the new, changed and missing images."""
    from pipeline.storage.inputs.listing import list_inputs
    from pipeline.storage.lake.integrity.verify import compare_input
    from pipeline.storage.lake.records import load_runs

    fs, root = connect(config.out, config)
    chosen = load_runs(fs, root)[-1].config
    how = InputOptions(
        chosen.get("input_kind"), chosen.get("uri_column"), chosen.get("image_column"), chosen.get("id_column")
    )
    return compare_input(fs, root, list_inputs(input_url, config, out=config.out, how=how).batches)


ABOUT = "Prove that every listed input is accounted for and that every committed file is whole."

command = verb(
    ABOUT,
    VerifyConfig,
    run,
    "camlake verify s3://bucket/labels",
)

if __name__ == "__main__":
    main(command)
