//! Every allocator there may be, out of functions that only write down how they were called.

mod fake;

use fake::{Fake, alone, calls, script};
use memweir_core::heap::arenas::{self, Arena};
use memweir_core::heap::detect::{Allocator, detect};
use memweir_core::heap::job::{Part, work};
use memweir_core::heap::loader::Platform;
use memweir_core::heap::step::Step;
use memweir_core::heap::{stats, sweep, tune};
use proptest::prelude::*;

const LIBC: usize = 1;
const OTHER: usize = 2;
const PROGRAM: usize = 3;

fn released(allocator: &Allocator) -> Vec<Step> {
    work(allocator, Part::Release, &sweep::start)
}

fn swept(allocator: &Allocator) -> Step {
    work(allocator, Part::Sweep, &sweep::start).remove(0)
}

#[test]
fn the_gnu_library_is_trimmed_by_malloc_trim() {
    let _alone = alone();
    let found = detect(&Fake::glibc(LIBC));
    assert_eq!((found.kind(), found.version.as_deref()), ("glibc", Some("2.99")));
    assert_eq!(found.object.as_deref(), Some("/lib/object1.so"));
    let steps = released(&found);
    assert_eq!(calls(), ["malloc_trim(0)"]);
    assert_eq!((steps[0].name, steps[0].ok, steps[0].returned), ("malloc_trim", true, Some(1)));
    assert_eq!(steps[0].why, None);
}

#[test]
fn jemalloc_is_purged_by_name() {
    let _alone = alone();
    // A preload comes before the C library, whose own functions can still be called.
    let found = detect(&Fake::glibc(LIBC).jemalloc(OTHER));
    assert_eq!((found.kind(), found.version.as_deref()), ("jemalloc", Some("5.9")));
    let steps = released(&found);
    let made = calls();
    let named = ["version", "thread.tcache.flush", "arena.4096.purge"];
    assert!(made.iter().zip(named).all(|(call, name)| *call == format!("mallctl({name})")));
    // Whether an arena was passed over; little is left here, and there is no second try.
    assert_eq!(made.iter().filter(|call| call.contains("purge")).count(), 1);
    assert!(made.iter().any(|call| call == "mallctl(stats.arenas.4096.pdirty)"));
    assert_eq!(
        steps.iter().map(|s| (s.name, s.ok)).collect::<Vec<_>>(),
        [("thread.tcache.flush", true), ("arena.purge", true),]
    );
    let sweep = swept(&found);
    assert!(!sweep.ok);
    assert_eq!(sweep.why.as_deref(), Some("jemalloc has no arenas that a release leaves out"));
}

#[test]
fn an_older_jemalloc_has_its_number_of_arenas_for_all_of_them() {
    let _alone = alone();
    fake::refuse("arena.4096.purge");
    let steps = released(&detect(&Fake::glibc(LIBC).jemalloc(OTHER)));
    assert!(calls().contains(&"mallctl(arena.7.purge)".to_owned()));
    assert!(steps[1].ok);
    fake::refuse("arena.7.purge");
    let steps = released(&detect(&Fake::glibc(LIBC).jemalloc(OTHER)));
    assert!(!steps[1].ok);
    assert_eq!(steps[1].returned, Some(2));
    assert!(steps[1].why.as_deref().is_some_and(|why| why.contains("No such file")));
}

#[test]
fn arenas_that_jemalloc_passed_over_are_tried_again_and_not_for_ever() {
    let _alone = alone();
    fake::unused(100_000);
    assert!(released(&detect(&Fake::glibc(LIBC).jemalloc(OTHER)))[1].ok);
    assert_eq!(calls().iter().filter(|call| call.contains("purge")).count(), 5);
}

#[test]
fn mimalloc_collects() {
    let _alone = alone();
    let found = detect(&Fake::glibc(LIBC).mimalloc(OTHER));
    assert_eq!((found.kind(), found.version.as_deref()), ("mimalloc", Some("2.1.7")));
    let steps = released(&found);
    assert_eq!(calls(), ["mi_collect(true)"]);
    assert_eq!((steps[0].name, steps[0].ok), ("mi_collect", true));
    assert_eq!(stats::stats(&found).mapped, Some(4096));
    assert_eq!(stats::stats(&found).in_use, None);
}

