//! Claims against a naive model, and under threads that race.

use memweir_core::claims::{Claims, Id, Part};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[derive(Debug, Clone)]
enum Op {
    Hold(usize, bool),
    Release(usize),
    Begin(usize, bool),
    End(usize, bool, bool),
    Drain(usize, bool),
}

/// What a slot is, said as plainly as possible.
#[derive(Default)]
struct Model {
    open: bool,
    draining: bool,
    epoch: u64,
    turn: Option<Id>,
    holders: Vec<Id>,
}

fn ops() -> impl Strategy<Value = Op> {
    let slot = 0..2usize;
    prop_oneof![
        (slot.clone(), any::<bool>()).prop_map(|(s, d)| Op::Hold(s, d)),
        (0..8usize).prop_map(Op::Release),
        (slot.clone(), any::<bool>()).prop_map(|(s, i)| Op::Begin(s, i)),
        (slot.clone(), any::<bool>(), any::<bool>()).prop_map(|(s, o, h)| Op::End(s, o, h)),
        (slot, any::<bool>()).prop_map(|(s, on)| Op::Drain(s, on)),
    ]
}

proptest! {
    #[test]
    fn slots_follow_the_model(ops in prop::collection::vec(ops(), 1..120)) {
        let claims = Claims::new();
        let ids = [claims.slot(), claims.slot()];
        let mut models = [Model::default(), Model::default()];
        for op in ops {
            match op {
                Op::Hold(s, drained) => {
                    let m = &mut models[s];
                    let got = claims.hold(ids[s], 7, drained);
                    prop_assert_eq!(got.is_some(), m.open && (drained || !m.draining));
                    m.holders.extend(got);
                }
                Op::Release(n) => {
                    let s = n % 2;
                    let m = &mut models[s];
                    let claim = m.holders.get(n / 2).copied();
                    let end = claims.release(ids[s], claim.unwrap_or(u64::MAX));
                    prop_assert_eq!(end.is_some(), claim.is_some());
                    m.holders.retain(|h| Some(*h) != claim);
                    if let Some(end) = end {
                        prop_assert_eq!((end.left, end.draining), (m.holders.len(), m.draining));
                        prop_assert_eq!(claims.release(ids[s], claim.unwrap()), None);
                    }
                }
                Op::Begin(s, idle) => {
                    let m = &mut models[s];
                    let turn = claims.begin(ids[s], idle);
                    let may = m.turn.is_none() && (!idle || m.holders.is_empty());
                    prop_assert_eq!(turn.is_some(), may);
                    if may {
                        m.turn = turn;
                        m.open &= !idle;
                    }
                }
                Op::End(s, open, take) => {
                    let m = &mut models[s];
                    prop_assert_eq!(claims.end(ids[s], u64::MAX, true, Some(1)), None);
                    let Some(turn) = m.turn.take() else { continue };
                    let claim = claims.end(ids[s], turn, open, take.then_some(9));
                    let opened = open && !m.open;
                    m.open = open || !m.holders.is_empty();
                    m.epoch += u64::from(opened);
                    m.draining &= m.open && !opened;
                    prop_assert_eq!(claim.is_some(), take && m.open);
                    m.holders.extend(claim);
                }
                Op::Drain(s, on) => {
                    let m = &mut models[s];
                    prop_assert_eq!(claims.drain(ids[s], on), m.holders.len());
                    m.draining = on && m.open;
                }
            }
            for (id, m) in ids.iter().zip(&models) {
                let slot = claims.look(*id).expect("a slot");
                prop_assert_eq!((slot.open, slot.draining), (m.open, m.draining));
                prop_assert_eq!((slot.epoch, slot.turn), (m.epoch, m.turn));
                let held: Vec<Id> = slot.holders.iter().map(|h| h.claim).collect();
                prop_assert_eq!(&held, &m.holders);
                prop_assert!(m.open || held.is_empty());
            }
        }
    }

    #[test]
    fn accounts_never_give_more_than_they_have(
        limits in (0..200usize, 0..200usize),
        ops in prop::collection::vec((0..5u8, 0..120usize, 0..120usize, 0..6usize), 1..80),
    ) {
        let claims = Claims::new();
        let accounts = [claims.account(limits.0), claims.account(limits.1)];
        let limit = [limits.0, limits.1];
        let mut permits: Vec<(Id, [usize; 2], bool, bool)> = Vec::new();
        for (kind, a, b, n) in ops {
            let parts = [Part { account: accounts[0], bytes: a }, Part { account: accounts[1], bytes: b }];
            let used = |permits: &[(Id, [usize; 2], bool, bool)], i: usize| -> usize {
                permits.iter().map(|p| p.1[i]).sum()
            };
            match kind {
                0 | 1 => {
                    let rest = kind == 1;
                    let left = [limit[0] - used(&permits, 0), limit[1] - used(&permits, 1)];
                    match claims.reserve(&parts, rest, None, false) {
                        Ok(id) => {
                            prop_assert!(a <= left[0] && b <= left[1]);
                            permits.push((id, if rest { left } else { [a, b] }, false, false));
                        }
                        Err(why) => {
                            prop_assert!(!why.behind);
                            let lacks = |i: usize, want: usize| want.saturating_sub(left[i]);
                            let sum: usize = why.short.iter().map(|p| p.bytes).sum();
                            prop_assert_eq!(sum, lacks(0, a) + lacks(1, b));
                        }
                    }
                }
                2 if !permits.is_empty() => {
                    let i = n % permits.len();
                    let mine = permits[i].1;
                    let fits = used(&permits, 0) - mine[0] + a <= limit[0]
                        && used(&permits, 1) - mine[1] + b <= limit[1];
                    prop_assert_eq!(claims.settle(permits[i].0, &parts, None).is_ok(), fits);
                    if fits {
                        permits[i] = (permits[i].0, [a, b], true, false);
                    }
                }
                3 if !permits.is_empty() => {
                    let i = n % permits.len();
                    prop_assert!(claims.leaving(permits[i].0));
                    permits[i].3 |= permits[i].2;
                }
                4 if !permits.is_empty() => {
                    let gone = permits.remove(n % permits.len());
                    prop_assert!(claims.free(gone.0));
                    prop_assert!(!claims.free(gone.0));
                }
                _ => {}
            }
            for i in 0..2 {
                let usage = claims.usage(accounts[i]).expect("an account");
                let sum = |exists: bool| -> usize {
                    permits.iter().filter(|p| p.2 == exists).map(|p| p.1[i]).sum()
                };
                prop_assert_eq!((usage.promised, usage.held), (sum(false), sum(true)));
                let leaving: usize = permits.iter().filter(|p| p.3).map(|p| p.1[i]).sum();
                prop_assert_eq!(usage.leaving, leaving);
                prop_assert!(usage.promised + usage.held <= limit[i]);
                prop_assert!(usage.peak <= limit[i]);
            }
        }
    }
}

