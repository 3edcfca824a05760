"""Exports an output: chooses the boxes, reads the pictures, hands them to the format's writers, finishes DEST."""

import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.outputs.export.batches import Batch
from pipeline.outputs.export.classes import export_classes
from pipeline.outputs.export.destination import Destination, begin
from pipeline.outputs.export.export_pictures import LEFT_OUT, PictureLog, linkable, stored_turned, with_data
from pipeline.outputs.export.plans import add_plans
from pipeline.outputs.export.selection import Selection
from pipeline.outputs.export.writer import ExportJob, Format, Writer, Written, image_mode, load_format
from pipeline.outputs.reader import Lake
from pipeline.storage.filesystems import connect, is_local
from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.lake.lineage import camlake_version
from pipeline.storage.lake.run import shown_config
from schemas.errors import RejectedShareError, StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.options.export import ExportConfig, split_shares
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    from pipeline.outputs.export.box_masks import MaskCutter

Say = Callable[[str], None]


@dataclass
class Export:
    """A begun export."""

    job: ExportJob
    format: Format
    selection: Selection
    dest: Destination
    masks: "MaskCutter | None"
    images: int
    """The images to write."""
    boxes: int
    notes: tuple[str, ...]
    """What the user should know before."""
    written: dict[str, Written] = field(default_factory=dict)
    """What was written of each split."""
    without_mask: int = 0
    """Boxes without a mask although masks were asked for."""

    def run(self, advance: Callable[..., None]) -> PictureLog:
        """Write everything and finish DEST; return what became of the pictures.

        ``advance`` gets the numbers of images that are done and that were left out.
        """
        log = PictureLog(self.dest)
        gc.freeze()  # Else every collection looks at the objects of all libraries, which takes a quarter of the time.
        try:
            writers = {one: self.format.writer(self.job, self.dest, one) for one in split_shares(self._config.split)}
            self.written = dict.fromkeys(writers, Written())
            fetcher = Fetcher(self._config.storage, self._config.max_bytes)
            for batch in self.selection.batches():
                for part in self._with_pictures(batch, fetcher, log):
                    self._write(part, writers)
                    advance(sum(one.images for one in self.written.values()) + log.count, log.count)
            for writer in writers.values():
                writer.close()
            log.close()
        finally:
            gc.unfreeze()
            self.dest.close()
        self.format.finish(self.job, self.dest, self.written)
        self.dest.finish(self._facts(log))
        return log

    @property
    def _config(self) -> ExportConfig:
        return self.job.config

    def _with_pictures(self, batch: Batch, fetcher: Fetcher, log: PictureLog) -> Iterator[Batch]:
        """Yield the images that can be written; copied and linked pictures are in DEST already."""
        mode = self.job.images
        if mode == "reference":
            yield batch
        elif mode == "link":
            linked, targets = linkable(batch, log)
            for name, target in zip(self._picture_names(linked), targets, strict=True):
                self.dest.link(name, target)
            yield linked
        elif mode == "embed":
            yield from with_data(batch, fetcher, log)
        else:
            kept = self._kept(batch, log)
            if kept.any():
                yield batch.take(np.flatnonzero(kept))
            for part in with_data(batch.take(np.flatnonzero(~kept)), fetcher, log):
                self.dest.write_many(
                    dict(zip(self._picture_names(part), cast(Sequence[bytes], part.data), strict=True))
                )
                yield part.without_data()

    def _kept(self, batch: Batch, log: PictureLog) -> NDArray[np.bool_]:
        """Return (N,): whether the same export, which stopped, had copied the picture of each image."""
        names = self._picture_names(batch)
        kept = self.dest.keep_left(dict(zip(names, batch.images["size_bytes"].to_pylist(), strict=True)))
        log.turned += self.dest.count(kept, stored_turned)
        return np.array([name in kept for name in names], np.bool_)

    def _picture_names(self, batch: Batch) -> list[str]:
        splits = self._splits(batch)
        names = [*split_shares(self._config.split)]
        return [
            f"{self.format.folder.format(split=names[split])}/{file}"
            for split, file in zip(splits, batch.files(), strict=True)
        ]

    def _write(self, batch: Batch, writers: dict[str, Writer]) -> None:
        splits = self._splits(batch)
        for number, (split, writer) in enumerate(writers.items()):
            own = batch.take(np.flatnonzero(splits == number))
            if not len(own):
                continue
            if self.masks is not None:
                own = own.with_masks(self.masks.of(own))
                self.without_mask += sum(mask is None for mask in own.masks or ())
            writer.write(own)
            before = self.written[split]
            self.written[split] = Written(before.images + len(own), before.boxes + len(own.boxes))

    def _splits(self, batch: Batch) -> NDArray[np.int64]:
        """Return (N,) the number of each image's split."""
        return split_numbers(batch.images["image_id"].to_pylist(), split_shares(self._config.split))

    def _facts(self, log: PictureLog) -> dict[str, Any]:
        """Return what DONE says: how the rows were chosen, and how many there are."""
        return _chosen(self.job) | {
            "splits": {split: one._asdict() for split, one in self.written.items()},
            "left_out": log.count,
        }


