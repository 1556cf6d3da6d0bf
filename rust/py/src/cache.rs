//! The cache, for Python: keys and arrays in, handles out.

use std::borrow::Cow;
use std::sync::Mutex;

use memweir_core::cache::{Array, Ask, Cache, Existing, Key, Owner, Part, Reservation, Writer};
use memweir_core::digest::{self, Algorithm};
use memweir_core::error::Error;
use memweir_core::proc::fork;
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMapping, PyString, PyTuple};

use crate::borrow::{Borrowed, has_buffer, type_name};
use crate::digest::PyDigest;
use crate::pixels::{BULK, PyPixels};

/// Name of the array when an entry is one array without a name.
const ALONE: &str = "array";

/// The cache without the parts that are Python's: sizes as text, flights, registration.
#[pyclass(frozen, subclass, weakref, module = "memweir._core", name = "Cache")]
pub struct PyCache {
    cache: Owner,
}

impl Drop for PyCache {
    /// Nobody can find the entries any more; giving their pages back may take a while.
    fn drop(&mut self) {
        Python::attach(|py| py.detach(|| self.cache.close()));
    }
}

/// Bytes put aside for a load in flight.
#[pyclass(frozen, module = "memweir._core", name = "Reservation")]
pub struct PyReservation {
    held: Mutex<Option<Reservation>>,
}

#[pymethods]
impl PyReservation {
    /// Gives the bytes back, if they were not used.
    fn release(&self) {
        drop(self.take());
    }
}

impl PyReservation {
    fn take(&self) -> Option<Reservation> {
        fork::lock(&self.held).take()
    }
}

#[pymethods]
impl PyCache {
    #[new]
    fn new(budget: usize, compact: bool) -> Self {
        Self { cache: Cache::new(budget, compact) }
    }

