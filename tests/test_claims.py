"""The table of claims as Python sees it; its own tests are in Rust."""

from __future__ import annotations

import gc
import os

import pytest

from memweir._core import Claims


def opened(claims: Claims) -> int:
    slot = claims.slot()
    turn = claims.begin(slot)
    assert turn is not None
    claims.end(slot, turn, True)
    return slot


def test_a_turn_excludes_claims_and_claims_exclude_a_turn() -> None:
    claims = Claims()
    slot = opened(claims)
    claim = claims.hold(slot, 7)
    assert claim is not None
    assert claims.begin(slot) is None
    seen = claims.look(slot)
    assert seen is not None
    assert (seen.open, seen.holders, seen.turn, seen.epoch) == (True, [(claim, 7)], None, 1)
    assert claims.release(slot, claim) == (0, False)
    assert claims.release(slot, claim) is None
    turn = claims.begin(slot)
    assert turn is not None
    assert claims.hold(slot, 7) is None
    assert claims.end(slot, turn + 1, True, 7) is None
    mine = claims.end(slot, turn, True, 7)
    assert claims.release(slot, mine or 0) == (0, False)


def test_what_drains_lets_in_only_those_who_say_so() -> None:
    claims = Claims()
    slot = opened(claims)
    claim = claims.hold(slot, 1)
    assert claims.drain(slot) == 1
    assert claims.hold(slot, 2) is None
    again = claims.hold(slot, 1, drained=True)
    assert claims.release(slot, claim or 0) == (1, True)
    assert claims.release(slot, again or 0) == (0, True)


def test_permits_are_promised_settled_and_freed() -> None:
    claims = Claims()
    ram, card = claims.account(100), claims.account()
    permit, short, behind = claims.reserve([(ram, 60), (card, 1 << 40)])
    assert permit is not None
    assert (short, behind) == ([], False)
    assert claims.reserve([(ram, 50)]) == (None, [(ram, 10)], False)
    assert claims.settle(permit, [(ram, 200)]) == [(ram, 100)]
    assert claims.settle(permit, [(ram, 30)]) is None
    claims.leaving(permit)
    usage = claims.usage(ram)
    assert usage is not None
    assert (usage.limit, usage.promised, usage.held, usage.leaving) == (100, 0, 30, 30)
    assert usage.peak == 60
    rest, _, _ = claims.reserve([(ram, 1)], rest=True)
    assert claims.reserve([(ram, 1)])[0] is None
    assert claims.free(permit)
    assert not claims.free(permit)
    assert claims.free(rest or 0)
    assert claims.limit(ram, 10)


@pytest.mark.parametrize("wrong", [-1, 1 << 64, "a", None])
def test_other_numbers_are_refused(wrong: object) -> None:
    claims = Claims()
    for call in (claims.hold, claims.release):
        with pytest.raises((TypeError, OverflowError)):
            call(wrong, 1)  # type: ignore[arg-type,operator]


def test_it_keeps_nothing_of_python() -> None:
    claims = Claims()
    claims.hold(opened(claims), 7)
    assert gc.get_referents(claims) in ([], [Claims])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_finds_nobody_in_it() -> None:
    claims = Claims()
    slot, account = opened(claims), claims.account(10)
    claim = claims.hold(slot, 1)
    permit, _, _ = claims.reserve([(account, 10)])
    pid = os.fork()
    if pid == 0:
        seen = claims.look(slot)
        fine = (
            seen is not None
            and (seen.open, seen.holders, seen.turn) == (False, [], None)
            and claims.release(slot, claim or 0) is None
            and claims.reserve([(account, 10)])[0] is not None
        )
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert claims.release(slot, claim or 0) == (0, False)
    assert claims.free(permit or 0)
