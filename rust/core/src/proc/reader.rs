//! Reads what this process uses and may use, again and again at little cost.

use super::fork::{self, Forked};
use super::groups::{self, Place};
use super::kept::{Buffer, Kept, Opened, USUAL};
use super::limits::{self, Limit, is_there, present, whole};
use super::mark::MARKS;
use super::process::Process;
use super::text::{self, Pressure, Rollup, Stat, Status};
use crate::sync::Mutex;
use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long limits are taken for what they were. Whoever asks next reads them again.
const PERIOD: Duration = Duration::from_secs(2);
/// The same, where some could not be read.
const RETRY: Duration = Duration::from_millis(100);

/// What costs next to nothing to know. `None` is what this system does not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quick {
    /// The process that this is of.
    pub process: Process,
    /// Bytes of resident pages.
    pub rss: Option<u64>,
    /// Those that belong to nobody but processes.
    pub anon: Option<u64>,
    /// Bytes charged to the group.
    pub charge: Option<u64>,
    /// The least of all limits, as they were last read.
    pub limit: Option<Limit>,
}

/// Pressure, and the file that tells it.
pub type Stalls = (Pressure, Arc<str>);

/// A file that is kept open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    Statm,
    Status,
    Usage,
    Stat,
    GroupPressure,
    Meminfo,
    Pressure,
}
const FILES: usize = 7;
type Files = [Option<Kept>; FILES];

impl File {
    /// Whether it tells of the process that opened it.
    fn is_own(self) -> bool {
        matches!(self, Self::Statm | Self::Status)
    }

    /// Whether it belongs to a group.
    fn is_of_group(self) -> bool {
        matches!(self, Self::Usage | Self::Stat | Self::GroupPressure)
    }
}

/// Reads for one process: this one.
pub struct Reader {
    /// Put before every path; tests have trees of their own.
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: Files,
    home: Home,
    /// What is open of places that the process has left, for when it is there again.
    left: Vec<(Arc<Place>, Files)>,
    /// All limits, and the least of them.
    limits: Vec<Limit>,
    limit: Option<Limit>,
    /// When the limits are to be read again, and by which process they were.
    due: Option<(Instant, Process)>,
}

/// Where a process is among groups.
#[derive(Default, Clone)]
struct Home {
    /// `/proc/self/cgroup` when the place was looked for.
    membership: Vec<u8>,
    /// Nothing of groups is known without.
    place: Option<Arc<Place>>,
    /// Whether that is the process's own group, and not one around it.
    own: bool,
}

/// What a look needs of the state.
struct Known {
    statm: Option<Kept>,
    usage: Option<Kept>,
    limit: Option<Limit>,
    due: Option<(Instant, Process)>,
}

impl State {
    /// What is open of a file as it is to be read now.
    fn kept(&self, file: File) -> Option<Kept> {
        self.kept[file as usize]
    }

    fn move_to(&mut self, home: Home) {
        let left = std::mem::replace(&mut self.home, home).place;
        if left == self.home.place {
            return;
        }
        let back = self.left.iter().position(|(place, _)| Some(place) == self.home.place.as_ref());
        let back = back.map(|at| self.left.swap_remove(at).1).unwrap_or_default();
        let was = self.kept;
        for file in [File::Usage, File::Stat, File::GroupPressure] {
            self.kept[file as usize] = back[file as usize];
        }
        self.left.extend(left.map(|place| (place, was)));
    }
}

impl Forked for Reader {
    fn hold(self: Arc<Self>) -> Box<dyn Any> {
        fork::hold(self, |reader| &reader.state)
    }

    /// Each look compares who is looking.
    fn forked(&self) {}

    fn in_child(&self) {}
}

impl Reader {
    /// A reader of the files below `root`. It opens nothing yet.
    pub fn new(root: &Path) -> Arc<Self> {
        let reader = Arc::new(Self { root: root.to_owned(), state: Mutex::default() });
        fork::register(&reader);
        reader
    }

