//! Functions of allocators that only write down how they were called, and a loader that finds them.

#![allow(dead_code, unsafe_code, clippy::unwrap_used)]

use memweir_core::heap::glibc::{Mallinfo, Mallinfo2};
use memweir_core::heap::loader::{Loader, Platform, Symbol};
use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct World {
    calls: Vec<String>,
    refused: Vec<String>,
    /// What the arenas have at their tops, at one asking after the other; the last stays.
    script: VecDeque<Vec<u64>>,
    /// jemalloc's unused pages.
    unused: usize,
    /// What a sweep would set back at the last `mallopt`.
    known: usize,
    mimalloc: c_int,
    option: c_long,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);
static ALONE: Mutex<()> = Mutex::new(());

fn world<T>(use_it: impl FnOnce(&mut World) -> T) -> T {
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    use_it(world.get_or_insert_default())
}

/// C functions carry no state of their own: one test at a time has the world.
pub fn alone() -> MutexGuard<'static, ()> {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    world(|world| *world = World { mimalloc: 217, ..World::default() });
    alone
}

pub fn calls() -> Vec<String> {
    world(|world| world.calls.clone())
}

pub fn refuse(name: &str) {
    world(|world| world.refused.push(name.to_owned()));
}

pub fn unused(pages: usize) {
    world(|world| world.unused = pages);
}

pub fn mimalloc_is(version: c_int) {
    world(|world| world.mimalloc = version);
}

pub fn known() -> usize {
    world(|world| world.known)
}

pub fn script(tops: &[&[u64]]) {
    world(|world| world.script = tops.iter().map(|tops| tops.to_vec()).collect());
}

fn note(call: String) {
    world(|world| world.calls.push(call));
}

fn text(name: *const c_char) -> String {
    // SAFETY: names come as strings of C.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    note(format!("malloc({size})"));
    // SAFETY: any size may be asked for.
    unsafe { libc::malloc(size) }
}

unsafe extern "C" fn free(block: *mut c_void) {
    note("free()".to_owned());
    // SAFETY: blocks come from the function above.
    unsafe { libc::free(block) }
}

unsafe extern "C" fn malloc_trim(pad: usize) -> c_int {
    note(format!("malloc_trim({pad})"));
    1
}

unsafe extern "C" fn mallopt(param: c_int, value: c_int) -> c_int {
    if param == -3 && value > 32 << 20 {
        return 0;
    }
    note(format!("mallopt({param}, {value})"));
    let known = memweir_core::heap::tune::threshold_after_sweep();
    world(|world| world.known = known);
    1
}

unsafe extern "C" fn mallinfo2() -> Mallinfo2 {
    let (arena, hblkhd) = (5 << 30, 1 << 30);
    Mallinfo2 { arena, hblkhd, uordblks: 4 << 30, fordblks: 7, ..Mallinfo2::default() }
}

unsafe extern "C" fn mallinfo() -> Mallinfo {
    let wrapped = (3_u32 << 30) as c_int;
    Mallinfo { arena: wrapped, uordblks: wrapped, fordblks: 7, ..Mallinfo::default() }
}

unsafe extern "C" fn malloc_info(_: c_int, stream: *mut libc::FILE) -> c_int {
    let tops = world(|world| match world.script.len() {
        0 => vec![0],
        1 => world.script[0].clone(),
        _ => world.script.pop_front().unwrap(),
    });
    for (nr, top) in tops.iter().enumerate() {
        let free = top + 32;
        let heap = format!(
            "<heap nr=\"{nr}\">\n<total type=\"fast\" count=\"0\" size=\"0\"/>\n\
             <total type=\"rest\" count=\"1\" size=\"{free}\"/>\n\
             <system type=\"current\" size=\"{free}\"/>\n<system type=\"max\" size=\"{free}\"/>\n</heap>\n"
        );
        let heap = CString::new(heap).unwrap();
        // SAFETY: the caller's stream is open.
        unsafe { libc::fputs(heap.as_ptr(), stream) };
    }
    0
}

unsafe extern "C" fn gnu_get_libc_version() -> *const c_char {
    c"2.99".as_ptr()
}

unsafe extern "C" fn mallctl(
    name: *const c_char,
    old: *mut c_void,
    len: *mut usize,
    _new: *mut c_void,
    _newlen: usize,
) -> c_int {
    let name = text(name);
    note(format!("mallctl({name})"));
    if world(|world| world.refused.contains(&name)) {
        return libc::ENOENT;
    }
    if !old.is_null() {
        // SAFETY: the caller gives a place of as many bytes as it says; the types are as long.
        unsafe {
            match (name.as_str(), *len) {
                ("version", 8) => *old.cast::<*const c_char>() = c"5.9".as_ptr(),
                ("arenas.narenas", 4) => *old.cast::<u32>() = 7,
                ("stats.arenas.4096.pdirty", 8) => {
                    *old.cast::<usize>() = world(|world| world.unused)
                }
                (_, 8) => *old.cast::<usize>() = name.len(),
                _ => return libc::EINVAL,
            }
        }
    }
    0
}