#[test]
fn tcmalloc_releases_free_memory() {
    let _alone = alone();
    let found = detect(&Fake::glibc(LIBC).tcmalloc(OTHER));
    assert_eq!((found.kind(), found.version.as_deref()), ("tcmalloc", Some("gperftools 2.99")));
    let steps = released(&found);
    assert_eq!(calls(), ["ReleaseFreeMemory()"]);
    assert_eq!((steps[0].name, steps[0].ok), ("ReleaseFreeMemory", true));
    // Every property of the fake is worth as many bytes as its name has letters.
    assert_eq!(stats::stats(&found).in_use, Some("generic.current_allocated_bytes".len() as u64));
}

#[test]
fn zones_of_macos_are_asked_for_relief() {
    let _alone = alone();
    let found = detect(&Fake::new(Platform::Macos).malloc(LIBC).zones(OTHER));
    assert_eq!(found.kind(), "macos");
    let steps = released(&found);
    assert_eq!(calls(), ["malloc_zone_pressure_relief(null, 0)"]);
    // The one answer that is a number of bytes.
    assert_eq!((steps[0].ok, steps[0].returned), (true, Some(12_345)));
    let found = detect(&Fake::new(Platform::Macos).malloc(LIBC));
    let steps = released(&found);
    assert!(!steps[0].ok);
    assert_eq!(steps[0].why.as_deref(), Some("the symbol malloc_zone_pressure_relief is missing"));
}

#[test]
fn musl_and_windows_have_nothing_to_trim_with_and_say_so() {
    let _alone = alone();
    for (platform, kind, why) in [
        (Platform::Musl, "musl", "musl has no malloc_trim"),
        (Platform::Windows, "windows", "not supported on Windows"),
    ] {
        let found = detect(&Fake::new(platform).malloc(LIBC));
        assert_eq!(found.kind(), kind);
        for step in [&released(&found)[0], &swept(&found)] {
            assert!(!step.ok);
            assert!(step.why.is_some());
        }
        assert!(released(&found)[0].why.as_deref().is_some_and(|given| given.starts_with(why)));
        assert_eq!(stats::stats(&found), stats::Stats::default());
        assert!(tune::set(&found, "arena_max", 1).is_err());
    }
    // A library of musl in a process that was built for the GNU one.
    let found = detect(&Fake::new(Platform::Gnu).named("/lib/ld-musl-x86_64.so.1").malloc(LIBC));
    assert_eq!(found.kind(), "musl");
}

#[test]
fn a_process_without_a_c_library_has_an_unknown_allocator() {
    let _alone = alone();
    let found = detect(&Fake::new(Platform::Other));
    assert_eq!((found.kind(), &found.object), ("unknown", &None));
    let steps = released(&found);
    assert_eq!(steps[0].why.as_deref(), Some("no symbol malloc is to be found in this process"));
    assert!(!steps[0].ok);
}

#[test]
fn an_allocator_that_nobody_knows_is_named_by_its_object() {
    let _alone = alone();
    let found = detect(&Fake::glibc(LIBC).malloc(OTHER));
    assert_eq!((found.kind(), found.object.as_deref()), ("unknown", Some("/lib/object2.so")));
    assert!(released(&found)[0].why.as_deref().is_some_and(|why| why.contains("/lib/object2.so")));
    assert!(calls().is_empty());
}

#[test]
fn a_private_copy_of_an_allocator_is_not_the_one_that_answers_malloc() {
    let _alone = alone();
    for private in [
        Fake::glibc(LIBC).jemalloc(OTHER).malloc(LIBC),
        Fake::glibc(LIBC).mimalloc(OTHER).malloc(LIBC),
        Fake::glibc(LIBC).tcmalloc(OTHER).malloc(LIBC),
    ] {
        assert_eq!(detect(&private).kind(), "glibc");
    }
}

#[test]
fn a_stub_in_the_program_leads_to_the_library_behind_it() {
    let _alone = alone();
    let found = detect(&Fake::glibc(LIBC).malloc(PROGRAM).program(PROGRAM));
    assert_eq!((found.kind(), found.object.as_deref()), ("glibc", Some("/lib/object1.so")));
    // An allocator that is part of the program needs no such detour.
    let found = detect(&Fake::glibc(LIBC).jemalloc(PROGRAM).program(PROGRAM));
    assert_eq!(found.kind(), "jemalloc");
}

