//! memweir's core: what an image is, where its bytes live, and what is kept. It knows no Python.

pub mod arena;
pub mod budget;
pub mod cache;
pub mod claims;
pub mod compact;
pub mod descriptor;
pub mod digest;
pub mod error;
pub mod heap;
pub mod layout;
pub mod lru;
pub mod pack;
pub mod pixels;
pub mod proc;
pub mod simd;
mod sync;
pub mod value;
