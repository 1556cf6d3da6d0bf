//! Blocks and counts as they are: a count goes from one block to the next, and holds an index in
//! between, while those who ended the first one's loans may still be on their way to say so.

use crate::block::{Block, Loan, Owned};
use crate::count::Counts;
use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::thread;
use std::sync::Arc;

const GONE: u32 = u32::MAX;

/// What a block holds: its number, which is written over when it goes.
struct Byte(UnsafeCell<u32>, Tellings);

/// Which blocks' last loans have ended after that was asked for. No step of the models.
type Tellings = Arc<std::sync::Mutex<Vec<u32>>>;

// SAFETY: loom fails the model at a write that is not ordered with what others do.
unsafe impl Sync for Byte {}

impl Byte {
    /// Its number: a read, that loom fails where it is not ordered with the last write.
    fn number(&self) -> u32 {
        // SAFETY: as above.
        self.0.with(|byte| unsafe { *byte })
    }
}

impl Owned for Byte {
    type Owner = (u32, Tellings);

    fn owner(&self) -> Self::Owner {
        (self.number(), self.1.clone())
    }

    fn told((number, tellings): Self::Owner) {
        tellings.lock().unwrap().push(number);
    }
}

#[derive(Default)]
struct Owner {
    counts: Counts,
    /// The one that is lent to whoever asks.
    block: Option<Block<Byte>>,
    /// Those that were taken out while lent: gone with their last user.
    leaving: Vec<Block<Byte>>,
    blocks: u32,
    told: Tellings,
}

type Home = Arc<Mutex<Owner>>;

impl Owner {
    /// Takes the block out for a new one, with the same count if nobody has it.
    fn replace(&mut self) {
        self.leaving.extend(self.block.take());
        self.settle();
        self.blocks += 1;
        let byte = Byte(UnsafeCell::new(self.blocks), self.told.clone());
        self.block = Some(Block::new(Box::default(), byte, self.counts.take()));
    }

    /// Lets those go that nobody has; the others are asked for.
    fn settle(&mut self) {
        for block in std::mem::take(&mut self.leaving) {
            if block.ask() {
                self.leaving.push(block);
                continue;
            }
            let Ok((_, byte, count)) = block.into_parts() else { panic!("lent again") };
            // SAFETY: as above.
            byte.0.with_mut(|byte| unsafe { *byte = GONE });
            self.counts.give(count);
        }
    }

    fn lend(&self) -> Loan<Byte> {
        self.block.as_ref().and_then(Block::lend).unwrap()
    }
}

/// Ends a loan of the block of this number, and settles if that was asked for.
fn end(home: &Home, loan: Loan<Byte>, number: u32) -> bool {
    assert_eq!(loan.label().number(), number);
    let tellings = loan.label().1.clone();
    drop(loan);
    let mut tellings = tellings.lock().unwrap();
    let told = tellings.iter().position(|&told| told == number).map(|at| tellings.swap_remove(at));
    drop(tellings);
    if told.is_some() {
        home.lock().unwrap().settle();
    }
    told.is_some()
}

type Step = fn(&Home, Loan<Byte>);

/// Runs `steps` at once, each with a loan of the first block.
fn race<const N: usize>(steps: [Step; N]) {
    loom::model(move || {
        let home = Home::default();
        home.lock().unwrap().replace();
        let lend = |_: &Step| home.lock().unwrap().lend();
        let loans: Vec<_> = steps.iter().map(lend).collect();
        let mut work = steps.into_iter().zip(loans);
        let (here, loan) = work.next().unwrap();
        let others: Vec<_> = work
            .map(|(step, loan)| {
                let home = home.clone();
                thread::spawn(move || step(&home, loan))
            })
            .collect();
        here(&home, loan);
        others.into_iter().for_each(|other| other.join().unwrap());
        let mut owner = home.lock().unwrap();
        assert!(owner.leaving.is_empty(), "nobody has told");
        owner.leaving = owner.block.take().into_iter().collect();
        owner.settle();
        assert!(owner.leaving.is_empty() && owner.counts.are_home(), "a count was lost");
    });
}

fn leave(home: &Home, loan: Loan<Byte>) {
    end(home, loan, 1);
}

fn share(home: &Home, loan: Loan<Byte>) {
    let other = loan.again().unwrap();
    end(home, loan, 1);
    end(home, other, 1);
}

/// The last user of the first block may be all that settles it.
fn replace(home: &Home, loan: Loan<Byte>) {
    end(home, loan, 1);
    home.lock().unwrap().replace();
}

/// More blocks after the first: one of them has its count, once that was given back.
fn replace_and_ask(home: &Home, loan: Loan<Byte>) {
    end(home, loan, 1);
    home.lock().unwrap().replace();
    for number in 2..=3 {
        let loan = home.lock().unwrap().lend();
        home.lock().unwrap().replace();
        assert!(end(home, loan, number), "asked for, and not told");
    }
}

/// All counts at home go at once, and those who come late touch nothing of them.
fn give_all_up(home: &Home, loan: Loan<Byte>) {
    end(home, loan, 1);
    let mut owner = home.lock().unwrap();
    owner.leaving = owner.block.take().into_iter().collect();
    owner.settle();
    let counts = std::mem::take(&mut owner.counts);
    if counts.are_home() {
        drop(counts);
    } else {
        owner.counts = counts;
    }
    owner.replace();
}

#[test]
fn a_count_is_handed_on() {
    race([replace, leave]);
    race([replace, share]);
    race([replace_and_ask, leave]);
}

#[test]
fn counts_go_when_all_are_home() {
    race([give_all_up, leave]);
    race([give_all_up, share]);
}
