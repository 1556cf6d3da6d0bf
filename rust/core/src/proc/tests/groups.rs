use crate::proc::groups::*;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const V1_MOUNT: &str =
    "35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n";
const CPU_MOUNT: &str = "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
const V2_MOUNT: &str = "41 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

fn found(cgroup: &str, mounts: &str) -> Vec<(Version, Vec<String>)> {
    let shown = |path: &PathBuf| path.to_str().unwrap().to_owned();
    places(cgroup.as_bytes(), mounts.as_bytes(), Path::new("/"))
        .iter()
        .map(|place| (place.version, place.levels.iter().map(shown).collect()))
        .collect()
}

#[test]
fn every_group_up_to_the_mount() {
    let levels = |levels: &[&str]| levels.iter().map(ToString::to_string).collect::<Vec<_>>();
    let v2 = found("0::/a/b\n", V2_MOUNT);
    let expected = levels(&["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]);
    assert_eq!(v2, [(Version::V2, expected)]);
    let v1 = found("5:cpuset,memory:/x\n3:cpu,cpuacct:/y\n", &[CPU_MOUNT, V1_MOUNT].concat());
    let expected = levels(&["/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/memory"]);
    assert_eq!(v1, [(Version::V1, expected)]);
    assert_eq!(found("0::/\n", V2_MOUNT), [(Version::V2, levels(&["/sys/fs/cgroup"]))]);
}

#[test]
fn in_a_hybrid_system_the_one_with_the_controller_comes_first() {
    let unified = V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ");
    let both = found("4:memory:/x\n0::/u\n", &[&unified, V1_MOUNT].concat());
    assert_eq!(both[0].1[0], "/sys/fs/cgroup/memory/x");
    assert_eq!(both[1].1[0], "/sys/fs/cgroup/unified/u");
    // Where v1 keeps other controllers, memory is v2's.
    let other = found("4:cpu,cpuacct:/x\n0::/u\n", &[&unified, CPU_MOUNT].concat());
    assert_eq!(other.len(), 1);
    assert_eq!(other[0].1[0], "/sys/fs/cgroup/unified/u");
}

#[test]
fn a_container_sees_a_part_of_the_tree() {
    let mount = |root: &str, point: &str| {
        V1_MOUNT.replace(" / ", &format!(" {root} ")).replace("/sys/fs/cgroup/memory", point)
    };
    let inside = mount("/docker/abc", "/sys/fs/cgroup/memory");
    let path = "4:memory:/docker/abc\n";
    assert_eq!(found(path, &inside)[0].1, ["/sys/fs/cgroup/memory"]);
    let below = found("4:memory:/docker/abc/worker\n", &inside);
    assert_eq!(below[0].1, ["/sys/fs/cgroup/memory/worker", "/sys/fs/cgroup/memory"]);
    // Another container's part is not ours, though its name begins like ours.
    assert_eq!(found("4:memory:/docker/abcdef\n", &inside), []);
    // Where more than one part is mounted, the larger shows more limits.
    let both = [inside, mount("/", "/host/memory")].concat();
    let host = ["/host/memory/docker/abc", "/host/memory/docker", "/host/memory"];
    assert_eq!(found(path, &both)[0].1, host);
}

#[test]
fn what_is_above_a_namespace_is_not_looked_for_outside_of_the_mount() {
    assert_eq!(found("0::/../other\n", V2_MOUNT), []);
    assert_eq!(found("0::/a/../../etc\n", V2_MOUNT), []);
    // Both above: then the group is where the mount says.
    let mount = V2_MOUNT.replace(" / ", " /../other ");
    assert_eq!(found("0::/../other/a\n", &mount)[0].1, ["/sys/fs/cgroup/a", "/sys/fs/cgroup"]);
    assert_eq!(found("0::/\n", &mount), []);
}

#[test]
fn names_with_blanks_colons_and_backslashes() {
    let mount = r"41 31 0:38 /a\040b /mnt/c\134d\011e rw - cgroup2 none rw".to_owned() + "\n";
    let levels = &found("0::/a b/c:d\n", &mount)[0].1;
    assert_eq!(levels, &["/mnt/c\\d\te/c:d", "/mnt/c\\d\te"]);
    // Not an octal number: kept as it is.
    let odd = mount.replace(r"\134", r"\13").replace(r"\011", r"\999");
    assert_eq!(found("0::/a b\n", &odd)[0].1, [r"/mnt/c\13d\999e"]);
}

#[test]
fn lines_of_another_form_are_passed_over() {
    let mounts = ["41 31 0:38 /\n", "\n", "- - - - - - -\n", V2_MOUNT, "x"].concat();
    for cgroup in ["0:/\n", ":\n", "0::relative\n", "1::/a\n", "", "\n"] {
        assert_eq!(found(cgroup, &mounts), [], "{cgroup:?}");
    }
    assert_eq!(found("nonsense\n0::/a\n", &mounts)[0].1[0], "/sys/fs/cgroup/a");
    assert_eq!(found("0::/a\n", "no mounts here\n"), []);
}

proptest! {
    /// Whatever the two files say, a place is a folder of some mount, down to which all levels go.
    #[test]
    fn places_stay_within_their_mount(
        path in "(/[a-c.]{1,3}){0,5}/?",
        root in "(/[a-c.]{1,3}){0,3}/?",
        noise in prop::collection::vec(any::<u8>(), 0..40),
        version in 1u8..3,
    ) {
        let (cgroup, mount) = match version {
            1 => (format!("4:memory:{path}\n"), format!("1 2 0:3 {root} /mnt rw - cgroup x rw,memory\n")),
            _ => (format!("0::{path}\n"), format!("1 2 0:3 {root} /mnt rw - cgroup2 x rw\n")),
        };
        let cgroup = [&noise[..], b"\n", cgroup.as_bytes()].concat();
        let mounts = [&noise[..], b"\n", mount.as_bytes()].concat();
        for place in places(&cgroup, &mounts, Path::new("/root")) {
            prop_assert_eq!(place.levels.last().unwrap(), Path::new("/root/mnt"));
            for pair in place.levels.windows(2) {
                prop_assert_eq!(pair[0].parent().unwrap(), &pair[1]);
                prop_assert!(pair[0].file_name().is_some());
            }
        }
    }
}