#[test]
fn a_missing_symbol_is_an_outcome() {
    let _alone = alone();
    let mut none = Fake::glibc(LIBC);
    for name in [c"malloc_trim", c"mallopt", c"mallinfo2", c"mallinfo", c"malloc_info", c"free"] {
        none.remove(name);
    }
    let found = detect(&none);
    assert_eq!(found.kind(), "glibc");
    let steps = released(&found);
    assert_eq!(steps[0].why.as_deref(), Some("the symbol malloc_trim is missing"));
    let sweep = swept(&found);
    assert_eq!(
        (sweep.ok, sweep.why.as_deref()),
        (false, Some("the symbols malloc and free are missing"))
    );
    assert_eq!(stats::stats(&found), stats::Stats::default());
    assert_eq!(tune::set(&found, "top_pad", 1), Err("the symbol mallopt is missing".to_owned()));
    assert!(calls().is_empty());

    let mut no_mallopt = Fake::glibc(LIBC);
    no_mallopt.remove(c"mallopt");
    script(&[&[0, 1 << 20]]);
    let sweep = swept(&detect(&no_mallopt));
    assert!(!sweep.ok);
    assert!(sweep.why.is_some_and(|why| why.contains("mallopt")));
}

#[test]
fn older_figures_wrap_and_newer_do_not() {
    let _alone = alone();
    let mut old = Fake::glibc(LIBC);
    let new = stats::stats(&detect(&old));
    assert_eq!((new.in_use, new.free, new.mapped), (Some(5 << 30), Some(7), Some(6 << 30)));
    old.remove(c"mallinfo2");
    let found = stats::stats(&detect(&old));
    // 3 GiB, as a negative number.
    assert_eq!((found.in_use, found.free, found.mapped), (Some(3 << 30), Some(7), Some(3 << 30)));
}

#[test]
fn knobs_reach_the_allocator_that_is_here_and_no_other() {
    let _alone = alone();
    script(&[]);
    let glibc = detect(&Fake::glibc(LIBC));
    assert_eq!(tune::set(&glibc, "mmap_threshold", 1 << 20), Ok(None));
    assert_eq!(calls(), ["mallopt(-3, 1048576)"]);
    assert_eq!(
        tune::set(&glibc, "mmap_threshold", 33 << 20),
        Err("glibc refuses it: it takes 32 MiB at most".to_owned())
    );
    assert_eq!(
        tune::set(&glibc, "dirty_decay_ms", 1),
        Err("this is jemalloc's, and here glibc answers malloc".to_owned())
    );
    let jemalloc = detect(&Fake::glibc(LIBC).jemalloc(OTHER));
    let mark = calls().len();
    assert_eq!(tune::set(&jemalloc, "background_thread", 1), Ok(None));
    assert_eq!(tune::set(&jemalloc, "dirty_decay_ms", 1000), Ok(None));
    let all = calls();
    assert_eq!(all[mark], "mallctl(background_thread)");
    assert_eq!(all[mark + 1], "mallctl(arenas.dirty_decay_ms)");
    assert_eq!(all[mark + 3..].len(), 7);
    assert_eq!(all.last().map(String::as_str), Some("mallctl(arena.6.dirty_decay_ms)"));
    fake::refuse("arena.6.dirty_decay_ms");
    let word = tune::set(&jemalloc, "dirty_decay_ms", 1000);
    assert_eq!(word, Ok(Some("in 6 of 7 arenas: the others are unused".to_owned())));
    let mimalloc = detect(&Fake::glibc(LIBC).mimalloc(OTHER));
    assert_eq!(tune::set(&mimalloc, "purge_delay_ms", 10), Ok(None));
    assert_eq!(calls().last().map(String::as_str), Some("mi_option_set(15, 10)"));
    fake::mimalloc_is(150);
    let why = tune::set(&mimalloc, "purge_delay_ms", 10);
    assert!(why.is_err_and(|why| why.contains("not known for version 1.5.0")));
    let tcmalloc = detect(&Fake::glibc(LIBC).tcmalloc(OTHER));
    assert_eq!(tune::set(&tcmalloc, "aggressive_decommit", 1), Ok(None));
    assert!(
        tune::set(&tcmalloc, "release_rate", 1)
            .is_err_and(|why| why.contains("TCMALLOC_RELEASE_RATE"))
    );
}

