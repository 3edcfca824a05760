"""Why the processes of a training ended, how often they are tried again, and what is planned on what is left."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError, OwnerDiedError, RayActorError, RayTaskError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError
from ray.util.placement_group import placement_group_table
from torch import OutOfMemoryError
from torch.distributed import DistBackendError

from pipeline.annotate.resources import Machine
from pipeline.graph.train import capacity, controller
from pipeline.graph.train.checkpoints import Progress
from pipeline.graph.train.failures import LINE_CHARS, CodeError, LostError, NoRoomError, one_line, reason
from pipeline.graph.train.plan import TrainJob, divide_cpus, plan_workers, replan_workers
from pipeline.graph.train.train_progress import epochs_done, start_train_progress
from schemas.errors import CamlakeError, StoreError, UsageError
from tests.training import config

DEATH = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tactor_id: 0123\n"
    "The actor is dead because its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY"
)
KILLED = WorkerHealthCheckFailedError("no answer", RayActorError("0123", DEATH))
GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:1234")
NCCL = DistBackendError("NCCL error in: x.cpp:1\nncclSystemError: /dev/shm too small.\n")
NCCL_LINE = "NCCL error in: x.cpp:1 ncclSystemError: /dev/shm too small"
LOST_PEER = "a process that learns lost the connection to another one: "


def of_workers(*failures):
    """Return what Ray Train raises where its processes end so."""
    return WorkerGroupError("texts", dict(enumerate(failures)))


def of_task(error):
    """Return a task's error as its caller gets it: as text, in which it caused another one."""
    text = f"ray::read()\n{type(error).__name__}: {error}\n\nThe above caused\n\nOther: "
    return RayTaskError("read", text, error, "ray", 1, "10.0.0.1").as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (of_workers(KILLED, GLOO), LostError, "a process that learns was lost"),
        (of_workers(GLOO, ValueError("Input contains NaN.")), CodeError, "ValueError: Input contains NaN"),
        (of_workers(OutOfMemoryError("CUDA out of memory.")), CodeError, "OutOfMemoryError: CUDA out of memory"),
        (of_workers(GLOO, GLOO), LostError, f"{LOST_PEER}RuntimeError: {GLOO}"),
        (of_workers(NCCL), LostError, f"{LOST_PEER}DistBackendError: {NCCL_LINE}"),
        (
            of_workers(RuntimeError("Gloo: unable to find address")),
            LostError,
            f"{LOST_PEER}RuntimeError: Gloo: unable to...",
        ),
        (of_workers(GLOO, ConnectionError("S3 refused")), LostError, "ConnectionError: S3 refused"),
        (of_workers(of_task(ConnectionError("S3 refused"))), LostError, "ConnectionError: S3 refused"),
        (of_workers(of_task(KeyError("uri"))), CodeError, "KeyError: 'uri'"),
        (of_workers(GLOO, of_task(StoreError("refused"))), StoreError, "refused"),
        (
            of_workers(OwnerDiedError("0123", "", "read")),
            LostError,
            "OwnerDiedError: Failed to retrieve object...",
        ),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), NoRoomError, "no room for the processes"),
        (ControllerError(WorkerGroupStartupFailedError("x")), LostError, "a process was lost while it started"),
        (ControllerError(KeyError("hook")), CodeError, "KeyError: 'hook'"),
        (PreemptionError(SimpleNamespace(preempted_ranks=[0])), LostError, "a machine was taken away"),
        (ActorDiedError(), LostError, "the process that runs the others was lost"),
    ],
)
def test_the_cause_is_named_not_what_it_did_to_the_others(error, kind, text):
    found = reason(error)
    assert type(found) is kind
    assert str(found).startswith(text[:-3]) if text.endswith("...") else str(found) == text
    assert found.__cause__ is error


def test_what_ray_knows_of_a_death_is_kept_in_one_line():
    assert reason(of_workers(KILLED)).detail == (
        "The actor is dead because its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY"
    )
    long = one_line("begin\n" + 500 * "x " + "\nend.")
    assert (long[:7], long[-5:], "\n" in long) == ("begin x", "x end", False)
    assert LINE_CHARS - 10 < len(long) <= LINE_CHARS


