mod groups;
#[cfg(unix)]
mod kept;
mod maps;
#[cfg(unix)]
mod reader;
mod text;
#[cfg(unix)]
mod tree;
