//! Descriptors that stay open from one reading to the next.
//!
//! Anybody may close a number that is not theirs: `os.closerange`, a library that becomes a daemon.
//! The kernel then gives it to the next file that is opened. So after each read it is made sure that
//! the number still names the file that was opened here, and what was read is forgotten if not:
//! after and not before, since another thread may change it in between. What was read then is the
//! start of somebody else's file, once, and without moving in it; pipes, sockets and terminals have
//! no start and refuse. And the number is never closed, since between a look and a `close` it may
//! become somebody else's. What that leaves open is little: the files of its parent in a forked
//! child, and in a process that was moved those of each group that it left, for when it is back.

use super::process::Process;
use std::path::Path;

/// Enough for nearly all that is read like this. `status` names every group of a user, though.
pub const USUAL: usize = 8 << 10;

/// Where text is read to: what it is made of, and memory of its own once that is full.
pub struct Buffer<'a> {
    usual: &'a mut [u8],
    grown: Vec<u8>,
}

impl<'a> Buffer<'a> {
    /// A buffer that begins with this room.
    pub fn new(usual: &'a mut [u8]) -> Self {
        Self { usual, grown: Vec::new() }
    }
}

#[cfg(unix)]
mod imp {
    use super::super::mark::{Mark, Marks};
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
    use std::os::unix::fs::MetadataExt;

    /// A descriptor and what it was opened on.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Kept {
        number: RawFd,
        device: u64,
        inode: u64,
        process: Process,
        mark: Option<Mark>,
    }

    /// A file that closes itself unless it is kept.
    pub struct Opened {
        file: File,
        kept: Kept,
    }

    impl Opened {
        /// Opens a file.
        pub fn new(path: &Path, process: Process) -> Option<Self> {
            let file = above_standard(File::open(path).ok()?)?;
            let found = file.metadata().ok()?;
            let (number, device, inode) = (file.as_raw_fd(), found.dev(), found.ino());
            Some(Self { file, kept: Kept { number, device, inode, process, mark: None } })
        }

        /// The text of the file, in `buffer`.
        pub fn read<'a>(&self, buffer: &'a mut Buffer<'_>) -> Option<&'a [u8]> {
            self.kept.read(buffer)
        }

        #[cfg(test)]
        pub fn number(&self) -> RawFd {
            self.kept.number
        }

        /// The same file with one of these marks, if it can be given one.
        pub fn marked(mut self, marks: &Marks) -> Self {
            let number = self.kept.number;
            // Before, so that a stranger's file is left alone; after, so that none is taken for ours.
            let ours = || self.kept.is_same_file();
            let mark = if ours() { marks.take() } else { None };
            let sure =
                |mark: &Mark| mark.put_on(number) && mark.is_on(number) == Some(true) && ours();
            self.kept.mark = mark.filter(sure);
            self
        }

        /// Leaves it open for the rest of the process.
        pub fn keep(self) -> Kept {
            let _ = self.file.into_raw_fd();
            self.kept
        }
    }

    impl Kept {
        /// Whether this process opened it. In a forked child, `/proc/self` of then is the parent's.
        pub fn is_of(&self, process: Process) -> bool {
            self.process == process
        }

        /// The text of the file, in `buffer`.
        pub fn read<'a>(&self, buffer: &'a mut Buffer<'_>) -> Option<&'a [u8]> {
            const MOST: usize = 4 << 20;
            let mut length = self.start(buffer.usual)?;
            if length < buffer.usual.len() {
                return buffer.usual.get(..length);
            }
            // All of it again: the kernel may have written another text meanwhile.
            while length >= buffer.grown.len() && length < MOST {
                buffer.grown.resize(4 * length.max(64), 0);
                length = self.start(&mut buffer.grown)?;
            }
            buffer.grown.get(..length)
        }

        /// Fills `buffer` from the start of the file, as far as that goes.
        fn start(&self, buffer: &mut [u8]) -> Option<usize> {
            let length = loop {
                // SAFETY: the buffer is writable for its length.
                let read = unsafe {
                    libc::pread(self.number, buffer.as_mut_ptr().cast(), buffer.len(), 0)
                };
                match usize::try_from(read) {
                    Ok(length) => break length,
                    Err(_) if interrupted() => {}
                    Err(_) => return None,
                }
            };
            self.is_ours().then_some(length)
        }

        fn is_ours(&self) -> bool {
            let by_mark = self.mark.and_then(|mark| mark.is_on(self.number));
            by_mark.unwrap_or_else(|| self.is_same_file())
        }

        fn is_same_file(&self) -> bool {
            let mut found = std::mem::MaybeUninit::<libc::stat>::uninit();
            // SAFETY: a number that names no file is refused, and only success is read from.
            let found = unsafe {
                if libc::fstat(self.number, found.as_mut_ptr()) != 0 {
                    return false;
                }
                found.assume_init()
            };
            found.st_dev as u64 == self.device && found.st_ino as u64 == self.inode
        }

        #[cfg(test)]
        pub fn number(&self) -> RawFd {
            self.number
        }

        #[cfg(test)]
        pub fn mark(&self) -> Option<Mark> {
            self.mark
        }
    }

    fn interrupted() -> bool {
        std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
    }

    /// Whoever has closed a standard stream gets the next file in its place, and prints to it.
    fn above_standard(file: File) -> Option<File> {
        if file.as_raw_fd() > libc::STDERR_FILENO {
            return Some(file);
        }
        // SAFETY: the descriptor is open for as long as `file` lives; the copy is a new one.
        let copy = unsafe {
            libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1)
        };
        // SAFETY: as it is a new one, nobody else owns it.
        (copy >= 0).then(|| unsafe { File::from_raw_fd(copy) })
    }
}

#[cfg(not(unix))]
mod imp {
    use super::*;

    /// No file is kept here, and there is none to keep (untested).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Kept;

    /// No file.
    pub struct Opened;

    impl Opened {
        /// Opens nothing.
        pub fn new(_path: &Path, _process: Process) -> Option<Self> {
            None
        }

        /// Nothing.
        pub fn read<'a>(&self, _buffer: &'a mut Buffer<'_>) -> Option<&'a [u8]> {
            None
        }

        /// Itself.
        pub fn marked(self, _marks: &super::super::mark::Marks) -> Self {
            self
        }

        /// Itself.
        pub fn keep(self) -> Kept {
            Kept
        }
    }

    impl Kept {
        /// There is no fork either.
        pub fn is_of(&self, _process: Process) -> bool {
            true
        }

        /// Nothing.
        pub fn read<'a>(&self, _buffer: &'a mut Buffer<'_>) -> Option<&'a [u8]> {
            None
        }
    }
}

pub use imp::{Kept, Opened};