def test_processes_follow_the_gpus_unless_their_number_was_given(tmp_path):
    two = Machine(16.0, 2.0, None)
    following, given = (plan_workers(config("in", tmp_path, **options), two) for options in ({}, {"workers": 2}))
    assert (following.workers, following.workers_given, given.workers_given) == (2, False, True)
    on_gpus = [replan_workers(following, 64, Machine(16.0, float(gpus), None)).workers for gpus in (1, 2, 3, 4, 7)]
    assert on_gpus == [1, 2, 2, 4, 4]
    with pytest.raises(UsageError, match=r"^1 process: this Ray cluster has 0 GPUs, too few"):
        replan_workers(following, 64, Machine(16.0, 0.0, None))
    with pytest.raises(UsageError, match=r"^--workers 2: this Ray cluster has 1 GPU, too few"):
        replan_workers(given, 64, Machine(16.0, 1.0, None))
    cpu = divide_cpus(2, True, False, 1, Machine(2.0, 0.0, None))
    assert capacity.in_words(cpu) == "2 processes with 0.75 CPUs each"
    assert capacity.in_words(replan_workers(following, 64, Machine(8.0, 1.0, None))) == "1 process with 1 CPU and a GPU"


SMALL = Machine(4.0, 0.0, None)


class Training:
    """A fit whose processes end as they are told to, on a made-up cluster; time passes only where it sleeps."""

    def __init__(self, monkeypatch, machine=SMALL, workers=1):
        self.said, self.plans, self.machines, self._now_s = [], [], [machine], 0.0
        self._workers = divide_cpus(workers, True, machine.gpus > 0, 1, machine)
        self.nodes = [machine]
        monkeypatch.setattr(controller, "machine_now", self._machine)
        monkeypatch.setattr(controller, "time", SimpleNamespace(monotonic=lambda: self._now_s, sleep=self._sleep))
        for name in ("machine_now", "free_now"):
            monkeypatch.setattr(capacity, name, lambda: self.machines[0])
        monkeypatch.setattr(capacity, "nodes_now", lambda: self.nodes)
        self._patch = monkeypatch

    def _sleep(self, seconds):
        self._now_s += seconds

    def _machine(self):
        return self.machines.pop(0) if len(self.machines) > 1 else self.machines[0]

    def run(self, *ends):
        """Fit; each end is why the processes ended and, before it, how many epochs were done then, if it is known."""
        ends = iter(ends)

        def attempt(job, refs):
            self.plans.append(job.workers)
            problem, done = next(ends)
            if done is not None:
                ray.get(refs.progress.begin.remote([{"epoch": 1.0}] * done))
            return problem

        self._patch.setattr(controller, "_attempt", attempt)
        fields = dict.fromkeys(TrainJob.__dataclass_fields__)
        files = SimpleNamespace(resume=lambda: (Progress([{"epoch": 1.0}]), None))
        job = TrainJob(**{**fields, "workers": self._workers, "config": SimpleNamespace(batch_size=8), "files": files})
        images = SimpleNamespace(plan=None)
        return controller.fit(job, None, images, images, lambda *_: None, lambda _: None, self.said.append)


LOST, CODE = LostError("lost", "for memory"), CodeError("ValueError: NaN")


@pytest.mark.parametrize(
    ("ends", "n_said", "message"),
    [
        ([(LOST, 0)] * 4, 3, r"^training failed 4 times in a row without a new epoch: lost \(for memory\)$"),
        ([(CODE, 2)] * 2, 1, "^training failed 2 times in a row without a new epoch: ValueError: NaN$"),
        ([(LOST, 0), (CODE, 0), (LOST, 0), (CODE, 0)], 3, "^training failed 4 times in a row .*: ValueError: NaN$"),
        ([(LOST, 0), (LOST, 0), (LOST, 0), (LOST, 1), (CODE, 1), (CODE, 2), (CODE, 2)], 6, "^training failed 2 times"),
        ([(StoreError("refused"), 0)] * 4, 3, "^refused$"),
    ],
)
def test_each_kind_of_failure_has_its_tries_and_each_new_epoch_begins_them(
    ray_session, monkeypatch, ends, n_said, message
):
    training = Training(monkeypatch)
    with pytest.raises(CamlakeError, match=message) as caught:
        training.run(*ends)
    assert (len(training.said), len(training.plans)) == (n_said, n_said + 1)
    assert ends[-1][0] in (caught.value, caught.value.__cause__)


def test_it_is_said_where_it_goes_on(ray_session, monkeypatch):
    training = Training(monkeypatch)
    assert training.run((LOST, None), (LOST, 0), (LOST, 3), (None, None)).history == [{"epoch": 1.0}]
    begins = "lost; starting 1 process with 1 CPU"
    assert training.said == [begins, f"{begins}, from the beginning", f"{begins}, going on after epoch 3"]


