//! Which parts of glibc's heaps may be kept from huge pages, and where nothing is done.
#![cfg(target_pointer_width = "64")]

use memweir_core::heap::advice::{self, take_back};
use memweir_core::proc::maps::{Kind, Map};
use proptest::prelude::*;
use std::io;
use std::path::PathBuf;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// A place where a heap of a thread may begin.
const BASE: usize = 0x7f00_0000_0000;
const HEAP: usize = 64 * MIB;

fn map(kind: Kind, start: usize, end: usize) -> Map {
    Map { start, end, kind }
}

fn memory(start: usize, end: usize) -> Map {
    map(Kind::Memory, start, end)
}

fn reserved(start: usize, end: usize) -> Map {
    map(Kind::Reserved, start, end)
}

/// Without full heaps.
fn behind_borders(maps: &[Map]) -> Vec<Map> {
    advice::behind_borders(maps, |_| false)
}

fn starts(maps: &[Map]) -> Vec<usize> {
    behind_borders(maps).iter().map(|map| map.start).collect()
}

#[test]
fn what_is_behind_the_first_of_a_heap_may_be_advised() {
    let at = 0x55d0_0000_0000 + PAGE;
    let heap = [
        map(Kind::Break, at, at + MIB),
        map(Kind::Break, at + MIB, at + 40 * MIB),
        // Without room for a huge page.
        map(Kind::Break, at + 40 * MIB, at + 42 * MIB),
        map(Kind::Break, at + 42 * MIB, at + 99 * MIB),
    ];
    assert_eq!(behind_borders(&heap), [heap[1], heap[3]]);
    assert_eq!(behind_borders(&heap[..1]), []);
    // A gap is no border.
    assert_eq!(behind_borders(&[heap[0], heap[3]]), []);

    let (first, second) = (memory(BASE, BASE + PAGE), memory(BASE + PAGE, BASE + 30 * MIB));
    let rest = reserved(BASE + 30 * MIB, BASE + HEAP);
    assert_eq!(behind_borders(&[first, second, rest]), [second]);
    assert_eq!(behind_borders(&[memory(BASE, BASE + 30 * MIB), rest]), []);
    // Its neighbours below and above may be like it, but hardly both.
    let below = memory(BASE - 9 * MIB, BASE + PAGE);
    assert_eq!(behind_borders(&[below, second, rest]), [second]);
    let above = reserved(BASE + 30 * MIB, BASE + HEAP + MIB);
    assert_eq!(behind_borders(&[first, second, above]), [second]);
    assert_eq!(behind_borders(&[below, second, above]), []);
    // Apart from what is below a heap that is not its own.
    let other = memory(BASE - 9 * MIB, BASE);
    assert_eq!(behind_borders(&[other, first, second, rest]), [second]);
}

#[test]
fn full_heaps_are_found_by_what_they_begin_with() {
    // Nothing is reserved behind any of these but the last.
    let row = [
        memory(BASE - 9 * MIB, BASE + PAGE),
        memory(BASE + PAGE, BASE + 30 * MIB),
        memory(BASE + 30 * MIB, BASE + HEAP),
        memory(BASE + HEAP, BASE + HEAP + PAGE),
        memory(BASE + HEAP + PAGE, BASE + 2 * HEAP),
        memory(BASE + 2 * HEAP, BASE + 2 * HEAP + PAGE),
        memory(BASE + 2 * HEAP + PAGE, BASE + 2 * HEAP + 9 * MIB),
        reserved(BASE + 2 * HEAP + 9 * MIB, BASE + 3 * HEAP),
    ];
    let found = |full: &[usize]| advice::behind_borders(&row, |base| full.contains(&base));
    assert_eq!(found(&[]), [row[6]]);
    assert_eq!(found(&[BASE]), [row[1], row[2], row[6]]);
    assert_eq!(found(&[BASE, BASE + HEAP]), [row[1], row[2], row[4], row[6]]);
    // Nobody asks about a place that is not all there.
    assert_eq!(advice::behind_borders(&row[..2], |_| true), []);
    assert_eq!(advice::behind_borders(&row[1..3], |_| true), []);
}

#[test]
fn memory_that_is_no_heap_is_left_as_it_is() {
    let (first, second) = (memory(BASE, BASE + PAGE), memory(BASE + PAGE, BASE + 30 * MIB));
    // Nothing is reserved behind it, or too little, or not at once, or it fills all of its place.
    assert_eq!(starts(&[first, second]), []);
    assert_eq!(starts(&[first, second, reserved(second.end, second.end + PAGE)]), []);
    assert_eq!(starts(&[first, second, reserved(second.end + PAGE, BASE + HEAP)]), []);
    let full = memory(BASE + PAGE, BASE + HEAP);
    assert_eq!(starts(&[first, full, reserved(full.end, full.end + HEAP)]), []);
    // It does not begin where heaps begin.
    let (first, second) = (memory(BASE + PAGE, BASE + MIB), memory(BASE + MIB, BASE + 30 * MIB));
    assert_eq!(starts(&[first, second, reserved(second.end, BASE + HEAP)]), []);
    let other = map(Kind::Other, BASE + PAGE, BASE + 30 * MIB);
    assert_eq!(starts(&[memory(BASE, BASE + PAGE), other, reserved(other.end, BASE + HEAP)]), []);
}

