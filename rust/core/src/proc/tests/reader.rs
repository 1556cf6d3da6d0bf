use super::tree::Tree;
use crate::proc::process::Process;
use crate::proc::reader::Reader;

fn page() -> u64 {
    crate::arena::page() as u64
}

const HOST: u64 = 1_000_000 << 10;

/// The kinds and sizes of all limits but those of the process that runs the tests.
fn bounds(reader: &Reader) -> Vec<(&'static str, u64)> {
    let limits = reader.limits();
    limits.iter().filter(|l| !l.kind.starts_with("RLIMIT")).map(|l| (l.kind, l.bytes)).collect()
}

#[test]
fn a_look_at_a_group_of_the_second_version() {
    let tree = Tree::v2();
    let reader = Reader::new(tree.path());
    let quick = reader.quick();
    assert_eq!((quick.rss, quick.anon), (Some(5 * page()), Some(3 * page())));
    assert_eq!(quick.charge, Some(5000));
    assert_eq!(quick.process, Process::this());
    assert_eq!(reader.stat().unwrap().inactive_file, 1000);
    assert_eq!(reader.available(), Some(600_000 << 10));
    assert_eq!(bounds(&reader), [("host", HOST)]);
}

#[test]
fn the_least_limit_of_all_groups_around_counts() {
    let tree = Tree::v2();
    let reader = Reader::new(tree.path());
    tree.write("sys/fs/cgroup/outer/memory.max", "9000\n");
    tree.write("sys/fs/cgroup/outer/memory.high", "7000\n");
    tree.write("sys/fs/cgroup/outer/inner/memory.max", "8000\n");
    let all = [("memory.max", 8000), ("memory.max", 9000), ("memory.high", 7000), ("host", HOST)];
    assert_eq!(bounds(&reader), all);
    let least = reader.quick().limit.unwrap();
    assert_eq!((least.kind, least.bytes), ("memory.high", 7000));
    assert!(least.source.ends_with("/sys/fs/cgroup/outer/memory.high"), "{}", least.source);
}

#[test]
fn limits_change_and_go_while_the_process_runs() {
    let tree = Tree::v2();
    let max = "sys/fs/cgroup/outer/inner/memory.max";
    tree.write(max, "8000\n");
    let reader = Reader::new(tree.path());
    assert_eq!(reader.quick().limit.unwrap().bytes, 8000);
    tree.write(max, "6000\n");
    // Not read at each look, but again before long.
    assert_eq!(reader.quick_unless_due().unwrap().limit.unwrap().bytes, 8000);
    while let Some(quick) = reader.quick_unless_due() {
        assert_eq!(quick.limit.unwrap().bytes, 8000);
        std::thread::yield_now();
    }
    assert_eq!(reader.quick().limit.unwrap().bytes, 6000);
    for (text, expected) in [("max\n", HOST), ("", HOST), ("what?\n", HOST), ("5\n", 5)] {
        tree.write(max, text);
        assert_eq!(bounds(&reader).iter().map(|b| b.1).min(), Some(expected), "{text:?}");
        assert_eq!(reader.quick().limit.unwrap().bytes, expected);
    }
    tree.remove("sys/fs/cgroup/outer/inner");
    assert_eq!(bounds(&reader), [("host", HOST)]);
}

#[test]
fn a_process_that_moves_takes_the_charge_of_its_new_group() {
    let tree = Tree::v2();
    let reader = Reader::new(tree.path());
    assert_eq!(reader.quick().charge, Some(5000));
    tree.write("proc/self/cgroup", "0::/other\n");
    tree.write("sys/fs/cgroup/other/memory.current", "77\n");
    tree.write("sys/fs/cgroup/other/memory.max", "88\n");
    tree.write("sys/fs/cgroup/other/memory.stat", "inactive_file 11\n");
    assert_eq!(bounds(&reader)[0], ("memory.max", 88));
    assert_eq!(reader.quick().charge, Some(77));
    assert_eq!(reader.stat().unwrap().inactive_file, 11);
}