def test_room_is_waited_for_as_long_as_it_takes_and_said_once(ray_session, monkeypatch):
    full = NoRoomError("no room for the processes")
    training = Training(monkeypatch)
    training.run(*[(full, None)] * 20, (LOST, 1), *[(full, None)] * 2, (None, None))
    waits = "no room for 1 process with 1 CPU: this Ray cluster has 4 CPUs, 4 free; waiting"
    assert training.said == [waits, "lost; starting 1 process with 1 CPU, going on after epoch 1", waits]
    training = Training(monkeypatch)
    training.nodes = [Machine(0.5, 0.0, None)] * 8
    with pytest.raises(CamlakeError, match=r"^no machine of this Ray cluster could hold 1 process with 1 CPU; add"):
        training.run((full, None))


def test_machines_are_waited_for_a_while_and_it_is_said_once(ray_session, monkeypatch):
    whole, half = Machine(16.0, 2.0, None), Machine(8.0, 1.0, None)
    training = Training(monkeypatch, whole, workers=2)
    training.machines = [half, half, half, whole]
    training.run((LOST, 1), (None, None))
    waits = "--workers 2: this Ray cluster has 1 GPU, too few for them; waiting for machines"
    starts = "lost; starting 2 processes with 1 CPU and a GPU each, going on after epoch 1"
    assert training.said == [waits, starts]
    training = Training(monkeypatch, whole, workers=2)
    training.machines = [half]
    with pytest.raises(CamlakeError, match="too few for them; waited 600 s for machines; run the same command again"):
        training.run((LOST, 1))
    assert training.said == [waits]


@ray.remote(num_cpus=0)
class Waiting:
    def join(self, progress, me):
        ray.get(progress.join.remote(me))

    def wait(self):
        time.sleep(600)


def test_processes_that_nothing_is_left_to_feed_are_ended(ray_session, monkeypatch):
    progress = start_train_progress()
    process = Waiting.remote()
    ray.get(process.join.remote(progress, process))

    class Starved:
        def fit(self):
            monkeypatch.setattr(controller, "machine_now", lambda: Machine(2.0, 0.0, None))
            ray.get(process.wait.remote())

    monkeypatch.setattr(controller, "_trainer", lambda *_: Starved())
    monkeypatch.setattr(controller, "machine_now", lambda: SMALL)
    job = SimpleNamespace(workers=divide_cpus(2, True, False, 1, SMALL))
    problem = controller._attempt(job, SimpleNamespace(progress=progress))
    assert str(problem) == "too few CPUs are left to feed 2 processes with 1 CPU each"


def test_without_its_progress_actor_a_training_ends_at_once(ray_session, monkeypatch):
    progress = start_train_progress()
    assert epochs_done(progress) is None
    ray.get([progress.begin.remote([{"epoch": 1.0}]), progress.add_epoch.remote({"epoch": 2.0})])
    assert epochs_done(progress) == 2
    ray.kill(progress)
    monkeypatch.setattr(controller, "start_train_progress", lambda: progress)
    training = Training(monkeypatch)
    with pytest.raises(CamlakeError, match=r"^the board was lost.*; run the same command again to go on$"):
        training.run((LOST, None))
    assert training.said == []


def assert_room_comes_back():
    deadline = time.monotonic() + 30
    while any(group["state"] != "REMOVED" for group in placement_group_table().values()):
        assert time.monotonic() < deadline, "a process that is no more holds room"
        time.sleep(0.05)


@pytest.mark.slow
def test_how_processes_of_ray_train_end(ray_session, monkeypatch):
    """With what they do in place of learning: one is killed as a machine's memory would end it, one raises."""

    def killed(config):
        os.kill(os.getpid(), signal.SIGKILL)

    def wrong(config):
        raise ValueError("Input contains NaN.")

    # Nothing of the project's: that the processes would have to import.
    workers = SimpleNamespace(workers=1, cuda=False, worker_cpus=1.0, least_cpus=1.5)
    found = []
    for act in (killed, wrong):
        monkeypatch.setattr(controller, "learn", act)
        found.append(controller._attempt(SimpleNamespace(workers=workers), SimpleNamespace(progress=None)))
        assert_room_comes_back()
    lost, code = found
    assert (type(lost), str(lost)) == (LostError, "a process that learns was lost")
    assert "Worker exit type: SYSTEM_ERROR" in lost.detail
    assert (type(code), str(code)) == (CodeError, "ValueError: Input contains NaN")
    # What --debug shows: where in the process it was.
    assert 'raise ValueError("Input contains NaN.")' in str(code.__cause__)