def _chosen(job: ExportJob) -> dict[str, Any]:
    """Return how the rows of an export are chosen."""
    aside = {*StorageConfig.model_fields, "out", "dest", "overwrite"}
    return {
        "camlake": camlake_version(),
        "source": safe_url(job.config.out),
        **{name: value for name, value in shown_config(job.config).items() if name not in aside},
        "model": job.run.model,
        "images": job.images,
        "last_run": job.run.run_id,
        "class_names": job.classes.names,
    }


def open_export(lake: Lake, config: ExportConfig, say: Say) -> Export:
    """Choose the rows and begin DEST.

    Raises UsageError for wrong options and for a DEST that holds something else, before anything is written.
    """
    chosen, mode = load_format(config.to), image_mode(config.to, config)
    if mode == "link" and not is_local(connect(config.dest, config)[0]):
        raise UsageError(f"--images link: DEST {safe_url(config.dest)}: allowed: a folder on the local disk")
    run = _run_of(lake, config)
    classes = export_classes(lake, run.model, config)
    tables = _map_tables(lake, run.model) if chosen.masks and config.masks else ()
    selection = Selection(lake, run.model, classes, config, mode != "reference", tables)
    images, boxes = selection.count()
    notes = [*classes.notes, *chosen.notes]
    if not images:
        raise UsageError(f"nothing to export: no box of {run.model} in {safe_url(config.out)} passes these filters")
    if chosen.masks and config.masks and not tables:
        notes.append("OUT does not store the maps that its boxes were cut from: boxes get no masks")
    masks = _masks_of(run, config) if tables else None
    if mode != "reference":
        add_plans(lake, config.out, config)
    job = ExportJob(config, run, classes, mode)
    dest = begin(
        config.dest,
        config,
        config.overwrite,
        say,
        _chosen(job) | {"committed": _digest_of_files(lake)},
        keep=mode == "copy",
    )
    return Export(job, chosen, selection, dest, masks, images, boxes, tuple(notes))


def _digest_of_files(lake: Lake) -> str:
    """Return a digest of the names of all committed files, which change with the rows."""
    names = sorted(file.path for run in lake.runs for file in run.files)
    return hashlib.blake2b("\n".join(names).encode(), digest_size=8).hexdigest()


def refuse_left_out(done: Export, log: PictureLog) -> None:
    """Raise RejectedShareError where more pictures were left out than ``max_rejected`` allows."""
    config = done.job.config
    if log.count > config.max_rejected * done.images:
        raise RejectedShareError(
            f"{log.count} of {done.images} pictures could not be read, more than --max-rejected"
            f" {config.max_rejected:g} allows; all others are written, see {done.dest.url}/{LEFT_OUT}"
        )


def split_numbers(image_ids: list[str], shares: dict[str, float]) -> NDArray[np.int64]:
    """Return (N,) the place in ``shares`` of each image's split.

    It follows from a digest of the image_id alone, so an image keeps its split in every export with the same shares,
    however many images come or go. The digest is another one than that of --sample, so that samples are split fairly.
    """
    if len(shares) == 1:
        return np.zeros(len(image_ids), np.int64)
    ends = [*accumulate(shares.values())][:-1]
    digests = [hashlib.blake2b(one.encode(), digest_size=8, person=b"camlake.split").digest() for one in image_ids]
    return np.searchsorted(ends, np.array([int.from_bytes(one, "big") / 2**64 for one in digests]), side="right")


def _run_of(lake: Lake, config: ExportConfig) -> RunManifest:
    if not lake.models:
        raise StoreError(f"{safe_url(config.out)} has no committed rows yet")
    if config.model is None and len(lake.models) > 1:
        raise UsageError(f"--model is missing: this output has {', '.join(lake.models)}")
    return lake.run_of(config.model)


def _masks_of(run: RunManifest, config: ExportConfig) -> "MaskCutter":
    from pipeline.outputs.export.box_masks import masks_of  # noqa: PLC0415 - it brings torch: 2 s and 0.5 GB

    return masks_of(run, *connect(config.out, config, anonymous=config.anonymous))


def _map_tables(lake: Lake, model: str) -> tuple[str, ...]:
    """Return the tables whose maps gave the model's boxes; none where no heatmap is stored."""
    files = {file.table for run in lake.runs if run.model == model for file in run.files}
    if "heatmaps" not in files:
        return ()
    fused = lake.run_of(model).settings.get("foreground", "off") != "off"
    if not fused:
        return ("heatmaps",)
    return ("heatmaps", "foreground") if "foreground" in files else ()
