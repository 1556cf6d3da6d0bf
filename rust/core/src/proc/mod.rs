//! The process around us.
#![allow(unsafe_code)]

pub mod fork;
pub mod groups;
mod kept;
pub mod limits;
pub mod maps;
mod mark;
pub mod pages;
pub mod process;
pub mod reader;
pub mod text;

#[cfg(test)]
mod tests;
