//! The same safe source compiled for what the processor has. Only entering it is unsafe.
#![allow(unsafe_code)]

use crate::sync::Fact;

#[cfg(fuzzing)]
std::thread_local! {
    /// The level that a fuzzer has chosen for this thread.
    pub static CHOSEN: std::cell::Cell<Option<Level>> = const { std::cell::Cell::new(None) };
}

/// Instructions that code may be compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What every processor of the target has.
    Portable,
    /// AVX2 and FMA, on x86-64.
    Avx2,
}

/// Work whose [`run`](Kernel::run), and all that it calls in its loops, is `#[inline(always)]`: then
/// it is compiled anew for each level.
pub trait Kernel {
    /// What comes out.
    type Out;
    /// Does the work. `FUSED`: `f32::mul_add` is one instruction, not a call.
    fn run<const FUSED: bool>(self) -> Self::Out;
}

impl Level {
    /// The best level of this machine, or the one that `MEMWEIR_SIMD` (`portable`, `avx2`) names;
    /// a level that the machine lacks, and any other value, names nothing.
    pub fn get() -> Self {
        #[cfg(fuzzing)]
        if let Some(level) = CHOSEN.get() {
            return level;
        }
        static AVX2: Fact = Fact::new();
        let avx2 = || {
            let asked = std::env::var("MEMWEIR_SIMD").unwrap_or_default();
            asked != "portable" && Self::Avx2.is_here()
        };
        if AVX2.get(|| avx2().into()) == 0 { Self::Portable } else { Self::Avx2 }
    }

    /// The levels of this machine.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Portable, Self::Avx2].into_iter().filter(|level| level.is_here())
    }

    fn is_here(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 => false,
        }
    }

    /// Runs `kernel`, compiled for this level; for [`Level::Portable`] where the machine lacks it.
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx2 && self.is_here() {
            // SAFETY: the features were detected on this machine.
            return unsafe { avx2(kernel) };
        }
        kernel.run::<{ cfg!(target_arch = "aarch64") }>()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<true>()
}
