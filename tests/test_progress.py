"""What the driver shows while Ray works: one look at a time, none after the end, every epoch once."""

import threading
import time

import pytest
import ray

from pipeline.graph import progress
from pipeline.graph.train import train_progress

PATIENCE_S = 30


class Slow:
    """An actor's method whose first answer waits until it may come, from the block's end at the earliest."""

    def __init__(self, answer):
        self._answer, self._may_come = answer, threading.Event()
        self.asked, self._at_once, self.most_at_once = threading.Event(), 0, 0

    def __call__(self, *arguments):
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        answer = self._answer(*arguments)
        self.asked.set()
        assert self._may_come.wait(PATIENCE_S)
        self._at_once -= 1
        return answer

    def comes_after_the_block(self):
        """Return at the end of a block, while an answer is still on its way."""
        assert self.asked.wait(PATIENCE_S)
        threading.Timer(0.2, self._may_come.set).start()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    """Poll without pause; whoever waits for a thread for a limited time only has no patience at all."""
    join = threading.Thread.join
    monkeypatch.setattr(progress, "POLL_S", 0.001)
    monkeypatch.setattr(threading.Thread, "join", lambda self, timeout=None: join(self, timeout and 0.001))


def lost(*_):
    raise ray.exceptions.ActorDiedError


@pytest.mark.parametrize("failure", [None, ValueError])
def test_nothing_is_shown_after_the_block(failure):
    slow, shown, is_over = Slow(lambda: 7), [], threading.Event()

    def block():
        with progress.following(slow, lambda found: shown.append((found, is_over.is_set()))):
            slow.comes_after_the_block()
            if failure:
                raise failure

    if failure:
        with pytest.raises(failure):
            block()
    else:
        block()
    is_over.set()
    assert not [thread for thread in threading.enumerate() if thread.name == "camlake-progress"]
    assert set(shown) == {(7, False)}
    assert slow.most_at_once == 1


def test_the_last_look_is_for_a_block_that_ends_well(monkeypatch):
    monkeypatch.setattr(progress, "POLL_S", PATIENCE_S)
    shown = []
    with pytest.raises(ValueError, match="lost"), progress.following(lambda: 7, shown.append):
        raise ValueError("lost")
    assert shown == []
    with progress.following(lambda: 7, shown.append):
        assert shown == []
    assert shown == [7]


def test_a_slow_actor_passes_each_epoch_on_once(monkeypatch):
    epochs = [{"epoch": 1.0}, {"epoch": 2.0}]
    slow = Slow(lambda known: (8, 3, epochs[known:]))
    monkeypatch.setattr(train_progress, "answer", lambda method, *arguments: method(*arguments))
    passed_on, advanced = [], []

    class Held:
        read = slow

    with train_progress.following_epochs(Held, lambda *counts: advanced.append(counts), passed_on.append):
        slow.comes_after_the_block()
    assert passed_on == epochs
    assert set(advanced) == {(11, 3)}
    assert slow.most_at_once == 1


def test_work_that_is_done_is_not_lost_with_its_progress_actor():
    with progress.following(lost, pytest.fail):
        pass


def test_an_answer_that_was_lost_is_asked_for_anew():
    answers, shown, has_shown = iter([lost, lambda: 1, lost]), [], threading.Event()

    def read():
        return next(answers, lambda: 2)()

    def show(found):
        shown.append(found)
        if found == 2:
            has_shown.set()

    with progress.following(read, show):
        assert has_shown.wait(PATIENCE_S)
    assert shown[:2] == [1, 2]
    assert set(shown[2:]) == {2}


def test_the_counts_of_an_epoch_done_again_are_dropped_and_an_epoch_written_without_a_report_is_passed_on(ray_session):
    one, two, three = ({"epoch": number} for number in (1.0, 2.0, 3.0))
    actor = train_progress.start_train_progress()
    ray.get(
        [
            actor.begin.remote([one]),
            actor.add_batch.remote(2, 8, 1),
            actor.add_epoch.remote(two),
            actor.add_batch.remote(3, 4, 2),
        ]
    )
    assert progress.answer(actor.read, 0) == (12, 3, [two])
    ray.get([actor.begin.remote([one, two]), actor.add_batch.remote(3, 8, 0)])
    assert progress.answer(actor.read, 0) == (16, 1, [two])
    ray.get(actor.begin.remote([one, two, three]))
    assert progress.answer(actor.read, 1) == (16, 1, [three])


def test_what_an_actor_does_not_answer_in_time_is_ray_s_failure(ray_session, monkeypatch):
    """So that nobody waits for a machine that is gone; until then the actor answers."""
    actor = train_progress.start_train_progress()
    ray.get(
        [
            actor.add_batch.remote(1, 8, 3),
            actor.add_epoch.remote({"epoch": 1.0}),
            actor.add_epoch.remote({"epoch": 2.0}),
        ]
    )
    assert progress.answer(actor.read, 1) == (8, 3, [{"epoch": 2.0}])
    monkeypatch.setattr(progress, "ANSWERS_WITHIN_S", 0.01)
    busy = actor.__ray_call__.remote(lambda _: time.sleep(60))
    with pytest.raises(ray.exceptions.GetTimeoutError):
        progress.answer(actor.read, 0)
    ray.kill(actor)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(busy)
