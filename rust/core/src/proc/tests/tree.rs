use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder with files of `/proc` and `/sys` in it, which goes at the end of the test.
pub struct Tree(PathBuf);

impl Tree {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root =
            std::env::temp_dir().join(format!("memweir-proc-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        Self(root)
    }

    /// A process in a group of the second version, with two groups around it.
    pub fn v2() -> Self {
        let tree = Self::new();
        tree.write("proc/self/cgroup", "0::/outer/inner\n");
        let mount = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        tree.write("proc/self/mountinfo", mount);
        tree.write("proc/self/statm", "9 5 2 0 0 0 0\n");
        tree.write("proc/meminfo", "MemTotal:       1000000 kB\nMemAvailable:    600000 kB\n");
        for level in ["outer/inner", "outer"] {
            tree.write(&format!("sys/fs/cgroup/{level}/memory.max"), "max\n");
            tree.write(&format!("sys/fs/cgroup/{level}/memory.high"), "max\n");
            tree.write(&format!("sys/fs/cgroup/{level}/memory.current"), "5000\n");
            tree.write(&format!("sys/fs/cgroup/{level}/memory.stat"), "inactive_file 1000\n");
        }
        tree
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn remove(&self, name: &str) {
        let path = self.0.join(name);
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
            .unwrap();
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