unsafe extern "C" fn mi_collect(force: bool) {
    note(format!("mi_collect({force})"));
}

unsafe extern "C" fn mi_version() -> c_int {
    world(|world| world.mimalloc)
}

unsafe extern "C" fn mi_option_set(option: c_int, value: c_long) {
    note(format!("mi_option_set({option}, {value})"));
    world(|world| world.option = value);
}

unsafe extern "C" fn mi_option_get(_: c_int) -> c_long {
    world(|world| world.option)
}

type Out = *mut usize;
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn mi_process_info(
    _: Out,
    _: Out,
    _: Out,
    _: Out,
    _: Out,
    now: Out,
    _: Out,
    _: Out,
) {
    // SAFETY: the caller gives a place for this figure.
    unsafe { *now = 4096 };
}

unsafe extern "C" fn release_free_memory() {
    note("ReleaseFreeMemory()".to_owned());
}

unsafe extern "C" fn numeric_property(name: *const c_char, value: *mut usize) -> c_int {
    // SAFETY: the caller gives a place for a number.
    unsafe { *value = text(name).len() };
    1
}

unsafe extern "C" fn set_numeric_property(name: *const c_char, value: usize) -> c_int {
    note(format!("set({}, {value})", text(name)));
    1
}

unsafe extern "C" fn tc_version(
    _: *mut c_int,
    _: *mut c_int,
    _: *mut *const c_char,
) -> *const c_char {
    c"gperftools 2.99".as_ptr()
}

unsafe extern "C" fn pressure_relief(zone: *mut (), goal: usize) -> usize {
    let zone = if zone.is_null() { "null" } else { "zone" };
    note(format!("malloc_zone_pressure_relief({zone}, {goal})"));
    12_345
}

/// A process, as its loader sees it.
pub struct Fake {
    platform: Platform,
    program: usize,
    name: Option<String>,
    symbols: HashMap<CString, (*const (), usize)>,
}

impl Fake {
    pub fn new(platform: Platform) -> Self {
        Self { platform, program: 0, name: None, symbols: HashMap::new() }
    }

    /// The GNU library and nothing else.
    pub fn glibc(base: usize) -> Self {
        Self::new(Platform::Gnu)
            .malloc(base)
            .with(c"free", free as *const (), base)
            .with(c"aligned_alloc", malloc as *const (), base)
            .with(c"malloc_trim", malloc_trim as *const (), base)
            .with(c"mallopt", mallopt as *const (), base)
            .with(c"mallinfo2", mallinfo2 as *const (), base)
            .with(c"mallinfo", mallinfo as *const (), base)
            .with(c"malloc_info", malloc_info as *const (), base)
            .with(c"gnu_get_libc_version", gnu_get_libc_version as *const (), base)
    }

    pub fn malloc(self, base: usize) -> Self {
        self.with(c"malloc", malloc as *const (), base)
    }

    pub fn jemalloc(self, base: usize) -> Self {
        self.malloc(base).with(c"mallctl", mallctl as *const (), base)
    }

    pub fn mimalloc(self, base: usize) -> Self {
        self.malloc(base)
            .with(c"mi_collect", mi_collect as *const (), base)
            .with(c"mi_version", mi_version as *const (), base)
            .with(c"mi_option_set", mi_option_set as *const (), base)
            .with(c"mi_option_get", mi_option_get as *const (), base)
            .with(c"mi_process_info", mi_process_info as *const (), base)
    }

    pub fn tcmalloc(self, base: usize) -> Self {
        self.malloc(base)
            .with(c"MallocExtension_ReleaseFreeMemory", release_free_memory as *const (), base)
            .with(c"MallocExtension_GetNumericProperty", numeric_property as *const (), base)
            .with(c"MallocExtension_SetNumericProperty", set_numeric_property as *const (), base)
            .with(c"tc_version", tc_version as *const (), base)
    }

    pub fn zones(self, base: usize) -> Self {
        self.with(c"malloc_zone_pressure_relief", pressure_relief as *const (), base)
    }

    pub fn program(mut self, base: usize) -> Self {
        self.program = base;
        self
    }

    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    pub fn remove(&mut self, name: &CStr) {
        self.symbols.remove(name);
    }

    fn with(mut self, name: &CStr, address: *const (), base: usize) -> Self {
        self.symbols.insert(name.to_owned(), (address, base));
        self
    }
}

impl Loader for Fake {
    fn find(&self, name: &CStr) -> Option<Symbol> {
        let (address, base) = *self.symbols.get(name)?;
        let address = NonNull::new(address.cast_mut())?;
        let object = self.name.clone().unwrap_or_else(|| format!("/lib/object{base}.so"));
        Some(Symbol { address, base, object })
    }

    fn is_program(&self, base: usize) -> bool {
        base == self.program
    }

    fn platform(&self) -> Platform {
        self.platform
    }
}