    fn get(&self, key: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyPixels>>> {
        // Made where the pin is at hand: through a result it would be written in halves and read as
        // a whole, which waits for the writes.
        let handle = |pin| Py::new(key.py(), PyPixels::new(pin));
        ask(key, |key| self.cache.get(key).map(handle).transpose())?
    }

    fn _peek(&self, key: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyPixels>>> {
        let handle = |pin| Py::new(key.py(), PyPixels::new(pin));
        ask(key, |key| self.cache.peek(key).map(handle).transpose())?
    }

    fn _key<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &key_of(key)?.to_bytes()))
    }

    fn __contains__(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        ask(key, |key| self.cache.contains(key))
    }

    fn __len__(&self) -> usize {
        self.cache.len()
    }

    #[getter]
    fn budget(&self) -> usize {
        self.cache.limit()
    }

    fn put(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        arrays: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let key = key_of(key)?;
        let arrays = Arrays::of(arrays)?;
        let store = |arrays: &[Array<'_>]| -> Result<bool, Error> {
            let written = self.cache.write(arrays, None)?;
            Ok(self.publish(key, written))
        };
        arrays.with(py, |nbytes| self.cache.is_soon_in(Some(&key), nbytes), store)
    }

    /// Stores what a load gave and returns a handle on it; what does not fit, or came too late,
    /// is served from outside the budget.
    #[pyo3(signature = (key, arrays, generation, reservation=None))]
    fn _serve(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        arrays: &Bound<'_, PyAny>,
        generation: Option<u64>,
        reservation: Option<&PyReservation>,
    ) -> PyResult<PyPixels> {
        let key = key_of(key)?;
        let arrays = Arrays::of(arrays)?;
        let reservation = reservation.and_then(PyReservation::take);
        let serve = |arrays: &[Array<'_>]| {
            if generation.is_some() {
                // The system's refusal is not the end: below nothing is written beside what is kept.
                if let Ok(Some(writer)) = self.cache.write(arrays, reservation)
                    && let Some(pin) = writer.publish_pinned(key, Existing::Replace, generation)
                {
                    return Ok(pin);
                }
            }
            self.cache.loose(arrays)
        };
        let soon = |nbytes| self.cache.is_soon_in(Some(&key), nbytes);
        arrays.with(py, soon, serve).map(PyPixels::new)
    }

    fn put_array(
        &self,
        py: Python<'_>,
        array: &Bound<'_, PyAny>,
    ) -> PyResult<(PyDigest, Option<PyPixels>)> {
        let array = Borrowed::array(array)?;
        let (layout, source) = (array.layout(), array.source());
        let store = || -> Result<_, Error> {
            let array = Array { name: ALONE.into(), layout, source };
            let (writer, content) = self.cache.write_hashed(array)?;
            let digest = digest::array(Algorithm::Blake3, layout, &content);
            let key = Key::content(digest.as_bytes());
            let pin = writer.and_then(|w| w.publish_pinned(key, Existing::Keep, None));
            // It may be there already: its name was not known before.
            Ok((digest, pin.or_else(|| self.cache.peek(&key))))
        };
        let nbytes = layout.nbytes();
        let soon = nbytes <= BULK && self.cache.is_soon_in(None, nbytes);
        let stored = if soon { store() } else { py.detach(store) };
        let (digest, pin) = stored.map_err(raised)?;
        Ok((digest.into(), pin.map(PyPixels::new)))
    }

    fn put_exported(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        record: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let key = key_of(key)?;
        let store = |record: &[u8]| {
            let written = self.cache.import(record)?;
            Ok(self.publish(key, written))
        };
        if let Ok(bytes) = record.cast_exact::<PyBytes>() {
            let bytes = bytes.as_bytes();
            return py.detach(|| store(bytes)).map_err(raised);
        }
        // What others may write to is read once.
        let memory = Borrowed::array(record)?.into_memory();
        let source = memory.source();
        let copied = || {
            let (bytes, nbytes) = (&mut Vec::new(), source.nbytes());
            let refused = |_| Error::OutOfMemory { bytes: nbytes, errno: 0 };
            bytes.try_reserve_exact(nbytes).map_err(refused)?;
            bytes.resize(nbytes, 0);
            source.copy_to(bytes);
            store(bytes)
        };
        py.detach(copied).map_err(raised)
    }

    fn remove(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (py, key) = (key.py(), key_of(key)?);
        Ok(py.detach(|| self.cache.remove(&key)))
    }

    fn get_array(&self, digest: &PyDigest) -> Option<PyPixels> {
        self.cache.peek(&Key::content(digest.as_bytes())).map(PyPixels::new)
    }

    fn _reserve(&self, py: Python<'_>, nbytes: usize) -> Option<PyReservation> {
        let reserved = py.detach(|| self.cache.reserve(nbytes));
        reserved.map(|r| PyReservation { held: Mutex::new(Some(r)) })
    }

    #[getter]
    fn _generation(&self) -> u64 {
        self.cache.generation()
    }

    fn _evict(&self, py: Python<'_>, to: usize) -> usize {
        py.detach(|| self.cache.evict(to))
    }

    fn _resize(&self, py: Python<'_>, budget: usize) -> usize {
        py.detach(|| self.cache.resize(budget))
    }

    fn _clear(&self, py: Python<'_>) -> usize {
        py.detach(|| self.cache.clear())
    }

    fn _drop_outputs(&self, py: Python<'_>) -> usize {
        py.detach(|| self.cache.drop_outputs())
    }

    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = py.detach(|| self.cache.stats());
        let stats = PyDict::new(py);
        stats.set_item("entries", s.entries)?;
        stats.set_item("bytes", s.bytes)?;
        stats.set_item("budget", s.budget)?;
        stats.set_item("peak_bytes", s.peak)?;
        stats.set_item("logical_bytes", s.logical)?;
        stats.set_item("pinned_bytes", s.pinned)?;
        stats.set_item("lent_bytes", s.lent)?;
        stats.set_item("hits", s.hits)?;
        stats.set_item("misses", s.misses)?;
        stats.set_item("evictions", s.evictions)?;
        stats.set_item("refused", s.refused)?;
        Ok(stats)
    }
}

impl PyCache {
    /// Makes a written entry findable. An older value is not the answer where it does not fit.
    fn publish(&self, key: Key, written: Option<Writer>) -> bool {
        let published = written.is_some_and(|w| w.publish(key, Existing::Replace, None));
        if !published {
            self.cache.remove(&key);
        }
        published
    }
}

/// Lets every cache forget the threads that a forked child lacks. Registered with
/// `os.register_at_fork`; locks are seen to inside `fork` itself.
#[pyfunction]
pub fn _after_fork_in_child(py: Python<'_>) {
    py.detach(fork::settle_in_child);
}

/// The arrays of an entry to come, borrowed from Python.
struct Arrays<'py>(Vec<(Cow<'static, str>, Borrowed<'py>)>);

