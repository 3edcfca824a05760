"""The rendered pictures of a demo."""

from pathlib import Path

from jobs.terminal.console import Screen
from pipeline.storage.filesystems import refuse_unwritable
from schemas.errors import UsageError
from schemas.options.config import JobConfig, StorageConfig, option

BROKEN = 2
"""Number of damaged files among the pictures, so that quarantine has rows."""


class DemoConfig(JobConfig):
    """The options of ``camlake demo``."""

    folder: str = option("camlake-demo", "where pictures, tables and the page go", "Options")
    images: int = option(120, "pictures to render, beside two broken files", "Options", ge=10, le=10_000)
    seed: int = option(0, "seed of the pictures", "Options", ge=0)


def render(config: DemoConfig, folder: Path, screen: Screen) -> Path:
    """Render the pictures into ``folder`` unless it has them, and return the path of the file of true boxes.

    Raises UsageError where ``folder`` holds another demo or files of another kind.
    """
    from pipeline.images.synthetic.scenes import write_corpus

    refuse_unwritable("--folder", config.folder, StorageConfig())
    marker, wanted = folder / "demo.txt", f"images={config.images} seed={config.seed}\n"
    truth = folder / "pictures" / "truth.csv"
    if marker.exists() and marker.read_text() != wanted:
        other = marker.read_text().strip()
        raise UsageError(f"--folder {config.folder!r} holds another demo ({other}); name a new one")
    if marker.exists() and truth.exists():
        return truth
    if not marker.exists() and folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--folder {config.folder!r} is not empty and holds no demo; name a new one")
    screen.say(f"rendering {config.images} pictures and {BROKEN} broken files into {folder / 'pictures'}")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(wanted)
    unfinished = folder / "pictures.unfinished"
    write_corpus(unfinished, config.images, config.seed, broken=BROKEN)
    unfinished.rename(folder / "pictures")
    return truth