    /// The reader that everybody shares.
    pub fn shared() -> &'static Arc<Self> {
        static SHARED: OnceLock<Arc<Reader>> = OnceLock::new();
        SHARED.get_or_init(|| Self::new(Path::new("/")))
    }

    /// Resident bytes, the group's charge and the limit.
    pub fn quick(&self) -> Quick {
        self.quick_unless_due().unwrap_or_else(|| {
            self.limits();
            self.look(Process::this(), self.known())
        })
    }

    /// The same; `None` when the limits are to be read again, which takes twenty times as long.
    pub fn quick_unless_due(&self) -> Option<Quick> {
        let (this, known) = (Process::this(), self.known());
        let (due, by) = known.due?;
        (by == this && Instant::now() < due).then(|| self.look(this, known))
    }

    fn known(&self) -> Known {
        let state = fork::lock(&self.state);
        Known {
            statm: state.kept(File::Statm),
            usage: state.kept(File::Usage),
            limit: state.limit.clone(),
            due: state.due,
        }
    }

    fn look(&self, process: Process, known: Known) -> Quick {
        let mut room = [0; 256];
        let mut buffer = Buffer::new(&mut room);
        let page = crate::arena::page() as u64;
        let statm =
            self.again(File::Statm, known.statm, process, &mut buffer, |t| text::statm(t, page));
        let charge = self.again(File::Usage, known.usage, process, &mut buffer, text::lone);
        Quick {
            process,
            rss: statm.map(|s| s.resident),
            anon: statm.map(|s| s.resident.saturating_sub(s.shared)),
            charge,
            limit: known.limit,
        }
    }

    /// Resident bytes by kind, and what is not resident.
    pub fn status(&self) -> Option<Status> {
        self.read(File::Status, text::status)
    }

    /// What the group's charge is made of.
    pub fn stat(&self) -> Option<Stat> {
        self.read(File::Stat, text::stat)
    }

    /// Bytes that the machine could still give out.
    pub fn available(&self) -> Option<u64> {
        self.read(File::Meminfo, |t| text::meminfo(t, "MemAvailable:"))
    }

    /// How long memory was waited for: in the group where it tells, else on the machine.
    pub fn pressure(&self) -> Option<Stalls> {
        [File::GroupPressure, File::Pressure].into_iter().find_map(|file| {
            let pressure = self.read(file, text::pressure)?;
            let place = fork::lock(&self.state).home.place.clone();
            Some((pressure, self.path(file, place.as_deref())?.to_string_lossy().into()))
        })
    }

    /// Shares of every mapping. The kernel walks all of them, and changes none meanwhile: this takes
    /// milliseconds for each gibibyte.
    pub fn rollup(&self) -> Option<Rollup> {
        text::rollup(&whole(&self.root.join("proc/self/smaps_rollup"))?)
    }

    /// All limits, as they are now.
    pub fn limits(&self) -> Vec<Limit> {
        let this = Process::this();
        let (home, last) = {
            let mut state = fork::lock(&self.state);
            // Others go on with what was read last, if anything was.
            if state.limit.is_some() {
                state.due = Some((Instant::now() + PERIOD, this));
            }
            (state.home.clone(), state.limits.clone())
        };
        // Where nothing can be read now, the process is taken to be where it was.
        let (home, sure) = self.find(&home).map_or((home, false), |home| (home, true));

        let of_groups = home.place.as_deref().map(|place| limits::of_groups(place, &last));
        let (mut found, complete) = of_groups.unwrap_or((Vec::new(), true));
        found.extend(limits::of_process());
        found.extend(
            self.read(File::Meminfo, |text| Limit::host(Some(text))).or_else(|| Limit::host(None)),
        );

        let mut state = fork::lock(&self.state);
        state.due = Some((Instant::now() + if sure && complete { PERIOD } else { RETRY }, this));
        state.limit = found.iter().min_by_key(|limit| limit.bytes).cloned();
        state.limits.clone_from(&found);
        state.move_to(home);
        found
    }

    /// The group of this process, where its files can be read; an error where that cannot be found
    /// out now.
    fn find(&self, last: &Home) -> io::Result<Home> {
        let membership = present(&self.root.join("proc/self/cgroup"))?.unwrap_or_default();
        // There may be thousands of mounts. Nothing better than a group's own files is among them.
        if let Some(place) = last.place.as_deref().filter(|_| last.own)
            && membership == last.membership
            && is_there(&place.usage())?
        {
            return Ok(last.clone());
        }
        let mounts = present(&self.root.join("proc/self/mountinfo"))?.unwrap_or_default();
        for mut place in groups::places(&membership, &mounts, &self.root) {
            let mut own = true;
            // A group without the controller is charged to the next around it that has it.
            while !place.levels.is_empty() {
                if is_there(&place.usage())? {
                    return Ok(Home { membership, place: Some(Arc::new(place)), own });
                }
                place.levels.remove(0);
                own = false;
            }
        }
        Ok(Home { membership, ..Home::default() })
    }

    fn read<T>(&self, file: File, parse: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        if file.is_of_group() && fork::lock(&self.state).due.is_none() {
            self.limits(); // by which the group is found
        }
        let kept = fork::lock(&self.state).kept(file);
        self.again(file, kept, Process::this(), &mut Buffer::new(&mut [0; USUAL]), parse)
    }

    /// Reads a file by the descriptor that was `kept`, or opens it anew.
    fn again<T>(
        &self,
        file: File,
        kept: Option<Kept>,
        process: Process,
        buffer: &mut Buffer<'_>,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let usable = kept.filter(|kept| kept.is_of(process) || !file.is_own());
        if let Some(text) = usable.and_then(|kept| kept.read(buffer)) {
            return parse(text);
        }
        let place =
            if file.is_of_group() { fork::lock(&self.state).home.place.clone() } else { None };
        let opened = Opened::new(&self.path(file, place.as_deref())?, process)?;
        let value = parse(opened.read(buffer)?)?;
        let opened = opened.marked(&MARKS);
        let mut state = fork::lock(&self.state);
        let moved = file.is_of_group() && state.home.place != place;
        let slot = &mut state.kept[file as usize];
        // Another thread may have been first; then this one closes its own, which nobody has seen.
        if *slot == kept && !moved {
            *slot = Some(opened.keep());
        }
        Some(value)
    }

    fn path(&self, file: File, place: Option<&Place>) -> Option<PathBuf> {
        Some(match file {
            File::Statm => self.root.join("proc/self/statm"),
            File::Status => self.root.join("proc/self/status"),
            File::Meminfo => self.root.join("proc/meminfo"),
            File::Pressure => self.root.join("proc/pressure/memory"),
            File::Usage => place?.usage(),
            File::Stat => place?.levels[0].join("memory.stat"),
            File::GroupPressure => place?.pressure()?,
        })
    }
}