impl<'py> Arrays<'py> {
    fn of(given: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(dict) = given.cast::<PyDict>() {
            return Self::named(dict.len(), dict.iter());
        }
        // To tell whether it is a mapping takes Python's abstract classes, which are slow.
        if !has_buffer(given)
            && let Ok(mapping) = given.cast::<PyMapping>()
        {
            let items = mapping.items()?;
            let pairs: Vec<_> = items.iter().map(|i| i.extract()).collect::<PyResult<_>>()?;
            return Self::named(pairs.len(), pairs.into_iter());
        }
        Ok(Self(vec![(Cow::Borrowed(ALONE), Borrowed::array(given)?)]))
    }

    fn named(
        len: usize,
        pairs: impl Iterator<Item = (Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    ) -> PyResult<Self> {
        let mut arrays = Vec::with_capacity(len);
        for (name, array) in pairs {
            let Ok(name) = name.cast::<PyString>() else {
                let kind = type_name(&name);
                return Err(PyTypeError::new_err(format!("names of arrays are str, not {kind}")));
            };
            arrays.push((Cow::Owned(name.to_str()?.to_owned()), Borrowed::array(&array)?));
        }
        if arrays.is_empty() {
            return Err(PyValueError::new_err("an entry needs at least one array"));
        }
        Ok(Self(arrays))
    }

    /// Runs `store` over the arrays, off the GIL when there is much to copy or, unless `soon`, to
    /// make room for them.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        soon: impl FnOnce(usize) -> bool,
        store: impl FnOnce(&[Array<'_>]) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        fn array<'a>((name, memory): &'a (Cow<'static, str>, Borrowed<'_>)) -> Array<'a> {
            Array { name: name.clone(), layout: memory.layout(), source: memory.source() }
        }
        let many: Vec<Array<'_>>;
        let one;
        let arrays: &[Array<'_>] = match &self.0[..] {
            [alone] => {
                one = [array(alone)];
                &one
            }
            several => {
                many = several.iter().map(array).collect();
                &many
            }
        };
        let nbytes =
            arrays.iter().map(|array| array.layout.nbytes()).fold(0, usize::saturating_add);
        let soon = nbytes <= BULK && soon(nbytes);
        let stored = if soon { store(arrays) } else { py.detach(|| store(arrays)) };
        stored.map_err(raised)
    }
}

/// Looks a key up where it lies.
#[inline]
fn ask<T>(key: &Bound<'_, PyAny>, look_up: impl FnOnce(Ask<'_>) -> T) -> PyResult<T> {
    let short = match key.cast_exact::<PyDigest>() {
        Ok(digest) => Some(Ask::digest(digest.get().as_bytes())),
        Err(_) if key.is_exact_instance_of::<PyTuple>() => None,
        Err(_) => Ask::single(part_of(key)?),
    };
    match short {
        Some(key) => Ok(look_up(key)),
        None => Ok(look_up((&other_key_of(key)?).into())),
    }
}

#[inline]
fn key_of(key: &Bound<'_, PyAny>) -> PyResult<Key> {
    match key.cast_exact::<PyDigest>() {
        Ok(digest) => Ok(Key::digest(digest.get().as_bytes())),
        Err(_) => other_key_of(key),
    }
}

#[inline(never)]
fn other_key_of(key: &Bound<'_, PyAny>) -> PyResult<Key> {
    if let Ok(parts) = key.cast_exact::<PyTuple>() {
        let parts: Vec<Bound<'_, PyAny>> = parts.iter().collect();
        let parts: Vec<Part<'_>> = parts.iter().map(part_of).collect::<PyResult<_>>()?;
        return Ok(Key::tuple(parts.into_iter()));
    }
    part_of(key).map(Key::single)
}

#[inline]
fn part_of<'a>(part: &'a Bound<'_, PyAny>) -> PyResult<Part<'a>> {
    if let Ok(text) = part.cast_exact::<PyString>() {
        return Ok(Part::Text(text.to_str()?));
    }
    if let Ok(bytes) = part.cast_exact::<PyBytes>() {
        return Ok(Part::Bytes(bytes.as_bytes()));
    }
    if let Ok(digest) = part.cast_exact::<PyDigest>() {
        return Ok(Part::Digest(digest.get().as_bytes()));
    }
    let kind = type_name(part);
    Err(PyTypeError::new_err(format!(
        "a key is a Digest, bytes, str or a tuple of those, not {kind}"
    )))
}

pub fn raised(error: Error) -> PyErr {
    match error {
        Error::OutOfMemory { .. } => PyMemoryError::new_err(error.to_string()),
        other => PyValueError::new_err(other.to_string()),
    }
}