#[test]
fn bounding_arenas_says_when_it_is_too_late() {
    let _alone = alone();
    let glibc = detect(&Fake::glibc(LIBC));
    script(&[&[0; 9]]);
    let why = tune::set(&glibc, "arena_max", 2);
    assert!(why.is_err_and(|why| why.starts_with("too late") && why.contains("there are 9")));
    assert!(calls().is_empty());
    script(&[&[0; 3]]);
    let word = tune::set(&glibc, "arena_max", 2);
    assert_eq!(word, Ok(Some("there are 3 already, which stay; no more are made".to_owned())));
    // What holds already is not too late, however many there are by now.
    script(&[&[0; 9]]);
    let word = tune::set(&glibc, "arena_max", 2);
    assert_eq!(word, Ok(Some("there are 9 already, which stay; no more are made".to_owned())));
    script(&[&[0; 3]]);
    let why = tune::set(&glibc, "arena_max", 8);
    assert!(why.is_err_and(|why| why.contains("decided on 2")));
}

#[test]
fn big_allocations_that_came_first_are_told() {
    let _alone = alone();
    let mut fake = Fake::glibc(LIBC);
    // The fake says that 3 GiB are in maps of their own.
    script(&[&[0]]);
    let word = tune::late(&detect(&fake)).unwrap_or_default();
    assert!(word.contains("1024 MiB are in maps"), "{word}");
    fake.remove(c"mallinfo2");
    script(&[&[0], &[0]]);
    assert_eq!(tune::late(&detect(&fake)), None);
    script(&[&[65 << 20], &[65 << 20]]);
    assert!(tune::late(&detect(&fake)).is_some_and(|word| word.contains("held up to 65 MiB")));
    script(&[&[0; 9]]);
    assert!(tune::late(&detect(&fake)).is_some_and(|word| word.contains("9 arenas")));
    assert_eq!(tune::late(&detect(&Fake::glibc(LIBC).jemalloc(OTHER))), None);
}

#[test]
fn only_what_lies_in_the_lists_is_no_top() {
    let text = br#"<malloc version="1">
<heap nr="0">
<sizes>
  <size from="17" to="32" total="320" count="10"/>
  <unsorted from="1000" to="2000" total="3000" count="2"/>
</sizes>
<total type="fast" count="10" size="320"/>
<total type="rest" count="3" size="133000"/>
<system type="current" size="135168"/>
<system type="max" size="200000"/>
</heap>
<total type="rest" count="3" size="99"/>
<system type="current" size="99"/>
</malloc>"#;
    let arena = Arena { system: 135_168, most: 200_000, free: 133_320, listed: 3_320 };
    assert_eq!(arenas::parse(text), [arena]);
    assert_eq!(arena.top(), 130_000);
    assert_eq!(arenas::tops(&[arena]), Some(0));
    assert_eq!(arenas::tops(&[arena, arena]), Some(130_000));
    // A library that leaves the top out does not tell.
    let old = Arena { free: 3_320, ..arena };
    assert_eq!(arenas::tops(&[old, old]), None);
}

proptest! {
    #[test]
    fn any_text_is_read_without_harm(text in any::<Vec<u8>>()) {
        arenas::parse(&text);
    }

    #[test]
    fn any_lines_are_read_without_harm(lines in prop::collection::vec(0..12_usize, 0..30)) {
        const LINES: [&str; 12] = [
            "<heap nr=\"0\">", "</heap>", "<size total=\"18446744073709551615\"/>",
            "<size from=\"1\" total=\"18446744073709551616\"", "<unsorted total=\"", "<sizes>",
            "<total type=\"fast\" size=\"18446744073709551615\"/>", "<total type=\"rest\" size=\"-1\"/>",
            "<system type=\"current\" size=\"18446744073709551615\"/>", "<system type=\"max\" size=\"x\"/>",
            "\u{feff}<heap ", "<total type=\"rest\" count=\"1\" size=\"18446744073709551615\"/>",
        ];
        let text = lines.iter().map(|line| LINES[*line]).collect::<Vec<_>>().join("\n");
        let found = arenas::parse(text.as_bytes());
        found.iter().for_each(|arena| { arena.top(); });
        arenas::tops(&found);
    }
}
