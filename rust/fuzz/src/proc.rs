//! Text of `/proc` and of cgroups: whatever it is, it is read as somebody would who goes by words and
//! lines, or refused; and no group is looked for outside of where groups are mounted.

use memweir_core::proc::groups::{Place, Version, places};
use memweir_core::proc::text;
use std::path::{Component, Path};

/// The first byte chooses what the text is taken for. Without its last line's end and with it.
pub fn check(input: &[u8]) {
    let Some((which, text)) = input.split_first() else { return };
    read(*which, text);
    read(*which, &[text, b"\n"].concat());
}

fn read(which: u8, text: &[u8]) {
    match which % 8 {
        0 => numbers(text),
        1 => statm(text),
        2 => status(text),
        3 => stat(text),
        4 => pressure(text),
        5 => rollup(text),
        6 => group(
            text,
            b"41 31 0:38 / /mnt rw - cgroup2 none rw\n1 2 3 /a/b /v1 - cgroup c x,memory\n",
        ),
        _ => {
            // Both texts are the input's.
            let cut = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
            group(&text[..cut], text.get(cut + 1..).unwrap_or_default());
        }
    }
}

/// A number as the standard library reads it, which takes a sign, too.
fn plain(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| str::from_utf8(text).ok()?.parse().ok()).flatten()
}

fn numbers(text: &[u8]) {
    assert_eq!(text::number(text), plain(text));
    assert_eq!(text::lone(text), plain(text.trim_ascii()));
    let limit = text::limit(text);
    let word = text.trim_ascii();
    let digits = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    assert_eq!(limit.is_some(), word == b"max" || digits);
    if let Some(Some(bytes)) = limit {
        assert!(bytes < 1 << 62 && Some(bytes) == plain(word));
    }
}

/// The words of a line, and the lines that have ended.
fn words(line: &[u8]) -> Vec<&[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect()
}

fn lines(text: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    lines.pop();
    lines
}

fn statm(text: &[u8]) {
    for page in [4096, 65536] {
        let pages: Vec<Option<u64>> =
            words(text).into_iter().take(3).map(|word| plain(word)?.checked_mul(page)).collect();
        let expected = match pages[..] {
            [Some(_), Some(resident), Some(shared)] if resident > 0 => Some((resident, shared)),
            _ => None,
        };
        assert_eq!(text::statm(text, page).map(|s| (s.resident, s.shared)), expected);
    }
}

/// The first line that starts with a name, in kibibytes.
fn kibibytes(text: &[u8], name: &str) -> Option<u64> {
    let line = lines(text).into_iter().find(|line| line.starts_with(name.as_bytes()))?;
    match words(&line[name.len()..])[..] {
        [value, b"kB", ..] => plain(value)?.checked_mul(1024),
        _ => None,
    }
}

fn status(text: &[u8]) {
    let field = |name| kibibytes(text, name);
    let all = [field("RssAnon:"), field("RssFile:"), field("RssShmem:")];
    let Some(read) = text::status(text) else {
        assert!(all.contains(&None));
        return;
    };
    assert_eq!(all, [Some(read.anon), Some(read.file), Some(read.shmem)]);
    assert_eq!((read.swap, read.peak), (field("VmSwap:"), field("VmHWM:")));
    assert_eq!(text::meminfo(text, "VmHWM:"), read.peak);
}

fn stat(text: &[u8]) {
    let field = |name: &str| {
        let rest = lines(text).into_iter().find_map(|line| line.strip_prefix(name.as_bytes()))?;
        plain(words(rest).first()?)
    };
    let inactive = field("total_inactive_file ").or_else(|| field("inactive_file "));
    let read = text::stat(text);
    assert_eq!(read.map(|s| s.inactive_file), inactive);
    if let Some(limit) = read.and_then(|s| s.hierarchical) {
        assert!(field("hierarchical_memory_limit ") == Some(limit) && limit < 1 << 62);
    }
}

fn pressure(text: &[u8]) {
    let Some(read) = text::pressure(text) else { return };
    for (kind, stall) in [("some", read.some), ("full", read.full)] {
        let shares = [stall.avg10, stall.avg60, stall.avg300];
        assert!(shares.iter().all(|share| share.is_finite() && *share >= 0.0));
        let told = |words: Vec<&[u8]>| {
            let total = words.get(4).and_then(|word| plain(word.strip_prefix(b"total=")?));
            words.first() == Some(&kind.as_bytes()) && total == Some(stall.total)
        };
        assert!(lines(text).into_iter().map(words).any(told));
    }
}

fn rollup(text: &[u8]) {
    let field = |name| kibibytes(text, name);
    let Some(read) = text::rollup(text) else { return };
    assert_eq!((Some(read.pss), Some(read.huge)), (field("Pss:"), field("AnonHugePages:")));
    assert!(read.uss >= field("Private_Clean:").unwrap().max(field("Private_Dirty:").unwrap()));
}

fn group(cgroup: &[u8], mountinfo: &[u8]) {
    let root = Path::new("/root");
    let found = places(cgroup, mountinfo, root);
    assert!(found.len() <= 2 * lines(&[mountinfo, b"\n"].concat()).len());
    for Place { version, levels } in &found {
        assert!(!levels.is_empty());
        for pair in levels.windows(2) {
            assert_eq!(pair[0].parent(), Some(&*pair[1]), "not the group around");
            assert!(pair[0].file_name().is_some());
        }
        // From the mount on there is nothing that leads out of it again.
        let mount = levels.last().unwrap();
        assert!(mount.starts_with(root));
        let inside = levels[0].strip_prefix(mount).unwrap();
        assert!(inside.components().all(|part| matches!(part, Component::Normal(_))));
        assert_eq!(inside.components().count() + 1, levels.len());
        let named = match version {
            Version::V1 => &b"memory"[..],
            Version::V2 => b"0::/",
        };
        assert!(cgroup.windows(named.len()).any(|window| window == named));
    }
    let sorted = found.iter().map(|place| place.version == Version::V2);
    assert!(sorted.is_sorted(), "the hierarchy with the controller comes first");
}