#[test]
fn the_line_is_served_in_order_and_for_each_account_by_itself() {
    let claims = Claims::new();
    let (ram, card) = (claims.account(100), claims.account(100));
    let want = |account, bytes| [Part { account, bytes }];
    let held = claims.reserve(&want(ram, 80), false, None, false).expect("room");
    let first = claims.queue(&[ram]);
    let second = claims.queue(&[ram, card]);
    // The first waits for more than there is; nobody overtakes it, however little they want.
    assert!(!claims.reserve(&want(ram, 50), false, Some(first), false).unwrap_err().behind);
    let why = claims.reserve(&want(ram, 1), false, None, false).unwrap_err();
    assert!(why.behind && why.short.is_empty());
    assert!(claims.reserve(&want(ram, 1), false, Some(second), false).unwrap_err().behind);
    assert!(claims.reserve(&want(card, 1), false, None, false).unwrap_err().behind);
    assert!(claims.reserve(&want(card, 1), false, Some(second), false).is_ok());
    assert!(claims.reserve(&want(ram, 1), false, None, true).is_ok());
    claims.free(held);
    assert!(claims.reserve(&want(ram, 50), false, Some(first), false).is_ok());
    claims.leave(first);
    assert!(claims.reserve(&want(ram, 1), false, Some(second), false).is_ok());
    claims.leave(second);
    assert!(claims.reserve(&want(ram, 1), false, None, false).is_ok());
}

#[test]
fn what_is_not_there_is_refused() {
    let claims = Claims::new();
    assert_eq!(claims.hold(1, 1, true), None);
    assert_eq!(claims.begin(1, true), None);
    assert_eq!(claims.end(1, 1, true, Some(1)), None);
    assert_eq!(claims.release(1, 1), None);
    assert_eq!((claims.drain(1, true), claims.look(1)), (0, None));
    assert!(!claims.forget(1) && !claims.free(1) && !claims.leaving(1));
    assert!(claims.settle(1, &[], None).is_err());
    let nowhere = [Part { account: 1, bytes: 0 }];
    assert!(claims.reserve(&nowhere, false, None, false).is_err());
    let slot = claims.slot();
    let turn = claims.begin(slot, true).expect("free");
    assert!(!claims.forget(slot));
    claims.end(slot, turn, false, None);
    assert!(claims.forget(slot) && claims.look(slot).is_none());
}

#[test]
fn sizes_that_sums_cannot_take_do_not_fit() {
    let claims = Claims::new();
    let all = claims.account(usize::MAX);
    let want = [Part { account: all, bytes: usize::MAX }];
    let permit = claims.reserve(&want, true, None, false).expect("no limit");
    assert!(claims.reserve(&want, true, None, false).is_err());
    assert!(claims.settle(permit, &[want[0], want[0]], None).is_ok());
    assert!(claims.free(permit));
    assert_eq!(claims.usage(all).map(|u| u.held + u.promised), Some(0));
}

