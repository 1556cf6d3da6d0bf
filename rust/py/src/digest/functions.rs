//! The functions of `memweir.identity`: take what Python has, hash it off the GIL, name it.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use memweir_core::digest::{self, Algorithm, Digest, Hasher, LEN, Source};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::image::Image;
use super::nested::Walk;
use super::packed::Packed;
use super::{PyDigest, algorithm as parse, pillow};
use crate::borrow::{Borrowed, is_array};

/// Less work than this is done sooner than the GIL is given up and taken back.
pub const BULK: usize = 2 << 10;

/// Bytes read from a file at a time.
const READ: usize = 256 << 10;

/// Bytes of a file after which Python gets to look for signals.
const PATIENCE: u64 = 256 << 20;

#[pyfunction]
#[pyo3(signature = (data, /, *, algorithm = "blake3"))]
pub fn hash_bytes(data: &Bound<'_, PyAny>, algorithm: &str) -> PyResult<PyDigest> {
    let algorithm = parse(algorithm)?;
    let bytes = Packed::of(data)?;
    let source = bytes.source()?;
    let content = content(data.py(), algorithm, &source);
    Ok(digest::bytes_of(algorithm, source.nbytes() as u64, &content).into())
}

#[pyfunction]
#[pyo3(signature = (path, /, *, algorithm = "blake3"))]
pub fn hash_file(path: &Bound<'_, PyAny>, algorithm: &str) -> PyResult<PyDigest> {
    let (py, algorithm) = (path.py(), parse(algorithm)?);
    let os = py.import("os")?;
    let name = os.call_method1("fsdecode", (path,))?;
    let path: PathBuf = name.extract()?;
    // As Python raises it: the right class, `errno` and `filename`.
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(errno) => match os.call_method1("strerror", (errno,)) {
            Ok(text) => PyOSError::new_err((errno, text.unbind(), name.clone().unbind())),
            Err(error) => error,
        },
        None => PyOSError::new_err(error.to_string()),
    };
    let mut file = py.detach(|| File::open(&path)).map_err(failed)?;
    let mut hasher = Hasher::new(algorithm);
    // Not mapped: a file that shrinks under a map kills the process.
    let mut block = vec![0; READ];
    while !py.detach(|| read_some(&mut file, &mut hasher, &mut block)).map_err(failed)? {
        py.check_signals()?;
    }
    let len = hasher.len();
    Ok(digest::bytes_of(algorithm, len, &hasher.finish()).into())
}

#[pyfunction]
#[pyo3(signature = (array, /, *, algorithm = "blake3"))]
pub fn hash_array(array: &Bound<'_, PyAny>, algorithm: &str) -> PyResult<PyDigest> {
    Ok(array_digest(array, parse(algorithm)?)?.into())
}

#[pyfunction]
#[pyo3(signature = (image, /, *, shape = None, algorithm = "blake3"))]
pub fn hash_image(
    image: &Bound<'_, PyAny>,
    shape: Option<Vec<usize>>,
    algorithm: &str,
) -> PyResult<PyDigest> {
    let algorithm = parse(algorithm)?;
    let found = match shape {
        Some(shape) => Image::of_bytes(image, &shape)?,
        None => Image::of(image, algorithm)?,
    };
    Ok(found.digest(image.py(), algorithm).into())
}

#[pyfunction]
#[pyo3(signature = (value, /, *, algorithm = "blake3"))]
pub fn hash_value(value: &Bound<'_, PyAny>, algorithm: &str) -> PyResult<PyDigest> {
    let algorithm = parse(algorithm)?;
    let mut walk = Walk::new(algorithm, Hasher::new(algorithm));
    walk.value(value)?;
    let hasher = walk.finish();
    let len = hasher.len();
    Ok(digest::value(algorithm, len, &hasher.finish()).into())
}

#[pyfunction]
#[pyo3(signature = (objects, /, *, threads = None, algorithm = "blake3"))]
pub fn hash_many<'py>(
    objects: &Bound<'py, PyAny>,
    threads: Option<usize>,
    algorithm: &str,
) -> PyResult<Bound<'py, PyList>> {
    let (py, algorithm) = (objects.py(), parse(algorithm)?);
    let tasks = objects.try_iter()?.map(|object| Task::of(&object?, algorithm));
    let tasks: Vec<Task<'_>> = tasks.collect::<PyResult<_>>()?;
    let sources: Vec<Source<'_>> = tasks.iter().map(Task::source).collect::<PyResult<_>>()?;
    let contents = py.detach(|| digest::contents(algorithm, &sources, threads));
    let named = tasks.iter().zip(&contents).map(|(task, content)| task.named(algorithm, content));
    let digests = named.collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, digests.into_iter().map(PyDigest::from))
}

/// One object of many.
enum Task<'py> {
    Bytes(Packed<'py>),
    Image(Image<'py>),
}

impl<'py> Task<'py> {
    fn of(obj: &Bound<'py, PyAny>, algorithm: Algorithm) -> PyResult<Self> {
        if is_array(obj)? || pillow::is_image(obj)? {
            Ok(Self::Image(Image::of(obj, algorithm)?))
        } else {
            Ok(Self::Bytes(Packed::of(obj)?))
        }
    }

    fn source(&self) -> PyResult<Source<'_>> {
        match self {
            Self::Bytes(packed) => packed.source(),
            Self::Image(image) => Ok(image.source()),
        }
    }

    fn named(&self, algorithm: Algorithm, content: &[u8; LEN]) -> PyResult<Digest> {
        Ok(match self {
            Self::Bytes(packed) => {
                digest::bytes_of(algorithm, packed.source()?.nbytes() as u64, content)
            }
            Self::Image(image) => image.named(algorithm, content),
        })
    }
}

/// Hashes what comes next; true at the end of the file.
fn read_some(file: &mut File, hasher: &mut Hasher, block: &mut [u8]) -> io::Result<bool> {
    let until = hasher.len() + PATIENCE;
    while hasher.len() < until {
        match file.read(block) {
            Ok(0) => return Ok(true),
            Ok(n) => hasher.update(&block[..n]),
            // A signal: its handler runs in Python.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Digest of an array, off the GIL when it is large.
pub(super) fn array_digest(array: &Bound<'_, PyAny>, algorithm: Algorithm) -> PyResult<Digest> {
    let borrowed = Borrowed::array(array)?;
    let source = Source::Strided(borrowed.source());
    let content = content(array.py(), algorithm, &source);
    Ok(digest::array(algorithm, borrowed.layout(), &content))
}

/// Content hash, off the GIL when there is much to hash.
pub(super) fn content(py: Python<'_>, algorithm: Algorithm, source: &Source<'_>) -> [u8; LEN] {
    if source.nbytes() < BULK {
        source.content(algorithm)
    } else {
        py.detach(|| source.content(algorithm))
    }
}
