use super::tree::Tree;
use crate::proc::kept::*;
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
    tree.write("theirs", "theirs");
    let keep = || Opened::new(&tree.path().join("ours"), Process::this()).unwrap().keep();
    // More than there are marks: the last are known by their inode alone.
    let all: Vec<Kept> = (0..100).map(|_| keep()).collect();
    assert!(all.iter().all(|&kept| read(kept, 16).unwrap() == b"ours"));
    // One of ours in the place of another is somebody else's, too.
    // SAFETY: both numbers are open, and nobody's but ours.
    unsafe { libc::dup2(all[1].number(), all[0].number()) };
    assert_eq!(read(all[0], 16), None);
    for kept in [all[0], all[99]] {
        is_left_to_others(&tree, kept);
    }
}

fn is_left_to_others(tree: &Tree, kept: Kept) {
    tree.write("theirs", "theirs");
    let mut theirs =
        File::options().read(true).write(true).open(tree.path().join("theirs")).unwrap();
    // SAFETY: both numbers are open; the first is nobody's but ours.
    assert_eq!(unsafe { libc::dup2(theirs.as_raw_fd(), kept.number()) }, kept.number());
    assert_eq!(read(kept, 16), None);
    // SAFETY: it is open: the copy that was just made.
    assert_eq!(unsafe { libc::lseek(kept.number(), 0, libc::SEEK_CUR) }, 0, "still open");
    theirs.write_all(b"more").unwrap();
    theirs.rewind().unwrap();
    let mut text = String::new();
    theirs.read_to_string(&mut text).unwrap();
    assert_eq!(text, "morers");
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
