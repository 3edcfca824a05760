"""``camlake verify``: proves that every listed input ended in exactly one of images and quarantine."""

from jobs.console import Screen, main, verb
from pipeline.storage.filesystems import connect
from schemas.errors import StoreError
from schemas.reading import VerifyConfig
from schemas.url_secrets import safe_url


def run(config: VerifyConfig, screen: Screen) -> None:
    """Repair the output where asked, check it and print every problem; raises StoreError where there is one."""
    from pipeline.storage.lake.repair import repair
    from pipeline.storage.lake.verify import verify

    fs, root = connect(config.out, config)
    if config.repair:
        for done in repair(fs, root):
            screen.result(f"repaired: {done}")
    report = verify(fs, root)
    for problem in report.problems:
        screen.result(f"problem: {problem}")
    screen.table("What was checked", ("fact", "value"), list(report.facts.items()))
    if report.problems:
        raise StoreError(f"{safe_url(config.out)}: {len(report.problems)} problems, see above")
    screen.result("complete: every listed input ended in exactly one of images or quarantine", **report.facts)


ABOUT = "Prove that every listed input is accounted for and that every committed file is whole."

command = verb(
    "verify",
    ABOUT,
    VerifyConfig,
    run,
    "camlake verify s3://bucket/labels",
)

if __name__ == "__main__":
    main(command)