fn tree(name: &str, files: &[(&str, &str)]) -> io::Result<PathBuf> {
    let root = std::env::temp_dir().join(format!("memweir-advice-{}-{name}", std::process::id()));
    let folder = root.join("sys/kernel/mm/transparent_hugepage");
    std::fs::create_dir_all(folder.join("khugepaged"))?;
    for (file, text) in files {
        let file = folder.join(file);
        file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(file, text)?;
    }
    Ok(root)
}

#[test]
fn where_huge_pages_are_not_for_who_asks_nothing_is_done() -> io::Result<()> {
    let large = "hugepages-2048kB/enabled";
    for (name, files, expected) in [
        ("always", &[("enabled", "[always] madvise never\n")][..], "to all"),
        ("never", &[("enabled", "always madvise [never]\n")], "gives no huge pages"),
        (
            "one size",
            &[("enabled", "always [madvise] never\n"), (large, "[always] inherit madvise never\n")],
            "to all",
        ),
        (
            "smallest",
            &[
                ("enabled", "always [madvise] never\n"),
                ("hugepages-8kB/enabled", "[always] never\n"),
            ],
            "to all",
        ),
        (
            "largest",
            &[("enabled", "[madvise]\n"), ("hugepages-1048576kB/enabled", "[always] never\n")],
            "to all",
        ),
        ("none", &[], "does not tell whom"),
        ("other", &[("enabled", "[sometimes]\n")], "does not tell whom"),
        // The mode is right, and there is no text of what is mapped.
        (
            "blind",
            &[("enabled", "always [madvise] never\n"), (large, "always [inherit] madvise never\n")],
            "does not tell what is mapped",
        ),
    ] {
        let root = tree(name, files)?;
        let outcome = take_back(&root);
        let _ = std::fs::remove_dir_all(root);
        assert!(outcome.failed, "{name}");
        assert_eq!(outcome.advice, None);
        let why = outcome.why.unwrap_or_default();
        assert!(why.contains(expected), "{name}: {why}");
    }
    Ok(())
}

#[test]
#[cfg(target_os = "linux")]
fn what_was_unmapped_meanwhile_is_passed_over() -> io::Result<()> {
    let root = tree("gone", &[("enabled", "always [madvise] never\n")])?;
    std::fs::create_dir_all(root.join("proc/self"))?;
    // Below where anything may be mapped.
    let text = "1000-2000 rw-p 0 00:00 0 [heap]\n2000-802000 rw-p 0 00:00 0 [heap]\n";
    std::fs::write(root.join("proc/self/maps"), text)?;
    let outcome = take_back(&root);
    let _ = std::fs::remove_dir_all(root);
    assert_eq!((outcome.failed, outcome.why), (false, None));
    assert_eq!(outcome.advice.map(|advice| (advice.ranges, advice.bytes)), Some((0, 0)));
    Ok(())
}

proptest! {
    #[test]
    fn any_mappings_do(cuts in prop::collection::vec((0..4u8, any::<usize>(), any::<usize>()), 0..9)) {
        let kinds = [Kind::Break, Kind::Memory, Kind::Reserved, Kind::Other];
        let maps: Vec<Map> = cuts
            .into_iter()
            .filter(|(_, a, b)| a != b)
            .map(|(kind, a, b)| map(kinds[usize::from(kind)], a.min(b), a.max(b)))
            .collect();
        for found in advice::behind_borders(&maps, |base| base.is_multiple_of(2 * HEAP)) {
            prop_assert!(maps.contains(&found));
        }
    }

    /// Mappings that follow each other up to the end of all addresses.
    #[test]
    fn any_row_of_mappings_does(sizes in prop::collection::vec((1..3u8, 1..99usize), 0..9)) {
        let kinds = [Kind::Break, Kind::Memory, Kind::Reserved, Kind::Other];
        let mut end = usize::MAX - PAGE + 1;
        let mut maps = Vec::new();
        for (kind, size) in sizes {
            let start = end - size * MIB;
            maps.insert(0, map(kinds[usize::from(kind)], start, end));
            end = start;
        }
        for found in advice::behind_borders(&maps, |base| base.is_multiple_of(2 * HEAP)) {
            prop_assert!(maps.contains(&found));
        }
    }
}
