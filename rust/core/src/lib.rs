//! memweir's core: what an image is, where its bytes live, and what is kept. It knows no Python.

pub mod descriptor;
pub mod error;
pub mod layout;
pub mod pack;
