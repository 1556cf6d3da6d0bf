//! Marks on open files.
//!
//! With every open file the kernel keeps the number of the signal to send when there is news of it
//! (`F_SETSIG`). None is sent unless somebody asks for that (`O_ASYNC`), which nobody does for the
//! files that are kept here. So that number is free to tell one file from another: each gets its
//! own, and to read it back costs less than `fstat`.

#[cfg(target_os = "linux")]
mod imp {
    use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

    // Of Linux, the same with every C library.
    const F_SETSIG: libc::c_int = 10;
    const F_GETSIG: libc::c_int = 11;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Mark(i32);

    /// The marks that are left: real-time signals, from the last one down.
    pub struct Marks(AtomicI32);

    impl Marks {
        pub const fn new() -> Self {
            Self(AtomicI32::new(64))
        }

        /// One that no other file has; `None` once all are taken.
        pub fn take(&self) -> Option<Mark> {
            let less = |next| (next > 40).then(|| next - 1);
            self.0.fetch_update(Relaxed, Relaxed, less).ok().map(Mark)
        }
    }

    impl Mark {
        /// Whether it could be put on the file of this number.
        pub fn put_on(self, number: libc::c_int) -> bool {
            // SAFETY: passes and returns numbers. It changes nothing but the signal of an open file,
            // and of one that was just seen to be ours.
            unsafe { libc::fcntl(number, F_SETSIG, self.0) == 0 }
        }

        /// Whether it is on the file of this number; `None` where the kernel does not say.
        pub fn is_on(self, number: libc::c_int) -> Option<bool> {
            // SAFETY: passes and returns numbers, and changes nothing.
            let found = unsafe { libc::fcntl(number, F_GETSIG) };
            (found >= 0).then_some(found == self.0)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    /// There is none (untested).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Mark {}

    pub struct Marks;

    impl Marks {
        pub const fn new() -> Self {
            Self
        }

        pub fn take(&self) -> Option<Mark> {
            None
        }
    }

    impl Mark {
        pub fn put_on(self, _number: i32) -> bool {
            match self {}
        }

        pub fn is_on(self, _number: i32) -> Option<bool> {
            match self {}
        }
    }
}

pub use imp::{Mark, Marks};

/// Those of the files of this process.
pub static MARKS: Marks = Marks::new();
