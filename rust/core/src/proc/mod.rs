//! The process around us.
#![allow(unsafe_code)]

pub mod fork;