#[test]
fn what_was_promised_beside_goes_into_it_or_stays() {
    let claims = Claims::new();
    let account = claims.account(100);
    let part = |bytes| [Part { account, bytes }];
    let main = claims.reserve(&part(40), false, None, false).expect("room");
    claims.settle(main, &part(40), None).expect("room");
    let extra = claims.reserve(&part(60), true, None, false).expect("room");
    assert!(claims.settle(main, &part(101), Some(extra)).is_err());
    assert_eq!(claims.usage(account).map(|u| (u.promised, u.held)), Some((60, 40)));
    assert!(claims.settle(main, &part(100), Some(extra)).is_ok());
    assert_eq!(claims.usage(account).map(|u| (u.promised, u.held)), Some((0, 100)));
    assert!(!claims.free(extra) && claims.free(main));
}

#[test]
fn a_lowered_limit_leaves_what_is_given_out() {
    let claims = Claims::new();
    let account = claims.account(100);
    let part = |bytes| [Part { account, bytes }];
    let permit = claims.reserve(&part(80), false, None, false).expect("room");
    assert!(claims.limit(account, 50));
    assert!(claims.settle(permit, &part(60), None).is_err());
    assert_eq!(claims.usage(account).map(|u| (u.promised, u.held)), Some((80, 0)));
    assert!(claims.settle(permit, &part(40), None).is_ok());
    assert_eq!(claims.usage(account).map(|u| (u.promised, u.held)), Some((0, 40)));
}

#[test]
fn threads_never_hold_what_another_changes() {
    let claims = Claims::new();
    let slot = claims.slot();
    let turn = claims.begin(slot, true).expect("nobody is there");
    claims.end(slot, turn, true, None);
    let (users, changers) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for owner in 0..4 {
            let (claims, users, changers, done) = (&claims, &users, &changers, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    if let Some(claim) = claims.hold(slot, owner, false) {
                        users.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(changers.load(Ordering::SeqCst), 0);
                        users.fetch_sub(1, Ordering::SeqCst);
                        assert!(claims.release(slot, claim).is_some());
                    }
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    if let Some(turn) = claims.begin(slot, true) {
                        assert_eq!(changers.fetch_add(1, Ordering::SeqCst), 0);
                        assert_eq!(users.load(Ordering::SeqCst), 0);
                        changers.fetch_sub(1, Ordering::SeqCst);
                        claims.end(slot, turn, true, None);
                    }
                }
                done.store(true, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(claims.look(slot).map(|s| s.holders.len()), Some(0));
}

#[test]
fn threads_never_exceed_an_account() {
    let claims = Claims::new();
    let account = claims.account(10);
    let used = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (claims, used) = (&claims, &used);
            scope.spawn(move || {
                for i in 0..5_000 {
                    let bytes = 1 + (n + i) % 7;
                    let part = [Part { account, bytes }];
                    let Ok(permit) = claims.reserve(&part, false, None, false) else { continue };
                    assert!(used.fetch_add(bytes, Ordering::SeqCst) + bytes <= 10);
                    claims.settle(permit, &part, None).expect("as much as was promised");
                    used.fetch_sub(bytes, Ordering::SeqCst);
                    claims.free(permit);
                }
            });
        }
    });
    let usage = claims.usage(account).expect("an account");
    assert_eq!((usage.held, usage.promised), (0, 0));
    assert!(usage.peak <= 10);
}

#[test]
fn a_child_finds_nobody() {
    use memweir_core::proc::fork::Forked;
    let claims = Claims::new();
    let (slot, account) = (claims.slot(), claims.account(10));
    let turn = claims.begin(slot, true).expect("free");
    let claim = claims.end(slot, turn, true, Some(3)).expect("mine");
    let permit = claims.reserve(&[Part { account, bytes: 4 }], false, None, false).expect("room");
    claims.settle(permit, &[Part { account, bytes: 4 }], None).expect("room");
    claims.leaving(permit);
    claims.queue(&[account]);
    claims.forked();
    let seen = claims.look(slot).expect("a slot");
    assert!(!seen.open && seen.holders.is_empty() && seen.turn.is_none());
    assert_eq!(seen.epoch, 1);
    let usage = claims.usage(account).expect("an account");
    assert_eq!((usage.held, usage.promised, usage.leaving), (0, 0, 0));
    assert!(claims.reserve(&[Part { account, bytes: 10 }], false, None, false).is_ok());
    // Numbers from before are of nothing.
    assert!(claims.release(slot, claim).is_none() && !claims.free(permit));
}
