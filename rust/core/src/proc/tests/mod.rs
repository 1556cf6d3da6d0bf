mod groups;
#[cfg(unix)]
mod kept;
#[cfg(unix)]
mod reader;
mod text;
#[cfg(unix)]
mod tree;