#[test]
fn the_first_version_with_its_unlimited_number_and_limits_out_of_sight() {
    let tree = Tree::v2();
    let group = "sys/fs/cgroup/memory/x";
    tree.write("proc/self/cgroup", "4:memory:/x\n0::/outer/inner\n");
    let mount = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    let unified = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    tree.write("proc/self/mountinfo", &[unified, mount].concat());
    tree.write(&format!("{group}/memory.usage_in_bytes"), "6000\n");
    tree.write(&format!("{group}/memory.limit_in_bytes"), "9223372036854771712\n");
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    let reader = Reader::new(tree.path());
    assert_eq!(bounds(&reader), [("host", HOST)]);
    assert_eq!(reader.quick().charge, Some(6000));
    let stat = |limit: u64| format!("hierarchical_memory_limit {limit}\ntotal_inactive_file 50\n");
    tree.write(&format!("{group}/memory.stat"), &stat(700));
    assert_eq!(bounds(&reader), [("hierarchical_memory_limit", 700), ("host", HOST)]);
    assert_eq!(reader.stat().unwrap().inactive_file, 50);
    // Said once, where it is in sight.
    tree.write(&format!("{group}/memory.limit_in_bytes"), "700\n");
    assert_eq!(bounds(&reader), [("memory.limit_in_bytes", 700), ("host", HOST)]);
}

#[test]
fn a_group_without_the_controller_is_charged_to_the_next_around_it() {
    let tree = Tree::v2();
    tree.write("proc/self/cgroup", "0::/outer/inner/session\n");
    tree.write("sys/fs/cgroup/outer/inner/session/cgroup.procs", "1\n");
    tree.write("sys/fs/cgroup/outer/inner/memory.max", "8000\n");
    let reader = Reader::new(tree.path());
    assert_eq!(reader.quick().charge, Some(5000));
    assert_eq!(reader.quick().limit.unwrap().bytes, 8000);
}

#[test]
fn a_controller_that_comes_and_goes_is_found() {
    let tree = Tree::v2();
    let group = "sys/fs/cgroup/outer/inner/session";
    tree.write("proc/self/cgroup", "0::/outer/inner/session\n");
    let reader = Reader::new(tree.path());
    assert_eq!(reader.quick().charge, Some(5000));
    tree.write(&format!("{group}/memory.current"), "77\n");
    tree.write(&format!("{group}/memory.max"), "88\n");
    assert_eq!(bounds(&reader), [("memory.max", 88), ("host", HOST)]);
    assert_eq!(reader.quick().charge, Some(77));
    tree.remove(&format!("{group}/memory.current"));
    tree.remove(&format!("{group}/memory.max"));
    assert_eq!(bounds(&reader), [("host", HOST)]);
    assert_eq!(reader.quick().charge, Some(5000));
}

#[test]
fn a_hierarchy_that_is_mounted_later_is_found() {
    let tree = Tree::v2();
    tree.write("sys/fs/cgroup/outer/memory.max", "9000\n");
    let mounts = std::fs::read_to_string(tree.path().join("proc/self/mountinfo")).unwrap();
    tree.remove("proc/self/mountinfo");
    let reader = Reader::new(tree.path());
    assert_eq!((reader.quick().charge, bounds(&reader)), (None, vec![("host", HOST)]));
    tree.write("proc/self/mountinfo", &mounts);
    assert_eq!(bounds(&reader), [("memory.max", 9000), ("host", HOST)]);
    assert_eq!(reader.quick().charge, Some(5000));
}

/// A folder is there and has no text, as a file for which no descriptor is free.
#[test]
fn what_cannot_be_read_now_is_taken_for_what_it_was() {
    let max = "sys/fs/cgroup/outer/inner/memory.max";
    for name in ["proc/self/cgroup", "proc/self/mountinfo", max] {
        let tree = Tree::v2();
        tree.write(max, "8000\n");
        tree.write("proc/self/cgroup", "0::/outer/inner/session\n");
        let reader = Reader::new(tree.path());
        let known = bounds(&reader);
        assert_eq!(known, [("memory.max", 8000), ("host", HOST)]);
        let text = std::fs::read_to_string(tree.path().join(name)).unwrap();
        tree.remove(name);
        std::fs::create_dir(tree.path().join(name)).unwrap();
        assert_eq!(bounds(&reader), known, "{name}");
        let quick = reader.quick();
        assert_eq!((quick.charge, quick.limit.unwrap().bytes), (Some(5000), 8000), "{name}");
        tree.remove(name);
        tree.write(name, &text);
        tree.write(max, "6000\n");
        // Looks find out by themselves.
        while reader.quick_unless_due().is_some() {
            std::thread::yield_now();
        }
        assert_eq!(reader.quick().limit.unwrap().bytes, 6000, "{name}");
    }
}

