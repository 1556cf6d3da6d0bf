//! The few calls to the operating system that memory is made of.
//!
//! Linux is measured. Other Unixes map and unmap the same way; elsewhere blocks come from the
//! allocator and discarding only forgets (both untested).

use crate::error::{Error, Result};
use std::ptr::NonNull;

/// Alignment at which transparent huge pages can start.
pub const HUGE: usize = 2 << 20;

#[cfg(unix)]
mod imp {
    use super::*;
    use crate::sync::Fact;

    /// Bytes of a page.
    pub fn page() -> usize {
        static PAGE: Fact = Fact::new();
        PAGE.get(|| {
            // SAFETY: sysconf reads a constant of the system and touches no memory of ours.
            let n = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
            usize::try_from(n).ok().filter(|n| n.is_power_of_two()).unwrap_or(4096)
        })
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    const FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANON;

    pub fn map(len: usize, align: usize) -> Result<NonNull<u8>> {
        let refused = || {
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
            Error::OutOfMemory { bytes: len, errno }
        };
        let extra = if align > page() { align } else { 0 };
        let whole = len.checked_add(extra).ok_or_else(refused)?;
        // SAFETY: a new anonymous mapping at an address the kernel chooses overlaps nothing.
        let base = unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), whole, prot, FLAGS, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(refused());
        }
        let base = base.cast::<u8>();
        let head = base.align_offset(align.max(1)).min(extra);
        // SAFETY: `head <= extra`, so the kept range and both trimmed ends lie inside the mapping
        // just made, at page multiples (mmap returns pages, `align` and `len` are page multiples).
        unsafe {
            let start = base.add(head);
            trim(base, head);
            trim(start.add(len), extra - head);
            NonNull::new(start).ok_or_else(refused)
        }
    }

    /// # Safety
    /// The range is page-aligned, part of a mapping of ours, and nothing refers to it.
    unsafe fn trim(ptr: *mut u8, len: usize) {
        if len > 0 {
            // SAFETY: the caller's contract. A failure (too many maps) leaves untouched address
            // space behind, which costs no memory.
            unsafe { libc::munmap(ptr.cast(), len) };
        }
    }

    /// # Safety
    /// The range came whole from [`map`] and nothing refers to it any more.
    pub unsafe fn unmap(ptr: NonNull<u8>, len: usize, _align: usize) -> bool {
        // SAFETY: the caller's contract.
        let done = unsafe { libc::munmap(ptr.as_ptr().cast(), len) == 0 };
        // SAFETY: as above. Unmapping can fail only for want of map entries; then the pages go.
        done || unsafe { discard(ptr, len) }
    }

    /// # Safety
    /// The range is page-aligned, mapped by us, and its contents are not needed any more.
    pub unsafe fn discard(ptr: NonNull<u8>, len: usize) -> bool {
        if len == 0 {
            return true;
        }
        // SAFETY: the caller's contract; private anonymous pages read as zero afterwards.
        #[cfg(target_os = "linux")]
        if unsafe { libc::madvise(ptr.as_ptr().cast(), len, libc::MADV_DONTNEED) } == 0 {
            return true;
        }
        // Locked memory refuses the advice, and elsewhere it may be lazy: map fresh pages over it.
        // SAFETY: MAP_FIXED replaces exactly the range that the caller gives up.
        let over = unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr.as_ptr().cast(), len, prot, FLAGS | libc::MAP_FIXED, -1, 0)
        };
        over != libc::MAP_FAILED
    }

    pub fn advise_pages(ptr: NonNull<u8>, len: usize, huge: bool) {
        #[cfg(target_os = "linux")]
        {
            let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
            // SAFETY: advice about page size changes no contents; a refusal (no such kernel
            // feature) leaves the default.
            unsafe { libc::madvise(ptr.as_ptr().cast(), len, advice) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (ptr, len, huge);
    }

    /// Whether the kernel gives huge pages to those who ask for them.
    pub fn has_huge_pages() -> bool {
        static SOME: Fact = Fact::new();
        let setting = "/sys/kernel/mm/transparent_hugepage/enabled";
        let never = |text: String| text.contains("[never]");
        let some = || std::fs::read_to_string(setting).is_ok_and(|text| !never(text));
        SOME.get(|| some().into()) != 0
    }

    /// # Safety
    /// The range is mapped writable by us.
    pub unsafe fn populate(ptr: NonNull<u8>, len: usize) {
        #[cfg(target_os = "linux")]
        {
            const MADV_POPULATE_WRITE: libc::c_int = 23;
            // SAFETY: prefaulting changes no contents; kernels before 5.14 refuse, and the pages
            // are then faulted in one by one.
            unsafe { libc::madvise(ptr.as_ptr().cast(), len, MADV_POPULATE_WRITE) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (ptr, len);
    }
}

#[cfg(not(unix))]
mod imp {
    use super::*;
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    /// Bytes of a page.
    pub fn page() -> usize {
        4096
    }

    pub fn map(len: usize, align: usize) -> Result<NonNull<u8>> {
        let refused = Error::OutOfMemory { bytes: len, errno: 0 };
        let layout =
            Layout::from_size_align(len, align.max(page())).map_err(|_| refused.clone())?;
        // SAFETY: callers never ask for 0 bytes.
        NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(refused)
    }

    /// # Safety
    /// The range came whole from [`map`] with the same length and alignment.
    pub unsafe fn unmap(ptr: NonNull<u8>, len: usize, align: usize) -> bool {
        let Ok(layout) = Layout::from_size_align(len, align.max(page())) else { return false };
        // SAFETY: the caller's contract.
        unsafe { dealloc(ptr.as_ptr(), layout) };
        true
    }

    /// # Safety
    /// As on Unix; nothing is done here.
    pub unsafe fn discard(_ptr: NonNull<u8>, _len: usize) -> bool {
        true
    }

    pub fn advise_pages(_ptr: NonNull<u8>, _len: usize, _huge: bool) {}

    /// Whether the system gives huge pages to those who ask for them.
    pub fn has_huge_pages() -> bool {
        false
    }

    /// # Safety
    /// As on Unix; nothing is done here.
    pub unsafe fn populate(_ptr: NonNull<u8>, _len: usize) {}
}

pub use imp::*;
