"""The ledger of what an engine holds: planning, confirming, missing, and who may ask."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import memweir as mw
from memweir.pixels.ledger import Plan

MIB = 1 << 20


def lru(budget: int | str = "4 MiB", **options: Any) -> mw.SendOnce:
    return mw.SendOnce(budget, engine="lru", **options)


def items(names: str, nbytes: int = MIB) -> list[tuple[str, int]]:
    return [(name, nbytes) for name in names]


def accept(ledger: mw.SendOnce, names: str, nbytes: int = MIB) -> Plan:
    plan = ledger.plan(items(names, nbytes))
    ledger.confirm(plan)
    return plan


def held(ledger: mw.SendOnce, names: str = "abcdefgh") -> str:
    return "".join(name for name in names if name in ledger)


def test_an_image_is_sent_once_and_then_referred_to() -> None:
    ledger = lru()
    assert accept(ledger, "a").send == (True,)
    plan = ledger.plan(items("ab"))
    assert plan.send == (False, True)
    assert plan.references == ("a",)


def test_without_a_word_about_the_engine_everything_is_always_sent() -> None:
    ledger = mw.SendOnce()
    accept(ledger, "ab")
    assert ledger.plan(items("ab")).send == (True, True)
    assert (ledger.engine, ledger.stats().claims, ledger.stats().sent) == ("safe", 0, 2)


def test_what_is_not_confirmed_is_not_referred_to() -> None:
    ledger = lru()
    first, second = ledger.plan(items("a")), ledger.plan(items("a"))
    assert first.send == second.send == (True,)
    ledger.confirm(first)
    assert ledger.plan(items("a")).send == (False,)


def test_an_image_that_is_twice_in_its_first_request_has_its_data_twice() -> None:
    ledger = lru()
    assert accept(ledger, "aa").send == (True, True)
    assert ledger.plan(items("aa")).send == (False, False)
    assert ledger.stats().bytes == MIB


def test_whole_plans_send_what_is_known_too() -> None:
    ledger = lru()
    accept(ledger, "a")
    assert ledger.plan(items("a"), whole=True).references == ()


def test_bytes_decide_what_is_forgotten_and_not_their_number() -> None:
    ledger = lru("4 MiB")
    accept(ledger, "abcd")
    accept(ledger, "e", 3 * MIB)
    assert held(ledger) == "de"
    accept(ledger, "f", 5 * MIB)
    assert held(ledger) == "de"
    many = [(f"small {number}", 1) for number in range(10_000)]
    ledger.confirm(ledger.plan(many))
    assert all(name in ledger for name, _ in many)


def test_a_reference_is_a_use() -> None:
    ledger = lru("3 MiB")
    accept(ledger, "abc")
    accept(ledger, "a")
    accept(ledger, "d")
    assert held(ledger) == "acd"


def test_an_image_may_come_back_in_another_size() -> None:
    ledger = lru("3 MiB")
    accept(ledger, "ab")
    ledger.confirm(ledger.plan(items("a", 2 * MIB), whole=True))
    assert (held(ledger), ledger.stats().bytes) == ("ab", 3 * MIB)


def test_sizes_may_be_told_late() -> None:
    ledger = lru("3 MiB")
    plan = ledger.plan([("a", 0), ("b", 0)])
    ledger.confirm(plan.sized([MIB, 2 * MIB]))
    assert ledger.stats().bytes == 3 * MIB
    with pytest.raises(ValueError, match="zip"):
        plan.sized([1])


def test_named_misses_drop_these_alone() -> None:
    ledger = lru()
    accept(ledger, "abcd")
    ledger.miss(["b", "never seen"])
    assert held(ledger) == "acd"
    assert ledger.stats().bytes == 3 * MIB


def test_a_miss_of_nobody_knows_what_drops_all() -> None:
    ledger = lru()
    accept(ledger, "abcd")
    ledger.miss()
    assert held(ledger) == ""
    assert ledger.stats()[:2] == (0, 0)


def test_a_missed_plan_drops_its_references_and_what_is_older() -> None:
    ledger = lru()
    accept(ledger, "abcd")
    ledger.miss(ledger.plan(items("b")))
    assert held(ledger) == "cd"


def test_a_second_miss_without_proof_in_between_drops_all() -> None:
    ledger = lru("8 MiB")
    accept(ledger, "abcdef")
    ledger.miss(ledger.plan(items("b")))
    ledger.confirm(ledger.plan(items("b"), whole=True))
    accept(ledger, "b")  # proves nothing: it was sent after the miss
    ledger.miss(ledger.plan(items("d")))
    assert held(ledger) == ""
    assert ledger.stats().resets == 1


def test_a_claim_that_proves_right_after_a_miss_keeps_the_others() -> None:
    ledger = lru("8 MiB")
    accept(ledger, "abcdef")
    ledger.miss(ledger.plan(items("b")))
    accept(ledger, "f")
    ledger.miss(ledger.plan(items("d")))
    assert held(ledger) == "ef"
    ledger.miss(ledger.plan(items("e")))
    assert held(ledger) == ""


def test_an_answer_to_a_request_from_before_a_miss_proves_nothing_after_it() -> None:
    ledger = lru("8 MiB")
    accept(ledger, "abcdef")
    before = ledger.plan(items("f"))
    ledger.miss(ledger.plan(items("b")))
    ledger.confirm(before)
    ledger.miss(ledger.plan(items("d")))
    assert held(ledger) == ""


def test_misses_of_requests_that_were_on_their_way_together_count_once() -> None:
    ledger = lru("8 MiB")
    accept(ledger, "abcdef")
    plans = [ledger.plan(items(name)) for name in "bcd"]
    for plan in plans:
        ledger.miss(plan)
    assert held(ledger) == "ef"


def test_plans_from_before_a_reset_neither_claim_nor_doubt() -> None:
    ledger = lru()
    accept(ledger, "ab")
    new, old = ledger.plan(items("c")), ledger.plan(items("a"))
    ledger.reset()
    accept(ledger, "ad")
    ledger.confirm(new)
    ledger.miss(old)
    assert held(ledger) == "ad"


def test_each_engine_has_its_own() -> None:
    ledger = lru()
    accept(ledger.at("http://router", "one"), "a")
    assert "a" in ledger.at("http://router", "one")
    others = [
        ledger.at("http://router", "two"),
        ledger.at("http://routerone", ""),
        ledger.at("http://router"),
        ledger,
    ]
    assert not any("a" in other for other in others)
    assert ledger.stats().claims == 1
    ledger.reset()
    assert "a" not in ledger.at("http://router", "one")


def test_engines_that_nobody_asked_for_in_a_long_time_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("memweir.pixels.ledger.ENGINES", 3)
    ledger = lru()
    for name in "abc":
        accept(ledger.at(name), name)
    ledger.at("a")
    ledger.at("d")
    assert "a" in ledger.at("a")
    assert "b" not in ledger.at("b")


def test_copies_and_pickles_take_the_settings_and_no_claims() -> None:
    ledger = lru("3 MiB", route="content_parts")
    accept(ledger, "a")
    for twin in (pickle.loads(pickle.dumps(ledger)), copy.copy(ledger), copy.deepcopy(ledger)):
        assert (twin.budget, twin.engine, twin.route) == (3 * MIB, "lru", "content_parts")
        assert "a" not in twin
    assert "a" in ledger


def test_nothing_of_an_endpoint_is_shown() -> None:
    ledger = lru()
    one = ledger.at("https://user:hunter2@engine/v1", "session hunter2")
    assert "hunter2" not in repr(ledger) + repr(one) + repr(vars(ledger))
    assert "hunter2" not in str(pickle.dumps(ledger))


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("shm", "--mm-processor-cache-type lru"),
        ("processor_only", "--api-server-count 1"),
        ("none", "--mm-processor-cache-gb"),
    ],
)
def test_engines_that_a_reference_would_break_are_refused(engine: Any, says: str) -> None:
    with pytest.raises(mw.Refused, match=says):
        mw.SendOnce(engine=engine)


@pytest.mark.parametrize("engine", ["lru", "shm", "processor_only"])
def test_names_of_sources_break_no_engine(engine: Any) -> None:
    ledger = mw.SendOnce(engine=engine, route="content_parts")
    accept(ledger, "a")
    assert ledger.plan(items("a")).send == (False,)


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(mw.Refused, match="--mm-processor-cache-gb"):
        mw.SendOnce(0, engine="lru")
    with pytest.raises(mw.Refused):
        mw.SendOnce(engine="none", route="content_parts")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="engine is"):
        mw.SendOnce(engine="LRU")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="route is"):
        mw.SendOnce(route="urls")  # type: ignore[arg-type]
    ledger = lru()
    with pytest.raises(TypeError, match="hash"):
        ledger.plan([(b"a", 1)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="bytes"):
        ledger.plan([("a", 1.0)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="size"):
        ledger.plan([("a", -1)])
    with pytest.raises(ValueError, match="hash"):
        ledger.plan([("", 1)])
    with pytest.raises(TypeError, match="list"):
        ledger.miss("abc")


def test_threads_with_the_same_new_images_lose_no_count() -> None:
    ledger = lru("1 GiB")
    start = threading.Barrier(8)
    sent: list[int] = []

    def work(seed: int) -> None:
        start.wait()
        for number in range(300):
            plan = ledger.plan([(f"{(number + seed) % 50}", MIB), (f"{number % 50}", MIB)])
            ledger.confirm(plan)
            sent.append(sum(plan.send))
            if number % 97 == 0:
                ledger.miss(plan)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    stats = ledger.stats()
    assert stats.sent == sum(sent)
    assert stats.sent + stats.referenced == 8 * 300 * 2
    assert stats.bytes == stats.claims * MIB <= stats.budget


def test_a_forked_child_starts_without_claims_though_the_lock_was_held() -> None:
    ledger = lru()
    accept(ledger, "a")

    def child(answer: Any) -> None:
        answer.send(("a" in ledger, accept(ledger, "b").send, "b" in ledger))

    here, there = multiprocessing.Pipe()
    with ledger._states[os.getpid()].lock:
        process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
        process.start()
        assert here.poll(30), "the child hangs"
        assert here.recv() == (False, (True,), True)
        process.join()
    assert "a" in ledger
