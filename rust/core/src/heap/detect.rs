//! Which allocator answers `malloc`.
//!
//! The object that holds `malloc` decides. An allocator's own functions count only where they lie
//! in that same object: packages bring private copies of allocators along, and theirs manage other
//! memory.

use super::glibc::Glibc;
use super::jemalloc::Jemalloc;
use super::loader::{Loader, Platform, Symbol};
use super::mimalloc::Mimalloc;
use super::tcmalloc::Tcmalloc;
use std::ffi::{CStr, c_int};

/// What an allocator offers.
#[derive(Debug, Clone)]
pub enum Calls {
    /// The GNU C library's.
    Glibc(Glibc),
    /// jemalloc.
    Jemalloc(Jemalloc),
    /// mimalloc.
    Mimalloc(Mimalloc),
    /// gperftools' tcmalloc.
    Tcmalloc(Tcmalloc),
    /// The zones of macOS.
    Macos(Macos),
    /// musl's, which has nothing to ask for.
    Musl,
    /// The C runtime's of Windows.
    Windows,
    /// None of the above, and why.
    Unknown(String),
}

/// The one call of macOS' zones.
#[derive(Debug, Clone, Default)]
pub struct Macos {
    /// `malloc_zone_pressure_relief`: all zones for null, as much as possible for 0.
    pub relief: Option<unsafe extern "C" fn(*mut (), usize) -> usize>,
}

/// An allocator and where it lies.
#[derive(Debug, Clone)]
pub struct Allocator {
    /// What it offers.
    pub calls: Calls,
    /// Its version as it says it.
    pub version: Option<String>,
    /// Path of the object that holds `malloc`.
    pub object: Option<String>,
}

impl Allocator {
    /// One word for it.
    pub fn kind(&self) -> &'static str {
        match self.calls {
            Calls::Glibc(_) => "glibc",
            Calls::Jemalloc(_) => "jemalloc",
            Calls::Mimalloc(_) => "mimalloc",
            Calls::Tcmalloc(_) => "tcmalloc",
            Calls::Macos(_) => "macos",
            Calls::Musl => "musl",
            Calls::Windows => "windows",
            Calls::Unknown(_) => "unknown",
        }
    }
}

/// Looks for symbols in one object.
pub struct Within<'a> {
    loader: &'a dyn Loader,
    base: usize,
}

impl Within<'_> {
    /// The symbol of that name, if it is this object's.
    pub fn find(&self, name: &CStr) -> Option<Symbol> {
        self.loader.find(name).filter(|symbol| symbol.base == self.base)
    }
}

/// The function of that name in an object, with the type that its allocator documents.
macro_rules! function {
    ($within:expr, $name:literal) => {
        // SAFETY: an address of code by that name inside the allocator's own object, whose
        // interface gives it this type; both are one pointer.
        $within.find($name).map(|symbol| unsafe { std::mem::transmute(symbol.address) })
    };
}
pub(super) use function;

/// Finds out which allocator the process uses.
pub fn detect(loader: &dyn Loader) -> Allocator {
    let platform = loader.platform();
    if platform == Platform::Windows {
        return Allocator { calls: Calls::Windows, version: None, object: None };
    }
    let Some(malloc) = loader.find(c"malloc") else {
        let why = "no symbol malloc is to be found in this process".to_owned();
        return Allocator { calls: Calls::Unknown(why), version: None, object: None };
    };
    if let Some(found) = known(loader, &malloc, platform) {
        return found;
    }
    // A program that is bound to fixed addresses holds a stub by that name. What it calls for
    // aligned memory comes from the same allocator, and rarely has such a stub.
    if loader.is_program(malloc.base)
        && let Some(other) = loader.find(c"aligned_alloc")
        && let Some(found) = known(loader, &other, platform)
    {
        return found;
    }
    let object = malloc.object;
    let why = format!("malloc lies in {object}, which has the functions of no known allocator");
    Allocator { calls: Calls::Unknown(why), version: None, object: Some(object) }
}

fn known(loader: &dyn Loader, owner: &Symbol, platform: Platform) -> Option<Allocator> {
    let within = Within { loader, base: owner.base };
    let (calls, version) = if let Some(jemalloc) = Jemalloc::find(&within) {
        let version = jemalloc.version();
        (Calls::Jemalloc(jemalloc), version)
    } else if let Some(mimalloc) = Mimalloc::find(&within) {
        let version = mimalloc.version();
        (Calls::Mimalloc(mimalloc), version)
    } else if let Some(tcmalloc) = Tcmalloc::find(&within) {
        let version = tcmalloc.version();
        (Calls::Tcmalloc(tcmalloc), version)
    } else if let Some(symbol) = within.find(c"gnu_get_libc_version") {
        let _: Symbol = symbol;
        let version: Option<unsafe extern "C" fn() -> *const std::ffi::c_char> =
            function!(within, c"gnu_get_libc_version");
        // SAFETY: takes nothing and returns a string that is part of the library.
        let version = version.map(|ask| unsafe { text(ask()) });
        (Calls::Glibc(Glibc::find(&within)), version.flatten())
    } else if platform == Platform::Musl || owner.object.contains("ld-musl") {
        (Calls::Musl, None)
    } else if platform == Platform::Macos {
        // The zones answer for the whole of libSystem, in whatever library of it `malloc` lies.
        let relief = loader.find(c"malloc_zone_pressure_relief").map(|symbol| {
            // SAFETY: the system's function by that name has this type.
            unsafe { std::mem::transmute(symbol.address) }
        });
        (Calls::Macos(Macos { relief }), None)
    } else {
        return None;
    };
    Some(Allocator { calls, version, object: Some(owner.object.clone()) })
}

/// # Safety
/// `text` is null or a string that lives as long as this call.
pub(super) unsafe fn text(text: *const std::ffi::c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's contract.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// `errno` as text, for functions that return it.
pub(super) fn errno(code: c_int) -> String {
    std::io::Error::from_raw_os_error(code).to_string()
}
