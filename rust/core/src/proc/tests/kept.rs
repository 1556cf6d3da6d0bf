use super::tree::Tree;
use crate::proc::kept::*;
use crate::proc::mark::Marks;
use crate::proc::process::Process;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;

fn read(kept: Kept, room: usize) -> Option<Vec<u8>> {
    kept.read(&mut Buffer::new(&mut vec![0; room])).map(<[u8]>::to_vec)
}

#[test]
fn a_kept_file_is_read_from_its_start_as_it_is_now() {
    let tree = Tree::new();
    tree.write("a", "first");
    let opened = Opened::new(&tree.path().join("a"), Process::this()).unwrap();
    let kept = opened.keep();
    assert_eq!(read(kept, 16).unwrap(), b"first");
    tree.write("a", "second");
    assert_eq!(read(kept, 16).unwrap(), b"second");
    let this = Process::this();
    assert!(kept.is_of(this) && !kept.is_of(this.child()));
    tree.remove("a");
    assert_eq!(read(kept, 16).unwrap(), b"second");
}

#[test]
fn a_text_longer_than_the_room_is_read_whole() {
    let tree = Tree::new();
    for length in [0, 15, 16, 17, 255, 256, 1000, 100_000] {
        let text: String = ('a'..='z').cycle().take(length).collect();
        tree.write("a", &text);
        let kept = Opened::new(&tree.path().join("a"), Process::this()).unwrap().keep();
        assert_eq!(read(kept, 16).unwrap(), text.as_bytes(), "{length}");
    }
    tree.write("a", &"x".repeat(20 << 20));
    let kept = Opened::new(&tree.path().join("a"), Process::this()).unwrap().keep();
    let read = read(kept, 16).unwrap().len();
    assert!((4 << 20..20 << 20).contains(&read), "{read}");
}

#[test]
fn what_is_not_kept_is_closed() {
    let tree = Tree::new();
    tree.write("a", "text");
    let opened = Opened::new(&tree.path().join("a"), Process::this()).unwrap();
    assert_eq!(opened.read(&mut Buffer::new(&mut [0; 16])).unwrap(), b"text");
    drop(opened);
    let number = || {
        let opened = Opened::new(&tree.path().join("a"), Process::this()).unwrap();
        opened.number()
    };
    let highest = (0..5000).map(|_| number()).max().unwrap();
    assert!(highest > libc::STDERR_FILENO && highest < 2500, "{highest}");
}

/// As after `closerange` and an `open` that got the same number.
#[test]
fn a_number_that_became_somebody_elses_is_neither_read_nor_closed() {
    let tree = Tree::new();
    tree.write("ours", "ours");
    let open = || Opened::new(&tree.path().join("ours"), Process::this()).unwrap();
    for kept in [open().keep(), open().marked(&Marks::new()).keep()] {
        assert_eq!(read(kept, 16).unwrap(), b"ours");
        let mut theirs = in_its_place(&tree, kept.number());
        assert_eq!(read(kept, 16), None);
        // SAFETY: it is open: the copy that was just made.
        assert_eq!(unsafe { libc::lseek(kept.number(), 0, libc::SEEK_CUR) }, 0, "still open");
        theirs.write_all(b"more").unwrap();
        theirs.rewind().unwrap();
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "morers");
    }
}

#[test]
fn a_number_that_became_somebody_elses_before_it_is_kept_is_left_alone() {
    let tree = Tree::new();
    tree.write("ours", "ours");
    let opened = Opened::new(&tree.path().join("ours"), Process::this()).unwrap();
    let theirs = in_its_place(&tree, opened.number());
    assert_eq!(read(opened.marked(&Marks::new()).keep(), 16), None);
    #[cfg(target_os = "linux")]
    assert_eq!(signal(theirs.as_raw_fd()), 0);
    drop(theirs);
}

#[test]
#[cfg(target_os = "linux")]
fn a_mark_tells_two_files_of_one_name_apart() {
    let tree = Tree::new();
    tree.write("ours", "ours");
    let (first, marks) = (Marks::new(), Marks::new());
    let keep = |marks| {
        Opened::new(&tree.path().join("ours"), Process::this()).unwrap().marked(marks).keep()
    };
    let (one, _) = (keep(&first), marks.take());
    // SAFETY: passes numbers (`F_SETSIG`), and the file is ours.
    if unsafe { libc::fcntl(one.number(), 10, 64) } != 0 {
        return; // a kernel without
    }
    let mark = one.mark().unwrap();
    let other = keep(&marks);
    assert_ne!(Some(mark), other.mark());
    // SAFETY: both numbers are open, and nobody's but ours.
    unsafe { libc::dup2(other.number(), one.number()) };
    assert_eq!(read(one, 16), None);
    assert_eq!(read(other, 16).unwrap(), b"ours");

    let all: Vec<_> = std::iter::from_fn(|| first.take()).collect();
    assert!(all.len() > 20);
    assert!((0..all.len()).all(|n| all[n] != mark && !all[..n].contains(&all[n])));
    let unmarked = keep(&first);
    assert_eq!(unmarked.mark(), None);
    assert_eq!(read(unmarked, 16).unwrap(), b"ours");
}

#[cfg(target_os = "linux")]
fn signal(number: i32) -> i32 {
    // SAFETY: passes and returns numbers (`F_GETSIG`).
    unsafe { libc::fcntl(number, 11) }
}

/// Somebody else's file under this number, and under one of its own.
fn in_its_place(tree: &Tree, number: i32) -> File {
    tree.write("theirs", "theirs");
    let theirs = File::options().read(true).write(true).open(tree.path().join("theirs")).unwrap();
    // SAFETY: both numbers are open; the second is nobody's but ours.
    assert_eq!(unsafe { libc::dup2(theirs.as_raw_fd(), number) }, number);
    theirs
}

#[test]
fn a_number_that_is_closed_is_not_read() {
    let tree = Tree::new();
    tree.write("ours", "ours");
    let kept = Opened::new(&tree.path().join("ours"), Process::this()).unwrap().keep();
    // SAFETY: the descriptor is nobody's but ours.
    unsafe { libc::close(kept.number()) };
    let found = read(kept, 16);
    assert_ne!(found.as_deref(), Some(&b"ours"[..]));
}

#[test]
fn a_folder_or_a_missing_file_is_no_text() {
    let tree = Tree::new();
    assert!(Opened::new(&tree.path().join("missing"), Process::this()).is_none());
    let folder = Opened::new(tree.path(), Process::this()).unwrap();
    assert_eq!(folder.read(&mut Buffer::new(&mut [0; 16])), None);
}
