//! The cache, for Python: keys and arrays in, handles out.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use memweir_core::cache::{Cache, Existing, Key, Part, Reservation};
use memweir_core::digest::{self, Algorithm, CopyHasher};
use memweir_core::error::Error;
use memweir_core::pack::Strided;
use memweir_core::pixels::Spec;
use memweir_core::proc::fork;
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMapping, PyString, PyTuple};

use crate::borrow::{Borrowed, type_name};
use crate::digest::PyDigest;
use crate::pixels::{BULK, PyPixels};

/// Name of the array when an entry is one array without a name.
const ALONE: &str = "array";

/// The cache without the parts that are Python's: sizes as text, flights, registration.
#[pyclass(frozen, subclass, weakref, module = "memweir._core", name = "Cache")]
pub struct PyCache {
    cache: Arc<Cache>,
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
    fn new(budget: usize) -> Self {
        Self { cache: Cache::new(budget) }
    }

    fn get(&self, key: &Bound<'_, PyAny>) -> PyResult<Option<PyPixels>> {
        Ok(self.cache.get(&key_of(key)?).map(PyPixels::new))
    }

    fn _peek(&self, key: &Bound<'_, PyAny>) -> PyResult<Option<PyPixels>> {
        Ok(self.cache.peek(&key_of(key)?).map(PyPixels::new))
    }

    fn _key<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &key_of(key)?.to_bytes()))
    }

    fn __contains__(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.cache.contains(&key_of(key)?))
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
        let store = |sources: &[&Strided], spec| -> Result<bool, Error> {
            let Some(mut writer) = self.cache.begin(spec)? else {
                self.cache.remove(&key); // an older value under this key is not the answer
                return Ok(false);
            };
            writer.fill(|spec, out| copy(sources, spec, out));
            Ok(writer.publish(key, Existing::Replace, None))
        };
        arrays.with(py, store)
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
        let serve = |sources: &[&Strided], spec: Spec| {
            let loose = spec.clone();
            if generation.is_some() {
                let writer = match reservation {
                    Some(reservation) => reservation.begin(spec),
                    None => self.cache.begin(spec),
                };
                // The system's refusal is not the end: less is asked of it below.
                if let Ok(Some(mut writer)) = writer {
                    writer.fill(|spec, out| copy(sources, spec, out));
                    let pin = writer.publish_pinned(key, Existing::Replace, generation);
                    if let Some(pin) = pin {
                        return Ok(pin);
                    }
                }
            }
            self.cache.loose(loose, |spec, out| copy(sources, spec, out))
        };
        arrays.with(py, serve).map(PyPixels::new)
    }

    fn put_array(
        &self,
        py: Python<'_>,
        array: &Bound<'_, PyAny>,
    ) -> PyResult<(PyDigest, Option<PyPixels>)> {
        let array = Borrowed::array(array)?;
        let (layout, source) = (array.layout(), array.source());
        let store = || -> Result<_, Error> {
            let spec = Spec::new([(ALONE.into(), layout.clone())])?;
            let mut hasher = CopyHasher::new(Algorithm::Blake3);
            let Some(mut writer) = self.cache.begin(spec)? else {
                let content = digest::content(Algorithm::Blake3, source);
                let digest = digest::array(Algorithm::Blake3, layout, &content);
                // It may be there already: its name was not known before.
                return Ok((digest, self.cache.peek(&Key::content(digest.as_bytes()))));
            };
            writer.fill(|_, out| hasher.copy(source, &mut out[..layout.nbytes()]));
            let digest = digest::array(Algorithm::Blake3, layout, &hasher.finish());
            let key = Key::content(digest.as_bytes());
            Ok((digest, writer.publish_pinned(key, Existing::Keep, None)))
        };
        let stored = if layout.nbytes() > BULK { py.detach(store) } else { store() };
        let (digest, pin) = stored.map_err(raised)?;
        Ok((digest.into(), pin.map(PyPixels::new)))
    }

    fn remove(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (py, key) = (key.py(), key_of(key)?);
        Ok(py.detach(|| self.cache.remove(&key)))
    }

    fn get_array(&self, digest: &PyDigest) -> Option<PyPixels> {
        self.cache.peek(&Key::content(digest.as_bytes())).map(PyPixels::new)
    }

    fn _reserve(&self, py: Python<'_>, nbytes: usize) -> PyResult<Option<PyReservation>> {
        let reserved = py.detach(|| self.cache.reserve(nbytes)).map_err(raised)?;
        Ok(reserved.map(|r| PyReservation { held: Mutex::new(Some(r)) }))
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

    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = self.cache.stats();
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
        if let Ok(mapping) = given.cast::<PyMapping>() {
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

    /// Runs `store` over the sources, off the GIL when there is much to copy.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        store: impl FnOnce(&[&Strided], Spec) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let fields = self.0.iter().map(|(name, array)| (name.clone(), array.layout().clone()));
        let spec = Spec::new(fields).map_err(raised)?;
        let many: Vec<&Strided>;
        let one;
        let sources: &[&Strided] = match &self.0[..] {
            [(_, array)] => {
                one = [array.source()];
                &one
            }
            arrays => {
                many = arrays.iter().map(|(_, array)| array.source()).collect();
                &many
            }
        };
        let stored = if spec.span() > BULK {
            py.detach(|| store(sources, spec))
        } else {
            store(sources, spec)
        };
        stored.map_err(raised)
    }
}

/// Copies the sources to where the description has their arrays.
fn copy(sources: &[&Strided], spec: &Spec, out: &mut [u8]) {
    for (field, source) in spec.fields().iter().zip(sources) {
        source.copy_to(&mut out[field.range()]);
    }
}

fn key_of(key: &Bound<'_, PyAny>) -> PyResult<Key> {
    if let Ok(digest) = key.cast_exact::<PyDigest>() {
        return Ok(Key::digest(digest.get().as_bytes()));
    }
    if let Ok(parts) = key.cast_exact::<PyTuple>() {
        let parts: Vec<Bound<'_, PyAny>> = parts.iter().collect();
        let parts: Vec<Part<'_>> = parts.iter().map(part_of).collect::<PyResult<_>>()?;
        return Ok(Key::tuple(parts.into_iter()));
    }
    part_of(key).map(Key::single)
}

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

fn raised(error: Error) -> PyErr {
    match error {
        Error::OutOfMemory { .. } => PyMemoryError::new_err(error.to_string()),
        other => PyValueError::new_err(other.to_string()),
    }
}
