//! Symbols of this process, and the objects that they lie in.

use std::ffi::CStr;
use std::ptr::NonNull;

/// The C library that this was built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// Linux with the GNU C library.
    Gnu,
    /// Linux with musl.
    Musl,
    /// macOS.
    Macos,
    /// Windows.
    Windows,
    /// Any other.
    Other,
}

/// A symbol that was found.
#[derive(Debug, Clone)]
pub struct Symbol {
    /// Where it lies.
    pub address: NonNull<()>,
    /// Where the object that holds it is mapped: the object's identity.
    pub base: usize,
    /// The path of that object, as the loader knows it.
    pub object: String,
}

/// Who finds symbols. Tests bring their own.
pub trait Loader {
    /// The symbol that code of this process would be bound to.
    fn find(&self, name: &CStr) -> Option<Symbol>;
    /// Whether an object is the program itself.
    fn is_program(&self, base: usize) -> bool;
    /// What the process runs on.
    fn platform(&self) -> Platform;
}

/// The dynamic loader of this process.
pub struct System;

impl Loader for System {
    #[cfg(unix)]
    fn find(&self, name: &CStr) -> Option<Symbol> {
        // SAFETY: the name ends with a zero byte; looking up runs no code of ours.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        let address = NonNull::new(address)?;
        let (base, object) = owner(address.as_ptr())?;
        Some(Symbol { address: address.cast(), base, object })
    }

    #[cfg(not(unix))]
    fn find(&self, _name: &CStr) -> Option<Symbol> {
        None
    }

    #[cfg(target_os = "linux")]
    fn is_program(&self, base: usize) -> bool {
        // SAFETY: reads a word that the kernel left for the process.
        let entry = unsafe { libc::getauxval(libc::AT_ENTRY) };
        owner(entry as *const libc::c_void).is_some_and(|(program, _)| program == base)
    }

    #[cfg(not(target_os = "linux"))]
    fn is_program(&self, _base: usize) -> bool {
        false
    }

    fn platform(&self) -> Platform {
        if cfg!(all(target_os = "linux", target_env = "gnu")) {
            Platform::Gnu
        } else if cfg!(all(target_os = "linux", target_env = "musl")) {
            Platform::Musl
        } else if cfg!(target_os = "macos") {
            Platform::Macos
        } else if cfg!(windows) {
            Platform::Windows
        } else {
            Platform::Other
        }
    }
}

#[cfg(unix)]
fn owner(address: *const libc::c_void) -> Option<(usize, String)> {
    // SAFETY: all of its fields are pointers, for which zero is a value.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: only looks for the object whose addresses include this one, and fills `info`.
    if unsafe { libc::dladdr(address, &mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: on success this is a string of the loader, there for as long as the object is; what
    // defines `malloc` is never unloaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some((info.dli_fbase as usize, name.to_string_lossy().into_owned()))
}
