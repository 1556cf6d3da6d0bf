//! The allocator, for Python: figures, and jobs that give memory back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memweir_core::heap::job::{Job, Part, desk};
use memweir_core::heap::stats::Stats;
use memweir_core::heap::step::Step;
use memweir_core::heap::{environ, live, stats, tune};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// How often a wait looks whether Python wants to be interrupted.
const GLANCE: Duration = Duration::from_millis(100);

/// Makes what must not be in the middle of its making when the process forks, and reads the
/// environment while nobody changes it.
pub fn prepare() {
    desk();
    environ::started();
}

/// A job that gives memory back: running, or done.
#[pyclass(frozen, module = "memweir._core", name = "HeapJob")]
pub struct PyHeapJob {
    job: Arc<Job>,
    #[pyo3(get)]
    joined: bool,
}

/// What one step of a job did.
#[pyclass(frozen, module = "memweir._core", name = "HeapStep")]
pub struct PyHeapStep(Step);

#[pymethods]
impl PyHeapJob {
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let end = match timeout {
            None => None,
            Some(seconds) if seconds >= 0.0 => Duration::try_from_secs_f64(seconds)
                .ok()
                .and_then(|timeout| Instant::now().checked_add(timeout)),
            Some(seconds) => {
                let wrong = format!("timeout is None or seconds from 0 on, not {seconds}");
                return Err(PyValueError::new_err(wrong));
            }
        };
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let glance = left.map_or(GLANCE, |left| left.min(GLANCE));
            if py.detach(|| desk().wait(&self.job, Some(glance))) {
                return Ok(true);
            }
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            py.check_signals()?;
        }
    }

    #[getter]
    fn done(&self) -> bool {
        desk().is_done(&self.job)
    }

    #[getter]
    fn steps(&self) -> Vec<PyHeapStep> {
        desk().steps(&self.job).into_iter().map(PyHeapStep).collect()
    }

    fn __eq__(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.job, &other.job)
    }

    fn __hash__(&self) -> usize {
        Arc::as_ptr(&self.job).addr()
    }

    fn __repr__(&self) -> String {
        let state = if self.done() { "done" } else { "running" };
        format!("HeapJob({state}, joined={})", if self.joined { "True" } else { "False" })
    }
}

#[pymethods]
impl PyHeapStep {
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name
    }

    #[getter]
    fn ok(&self) -> bool {
        self.0.ok
    }

    #[getter]
    fn why(&self) -> Option<&str> {
        self.0.why.as_deref()
    }

    #[getter]
    fn returned(&self) -> Option<i64> {
        self.0.returned
    }

    #[getter]
    fn seconds(&self) -> f64 {
        self.0.seconds
    }

    #[getter]
    fn anon_before(&self) -> Option<u64> {
        self.0.anon_before
    }

    #[getter]
    fn anon_after(&self) -> Option<u64> {
        self.0.anon_after
    }

    #[getter]
    fn sweepers(&self) -> Option<usize> {
        self.0.sweep.as_ref().map(|sweep| sweep.sweepers)
    }

    #[getter]
    fn arenas_seen(&self) -> Option<usize> {
        self.0.sweep.as_ref()?.arenas_seen
    }

    #[getter]
    fn arenas_swept(&self) -> Option<usize> {
        self.0.sweep.as_ref()?.arenas_swept
    }

    #[getter]
    fn tops_before(&self) -> Option<u64> {
        self.0.sweep.as_ref()?.tops_before
    }

    #[getter]
    fn tops_after(&self) -> Option<u64> {
        self.0.sweep.as_ref()?.tops_after
    }

    #[getter]
    fn trim_threshold(&self) -> Option<usize> {
        self.0.sweep.as_ref()?.trim_threshold
    }

    #[getter]
    fn unadvised_ranges(&self) -> Option<usize> {
        self.0.advice.map(|advice| advice.ranges)
    }

    #[getter]
    fn unadvised_bytes(&self) -> Option<u64> {
        self.0.advice.map(|advice| advice.bytes)
    }

    fn __repr__(&self) -> String {
        let Step { name, ok, why, seconds, .. } = &self.0;
        let ok = if *ok { "True" } else { "False" };
        let why = why.as_ref().map_or("None".to_owned(), |why| format!("{why:?}"));
        format!("HeapStep({name}, ok={ok}, why={why}, seconds={seconds:.4})")
    }
}

/// Starts giving memory back, or joins the job that does.
#[pyfunction]
#[pyo3(signature = (release=true, sweep=true))]
pub fn heap_job(py: Python<'_>, release: bool, sweep: bool) -> PyHeapJob {
    let wanted = [(release, Part::Release), (sweep, Part::Sweep)];
    let parts: Vec<Part> = wanted.iter().filter(|(on, _)| *on).map(|(_, part)| *part).collect();
    let (job, joined) = py.detach(|| desk().ask(&parts));
    PyHeapJob { job, joined }
}

type Figures = (Option<u64>, Option<u64>, Option<u64>, Option<u64>, Option<u64>);

/// The allocator: kind, version, object.
#[pyfunction]
pub fn heap_allocator(
    py: Python<'_>,
) -> (&'static str, Option<&'static str>, Option<&'static str>) {
    let allocator = py.detach(live);
    (allocator.kind(), allocator.version.as_deref(), allocator.object.as_deref())
}

/// What it counts: in use, free, mapped, arenas and their tops.
#[pyfunction]
pub fn heap_stats(py: Python<'_>) -> Figures {
    let Stats { in_use, free, mapped, arenas, tops } = py.detach(|| stats::stats(live()));
    (in_use, free, mapped, arenas, tops)
}

/// Sets one knob of the allocator: whether it took effect, and what there is to say.
#[pyfunction]
pub fn heap_tune(py: Python<'_>, knob: &str, value: i64) -> (bool, Option<String>) {
    match py.detach(|| tune::set(live(), knob, value)) {
        Ok(word) => (true, word),
        Err(why) => (false, Some(why)),
    }
}

/// Why tuning comes too late for what was allocated before; `None` when it does not.
#[pyfunction]
pub fn heap_late(py: Python<'_>) -> Option<String> {
    py.detach(|| tune::late(live()))
}
