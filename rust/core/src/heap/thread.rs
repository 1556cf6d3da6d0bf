//! Threads that leave as little behind as a thread can.
//!
//! A thread of the standard library has a stack for signals and values of its own, and the C
//! library ends the process where it has no memory for the latter. These have neither: what runs
//! in them uses no thread-local value. They take no signals, which are meant for others.

use std::io;

/// Work for a new thread; it must not panic.
pub type Work = Box<dyn FnOnce() + Send>;

#[cfg(unix)]
pub use unix::{Thread, start};

#[cfg(unix)]
mod unix {
    use super::{Work, io};
    use std::ffi::c_void;
    use std::mem::MaybeUninit;

    /// A thread that was started; it goes on when this is dropped.
    #[derive(Debug)]
    pub struct Thread(Option<libc::pthread_t>);

    // SAFETY: the name of a thread, which any thread may wait for or let go.
    unsafe impl Send for Thread {}

    impl Thread {
        /// Waits for its end.
        pub fn join(mut self) {
            if let Some(thread) = self.0.take() {
                // SAFETY: it was neither joined nor let go before, since both take the name.
                unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
            }
        }
    }

    impl Drop for Thread {
        fn drop(&mut self) {
            if let Some(thread) = self.0.take() {
                // SAFETY: as in `join`.
                unsafe { libc::pthread_detach(thread) };
            }
        }
    }

    extern "C" fn run(work: *mut c_void) -> *mut c_void {
        // SAFETY: `start` made it from a box and gave it to this thread alone.
        let work = unsafe { Box::from_raw(work.cast::<Work>()) };
        (*work)();
        std::ptr::null_mut()
    }

    /// Starts a thread with a stack of so many bytes, or the usual one where that is too small.
    pub fn start(stack: usize, work: Work) -> io::Result<Thread> {
        let work = Box::into_raw(Box::new(work));
        let mut failed = create(Some(stack), work);
        if let Err(libc::EINVAL) = failed {
            // Libraries may ask for more memory of each thread than that.
            failed = create(None, work);
        }
        match failed {
            Ok(thread) => Ok(Thread(Some(thread))),
            Err(code) => {
                // SAFETY: made above, and no thread has taken it.
                drop(unsafe { Box::from_raw(work) });
                Err(io::Error::from_raw_os_error(code))
            }
        }
    }

    fn create(stack: Option<usize>, work: *mut Work) -> Result<libc::pthread_t, i32> {
        let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
        let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: each call fills what it is given, and what it is given was filled by the calls
        // before; all places live to the end. The new thread takes the signals' mask as it is while
        // it is made. `work` is the thread's from a success on.
        unsafe {
            match libc::pthread_attr_init(attributes.as_mut_ptr()) {
                0 => {}
                code => return Err(code),
            }
            let sized = match stack {
                Some(bytes) => libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), bytes),
                None => 0,
            };
            libc::sigfillset(none.as_mut_ptr());
            let masked =
                libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), before.as_mut_ptr()) == 0;
            let failed = match sized {
                0 => {
                    let given = work.cast();
                    libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), run, given)
                }
                code => code,
            };
            if masked {
                libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
            }
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            if failed == 0 { Ok(thread.assume_init()) } else { Err(failed) }
        }
    }
}

/// A thread that was started; it goes on when this is dropped.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct Thread(std::thread::JoinHandle<()>);

#[cfg(not(unix))]
impl Thread {
    /// Waits for its end.
    pub fn join(self) {
        let _ = self.0.join();
    }
}

/// Starts a thread with a stack of so many bytes.
#[cfg(not(unix))]
pub fn start(stack: usize, work: Work) -> io::Result<Thread> {
    std::thread::Builder::new().stack_size(stack).spawn(work).map(Thread)
}
