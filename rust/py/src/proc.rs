//! What this process uses and may use, as an immutable object.

use memweir_core::proc::limits::Limit;
use memweir_core::proc::process::Process;
use memweir_core::proc::reader::{Quick, Reader, Stalls};
use memweir_core::proc::text::{Rollup, Stall, Stat, Status};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::OnceLock;
use std::time::Instant;

/// What was read, and what is read when it is first asked for.
#[pyclass(frozen, module = "memweir._core", name = "Memory")]
pub struct PyMemory {
    quick: Quick,
    status: Later<Status>,
    stat: Later<Stat>,
    available: Later<u64>,
    pressure: Later<Stalls>,
    detail: Option<(Option<Rollup>, f64)>,
}

/// A bound on the memory of this process.
#[pyclass(frozen, get_all, eq, hash, module = "memweir._core", name = "Limit")]
#[derive(PartialEq, Eq, Hash)]
pub struct PyLimit {
    kind: &'static str,
    source: String,
    bytes: u64,
}

/// How long memory was waited for.
#[pyclass(frozen, get_all, module = "memweir._core", name = "Pressure")]
pub struct PyPressure {
    some_avg10: f64,
    some_avg60: f64,
    some_avg300: f64,
    some_total: u64,
    full_avg10: f64,
    full_avg60: f64,
    full_avg300: f64,
    full_total: u64,
    source: String,
}

/// Read once. Not within `get_or_init`: nobody waits for a thread that a fork has taken away.
struct Later<T>(OnceLock<Option<T>>);

impl<T: Clone> Later<T> {
    fn new() -> Self {
        Self(OnceLock::new())
    }

    fn get(&self, process: Process, read: impl FnOnce() -> Option<T>) -> Option<T> {
        if self.0.get().is_none() {
            // What a child reads is not of the process that the rest is of.
            let value = if process == Process::this() { read() } else { None };
            let _ = self.0.set(value);
        }
        self.0.get().cloned().flatten()
    }
}

impl PyMemory {
    fn status(&self) -> Option<Status> {
        self.status.get(self.quick.process, || Reader::shared().status())
    }

    fn stat(&self) -> Option<Stat> {
        self.stat.get(self.quick.process, || Reader::shared().stat())
    }

    fn host(&self) -> Option<u64> {
        self.available.get(self.quick.process, || Reader::shared().available())
    }

    fn stalls(&self) -> Option<Stalls> {
        self.pressure.get(self.quick.process, || Reader::shared().pressure())
    }

    fn rollup(&self) -> Option<Rollup> {
        self.detail?.0
    }

    fn fill(&self) {
        self.status();
        self.stat();
        self.host();
        self.stalls();
    }
}

#[pymethods]
impl PyMemory {
    #[getter]
    fn rss(&self) -> Option<u64> {
        self.quick.rss
    }

    #[getter]
    fn anon(&self) -> Option<u64> {
        self.quick.anon
    }

    #[getter]
    fn charge(&self) -> Option<u64> {
        self.quick.charge
    }

    #[getter]
    fn limit(&self) -> Option<u64> {
        Some(self.quick.limit.as_ref()?.bytes)
    }

    #[getter]
    fn limit_source(&self) -> Option<&str> {
        Some(&self.quick.limit.as_ref()?.source)
    }

    #[getter]
    fn file(&self) -> Option<u64> {
        Some(self.status()?.file)
    }

    #[getter]
    fn shmem(&self) -> Option<u64> {
        Some(self.status()?.shmem)
    }

    #[getter]
    fn swap(&self) -> Option<u64> {
        self.status()?.swap
    }

    #[getter]
    fn peak(&self) -> Option<u64> {
        self.status()?.peak
    }

    #[getter]
    fn available(&self) -> Option<u64> {
        self.host()
    }

    #[getter]
    fn working_set(&self, py: Python<'_>) -> Option<u64> {
        // The kernel may add up what all its processors have counted first.
        let stat = py.detach(|| self.stat())?;
        Some(self.quick.charge?.saturating_sub(stat.inactive_file))
    }

    #[getter]
    fn pressure(&self) -> Option<PyPressure> {
        self.stalls().map(Into::into)
    }

    #[getter]
    fn pss(&self) -> Option<u64> {
        Some(self.rollup()?.pss)
    }

    #[getter]
    fn uss(&self) -> Option<u64> {
        Some(self.rollup()?.uss)
    }

    #[getter]
    fn huge(&self) -> Option<u64> {
        Some(self.rollup()?.huge)
    }

    #[getter]
    fn detail_seconds(&self) -> Option<f64> {
        Some(self.detail?.1)
    }

    fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        py.detach(|| self.fill());
        let all = PyDict::new(py);
        for (name, value) in [
            ("rss", self.rss()),
            ("anon", self.anon()),
            ("file", self.file()),
            ("shmem", self.shmem()),
            ("swap", self.swap()),
            ("peak", self.peak()),
            ("charge", self.charge()),
            ("working_set", self.working_set(py)),
            ("limit", self.limit()),
            ("available", self.available()),
        ] {
            all.set_item(name, value)?;
        }
        all.set_item("limit_source", self.limit_source())?;
        all.set_item("pressure", self.pressure().map(|p| p.as_dict(py)).transpose()?)?;
        if let Some((rollup, seconds)) = self.detail {
            all.set_item("pss", rollup.map(|r| r.pss))?;
            all.set_item("uss", rollup.map(|r| r.uss))?;
            all.set_item("huge", rollup.map(|r| r.huge))?;
            all.set_item("detail_seconds", seconds)?;
        }
        Ok(all)
    }

    fn __repr__(&self) -> String {
        let show = |name: &str, value: Option<u64>| match value {
            Some(bytes) => format!("{name}={bytes}"),
            None => format!("{name}=None"),
        };
        let source = self.limit_source().map(|s| format!(" ({s})")).unwrap_or_default();
        format!(
            "<Memory {} {} {} {}{source}>",
            show("rss", self.rss()),
            show("anon", self.anon()),
            show("charge", self.charge()),
            show("limit", self.limit()),
        )
    }
}

#[pymethods]
impl PyLimit {
    fn __repr__(&self) -> String {
        format!("<Limit {} {}>", self.bytes, self.source)
    }
}

#[pymethods]
impl PyPressure {
    fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        all.set_item("some_avg10", self.some_avg10)?;
        all.set_item("some_avg60", self.some_avg60)?;
        all.set_item("some_avg300", self.some_avg300)?;
        all.set_item("some_total", self.some_total)?;
        all.set_item("full_avg10", self.full_avg10)?;
        all.set_item("full_avg60", self.full_avg60)?;
        all.set_item("full_avg300", self.full_avg300)?;
        all.set_item("full_total", self.full_total)?;
        all.set_item("source", &self.source)?;
        Ok(all)
    }

    fn __repr__(&self) -> String {
        let (some, full) = (self.some_avg10, self.full_avg10);
        format!("<Pressure some {some} % full {full} % of 10 s, {}>", self.source)
    }
}

impl From<Stalls> for PyPressure {
    fn from((pressure, source): Stalls) -> Self {
        let Stall { avg10, avg60, avg300, total } = pressure.full;
        Self {
            some_avg10: pressure.some.avg10,
            some_avg60: pressure.some.avg60,
            some_avg300: pressure.some.avg300,
            some_total: pressure.some.total,
            full_avg10: avg10,
            full_avg60: avg60,
            full_avg300: avg300,
            full_total: total,
            source: source.to_string(),
        }
    }
}

impl From<Limit> for PyLimit {
    fn from(limit: Limit) -> Self {
        Self { kind: limit.kind, source: limit.source.to_string(), bytes: limit.bytes }
    }
}

/// What this process uses now, and may use.
#[pyfunction]
#[pyo3(signature = (full=false, detail=false))]
pub fn memory(py: Python<'_>, full: bool, detail: bool) -> PyMemory {
    let reader = Reader::shared();
    // A few microseconds are less than what giving the lock away may cost.
    let quick = reader.quick_unless_due().unwrap_or_else(|| py.detach(|| reader.quick()));
    let detail = detail.then(|| {
        py.detach(|| {
            let start = Instant::now();
            (reader.rollup(), start.elapsed().as_secs_f64())
        })
    });
    let memory = PyMemory {
        quick,
        status: Later::new(),
        stat: Later::new(),
        available: Later::new(),
        pressure: Later::new(),
        detail,
    };
    if full {
        py.detach(|| memory.fill());
    }
    memory
}

/// All bounds that were found, as they are now.
#[pyfunction]
pub fn limits(py: Python<'_>) -> Vec<PyLimit> {
    let found = py.detach(|| Reader::shared().limits());
    found.into_iter().map(Into::into).collect()
}

/// Drops clean resident pages of a file's maps: bytes, maps dropped, maps left since written to.
///
/// Holds the interpreter, so that no object that maps the file goes away meanwhile.
#[pyfunction]
pub fn drop_file_pages(path: std::path::PathBuf) -> PyResult<(u64, u64, u64)> {
    let found = memweir_core::proc::pages::drop_clean(&path)?;
    Ok((found.bytes, found.maps, found.dirty))
}