/// How many descriptors of this process are files of a tree.
fn open_of(tree: &Tree) -> usize {
    let numbers = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    numbers
        .filter_map(|number| std::fs::read_link(number.path()).ok())
        .filter(|file| file.starts_with(tree.path()))
        .count()
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_open_of_a_group_is_used_again_in_it() {
    let tree = Tree::v2();
    let reader = Reader::new(tree.path());
    tree.write("sys/fs/cgroup/other/memory.current", "77\n");
    let round = || {
        for (group, charge) in [("outer/inner", Some(5000)), ("other", Some(77)), ("none", None)] {
            tree.write("proc/self/cgroup", &format!("0::/{group}\n"));
            reader.limits();
            reader.stat();
            assert_eq!(reader.quick().charge, charge);
        }
        open_of(&tree)
    };
    let open = round();
    assert!(open >= 4, "{open}");
    for _ in 0..3 {
        assert_eq!(round(), open);
    }
}

#[test]
fn a_status_that_names_many_groups_is_read_whole() {
    let tree = Tree::v2();
    let reader = Reader::new(tree.path());
    for groups in [1, 2000, 60_000, 2] {
        let names = "1000000 ".repeat(groups);
        let fields = ["Anon", "File", "Shmem"].map(|kind| format!("Rss{kind}:\t{groups} kB\n"));
        tree.write("proc/self/status", &format!("Groups:\t{names}\n{}", fields.concat()));
        assert_eq!(reader.status().map(|s| s.anon), Some(groups as u64 * 1024));
    }
}

#[test]
fn where_nothing_is_shown_nothing_is_known_but_the_machine() {
    let tree = Tree::new();
    let reader = Reader::new(tree.path());
    let quick = reader.quick();
    assert_eq!((quick.rss, quick.anon, quick.charge), (None, None, None));
    assert_eq!(reader.status(), None);
    assert_eq!(reader.stat(), None);
    assert_eq!(reader.available(), None);
    assert!(reader.pressure().is_none());
    assert_eq!(reader.rollup(), None);
    let (kind, bytes) = bounds(&reader)[0];
    assert!(kind == "host" && bytes > 1 << 20);
}

#[test]
fn files_that_vanish_and_come_back() {
    let tree = Tree::v2();
    let reader = Reader::new(tree.path());
    assert!(reader.pressure().is_none());
    let psi = |n| {
        let line = |kind| format!("{kind} avg10={n}.00 avg60=0.00 avg300=0.00 total=0\n");
        [line("some"), line("full")].concat()
    };
    tree.write("proc/pressure/memory", &psi(3));
    let (pressure, source) = reader.pressure().unwrap();
    assert_eq!(pressure.some.avg10, 3.0);
    assert!(source.ends_with("/proc/pressure/memory"));
    // The group's own is nearer.
    tree.write("sys/fs/cgroup/outer/inner/memory.pressure", &psi(4));
    let (pressure, source) = reader.pressure().unwrap();
    assert_eq!(pressure.full.avg10, 4.0);
    assert!(source.ends_with("inner/memory.pressure"));
    for text in ["", "garbage\n", "some avg10=\n"] {
        tree.write("sys/fs/cgroup/outer/inner/memory.current", text);
        assert_eq!(reader.quick().charge, None);
        tree.write("proc/self/statm", text);
        assert_eq!(reader.quick().rss, None);
    }
    tree.write("proc/self/statm", "9 6 2 0 0 0 0\n");
    tree.write("sys/fs/cgroup/outer/inner/memory.current", "1\n");
    assert_eq!((reader.quick().rss, reader.quick().charge), (Some(6 * page()), Some(1)));
}

/// Looks from many threads while one changes everything that they look at.
#[test]
fn threads_look_while_files_change() {
    let tree = Tree::v2();
    let reader = Reader::new(tree.path());
    let done = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(ordering) {
                    let quick = reader.quick();
                    assert!([None, Some(5 * page())].contains(&quick.rss));
                    assert!([None, Some(5000), Some(77)].contains(&quick.charge));
                    reader.limits();
                }
            });
        }
        for round in 0..200 {
            let group = if round % 2 == 0 { "0::/other\n" } else { "0::/outer/inner\n" };
            tree.write("sys/fs/cgroup/other/memory.current", "77\n");
            tree.write("proc/self/cgroup", group);
            tree.remove("sys/fs/cgroup/other");
        }
        done.store(true, ordering);
    });
    // Once it is still, everybody sees what is there.
    tree.write("proc/self/cgroup", "0::/outer/inner\n");
    reader.limits();
    assert_eq!(reader.quick().charge, Some(5000));
}

/// The first that look, all at once: nobody takes "not read yet" for "none".
#[test]
fn first_looks_at_once_all_see_the_limit() {
    let tree = Tree::v2();
    tree.write("sys/fs/cgroup/outer/memory.max", "9000\n");
    for _ in 0..50 {
        let reader = Reader::new(tree.path());
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let quick = reader.quick();
                    assert_eq!(quick.limit.map(|limit| limit.bytes), Some(9000));
                    assert_eq!(quick.charge, Some(5000));
                });
            }
        });
    }
}
